"""Captions in batches of 32, tokenization included: ours and the libraries'."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

import open_clip

from benchmarks import model
from benchmarks.captions import captions
from benchmarks.model import Contender, per_second
from benchmarks.report import Figure, in_turn, table
from clip_embed.config import ClipConfig
from clip_embed.text import Tokenizer
from publish_weights import tokenizer_json

BATCH = 32
BATCHES = 4
TEXTS = captions(BATCH * BATCHES)


def contender(name: str, folder: Path) -> Mapping[str, Callable[[], float]]:
    """What can be asked of `name`: texts/s in batches, or of one batch's one after the other."""
    if name == "ours":
        embedder, tokenizer = model.ours(folder)

        def encode(texts: list[str]) -> object:
            return embedder.embed_texts([tokenizer.tokenize(text) for text in texts])

    elif name in ("open_clip", "clip"):
        load = model.with_open_clip if name == "open_clip" else model.with_openai
        theirs, tokenizer_of_theirs = load(folder)

        def encode(texts: list[str]) -> object:
            return theirs.encode_text(tokenizer_of_theirs(texts))

    else:
        theirs, tokenizer_of_theirs = model.with_transformers(folder)

        def encode(texts: list[str]) -> object:
            tokens = tokenizer_of_theirs(texts, padding=True, truncation=True, return_tensors="pt")
            return theirs.get_text_features(**tokens)

    def in_batches() -> object:
        return [encode(TEXTS[start : start + BATCH]) for start in range(0, len(TEXTS), BATCH)]

    return {
        "batches": lambda: per_second(len(TEXTS), in_batches),
        "single": lambda: per_second(BATCH, lambda: [encode([text]) for text in TEXTS[:BATCH]]),
    }


def run(runs: int) -> tuple[str, list[Figure]]:
    """Everything `bench.py text` prints, and its figures."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(model.files())
        ours, open_clips, openais, transformers = (
            stack.enter_context(Contender("text", name, folder, name == "ours"))
            for name in ("ours", "open_clip", "clip", "transformers")
        )
        figures = in_turn(
            {
                "this service": lambda: ours.ask("batches"),
                "open_clip": lambda: open_clips.ask("batches"),
                "OpenAI's clip": lambda: openais.ask("batches"),
                "transformers": lambda: transformers.ask("batches"),
                "this service, one at a time": lambda: ours.ask("single"),
            },
            runs,
            "texts/s",
            more_is_better=True,
        )
    mine = figures[0]
    config = ClipConfig.from_open_clip(open_clip.get_model_config(model.OPEN_CLIP_NAME))
    tokenizer, tower = Tokenizer(tokenizer_json(), config.context_length), config.text
    tokens = sum(tokenizer.tokenize(text).end + 1 for text in TEXTS) / len(TEXTS)
    # Two operations per weight of each block and token: attention's projections and the MLP.
    weights = tower.layers * (4 + 2 * tower.mlp_ratio) * tower.width**2
    flop = 2 * weights * tokens
    rate = flop * mine.median / 1e9
    limit = model.sgemm_gflops(2048, 2048, 2048)
    lines = [
        table("captions in batches of 32", figures, mine),
        "",
        f"{tokens:.1f} tokens per caption, {flop / 1e9:.2f} GFLOP: {rate:.0f} GFLOP/s, which is"
        f" {rate / limit:.2f} of the {limit:.0f} GFLOP/s of a float32 matrix product here.",
    ]
    return "\n".join(lines), figures


if __name__ == "__main__":
    model.answer(contender)
