"""predict.py for a test: unhealthy once Cog has started a thread of its own."""

from __future__ import annotations

import threading

import predict


class Predictor(predict.Predictor):
    """Recognizes Cog's threads by the default name of an executor's threads: ours have names."""

    def setup(self) -> None:
        super().setup()
        self._started: list[str] = []
        start = threading.Thread.start

        def watched(thread: threading.Thread) -> None:
            if thread.name.startswith("ThreadPoolExecutor-"):
                self._started.append(thread.name)
            start(thread)

        threading.Thread.start = watched  # type: ignore[method-assign]

    async def healthcheck(self) -> bool:
        return not self._started
