"""Vectors of pictures on disk, found by likeness: a LanceDB table. Knows nothing of services."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import lancedb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb.index import IvfSq

TABLE = "pictures"
# What an index remembers of the model that filled it: this text's vector, in a table of its own.
PROBE = "a red bicycle"
PROBE_TABLE = "probe"
# The same model on another device or in another precision stays above this.
SAME_MODEL = 0.99
# From so many pictures on, vectors are kept in 8 bits, too. A query reads all of those (every
# partition), and the best so many times what is asked for once more in full: a twentieth of the
# time of reading everything in full, and the same ranking.
QUANTIZED_FROM = 10_000
PARTITIONS = 32
READ_IN_FULL = 5


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
        probe_ = _unit(probe)
        schema = pa.schema(
            [
                pa.field("path", pa.string(), nullable=False),
                pa.field("size", pa.int64(), nullable=False),
                pa.field("changed", pa.int64(), nullable=False),
                pa.field("vector", pa.list_(pa.float32(), len(probe)), nullable=False),
            ]
        )
        tables = database.list_tables().tables
        if PROBE_TABLE not in tables:
            database.create_table(PROBE_TABLE, pa.table({"vector": [probe_.tolist()]}))
        then = np.array(database.open_table(PROBE_TABLE).to_arrow()["vector"][0].as_py())
        if len(then) != len(probe) or float(np.dot(then, probe_)) < SAME_MODEL:
            raise IndexMismatchError(
                f"{folder} holds another model's vectors; name another --db, or delete it"
            )
        self._schema = schema
        self._table = database.create_table(TABLE, schema=schema, exist_ok=True)

    def stamps(self) -> dict[str, Stamp]:
        """Every indexed path with the file as it was then."""
        table = self._table.search().select(["path", "size", "changed"]).limit(None).to_arrow()
        columns = (table[name].to_pylist() for name in ("path", "size", "changed"))
        return {path: Stamp(size, changed) for path, size, changed in zip(*columns, strict=True)}

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
        """Many small writes become few files, and many vectors small ones: queries get faster."""
        self._table.optimize()
        if self._table.count_rows() >= QUANTIZED_FROM and not self._table.list_indices():
            config = IvfSq(distance_type="cosine", num_partitions=PARTITIONS)
            self._table.create_index("vector", config=config)

    def nearest(self, vector: npt.NDArray[np.float32], count: int) -> list[Hit]:
        """The most alike, best first; none is passed over for being in the wrong partition."""
        search = self._table.search(_unit(vector), vector_column_name="vector")
        rows = (
            search.distance_type("cosine")
            .nprobes(PARTITIONS)
            .refine_factor(READ_IN_FULL)
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
