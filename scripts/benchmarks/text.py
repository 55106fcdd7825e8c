"""Captions in batches of 32, tokenization included: ours and the libraries', in one process."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks import model
from benchmarks.captions import captions
from benchmarks.report import Figure, in_turn, table

BATCH = 32
BATCHES = 4


def run(runs: int) -> tuple[str, list[Figure]]:
    """Everything `bench.py text` prints, and its figures."""
    models = model.load()
    tokenizer = model.transformers_tokenizer()
    texts = captions(BATCH * BATCHES)
    batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]

    def ours(batch: list[str]) -> object:
        return models.embedder.embed_texts([models.tokenizer.tokenize(text) for text in batch])

    def open_clip(batch: list[str]) -> object:
        return models.open_clip.encode_text(models.open_clip_tokenizer(batch))

    def transformers(batch: list[str]) -> object:
        return models.transformers.get_text_features(
            **tokenizer(batch, padding=True, truncation=True, return_tensors="pt")
        )

    def one_by_one(batch: list[str]) -> object:
        return [ours([text]) for text in batch]

    def per_second(encode: Callable[[list[str]], object], count: int = BATCHES) -> float:
        with torch.inference_mode():
            begin = time.perf_counter()
            for batch in batches[:count]:
                encode(batch)
            return BATCH * count / (time.perf_counter() - begin)

    figures = in_turn(
        {
            "this service": lambda: per_second(ours),
            "open_clip": lambda: per_second(open_clip, 1),
            "transformers": lambda: per_second(transformers),
            "this service, one at a time": lambda: per_second(one_by_one, 1),
        },
        runs,
        "texts/s",
        more_is_better=True,
    )
    mine = figures[0]
    tower = models.embedder.config.text
    tokens = sum(models.tokenizer.tokenize(text).end + 1 for text in texts) / len(texts)
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
