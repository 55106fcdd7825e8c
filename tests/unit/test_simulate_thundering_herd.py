"""scripts/simulate_thundering_herd.py: results that follow from bandwidths and limits alone."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.lib.thundering_herd import PULL_BYTES, REQUESTS_PER_PULL, Scenario, simulate


def test_one_replica_is_limited_by_its_bandwidth() -> None:
    """857 MB over 10 Gbit/s take 0.7 s plus latencies, with one request per block."""
    outcome = simulate(Scenario(replicas=1, stream_bandwidth=1e9))
    assert 0.68 < outcome.seconds[0] < 1.3
    assert outcome.requests == REQUESTS_PER_PULL
    assert outcome.refused == 0


def test_many_replicas_are_limited_by_the_bandwidth_of_the_region() -> None:
    """15 replicas transfer 13 GB at 2.5 GB/s in 5.1 s, each byte once."""
    outcome = simulate(Scenario(replicas=15, region_bandwidth=2.5e9, request_limit=None))
    assert outcome.seconds.max() == pytest.approx(15 * PULL_BYTES / 2.5e9, rel=0.1)
    assert outcome.bytes_sent == pytest.approx(15 * PULL_BYTES, rel=0.05)


def test_refused_requests_are_retried() -> None:
    """At 100 requests a second, 10 replicas need at least 10 s, and none gives up."""
    outcome = simulate(Scenario(replicas=10, request_limit=100.0))
    assert outcome.refused > 0
    assert np.isfinite(outcome.seconds).all()
    # The bucket answers up to one second's requests at once.
    assert outcome.seconds.max() > 10 * REQUESTS_PER_PULL / 100.0 - 1


def test_replicas_give_up_after_too_few_attempts_unless_their_starts_are_spread() -> None:
    at_once = simulate(Scenario(replicas=15, request_limit=50.0, attempts=4))
    spread = simulate(Scenario(replicas=15, request_limit=50.0, attempts=4, spread=60.0))
    assert np.isinf(at_once.seconds).any()
    assert np.isfinite(spread.seconds).all()
