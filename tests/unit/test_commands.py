"""Options of the Python commands in scripts/, and what they say without a package."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator

import pytest

from scripts.lib import cog_server, needs
from scripts.lib.needs import packages_of
from tests.helpers.commands import PYTHON_COMMANDS
from tests.helpers.paths import ROOT


class _ParsedError(Exception):
    """Raised in place of parsing. parser: the command's."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def parser_of(command: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """Call the command's `main` until it parses its arguments; return its parser."""

    def parse_args(parser: argparse.ArgumentParser, *_: object) -> None:
        raise _ParsedError(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr("sys.argv", [command])
    with pytest.raises(_ParsedError) as caught:
        importlib.import_module(f"scripts.{command.removesuffix('.py')}").main()
    return caught.value.parser


def arguments_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the options and positional arguments, those of subcommands included."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from arguments_of(subparser)
        else:
            yield action


@pytest.mark.parametrize("command", PYTHON_COMMANDS)
def test_every_argument_has_help_that_states_its_default(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for argument in arguments_of(parser_of(command, monkeypatch)):
        assert argument.help, argument
        is_flag = isinstance(argument.default, bool) or argument.default == argparse.SUPPRESS
        if not is_flag and argument.default not in (None, []):
            assert "default: " in argument.help, argument


@pytest.mark.parametrize("command", ["search.py index", "search.py query", "search.py serve"])
def test_help_of_a_subcommand_has_an_example(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, subcommand = command.split()
    [action] = parser_of(name, monkeypatch)._subparsers._group_actions
    assert f".venv/bin/python scripts/{command}" in action.choices[subcommand].format_help()


def test_missing_package_is_a_sentence_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["scripts/publish_weights.py", "openai", "out"])
    monkeypatch.setattr("sys.prefix", str(ROOT / ".venv"))
    with pytest.raises(SystemExit) as exit_, packages_of("demo"):
        import no_such_package.submodule  # noqa: F401
    assert exit_.value.code == (
        "scripts/publish_weights.py needs the package no_such_package, which is not installed:"
        " run scripts/setup demo"
    )


def test_missing_package_of_another_python_names_that_of_the_project(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["search.py"])
    monkeypatch.setattr("sys.prefix", "/usr")
    with pytest.raises(SystemExit) as exit_, packages_of("search"):
        import no_such_package  # noqa: F401
    assert exit_.value.code == (
        f"scripts/search.py needs the package no_such_package, which {sys.executable} does not"
        " have: run scripts/setup search, and then .venv/bin/python scripts/search.py"
    )


@pytest.mark.parametrize("module", needs.OWN_MODULES)
def test_missing_module_of_the_project_is_a_bug(module: str) -> None:
    """Its stack trace is not hidden."""
    with pytest.raises(ModuleNotFoundError), packages_of("search"):
        raise ModuleNotFoundError(name=f"{module}.no_such_module")


def test_sockets_of_a_server_have_short_paths_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere than on Linux Cog makes them below TMPDIR, and macOS allows 103 bytes."""
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("tempfile.tempdir", "/var/folders/zz/zyxvpxvq6csfxvn_n0000000000000/T")
    monkeypatch.setattr(cog_server, "CACHE", ROOT / ("x" * 60))
    socket = cog_server.new_directory() / "tmp" / "coglet-99999" / "slot-63.sock"
    assert len(str(socket)) <= 103
