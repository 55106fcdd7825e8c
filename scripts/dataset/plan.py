"""Split a data set into parts before anything is embedded.

A part is a fixed range of rows and becomes one file, `part-N.parquet`. The plan is stored in DEST
under `_plan` and never changes: part N holds the same rows in every run, even if SOURCE changes
between an interruption and the next run. Parquet readers ignore names that begin with "_".
"""

from __future__ import annotations

import csv
import itertools
import json
import posixpath
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scripts.lib.storage import Storage, StorageFile, open_storage

PLAN_NAME = "_plan/plan.json"
SUCCESS_NAME = "_SUCCESS"
TABLE_SUFFIXES = (".parquet", ".csv", ".jsonl")
_CHUNK_BYTES = 8 * 2**20  # of a table, per read
_WRITE_THREADS = 16
_PARTS_PER_WRITE = 256
# A longer CSV row is a quote that was never closed.
csv.field_size_limit(16 * 2**20)


@dataclass(frozen=True)
class EmbeddingJob:
    """The request of a run. Runs into the same DEST must have equal jobs.

    column: None for a folder of images; else the column of the tables that holds text, or paths of
    images if `of_paths`. id_column: the column that names a row; None for file:row, counted from 0.
    rows_per_part: rows in each part but the last of a table. model: name and checksums of the
    published model.
    """

    source: str
    column: str | None
    of_paths: bool
    id_column: str | None
    rows_per_part: int
    model: str


@dataclass(frozen=True)
class Part:
    """A range of rows.

    rows: how many. names: the files, if the rows are images. table: the file that holds the rows,
    from row `first` on. start, stop: for CSV and JSONL, the bytes of these rows. header: the column
    names of a CSV file.
    """

    number: int
    rows: int
    names: tuple[str, ...] = ()
    table: str = ""
    first: int = 0
    start: int = 0
    stop: int = 0
    header: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """value: text, or the path of an image. error: why there is no value."""

    id: str
    value: str | None
    error: str | None = None


@dataclass(frozen=True)
class Plan:
    """A job, and its number of parts and rows."""

    job: EmbeddingJob
    parts: int
    rows: int


def part_name(number: int) -> str:
    """Return the name of the output file of a part."""
    return f"part-{number:06d}.parquet"


def _plan_part_name(number: int) -> str:
    return f"_plan/part-{number:06d}.json"


# --- the plan in DEST -------------------------------------------------------------------------


def read_plan(destination: Storage) -> Plan | None:
    """Return the plan in `destination`, None without one. Raises ValueError if it is damaged."""
    try:
        document = json.loads(destination.read(PLAN_NAME))
        return Plan(EmbeddingJob(**document["task"]), document["parts"], document["rows"])
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{destination.location}/{PLAN_NAME} is damaged ({error!r})") from error


def write_plan(job: EmbeddingJob, destination: Storage) -> Plan:
    """Split the source into parts and write them to `destination`, `plan.json` last.

    Raises ValueError if the source is empty or a table lacks a column.
    """

    def write_part(part: Part) -> None:
        destination.write(_plan_part_name(part.number), json.dumps(asdict(part)).encode())

    parts = rows = 0
    with ThreadPoolExecutor(_WRITE_THREADS, thread_name_prefix="plan") as threads:
        for batch in _batches(_split(job), _PARTS_PER_WRITE):
            numbered = [replace(part, number=parts + index) for index, part in enumerate(batch)]
            list(threads.map(write_part, numbered))
            parts, rows = parts + len(batch), rows + sum(part.rows for part in batch)
    if not rows:
        raise ValueError(f"{job.source} holds nothing to embed")
    document = {"task": asdict(job), "parts": parts, "rows": rows}
    destination.write(PLAN_NAME, json.dumps(document, indent=1).encode())
    return Plan(job, parts, rows)


def read_part(destination: Storage, number: int) -> Part:
    """Return part `number` of the plan in `destination`."""
    document: dict[str, Any] = json.loads(destination.read(_plan_part_name(number)))
    lists = {name: tuple(document[name]) for name in ("names", "header")}
    return Part(**{**document, **lists})


# --- splitting --------------------------------------------------------------------------------


def split_source(source: str) -> tuple[str, str | None]:
    """Return the folder of SOURCE, and the name of the table if SOURCE is a single table."""
    if source.endswith(TABLE_SUFFIXES):
        folder, _, name = source.rpartition("/")
        return folder or ("/" if source.startswith("/") else "."), name
    return source, None


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _is_visible(name: str) -> bool:
    return not any(segment.startswith((".", "_")) for segment in name.split("/"))


def _split(job: EmbeddingJob) -> Iterator[Part]:
    """Yield the parts of the source, all with number 0."""
    folder, table = split_source(job.source)
    storage = open_storage(folder)
    files = filter(_is_visible, storage.names())
    if job.column is None:
        for batch in _batches(files, job.rows_per_part):
            yield Part(0, len(batch), names=tuple(batch))
        return
    tables = [table] if table else (name for name in files if name.endswith(TABLE_SUFFIXES))
    for name in tables:
        if name.endswith(".parquet"):
            yield from _split_parquet(storage, name, job)
        else:
            yield from _split_lines(storage, name, job)


def _split_parquet(storage: Storage, table: str, job: EmbeddingJob) -> Iterator[Part]:
    file = pq.ParquetFile(StorageFile(storage, table))
    _check_columns(file.schema_arrow.names, table, job)
    total = file.metadata.num_rows
    for first in range(0, total, job.rows_per_part):
        yield Part(0, min(job.rows_per_part, total - first), table=table, first=first)


def _split_lines(storage: Storage, table: str, job: EmbeddingJob) -> Iterator[Part]:
    lines = _LineReader(storage, table, 0, storage.size(table))
    header: tuple[str, ...] = ()
    if table.endswith(".csv"):
        header = tuple(next(csv.reader(lines), ()))
        _check_columns(header, table, job)
        records: Iterator[Any] = (row for row in csv.reader(lines) if row)
    else:
        records = (line for line in lines if line.strip())
    first, start = 0, lines.position
    while count := sum(1 for _ in itertools.islice(records, job.rows_per_part)):
        # No reader reads beyond the end of a record, so the next record begins here.
        stop = lines.position
        yield Part(0, count, table=table, first=first, start=start, stop=stop, header=header)
        first, start = first + count, stop


def _check_columns(columns: Iterable[str], table: str, job: EmbeddingJob) -> None:
    for column in (job.column, job.id_column):
        if column is not None and column not in list(columns):
            raise ValueError(f"{table} has no column {column!r}; it has {', '.join(columns)}")


class _LineReader:
    """Iterates over the decoded lines of a range of bytes of a file.

    position: the byte at which the next line begins.
    """

    def __init__(self, storage: Storage, name: str, start: int, stop: int) -> None:
        self.position = start
        self._storage, self._name, self._stop = storage, name, stop
        self._next_chunk = start
        self._lines: Iterator[bytes] = iter(())
        self._rest = b""  # of the last chunk, after its last line break

    def __iter__(self) -> _LineReader:
        return self

    def __next__(self) -> str:
        line = next(self._lines, None)
        while line is None:
            if self._next_chunk >= self._stop:
                if not self._rest:
                    raise StopIteration
                line, self._rest = self._rest, b""
                break
            self._read_chunk()
            line = next(self._lines, None)
        bom = self.position == 0 and line.startswith(b"\xef\xbb\xbf")
        self.position += len(line)
        # Invalid UTF-8 becomes U+FFFD: one character is wrong, but no row is lost.
        return line[3 if bom else 0 :].decode("utf-8", "replace")

    def _read_chunk(self) -> None:
        end = min(self._next_chunk + _CHUNK_BYTES, self._stop)
        data = self._rest + self._storage.read(self._name, self._next_chunk, end)
        *lines, self._rest = data.split(b"\n")
        self._next_chunk = end
        self._lines = iter([line + b"\n" for line in lines])


# --- rows -------------------------------------------------------------------------------------


def read_rows(job: EmbeddingJob, part: Part) -> Iterator[Row]:
    """Yield the rows of a part of a table, in order: `part.rows` of them unless it has changed."""
    storage = open_storage(split_source(job.source)[0])
    if part.table.endswith(".parquet"):
        records = _parquet_records(storage, part, job)
    elif part.table.endswith(".csv"):
        records = _csv_records(storage, part)
    else:
        records = _jsonl_records(storage, part)
    for index, (record, error) in enumerate(records, part.first):
        name = record.get(job.id_column) if job.id_column else None
        value = record.get(job.column)
        if error is None and not isinstance(value, str):
            content = "nothing" if value is None else f"a {type(value).__name__}, not text"
            error = f"{part.table}, row {index}: column {job.column!r} holds {content}"
        yield Row(
            f"{part.table}:{index}" if name is None else str(name), None if error else value, error
        )


_Record = tuple[dict[Any, Any], str | None]
"""A row as column → value, and the reason if it cannot be read."""


def _parquet_records(storage: Storage, part: Part, job: EmbeddingJob) -> Iterator[_Record]:
    file = pq.ParquetFile(StorageFile(storage, part.table), pre_buffer=True)
    columns = [name for name in (job.id_column, job.column) if name]
    stop = part.first + part.rows
    group_start = 0
    for group in range(file.num_row_groups):
        group_stop = group_start + file.metadata.row_group(group).num_rows
        if group_start < stop and group_stop > part.first:
            batch_start = group_start
            for batch in file.iter_batches(4096, row_groups=[group], columns=columns):
                low = max(part.first - batch_start, 0)
                high = min(stop - batch_start, len(batch))
                if low < high:
                    table = pa.Table.from_batches([batch.slice(low, high - low)])
                    for record in table.to_pylist():
                        yield record, None
                batch_start += len(batch)
        group_start = group_stop


def _csv_records(storage: Storage, part: Part) -> Iterator[_Record]:
    for row in csv.reader(_LineReader(storage, part.table, part.start, part.stop)):
        if row:
            yield dict(zip(part.header, row, strict=False)), None


def _jsonl_records(storage: Storage, part: Part) -> Iterator[_Record]:
    for line in _LineReader(storage, part.table, part.start, part.stop):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            yield {}, f"{part.table}: not JSON ({error})"
            continue
        if isinstance(record, dict):
            yield record, None
        else:
            yield {}, f"{part.table}: a line of JSON must be an object"


def resolve_image(path: str, job: EmbeddingJob) -> tuple[str, str]:
    """Return the location of an image and its name there. path: as the table has it.

    A gs:// path is absolute. Another path is relative to the table's folder, or absolute if SOURCE
    is on this machine. Raises ValueError for another scheme.
    """
    scheme, separator, rest = path.partition("://")
    if separator:
        if scheme != "gs":
            raise ValueError(f"{path!r}: only gs:// and paths can be read")
        bucket, _, name = rest.partition("/")
        return f"gs://{bucket}", name
    folder = split_source(job.source)[0]
    if path.startswith("/") and "://" not in folder:
        return "/", path.lstrip("/")
    if "://" not in folder:
        return folder, path
    bucket, _, prefix = folder.removeprefix("gs://").partition("/")
    return f"gs://{bucket}", posixpath.normpath(posixpath.join(prefix, path.lstrip("/")))
