"""Run the parts one after another, each with its share of the time, and report after each."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from clip_embed.errors import SettingError
from clip_embed.model.device import choose_device
from scripts.gpu import part
from scripts.gpu.report import OK, Report, read_result
from scripts.lib.cog_server import CACHE, ROOT
from scripts.lib.process_guard import ProcessGuard

SHARES = {
    "environment": 8,
    "models": 14,
    "parity": 18,
    "cold_start": 36,
    "texts": 12,
    "images": 14,
    "serving": 13,
    "preparation": 6,
    "memory": 7,
}
"""Relative time limits: a part gets its share of the time that is left for it and later parts."""

WITHOUT_MODELS = "skipped: the part models has made no models"


def run_parts(
    names: Sequence[str],
    *,
    device: str,
    tiny: bool,
    output: Path,
    minutes: float,
    libraries: bool = True,
) -> bool:
    """Run the parts `names`, write and print the report; return whether none failed.

    libraries: measure transformers and open_clip, too.

    Raises SystemExit if there is no usable GPU for device "cuda". Without models, the parts after
    `models` are skipped.
    """
    _require_device(device)
    deadline = time.monotonic() + 60 * minutes
    log = output / "gpu.log"
    try:
        output.mkdir(parents=True, exist_ok=True)
        log.write_text("")
    except OSError as error:
        raise SystemExit(
            f"check_gpu.py: {output} cannot be written to: {error.strerror}"
        ) from error
    report = Report(device, tiny)
    CACHE.mkdir(exist_ok=True)
    # 2.6 GB of weights, which must not be among the results if this process is killed.
    with tempfile.TemporaryDirectory(prefix="check-gpu-", dir=CACHE) as folder:
        work = Path(folder)
        _provide_python(work)
        no_models = False
        for number, name in enumerate(names):
            later = sum(SHARES[each] for each in names[number:])
            seconds = (deadline - time.monotonic()) * SHARES[name] / later
            records = work / f"{name}.jsonl"
            task = part.Task(device, tiny, str(work), str(records), seconds, libraries)
            started = time.monotonic()
            problem = WITHOUT_MODELS if no_models else _run_part(name, task, log)
            took = time.monotonic() - started
            result = read_result(name, records, took, problem)
            no_models = no_models or (name == "models" and result.status != OK)
            report.add(result)
            report.write(output)
            print(f"{name}: {result.status} ({took:.0f} s of {seconds:.0f})", flush=True)
    print(f"\n{report.markdown()}")
    print(f"Written to {output}: gpu.json, gpu.md, gpu.log")
    return report.succeeded


def _require_device(device: str) -> None:
    """Raise SystemExit if `device` is "cuda" and the GPU cannot be used."""
    try:
        choose_device(device)
    except SettingError as error:
        raise SystemExit(
            f"check_gpu.py: {error}; to try this command without a GPU:"
            " scripts/check_gpu.py --device cpu --tiny"
        ) from error


def _run_part(name: str, task: part.Task, log: Path) -> str | None:
    """Run a part, and end its process group after its time. Return the problem as a status.

    If this process is killed, so is the part, and its folder is removed.
    """
    if task.seconds < 1:
        return "skipped: no time was left"
    guard = ProcessGuard(task.folder)
    with log.open("a") as file:
        file.write(f"\n# {name}\n\n")
        file.flush()
        process = guard.start(part.command(name, task), cwd=ROOT, stdout=file, stderr=file)
        try:
            status = process.wait(task.seconds)
        except subprocess.TimeoutExpired:
            return f"failed: stopped after {task.seconds:.0f} s, its share of the time"
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            guard.close()
    return None if status == 0 else f"failed: the process ended with status {status}"


def _provide_python(work: Path) -> None:
    """Put a `python` on PATH if this interpreter has only another name: Cog starts it so.

    A script and not a link, which Python would not recognize as part of its virtual environment.
    """
    if (Path(sys.executable).parent / "python").exists():
        return
    folder = work / "bin"
    folder.mkdir()
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"
