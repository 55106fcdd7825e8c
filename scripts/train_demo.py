"""Train the small CLIP of `demo_model/`: emoji pictures and their names.

    train_demo.py [--steps N] [--out FOLDER] [--seed S]

Fetches the pictures (npm), trains, publishes the weights with `publish_weights.py` into FOLDER and
prints how well drawings by hands it has never seen are found. Stopped and started again with the
same arguments, it goes on from its last checkpoint in `.cache/demo-training/`.

Needs requirements-train.txt beside requirements-dev.txt.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import open_clip

from clip_embed.model import Clip, ClipConfig, Packing
from clip_embed.text import Tokenizer
from publish_weights import tokenizer_json
from training import pictures, retrieval
from training.augment import augment
from training.muon import Muon
from training.pictures import Drawings, Emoji
from training.start import discriminants, initial
from training.texts import sentence

ARCHITECTURE = ROOT / "scripts" / "training" / "emoji_clip.json"
CACHE = ROOT / ".cache" / "demo-training"

PICTURES = 256  # in a batch, each with a sentence,
MORE_TEXTS = 256  # and sentences for other classes
MATRIX_RATE = 0.01  # of the matrices inside, learnt by Muon
TEXT_RATE, IMAGE_RATE = 2e-3, 5e-4  # of everything else, by AdamW
WARM_UP = 30  # steps
DECAY = 0.7  # of all steps, at the end
STEEPEST = 60.0  # multiplies cosine similarities
EMA = 0.99


class Trainee(nn.Module):
    """The service's own network with parameters that learn, and a learnt place for each class.

    Pictures and sentences are told apart by their places: all 1,914 of them in every batch, which
    neither pictures nor sentences could be.
    """

    @torch.no_grad()
    def __init__(self, config: ClipConfig, pixels: Tensor, classes: Tensor) -> None:
        """pixels: normalised drawings [N, 3, S, S] of every class. classes: int64 [N]."""
        super().__init__()
        self.clip = Clip(config)
        some = torch.randperm(len(pixels))[:1500]
        self.clip.load(initial(self.clip, pixels[some]))
        visual = self.clip.visual
        # The projection is the identity yet.
        features = torch.cat([self.clip.encode_image(part) for part in pixels.split(256)])
        mean, directions, places = discriminants(
            features[:, : config.vision.width], classes, config.text.width
        )
        visual.ln_post.bias.copy_(-mean)
        visual.proj.copy_(directions @ self.clip.text_projection)
        self.clip.requires_grad_(True)
        # Of the text tower's width: where no text can be, no picture should.
        self.places = nn.Parameter(places)
        self.text_scale = nn.Parameter(self.clip.logit_scale.detach().clone())

    def loss(self, pixels: Tensor, texts: tuple[Tensor, Packing], classes: Tensor) -> Tensor:
        """pixels [B, 3, S, S]; T texts, as `Clip.encode_text` takes them; classes [T], the first B
        of them also the pictures'."""
        images = F.normalize(self.clip.encode_image(pixels), dim=-1)
        sentences = F.normalize(self.clip.encode_text(*texts), dim=-1)
        places = F.normalize(self.places @ self.clip.text_projection, dim=-1)
        own = classes[: len(images)]
        steep = self.clip.logit_scale.exp()
        placed = F.cross_entropy(steep * images @ places.T, own)
        placed_text = F.cross_entropy(self.text_scale.exp() * sentences @ places.T, classes)
        # Pictures and sentences directly, both ways.
        logits = steep * images @ sentences[: len(images)].T
        same = (own[:, None] == own).float()
        same /= same.sum(1, keepdim=True)
        both = (logits, logits.T)
        contrast = sum(-(F.log_softmax(each, 1) * same).sum(1).mean() for each in both)
        return placed + placed_text / 2 + contrast / 4  # type: ignore[no-any-return]

    def optimizers(self) -> list[torch.optim.Optimizer]:
        self.clip.visual.conv1.requires_grad_(False)  # it is as good as it gets
        inside, image, text = [], [], [self.places, self.text_scale]
        for name, parameter in self.clip.named_parameters():
            if parameter.requires_grad:
                matrix = "resblocks" in name and parameter.ndim == 2
                rest = image if name.startswith("visual.") else text
                (inside if matrix else rest).append(parameter)
        groups = [{"params": image, "lr": IMAGE_RATE}, {"params": text, "lr": TEXT_RATE}]
        return [
            Muon(inside, MATRIX_RATE),
            torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
        ]


def tokenize(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[Tensor, Packing]:
    """As `Clip.encode_text` takes them."""
    ids = [tokens.ids[: tokens.end + 1] for tokens in map(tokenizer.tokenize, texts)]
    packing = Packing([len(each) for each in ids], torch.device("cpu"))
    return torch.from_numpy(np.concatenate(ids)), packing


class Batches:
    """Pictures in random order, each as often as any other, with sentences."""

    def __init__(self, emojis: list[Emoji], drawn: list[Drawings], seed: int) -> None:
        self.emojis = emojis
        self.pixels = torch.from_numpy(np.concatenate([each.pixels for each in drawn]))
        self.classes = torch.from_numpy(np.concatenate([each.classes for each in drawn]))
        self.generator = torch.Generator().manual_seed(seed)
        self.random = random.Random(seed)
        self.left = torch.tensor([], dtype=torch.int64)

    def draw(self) -> tuple[Tensor, list[str], Tensor]:
        """Pixels [PICTURES, 3, S, S]; sentences, and their classes, the pictures' first."""
        if len(self.left) < PICTURES:
            self.left = torch.randperm(len(self.classes), generator=self.generator)
        rows, self.left = self.left[:PICTURES], self.left[PICTURES:]
        others = torch.randint(len(self.emojis), (MORE_TEXTS,), generator=self.generator)
        classes = torch.cat([self.classes[rows], others])
        texts = [sentence(self.emojis[index], self.random) for index in classes.tolist()]
        return normalised(augment(self.pixels[rows], self.generator)), texts, classes


def normalised(pixels: Tensor) -> Tensor:
    """CLIP's mean and standard deviation; pixels float32 [B, 3, S, S] from 0 to 1."""
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    return (pixels - mean) / std


def plain(pixels: Tensor) -> Tensor:
    """Drawings, uint8 [B, S, S, 4], on white, as the service sees them."""
    rgba = pixels.permute(0, 3, 1, 2).float() / 255
    return normalised(rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:])


def rate(step: int, steps: int) -> float:
    """What rates of learning are multiplied with: rises, stays, and falls to nothing."""
    return min(1.0, (step + 1) / WARM_UP, (steps - step) / (steps * DECAY))


@torch.inference_mode()
def measure(clip: Clip, tokenizer: Tokenizer, emojis: list[Emoji], held_out: Drawings) -> str:
    """Retrieval among all of a style's pictures, by plain names."""
    pixels = torch.from_numpy(held_out.pixels)
    images = torch.cat([clip.encode_image(plain(part)) for part in pixels.split(128)])
    names = [emojis[index].label for index in held_out.classes]
    texts = clip.encode_text(*tokenize(tokenizer, names))
    return retrieval.table(held_out.style, texts.numpy(), images.numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--out", type=Path, default=ROOT / "demo_model")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    emojis = pictures.emojis(CACHE)
    drawn = [pictures.drawings(style, emojis, CACHE) for style in pictures.TRAINING]
    unseen = [pictures.drawings(style, emojis, CACHE) for style in pictures.HELD_OUT]
    print(
        f"{len(emojis)} emojis, {sum(len(each.classes) for each in drawn)} pictures to learn from"
    )

    torch.manual_seed(options.seed)
    architecture = json.loads(ARCHITECTURE.read_bytes())
    config = ClipConfig.from_open_clip(architecture)
    tokenizer = Tokenizer(tokenizer_json(), config.context_length)
    batches = Batches(emojis, drawn, options.seed)
    trainee = Trainee(config, plain(batches.pixels), batches.classes)
    optimizers = trainee.optimizers()
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(each, lambda step: rate(step, options.steps))
        for each in optimizers
    ]
    average = {name: p.detach().clone() for name, p in trainee.clip.named_parameters()}
    begin = 0
    checkpoint = CACHE / f"checkpoint-{options.seed}.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=False)  # our own file, with random states
        trainee.load_state_dict(saved["trainee"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        for schedule, state in zip(schedules, saved["schedules"], strict=True):
            schedule.load_state_dict(state)
        average, begin, batches.left = saved["average"], saved["step"], saved["left"]
        batches.generator.set_state(saved["generator"])
        batches.random.setstate(saved["random"])

    smoothed = Clip(config)
    smoothed.load(average)  # shares the tensors

    progress = tqdm(range(begin, options.steps), "training", options.steps, initial=begin)
    for step in progress:
        pixels, texts, classes = batches.draw()
        loss = trainee.loss(pixels, tokenize(tokenizer, texts), classes)
        loss.backward()
        nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        with torch.no_grad():
            for scale in (trainee.clip.logit_scale, trainee.text_scale):
                scale.clamp_(max=math.log(STEEPEST))
            share = min(EMA, (1 + step) / (10 + step))
            for name, parameter in trainee.clip.named_parameters():
                average[name].lerp_(parameter, 1 - share)
        progress.set_postfix(loss=f"{loss.item():.2f}")
        done = step + 1
        if done % 100 == 0 or done == options.steps:
            progress.write(f"step {done}: " + measure(smoothed, tokenizer, emojis, unseen[0]))
            state = {
                "trainee": trainee.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "schedules": [schedule.state_dict() for schedule in schedules],
                "average": average,
                "step": done,
                "left": batches.left,
                "generator": batches.generator.get_state(),
                "random": batches.random.getstate(),
            }
            torch.save(state, checkpoint.with_suffix(".partial"))
            checkpoint.with_suffix(".partial").rename(checkpoint)

    # The published file holds float16: round first, measure what is published.
    rounded = {name: tensor.half().float() for name, tensor in average.items()}
    smoothed.load(rounded)
    for held_out in unseen:
        print(measure(smoothed, tokenizer, emojis, held_out))
    weights = CACHE / "emoji-clip.pt"
    torch.save(rounded, weights)
    subprocess.run(
        [
            sys.executable,
            str(ROOT / "scripts" / "publish_weights.py"),
            *(str(weights), str(options.out), "--model", str(ARCHITECTURE)),
        ],
        check=True,
    )


if __name__ == "__main__":
    main()
