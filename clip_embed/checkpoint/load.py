"""Turn verified blocks into tensors on a device, block by block, in the order of their arrival.

Knows the layout of safetensors files and where memory is; nothing of networks, or of what the
tensors mean.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
                _DeviceShard(infos, device, dtype, ring)
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


def _split_by_tensor(
    block: Block, infos: Sequence[TensorInfo]
) -> Iterator[tuple[TensorInfo, int, memoryview]]:
    """Yield (tensor, offset, data) for each tensor that `block` overlaps. offset: bytes from the
    start of the tensor to `data`."""
    begin, end = block.offset, block.offset + len(block.data)
    for info in infos:
        first, last = max(info.start, begin), min(info.end, end)
        if first < last:
            yield info, first - info.start, block.data[first - begin : last - begin]


def _allocate_all(
    sizes: Mapping[str, int], alignment: int, allocate: Callable[[int], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Allocate one uint8 tensor of each size in bytes, all aligned, in one piece of memory."""
    padded = {name: -(-size // alignment) * alignment for name, size in sizes.items()}
    # At least one unit: torch makes no tensor of an empty buffer.
    arena = allocate(max(sum(padded.values()), alignment))
    starts = itertools.accumulate(padded.values(), initial=0)
    return {
        name: arena[start : start + size]
        for (name, size), start in zip(sizes.items(), starts, strict=False)
    }


class _HostShard:
    """A shard in CPU memory. Blocks are converted to `dtype` as they arrive, and then released, so
    there is never a second full copy."""

    ALIGNMENT = 64  # bytes: a cache line, and an AVX-512 register

    def __init__(
        self, infos: Sequence[TensorInfo], dtype: torch.dtype, allocate: Allocate | None
    ) -> None:
        self._infos = infos

        def allocate_bytes(size: int) -> torch.Tensor:
            if allocate is None:
                return torch.empty(size, dtype=torch.uint8)
            return torch.frombuffer(allocate(size), dtype=torch.uint8)

        counts = {info.name: (info.end - info.start) // ITEM_SIZE[info.dtype] for info in infos}
        sizes = {name: count * dtype.itemsize for name, count in counts.items()}
        arena = _allocate_all(sizes, self.ALIGNMENT, allocate_bytes)
        self._tensors = {name: memory.view(dtype) for name, memory in arena.items()}

    def copy_block(self, block: Block) -> None:
        for info, offset, data in _split_by_tensor(block, self._infos):
            item = ITEM_SIZE[info.dtype]
            piece = torch.from_numpy(np.frombuffer(data, f"<f{item}"))
            self._tensors[info.name][offset // item :][: len(piece)].copy_(piece)

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

    @contextlib.contextmanager
    def stage(self, data: memoryview) -> Iterator[torch.Tensor]:
        """Yield a page-locked copy of `data`, uint8. Copies from it in the `with` body may be
        asynchronous: its slot is reused only when they have finished."""
        slot, self._next = self._next, (self._next + 1) % self.SLOTS
        copied = self._copied[slot]
        if copied is not None:
            copied.synchronize()
        staged = self._slots[slot, : len(data)]
        staged.copy_(torch.from_numpy(np.frombuffer(data, np.uint8)))
        yield staged
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        self._copied[slot] = copied


class _DeviceShard:
    """A shard in GPU memory, in the type of the file, and converted at the end.

    Tensors are aligned, which those of a safetensors file need not be: cuBLAS has fast kernels for
    operands that are aligned to 16 bytes only.
    """

    ALIGNMENT = 256  # bytes, as of memory that CUDA allocates

    def __init__(
        self,
        infos: Sequence[TensorInfo],
        device: torch.device,
        dtype: torch.dtype,
        ring: _PinnedRing,
    ) -> None:
        self._infos = infos
        self._dtype = dtype
        self._ring = ring
        self._tensors = _allocate_all(
            {info.name: info.end - info.start for info in infos},
            self.ALIGNMENT,
            lambda size: torch.empty(size, dtype=torch.uint8, device=device),
        )

    def copy_block(self, block: Block) -> None:
        with self._ring.stage(block.data) as staged:
            for info, offset, data in _split_by_tensor(block, self._infos):
                position = info.start + offset - block.offset
                target = self._tensors[info.name][offset : offset + len(data)]
                target.copy_(staged[position : position + len(data)], non_blocking=True)

    def finish(self) -> Mapping[str, torch.Tensor]:
        torch.cuda.synchronize()
        return {
            info.name: self._tensors[info.name]
            .view(_STORED[info.dtype])
            .view(info.shape)
            .to(self._dtype)
            for info in self._infos
        }
