"""Plans and stages of scripts/embed_dataset.py, without a cluster."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_embed.errors import DeviceError, DeviceLostError, EmbeddingError
from clip_embed.inputs.tokenizer import Tokens
from scripts.dataset import plan as plans
from scripts.dataset import stages
from scripts.lib.storage import open_storage

CAPTIONS = ["a red bicycle", "two dogs, one ball", 'she said "yes"', "line one\nline two", "ü ö"]


def job(source: Path, **values: Any) -> plans.EmbeddingJob:
    defaults = {"column": "text", "of_paths": False, "id_column": None, "rows_per_part": 2}
    return plans.EmbeddingJob(source=str(source), model="m", **{**defaults, **values})


def planned_rows(requested: plans.EmbeddingJob, destination: Path) -> list[list[plans.Row]]:
    """Write a plan; return the rows of each part."""
    storage = open_storage(str(destination))
    plan = plans.write_plan(requested, storage)
    assert plans.read_plan(storage) == plan
    parts = [plans.read_part(storage, number) for number in range(plan.parts)]
    rows = [list(plans.read_rows(requested, part)) for part in parts]
    assert [part.rows for part in parts] == [len(part_rows) for part_rows in rows]
    assert plan.rows == sum(part.rows for part in parts)
    return rows


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_table_is_split_between_rows(kind: str, tmp_path: Path) -> None:
    """Quotes, line breaks and non-ASCII text survive; ids are the file and the row from 0."""
    path = tmp_path / f"t.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"n": [1] * 5, "text": CAPTIONS}), path, row_group_size=3)
    elif kind == "csv":
        with open(path, "w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file).writerows([["text", "n"], *([text, 1] for text in CAPTIONS)])
    else:
        path.write_text("\n\n".join(json.dumps({"text": text}) for text in CAPTIONS))
    parts = planned_rows(job(path), tmp_path / "out")
    assert [len(part) for part in parts] == [2, 2, 1]
    flat = [row for part in parts for row in part]
    assert [row.value for row in flat] == CAPTIONS
    assert [row.id for row in flat] == [f"t.{kind}:{index}" for index in range(5)]


def test_rows_without_text_are_kept_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "a"}\n{"text": nu\n{"text": null}\n{"text": 7}\n[1]\n{}\n')
    rows = [row for part in planned_rows(job(path), tmp_path / "out") for row in part]
    assert [row.value for row in rows] == ["a", None, None, None, None, None]
    reasons = ("not JSON", "nothing", "a int", "object", "nothing")
    for row, reason in zip(rows[1:], reasons, strict=True):
        assert reason in str(row.error)


def test_table_without_the_column_is_refused(tmp_path: Path) -> None:
    """The error names the file, the column and the columns of the file."""
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"t\.csv has no column 'text'; it has a, b"):
        plans.write_plan(job(tmp_path / "t.csv"), open_storage(str(tmp_path / "out")))


def test_damaged_part_is_not_finished(tmp_path: Path) -> None:
    """A truncated part, or one that lacks a row of the plan, will be written again."""
    (tmp_path / "t.csv").write_text("text\na\nb\n")
    storage = open_storage(str(tmp_path / "out"))
    plans.write_plan(job(tmp_path / "t.csv"), storage)
    path = tmp_path / "out" / plans.part_name(0)
    for rows, counts in ((2, (2, 1)), (1, None)):
        errors = ["bad"] + [None] * (rows - 1)
        embedded = stages.EmbeddedPart(["x"] * rows, errors, np.ones((rows, 4), "f"))
        pq.write_table(stages.to_table(embedded), path)
        assert stages.check_part(0, storage.location) == counts
    path.write_bytes(path.read_bytes()[:-20])
    assert stages.check_part(0, storage.location) is None


class PickyEmbedder:
    """Fails on every batch with a text whose end-of-text is at 7."""

    config = SimpleNamespace(embed_dim=2)
    device = SimpleNamespace(type="cpu")
    embed_images = None

    def __init__(self, error: EmbeddingError) -> None:
        self._error = error

    def embed_texts(self, texts: list[Any]) -> Any:
        if any(text.eot_index == 7 for text in texts):
            raise self._error
        return np.array([[text.eot_index, 1] for text in texts], np.float32)


@pytest.fixture
def prepared() -> stages.PreparedPart:
    """Four texts, of which the second could not be prepared."""
    tokens = [Tokens(np.zeros(1, np.int64), end, False) for end in (9, 7, 3)]
    return stages.PreparedPart(list("abcd"), [None, "bad", None, None], None, tokens)


def test_row_that_fails_in_the_network_does_not_affect_its_batch(
    prepared: stages.PreparedPart,
) -> None:
    embedded = stages.embed_part(PickyEmbedder(EmbeddingError("not finite")), prepared)
    assert embedded.errors == [None, "bad", "not finite", None]
    assert embedded.vectors[:, 0].tolist() == [9, 0, 0, 3]


@pytest.mark.parametrize("error", [DeviceError("no memory"), DeviceLostError("failed")])
def test_gpu_that_fails_is_not_an_error_of_the_row(
    error: DeviceError, prepared: stages.PreparedPart
) -> None:
    """The part is not finished, so the next run embeds it again."""
    with pytest.raises(type(error)):
        stages.embed_part(PickyEmbedder(error), prepared)
