"""Our figures and the peers', from one run on one machine.

    bench.py cold-start|download|text|image|preprocess|http|search [--runs N] [--json FILE]

cold-start  process start → READY of the real Cog server, full-size ViT-L/14
download    bytes from a Cloud Storage API on this machine, and from nginx that limits connections
text        captions in batches of 32, beside open_clip and transformers
image       images in batches of 4, beside the same
preprocess  a photograph's file becomes pixels, beside the same
http        the whole service under load, beside others that serve the same weights
search      scripts/search.py: a query over 100,000 vectors, and indexing against the service's rate

Machines are noisy: quote medians and ratios. Everything runs in turn, after a warm-up of each.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

BENCHMARKS = ("cold-start", "download", "text", "image", "preprocess", "http", "search")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value there, too")
    arguments = parser.parse_args()

    from local_server import image_environment

    # Servers are given what cog.yaml sets in the image; what is measured in this process is given
    # the part of it that concerns memory.
    tunables = "GLIBC_TUNABLES"
    environment = {**os.environ, tunables: image_environment()[tunables]}
    if arguments.benchmark == "download" and environment != os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)

    from benchmarks import report

    benchmark = importlib.import_module(f"benchmarks.{arguments.benchmark.replace('-', '_')}")
    text, figures = benchmark.run(arguments.runs)
    print(f"\nbench.py {arguments.benchmark}: {report.machine()}\n\n{text}")
    if arguments.json:
        document = {
            "benchmark": arguments.benchmark,
            "machine": report.machine(),
            "figures": [
                {**dataclasses.asdict(figure), "median": figure.median} for figure in figures
            ],
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
