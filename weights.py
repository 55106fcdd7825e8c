"""A published model comes in: manifest → parallel ranges → verified blocks.

Knows nothing of CLIP, Cog or torch. `pull` returns at once and fetches on threads whose time is
spent in native code, so that a slow import in the caller's thread costs nothing extra. One request
asks for one block, or at the end for a part of one; every block is verified before anyone sees it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import crc32c

from clip_embed.cache import Cache
from clip_embed.errors import (
    AccessError,
    CorruptError,
    LocationError,
    ManifestError,
    TransferError,
    WeightsError,
)
from clip_embed.manifest import (
    BLOCK_SIZE,
    MANIFEST_MAX_BYTES,
    MANIFEST_NAME,
    SHARD_SUFFIX,
    SMALL_NAMES,
    Block,
    Manifest,
    PublishedFile,
    encode_checksum,
)
from clip_embed.ranges import Joint, Task, WorkList
from clip_embed.sources import PassingError, Source, open_source, with_credentials

log = logging.getLogger("clip_embed.weights")

STREAMS = min(16, 4 * (os.cpu_count() or 4))
"""Requests in flight. One stream from Cloud Storage brings 50–200 MB/s, so sixteen fill 10 Gbit/s;
a core keeps up with about four, and more only get in each other's way."""

ATTEMPTS = 8
"""Tries per request, the first included."""

PAUSES = 0.05, 2.0
"""Seconds between two tries: the first, which doubles, and the most."""

BUSY_PAUSES = 0.25, 4.0
"""The same where the server said that it is busy (429, 503)."""

BUSY_ATTEMPTS = 24
"""Tries while the server says that it is busy (429, 503): about a minute. By then it has answered a
thousand replicas that start at once; see scripts/simulate_herd.py."""

MANIFEST_SECONDS = 10.0
"""How long reading the manifest may take, retries included: set-up that cannot work fails soon."""

STALL_SECONDS = 60.0
"""A pull that lands no block for so long is given up."""

PULL_SECONDS = 600.0
"""A pull that takes longer is given up, though blocks still trickle in."""

NICENESS = 10
"""Added to that of the threads that pull. Where cores are few they give way to the import of torch,
which a start waits for longest: on two cores READY came a tenth sooner for it. 5 brought less, and
with 19 the pull was what a start waited for."""


@dataclass
class PullStats:
    """What a pull did so far; times are seconds since `pull` was called."""

    streams: int = 0
    manifest_seconds: float = 0.0
    pull_seconds: float = 0.0
    verify_seconds: float = 0.0
    bytes_total: int = 0
    bytes_landed: int = 0
    bytes_cached: int = 0
    retries: int = 0
    bytes_twice: int = 0

    def line(self) -> str:
        """For the log: how much came, how fast."""
        rate = self.bytes_landed / max(self.pull_seconds - self.manifest_seconds, 1e-9) / 1e6
        return (
            f"{self.bytes_landed / 1e6:,.1f} MB in {self.pull_seconds:.2f} s ({rate:,.0f} MB/s,"
            f" {self.streams} streams, {self.retries} retries,"
            f" {self.bytes_twice / 1e6:,.1f} MB asked for twice,"
            f" {self.bytes_cached / 1e6:,.1f} MB of it from the cache, verified)"
        )


def pull(location: str | None, streams: int = STREAMS, cache: str | None = None) -> Pull:
    """Start fetching the model published at `location` and return at once.

    cache: a directory in which files may be found already; see `Pull.keep`. Errors are raised
    where something is asked of the returned `Pull`.
    """
    return Pull(location, streams, Cache(cache) if cache else None)


@dataclass
class _State:
    """What the threads share, under one lock."""

    manifest: Manifest | None = None
    work: WorkList = field(default_factory=WorkList)
    landed: deque[Block] = field(default_factory=deque)
    small_files: dict[str, bytes] = field(default_factory=dict)
    blocks_left: int = 0
    error: WeightsError | None = None
    closed: bool = False


class Pull:
    """A model on its way in. Close it, or use it as a context manager."""

    def __init__(self, location: str | None, streams: int, cache: Cache | None) -> None:
        self._location = location
        self._streams = streams
        self._cache = cache
        self._source: Source | None = None
        self._state = _State()
        # Two conditions under one lock. A thread that is woken takes the interpreter's lock from an
        # import, so each block that lands wakes only who takes blocks.
        lock = threading.Lock()
        self._changed = threading.Condition(lock)
        self._landing = threading.Condition(lock)
        self._started = time.perf_counter()
        self._last_landing = self._started
        self.stats = PullStats()
        # Daemons: a process that gives up must not wait for the network.
        threading.Thread(target=self._supervise, name="pull", daemon=True).start()

    def __enter__(self) -> Pull:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Fetch nothing more and let go of what has not been taken."""
        with self._changed:
            self._state.closed = True
            if self._state.error is None:
                self._state.error = TransferError("the pull was closed")
            self._state.work.close()
            self._state.landed.clear()
            self._wake_all()

    @property
    def manifest(self) -> Manifest:
        """What is published; waits for it. Raises WeightsError."""
        with self._changed:
            self._changed.wait_for(lambda: self._state.manifest or self._state.error)
            if self._state.manifest is None:
                raise self._failure()
            return self._state.manifest

    def file(self, name: str) -> bytes:
        """One of SMALL_NAMES, whole; waits for it. Raises WeightsError, ValueError for others."""
        if name not in SMALL_NAMES:
            raise ValueError(f"{name} is not one of {', '.join(SMALL_NAMES)}")
        with self._changed:
            self._changed.wait_for(lambda: name in self._state.small_files or self._state.error)
            if name not in self._state.small_files:
                raise self._failure()
            return self._state.small_files[name]

    def wait_landed(self) -> int:
        """Wait until every block has landed, taken or not; the bytes of all shards.

        Raises WeightsError if the pull fails.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._state.error or (self._state.manifest and not self._state.blocks_left)
            )
            if self._state.error:
                raise self._failure()
        return sum(shard.size for shard in self.manifest.shards)

    def blocks(self) -> Iterator[Block]:
        """The verified blocks of the shards, each once, in the order they land; some in pieces.

        Raises WeightsError if the pull fails; what was yielded before is still right.
        """
        while True:
            with self._landing:
                self._landing.wait_for(
                    lambda: (
                        self._state.landed
                        or self._state.error
                        or (self._state.manifest and not self._state.blocks_left)
                    )
                )
                if self._state.landed:
                    block = self._state.landed.popleft()
                elif self._state.error:
                    raise self._failure()
                else:
                    return
            yield block

    def keep(self) -> threading.Thread | None:
        """Write what the cache lacks, in the background; call it when the service is ready.

        The files are fetched once more, one stream and one block at a time: holding them in memory
        until now, or writing them while the model loads, would cost what the cache is to save. If
        it fails, the log says so and the next start tries again. None if there is no cache.
        """
        if self._cache is None:
            return None
        thread = threading.Thread(target=self._keep, name="keep", daemon=True)
        thread.start()
        return thread

    def _keep(self) -> None:
        assert self._cache is not None
        assert self._source is not None
        cache, source = self._cache, self._source
        cache.sweep()
        for file in _wanted(self.manifest):
            if cache.holds(file):
                continue
            try:
                with cache.writer(file) as output:
                    for task in _tasks(file):
                        output.write(self._read(source, task, lambda: False))
            except (OSError, WeightsError) as error:
                log.warning("%s is not kept in %s: %s", file.name, cache.directory, error)
                return
            log.info("%s is kept in %s", file.name, cache.directory)

    def _wake_all(self) -> None:
        self._changed.notify_all()
        self._landing.notify_all()

    def _failure(self) -> WeightsError:
        assert self._state.error is not None
        return self._state.error

    def _fail(self, error: WeightsError) -> None:
        with self._changed:
            if self._state.error is None:
                self._state.error = error
            self._state.work.close()
            self._wake_all()

    def _seconds(self) -> float:
        return time.perf_counter() - self._started

    # The supervisor: manifest, workers, progress, stall.

    def _supervise(self) -> None:
        # Reading the manifest has a thread of its own: whatever it waits for, the deadline holds.
        threading.Thread(target=self._begin, name="pull-manifest", daemon=True).start()
        try:
            self._watch()
        except WeightsError as error:
            self._fail(error)

    def _begin(self) -> None:
        if sys.platform == "linux":  # elsewhere it would be the whole process's
            # The workers and obstore's threads are started from here, and inherit it.
            with contextlib.suppress(OSError):  # a sandbox may forbid it
                os.nice(NICENESS)
        try:
            self._source, manifest = self._read_manifest(open_source(self._location))
            self.stats.manifest_seconds = self._seconds()
            self._start_workers(self._source, manifest)
        except WeightsError as error:
            self._fail(error)
        except BaseException as error:  # even a panic of obstore's: nobody waits for ever
            self._fail(WeightsError(f"pulling {self._location} failed: {error!r}"))

    def _read_manifest(self, source: Source) -> tuple[Source, Manifest]:
        deadline = self._started + MANIFEST_SECONDS
        attempt, anonymous_refused = 0, False
        while True:
            try:
                data = source.read(MANIFEST_NAME)
                break
            except FileNotFoundError as error:
                raise LocationError(
                    f"{source.location} holds no {MANIFEST_NAME}; publish a model there with"
                    " scripts/publish_weights.py, or correct CLIP_WEIGHTS"
                ) from error
            except AccessError:
                signed = None if anonymous_refused else with_credentials(source)
                if signed is None:
                    raise
                source, anonymous_refused = signed, True
            except PassingError as error:
                attempt += 1
                pause = _backoff(attempt, error.busy)
                late = self._state.closed or time.perf_counter() + pause > deadline
                if attempt >= ATTEMPTS or late:
                    raise TransferError(
                        f"{source.location}/{MANIFEST_NAME} cannot be read: {error}; check"
                        " CLIP_WEIGHTS and the network"
                    ) from error
                self.stats.retries += 1
                time.sleep(pause)
        if len(data) > MANIFEST_MAX_BYTES:
            raise ManifestError(f"{source.location}/{MANIFEST_NAME} is too large to be a manifest")
        return source, Manifest.parse(bytes(data), source.location)

    def _start_workers(self, source: Source, manifest: Manifest) -> None:
        wanted = _wanted(manifest)
        tasks = [task for file in wanted for task in _tasks(file)]
        # First blocks first: small files are wanted soonest, and a shard's first block says what
        # its other blocks are.
        tasks.sort(key=lambda task: task.index > 0)
        workers = min(self._streams, len(tasks))
        blocks = len(tasks)
        if blocks > 2 * workers and self._cache is None:
            # Never a first block: whoever reads a shard's header wants it in one piece.
            whole = max(blocks - workers, sum(task.index == 0 for task in tasks))
            tail = [part for block in tasks[whole:] for part in Joint(block).parts]
            tasks = tasks[:whole] + tail
        self.stats.streams = workers
        self.stats.bytes_total = sum(file.size for file in wanted)
        with self._changed:
            if self._state.closed:
                return
            self._state.manifest = manifest
            self._state.work = WorkList(tasks)
            self._state.blocks_left = blocks
            self._wake_all()
        self._last_landing = time.perf_counter()
        for number in range(workers):
            name = f"pull-{number}"
            threading.Thread(target=self._work, args=(source,), name=name, daemon=True).start()

    def _watch(self) -> None:
        state = self._state
        with self._changed:
            while True:
                over = self._changed.wait_for(
                    lambda: (
                        state.error or state.closed or (state.manifest and not state.blocks_left)
                    ),
                    timeout=min(1.0, MANIFEST_SECONDS),
                )
                if over:
                    return
                self._check_time()
                if state.manifest:
                    log.info(
                        "pull: %.0f of %.0f MB after %.1f s",
                        self.stats.bytes_landed / 1e6,
                        self.stats.bytes_total / 1e6,
                        self._seconds(),
                    )

    def _check_time(self) -> None:
        """Raises TransferError when a deadline has passed, whatever the threads wait for."""
        # A location that is refused has raised its own error long before.
        where, seconds = (self._location or "").strip().rstrip("/"), self._seconds()
        if self._state.manifest is None:
            if seconds > MANIFEST_SECONDS:
                raise TransferError(
                    f"{where}/{MANIFEST_NAME} cannot be read: it did not come within"
                    f" {MANIFEST_SECONDS:.0f} s; check CLIP_WEIGHTS and the network"
                )
        elif time.perf_counter() - self._last_landing > STALL_SECONDS:
            raise TransferError(
                f"{where}: nothing arrived for {STALL_SECONDS:.0f} s, no block of the shards nor a"
                " small file; check the network"
            )
        elif seconds > PULL_SECONDS:
            raise TransferError(
                f"{where}: {self.stats.bytes_landed} of {self.stats.bytes_total} bytes came within"
                f" {PULL_SECONDS:.0f} s; check the network, or publish nearer to this service"
            )

    # The workers: fetch, verify, land.

    def _work(self, source: Source) -> None:
        work = self._state.work
        while (taken := work.take()) is not None:
            task, again = taken
            try:
                data = None if again else self._from_cache(task)
                seconds = None
                if data is None:
                    started = time.perf_counter()
                    data = self._fetch(source, task, again)
                    seconds = time.perf_counter() - started
                if data is None or not work.finish(task, seconds):
                    continue
                pieces = [data]
                if task.joint is not None:
                    parts = task.joint.add(task, data)
                    if parts is None:
                        continue
                    task = task.joint.block
                    # If the block is wrong, one of its parts was: all of it is fetched again.
                    pieces = parts if self._verify(task, *parts) else [self._read(source, task)]
            except WeightsError as error:
                if task is taken[0] and (again or work.is_done(task)):
                    continue  # the other of the two requests for it decides
                self._fail(error)
                return
            except BaseException as error:  # even a panic of obstore's: nobody waits for ever
                self._fail(TransferError(f"{source.location}/{task.file.name}: {error!r}"))
                return
            self._land(task, pieces)

    def _from_cache(self, task: Task) -> memoryview | None:
        """One block, verified, if it is kept on this machine's disk."""
        if self._cache is None:
            return None
        data = self._cache.read(task.file, task.start, task.end)
        if data is None:
            return None
        if not self._verify(task, data):
            log.warning("%s is damaged and will be fetched again", self._cache.path(task.file))
            self._cache.discard(task.file)
            return None
        with self._changed:
            self.stats.bytes_cached += len(data)
        return data

    def _fetch(self, source: Source, task: Task, again: bool) -> memoryview | None:
        """A task of the work list. If it is being asked for a second time, one try is enough: the
        first request is still under way, and None says that this one was no better."""
        if not again:
            work = self._state.work
            return self._read(source, task, lambda: work.is_done(task))
        with self._changed:
            self.stats.bytes_twice += task.size
        try:
            data = source.read(task.file.name, task.start, task.end, task.file.generation)
        except (PassingError, FileNotFoundError):
            return None
        right = len(data) == task.size and (task.joint is not None or self._verify(task, data))
        return data if right else None

    def _read(
        self, source: Source, task: Task, unwanted: Callable[[], object] | None = None
    ) -> memoryview:
        """A block, verified, or part of one, not yet verified; retried as is sensible.

        unwanted: says that the bytes are of no more use; by default, when the pull is over.
        """
        where = f"{source.location}/{task.file.name}"
        attempt = 0
        while True:
            attempt += 1
            corrupt = busy = False
            try:
                data = source.read(task.file.name, task.start, task.end, task.file.generation)
                if len(data) != task.size:
                    raise PassingError(f"{len(data)} bytes came where {task.size} were asked for")
                if task.joint is not None or self._verify(task, data):
                    return data
                corrupt = True
                problem = f"the checksum of block {task.index} is wrong"
            except FileNotFoundError as error:
                raise TransferError(
                    f"{where} is not there any more, though the manifest lists it; the model was"
                    " republished or removed while it was pulled: start again, or publish it again"
                ) from error
            except PassingError as error:
                problem, busy = str(error), error.busy
            if unwanted() if unwanted else self._state.closed or self._state.error:
                raise TransferError(f"{where}: the pull was given up")
            if attempt >= (BUSY_ATTEMPTS if busy else ATTEMPTS):
                break
            with self._changed:
                self.stats.retries += 1
            pause = _backoff(attempt, busy)
            self._state.work.postpone(task, pause)
            time.sleep(pause)
        if corrupt:
            raise CorruptError(
                f"{where}: {problem} after {attempt} attempts; the published bytes are damaged, or"
                " the model was republished while it was pulled: start again, or publish it again"
            )
        raise TransferError(f"{where}: {problem} after {attempt} attempts; check the network")

    def _verify(self, task: Task, *pieces: memoryview) -> bool:
        """Whether `pieces`, one after the other, are the block that was published."""
        started = time.perf_counter()
        checksum = 0
        for piece in pieces:
            checksum = crc32c.crc32c(piece, checksum)
        with self._changed:
            self.stats.verify_seconds += time.perf_counter() - started
        return encode_checksum(checksum) == task.file.blocks[task.index]

    def _land(self, task: Task, pieces: list[memoryview]) -> None:
        with self._changed:
            state = self._state
            if state.closed or state.error:
                return
            if task.file.name.endswith(SHARD_SUFFIX):
                offset = task.start
                for piece in pieces:
                    state.landed.append(Block(task.file, offset, piece))
                    offset += len(piece)
                self._landing.notify()
            else:
                state.small_files[task.file.name] = b"".join(pieces)
                self._changed.notify_all()
            state.blocks_left -= 1
            self.stats.bytes_landed += task.size
            self.stats.pull_seconds = self._seconds()
            self._last_landing = time.perf_counter()
            if not state.blocks_left:
                self._wake_all()


def _wanted(manifest: Manifest) -> list[PublishedFile]:
    """The files this service reads; others in the prefix are for other tools."""
    return [file for file in manifest.files if file.name in SMALL_NAMES or file in manifest.shards]


def _tasks(file: PublishedFile) -> list[Task]:
    starts = range(0, file.size, BLOCK_SIZE)
    return [
        Task(file, index, start, min(start + BLOCK_SIZE, file.size))
        for index, start in enumerate(starts)
    ]


def _backoff(attempt: int, busy: bool) -> float:
    """Seconds before the next try, of which up to a half is taken off at random, so that many
    replicas do not come back at once. Retry-After is not among what obstore tells."""
    first, most = BUSY_PAUSES if busy else PAUSES
    return float(min(most, first * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0))
