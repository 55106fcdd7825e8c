"""Fetching of a verified block and of the manifest: retries, pauses, errors."""

from __future__ import annotations

import crc32c
import pytest

from clip_embed.checkpoint import fetch
from clip_embed.checkpoint.download_queue import block_ranges
from clip_embed.checkpoint.fetch import BUSY_RETRY, RETRY, RetryPolicy, fetch_block, fetch_manifest
from clip_embed.checkpoint.manifest import PublishedFile, encode_checksum
from clip_embed.errors import (
    AccessError,
    CorruptError,
    LocationError,
    ManifestError,
    TransferError,
    TransientError,
)

DATA = b"published bytes"
CHECKSUM = encode_checksum(crc32c.crc32c(DATA))
FILE = PublishedFile("model.safetensors", "model-1a.safetensors", len(DATA), CHECKSUM, (CHECKSUM,))
[BLOCK] = block_ranges(FILE)


class FakeStore:
    """A store that answers with the given results in turn, and with the last one from then on."""

    location = "gs://bucket/clip"

    def __init__(self, *results: bytes | Exception) -> None:
        self._results = list(results)
        self.requests: list[tuple[str, int, int | None]] = []

    def read(self, name: str, start: int = 0, end: int | None = None) -> memoryview:
        self.requests.append((name, start, end))
        result = self._results.pop(0) if len(self._results) > 1 else self._results[0]
        if isinstance(result, Exception):
            raise result
        return memoryview(result)


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, in seconds, which take no time here."""
    slept: list[float] = []
    monkeypatch.setattr(fetch.time, "sleep", slept.append)
    return slept


def always(pause: float) -> bool:
    return True


def busy() -> TransientError:
    return TransientError("HTTP 429", busy=True)


def test_block_is_requested_by_range_from_the_stored_object() -> None:
    store = FakeStore(DATA)
    assert bytes(fetch_block(store, BLOCK, always)) == DATA
    assert store.requests == [("model-1a.safetensors", 0, len(DATA))]


@pytest.mark.parametrize(
    "failure",
    [TransientError("HTTP 500"), busy(), DATA[:-1], DATA + b"x", b"published bytez"],
    ids=["server error", "busy", "too short", "too long", "wrong checksum"],
)
def test_block_is_retried_until_it_is_intact(
    failure: bytes | Exception, pauses: list[float]
) -> None:
    store = FakeStore(failure, failure, DATA)
    assert bytes(fetch_block(store, BLOCK, always)) == DATA
    assert len(store.requests) == 3
    assert len(pauses) == 2


@pytest.mark.parametrize(
    ("failure", "attempts", "error", "message"),
    [
        (TransientError("HTTP 500"), 8, TransferError, "HTTP 500 after 8 attempts; check the net"),
        (busy(), 24, TransferError, "HTTP 429 after 24 attempts"),
        (b"published bytez", 8, CorruptError, "the checksum of block 0 is wrong after 8 attempts"),
        (b"short", 8, TransferError, "5 bytes came where 15 were asked for after 8 attempts"),
    ],
    ids=["server error", "busy", "wrong checksum", "too short"],
)
def test_attempts_are_limited(
    failure: bytes | Exception, attempts: int, error: type[Exception], message: str
) -> None:
    store = FakeStore(failure)
    with pytest.raises(error, match=f"^gs://bucket/clip/model-1a.safetensors: {message}"):
        fetch_block(store, BLOCK, always)
    assert len(store.requests) == attempts


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (FileNotFoundError("x"), TransferError),
        (AccessError("denied"), AccessError),
        (TransferError("no ranges"), TransferError),
    ],
    ids=["missing", "access denied", "refused"],
)
def test_final_failures_are_not_retried(failure: Exception, error: type[Exception]) -> None:
    store = FakeStore(failure)
    with pytest.raises(error):
        fetch_block(store, BLOCK, always)
    assert len(store.requests) == 1


def test_caller_can_stop_the_retries(pauses: list[float]) -> None:
    """A pull that ended, or a range that arrived by another request, is not requested again."""
    store = FakeStore(TransientError("HTTP 500"))
    with pytest.raises(TransferError, match="HTTP 500 after 1 attempts"):
        fetch_block(store, BLOCK, lambda pause: False)
    assert not pauses


@pytest.mark.parametrize("policy", [RETRY, BUSY_RETRY], ids=["failure", "busy"])
def test_backoff_doubles_up_to_its_maximum_with_jitter(policy: RetryPolicy) -> None:
    for attempt in range(1, policy.attempts + 1):
        longest = min(policy.max_pause, policy.first_pause * 2 ** (attempt - 1))
        drawn = [policy.pause(attempt) for _ in range(50)]
        assert longest / 2 <= min(drawn) < max(drawn) <= longest


def test_busy_server_is_given_about_a_minute() -> None:
    longest = sum(
        min(BUSY_RETRY.max_pause, BUSY_RETRY.first_pause * 2**attempt)
        for attempt in range(BUSY_RETRY.attempts - 1)
    )
    assert 60 <= longest <= 90


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (FileNotFoundError("x"), LocationError, "holds no manifest.json; publish a model there"),
        (TransientError("HTTP 500"), TransferError, "cannot be read: HTTP 500; check CLIP_WEIGHTS"),
        (AccessError("denied"), AccessError, "denied"),
        (b" " * (4 * 2**20 + 1), ManifestError, "is too large to be a manifest"),
        (b"{}", ManifestError, "is not a manifest of this service"),
    ],
    ids=["missing", "server error", "access denied", "too large", "malformed"],
)
def test_manifest_error_names_the_location(
    monkeypatch: pytest.MonkeyPatch,
    result: bytes | Exception,
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.setattr(fetch, "with_credentials", lambda store: None)
    with pytest.raises(error, match=message):
        fetch_manifest(FakeStore(result), always)


def test_manifest_of_a_private_bucket_is_read_with_credentials(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The store with credentials is returned too, for the blocks."""
    signed = FakeStore(b"{}")
    monkeypatch.setattr(fetch, "with_credentials", lambda store: signed)
    monkeypatch.setattr(fetch.Manifest, "parse", lambda data, location: data)
    public = FakeStore(AccessError("denied"))
    assert fetch_manifest(public, always) == (signed, b"{}")
    assert len(public.requests) == len(signed.requests) == 1


def test_credentials_are_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    signed = FakeStore(AccessError("denied again"))
    monkeypatch.setattr(fetch, "with_credentials", lambda store: signed)
    with pytest.raises(AccessError, match="denied again"):
        fetch_manifest(FakeStore(AccessError("denied")), always)
    assert len(signed.requests) == 1


def test_wrong_checksum_is_detected() -> None:
    assert fetch.is_intact(BLOCK, memoryview(DATA))
    assert not fetch.is_intact(BLOCK, memoryview(b"published bytez"))
