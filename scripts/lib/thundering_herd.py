"""Simulate replicas that read the same weights at once: scripts/simulate_thundering_herd.py."""

from __future__ import annotations

import collections
from dataclasses import dataclass

import numpy as np

from clip_embed.checkpoint.fetch import BUSY_RETRY
from clip_embed.checkpoint.manifest import BLOCK_SIZE

# Files that a pull of ViT-L/14 reads, in bytes, as published by publish_weights.py.
MANIFEST_BYTES = 2_842
SMALL_FILE_BYTES = (485, 1_681_289)  # open_clip_config.json, tokenizer.json
SHARD_BYTES = (264_952_786, 260_335_760, 254_101_480, 75_894_040)
# One request per block. Blocks differ in size; the simulation gives all of them the mean size.
BLOCKS = sum(-(-size // BLOCK_SIZE) for size in SMALL_FILE_BYTES + SHARD_BYTES)
BLOCK_BYTES = sum(SMALL_FILE_BYTES + SHARD_BYTES) / BLOCKS
PULL_BYTES = MANIFEST_BYTES + BLOCKS * BLOCK_BYTES
REQUESTS_PER_PULL = 1 + BLOCKS

GIGABIT = 1e9 / 8  # bytes
# Prices of Cloud Storage ("Pricing", Standard storage in one region), USD, read in September 2026.
READ_PRICE = 0.0004 / 1000  # per request
INTERNET_PRICE = 0.12 / 2**30  # per byte of a month's first 10 TiB; free within a region


@dataclass(frozen=True)
class Scenario:
    """What is simulated. Bandwidths are in bytes per second.

    replicas: they start evenly spread over `spread` seconds. streams, attempts: of each replica's
    pull. request_limit: requests per second that the bucket answers, None for no limit. latency:
    seconds from a request to its first byte.
    """

    replicas: int
    spread: float = 0.0
    streams: int = 18  # weights.balanced_streams with four cores or more
    attempts: int = BUSY_RETRY.attempts
    replica_bandwidth: float = 10 * GIGABIT
    stream_bandwidth: float = 100e6
    region_bandwidth: float = 200 * GIGABIT
    request_limit: float | None = 5000.0
    latency: float = 0.03


@dataclass(frozen=True)
class Outcome:
    """seconds: of each replica's pull, infinite if it gave up. peak_requests: in one second."""

    seconds: np.ndarray
    requests: int
    refused: int
    peak_requests: int
    bytes_sent: float


def simulate(scenario: Scenario, seed: int = 0) -> Outcome:
    """Simulate until each replica has finished or given up."""
    return _Simulation(scenario, seed).run()


class _Simulation:
    """State of all streams. Arrays have the shape [R] (replicas) or [R, S] (streams)."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario = scenario
        self.random = np.random.default_rng(seed)
        replicas, shape = scenario.replicas, (scenario.replicas, scenario.streams)
        self.started = np.linspace(0.0, scenario.spread, replicas)
        self.seconds = np.full(replicas, np.nan)  # NaN while the pull runs
        self.manifest_read = np.zeros(replicas, dtype=bool)
        self.queue = np.ones(replicas, dtype=np.int64)  # blocks that no stream has taken yet
        self.has_block = np.zeros(shape, dtype=bool)  # a block, or the manifest
        self.in_flight = np.zeros(shape, dtype=bool)
        self.refusals = np.zeros(shape, dtype=np.int64)  # of the stream's block
        self.bytes_left = np.zeros(shape)  # of the request in flight
        # When a stream may send its request or, in flight, when the first byte arrives.
        self.ready_at = np.repeat(self.started[:, None], scenario.streams, axis=1)
        self.requests_in_second: collections.Counter[int] = collections.Counter()
        self.refused = 0
        self.bytes_sent = 0.0
        self.now = 0.0
        self.tokens = scenario.request_limit or 0.0  # requests that the bucket would answer now
        # A few thousand steps per run, so that its seconds are exact to a tenth.
        ideal = scenario.spread + max(
            replicas * PULL_BYTES / scenario.region_bandwidth,
            PULL_BYTES / scenario.replica_bandwidth,
        )
        self.step = min(max(ideal / 4000, 0.005), 0.05)  # seconds

    def run(self) -> Outcome:
        while np.isnan(self.seconds).any():
            self._take_blocks()
            self._send_requests()
            self._transfer()
            self.now += self.step
            self._finish_pulls()
        return Outcome(
            seconds=self.seconds,
            requests=self.requests_in_second.total(),
            refused=self.refused,
            peak_requests=max(self.requests_in_second.values()),
            bytes_sent=self.bytes_sent,
        )

    def _take_blocks(self) -> None:
        """Give blocks of the queue to idle streams. A stream keeps its block until it arrives."""
        idle = ~self.has_block & (self.ready_at <= self.now) & np.isnan(self.seconds)[:, None]
        takes = idle & (np.cumsum(idle, axis=1) <= self.queue[:, None])
        self.has_block |= takes
        self.queue -= takes.sum(axis=1)

    def _send_requests(self) -> None:
        running = np.isnan(self.seconds)[:, None]
        sent = running & self.has_block & ~self.in_flight & (self.ready_at <= self.now)
        count = int(sent.sum())
        self.requests_in_second[int(self.now)] += count
        answered = self._answer(sent, count)
        refused = sent & ~answered
        self.refused += int(refused.sum())
        self.refusals[refused] += 1
        pauses = BUSY_RETRY.first_pause * 2.0 ** (self.refusals[refused] - 1)
        jitter = self.random.uniform(0.5, 1.0, len(pauses))
        self.ready_at[refused] = self.now + np.minimum(pauses, BUSY_RETRY.max_pause) * jitter
        gave_up = (self.refusals >= self.scenario.attempts).any(axis=1) & running[:, 0]
        self.seconds[gave_up] = np.inf
        self.in_flight[gave_up] = False
        self.in_flight |= answered
        self.refusals[answered] = 0
        self.ready_at[answered] = self.now + self.scenario.latency
        size = np.where(self.manifest_read, BLOCK_BYTES, MANIFEST_BYTES)[:, None]
        self.bytes_left = np.where(answered, size, self.bytes_left)

    def _answer(self, sent: np.ndarray, count: int) -> np.ndarray:
        """Return which of the requests `sent` the bucket answers: a random choice at its limit."""
        limit = self.scenario.request_limit
        if limit is None:
            return sent
        self.tokens = min(self.tokens + limit * self.step, limit)  # a burst of one second at most
        if count > self.tokens:
            accepted = int(self.tokens)
            order = np.where(sent, self.random.random(sent.shape), 2.0)
            sent = sent & (order < np.partition(order.ravel(), accepted)[accepted])
        self.tokens -= int(sent.sum())
        return sent

    def _transfer(self) -> None:
        """Transfer one step's bytes, within the limits of streams, replicas and the region."""
        running = np.isnan(self.seconds)[:, None]
        active = self.in_flight & (self.ready_at <= self.now + self.step) & running
        streams = np.maximum(active.sum(axis=1), 1)
        fair_share = np.minimum(
            self.scenario.stream_bandwidth, self.scenario.replica_bandwidth / streams
        )
        rate = np.where(active, fair_share[:, None], 0.0)
        total = rate.sum()
        if total > self.scenario.region_bandwidth:
            rate *= self.scenario.region_bandwidth / total
        self.bytes_left -= rate * self.step
        self.bytes_sent += float(rate.sum()) * self.step
        arrived = active & (self.bytes_left <= 0)
        self.in_flight[arrived] = False
        self.has_block[arrived] = False

    def _finish_pulls(self) -> None:
        idle = np.isnan(self.seconds) & (self.queue == 0) & ~self.has_block.any(axis=1)
        finished = idle & self.manifest_read
        self.seconds[finished] = self.now - self.started[finished]
        read_manifest = idle & ~self.manifest_read
        self.manifest_read |= read_manifest
        self.queue[read_manifest] = BLOCKS


HEADER = (
    "| replicas | started within | streams | p50 s | p99 s | requests | most in a second | refused"
    " | gave up | egress | price of reads | price from outside Google |\n" + "|---" * 12 + "|"
)


def table_row(scenario: Scenario) -> str:
    """Simulate `scenario` and return one line of a Markdown table."""
    outcome = simulate(scenario)
    seconds = outcome.seconds[np.isfinite(outcome.seconds)]
    p50, p99 = np.percentile(seconds, [50, 99]) if len(seconds) else (np.nan, np.nan)
    egress = scenario.replicas * PULL_BYTES
    return (
        f"| {scenario.replicas:,} | {scenario.spread:g} s | {scenario.streams} | {p50:.1f} |"
        f" {p99:.1f} | {outcome.requests:,} | {outcome.peak_requests:,} | {outcome.refused:,} |"
        f" {scenario.replicas - len(seconds):,} | {egress / 1e12:.3f} TB |"
        f" ${outcome.requests * READ_PRICE:.2f} | ${egress * INTERNET_PRICE:,.0f} |"
    )
