"""Temporary files that Cog forgets are removed, and nothing else is."""

from __future__ import annotations

import os
import tempfile
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


def test_only_old_ones_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old ones go, what is left of a download that failed too; younger ones may be waiting."""
    old = make(tmp_path / "tmpabcd0123file.bin", OLD_SECONDS + 60)
    failed = make(tmp_path / "tmpijkl8901cat.jpg", OLD_SECONDS + 60)
    young = make(tmp_path / "tmpefgh4567file.bin", OLD_SECONDS - 60)
    held = Leftovers(tmp_path)
    held.discard(tmp_path / "absent")
    assert old.exists()  # not yet time
    monkeypatch.setattr(leftovers, "SWEEP_SECONDS", 0.0)
    held.discard(tmp_path / "absent")
    assert [old.exists(), failed.exists(), young.exists()] == [False, False, True]


def test_the_directory_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary files are made where nobody else's are: what others made is never swept."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    others = make(tmp_path / "tmpabcd0123file.bin", OLD_SECONDS + 60)
    with leftovers.own_directory() as own, tempfile.NamedTemporaryFile(suffix="cat.jpg") as made:
        assert Path(made.name).parent == Path(own) == Path(tempfile.gettempdir())
        assert Path(own).parent == tmp_path
        Leftovers(tempfile.gettempdir()).sweep()
        assert others.exists()
