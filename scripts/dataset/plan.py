"""What is to be done, cut into parts before anything is embedded.

A part is a fixed run of rows and becomes one file, `part-N.parquet`. The plan lies in DEST under
`_plan` and never changes: a run that is interrupted and one that goes on later mean the same by
part N, whatever has become of SOURCE meanwhile. Parquet readers pass over names that begin with
"_". Knows nothing of Ray, or of how a row is embedded.
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

from dataset.places import Place, RangeFile, open_place

PLAN_NAME = "_plan/plan.json"
SUCCESS_NAME = "_SUCCESS"
TABLES = (".parquet", ".csv", ".jsonl")
_CHUNK = 8 * 2**20  # bytes of a table read at once
# A row of CSV longer than this is a quote that was never closed.
csv.field_size_limit(16 * 2**20)


@dataclass(frozen=True)
class Task:
    """What a run is asked for; two runs into one DEST must ask for the same.

    column: None for a folder of pictures; else the tables' column that holds text, or the paths of
    pictures if `of_paths`. id_column: what names a row; None for file:row, counted from 0.
    rows_per_part: a part's length. model: the checksum of the published model's manifest.
    """

    source: str
    column: str | None
    of_paths: bool
    id_column: str | None
    rows_per_part: int
    model: str


@dataclass(frozen=True)
class Part:
    """rows: how many. Of pictures, names: their files. Of a table: the file called `table`, from
    row `first` on; in CSV and JSONL those are the bytes start to stop, and `header` is CSV's."""

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
    """value: text, or a picture's path as the table has it. error: why there is no value."""

    id: str
    value: str | None
    error: str | None = None


@dataclass(frozen=True)
class Plan:
    """The task, and how many parts and rows it comes to."""

    task: Task
    parts: int
    rows: int


def part_name(number: int) -> str:
    return f"part-{number:06d}.parquet"


def _document_name(number: int) -> str:
    return f"_plan/part-{number:06d}.json"


# --- the plan in DEST -------------------------------------------------------------------------


def read_plan(destination: Place) -> Plan | None:
    """The plan that lies there, or None. Raises ValueError if it cannot be read."""
    try:
        document = json.loads(destination.read(PLAN_NAME))
        return Plan(Task(**document["task"]), document["parts"], document["rows"])
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{destination.location}/{PLAN_NAME} is damaged ({error!r})") from error


def write_plan(task: Task, destination: Place) -> Plan:
    """Cut SOURCE into parts and write them down, the plan itself last.

    Raises ValueError if there is nothing to embed or a table lacks a column.
    """
    parts = rows = 0
    with ThreadPoolExecutor(16, thread_name_prefix="plan") as threads:
        for some in _several(_cut(task), 256):
            documents = [replace(part, number=parts + index) for index, part in enumerate(some)]
            for _ in threads.map(
                lambda part: destination.write(
                    _document_name(part.number), json.dumps(asdict(part)).encode()
                ),
                documents,
            ):
                pass
            parts, rows = parts + len(some), rows + sum(part.rows for part in some)
    if not rows:
        raise ValueError(f"{task.source} holds nothing to embed")
    plan = Plan(task, parts, rows)
    destination.write(PLAN_NAME, json.dumps(asdict(plan), indent=1).encode())
    return plan


def read_part(destination: Place, number: int) -> Part:
    document: dict[str, Any] = json.loads(destination.read(_document_name(number)))
    lists = {name: tuple(document[name]) for name in ("names", "header")}
    return Part(**{**document, **lists})


# --- cutting ----------------------------------------------------------------------------------


def _several(items: Iterable[Any], count: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while some := list(itertools.islice(iterator, count)):
        yield some


def _visible(name: str) -> bool:
    return not any(piece.startswith((".", "_")) for piece in name.split("/"))


def split_source(source: str) -> tuple[str, str | None]:
    """SOURCE → its folder, and the table's name if it is one table."""
    if source.endswith(TABLES):
        folder, _, name = source.rpartition("/")
        return folder or ("/" if source.startswith("/") else "."), name
    return source, None


def _cut(task: Task) -> Iterator[Part]:
    folder, one = split_source(task.source)
    place = open_place(folder)
    if task.column is None:
        pictures = (name for name in place.names() if _visible(name))
        for names in _several(pictures, task.rows_per_part):
            yield Part(0, len(names), names=tuple(names))
        return
    tables = [one] if one else (n for n in place.names() if _visible(n) and n.endswith(TABLES))
    for table in tables:
        if table.endswith(".parquet"):
            yield from _cut_parquet(place, table, task)
        else:
            yield from _cut_lines(place, table, task)


def _cut_parquet(place: Place, table: str, task: Task) -> Iterator[Part]:
    file = pq.ParquetFile(RangeFile(place, table))
    _check_columns(file.schema_arrow.names, table, task)
    total = file.metadata.num_rows
    for first in range(0, total, task.rows_per_part):
        yield Part(0, min(task.rows_per_part, total - first), table=table, first=first)


def _cut_lines(place: Place, table: str, task: Task) -> Iterator[Part]:
    lines = _Lines(place, table, 0, place.size(table))
    header: tuple[str, ...] = ()
    if table.endswith(".csv"):
        header = tuple(next(csv.reader(lines), ()))
        _check_columns(header, table, task)
        records: Iterator[Any] = (row for row in csv.reader(lines) if row)
    else:
        records = (line for line in lines if line.strip())
    first, start = 0, lines.at
    while count := sum(1 for _ in itertools.islice(records, task.rows_per_part)):
        # A record is read no further than its end, so this is where the next one begins.
        yield Part(0, count, table=table, first=first, start=start, stop=lines.at, header=header)
        first, start = first + count, lines.at


def _check_columns(there: Iterable[str], table: str, task: Task) -> None:
    for column in (task.column, task.id_column):
        if column is not None and column not in list(there):
            raise ValueError(f"{table} has no column {column!r}; it has {', '.join(there)}")


class _Lines:
    """The lines of bytes start to stop of a file, decoded; `at` is where the next begins."""

    def __init__(self, place: Place, name: str, start: int, stop: int) -> None:
        self.at = start
        self._place, self._name, self._stop = place, name, stop
        self._next = start  # where the next chunk begins
        self._lines: Iterator[bytes] = iter(())
        self._rest = b""

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._lines, None)
        while line is None:
            if self._next >= self._stop:
                if not self._rest:
                    raise StopIteration
                line, self._rest = self._rest, b""
                break
            end = min(self._next + _CHUNK, self._stop)
            pieces = (self._rest + self._place.read(self._name, self._next, end)).split(b"\n")
            self._next, self._rest = end, pieces.pop()
            self._lines = iter([piece + b"\n" for piece in pieces])
            line = next(self._lines, None)
        bom = self.at == 0 and line.startswith(b"\xef\xbb\xbf")
        self.at += len(line)
        # What is not UTF-8 becomes U+FFFD: a row with a strange character, and not a lost one.
        return line[3 if bom else 0 :].decode("utf-8", "replace")


# --- rows -------------------------------------------------------------------------------------


def read_rows(task: Task, part: Part) -> Iterator[Row]:
    """The rows of a part of a table, in order; `part.rows` of them unless it changed."""
    place = open_place(split_source(task.source)[0])
    if part.table.endswith(".parquet"):
        records = _parquet_records(place, part, task)
    elif part.table.endswith(".csv"):
        records = _csv_records(place, part)
    else:
        records = _jsonl_records(place, part)
    for index, (record, error) in enumerate(records, part.first):
        name = record.get(task.id_column) if task.id_column else None
        value = record.get(task.column)
        if error is None and not isinstance(value, str):
            what = "nothing" if value is None else f"a {type(value).__name__}, not text"
            error = f"{part.table}, row {index}: column {task.column!r} holds {what}"
        yield Row(
            f"{part.table}:{index}" if name is None else str(name), None if error else value, error
        )


_Record = tuple[dict[Any, Any], str | None]


def _parquet_records(place: Place, part: Part, task: Task) -> Iterator[_Record]:
    file = pq.ParquetFile(RangeFile(place, part.table), pre_buffer=True)
    columns = [name for name in (task.id_column, task.column) if name]
    begin, stop = 0, part.first + part.rows
    for group in range(file.num_row_groups):
        end = begin + file.metadata.row_group(group).num_rows
        if begin < stop and end > part.first:
            at = begin
            for batch in file.iter_batches(4096, row_groups=[group], columns=columns):
                low, high = max(part.first - at, 0), min(stop - at, len(batch))
                if low < high:
                    table = pa.Table.from_batches([batch.slice(low, high - low)])
                    for record in table.to_pylist():
                        yield record, None
                at += len(batch)
        begin = end


def _csv_records(place: Place, part: Part) -> Iterator[_Record]:
    for row in csv.reader(_Lines(place, part.table, part.start, part.stop)):
        if row:
            yield dict(zip(part.header, row, strict=False)), None


def _jsonl_records(place: Place, part: Part) -> Iterator[_Record]:
    for line in _Lines(place, part.table, part.start, part.stop):
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


def resolve(path: str, task: Task) -> tuple[str, str]:
    """A picture's path, as a table has it → its place and its name there.

    gs://… is as it stands; else it is relative to the table's folder, or absolute where SOURCE is
    on this machine. Raises ValueError for another scheme.
    """
    scheme, separator, rest = path.partition("://")
    if separator:
        if scheme != "gs":
            raise ValueError(f"{path!r}: only gs:// and paths can be read")
        bucket, _, name = rest.partition("/")
        return f"gs://{bucket}", name
    folder = split_source(task.source)[0]
    if path.startswith("/") and "://" not in folder:
        return "/", path.lstrip("/")
    if "://" not in folder:
        return folder, path
    bucket, _, prefix = folder.removeprefix("gs://").partition("/")
    return f"gs://{bucket}", posixpath.normpath(posixpath.join(prefix, path.lstrip("/")))
