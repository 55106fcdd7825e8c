"""Test what docs/model_page.md and docs/replicate.md state, apart from their examples.

tests/service/test_examples.py runs the examples.
"""

from __future__ import annotations

import re

import pytest

from clip_embed.settings import SETTINGS
from tests.helpers.paths import ROOT

PAGE = (ROOT / "docs" / "model_page.md").read_text()
FIELDS, README = PAGE.split("---\n", 2)[1:]
REPLICATE = (ROOT / "docs" / "replicate.md").read_text()


def test_model_page_begins_with_the_fields_of_a_model() -> None:
    fields = dict(line.split(": ", 1) for line in FIELDS.splitlines())
    assert list(fields) == ["name", "description", "github_url", "paper_url", "license_url"]
    assert fields["name"] == "clip-embed"
    assert fields["license_url"] == f"{fields['github_url']}/blob/main/LICENSE"


def test_model_page_links_to_files_that_exist() -> None:
    """On Replicate a relative link would lead nowhere."""
    links = re.findall(r"\]\(([^)]+)\)", README) + re.findall(r": (https://.*)", FIELDS)
    assert all(link.startswith("https://") for link in links)
    files = [
        match[1]
        for link in links
        if (match := re.match(r"https://github\.com/you/clip-embed/blob/main/([^#]+)", link))
    ]
    assert {"docs/migration.md", "docs/benchmarks.md", "LICENSE"} <= set(files)
    assert [name for name in files if not (ROOT / name).is_file()] == []


def test_model_page_states_the_limits_of_the_settings() -> None:
    defaults = {setting.name: setting.default for setting in SETTINGS}
    pixels = int(defaults["CLIP_MAX_IMAGE_PIXELS"].replace(",", ""))
    size = int(defaults["CLIP_MAX_IMAGE_BYTES"].replace(",", ""))
    assert f"at most {pixels // 10**6} million pixels and {size // 10**6} MB" in README


def table(heading: str) -> list[list[str]]:
    """Return the cells of the table of docs/replicate.md whose head contains `heading`."""
    [rows] = re.findall(rf"^\|[^|]*{heading}.*\n(?:\|.*\n)+", REPLICATE, re.MULTILINE)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.splitlines()]


def test_costs_are_the_products_of_their_assumptions() -> None:
    """1,000 × price per second × seconds, and the example of seconds online."""
    prices = {}
    for name, price, hourly in table("hardware")[2:]:
        prices[name.removeprefix("NVIDIA ")] = float(price)
        assert float(hourly) == pytest.approx(3600 * float(price))
    head, _, *rows = table("USD per 1,000 predictions")
    seconds = [float(cell.split()[0]) for cell in head[1:]]
    for name, *costs in rows:
        wanted = [1000 * prices[name] * each for each in seconds]
        assert [float(cost) for cost in costs] == pytest.approx(wanted, abs=5.1e-5)
    formula = r"\((\d+) \+ 1,000 × ([\d.]+) \+ (\d+)\) s × ([\d.]+) USD/s = ([\d.]+) USD on a T4"
    [numbers] = re.findall(formula, REPLICATE)
    setup, each, idle, per_second, total = map(float, numbers)
    assert per_second == prices["T4"]
    assert total == pytest.approx((setup + 1000 * each + idle) * per_second, abs=5.1e-4)
