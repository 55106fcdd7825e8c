"""What happens to a part: prepare → embed → write. Each stage runs in processes of the cluster.

A part travels as one row of Ray Data, which is never split: the stages need not find out which rows
belong together. Preparing knows no torch; embedding knows no files.
"""

from __future__ import annotations

import functools
import os
import pickle
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from clip_embed import image, text
from clip_embed.errors import AccessError, EmbeddingError, InputError, WeightsError
from dataset.places import open_place
from dataset.plan import Part, Row, Task, part_name, read_part, read_rows, resolve, split_source

READERS = 8
"""Files of a part that are fetched and decoded at once: a read waits for the network, and decoding
leaves the interpreter free."""

# Rows per forward pass. Nobody waits for one of them, so more than a service would take; beyond
# these a CPU gains nothing, and a GPU is full.
IMAGES_PER_BATCH = {"cpu": 8, "cuda": 64}
TEXTS_PER_BATCH = {"cpu": 64, "cuda": 256}


@dataclass(frozen=True)
class Work:
    """What every stage must know. tokenizer: the bytes of tokenizer.json."""

    task: Task
    destination: str
    weights: str
    preprocessing: image.Preprocessing
    tokenizer: bytes
    context_length: int
    max_pixels: int


@dataclass(frozen=True)
class Prepared:
    """A part ready for the network. errors: per row, None where it can be embedded.

    pixels: uint8 [n, S, S, 3], or tokens: n of them, for the n rows without an error, in order.
    """

    ids: list[str]
    errors: list[str | None]
    pixels: npt.NDArray[np.uint8] | None
    tokens: list[text.Tokens] | None


@dataclass(frozen=True)
class Embedded:
    """vectors: float32 [rows, D]; rows with an error are zeros."""

    ids: list[str]
    errors: list[str | None]
    vectors: npt.NDArray[np.float32]


# --- prepare ----------------------------------------------------------------------------------


def prepare(row: dict[str, Any], work: Work) -> dict[str, Any]:
    """Read a part and make it ready; a row that cannot be is kept with the reason."""
    part = read_part(open_place(work.destination), int(row["part"]))
    if work.task.column is None:
        rows = [Row(name, name) for name in part.names]
    else:
        rows = list(read_rows(work.task, part))
    if len(rows) != part.rows:
        raise RuntimeError(
            f"{part.table} has changed: rows {part.first} to {part.first + part.rows} are"
            f" {len(rows)} now; restore it, or embed it into another DEST"
        )
    if work.task.column is not None and not work.task.of_paths:
        prepared = _prepare_texts(rows, work)
    else:
        prepared = _prepare_images(rows, work)
    return {"part": part.number, "prepared": pickle.dumps(prepared, protocol=5)}


def _prepare_texts(rows: list[Row], work: Work) -> Prepared:
    tokenizer = _tokenizer(work.tokenizer, work.context_length)
    errors, tokens = [], []
    for row in rows:
        error = row.error
        if row.value is not None:
            try:
                tokens.append(tokenizer.tokenize(row.value))
            except InputError as reason:
                error = str(reason)
        errors.append(error)
    return Prepared([row.id for row in rows], errors, None, tokens)


@functools.lru_cache(maxsize=1)
def _tokenizer(tokenizer_json: bytes, context_length: int) -> text.Tokenizer:
    return text.Tokenizer(tokenizer_json, context_length)


def _prepare_images(rows: list[Row], work: Work) -> Prepared:
    size = work.preprocessing.size
    pixels = np.empty((len(rows), size, size, 3), dtype=np.uint8)
    good, errors = 0, []
    with (
        tempfile.TemporaryDirectory(prefix="clip-embed-") as scratch,
        ThreadPoolExecutor(READERS, thread_name_prefix="prepare") as threads,
    ):
        load = functools.partial(_load_image, work=work, scratch=scratch)
        for loaded in threads.map(load, rows):
            if isinstance(loaded, str):
                errors.append(loaded)
            else:
                pixels[good] = loaded
                good += 1
                errors.append(None)
    return Prepared([row.id for row in rows], errors, pixels[:good], None)


def _load_image(row: Row, work: Work, scratch: str) -> npt.NDArray[np.uint8] | str:
    """The pixels, or what is wrong with the row."""
    if row.value is None:
        return row.error or "no path"
    try:
        if work.task.of_paths:
            location, name = resolve(row.value, work.task)
        else:
            location, name = split_source(work.task.source)[0], row.value
        data = open_place(location).read(name)
        # In a file of that name, because messages name it; shortened to what file systems take.
        with tempfile.TemporaryDirectory(dir=scratch) as directory:
            path = os.path.join(directory, os.path.basename(name)[-60:] or "picture")
            with open(path, "wb") as file:
                file.write(data)
            return image.prepare(path, work.preprocessing, work.max_pixels).array
    except FileNotFoundError:
        return f"{row.value} is not there"
    except (InputError, AccessError, ValueError) as error:
        return str(error)


# --- embed ------------------------------------------------------------------------------------


class Embed:
    """An embedder in an actor: it pulls its own weights, and embeds parts one after another."""

    def __init__(self, work: Work, threads: int) -> None:
        """threads: for the network on a CPU. Raises WeightsError, ModelError."""
        import weights
        from clip_embed import manifest

        with weights.pull(work.weights, cache=os.environ.get("CLIP_WEIGHTS_CACHE")) as pull:
            import torch

            from clip_embed import tensors
            from clip_embed.device import choose_device, choose_dtype
            from clip_embed.embedder import Embedder

            torch.set_num_threads(threads)
            device = choose_device(os.environ.get("CLIP_DEVICE"))
            if model_of(pull.manifest) != work.task.model:
                raise WeightsError(
                    f"{work.weights} was republished since this run was planned; embed everything"
                    " anew into another DEST, or put the former model back"
                )
            self._embedder = Embedder.build(
                pull.file(manifest.CONFIG_NAME),
                tensors.load(pull.blocks(), device, choose_dtype(device)),
            )
            self._embedder.warm_up()
            pull.keep()
        self._kind = device.type

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        prepared: Prepared = pickle.loads(row["prepared"])
        done = embed(self._embedder, prepared, self._kind)
        return {"part": row["part"], "embedded": pickle.dumps(done, protocol=5)}


def model_of(manifest: Any) -> str:
    """What tells one published model from another: its name, and its files' checksums."""
    files = sorted((file.name, file.crc32c) for file in manifest.files)
    return f"{manifest.model} " + ",".join(checksum for _, checksum in files)


def embed(embedder: Any, prepared: Prepared, kind: str) -> Embedded:
    """Every row that can be embedded, in batches; a row the network fails on gets its error."""
    errors = list(prepared.errors)
    places = [index for index, error in enumerate(errors) if error is None]
    vectors = np.zeros((len(errors), embedder.config.embed_dim), dtype=np.float32)
    inputs: Sequence[Any]
    if prepared.tokens is not None:
        inputs, encode, limit = prepared.tokens, embedder.embed_texts, TEXTS_PER_BATCH[kind]
        # Texts of a length together: attention is computed as wide as a batch's longest.
        order = sorted(range(len(inputs)), key=lambda index: prepared.tokens[index].end)
    else:
        assert prepared.pixels is not None
        inputs = [image.Pixels(array, 0, 0) for array in prepared.pixels]
        encode, limit = embedder.embed_images, IMAGES_PER_BATCH[kind]
        order = list(range(len(inputs)))
    for start in range(0, len(order), limit):
        batch = order[start : start + limit]
        _encode([inputs[i] for i in batch], [places[i] for i in batch], encode, vectors, errors)
    return Embedded(prepared.ids, errors, vectors)


def _encode(
    inputs: Sequence[Any],
    places: Sequence[int],
    encode: Callable[[Sequence[Any]], npt.NDArray[np.float32]],
    vectors: npt.NDArray[np.float32],
    errors: list[str | None],
) -> None:
    try:
        vectors[list(places)] = encode(inputs)
    except EmbeddingError as error:
        if len(inputs) == 1:
            errors[places[0]] = str(error)
        else:  # one of them; the others must not share its fate
            for one, place in zip(inputs, places, strict=True):
                _encode([one], [place], encode, vectors, errors)


# --- write ------------------------------------------------------------------------------------


def write(row: dict[str, Any], work: Work) -> dict[str, Any]:
    """A part into its file; how many rows, and how many with an error."""
    done: Embedded = pickle.loads(row["embedded"])
    number = int(row["part"])
    sink = pa.BufferOutputStream()
    # Floats of a network do not compress; names and errors do.
    pq.write_table(
        to_table(done), sink, compression={"id": "zstd", "error": "zstd"}, use_dictionary=False
    )
    open_place(work.destination).write(part_name(number), sink.getvalue().to_pybytes())
    failed = sum(error is not None for error in done.errors)
    return {"part": number, "rows": len(done.ids), "errors": failed}


def to_table(done: Embedded) -> pa.Table:
    """id: string; vector: fixed_size_list<float32>[D], null beside an error; error: string."""
    failed = pa.array([error is not None for error in done.errors], pa.bool_())
    vectors = pa.FixedSizeListArray.from_arrays(
        pa.array(done.vectors.ravel()), done.vectors.shape[1], mask=failed
    )
    return pa.table(
        {
            "id": pa.array(done.ids, pa.string()),
            "vector": vectors,
            "error": pa.array(done.errors, pa.string()),
        }
    )


def check(number: int, destination: str) -> tuple[int, int] | None:
    """Rows and errors of a part that was finished earlier; None if it is not there whole."""
    place = open_place(destination)
    try:
        data = pa.BufferReader(place.read(part_name(number)))
        table = pq.read_table(data, columns=["error"])
    except (FileNotFoundError, pa.ArrowInvalid):
        return None
    part: Part = read_part(place, number)
    if table.num_rows != part.rows:
        return None
    return table.num_rows, table.num_rows - table["error"].null_count
