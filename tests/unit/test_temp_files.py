"""Removal of the temporary files that Cog leaves behind."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

from clip_embed.cog_workarounds import temp_files
from clip_embed.cog_workarounds.temp_files import OLD_SECONDS, TempFiles


def make_file(path: Path, age: float = 0.0) -> Path:
    """Write a file that was last modified `age` seconds ago."""
    path.write_bytes(b"x")
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def test_discard_removes_a_file(tmp_path: Path) -> None:
    """A file of any name is removed at once; a second call is no error."""
    path = make_file(tmp_path / "photo.jpg")
    files = TempFiles(tmp_path)
    files.discard(path)
    files.discard(path)
    assert not path.exists()


def test_discard_keeps_files_of_other_directories(tmp_path: Path) -> None:
    """A file that a Python caller passes belongs to the caller."""
    (tmp_path / "tmp").mkdir()
    path = make_file(tmp_path / "photo.jpg")
    TempFiles(tmp_path / "tmp").discard(path)
    assert path.exists()


def test_discard_sweeps_old_files_at_intervals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old files are removed, those of failed downloads included; recent files may be in use."""
    old = make_file(tmp_path / "tmpabcd0123file.bin", OLD_SECONDS + 60)
    failed_download = make_file(tmp_path / "tmpijkl8901cat.jpg", OLD_SECONDS + 60)
    recent = make_file(tmp_path / "tmpefgh4567file.bin", OLD_SECONDS - 60)
    files = TempFiles(tmp_path)
    files.discard(tmp_path / "absent")
    assert old.exists()  # SWEEP_SECONDS have not passed yet
    monkeypatch.setattr(temp_files, "SWEEP_SECONDS", 0.0)
    files.discard(tmp_path / "absent")
    assert [old.exists(), failed_download.exists(), recent.exists()] == [False, False, True]


def test_own_directory_separates_files_of_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Temporary files are created in a new directory, so a sweep spares all others."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    foreign = make_file(tmp_path / "tmpabcd0123file.bin", OLD_SECONDS + 60)
    with (
        temp_files.use_own_directory() as own,
        tempfile.NamedTemporaryFile(suffix="cat.jpg") as made,
    ):
        assert Path(made.name).parent == Path(own) == Path(tempfile.gettempdir())
        assert Path(own).parent == tmp_path
        TempFiles(tempfile.gettempdir()).sweep()
        assert foreign.exists()
