"""Read the tensors of a TorchScript archive without running its code.

`clip.load` downloads such archives. An archive is a zip: `data.pkl` holds the tree of modules,
`data/` the tensors' bytes, `code/` the source text of the modules. The tree is read with an
unpickler that builds tensors and inert objects and knows no other function.
"""

from __future__ import annotations

import collections
import mmap
import pickle
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_LOCAL_HEADER = struct.Struct("<26xHH")
"""A zip's header before each file: the last two fields are the lengths of name and extra."""


@dataclass(frozen=True)
class Archive:
    """tensors: by the names of the module tree. classes: of all modules, as "package.module.Class".

    All tensors are views of the mapped file.
    """

    tensors: dict[str, torch.Tensor]
    classes: frozenset[str]

    @property
    def is_openai(self) -> bool:
        """Tell whether OpenAI's code made the archive, and not open_clip's or another."""
        ours = ("__torch__.clip.model", "__torch__.multimodal.model")
        sizes = {"input_resolution", "context_length", "vocab_size"}
        return sizes <= self.tensors.keys() or any(name.startswith(ours) for name in self.classes)

    @property
    def quick_gelu(self) -> bool | None:
        """Tell the activation by the classes of the modules; None if none is an activation."""
        names = {name.rpartition(".")[2] for name in self.classes}
        if "QuickGELU" in names:
            return True
        return False if "GELU" in names else None


def is_torchscript(archive: zipfile.ZipFile) -> bool:
    """Tell a TorchScript archive from what `torch.save` writes, which holds no code."""
    names = archive.namelist()
    return any("/code/" in name for name in names) and any(
        name.endswith("/constants.pkl") for name in names
    )


def read_torchscript(path: Path) -> Archive:
    """Read the archive at `path`.

    Raises pickle.UnpicklingError, ValueError, KeyError and others if it is not one, or damaged.
    """
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        [tree] = [
            name for name in archive.namelist() if name.count("/") == 1 and "/data.pkl" in name
        ]
        root = tree.removesuffix("data.pkl")
        if (
            f"{root}byteorder" in archive.namelist()
            and archive.read(f"{root}byteorder") != b"little"
        ):
            raise ValueError("its numbers are big-endian")
        # Copy on write: torch wants writable memory. Nothing writes, so nothing is copied.
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        with archive.open(tree) as pickled:
            unpickler = _TreeUnpickler(pickled, _Storages(archive, root, content))
            module = unpickler.load()
    return Archive(dict(_walk(module, "")), frozenset(unpickler.classes))


class _Module:
    """A module of the tree, without behavior. Its attributes are in `__dict__`."""


class _Storages:
    """The tensors' bytes in the mapped archive."""

    def __init__(self, archive: zipfile.ZipFile, root: str, content: mmap.mmap) -> None:
        self._archive, self._root, self._content = archive, root, content

    def flat(self, dtype: torch.dtype, key: str, count: int) -> torch.Tensor:
        """Return the numbers of one storage, as a tensor of one dimension."""
        if count == 0:
            return torch.empty(0, dtype=dtype)
        info = self._archive.getinfo(f"{self._root}data/{key}")
        if info.file_size < count * dtype.itemsize:
            raise ValueError(f"{info.filename} has {info.file_size} bytes, too few")
        if info.compress_type != zipfile.ZIP_STORED:
            data = bytearray(self._archive.read(info))
            return torch.frombuffer(data, dtype=dtype, count=count)
        name, extra = _LOCAL_HEADER.unpack_from(self._content, info.header_offset)
        start = info.header_offset + _LOCAL_HEADER.size + name + extra
        return torch.frombuffer(self._content, dtype=dtype, count=count, offset=start)


class _TreeUnpickler(pickle.Unpickler):
    """Build tensors and inert modules. Every other class or function is refused."""

    def __init__(self, file: Any, storages: _Storages) -> None:
        super().__init__(file)
        self._storages = storages
        self.classes: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            self.classes.add(f"{module}.{name}")
            return _Module
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        known = {
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch.jit._pickle", "build_intlist"): list,
            ("torch.jit._pickle", "build_doublelist"): list,
            ("torch.jit._pickle", "build_boollist"): list,
            ("torch.jit._pickle", "build_tensorlist"): list,
            ("torch.jit._pickle", "restore_type_tag"): _restore_type_tag,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is no part of a tensor")
        return known[module, name]

    def persistent_load(self, identifier: Any) -> torch.Tensor:
        kind, dtype, key, _device, count = identifier
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"{kind!r} is no storage")
        return self._storages.flat(dtype, str(key), int(count))


def _rebuild_tensor(
    storage: torch.Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> torch.Tensor:
    return storage.as_strided(size, stride, offset)  # refuses what lies outside the storage


def _rebuild_parameter(tensor: torch.Tensor, *_: object) -> torch.Tensor:
    return tensor


def _restore_type_tag(value: Any, *_: object) -> Any:
    return value


def _walk(module: object, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in vars(module).items():
        if isinstance(value, torch.Tensor):
            yield prefix + name, value
        elif isinstance(value, _Module):
            yield from _walk(value, f"{prefix}{name}.")
