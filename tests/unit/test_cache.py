"""The cache of verified files on disk: hits, damage, full disks, concurrent processes."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import weights
from clip_embed.checkpoint import fetch
from clip_embed.checkpoint.cache import Cache
from clip_embed.checkpoint.manifest import SHARD_SUFFIX, PublishedFile
from tests.helpers.range_server import Answer, RangeServer
from tests.helpers.result_tables import FAULTS


@pytest.fixture
def server(tiny_model: Path) -> Iterator[RangeServer]:
    with RangeServer(tiny_model) as running:
        yield running


def pull_and_fill(server: RangeServer, cache: Path, fault: str = "") -> weights.PullStats:
    """Pull the model through `cache`, compare its bytes, and add missing files to the cache.

    fault: its name in the table of faults.
    """
    started = time.monotonic()
    with weights.pull(server.url, cache=str(cache)) as pull:
        blocks = {(block.file.name, block.offset): bytes(block.data) for block in pull.blocks()}
        for shard in pull.manifest.shards:
            content = b"".join(blocks[key] for key in sorted(blocks) if key[0] == shard.name)
            assert content == (server.directory / shard.name).read_bytes()
    thread = pull.fill_cache()
    assert thread is not None
    thread.join(30)
    assert not thread.is_alive()
    if fault:
        FAULTS.append((fault, "http", "right bytes", time.monotonic() - started))
    return pull.stats


def cached_files(cache: Path) -> list[Path]:
    return sorted(cache.iterdir()) if cache.exists() else []


def cached_shard(cache: Path) -> Path:
    [shard] = [path for path in cached_files(cache) if path.name.endswith(SHARD_SUFFIX)]
    return shard


def test_pull_requests_only_the_manifest_if_the_cache_is_full(
    server: RangeServer, tmp_path: Path
) -> None:
    """The first pull fills the cache with every file; the second reads them from there."""
    first = pull_and_fill(server, tmp_path / "cache")
    assert first.bytes_cached == 0
    assert len(cached_files(tmp_path / "cache")) == 3
    server.requests.clear()
    second = pull_and_fill(server, tmp_path / "cache")
    assert [request.name for request in server.requests] == ["manifest.json"]
    assert second.bytes_cached == second.bytes_total == first.bytes_total


def test_pull_writes_nothing_before_fill_cache(server: RangeServer, tmp_path: Path) -> None:
    """The service does not wait for the disk to become ready."""
    with weights.pull(server.url, cache=str(tmp_path / "cache")) as pull:
        for _ in pull.blocks():
            pass
    assert cached_files(tmp_path / "cache") == []


def test_fill_cache_does_nothing_without_a_cache(server: RangeServer) -> None:
    """CLIP_WEIGHTS_CACHE is optional."""
    with weights.pull(server.url) as pull:
        for _ in pull.blocks():
            pass
    assert pull.fill_cache() is None


@pytest.mark.parametrize("damage", ["a flipped bit", "cut short", "empty"])
def test_damaged_cached_file_is_replaced(server: RangeServer, tmp_path: Path, damage: str) -> None:
    """The bytes of a damaged file come from the store, and a new copy is cached."""
    cache = tmp_path / "cache"
    pull_and_fill(server, cache)
    shard = cached_shard(cache)
    intact = shard.read_bytes()
    damaged = {
        "a flipped bit": intact[:99] + bytes([intact[99] ^ 1]) + intact[100:],
        "cut short": intact[:-1],
        "empty": b"",
    }
    shard.write_bytes(damaged[damage])
    server.requests.clear()
    pull_and_fill(server, cache, f"cache: {damage}")  # compares every byte
    assert any(request.name.endswith(SHARD_SUFFIX) for request in server.requests)
    assert shard.read_bytes() == intact


def test_cache_path_depends_on_the_content(tmp_path: Path) -> None:
    """A republished model with the same file names shares no file with the old one."""
    cache = Cache(tmp_path)
    old = PublishedFile("model.safetensors", "a", 4, "AAAAAA==", ("AAAAAA==",))
    new = PublishedFile("model.safetensors", "b", 4, "AAAAAQ==", ("AAAAAQ==",))
    assert cache.path(old) != cache.path(new)


def full_at_the_first_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write files to /dev/full, for which the kernel reports that no space is left."""
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full on this system")
    real_mkstemp = tempfile.mkstemp

    def mkstemp(**arguments: Any) -> tuple[int, str]:
        descriptor, name = real_mkstemp(**arguments)
        os.close(descriptor)
        return os.open("/dev/full", os.O_WRONLY), name

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)


def full_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise ENOSPC from fsync, as file systems with delayed allocation do."""

    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("full", [full_at_the_first_byte, full_at_the_end])
def test_full_disk_disables_only_the_cache(
    full: Callable[[pytest.MonkeyPatch], None],
    server: RangeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The pull succeeds, the error is logged, and no partial file remains."""
    full(monkeypatch)
    pull_and_fill(server, tmp_path / "cache", f"cache: disk {full.__name__.replace('_', ' ')}")
    assert cached_files(tmp_path / "cache") == []
    assert "No space left on device" in caplog.text


def test_unwritable_cache_directory_is_a_warning(
    server: RangeServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The pull succeeds although the directory cannot be created."""
    (tmp_path / "file").write_text("a file, so no directory can be created below it")
    pull_and_fill(server, tmp_path / "file" / "cache")
    assert "cannot be cached in" in caplog.text


def test_concurrent_pulls_share_a_cache(server: RangeServer, tmp_path: Path) -> None:
    """Several processes may fill a cache at the same time: each file appears once and complete."""
    errors: list[BaseException] = []

    def start() -> None:
        try:
            pull_and_fill(server, tmp_path / "cache")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(cached_files(tmp_path / "cache")) == 3
    server.requests.clear()
    assert pull_and_fill(server, tmp_path / "cache").bytes_cached > 0
    assert [request.name for request in server.requests] == ["manifest.json"]


def test_old_partial_files_are_removed(server: RangeServer, tmp_path: Path) -> None:
    """A partial file is removed after an hour; a recent one may still be in use."""
    old, recent = tmp_path / ".partial-old", tmp_path / ".partial-new"
    for partial in (old, recent):
        partial.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    pull_and_fill(server, tmp_path)
    assert not old.exists()
    assert recent.exists()


def test_writer_rejects_a_file_of_the_wrong_size(tmp_path: Path) -> None:
    """The error names both sizes, and no file remains."""
    file = PublishedFile("a.safetensors", "a", 5, "AAAAAA==", ("AAAAAA==",))
    with (
        pytest.raises(OSError, match=r"a\.safetensors: 3 bytes written of 5"),
        Cache(tmp_path).writer(file) as output,
    ):
        output.write(b"abc")
    assert cached_files(tmp_path) == []


def test_fill_cache_retries_transient_errors(
    server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that fill the cache after the pull are retried as those of the pull are."""
    monkeypatch.setattr(fetch, "BUSY_RETRY", fetch.RetryPolicy(24, 0.01, 0.01))
    with weights.pull(server.url, cache=str(tmp_path / "cache")) as pull:
        for _ in pull.blocks():
            pass
    server.fault = lambda request, answer: Answer(503) if request.earlier == 1 else answer
    thread = pull.fill_cache()
    assert thread is not None
    thread.join(30)
    assert len(cached_files(tmp_path / "cache")) == 3


# --- sharing and size -----------------------------------------------------------------------


def test_every_user_may_read_a_cached_file(tmp_path: Path) -> None:
    previous = os.umask(0o077)
    try:
        [path] = write_files(Cache(tmp_path / "cache"), "a")
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def write_files(cache: Cache, *names: str) -> list[Path]:
    """Write files of 100 bytes to the cache, each a minute younger than the one before."""
    paths = []
    for age, name in enumerate(names):
        with cache.writer(file_of(name)) as output:
            output.write(bytes(100))
        paths.append(cache.path(file_of(name)))
        os.utime(paths[-1], (0, 1000 + 60 * age))
    return paths


def file_of(name: str) -> PublishedFile:
    name = f"{name}.safetensors"
    return PublishedFile(name, name, 100, "AAAAAA==", ("AAAAAA==",))


def test_files_that_were_not_used_for_longest_are_evicted(tmp_path: Path) -> None:
    """Files of other names are neither counted nor removed."""
    cache = Cache(tmp_path, max_bytes=300)
    others = ("notes.txt", "20240131-1000-backup.tar", "deadbeef-7-of.safetensors")
    for name in others:
        (tmp_path / name).write_bytes(bytes(1000))
    paths = write_files(cache, "a", "b", "c", "d")
    cache.evict([file_of("a")])
    assert [path.exists() for path in paths] == [True, False, True, True]
    cache.evict([file_of("d")])
    assert all((tmp_path / name).exists() for name in others)
    assert [path.exists() for path in paths] == [True, False, True, True]


def test_files_in_use_are_kept_whatever_their_size(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=1)
    paths = write_files(cache, "a", "b", "c")
    cache.evict([file_of("a"), file_of("c")])
    assert [path.exists() for path in paths] == [True, False, True]


def test_pipe_in_place_of_a_cached_file_does_not_stop_a_start(
    server: RangeServer, tmp_path: Path
) -> None:
    cache = Cache(tmp_path)
    with weights.pull(server.url) as pull:
        for file in pull.manifest.files:
            os.mkfifo(cache.path(file))
    with weights.pull(server.url, cache=str(tmp_path)) as pull:
        assert sum(len(block.data) for block in pull.blocks()) == pull.wait_complete()


def test_partial_file_that_cannot_be_removed_does_not_keep_others(tmp_path: Path) -> None:
    (tmp_path / ".partial-a").mkdir()
    for name in ("b", "c"):
        (tmp_path / f".partial-{name}").touch()
        os.utime(tmp_path / f".partial-{name}", (0, 1000))
    os.utime(tmp_path / ".partial-a", (0, 1000))
    Cache(tmp_path).sweep()
    assert [path.name for path in tmp_path.iterdir()] == [".partial-a"]


def test_fill_cache_evicts_other_models(server: RangeServer, tmp_path: Path) -> None:
    [old] = write_files(Cache(tmp_path / "cache"), "old")
    with weights.pull(server.url, cache=str(tmp_path / "cache"), cache_bytes=10) as pull:
        for _ in pull.blocks():
            pass
        thread = pull.fill_cache()
        assert thread is not None
        thread.join(30)
    assert not old.exists()
    assert len(cached_files(tmp_path / "cache")) == 3
