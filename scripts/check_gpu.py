"""Check and measure the service on the GPU of this machine, without the internet, in 8 minutes.

    check_gpu.py [--device cuda|cpu] [--tiny] [--parts A,B,…] [--without-libraries]
                 [--output DIR] [--minutes N]

environment  GPU, driver, versions; measured ceilings: matrix product, copies
models       full-size ViT-L/14 with random weights, also for transformers and open_clip
parity       cosine of float16 and float32, alone and in batches, compared with the libraries
cold_start   process start → READY of the real Cog server, the import of torch, transformers
texts        texts per second by direct calls, compared with the libraries
images       images per second by direct calls, compared with the libraries
serving      the real Cog server under 1, 32 and 64 connections
preparation  images and tokenizations per second on the CPUs
memory       of the GPU and of the process

Each part is a process with a time limit. If a package is missing, that measurement is reported as
skipped; an error is reported as failed. The other parts still run. After each part the results are
in DIR/gpu.json and DIR/gpu.md; the output of the processes is in DIR/gpu.log. The exit status is 1
if a part failed. Nothing else should use the GPU meanwhile. `environment` and `models` run always,
because the others need them. Needs an NVIDIA GPU, `scripts/setup test`, and 3 GB of disk.

Examples:

    .venv/bin/python scripts/check_gpu.py
    .venv/bin/python scripts/check_gpu.py --parts parity,images --minutes 3

The same code without a GPU and with a tiny model, whose figures mean nothing, in two minutes:

    .venv/bin/python scripts/check_gpu.py --device cpu --tiny
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from scripts.lib.needs import packages_of

CACHE = Path(__file__).resolve().parents[1] / ".cache"
PARTS = (
    "environment",
    "models",
    "parity",
    "cold_start",
    "texts",
    "images",
    "serving",
    "preparation",
    "memory",
)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="of the network (default: cuda)"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="a tiny model and little work, to try this command"
    )
    parser.add_argument(
        "--parts",
        type=_parts,
        default=PARTS,
        metavar="A,B,…",
        help="run only these parts (default: all)",
    )
    parser.add_argument(
        "--without-libraries",
        action="store_true",
        help="leave out transformers and open_clip, which takes about half as long",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=CACHE / "gpu",
        metavar="DIR",
        help="for results and logs (default: .cache/gpu)",
    )
    parser.add_argument(
        "--minutes",
        type=_minutes,
        default=8.0,
        metavar="N",
        help="time for all parts; those that remain are skipped (default: 8)",
    )
    return parser


def _parts(text: str) -> tuple[str, ...]:
    """Return the named parts in their order, with those that the others need."""
    names = text.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(
            f"no part {unknown[0]!r}; the parts are {', '.join(PARTS)}"
        )
    return tuple(name for name in PARTS if name in (*PARTS[:2], *names))


def _minutes(text: str) -> float:
    """Return a finite number of minutes, more than none."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of minutes; give 8, or 0.5")
    return value


def main() -> None:
    arguments = make_parser().parse_args()
    with packages_of("test"):
        from scripts.gpu.run import run_parts

        succeeded = run_parts(
            arguments.parts,
            device=arguments.device,
            tiny=arguments.tiny,
            output=arguments.output.resolve(),
            minutes=arguments.minutes,
            libraries=not arguments.without_libraries,
        )
    raise SystemExit(0 if succeeded else 1)


if __name__ == "__main__":
    main()
