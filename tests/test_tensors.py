"""Tensors come out of verified blocks as they were published, bit for bit, in whatever order the
blocks land, on the host and on a device."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import safetensors.torch
import torch

from clip_embed import tensors
from clip_embed.errors import ManifestError, TransferError
from clip_embed.manifest import BLOCK_SIZE, Block, PublishedFile

CPU = torch.device("cpu")
Tensors = Mapping[str, torch.Tensor]


def blocks_of(data: bytes, name: str = "model.safetensors") -> list[Block]:
    """The blocks of a shard, as a pull would bring them."""
    file = PublishedFile(name, len(data), "", None, ())
    view = memoryview(data)
    starts = range(0, len(data), BLOCK_SIZE)
    return [Block(file, start, view[start : start + BLOCK_SIZE]) for start in starts]


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(loaded: Tensors, source: Tensors, dtype: torch.dtype) -> None:
    """`loaded` is `source` converted to `dtype`, to the last bit."""
    assert loaded.keys() == source.keys()
    for name, tensor in source.items():
        assert loaded[name].dtype == dtype
        assert loaded[name].shape == tensor.shape
        assert bits(loaded[name]) == bits(tensor.to(dtype)), name


@pytest.fixture(scope="module")
def source() -> dict[str, torch.Tensor]:
    """46 MB of F32 and F16 tensors, of which some span several of the file's six blocks."""
    torch.manual_seed(0)
    return {
        "wide.long": torch.randn(3, 1_500_000),
        "wide.short": torch.randn(5),
        "wide.scalar": torch.tensor(-1.5),
        "wide.empty": torch.empty(0, 4),
        "half.long": torch.randn(13_000_001).half(),
        "half.odd": torch.randn(3, 7).half(),
        "half.scalar": torch.tensor(4.6052).half(),
        "half.empty": torch.empty(2, 0, 3).half(),
        "half.last": torch.randn(1_000_001).half(),
    }


@pytest.fixture(scope="module")
def shard(source: Tensors) -> bytes:
    return safetensors.torch.save(dict(source))


# --- on the host ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_are_what_was_published(dtype: torch.dtype, source: Tensors, shard: bytes) -> None:
    """Stored float16 and float32 come out converted as torch converts them, and float32 as
    float32 unchanged: spanning blocks, short, scalar and empty ones alike."""
    assert len(blocks_of(shard)) == 6
    assert_same(tensors.load(blocks_of(shard), CPU, dtype), source, dtype)


def first_last(blocks: list[Block]) -> list[Block]:
    return [*blocks[1:], blocks[0]]


def backwards(blocks: list[Block]) -> list[Block]:
    return blocks[::-1]


def shuffled(seed: int) -> Callable[[list[Block]], list[Block]]:
    return lambda blocks: random.Random(seed).sample(blocks, len(blocks))


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(first_last, id="first block last"),
        pytest.param(backwards, id="backwards"),
        *(pytest.param(shuffled(seed), id=f"shuffled {seed}") for seed in range(3)),
    ],
)
def test_the_order_of_landing_does_not_matter(
    order: Callable[[list[Block]], list[Block]], source: Tensors, shard: bytes
) -> None:
    """Blocks may come in any order, also before the block that says what they hold."""
    loaded = tensors.load(order(blocks_of(shard)), CPU, torch.float32)
    assert_same(loaded, source, torch.float32)


def test_shards_may_land_interleaved(source: Tensors) -> None:
    """The blocks of several shards come mixed, and each tensor still gets its own bytes."""
    halves = [
        {name: tensor for name, tensor in source.items() if name.startswith(kind)}
        for kind in ("wide", "half")
    ]
    blocks = [
        block
        for number, half in enumerate(halves)
        for block in blocks_of(safetensors.torch.save(half), f"{number}.safetensors")
    ]
    loaded = tensors.load(shuffled(1)(blocks), CPU, torch.float32)
    assert_same(loaded, source, torch.float32)


def test_every_bit_pattern_of_float16_survives() -> None:
    """All 65,536 halves, with subnormals, both zeros, infinities and NaNs, become the same float32
    as by torch's own conversion."""
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    data = safetensors.torch.save({"all": halves})
    loaded = tensors.load(blocks_of(data), CPU, torch.float32)["all"]
    assert torch.equal(loaded.view(torch.int32), halves.float().view(torch.int32))


@pytest.mark.parametrize("content", [{}, {"none": torch.empty(0, 3)}])
def test_a_shard_without_bytes_is_no_trouble(content: dict[str, torch.Tensor]) -> None:
    """A shard with no tensors, or with empty ones alone, loads like any other."""
    loaded = tensors.load(blocks_of(safetensors.torch.save(content)), CPU, torch.float32)
    assert_same(loaded, content, torch.float32)


def test_tensors_begin_on_cache_lines(source: Tensors, shard: bytes) -> None:
    """Every tensor starts at a multiple of 64 bytes, for the matrix kernels' sake."""
    loaded = tensors.load(blocks_of(shard), CPU, torch.float32)
    assert {tensor.data_ptr() % 64 for tensor in loaded.values() if tensor.numel()} == {0}


def test_tensors_can_be_written_to(shard: bytes) -> None:
    """The loaded tensors are the caller's own memory, apart from the blocks."""
    loaded = tensors.load(blocks_of(shard), CPU, torch.float32)
    before = bytes(shard[-16:])
    loaded["half.last"].zero_()
    assert shard[-16:] == before


def test_a_block_is_let_go_once_it_is_placed(shard: bytes) -> None:
    """There is never a second copy of the model: of blocks in order, at most two are held."""

    class Piece(bytearray):
        pass

    alive: list[weakref.ref[Piece]] = []
    most = 0

    def landing() -> Iterator[Block]:
        nonlocal most
        for block in blocks_of(shard):
            piece = Piece(block.data)
            alive.append(weakref.ref(piece))
            yield Block(block.file, block.offset, memoryview(piece))
            del piece
            gc.collect()
            most = max(most, sum(reference() is not None for reference in alive))

    tensors.load(landing(), CPU, torch.float32)
    assert len(alive) == 6
    assert most <= 2


# --- what is refused ------------------------------------------------------------------------


def test_a_tensor_in_two_shards_is_refused() -> None:
    """Which of two tensors of one name is meant cannot be known: the error names it and its
    shard."""
    data = safetensors.torch.save({"twice": torch.ones(2)})
    blocks = [*blocks_of(data, "1.safetensors"), *blocks_of(data, "2.safetensors")]
    with pytest.raises(ManifestError, match=r"2\.safetensors holds twice, which another shard"):
        tensors.load(blocks, CPU, torch.float32)


def test_a_malformed_shard_is_refused() -> None:
    """A shard whose header does not account for its bytes is refused by name."""
    data = safetensors.torch.save({"a": torch.ones(2)}) + b"more"
    with pytest.raises(ManifestError, match=r"^model\.safetensors: its tensors end at byte"):
        tensors.load(blocks_of(data), CPU, torch.float32)


def test_a_failing_pull_fails_the_load(shard: bytes) -> None:
    """An error of the pull goes through as it is: no half-filled tensors are returned."""

    def failing() -> Iterator[Block]:
        yield from blocks_of(shard)[:3]
        raise TransferError("the network is gone")

    with pytest.raises(TransferError, match="the network is gone"):
        tensors.load(failing(), CPU, torch.float32)


# --- on a device ----------------------------------------------------------------------------


class Device:
    """A GPU's memory and its stream, played on the CPU, as lazy as CUDA may be.

    A copy that was asked for without blocking is done only when somebody waits for it: for an
    event recorded after it, or for the whole device. Whatever its source holds by then is copied.
    """

    def __init__(self) -> None:
        self.pending: list[Callable[[], object]] = []
        self.pinned: list[torch.Tensor] = []
        self.copies = 0
        self.waits = 0

    def run(self, count: int) -> None:
        """Do the first `count` copies that are pending."""
        for copy in self.pending[:count]:
            copy()
        del self.pending[:count]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """Let `tensors` believe that cuda is there."""
    fake = Device()
    real_empty = torch.empty

    class OnDevice(torch.Tensor):
        """A tensor in the device's memory; so are its slices."""

        def copy_(self, source: torch.Tensor, non_blocking: bool = False) -> Any:
            def copy() -> None:
                self.as_subclass(torch.Tensor).copy_(source)

            assert non_blocking, "a copy that blocks would stop the pipeline"
            fake.copies += 1
            fake.pending.append(copy)
            return self

    def empty(*size: Any, device: Any = None, pin_memory: bool = False, **options: Any) -> Any:
        made = real_empty(*size, **options)
        if pin_memory:
            fake.pinned.append(made)
        if device is not None and torch.device(device).type == "cuda":
            return made.fill_(0xAA).as_subclass(OnDevice)
        return made

    class Event:
        def record(self) -> None:
            self.end = fake.copies

        def synchronize(self) -> None:
            fake.waits += 1
            fake.run(self.end - (fake.copies - len(fake.pending)))

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: fake.run(len(fake.pending)))
    return fake


def test_the_played_device_is_lazy(device: Device) -> None:
    """The device of these tests copies late: a source overwritten too early shows in the copy."""
    target = torch.empty(4, dtype=torch.uint8, device="cuda")
    staged = torch.zeros(4, dtype=torch.uint8)
    target[:2].copy_(staged[:2], non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    staged.fill_(7)
    target[2:].copy_(staged[2:], non_blocking=True)
    assert target.tolist() == [0xAA] * 4
    event.synchronize()
    assert target.tolist() == [7, 7, 0xAA, 0xAA]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(
    "order",
    [
        pytest.param(list, id="in order"),
        pytest.param(first_last, id="first block last"),
        pytest.param(shuffled(0), id="shuffled"),
    ],
)
def test_tensors_on_a_device_are_what_was_published(
    order: Callable[[list[Block]], list[Block]],
    dtype: torch.dtype,
    device: Device,
    source: Tensors,
    shard: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Through a ring of two slots, six blocks arrive in their places, bit for bit, though every
    copy to the device happens as late as it may."""
    monkeypatch.setattr(tensors._PinnedRing, "SLOTS", 2)
    loaded = tensors.load(order(blocks_of(shard)), torch.device("cuda"), dtype)
    plain = {name: tensor.as_subclass(torch.Tensor) for name, tensor in loaded.items()}
    assert_same(plain, source, dtype)
    assert device.copies == 6


def test_a_slot_is_written_again_only_after_its_copy(device: Device) -> None:
    """Once around the ring, each block waits for the copy of the one whose slot it takes."""
    ring = tensors._PinnedRing()
    rounds = 3 * ring.SLOTS
    target = torch.empty(rounds * 5, dtype=torch.uint8, device="cuda")
    for number in range(rounds):
        ring.send(memoryview(bytes([number] * 5)), target[number * 5 : number * 5 + 5])
        assert device.waits == max(0, number + 1 - ring.SLOTS)
        assert len(device.pending) == min(number + 1, ring.SLOTS)
    torch.cuda.synchronize()
    assert target.tolist() == [number for number in range(rounds) for _ in range(5)]


def test_sent_bytes_may_be_let_go(device: Device) -> None:
    """When `send` returns, the caller's bytes are no longer looked at."""
    ring = tensors._PinnedRing()
    target = torch.empty(3, dtype=torch.uint8, device="cuda")
    data = bytearray(b"abc")
    ring.send(memoryview(data), target)
    data[:] = b"xyz"
    torch.cuda.synchronize()
    assert bytes(target.tolist()) == b"abc"


def test_the_ring_is_small_and_page_locked(device: Device, shard: bytes) -> None:
    """Page-locked memory is slow to get: one ring of at most 128 MiB serves all shards."""
    other = safetensors.torch.save({"other": torch.ones(3)})
    blocks = [*blocks_of(shard, "1.safetensors"), *blocks_of(other, "2.safetensors")]
    tensors.load(blocks, torch.device("cuda"), torch.float16)
    [ring] = device.pinned
    assert BLOCK_SIZE <= ring.nbytes <= 128 * 2**20
