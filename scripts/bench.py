"""Measure this service and its peers, in one run on one machine.

    bench.py cold-start|download|text|image|preprocess|http|overhead|search
             [--runs N] [--json FILE] [--baseline DIR]

cold-start  process start → READY of the real Cog server, full-size ViT-L/14
download    from a Cloud Storage API on this machine, and from nginx with limited connections
text        captions in batches of 32, beside open_clip, OpenAI's clip and transformers
image       images in batches of 4, beside the same
preprocess  from the file of a photograph to pixels, beside open_clip and transformers
http        the whole service under load, beside other servers with the same weights
overhead    what surrounds the network in a prediction of one text, and Cog's part of it
search      scripts/search.py: a query over 100,000 vectors, and indexing

Machines are noisy: quote medians and ratios. Everything runs in turn, after a warm-up of each.

To compare with an earlier commit in the same run (cold-start, download, text):

    git worktree add ../baseline COMMIT
    .venv/bin/python scripts/bench.py cold-start --baseline ../baseline

Example, with fewer runs, and all values in a file:

    .venv/bin/python scripts/bench.py text --runs 3 --json text.json
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.lib.needs import packages_of

if TYPE_CHECKING:
    from scripts.benchmarks.report import Section

BENCHMARKS = (
    "cold-start",
    "download",
    "text",
    "image",
    "preprocess",
    "http",
    "overhead",
    "search",
)
WITH_BASELINE = ("cold-start", "download", "text")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", choices=BENCHMARKS, help="what to measure: see above")
    parser.add_argument(
        "--runs", type=int, metavar="N", default=5, help="counted runs of each (default: 5)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every value to FILE")
    parser.add_argument(
        "--baseline", type=Path, metavar="DIR", help="a checkout of an earlier commit to compare"
    )
    return parser


def main() -> None:
    parser = make_parser()
    arguments = parser.parse_args()
    if arguments.baseline and arguments.benchmark not in WITH_BASELINE:
        parser.error(f"--baseline is available for {', '.join(WITH_BASELINE)}")
    with packages_of("peers"):
        _run(arguments)


def _run(arguments: argparse.Namespace) -> None:
    from scripts.benchmarks.checkout import Checkout
    from scripts.benchmarks.report import machine
    from scripts.lib.cog_server import bypass_proxies

    module = arguments.benchmark.replace("-", "_")
    benchmark = importlib.import_module(f"scripts.benchmarks.{module}")
    options = {}
    if arguments.baseline:
        options["baseline"] = Checkout.open_baseline(arguments.baseline)
    bypass_proxies()  # for all peers, and clients such as curl
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
