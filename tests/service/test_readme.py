"""Run the commands of README.md and docs/operations.md as written, with small weights.

test_examples.py runs those that call a server, and test_commands.py `scripts/demo`. No test runs
`cog`, `docker` and `gcloud`, which are not installed here, nor `scripts/test`, which takes minutes.
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

from scripts.lib.cog_server import free_port, venv_path
from tests.helpers.paths import ROOT, TINY

TEXT = "".join((ROOT / name).read_text() for name in ("README.md", "docs/operations.md"))
CODE_BLOCKS = re.findall(r"^```sh\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
DEMO = "demo_model"


def code_block(containing: str) -> str:
    """Return the one code block that contains `containing`."""
    [found] = [code for code in CODE_BLOCKS if containing in code]
    return found


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PATH": venv_path(), **more}


@contextlib.contextmanager
def started(code: str, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `code` in a shell in the background, and end all its processes afterwards."""
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
    """Run the README's first `curl` command against `port` and return the vector."""
    code = code_block("curl -s").replace("localhost:8000", f"localhost:{port}")
    done = subprocess.run(
        ["bash", "-euc", code], capture_output=True, text=True, check=True, timeout=120
    )
    return list(json.loads(done.stdout)["output"])


def python(port: int) -> float:
    """Run the README's Python code, as it says how, against `port`; return what it prints."""
    found = re.search(r"\(run it with `(\S+)`\).*?^```python\n(.*?)^```$", TEXT, re.M | re.S)
    assert found
    assert found[1] == ".venv/bin/python"
    done = subprocess.run(
        [sys.executable, "-c", found[2].replace("localhost:8000", f"localhost:{port}")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return float(done.stdout)


def test_emulator_commands_start_a_server() -> None:
    """The commands publish a model to the emulator, and the server that they start predicts."""
    code = code_block("gcs_emulator.py")
    storage, port = free_port(), free_port()
    code = code.replace("your-bucket &", f"your-bucket --port {storage} &\nsleep 2")
    code = code.replace(":4443", f":{storage}").replace(".venv/bin/python", sys.executable)
    code = code.replace("random:0 ", f"random:0 --model {shlex.quote(str(TINY))} ")
    code = code.replace("scripts/serve", f"scripts/serve --port {port}")
    with started(code) as process:
        wait_ready(port, process)
        assert len(curl(port)) == 768


def test_serve_and_predict_commands_give_the_same_vector() -> None:
    """`scripts/predict` embeds a text and an image, and prints nothing but the vector.

    Every command, and the Python code, runs a second time with the same result.
    """
    serve = code_block(f"CLIP_WEIGHTS={DEMO} scripts/serve").strip()
    predict = code_block("scripts/predict").splitlines()
    port = free_port()
    for _ in range(2):
        with started(f"{serve} --port {port}") as process:
            wait_ready(port, process)
            vector = curl(port)
            similarity = python(port)
            assert (curl(port), python(port)) == (vector, similarity)
            assert -1 <= similarity <= 1
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
        for line in [*predict, predict[0]]
    ]
    text, image, *again = (json.loads(done.stdout) for done in printed)
    assert text == pytest.approx(vector, abs=2e-5)
    assert len(image) == 768
    assert again == [text]
    assert {done.stderr for done in printed} == {""}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-i text", "write NAME=VALUE"),
        ("-i image=@nowhere.jpg", "there is no file nowhere.jpg"),
        ("-i image=@README.md", "not an image this service can read"),
    ],
)
def test_predict_command_explains_a_failure(arguments: str, message: str) -> None:
    """It prints one line to the standard error and exits with 1."""
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
