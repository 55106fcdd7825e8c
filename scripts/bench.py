"""Measure this service and its peers, in one run on one machine.

    bench.py cold-start|download|text|image|preprocess|http|search
             [--runs N] [--json FILE] [--baseline DIR]

cold-start  process start → READY of the real Cog server, full-size ViT-L/14
download    from a Cloud Storage API on this machine, and from nginx with limited connections
text        captions in batches of 32, beside open_clip, OpenAI's clip and transformers
image       images in batches of 4, beside the same
preprocess  from the file of a photograph to pixels, beside open_clip and transformers
http        the whole service under load, beside other servers with the same weights
search      scripts/search.py: a query over 100,000 vectors, and indexing

Machines are noisy: quote medians and ratios. Everything runs in turn, after a warm-up of each.

To compare with an earlier commit in the same run (cold-start, download, text):

    git worktree add ../baseline COMMIT
    scripts/bench.py cold-start --baseline ../baseline
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scripts.benchmarks.report import Section

BENCHMARKS = ("cold-start", "download", "text", "image", "preprocess", "http", "search")
WITH_BASELINE = ("cold-start", "download", "text")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every value to FILE")
    parser.add_argument(
        "--baseline", type=Path, metavar="DIR", help="a checkout of an earlier commit to compare"
    )
    arguments = parser.parse_args()
    if arguments.baseline and arguments.benchmark not in WITH_BASELINE:
        parser.error(f"--baseline is available for {', '.join(WITH_BASELINE)}")

    # Here, and not above: torch and the peers take seconds to import, and --help needs none.
    from scripts.benchmarks.checkout import Checkout
    from scripts.benchmarks.report import machine

    module = arguments.benchmark.replace("-", "_")
    benchmark = importlib.import_module(f"scripts.benchmarks.{module}")
    options = {}
    if arguments.baseline:
        options["baseline"] = Checkout.open_baseline(arguments.baseline)
    sections = benchmark.run(arguments.runs, **options)
    print(f"\nbench.py {arguments.benchmark}: {machine()}")
    for section in sections:
        print(f"\n{section.text}")
    if arguments.json:
        _write_json(arguments.json, arguments.benchmark, machine(), sections)


def _write_json(path: Path, benchmark: str, machine: str, sections: Sequence[Section]) -> None:
    figures = [
        {**dataclasses.asdict(figure), "median": figure.median}
        for section in sections
        for figure in section.figures
    ]
    document = {"benchmark": benchmark, "machine": machine, "figures": figures}
    path.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
