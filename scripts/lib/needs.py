"""Name the package that a command lacks, and the command that installs it.

Imports nothing but the standard library, like the commands themselves: each of them answers --help
without any package, and imports the rest of its code after it has read its arguments.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

VENV = Path(__file__).resolve().parents[2] / ".venv"
OWN_MODULES = ("clip_embed", "predict", "scripts", "tests", "weights")


@contextlib.contextmanager
def packages_of(group: str) -> Iterator[None]:
    """Turn the ModuleNotFoundError of a package into SystemExit with one sentence.

    group: the argument of scripts/setup that installs the packages used within.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in OWN_MODULES:
            raise
        raise SystemExit(_sentence(error.name, group)) from None


def _sentence(package: str, group: str) -> str:
    command = f"scripts/{Path(sys.argv[0]).name}"
    if Path(sys.prefix).resolve() == VENV.resolve():
        return (
            f"{command} needs the package {package}, which is not installed: run"
            f" scripts/setup {group}"
        )
    return (
        f"{command} needs the package {package}, which {sys.executable} does not have: run"
        f" scripts/setup {group}, and then .venv/bin/python {command}"
    )
