"""Fixtures of both lanes, and the tables printed at the end of a session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.helpers.paths import TINY_MODEL
from tests.helpers.result_tables import TABLES

# scripts/test --quick selects the profile "quick".
hypothesis.settings.register_profile("full", max_examples=300, deadline=None)
hypothesis.settings.register_profile("quick", max_examples=30, deadline=None)
hypothesis.settings.load_profile("full")


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """Return a directory with a published tiny CLIP with random weights. Do not write there."""
    return TINY_MODEL


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send the tables of a worker of pytest-xdist to the main process."""
    workeroutput = getattr(session.config, "workeroutput", None)
    if workeroutput is not None:
        workeroutput["tables"] = [rows for rows, _ in TABLES.values()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Receive the tables of a worker."""
    received = getattr(node, "workeroutput", {}).get("tables", [])
    for (rows, _), worker_rows in zip(TABLES.values(), received, strict=False):
        rows.extend(worker_rows)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the tables that tests have filled."""
    for heading, (rows, line) in TABLES.items():
        if rows:
            terminalreporter.section(heading)
            for row in rows:
                terminalreporter.write_line(line.format(*row))
