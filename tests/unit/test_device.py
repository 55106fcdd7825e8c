"""The choice of device and precision."""

from __future__ import annotations

import pytest
import torch

from clip_embed.errors import SettingError
from clip_embed.model.device import choose_device, choose_dtype


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
    wanted: str | None, gpu: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert choose_device(wanted) == torch.device(device)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("tpu", "CLIP_DEVICE is 'tpu'; use 'cuda' or 'cpu'"),
        ("cuda", "torch sees no GPU; use 'cpu'"),
    ],
)
def test_choose_device_rejects_unavailable_devices(
    wanted: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the value and the alternatives."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingError, match=message):
        choose_device(wanted)


def test_choose_dtype_is_float16_on_gpu_and_float32_on_cpu() -> None:
    assert choose_dtype(torch.device("cuda")) == torch.float16
    assert choose_dtype(torch.device("cpu")) == torch.float32
