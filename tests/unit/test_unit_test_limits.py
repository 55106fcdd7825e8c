"""The unit tests stay quick: conftest.py rejects whatever would slow them down."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def test_a_unit_test_cannot_start_a_process() -> None:
    with pytest.raises(pytest.fail.Exception, match="starts a process"):
        subprocess.run([sys.executable, "-c", ""])
    with pytest.raises(pytest.fail.Exception, match="starts a process"):
        os.fork()


def test_a_unit_test_cannot_import_a_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "open_clip", raising=False)
    with pytest.raises(pytest.fail.Exception, match="imports open_clip"):
        import open_clip  # noqa: F401


@pytest.mark.parametrize("name", ["server", "emulator"])
def test_a_unit_test_has_no_server_or_emulator(name: str, request: pytest.FixtureRequest) -> None:
    with pytest.raises(pytest.FixtureLookupError):
        request.getfixturevalue(name)
