"""Train the small CLIP of `demo_model/` on pictures of emoji and their names.

    train_demo.py [--steps N] [--out FOLDER] [--seed S]

Fetches the pictures from npm, trains, publishes the weights to FOLDER, and prints the retrieval
results on styles that it was not trained on. Stopped and started again with the same arguments, it
continues from its last checkpoint in `.cache/demo-training/`.

Example, a short run that leaves demo_model/ alone:

    .venv/bin/python scripts/train_demo.py --steps 50 --out .cache/emoji-clip
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scripts.lib.needs import packages_of

ROOT = Path(__file__).resolve().parents[1]


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=int, metavar="N", default=500, help="training steps (default: 500)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        default=ROOT / "demo_model",
        help="where to publish the weights (default: demo_model)",
    )
    parser.add_argument(
        "--seed", type=int, metavar="S", default=0, help="of all random numbers (default: 0)"
    )
    return parser


def main() -> None:
    arguments = make_parser().parse_args()
    with packages_of("train"):
        from scripts.training.demo_model import train_and_publish

        train_and_publish(arguments.steps, arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
