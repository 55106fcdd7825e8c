"""Test the faults that a pull can meet: within a deadline it delivers the published bytes, or one
error that names the object, the cause and the way out. pytest prints a table of the results at the
end of the session."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

import weights
from clip_embed.checkpoint import load
from clip_embed.checkpoint.manifest import CONFIG_NAME
from clip_embed.embedder import Embedder
from clip_embed.errors import ClipEmbedError, WeightsError
from scripts.lib.cog_server import CogServer, free_port
from tests.helpers.faults import at, cut_short, flip_a_bit, hang_up, send_all, status, too_few
from tests.helpers.nginx import running_nginx
from tests.helpers.paths import ROOT
from tests.helpers.published_model import (
    BLOCK,
    FIRST,
    SECOND,
    collect,
    manifest_of,
    published,
)
from tests.helpers.range_server import Answer, Fault, RangeServer, Request
from tests.helpers.result_tables import FAULTS

pytestmark = pytest.mark.usefixtures("no_cloud_environment")

BYTES = "published bytes"


@pytest.fixture(params=["gs", "http"])
def remote(
    request: pytest.FixtureRequest,
    web_root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[str, RangeServer]]:
    """Serve the model as a bucket (paths of Cloud Storage's XML API) and as a web server."""
    with RangeServer(web_root) as server:
        if request.param == "gs":
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
            yield "gs://bucket/clip", server
        else:
            yield f"{server.url}/bucket/clip", server


def outcome(location: str, model: Path, label: str, deadline: float) -> str:
    """Return BYTES or the error message of a pull. Fails if the pull exceeds the deadline."""
    results: list[str] = []

    def run() -> None:
        try:
            with weights.pull(location) as pull:
                results.append(BYTES if collect(pull) == published(model) else "WRONG BYTES")
        except WeightsError as error:
            results.append(str(error))

    started = time.monotonic()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(deadline)
    seconds = time.monotonic() - started
    result = results[0] if results else "HANGS"
    FAULTS.append((label, location.partition("://")[0], result.replace(location, "…"), seconds))
    assert results, f"neither bytes nor an error after {deadline} s"
    return result


def each_range(fault: Fault, times: int) -> Fault:
    """Apply `fault` to the first `times` requests for each range."""
    return lambda request, answer: fault(request, answer) if request.earlier < times else answer


def retry_after(request: Request, answer: Answer) -> Answer:
    return Answer(503, b"no", {"Retry-After": "1"})


def too_many(request: Request, answer: Answer) -> Answer:
    """Send more bytes than requested, with a matching Content-Length."""
    assert isinstance(answer.body, bytes)
    return dataclasses.replace(answer, body=answer.body + b"more")


def wrong_content_range(request: Request, answer: Answer) -> Answer:
    """Send the Content-Range of other bytes than requested."""
    assert request.range
    start, end = request.range
    other = {"Content-Range": f"bytes {start + 1}-{end}/{10**9}"}
    return dataclasses.replace(answer, headers={**answer.headers, **other})


def swap_halves(request: Request, answer: Answer) -> Answer:
    assert isinstance(answer.body, bytes)
    half = len(answer.body) // 2
    return dataclasses.replace(answer, body=answer.body[half:] + answer.body[:half])


def stall(request: Request, answer: Answer) -> Answer:
    time.sleep(8)
    return answer


def in_chunks(pause: float, chunks: int) -> Fault:
    """Send the body in `chunks` parts with `pause` seconds after each."""

    def fault(request: Request, answer: Answer) -> Answer:
        assert isinstance(answer.body, bytes)
        body, step = answer.body, -(-len(answer.body) // chunks)

        def parts() -> Iterator[bytes]:
            for start in range(0, len(body), step):
                yield body[start : start + step]
                time.sleep(pause)

        length = {"Content-Length": str(len(body))}
        return dataclasses.replace(answer, body=parts(), headers={**answer.headers, **length})

    return fault


SLOW_BLOCK = in_chunks(0.1, 100)  # 10 s for a block

Change = Callable[[dict], object]  # type: ignore[type-arg]


def edited_manifest(change: Change) -> Fault:
    """Apply `change` to the manifest that the server sends."""

    def fault(request: Request, answer: Answer) -> Answer:
        assert isinstance(answer.body, bytes)
        document = json.loads(answer.body)
        change(document)
        return Answer(200, json.dumps(document).encode(), answer.headers)

    return at("manifest.json", fault)


def rename(name: str) -> Change:
    return lambda document: document["files"][0].update(name=name)


TABLE = [
    ("503 twice for each range", each_range(status(503), 2), BYTES, 20),
    ("429 twice for each range", each_range(status(429), 2), BYTES, 20),
    ("503 with Retry-After: 1", each_range(retry_after, 2), BYTES, 20),
    ("500 once for each range", each_range(status(500), 1), BYTES, 20),
    ("connection closed before the first byte", each_range(hang_up, 1), BYTES, 20),
    ("reset mid-body", each_range(cut_short, 1), BYTES, 20),
    ("stalled before the first byte", at(FIRST, stall, block=1, times=1), BYTES, 8),
    ("stalled mid-body", at(FIRST, in_chunks(8, 2), block=1, times=1), BYTES, 8),
    ("a block at 1/100 of the speed", at(FIRST, SLOW_BLOCK, block=1, times=1), BYTES, 8),
    ("body shorter than requested", at(FIRST, too_few, block=1, times=1), BYTES, 20),
    ("body longer than requested", at(FIRST, too_many, block=1, times=1), BYTES, 20),
    ("200 instead of 206", at(FIRST, send_all), "ignores Range requests", 10),
    ("wrong Content-Range, once", at(FIRST, wrong_content_range, block=1, times=1), BYTES, 20),
    ("one flipped bit, once", at(FIRST, flip_a_bit, block=1, times=1), BYTES, 20),
    ("one flipped bit, always", at(FIRST, flip_a_bit, block=1), "the checksum of block 1", 20),
    ("a block's halves swapped", at(FIRST, swap_halves, block=1, times=1), BYTES, 20),
    ("missing shard", at(SECOND, status(404)), f"{SECOND} no longer exists", 10),
    ("missing manifest", at("manifest.json", status(404)), "holds no manifest.json", 10),
    (
        "truncated manifest",
        at("manifest.json", lambda request, answer: Answer(200, answer.body[:-9], answer.headers)),  # type: ignore[index]
        "is not valid JSON",
        10,
    ),
    (
        "manifest of a newer version",
        edited_manifest(lambda m: m.update(version=3)),
        "update the service",
        10,
    ),
    (
        "file size that contradicts its blocks",
        edited_manifest(lambda m: m["files"][0].update(size=10**9)),
        "do not make",
        10,
    ),
    (
        "file name with ../",
        edited_manifest(rename("../x.safetensors")),
        "is not a plain file name",
        10,
    ),
    ("absolute file name", edited_manifest(rename("/etc/passwd")), "is not a plain file name", 10),
    ("401", at("manifest.json", status(401)), "refuses access (HTTP 401)", 10),
    ("403 for a shard", at(FIRST, status(403)), "refuses access (HTTP 403)", 10),
]


@pytest.mark.parametrize(
    ("label", "fault", "expected", "deadline"), TABLE, ids=[row[0] for row in TABLE]
)
def test_pull_meets_fault(
    label: str,
    fault: Fault,
    expected: str,
    deadline: float,
    remote: tuple[str, RangeServer],
    model: Path,
) -> None:
    """The pull gives the outcome in TABLE within its deadline. An error names the location."""
    location, server = remote
    server.fault = fault
    result = outcome(location, model, label, deadline)
    if expected == BYTES:
        assert result == BYTES
    else:
        assert expected in result
        assert location in result


@pytest.mark.parametrize(
    ("label", "fault", "expected"),
    [
        ("503 for the manifest, always", status(503), "HTTP 503; check"),
        ("manifest sent too slowly", in_chunks(1, 60), "did not arrive within 2 s"),
    ],
    ids=["status 503", "too slow"],
)
def test_pull_without_a_manifest_ends_at_its_deadline(
    label: str,
    fault: Fault,
    expected: str,
    remote: tuple[str, RangeServer],
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(weights, "MANIFEST_SECONDS", 2.0)
    location, server = remote
    server.fault = at("manifest.json", fault)
    result = outcome(location, model, f"{label} (deadline 2 s)", 5)
    assert expected in result
    assert location in result


def test_slow_range_is_hedged(
    remote: tuple[str, RangeServer],
    model: Path,
) -> None:
    """A range that would take 10 s is requested again, and few bytes are requested twice."""
    location, server = remote
    started = time.monotonic()
    with weights.pull(location) as pull:
        assert collect(pull) == published(model)
    usual = time.monotonic() - started
    server.requests.clear()
    server.fault = at(FIRST, SLOW_BLOCK, block=2, times=1)
    started = time.monotonic()
    with weights.pull(location) as pull:
        assert collect(pull) == published(model)
        seconds = time.monotonic() - started
        assert 0 < pull.stats.bytes_hedged <= 2 * BLOCK
    FAULTS.append(
        (f"one slow stream (usually {usual:.2f} s)", location.partition(":")[0], BYTES, seconds)
    )
    assert seconds < 5  # 10 without a hedged request, below 1 on an idle machine


def test_slow_pull_ends_at_its_deadline(
    remote: tuple[str, RangeServer],
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every block arrives, but too slowly."""
    monkeypatch.setattr(weights, "PULL_SECONDS", 2.0)
    location, server = remote
    server.fault = lambda request, answer: (
        in_chunks(0.2, 100)(request, answer) if request.name == FIRST else answer
    )
    assert "bytes arrived within 2 s" in outcome(
        location, model, "every block is slow (deadline 2 s)", 10
    )


def test_unknown_host_fails_within_the_manifest_deadline(model: Path) -> None:
    result = outcome("https://nowhere.invalid/clip", model, "DNS failure", 20)
    assert "https://nowhere.invalid/clip/manifest.json cannot be read" in result


def test_refused_connection_fails_within_the_manifest_deadline(model: Path) -> None:
    result = outcome(f"http://127.0.0.1:{free_port()}/clip", model, "refused connection", 15)
    assert "connection refused" in result


def test_object_republished_on_a_web_server_fails_its_checksum(
    remote: tuple[str, RangeServer],
    model: Path,
    limit_attempts: Callable[[int], None],
) -> None:
    limit_attempts(3)
    location, server = remote
    server.fault = lambda request, answer: (
        swap_halves(request, answer) if request.name == SECOND and request.range[0] else answer
    )
    result = outcome(location, model, "republished during the pull", 10)
    assert f"{location}/{SECOND}: the checksum of block 1 is wrong" in result


# --- wrong tensors --------------------------------------------------------------------------

Tensors = dict[str, torch.Tensor]


def missing(tensors: Tensors) -> list[Tensors]:
    return [{name: tensor for name, tensor in tensors.items() if name != "ln_final.bias"}]


def unknown(tensors: Tensors) -> list[Tensors]:
    return [tensors | {"stranger": torch.zeros(3)}]


def wrong_shape(tensors: Tensors) -> list[Tensors]:
    return [tensors | {"ln_final.bias": torch.zeros(3)}]


def duplicate(tensors: Tensors) -> list[Tensors]:
    return [tensors, {"ln_final.bias": tensors["ln_final.bias"]}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (missing, "ln_final.bias is missing"),
        (unknown, "stranger is unknown"),
        (wrong_shape, "ln_final.bias has shape [3], expected [16]"),
        (duplicate, "holds ln_final.bias, which another shard holds too"),
    ],
)
def test_wrong_tensors_fail_setup(
    change: Callable[[Tensors], list[Tensors]], message: str, tiny_model: Path, tmp_path: Path
) -> None:
    """The shards are well formed, but do not fit the network. The error names a tensor and says
    what to do."""
    copy = tmp_path / "clip"
    shutil.copytree(tiny_model, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors: Tensors = {}
    for shard in tiny_model.glob("*.safetensors"):
        tensors |= safetensors.torch.load_file(shard)
    for number, shard_tensors in enumerate(change(tensors)):
        safetensors.torch.save_file(shard_tensors, copy / f"model-{number}.safetensors")
    (copy / "manifest.json").write_bytes(manifest_of(copy, {}))

    def build(location: str) -> None:
        with weights.pull(location) as pull:
            loaded = load.load_tensors(pull.blocks(), torch.device("cpu"), torch.float32)
            Embedder.build(pull.file(CONFIG_NAME), loaded)

    started = time.monotonic()
    with RangeServer(copy) as server, pytest.raises(ClipEmbedError) as caught:
        build(server.url)
    seconds = time.monotonic() - started
    FAULTS.append((f"tensors: {change.__name__}", "http", str(caught.value), seconds))
    assert message in str(caught.value)
    assert "publish the model again" in str(caught.value)


# --- SIGTERM --------------------------------------------------------------------------------

PULL_SCRIPT = """
import signal, sys
if sys.argv[2] == "handled":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
import weights
with weights.pull(sys.argv[1]) as pull:
    for block in pull.blocks():
        pass
"""


@contextlib.contextmanager
def hanging_server(root: Path) -> Iterator[tuple[RangeServer, threading.Event]]:
    """Serve `root`, but never answer requests for shards. The event is set by the first of them."""
    requested, released = threading.Event(), threading.Event()

    def hang(request: Request, answer: Answer) -> Answer:
        if request.name.endswith(".safetensors"):
            requested.set()
            released.wait(60)
        return answer

    with RangeServer(root, hang) as server:
        yield server, requested
        released.set()


@pytest.mark.parametrize(("handler", "code"), [("default", -signal.SIGTERM), ("handled", 143)])
def test_sigterm_ends_a_pull_at_once(
    handler: str,
    code: int,
    web_root: Path,
) -> None:
    """The process waits for no request, with the default handler of SIGTERM and with its own."""
    with hanging_server(web_root) as (server, requested):
        command = [sys.executable, "-c", PULL_SCRIPT, f"{server.url}/bucket/clip", handler]
        process = subprocess.Popen(command, cwd=ROOT)
        try:
            assert requested.wait(60)
            started = time.monotonic()
            process.terminate()
            assert process.wait(4) == code  # the read timeout is 5 s
            seconds = time.monotonic() - started
        finally:
            process.kill()
            process.wait()
    FAULTS.append((f"SIGTERM during a pull, {handler}", "http", f"ends with {code}", seconds))


def test_sigterm_ends_the_service_during_a_pull(tiny_model: Path) -> None:
    """Cog's server ends at once while setup waits for the network. In a container, its worker ends
    with it."""
    with (
        hanging_server(tiny_model) as (server, requested),
        CogServer({"CLIP_WEIGHTS": server.url}) as running,
    ):
        assert running.process is not None
        assert requested.wait(60)
        started = time.monotonic()
        running.process.terminate()
        assert running.process.wait(10) == 0
        seconds = time.monotonic() - started
    FAULTS.append(("SIGTERM during a pull, Cog", "http", "ends with 0", seconds))


# --- nginx ----------------------------------------------------------------------------------


@contextlib.contextmanager
def nginx(root: Path, directory: Path, directives: str) -> Iterator[str]:
    """Serve `root` with nginx, with `directives` in its location block, and return its URL."""
    port = free_port()
    config = (
        "events {}\n"
        "http {\n limit_req_zone $binary_remote_addr zone=busy:1m rate=20r/s; access_log off;\n"
        f" server {{ listen 127.0.0.1:{port}; root {root}; location / {{ {directives} }} }}\n}}\n"
    )
    with running_nginx(config, directory, port):
        yield f"http://127.0.0.1:{port}"


NGINX = [
    ("nginx with its defaults", "", BYTES),
    ("nginx, 503 beyond 20 requests/s", "limit_req zone=busy;", BYTES),
    ("nginx, 429 beyond 20 requests/s", "limit_req zone=busy; limit_req_status 429;", BYTES),
    ("nginx, 20 MB/s per connection", "limit_rate 20m;", BYTES),
    ("nginx without ranges", "max_ranges 0;", "ignores Range requests"),
    ("nginx that denies", "deny all;", "refuses access (HTTP 403)"),
]


@pytest.mark.parametrize(("label", "directives", "expected"), NGINX, ids=[row[0] for row in NGINX])
def test_pull_from_nginx(
    label: str,
    directives: str,
    expected: str,
    web_root: Path,
    model: Path,
    tmp_path: Path,
) -> None:
    """Limits of nginx delay a pull; a refusal ends it with an error."""
    with nginx(web_root, tmp_path, directives) as url:
        result = outcome(f"{url}/bucket/clip", model, label, 20)
    assert expected in result
    if "limit_req" in directives:
        assert "limiting requests" in (tmp_path / "error.log").read_text()
