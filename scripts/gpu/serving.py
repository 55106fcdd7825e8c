"""Load the real Cog server with texts and images, over 1, 32 and 64 connections."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clip_embed.startup.cpu_quota import usable_cpus
from scripts.gpu import load_client
from scripts.gpu.part import Recorder, Task
from scripts.gpu.samples import PHOTOS, short_captions
from scripts.gpu.server import make_server

CONNECTIONS = (1, 32, 64)
SECONDS = 5.0
PROCESSES = 4  # of the client, at most
METRICS = ("predict_time", "prepare_ms", "queue_ms", "encode_ms")
WHOLE = json.dumps({"status": "succeeded", "output": [0.123456789] * 768})


@dataclass(frozen=True)
class Loads:
    """The loads of all client processes of one run, together."""

    loads: Sequence[load_client.Load]

    @property
    def rate(self) -> float:
        """Predictions per second."""
        return sum(len(each.seconds) / each.elapsed for each in self.loads)

    @property
    def milliseconds(self) -> list[float]:
        return sorted(1e3 * each for load in self.loads for each in load.seconds)

    def percentile(self, share: float) -> float:
        values = self.milliseconds
        return values[min(int(share * len(values)), len(values) - 1)]

    def metric(self, name: str) -> float:
        """Return the median of a metric of the responses, in ms."""
        factor = 1e3 if name == "predict_time" else 1
        return statistics.median(
            factor * metrics[name] for load in self.loads for metrics in load.metrics
        )


def run(task: Task, record: Recorder) -> None:
    """Record rates, latencies, refused requests and metrics of the responses."""
    folder = Path(task.folder)
    bodies = {kind: _write_bodies(folder, kind) for kind in ("text", "image")}
    seconds = 0.5 if task.tiny else SECONDS
    with record.section("the client's own limit"):
        rate = _measure_client(bodies["text"], seconds)
        record.note(f"The load client alone, with a trivial server in Python: {rate:,.0f}/s.")
    # Cog writes lines for each prediction.
    with make_server(task, task.ours, log=subprocess.DEVNULL) as server:
        server.wait_ready(120)
        for kind, path in bodies.items():
            load_server(server.port, 4, min(seconds, 1), path)  # warm-up
            for connections in CONNECTIONS:
                with (
                    record.section(f"{kind}, {connections} connections"),
                    _watched(task, record, f"{kind}, {connections} connections"),
                ):
                    loads = load_server(server.port, connections, seconds, path)
                    _record(record, f"{kind}, {connections}", loads)


def _write_bodies(folder: Path, kind: str) -> Path:
    """Write one request body per line."""
    if kind == "text":
        inputs = [{"text": caption} for caption in short_captions(200)]
    else:
        uris = (base64.b64encode(photo.read_bytes()).decode() for photo in PHOTOS)
        inputs = [{"image": f"data:image/jpeg;base64,{uri}"} for uri in uris]
    path = folder / f"{kind}-bodies"
    path.write_text("\n".join(json.dumps({"input": each}) for each in inputs))
    return path


def load_server(port: int, connections: int, seconds: float, bodies: Path) -> Loads:
    """Run the client, in as many processes as there are cores to spare."""
    count = max(1, min(PROCESSES, usable_cpus() // 4, connections))
    shares = [connections // count + (number < connections % count) for number in range(count)]
    script = Path(load_client.__file__)
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(port), str(share), str(seconds), str(bodies)],
            stdout=subprocess.PIPE,
        )
        for share in shares
    ]
    outputs = [process.communicate()[0] for process in processes]
    return Loads([load_client.Load(**json.loads(output)) for output in outputs])


def _record(record: Recorder, row: str, loads: Loads) -> None:
    table = "connections of the Cog server"
    wrong = [each for load in loads.loads for each in load.wrong]
    if wrong:
        record.fail(f"{row} connections: {len(wrong)} wrong answers, such as: {wrong[0]}")
    if not loads.milliseconds:
        return
    record.figure(table, row, loads.rate, "per second", column="rate", more_is_better=True)
    for share in (0.5, 0.95, 0.99):
        column = f"p{100 * share:.0f}"
        record.figure(table, row, loads.percentile(share), "ms", column=column)
    refused = sum(load.refused for load in loads.loads)
    record.figure(table, row, refused, "", column="409")
    for name in METRICS:
        record.figure(table, row, loads.metric(name), "ms", column=name.removesuffix("_ms"))
    rest = loads.metric("predict_time") - loads.metric("encode_ms")
    record.figure(table, row, rest, "ms", column="predict_time − encode")


def _measure_client(bodies: Path, seconds: float) -> float:
    """Return the requests per second to a server that does nothing, over 64 connections."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(load_client.serve_constant(WHOLE.encode()))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        return load_server(server.sockets[0].getsockname()[1], 64, min(seconds, 2), bodies).rate
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


@contextlib.contextmanager
def _watched(task: Task, record: Recorder, row: str) -> Iterator[None]:
    """Record the GPU's utilization during the block, as nvidia-smi sees it."""
    if task.device != "cuda" or shutil.which("nvidia-smi") is None:
        yield
        return
    names = ("utilization.gpu", "clocks.sm", "power.draw")
    process = subprocess.Popen(
        [
            *("nvidia-smi", "--id=0", f"--query-gpu={','.join(names)}"),
            *("--loop-ms=500", "--format=csv,noheader,nounits"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield
    finally:
        process.terminate()
        output = process.communicate()[0]
    with contextlib.suppress(ValueError):  # "[N/A]"
        samples = [[float(each) for each in line.split(", ")] for line in output.splitlines()]
        # The first and the last one see the idle GPU.
        for name, values in zip(names, zip(*samples[1:-1], strict=True), strict=False):
            unit = {"utilization.gpu": "%", "clocks.sm": "MHz", "power.draw": "W"}[name]
            record.figure("the GPU under load", row, values, unit, column=name)
