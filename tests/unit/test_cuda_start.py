"""CUDA is started while torch is imported. A driver is simulated: there is no GPU here."""

from __future__ import annotations

import ctypes
import logging
from typing import Any

import pytest
import torch

from clip_embed.startup import cuda_start


class FakeDriver:
    """The driver's library. results: of its functions; others return 0, which is success."""

    def __init__(self, **results: int) -> None:
        self._results = results
        self.called: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: object) -> int:
            self.called.append(name)
            return self._results.get(name, 0)

        return call


def start(monkeypatch: pytest.MonkeyPatch, driver: object) -> None:
    def load(name: str) -> object:
        assert name == "libcuda.so.1"
        if isinstance(driver, Exception):
            raise driver
        return driver

    monkeypatch.setattr(ctypes, "CDLL", load)
    cuda_start._create_context()


def test_context_of_the_first_gpu_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch uses the primary context, too, and finds it made."""
    driver = FakeDriver()
    start(monkeypatch, driver)
    assert driver.called == ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"]


def test_error_of_the_driver_is_left_to_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is called after it, and the log has its number."""
    caplog.set_level(logging.DEBUG)
    driver = FakeDriver(cuInit=803)
    start(monkeypatch, driver)
    assert driver.called == ["cuInit"]
    assert "cuInit returned 803" in caplog.text


def test_missing_driver_is_left_to_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    start(monkeypatch, OSError("libcuda.so.1: no such file"))
    assert "no CUDA driver" in caplog.text


def test_cublas_is_not_loaded_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.functional, "linear", pytest.fail)
    cuda_start.load_cublas(torch.device("cpu"))
