"""weights.py: requests in flight, and priority; tests/service/pull has the rest."""

from __future__ import annotations

import os
import sys
from pathlib import Path

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


@pytest.mark.parametrize(("system", "increments"), [("linux", [weights.NICENESS]), ("darwin", [])])
def test_only_on_linux_the_priority_of_downloads_is_lowered(
    system: str, increments: list[int], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere all threads of a process have one priority."""
    given: list[int] = []
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(os, "nice", given.append)
    with weights.pull(str(tiny_model)) as pull:
        pull.wait_complete()
    assert given == increments
