"""The commands of README.md that start something of this project, run as written on small weights.

Those that call a server are in tests/test_examples.py. Not run anywhere: `cog`, `docker` and
`gcloud`, which need what a test cannot have; `scripts/demo` and `scripts/test`, which are slow.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest

from conftest import ROOT, TINY
from local_server import free_port, venv_path

TEXT = (ROOT / "README.md").read_text()
FENCES = re.findall(r"^```sh\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
DEMO = "demo_model"


def fence(containing: str) -> str:
    """The one fence that holds `containing`."""
    [found] = [code for code in FENCES if containing in code]
    return found


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PATH": venv_path(), **more}


@contextlib.contextmanager
def started(code: str, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """`code` in a shell of its own, and nothing of it left behind."""
    process = subprocess.Popen(
        ["bash", "-euc", code], cwd=ROOT, env=environment(**more), start_new_session=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
            time.sleep(1)
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    url = f"http://localhost:{port}/health-check"
    while time.monotonic() < deadline:
        assert process.poll() is None
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=10) as response:
            if json.load(response)["status"] == "READY":
                return
        time.sleep(0.1)
    pytest.fail("not ready after 120 s")


def curl(port: int) -> list[float]:
    """The README's first curl, against `port`; its vector."""
    code = fence("curl -s").replace("localhost:5000", f"localhost:{port}")
    done = subprocess.run(
        ["bash", "-euc", code], capture_output=True, text=True, check=True, timeout=120
    )
    return list(json.loads(done.stdout)["output"])


def test_without_a_bucket_the_emulator_is_one() -> None:
    """The fence of “Without a bucket” from its first line to the vector, at the tests' size."""
    code = fence("gcs_emulator.py")
    storage, port = free_port(), free_port()
    code = code.replace("your-bucket &", f"your-bucket --port {storage} &\nsleep 2")
    code = code.replace(":4443", f":{storage}").replace(".venv/bin/python", sys.executable)
    code = code.replace("random:0 ", f"random:0 --model {shlex.quote(str(TINY))} ")
    code = code.replace("scripts/serve", f"scripts/serve --port {port}")
    with started(code) as process:
        wait_ready(port, process)
        assert len(curl(port)) == 768


def test_a_server_and_a_prediction_without_docker() -> None:
    """`scripts/serve` and `scripts/predict` with a text and a picture; nothing else is printed."""
    serve, *predict = fence("scripts/predict").replace("…", DEMO).splitlines()
    port = free_port()
    with started(serve.replace("5000", str(port))) as process:
        wait_ready(port, process)
        vector = curl(port)
    printed = [
        subprocess.run(
            ["bash", "-euc", line],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        for line in predict
    ]
    text, picture = (json.loads(done.stdout) for done in printed)
    assert text == pytest.approx(vector, abs=2e-5)
    assert len(picture) == 768
    assert [done.stderr for done in printed] == ["", ""]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-i text", "write NAME=VALUE"),
        ("-i image=@nowhere.jpg", "there is no file nowhere.jpg"),
        ("-i image=@README.md", "not an image this service can read"),
    ],
)
def test_a_prediction_that_cannot_be_says_why(arguments: str, message: str) -> None:
    """One sentence on the standard error, and an exit status for scripts."""
    done = subprocess.run(
        ["bash", "-euc", f"scripts/predict {arguments}"],
        cwd=ROOT,
        env=environment(CLIP_WEIGHTS=DEMO),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_table_of_files_is_whole() -> None:
    """Every file of the service and every script has its line, and every line its file."""
    table = TEXT[TEXT.index("## The files") :]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    for name in named:
        assert (ROOT / name).exists() or name in ("-dev", "-ray", "-train"), name
    for folder in (ROOT / "clip_embed", ROOT / "scripts"):
        for path in sorted(folder.iterdir()):
            if path.name in ("__init__.py", "__pycache__"):
                continue
            name = str(path.relative_to(ROOT)) + ("/" if path.is_dir() else "")
            assert name in named, name
