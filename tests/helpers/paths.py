"""Name the files of this repository that several tests read."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = sorted((ROOT / "examples").glob("*.jpg"))
DEMO_MODEL = ROOT / "demo_model"
TINY = ROOT / "tests" / "data" / "tiny.json"
"""The architecture of a CLIP small enough for tests, as an open_clip model config."""

TINY_MODEL = ROOT / "tests" / "data" / "tiny_model"
"""`random:1` of that architecture, published; tests/reference/test_tiny_model.py compares them."""
