"""Convert tensors to safetensors shards, in the narrowest type that loses nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import safetensors.torch
import torch

from clip_embed.checkpoint.manifest import SHARD_SUFFIX

SHARD_BYTES = 256 * 2**20
"""Maximum size of a shard's tensors; a larger tensor gets a shard of its own."""


@dataclass(frozen=True)
class Shard:
    """One safetensors file. data: its bytes. tensor_names: the tensors in it."""

    name: str
    data: bytes
    tensor_names: tuple[str, ...]


def narrow(tensor: torch.Tensor) -> torch.Tensor:
    """Return `tensor` as float16 if that changes no bit of its float32 values, else as float32."""
    wide = tensor.float().contiguous()
    half = wide.half()
    same = torch.equal(half.float().view(torch.int32), wide.view(torch.int32))
    return half if same else wide


def _separate(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return contiguous `tensors` with copies of those that share memory: safetensors refuses it.

    Tied parameters of a checkpoint are float32 views of one storage.
    """
    separate: dict[str, torch.Tensor] = {}
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_ptr()):
        shares = tensor.data_ptr() < end
        end = max(end, tensor.data_ptr() + tensor.nbytes)
        separate[name] = tensor.clone() if shares else tensor
    return {name: separate[name] for name in tensors}


def shards(tensors: Mapping[str, torch.Tensor]) -> Iterator[Shard]:
    """Yield the shards that hold `tensors`, in order. Only one is in memory at a time: tensors are
    narrowed twice, first to learn their sizes."""
    groups: list[list[str]] = [[]]
    free = SHARD_BYTES
    for name, tensor in tensors.items():
        size = narrow(tensor).nbytes
        if size > free and groups[-1]:
            groups.append([])
            free = SHARD_BYTES
        groups[-1].append(name)
        free -= size
    for number, names in enumerate(groups, 1):
        yield Shard(
            f"model-{number:05}-of-{len(groups):05}{SHARD_SUFFIX}",
            safetensors.torch.save(
                _separate({name: narrow(tensors[name]) for name in names}),
                metadata={"format": "pt"},
            ),
            tuple(names),
        )
