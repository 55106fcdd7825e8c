"""Collect results of tests, printed as tables at the end of the session (tests/conftest.py)."""

from __future__ import annotations

from typing import Any

FAULTS: list[tuple[str, str, str, float]] = []
"""Fault, kind of location, result and seconds, from the tests of faults."""

INPUTS: list[tuple[str, str, int, int, int, float]] = []
"""Place, kind of input, count, vectors, errors and seconds, from tests/service/test_inputs.py."""

ATTACKS: list[tuple[str, str, float, int]] = []
"""Attack, outcome, seconds and bytes left on disk, from tests/service/test_attacks.py."""

TABLES: dict[str, tuple[list[Any], str]] = {
    "faults: location, fault, seconds, result": (FAULTS, "{1:5} {0:38} {3:6.2f} s  {2}"),
    "attacks: attack, seconds, bytes left on disk, outcome": (
        ATTACKS,
        "{0:44} {2:6.2f} s {3:3} B  {1}",
    ),
    "inputs: place, kind, count, vectors, errors, seconds": (
        INPUTS,
        "{0:7} {1:22} {2:4}  {3:4} vectors  {4:4} errors  {5:6.2f} s",
    ),
}
