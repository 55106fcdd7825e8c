"""The cheap way out is taken only where the response stays a flat list."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from clip_embed import output
from local_server import SCHEMA


@pytest.fixture
def schema_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Cog's worker, working in this directory, would read the schema."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".cog").mkdir()
    return tmp_path / output.SCHEMA_PATH


def test_our_schema_keeps_one_message_flat(schema_file: Path) -> None:
    """openapi.json says that the output is an array without saying it at the top."""
    schema_file.write_text(SCHEMA.read_text())
    assert output.one_message_stays_flat()


def test_without_a_schema_it_stays_flat(schema_file: Path) -> None:
    """Nothing is wrapped where nothing is known of the output."""
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
    ids=["plain build", "no output", "no object", "no schema", "no JSON"],
)
def test_in_doubt_it_does_not(schema_file: Path, schema: str) -> None:
    """An array at the top of the schema, or a schema that is not understood, means a plain list."""
    schema_file.write_text(schema)
    assert not output.one_message_stays_flat()


def test_both_forms_hold_the_same_numbers() -> None:
    """A plain list is exactly a list; the one message is an array whose list is not."""
    vector = np.array([1.5, -2.25], dtype=np.float32)
    assert type(output.as_list(vector)) is list
    whole = output.as_one_message(vector)
    assert isinstance(whole, np.ndarray)
    assert whole.tolist() == output.as_list(vector) == [1.5, -2.25]
    assert isinstance(whole.tolist(), list)
    assert type(whole.tolist()) is not list
