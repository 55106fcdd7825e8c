"""embed_dataset.py on a real Ray cluster of this machine, with the Cloud Storage emulator."""

from __future__ import annotations

import base64
import contextlib
import csv
import dataclasses
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

from clip_embed.settings import Settings
from scripts import embed_dataset
from scripts.dataset import plan as plans
from scripts.dataset import stages
from scripts.dataset.run import read_or_write_plan, read_stage_config
from scripts.lib.cog_server import CogServer
from scripts.lib.storage import open_storage
from tests.helpers.paths import PHOTOS, ROOT

SCRIPT = str(ROOT / "scripts" / "embed_dataset.py")
CAPTIONS = ["a red bicycle", "two dogs, one ball", 'she said "yes"', "line one\nline two", "ü ö"]


def start(source: object, destination: object, *options: str, **environment: str) -> Any:
    """Start the script as a user does, with two embedders."""
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
    """Return id → vector and error of all parts. Fails if an id is present twice."""
    rows: dict[str, tuple[Any, str | None]] = {}
    for path in sorted(folder.glob("part-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            assert row["id"] not in rows
            rows[row["id"]] = row["vector"], row["error"]
    return rows


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return a folder with forty images, one of which is not an image and one truncated."""
    folder = tmp_path / "images" / "deep"
    folder.mkdir(parents=True)
    for number in range(40):
        shutil.copyfile(PHOTOS[number % len(PHOTOS)], folder / f"{number:02}.jpg")
    (folder / "07.jpg").write_bytes(b"not an image")
    (folder / "11.jpg").write_bytes(PHOTOS[0].read_bytes()[:2000])
    (tmp_path / "images" / ".hidden").write_text("ignored")
    return tmp_path / "images"


def test_images_survive_killed_embedders_and_a_killed_run(
    images: Path, tmp_path: Path, tiny_model: Path
) -> None:
    """Bad images become rows with an error. _SUCCESS is written at the end only."""
    out = tmp_path / "out"
    options = ("--rows-per-part", "2")
    environment = {"CLIP_WEIGHTS": str(tiny_model)}
    running = start(images, out, *options, **environment)
    _wait(running, lambda: len(list(out.glob("part-*.parquet"))) >= 2)
    workers = [p for p in psutil.Process(running.pid).children(recursive=True) if _embeds(p)]
    assert len(workers) == 2
    # Both, so that the one at work is among them. Ray replaces them and repeats its part.
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

    output = finish(start(images, out, *options, **environment))
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
    """Texts and images named in tables of a bucket get the vectors that the service returns."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    catalog = open_storage("gs://models/catalog")
    catalog.write("photos/cat #1.jpg", PHOTOS[0].read_bytes())
    sheet = io.StringIO()
    writer = csv.writer(sheet)
    writer.writerows([["sku", "photo", "title"]])
    writer.writerows([[f"s{i}", "photos/cat #1.jpg", text] for i, text in enumerate(CAPTIONS)])
    writer.writerow(["s9", "photos/none.jpg", " "])
    catalog.write("shop.csv", sheet.getvalue().encode())
    environment = {"CLIP_WEIGHTS": "gs://models/tiny", "STORAGE_EMULATOR_HOST": emulator}
    environment |= {"http_proxy": "http://127.0.0.1:9", "no_proxy": ""}  # never used for this host
    source, options = (
        "gs://models/catalog/shop.csv",
        ("--id-column", "sku", "--rows-per-part", "4"),
    )
    out = "gs://models/title-vectors"
    finish(start(source, out, "--text-column", "title", *options, **environment))
    titles = _fetch(out, tmp_path / "titles")
    assert "_SUCCESS" in list(open_storage(out).names())
    # Images pass through the same stages; here they run without a cluster.
    out = "gs://models/photo-vectors"
    arguments = embed_dataset.parse_arguments([source, out, "--image-column", "photo", *options])
    settings = Settings(weights="gs://models/tiny")
    config = read_stage_config(arguments, settings, out)
    embed = stages.EmbedStage(config, threads=2)
    for part in range(plans.write_plan(config.job, open_storage(out)).parts):
        stages.write(embed(stages.prepare({"part": part}, config)), config)
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
    storage = open_storage(location)
    for name in storage.names("part-"):
        (folder / name).write_bytes(storage.read(name))
    return read(folder)


def _data_uri(path: Path) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode()


def test_different_job_into_the_same_destination_is_refused(tmp_path: Path) -> None:
    """Other rows per part, or another model, would mix two data sets."""
    source = tmp_path / "t.csv"
    source.write_text("text\na\n")
    storage = open_storage(str(tmp_path / "out"))
    job = plans.EmbeddingJob(
        source=str(source),
        column="text",
        of_paths=False,
        id_column=None,
        rows_per_part=2,
        model="m",
    )
    first = read_or_write_plan(job, storage)
    assert read_or_write_plan(job, storage) == first
    with pytest.raises(ValueError, match="begun with rows_per_part 2, not 3"):
        read_or_write_plan(dataclasses.replace(job, rows_per_part=3), storage)
