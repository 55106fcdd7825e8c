"""Download a published model: manifest → parallel ranges → verified blocks.

`pull` returns at once and downloads in threads that spend their time in native code, so that a slow
import in the calling thread costs nothing extra. Each request asks for one block, and each block is
verified before it is handed out. Independent of CLIP, Cog and torch.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from clip_embed.checkpoint.cache import Cache
from clip_embed.checkpoint.download_queue import (
    BlockRange,
    DownloadQueue,
    Request,
    block_ranges,
)
from clip_embed.checkpoint.fetch import fetch_block, fetch_manifest, is_intact
from clip_embed.checkpoint.manifest import (
    MANIFEST_NAME,
    SHARD_SUFFIX,
    SMALL_NAMES,
    Block,
    Manifest,
    PublishedFile,
)
from clip_embed.checkpoint.stores import Store, open_store
from clip_embed.errors import SettingError, TransferError, WeightsError
from clip_embed.startup.cpu_quota import usable_cpus

log = logging.getLogger("clip_embed.weights")

STREAMS = min(16, 4 * usable_cpus())
"""Requests in flight, about (`balanced_streams`). A stream from Cloud Storage brings 50–200 MB/s,
so sixteen fill 10 Gbit/s; a core keeps up with about four, and more only compete for it."""

MANIFEST_SECONDS = 10.0
"""Timeout for the manifest, retries included: a setup that cannot succeed fails soon."""

STALL_SECONDS = 60.0
"""Timeout between two blocks."""

PULL_SECONDS = 600.0
"""Timeout for the whole pull, even if blocks still arrive."""

NICENESS = 10
"""Added to the niceness of the downloading threads, so that they yield to the import of torch, for
which a start waits longest. On two cores READY came 10% sooner; 5 helped less, and with 19 the
start had to wait for the pull."""


@dataclass
class PullStats:
    """Progress so far. Times are in seconds since `pull` was called."""

    streams: int = 0
    manifest_seconds: float = 0.0
    pull_seconds: float = 0.0
    bytes_total: int = 0
    bytes_verified: int = 0
    bytes_cached: int = 0
    bytes_hedged: int = 0
    retries: int = 0

    def summary(self) -> str:
        """Return one line for the log."""
        rate = self.bytes_verified / max(self.pull_seconds - self.manifest_seconds, 1e-9) / 1e6
        return (
            f"{self.bytes_verified / 1e6:,.1f} MB in {self.pull_seconds:.2f} s ({rate:,.0f} MB/s,"
            f" {self.streams} streams, {self.retries} retries,"
            f" {self.bytes_hedged / 1e6:,.1f} MB hedged,"
            f" {self.bytes_cached / 1e6:,.1f} MB from cache)"
        )


def balanced_streams(blocks: int) -> int:
    """Return STREAMS, or up to a quarter more, so that the last round of requests is a full one.

    The 107 blocks of ViT-L/14 take 7 rounds with 16 streams, and 6 with 18. Where each stream has a
    limit, that is 16% faster.
    """
    rounds = max(blocks // STREAMS, 1)
    return min(math.ceil(blocks / rounds), STREAMS * 5 // 4)


def pull(
    location: str | None,
    streams: int | None = None,
    cache: str | None = None,
    cache_bytes: int | None = None,
) -> Pull:
    """Start to download the model published at `location`, and return at once.

    location: gs://bucket/prefix, https://host/prefix or a directory. streams: most requests in
    flight; by default `balanced_streams`. cache: a directory that is searched for files first, and
    kept within `cache_bytes`; see `Pull.fill_cache`.

    Raises nothing: errors are raised by the methods of `Pull`.
    """
    return Pull(location, streams, Cache(cache, cache_bytes) if cache else None)


@dataclass
class _State:
    """State that the threads share, under one lock."""

    manifest: Manifest | None = None
    queue: DownloadQueue = field(default_factory=DownloadQueue)
    arrived: deque[Block] = field(default_factory=deque)
    small_files: dict[str, bytes] = field(default_factory=dict)
    blocks_left: int = 0
    error: WeightsError | None = None
    closed: bool = False

    @property
    def complete(self) -> bool:
        return self.manifest is not None and not self.blocks_left


class Pull:
    """A model that is being downloaded. Close it, or use it as a context manager."""

    def __init__(self, location: str | None, streams: int | None, cache: Cache | None) -> None:
        self._location = location
        self._streams = streams
        self._cache = cache
        self._store: Store | None = None
        self._state = _State()
        # Two conditions under one lock. A thread that is woken takes the interpreter lock from an
        # import, so each block wakes only the thread that consumes blocks.
        lock = threading.Lock()
        self._changed = threading.Condition(lock)
        self._block_arrived = threading.Condition(lock)
        self._started = time.perf_counter()
        self._last_arrival = self._started
        self.stats = PullStats()
        # Daemons: a process that exits must not wait for the network.
        threading.Thread(target=self._supervise, name="pull", daemon=True).start()

    def __enter__(self) -> Pull:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop downloading, and release the blocks that were not taken."""
        with self._changed:
            self._state.closed = True
            if self._state.error is None:
                self._state.error = TransferError("the pull was closed")
            self._state.queue.close()
            self._state.arrived.clear()
            self._wake_all()

    @property
    def manifest(self) -> Manifest:
        """The manifest; waits for it. Raises WeightsError."""
        with self._changed:
            _wait_for(self._changed, lambda: self._state.manifest or self._state.error)
            if self._state.manifest is None:
                raise self._failure()
            return self._state.manifest

    def wait_manifest(self, seconds: float) -> None:
        """Wait for the manifest, at most `seconds`.

        Raises WeightsError if the pull has failed by then.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._state.manifest or self._state.error, seconds)
            if self._state.error:
                raise self._failure()

    def file(self, name: str) -> bytes:
        """Return one of the SMALL_NAMES, whole; waits for it.

        Raises WeightsError, and ValueError for another name.
        """
        if name not in SMALL_NAMES:
            raise ValueError(f"{name} is not one of {', '.join(SMALL_NAMES)}")
        with self._changed:
            _wait_for(self._changed, lambda: name in self._state.small_files or self._state.error)
            if name not in self._state.small_files:
                raise self._failure()
            return self._state.small_files[name]

    def blocks(self) -> Iterator[Block]:
        """Yield each verified block of the shards once, in the order of arrival.

        Raises WeightsError if the pull fails; the blocks yielded before are valid.
        """
        while True:
            with self._block_arrived:
                _wait_for(
                    self._block_arrived,
                    lambda: self._state.arrived or self._state.error or self._state.complete,
                )
                if self._state.arrived:
                    block = self._state.arrived.popleft()
                elif self._state.error:
                    raise self._failure()
                else:
                    return
            yield block

    def wait_complete(self) -> int:
        """Wait until every block has arrived, and return the bytes of all shards.

        Raises WeightsError if the pull fails.
        """
        with self._changed:
            _wait_for(self._changed, lambda: self._state.error or self._state.complete)
            if self._state.error:
                raise self._failure()
        return sum(shard.size for shard in self.manifest.shards)

    def summary(self) -> str:
        """Return one line for the log: how much was downloaded, and how fast."""
        return self.stats.summary()

    def fill_cache(self) -> threading.Thread | None:
        """Download the files that the cache lacks, in a background thread; None without a cache.
        Then remove the files that were not used for longest, if there are too many.

        Call it when the service is ready. The files are downloaded once more, one block at a time:
        keeping them in memory until now, or writing them while the model loads, would cost the time
        that the cache is meant to save. A failure is logged, and the next start tries again.
        """
        if self._cache is None:
            return None
        thread = threading.Thread(
            target=self._fill_cache, args=(self._cache,), name="fill-cache", daemon=True
        )
        thread.start()
        return thread

    def _fill_cache(self, cache: Cache) -> None:
        assert self._store is not None
        cache.sweep()
        files = _needed_files(self.manifest)
        for file in files:
            if cache.holds(file):
                continue
            try:
                with cache.writer(file) as output:
                    for block in block_ranges(file):
                        output.write(fetch_block(self._store, block, lambda pause: True))
            except (OSError, WeightsError) as error:
                log.warning("%s cannot be cached in %s: %s", file.name, cache.directory, error)
                return
            log.info("%s is cached in %s", file.name, cache.directory)
        cache.evict(files)

    def _wake_all(self) -> None:
        self._changed.notify_all()
        self._block_arrived.notify_all()

    def _failure(self) -> WeightsError:
        assert self._state.error is not None
        return self._state.error

    def _fail(self, error: WeightsError) -> None:
        with self._changed:
            if self._state.error is None:
                self._state.error = error
            self._state.queue.close()
            self._wake_all()

    def _seconds(self) -> float:
        return time.perf_counter() - self._started

    def _count_retry(self) -> None:
        with self._changed:
            self.stats.retries += 1

    # --- the supervisor: manifest, workers, progress, timeouts ---

    def _supervise(self) -> None:
        # The manifest is read in a thread of its own, so that the timeout holds in any case.
        threading.Thread(target=self._begin, name="pull-manifest", daemon=True).start()
        try:
            self._watch()
        except WeightsError as error:
            self._fail(error)

    def _begin(self) -> None:
        if sys.platform == "linux":  # elsewhere niceness belongs to the whole process
            # Inherited by the workers and by obstore's threads, which are started from here.
            with contextlib.suppress(OSError):  # a sandbox may forbid it
                os.nice(NICENESS)
        try:
            store, manifest = fetch_manifest(open_store(self._location), self._allow_manifest_retry)
            self.stats.manifest_seconds = self._seconds()
            self._store = store
            self._start_workers(store, manifest)
        except WeightsError as error:
            self._fail(error)
        except SettingError as error:
            self._fail(WeightsError(str(error)))
        except BaseException as error:
            # A panic in obstore is a BaseException; record it, so that waiters do not hang, and not
            # its text, which may hold a secret.
            what = type(error).__name__
            self._fail(
                WeightsError(
                    f"pulling {self._location} failed ({what}), which is a defect; restart, and"
                    " report it if it repeats"
                )
            )

    def _allow_manifest_retry(self, pause: float) -> bool:
        if self._state.closed or self._seconds() + pause > MANIFEST_SECONDS:
            return False
        self._count_retry()
        return True

    def _start_workers(self, store: Store, manifest: Manifest) -> None:
        files = _needed_files(manifest)
        blocks = [block for file in files for block in block_ranges(file)]
        # First blocks first: small files are needed soonest, and the first block of a shard holds
        # the header that its other blocks need.
        blocks.sort(key=lambda block: block.index > 0)
        self.stats.streams = min(self._streams or balanced_streams(len(blocks)), len(blocks))
        self.stats.bytes_total = sum(file.size for file in files)
        with self._changed:
            if self._state.closed:
                return
            self._state.manifest = manifest
            self._state.queue = DownloadQueue(blocks)
            self._state.blocks_left = len(blocks)
            self._wake_all()
        self._last_arrival = time.perf_counter()
        for number in range(self.stats.streams):
            name = f"pull-{number}"
            threading.Thread(target=self._work, args=(store,), name=name, daemon=True).start()

    def _watch(self) -> None:
        """Log the progress each second, until the pull ends. Raises TransferError on a timeout."""
        state = self._state
        with self._changed:
            while not self._changed.wait_for(
                lambda: state.error or state.closed or state.complete,
                timeout=min(1.0, MANIFEST_SECONDS),
            ):
                self._check_timeouts()
                if state.manifest:
                    log.info(
                        "pull: %.0f of %.0f MB after %.1f s",
                        self.stats.bytes_verified / 1e6,
                        self.stats.bytes_total / 1e6,
                        self._seconds(),
                    )

    def _check_timeouts(self) -> None:
        where, seconds = (self._location or "").strip().rstrip("/"), self._seconds()
        if self._state.manifest is None:
            if seconds > MANIFEST_SECONDS:
                raise TransferError(
                    f"{where}/{MANIFEST_NAME} cannot be read: it did not arrive within"
                    f" {MANIFEST_SECONDS:.0f} s; check CLIP_WEIGHTS and the network"
                )
        elif time.perf_counter() - self._last_arrival > STALL_SECONDS:
            raise TransferError(
                f"{where}: no data arrived for {STALL_SECONDS:.0f} s; check the network"
            )
        elif seconds > PULL_SECONDS:
            raise TransferError(
                f"{where}: {self.stats.bytes_verified} of {self.stats.bytes_total} bytes arrived"
                f" within {PULL_SECONDS:.0f} s; check the network, or publish the model nearer to"
                " this service"
            )

    # --- the workers: take a range, fetch it, hand it back ---

    def _work(self, store: Store) -> None:
        queue = self._state.queue
        while (request := queue.take()) is not None:
            try:
                data = self._from_cache(request)
                from_cache = data is not None
                if data is None:
                    data = self._fetch(store, request)
            except WeightsError as error:
                if queue.abandon(request):
                    self._fail(error)
                continue
            except BaseException as error:
                name = request.block.file.stored_as
                what = type(error).__name__
                self._fail(
                    TransferError(
                        f"{store.location}/{name} failed ({what}), which is a defect; restart, and"
                        " report it if it repeats"
                    )
                )
                return
            if queue.complete(request, from_cache):
                self._deliver(request.block, data)

    def _fetch(self, store: Store, request: Request) -> memoryview:
        if request.hedged:
            with self._changed:
                self.stats.bytes_hedged += request.block.size

        def allow_retry(pause: float) -> bool:
            # One attempt is enough for a hedged request: the first one retries.
            if request.hedged or not self._state.queue.needs(request):
                return False
            self._count_retry()
            self._state.queue.postpone(request, pause)
            return True

        return fetch_block(store, request.block, allow_retry)

    def _from_cache(self, request: Request) -> memoryview | None:
        """Return the verified bytes of a range from the cache; None if it does not have them."""
        if self._cache is None or request.hedged:
            return None
        block = request.block
        data = self._cache.read(block.file, block.start, block.end)
        if data is None:
            return None
        if not is_intact(block, data):
            log.warning("%s is damaged and is downloaded again", self._cache.path(block.file))
            self._cache.discard(block.file)
            return None
        with self._changed:
            self.stats.bytes_cached += len(data)
        return data

    def _deliver(self, block: BlockRange, data: memoryview) -> None:
        with self._changed:
            state = self._state
            if state.closed or state.error:
                return
            if block.file.name.endswith(SHARD_SUFFIX):
                state.arrived.append(Block(block.file, block.start, data))
                self._block_arrived.notify()
            else:
                state.small_files[block.file.name] = bytes(data)
                self._changed.notify_all()
            state.blocks_left -= 1
            self.stats.bytes_verified += block.size
            self.stats.pull_seconds = self._seconds()
            self._last_arrival = time.perf_counter()
            if state.complete:
                self._wake_all()


def _wait_for(condition: threading.Condition, predicate: Callable[[], object]) -> None:
    """Wait until `predicate` is true, and wake each second so that signal handlers can run.

    A signal that arrives just before a wait without timeout is handled only after the next
    notification (CPython 3.11): SIGTERM during a pull then hung 3 times in 120.
    """
    while not condition.wait_for(predicate, timeout=1.0):
        pass


def _needed_files(manifest: Manifest) -> list[PublishedFile]:
    """Return the files that the service reads; others in the prefix are for other tools."""
    return [file for file in manifest.files if file.name in SMALL_NAMES or file in manifest.shards]
