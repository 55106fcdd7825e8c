"""Load the real Cog server with many predictions: valid, invalid and abandoned ones.

    soak.py [--predictions N]

Checks that each request gets the right vector or the right error, that the worker's memory, threads
and open files do not grow, and that no temporary file is left. The model is tiny and has random
weights: none of this depends on its size.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import collections
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
from tqdm import tqdm

from clip_embed.cog_workarounds import temp_files
from scripts.lib.cog_server import CACHE, ROOT, CogServer

CONCURRENCY = 32  # requests
MAX_GROWTH_MB = 50  # of the worker's memory
MAX_GROWTH_COUNT = 2  # of its threads and open files
IDLE_SECONDS = 12  # Tokio ends threads that were idle for ten seconds
TOLERANCE = 2e-5  # a batch changes a vector by less
ABANDONED = 0.05  # share of requests
ABANDONED_SECONDS = (0.001, 0.02)  # range of their client's timeout
TIMEOUT = 60.0  # seconds for other requests
BUSY_SECONDS = 0.02  # pause after 409
MODEL = ROOT / "tests" / "data" / "tiny.json"


@dataclass(frozen=True)
class Case:
    """A request and its expected result. error: part of the message. vector: float32 [D]."""

    name: str
    inputs: dict[str, str]
    error: str | None = None
    vector: np.ndarray | None = None


@dataclass(frozen=True)
class Footprint:
    """Resources of the worker. megabytes: resident memory. files: open file descriptors."""

    megabytes: float
    threads: int
    files: int


def temporary_files(server: CogServer) -> list[Path]:
    """Return the files in the server's temporary directory."""
    return [path for path in Path(server.directory, "tmp").rglob("*") if path.is_file()]


def footprint(worker: psutil.Process) -> Footprint:
    """Measure the resources of `worker`."""
    with worker.oneshot():
        return Footprint(worker.memory_info().rss / 1e6, worker.num_threads(), worker.num_fds())


def make_cases(server: CogServer) -> list[Case]:
    """Return valid requests, with the vectors that the idle server returns, and invalid ones."""
    photos = [path.read_bytes() for path in sorted((ROOT / "examples").glob("*.jpg"))]
    inputs = [
        {"text": f"{count} red bicycles" + " and a bell" * (count % 20)} for count in range(40)
    ]
    inputs += [{"image": _uri(photo)} for photo in photos]
    valid = [
        Case(next(iter(values)), values, vector=np.array(server.predict(**values)["output"]))
        for values in inputs
    ]
    invalid = [
        Case("nothing", {}, error="nothing to embed"),
        Case("blank text", {"text": " \t "}, error="no visible character"),
        Case("cut photo", {"image": _uri(photos[0][:20_000])}, error="damaged"),
        Case("not an image", {"image": _uri(b"<html></html>")}, error="not an image"),
    ]
    # Three times each, so that a fifth of all requests is invalid.
    return valid + 3 * invalid


def _uri(data: bytes) -> str:
    return f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"


async def soak(server: CogServer, count: int) -> tuple[collections.Counter[str], list[str]]:
    """Send `count` requests. Return the number of each outcome, and descriptions of failures."""
    cases, rng = make_cases(server), random.Random(1)
    outcomes: collections.Counter[str] = collections.Counter()
    failures: list[str] = []
    progress = tqdm(total=count, unit=" predictions", disable=None)
    left = iter(range(count))

    async def client(http: httpx.AsyncClient) -> None:
        for _ in left:
            case = rng.choice(cases)
            abandoned = rng.random() < ABANDONED
            timeout = rng.uniform(*ABANDONED_SECONDS) if abandoned else TIMEOUT
            body = {"input": case.inputs}
            try:
                response = await http.post("/predictions", json=body, timeout=timeout)
            except httpx.TimeoutException:
                if not abandoned:
                    failures.append(f"{case.name}: no response within {TIMEOUT:.0f} s")
                outcomes["abandoned by the client"] += 1
            else:
                if response.status_code == 409:
                    # An abandoned prediction holds its slot until it notices.
                    outcomes["refused, 409"] += 1
                    await asyncio.sleep(BUSY_SECONDS)
                elif failure := find_failure(case, response):
                    failures.append(f"{case.name}: {failure}")
                else:
                    outcomes["right error" if case.error else "right vector"] += 1
            progress.update()

    limits = httpx.Limits(max_connections=CONCURRENCY)
    # trust_env: a proxy in the environment is not for this machine.
    async with httpx.AsyncClient(base_url=server.url, limits=limits, trust_env=False) as http:
        await asyncio.gather(*(client(http) for _ in range(CONCURRENCY)))
    progress.close()
    return outcomes, failures


def find_failure(case: Case, response: httpx.Response) -> str | None:
    """Compare a response with the expected result. None if it is right."""
    document = response.json()
    if case.error is not None:
        error = str(document.get("error"))
        return None if case.error in error else f"{response.status_code} {error[:200]!r}"
    if document.get("status") != "succeeded":
        return f"{response.status_code} {str(document)[:200]}"
    difference = np.abs(np.array(document["output"]) - case.vector).max()
    return None if difference <= TOLERANCE else f"differs by {difference:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--predictions", type=int, default=20_000, metavar="N", help="default: 20000"
    )
    count = parser.parse_args().predictions
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        publish = [sys.executable, str(ROOT / "scripts" / "publish_weights.py")]
        subprocess.run(
            [*publish, "random:1", folder, "--model", str(MODEL)], check=True, capture_output=True
        )
        with CogServer({"CLIP_WEIGHTS": folder}) as server:
            server.wait_ready()
            assert server.process is not None
            [worker] = psutil.Process(server.process.pid).children()
            asyncio.run(soak(server, max(count // 10, 500)))  # warm up
            time.sleep(IDLE_SECONDS)
            before, begin = footprint(worker), time.perf_counter()
            outcomes, failures = asyncio.run(soak(server, count))
            seconds = time.perf_counter() - begin
            time.sleep(IDLE_SECONDS)
            after = footprint(worker)
            leaked = temporary_files(server)
            # The service removes files that Cog leaked when they are old, with the next image.
            # Make them old.
            for path in leaked:
                os.utime(path, (0, 0))
            time.sleep(temp_files.SWEEP_SECONDS)
            server.predict(image=_uri((ROOT / "examples" / "cat.jpg").read_bytes()))
            files = temporary_files(server)
            status = server.health()["status"]
    for outcome, number in outcomes.most_common():
        print(f"{number:>8,}  {outcome}")
    total = sum(outcomes.values()) + len(failures)
    print(f"{total:>8,}  in {seconds:.0f} s; the service is {status}")
    print(
        f"before: {before}\nafter:  {after}\ntemporary files: {len(leaked)} leaked by Cog,"
        f" {len(files)} left"
    )
    if after.megabytes - before.megabytes > MAX_GROWTH_MB:
        failures.append(f"memory grew by {after.megabytes - before.megabytes:.0f} MB")
    if max(after.threads - before.threads, after.files - before.files) > MAX_GROWTH_COUNT:
        failures.append("threads or files were left open")
    if files or status != "READY":
        failures.append(f"{status}, files left: {files[:3]}")
    if failures:
        raise SystemExit(
            f"{len(failures)} failures, the first of them:\n" + "\n".join(failures[:10])
        )


if __name__ == "__main__":
    main()
