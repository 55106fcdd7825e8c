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
from scripts.publishing.architecture import (
    WantedModel,
    describe_difference,
    drop_defaults,
    parse_config,
    read_wanted,
    same_architecture,
    sizes_of_config,
)
from scripts.publishing.checkpoint_file import SUFFIXES, Checkpoint, read_files
from scripts.publishing.errors import PublishError, printable, redact, show
from scripts.publishing.hub import HubRepository, check_endpoint
from scripts.publishing.pretrained_tags import find_tag
from scripts.publishing.statement import Statement, agree, parse_json
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
_OPENAI = Statement(
    "OpenAI's format",
    quick_gelu=True,
    preprocess_by="OpenAI's format",
    preprocess_cfg=preprocessing.OPENAI_PREPROCESSING,
)
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\b")
_HUB_PREFIX = "hf-hub:"
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
    the tensors are read. read: reads them; raises PublishError.
    """

    label: str
    statement: Statement
    read: Callable[[], Contents]
    untrained: bool = False


def find_source(source: str, wanted: WantedModel | None) -> Source:
    """Recognize SOURCE. Raises PublishError if it is nothing that can be published."""
    if not source.strip():
        raise PublishError("SOURCE is empty; give a file, a directory, hf-hub:ORG/NAME or a tag")
    if source.startswith("random:"):
        return _untrained(source, wanted)
    if source.startswith(_HUB_PREFIX):
        name = source.removeprefix(_HUB_PREFIX)
        return _from_folder(HubRepository(name, source), source, prefers_open_clip=True)
    if page := _HUB_PAGE.fullmatch(source):
        return _from_folder(HubRepository(page[1], page[1]), page[1], prefers_open_clip=False)
    if "://" in source:
        raise PublishError(
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
        raise PublishError(f"{_quote(source)} cannot be read ({reason}); check the path") from error
    if source.endswith(SUFFIXES) or source.startswith(("/", ".", "~")) or source.count("/") > 1:
        raise PublishError(f"there is no file or directory {_quote(source)}; check the path")
    if "/" in source:
        repository = HubRepository(source, source, may_be_path=True)
        return _from_folder(repository, source, prefers_open_clip=False)
    return _from_tag(source, wanted)


def _quote(source: str) -> str:
    return show(redact(source), 300)


def _untrained(source: str, wanted: WantedModel | None) -> Source:
    seed = source.removeprefix("random:")
    if not (seed.isascii() and seed.isdecimal()) or int(seed) >= 2**63:
        raise PublishError(f"{show(source)}: give a seed, as in random:0")
    model = wanted or read_wanted(DEFAULT_MODEL)
    check_endpoint(source)

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
        """Return the path of a file, None if there is none. Raises PublishError."""


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
    checkpoints = directory.checkpoints()
    statements = _read_configs(directory)
    if statements:
        return _from_configs(directory, statements, _label(path))
    index = next((name for name in _OPEN_CLIP_WEIGHTS if directory.file(name)), None)
    if index is not None and index.endswith(_INDEX_SUFFIX):
        return _lone(functools.partial(_read_weights, directory, [index]), path, source)
    if len(checkpoints) == 1:
        return _from_file(checkpoints[0], source)
    if checkpoints:
        raise PublishError(
            f"{source} holds {len(checkpoints)} checkpoints and no config:"
            f" {', '.join(path.name for path in checkpoints[:3])}; give one of them"
        )
    if directory.file(TRANSFORMERS_CONFIG):
        raise PublishError(
            f"{source} has no checkpoint, and its {TRANSFORMERS_CONFIG} names no model_type, so it"
            " is not transformers'; give a checkpoint or the directory of a CLIP model"
        )
    raise PublishError(
        f"{source} is a directory without a checkpoint; give one with model.safetensors and its"
        " config.json or open_clip_config.json"
    )


def _read_configs(folder: Folder, family: str | None = None) -> dict[str, Statement]:
    """Return what the configs in a folder state, by the library whose config it is.

    family: of the tensors, if known. config.json is a name that other tools use too; where it need
    not be transformers', it is read only if it is.
    Raises PublishError if one of two configs contradicts the other.
    """
    shown = folder.label
    statements: dict[str, Statement] = {}
    if path := folder.file(OPEN_CLIP_CONFIG):
        by = f"{shown}: {OPEN_CLIP_CONFIG}"
        statements[tensor_names.OPEN_CLIP] = _state_open_clip(parse_json(path.read_bytes(), by), by)
    expected = not statements and family != tensor_names.OPEN_CLIP
    if path := folder.file(TRANSFORMERS_CONFIG):
        try:
            config = parse_json(path.read_bytes(), f"{shown}: {TRANSFORMERS_CONFIG}")
        except PublishError:
            if expected:
                raise
            config = {}
        if config.get("model_type") == "clip" or (expected and "model_type" in config):
            statements[tensor_names.TRANSFORMERS] = _state_transformers(folder, config)
    if len(statements) == 2:
        _merge(*statements.values(), shown)
    return statements


def _choose_statement(statements: Mapping[str, Statement], family: str, shown: str) -> Statement:
    """Return what the configs state of tensors that have the names of the library `family`."""
    if len(statements) < 2:
        return next(iter(statements.values()), Statement())
    [other] = [statement for key, statement in statements.items() if key != family]
    return _merge(statements[family], other, shown)


def _merge(first: Statement, second: Statement, shown: str) -> Statement:
    """Return what `first` states, completed by `second`. Raises PublishError if they contradict."""
    way_out = "correct the one that is wrong, or give the checkpoint without a config beside it"
    if first.model_cfg is not None and second.model_cfg is not None:
        ours, theirs = (
            parse_config(statement.model_cfg, statement.by)
            for statement in (first, second)
            if statement.model_cfg is not None
        )
        if not same_architecture(ours, theirs):
            difference = describe_difference(sizes_of_config(ours), sizes_of_config(theirs))
            raise PublishError(
                f"{shown}: {first.by} contradicts {second.by}: it has"
                f" {difference or 'other attention heads'}; {way_out}"
            )
    if None not in (first.quick_gelu, second.quick_gelu) and first.quick_gelu != second.quick_gelu:
        raise PublishError(
            f"{shown}: {first.by} has {activation(first.quick_gelu)}, but {second.by} says"
            f" {activation(second.quick_gelu)}; {way_out}"
        )
    for key, value in first.preprocess_cfg.items():
        if not agree(value, second.preprocess_cfg.get(key, value)):
            raise PublishError(
                f"{shown}: {first.preprocess_by} says {key} {value}, but {second.preprocess_by}"
                f" says {second.preprocess_cfg[key]}; {way_out}"
            )
    return Statement(
        by=first.by if second.model_cfg is None or first.model_cfg is not None else second.by,
        model_cfg=first.model_cfg if first.model_cfg is not None else second.model_cfg,
        quick_gelu=first.quick_gelu if first.quick_gelu is not None else second.quick_gelu,
        preprocess_by=first.preprocess_by or second.preprocess_by,
        preprocess_cfg={**second.preprocess_cfg, **first.preprocess_cfg},
    )


def _from_configs(directory: Directory, statements: dict[str, Statement], label: str) -> Source:
    """Read a directory with a config. The tensors' names tell which, if there are two."""
    has_open_clip = tensor_names.OPEN_CLIP in statements
    names = _OPEN_CLIP_WEIGHTS if has_open_clip else _TRANSFORMERS_WEIGHTS

    def read() -> Contents:
        checkpoint = _read_weights(directory, names)
        family = _recognize(checkpoint, directory.label)
        statement = _choose_statement(statements, family, directory.label)
        library = family if len(statements) == 2 else next(iter(statements))
        return _contents(checkpoint, statement, directory.label, f"{library} model")

    return Source(label, next(iter(statements.values())), read)


def _from_folder(folder: Folder, label: str, *, prefers_open_clip: bool) -> Source:
    """Read a repository. prefers_open_clip: if there are configs of both libraries."""
    readers = [(OPEN_CLIP_CONFIG, _from_open_clip), (TRANSFORMERS_CONFIG, _from_transformers)]
    refused: PublishError | None = None
    for name, reader in readers if prefers_open_clip else reversed(readers):
        path = folder.file(name)
        if path is None:
            continue
        config = parse_json(path.read_bytes(), f"{folder.label}: {name}")
        if name == TRANSFORMERS_CONFIG and not prefers_open_clip and "model_type" not in config:
            # timm writes such a file beside open_clip's.
            refused = PublishError(
                f"{folder.label}: config.json names no model_type, so it is not transformers'; give"
                " a repository of a CLIP model"
            )
            continue
        return reader(folder, config, label)
    raise refused or PublishError(
        f"{folder.label} has neither {OPEN_CLIP_CONFIG} nor {TRANSFORMERS_CONFIG}; give a"
        " repository or directory of a CLIP model"
    )


def _from_open_clip(folder: Folder, config: dict[str, Any], label: str) -> Source:
    statement = _state_open_clip(config, f"{folder.label}: {OPEN_CLIP_CONFIG}")

    def read() -> Contents:
        checkpoint = _read_weights(folder, _OPEN_CLIP_WEIGHTS)
        stated = _complete(statement, tensor_names.OPEN_CLIP, checkpoint, folder)
        return _contents(checkpoint, stated, folder.label, "open_clip model")

    return Source(label, statement, read)


def _state_open_clip(config: Mapping[str, Any], by: str) -> Statement:
    """Read open_clip_config.json. by: how messages call it. Raises PublishError."""
    model_cfg = config.get("model_cfg")
    if not isinstance(model_cfg, Mapping):
        raise PublishError(f"{by} has no model_cfg; publish a model that open_clip can load")
    parse_config(model_cfg, by)
    preprocess_cfg = preprocessing.from_open_clip(config.get("preprocess_cfg") or {}, by)
    quick_gelu = bool(model_cfg.get("quick_gelu"))  # open_clip's default is GELU
    return Statement(OPEN_CLIP_CONFIG, model_cfg, quick_gelu, OPEN_CLIP_CONFIG, preprocess_cfg)


def _from_transformers(folder: Folder, config: dict[str, Any], label: str) -> Source:
    statement = _state_transformers(folder, config)

    def read() -> Contents:
        checkpoint = _read_weights(folder, _TRANSFORMERS_WEIGHTS)
        stated = _complete(statement, tensor_names.TRANSFORMERS, checkpoint, folder)
        return _contents(checkpoint, stated, folder.label, "transformers model")

    return Source(label, statement, read)


def _complete(
    statement: Statement, library: str, checkpoint: Checkpoint, folder: Folder
) -> Statement:
    """Return `statement`, of the config of `library`, also if the tensors are another library's.

    Then that library's config counts too. Raises PublishError if it says something else.
    """
    family = _recognize(checkpoint, folder.label)
    if family == library:
        return statement
    statements = {library: statement} | _read_configs(folder, family)
    return _choose_statement(statements, family, folder.label)


def _recognize(checkpoint: Checkpoint, shown: str) -> str:
    return tensor_names.recognize(tensor_names.drop_buffers(checkpoint.tensors), shown)


def _state_transformers(folder: Folder, config: Mapping[str, Any]) -> Statement:
    """Read config.json and the file about images beside it. Raises PublishError."""
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
    if isinstance(folder, Directory) and (found := folder.checkpoints()):
        raise PublishError(
            f"{folder.label} holds {len(found)} checkpoints, none of which has a usual name such as"
            f" {names[0]}: {', '.join(path.name for path in found[:3])}; give one of them"
        )
    raise PublishError(f"{folder.label} has none of {', '.join(names)}; give a complete model")


def _shards(folder: Folder, index: Path) -> list[Path]:
    shown = f"{folder.label}: {index.name}"
    weight_map = parse_json(index.read_bytes(), shown).get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise PublishError(f"{shown} has no weight_map; fetch or save the model anew")
    paths = []
    for name in sorted(set(map(str, weight_map.values()))):
        # The index of a stranger must not name files elsewhere.
        is_plain = Path(name).name == name and "\0" not in name and len(os.fsencode(name)) < 256
        path = folder.file(name) if is_plain else None
        if path is None:
            raise PublishError(
                f"{shown} names {name or 'a shard without a name'}, which is missing; fetch the"
                " whole model"
            )
        paths.append(path)
    return paths


# --- single files -------------------------------------------------------------------------------


def _from_file(path: Path, source: str) -> Source:
    if path.name.endswith(_INDEX_SUFFIX):
        directory = Directory(path.parent, source)
        return _lone(functools.partial(_read_weights, directory, [path.name]), path, source)
    if not path.is_file():
        raise PublishError(f"{source} is no file; give a checkpoint or a directory")
    if (shard := _SHARD.search(path.name)) and int(shard[1]) > 1:
        raise PublishError(
            f"{source} is one of {int(shard[1])} shards; give the directory with all and their"
            " index"
        )
    return _lone(lambda: read_files([path], source), path, source)


def _lone(read_checkpoint: Callable[[], Checkpoint], path: Path, source: str) -> Source:
    """Read a checkpoint whose architecture its tensors or a config beside it tell."""

    def read() -> Contents:
        checkpoint = read_checkpoint()
        family = _recognize(checkpoint, source)
        neighbors = Directory(path if path.is_dir() else path.parent, source)
        statement = _choose_statement(_read_configs(neighbors, family), family, source)
        is_openai = checkpoint.torchscript is not None or checkpoint.is_openai_state_dict
        form = "" if is_openai else f"{family} checkpoint"
        if statement.model_cfg is not None:
            form = f"{form or 'checkpoint'} with the config beside it"
        elif form and neighbors.file(TRANSFORMERS_CONFIG):
            form += f" ({TRANSFORMERS_CONFIG} beside it is not of a CLIP of transformers: not used)"
        return _contents(checkpoint, statement, source, form)

    return Source(_label(path), Statement(), read)


def _label(path: Path) -> str:
    """Return the name of a file or directory, also of "." and of a link in the hub's cache."""
    return printable(Path(os.path.abspath(path)).name)


def _contents(checkpoint: Checkpoint, statement: Statement, shown: str, form: str) -> Contents:
    """Check and convert the tensors, and add what they themselves state."""
    parameters = tensor_names.drop_buffers(checkpoint.tensors)
    family = tensor_names.recognize(parameters, shown)
    tensor_names.check_types(parameters, shown)
    if family == tensor_names.TRANSFORMERS:
        parameters = transformers_model.convert_names(parameters, shown)
    script = checkpoint.torchscript
    if script is not None:
        kind = "OpenAI's TorchScript archive" if script.is_openai else "TorchScript archive"
        form = f"{form}, {kind}" if form else kind
        statement = _merge(_state_script(script), statement, shown)
    elif checkpoint.is_openai_state_dict:
        form = f"{form}, OpenAI's state dict" if form else "OpenAI's state dict"
        statement = _merge(_OPENAI, statement, shown)
    return Contents(
        "; ".join([form, *checkpoint.notes]),
        statement,
        {name: _plain(name, tensor) for name, tensor in parameters.items()},
    )


def _state_script(script: Archive) -> Statement:
    """Return what a TorchScript archive states: the activation, and that OpenAI's code made it."""
    by = "its TorchScript code"
    if script.is_openai:
        return replace(_OPENAI, by=by, quick_gelu=script.quick_gelu is not False)
    return Statement(by, quick_gelu=script.quick_gelu)


def activation(quick_gelu: bool | None) -> str:
    """Return the name of the activation."""
    return "QuickGELU" if quick_gelu else "GELU"


def _plain(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if name == "logit_scale" and tensor.numel() == 1:
        tensor = tensor.reshape(())  # some libraries give it the shape [1]
    return tensor.float() if tensor.dtype == torch.float64 else tensor
