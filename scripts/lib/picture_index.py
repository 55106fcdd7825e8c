"""Store embeddings of pictures on disk and find the most similar ones: a LanceDB table.

The index knows paths and vectors; how a vector is made is not its subject.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import lancedb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb.index import IvfSq

TABLE = "pictures"
# An index stores the embedding of this text, in a table of its own, to recognize its model again.
PROBE = "a red bicycle"
PROBE_TABLE = "probe"
# Lowest cosine similarity of two embeddings of PROBE by one model: devices and precisions differ.
SAME_MODEL = 0.99
# With this many pictures or more, vectors are also stored quantized to 8 bits. A query reads all
# quantized vectors (every partition), and then the best ones, REFINE_FACTOR times as many as are
# asked for, in full. The ranking is the same as from reading all in full, in 1/20 of the time.
QUANTIZED_FROM = 10_000
PARTITIONS = 32
REFINE_FACTOR = 5
DELETE_BATCH = 500  # paths in one SQL expression
SCAN_ROWS = 4096  # vectors in memory at a time: 13 MB at 768 dimensions


class IndexMismatchError(Exception):
    """The index holds vectors of another model, or there is no index."""


@dataclass(frozen=True)
class Stamp:
    """State of a file when it was embedded. size: bytes. changed: modification time in ns."""

    size: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Return the stamp of a file as it is now. Raises OSError."""
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class Entry:
    """One embedded picture. vector: float32 [D], of any length."""

    path: str
    stamp: Stamp
    vector: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Hit:
    """One search result. score: cosine similarity. row: its id, as long as nothing is written."""

    path: str
    score: float
    row: int


class PictureIndex:
    """Index in a folder: a LanceDB table with one row per path."""

    def __init__(self, folder: Path, probe: npt.NDArray[np.float32], create: bool) -> None:
        """Open the index in `folder`. probe: the service's embedding of PROBE.

        Raises IndexMismatchError if the index holds vectors of another model, because similarities
        between two models are meaningless; and if there is no index and `create` is false.
        """
        if not create and not folder.is_dir():
            raise IndexMismatchError(f"there is no index at {folder}; run `search.py index` first")
        folder.mkdir(parents=True, exist_ok=True)
        database = lancedb.connect(str(folder))
        unit_probe = _unit(probe)
        tables = database.list_tables().tables
        if PROBE_TABLE not in tables:
            database.create_table(PROBE_TABLE, pa.table({"vector": [unit_probe.tolist()]}))
        stored = np.array(database.open_table(PROBE_TABLE).to_arrow()["vector"][0].as_py())
        if len(stored) != len(probe) or float(np.dot(stored, unit_probe)) < SAME_MODEL:
            raise IndexMismatchError(
                f"{folder} holds another model's vectors; name another --db, or delete it"
            )
        self._schema = pa.schema(
            [
                pa.field("path", pa.string(), nullable=False),
                pa.field("size", pa.int64(), nullable=False),
                pa.field("changed", pa.int64(), nullable=False),
                pa.field("vector", pa.list_(pa.float32(), len(probe)), nullable=False),
            ]
        )
        self._table = database.create_table(TABLE, schema=self._schema, exist_ok=True)

    def stamps(self) -> dict[str, Stamp]:
        """Return the stamp of every indexed path."""
        table = self._table.search().select(["path", "size", "changed"]).limit(None).to_arrow()
        columns = (table[name].to_pylist() for name in ("path", "size", "changed"))
        return {path: Stamp(size, changed) for path, size, changed in zip(*columns, strict=True)}

    def put(self, entries: Iterable[Entry]) -> None:
        """Add entries, or replace those with the same path. Durable and atomic when it returns."""
        rows = self._rows(list(entries))
        if rows.num_rows:
            merge = self._table.merge_insert("path")
            merge.when_matched_update_all().when_not_matched_insert_all().execute(rows)

    def remove(self, paths: Iterable[str]) -> None:
        """Remove the entries with these paths."""
        quoted = ["'" + path.replace("'", "''") + "'" for path in paths]
        for begin in range(0, len(quoted), DELETE_BATCH):
            self._table.delete(f"path IN ({', '.join(quoted[begin : begin + DELETE_BATCH])})")

    def compact(self) -> None:
        """Merge small files and quantize the vectors if there are many: queries get faster."""
        self._table.optimize()
        if self._table.count_rows() >= QUANTIZED_FROM and not self._table.list_indices():
            config = IvfSq(distance_type="cosine", num_partitions=PARTITIONS)
            self._table.create_index("vector", config=config)

    def nearest(self, vector: npt.NDArray[np.float32], count: int) -> list[Hit]:
        """Return the `count` most similar entries, best first. The search covers all partitions."""
        search = self._table.search(_unit(vector), vector_column_name="vector")
        rows = (
            search.distance_type("cosine")
            .nprobes(PARTITIONS)
            .refine_factor(REFINE_FACTOR)
            .select(["path", "_distance"])
            .with_row_id(True)
            .limit(count)
            .to_arrow()
        )
        columns = (rows[name].to_pylist() for name in ("path", "_distance", "_rowid"))
        return [Hit(path, 1 - distance, row) for path, distance, row in zip(*columns, strict=True)]

    def paths(self) -> dict[int, str]:
        """Return the path of every row, sorted by path."""
        table = self._table.search().select(["path"]).with_row_id(True).limit(None).to_arrow()
        table = table.sort_by("path")
        return dict(zip(table["_rowid"].to_pylist(), table["path"].to_pylist(), strict=True))

    def vector(self, row: int) -> npt.NDArray[np.float32]:
        """Return the vector of an existing row: float32 [D], of length 1."""
        table = self._table.take_row_ids([row]).select(["vector"]).to_arrow()
        return _matrix(table["vector"].combine_chunks())[0]

    def scan(self) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        """Read all vectors from disk, SCAN_ROWS at a time: rows [N] and float32 [N, D]."""
        # Not to_batches: LanceDB 0.40 then holds several times what is being read in memory.
        for begin in range(0, self._table.count_rows(), SCAN_ROWS):
            search = self._table.search().select(["vector"]).with_row_id(True)
            table = search.offset(begin).limit(SCAN_ROWS).to_arrow()
            vectors = _matrix(table["vector"].combine_chunks())
            yield table["_rowid"].to_numpy().astype(np.int64), vectors

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


def _matrix(vectors: pa.FixedSizeListArray) -> npt.NDArray[np.float32]:
    """Return a column of vectors as float32 [N, D], without a copy."""
    return np.asarray(vectors.flatten()).reshape(len(vectors), -1)


def _unit(vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return `vector` divided by its length."""
    return (vector / np.linalg.norm(vector)).astype(np.float32)
