"""The register of workarounds names code and tests that exist."""

from __future__ import annotations

import re

import pytest

from clip_embed.cog_workarounds import REGISTER, Workaround
from tests.helpers.paths import ROOT


@pytest.mark.parametrize("entry", REGISTER, ids=lambda entry: entry.test.rpartition("::")[2])
def test_register_names_a_test_that_exists(entry: Workaround) -> None:
    path, _, name = entry.test.partition("::")
    assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE)


@pytest.mark.parametrize("entry", REGISTER, ids=lambda entry: entry.test.rpartition("::")[2])
def test_register_names_code_that_exists(entry: Workaround) -> None:
    files = re.findall(r"[\w/]+\.(?:py|yaml|json)", entry.code)
    assert files
    assert all((ROOT / file).is_file() for file in files)


def test_register_covers_every_module() -> None:
    """A workaround without an entry would never be deleted."""
    folder = ROOT / "clip_embed" / "cog_workarounds"
    code = " ".join(entry.code for entry in REGISTER)
    modules = {path.name for path in folder.glob("*.py")} - {"__init__.py"}
    assert all(f"clip_embed/cog_workarounds/{name}" in code for name in modules)


def test_register_names_the_pinned_version_of_cog() -> None:
    """After an update of Cog each entry is tried without its workaround, and updated or deleted."""
    [pinned] = re.findall(r'sdk_version: "([\d.]+)"', (ROOT / "cog.yaml").read_text())
    assert {entry.seen_in for entry in REGISTER} == {pinned}
