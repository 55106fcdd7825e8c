"""Verified files kept on disk: faster starts, never trusted, never in the way."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import weights
from clip_embed.cache import Cache
from clip_embed.manifest import SHARD_SUFFIX, PublishedFile
from conftest import FAULTS
from range_server import Answer, RangeServer


@pytest.fixture
def server(tiny_model: Path) -> Iterator[RangeServer]:
    with RangeServer(tiny_model) as running:
        yield running


def pull(server: RangeServer, cache: Path, fault: str = "") -> weights.PullStats:
    """A whole pull through `cache`, and what the cache lacks kept in it. fault: for the table."""
    started = time.monotonic()
    with weights.pull(server.url, cache=str(cache)) as pulling:
        blocks = {(block.file.name, block.offset): bytes(block.data) for block in pulling.blocks()}
        for shard in pulling.manifest.shards:
            whole = b"".join(blocks[key] for key in sorted(blocks) if key[0] == shard.name)
            assert whole == (server.directory / shard.name).read_bytes()
    keeping = pulling.keep()
    assert keeping is not None
    keeping.join(30)
    assert not keeping.is_alive()
    if fault:
        FAULTS.append((fault, "http", "right bytes", time.monotonic() - started))
    return pulling.stats


def kept(cache: Path) -> list[Path]:
    return sorted(cache.iterdir()) if cache.exists() else []


def shard_of(cache: Path) -> Path:
    [shard] = [path for path in kept(cache) if path.name.endswith(SHARD_SUFFIX)]
    return shard


def test_a_start_from_a_filled_cache_asks_for_the_manifest_alone(
    server: RangeServer, tmp_path: Path
) -> None:
    """Every file is kept after the first start; the second fetches nothing but the manifest."""
    first = pull(server, tmp_path / "cache")
    assert first.bytes_cached == 0
    assert len(kept(tmp_path / "cache")) == 3
    server.requests.clear()
    second = pull(server, tmp_path / "cache")
    assert [request.name for request in server.requests] == ["manifest.json"]
    assert second.bytes_cached == second.bytes_total == first.bytes_total


def test_nothing_is_kept_before_it_is_asked_for(server: RangeServer, tmp_path: Path) -> None:
    """A pull writes nothing: readiness never waits for the disk."""
    with weights.pull(server.url, cache=str(tmp_path / "cache")) as pulling:
        for _ in pulling.blocks():
            pass
    assert kept(tmp_path / "cache") == []


def test_without_a_cache_nothing_is_kept(server: RangeServer) -> None:
    """CLIP_WEIGHTS_CACHE is optional."""
    with weights.pull(server.url) as pulling:
        for _ in pulling.blocks():
            pass
    assert pulling.keep() is None


@pytest.mark.parametrize("damage", ["a flipped bit", "cut short", "empty"])
def test_damage_is_noticed_and_mended(server: RangeServer, tmp_path: Path, damage: str) -> None:
    """A damaged file is not used: its bytes come from the bucket, and a new copy is kept."""
    cache = tmp_path / "cache"
    pull(server, cache)
    shard = shard_of(cache)
    right = shard.read_bytes()
    wrong = {
        "a flipped bit": right[:99] + bytes([right[99] ^ 1]) + right[100:],
        "cut short": right[:-1],
        "empty": b"",
    }
    shard.write_bytes(wrong[damage])
    server.requests.clear()
    pull(server, cache, f"cache: {damage}")  # compares every byte
    assert any(request.name.endswith(SHARD_SUFFIX) for request in server.requests)
    assert shard.read_bytes() == right


def test_a_republished_model_is_not_taken_from_the_cache(
    server: RangeServer, tiny_model: Path, tmp_path: Path
) -> None:
    """Files are known by what is in them: another model of the same names shares nothing."""
    cache = Cache(tmp_path)
    one = PublishedFile("model.safetensors", 4, "AAAAAA==", None, ("AAAAAA==",))
    other = PublishedFile("model.safetensors", 4, "AAAAAQ==", None, ("AAAAAQ==",))
    assert cache.path(one) != cache.path(other)


def full_at_the_first_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files go to /dev/full, where the kernel itself says that no space is left."""
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full on this system")
    make = tempfile.mkstemp

    def mkstemp(**arguments: Any) -> tuple[int, str]:
        descriptor, name = make(**arguments)
        os.close(descriptor)
        return os.open("/dev/full", os.O_WRONLY), name

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)


def full_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """As file systems say it that promise space before they have it."""

    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("full", [full_at_the_first_byte, full_at_the_end])
def test_a_full_disk_costs_nothing_but_the_cache(
    full: Callable[[pytest.MonkeyPatch], None],
    server: RangeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If the disk is full the pull is whole all the same, the log says so, nothing is left."""
    full(monkeypatch)
    pull(server, tmp_path / "cache", f"cache: disk {full.__name__.replace('_', ' ')}")
    assert kept(tmp_path / "cache") == []
    assert "No space left on device" in caplog.text


def test_a_directory_that_may_not_be_made(
    server: RangeServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A cache that cannot be written is a warning, not a failure."""
    (tmp_path / "file").write_text("in the way")
    pull(server, tmp_path / "file" / "cache")
    assert "is not kept in" in caplog.text


def test_two_starts_at_once_share_it(server: RangeServer, tmp_path: Path) -> None:
    """Two processes may fill a cache at the same time: each file appears once, and whole."""
    errors: list[BaseException] = []

    def start() -> None:
        try:
            pull(server, tmp_path / "cache")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(kept(tmp_path / "cache")) == 3
    server.requests.clear()
    assert pull(server, tmp_path / "cache").bytes_cached > 0
    assert [request.name for request in server.requests] == ["manifest.json"]


def test_what_a_killed_process_left_is_swept(server: RangeServer, tmp_path: Path) -> None:
    """Half-written files go after an hour; one that may still be written stays."""
    old, new = tmp_path / ".partial-old", tmp_path / ".partial-new"
    for partial in (old, new):
        partial.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    pull(server, tmp_path)
    assert not old.exists()
    assert new.exists()


def test_a_copy_of_another_size_is_not_kept(tmp_path: Path) -> None:
    """Fewer bytes than the manifest says: an error that names both, and nothing is left behind."""
    file = PublishedFile("a.safetensors", 5, "AAAAAA==", None, ("AAAAAA==",))
    with (
        pytest.raises(OSError, match=r"a\.safetensors: 3 bytes written of 5"),
        Cache(tmp_path).writer(file) as output,
    ):
        output.write(b"abc")
    assert kept(tmp_path) == []


def test_keeping_is_as_patient_as_pulling(server: RangeServer, tmp_path: Path) -> None:
    """A passing fault while files are kept, after the pull has ended, is tried again."""
    with weights.pull(server.url, cache=str(tmp_path / "cache")) as pulling:
        for _ in pulling.blocks():
            pass
    server.fault = lambda request, answer: Answer(503) if request.earlier == 1 else answer
    keeping = pulling.keep()
    assert keeping is not None
    keeping.join(30)
    assert len(kept(tmp_path / "cache")) == 3
