"""Whole catalogues on a real Ray cluster of this machine, from and to the real emulator."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embed_dataset
from conftest import PHOTOS, ROOT
from dataset import plan as plans
from dataset import stages
from dataset.places import Folder, open_place
from local_server import CogServer

SCRIPT = str(ROOT / "scripts" / "embed_dataset.py")
CAPTIONS = ["a red bicycle", "two dogs, one ball", 'she said "yes"', "line one\nline two", "ü ö"]


def start(source: object, destination: object, *options: str, **environment: str) -> Any:
    """Run the script as a user does, with two workers that embed."""
    command = [sys.executable, SCRIPT, str(source), str(destination), *options]
    return subprocess.Popen(
        [*command, "--cores-per-embedder", "1", "--embedders", "2"],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(running: Any, code: int = 0) -> str:
    output, _ = running.communicate(timeout=240)
    assert running.returncode == code, output
    return str(output)


def read(folder: Path) -> dict[str, tuple[Any, str | None]]:
    """id → vector and error, of every part; fails if an id is there twice."""
    rows: dict[str, tuple[Any, str | None]] = {}
    for path in sorted(folder.glob("part-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            assert row["id"] not in rows
            rows[row["id"]] = row["vector"], row["error"]
    return rows


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Forty pictures, of which one is no picture and one is cut short."""
    folder = tmp_path / "pictures" / "deep"
    folder.mkdir(parents=True)
    for number in range(40):
        shutil.copyfile(PHOTOS[number % len(PHOTOS)], folder / f"{number:02}.jpg")
    (folder / "07.jpg").write_bytes(b"not a picture")
    (folder / "11.jpg").write_bytes(PHOTOS[0].read_bytes()[:2000])
    (tmp_path / "pictures" / ".hidden").write_text("not counted")
    return tmp_path / "pictures"


def test_pictures_survive_a_dead_actor_and_a_killed_run(
    pictures: Path, tmp_path: Path, tiny_model: Path
) -> None:
    """An embedder that is killed loses nothing; a run that is killed goes on where it was; bad
    pictures become rows with their error; the marker is there only at the end."""
    out = tmp_path / "out"
    options = ("--rows-per-part", "2")
    environment = {"CLIP_WEIGHTS": str(tiny_model)}
    running = start(pictures, out, *options, **environment)
    _wait(running, lambda: len(list(out.glob("part-*.parquet"))) >= 2)
    workers = [p for p in psutil.Process(running.pid).children(recursive=True) if _embeds(p)]
    assert len(workers) == 2
    # Both: whichever is at work, its part is done again by one that takes its place.
    for worker in workers:
        worker.kill()
    before = len(list(out.glob("part-*.parquet")))
    _wait(running, lambda: len(list(out.glob("part-*.parquet"))) >= before + 4)
    family = [*psutil.Process(running.pid).children(recursive=True), psutil.Process(running.pid)]
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGSTOP)
    done = {path: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    running.communicate(timeout=60)
    assert len(done) < 20
    assert not (out / "_SUCCESS").exists()

    output = finish(start(pictures, out, *options, **environment))
    assert f"20 parts, {len(done)} of them finished earlier" in output
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())
    rows = read(out)
    assert sorted(rows) == [f"deep/{number:02}.jpg" for number in range(40)]
    failed = {name: error for name, (vector, error) in rows.items() if vector is None}
    assert sorted(failed) == ["deep/07.jpg", "deep/11.jpg"]
    assert "07.jpg is not an image" in str(failed["deep/07.jpg"])
    assert json.loads((out / "_SUCCESS").read_text())["errors"] == 2
    schema = pq.read_schema(next(out.glob("part-*.parquet")))
    assert schema.field("vector").type == pa.list_(pa.float32(), 768)


def _embeds(process: psutil.Process) -> bool:
    try:
        return "MapWorker" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def _wait(running: Any, condition: Any) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        assert running.poll() is None, running.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_bucket_to_bucket_equals_the_service(
    server: CogServer, emulator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts and pictures named in tables of a bucket get the vectors the service returns."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    place = open_place("gs://models/catalogue")
    place.write("photos/cat #1.jpg", PHOTOS[0].read_bytes())
    sheet = io.StringIO()
    writer = csv.writer(sheet)
    writer.writerows([["sku", "photo", "title"]])
    writer.writerows([[f"s{i}", "photos/cat #1.jpg", text] for i, text in enumerate(CAPTIONS)])
    writer.writerow(["s9", "photos/none.jpg", " "])
    place.write("shop.csv", sheet.getvalue().encode())
    environment = {"CLIP_WEIGHTS": "gs://models/tiny", "STORAGE_EMULATOR_HOST": emulator}
    source, options = (
        "gs://models/catalogue/shop.csv",
        ("--id-column", "sku", "--rows-per-part", "4"),
    )
    out = "gs://models/title-vectors"
    finish(start(source, out, "--text-column", "title", *options, **environment))
    titles = _fetch(out, tmp_path / "titles")
    assert "_SUCCESS" in list(open_place(out).names())
    # Pictures go the same way on the cluster; here, stage by stage.
    monkeypatch.setenv("CLIP_WEIGHTS", "gs://models/tiny")
    out = "gs://models/photo-vectors"
    arguments = embed_dataset.parse([source, out, "--image-column", "photo", *options])
    work = embed_dataset.get_work(arguments, out)
    embed = stages.Embed(work, threads=2)
    for part in range(plans.write_plan(work.task, open_place(out)).parts):
        stages.write(embed(stages.prepare({"part": part}, work)), work)
    photos = _fetch(out, tmp_path / "photos")
    for rows in (titles, photos):
        assert sorted(rows) == ["s0", "s1", "s2", "s3", "s4", "s9"]
        assert rows["s9"][0] is None
    assert "no visible character" in str(titles["s9"][1])
    assert photos["s9"][1] == "photos/none.jpg is not there"
    photo = server.predict(image=_data_uri(PHOTOS[0]))["output"]
    for number, text in enumerate(CAPTIONS):
        title = server.predict(text=text)["output"]
        assert np.abs(np.array(titles[f"s{number}"][0]) - title).max() <= 2e-5
        assert np.abs(np.array(photos[f"s{number}"][0]) - photo).max() <= 2e-5


def _fetch(location: str, folder: Path) -> dict[str, tuple[Any, str | None]]:
    folder.mkdir()
    for name in open_place(location).names("part-"):
        (folder / name).write_bytes(open_place(location).read(name))
    return read(folder)


def _data_uri(path: Path) -> str:
    import base64

    return "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode()


# --- the plan, without a cluster ----------------------------------------------------------------


def task(source: Path, **values: Any) -> plans.Task:
    wanted = {"column": "text", "of_paths": False, "id_column": None, "rows_per_part": 2}
    return plans.Task(source=str(source), model="m", **{**wanted, **values})


def rows_of(wanted: plans.Task, destination: Path) -> list[list[plans.Row]]:
    place = Folder(str(destination))
    plan = plans.write_plan(wanted, place)
    parts = [plans.read_part(place, number) for number in range(plan.parts)]
    rows = [list(plans.read_rows(wanted, part)) for part in parts]
    assert [part.rows for part in parts] == [len(some) for some in rows]
    assert plan.rows == sum(part.rows for part in parts)
    return rows


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_a_table_is_cut_between_rows(kind: str, tmp_path: Path) -> None:
    """Quotes, line breaks and non-ASCII text come out of parts as they went in, whatever the
    format; rows are named after the file and counted from 0."""
    path = tmp_path / f"t.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"n": [1] * 5, "text": CAPTIONS}), path, row_group_size=3)
    elif kind == "csv":
        with open(path, "w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file).writerows([["text", "n"], *([text, 1] for text in CAPTIONS)])
    else:
        path.write_text("\n\n".join(json.dumps({"text": text}) for text in CAPTIONS))
    parts = rows_of(task(path), tmp_path / "out")
    assert [len(part) for part in parts] == [2, 2, 1]
    flat = [row for part in parts for row in part]
    assert [row.value for row in flat] == CAPTIONS
    assert [row.id for row in flat] == [f"t.{kind}:{index}" for index in range(5)]


def test_rows_without_text_are_kept(tmp_path: Path) -> None:
    """A line that is not JSON, an empty value and a number are rows that say what is wrong."""
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "a"}\n{"text": nu\n{"text": null}\n{"text": 7}\n[1]\n{}\n')
    rows = [row for part in rows_of(task(path), tmp_path / "out") for row in part]
    assert [row.value for row in rows] == ["a", None, None, None, None, None]
    assert [
        next(w for w in ("not JSON", "nothing", "a int", "object") if w in str(row.error))
        for row in rows[1:]
    ] == ["not JSON", "nothing", "a int", "object", "nothing"]


def test_a_table_that_lacks_the_column_is_refused(tmp_path: Path) -> None:
    """The error names the file, the column and the columns there are."""
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"t\.csv has no column 'text'; it has a, b"):
        plans.write_plan(task(tmp_path / "t.csv"), Folder(str(tmp_path / "out")))


def test_another_task_into_the_same_place_is_refused(tmp_path: Path) -> None:
    """A run with other rows per part, or another model, would mix two data sets."""
    (tmp_path / "t.csv").write_text("text\na\n")
    place = Folder(str(tmp_path / "out"))
    first = embed_dataset.get_plan(task(tmp_path / "t.csv"), place)
    assert embed_dataset.get_plan(task(tmp_path / "t.csv"), place) == first
    with pytest.raises(ValueError, match="begun with rows_per_part 2, not 3"):
        embed_dataset.get_plan(task(tmp_path / "t.csv", rows_per_part=3), place)


def test_a_damaged_part_is_not_taken_for_finished(tmp_path: Path) -> None:
    """A part that is cut short, or lacks a row of the plan, will be written again."""
    (tmp_path / "t.csv").write_text("text\na\nb\n")
    place = Folder(str(tmp_path / "out"))
    plans.write_plan(task(tmp_path / "t.csv"), place)
    for rows, found in ((2, (2, 1)), (1, None)):
        done = stages.Embedded(["x"] * rows, ["bad"] + [None] * (rows - 1), np.ones((rows, 4), "f"))
        stages.pq.write_table(stages.to_table(done), tmp_path / "out" / plans.part_name(0))
        assert stages.check(0, place.location) == found
    path = tmp_path / "out" / plans.part_name(0)
    path.write_bytes(path.read_bytes()[:-20])
    assert stages.check(0, place.location) is None


class _Picky:
    """An embedder that fails on any batch that holds a 7."""

    class config:
        embed_dim = 2

    def embed_texts(self, texts: list[Any]) -> Any:
        from clip_embed.errors import EmbeddingError

        if any(text.end == 7 for text in texts):
            raise EmbeddingError("not finite")
        return np.array([[text.end, 1] for text in texts], np.float32)


def test_one_row_the_network_fails_on_is_one_error() -> None:
    """The others of its batch get their vectors, each in its own place."""
    from clip_embed.text import Tokens

    tokens = [Tokens(np.zeros(1, np.int64), end, False) for end in (9, 7, 3)]
    prepared = stages.Prepared(list("abcd"), [None, "bad", None, None], None, tokens)
    done = stages.embed(_Picky(), prepared, "cpu")
    assert done.errors == [None, "bad", "not finite", None]
    assert done.vectors[:, 0].tolist() == [9, 0, 0, 3]
