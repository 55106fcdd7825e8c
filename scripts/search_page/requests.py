"""Read and check the JSON that the page sends."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from scripts.search_page.guard import PageError, read_body

BODY_BYTES = 100_000
MAX_CHARACTERS = 2_000  # of a sentence; CLIP reads about 50 words
MAX_LABELS, MAX_LABEL_CHARACTERS = 100, 200
MAX_COUNT = 200


@dataclass(frozen=True)
class Search:
    """What to search for. Without text, picture and like, the results are the first pictures by
    path, and `without` has no effect.

    picture: a name from Embedder.add_picture. like: the row of an indexed picture, in place of it.
    tag: the number of one of `labels`: only its pictures are results.
    """

    text: str
    without: str
    picture: str | None
    like: int | None
    picture_weight: float
    count: int
    labels: tuple[str, ...]
    tag: int | None


async def read_search(request: Request) -> Search:
    """Read the body of a search. Raises PageError."""
    document = await _read_object(request)
    labels = _labels(document)
    return Search(
        text=_text(document, "text"),
        without=_text(document, "without"),
        picture=document.get("picture") and _text(document, "picture"),
        like=_integer(document, "like", 0, 2**63 - 1),
        picture_weight=_weight(document),
        count=_integer(document, "count", 1, MAX_COUNT) or MAX_COUNT,
        labels=labels,
        tag=_integer(document, "tag", 0, len(labels) - 1),
    )


async def read_labels(request: Request) -> tuple[str, ...]:
    """Read the body of a request for tags. Raises PageError."""
    return _labels(await _read_object(request))


async def _read_object(request: Request) -> dict[str, Any]:
    body = await read_body(request, "application/json", BODY_BYTES, "the request")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):  # bytes that are not UTF-8, or lists in lists in lists
        document = None
    if not isinstance(document, dict):
        raise PageError(400, "the request is not a JSON object")
    return document


def _text(document: dict[str, Any], name: str) -> str:
    value = document.get(name, "")
    if not isinstance(value, str):
        raise PageError(400, f"{name} is not a string")
    if len(value) > MAX_CHARACTERS:
        raise PageError(400, f"{name} has {len(value):,} characters; at most {MAX_CHARACTERS:,}")
    return value.strip()


def _integer(document: dict[str, Any], name: str, low: int, high: int) -> int | None:
    value = document.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise PageError(400, f"{name} is {str(value)[:50]}; give a number from {low} to {high}")
    return value


def _weight(document: dict[str, Any]) -> float:
    value = document.get("picture_weight", 0.5)
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise PageError(400, f"picture_weight is {str(value)[:50]}; give a number from 0 to 1")
    return float(value)


def _labels(document: dict[str, Any]) -> tuple[str, ...]:
    value = document.get("labels", [])
    if not isinstance(value, list) or not all(isinstance(label, str) for label in value):
        raise PageError(400, "labels is not a list of strings")
    labels = tuple(dict.fromkeys(label.strip() for label in value if label.strip()))
    if len(labels) > MAX_LABELS:
        raise PageError(400, f"there are {len(labels)} labels; give at most {MAX_LABELS}")
    for label in labels:
        if len(label) > MAX_LABEL_CHARACTERS:
            raise PageError(400, f"a label has more than {MAX_LABEL_CHARACTERS} characters")
    return labels
