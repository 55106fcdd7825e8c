"""Test the tables and links of README.md and docs/ against the code and the files."""

from __future__ import annotations

import re

from clip_embed.settings import SETTINGS
from tests.helpers.paths import ROOT


def table(heading: str) -> list[list[str]]:
    """Return the cells of the first table below `heading`, without its head."""
    section = (ROOT / "README.md").read_text().split(f"\n## {heading}\n", 1)[1]
    lines = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert lines is not None
    rows = [line.strip("|").split("|") for line in lines.group().splitlines()]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_settings_table_lists_every_setting_with_its_default() -> None:
    """Each row holds the name, the default and the meaning of a variable; "–" is no default."""
    rows = {
        name.strip("`"): default.replace("`", "").strip("–")
        for name, default, _ in table("Settings")
    }
    assert rows == {setting.name: setting.default for setting in SETTINGS}


def test_architecture_lists_every_file() -> None:
    """Every module and command has a row, and every row names a file that exists."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (`[^|]+`) \|", text, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert [name for name in named if not (ROOT / name).exists()] == []
    modules = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "clip_embed").rglob("*.py")
        if path.name != "__init__.py"
    }
    commands = {
        str(path.relative_to(ROOT)) + ("/" if path.is_dir() else "")
        for path in (ROOT / "scripts").iterdir()
        if path.name not in ("__init__.py", "__pycache__")
    }
    assert sorted((modules | commands) - named) == []


def test_documents_link_to_files_that_exist() -> None:
    """Relative links of the documents at the top and in docs/."""
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", document.read_text())
        missing = [link for link in links if not (document.parent / link).exists()]
        assert missing == [], document.name


def test_readme_is_short() -> None:
    """Details belong in docs/."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
