"""Train and publish the model of `demo_model/`: the body of scripts/train_demo.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from clip_embed.inputs.tokenizer import Tokenizer
from clip_embed.model.clip import Clip
from clip_embed.model.config import ClipConfig
from scripts.lib.cog_server import CACHE, ROOT
from scripts.lib.storage import open_storage
from scripts.publishing.model import read_model
from scripts.publishing.publish import publish
from scripts.publishing.tokenizer_json import tokenizer_json
from scripts.training import pictures, retrieval
from scripts.training.batches import Batches, lay_on_white, tokenize
from scripts.training.pictures import Drawings, Emoji
from scripts.training.run import TrainingRun
from scripts.training.trainee import Trainee

ARCHITECTURE = ROOT / "scripts" / "training" / "emoji_clip.json"
TRAINING_CACHE = CACHE / "demo-training"
CHECKPOINT_STEPS = 100


def train_and_publish(steps: int, out: Path, seed: int) -> None:
    """Run `train_demo.py`."""
    emojis = pictures.emojis(TRAINING_CACHE)
    training, held_out = (
        [pictures.drawings(style, emojis, TRAINING_CACHE) for style in styles]
        for styles in (pictures.TRAINING, pictures.HELD_OUT)
    )
    count = sum(len(each.classes) for each in training)
    print(f"{len(emojis)} emoji, {count} pictures to train on")

    torch.manual_seed(seed)
    config = ClipConfig.from_open_clip(json.loads(ARCHITECTURE.read_bytes()))
    tokenizer = Tokenizer(tokenizer_json(), config.context_length)
    batches = Batches(emojis, training, seed)
    trainee = Trainee(config, lay_on_white(batches.pixels), batches.classes)
    run = TrainingRun(trainee, batches, tokenizer, steps)

    def measure(clip: Clip, drawings: Drawings) -> str:
        return measure_retrieval(clip, tokenizer, emojis, drawings)

    checkpoint = TRAINING_CACHE / f"checkpoint-{seed}.pt"
    train(run, checkpoint, lambda clip: measure(clip, held_out[0]))

    published = publish_average(run, out)
    for drawings in held_out:
        print(measure(published, drawings))


def publish_average(run: TrainingRun, out: Path) -> Clip:
    """Publish the averaged parameters to `out`; return a network with them, as published."""
    # The published file holds float16: round first, so that the network is what is published.
    rounded = {name: tensor.half().float() for name, tensor in run.average.items()}
    weights = TRAINING_CACHE / "emoji-clip.pt"
    torch.save(rounded, weights)
    publish(read_model(str(weights), str(ARCHITECTURE)), open_storage(str(out)))
    clip = run.averaged_clip()
    clip.load(rounded)
    return clip


def train(run: TrainingRun, checkpoint: Path, measure: Callable[[Clip], str]) -> None:
    """Train from `checkpoint`, if it exists, to the end. measure: returns a row of results."""
    if checkpoint.exists():
        run.load(checkpoint)
    progress = tqdm(total=run.steps, desc="training", initial=run.steps_done)
    while run.steps_done < run.steps:
        loss = run.step()
        progress.set_postfix(loss=f"{loss:.2f}", refresh=False)
        progress.update()
        if run.steps_done % CHECKPOINT_STEPS == 0 or run.steps_done == run.steps:
            progress.write(f"step {run.steps_done}: {measure(run.averaged_clip())}")
            run.save(checkpoint)


@torch.inference_mode()
def measure_retrieval(
    clip: Clip, tokenizer: Tokenizer, emojis: list[Emoji], drawings: Drawings
) -> str:
    """Return a table row: retrieval among all pictures of a style, by the emoji's plain names."""
    pixels = torch.from_numpy(drawings.pixels)
    images = torch.cat([clip.encode_image(lay_on_white(part)) for part in pixels.split(128)])
    names = [emojis[index].label for index in drawings.classes]
    texts = clip.encode_text(*tokenize(tokenizer, names))
    return retrieval.table_row(drawings.style, texts.numpy(), images.numpy())
