"""Compare vectors: float16 with float32, batches with single inputs, this service with libraries.

The reference is the service's network in float32 on the CPU, which tests/reference compares with
open_clip and transformers. Cosines are the lowest of all inputs, differences the largest.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from clip_embed.embedder import MIN_COSINE
from clip_embed.inputs.preprocess import preprocess_image
from clip_embed.startup.cpu_quota import usable_cpus
from scripts.gpu.contenders import (
    Contender,
    OpenClip,
    Ours,
    Transformers,
    Vectors,
    load_ours,
    load_ours_in_float32,
    preprocess_config,
)
from scripts.gpu.part import Recorder, Task
from scripts.gpu.samples import pictures, texts_of_every_length
from scripts.lib.cog_server import ROOT
from scripts.lib.drawings import held_out

BATCHES = (*range(1, 17), 32, 64)
DEMO_MODEL = ROOT / "demo_model"
BEST = 10  # pictures per text


@dataclass(frozen=True)
class Agreement:
    """cosine: the lowest. difference: the largest of any value."""

    cosine: float
    difference: float


def compare(vectors: Vectors, reference: Vectors) -> Agreement:
    """Compare each row with the same row of `reference`."""
    # In float64: in float32 the cosine of a vector with itself differs from 1 by 1e-7.
    a, b = vectors.astype(np.float64), reference.astype(np.float64)
    cosines = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return Agreement(float(cosines.min()), float(np.abs(a - b).max()))


def judge(
    record: Recorder, row: str, kind: str, vectors: Vectors, reference: Vectors, *, table: str
) -> None:
    """Record the agreement of vectors of `kind`, "texts" or "images"; fail if it is too low."""
    agreement = compare(vectors, reference)
    record.figure(table, row, agreement.cosine, "cosine", column=f"{kind}: lowest")
    record.figure(table, row, agreement.difference, "difference", column=f"{kind}: largest")
    if not agreement.cosine >= MIN_COSINE:  # nan is a failure, too
        record.fail(
            f"{table}, {row}, {kind}: cosine {agreement.cosine:.7f}; it must be {MIN_COSINE} or"
            " more"
        )


def run(task: Task, record: Recorder) -> None:
    """Record all comparisons."""
    # A reference in float32 must not be computed in TensorFloat-32.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    images = pictures(preprocess_config(task))
    texts = texts_of_every_length()
    loaded = load_ours(task.ours, task.device)
    ours = Ours(loaded.embedder, loaded.tokenizer)
    alone = _embed(ours, texts, images, batch=1)
    on_cpu = Ours(load_ours_in_float32(task.ours, "cpu"), loaded.tokenizer)
    reference = _embed(on_cpu, texts, images, batch=8)
    _compare_all(record, f"{_precision(ours)} on {task.device}", alone, reference)
    with record.section("without CUDA graphs"):
        ours.embedder.use_graphs = False
        try:
            plain = _embed(ours, texts, images, batch=16)
        finally:
            ours.embedder.use_graphs = True
        row = f"{_precision(ours)} on {task.device}, without CUDA graphs, in batches"
        _compare_all(record, row, plain, reference)
    with record.section("for catalogs"):
        again = load_ours(task.ours, task.device, for_catalogs=True)
        catalogs = Ours(again.embedder, again.tokenizer)
        row = f"{_precision(ours)} on {task.device}, for catalogs, in batches"
        _compare_all(record, row, _embed(catalogs, texts, images, batch=64), reference)
        del catalogs, again
    if task.device == "cuda":
        with record.section("float32 on cuda"):
            float32 = Ours(load_ours_in_float32(task.ours, "cuda"), loaded.tokenizer)
            _compare_all(
                record, "float32 on cuda", _embed(float32, texts, images, batch=1), reference
            )
            del float32
    _compare_batches(task, record, ours, texts, images, alone)
    if task.libraries:
        _compare_libraries(task, record, texts, images, alone, reference)
    with record.section("demo_model"):
        _compare_rankings(task, record)


AGAINST_CPU = "beside this service in float32 on the CPU"


def _compare_all(
    record: Recorder,
    row: str,
    vectors: dict[str, Vectors],
    reference: dict[str, Vectors],
    table: str = AGAINST_CPU,
) -> None:
    for kind in reference:
        judge(record, row, kind, vectors[kind], reference[kind], table=table)


def _precision(ours: Ours) -> str:
    return str(ours.embedder.dtype).removeprefix("torch.")


def _embed(
    contender: Contender, texts: Sequence[str], images: Sequence[Any], batch: int
) -> dict[str, Vectors]:
    return {
        "texts": np.concatenate(
            [
                contender.encode_texts(contender.prepare_texts(texts[start : start + batch]))
                for start in range(0, len(texts), batch)
            ]
        ),
        "images": np.concatenate(
            [
                contender.encode_images(contender.prepare_images(images[start : start + batch]))
                for start in range(0, len(images), batch)
            ]
        ),
    }


def _compare_batches(
    task: Task,
    record: Recorder,
    ours: Ours,
    texts: Sequence[str],
    images: Sequence[Any],
    alone: dict[str, Vectors],
) -> None:
    """Embed inputs in batches of random other inputs, and compare with each one by itself."""
    rng = random.Random(0)
    sizes = (1, 2, 3, 8) if task.tiny else BATCHES
    found: dict[str, tuple[list[Vectors], list[Vectors]]] = {"texts": ([], []), "images": ([], [])}
    for size in sizes:
        for _ in range(2):
            some = [rng.randrange(len(texts)) for _ in range(size)]
            vectors = ours.encode_texts(ours.prepare_texts([texts[i] for i in some]))
            found["texts"][0].append(vectors)
            found["texts"][1].append(alone["texts"][some])
        some = [rng.randrange(len(images)) for _ in range(size)]
        found["images"][0].append(ours.encode_images([images[i] for i in some]))
        found["images"][1].append(alone["images"][some])
    row = f"{_precision(ours)}, in batches of {sizes[0]} to {sizes[-1]}"
    for kind, (batched, single) in found.items():
        judge(
            record,
            row,
            kind,
            np.concatenate(batched),
            np.concatenate(single),
            table="beside the same inputs alone",
        )


def _compare_libraries(
    task: Task,
    record: Recorder,
    texts: Sequence[str],
    images: Sequence[Any],
    alone: dict[str, Vectors],
    reference: dict[str, Vectors],
) -> None:
    """Compare the libraries in both precisions, on the same device, with ours in the same."""
    own = {torch.float32: reference}
    if task.device == "cuda":
        own[torch.float16] = alone
    for name, library in {"transformers": Transformers, "open_clip": OpenClip}.items():
        for dtype, vectors in own.items():
            precision = str(dtype).removeprefix("torch.")
            with record.section(f"{name} in {precision}"):
                theirs = _embed(library(task, dtype), texts, images, batch=16)
                # Padded to 77 tokens, as open_clip always does, or to the longest of a batch.
                table = f"libraries on {task.device}, beside this service in the same precision"
                _compare_all(record, f"{name} in {precision}", theirs, vectors, table)


def _compare_rankings(task: Task, record: Recorder) -> None:
    """Rank the demo's pictures for each of their names, by vectors of the device and of the CPU."""
    drawings = held_out()[:: 20 if task.tiny else 1]
    loaded = load_ours(str(DEMO_MODEL), task.device)
    config = loaded.embedder.preprocess_config
    with ThreadPoolExecutor(usable_cpus()) as threads:
        images = list(
            threads.map(lambda each: preprocess_image(io.BytesIO(each.png()), config), drawings)
        )
    names = [drawing.name for drawing in drawings]
    device = _embed(Ours(loaded.embedder, loaded.tokenizer), names, images, batch=16)
    on_cpu = Ours(load_ours_in_float32(str(DEMO_MODEL), "cpu"), loaded.tokenizer)
    cpu = _embed(on_cpu, names, images, batch=64)
    _compare_all(record, f"{task.device}, demo_model", device, cpu, AGAINST_CPU)
    own, other = _rank(device), _rank(cpu)
    # A query on one machine, of an index that another one made.
    mixed = _rank({"texts": device["texts"], "images": cpu["images"]})
    table = f"best pictures of {len(images)} for {len(names)} texts, demo_model"
    for row, ranks in {
        f"all on {task.device}; compared with all on the CPU": own,
        f"texts on {task.device}, pictures on the CPU; compared with all on the CPU": mixed,
    }.items():
        same = [float(a[0] == b[0]) for a, b in zip(ranks, other, strict=True)]
        shared = [len(set(a) & set(b)) / BEST for a, b in zip(ranks, other, strict=True)]
        record.figure(table, row, float(np.mean(same)), "share", column="same best picture")
        record.figure(
            table, row, float(np.mean(shared)), "share", column=f"same of the best {BEST}"
        )


def _rank(vectors: dict[str, Vectors]) -> npt.NDArray[np.int64]:
    """Return the numbers of the best pictures for each text, int64 [texts, BEST]."""
    normal = {
        kind: each / np.linalg.norm(each, axis=1, keepdims=True) for kind, each in vectors.items()
    }
    return np.argsort(-(normal["texts"] @ normal["images"].T), axis=1, kind="stable")[:, :BEST]
