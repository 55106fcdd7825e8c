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

from clip_embed.model import Clip, ClipConfig
from clip_embed.text import Tokenizer
from publish_weights import tokenizer_json
from training import pictures, retrieval
from training.augment import augment
from training.pictures import Drawings, Emoji
from training.texts import sentence

ARCHITECTURE = ROOT / "scripts" / "training" / "emoji_clip.json"
CACHE = ROOT / ".cache" / "demo-training"

CLASSES = 32  # in a batch,
VIEWS = 4  # pictures of each, by as many hands as drew it,
TEXTS = 2  # and sentences
# The first half of all steps sees few of an image's patches, after strong changes to it: cheap, and
# hard to learn by heart. The second sees more of the picture as it is.
FIRST = 0.5
KEPT, KEPT_LATER = 0.3, 0.5
STRENGTH, STRENGTH_LATER = 1.0, 0.4
RATE = 1.5e-3
WARM_UP = 150  # steps
DECAY = 0.4  # of all steps, at the end
EMA = 0.99


class Trainee(nn.Module):
    """The service's own network with parameters that learn, and a learnt place for each class."""

    def __init__(self, config: ClipConfig, classes: int) -> None:
        super().__init__()
        self.clip = Clip(config)
        self.clip.load(initial(self.clip))
        self.clip.requires_grad_(True)
        # A batch holds few classes; these let each be told from all the others, too.
        # Short at first: only their directions count, and long ones turn slowly.
        self.places = nn.Parameter(torch.randn(classes, config.embed_dim) * 0.05)
        self.place_scale = nn.Parameter(torch.tensor(math.log(14.0)))

    def images(self, pixels: Tensor, kept: float) -> Tensor:
        """`Clip.encode_image` of a random share of the patches, normalised. [B, D]"""
        visual = self.clip.visual
        x = visual.conv1(pixels) + visual.positional_embedding[1:]
        if kept < 1:
            count = int(x.shape[1] * kept)
            order = torch.rand(x.shape[:2]).argsort(1)[:, :count, None]
            x = x.gather(1, order.expand(-1, -1, x.shape[2]))
        first = (visual.class_embedding + visual.positional_embedding[0]).expand(len(x), 1, -1)
        x = visual.transformer(visual.ln_pre(torch.cat([first, x], 1)), causal=False)
        return F.normalize(visual.ln_post(x[:, 0]) @ visual.proj, dim=-1)

    def loss(self, images: Tensor, texts: Tensor, classes: Tensor) -> Tensor:
        """images [CLASSES × VIEWS, D], texts [CLASSES × TEXTS, D], classes [CLASSES]."""
        image_classes = classes.repeat_interleave(VIEWS)
        text_classes = classes.repeat_interleave(TEXTS)
        same = (image_classes[:, None] == text_classes).float()
        logits = self.clip.logit_scale.exp() * images @ texts.T
        contrast = -(F.log_softmax(logits, 1) * same).sum(1) / TEXTS
        back = -(F.log_softmax(logits, 0) * same).sum(0) / VIEWS
        places = F.normalize(self.places, dim=-1)
        placed = [
            F.cross_entropy(scale.exp() * features @ places.T, which, label_smoothing=0.1)
            for features, which, scale in (
                # Names are soon told apart, and want a steeper scale than pictures.
                (images, image_classes, self.clip.logit_scale),
                (texts, text_classes, self.place_scale),
            )
        ]
        return (contrast.mean() + back.mean()) / 2 + (placed[0] + placed[1]) / 2


def initial(clip: Clip) -> dict[str, Tensor]:
    """Random tensors for every parameter, scaled as CLIP's paper's code scales them."""
    tensors = {}
    for name, parameter in clip.named_parameters():
        shape = parameter.shape
        if name == "logit_scale":
            tensor = torch.tensor(math.log(1 / 0.07))
        elif ".ln_" in name or name.startswith("ln_"):
            tensor = torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
        elif name.endswith("bias"):
            tensor = torch.zeros(shape)
        elif name == "visual.positional_embedding":
            tensor = waves(clip.config.image_size // clip.config.patch_size, shape[1])
        elif "embedding" in name:
            tensor = torch.randn(shape) * 0.04
        elif "proj" in name.rsplit(".", 1)[-1] and "in_proj" not in name:
            tensor = torch.randn(shape) * shape[0] ** -0.5
        else:  # [outputs, inputs] and convolutions
            fan_in = parameter[0].numel()
            tensor = torch.randn(shape) * fan_in**-0.5
            if name.endswith(("out_proj.weight", "c_proj.weight")):
                tensor /= math.sqrt(2 * clip.config.vision.layers)
        tensors[name] = tensor
    return tensors


def waves(side: int, width: int) -> Tensor:
    """Places in a square as sines and cosines, [1 + side², width]: near ones are alike from the
    start, and as loud as the pixels. As in "Attention Is All You Need", once for each direction."""
    rates = 1 / 10 ** (torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * rates
    line = torch.cat([angles.sin(), angles.cos()], 1)
    square = torch.cat([line.repeat_interleave(side, 0), line.repeat(side, 1)], 1)
    return torch.cat([torch.zeros(1, width), square])


def tokenize(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """ids [B, L] padded with zeros, ends [B], as `Clip.encode_text` takes them."""
    tokens = [tokenizer.tokenize(text) for text in texts]
    ids = torch.zeros(len(tokens), max(len(each.ids) for each in tokens), dtype=torch.int64)
    for row, each in zip(ids, tokens, strict=True):
        row[: len(each.ids)] = torch.from_numpy(each.ids)
    return ids, torch.tensor([each.end for each in tokens])


class Batches:
    """Random classes, each with pictures by several hands and sentences."""

    def __init__(self, emojis: list[Emoji], drawn: list[Drawings], seed: int) -> None:
        self.emojis = emojis
        self.pixels = torch.from_numpy(np.concatenate([each.pixels for each in drawn]))
        classes = np.concatenate([each.classes for each in drawn])
        self.of = [np.flatnonzero(classes == index) for index in range(len(emojis))]
        self.known = [index for index, rows in enumerate(self.of) if len(rows)]
        self.generator = torch.Generator().manual_seed(seed)
        self.random = random.Random(seed)

    def draw(self, strength: float) -> tuple[Tensor, list[str], Tensor]:
        classes = self.random.sample(self.known, CLASSES)
        rows: list[int] = []
        for index in classes:
            own = self.of[index].tolist()
            self.random.shuffle(own)
            rows += (own * VIEWS)[:VIEWS]
        texts = [sentence(self.emojis[i], self.random) for i in classes for _ in range(TEXTS)]
        return augment(self.pixels[rows], self.generator, strength), texts, torch.tensor(classes)


def normalised(pixels: Tensor) -> Tensor:
    """CLIP's mean and standard deviation; pixels float32 [B, 3, S, S] from 0 to 1."""
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    return (pixels - mean) / std


def rate(step: int, steps: int) -> float:
    """Rises, stays, and falls to nothing: a run can be made longer until it begins to fall."""
    falling = (steps - step) / (steps * DECAY)
    return RATE * min(1.0, (step + 1) / WARM_UP, falling)


@torch.inference_mode()
def measure(clip: Clip, tokenizer: Tokenizer, emojis: list[Emoji], held_out: Drawings) -> str:
    """Retrieval among all of a style's pictures, by plain names."""
    rgba = torch.from_numpy(held_out.pixels).permute(0, 3, 1, 2).float() / 255
    pixels = normalised(rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:])
    images = torch.cat([clip.encode_image(part) for part in pixels.split(128)])
    names = [emojis[index].label for index in held_out.classes]
    texts = torch.cat(
        [
            clip.encode_text(*tokenize(tokenizer, names[i : i + 128]))
            for i in range(0, len(names), 128)
        ]
    )
    return retrieval.table(held_out.style, texts.numpy(), images.numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--steps", type=int, default=10000)
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
    trainee = Trainee(config, len(emojis))
    tokenizer = Tokenizer(tokenizer_json(), config.context_length)
    batches = Batches(emojis, drawn, options.seed)
    decayed = [p for n, p in trainee.named_parameters() if p.ndim > 1 and "embedding" not in n]
    others = [p for n, p in trainee.named_parameters() if p.ndim <= 1 or "embedding" in n]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        fused=True,
    )
    average = {name: p.detach().clone() for name, p in trainee.clip.named_parameters()}
    begin = 0
    checkpoint = CACHE / f"checkpoint-{options.seed}.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=False)  # our own file, with random states
        trainee.load_state_dict(saved["trainee"])
        optimizer.load_state_dict(saved["optimizer"])
        average, begin = saved["average"], saved["step"]
        batches.generator.set_state(saved["generator"])
        batches.random.setstate(saved["random"])
        torch.set_rng_state(saved["torch"])

    smoothed = Clip(config)
    smoothed.load(average)  # shares the tensors

    progress = tqdm(range(begin, options.steps), "training", options.steps, initial=begin)
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = rate(step, options.steps)
        first = step < options.steps * FIRST
        kept = KEPT if first else KEPT_LATER
        pixels, texts, classes = batches.draw(STRENGTH if first else STRENGTH_LATER)
        features = F.normalize(trainee.clip.encode_text(*tokenize(tokenizer, texts)), dim=-1)
        loss = trainee.loss(trainee.images(normalised(pixels), kept), features, classes)
        loss.backward()
        nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            trainee.clip.logit_scale.clamp_(max=math.log(50))
            share = min(EMA, (1 + step) / (10 + step))
            for name, parameter in trainee.clip.named_parameters():
                average[name].lerp_(parameter, 1 - share)
        progress.set_postfix(loss=f"{loss.item():.2f}")
        done = step + 1
        if done % 200 == 0 or done == options.steps:
            progress.write(f"step {done}: " + measure(smoothed, tokenizer, emojis, unseen[0]))
            state = {
                "trainee": trainee.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average,
                "step": done,
                "generator": batches.generator.get_state(),
                "random": batches.random.getstate(),
                "torch": torch.get_rng_state(),
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
