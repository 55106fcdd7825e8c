"""Test that only published bytes are delivered: damaged, truncated and republished objects."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import weights
from clip_embed.checkpoint.manifest import Block
from clip_embed.errors import CorruptError, TransferError
from tests.helpers.faults import at, flip_a_bit, status, too_few
from tests.helpers.published_model import (
    BLOCK,
    FIRST,
    SECOND,
    SMALL,
    EmulatorBucket,
    collect,
    published,
    pull_error,
)
from tests.helpers.range_server import RangeServer


def test_damaged_block_is_fetched_again_alone(
    web_server: RangeServer, url: str, model: Path
) -> None:
    """One flipped bit costs one request, for its block."""
    web_server.fault = at(FIRST, flip_a_bit, block=2, times=1)
    with weights.pull(url, streams=16) as pull:
        assert collect(pull) == published(model)
        assert pull.stats.retries == 1
    repeated = [(request.name, request.range) for request in web_server.requests if request.earlier]
    assert repeated == [(FIRST, (2 * BLOCK, 3 * BLOCK))]


@pytest.mark.parametrize(("name", "block"), [(FIRST, 4), (SECOND, 0), ("open_clip_config.json", 0)])
def test_block_that_stays_damaged_ends_the_pull(
    name: str,
    block: int,
    web_server: RangeServer,
    url: str,
    limit_attempts: Callable[[int], None],
) -> None:
    """Within seconds, the error names the object and the block."""
    limit_attempts(3)
    web_server.fault = at(name, flip_a_bit, block=block)
    started = time.monotonic()
    error = pull_error(url)
    assert isinstance(error, CorruptError)
    assert str(error) == (
        f"{url}/{name}: the checksum of block {block} is wrong after 3 attempts; the published"
        " bytes are damaged, or the model was republished during the pull: start again, or"
        " publish it again"
    )
    assert time.monotonic() - started < 10


def test_damaged_file_in_a_directory_is_detected(
    small_model: Path, limit_attempts: Callable[[int], None]
) -> None:
    limit_attempts(2)
    with open(small_model / SECOND, "r+b") as file:
        file.seek(BLOCK + 1000)
        old = file.read(1)
        file.seek(BLOCK + 1000)
        file.write(bytes([old[0] ^ 1]))
    error = pull_error(str(small_model))
    assert isinstance(error, CorruptError)
    assert f"{SECOND}: the checksum of block 1 is wrong" in str(error)


def test_truncated_file_in_a_directory_is_detected(small_model: Path) -> None:
    os.truncate(small_model / SECOND, BLOCK + 10)
    error = pull_error(str(small_model))
    assert isinstance(error, TransferError)
    assert f"{SECOND} has only {BLOCK + 10} bytes" in str(error)


def test_response_shorter_than_its_range_is_retried(
    web_server: RangeServer, url: str, model: Path
) -> None:
    """The short response is well formed."""
    web_server.fault = at(FIRST, too_few, block=1, times=1)
    with weights.pull(url) as pull:
        assert collect(pull) == published(model)
        assert pull.stats.retries == 1


def test_missing_shard_in_a_directory_is_named(small_model: Path) -> None:
    """The error says what to do about a listed file that does not exist."""
    (small_model / SECOND).unlink()
    error = pull_error(str(small_model))
    assert isinstance(error, TransferError)
    assert str(error).startswith(f"{small_model}/{SECOND} no longer exists")
    assert "publish it again" in str(error)


def test_missing_shard_on_a_web_server_is_named(web_server: RangeServer, url: str) -> None:
    web_server.fault = at(SECOND, status(404))
    error = pull_error(url)
    assert isinstance(error, TransferError)
    assert str(error).startswith(f"{url}/{SECOND} no longer exists")


def test_blocks_before_an_error_are_verified(
    web_server: RangeServer, url: str, model: Path, limit_attempts: Callable[[int], None]
) -> None:
    """Blocks that arrived before a pull failed are delivered first."""
    limit_attempts(3)
    web_server.fault = at(FIRST, status(503), block=4)
    data = (model / FIRST).read_bytes()
    blocks: list[Block] = []
    with weights.pull(url, streams=1) as pull, pytest.raises(TransferError):
        blocks.extend(pull.blocks())
    blocks = [block for block in blocks if block.file.name == FIRST]
    assert [block.offset for block in blocks] == [index * BLOCK for index in range(4)]
    assert all(data[block.offset : block.offset + BLOCK] == block.data for block in blocks)


# --- models republished during a pull -------------------------------------------------------


def test_object_with_other_bytes_is_refused(bucket: EmulatorBucket, small_model: Path) -> None:
    """The bytes of two publications are never mixed."""
    location = bucket.put_model(small_model, "republished")
    replacement = (small_model / SECOND).read_bytes()[::-1]
    bucket.put(f"republished/{SECOND}", replacement)
    error = pull_error(location)
    assert isinstance(error, CorruptError)
    assert str(error).startswith(f"{location}/{SECOND}: the checksum of block ")
    assert "republished" in str(error)


def test_copied_model_is_read(bucket: EmulatorBucket, small_model: Path) -> None:
    """A copy, a restored backup or a new encryption key gives every object a new generation, and
    the manifest of format version 1 lists the old ones."""
    location = bucket.put_model(small_model, "copied")
    for name in (SECOND, *SMALL):
        bucket.put(f"copied/{name}", (small_model / name).read_bytes())
    with weights.pull(location) as pull:
        blocks = [block for block in pull.blocks() if block.file.name == SECOND]
    whole = b"".join(block.data for block in sorted(blocks, key=lambda block: block.offset))
    assert whole == (small_model / SECOND).read_bytes()
