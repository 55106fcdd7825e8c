"""Rank the pictures of an index: by a query, within a tag, or by path."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scripts.lib.picture_index import PictureIndex

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Result:
    """One picture of the grid. score: cosine similarity; None if nothing was asked for."""

    row: int
    score: float | None


@dataclass(frozen=True)
class Tags:
    """The most similar label of every picture.

    rows: int64 [N], ascending. label: the number of its label, int64 [N]. score: float32 [N].
    """

    rows: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    score: Vector

    def of_row(self, row: int) -> int:
        """Return the number of a picture's label."""
        return int(self.label[np.searchsorted(self.rows, row)])

    def best(self, label: int, count: int) -> list[Result]:
        """Return the pictures of a label, the most similar first."""
        mine = self.label == label
        return _top(self.rows[mine], self.score[mine], count)


class Ranking:
    """Pictures of one index, as it was when this object was made. paths: by row.

    A table of LanceDB stays at the version that was opened: another process may update the index.
    """

    def __init__(self, index: PictureIndex) -> None:
        self._index = index
        self.paths = index.paths()

    def first(self, count: int) -> list[Result]:
        """Return the first pictures by path."""
        return [Result(row, None) for row in list(self.paths)[:count]]

    def vector(self, row: int) -> Vector:
        """Return the stored vector of a picture of `paths`."""
        return self._index.vector(row)

    def nearest(self, query: Vector, count: int) -> list[Result]:
        """Return the pictures that are most similar to `query`."""
        return [Result(hit.row, hit.score) for hit in self._index.nearest(query, count)]

    def nearest_of(self, query: Vector, rows: npt.NDArray[np.int64], count: int) -> list[Result]:
        """Return the most similar pictures among `rows`. query: of length 1."""
        found, scores = [], []
        for batch, vectors in self._index.scan():
            wanted = np.isin(batch, rows)
            found.append(batch[wanted])
            scores.append(vectors[wanted] @ query)
        return _top(np.concatenate(found), np.concatenate(scores), count)

    def tag(self, labels: Vector) -> Tags:
        """Find the most similar label of every picture. labels: float32 [T, D], of length 1."""
        rows, best, scores = [], [], []
        for batch, vectors in self._index.scan():
            similarity = vectors @ labels.T  # [N, T]
            rows.append(batch)
            best.append(similarity.argmax(axis=1))
            scores.append(similarity.max(axis=1))
        order = np.argsort(np.concatenate(rows))
        label, score = np.concatenate(best)[order], np.concatenate(scores)[order]
        return Tags(np.concatenate(rows)[order], label, score)


def _top(rows: npt.NDArray[np.int64], scores: Vector, count: int) -> list[Result]:
    order = np.argsort(-scores, kind="stable")[:count]
    return [Result(int(rows[i]), float(scores[i])) for i in order]
