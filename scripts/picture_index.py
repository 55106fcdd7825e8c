"""Vectors of pictures on disk, found by likeness: a LanceDB table. Knows nothing of services."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import lancedb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

TABLE = "pictures"
# What a table remembers of the model that filled it: this text's vector.
PROBE = "a red bicycle"
PROBE_PATH = ""  # the probe's row; no file has an empty path
# The same model on another device or in another precision stays above this.
SAME_MODEL = 0.99


class IndexMismatchError(Exception):
    """The index holds another model's vectors, or there is none."""


@dataclass(frozen=True)
class Stamp:
    """A file as it was when it was embedded: bytes, and nanoseconds of its last change."""

    size: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Raises OSError."""
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class Entry:
    """One embedded picture. vector: float32 [D], any length."""

    path: str
    stamp: Stamp
    vector: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Hit:
    """score: cosine similarity."""

    path: str
    score: float


class PictureIndex:
    """A folder with a LanceDB table. One row per path, whatever is added how often."""

    def __init__(self, folder: Path, probe: npt.NDArray[np.float32], create: bool) -> None:
        """probe: `PROBE` as the service embeds it now.

        Raises IndexMismatchError if the table holds vectors of another model, which compare with
        this one's as well as random numbers do; or if there is no table and `create` is false.
        """
        if not create and not folder.is_dir():
            raise IndexMismatchError(f"there is no index at {folder}; run `search.py index` first")
        folder.mkdir(parents=True, exist_ok=True)
        database = lancedb.connect(str(folder))
        self._schema = pa.schema(
            [
                pa.field("path", pa.string(), nullable=False),
                pa.field("size", pa.int64(), nullable=False),
                pa.field("changed", pa.int64(), nullable=False),
                pa.field("vector", pa.list_(pa.float32(), len(probe)), nullable=False),
            ]
        )
        try:
            self._table = database.open_table(TABLE)
        except (ValueError, FileNotFoundError):
            if not create:
                raise IndexMismatchError(
                    f"there is no index at {folder}; run `search.py index` first"
                ) from None
            rows = self._rows([Entry(PROBE_PATH, Stamp(0, 0), probe)])
            self._table = database.create_table(TABLE, rows)
            return
        kept = self._table.search().where(f"path = '{PROBE_PATH}'").limit(1).to_arrow()
        [then] = kept["vector"].to_pylist() or [[]]
        if len(then) != len(probe) or float(np.dot(then, _unit(probe))) < SAME_MODEL:
            raise IndexMismatchError(
                f"{folder} holds another model's vectors; name another --db, or delete it"
            )

    def stamps(self) -> dict[str, Stamp]:
        """Every indexed path with the file as it was then."""
        table = self._table.search().select(["path", "size", "changed"]).limit(None).to_arrow()
        columns = (table[name].to_pylist() for name in ("path", "size", "changed"))
        found = {path: Stamp(size, changed) for path, size, changed in zip(*columns, strict=True)}
        found.pop(PROBE_PATH, None)
        return found

    def put(self, entries: Iterable[Entry]) -> None:
        """Add, or replace what has the same path: on disk, whole, when this returns."""
        rows = self._rows(list(entries))
        if rows.num_rows:
            merge = self._table.merge_insert("path")
            merge.when_matched_update_all().when_not_matched_insert_all().execute(rows)

    def remove(self, paths: Iterable[str]) -> None:
        """Forget these."""
        quoted = ["'" + path.replace("'", "''") + "'" for path in paths]
        for begin in range(0, len(quoted), 500):
            self._table.delete(f"path IN ({', '.join(quoted[begin : begin + 500])})")

    def compact(self) -> None:
        """Many small writes become few files: queries read them faster."""
        self._table.optimize()

    def nearest(self, vector: npt.NDArray[np.float32], count: int) -> list[Hit]:
        """The most alike, best first: an exact search, nothing is approximated."""
        # Vectors are of length 1: the dot product is the cosine, and cheaper.
        search = self._table.search(_unit(vector), vector_column_name="vector")
        rows = (
            search.distance_type("dot")
            .where(f"path != '{PROBE_PATH}'", prefilter=True)
            .select(["path", "_distance"])
            .limit(count)
            .to_arrow()
        )
        pairs = zip(rows["path"].to_pylist(), rows["_distance"].to_pylist(), strict=True)
        return [Hit(path, 1 - distance) for path, distance in pairs]

    def _rows(self, entries: list[Entry]) -> pa.Table:
        width = self._schema.field("vector").type.list_size
        vectors = np.array([_unit(entry.vector) for entry in entries], np.float32)
        return pa.table(
            [
                pa.array([entry.path for entry in entries], pa.string()),
                pa.array([entry.stamp.size for entry in entries], pa.int64()),
                pa.array([entry.stamp.changed for entry in entries], pa.int64()),
                pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), width),
            ],
            schema=self._schema,
        )


def _unit(vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return (vector / np.linalg.norm(vector)).astype(np.float32)
