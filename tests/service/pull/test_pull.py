"""Test what `weights.pull` delivers, which requests it makes, and how it is closed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import weights
from clip_embed.errors import LocationError, WeightsError
from tests.helpers.faults import status
from tests.helpers.paths import ROOT
from tests.helpers.published_model import (
    BLOCK,
    EmulatorBucket,
    checksum,
    collect,
    published,
)
from tests.helpers.range_server import Answer, RangeServer, Request


@pytest.fixture(params=["directory", "file", "http", "gs"])
def location(request: pytest.FixtureRequest, model: Path) -> str:
    """Return the location of the same model in a store of each kind."""
    if request.param == "directory":
        return str(model)
    if request.param == "file":
        return f"file://{model}/"
    if request.param == "http":
        return str(request.getfixturevalue("url"))
    bucket: EmulatorBucket = request.getfixturevalue("bucket")
    return bucket.put_model(model, "pull/nested")


def pull_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("pull")]


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(condition())


# --- delivery -------------------------------------------------------------------------------


def test_pull_delivers_every_block_once(location: str, model: Path) -> None:
    """The blocks of every shard, together, are the published bytes."""
    with weights.pull(location) as pull:
        assert collect(pull) == published(model)


def test_pull_exposes_the_manifest(url: str, model: Path) -> None:
    """The manifest names the model, its source, and every file with its checksum."""
    with weights.pull(url) as pull:
        manifest = pull.manifest
    assert (manifest.model, manifest.source) == ("none", "random")
    assert {file.name: file.crc32c for file in manifest.files} == {
        path.name: checksum(path.read_bytes())
        for path in model.iterdir()
        if path.name != "manifest.json"
    }


def test_pull_returns_before_any_response(web_server: RangeServer, url: str, model: Path) -> None:
    """`pull` returns while the server still holds back its first response."""
    released = threading.Event()

    def hold(request: Request, answer: Answer) -> Answer:
        released.wait(4)
        return answer

    web_server.fault = hold
    with weights.pull(url) as pull:
        assert pull.stats.bytes_total == 0
        released.set()
        assert collect(pull) == published(model)


def test_stats_count_bytes_retries_and_seconds(url: str, model: Path) -> None:
    with weights.pull(url) as pull:
        collect(pull)
    stats = pull.stats
    assert stats.bytes_verified == stats.bytes_total == sum(map(len, published(model).values()))
    assert stats.retries == 0
    assert 0 < stats.manifest_seconds < stats.pull_seconds < 60
    assert f"{stats.bytes_total / 1e6:,.1f} MB" in stats.summary()


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(lambda pull: pull.manifest, id="manifest"),
        pytest.param(lambda pull: pull.file("tokenizer.json"), id="file"),
        pytest.param(lambda pull: next(pull.blocks()), id="blocks"),
    ],
)
def test_errors_are_raised_by_the_methods_of_pull(read: Callable[[weights.Pull], object]) -> None:
    """`pull` itself raises nothing; each later call raises the error, every time."""
    pull = weights.pull(None)
    for _ in range(2):
        with pytest.raises(LocationError, match="CLIP_WEIGHTS is not set"):
            read(pull)


# --- requests -------------------------------------------------------------------------------


def test_each_range_is_requested_once(web_server: RangeServer, url: str, model: Path) -> None:
    """A pull makes one request for the manifest and one for each block of 8 MiB, and no others."""
    with weights.pull(url, streams=16) as pull:
        collect(pull)
    ranges = sorted((request.name, request.range) for request in web_server.requests[1:])
    sizes = {name: len(data) for name, data in published(model).items()}
    assert (web_server.requests[0].name, web_server.requests[0].range) == ("manifest.json", None)
    assert ranges == sorted(
        (name, (start, min(start + BLOCK, size)))
        for name, size in sizes.items()
        for start in range(0, size, BLOCK)
    )


def test_small_files_and_first_blocks_are_requested_first(
    web_server: RangeServer, url: str
) -> None:
    """The first block of a shard holds the header that describes the others."""
    with weights.pull(url, streams=1) as pull:
        collect(pull)
    starts = [request.range[0] for request in web_server.requests if request.range]
    assert starts[:4] == [0, 0, 0, 0]
    assert 0 not in starts[4:]


def test_ranges_are_requested_in_parallel(web_server: RangeServer, url: str, model: Path) -> None:
    """With four streams, four requests are in flight at the same time."""
    four_requests = threading.Barrier(4)

    def wait_for_others(request: Request, answer: Answer) -> Answer:
        if request.range and request.range[0] == 0:
            four_requests.wait(20)  # raises after 20 s, which closes the connection
        return answer

    web_server.fault = wait_for_others
    with weights.pull(url, streams=4) as pull:
        assert collect(pull) == published(model)
        assert pull.stats.retries == 0


def test_streams_limits_the_requests_in_flight(web_server: RangeServer, url: str) -> None:
    lock = threading.Lock()
    in_flight: list[int] = [0]
    seen: list[int] = []

    def count(request: Request, answer: Answer) -> Answer:
        with lock:
            in_flight[0] += 1
            seen.append(in_flight[0])
        time.sleep(0.02)
        with lock:
            in_flight[0] -= 1
        return answer

    web_server.fault = count
    with weights.pull(url, streams=3) as pull:
        collect(pull)
    assert max(seen) == 3


# --- threads and imports --------------------------------------------------------------------


def test_pull_works_without_permission_to_change_its_priority(
    url: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lower priority only makes a start faster."""

    def refuse(increment: int) -> int:
        raise PermissionError("nice")

    monkeypatch.setattr(os, "nice", refuse)
    with weights.pull(url) as pull:
        assert collect(pull) == published(model)


on_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux gives each thread its own priority"
)


@on_linux
def test_pull_threads_have_a_lower_priority(web_server: RangeServer, url: str) -> None:
    """The caller's thread keeps its own."""
    seen, others = set(), set(threading.enumerate())

    def look(request: Request, answer: Answer) -> Answer:
        for thread in set(threading.enumerate()) - others:
            if thread.name.startswith("pull-") and thread.native_id:  # None until it runs
                with contextlib.suppress(ProcessLookupError):  # it has ended
                    seen.add(os.getpriority(os.PRIO_PROCESS, thread.native_id))
        return answer

    web_server.fault = look
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    with weights.pull(url) as pull:
        collect(pull)
    assert seen == {own + weights.NICENESS}
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own


@on_linux
def test_obstore_threads_have_a_lower_priority(url: str) -> None:
    """The first pull of a process starts them, and they stay."""
    code = f"""
import contextlib, os, threading
import weights
with weights.pull({url!r}) as pull:
    pull.wait_complete()
for thread in threading.enumerate()[1:]:
    thread.join()
for task in os.listdir("/proc/self/task"):
    name = ""
    with contextlib.suppress(FileNotFoundError):  # the thread has ended
        name = open(f"/proc/self/task/{{task}}/comm").read()
    if name.startswith("tokio"):
        print(os.getpriority(os.PRIO_PROCESS, int(task)) - os.getpriority(os.PRIO_PROCESS, 0))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {str(weights.NICENESS)}


def test_weights_imports_no_heavy_package() -> None:
    """Importing `weights` imports no torch, numpy, Google library, open_clip, obstore or cog."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys, weights; print(*sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "weights" in loaded
    assert loaded.isdisjoint({"torch", "numpy", "google", "open_clip", "obstore", "cog"})


def test_pull_from_a_directory_imports_no_client() -> None:
    """Neither obstore nor a Google library is imported."""
    code = (
        "import sys, weights\n"
        "from clip_embed.errors import LocationError\n"
        "try: weights.pull('/nowhere').manifest\n"
        "except LocationError: print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert "clip_embed.checkpoint.stores" in done.stdout.split()
    assert {"obstore", "google.auth", "numpy"}.isdisjoint(done.stdout.split())


# --- closing --------------------------------------------------------------------------------


def test_close_finishes_requests_in_flight_and_ends_the_threads(
    web_server: RangeServer, url: str
) -> None:
    """A closed pull starts no other request."""
    released = threading.Event()

    def hold(request: Request, answer: Answer) -> Answer:
        if request.range:
            released.wait(4)
        return answer

    web_server.fault = hold
    with weights.pull(url, streams=2):
        assert wait_until(lambda: len(web_server.requests) == 3)
        assert pull_threads()
    released.set()
    assert wait_until(lambda: not pull_threads())
    assert len(web_server.requests) == 3


def test_close_before_the_manifest_arrives_requests_nothing_else(
    web_server: RangeServer, url: str
) -> None:
    released = threading.Event()

    def hold(request: Request, answer: Answer) -> Answer:
        released.wait(4)
        return answer

    web_server.fault = hold
    with weights.pull(url):
        assert wait_until(lambda: web_server.requests)
    released.set()
    assert wait_until(lambda: not pull_threads())
    assert [request.name for request in web_server.requests] == ["manifest.json"]


def test_close_ends_the_retries_for_the_manifest(web_server: RangeServer, url: str) -> None:
    web_server.fault = status(503)
    with weights.pull(url):
        assert wait_until(lambda: len(web_server.requests) == 2)
    assert wait_until(lambda: not pull_threads(), seconds=5)
    assert len(web_server.requests) <= 4


def test_close_raises_an_error_in_waiting_threads(web_server: RangeServer, url: str) -> None:
    """A thread that waits for a block does not hang when another thread closes the pull."""
    released = threading.Event()

    def hold(request: Request, answer: Answer) -> Answer:
        if request.range:
            released.wait(4)
        return answer

    web_server.fault = hold
    caught: list[WeightsError] = []

    def wait_for_a_block() -> None:
        try:
            next(pull.blocks())
        except WeightsError as error:
            caught.append(error)

    with weights.pull(url) as pull:
        waiting = threading.Thread(target=wait_for_a_block, daemon=True)
        waiting.start()
        assert wait_until(lambda: len(web_server.requests) > 1)
    waiting.join(3)
    released.set()
    assert [str(error) for error in caught] == ["the pull was closed"]
