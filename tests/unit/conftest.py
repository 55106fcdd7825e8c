"""Keep the unit tests quick: they start no process, import nothing slow and load no large model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROCESSES = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"}
"""Audit events of a new process: a Cog server or an emulator is one."""

ALLOWED_PROGRAMS = {"/sbin/ldconfig"}
"""ctypes finds libraries with it, when torch is imported."""

SLOW_IMPORTS = {"open_clip", "transformers", "torchvision", "ray", "lancedb"}
"""Modules that take seconds to import. open_clip is also the only source of full-size weights."""

_enforced = False


def _check(event: str, arguments: tuple[Any, ...]) -> None:
    if not _enforced:
        return
    if event in PROCESSES and (not arguments or arguments[0] not in ALLOWED_PROGRAMS):
        pytest.fail(f"a unit test starts a process ({event}); move it to tests/service")
    if event == "import" and arguments[0].partition(".")[0] in SLOW_IMPORTS:
        pytest.fail(f"a unit test imports {arguments[0]}; move it to tests/reference")


sys.addaudithook(_check)  # cannot be removed, hence `_enforced`


def _enforce(path: Path) -> Iterator[None]:
    """Enforce the rules until the generator continues, if `path` is in this directory."""
    global _enforced
    _enforced = Path(__file__).parent in path.parents
    try:
        return (yield)
    finally:
        _enforced = False


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """Enforce the rules while a test module is imported."""
    return (yield from _enforce(collector.path))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Enforce the rules while a test and its fixtures run."""
    return (yield from _enforce(item.path))
