"""Measure retrieval: how often the matching vector is found first, or among the first five."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Recall:
    """Fractions of queries whose match ranks first, or among the first five."""

    at_1: float
    at_5: float


def recall(queries: npt.ArrayLike, answers: npt.ArrayLike) -> Recall:
    """Rank `answers` by cosine similarity to each query; row i of each belongs together.

    queries, answers: [N, D], of any length. Ties count against the match, so that answers which are
    all alike find nothing.
    """
    unit_queries, unit_answers = (
        np.asarray(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)
        for vectors in (queries, answers)
    )
    similarity = unit_queries @ unit_answers.T  # [N, N]
    of_match = np.diagonal(similarity)[:, None]
    rank = (similarity >= of_match).sum(1)  # 1: the match alone
    return Recall(float((rank <= 1).mean()), float((rank <= 5).mean()))


def best_rank(scores: npt.NDArray[np.floating], right: Sequence[int]) -> int:
    """Return the rank of the best of the answers `right`, 1 for the first. scores: [N]."""
    return int((scores > scores[right].max()).sum()) + 1


def table_row(name: str, texts: npt.ArrayLike, images: npt.ArrayLike) -> str:
    """Return a Markdown row: text→image R@1 and R@5, image→text R@1 and R@5."""
    text_to_image, image_to_text = recall(texts, images), recall(images, texts)
    figures = (text_to_image.at_1, text_to_image.at_5, image_to_text.at_1, image_to_text.at_5)
    return f"| {name}, {len(np.asarray(texts))} | " + " | ".join(f"{f:.3f}" for f in figures) + " |"
