"""The choice of device and precision, and what a GPU must have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from clip_embed.errors import SettingError
from clip_embed.model.device import WORKING_BYTES, check_memory, choose_device, choose_dtype
from clip_embed.model.gpu_diagnosis import Driver, Host

TORCH_2_14 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
"""What the wheel of torch 2.14.1 for x86-64 has."""

GPU = torch.device("cuda")

FakeCuda = Callable[..., None]


@pytest.fixture
def no_gpu(tmp_path: Path) -> Host:
    """Return a host without a GPU."""
    return Host(tmp_path, tmp_path, lambda: None)


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Return a function that replaces functions of torch.cuda; by default there is a T4."""

    def fake(**functions: Callable[..., Any]) -> None:
        defaults: dict[str, Callable[..., Any]] = {
            "is_available": lambda: True,
            "get_arch_list": lambda: TORCH_2_14,
            "get_device_capability": lambda: (7, 5),
            "get_device_name": lambda: "Tesla T4",
        }
        for name, function in (defaults | functions).items():
            monkeypatch.setattr(torch.cuda, name, function)

    return fake


@pytest.mark.parametrize(
    ("wanted", "gpu", "device"),
    [
        (None, False, "cpu"),
        (None, True, "cuda"),
        ("cpu", False, "cpu"),
        ("cpu", True, "cpu"),
        ("cuda", True, "cuda"),
    ],
)
def test_choose_device_prefers_the_gpu_unless_set(
    wanted: str | None, gpu: bool, device: str, fake_cuda: FakeCuda, no_gpu: Host
) -> None:
    fake_cuda(is_available=lambda: gpu)
    assert choose_device(wanted, no_gpu) == torch.device(device)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("tpu", "CLIP_DEVICE is 'tpu'; use 'cuda' or 'cpu'"),
        ("cuda", "there is no GPU .*; .*use 'cpu' or leave it unset"),
    ],
)
def test_choose_device_rejects_unavailable_devices(
    wanted: str, message: str, fake_cuda: FakeCuda, no_gpu: Host
) -> None:
    """The error names the value and the alternatives."""
    fake_cuda(is_available=lambda: False)
    with pytest.raises(SettingError, match=message):
        choose_device(wanted, no_gpu)


@pytest.mark.parametrize("wanted", [None, "cuda"])
def test_choose_device_never_replaces_a_gpu_by_the_cpu(
    wanted: str | None, fake_cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that torch cannot use ends setup, unless CLIP_DEVICE is cpu."""
    fake_cuda(is_available=lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    (tmp_path / "nvidia0").touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    host = Host(tmp_path, tmp_path, lambda: Driver((12, 2), init_error=0))
    with pytest.raises(SettingError, match=r"built for CUDA 13\.0, cannot use it: CUDA 13 needs"):
        choose_device(wanted, host)
    assert choose_device("cpu", host) == torch.device("cpu")


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((8, 9), TORCH_2_14, True),  # L4: by sm_86
        ((10, 3), TORCH_2_14, True),  # B300: by sm_100
        ((7, 0), TORCH_2_14, False),  # V100
        ((11, 0), TORCH_2_14, False),  # Thor
        ((8, 0), ["sm_86"], False),  # an earlier minor
        ((9, 0), ["sm_90a"], True),
        ((10, 3), ["sm_100a"], False),  # one capability only
        ((10, 3), ["sm_100f"], True),  # one major only
        ((12, 0), ["sm_100f"], False),
        ((12, 0), ["sm_90", "compute_90"], True),  # compiled by the driver
        ((8, 9), ["compute_90"], False),
        ((12, 0), ["compute_90a"], False),
        ((12, 0), ["compute_100f"], False),
        ((9, 0), ["gfx90a"], True),  # AMD's: not judged
        ((9, 0), [], True),
    ],
)
def test_choose_device_rejects_a_gpu_without_kernels(
    capability: tuple[int, int], built: list[str], runs: bool, fake_cuda: FakeCuda, no_gpu: Host
) -> None:
    fake_cuda(get_device_capability=lambda: capability, get_arch_list=lambda: built)
    if runs:
        assert choose_device(None, no_gpu) == GPU
    else:
        with pytest.raises(SettingError, match="has kernels for"):
            choose_device(None, no_gpu)


def test_a_gpu_without_kernels_is_named_with_all_that_torch_has(
    fake_cuda: FakeCuda, no_gpu: Host
) -> None:
    fake_cuda(get_device_capability=lambda: (7, 0), get_device_name=lambda: "Tesla V100")
    with pytest.raises(SettingError) as caught:
        choose_device(None, no_gpu)
    assert str(caught.value) == (
        f"the GPU Tesla V100 has compute capability 7.0, and torch {torch.__version__} has kernels"
        " for sm_75, sm_80, sm_86, sm_90, sm_100, sm_120 only; choose another GPU (with"
        " CUDA_VISIBLE_DEVICES, if there are several), or set CLIP_DEVICE=cpu"
    )


def test_a_gpu_with_too_little_free_memory_is_an_error(fake_cuda: FakeCuda) -> None:
    fake_cuda(mem_get_info=lambda device: (1_230_000_000, 16_000_000_000))
    with pytest.raises(SettingError) as caught:
        check_memory(GPU, 860_000_000)
    assert str(caught.value) == (
        "1.23 GB of the GPU's 16.00 GB are free, and the model needs 1.61 GB; end other processes"
        " that use it (nvidia-smi lists them), choose another GPU with CUDA_VISIBLE_DEVICES, or set"
        " CLIP_DEVICE=cpu"
    )


@pytest.mark.parametrize("missing", [0, 1])
def test_a_model_needs_memory_for_its_weights_and_to_work_in(
    missing: int, fake_cuda: FakeCuda
) -> None:
    free = 860_000_000 + WORKING_BYTES - missing
    fake_cuda(mem_get_info=lambda device: (free, 16_000_000_000))
    if missing:
        with pytest.raises(SettingError, match="are free"):
            check_memory(GPU, 860_000_000)
    else:
        check_memory(GPU, 860_000_000)


def test_the_memory_of_a_cpu_is_not_checked() -> None:
    check_memory(torch.device("cpu"), 10**15)


BUSY = "CUDA error: all CUDA-capable devices are busy or unavailable"


def fails_with(error: Exception) -> Callable[..., NoReturn]:
    def call(*_: object) -> NoReturn:
        raise error

    return call


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(f"{BUSY}\nCUDA kernel errors might be asynchronously reported"),
        torch.AcceleratorError(f"{BUSY}\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"),
        torch.cuda.DeferredCudaCallError(f"{BUSY}\n\nCUDA call was originally invoked at:"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("call", ["mem_get_info", "get_device_capability"])
def test_a_gpu_held_by_another_process_is_one_sentence(
    call: str, error: Exception, fake_cuda: FakeCuda, no_gpu: Host
) -> None:
    """CUDA reports the exclusive mode at the first call that needs the GPU."""
    fake_cuda(**{call: fails_with(error)})
    with pytest.raises(SettingError) as caught:
        check_memory(choose_device("cuda", no_gpu), 0)
    assert str(caught.value) == (
        f"the GPU cannot be used: {BUSY}; see its processes, compute mode and state with"
        " nvidia-smi, or set CLIP_DEVICE=cpu"
    )


def test_choose_dtype_is_float16_on_gpu_and_float32_on_cpu() -> None:
    assert choose_dtype(torch.device("cuda")) == torch.float16
    assert choose_dtype(torch.device("cpu")) == torch.float32
