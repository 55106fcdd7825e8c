"""Read the tensors of a checkpoint: one file, or several with an index. Never run code from it."""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch

from scripts.publishing.errors import SourceError
from scripts.publishing.torchscript import Archive, is_torchscript, read_torchscript

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")
"""Names of checkpoint files in directories. A file that the user names may have any name."""

_ORDINARY = ("state_dict", "model_state_dict", "model", "module", "net")
_EMA = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
# Wrappers around modules: DistributedDataParallel, torch.compile, FSDP, and the attribute of a
# Lightning module.
_WRAPPER = re.compile(
    r"(^|\.)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_OUTER = ("model.", "clip.", "net.")
_EMA_PREFIXES = ("model_ema.", "ema_model.", "ema.")
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_MAX_SAFETENSORS_HEADER = 100_000_000


@dataclass(frozen=True)
class Checkpoint:
    """tensors: by the names of the file, without wrappers. notes: what was taken of several.

    torchscript: the whole archive, if the file is one.
    """

    tensors: dict[str, torch.Tensor]
    notes: tuple[str, ...] = ()
    torchscript: Archive | None = None

    @property
    def is_openai_state_dict(self) -> bool:
        """Tell whether this is the state dict of OpenAI's archive, which holds these sizes too."""
        return {"input_resolution", "context_length", "vocab_size"} <= self.tensors.keys()


def read_files(paths: Iterable[Path], shown: str) -> Checkpoint:
    """Read the files of one checkpoint. shown: how messages call it. Raises SourceError."""
    checkpoints = [_read_file(path, shown) for path in paths]
    if len(checkpoints) == 1:
        return checkpoints[0]
    tensors: dict[str, torch.Tensor] = {}
    for checkpoint in checkpoints:
        tensors |= checkpoint.tensors
    return Checkpoint(tensors, checkpoints[0].notes)


def _read_file(path: Path, shown: str) -> Checkpoint:
    if Path(shown).name != path.name:
        shown = f"{shown}: {path.name}"
    try:
        with path.open("rb") as file:
            beginning = file.read(200)
    except OSError as error:
        raise SourceError(f"{shown} cannot be read ({error.strerror}); check the file") from error
    if not beginning:
        raise _not_a_checkpoint(shown, "it is empty")
    if beginning.startswith(b"version https://git-lfs"):
        raise SourceError(
            f"{shown} is a pointer of Git LFS, not the file itself; run `git lfs pull` there"
        )
    try:
        if _is_safetensors(beginning):
            return _unwrap(_read_safetensors(path), shown)
        if beginning.startswith(b"PK") and not zipfile.is_zipfile(path):
            raise _truncated(shown)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if is_torchscript(archive):
                    script = read_torchscript(path)
                    return Checkpoint(script.tensors, torchscript=script)
            # Mapped: a tensor takes memory while it is used.
            return _unwrap(
                torch.load(path, map_location="cpu", weights_only=True, mmap=True), shown
            )
        return _unwrap(torch.load(path, map_location="cpu", weights_only=True), shown)
    except SourceError:
        raise
    except safetensors.SafetensorError as error:
        if not _is_safetensors(beginning):  # torch tries it by the suffix
            raise _not_a_checkpoint(shown, "it is no safetensors file") from error
        raise _truncated(shown) from error
    except pickle.UnpicklingError as error:
        # torch's own message advises weights_only=False, which runs code from the file.
        named = _GLOBAL.search(str(error))
        cause = f"it holds a {named[1]}" if named else "it is no pickle of tensors"
        raise _not_a_checkpoint(shown, cause) from error
    except MemoryError as error:
        raise SourceError(f"{shown} takes more memory than there is") from error
    except Exception as error:
        # Damaged bytes make the readers raise exceptions of many types.
        raise _not_a_checkpoint(shown, f"{type(error).__name__} while reading it") from error


def _not_a_checkpoint(shown: str, cause: str) -> SourceError:
    return SourceError(
        f"{shown} is not a checkpoint of named tensors and nothing else: {cause}; save its"
        " state_dict alone and publish that"
    )


def _truncated(shown: str) -> SourceError:
    return SourceError(f"{shown} is truncated or damaged; fetch or save it anew")


def _is_safetensors(beginning: bytes) -> bool:
    """Tell by the length of the JSON header, which comes first, and its first character."""
    if len(beginning) < 9:
        return False
    (length,) = struct.unpack("<Q", beginning[:8])
    return 2 <= length <= _MAX_SAFETENSORS_HEADER and beginning[8:9] == b"{"


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    with safetensors.safe_open(path, framework="pt") as file:  # mapped
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _unwrap(content: object, shown: str) -> Checkpoint:
    """Find the state dict in what a file holds, and strip the wrappers from its names."""
    found = _find_state(content)
    if found is None:
        raise _not_a_checkpoint(shown, f"it holds a {type(content).__name__} without tensors")
    state, notes = found
    ordinary: dict[str, torch.Tensor] = {}
    averaged: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        stripped = _strip(name)
        prefix = next((prefix for prefix in _EMA_PREFIXES if stripped.startswith(prefix)), None)
        group = ordinary if prefix is None else averaged
        stripped = stripped if prefix is None else _strip(stripped.removeprefix(prefix))
        if stripped in group:
            raise SourceError(
                f"{shown} holds {stripped} twice, under different prefixes; save one state_dict"
            )
        group[stripped] = tensor.detach()
    has_ordinary = any(tensor.ndim > 0 for tensor in ordinary.values())
    if averaged:
        notes = (_ema_note(not has_ordinary),)
    return Checkpoint(ordinary if has_ordinary else averaged or ordinary, notes)


def _strip(name: str) -> str:
    """Remove the wrappers from a tensor's name, in whichever order they stand."""
    while True:
        stripped = _WRAPPER.sub(r"\1", name)
        for prefix in _OUTER:
            stripped = stripped.removeprefix(prefix)
        if stripped == name:
            return name
        name = stripped


def _find_state(content: object) -> tuple[dict[str, torch.Tensor], tuple[str, ...]] | None:
    """Return the state dict in `content` and notes about the choice, None if there is none.

    Ordinary weights are taken rather than an exponential moving average of them (EMA).
    """
    if not isinstance(content, Mapping):
        return None
    has_ema = any(isinstance(content.get(key), Mapping) for key in _EMA)
    for key in _ORDINARY:
        found = _find_state(content.get(key))
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
    for key in _EMA:
        found = _find_state(content.get(key))
        if found is not None:
            return found[0], (_ema_note(taken=True),)
    return None


def _with_sizes(
    content: Mapping[str, object], tensors: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Add the whole numbers of OpenAI's state dicts, by which those are recognized."""
    return tensors | {
        name: torch.tensor(content[name])
        for name in ("input_resolution", "context_length", "vocab_size")
        if isinstance(content.get(name), int)
    }


def _ema_note(taken: bool) -> str:
    if taken:
        return "its EMA weights, as it has no others"
    return "its ordinary weights, not its EMA weights"
