"""Read the tensors of a checkpoint: one file, or several with an index. Never run code from it."""

from __future__ import annotations

import json
import pickle
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch

from scripts.publishing.errors import PublishError
from scripts.publishing.tensor_names import has_both_towers, is_of_tower
from scripts.publishing.torchscript import Archive, is_torchscript, read_torchscript

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")
"""Names of checkpoint files in directories. A file that the user names may have any name."""

_ORDINARY = ("state_dict", "model_state_dict", "model", "module", "net")
_EMA = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
_MAX_DEPTH = 4
"""Levels of dicts in which state dicts are looked for. Trainers use one or two."""

# Wrappers around modules: DistributedDataParallel, torch.compile, FSDP.
_WRAPPERS = "module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module"
_INNER = re.compile(rf"(?<=\.)(?:(?:{_WRAPPERS})\.)+")
# In front there may be the attribute of a Lightning module too, or of ema_pytorch's.
_OUTER = re.compile(rf"(?:(?:{_WRAPPERS}|model|online_model|clip|net)\.)+")
_EMA_PREFIXES = ("model_ema.", "ema_model.", "ema.")
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_MAX_SAFETENSORS_HEADER = 100_000_000

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """tensors: by the names of the file, without wrappers. notes: what was taken of several.

    torchscript: the whole archive, if the file is one.
    """

    tensors: Tensors
    notes: tuple[str, ...] = ()
    torchscript: Archive | None = None

    @property
    def is_openai_state_dict(self) -> bool:
        """Tell whether this is the state dict of OpenAI's archive, which holds these sizes too."""
        return {"input_resolution", "context_length", "vocab_size"} <= self.tensors.keys()


def read_files(paths: Iterable[Path], shown: str) -> Checkpoint:
    """Read the files of one checkpoint. shown: how messages call it. Raises PublishError."""
    contents = {path: _read_file(path, shown) for path in paths}
    if len(contents) == 1:
        [content] = contents.values()
        if isinstance(content, Archive):
            return Checkpoint(content.tensors, torchscript=content)
        return _unwrap(content, shown)
    # All names are needed to tell ordinary weights from EMA weights.
    merged: Tensors = {}
    holders: dict[str, Path] = {}
    for path, content in contents.items():
        for name, tensor in _shard_tensors(content, f"{shown}: {path.name}").items():
            if name in merged:
                raise PublishError(
                    f"{shown} holds {name} in two shards, {holders[name].name} and {path.name};"
                    " fetch or save the model anew"
                )
            merged[name], holders[name] = tensor, path
    return _unwrap(merged, shown)


def _shard_tensors(content: object, shown: str) -> Tensors:
    """Return the tensors of one shard, by the names of the file."""
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    ):
        raise PublishError(
            f"{shown} is a shard that holds other things than named tensors; fetch or save the"
            " model anew"
        )
    return dict(content)


def _read_file(path: Path, shown: str) -> Any:
    """Return what a file holds: an Archive of TorchScript, or any object with tensors."""
    if Path(shown).name != path.name:
        shown = f"{shown}: {path.name}"
    try:
        with path.open("rb") as file:
            beginning = file.read(200)
    except OSError as error:
        raise PublishError(f"{shown} cannot be read ({error.strerror}); check the file") from error
    _refuse_other_formats(path, beginning, shown)
    try:
        if _is_safetensors(beginning):
            return _read_safetensors(path)
        if beginning.startswith(b"PK"):
            return _read_zip(path, shown)
        # By its content: torch.load(path) takes x.safetensors for one.
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except PublishError:
        raise
    except safetensors.SafetensorError as error:
        raise _damaged(shown) from error
    except pickle.UnpicklingError as error:
        # torch's own message advises weights_only=False, which runs code from the file.
        named = _GLOBAL.search(str(error))
        if named is None:
            raise PublishError(
                f"{shown} is no checkpoint: it has the format of neither safetensors nor"
                " torch.save; give the file that the training saved"
            ) from error
        raise PublishError(
            f"{shown} holds a {named[1]}, which is no tensor and is not read, as that would run"
            " code from the file; save its state_dict alone and publish that"
        ) from error
    except MemoryError as error:
        raise PublishError(f"{shown} does not fit in memory; use a machine with more") from error
    except Exception as error:
        # Damaged bytes make the readers raise exceptions of many types.
        raise PublishError(
            f"{shown} is damaged, or no checkpoint ({type(error).__name__} while reading it); fetch"
            " or save it anew"
        ) from error


def _refuse_other_formats(path: Path, beginning: bytes, shown: str) -> None:
    """Raise PublishError for what people give instead of a checkpoint."""
    if not beginning:
        raise PublishError(f"{shown} is empty; fetch or save it anew")
    if beginning.startswith(b"version https://git-lfs"):
        raise PublishError(
            f"{shown} is a pointer of Git LFS, not the file itself; run `git lfs pull` there"
        )
    if _is_safetensors(beginning):
        return
    if beginning.lstrip()[:1] == b"<":
        raise PublishError(f"{shown} is a web page, not a checkpoint; download the file itself")
    if beginning.lstrip()[:1] not in (b"{", b"["):
        return
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError, MemoryError):
        return
    keys = document.keys() if isinstance(document, dict) else set()
    if keys & {"model_cfg", "vision_cfg", "embed_dim"}:
        raise PublishError(
            f"{shown} is a config, not a checkpoint; give it with --model, and the checkpoint as"
            " SOURCE"
        )
    if keys & {"model_type", "architectures", "vision_config"}:
        raise PublishError(
            f"{shown} is a config of transformers, not a checkpoint; give the directory that holds"
            " it and the weights"
        )
    raise PublishError(f"{shown} is a JSON file, not a checkpoint; give the file of the weights")


def _damaged(shown: str) -> PublishError:
    return PublishError(f"{shown} is truncated or damaged; fetch or save it anew")


def _is_safetensors(beginning: bytes) -> bool:
    """Tell by the length of the JSON header, which comes first, and its first character."""
    if len(beginning) < 9:
        return False
    (length,) = struct.unpack("<Q", beginning[:8])
    return 2 <= length <= _MAX_SAFETENSORS_HEADER and beginning[8:9] == b"{"


def _read_safetensors(path: Path) -> Tensors:
    with safetensors.safe_open(path, framework="pt") as file:  # mapped
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _read_zip(path: Path, shown: str) -> Any:
    if not zipfile.is_zipfile(path):
        raise _damaged(shown)
    with zipfile.ZipFile(path) as archive:
        if is_torchscript(archive):
            return read_torchscript(path)
        compressed = any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist())
    # Not mapped: compressed entries, x.safetensors, which torch takes for what its name says, and
    # names that are not UTF-8.
    if compressed or path.suffix == ".safetensors" or not str(path).isprintable():
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    # Mapped: a tensor takes memory while it is used.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


# --- the state dict in a file -------------------------------------------------------------------


def _unwrap(content: object, shown: str) -> Checkpoint:
    """Find the state dict in what a file holds, and strip the wrappers from its names."""
    found = _find_state(content)
    if found is None:
        raise PublishError(
            f"{shown} holds a {type(content).__name__} without named tensors; save the model's"
            " state_dict and publish that"
        )
    state, notes = found
    ordinary, averaged = _Group(shown), _Group(shown)
    for name, tensor in state.items():
        outer, stripped = _strip(name)
        prefix = next((prefix for prefix in _EMA_PREFIXES if stripped.startswith(prefix)), None)
        if prefix is None:
            ordinary.add(outer, stripped, tensor)
        else:
            outer_of_ema, stripped = _strip(stripped.removeprefix(prefix))
            averaged.add(outer + prefix + outer_of_ema, stripped, tensor)
    taken = _choose(ordinary.tensors, averaged.tensors)
    if averaged.tensors:
        notes = (_ema_note(taken is averaged.tensors, bool(_arrays(ordinary.tensors))),)
    (averaged if taken is averaged.tensors else ordinary).check_prefixes()
    return Checkpoint(taken, notes)


class _Group:
    """Tensors of one model by their stripped names, and the prefixes that were stripped."""

    def __init__(self, shown: str) -> None:
        self._shown = shown
        self.tensors: Tensors = {}
        self._examples: dict[str, str] = {}  # outer prefix → a name of a tower

    def add(self, outer: str, name: str, tensor: torch.Tensor) -> None:
        if name in self.tensors:
            raise PublishError(
                f"{self._shown} holds {name} twice, under different prefixes; save one state_dict"
            )
        self.tensors[name] = tensor.detach()
        if is_of_tower(name):
            self._examples.setdefault(outer, outer + name)

    def check_prefixes(self) -> None:
        """Raise PublishError if the towers are of different modules, perhaps different models."""
        if len(self._examples) > 1:
            first, second, *_ = self._examples.values()
            raise PublishError(
                f"{self._shown} holds parts of two models, such as {first} and {second}; save the"
                " state_dict of one"
            )


def _choose(ordinary: Tensors, averaged: Tensors) -> Tensors:
    """Take ordinary weights rather than their moving average, unless only that is complete."""
    if has_both_towers(averaged) and not has_both_towers(ordinary):
        return averaged
    # A training checkpoint may hold single numbers, such as a step, beside the weights.
    return ordinary if _arrays(ordinary) else averaged or ordinary


def _arrays(tensors: Tensors) -> list[str]:
    return [name for name, tensor in tensors.items() if tensor.ndim > 0]


def _strip(name: str) -> tuple[str, str]:
    """Return the wrappers in front of a tensor's name, and the name without any wrappers."""
    found = _OUTER.match(name)
    outer = found[0] if found else ""
    return outer, _INNER.sub("", name[len(outer) :])


def _find_state(content: object, depth: int = 0) -> tuple[Tensors, tuple[str, ...]] | None:
    """Return the state dict in `content` and notes about the choice, None if there is none.

    Ordinary weights are taken rather than an exponential moving average of them (EMA).
    """
    if not isinstance(content, Mapping) or depth > _MAX_DEPTH:
        return None
    has_ema = any(isinstance(content.get(key), Mapping) for key in _EMA)
    ordinary = _find_ordinary(content, has_ema, depth)
    if ordinary is not None and (not has_ema or _is_complete(ordinary[0])):
        return ordinary
    for key in _EMA:
        found = _find_state(content.get(key), depth + 1)
        if found is not None and (ordinary is None or _is_complete(found[0])):
            return found[0], (_ema_note(taken=True, has_others=ordinary is not None),)
    return ordinary


def _find_ordinary(
    content: Mapping[Any, object], has_ema: bool, depth: int
) -> tuple[Tensors, tuple[str, ...]] | None:
    """Return the state dict of `content` that is no moving average, and notes about the choice."""
    for key in _ORDINARY:
        found = _find_state(content.get(key), depth + 1)
        if found is not None:
            return found[0], ((_ema_note(taken=False),) if has_ema else found[1])
    tensors = {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    # A training checkpoint may hold single tensors, such as a step, beside the state dict.
    if any("." in name for name in tensors) or (tensors and not has_ema):
        return _with_sizes(content, tensors), ((_ema_note(taken=False),) if has_ema else ())
    return None


def _is_complete(tensors: Tensors) -> bool:
    return has_both_towers(_strip(name)[1] for name in tensors)


def _with_sizes(content: Mapping[Any, object], tensors: Tensors) -> Tensors:
    """Add the whole numbers of OpenAI's state dicts, by which those are recognized."""
    sizes = {}
    for name in ("input_resolution", "context_length", "vocab_size"):
        size = content.get(name)
        if isinstance(size, int) and abs(size) < 2**63:
            sizes[name] = torch.tensor(size)
    return tensors | sizes


def _ema_note(taken: bool, has_others: bool = True) -> str:
    if not taken:
        return "its ordinary weights, not its EMA weights"
    if has_others:
        return "its EMA weights, as its other tensors are no whole model"
    return "its EMA weights, as it has no others"
