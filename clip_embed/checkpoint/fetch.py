"""Fetch one published object, or one verified block of it, with retries.

Decides how often, and after which pause, a TransientError is retried; the store decides which
errors are transient (stores.py). obstore's own retries are off, so that a damaged block is fetched
again alone and a pull that ends stops at once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import crc32c

from clip_embed.checkpoint.download_queue import BlockRange
from clip_embed.checkpoint.manifest import (
    MANIFEST_MAX_BYTES,
    MANIFEST_NAME,
    Manifest,
    encode_checksum,
)
from clip_embed.checkpoint.stores import Store, with_credentials
from clip_embed.errors import (
    AccessError,
    CorruptError,
    LocationError,
    ManifestError,
    TransferError,
    TransientError,
)


@dataclass(frozen=True)
class RetryPolicy:
    """attempts: of a request, the first included. first_pause, max_pause: seconds."""

    attempts: int
    first_pause: float
    max_pause: float

    def pause(self, attempt: int) -> float:
        """Return the seconds to wait after `attempt`: exponential backoff, with jitter of a half,
        so that many replicas do not come back at once. (obstore does not report Retry-After.)"""
        longest = min(self.max_pause, self.first_pause * 2.0 ** (attempt - 1))
        return longest * random.uniform(0.5, 1.0)


RETRY = RetryPolicy(attempts=8, first_pause=0.05, max_pause=2.0)
"""After a timeout, a reset connection, a wrong checksum, or an HTTP status that may not repeat."""

BUSY_RETRY = RetryPolicy(attempts=24, first_pause=0.25, max_pause=4.0)
"""After HTTP 429 or 503: about a minute. By then a busy bucket has served a thousand replicas that
started at once (scripts/simulate_thundering_herd.py)."""

AllowRetry = Callable[[float], bool]
"""Given the seconds of the pause before the next attempt: whether to make it."""


class _ChecksumMismatch(TransientError):
    """The bytes are not the published ones."""


def fetch_block(store: Store, block: BlockRange, allow_retry: AllowRetry) -> memoryview:
    """Return the verified bytes of `block`.

    Raises TransferError, CorruptError (wrong checksums in every attempt) or AccessError.
    """
    where = f"{store.location}/{block.file.stored_as}"

    def attempt() -> memoryview:
        data = store.read(block.file.stored_as, block.start, block.end)
        if len(data) != block.size:
            raise TransientError(f"{len(data)} bytes came where {block.size} were asked for")
        if not is_intact(block, data):
            raise _ChecksumMismatch(f"the checksum of block {block.index} is wrong")
        return data

    try:
        return _retry(attempt, allow_retry)
    except FileNotFoundError as error:
        raise TransferError(
            f"{where} no longer exists, though the manifest lists it; the model was republished or"
            " removed during the pull: start again, or publish it again"
        ) from error
    except _ChecksumMismatch as error:
        raise CorruptError(
            f"{where}: {error} after {error.attempts} attempts; the published bytes are damaged, or"
            " the model was republished during the pull: start again, or publish it again"
        ) from error
    except TransientError as error:
        raise TransferError(
            f"{where}: {error} after {error.attempts} attempts; check the network"
        ) from error


def fetch_manifest(store: Store, allow_retry: AllowRetry) -> tuple[Store, Manifest]:
    """Return the manifest, and the store that may read it: with credentials if it is private.

    Raises LocationError, AccessError, TransferError, ManifestError.
    """
    where = f"{store.location}/{MANIFEST_NAME}"
    try:
        try:
            data = _retry(lambda: store.read(MANIFEST_NAME), allow_retry)
        except AccessError:
            signed = with_credentials(store)
            if signed is None:
                raise
            store = signed
            data = _retry(lambda: signed.read(MANIFEST_NAME), allow_retry)
    except FileNotFoundError as error:
        raise LocationError(
            f"{store.location} holds no {MANIFEST_NAME}; publish a model there with"
            " scripts/publish_weights.py, or correct CLIP_WEIGHTS"
        ) from error
    except TransientError as error:
        raise TransferError(
            f"{where} cannot be read: {error}; check CLIP_WEIGHTS and the network"
        ) from error
    if len(data) > MANIFEST_MAX_BYTES:
        raise ManifestError(f"{where} is too large to be a manifest")
    return store, Manifest.parse(bytes(data), store.location)


def is_intact(block: BlockRange, data: memoryview) -> bool:
    """Return whether `data` has the published checksum of `block`."""
    return encode_checksum(crc32c.crc32c(data)) == block.file.blocks[block.index]


def _retry(attempt: Callable[[], memoryview], allow_retry: AllowRetry) -> memoryview:
    """Call `attempt` until it succeeds.

    Raises the last TransientError, with its `attempts` set, once the attempts are used up or
    `allow_retry` returns false; any other exception at once.
    """
    number = 0
    while True:
        number += 1
        try:
            return attempt()
        except TransientError as error:
            policy = BUSY_RETRY if error.busy else RETRY
            pause = policy.pause(number)
            if number >= policy.attempts or not allow_retry(pause):
                error.attempts = number
                raise
        time.sleep(pause)
