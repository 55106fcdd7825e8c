"""What a source says about its model, beside the tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scripts.publishing.errors import SourceError


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


def parse_json(data: bytes, shown: str) -> dict[str, Any]:
    """Parse a JSON object. Raises SourceError, which begins with `shown`."""
    try:
        document = json.loads(data)
    except ValueError as error:
        raise SourceError(f"{shown} is not valid JSON ({error}); fetch or save it anew") from error
    if not isinstance(document, dict):
        raise SourceError(f"{shown} is not a JSON object; fetch or save it anew")
    return document
