"""Load the real Cog server with many predictions: valid, invalid, abandoned and canceled ones.

    soak.py [--predictions N]

Images come as data: URIs and from web servers, some of which are slow, and some requests have an id
of their own. Checks that each request gets the right vector or the right error, that the worker's
memory, threads and open files do not grow, and that no file or directory is left. The model is tiny
and has random weights: none of this depends on its size.

Example:

    .venv/bin/python scripts/soak.py --predictions 2000
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
        "--predictions",
        type=int,
        default=20_000,
        metavar="N",
        help="number of predictions (default: 20000)",
    )
    return parser


def main() -> None:
    arguments = make_parser().parse_args()
    with packages_of("test"):
        from scripts.lib.soak import run

        run(arguments.predictions)


if __name__ == "__main__":
    main()
