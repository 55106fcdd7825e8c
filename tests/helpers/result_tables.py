"""Collect results of tests, printed as tables at the end of the session (tests/conftest.py)."""

from __future__ import annotations

from typing import Any

FAULTS: list[tuple[str, str, str, float]] = []
"""Fault, kind of location, result and seconds, from the tests of faults."""

INPUTS: list[tuple[str, str, int, int, int, float]] = []
"""Place, kind of input, count, vectors, errors and seconds, from tests/service/test_inputs.py."""

ATTACKS: list[tuple[str, str, float, int]] = []
"""Attack, outcome, seconds and bytes left on disk, from tests/service/test_attacks.py."""

ACCOUNTS: list[tuple[str, str, float, str]] = []
"""Account, public bucket, seconds and result of a private bucket, from pull/test_credentials.py."""

SOURCES: list[tuple[str, str, int, float]] = []
"""Form of the source, what it was recognized as, floats of a vector, and the largest difference
from the vectors of its own library, from tests/service/test_publish_sources.py."""

REPUBLISHED: list[tuple[str, int, int, int, int, int]] = []
"""Location, publications, pulls, and how many pulls got the first model, the second, a mixture."""

TABLES: dict[str, tuple[list[Any], str]] = {
    "republished while pulls start: location, publications, pulls, old, new, mixed": (
        REPUBLISHED,
        "{0:9} {1:3} publications {2:3} pulls: {3:2} old, {4:2} new, {5} mixed",
    ),
    "accounts: account, public bucket, private bucket: seconds, result": (
        ACCOUNTS,
        "{0:38} {1:5} {2:5.2f} s  {3}",
    ),
    "faults: location, fault, seconds, result": (FAULTS, "{1:5} {0:38} {3:6.2f} s  {2}"),
    "attacks: attack, seconds, bytes left on disk, outcome": (
        ATTACKS,
        "{0:44} {2:6.2f} s {3:3} B  {1}",
    ),
    "inputs: place, kind, count, vectors, errors, seconds": (
        INPUTS,
        "{0:7} {1:22} {2:4}  {3:4} vectors  {4:4} errors  {5:6.2f} s",
    ),
    "sources: form, recognized as, floats, difference from its own library": (
        SOURCES,
        "{0:46} {2:4} floats  {3:.1e}  {1}",
    ),
}
