"""Prepare, embed and write a part. Each stage runs in processes of the cluster.

A part travels as one row of Ray Data, which Ray never splits, so that no stage has to find out
which rows belong together. The prepare stage needs no torch, the embed stage reads no files.
"""

from __future__ import annotations

import functools
import os
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

import weights
from clip_embed.checkpoint.manifest import Manifest
from clip_embed.errors import (
    AccessError,
    DeviceError,
    EmbeddingError,
    InputError,
    WeightsError,
)
from clip_embed.inputs.preprocess import Pixels, PreprocessConfig, preprocess_image
from clip_embed.inputs.tokenizer import Tokenizer, Tokens
from clip_embed.model.batch_limits import CATALOG_LIMITS
from clip_embed.service import load_embedder
from clip_embed.settings import Settings
from scripts.dataset.plan import (
    EmbeddingJob,
    Row,
    part_name,
    read_part,
    read_rows,
    resolve_image,
    split_source,
)
from scripts.lib.storage import open_storage

if TYPE_CHECKING:
    from clip_embed.embedder import Embedder

READ_THREADS = 8
"""Files of a part that are read and decoded at the same time: a read waits for the network, and
decoding releases the interpreter lock."""

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class StageConfig:
    """The configuration that all stages share.

    destination, weights: locations. tokenizer: the bytes of tokenizer.json. max_image_pixels,
    fast_jpeg: as in the service's settings.
    """

    job: EmbeddingJob
    destination: str
    weights: str
    preprocessing: PreprocessConfig
    tokenizer: bytes
    context_length: int
    max_image_pixels: int
    fast_jpeg: bool


@dataclass(frozen=True)
class PreparedPart:
    """Inputs of the network.

    errors: per row, None if it can be embedded. pixels: uint8 [n, S, S, 3], or tokens: a list of n,
    for the n rows without an error, in order.
    """

    ids: list[str]
    errors: list[str | None]
    pixels: npt.NDArray[np.uint8] | None
    tokens: list[Tokens] | None


@dataclass(frozen=True)
class EmbeddedPart:
    """vectors: float32 [rows, D], zeros for a row with an error."""

    ids: list[str]
    errors: list[str | None]
    vectors: Vectors


# --- prepare ----------------------------------------------------------------------------------


def prepare(row: dict[str, Any], config: StageConfig) -> dict[str, Any]:
    """Read and preprocess a part. A row that cannot be read keeps its place, with the reason."""
    job = config.job
    part = read_part(open_storage(config.destination), int(row["part"]))
    if job.column is None:
        rows = [Row(name, name) for name in part.names]
    else:
        rows = list(read_rows(job, part))
    if len(rows) != part.rows:
        raise RuntimeError(
            f"{part.table} has changed: rows {part.first} to {part.first + part.rows} are"
            f" {len(rows)} now; restore it, or embed it into another DEST"
        )
    is_text = job.column is not None and not job.of_paths
    prepared = _prepare_texts(rows, config) if is_text else _prepare_images(rows, config)
    return {"part": part.number, "prepared": pickle.dumps(prepared, protocol=5)}


def _prepare_texts(rows: list[Row], config: StageConfig) -> PreparedPart:
    tokenizer = _tokenizer(config.tokenizer, config.context_length)
    errors, tokens = [], []
    for row in rows:
        error = row.error
        if row.value is not None:
            try:
                tokens.append(tokenizer.tokenize(row.value))
            except InputError as reason:
                error = str(reason)
        errors.append(error)
    return PreparedPart([row.id for row in rows], errors, None, tokens)


@functools.lru_cache(maxsize=1)
def _tokenizer(tokenizer_json: bytes, context_length: int) -> Tokenizer:
    return Tokenizer(tokenizer_json, context_length)


def _prepare_images(rows: list[Row], config: StageConfig) -> PreparedPart:
    size = config.preprocessing.size
    pixels = np.empty((len(rows), size, size, 3), dtype=np.uint8)
    good, errors = 0, []
    with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="prepare") as threads:
        load = functools.partial(_load_image, config=config)
        for loaded in threads.map(load, rows):
            if isinstance(loaded, str):
                errors.append(loaded)
            else:
                pixels[good] = loaded
                good += 1
                errors.append(None)
    return PreparedPart([row.id for row in rows], errors, pixels[:good], None)


def _load_image(row: Row, config: StageConfig) -> npt.NDArray[np.uint8] | str:
    """Return the pixels, or the error of the row."""
    if row.value is None:
        return row.error or "no path"
    try:
        if config.job.of_paths:
            location, name = resolve_image(row.value, config.job)
        else:
            location, name = split_source(config.job.source)[0], row.value
        return preprocess_image(
            BytesIO(open_storage(location).read(name)),
            config.preprocessing,
            config.max_image_pixels,
            config.fast_jpeg,
            os.path.basename(name)[-60:] or "image",
        ).array
    except FileNotFoundError:
        return f"{row.value} is not there"
    except (InputError, AccessError, ValueError) as error:
        return str(error)


# --- embed ------------------------------------------------------------------------------------


class EmbedStage:
    """An actor with its own copy of the network. It embeds one part after another."""

    def __init__(self, config: StageConfig, threads: int) -> None:
        """Pull the weights and bring up the network. threads: CPU threads of the network.

        Raises WeightsError, ModelError, SettingError.
        """
        settings = Settings.from_environment()
        with weights.pull(
            config.weights,
            cache=settings.weights_cache,
            cache_bytes=settings.weights_cache_bytes,
        ) as pull:
            if model_id(pull.manifest) != config.job.model:
                raise WeightsError(
                    f"{config.weights} was republished since this run was planned; embed everything"
                    " again into another DEST, or restore the former model"
                )
            self._embedder = load_embedder(pull, settings.device, threads=threads).embedder
            self._embedder.warm_up(for_catalogs=True)
            pull.fill_cache()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        prepared: PreparedPart = pickle.loads(row["prepared"])
        embedded = embed_part(self._embedder, prepared)
        return {"part": row["part"], "embedded": pickle.dumps(embedded, protocol=5)}


def model_id(manifest: Manifest) -> str:
    """Return a string that identifies a published model: its name and its files' checksums."""
    files = sorted((file.name, file.crc32c) for file in manifest.files)
    return f"{manifest.model} " + ",".join(checksum for _, checksum in files)


def embed_part(embedder: Embedder, prepared: PreparedPart) -> EmbeddedPart:
    """Embed the rows without an error, in batches. A row that the network fails on gets one."""
    errors = list(prepared.errors)
    rows = [index for index, error in enumerate(errors) if error is None]
    vectors = np.zeros((len(errors), embedder.config.embed_dim), dtype=np.float32)
    limits = CATALOG_LIMITS[embedder.device.type]
    inputs: Sequence[Any]
    if prepared.tokens is not None:
        inputs, encode, limit = prepared.tokens, embedder.embed_texts, limits.texts
        # Texts of similar length together: the longest text sets the cost of attention in a batch.
        order = sorted(range(len(inputs)), key=lambda index: inputs[index].eot_index)
    else:
        assert prepared.pixels is not None
        inputs = [Pixels(array, 0, 0) for array in prepared.pixels]
        encode, limit = embedder.embed_images, limits.images
        order = list(range(len(inputs)))
    for start in range(0, len(order), limit):
        batch = order[start : start + limit]
        _embed_batch([inputs[i] for i in batch], [rows[i] for i in batch], encode, vectors, errors)
    return EmbeddedPart(prepared.ids, errors, vectors)


def _embed_batch(
    inputs: Sequence[Any],
    rows: Sequence[int],
    encode: Callable[[Sequence[Any]], Vectors],
    vectors: Vectors,
    errors: list[str | None],
) -> None:
    """Set `vectors` or `errors` of `rows`, which are the indices of `inputs` in the part."""
    try:
        vectors[list(rows)] = encode(inputs)
    except DeviceError:  # no fault of the inputs: the part is embedded again
        raise
    except EmbeddingError as error:
        if len(inputs) == 1:
            errors[rows[0]] = str(error)
        else:  # one input fails the whole batch: embed each input alone
            for single, row in zip(inputs, rows, strict=True):
                _embed_batch([single], [row], encode, vectors, errors)


# --- write ------------------------------------------------------------------------------------


def write(row: dict[str, Any], config: StageConfig) -> dict[str, Any]:
    """Write a part to its file. Return its number of rows and of errors."""
    embedded: EmbeddedPart = pickle.loads(row["embedded"])
    number = int(row["part"])
    sink = pa.BufferOutputStream()
    # The floats of a network do not compress; ids and errors do.
    pq.write_table(
        to_table(embedded), sink, compression={"id": "zstd", "error": "zstd"}, use_dictionary=False
    )
    open_storage(config.destination).write(part_name(number), sink.getvalue().to_pybytes())
    errors = sum(error is not None for error in embedded.errors)
    return {"part": number, "rows": len(embedded.ids), "errors": errors}


def to_table(embedded: EmbeddedPart) -> pa.Table:
    """Return id: string; vector: fixed_size_list<float32>[D], null with an error; error: string."""
    failed = pa.array([error is not None for error in embedded.errors], pa.bool_())
    vectors = pa.FixedSizeListArray.from_arrays(
        pa.array(embedded.vectors.ravel()), embedded.vectors.shape[1], mask=failed
    )
    return pa.table(
        {
            "id": pa.array(embedded.ids, pa.string()),
            "vector": vectors,
            "error": pa.array(embedded.errors, pa.string()),
        }
    )


def check_part(number: int, destination: str) -> tuple[int, int] | None:
    """Return the rows and errors of a part written earlier, None if it is missing or damaged."""
    storage = open_storage(destination)
    try:
        data = pa.BufferReader(storage.read(part_name(number)))
        table = pq.read_table(data, columns=["error"])
    except (FileNotFoundError, pa.ArrowInvalid):
        return None
    if table.num_rows != read_part(storage, number).rows:
        return None
    return table.num_rows, table.num_rows - table["error"].null_count
