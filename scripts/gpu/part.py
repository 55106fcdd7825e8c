"""Run one part in this process, and write each figure to a file as soon as it is measured.

    python -m scripts.gpu.part NAME TASK    TASK: JSON of `Task`

If a part is killed, its figures so far are kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.lib.needs import OWN_MODULES


@dataclass(frozen=True)
class Task:
    """The parameters of a part.

    device: "cuda" or "cpu". tiny: a tiny model and little work. folder: for models and temporary
    files. records: the file of this part's records. seconds: this part's time limit. libraries:
    measure transformers and open_clip, too.
    """

    device: str
    tiny: bool
    folder: str
    records: str
    seconds: float
    libraries: bool = True

    @property
    def models(self) -> Path:
        """The folder with one folder for each form of the weights."""
        return Path(self.folder) / "models"

    @property
    def ours(self) -> str:
        """The location of the weights that this service pulls."""
        return str(self.models / "ours")


class Recorder:
    """Writes records, one JSON object per line. Figures of one table are compared with each other.

    A figure stands in a table, in a row, and in a column if the table has several.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a")

    def figure(
        self,
        table: str,
        row: str,
        values: Sequence[float] | float,
        unit: str,
        *,
        column: str = "",
        more_is_better: bool = False,
    ) -> None:
        """Write values of a figure, in the order in which they were measured.

        Later values for the same place are added to it.
        """
        listed = [values] if isinstance(values, int | float) else list(values)
        self._write(
            "figure",
            table=table,
            row=row,
            column=column,
            unit=unit,
            values=listed,
            more_is_better=more_is_better,
        )

    def fact(self, name: str, value: str) -> None:
        """Write a fact of the environment."""
        self._write("fact", name=name, value=value)

    def note(self, text: str) -> None:
        """Write a sentence that stands below the tables."""
        self._write("note", text=text)

    def skip(self, text: str) -> None:
        """Write what could not be measured here, and why."""
        self._write("skipped", text=text)

    def fail(self, text: str) -> None:
        """Write what went wrong. The part then counts as failed."""
        self._write("failed", text=text)

    @contextlib.contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Record an error of the block and go on: a missing package as skipped, others as failed.

        Interrupts are not errors.
        """
        try:
            yield
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if not package or package in OWN_MODULES:
                self._failed(name, error)
            else:
                self.skip(f"{name}: needs the package {package}")
        except (Exception, SystemExit) as error:
            self._failed(name, error)

    def _failed(self, name: str, error: BaseException) -> None:
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        self.fail(f"{name}: {type(error).__name__}: {lines[0][:300]}")

    def _write(self, kind: str, **values: Any) -> None:
        self._file.write(json.dumps({"kind": kind, **values}) + "\n")
        self._file.flush()


def main() -> None:
    name, document = sys.argv[1:]
    task = Task(**json.loads(document))
    record = Recorder(Path(task.records))
    os.environ["HF_HUB_OFFLINE"] = "1"  # all models are local
    with record.section(name):
        from scripts.lib.cog_server import bypass_proxies  # needs packages

        bypass_proxies()
        importlib.import_module(f"scripts.gpu.{name}").run(task, record)


def command(name: str, task: Task) -> list[str]:
    """Return the command that runs a part. Its directory must be the project's."""
    return [sys.executable, "-m", __name__, name, json.dumps(dataclasses.asdict(task))]


if __name__ == "__main__":
    main()
