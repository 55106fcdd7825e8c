"""Which module may import which: the rules of clip_embed/__init__.py, checked on the source."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

# What a module or package may import of the project, beside itself.
LEAVES = {"clip_embed.errors", "clip_embed.settings"}
ALLOWED: dict[str, set[str]] = {
    "predict": {
        "weights",
        "clip_embed.service",
        "clip_embed.cog_workarounds",
        "clip_embed.startup",
        *LEAVES,
    },
    "weights": {"clip_embed.checkpoint", "clip_embed.startup", "clip_embed.errors"},
    "clip_embed": set(),
    "clip_embed.errors": set(),
    "clip_embed.settings": {"clip_embed.errors"},
    "clip_embed.batching": set(),
    "clip_embed.metrics": {"clip_embed.errors"},
    "clip_embed.startup": set(),
    "clip_embed.cog_workarounds": {"clip_embed.errors"},
    "clip_embed.checkpoint": LEAVES,
    "clip_embed.inputs": LEAVES,
    "clip_embed.model": {"clip_embed.inputs", *LEAVES},
    "clip_embed.embedder": {"clip_embed.model", "clip_embed.inputs", *LEAVES},
    "clip_embed.service": {
        "clip_embed.embedder",
        "clip_embed.batching",
        "clip_embed.metrics",
        "clip_embed.checkpoint",
        "clip_embed.model",
        "clip_embed.inputs",
        "clip_embed.startup",
        *LEAVES,
    },
}
FILES = [ROOT / "predict.py", ROOT / "weights.py", *sorted((ROOT / "clip_embed").rglob("*.py"))]


def room(module: str) -> str:
    """Return the key of ALLOWED that `module` belongs to: itself, or its package."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "clip_embed" else parts[0]


@functools.cache
def imported_modules(path: Path) -> set[str]:
    """Return the full names of everything that a file imports, at the top or in a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    own = room(module)
    rooms = {
        room(name)
        for name in imported_modules(path)
        if name.split(".")[0] in ("clip_embed", "weights", "predict")
    }
    assert rooms - {own} <= ALLOWED[own]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_cog_is_imported_at_its_boundary_only(path: Path) -> None:
    imports_cog = any(name.split(".")[0] in ("cog", "coglet") for name in imported_modules(path))
    at_boundary = path.name == "predict.py" or "cog_workarounds" in path.parts
    assert at_boundary or not imports_cog


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_references_are_not_imported_by_the_service(path: Path) -> None:
    """Importing open_clip or transformers takes 5 s of a start."""
    references = ("open_clip", "transformers", "torchvision", "google.cloud")
    assert not [name for name in imported_modules(path) if name.startswith(references)]
