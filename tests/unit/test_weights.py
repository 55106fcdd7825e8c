"""weights.py: how many requests a pull keeps in flight; tests/service/pull has the rest."""

from __future__ import annotations

import pytest

import weights


@pytest.mark.parametrize(
    ("streams", "blocks", "balanced"),
    [
        (16, 107, 18),  # ViT-L/14: 6 rounds instead of 7
        (8, 107, 9),
        (16, 128, 16),
        (16, 5, 5),
        (16, 17, 17),
        (16, 31, 20),  # never more than a quarter above the limit
        (4, 0, 0),
    ],
)
def test_balanced_streams_fills_the_last_round_of_requests(
    streams: int, blocks: int, balanced: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "STREAMS", streams)
    assert weights.balanced_streams(blocks) == balanced
