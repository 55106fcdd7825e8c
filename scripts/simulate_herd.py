"""What happens when many replicas start at once and read the same weights from one bucket.

    simulate_herd.py [REPLICAS …] [--spread SECONDS] [--no-request-limit] …

Time goes in small steps; every stream of every replica is on its own. A stream asks for a block, is
turned away (429) if the bucket has answered as many requests as it may, waits as `weights.py` does
and asks again; what is under way shares the region's bandwidth, each within its own line. The real
one is kinder than a hard limit: it slows down before it refuses, and grows within minutes.

Published by Google, "Quotas & limits" and "Request rate and access distribution guidelines":
5,000 reads a second per bucket before it scales; 200 Gbit/s from a region to Google's services, by
default and per project. Assumed: what a replica's network and one stream bring, and prices.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import weights
from clip_embed.manifest import BLOCK_SIZE
from clip_embed.ranges import TAIL_PARTS

MODEL_BYTES = 857_000_000  # ViT-L/14 as published, almost all of it float16
SMALL_FILES = 2  # beside the shards and the manifest
GIGABIT = 1e9 / 8
# Cloud Storage, "Pricing", Standard storage in one region, USD; as read in September 2026.
READS_PRICE = 0.0004 / 1000
INTERNET_PRICE = 0.12 / 2**30  # the first 10 TiB of a month; within a region nothing is paid


@dataclass(frozen=True)
class Herd:
    """replicas start evenly spread over `spread` seconds. Rates are bytes or requests a second.

    streams, attempts: of a replica's pull. line: its network; stream: one request at its best.
    region: what leaves the region for all; reads: requests the bucket answers, None for no limit.
    latency: seconds until a request's first byte.
    """

    replicas: int
    spread: float = 0.0
    streams: int = 16
    attempts: int = weights.BUSY_ATTEMPTS
    line: float = 10 * GIGABIT
    stream: float = 100e6
    region: float = 200 * GIGABIT
    reads: float | None = 5000.0
    latency: float = 0.03


@dataclass(frozen=True)
class Outcome:
    """seconds: per replica from its own start, infinite for those that gave up."""

    seconds: np.ndarray
    requests: int
    refused: int
    peak_requests: int
    bytes_sent: float


def requests_per_replica(streams: int) -> int:
    """Requests of one pull that meets no trouble: the manifest, small files, blocks, parts."""
    blocks = -(-MODEL_BYTES // BLOCK_SIZE)
    return 1 + SMALL_FILES + blocks + streams * (TAIL_PARTS - 1)


def simulate(herd: Herd, seed: int = 0) -> Outcome:
    """Step by step until every replica is done or has given up."""
    random = np.random.default_rng(seed)
    shape = (herd.replicas, herd.streams)
    # An ideal run's length over a few thousand: fine enough for its seconds.
    ideal = max(herd.replicas * MODEL_BYTES / herd.region, MODEL_BYTES / herd.line) + herd.spread
    step = min(max(ideal / 4000, 0.005), 0.05)
    begin = np.linspace(0.0, herd.spread, herd.replicas)
    wait = np.repeat(begin[:, None], herd.streams, axis=1)  # when a stream may ask
    left = np.zeros(shape)  # bytes of the request under way
    tries = np.zeros(shape, dtype=np.int64)
    size = MODEL_BYTES / requests_per_replica(herd.streams)
    whole_queue = requests_per_replica(herd.streams)
    queue = np.full(herd.replicas, whole_queue)
    first = np.ones(herd.replicas, dtype=bool)
    open_requests = np.zeros(shape, dtype=bool)
    done = np.full(herd.replicas, np.nan)
    requests = refused = 0
    tokens = herd.reads or 0.0
    per_second: dict[int, int] = {}
    now, sent = 0.0, 0.0
    while np.isnan(done).any():
        alive = np.isnan(done)[:, None]
        # Asking: as many streams of a replica as it has requests left.
        free = alive & ~open_requests & (wait <= now)
        rank = np.cumsum(free, axis=1)
        # Nothing is known before the manifest: until it is there a replica asks for nothing else.
        manifest_there = (queue < whole_queue) & ~(first & open_requests.any(axis=1))
        first &= ~manifest_there
        most = np.where(manifest_there, queue, np.where(open_requests.any(axis=1), 0, 1))
        asking = free & (rank <= most[:, None])
        count = int(asking.sum())
        requests += count
        per_second[int(now)] = per_second.get(int(now), 0) + count
        answered = asking
        if herd.reads is not None:
            tokens = min(tokens + herd.reads * step, herd.reads)  # a second's worth at most
            if count > tokens:
                lots = np.where(asking, random.random(shape), 2.0)
                kept = int(tokens)
                edge = np.partition(lots.ravel(), kept)[kept] if kept else -1.0
                answered = asking & (lots < edge)
            tokens -= int(answered.sum())
        turned_away = asking & ~answered
        refused += int(turned_away.sum())
        tries[turned_away] += 1
        shortest, longest = weights.BUSY_PAUSES
        pause = np.minimum(longest, shortest * 2.0 ** (tries - 1))
        wait = np.where(turned_away, now + pause * random.uniform(0.5, 1.0, shape), wait)
        gave_up = (tries >= herd.attempts).any(axis=1) & alive[:, 0]
        done[gave_up] = np.inf
        open_requests[gave_up] = False
        left[answered], tries[answered] = size, 0
        left[answered & first[:, None]] = 20_000  # the manifest
        wait[answered] = now + herd.latency
        open_requests |= answered
        queue -= answered.sum(axis=1)
        # Sending: each within its stream, its line, and its share of the region.
        active = open_requests & (wait <= now + step) & np.isnan(done)[:, None]
        each = np.minimum(herd.stream, herd.line / np.maximum(active.sum(axis=1), 1))[:, None]
        rate = np.where(active, each, 0.0)
        total = rate.sum()
        if total > herd.region:
            rate *= herd.region / total
        left -= rate * step
        sent += float(rate.sum()) * step
        ended = active & (left <= 0)
        open_requests[ended] = False
        now += step
        whole = np.isnan(done) & (queue <= 0) & ~open_requests.any(axis=1)
        done[whole] = now - begin[whole]
    return Outcome(done, requests, refused, max(per_second.values()), sent)


def describe(herd: Herd) -> str:
    """One line of a Markdown table."""
    result = simulate(herd)
    ok = result.seconds[np.isfinite(result.seconds)]
    p50, p99 = np.percentile(ok, [50, 99]) if len(ok) else (np.nan, np.nan)
    volume = herd.replicas * MODEL_BYTES
    return (
        f"| {herd.replicas:,} | {herd.spread:g} s | {herd.streams} | {p50:.1f} | {p99:.1f} |"
        f" {result.requests:,} | {result.peak_requests:,} | {result.refused:,} |"
        f" {herd.replicas - len(ok):,} | {volume / 1e12:.3f} TB |"
        f" ${result.requests * READS_PRICE:.2f} | ${volume * INTERNET_PRICE:,.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("replicas", nargs="*", type=int, default=[1, 10, 100, 1000])
    parser.add_argument("--spread", type=float, default=0.0, help="seconds between first and last")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--attempts", type=int, default=weights.BUSY_ATTEMPTS)
    parser.add_argument("--line", type=float, default=10.0, help="Gbit/s of one replica")
    parser.add_argument("--region", type=float, default=200.0, help="Gbit/s of the region")
    parser.add_argument("--no-request-limit", action="store_true")
    arguments = parser.parse_args()
    herd = Herd(
        replicas=1,
        spread=arguments.spread,
        streams=arguments.streams,
        attempts=arguments.attempts,
        line=arguments.line * GIGABIT,
        region=arguments.region * GIGABIT,
        reads=None if arguments.no_request_limit else Herd.reads,
    )
    print(
        "| replicas | started within | streams | p50 s | p99 s | requests | most in a second |"
        " refused | gave up | egress | reads cost | from outside Google |\n" + "|---" * 12 + "|"
    )
    for replicas in arguments.replicas:
        print(describe(replace(herd, replicas=replicas)), flush=True)


if __name__ == "__main__":
    main()
