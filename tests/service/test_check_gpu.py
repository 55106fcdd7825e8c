"""scripts/check_gpu.py: the whole command with a tiny model on a CPU, its report and its checks."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from scripts.benchmarks.model import image_flop
from scripts.check_gpu import PARTS, make_parser
from scripts.gpu import (
    cold_start,
    environment,
    load_client,
    models,
    parity,
    run,
    serving,
    texts,
    throughput,
)
from scripts.gpu.part import Recorder, Task
from scripts.gpu.report import Report, Result, number, read_result
from scripts.gpu.samples import LONG_TEXT, short_captions, texts_of_every_length
from scripts.lib.cog_server import CACHE
from tests.helpers.paths import DEMO_MODEL, ROOT

ROW = "float16 on cuda"


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the whole command; return the folder of its results."""
    output = tmp_path_factory.mktemp("gpu")
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "scripts" / "check_gpu.py")),
            *("--device", "cpu", "--tiny", "--output", str(output)),
        ],
        capture_output=True,
        text=True,
    )
    log = (output / "gpu.log").read_text()[-3000:] if (output / "gpu.log").exists() else ""
    assert done.returncode == 0, done.stdout + done.stderr + log
    assert done.stderr == ""
    return output


def records_of(recorded: Path) -> list[dict]:
    return [json.loads(line) for line in recorded.read_text().splitlines()]


def test_every_part_succeeds_and_has_figures(tiny_run: Path) -> None:
    parts = json.loads((tiny_run / "gpu.json").read_text())["parts"]
    assert [part["name"] for part in parts] == list(PARTS)
    assert {part["name"]: part["status"] for part in parts} == dict.fromkeys(PARTS, "ok")
    assert not [sentence for part in parts for sentence in part["skipped"]]
    for part in parts:
        assert part["figures"], part["name"]
        for figure in part["figures"]:
            assert figure["part"] == part["name"]
            assert figure["name"]
            assert figure["unit"] or figure["name"].endswith("409")
            assert figure["values"]
            assert math.isfinite(figure["median"])


def test_every_contender_is_measured(tiny_run: Path) -> None:
    text = (tiny_run / "gpu.md").read_text()
    for kind in throughput.TITLES.values():
        head = f"| {kind}, per second | this service | for catalogs | without CUDA graphs |"
        assert head in text
    assert "READY, weights in an emulated bucket" in text
    assert "| import torch |" in text
    assert "| load |" in text  # a stage of the setup log


def test_each_table_names_machine_versions_and_date(tiny_run: Path) -> None:
    blocks = (tiny_run / "gpu.md").read_text().split("\n\n")
    tables = [number for number, block in enumerate(blocks) if block.startswith("| ")][1:]
    assert len(tables) > len(PARTS)
    facts = json.loads((tiny_run / "gpu.json").read_text())["environment"]
    for name in ("torch", "Python", "CPU", "commit", "device", "model", "date"):
        for table in tables:
            assert f"{name} {facts[name]}" in blocks[table + 1]


def test_weights_are_removed_at_the_end(tiny_run: Path) -> None:
    assert {path.name for path in tiny_run.iterdir()} == {"gpu.json", "gpu.md", "gpu.log"}
    assert not list(CACHE.glob("check-gpu-*"))


def test_without_a_gpu_the_command_says_how_to_try_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(
        SystemExit, match=r"there is (a|no) GPU .*check_gpu\.py --device cpu --tiny"
    ):
        run.run_parts(PARTS, device="cuda", tiny=False, output=tmp_path / "out", minutes=1)
    assert not (tmp_path / "out").exists()


def test_parts_that_others_need_are_added() -> None:
    arguments = make_parser().parse_args(["--parts", "serving,parity"])
    assert arguments.parts == ("environment", "models", "parity", "serving")


def test_unknown_part_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make_parser().parse_args(["--parts", "parity,speed"])
    assert "no part 'speed'; the parts are environment, models" in capsys.readouterr().err


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "soon"])
def test_time_that_is_no_limit_is_an_error(minutes: str) -> None:
    """Without time every part would be skipped, and the command succeed."""
    with pytest.raises(SystemExit):
        make_parser().parse_args(["--minutes", minutes])


def test_output_that_cannot_be_written_to_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="file cannot be written to"):
        run.run_parts((), device="cpu", tiny=True, output=tmp_path / "file", minutes=1)


def test_a_part_that_takes_too_long_keeps_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process group is ended, and what it has recorded is reported."""
    code = (
        "import sys, time, subprocess; from pathlib import Path;"
        "from scripts.gpu.part import Recorder;"
        "Recorder(Path(sys.argv[1])).figure('table', 'row', 3.0, 's');"
        "subprocess.Popen(['sleep', '600']); time.sleep(600)"
    )
    records = tmp_path / "records"
    monkeypatch.setattr(run.part, "command", lambda *_: [sys.executable, "-c", code, str(records)])
    task = Task("cpu", True, str(tmp_path), str(records), 5.0)
    started = time.monotonic()
    problem = run._run_part("parity", task, tmp_path / "log")
    assert time.monotonic() - started < 300
    result = read_result("parity", records, 5.0, problem)
    assert result.status == "failed: stopped after 5 s, its share of the time"
    assert [cell.figure.values for cell in result.cells] == [(3.0,)]


def test_without_models_the_parts_that_need_them_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them would fail, and advise to publish a model."""
    started = []

    def run_part(name: str, task: Task, log: Path) -> str | None:
        started.append(name)
        return "failed: no space left" if name == "models" else None

    monkeypatch.setattr(run, "_run_part", run_part)
    environment = dict(os.environ)
    names = ("environment", "models", "parity", "memory")
    assert not run.run_parts(names, device="cpu", tiny=True, output=tmp_path, minutes=1)
    assert started == ["environment", "models"]
    assert os.environ == environment  # variables for the parts are set in their processes
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert [part["status"] for part in parts[2:]] == [run.WITHOUT_MODELS] * 2


def test_libraries_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither their models are made, nor are they loaded."""
    task = Task("cpu", True, str(tmp_path), str(tmp_path / "records"), 60.0, libraries=False)
    record = Recorder(tmp_path / "records")
    models.run(task, record)
    assert [path.name for path in task.models.iterdir()] == ["ours"]
    measured = []

    class FakeWorker(contextlib.nullcontext):
        def __init__(self, arguments: list[str]) -> None:
            super().__init__(self)
            self._name = arguments[2]

        def measure(self, kind: str, batch: int, seconds: float) -> float:
            measured.append(self._name)
            return 1.0

    monkeypatch.setattr(throughput, "Worker", FakeWorker)
    texts.run(task, record)
    assert set(measured) == {"this service", "for catalogs", "without CUDA graphs"}


def test_a_part_without_time_is_skipped(tmp_path: Path) -> None:
    task = Task("cpu", True, str(tmp_path), str(tmp_path / "records"), 0.5)
    assert run._run_part("parity", task, tmp_path / "log") == "skipped: no time was left"


def test_a_missing_package_skips_a_section_and_an_error_fails_it(tmp_path: Path) -> None:
    record = Recorder(tmp_path / "records")
    with record.section("first"):
        import no_such_package  # noqa: F401
    with record.section("second"):
        raise ValueError("too few\nmore lines")
    record.figure("table", "third", [1.0, 2.0], "s")
    result = read_result("part", tmp_path / "records", 1.0, None)
    assert result.skipped == ["first: needs the package no_such_package"]
    assert result.failed == ["second: ValueError: too few"]
    assert result.status == "failed: second: ValueError: too few"
    assert len(result.cells) == 1


def test_a_part_that_lacks_a_package_is_skipped(tmp_path: Path) -> None:
    with Recorder(tmp_path / "records").section("serving"):
        import no_such_package  # noqa: F401
    result = read_result("serving", tmp_path / "records", 1.0, None)
    assert result.status == "skipped: serving: needs the package no_such_package"


def test_a_record_that_was_cut_is_left_out(tmp_path: Path) -> None:
    Recorder(tmp_path / "records").figure("table", "row", 1.0, "s")
    with (tmp_path / "records").open("a") as file:
        file.write('{"kind": "figu')
    assert len(read_result("part", tmp_path / "records", 1.0, None).cells) == 1


def test_values_of_one_figure_may_be_recorded_one_by_one(tmp_path: Path) -> None:
    """So that a part that is killed loses none."""
    record = Recorder(tmp_path / "records")
    for value in (3.0, 5.0):
        record.figure("starts", "READY", value, "s")
        record.figure("starts", "import", value - 1, "s")
    cells = read_result("cold_start", tmp_path / "records", 1.0, None).cells
    assert [(cell.row, cell.figure.values) for cell in cells] == [
        ("READY", (3.0, 5.0)),
        ("import", (2.0, 4.0)),
    ]


def test_a_failed_part_fails_the_command_and_a_skipped_one_does_not() -> None:
    report = Report("cuda", False)
    report.add(Result("environment", "ok", 1.0))
    report.add(Result("serving", "skipped: serving: needs the package cog", 1.0))
    assert report.succeeded
    report.add(Result("parity", "failed: a reason", 1.0))
    assert not report.succeeded


def test_tables_have_medians_by_row_and_column(tmp_path: Path) -> None:
    record = Recorder(tmp_path / "records")
    record.fact("GPU", "NVIDIA H100")
    record.figure("texts", "1", [3.0, 1.0, 2.0], "per second", column="ours")
    record.figure("texts", "1", 1234.5, "per second", column="theirs")
    record.figure("texts", "8", 0.01234, "per second", column="theirs")
    record.figure("connections", "64", 5.0, "ms", column="p50")
    record.figure("connections", "64", 7, "", column="409")
    record.figure("starts", "READY", [5.0, 4.0], "s")
    record.note("A sentence.")
    report = Report("cuda", False)
    report.add(read_result("images", tmp_path / "records", 9.6, None))
    text = report.markdown(each_with_machine=True)
    assert "| images | 10 | ok |" in text
    assert (
        "| texts, per second | ours | theirs |\n|---|---|---|\n| 1 | 2 | 1,234 |\n"
        "| 8 |  | 0.0123 |\n\nGPU NVIDIA H100; device cuda; model ViT-L/14, random weights; date "
    ) in text
    assert "| connections | p50 ms | 409 |\n|---|---|---|\n| 64 | 5 | 7 |\n" in text
    assert "| starts, s | median | range |\n|---|---|---|\n| READY | 4.5 | 4 – 5 |\n" in text
    assert "\n- A sentence.\n" in text
    report.write(tmp_path)
    [part] = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert part["figures"][0] == {
        "part": "images",
        "table": "texts",
        "name": "1, ours",
        "values": [3.0, 1.0, 2.0],
        "unit": "per second",
        "more_is_better": False,
        "median": 2.0,
    }


@pytest.mark.parametrize(
    ("value", "text"), [(0.99991234, "0.9999123"), (1.0, "1"), (123456.7, "123,457"), (0.5, "0.5")]
)
def test_numbers_keep_the_digits_that_matter(value: float, text: str) -> None:
    assert number(value) == text


def vectors(rows: int = 4) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, 768)).astype(np.float32)


def test_parity_of_equal_vectors_passes(tmp_path: Path) -> None:
    record = Recorder(tmp_path / "records")
    parity.judge(record, ROW, "texts", vectors() * 1.0001, vectors(), table="table")
    cosine, difference = records_of(tmp_path / "records")
    assert cosine["values"] == [pytest.approx(1.0, abs=1e-6)]
    assert 1e-5 < difference["values"][0] < 1e-3


@pytest.mark.parametrize("damage", ["one value", "order", "nan"])
def test_parity_fails_on_a_corrupted_vector(tmp_path: Path, damage: str) -> None:
    wrong = vectors()
    if damage == "one value":
        wrong[2, 5] += 1.0
    elif damage == "order":
        wrong[[0, 1]] = wrong[[1, 0]]
    else:
        wrong[3, 0] = np.nan
    record = Recorder(tmp_path / "records")
    parity.judge(record, ROW, "texts", wrong, vectors(), table="table")
    [failed] = [line for line in records_of(tmp_path / "records") if line["kind"] == "failed"]
    assert failed["text"].startswith(f"table, {ROW}, texts: cosine ")


def test_ranking_puts_the_most_similar_picture_first() -> None:
    images = vectors(20)
    ranks = parity._rank({"texts": images[[3, 7]] * 2, "images": images})
    assert ranks.shape == (2, parity.BEST)
    assert ranks[:, 0].tolist() == [3, 7]


def test_sample_texts_have_the_lengths_that_are_reported() -> None:
    from clip_embed.inputs.tokenizer import Tokenizer

    tokenizer = Tokenizer((DEMO_MODEL / "tokenizer.json").read_bytes(), 77)
    every = [len(tokenizer.tokenize(text).ids) for text in texts_of_every_length()]
    assert every == list(range(3, 78))
    short = [len(tokenizer.tokenize(text).ids) for text in short_captions(256)]
    assert min(short) >= 8
    assert max(short) <= 20
    assert len(tokenizer.tokenize(LONG_TEXT).ids) == 77


def test_operations_for_an_image_leave_out_most_of_the_last_block() -> None:
    from clip_embed.model.config import ClipConfig, TowerConfig

    vision, text = TowerConfig(1024, 24, 16, 4.0), TowerConfig(768, 12, 12, 4.0)
    config = ClipConfig(768, 224, 14, 77, 49408, True, vision, text)
    assert image_flop(config) == pytest.approx(156e9, rel=0.01)


def test_stages_are_read_from_the_setup_log() -> None:
    log = (
        "[coglet::setup] CUDA graphs captured in 0.52 s\n[coglet::setup] ready: none (random), 768"
        " floats, cuda, float16; setup 3.25 s (import torch 2.10 s, load 0.15 s, warm up 1.00 s);"
        " pulled 855.1 MB in 1.05 s (900 MB/s, 16 streams)\n"
    )
    stages = cold_start.read_stages(log)
    assert stages == {
        "import torch": 2.1,
        "load": 0.15,
        "warm up": 1.0,
        "all stages": 3.25,
        "pull, meanwhile": 1.05,
    }
    assert cold_start.read_stages("setup failed") == {}


def test_load_client_counts_refused_and_wrong_answers() -> None:
    found = load_client.Load()
    load_client._count(found, 200, b'{"status": "succeeded", "metrics": {"encode_ms": 2}}', 0.5)
    load_client._count(found, 409, b"{}", 0.1)
    load_client._count(found, 200, b'{"status":"failed","error":"too large"}', 0.1)
    load_client._count(found, 202, b'{"status":"succeeded"}', 0.1)
    found.elapsed = 2.0
    loads = serving.Loads([found, found])
    assert loads.rate == 1.0  # one prediction in two seconds, by each of two processes
    assert loads.percentile(0.99) == 500
    assert loads.metric("encode_ms") == 2
    assert found.refused == 1
    assert [each.partition(":")[0] for each in found.wrong] == ["status 200", "status 202"]


def test_python_is_provided_if_the_interpreter_has_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On some machines there is only python3. `python` belongs to its virtual environment."""
    for folder in ("bin", "work"):
        (tmp_path / folder).mkdir()
    (tmp_path / "lib").symlink_to(Path(sys.prefix, "lib"))
    shutil.copy(Path(sys.prefix, "pyvenv.cfg"), tmp_path)
    executable = tmp_path / "bin" / "python3"
    executable.symlink_to(Path(sys.executable).resolve())
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr("sys.executable", str(executable))
    run._provide_python(tmp_path / "work")
    command = ["python", "-c", "import sys; print(sys.prefix)"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == f"{tmp_path}\n"


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a program of that name on PATH; return a file that it makes when it has answered."""
    answered = tmp_path / "answered"
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\n"
        "case $* in\n"
        f"*--loop-ms*) cat {tmp_path}/samples; touch {answered}; exec sleep 60;;\n"
        "*) echo 580.159.04, Enabled;;\n"
        "esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return answered


def test_nvidia_smi_is_asked(nvidia_smi: Path) -> None:
    assert environment.query_gpu("driver_version", "persistence_mode") == "580.159.04, Enabled"


def test_nvidia_smi_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert environment.query_gpu("driver_version") is None


def test_gpu_is_watched_under_load(tmp_path: Path, nvidia_smi: Path) -> None:
    """The first and the last sample are left out: they are of an idle GPU."""
    samples = ("0, 345, 70.1", "90, 1900, 500.2", "94, 1980, 510.5", "1, 345, 71")
    (tmp_path / "samples").write_text("".join(f"{each}\n" for each in samples))
    task = Task("cuda", True, str(tmp_path), str(tmp_path / "records"), 60.0)
    with serving._watched(task, Recorder(tmp_path / "records"), "image, 64"):
        deadline = time.monotonic() + 60
        while not nvidia_smi.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    values = {line["column"]: line["values"] for line in records_of(tmp_path / "records")}
    assert values == {
        "utilization.gpu": [90, 94],
        "clocks.sm": [1900, 1980],
        "power.draw": [500.2, 510.5],
    }
