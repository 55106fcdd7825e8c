"""The commands in scripts/: their help and errors, and how scripts/predict ends."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from scripts.lib.cog_server import bypass_proxies, free_port
from tests.helpers.commands import PYTHON_COMMANDS, SHELL_COMMANDS
from tests.helpers.paths import ROOT, TINY_MODEL

SIGNALS = ("INT", "TERM", "HUP", "QUIT", "KILL")
DEAD_PROXY = {
    "http_proxy": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
    "no_proxy": "",
    "NO_PROXY": "",
}


@contextlib.contextmanager
def started(*command: str, **environment: str) -> Iterator[psutil.Popen]:
    """Run a command of scripts/ in the background, and kill it with all its children."""
    process = psutil.Popen(
        [str(ROOT / "scripts" / command[0]), *command[1:]],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in process.children(recursive=True):
                child.kill()
            process.kill()
        process.communicate()


def wait_until_healthy(address: str) -> None:
    """Wait until Cog answers at `address`; its setup may have failed."""
    deadline = time.monotonic() + 60
    while True:
        try:
            httpx.get(f"http://{address}/health-check", trust_env=False).raise_for_status()
            return
        except httpx.TransportError:
            assert time.monotonic() < deadline, "no answer after 60 s"
            time.sleep(0.05)


# Commands that use packages, with arguments that are valid.
ARGUMENTS = {
    "bench.py": ["text"],
    "check_embed_dataset.py": ["rows"],
    "check_gpu.py": [],
    "demo.py": [],
    "embed_dataset.py": ["pictures", "vectors"],
    "gcs_emulator.py": ["bucket"],
    "predict_once.py": ["-i", "text=a cat"],
    "publish_weights.py": ["random:0", "model"],
    "remove_old_weights.py": ["model"],
    "search.py": ["query", "a cat"],
    "simulate_thundering_herd.py": ["1"],
    "soak.py": [],
    "train_demo.py": [],
}
# These use packages of the standard library and programs of the system.
WITHOUT_PACKAGES = {"check_image.py", "check_platform.py", "check_wheels.py"}
PYTEST_COMMANDS = {"test", "coverage"}  # pytest reads their arguments


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the code as a user gets it: there is no .venv."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("scripts", "clip_embed"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    return copy


def run_bare(checkout: Path, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the copy. Python has no packages, and writes no compiled modules."""
    path = str(checkout / "scripts" / command)
    python = [sys.executable, "-S", "-B"] if command in PYTHON_COMMANDS else []
    return subprocess.run(
        [*python, path, *arguments],
        cwd=checkout,
        env={"PATH": "/usr/bin:/bin", "HOME": str(checkout), "TMPDIR": str(checkout)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def files_of(checkout: Path) -> set[Path]:
    return set(checkout.rglob("*"))


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("command", PYTHON_COMMANDS + SHELL_COMMANDS)
def test_help_says_how_to_use_a_command_and_does_nothing_else(
    checkout: Path, command: str, option: str
) -> None:
    """Also after other arguments, and with nothing installed."""
    before = files_of(checkout)
    done = run_bare(checkout, command, *ARGUMENTS.get(command, []), option)
    assert (done.returncode, done.stderr) == (0, "")
    name = "predict" if command == "predict_once.py" else command
    assert re.match(rf"usage: .*{re.escape(name)}\b", done.stdout)
    example = (
        rf"^(  +|Example: )(sudo )?(\w+=\S+ )*(\.venv/bin/python )?scripts/{re.escape(name)}\b"
    )
    assert re.search(example, done.stdout, re.MULTILINE)
    assert files_of(checkout) == before


@pytest.mark.parametrize("command", sorted({*PYTHON_COMMANDS, *SHELL_COMMANDS} - PYTEST_COMMANDS))
def test_unknown_argument_is_an_error(checkout: Path, command: str) -> None:
    before = files_of(checkout)
    done = run_bare(checkout, command, *ARGUMENTS.get(command, []), "--prot")
    assert done.returncode == 2
    assert "usage: " in done.stderr
    assert len(re.findall(r"^.*--prot$", done.stderr, re.MULTILINE)) == 1
    assert files_of(checkout) == before


def test_arguments_of_every_command_are_known() -> None:
    """A new command must be added to one of the two tables."""
    assert set(PYTHON_COMMANDS) == {*ARGUMENTS, *WITHOUT_PACKAGES}


@pytest.mark.parametrize("command", ARGUMENTS)
def test_command_without_its_packages_ends_with_one_sentence(checkout: Path, command: str) -> None:
    """The sentence names a package, and a group of pyproject.toml that installs it."""
    done = run_bare(checkout, command, *ARGUMENTS[command])
    assert done.returncode == 1
    says = re.fullmatch(
        rf"scripts/{command} needs the package \w+, which {re.escape(sys.executable)} does not"
        rf" have: run scripts/setup (\w+), and then .venv/bin/python scripts/{command}\n",
        done.stderr,
    )
    assert says, done.stderr
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    assert says[1] in groups


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--port"], "--port needs a value"),
        (["--port", "http"], "--port is 'http'; give a number from 1 to 65535"),
        (["--port=0"], "--port is 0; give a number from 1 to 65535"),
        (["--port", "65536"], "--port is 65536; give a number from 1 to 65535"),
        (["--host="], "--host is empty; give an IP address"),
    ],
)
def test_serve_explains_a_wrong_argument(checkout: Path, arguments: list[str], says: str) -> None:
    done = run_bare(checkout, "serve", *arguments)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == f"scripts/serve: {says}"


def test_serve_explains_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with started("serve", "--port", str(port), CLIP_WEIGHTS="demo_model") as process:
            _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    says = f"scripts/serve: port {port} is in use; choose another with --port N\n"
    assert stderr.decode() == says


def test_serve_explains_a_host_that_is_not_here() -> None:
    with started("serve", "--host", "localhost", CLIP_WEIGHTS="demo_model") as process:
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert stderr.decode() == (
        "scripts/serve: --host is 'localhost'; give an IP address of this machine, or 0.0.0.0 for"
        " all\n"
    )


def test_serve_needs_weights_before_it_installs_anything(checkout: Path) -> None:
    done = run_bare(checkout, "serve")
    assert done.returncode == 2
    assert done.stderr.startswith("scripts/serve: CLIP_WEIGHTS is not set; CLIP_WEIGHTS=demo_model")
    assert not (checkout / ".venv").exists()


def test_serve_reads_a_directory_where_the_caller_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").symlink_to(TINY_MODEL)
    monkeypatch.chdir(tmp_path)
    port = free_port()
    with started("serve", f"--port={port}", CLIP_WEIGHTS="model"):
        wait_until_healthy(f"127.0.0.1:{port}")
        deadline = time.monotonic() + 60
        while (status := status_of(port)) == "STARTING":
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert status == "READY"


def status_of(port: int) -> str:
    answer = httpx.get(f"http://127.0.0.1:{port}/health-check", trust_env=False)
    return str(answer.json()["status"])


def test_serve_listens_on_port_8000_by_default() -> None:
    """macOS itself uses port 5000. The port is occupied here, so that the command ends."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # another process has it
            stack.enter_context(socket.create_server(("127.0.0.1", 8000)))
        with started("serve", CLIP_WEIGHTS="demo_model") as process:
            _, stderr = process.communicate(timeout=60)
    assert "port 8000 is in use" in stderr.decode()


def test_serve_listens_on_the_given_host_only() -> None:
    port = free_port()
    with started("serve", "--port", str(port), "--host", "127.0.0.2", CLIP_WEIGHTS="demo_model"):
        wait_until_healthy(f"127.0.0.2:{port}")
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{port}/health-check", trust_env=False)


def test_serve_listens_on_this_machine_only_by_default() -> None:
    port = free_port()
    with started("serve", f"--port={port}", CLIP_WEIGHTS="demo_model"):
        wait_until_healthy(f"127.0.0.1:{port}")
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.2:{port}/health-check", trust_env=False)


@contextlib.contextmanager
def started_in_terminal(
    *command: str, **environment: str
) -> Iterator[tuple[psutil.Popen, io.FileIO]]:
    """Run a command of scripts/ in a terminal; yield the process and the terminal's other end."""
    outer, inner = pty.openpty()
    terminal = io.FileIO(outer, "w")
    process = psutil.Popen(
        [str(ROOT / "scripts" / command[0]), *command[1:]],
        env={**os.environ, **environment},
        preexec_fn=functools.partial(os.login_tty, inner),
    )
    os.close(inner)
    try:
        yield process, terminal
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
        process.wait()
        terminal.close()


def close_terminal(process: psutil.Popen, terminal: io.FileIO) -> None:
    terminal.close()


def press_ctrl_c(process: psutil.Popen, terminal: io.FileIO) -> None:
    terminal.write(b"\x03")


def press_ctrl_c_twice(process: psutil.Popen, terminal: io.FileIO) -> None:
    """The second time while the server is being stopped."""
    press_ctrl_c(process, terminal)
    time.sleep(0.05)
    press_ctrl_c(process, terminal)


def send(number: signal.Signals, process: psutil.Popen, terminal: io.FileIO) -> None:
    process.send_signal(number)


@pytest.mark.parametrize(
    "end",
    [
        close_terminal,
        press_ctrl_c,
        press_ctrl_c_twice,
        *(functools.partial(send, getattr(signal, f"SIG{name}")) for name in SIGNALS),
    ],
    ids=["terminal closed", "Ctrl-C", "Ctrl-C twice", *SIGNALS],
)
def test_predict_stops_its_server_however_it_ends(
    end: Callable[[psutil.Popen, io.FileIO], None],
) -> None:
    """No process and no temporary directory is left."""
    with socket.create_server(("127.0.0.1", 0)) as silent:  # weights that never arrive
        weights = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = ("predict", "-i", "text=a cat")
        with started_in_terminal(*command, CLIP_WEIGHTS=weights) as (process, terminal):
            silent.settimeout(60)
            silent.accept()  # by the worker, so that all processes have started
            children = process.children(recursive=True)
            assert len(children) >= 3  # guard, server, worker
            [server] = [child for child in children if "cog.server.http" in child.cmdline()]
            directory = Path(server.cwd())
            end(process, terminal)
            process.wait(20)
            assert_gone(children, directory)


def assert_gone(processes: list[psutil.Process], directory: Path) -> None:
    """Wait until the processes have ended and the directory is removed; fail after a while."""
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert alive == []
    deadline = time.monotonic() + 5
    while directory.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not directory.exists()


def test_server_ends_even_if_its_parent_is_killed_while_it_starts() -> None:
    """Here the parent is killed as soon as the server's process exists."""
    code = (
        "import os, signal, subprocess\n"
        "from scripts.lib.cog_server import CogServer\n"
        "server = CogServer({'CLIP_WEIGHTS': ''})\n"
        "class Popen(subprocess.Popen):\n"
        "    def __init__(self, *arguments, **options):\n"
        "        super().__init__(*arguments, **options)\n"
        "        if 'cwd' in options:\n"
        "            print(self.pid, server.directory, flush=True)\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "subprocess.Popen = Popen\n"
        "server.__enter__()\n"
    )
    parent = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.returncode == -signal.SIGKILL
    pid, directory = parent.stdout.split()
    with contextlib.suppress(psutil.NoSuchProcess):
        assert_gone([psutil.Process(int(pid))], Path(directory))
    assert_gone([], Path(directory))


def test_predict_does_not_use_a_proxy(tiny_model: Path) -> None:
    with started("predict", "-i", "text=a cat", **DEAD_PROXY, CLIP_WEIGHTS=str(tiny_model)) as run:
        stdout, stderr = run.communicate(timeout=120)
    assert (run.returncode, stderr) == (0, b"")
    assert len(json.loads(stdout)) == 768


def test_demo_does_not_use_a_proxy() -> None:
    """It publishes to an emulator, serves from it and sends requests, all on this machine."""
    with started("demo", **DEAD_PROXY) as process:
        stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr.decode()
    assert "nothing is left running" in stdout.decode()
    assert "scripts/demo --page --open" in stdout.decode()


def test_bypass_proxies_adds_this_machine_to_the_exceptions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For programs that read no_proxy, and for those that read NO_PROXY."""
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("no_proxy", "mirror.example")
    bypass_proxies()
    hosts = "mirror.example,127.0.0.1,localhost"
    assert (os.environ["no_proxy"], os.environ["NO_PROXY"]) == (hosts, hosts)


def test_emulator_ends_with_the_process_that_started_it() -> None:
    """Also if that process is killed."""
    code = (
        "import time; from scripts.lib.gcs_emulator import gcs_emulator\n"
        "with gcs_emulator('models'): print('running', flush=True); time.sleep(60)"
    )
    process = psutil.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "running\n"
    children = process.children(recursive=True)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    assert children


@pytest.mark.parametrize(
    ("inputs", "others", "status"), [(0, 0, 0), (1, 0, 1), (0, 1, 1), (5, 0, 5)]
)
def test_quick_lane_fails_if_either_process_of_pytest_fails(
    tmp_path: Path, inputs: int, others: int, status: int
) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "test", tmp_path / "scripts" / "test")
    pytest_script = f'case "$*" in *--ignore*) exit {others} ;; *) exit {inputs} ;; esac'
    for name, script in (("scripts/setup", ""), (".venv/bin/python", pytest_script)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run([tmp_path / "scripts" / "test", "--quick"], check=False, timeout=60)
    assert done.returncode == status
