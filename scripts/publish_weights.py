"""Publish a CLIP model to a bucket or a directory, in the form `weights.py` pulls.

    publish_weights.py SOURCE DEST [--model NAME]

SOURCE  an open_clip pretrained tag ("openai"), a checkpoint file (.pt, .pth, .bin or .safetensors),
        or random:SEED for an untrained network (tests, benchmarks)
DEST    gs://bucket/prefix or a directory
NAME    an open_clip model name, or a JSON file like open_clip's model configs

Every tensor is stored as float16 where all of its values survive that bit for bit, else as float32.
The manifest is written last, so a half-finished publication is never taken for a model; running the
same command again uploads only what is missing or different.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import crc32c
import open_clip
import safetensors.torch
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from clip_embed import manifest, text
from clip_embed.config import ClipConfig
from clip_embed.errors import ModelError
from clip_embed.model import Clip

DEFAULT_MODEL = "ViT-L-14-quickgelu"
SHARD_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Model:
    """A checkpoint and what is needed to run it. tensors: float32, open_clip's names."""

    name: str
    source: str
    tensors: Mapping[str, torch.Tensor]
    config: Mapping[str, Any]


# --- reading --------------------------------------------------------------------------------


def read_model(source: str, model: str) -> Model:
    """The model SOURCE and NAME describe. Raises SystemExit with a sentence if there is none."""
    name, model_cfg = _architecture(model)
    preprocess = {
        "mean": list(open_clip.OPENAI_DATASET_MEAN),
        "std": list(open_clip.OPENAI_DATASET_STD),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    kind, _, seed = source.partition(":")
    if kind == "random":
        if not seed.isdecimal():
            raise SystemExit(f"{source!r}: give a seed, as in random:0")
        torch.manual_seed(int(seed))
        tensors = open_clip.create_model(name, pretrained=None).state_dict()
        # OpenAI's release is float16 upcast; a random model stands in for it in size, too.
        tensors = {key: tensor.half().float() for key, tensor in tensors.items()}
    elif Path(source).is_file():
        tensors = _read_checkpoint(Path(source))
        source = Path(source).name
    elif source in open_clip.list_pretrained_tags_by_model(name):
        network = open_clip.create_model(name, pretrained=source)
        tensors = network.state_dict()
        shipped = open_clip.get_model_preprocess_cfg(network)
        preprocess |= {key: shipped[key] for key in preprocess if shipped.get(key) is not None}
    else:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise SystemExit(
            f"{source!r} is neither a file, nor random:SEED, nor a pretrained tag of {name}"
            f" (known: {known})"
        )
    Clip(ClipConfig.from_open_clip(model_cfg)).load(tensors)  # raises ModelError if they do not fit
    return Model(name, source, tensors, {"model_cfg": model_cfg, "preprocess_cfg": preprocess})


def _architecture(model: str) -> tuple[str, dict[str, Any]]:
    """open_clip's name and configuration of `model`, a name or a JSON file."""
    if model.endswith(".json"):
        try:
            json.loads(Path(model).read_bytes())
        except (OSError, ValueError) as error:
            raise SystemExit(f"{model} cannot be read as a model config: {error}") from error
        open_clip.add_model_config(model)
        model = Path(model).stem
    model_cfg = open_clip.get_model_config(model)
    if model_cfg is None:
        raise SystemExit(f"open_clip knows no model {model!r}; try {DEFAULT_MODEL}")
    return model, model_cfg


def _read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        return {
            name.removeprefix("module."): tensor.float()
            for name, tensor in state.items()
            # OpenAI's own checkpoints carry these beside the parameters.
            if name not in ("input_resolution", "context_length", "vocab_size")
        }
    except Exception as error:  # torch's own message advises to run what is in the file
        raise SystemExit(
            f"{path} is not a checkpoint of named tensors and nothing else"
            f" ({type(error).__name__}); save its state_dict alone and publish that"
        ) from error


# --- converting -----------------------------------------------------------------------------


def narrow(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` as float16 if every value survives the round trip bit for bit, else as float32."""
    wide = tensor.float().contiguous()
    half = wide.half()
    same = torch.equal(half.float().view(torch.int32), wide.view(torch.int32))
    return half if same else wide


def shards(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, bytes, list[str]]]:
    """Name, bytes and tensor names of each shard; all but the last hold about SHARD_BYTES."""
    groups: list[dict[str, torch.Tensor]] = [{}]
    room = SHARD_BYTES
    for name, tensor in tensors.items():
        stored = narrow(tensor)
        if stored.nbytes > room and groups[-1]:
            groups.append({})
            room = SHARD_BYTES
        groups[-1][name] = stored
        room -= stored.nbytes
    for number, group in enumerate(groups, 1):
        name = f"model-{number:05}-of-{len(groups):05}{manifest.SHARD_SUFFIX}"
        yield name, safetensors.torch.save(group, metadata={"format": "pt"}), list(group)


def tokenizer_json() -> bytes:
    """CLIP's byte-pair encoding, from open_clip's vocabulary, as a Hugging Face tokenizer.

    It has no normalizer: cleaning is `clip_embed.text`'s, and doing it twice could undo it.
    """
    with gzip.open(open_clip.tokenizer.default_bpe()) as file:
        lines = file.read().decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    alphabet = list(open_clip.tokenizer.bytes_to_unicode().values())
    pieces = [*alphabet, *(letter + "</w>" for letter in alphabet), *map("".join, merges)]
    vocabulary = {piece: index for index, piece in enumerate([*pieces, text.START, text.END])}
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, end_of_word_suffix="</w>", fuse_unk=False)
    )
    # CLIP's pattern ignores case, by which 'ſ' is an 's'; cleaning has lowered all else.
    pattern = r"<ſtart_of_text>|'[sſ]|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([text.START, text.END])
    return tokenizer.to_str().encode()


# --- writing --------------------------------------------------------------------------------


class Destination(Protocol):
    """Where a model is published."""

    location: str

    def checksum(self, name: str) -> tuple[str, str | None] | None:
        """crc32c and generation of what is there under `name`, or None."""

    def write(self, name: str, data: bytes, progress: tqdm[Any]) -> str | None:
        """Put `data` there, whole or not at all; its generation, where there is such a thing."""


class Directory:
    """A directory of this machine."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._path = Path(location).expanduser()

    def checksum(self, name: str) -> tuple[str, str | None] | None:
        try:
            return crc((self._path / name).read_bytes()), None
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes, progress: tqdm[Any]) -> str | None:
        self._path.mkdir(parents=True, exist_ok=True)
        partial = self._path / f".{name}.partial"
        partial.write_bytes(data)
        os.replace(partial, self._path / name)
        progress.update(len(data))
        return None


class _Watched(io.BytesIO):
    """Bytes that move a progress bar as they are read; a retried upload moves it back."""

    def __init__(self, data: bytes, progress: tqdm[Any]) -> None:
        super().__init__(data)
        self._progress = progress
        self._begin = progress.n

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self._progress.update(self._begin + self.tell() - self._progress.n)
        return data


class Bucket:
    """A Cloud Storage bucket, or an emulator of it (STORAGE_EMULATOR_HOST)."""

    def __init__(self, location: str) -> None:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage

        self.location = location
        bucket, _, prefix = location.removeprefix("gs://").partition("/")
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        if os.environ.get("STORAGE_EMULATOR_HOST"):
            client = storage.Client(project="emulator", credentials=AnonymousCredentials())
        else:
            client = storage.Client()
        self._bucket = client.bucket(bucket)

    def checksum(self, name: str) -> tuple[str, str | None] | None:
        blob = self._bucket.get_blob(self._prefix + name)
        return None if blob is None else (blob.crc32c, str(blob.generation))

    def write(self, name: str, data: bytes, progress: tqdm[Any]) -> str | None:
        blob = self._bucket.blob(self._prefix + name)
        if name == manifest.MANIFEST_NAME:
            # Else caches may serve an hour-old one from a public bucket, naming generations that
            # are gone. (Cloud Storage, "Cache-Control": public objects default to max-age=3600.)
            blob.cache_control = "no-store"
        file = _Watched(data, progress)
        blob.upload_from_file(file, size=len(data), checksum="crc32c")
        return str(blob.generation)


def crc(data: bytes | memoryview) -> str:
    """crc32c of `data`, as Cloud Storage writes it."""
    return manifest.encode_checksum(crc32c.crc32c(data))


def describe(name: str, data: bytes, generation: str | None) -> manifest.PublishedFile:
    """The manifest's entry for `data`."""
    view = memoryview(data)
    blocks = range(0, len(data), manifest.BLOCK_SIZE)
    return manifest.PublishedFile(
        name=name,
        size=len(data),
        crc32c=crc(data),
        generation=generation,
        blocks=tuple(crc(view[start : start + manifest.BLOCK_SIZE]) for start in blocks),
    )


def publish(model: Model, destination: Destination) -> None:
    """Write everything `model` needs, the manifest last; skip what is there already."""
    files: list[manifest.PublishedFile] = []
    uploaded = skipped = 0
    full = sum(tensor.numel() * 4 for tensor in model.tensors.values())
    weight_map: dict[str, str] = {}
    with tqdm(total=0, unit="B", unit_scale=True, desc="publish", dynamic_ncols=True) as progress:

        def put(name: str, data: bytes) -> None:
            nonlocal uploaded, skipped
            progress.total += len(data)
            there = destination.checksum(name)
            if there is not None and there[0] == crc(data):
                generation, skipped = there[1], skipped + len(data)
                progress.update(len(data))
            else:
                generation, uploaded = destination.write(name, data, progress), uploaded + len(data)
            files.append(describe(name, data, generation))

        put(manifest.CONFIG_NAME, json.dumps(model.config, indent=1).encode())
        put(manifest.TOKENIZER_NAME, tokenizer_json())
        for name, data, names in shards(model.tensors):
            put(name, data)
            weight_map |= dict.fromkeys(names, name)
        stored = sum(file.size for file in files if file.name.endswith(manifest.SHARD_SUFFIX))
        index = {"metadata": {"total_size": stored}, "weight_map": weight_map}
        put("model.safetensors.index.json", json.dumps(index, indent=1).encode())
        document = manifest.Manifest(model.name, model.source, tuple(files)).to_json()
        there = destination.checksum(manifest.MANIFEST_NAME)
        if there is None or there[0] != crc(document):
            progress.total += len(document)
            destination.write(manifest.MANIFEST_NAME, document, progress)
    print(
        f"{destination.location}: {model.name} ({model.source}), {stored / 1e6:,.1f} MB of weights"
        f" instead of {full / 1e6:,.1f} MB in float32 ({1 - stored / full:.0%} saved);"
        f" {uploaded / 1e6:,.1f} MB written, {skipped / 1e6:,.1f} MB were there already"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("destination", metavar="DEST")
    parser.add_argument("--model", metavar="NAME", default=DEFAULT_MODEL)
    arguments = parser.parse_args()
    kind = Bucket if arguments.destination.startswith("gs://") else Directory
    if kind is Directory and "://" in arguments.destination:
        parser.error(f"DEST is {arguments.destination!r}; give gs://bucket/prefix or a directory")
    destination: Destination = kind(arguments.destination)
    try:
        publish(read_model(arguments.source, arguments.model), destination)
    except ModelError as error:
        raise SystemExit(f"{arguments.source}: {error}") from error


if __name__ == "__main__":
    main()
