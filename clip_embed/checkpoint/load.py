"""Turn verified blocks into tensors on a device, block by block, in the order of their arrival.

Knows the layout of safetensors files and where memory is; nothing of networks, or of what the
tensors mean.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch

from clip_embed.checkpoint.manifest import BLOCK_SIZE, Block
from clip_embed.checkpoint.safetensors_header import (
    ITEM_SIZE,
    TensorInfo,
    parse_safetensors_header,
)
from clip_embed.errors import ManifestError

Allocate = Callable[[int], memoryview]

_STORED = {"F16": torch.float16, "F32": torch.float32}


def load_tensors(
    blocks: Iterable[Block],
    device: torch.device,
    dtype: torch.dtype,
    allocate: Allocate | None = None,
) -> dict[str, torch.Tensor]:
    """Return every tensor of the model, on `device` as `dtype`.

    blocks: every block of every shard once, in any order. allocate: returns so many bytes, for the
    tensors on a CPU; by default, torch allocates them.

    Raises ManifestError if the shards are malformed, and whatever `blocks` raises.
    """
    # Blocks are read-only, and nothing writes to them.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    ring = _PinnedRing() if device.type == "cuda" else None
    shards: dict[str, _Shard] = {}
    early: dict[str, list[Block]] = {}  # arrived before the first block of their shard
    for block in blocks:
        name = block.file.name
        if block.offset == 0:
            infos = parse_safetensors_header(block.data, block.file.size, name)
            shards[name] = (
                _DeviceShard(infos, block.file.size, device, dtype, ring)
                if ring
                else _HostShard(infos, dtype, allocate)
            )
            for earlier in early.pop(name, []):
                shards[name].copy_block(earlier)
        if name in shards:
            shards[name].copy_block(block)
        else:
            early.setdefault(name, []).append(block)
    tensors: dict[str, torch.Tensor] = {}
    for name, shard in shards.items():
        for tensor_name, tensor in shard.finish().items():
            if tensor_name in tensors:
                raise ManifestError(
                    f"{name} holds {tensor_name}, which another shard holds too; publish the model"
                    " again"
                )
            tensors[tensor_name] = tensor
    return tensors


class _Shard(Protocol):
    def copy_block(self, block: Block) -> None: ...

    def finish(self) -> Mapping[str, torch.Tensor]: ...


class _HostShard:
    """A shard in CPU memory. Blocks are converted to `dtype` as they arrive, and then released, so
    there is never a second full copy."""

    ALIGNMENT = 64  # bytes: a cache line, and an AVX-512 register

    def __init__(
        self, infos: Sequence[TensorInfo], dtype: torch.dtype, allocate: Allocate | None
    ) -> None:
        self._infos = infos
        self._tensors: dict[str, torch.Tensor] = {}
        step = self.ALIGNMENT // dtype.itemsize
        counts = [(info.end - info.start) // ITEM_SIZE[info.dtype] for info in infos]
        # At least one unit: torch makes no tensor of an empty buffer.
        items = max(sum(-(-count // step) * step for count in counts), step)
        if allocate is None:
            arena = torch.empty(items, dtype=dtype)
        else:
            arena = torch.frombuffer(allocate(items * dtype.itemsize), dtype=dtype)
        position = 0
        for info, count in zip(infos, counts, strict=True):
            self._tensors[info.name] = arena[position : position + count]
            position += -(-count // step) * step

    def copy_block(self, block: Block) -> None:
        begin, end = block.offset, block.offset + len(block.data)
        for info in self._infos:
            first, last = max(info.start, begin), min(info.end, end)
            if first < last:
                item = ITEM_SIZE[info.dtype]
                piece = np.frombuffer(block.data[first - begin : last - begin], f"<f{item}")
                target = self._tensors[info.name]
                to = (first - info.start) // item
                target[to : to + len(piece)].copy_(torch.from_numpy(piece))

    def finish(self) -> Mapping[str, torch.Tensor]:
        return {info.name: self._tensors[info.name].view(info.shape) for info in self._infos}


class _PinnedRing:
    """A ring of page-locked host memory, from which blocks are copied to the device.

    The driver copies pageable memory in small synchronous steps, and page-locking a whole model
    takes about a second per gigabyte. With a ring, one block is copied to the device while the next
    is written to another slot.
    """

    SLOTS = 8  # × 8 MiB

    def __init__(self) -> None:
        self._slots = torch.empty((self.SLOTS, BLOCK_SIZE), dtype=torch.uint8, pin_memory=True)
        self._copied: list[torch.cuda.Event | None] = [None] * self.SLOTS
        self._next = 0

    def send(self, data: memoryview, target: torch.Tensor) -> None:
        """Copy `data` to `target`, uint8 on the device. `data` may be released afterwards."""
        slot, self._next = self._next, (self._next + 1) % self.SLOTS
        copied = self._copied[slot]
        if copied is not None:
            copied.synchronize()
        staged = self._slots[slot, : len(data)]
        staged.copy_(torch.from_numpy(np.frombuffer(data, np.uint8)))
        target.copy_(staged, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        self._copied[slot] = copied


class _DeviceShard:
    """A shard in GPU memory, byte for byte as in the file; its tensors are views into it."""

    def __init__(
        self,
        infos: Sequence[TensorInfo],
        size: int,
        device: torch.device,
        dtype: torch.dtype,
        ring: _PinnedRing,
    ) -> None:
        self._infos = infos
        self._dtype = dtype
        self._ring = ring
        self._bytes = torch.empty(size, dtype=torch.uint8, device=device)

    def copy_block(self, block: Block) -> None:
        end = block.offset + len(block.data)
        self._ring.send(block.data, self._bytes[block.offset : end])

    def finish(self) -> Mapping[str, torch.Tensor]:
        torch.cuda.synchronize()
        return {
            info.name: self._bytes[info.start : info.end]
            .view(_STORED[info.dtype])
            .view(info.shape)
            .to(self._dtype)
            for info in self._infos
        }
