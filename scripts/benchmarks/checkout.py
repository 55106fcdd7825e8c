"""Run checkouts of this project side by side: this one, and an earlier commit as a baseline.

A baseline may have another layout, so it is used only through what all checkouts have in common:
Cog's server with its `predict.py`, and the modules that checkout_worker.py imports.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from scripts.benchmarks.worker import TUNABLES, Worker
from scripts.lib.cog_server import ROOT, CogServer

WORKER = Path(__file__).with_name("checkout_worker.py")


@dataclass(frozen=True)
class Checkout:
    """directory: the root of the checkout. name: of its rows in tables."""

    directory: Path
    name: str

    @classmethod
    def open_baseline(cls, directory: Path) -> Checkout:
        """Open another checkout. Raises SystemExit if its modules cannot be imported from it."""
        directory = directory.resolve()
        if not (directory / "predict.py").is_file():
            raise SystemExit(f"--baseline {directory} is not a checkout of this project")
        baseline = cls(directory, f"baseline ({_commit(directory)})")
        code = "import weights, clip_embed; print(weights.__file__, clip_embed.__file__, sep='\\n')"
        done = subprocess.run(
            [sys.executable, "-P", "-c", code],
            env={**os.environ, **baseline._python_path},
            capture_output=True,
            text=True,
        )
        files = done.stdout.split("\n")[:-1]
        if not files or not all(Path(file).is_relative_to(directory) for file in files):
            raise SystemExit(
                f"--baseline {directory}: Python imports {files or done.stderr.strip()} instead"
            )
        return baseline

    def server(self, environment: Mapping[str, str]) -> CogServer:
        """Return the Cog server of this checkout, not yet started."""
        return CogServer(
            {**self._image_environment(), **self._python_path, **environment},
            predictor=f"{self.directory / 'predict.py'}:Predictor",
            schema=self.directory / "openapi.json",
        )

    def worker(self, *arguments: str) -> Worker:
        """Start checkout_worker.py with this checkout's modules and memory settings."""
        tunables = {TUNABLES: self._image_environment()[TUNABLES]}
        # -P: the worker's directory holds http.py, which must not replace the standard library's.
        return Worker(["-P", str(WORKER), *arguments], {**tunables, **self._python_path})

    @property
    def _python_path(self) -> dict[str, str]:
        """PYTHONPATH precedes the `.pth` file of the installed checkout, which is this one."""
        return {"PYTHONPATH": str(self.directory)}

    def _image_environment(self) -> dict[str, str]:
        config = yaml.safe_load((self.directory / "cog.yaml").read_text())
        return dict(line.split("=", 1) for line in config["environment"])


THIS = Checkout(ROOT, "this service")


def _commit(directory: Path) -> str:
    """Return the commit that is checked out, or the directory's name outside of Git."""
    command = ["git", "-C", str(directory), "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or directory.name
