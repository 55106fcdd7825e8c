"""Read the header of a safetensors file: which bytes are which tensor.

Source: the safetensors format, README, "Format".
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from clip_embed.errors import ManifestError

ITEM_SIZE = {"F16": 2, "F32": 4}
"""Bytes per number, of the dtypes that are published."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a shard. dtype: safetensors' name. start, end: in bytes of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def parse_safetensors_header(first: memoryview, size: int, where: str) -> list[TensorInfo]:
    """Return the tensors of a safetensors file, in file order.

    first: its first block. size: of the file, in bytes. where: its name, for messages.

    Raises ManifestError unless the tensors fill the file without gap or overlap, are aligned to
    their items, and are float16 or float32.
    """

    def malformed(problem: str) -> ManifestError:
        return ManifestError(f"{where}: {problem}; publish the model again")

    if len(first) < 8:
        raise malformed("too short for a safetensors file")
    begin = 8 + int.from_bytes(first[:8], "little")
    if begin > len(first):
        raise malformed("its safetensors header is longer than the first block")
    try:
        header = json.loads(bytes(first[8:begin]))
        infos = [
            _tensor_info(name, entry, begin)
            for name, entry in header.items()
            if name != "__metadata__"
        ]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise malformed(f"its safetensors header is malformed ({error!r})") from error
    infos.sort(key=lambda info: (info.start, info.end))
    position = begin
    for info in infos:
        item = ITEM_SIZE.get(info.dtype)
        if item is None:
            raise malformed(f"{info.name} is {info.dtype!r:.20}; F16 and F32 are read")
        if min(info.shape, default=1) < 0 or info.end - info.start != math.prod(info.shape) * item:
            raise malformed(f"the bytes of {info.name} do not fit its shape")
        if info.start != position or info.start % item:
            raise malformed(f"{info.name} does not begin where the tensor before it ends")
        position = info.end
    if position != size:
        raise malformed(f"its tensors end at byte {position} of {size}")
    return infos


def _tensor_info(name: str, entry: Any, begin: int) -> TensorInfo:
    """begin: byte of the file at which the tensors begin."""
    start, end = (_integer(offset) for offset in entry["data_offsets"][:2])
    dtype = entry["dtype"]
    if not isinstance(dtype, str):
        raise TypeError(f"dtype is {dtype!r:.20}")
    return TensorInfo(
        name=name,
        dtype=dtype,
        shape=tuple(_integer(side) for side in entry["shape"]),
        start=begin + start,
        end=begin + end,
    )


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r:.20} is not an integer")
    return value
