"""Recognize what SOURCE is by its content, and find its configuration and its tensors.

Configurations are read first, so that a model that cannot be published is refused before its
tensors are downloaded.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from scripts.publishing import (
    DEFAULT_MODEL,
    preprocessing,
    tensor_names,
    transformers_model,
)
from scripts.publishing.architecture import WantedModel, drop_defaults, parse_config, read_wanted
from scripts.publishing.checkpoint_file import SUFFIXES, Checkpoint, read_files
from scripts.publishing.errors import SourceError, redact
from scripts.publishing.hub import HubRepository
from scripts.publishing.pretrained_tags import find_tag
from scripts.publishing.statement import Statement, parse_json
from scripts.publishing.torchscript import Archive

OPEN_CLIP_CONFIG, TRANSFORMERS_CONFIG = "open_clip_config.json", "config.json"
_PROCESSOR_CONFIGS = ("processor_config.json", "preprocessor_config.json")
_INDEX_SUFFIX = ".index.json"
_TRANSFORMERS_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_OPEN_CLIP_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    *_TRANSFORMERS_WEIGHTS,
)
_OPENAI = Statement(quick_gelu=True, preprocess_cfg=preprocessing.OPENAI_PREPROCESSING)
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\b")
_HUB_PREFIX = "hf-hub:"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_PAGE = re.compile(r"https://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)/?")


@dataclass(frozen=True)
class Contents:
    """tensors: by open_clip's names. form: what was recognized. statement: complete."""

    form: str
    statement: Statement
    tensors: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Source:
    """A recognized source.

    label: its name in reports and in the manifest, never a path. statement: what is known before
    the tensors are read. read: reads them; raises SourceError.
    """

    label: str
    statement: Statement
    read: Callable[[], Contents]
    untrained: bool = False


def find_source(source: str, wanted: WantedModel | None) -> Source:
    """Recognize SOURCE. Raises SourceError if it is nothing that can be published."""
    if not source.strip():
        raise SourceError("SOURCE is empty; give a file, a directory, hf-hub:ORG/NAME or a tag")
    if source.startswith("random:"):
        return _untrained(source, wanted)
    if source.startswith(_HUB_PREFIX):
        name = source.removeprefix(_HUB_PREFIX)
        return _from_folder(HubRepository(name, source), source, prefers_open_clip=True)
    if page := _HUB_PAGE.fullmatch(source):
        return _from_folder(HubRepository(page[1], page[1]), page[1], prefers_open_clip=False)
    if "://" in source:
        raise SourceError(
            f"{redact(source)} is a URL; download the file and give its path, or give"
            " hf-hub:ORG/NAME"
        )
    try:
        path = Path(source).expanduser()
        if path.is_dir():
            return _from_directory(path, source)
        if path.exists():
            return _from_file(path, source)
    except (OSError, RuntimeError, ValueError) as error:  # also of names that no file can have
        reason = getattr(error, "strerror", None) or error
        raise SourceError(f"{source!r} cannot be read ({reason}); check the path") from error
    if source.endswith(SUFFIXES) or source.startswith(("/", ".", "~")) or source.count("/") > 1:
        raise SourceError(
            f"{source!r} is neither a file, nor random:SEED, nor a pretrained tag: there is no such"
            " file or directory; check the path"
        )
    if "/" in source:
        return _from_folder(HubRepository(source, source), source, prefers_open_clip=False)
    return _from_tag(source, wanted)


def _untrained(source: str, wanted: WantedModel | None) -> Source:
    seed = source.removeprefix("random:")
    if not (seed.isascii() and seed.isdecimal()) or int(seed) >= 2**63:
        raise SourceError(f"{source!r}: give a seed, as in random:0")
    model = wanted or read_wanted(DEFAULT_MODEL)

    def read() -> Contents:
        return Contents("untrained network", statement, _create_random(model, int(seed)))

    statement = Statement(model.shown, model.model_cfg, model.quick_gelu)
    return Source(source, statement, read, untrained=True)


def _create_random(model: WantedModel, seed: int) -> dict[str, torch.Tensor]:
    import open_clip

    torch.manual_seed(seed)
    tensors = open_clip.CLIP(**drop_defaults(model.model_cfg)).state_dict()
    # Values that float16 holds, like those of OpenAI's release: the stored size is then the same.
    return {key: tensor.half().float() for key, tensor in tensors.items()}


def _from_tag(source: str, wanted: WantedModel | None) -> Source:
    tag = find_tag(source, wanted)
    statement = tag.statement(wanted)

    def read() -> Contents:
        checkpoint = read_files([tag.download()], source)
        return _contents(checkpoint, statement, source, f"pretrained tag of {tag.model}")

    return Source(source, statement, read)


# --- directories and repositories ---------------------------------------------------------------


class Folder(Protocol):
    """Files of one model: a directory of this machine or a repository of the hub."""

    label: str

    def file(self, name: str) -> Path | None:
        """Return the path of a file, None if there is none. Raises SourceError."""


class Directory:
    """A directory of this machine. label: as the user gave it."""

    def __init__(self, path: Path, label: str) -> None:
        self.path, self.label = path, label

    def file(self, name: str) -> Path | None:
        path = self.path / name
        return path if path.is_file() else None

    def checkpoints(self) -> list[Path]:
        """Return the files that may be checkpoints, by their names."""
        paths = sorted(self.path.iterdir())
        return [path for path in paths if path.name.endswith(SUFFIXES) and path.is_file()]


def _from_directory(path: Path, source: str) -> Source:
    directory = Directory(path, source)
    known = (OPEN_CLIP_CONFIG, TRANSFORMERS_CONFIG)
    checkpoints = directory.checkpoints()
    if any(directory.file(name) for name in known):
        return _from_folder(directory, _label(path), prefers_open_clip=True)
    index = next((name for name in _OPEN_CLIP_WEIGHTS if directory.file(name)), None)
    if index is not None and index.endswith(_INDEX_SUFFIX):
        return _lone(functools.partial(_read_weights, directory, [index]), path, source)
    if len(checkpoints) == 1:
        return _from_file(checkpoints[0], source)
    if checkpoints:
        raise SourceError(
            f"{source} holds {len(checkpoints)} checkpoints and no config:"
            f" {', '.join(path.name for path in checkpoints[:3])}; give one of them"
        )
    raise SourceError(
        f"{source} is a directory without a checkpoint; give one with model.safetensors and its"
        " config.json or open_clip_config.json"
    )


def _from_folder(folder: Folder, label: str, *, prefers_open_clip: bool) -> Source:
    """Read a model with a config. prefers_open_clip: if there are configs of both libraries."""
    readers = [(OPEN_CLIP_CONFIG, _from_open_clip), (TRANSFORMERS_CONFIG, _from_transformers)]
    refused: SourceError | None = None
    for name, reader in readers if prefers_open_clip else reversed(readers):
        path = folder.file(name)
        if path is None:
            continue
        config = parse_json(path.read_bytes(), f"{folder.label}: {name}")
        if name == TRANSFORMERS_CONFIG and not prefers_open_clip and "model_type" not in config:
            # timm writes such a file beside open_clip's.
            refused = SourceError(
                f"{folder.label}: config.json names no model_type, so it is not transformers'; give"
                " a repository of a CLIP model"
            )
            continue
        return reader(folder, config, label)
    raise refused or SourceError(
        f"{folder.label} has neither {OPEN_CLIP_CONFIG} nor {TRANSFORMERS_CONFIG}; give a"
        " repository or directory of a CLIP model"
    )


def _from_open_clip(folder: Folder, config: dict[str, Any], label: str) -> Source:
    statement = _state_open_clip(config, f"{folder.label}: {OPEN_CLIP_CONFIG}")

    def read() -> Contents:
        checkpoint = _read_weights(folder, _OPEN_CLIP_WEIGHTS)
        return _contents(checkpoint, statement, folder.label, "open_clip model")

    return Source(label, statement, read)


def _state_open_clip(config: Mapping[str, Any], by: str) -> Statement:
    """Read open_clip_config.json. by: how messages call it. Raises SourceError."""
    model_cfg = config.get("model_cfg")
    if not isinstance(model_cfg, Mapping):
        raise SourceError(f"{by} has no model_cfg; publish a model that open_clip can load")
    parse_config(model_cfg, by)
    preprocess_cfg = preprocessing.from_open_clip(config.get("preprocess_cfg") or {}, by)
    quick_gelu = bool(model_cfg.get("quick_gelu"))  # open_clip's default is GELU
    return Statement(OPEN_CLIP_CONFIG, model_cfg, quick_gelu, OPEN_CLIP_CONFIG, preprocess_cfg)


def _from_transformers(folder: Folder, config: dict[str, Any], label: str) -> Source:
    statement = _state_transformers(folder, config)

    def read() -> Contents:
        checkpoint = _read_weights(folder, _TRANSFORMERS_WEIGHTS)
        return _contents(checkpoint, statement, folder.label, "transformers model")

    return Source(label, statement, read)


def _state_transformers(folder: Folder, config: Mapping[str, Any]) -> Statement:
    """Read config.json and the file about images beside it. Raises SourceError."""
    by = f"{folder.label}: {TRANSFORMERS_CONFIG}"
    model_cfg, quick_gelu = transformers_model.read_config(config, by)
    size = parse_config(model_cfg, by).image_size
    for name in _PROCESSOR_CONFIGS:
        path = folder.file(name)
        if path is None:
            continue
        processor_by = f"{folder.label}: {name}"
        processor = parse_json(path.read_bytes(), processor_by)
        if name == _PROCESSOR_CONFIGS[0]:
            processor = processor.get("image_processor")
            if not isinstance(processor, Mapping):
                continue  # the older file has it
        stated = preprocessing.from_transformers(processor, size, processor_by)
        return Statement(TRANSFORMERS_CONFIG, model_cfg, quick_gelu, name, stated)
    return Statement(TRANSFORMERS_CONFIG, model_cfg, quick_gelu)


def _read_weights(folder: Folder, names: tuple[str, ...] | list[str]) -> Checkpoint:
    """Read the first of the files `names` that there is. An index stands for its shards."""
    for name in names:
        path = folder.file(name)
        if path is None:
            continue
        if not name.endswith(_INDEX_SUFFIX):
            return read_files([path], folder.label)
        return read_files(_shards(folder, path), folder.label)
    if isinstance(folder, Directory) and len(folder.checkpoints()) == 1:
        return read_files(folder.checkpoints(), folder.label)
    raise SourceError(f"{folder.label} has none of {', '.join(names)}; give a complete model")


def _shards(folder: Folder, index: Path) -> list[Path]:
    shown = f"{folder.label}: {index.name}"
    weight_map = parse_json(index.read_bytes(), shown).get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise SourceError(f"{shown} has no weight_map; fetch or save the model anew")
    paths = []
    for name in sorted(set(map(str, weight_map.values()))):
        # The index of a stranger must not name files elsewhere.
        path = folder.file(name) if Path(name).name == name else None
        if path is None:
            raise SourceError(f"{shown} names {name}, which is missing; fetch the whole model")
        paths.append(path)
    return paths


# --- single files -------------------------------------------------------------------------------


def _from_file(path: Path, source: str) -> Source:
    if path.name.endswith(_INDEX_SUFFIX):
        directory = Directory(path.parent, source)
        known = (OPEN_CLIP_CONFIG, TRANSFORMERS_CONFIG)
        if any(directory.file(name) for name in known):
            return _from_folder(directory, path.name, prefers_open_clip=True)
        return _lone(functools.partial(_read_weights, directory, [path.name]), path, source)
    if not path.is_file():
        raise SourceError(f"{source} is no file; give a checkpoint or a directory")
    if (shard := _SHARD.search(path.name)) and int(shard[1]) > 1:
        raise SourceError(
            f"{source} is one of {int(shard[1])} shards; give the directory with all and their"
            " index"
        )
    return _lone(lambda: read_files([path], source), path, source)


def _lone(read_checkpoint: Callable[[], Checkpoint], path: Path, source: str) -> Source:
    """Read a checkpoint whose architecture its tensors or a config beside it tell."""

    def read() -> Contents:
        checkpoint = read_checkpoint()
        family = tensor_names.recognize(checkpoint.tensors, source)
        if checkpoint.torchscript is not None or checkpoint.is_openai_state_dict:
            return _contents(checkpoint, Statement(), source, "")
        neighbors = Directory(path if path.is_dir() else path.parent, source)
        statement = Statement()
        if family == tensor_names.TRANSFORMERS:
            form = "transformers checkpoint"
            if config := neighbors.file(TRANSFORMERS_CONFIG):
                document = parse_json(config.read_bytes(), f"{source}: {config.name}")
                statement = _state_transformers(neighbors, document)
        else:
            form = "open_clip checkpoint"
            if config := neighbors.file(OPEN_CLIP_CONFIG):
                by = f"{source}: {config.name}"
                statement = _state_open_clip(parse_json(config.read_bytes(), by), by)
        if statement.model_cfg is not None:
            form += " with the config beside it"
        return _contents(checkpoint, statement, source, form)

    return Source(_label(path), Statement(), read)


def _label(path: Path) -> str:
    """Return the name of a file or directory, also of "." and of a link in the hub's cache."""
    return Path(os.path.abspath(path)).name


def _contents(checkpoint: Checkpoint, statement: Statement, shown: str, form: str) -> Contents:
    """Check and convert the tensors, and add what they themselves state."""
    parameters = tensor_names.drop_buffers(checkpoint.tensors)
    family = tensor_names.recognize(parameters, shown)
    tensor_names.check_types(parameters, shown)
    tensor_names.check_finite(parameters, shown)
    if family == tensor_names.TRANSFORMERS:
        parameters = transformers_model.convert_names(parameters)
    script = checkpoint.torchscript
    is_openai = script.is_openai if script is not None else checkpoint.is_openai_state_dict
    if script is not None:
        kind = "OpenAI's TorchScript archive" if is_openai else "TorchScript archive"
        form = f"{form}, {kind}" if form else kind
        statement = _add_script(statement, script, shown)
    elif is_openai and not statement.by:
        statement = replace(_OPENAI, by="OpenAI's format", preprocess_by="OpenAI's format")
    form = form or "OpenAI's state dict"
    return Contents(
        "; ".join([form, *checkpoint.notes]),
        statement,
        {name: _plain(name, tensor) for name, tensor in parameters.items()},
    )


def _add_script(statement: Statement, script: Archive, shown: str) -> Statement:
    """Add what a TorchScript archive states: the activation, and that OpenAI's code made it."""
    by = "its TorchScript code"
    stated = script.quick_gelu
    if None not in (stated, statement.quick_gelu) and stated != statement.quick_gelu:
        raise SourceError(
            f"{shown}: {by} has {activation(stated)}, but {statement.by} says"
            f" {activation(statement.quick_gelu)}; correct the config, or publish the archive alone"
        )
    if statement.by:
        return statement
    if script.is_openai:
        return replace(_OPENAI, by=by, preprocess_by=by, quick_gelu=stated is not False)
    return Statement(by, quick_gelu=stated)


def activation(quick_gelu: bool | None) -> str:
    """Return the name of the activation."""
    return "QuickGELU" if quick_gelu else "GELU"


def _plain(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if name == "logit_scale" and tensor.numel() == 1:
        tensor = tensor.reshape(())  # some libraries give it the shape [1]
    return tensor.float() if tensor.dtype == torch.float64 else tensor
