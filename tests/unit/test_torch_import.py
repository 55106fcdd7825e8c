"""Preloading of torch's libraries where there are none; tests/service/test_torch_import.py has the
rest."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from clip_embed.startup.torch_import import load_libraries


def test_libraries_of_macos_are_left_to_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is raised if a library has another name, or is missing."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libtorch.dylib").touch()
    torch = ModuleSpec("torch", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: torch)
    load_libraries()


def test_missing_torch_is_left_to_its_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    load_libraries()
