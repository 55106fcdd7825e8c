"""Read the records of the parts, and write them as JSON and as Markdown tables."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.benchmarks.report import Figure

OK = "ok"


@dataclass(frozen=True)
class Cell:
    """A figure, and where it stands: see `part.Recorder`."""

    table: str
    row: str
    column: str
    figure: Figure


@dataclass(frozen=True)
class Result:
    """What a part has recorded. status: "ok", "skipped: why" or "failed: why".

    seconds: that the part took. skipped, failed: sentences.
    """

    name: str
    status: str
    seconds: float
    cells: Sequence[Cell] = ()
    facts: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    skipped: Sequence[str] = ()
    failed: Sequence[str] = ()


def read_result(name: str, records: Path, seconds: float, problem: str | None) -> Result:
    """Read the records of a part. problem: what went wrong with its process, as a status."""
    lines = _read_lines(records)
    skipped, failed = (
        [line["text"] for line in lines if line["kind"] == kind] for kind in ("skipped", "failed")
    )
    cells = _cells([line for line in lines if line["kind"] == "figure"])
    facts = [(line["name"], line["value"]) for line in lines if line["kind"] == "fact"]
    if failed:
        status = f"failed: {'; '.join(failed)}"
    elif problem:
        status = problem
    elif skipped and not cells:
        status = f"skipped: {'; '.join(skipped)}"
    else:
        status = OK
    notes = [line["text"] for line in lines if line["kind"] == "note"]
    return Result(name, status, seconds, cells, facts, notes, skipped, failed)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records. The last line may be cut, if the part was killed."""
    if not path.exists():
        return []
    *complete, _ = path.read_text().split("\n")
    return [json.loads(line) for line in complete]


def _cells(lines: Sequence[dict[str, Any]]) -> list[Cell]:
    """Return the figures. Values that were recorded one after another for a place belong to one."""
    places: dict[tuple[str, str, str], Figure] = {}
    for line in lines:
        place = line["table"], line["row"], line["column"]
        before = places[place].values if place in places else ()
        name = ", ".join(filter(None, place[1:]))
        values = (*before, *line["values"])
        places[place] = Figure(name, values, line["unit"], line["more_is_better"])
    return [Cell(*place, figure) for place, figure in places.items()]


class Report:
    """Collects results, and writes all of them again after each."""

    def __init__(self, device: str, tiny: bool) -> None:
        self._device, self._tiny = device, tiny
        self._date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        self._results: list[Result] = []

    def add(self, result: Result) -> None:
        """Add the result of a part."""
        self._results.append(result)

    @property
    def succeeded(self) -> bool:
        """Whether no part failed. A skipped part did not."""
        return not any(result.status.startswith("failed") for result in self._results)

    @property
    def environment(self) -> dict[str, str]:
        """The facts that the parts have recorded, the date and the model."""
        facts = {name: value for result in self._results for name, value in result.facts}
        model = "tiny, its figures mean nothing" if self._tiny else "ViT-L/14, random weights"
        return {**facts, "device": self._device, "model": model, "date": self._date}

    def write(self, folder: Path) -> None:
        """Write gpu.json and gpu.md."""
        document = {
            "environment": self.environment,
            "parts": [self._part(result) for result in self._results],
        }
        (folder / "gpu.json").write_text(json.dumps(document, indent=1) + "\n")
        (folder / "gpu.md").write_text(self.markdown(each_with_machine=True))

    def markdown(self, *, each_with_machine: bool = False) -> str:
        """Return all tables. each_with_machine: name the machine below each one, not only once."""
        blocks = [f"# check_gpu.py\n\n{self.machine()}", self._summary()]
        for result in self._results:
            blocks.append(f"## {result.name}")
            for rows in _tables(result.cells):
                blocks.append(_table(rows))
                if each_with_machine:
                    blocks.append(self.machine())
            sentences = [
                *result.notes,
                *(f"Skipped: {text}" for text in result.skipped),
                *(f"Failed: {text}" for text in result.failed),
            ]
            if sentences:
                blocks.append("\n".join(f"- {sentence}" for sentence in sentences))
        return "\n\n".join(blocks) + "\n"

    def machine(self) -> str:
        """Return one line with the machine, the versions and the date."""
        return "; ".join(f"{name} {value}" for name, value in self.environment.items()) + "."

    def _summary(self) -> str:
        rows = [f"| {each.name} | {each.seconds:.0f} | {each.status} |" for each in self._results]
        return "\n".join(["| part | seconds | status |", "|---|---|---|", *rows])

    def _part(self, result: Result) -> dict[str, Any]:
        figures = [
            {
                "part": result.name,
                "table": cell.table,
                **dataclasses.asdict(cell.figure),
                "median": cell.figure.median,
            }
            for cell in result.cells
        ]
        return {
            "name": result.name,
            "status": result.status,
            "seconds": round(result.seconds, 1),
            "figures": figures,
            "notes": result.notes,
            "skipped": result.skipped,
            "failed": result.failed,
        }


def _tables(cells: Sequence[Cell]) -> Iterator[list[Cell]]:
    for table in dict.fromkeys(cell.table for cell in cells):
        yield [cell for cell in cells if cell.table == table]


def _table(cells: Sequence[Cell]) -> str:
    """Return one Markdown table: medians by row and column, or medians and ranges by row."""
    unit = _unit(cells)
    title = f"{cells[0].table}, {unit}" if unit else cells[0].table
    columns: dict[str, list[Cell]] = {}
    for cell in cells:
        columns.setdefault(cell.column, []).append(cell)
    if list(columns) == [""]:
        head = [title, "median", "range"]
        rows = [
            [
                cell.row,
                number(cell.figure.median) + (f" {cell.figure.unit}" if unit is None else ""),
                _range(cell.figure),
            ]
            for cell in cells
        ]
    else:
        head = [title]
        head += [
            column if unit is not None else f"{column} {_unit(each) or ''}".rstrip()
            for column, each in columns.items()
        ]
        found = {(cell.row, cell.column): number(cell.figure.median) for cell in cells}
        rows = [
            [row, *(found.get((row, column), "") for column in columns)]
            for row in dict.fromkeys(cell.row for cell in cells)
        ]
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def _unit(cells: Sequence[Cell]) -> str | None:
    """Return the unit of all cells, None if it is not the same."""
    units = {cell.figure.unit for cell in cells}
    return units.pop() if len(units) == 1 else None


def _range(figure: Figure) -> str:
    if len(figure.values) == 1:
        return ""
    return f"{number(min(figure.values))} – {number(max(figure.values))}"


def number(value: float) -> str:
    """Return three digits or more; of a value near 1, such as a cosine, seven."""
    if 0.99 < value < 1:
        return f"{value:.7f}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
