"""Train on prepared data: the stage of scripts/train_demo.py that may run on a machine with a GPU.

Imports no package but torch, numpy, Pillow, and what `clip_embed.model` imports.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from torch import Tensor

from clip_embed.model.clip import Clip
from clip_embed.model.config import ClipConfig
from scripts.training.batches import Batches, DeviceTexts, lay_on_white
from scripts.training.data import TrainingData
from scripts.training.retrieval import recall
from scripts.training.run import Budget, TrainingRun
from scripts.training.trainee import Losses, Trainee

ARCHITECTURE = Path(__file__).with_name("emoji_clip.json")
REPORT_SECONDS = 20.0  # between two lines of results, each with a checkpoint
BATCH = {"cuda": (1024, 1024), "cpu": (128, 128)}  # pictures with captions, more sentences


def choose_device(name: str | None) -> torch.device:
    """Return the device of that name; by default the GPU, if there is one."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def train(data_file: Path, weights: Path, budget: Budget, seed: int, device: torch.device) -> None:
    """Train, and write the averaged parameters to `weights` from time to time and at the end.

    A checkpoint beside `weights` lets an interrupted run of the same arguments continue. Raises
    SystemExit if it is of other arguments.
    """
    data = TrainingData.load(data_file)
    print(f"{data.class_count} classes, {len(data.pictures.classes)} pictures", flush=True)
    torch.manual_seed(seed)
    config = ClipConfig.from_open_clip(json.loads(ARCHITECTURE.read_bytes()))
    pictures, sentences = BATCH[device.type]
    batches = Batches(data, device, seed, pictures, sentences)
    trainee = Trainee(config, batches.class_count, batches.teacher_width).to(device)
    run = TrainingRun(trainee, batches, budget)
    test = HeldOutTest(data, device)
    checkpoint = weights.with_suffix(f".checkpoint-{seed}")
    if checkpoint.exists():
        run.load(checkpoint)
    reported = time.perf_counter()
    finished = run.used == 1
    while not finished:
        losses = run.step()
        finished = run.used == 1
        if finished or time.perf_counter() - reported > REPORT_SECONDS:
            run.save(checkpoint)
            save_weights(run, weights)
            print(report_line(run, losses, test), flush=True)
            reported = time.perf_counter()
    checkpoint.unlink(missing_ok=True)


def save_weights(run: TrainingRun, weights: Path) -> None:
    """Write the averaged parameters in float16, atomically."""
    partial = weights.with_name(weights.name + ".partial")
    torch.save({name: tensor.half().cpu() for name, tensor in run.published().items()}, partial)
    partial.rename(weights)


def report_line(run: TrainingRun, losses: Losses, test: HeldOutTest) -> str:
    """Describe the state of a run."""
    loss = ", ".join(f"{name} {value.item():.3f}" for name, value in vars(losses).items())
    results = test.measure(run.averaged_clip(), run.averaged_prototypes())
    return f"step {run.steps_done}, {run.seconds:.0f} s: {loss}; {results}"


class HeldOutTest:
    """Retrieval of the held-out drawings by the plain names of their classes."""

    def __init__(self, data: TrainingData, device: torch.device) -> None:
        self._pixels = torch.from_numpy(data.held_out.pixels).to(device)
        self._classes = torch.from_numpy(data.held_out.classes).to(device)
        self._texts = DeviceTexts(data.texts, data.class_count, device)

    @torch.inference_mode()
    def measure(self, clip: Clip, classes: Tensor) -> str:
        """Return the recall of pictures by names, and of classes by pictures.

        classes: vectors of the classes, [C, D]. Where the second is much better, the text tower
        limits the first.
        """
        images = torch.cat(
            [clip.encode_image(lay_on_white(part)) for part in self._pixels.split(256)]
        )
        # The names are the first texts, in the order of the classes.
        texts = clip.encode_text(*self._texts.tokens(self._classes))
        found = recall(texts.cpu().numpy(), images.cpu().numpy())
        answers = classes[self._classes]
        classified = recall(images.cpu().numpy(), answers.cpu().numpy())
        return (
            f"name → picture {found.at_1:.3f}, {found.at_5:.3f};"
            f" picture → class {classified.at_1:.3f}, {classified.at_5:.3f}"
        )
