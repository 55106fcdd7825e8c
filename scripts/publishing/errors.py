"""The error of publishing: one sentence, with the name of the source and the way out."""

from __future__ import annotations

import re


class SourceError(SystemExit):
    """SOURCE or NAME cannot be published. Uncaught, it ends the command with status 1."""

    def __init__(self, message: str) -> None:
        super().__init__(re.sub(r"\s*\n\s*", " ", message))  # libraries write several lines


def redact(location: str) -> str:
    """Return `location` without the user and password that a URL may carry."""
    return re.sub(r"//[^/@]*@", "//***@", location)
