"""The kernel of addition and layer normalization, as far as a machine without a GPU can tell.

scripts/check_gpu.py compares vectors that were computed with it. At each start, `verify` compares
its values with torch's on the GPU.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_embed.model import cuda_kernels
from clip_embed.model.clip import Clip, Packing
from clip_embed.model.config import ClipConfig
from clip_embed.model.cuda_kernels import (
    AddLayerNormKernel,
    compile_add_layer_norm,
    compile_for,
)
from tests.helpers.paths import TINY

CONFIG = ClipConfig.from_open_clip(json.loads(TINY.read_text()))
GPU = torch.device("cuda")


@pytest.mark.skipif(not torch.version.cuda, reason="this torch is built without CUDA and NVRTC")
@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"])
def test_kernel_compiles_for_every_architecture_of_torch(architecture: str) -> None:
    code = compile_for(architecture, [768, 1024])
    assert b"add_layer_norm_768" in code
    assert b"add_layer_norm_1024" in code


@pytest.mark.skipif(not torch.version.cuda, reason="this torch is built without CUDA and NVRTC")
def test_unknown_architecture_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"NVRTC answers \d+"):
        compile_for("sm_1", [768])


def wide(vision: int, text: int) -> ClipConfig:
    return dataclasses.replace(
        CONFIG,
        vision=dataclasses.replace(CONFIG.vision, width=vision),
        text=dataclasses.replace(CONFIG.text, width=text),
    )


@pytest.mark.parametrize(
    ("config", "device"),
    [
        pytest.param(wide(1024, 768), torch.device("cpu"), id="on a CPU"),
        pytest.param(wide(1024, 64), GPU, id="a width that is no multiple of 256"),
    ],
)
def test_no_kernel_where_it_does_not_fit(
    config: ClipConfig, device: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    assert compile_add_layer_norm(config, device) is None
    assert not caplog.records


def test_kernel_that_cannot_be_loaded_is_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", fail)
    assert compile_add_layer_norm(wide(1024, 768), GPU) is None
    assert "slower: libcuda.so.1: cannot open shared object file" in caplog.text


def test_kernel_that_spoils_the_gpu_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA then refuses every call: without this, setup would blame the GPU."""

    class Spoiling(AddLayerNormKernel):
        def __init__(self, *arguments: object) -> None:
            monkeypatch.setattr(torch.cuda, "synchronize", self.refuse)
            self.refuse()

        def refuse(self, *arguments: object) -> None:
            raise torch.AcceleratorError("CUDA error: an illegal memory access")

    monkeypatch.setattr(cuda_kernels, "AddLayerNormKernel", Spoiling)
    with pytest.raises(RuntimeError, match=r"cuda_kernels has failed on this GPU: CUDA error: an"):
        compile_add_layer_norm(wide(1024, 768), GPU)


class FakeKernel(AddLayerNormKernel):
    """Computes with torch on the CPU, and adds `error` to the normalized values."""

    def __init__(self, error: float) -> None:
        self._device = torch.device("cpu")
        self._kernels = {256: ctypes.c_void_p()}
        self._error = error
        self.calls = 0

    def __call__(
        self, x: Tensor, update: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        self.calls += 1
        total = x + update
        return total, F.layer_norm(total, weight.shape, weight, bias) + self._error


@pytest.mark.parametrize(
    "update",
    [
        pytest.param(torch.zeros(2, 256), id="float32"),
        pytest.param(torch.zeros(3, 256, dtype=torch.float16), id="another shape"),
        pytest.param(torch.zeros(513, dtype=torch.float16)[1:].view(2, 256), id="not aligned"),
    ],
)
def test_tensors_that_the_kernel_would_misread_are_refused(update: Tensor) -> None:
    x = torch.zeros(2, 256, dtype=torch.float16)
    kernel = FakeKernel(0)
    kernel._check_arguments(x, x, x[0], x[1])
    with pytest.raises(RuntimeError, match=r"no kernel for|not float16, or not aligned"):
        kernel._check_arguments(x, update, x[0], x[1])


def test_verify_notices_another_epsilon(monkeypatch: pytest.MonkeyPatch) -> None:
    def normalize_the_sum(
        self: object, x: Tensor, update: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        return x + update, F.layer_norm(x + update, weight.shape, weight, bias, eps=1e-4)

    monkeypatch.setattr(FakeKernel, "__call__", normalize_the_sum)
    with pytest.raises(RuntimeError, match="its values differ"):
        FakeKernel(0).verify()


def test_verify_compares_with_torch() -> None:
    FakeKernel(0).verify()
    for error in (0.05, float("nan")):
        with pytest.raises(RuntimeError, match="its values differ from torch's"):
            FakeKernel(error).verify()


def test_network_uses_the_kernel_for_every_sum_but_the_last_of_a_tower() -> None:
    """Only while it is told to; the vectors are the same."""
    model = Clip(CONFIG)
    torch.manual_seed(0)
    model.load({name: torch.randn(p.shape) / 8 for name, p in model.named_parameters()})
    pixels = torch.rand(2, 3, CONFIG.image_size, CONFIG.image_size)

    def encode() -> tuple[Tensor, Tensor]:
        texts = model.encode_text(torch.arange(9), Packing([4, 5], torch.device("cpu")))
        return model.encode_image(pixels), texts

    kernel = FakeKernel(0)
    expected = encode()
    with model.fusing(kernel):
        fused = encode()
    assert kernel.calls == 2 * (CONFIG.vision.layers + CONFIG.text.layers) - 2
    encode()
    assert kernel.calls == 2 * (CONFIG.vision.layers + CONFIG.text.layers) - 2
    for a, b in zip(fused, expected, strict=True):
        assert torch.equal(a, b)
