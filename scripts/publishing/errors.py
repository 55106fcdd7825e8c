"""The error of publishing: one sentence, with the name of the source and the way out.

Names and values come from files of strangers: `printable` keeps their control characters off the
terminal, `show` shortens them.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys

MAX_WORD = 400
"""Characters of a word of a message: a path is shorter, a hostile tensor name may not be."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class PublishError(SystemExit):
    """Publishing failed. Uncaught, it ends the command with status 1."""

    def __init__(self, message: str) -> None:
        line = re.sub(r"\s*\n\s*", " ", message)  # libraries write several lines
        super().__init__(re.sub(rf"\S{{{MAX_WORD + 1},}}", _shorten_word, printable(line)))


def printable(text: str) -> str:
    """Return `text` with escapes for control characters, also those of bidirectional text."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def show(value: object, limit: int = 100) -> str:
    """Return the repr of a value, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 10]}…{text[-9:]}"


def _shorten_word(found: re.Match[str]) -> str:
    return f"{found[0][: MAX_WORD - 40]}…{found[0][-39:]}"


def redact(location: str) -> str:
    """Return `location` without the user, password, query and fragment that a URL may carry."""
    if ":/" not in location and not location.startswith("//"):
        return location
    return re.sub(r"[?#]\S*", "?***", re.sub(r"/+\S*@", "//***@", location))


def report(line: str) -> None:
    """Print a line to stdout. Raises PublishError if it cannot be written."""
    if sys.stdout is None:  # closed before Python started
        return
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    text = printable(line).encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(text, flush=True)
    except OSError as error:
        # Otherwise Python writes the rest at its end, and fails again.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise PublishError(
            f"stdout cannot be written ({error.strerror}), so that the report is lost; send it"
            " elsewhere and run the same command again"
        ) from error
