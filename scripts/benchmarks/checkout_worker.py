"""Measure the checkout of this project that PYTHONPATH names, as a worker (see worker.py).

    checkout_worker.py pull             [location, streams, verify] → MB/s
    checkout_worker.py text LOCATION    [texts, batch size] → texts/s

Imports nothing from `scripts`, which may be another checkout's.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import Any
from unittest import mock

import weights


def pull(location: str, streams: int | None = None, verify: bool = True) -> float:
    """Pull all blocks, the manifest included. streams: default, the checkout's."""
    verification: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if not verify:
        verification = mock.patch("clip_embed.checkpoint.fetch.is_intact", _accept)
    limits = {} if streams is None else {"streams": streams}
    begin = time.perf_counter()
    with verification, weights.pull(location, **limits) as model:
        for _ in model.blocks():
            pass
        return model.stats.bytes_total / 1e6 / (time.perf_counter() - begin)


def _accept(*_: object) -> bool:
    """Replace the check of a block. (A Mock would keep every block in memory.)"""
    return True


class Texts:
    """Embeds texts with the model at `location`, in float32 on the CPU."""

    def __init__(self, location: str) -> None:
        with weights.pull(location) as model:
            self._embedder, self._tokenizer = _load(model)

    def embed(self, texts: list[str], batch_size: int) -> float:
        """Tokenize and embed `texts`, `batch_size` at a time."""
        begin = time.perf_counter()
        for start in range(0, len(texts), batch_size):
            batch = texts[start : start + batch_size]
            self._embedder.embed_texts([self._tokenizer.tokenize(text) for text in batch])
        return len(texts) / (time.perf_counter() - begin)


def _load(model: weights.Pull) -> tuple[Any, Any]:
    try:
        from clip_embed.service import load_embedder
    except ModuleNotFoundError:
        return _load_without_service(model)
    loaded = load_embedder(model, "cpu")
    return loaded.embedder, loaded.tokenizer


def _load_without_service(model: weights.Pull) -> tuple[Any, Any]:
    """Bring the model up in a checkout that is older than `clip_embed/service.py`."""
    import torch

    from clip_embed import cpus, manifest, tensors, text
    from clip_embed.embedder import Embedder

    torch.set_num_threads(cpus.usable_cpus())
    loaded = tensors.load(model.blocks(), torch.device("cpu"), torch.float32)
    embedder = Embedder.build(model.file(manifest.CONFIG_NAME), loaded)
    tokenizer_json = model.file(manifest.TOKENIZER_NAME)
    return embedder, text.Tokenizer(tokenizer_json, embedder.config.context_length)


def main() -> None:
    kind, *arguments = sys.argv[1:]
    measure = pull if kind == "pull" else Texts(*arguments).embed
    for line in sys.stdin:
        print("value", measure(*json.loads(line)), flush=True)


if __name__ == "__main__":
    main()
