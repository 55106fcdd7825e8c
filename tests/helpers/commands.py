"""List the commands in scripts/, so that tests cannot forget a new one."""

from __future__ import annotations

from tests.helpers.paths import ROOT

_FILES = sorted(path for path in (ROOT / "scripts").iterdir() if path.is_file())

SHELL_COMMANDS = [path.name for path in _FILES if path.read_bytes().startswith(b"#!")]
PYTHON_COMMANDS = [
    path.name for path in _FILES if path.suffix == ".py" and "__main__" in path.read_text()
]
