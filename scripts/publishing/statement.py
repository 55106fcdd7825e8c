"""Record the architecture, activation and preprocessing that a source states."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scripts.publishing.errors import PublishError


@dataclass(frozen=True)
class Statement:
    """The architecture, activation and preprocessing that a source states.

    by, preprocess_by: where it states them, for messages. model_cfg: open_clip's, complete; its
    `quick_gelu` is not read. quick_gelu: None if the source does not say. preprocess_cfg:
    open_clip's; entries that the source does not state are missing.
    """

    by: str = ""
    model_cfg: Mapping[str, Any] | None = None
    quick_gelu: bool | None = None
    preprocess_by: str = ""
    preprocess_cfg: Mapping[str, Any] = field(default_factory=dict)


def agree(a: object, b: object) -> bool:
    """Compare two values of a `preprocess_cfg`; numbers in lists may differ by a rounding."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(
            math.isclose(x, y, abs_tol=1e-6) for x, y in zip(a, b, strict=True)
        )
    return a == b


def parse_json(data: bytes, shown: str) -> dict[str, Any]:
    """Parse a JSON object. Raises PublishError, which begins with `shown`."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PublishError(
            f"{shown} is not valid JSON: {_describe(error)}; fetch or save it anew"
        ) from error
    if not isinstance(document, dict):
        raise PublishError(f"{shown} is not a JSON object; fetch or save it anew")
    return document


def _describe(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}, column {error.colno}: {error.msg}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return "it holds a number of more than 4,300 digits"  # the limit of Python's int()
