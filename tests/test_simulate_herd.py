"""The herd's arithmetic: what must come out whatever is assumed about Cloud Storage."""

from __future__ import annotations

import numpy as np
import pytest

from simulate_herd import MODEL_BYTES, Herd, requests_per_replica, simulate


def test_one_replica_is_bound_by_its_line() -> None:
    """857 MB over 10 Gbit/s take 0.7 s, and what requests wait; no request is refused."""
    outcome = simulate(Herd(replicas=1, stream=1e9))
    assert 0.68 < outcome.seconds[0] < 1.3
    assert outcome.requests == requests_per_replica(16)
    assert outcome.refused == 0


def test_a_herd_is_bound_by_the_region() -> None:
    """300 replicas move 257 GB through 25 GB/s: 10.3 s for all, every byte once."""
    outcome = simulate(Herd(replicas=300, reads=None))
    assert outcome.seconds.max() == pytest.approx(300 * MODEL_BYTES / 25e9, rel=0.1)
    assert outcome.bytes_sent == pytest.approx(300 * MODEL_BYTES, rel=0.05)


def test_too_little_patience_loses_replicas_that_spreading_saves() -> None:
    """Against a hard limit of requests a herd gives up; started over a minute nobody does."""
    at_once = simulate(Herd(replicas=300, reads=1000.0))
    spread = simulate(Herd(replicas=300, reads=1000.0, spread=60.0))
    assert np.isinf(at_once.seconds).any()
    assert np.isfinite(spread.seconds).all()
