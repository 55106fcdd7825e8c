"""Published bytes come in whole, once and verified, from every kind of place; and where they
cannot, one error says which object, why, and what to do."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import google.auth
import google.auth.exceptions
import google_crc32c
import numpy as np
import pytest
import safetensors.numpy
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

import weights
from clip_embed import ranges, sources
from clip_embed.errors import (
    AccessError,
    CorruptError,
    LocationError,
    ManifestError,
    TransferError,
    WeightsError,
)
from clip_embed.manifest import Block
from conftest import ROOT
from local_server import free_port
from range_server import Answer, Fault, Hangup, RangeServer, Request

BLOCK = 8 * 2**20
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SMALL = ("open_clip_config.json", "tokenizer.json")
INDEX = "model.safetensors.index.json"


# --- a published model, written by hand -----------------------------------------------------


def checksum(data: bytes) -> str:
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


def manifest_of(directory: Path, generations: Mapping[str, str]) -> bytes:
    """The manifest that describes the files of `directory`."""
    files = []
    for path in sorted(directory.iterdir()):
        if path.name != "manifest.json":
            data = path.read_bytes()
            blocks = [data[start : start + BLOCK] for start in range(0, len(data), BLOCK)]
            files.append(
                {
                    "name": path.name,
                    "size": len(data),
                    "crc32c": checksum(data),
                    "generation": generations.get(path.name),
                    "blocks": [checksum(block) for block in blocks],
                }
            )
    document = {
        "format": "clip-embed-weights",
        "version": 1,
        "block_size": BLOCK,
        "model": "none",
        "source": "random",
        "files": files,
    }
    return json.dumps(document).encode()


@pytest.fixture(scope="session")
def web_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a model at bucket/clip: shards of 40 MB (5 blocks) and 9 MB (2 blocks)."""
    root = tmp_path_factory.mktemp("web")
    directory = root / "bucket" / "clip"
    directory.mkdir(parents=True)
    noise = np.random.default_rng(0)
    halves = noise.standard_normal(20_000_000, np.float32).astype(np.float16)
    (directory / FIRST).write_bytes(safetensors.numpy.save({"a": halves}))
    wide = noise.standard_normal(2_250_000, np.float32)
    (directory / SECOND).write_bytes(safetensors.numpy.save({"b": wide}))
    (directory / SMALL[0]).write_bytes(b'{"model_cfg": {}}')
    (directory / SMALL[1]).write_bytes(b'{"model": {}}' * 1000)
    (directory / INDEX).write_bytes(b"{}")
    (directory / "manifest.json").write_bytes(manifest_of(directory, {}))
    return root


@pytest.fixture(scope="session")
def model(web_root: Path) -> Path:
    return web_root / "bucket" / "clip"


@pytest.fixture
def own_model(model: Path, tmp_path: Path) -> Path:
    """A copy without the first shard, for a test to spoil."""
    copy = tmp_path / "clip"
    shutil.copytree(model, copy, ignore=shutil.ignore_patterns(FIRST))
    (copy / "manifest.json").write_bytes(manifest_of(copy, {}))
    return copy


@pytest.fixture
def server(web_root: Path) -> Iterator[RangeServer]:
    with RangeServer(web_root) as running:
        yield running


@pytest.fixture
def url(server: RangeServer) -> str:
    """Where the model is on the web server."""
    return f"{server.url}/bucket/clip"


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither this machine's credentials nor its emulators play a part."""
    for name in list(os.environ):
        if name.startswith("GOOGLE_") or name == "STORAGE_EMULATOR_HOST":
            monkeypatch.delenv(name)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "gcloud"))
    monkeypatch.setenv("NO_GCE_CHECK", "true")


@pytest.fixture(autouse=True)
def _nothing_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are counted here, so none is made only because the machine is busy; what is asked
    for twice because it is slow is for test_faults.py."""
    monkeypatch.setattr(ranges, "SLOW_SECONDS", 60.0)
    monkeypatch.setattr(ranges, "UNKNOWN_SECONDS", 60.0)


class Bucket:
    """The emulator's bucket."""

    def __init__(self, emulator: str) -> None:
        client = storage.Client(
            project="test",
            credentials=AnonymousCredentials(),
            client_options={"api_endpoint": emulator},
        )
        self._bucket = client.bucket("models")

    def put(self, name: str, data: bytes) -> str:
        """Upload; the new generation."""
        blob = self._bucket.blob(name)
        blob.upload_from_string(data)
        return str(blob.generation)

    def put_model(self, directory: Path, prefix: str) -> str:
        """Upload the model, with a manifest that knows the generations; its location."""
        names = [path.name for path in directory.iterdir() if path.name != "manifest.json"]
        generations = {
            name: self.put(f"{prefix}/{name}", (directory / name).read_bytes()) for name in names
        }
        self.put(f"{prefix}/manifest.json", manifest_of(directory, generations))
        return f"gs://models/{prefix}"


@pytest.fixture
def bucket(emulator: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    return Bucket(emulator)


# --- what is looked at ----------------------------------------------------------------------


def collect(pull: weights.Pull) -> dict[str, bytes]:
    """All that a pull brings, by file name. Fails if a block comes twice."""
    found: dict[str, dict[int, bytes]] = {}
    for block in pull.blocks():
        pieces = found.setdefault(block.file.name, {})
        assert block.offset not in pieces, f"{block.file.name}, {block.offset} came twice"
        pieces[block.offset] = bytes(block.data)
    files = {
        name: b"".join(pieces[offset] for offset in sorted(pieces))
        for name, pieces in found.items()
    }
    return files | {name: pull.file(name) for name in SMALL}


def published(directory: Path) -> dict[str, bytes]:
    """What a pull of `directory` must bring."""
    return {name: (directory / name).read_bytes() for name in (FIRST, SECOND, *SMALL)}


def failure(location: str | None) -> WeightsError:
    """The error a pull of `location` ends in."""
    with weights.pull(location) as pull, pytest.raises(WeightsError) as caught:
        collect(pull)
    return caught.value


def pull_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("pull")]


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(condition())


# --- arriving -------------------------------------------------------------------------------


@pytest.fixture(params=["directory", "file", "http", "gs"])
def location(request: pytest.FixtureRequest, model: Path) -> str:
    """The same model in every kind of place."""
    if request.param == "directory":
        return str(model)
    if request.param == "file":
        return f"file://{model}/"
    if request.param == "http":
        return str(request.getfixturevalue("url"))
    bucket: Bucket = request.getfixturevalue("bucket")
    return bucket.put_model(model, "arriving/deep")


def test_everything_arrives_once_byte_for_byte(location: str, model: Path) -> None:
    """Every block of every shard comes exactly once, and together they are the published bytes."""
    with weights.pull(location) as pull:
        assert collect(pull) == published(model)


def test_a_bucket_is_pulled_through_a_web_server_too(
    server: RangeServer, url: str, model: Path
) -> None:
    """A manifest that holds a bucket's generations is no hindrance where there are none."""
    names = [path.name for path in model.iterdir()]
    described = manifest_of(model, dict.fromkeys(names, "1700000000000001"))
    server.fault = at("manifest.json", lambda request, answer: Answer(200, described))
    with weights.pull(url) as pull:
        assert collect(pull) == published(model)
        assert pull.manifest.files[0].generation == "1700000000000001"


def test_the_manifest_is_there_to_read(url: str, model: Path) -> None:
    """A pull tells what is published: model, source, and every file with its checksum."""
    with weights.pull(url) as pull:
        manifest = pull.manifest
    assert (manifest.model, manifest.source) == ("none", "random")
    assert {file.name: file.crc32c for file in manifest.files} == {
        path.name: checksum(path.read_bytes())
        for path in model.iterdir()
        if path.name != "manifest.json"
    }


def test_each_range_is_asked_for_once(server: RangeServer, url: str, model: Path) -> None:
    """One request for the manifest, and one per block of at most 8 MiB; nothing twice, and nothing
    that is not needed."""
    with weights.pull(url, streams=16) as pull:
        collect(pull)
    asked = sorted((request.name, request.range) for request in server.requests[1:])
    sizes = {name: len(data) for name, data in published(model).items()}
    assert (server.requests[0].name, server.requests[0].range) == ("manifest.json", None)
    assert asked == sorted(
        (name, (start, min(start + BLOCK, size)))
        for name, size in sizes.items()
        for start in range(0, size, BLOCK)
    )


def test_the_last_blocks_are_fetched_in_parts(server: RangeServer, url: str, model: Path) -> None:
    """With few streams and many blocks, each of the last blocks is shared by several requests, so
    that no stream is idle while another fetches the rest; nothing is asked for twice."""
    with weights.pull(url, streams=2) as pull:
        assert collect(pull) == published(model)
        assert pull.stats.retries == 0
    asked = [(request.name, *request.range) for request in server.requests if request.range]
    *blocks, last = sorted(asked)
    assert last[2] - last[1] < BLOCK // 2
    assert len(asked) == 9 + 2 * (ranges.TAIL_PARTS - 1)
    for one, other in zip(blocks, [*blocks[1:], last], strict=True):
        assert other[0] != one[0] or other[1] == one[2]


def test_a_damaged_part_costs_its_block(server: RangeServer, url: str, model: Path) -> None:
    """A bit flipped in a part is noticed in its block, all of which is fetched again."""
    damaged: list[Request] = []

    def spoil_one_part(request: Request, answer: Answer) -> Answer:
        if not damaged and request.name == FIRST and request.range[0] > 4 * BLOCK:
            damaged.append(request)
            return flip_a_bit(request, answer)
        return answer

    server.fault = spoil_one_part
    with weights.pull(url, streams=2) as pull:
        assert collect(pull) == published(model)
    assert len(damaged) == 1
    whole = (4 * BLOCK, len(published(model)[FIRST]))
    assert [each.range for each in server.asked_for(FIRST)].count(whole) == 1


def test_what_is_wanted_first_is_asked_for_first(server: RangeServer, url: str) -> None:
    """Small files, and the first blocks, which say what the others are, come before the others."""
    with weights.pull(url, streams=1) as pull:
        collect(pull)
    starts = [request.range[0] for request in server.requests if request.range]
    assert starts[:4] == [0, 0, 0, 0]
    assert 0 not in starts[4:]


def test_ranges_are_fetched_in_parallel(server: RangeServer, url: str, model: Path) -> None:
    """With four streams, four requests are in flight at once."""
    together = threading.Barrier(4)

    def wait_for_others(request: Request, answer: Answer) -> Answer:
        if request.range and request.range[0] == 0:
            together.wait(20)  # raises, and so closes the connection, if they never come
        return answer

    server.fault = wait_for_others
    with weights.pull(url, streams=4) as pull:
        assert collect(pull) == published(model)
        assert pull.stats.retries == 0


def test_no_more_streams_than_asked_for(server: RangeServer, url: str) -> None:
    """Never are more requests in flight than `streams` allows."""
    lock = threading.Lock()
    flying: list[int] = [0]
    seen: list[int] = []

    def count(request: Request, answer: Answer) -> Answer:
        with lock:
            flying[0] += 1
            seen.append(flying[0])
        time.sleep(0.02)
        with lock:
            flying[0] -= 1
        return answer

    server.fault = count
    with weights.pull(url, streams=3) as pull:
        collect(pull)
    assert max(seen) == 3


def test_figures_say_what_was_done(url: str, model: Path) -> None:
    """After a pull its statistics count every byte, no retry, and times in their order."""
    with weights.pull(url) as pull:
        collect(pull)
    stats = pull.stats
    assert stats.bytes_landed == stats.bytes_total == sum(map(len, published(model).values()))
    assert stats.retries == 0
    assert 0 < stats.manifest_seconds < stats.pull_seconds < 60
    assert stats.verify_seconds > 0
    assert f"{stats.bytes_total / 1e6:,.1f} MB" in stats.line()


def test_pulling_returns_at_once(server: RangeServer, url: str, model: Path) -> None:
    """`pull` waits for nothing: it returns while the server still holds back its first answer."""
    released = threading.Event()

    def hold(request: Request, answer: Answer) -> Answer:
        released.wait(4)
        return answer

    server.fault = hold
    with weights.pull(url) as pull:
        assert pull.stats.bytes_total == 0
        released.set()
        assert collect(pull) == published(model)


def test_where_priorities_may_not_be_changed_it_pulls_as_ever(
    url: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was only a matter of speed."""

    def refuse(increment: int) -> int:
        raise PermissionError("nice")

    monkeypatch.setattr(os, "nice", refuse)
    with weights.pull(url) as pull:
        assert collect(pull) == published(model)


on_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="a thread has a priority of its own on Linux"
)


@on_linux
def test_threads_that_pull_give_way(server: RangeServer, url: str) -> None:
    """All have the lower priority; the caller keeps its own."""
    seen, others = set(), set(threading.enumerate())

    def look(request: Request, answer: Answer) -> Answer:
        for thread in set(threading.enumerate()) - others:
            if thread.name.startswith("pull-") and thread.native_id:  # None until it runs
                with contextlib.suppress(ProcessLookupError):  # it has ended
                    seen.add(os.getpriority(os.PRIO_PROCESS, thread.native_id))
        return answer

    server.fault = look
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    with weights.pull(url) as pull:
        collect(pull)
    assert seen == {own + weights.NICENESS}
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own


@on_linux
def test_threads_of_obstore_give_way_too(url: str) -> None:
    """They are started with the first pull of a process, and stay."""
    code = f"""
import os, threading
import weights
with weights.pull({url!r}) as pull:
    pull.wait_landed()
for thread in threading.enumerate()[1:]:
    thread.join()
for task in os.listdir("/proc/self/task"):
    if open(f"/proc/self/task/{{task}}/comm").read().startswith("tokio"):
        print(os.getpriority(os.PRIO_PROCESS, int(task)) - os.getpriority(os.PRIO_PROCESS, 0))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {str(weights.NICENESS)}


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(lambda pull: pull.manifest, id="manifest"),
        pytest.param(lambda pull: pull.file("tokenizer.json"), id="file"),
        pytest.param(lambda pull: next(pull.blocks()), id="blocks"),
    ],
)
def test_errors_appear_where_something_is_asked(ask: Callable[[weights.Pull], object]) -> None:
    """`pull` itself raises nothing; whatever is asked of it afterwards does, every time."""
    pull = weights.pull(None)
    for _ in range(2):
        with pytest.raises(LocationError, match="CLIP_WEIGHTS is not set"):
            ask(pull)


def test_importing_it_is_light() -> None:
    """Importing `weights` costs no torch, numpy, Google library, open_clip or obstore."""
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


def test_a_directory_needs_no_client() -> None:
    """Pulling from a directory imports neither obstore nor a Google library."""
    code = (
        "import sys, weights\n"
        "try: weights.pull('/nowhere').manifest\n"
        "except weights.LocationError: print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert "clip_embed.sources" in done.stdout.split()
    assert {"obstore", "google.auth", "numpy"}.isdisjoint(done.stdout.split())


# --- where from -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "says"),
    [
        pytest.param(None, "CLIP_WEIGHTS is not set", id="unset"),
        pytest.param("", "CLIP_WEIGHTS is not set", id="empty"),
        pytest.param(" \n", "CLIP_WEIGHTS is not set", id="blank"),
        pytest.param("ftp://host/clip", "begins with ftp://", id="ftp"),
        pytest.param("s3://bucket/clip", "begins with s3://", id="s3"),
        pytest.param("gs://", "'gs://', which names no place", id="gs without bucket"),
        pytest.param("gs:///clip", "names no place", id="gs without bucket, with prefix"),
        pytest.param("https://", "names no place", id="https without host"),
        pytest.param("https:///clip", "names no place", id="https without host, with path"),
        pytest.param("https://[::1/clip", "not a well-formed URL", id="half an address"),
        pytest.param("https://host:99999/clip", "not a well-formed URL", id="port out of range"),
        pytest.param("https://host:port/clip", "not a well-formed URL", id="port not a number"),
        pytest.param("https://ho st/clip", "cannot be opened", id="space in host"),
    ],
)
def test_a_location_that_names_no_place_is_refused(location: str | None, says: str) -> None:
    """What cannot be a location is refused with the three forms that can."""
    error = failure(location)
    assert isinstance(error, LocationError)
    assert says in str(error)
    assert "set CLIP_WEIGHTS to gs://bucket/prefix, https://host/prefix or a dir" in str(error)


@pytest.mark.parametrize(
    "location",
    [
        "https://user:hunter2@host/clip",
        "https://hunter2@host/clip",
        "https://host/clip?token=hunter2",
        "https://host/clip#hunter2",
        "https://host/clip?X-Goog-Signature=hunter2&x=/manifest.json",
        "https://user:hunter2/x@host/clip",
        "https://user:hunter2@[bad/clip",
        "http://user:hunter2@127.0.0.1/clip",
        "gs://user:hunter2@bucket/clip",
        "gs://bucket/clip?token=hunter2",
        "ftp://user:hunter2@host/clip",
    ],
)
def test_a_secret_in_a_location_is_refused_and_not_repeated(location: str) -> None:
    """Credentials and queries are refused, and neither message nor traceback shows them."""
    error = failure(location)
    assert isinstance(error, LocationError)
    assert "CLIP_WEIGHTS" in str(error)
    assert "hunter2" not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    "location",
    ["http://example.com/clip", "http://127.0.0.1.example.com/clip", "http://10.0.0.1/clip"],
)
def test_plain_http_is_for_this_host_alone(location: str) -> None:
    """Unencrypted locations elsewhere are refused without a request."""
    error = failure(location)
    assert isinstance(error, LocationError)
    assert f"{location} is not encrypted; use https://" in str(error)


@pytest.mark.parametrize("written", ["http://{}", "{}", "http://{}/"])
def test_the_emulator_is_honoured_however_it_is_written(
    written: str, bucket: Bucket, own_model: Path, emulator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """STORAGE_EMULATOR_HOST is taken with and without a scheme, as google-cloud-storage does."""
    place = bucket.put_model(own_model, "written")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", written.format(emulator.removeprefix("http://")))
    with weights.pull(place) as pull:
        assert sorted(block.offset for block in pull.blocks()) == [0, BLOCK]


def test_a_directory_without_a_manifest_is_no_model(tmp_path: Path) -> None:
    """The error names the place, and the script that fills it."""
    error = failure(str(tmp_path))
    assert isinstance(error, LocationError)
    assert str(error).startswith(f"{tmp_path} holds no manifest.json; publish a model there")
    assert "scripts/publish_weights.py" in str(error)


@pytest.mark.parametrize("prefix", ["models/nothing", "no-such-bucket/clip"])
def test_a_bucket_without_a_manifest_is_no_model(prefix: str, bucket: Bucket) -> None:
    """A prefix without a model and a bucket that does not exist are named as such."""
    error = failure(f"gs://{prefix}")
    assert isinstance(error, LocationError)
    assert str(error).startswith(f"gs://{prefix} holds no manifest.json")


def test_a_web_server_without_a_manifest_is_no_model(server: RangeServer) -> None:
    """A 404 for the manifest is said once, not retried."""
    error = failure(f"{server.url}/nothing")
    assert isinstance(error, LocationError)
    assert str(error).startswith(f"{server.url}/nothing holds no manifest.json")
    assert len(server.requests) == 1


def test_a_manifest_that_cannot_be_read_ends_the_pull(own_model: Path) -> None:
    """A truncated manifest is refused before anything is fetched."""
    whole = (own_model / "manifest.json").read_bytes()
    (own_model / "manifest.json").write_bytes(whole[:-5])
    error = failure(str(own_model))
    assert isinstance(error, ManifestError)
    assert str(error).startswith(f"{own_model}/manifest.json is not valid JSON")


def test_a_huge_manifest_is_refused(own_model: Path) -> None:
    """More than 4 MiB is not a manifest, even if it is good JSON."""
    padded = (own_model / "manifest.json").read_bytes() + b" " * (4 * 2**20)
    (own_model / "manifest.json").write_bytes(padded)
    error = failure(str(own_model))
    assert isinstance(error, ManifestError)
    assert "too large to be a manifest" in str(error)


# --- faults ---------------------------------------------------------------------------------


def at(name: str, fault: Fault, *, block: int = 0, times: float = float("inf")) -> Fault:
    """`fault` for the first `times` requests for a block of the file `name`."""

    def chosen(request: Request, answer: Answer) -> Answer:
        start = request.range[0] if request.range else 0
        hit = request.name == name and start == block * BLOCK and request.earlier < times
        return fault(request, answer) if hit else answer

    return chosen


def status(code: int) -> Fault:
    return lambda request, answer: Answer(code, b"no")


def flip_a_bit(request: Request, answer: Answer) -> Answer:
    assert isinstance(answer.body, bytes)
    spoiled = bytearray(answer.body)
    spoiled[len(spoiled) // 2] ^= 16
    return dataclasses.replace(answer, body=bytes(spoiled))


def hang_up(request: Request, answer: Answer) -> Answer:
    raise Hangup


def cut_short(request: Request, answer: Answer) -> Answer:
    assert isinstance(answer.body, bytes)
    length = {"Content-Length": str(len(answer.body))}
    half = answer.body[: len(answer.body) // 2]
    return dataclasses.replace(answer, body=half, headers={**answer.headers, **length})


def send_all(request: Request, answer: Answer) -> Answer:
    """As a server does that knows no ranges. The body does not matter: it is not read."""
    headers = {key: value for key, value in answer.headers.items() if key != "Content-Range"}
    return dataclasses.replace(answer, status=200, headers=headers)


def too_few(request: Request, answer: Answer) -> Answer:
    """A well-formed answer for fewer bytes than were asked for."""
    assert request.range
    assert isinstance(answer.body, bytes)
    start = request.range[0]
    shorter = {"Content-Range": f"bytes {start}-{start + 9}/{10**9}"}
    return dataclasses.replace(answer, body=answer.body[:10], headers={**answer.headers, **shorter})


def test_a_damaged_block_is_fetched_again_alone(server: RangeServer, url: str, model: Path) -> None:
    """One flipped bit costs one more request, for that block, and nothing wrong comes through."""
    server.fault = at(FIRST, flip_a_bit, block=2, times=1)
    with weights.pull(url, streams=16) as pull:
        assert collect(pull) == published(model)
        assert pull.stats.retries == 1
    again = [(request.name, request.range) for request in server.requests if request.earlier]
    assert again == [(FIRST, (2 * BLOCK, 3 * BLOCK))]


@pytest.mark.parametrize("code", [429, 503])
def test_a_busy_server_is_given_more_time(
    code: int, server: RangeServer, url: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that asks for patience, as a bucket does that a thousand replicas read at once, is
    asked more often than one that fails."""
    monkeypatch.setattr(weights, "ATTEMPTS", 2)
    monkeypatch.setattr(weights, "_backoff", lambda attempt, busy: 0.001)
    server.fault = at(FIRST, status(code), block=2, times=weights.BUSY_ATTEMPTS - 1)
    with weights.pull(url, streams=4) as pull:
        assert collect(pull) == published(model)
        assert pull.stats.retries == weights.BUSY_ATTEMPTS - 1


@pytest.mark.parametrize(("name", "block"), [(FIRST, 4), (SECOND, 0), ("open_clip_config.json", 0)])
def test_bytes_that_stay_damaged_are_refused(
    name: str, block: int, server: RangeServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block that is wrong every time ends the pull within seconds, naming object and block."""
    monkeypatch.setattr(weights, "ATTEMPTS", 3)
    server.fault = at(name, flip_a_bit, block=block)
    started = time.monotonic()
    error = failure(url)
    assert isinstance(error, CorruptError)
    assert str(error) == (
        f"{url}/{name}: the checksum of block {block} is wrong after 3 attempts; the published"
        " bytes are damaged, or the model was republished while it was pulled: start again, or"
        " publish it again"
    )
    assert time.monotonic() - started < 10


def test_damage_on_disk_is_noticed(own_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory is verified like everything else."""
    monkeypatch.setattr(weights, "ATTEMPTS", 2)
    with open(own_model / SECOND, "r+b") as file:
        file.seek(BLOCK + 1000)
        old = file.read(1)
        file.seek(BLOCK + 1000)
        file.write(bytes([old[0] ^ 1]))
    error = failure(str(own_model))
    assert isinstance(error, CorruptError)
    assert f"{SECOND}: the checksum of block 1 is wrong" in str(error)


def test_a_file_cut_short_on_disk_is_noticed(
    own_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that are missing at the end of a file are missed."""
    monkeypatch.setattr(weights, "ATTEMPTS", 2)
    os.truncate(own_model / SECOND, BLOCK + 10)
    error = failure(str(own_model))
    assert isinstance(error, TransferError)
    assert f"{SECOND}: 10 bytes came where" in str(error)


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json", FIRST])
@pytest.mark.parametrize(
    "fault",
    [
        *(pytest.param(status(code), id=str(code)) for code in (408, 429, 500, 502, 503, 504)),
        pytest.param(hang_up, id="hang-up"),
        pytest.param(cut_short, id="cut short"),
    ],
)
def test_what_may_go_better_next_time_is_tried_again(
    fault: Fault, name: str, server: RangeServer, url: str, model: Path
) -> None:
    """Two failures in a row cost two more requests for that object, and no error."""
    server.fault = at(name, fault, times=2)
    with weights.pull(url) as pull:
        assert collect(pull) == published(model)
        assert pull.stats.retries == 2
    assert [request.name for request in server.requests if request.earlier] == [name, name]


@pytest.mark.parametrize("name", ["manifest.json", FIRST])
def test_a_server_that_stays_broken_is_given_up(
    name: str, server: RangeServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last attempt the error names the object and what the server said."""
    monkeypatch.setattr(weights, "ATTEMPTS", 3)
    monkeypatch.setattr(weights, "BUSY_ATTEMPTS", 3)
    server.fault = at(name, status(503))
    error = failure(url)
    assert isinstance(error, TransferError)
    assert f"{url}/{name}" in str(error)
    assert "HTTP 503" in str(error)
    assert (
        len([request for request in server.asked_for(name) if request.range in (None, (0, BLOCK))])
        == 3
    )


def test_fewer_bytes_than_asked_for_are_never_taken(
    server: RangeServer, url: str, model: Path
) -> None:
    """A short answer, though well formed, is asked for again."""
    server.fault = at(FIRST, too_few, block=1, times=1)
    with weights.pull(url) as pull:
        assert collect(pull) == published(model)
        assert pull.stats.retries == 1


def test_a_silent_server_is_asked_anew(
    server: RangeServer, url: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection on which nothing comes is given up, and its block asked for on another."""
    monkeypatch.setattr(sources, "_READ_SECONDS", 0.5)
    released = threading.Event()

    def say_nothing(request: Request, answer: Answer) -> Answer:
        released.wait(20)
        raise Hangup

    server.fault = at(SECOND, say_nothing, block=1, times=1)
    started = time.monotonic()
    with weights.pull(url) as pull:
        assert collect(pull) == published(model)
        assert pull.stats.retries == 1
    assert time.monotonic() - started < 10
    released.set()


def test_a_pull_in_which_nothing_arrives_is_given_up(
    server: RangeServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the network fails, whoever waits gets an error in the end."""
    monkeypatch.setattr(weights, "STALL_SECONDS", 0.5)
    released = threading.Event()

    def say_nothing(request: Request, answer: Answer) -> Answer:
        if request.range:
            released.wait(20)
        return answer

    server.fault = say_nothing
    error = failure(url)
    released.set()
    assert isinstance(error, TransferError)
    assert str(error).startswith(f"{url}: nothing arrived for")


def test_a_server_without_ranges_is_named_as_such(server: RangeServer, url: str) -> None:
    """It is said at once, not retried: such a server never does better."""
    server.fault = lambda request, answer: send_all(request, answer) if request.range else answer
    error = failure(url)
    assert isinstance(error, TransferError)
    assert "the server ignores Range requests; serve it with one that does not" in str(error)
    assert not any(request.earlier for request in server.requests)


@pytest.mark.parametrize("code", [401, 403])
@pytest.mark.parametrize("name", ["manifest.json", FIRST])
def test_refused_access_is_not_retried(code: int, name: str, server: RangeServer, url: str) -> None:
    """A web server that says no is believed, and the error says which object and what to do."""
    server.fault = at(name, status(code))
    error = failure(url)
    assert isinstance(error, AccessError)
    assert str(error).startswith(f"{url}/{name} refuses access (HTTP {code}); make the bucket")
    assert not any(request.earlier for request in server.requests)


@pytest.mark.parametrize("code", [400, 405, 412, 416])
def test_a_refused_request_is_not_retried(code: int, server: RangeServer, url: str) -> None:
    """Answers that will not change end the pull at once."""
    server.fault = at(FIRST, status(code), block=1)
    error = failure(url)
    assert isinstance(error, TransferError)
    assert str(error) == f"{url}/{FIRST}: the server refused the request (HTTP {code})"
    assert not any(request.earlier for request in server.requests)


def test_a_missing_shard_is_named(own_model: Path) -> None:
    """A file that the manifest lists and that is not there is named, with what to do."""
    (own_model / SECOND).unlink()
    error = failure(str(own_model))
    assert isinstance(error, TransferError)
    assert str(error).startswith(f"{own_model}/{SECOND} is not there any more")
    assert "publish it again" in str(error)


def test_a_shard_missing_from_a_web_server_is_named(server: RangeServer, url: str) -> None:
    """Likewise behind a web server, where it is a 404."""
    server.fault = at(SECOND, status(404))
    error = failure(url)
    assert isinstance(error, TransferError)
    assert str(error).startswith(f"{url}/{SECOND} is not there any more")


def test_nobody_listening_fails_soon() -> None:
    """A server that is not there is an error within seconds, after retries, in plain words."""
    place = f"http://127.0.0.1:{free_port()}/clip"
    started = time.monotonic()
    error = failure(place)
    assert isinstance(error, TransferError)
    assert str(error) == (
        f"{place}/manifest.json cannot be read: connection refused; check CLIP_WEIGHTS and the"
        " network"
    )
    assert time.monotonic() - started < 12


def test_what_came_before_an_error_is_right(
    server: RangeServer, url: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that landed before a pull failed are yielded first, verified."""
    monkeypatch.setattr(weights, "BUSY_ATTEMPTS", 3)
    server.fault = at(FIRST, status(503), block=4)
    data = (model / FIRST).read_bytes()
    came: list[Block] = []
    with weights.pull(url, streams=1) as pull, pytest.raises(TransferError):
        came.extend(pull.blocks())
    came = [block for block in came if block.file.name == FIRST]
    assert [block.offset for block in came] == [index * BLOCK for index in range(4)]
    assert all(data[block.offset : block.offset + BLOCK] == block.data for block in came)


def failure_within(location: str, seconds: float = 20) -> str:
    """The sentence a pull of `location` ends in; empty if it does not end in time."""
    caught: list[WeightsError] = []
    waiting = threading.Thread(target=lambda: caught.append(failure(location)), daemon=True)
    waiting.start()
    waiting.join(seconds)
    return str(caught[0]) if caught else ""


def test_a_panic_is_an_error_not_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """obstore panics at such an address, which Python does not see as an Exception: still nobody
    waits for ever."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://not a host")
    assert failure_within("gs://models/clip").startswith("pulling gs://models/clip failed: Panic")


def test_a_panic_at_a_block_is_an_error_not_silence(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Likewise after the manifest has come."""

    class Panic(BaseException):
        pass

    read = sources.DirectorySource.read

    def panicking(self: sources.DirectorySource, name: str, *rest: Any) -> memoryview:
        if name == SECOND:
            raise Panic("within")
        return read(self, name, *rest)

    monkeypatch.setattr(sources.DirectorySource, "read", panicking)
    assert failure_within(str(model)) == f"{model}/{SECOND}: Panic('within')"


# --- republished while pulling --------------------------------------------------------------


def test_a_republished_object_is_noticed_never_mixed(bucket: Bucket, own_model: Path) -> None:
    """Ranges are pinned to the manifest's generations: an object that was replaced since is an
    error that says so, and not one of its new bytes is taken."""
    place = bucket.put_model(own_model, "republished")
    spoiled = (own_model / SECOND).read_bytes()[::-1]
    bucket.put(f"republished/{SECOND}", spoiled)
    error = failure(place)
    assert isinstance(error, TransferError)
    assert str(error).startswith(f"{place}/{SECOND} is not there any more")
    assert "republished" in str(error)


def test_the_same_bytes_uploaded_again_are_another_generation(
    bucket: Bucket, own_model: Path
) -> None:
    """The generation decides, not luck with the bytes."""
    place = bucket.put_model(own_model, "again")
    bucket.put(f"again/{SECOND}", (own_model / SECOND).read_bytes())
    assert isinstance(failure(place), TransferError)


# --- private buckets ------------------------------------------------------------------------


@dataclasses.dataclass
class Credentials:
    """What google-auth would find. refusal: what refreshing raises, if anything."""

    token: str | None = None
    refusal: Exception | None = None
    refreshed: int = 0

    @property
    def valid(self) -> bool:
        return self.token is not None

    def refresh(self, request: object) -> None:
        self.refreshed += 1
        if self.refusal:
            raise self.refusal
        self.token = "sesame"


@pytest.fixture
def cloud(server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> RangeServer:
    """The web server in Cloud Storage's place, and not as an emulator: gs://bucket/clip is there.

    obstore reads GOOGLE_BASE_URL itself; only its refusal of http:// has to be lifted.
    """
    monkeypatch.setenv("GOOGLE_BASE_URL", server.url)
    options = sources._client_options
    monkeypatch.setattr(sources, "_client_options", lambda allow_http: options(True))
    return server


def private(request: Request, answer: Answer) -> Answer:
    """A bucket that opens to one token."""
    given = request.headers.get("authorization")
    return answer if given == "Bearer sesame" else Answer(403 if given else 401, b"no")


def test_a_private_bucket_is_read_with_application_default_credentials(
    cloud: RangeServer, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a bucket refuses an anonymous request, credentials are looked for once, for reading
    only, and every request after that carries their token."""
    cloud.fault = private
    credentials = Credentials()
    scopes: list[Any] = []

    def default(**arguments: Any) -> tuple[Credentials, str]:
        scopes.append(arguments["scopes"])
        return credentials, "project"

    monkeypatch.setattr(google.auth, "default", default)
    with weights.pull("gs://bucket/clip") as pull:
        assert collect(pull) == published(model)
    assert scopes == [["https://www.googleapis.com/auth/devstorage.read_only"]]
    assert credentials.refreshed == 1
    anonymous, *signed = cloud.requests
    assert (anonymous.name, anonymous.headers.get("authorization")) == ("manifest.json", None)
    assert {request.headers.get("authorization") for request in signed} == {"Bearer sesame"}


def test_a_public_bucket_is_read_without_looking_for_credentials(
    cloud: RangeServer, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A public bucket waits for no credentials, and is sent none."""

    def default(**arguments: Any) -> Any:
        raise AssertionError("credentials were looked for")

    monkeypatch.setattr(google.auth, "default", default)
    with weights.pull("gs://bucket/clip") as pull:
        assert collect(pull) == published(model)
    assert not any("authorization" in request.headers for request in cloud.requests)


def test_a_private_bucket_without_credentials_says_where_to_get_them(cloud: RangeServer) -> None:
    """google-auth itself finds none here: the error says what to mount, set or change."""
    cloud.fault = private
    error = failure("gs://bucket/clip")
    assert isinstance(error, AccessError)
    assert "the bucket is private and there are no Application Default Credentials" in str(error)
    assert "set GOOGLE_APPLICATION_CREDENTIALS" in str(error)
    assert "make the bucket public" in str(error)


def test_credentials_that_may_not_read_are_refused_once(
    cloud: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket that refuses the credentials too is not asked a third time."""
    # After ten requests the answer is another, lest the test ask for ever.
    cloud.fault = lambda request, answer: (
        private(request, answer) if request.earlier < 10 else Answer(404)
    )
    stranger = Credentials(token="stranger")
    monkeypatch.setattr(google.auth, "default", lambda **_: (stranger, "project"))
    error = failure("gs://bucket/clip")
    assert isinstance(error, AccessError)
    assert str(error).startswith("gs://bucket/clip/manifest.json refuses access (HTTP 403)")
    assert len(cloud.requests) == 2


def test_credentials_that_cannot_be_refreshed_say_why(
    cloud: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A revoked key is an access error with google-auth's own words."""
    cloud.fault = private
    revoked = Credentials(refusal=google.auth.exceptions.RefreshError("key was revoked"))
    monkeypatch.setattr(google.auth, "default", lambda **_: (revoked, "project"))
    error = failure("gs://bucket/clip")
    assert isinstance(error, AccessError)
    assert "refuses access (RefreshError: key was revoked)" in str(error)


def test_a_key_file_that_is_not_there_is_named(
    cloud: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GOOGLE_APPLICATION_CREDENTIALS that names no file is said to be at fault."""
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")
    error = failure("gs://bucket/clip")
    assert isinstance(error, LocationError)
    assert "GOOGLE_APPLICATION_CREDENTIALS" in str(error)


@pytest.mark.parametrize(
    "fault",
    [*(status(code) for code in (400, 401, 403, 404, 412, 500)), hang_up, cut_short, flip_a_bit],
    ids=["400", "401", "403", "404", "412", "500", "no answer", "reset", "flipped bit"],
)
def test_no_error_shows_a_credential(
    fault: Fault,
    cloud: RangeServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """However a request with a token fails, neither sentence, traceback, log nor output has it."""
    monkeypatch.setattr(weights, "ATTEMPTS", 2)
    monkeypatch.setattr(weights, "BUSY_ATTEMPTS", 2)
    monkeypatch.setattr(google.auth, "default", lambda **_: (Credentials(), "project"))
    caplog.set_level("DEBUG")
    failing = at(FIRST, fault)
    cloud.fault = lambda request, answer: failing(request, private(request, answer))
    with weights.pull("gs://bucket/clip") as pull, pytest.raises(WeightsError) as caught:
        collect(pull)
    assert any(request.headers.get("authorization") for request in cloud.requests)
    told = "".join([*traceback.format_exception(caught.value), caplog.text, *capfd.readouterr()])
    assert "sesame" not in told


# --- closing --------------------------------------------------------------------------------


def test_closing_early_ends_the_threads(server: RangeServer, url: str) -> None:
    """A pull that is closed lets its requests in flight come to their end, starts no others, and
    leaves no thread behind."""
    released = threading.Event()

    def hold(request: Request, answer: Answer) -> Answer:
        if request.range:
            released.wait(4)
        return answer

    server.fault = hold
    with weights.pull(url, streams=2):
        assert wait_until(lambda: len(server.requests) == 3)
        assert pull_threads()
    released.set()
    assert wait_until(lambda: not pull_threads())
    assert len(server.requests) == 3


def test_closing_before_the_manifest_has_come_fetches_nothing(
    server: RangeServer, url: str
) -> None:
    """A manifest that arrives after the pull was closed starts no fetching."""
    released = threading.Event()

    def hold(request: Request, answer: Answer) -> Answer:
        released.wait(4)
        return answer

    server.fault = hold
    with weights.pull(url):
        assert wait_until(lambda: server.requests)
    released.set()
    assert wait_until(lambda: not pull_threads())
    assert [request.name for request in server.requests] == ["manifest.json"]


def test_closing_ends_the_retries_for_the_manifest(server: RangeServer, url: str) -> None:
    """A closed pull does not go on asking a broken server."""
    server.fault = status(503)
    with weights.pull(url):
        assert wait_until(lambda: len(server.requests) == 2)
    assert wait_until(lambda: not pull_threads(), seconds=5)
    assert len(server.requests) <= 4


def test_closing_wakes_who_waits(server: RangeServer, url: str) -> None:
    """Whoever waits for blocks of a pull that another thread closes gets an error, not silence."""
    released = threading.Event()

    def hold(request: Request, answer: Answer) -> Answer:
        if request.range:
            released.wait(4)
        return answer

    server.fault = hold
    caught: list[WeightsError] = []

    def wait_for_a_block() -> None:
        try:
            next(pull.blocks())
        except WeightsError as error:
            caught.append(error)

    with weights.pull(url) as pull:
        waiting = threading.Thread(target=wait_for_a_block, daemon=True)
        waiting.start()
        assert wait_until(lambda: len(server.requests) > 1)
    waiting.join(3)
    released.set()
    assert [str(error) for error in caught] == ["the pull was closed"]


def test_a_directory_that_may_not_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Permissions are final, and the file is named. (Root may read anything: so no real file.)"""

    def refuse(path: Path, *rest: Any, **more: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(AccessError, match=r"manifest\.json may not be read by this user"):
        sources.open_source(str(tmp_path)).read("manifest.json")


def test_a_directory_that_fails_is_asked_again(tmp_path: Path) -> None:
    """Any other trouble of a file system may pass, as a network's does."""
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(sources.PassingError, match="directory"):
        sources.open_source(str(tmp_path)).read("manifest.json")
