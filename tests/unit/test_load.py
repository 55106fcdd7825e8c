"""Loading of verified blocks as tensors, on the host and on a GPU."""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import safetensors.torch
import torch

from clip_embed.checkpoint import load
from clip_embed.checkpoint.manifest import BLOCK_SIZE, Block, PublishedFile
from clip_embed.errors import ManifestError, TransferError

CPU = torch.device("cpu")
SMALL_BLOCK = BLOCK_SIZE // 8
"""Bytes. Loading does not depend on the size of a block; small ones keep these tests quick."""

Tensors = Mapping[str, torch.Tensor]


def blocks_of(data: bytes, name: str = "model.safetensors") -> list[Block]:
    """Return the blocks of a shard, as a pull yields them, but smaller."""
    file = PublishedFile(name, name, len(data), "", ())
    view = memoryview(data)
    starts = range(0, len(data), SMALL_BLOCK)
    return [Block(file, start, view[start : start + SMALL_BLOCK]) for start in starts]


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(loaded: Tensors, source: Tensors, dtype: torch.dtype) -> None:
    """Check that `loaded` equals `source` converted to `dtype`, bit for bit."""
    assert loaded.keys() == source.keys()
    for name, tensor in source.items():
        assert loaded[name].dtype == dtype
        assert loaded[name].shape == tensor.shape
        assert bits(loaded[name]) == bits(tensor.to(dtype)), name


@pytest.fixture(scope="module")
def source() -> dict[str, torch.Tensor]:
    """6 MB of F32 and F16 tensors, some of which span several of the file's six blocks."""
    torch.manual_seed(0)
    return {
        "wide.long": torch.randn(3, 187_500),
        "wide.short": torch.randn(5),
        "wide.scalar": torch.tensor(-1.5),
        "wide.empty": torch.empty(0, 4),
        "half.long": torch.randn(1_625_001).half(),
        "half.odd": torch.randn(3, 7).half(),
        "half.scalar": torch.tensor(4.6052).half(),
        "half.empty": torch.empty(2, 0, 3).half(),
        "half.last": torch.randn(125_001).half(),
    }


@pytest.fixture(scope="module")
def shard(source: Tensors) -> bytes:
    return safetensors.torch.save(dict(source))


# --- on the host ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_load_converts_tensors_as_torch_does(
    dtype: torch.dtype, source: Tensors, shard: bytes
) -> None:
    """Tensors that span blocks, short, scalar and empty ones equal `tensor.to(dtype)`."""
    assert len(blocks_of(shard)) == 6
    assert_same(load.load_tensors(blocks_of(shard), CPU, dtype), source, dtype)


def first_block_last(blocks: list[Block]) -> list[Block]:
    return [*blocks[1:], blocks[0]]


def reverse(blocks: list[Block]) -> list[Block]:
    return blocks[::-1]


def shuffle(seed: int) -> Callable[[list[Block]], list[Block]]:
    return lambda blocks: random.Random(seed).sample(blocks, len(blocks))


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(first_block_last, id="first block last"),
        pytest.param(reverse, id="reversed"),
        *(pytest.param(shuffle(seed), id=f"shuffled {seed}") for seed in range(3)),
    ],
)
def test_load_accepts_blocks_in_any_order(
    order: Callable[[list[Block]], list[Block]], source: Tensors, shard: bytes
) -> None:
    """Blocks may arrive before the first block of their shard, which holds the header."""
    loaded = load.load_tensors(order(blocks_of(shard)), CPU, torch.float32)
    assert_same(loaded, source, torch.float32)


def test_load_accepts_interleaved_shards(source: Tensors) -> None:
    halves = [
        {name: tensor for name, tensor in source.items() if name.startswith(kind)}
        for kind in ("wide", "half")
    ]
    blocks = [
        block
        for number, half in enumerate(halves)
        for block in blocks_of(safetensors.torch.save(half), f"{number}.safetensors")
    ]
    loaded = load.load_tensors(shuffle(1)(blocks), CPU, torch.float32)
    assert_same(loaded, source, torch.float32)


def test_load_converts_every_float16_value() -> None:
    """All 65,536 bit patterns, subnormals, infinities and NaNs included, equal torch's float32."""
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    data = safetensors.torch.save({"all": halves})
    loaded = load.load_tensors(blocks_of(data), CPU, torch.float32)["all"]
    assert torch.equal(loaded.view(torch.int32), halves.float().view(torch.int32))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param({}, id="no tensor"),
        pytest.param({"none": torch.empty(0, 3)}, id="an empty tensor"),
    ],
)
def test_load_accepts_a_shard_without_data(content: dict[str, torch.Tensor]) -> None:
    loaded = load.load_tensors(blocks_of(safetensors.torch.save(content)), CPU, torch.float32)
    assert_same(loaded, content, torch.float32)


def test_loaded_tensors_are_aligned_to_cache_lines(source: Tensors, shard: bytes) -> None:
    """Matrix kernels are fastest if every tensor starts at a multiple of 64 bytes."""
    loaded = load.load_tensors(blocks_of(shard), CPU, torch.float32)
    assert {tensor.data_ptr() % 64 for tensor in loaded.values() if tensor.numel()} == {0}


def test_loaded_tensors_do_not_share_memory_with_blocks(shard: bytes) -> None:
    loaded = load.load_tensors(blocks_of(shard), CPU, torch.float32)
    before = bytes(shard[-16:])
    loaded["half.last"].zero_()
    assert shard[-16:] == before


def test_load_releases_each_block(shard: bytes) -> None:
    """At most two blocks are held at a time, so there is never a second copy of the model."""

    class Data(bytearray):
        pass

    alive: list[weakref.ref[Data]] = []
    most = 0

    def arriving_blocks() -> Iterator[Block]:
        nonlocal most
        for block in blocks_of(shard):
            data = Data(block.data)
            alive.append(weakref.ref(data))
            yield Block(block.file, block.offset, memoryview(data))
            del data
            most = max(most, sum(reference() is not None for reference in alive))

    load.load_tensors(arriving_blocks(), CPU, torch.float32)
    assert len(alive) == 6
    assert most <= 2


# --- errors ---------------------------------------------------------------------------------


def test_load_rejects_a_tensor_name_in_two_shards() -> None:
    """The error names the tensor and the second shard."""
    data = safetensors.torch.save({"twice": torch.ones(2)})
    blocks = [*blocks_of(data, "1.safetensors"), *blocks_of(data, "2.safetensors")]
    with pytest.raises(ManifestError, match=r"2\.safetensors holds twice, which another shard"):
        load.load_tensors(blocks, CPU, torch.float32)


def test_load_rejects_a_malformed_shard() -> None:
    """The error names the shard whose header does not match its size."""
    data = safetensors.torch.save({"a": torch.ones(2)}) + b"more"
    with pytest.raises(ManifestError, match=r"^model\.safetensors: its tensors end at byte"):
        load.load_tensors(blocks_of(data), CPU, torch.float32)


def test_load_raises_the_error_of_the_pull(shard: bytes) -> None:
    """No partly filled tensors are returned."""

    def failing_blocks() -> Iterator[Block]:
        yield from blocks_of(shard)[:3]
        raise TransferError("the network is gone")

    with pytest.raises(TransferError, match="the network is gone"):
        load.load_tensors(failing_blocks(), CPU, torch.float32)


# --- on a GPU -------------------------------------------------------------------------------


class FakeGpu:
    """Simulates a GPU's memory and stream on the CPU, with copies as late as CUDA allows.

    A non-blocking copy runs only at the synchronization with an event recorded after it, or with
    the whole device. It copies the bytes that its source holds at that time.
    """

    def __init__(self) -> None:
        self.pending: list[Callable[[], object]] = []
        self.pinned: list[torch.Tensor] = []
        self.copies = 0
        self.waits = 0

    def run(self, count: int) -> None:
        """Run the first `count` pending copies."""
        for copy in self.pending[:count]:
            copy()
        del self.pending[:count]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """Replace the CUDA functions that `load` uses."""
    fake = FakeGpu()
    real_empty = torch.empty

    class OnGpu(torch.Tensor):
        """A tensor in the GPU's memory, like its slices."""

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
            return made.fill_(0xAA).as_subclass(OnGpu)
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


def test_fake_gpu_copies_late(gpu: FakeGpu) -> None:
    """A source that is overwritten too early shows in the copy."""
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
        pytest.param(first_block_last, id="first block last"),
        pytest.param(shuffle(0), id="shuffled"),
    ],
)
def test_load_on_gpu_equals_the_source(
    order: Callable[[list[Block]], list[Block]],
    dtype: torch.dtype,
    gpu: FakeGpu,
    source: Tensors,
    shard: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Six blocks pass through a ring of two slots bit for bit, although every copy is late."""
    monkeypatch.setattr(load._PinnedRing, "SLOTS", 2)
    loaded = load.load_tensors(order(blocks_of(shard)), torch.device("cuda"), dtype)
    plain = {name: tensor.as_subclass(torch.Tensor) for name, tensor in loaded.items()}
    assert_same(plain, source, dtype)


def test_tensors_on_gpu_are_aligned(gpu: FakeGpu, shard: bytes) -> None:
    """In the file they are not, and matrix products of misaligned operands are slow."""
    loaded = load.load_tensors(blocks_of(shard), torch.device("cuda"), torch.float16)
    starts = [tensor.data_ptr() for name, tensor in loaded.items() if name.startswith("half.l")]
    assert [(start - min(starts)) % 256 for start in starts] == [0, 0]


def test_pinned_ring_reuses_a_slot_only_after_its_copy(gpu: FakeGpu) -> None:
    """After the first round, each block waits for the copy from the slot that it reuses."""
    ring = load._PinnedRing()
    rounds = 3 * ring.SLOTS
    target = torch.empty(rounds * 5, dtype=torch.uint8, device="cuda")
    for number in range(rounds):
        with ring.stage(memoryview(bytes([number] * 5))) as staged:
            target[number * 5 : number * 5 + 5].copy_(staged, non_blocking=True)
        assert gpu.waits == max(0, number + 1 - ring.SLOTS)
        assert len(gpu.pending) == min(number + 1, ring.SLOTS)
    torch.cuda.synchronize()
    assert target.tolist() == [number for number in range(rounds) for _ in range(5)]


def test_pinned_ring_does_not_read_the_data_later(gpu: FakeGpu) -> None:
    ring = load._PinnedRing()
    target = torch.empty(3, dtype=torch.uint8, device="cuda")
    data = bytearray(b"abc")
    with ring.stage(memoryview(data)) as staged:
        target.copy_(staged, non_blocking=True)
    data[:] = b"xyz"
    torch.cuda.synchronize()
    assert bytes(target.tolist()) == b"abc"


def test_pinned_ring_is_allocated_once(gpu: FakeGpu, shard: bytes) -> None:
    """Allocating page-locked memory is slow, so one ring of at most 128 MiB serves all shards."""
    other = safetensors.torch.save({"other": torch.ones(3)})
    blocks = [*blocks_of(shard, "1.safetensors"), *blocks_of(other, "2.safetensors")]
    load.load_tensors(blocks, torch.device("cuda"), torch.float16)
    [ring] = gpu.pinned
    assert BLOCK_SIZE <= ring.nbytes <= 128 * 2**20
