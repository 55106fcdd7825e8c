"""Temporary files that Cog forgets are removed, and nothing else is."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from clip_embed import leftovers
from clip_embed.leftovers import OLD_SECONDS, Leftovers


def make(path: Path, age: float = 0.0) -> Path:
    path.write_bytes(b"x")
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def test_a_file_that_has_been_read_goes(tmp_path: Path) -> None:
    """At once, however it is named; a second time is no error."""
    path = make(tmp_path / "photo.jpg")
    held = Leftovers(tmp_path)
    held.discard(path)
    held.discard(path)
    assert not path.exists()


def test_a_file_elsewhere_stays(tmp_path: Path) -> None:
    """What a caller in Python passes is the caller's."""
    (tmp_path / "tmp").mkdir()
    path = make(tmp_path / "photo.jpg")
    Leftovers(tmp_path / "tmp").discard(path)
    assert path.exists()


def test_only_old_copies_of_cogs_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old ones of its name go; younger ones may be waiting, and others are not ours."""
    old = make(tmp_path / "tmpabcd0123file.bin", OLD_SECONDS + 60)
    young = make(tmp_path / "tmpefgh4567file.bin", OLD_SECONDS - 60)
    other = make(tmp_path / "tmpfile.bin", OLD_SECONDS + 60)
    held = Leftovers(tmp_path)
    held.discard(tmp_path / "absent")
    assert old.exists()  # not yet time
    monkeypatch.setattr(leftovers, "SWEEP_SECONDS", 0.0)
    held.discard(tmp_path / "absent")
    assert [old.exists(), young.exists(), other.exists()] == [False, True, True]
