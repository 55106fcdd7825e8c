"""Time process start → READY of the real Cog server, beside its floor and transformers."""

from __future__ import annotations

import base64
import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from scripts.gpu.part import Recorder, Task
from scripts.gpu.server import make_server
from scripts.lib.cog_server import ROOT, CogServer

RUNS = 3
PREDICTIONS = 12  # of each kind, after READY
TABLE = "process start →"
READY = "READY, weights in a directory"
CONTEXT = "import torch, first tensor on the device"
RATIO = "READY / (import torch, first tensor on the device)"

_CONTEXT = "import sys, torch; torch.zeros(1, device=sys.argv[1])"
_TRANSFORMERS = """
import sys, torch, transformers
folder, device = sys.argv[1:]
dtype = torch.float16 if device == "cuda" else torch.float32
model = transformers.CLIPModel.from_pretrained(folder, dtype=dtype).to(device).eval()
tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
tokens = tokenizer(["a photo of a cat"], return_tensors="pt").to(device)
with torch.inference_mode():
    features = model.get_text_features(**tokens)
print(getattr(features, "pooler_output", features)[0].tolist()[:3])
"""


def run(task: Task, record: Recorder) -> None:
    """Record the times, of each kind of start in turn, and the first predictions after READY."""
    with record.section("first predictions"):  # a warm-up of the starts, too
        _compare_first_predictions(task, record)
    with contextlib.ExitStack() as stack:
        starts: dict[str, Callable[[], float]] = {
            READY: lambda: _seconds_to_ready(task, record, "directory", task.ours)
        }
        with record.section("weights in an emulated bucket"):
            emulator = stack.enter_context(_filled_emulator(Path(task.ours)))
            row = "READY, weights in an emulated bucket"
            starts[row] = lambda: _seconds_to_ready(
                task, record, "emulated bucket", "gs://models/ours", emulator
            )
        starts["import torch"] = lambda: _seconds("-c", "import torch")
        starts[CONTEXT] = lambda: _seconds("-c", _CONTEXT, task.device)
        checkpoint = task.models / "transformers"
        if checkpoint.exists():
            starts["transformers' first text"] = lambda: _seconds(
                "-c", _TRANSFORMERS, str(checkpoint), task.device
            )
        elif task.libraries:
            record.skip("transformers' first text: there is no checkpoint, see the part models")
        _in_turn(starts, 1 if task.tiny else RUNS, record)


def _in_turn(starts: dict[str, Callable[[], float]], runs: int, record: Recorder) -> None:
    """Record the seconds of each start as soon as they are measured. One that fails is left out."""
    for _ in range(runs):
        seconds: dict[str, float] = {}
        for row, start in list(starts.items()):
            with record.section(row):
                seconds[row] = start()
                record.figure(TABLE, row, seconds[row], "s")
            if row not in seconds:
                del starts[row]
        if READY in seconds and CONTEXT in seconds:
            record.figure("ratio", RATIO, seconds[READY] / seconds[CONTEXT], "×")


def read_stages(log: str) -> dict[str, float]:
    """Return the seconds of each stage from a setup log.

    Its line is `ready: …; setup 3.2 s (import torch 2.1 s, …); pulled 855.0 MB in 1.05 s (…)`.
    """
    found = re.search(r"ready: .*?setup ([\d.]+) s \((.*?)\)(?:.*? pulled .*? in ([\d.]+) s)?", log)
    if found is None:
        return {}
    stages = re.findall(r"(?:^|, )([^,]+?) ([\d.]+) s", found[2])
    stages.append(("all stages", found[1]))
    if found[3]:
        stages.append(("pull, meanwhile", found[3]))
    return {name: float(seconds) for name, seconds in stages}


def _seconds_to_ready(
    task: Task, record: Recorder, source: str, location: str, emulator: str | None = None
) -> float:
    """Start the server, record its stages, and return the seconds until READY."""
    begin = time.perf_counter()
    with make_server(task, location, emulator) as server:
        server.wait_ready(120)
        seconds = time.perf_counter() - begin
        for stage, each in read_stages(server.setup_log()).items():
            record.figure("stages of setup", stage, each, "s", column=source)
    return seconds


def _seconds(*arguments: str) -> float:
    """Return the seconds of one run of Python. Raises RuntimeError with its last line."""
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT)
    seconds = time.perf_counter() - begin
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        lines = done.stderr.strip().splitlines() or ["no output"]
        raise RuntimeError(f"status {done.returncode}: {lines[-1]}")
    return seconds


@contextlib.contextmanager
def _filled_emulator(directory: Path) -> Iterator[str]:
    """Run the Cloud Storage emulator with the model at gs://models/ours; yield its URL."""
    from scripts.lib.gcs_emulator import gcs_emulator

    with gcs_emulator("models") as url:
        with httpx.Client(trust_env=False, timeout=120) as http:
            for path in sorted(directory.iterdir()):
                http.post(
                    f"{url}/upload/storage/v1/b/models/o",
                    params={"uploadType": "media", "name": f"ours/{path.name}"},
                    content=path.read_bytes(),
                ).raise_for_status()
        yield url


def _compare_first_predictions(task: Task, record: Recorder) -> None:
    photo = base64.b64encode((ROOT / "examples" / "cat.jpg").read_bytes()).decode()
    values = {"text": "a photo of a cat", "image": f"data:image/jpeg;base64,{photo}"}
    with make_server(task, task.ours) as server:
        server.wait_ready(120)
        for line in re.findall(r"(?:ready: |CUDA graphs |no CUDA graphs).*", server.setup_log()):
            record.note(f"Setup log: {line}")
        for kind, value in values.items():
            seconds = [_predict_time(server, kind, value) for _ in range(PREDICTIONS)]
            table = "predict_time after READY"
            record.figure(table, kind, 1e3 * seconds[0], "ms", column="first")
            rest = [1e3 * each for each in seconds[1:]]
            record.figure(table, kind, rest, "ms", column=f"next {len(rest)}, median")


def _predict_time(server: CogServer, kind: str, value: str) -> float:
    answer = server.predict(**{kind: value})
    if answer["status"] != "succeeded":
        raise RuntimeError(f"a prediction failed: {answer['error']}")
    return float(answer["metrics"]["predict_time"])
