"""Embed captions in batches of 32, tokenization included: this service and the libraries.

Runs as a worker for a library: text.py NAME FOLDER, and requests [texts, batch size] → texts/s.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import open_clip

from clip_embed.inputs.tokenizer import Tokenizer
from clip_embed.model.config import ClipConfig
from scripts.benchmarks.captions import captions
from scripts.benchmarks.checkout import THIS, Checkout
from scripts.benchmarks.model import (
    LIBRARIES,
    items_per_second,
    load_library,
    model_files,
    sgemm_gflops,
    text_flop,
)
from scripts.benchmarks.report import Figure, Section, in_turn, table
from scripts.benchmarks.worker import Worker, serve
from scripts.publishing import DEFAULT_MODEL
from scripts.publishing.tokenizer_json import tokenizer_json

BATCH = 32
TEXTS = captions(4 * BATCH)


def run(runs: int, baseline: Checkout | None = None) -> list[Section]:
    """Run `bench.py text`."""
    measurements: dict[str, Callable[[], float]] = {}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(model_files())
        checkouts = {
            checkout.name: stack.enter_context(checkout.worker("text", str(folder / "ours")))
            for checkout in ([THIS, baseline] if baseline else [THIS])
        }
        libraries = {
            title: stack.enter_context(Worker(["-m", __name__, name, str(folder)]))
            for name, title in LIBRARIES.items()
        }
        for name, worker in (checkouts | libraries).items():
            measurements[name] = functools.partial(worker.measure, TEXTS, BATCH)
        for name, worker in checkouts.items():
            measurements[f"{name}, one at a time"] = functools.partial(
                worker.measure, TEXTS[:BATCH], 1
            )
        figures = in_turn(measurements, runs, "texts/s", more_is_better=True)
    return [
        Section(table("captions in batches of 32", figures, figures[0]), figures),
        Section(_compare_with_matrix_product(figures[0])),
    ]


def _compare_with_matrix_product(ours: Figure) -> str:
    config = ClipConfig.from_open_clip(open_clip.get_model_config(DEFAULT_MODEL))
    tokenizer = Tokenizer(tokenizer_json(), config.context_length)
    tokens = sum(tokenizer.tokenize(text).eot_index + 1 for text in TEXTS) / len(TEXTS)
    flop = text_flop(config, tokens)
    rate = flop * ours.median / 1e9
    limit = sgemm_gflops()
    return (
        f"{tokens:.1f} tokens per caption, {flop / 1e9:.2f} GFLOP: {rate:.0f} GFLOP/s, which is"
        f" {rate / limit:.2f} of the {limit:.0f} GFLOP/s of a float32 matrix product here."
    )


def main() -> None:
    name, folder = sys.argv[1:]
    model, tokenizer = load_library(name, Path(folder))

    def encode(texts: list[str]) -> object:
        if name == "transformers":  # pads to the longest text of the batch
            tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
            return model.get_text_features(**tokens)
        return model.encode_text(tokenizer(texts))

    def measure(texts: list[str], batch_size: int) -> float:
        batches = [texts[i : i + batch_size] for i in range(0, len(texts), batch_size)]
        return items_per_second(len(texts), lambda: [encode(batch) for batch in batches])

    serve(measure)


if __name__ == "__main__":
    main()
