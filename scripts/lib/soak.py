"""Load the real Cog server with many predictions, and check each: the body of scripts/soak.py."""

from __future__ import annotations

import asyncio
import base64
import collections
import contextlib
import random
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
from tqdm import tqdm

from clip_embed.cog_workarounds import prediction_dirs
from scripts.lib.cog_server import CACHE, ROOT, CogServer, bypass_proxies
from scripts.lib.hostile_web_server import HostileWebServer

CONCURRENCY = 32  # requests
MAX_GROWTH_MB = 50  # of the worker's memory
MAX_GROWTH_COUNT = 2  # of its threads and open files
IDLE_SECONDS = 12  # Tokio ends threads that were idle for ten seconds
TOLERANCE = 2e-5  # a batch changes a vector by less
ABANDONED = 0.05  # share of requests
CANCELED = 0.05  # share of requests
SOON = (0.001, 0.02)  # range of seconds until a client hangs up or cancels
TIMEOUT = 60.0  # seconds for other requests
BUSY_SECONDS = 0.02  # pause after 409
SETTINGS = {"CLIP_IMAGE_URLS": "any", "CLIP_IMAGE_URL_SECONDS": "3"}  # its web server is here
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


@dataclass
class Results:
    """outcomes: how many requests had each. ids: of all requests. failures: in words."""

    outcomes: collections.Counter[str]
    ids: list[str]
    failures: list[str]


def footprint(worker: psutil.Process) -> Footprint:
    """Measure the resources of `worker`."""
    with worker.oneshot():
        return Footprint(worker.memory_info().rss / 1e6, worker.num_threads(), worker.num_fds())


def make_cases(server: CogServer, web: HostileWebServer) -> list[Case]:
    """Return valid requests, with the vectors that the idle server returns, and invalid ones."""
    photos = [path.read_bytes() for path in sorted((ROOT / "examples").glob("*.jpg"))]
    inputs = [
        {"text": f"{count} red bicycles" + " and a bell" * (count % 20)} for count in range(40)
    ]
    inputs += [{"image": _uri(photo)} for photo in photos]
    inputs += [{"image": f"{web.url}/{path}"} for path in ("picture.png", "gzip", "large")]
    valid = [
        Case(next(iter(values)), values, vector=np.array(server.predict(**values)["output"]))
        for values in inputs
    ]
    invalid = [
        Case("nothing", {}, error="nothing to embed"),
        Case("blank text", {"text": " \t "}, error="no visible character"),
        Case("cut photo", {"image": _uri(photos[0][:20_000])}, error="damaged"),
        Case("not an image", {"image": _uri(b"<html></html>")}, error="not an image"),
        Case("missing URL", {"image": f"{web.url}/status-404"}, error="HTTP 404"),
        Case("cut URL", {"image": f"{web.url}/closed"}, error="is incomplete"),
        Case("slow URL", {"image": f"{web.url}/trickle"}, error="did not arrive within"),
    ]
    # Twice each, so that a fifth of all requests is invalid.
    return valid + 2 * invalid


def _uri(data: bytes) -> str:
    return f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"


async def soak(server: CogServer, cases: list[Case], count: int) -> Results:
    """Send `count` requests from CONCURRENCY clients."""
    rng = random.Random(1)
    results = Results(collections.Counter(), [], [])
    progress = tqdm(total=count, unit=" predictions", disable=None)
    left = iter(range(count))

    async def client(http: httpx.AsyncClient) -> None:
        for _ in left:
            case, identifier = rng.choice(cases), uuid.uuid4().hex
            results.ids.append(identifier)
            share = rng.random()
            if share < ABANDONED:
                await abandon(http, case, identifier, rng.uniform(*SOON), results)
            elif share < ABANDONED + CANCELED:
                await cancel(http, case, identifier, rng.uniform(*SOON), results)
            else:
                await complete(http, case, identifier, results)
            progress.update()

    limits = httpx.Limits(max_connections=CONCURRENCY)
    # trust_env: ignore proxies in the environment, since the server is on loopback.
    async with httpx.AsyncClient(
        base_url=server.url, limits=limits, trust_env=False, timeout=TIMEOUT
    ) as http:
        await asyncio.gather(*(client(http) for _ in range(CONCURRENCY)))
    progress.close()
    return results


async def complete(http: httpx.AsyncClient, case: Case, identifier: str, results: Results) -> None:
    """Send a request and check its response."""
    try:
        response = await http.post("/predictions", json={"id": identifier, "input": case.inputs})
    except httpx.TimeoutException:
        results.failures.append(f"{case.name}: no response within {TIMEOUT:.0f} s")
        return
    if response.status_code == 409:
        # An abandoned prediction holds its slot until it notices.
        results.outcomes["refused, 409"] += 1
        await asyncio.sleep(BUSY_SECONDS)
    elif failure := find_failure(case, response):
        results.failures.append(f"{case.name}: {failure}")
    else:
        results.outcomes["right error" if case.error else "right vector"] += 1


async def abandon(
    http: httpx.AsyncClient, case: Case, identifier: str, seconds: float, results: Results
) -> None:
    """Send a request and hang up after `seconds`."""
    body = {"id": identifier, "input": case.inputs}
    with contextlib.suppress(httpx.TimeoutException):
        await http.post("/predictions", json=body, timeout=seconds)
    results.outcomes["abandoned by the client"] += 1


async def cancel(
    http: httpx.AsyncClient, case: Case, identifier: str, seconds: float, results: Results
) -> None:
    """Send an asynchronous request and cancel it after `seconds`."""
    url, body = f"/predictions/{identifier}", {"input": case.inputs}
    response = await http.put(url, json=body, headers={"Prefer": "respond-async"})
    await asyncio.sleep(seconds)
    canceled = await http.post(f"{url}/cancel")
    if (response.status_code, canceled.status_code) not in ((202, 200), (202, 404), (409, 404)):
        statuses = f"{response.status_code}, {canceled.status_code}"
        results.failures.append(f"{case.name}, canceled: {statuses}")
    results.outcomes["canceled"] += 1


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


def remains(server: CogServer, ids: list[str]) -> list[Path]:
    """Return files of the server, and directories of predictions, that exist."""
    directories = [prediction_dirs.PREDICTIONS / identifier for identifier in ids]
    return [
        *Path(server.directory, "tmp").iterdir(),
        *(directory for directory in directories if directory.exists()),
    ]


def publish_tiny_model(folder: str) -> str:
    """Publish random weights to `folder`, and return it."""
    publish = [sys.executable, str(ROOT / "scripts" / "publish_weights.py")]
    subprocess.run(
        [*publish, "random:1", folder, "--model", str(MODEL)], check=True, capture_output=True
    )
    return folder


def run(count: int) -> None:
    """Run `soak.py`. Raises SystemExit if something is wrong."""
    CACHE.mkdir(exist_ok=True)
    bypass_proxies()  # for the server, which downloads images from a web server here
    with (
        tempfile.TemporaryDirectory(dir=CACHE) as folder,
        HostileWebServer() as web,
        CogServer({"CLIP_WEIGHTS": publish_tiny_model(folder), **SETTINGS}) as server,
    ):
        server.wait_ready()
        assert server.process is not None
        [worker] = psutil.Process(server.process.pid).children()
        cases = make_cases(server, web)
        asyncio.run(soak(server, cases, max(count // 10, 500)))  # warm up
        time.sleep(IDLE_SECONDS)
        before, begin = footprint(worker), time.perf_counter()
        results = asyncio.run(soak(server, cases, count))
        seconds = time.perf_counter() - begin
        time.sleep(IDLE_SECONDS)
        after = footprint(worker)
        time.sleep(prediction_dirs.OLD_SECONDS + prediction_dirs.SWEEP_SECONDS)
        left = remains(server, results.ids)
        status = server.health()["status"]
    report(results, seconds, status, before, after, left)


def report(
    results: Results,
    seconds: float,
    status: str,
    before: Footprint,
    after: Footprint,
    left: list[Path],
) -> None:
    """Print what happened. Raises SystemExit if something is wrong."""
    failures = results.failures
    for outcome, number in results.outcomes.most_common():
        print(f"{number:>8,}  {outcome}")
    total = results.outcomes.total() + len(failures)
    print(f"{total:>8,}  in {seconds:.0f} s; the service is {status}")
    print(f"before: {before}\nafter:  {after}\nfiles and directories left: {len(left)}")
    if after.megabytes - before.megabytes > MAX_GROWTH_MB:
        failures.append(f"memory grew by {after.megabytes - before.megabytes:.0f} MB")
    if max(after.threads - before.threads, after.files - before.files) > MAX_GROWTH_COUNT:
        failures.append("threads or files were left open")
    if left or status != "READY":
        failures.append(f"{status}, left: {left[:3]}")
    if failures:
        raise SystemExit(
            f"{len(failures)} failures, the first of them:\n" + "\n".join(failures[:10])
        )
