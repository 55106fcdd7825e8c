"""The error of publishing: one sentence, with the name of the source and the way out."""

from __future__ import annotations

import re


class SourceError(SystemExit):
    """SOURCE or NAME cannot be published. Uncaught, it ends the command with status 1."""

    def __init__(self, message: str) -> None:
        super().__init__(re.sub(r"\s*\n\s*", " ", message))  # libraries write several lines


def redact(location: str) -> str:
    """Return `location` without the user, password, query and fragment that a URL may carry."""
    if ":/" not in location:
        return location
    return re.sub(r"[?#]\S*", "?***", re.sub(r"/+\S*@", "//***@", location))
