"""Many predictions through the real Cog server: mixed, partly bad, partly abandoned.

    soak.py [--predictions N]

Every request is answered once, with the right vector or the right error; the worker's memory,
threads and open files do not grow, and no temporary file stays. A tiny model with random weights is
served, since what is looked at here does not depend on its size.
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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from clip_embed import leftovers
from local_server import CACHE, ROOT, CogServer

IN_FLIGHT = 32
LIMIT_MEGABYTES = 50
IDLE_SECONDS = 12  # Tokio's threads end after ten without work
TOLERANCE = 2e-5
MODEL = ROOT / "tests" / "tiny.json"


@dataclass(frozen=True)
class Case:
    """A request and what must come of it. error: part of the message; vector: [D]."""

    name: str
    inputs: dict[str, str]
    error: str | None = None
    vector: np.ndarray | None = None


@dataclass(frozen=True)
class Footprint:
    """What the worker holds. megabytes: resident."""

    megabytes: float
    threads: int
    files: int


def temporary_files(server: CogServer) -> list[Path]:
    return [path for path in Path(server.directory, "tmp").rglob("*") if path.is_file()]


def footprint(worker: psutil.Process) -> Footprint:
    with worker.oneshot():
        return Footprint(worker.memory_info().rss / 1e6, worker.num_threads(), worker.num_fds())


def cases(server: CogServer) -> list[Case]:
    """Good ones with the vector the server gives when it has nothing else to do, and bad ones."""
    photos = [path.read_bytes() for path in sorted((ROOT / "examples").glob("*.jpg"))]
    good = [{"text": f"{count} red bicycles" + " and a bell" * (count % 20)} for count in range(40)]
    good += [{"image": _uri(photo)} for photo in photos]
    found = [
        Case(next(iter(inputs)), inputs, vector=np.array(server.predict(**inputs)["output"]))
        for inputs in good
    ]
    bad = [
        Case("nothing", {}, error="nothing to embed"),
        Case("blank text", {"text": " \t "}, error="no visible character"),
        Case("cut photo", {"image": _uri(photos[0][:20_000])}, error="damaged"),
        Case("not an image", {"image": _uri(b"<html></html>")}, error="not an image"),
    ]
    # Each three times: a fifth of all requests is bad.
    return found + [case for case in bad for _ in range(3)]


def _uri(data: bytes) -> str:
    return f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"


async def soak(server: CogServer, count: int) -> tuple[collections.Counter[str], list[str]]:
    """`count` predictions, IN_FLIGHT at a time; how many of each outcome, and what was wrong."""
    mix, chance = cases(server), random.Random(1)
    outcomes: collections.Counter[str] = collections.Counter()
    wrong: list[str] = []
    progress = tqdm(total=count, unit=" predictions", disable=None)
    left = iter(range(count))

    async def client(http: httpx.AsyncClient) -> None:
        for _ in left:
            case = chance.choice(mix)
            hurry = chance.random() < 0.05
            try:
                answer = await http.post(
                    "/predictions",
                    json={"input": case.inputs},
                    timeout=chance.uniform(0.001, 0.02) if hurry else 60,
                )
            except httpx.TimeoutException:
                if not hurry:
                    wrong.append(f"{case.name}: no answer within 60 s")
                outcomes["abandoned by the client"] += 1
            else:
                problem = judge(case, answer)
                if problem == "busy":
                    # An abandoned prediction holds its place until it has noticed.
                    outcomes["refused, 409"] += 1
                    await asyncio.sleep(0.02)
                elif problem:
                    wrong.append(f"{case.name}: {problem}")
                else:
                    outcomes["right error" if case.error else "right vector"] += 1
            progress.update()

    limits = httpx.Limits(max_connections=IN_FLIGHT)
    async with httpx.AsyncClient(base_url=server.url, limits=limits) as http:
        await asyncio.gather(*(client(http) for _ in range(IN_FLIGHT)))
    progress.close()
    return outcomes, wrong


def judge(case: Case, answer: httpx.Response) -> str | None:
    """What is wrong with `answer`; "busy" if it was refused, None if nothing is."""
    if answer.status_code == 409:
        return "busy"
    document = answer.json()
    if case.error is not None:
        said = str(document.get("error"))
        return None if case.error in said else f"{answer.status_code} {said[:200]!r}"
    if document.get("status") != "succeeded":
        return f"{answer.status_code} {str(document)[:200]}"
    difference = np.abs(np.array(document["output"]) - case.vector).max()
    return None if difference <= TOLERANCE else f"differs by {difference:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--predictions", type=int, default=20_000, metavar="N")
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
            asyncio.run(soak(server, max(count // 10, 500)))  # to warm up
            time.sleep(IDLE_SECONDS)
            before, begin = footprint(worker), time.perf_counter()
            outcomes, wrong = asyncio.run(soak(server, count))
            seconds = time.perf_counter() - begin
            time.sleep(IDLE_SECONDS)
            after = footprint(worker)
            forgotten = temporary_files(server)
            # What Cog forgets is removed with the next image after some minutes: as if they were
            # over.
            for path in forgotten:
                os.utime(path, (0, 0))
            time.sleep(leftovers.SWEEP_SECONDS)
            server.predict(image=_uri((ROOT / "examples" / "cat.jpg").read_bytes()))
            files = temporary_files(server)
            status = server.health()["status"]
    for outcome, number in outcomes.most_common():
        print(f"{number:>8,}  {outcome}")
    print(f"{sum(outcomes.values()) + len(wrong):>8,}  in {seconds:.0f} s; the service is {status}")
    print(
        f"before: {before}\nafter:  {after}\ntemporary files: {len(forgotten)} forgotten by Cog,"
        f" {len(files)} left"
    )
    if after.megabytes - before.megabytes > LIMIT_MEGABYTES:
        wrong.append(f"memory grew by {after.megabytes - before.megabytes:.0f} MB")
    if after.threads > before.threads + 2 or after.files > before.files + 2:
        wrong.append("threads or files were left open")
    if files or status != "READY":
        wrong.append(f"{status}, files left: {files[:3]}")
    if wrong:
        raise SystemExit(f"{len(wrong)} wrong, the first of them:\n" + "\n".join(wrong[:10]))


if __name__ == "__main__":
    main()
