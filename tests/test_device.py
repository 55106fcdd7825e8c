"""Where the network runs is what CLIP_DEVICE says, or an error that says what it may say."""

from __future__ import annotations

import pytest
import torch

from clip_embed.device import choose_device, choose_dtype


@pytest.mark.parametrize(
    ("wanted", "gpu", "device"),
    [
        (None, False, "cpu"),
        ("", False, "cpu"),
        (None, True, "cuda"),
        ("cpu", True, "cpu"),
        ("cuda", True, "cuda"),
    ],
)
def test_the_gpu_is_used_if_there_is_one(
    wanted: str | None, gpu: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unset, the GPU if there is one; else what was asked for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert choose_device(wanted) == torch.device(device)


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ("tpu", "CLIP_DEVICE is 'tpu'; use 'cuda' or 'cpu'"),
        ("cuda", "torch sees no GPU; use 'cpu'"),
    ],
)
def test_what_cannot_be_had_is_refused(
    wanted: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown device, or a GPU that is not there, is an error that names the way out."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=problem):
        choose_device(wanted)


def test_precision_follows_the_device() -> None:
    """float16 on a GPU, float32 on a CPU."""
    assert choose_dtype(torch.device("cuda")) == torch.float16
    assert choose_dtype(torch.device("cpu")) == torch.float32
