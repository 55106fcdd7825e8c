"""Check scripts/embed_dataset.py at full size, on the cores of this machine.

    check_embed_dataset.py rows|throughput [--pictures N]

rows        2,000 images, 3% of them bad, with the embedders killed during the run; 20,000 captions,
            with the run killed and continued. Every row must be present once and equal to the
            service's vector. Uses the emulator and a tiny model with random weights.
throughput  Compare the speed with a plain loop over `Embedder`, and the memory for a tenth of the
            images with that for all of them (ViT-B/32, random weights).

Exits with an error if a requirement is not met. The first check takes minutes, the second longer.

Examples:

    .venv/bin/python scripts/check_embed_dataset.py rows
    .venv/bin/python scripts/check_embed_dataset.py throughput --pictures 500
"""

from __future__ import annotations

import argparse

from scripts.lib.needs import packages_of


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", choices=("rows", "throughput"), help="which check to run: see above"
    )
    parser.add_argument(
        "--pictures",
        type=int,
        default=2000,
        metavar="N",
        help="number of images, for throughput (default: 2000)",
    )
    return parser


def main() -> None:
    arguments = make_parser().parse_args()
    with packages_of("test"):
        from scripts.dataset.check import check_rows, check_throughput

        if arguments.what == "rows":
            check_rows()
        else:
            check_throughput(arguments.pictures)


if __name__ == "__main__":
    main()
