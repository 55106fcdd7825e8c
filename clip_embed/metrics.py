"""Count what the service does, for Prometheus. Off unless CLIP_METRICS_PORT is set.

`Observer` is what the service talks to, and ignores everything. `PrometheusMetrics` publishes it at
http://HOST:PORT/metrics, in a thread; only it imports prometheus-client.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from clip_embed.errors import DownloadError, InputError, SettingError

Item = TypeVar("Item")
Result = TypeVar("Result")
RunBatch = Callable[[Sequence[Item]], Iterable[Result]]

STAGES = ("download", "prepare", "queue", "encode")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Observer:
    """Receives what the service does. This one ignores it."""

    def prediction(self, kind: str) -> contextlib.AbstractContextManager[None]:
        """Observe one prediction, "text" or "image", in the block."""
        return contextlib.nullcontext()

    def stages(self, kind: str, metrics: Mapping[str, int | float]) -> None:
        """Observe the milliseconds of each stage, as they are reported to the client."""

    def batches(self, kind: str, run_batch: RunBatch[Item, Result]) -> RunBatch[Item, Result]:
        """Return `run_batch`, observed."""
        return run_batch

    def gauge(self, name: str, description: str, read: Callable[[], float]) -> None:
        """Publish a number that is read when it is asked for."""

    def setup_finished(
        self, stages: Mapping[str, float], pulled_bytes: int, pulled_seconds: float
    ) -> None:
        """Observe the seconds of each stage of setup, and the download of the weights."""


class PrometheusMetrics(Observer):
    """Publishes what it receives."""

    def __init__(self, port: int) -> None:
        """Listen on `port` of all addresses. Raises SettingError if that is not possible."""
        import prometheus_client as prometheus

        self._registry = registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        self._gauge = prometheus.Gauge
        self._predictions = prometheus.Counter(
            "clip_embed_predictions",
            "Predictions by kind and outcome: succeeded, refused (InputError), canceled or failed",
            ["kind", "outcome"],
            registry=registry,
        )
        self._stages = prometheus.Histogram(
            "clip_embed_stage_seconds",
            "Seconds that a prediction spends in each stage",
            ["kind", "stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self._batches = prometheus.Histogram(
            "clip_embed_batch_size",
            "Inputs that run as one batch",
            ["kind"],
            buckets=BATCH_SIZES,
            registry=registry,
        )
        self._download_failures = prometheus.Counter(
            "clip_embed_image_download_failures",
            "Image downloads that failed or were refused, by reason",
            ["reason"],
            registry=registry,
        )
        self._setup = prometheus.Gauge(
            "clip_embed_setup_seconds",
            "Seconds of each stage of setup",
            ["stage"],
            registry=registry,
        )
        try:
            prometheus.start_http_server(port, registry=registry)
        except OSError as error:
            raise SettingError(
                f"CLIP_METRICS_PORT is {port}, which cannot be listened on: {error.strerror};"
                " choose another port"
            ) from error

    @contextlib.contextmanager
    def prediction(self, kind: str) -> Iterator[None]:
        outcome = "failed"
        try:
            yield
            outcome = "succeeded"
        except asyncio.CancelledError:
            outcome = "canceled"
            raise
        except InputError as error:
            outcome = "refused"
            if isinstance(error, DownloadError):
                self._download_failures.labels(error.reason).inc()
            raise
        finally:
            self._predictions.labels(kind, outcome).inc()

    def stages(self, kind: str, metrics: Mapping[str, int | float]) -> None:
        for stage in STAGES:
            if f"{stage}_ms" in metrics:
                self._stages.labels(kind, stage).observe(metrics[f"{stage}_ms"] / 1e3)

    def batches(self, kind: str, run_batch: RunBatch[Item, Result]) -> RunBatch[Item, Result]:
        sizes = self._batches.labels(kind)

        def observed(items: Sequence[Any]) -> Iterable[Any]:
            sizes.observe(len(items))
            return run_batch(items)

        return observed

    def gauge(self, name: str, description: str, read: Callable[[], float]) -> None:
        self._gauge(f"clip_embed_{name}", description, registry=self._registry).set_function(read)

    def setup_finished(
        self, stages: Mapping[str, float], pulled_bytes: int, pulled_seconds: float
    ) -> None:
        for stage, seconds in stages.items():
            self._setup.labels(stage).set(seconds)
        self.gauge(
            "pulled_bytes", "Bytes of weights that setup read and verified", lambda: pulled_bytes
        )
        self.gauge(
            "pull_seconds", "Seconds until all weights were verified", lambda: pulled_seconds
        )


def make_observer(port: int | None) -> Observer:
    """Return metrics at `port`, or an observer that does nothing. Raises SettingError."""
    return Observer() if port is None else PrometheusMetrics(port)
