"""Define one bad input and its expected result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MAX_PIXELS = 10_000_000
"""The pixel limit these cases are made for: a tenth of the default, to save time and memory."""

VECTOR = "a vector"
EITHER = "a vector or an error"
NOT_AN_IMAGE = "is not an image this service can read; send one of"
DAMAGED = "is damaged or incomplete: "
UNREADABLE = "is a damaged [A-Z]+, or of a kind this service cannot read; save it anew"
UNREADABLE_TIFF = "is a TIFF with .*, which this service cannot read; save it anew"
INCOMPLETE = "is incomplete: .*; send the whole file$"
EMPTY = "is empty; send an image$"
REFUSED = f"{DAMAGED}|{INCOMPLETE}|{EMPTY}|{NOT_AN_IMAGE}|{UNREADABLE}|{UNREADABLE_TIFF}"
TOO_LARGE = r"pixels; the limit is 10,000,000 \(CLIP_MAX_IMAGE_PIXELS\); send it smaller"


@dataclass(frozen=True)
class Case:
    """One input.

    expected: VECTOR, EITHER, or a pattern that the error must match. from_cog: the same, where Cog
    answers before the service receives the input.
    """

    kind: str
    name: str
    content: Any
    expected: str
    media_type: str = "application/octet-stream"
    from_cog: str | None = None
