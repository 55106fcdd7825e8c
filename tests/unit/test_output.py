"""The two forms of a vector that Cog is given, and the choice between them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from clip_embed.cog_workarounds import output
from scripts.lib.cog_server import SCHEMA
from tests.helpers.cog_schema import plain_build_schema
from tests.helpers.paths import ROOT


@pytest.fixture
def schema_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path at which Cog's worker reads the schema from this working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".cog").mkdir()
    return tmp_path / output.SCHEMA_PATH


def test_one_message_stays_flat_with_our_schema(schema_file: Path) -> None:
    """openapi.json declares an array, but not at the top of the output's schema."""
    schema_file.write_text(SCHEMA.read_text())
    assert output.one_message_stays_flat()


def test_one_message_stays_flat_with_the_schema_of_a_plain_build(schema_file: Path) -> None:
    """Cog derives it from the annotation of `predict`."""
    schema = plain_build_schema((ROOT / "predict.py").read_text(), "0.23.1")
    schema_file.write_text(json.dumps(schema))
    assert output.one_message_stays_flat()


def test_one_message_stays_flat_without_a_schema(schema_file: Path) -> None:
    """Cog wraps nothing if the output's type is unknown."""
    assert not schema_file.exists()
    assert output.one_message_stays_flat()


@pytest.mark.parametrize(
    "schema",
    [
        json.dumps({"components": {"schemas": {"Output": {"type": "array"}}}}),
        json.dumps({"components": {"schemas": {}}}),
        json.dumps({"components": {"schemas": {"Output": []}}}),
        "[]",
        "{",
    ],
    ids=["array at the top", "no output", "output not an object", "not a schema", "not JSON"],
)
def test_one_message_is_not_used_with_an_array_or_malformed_schema(
    schema_file: Path, schema: str
) -> None:
    """An array at the top of the schema, or a malformed schema, requires a plain list."""
    schema_file.write_text(schema)
    assert not output.one_message_stays_flat()


def test_as_list_and_as_one_message_hold_the_same_numbers() -> None:
    """`as_list` returns exactly a list; the `tolist` of the one message returns a subclass."""
    vector = np.array([1.5, -2.25], dtype=np.float32)
    assert type(output.as_list(vector)) is list
    message = output.as_one_message(vector)
    assert isinstance(message, np.ndarray)
    assert message.tolist() == output.as_list(vector) == [1.5, -2.25]
    assert isinstance(message.tolist(), list)
    assert type(message.tolist()) is not list


def float32_bits(text: str) -> list[int]:
    """Return the bits that a client reads from the JSON of float32 numbers."""
    return np.array(json.loads(text), dtype=np.float32).view(np.uint32).tolist()  # type: ignore[no-any-return]


def test_dumps_keeps_every_bit_of_float32_in_nine_digits() -> None:
    """Including the smallest and largest numbers, powers of ten and both zeros."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 20_000, dtype=np.uint32)
    numbers = np.concatenate(
        [
            bits.view(np.float32),
            np.float32([0.0, -0.0, 1e-45, 3.4028235e38]),
            np.float32(10.0) ** np.arange(-38, 39, dtype=np.float32),
            rng.normal(size=768).astype(np.float16).astype(np.float32),
        ]
    )
    numbers = numbers[np.isfinite(numbers)]
    text = output.dumps(output.as_one_message(numbers).tolist())
    assert float32_bits(text) == numbers.view(np.uint32).tolist()
    assert all(type(number) is float for number in json.loads(text))
    assert max(len(re.sub(r"e.*|\D", "", each).strip("0")) for each in text.split(",")) == 9


def test_dumps_of_anything_else_is_that_of_json() -> None:
    """Cog's worker calls it for every output, and other code for anything."""
    assert output.dumps([1.1, 2, "é"]) == json.dumps([1.1, 2, "é"])
    assert output.dumps({"b": 1, "a": None}, sort_keys=True, indent=1) == (
        json.dumps({"b": 1, "a": None}, sort_keys=True, indent=1)
    )


def test_floats_are_a_list_for_other_json_encoders() -> None:
    assert json.dumps(output.as_one_message(np.float32([1.5])).tolist()) == "[1.5]"
