"""scripts/setup chooses a Python and keeps .venv complete. pip is a fake: nothing is installed."""

from __future__ import annotations

import fcntl
import itertools
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

# A Python of another version, whose venv and pip only write their arguments to the file `calls`.
FAKE_PYTHON = """\
import os, sys
from pathlib import Path

version = {version}
if sys.argv[1] == "-V":
    print("Python", *version)
    sys.exit()
module, code = sys.argv[1:3]
if module == "-c":
    sys.version_info = version
    sys.modules.update(dict.fromkeys({without!r}.split()))  # None: cannot be imported
    exec(code)
    sys.exit()
with open("calls", "a") as calls:
    print(*sys.argv[2:], file=calls)
if code == "venv":
    Path(sys.argv[3], "bin").mkdir()
    Path(sys.argv[3], "bin", "python").symlink_to(os.environ["FAKE_PYTHON"])
sys.exit(Path("fails").exists() and Path("fails").read_text() in sys.argv)
"""
TOOLS = (
    "awk",
    "bash",
    "cat",
    "cksum",
    "df",
    "dirname",
    "du",
    "env",
    "head",
    "mkdir",
    "mv",
    "rm",
    "sed",
    "tail",
    "touch",
)


class Machine:
    """A checkout, and a PATH with no other Python than those that are added."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "checkout"
        self.path = directory / "bin"
        (self.root / "scripts").mkdir(parents=True)
        self.path.mkdir()
        for name in ("scripts/setup", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.root / name)
        for tool in TOOLS:
            (self.path / tool).symlink_to(shutil.which(tool) or pytest.fail(f"no {tool} here"))

    def add_python(self, name: str, version: tuple[int, int], without: str = "") -> Path:
        """Add a fake Python to the PATH; `without` names modules that it lacks."""
        code = self.path / f"{name}.py"
        code.write_text(FAKE_PYTHON.format(version=version, without=without))
        command = self.path / name
        command.write_text(f'#!/bin/sh\nFAKE_PYTHON="$0" exec "{sys.executable}" "{code}" "$@"\n')
        command.chmod(0o755)
        return command

    def setup(self, *groups: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.root / "scripts" / "setup", *groups],
            capture_output=True,
            text=True,
            env={"PATH": str(self.path), **variables},
            cwd="/",
            check=False,
            timeout=60,
        )

    def calls(self) -> list[str]:
        """Return the calls of venv and pip since the last time, without pip's options."""
        file = self.root / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return [line for line in lines if line != "pip --version"]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def installed_groups(calls: Sequence[str]) -> list[str]:
    words = " ".join(calls).split()
    return [after for word, after in itertools.pairwise(words) if word == "--group"]


def test_installs_a_group_once(machine: Machine) -> None:
    machine.add_python("python3", (3, 13))
    first = machine.setup("demo")
    assert first.returncode == 0, first.stderr
    calls = machine.calls()
    assert calls[0] == "venv .venv"
    assert installed_groups(calls) == ["demo"]
    assert "GB are free" in first.stdout
    assert machine.setup("demo").stdout == ""
    assert machine.calls() == []


def test_adds_a_group_to_what_is_installed(machine: Machine) -> None:
    machine.add_python("python3", (3, 13))
    machine.setup("demo")
    machine.calls()
    assert machine.setup("demo", "lint").returncode == 0
    calls = machine.calls()
    assert installed_groups(calls) == ["lint"]
    assert not any("venv" in call for call in calls)
    assert machine.setup("lint", "demo").stdout == ""


def test_installs_all_of_the_tests_by_default(machine: Machine) -> None:
    machine.add_python("python3", (3, 13))
    machine.setup()
    assert installed_groups(machine.calls()) == ["test"]


@pytest.mark.parametrize("changed", ["constraints.txt", "pyproject.toml"])
def test_installs_again_after_a_change(machine: Machine, changed: str) -> None:
    machine.add_python("python3", (3, 13))
    machine.setup("demo")
    machine.calls()
    with open(machine.root / changed, "a") as file:
        file.write("# changed\n")
    machine.setup("demo")
    assert installed_groups(machine.calls()) == ["demo"]


def test_installs_again_where_a_checkout_was_moved(machine: Machine) -> None:
    machine.add_python("python3", (3, 13))
    machine.setup("demo")
    machine.calls()
    machine.root = machine.root.rename(machine.root.with_name("moved"))
    machine.setup("demo")
    assert machine.calls()[0] == "venv .venv", "its commands name the old place"


@pytest.mark.parametrize("version", [(3, 11), (3, 12), (3, 13), (3, 14)])
def test_takes_each_python_that_has_wheels(machine: Machine, version: tuple[int, int]) -> None:
    machine.add_python("python3", version)
    assert machine.setup("demo").returncode == 0


def test_passes_over_a_python_that_does_not_fit(machine: Machine) -> None:
    machine.add_python("python3", (3, 9))
    machine.add_python("python3.12", (3, 12))
    assert machine.setup("demo").returncode == 0
    assert (machine.root / ".venv/bin/python").readlink().name == "python3.12"


def test_says_how_to_get_a_python(machine: Machine) -> None:
    machine.add_python("python3", (3, 9))
    outcome = machine.setup("demo")
    assert outcome.returncode == 1
    assert "needs Python 3.11, 3.12, 3.13 or 3.14, with venv. Found:" in outcome.stderr
    assert f"{machine.path / 'python3'} is Python 3.9" in outcome.stderr
    for way in ("sudo apt install python3 python3-venv", "brew install", "uv python install"):
        assert way in outcome.stderr
    assert not (machine.root / ".venv").exists()


def test_says_that_there_is_no_python(machine: Machine) -> None:
    outcome = machine.setup("demo")
    assert outcome.returncode == 1
    assert "Found: none" in outcome.stderr


@pytest.mark.parametrize("module", ["ensurepip", "venv"])
def test_says_that_python_lacks_venv(machine: Machine, module: str) -> None:
    machine.add_python("python3", (3, 13), without=module)
    outcome = machine.setup("demo")
    assert outcome.returncode == 1
    assert "python3 lacks venv; on Debian and Ubuntu: sudo apt install python3-venv" in (
        outcome.stderr
    )


def test_uses_the_python_that_is_named(machine: Machine, tmp_path: Path) -> None:
    machine.add_python("python3", (3, 13))
    directory = tmp_path / "a directory"
    directory.mkdir()
    named = machine.add_python("python3.12", (3, 12)).rename(directory / "python")
    assert machine.setup("demo", PYTHON=str(named)).returncode == 0
    assert (machine.root / "calls").exists()


def test_says_that_the_named_python_does_not_fit(machine: Machine) -> None:
    wrong = machine.add_python("python3.9", (3, 9))
    outcome = machine.setup("demo", PYTHON=str(wrong))
    assert outcome.returncode == 1
    assert f"{wrong} is Python 3.9" in outcome.stderr


def test_says_that_another_python_is_named_than_that_of_the_venv(machine: Machine) -> None:
    machine.add_python("python3", (3, 13))
    machine.setup("demo")
    other = machine.add_python("python3.12", (3, 12))
    outcome = machine.setup("demo", PYTHON=str(other))
    assert outcome.returncode == 1
    assert "remove .venv to use the other" in outcome.stderr


def test_makes_a_venv_again_whose_installation_was_cut_off(machine: Machine) -> None:
    machine.add_python("python3", (3, 13))
    machine.setup("demo")
    (machine.root / ".venv/unfinished").touch()
    (machine.root / ".venv/rest").touch()
    machine.calls()
    outcome = machine.setup("demo")
    assert "Making .venv again" in outcome.stdout
    assert machine.calls()[0] == "venv .venv"
    assert not (machine.root / ".venv/rest").exists()
    assert not (machine.root / ".venv/unfinished").exists()


def test_makes_a_venv_again_whose_python_is_gone(machine: Machine) -> None:
    machine.add_python("python3.12", (3, 12))
    machine.setup("demo")
    (machine.path / "python3.12").unlink()
    machine.add_python("python3.13", (3, 13))
    machine.calls()
    outcome = machine.setup("lint")
    assert outcome.returncode == 0, outcome.stderr
    assert "Making .venv again" in outcome.stdout
    assert installed_groups(machine.calls()) == ["lint"]
    machine.setup("demo")
    assert installed_groups(machine.calls()) == ["demo"], "it is a new one"


def test_makes_a_venv_again_that_could_not_be_made(machine: Machine) -> None:
    machine.add_python("python3", (3, 13))
    (machine.root / "fails").write_text("venv")
    outcome = machine.setup("demo")
    assert outcome.returncode == 1
    assert "could not make .venv" in outcome.stderr
    (machine.root / "fails").unlink()
    assert machine.setup("demo").returncode == 0


def test_makes_a_venv_again_after_half_a_package(machine: Machine) -> None:
    """pip was killed, or interrupted, before it wrote the package's RECORD."""
    machine.add_python("python3", (3, 13))
    machine.setup("demo")
    package = machine.root / ".venv/lib/python3.13/site-packages/mypy-2.4.1.dist-info"
    package.mkdir(parents=True)
    (machine.root / "fails").write_text("install")
    outcome = machine.setup("lint")
    assert "pip was interrupted" in outcome.stderr
    (machine.root / "fails").unlink()
    machine.calls()
    assert machine.setup("lint").returncode == 0
    assert machine.calls()[0] == "venv .venv"
    assert not package.exists()


@pytest.mark.parametrize("make", ["directory", "file", "link"])
def test_keeps_a_venv_that_it_did_not_make(machine: Machine, make: str) -> None:
    machine.add_python("python3", (3, 13))
    venv = machine.root / ".venv"
    if make == "directory":
        venv.mkdir()
    elif make == "file":
        venv.write_text("the name of an environment elsewhere")
    else:
        venv.symlink_to("nowhere")
    outcome = machine.setup("demo")
    assert outcome.returncode == 1
    assert "was not made by scripts/setup; move or remove it" in outcome.stderr
    assert venv.is_symlink() or venv.exists()


def test_goes_back_to_earlier_pins(machine: Machine) -> None:
    """An installation of other pins that failed may have changed packages."""
    machine.add_python("python3", (3, 13))
    machine.setup("demo")
    pins = machine.root / "constraints.txt"
    text = pins.read_text()
    pins.write_text("")
    (machine.root / "fails").write_text("install")
    machine.setup("demo")
    pins.write_text(text)
    (machine.root / "fails").unlink()
    machine.calls()
    machine.setup("demo")
    assert installed_groups(machine.calls()) == ["demo"]


def test_needs_no_packages_of_the_service_for_the_lock(machine: Machine) -> None:
    """scripts/lock runs after a pin was changed, when constraints.txt has the old one."""
    machine.add_python("python3", (3, 13))
    machine.setup("lock")
    assert not any("--editable" in call for call in machine.calls())
    machine.setup("demo")
    assert any("--editable ." in call for call in machine.calls())


def test_ignores_variables_that_send_packages_elsewhere(machine: Machine) -> None:
    command = machine.add_python("python3", (3, 13))
    code = command.with_suffix(".py")
    code.write_text(
        code.read_text().replace("print(*sys.argv[2:]", "print(os.environ, *sys.argv[2:]")
    )
    machine.setup("demo", PIP_TARGET="/elsewhere", PYTHONPATH="/elsewhere", CDPATH="/")
    assert not any("elsewhere" in call for call in machine.calls())


def test_keeps_a_venv_when_pip_fails(machine: Machine) -> None:
    machine.add_python("python3", (3, 13))
    machine.setup("demo")
    (machine.root / "fails").write_text("install")
    machine.calls()
    outcome = machine.setup("lint")
    assert outcome.returncode == 1
    assert "pip failed: the reason is above" in outcome.stderr
    (machine.root / "fails").unlink()
    machine.calls()
    assert machine.setup("lint").returncode == 0
    assert not any("venv" in call for call in machine.calls())
    assert machine.setup("demo").stdout == "", "still installed"


def test_waits_for_another_installation(machine: Machine) -> None:
    machine.add_python("python3", (3, 13))
    (machine.root / ".cache").mkdir()
    with open(machine.root / ".cache/setup.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.Popen(
            [machine.root / "scripts" / "setup", "demo"],
            stdout=subprocess.PIPE,
            text=True,
            env={"PATH": str(machine.path)},
        )
        assert process.stdout is not None
        assert "Waiting for another scripts/setup" in process.stdout.readline()
        assert machine.calls() == []
    assert process.wait(60) == 0
    assert installed_groups(machine.calls()) == ["demo"]


def test_refuses_an_unknown_group(machine: Machine) -> None:
    outcome = machine.setup("tests")
    assert outcome.returncode == 2
    assert "no such group: tests" in outcome.stderr


def test_says_that_the_named_python_is_no_program(machine: Machine) -> None:
    machine.add_python("python3", (3, 13))
    outcome = machine.setup("demo", PYTHON="/no/such/python")
    assert outcome.returncode == 1
    assert "PYTHON is '/no/such/python', which is no program" in outcome.stderr
