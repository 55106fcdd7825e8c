"""How often the right one is found. Knows nothing of where vectors come from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Recall:
    """Shares of queries whose own counterpart is among the first 1, the first 5."""

    at_1: float
    at_5: float


def recall(queries: npt.ArrayLike, answers: npt.ArrayLike) -> Recall:
    """Row i of `answers` is the right one for row i of `queries`; both [N, D], any length.

    Ranked by cosine similarity. A tie counts against: answers that are all alike find nothing.
    """
    unit = [
        np.asarray(each) / np.linalg.norm(each, axis=1, keepdims=True)
        for each in (queries, answers)
    ]
    similarity = unit[0] @ unit[1].T
    right = np.diagonal(similarity)[:, None]
    rank = (similarity >= right).sum(1)  # the right one itself included
    return Recall(float((rank <= 1).mean()), float((rank <= 5).mean()))


def table(name: str, texts: npt.ArrayLike, images: npt.ArrayLike) -> str:
    """A row of a Markdown table: both directions' R@1 and R@5."""
    there, back = recall(texts, images), recall(images, texts)
    figures = (there.at_1, there.at_5, back.at_1, back.at_5)
    return f"| {name}, {len(np.asarray(texts))} | " + " | ".join(f"{f:.3f}" for f in figures) + " |"
