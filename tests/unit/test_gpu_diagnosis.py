"""Why torch sees no GPU: one sentence with the cause and the way out, a warning, or nothing."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clip_embed.errors import SettingError
from clip_embed.model import gpu_diagnosis
from clip_embed.model.gpu_diagnosis import Driver, Host, explain_missing_gpu, query_driver

MakeHost = Callable[..., Host]

DRIVER = Driver(cuda=(13, 0), init_error=0)

VARIABLES = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES")

VERSION_FILES = {
    "535.104.05": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15"
    " UTC 2023\nGCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n",
    "570.86.15": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build"
    "  (dvs-builder@U22)  Thu Jan 23 03:55:49 UTC 2025\nGCC version:  gcc version 13.2.0\n",
    "580.95": "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.95  Release Build\n",
}


@pytest.fixture
def make_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeHost:
    """Return a function that makes a host: by default one with a GPU and a driver."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)

    def make(
        nodes: tuple[str, ...] = ("nvidia0", "nvidiactl", "nvidia-uvm"),
        version: str | None = "535.104.05",
        driver: Driver | None = DRIVER,
        **environment: str,
    ) -> Host:
        dev, proc = tmp_path / "dev", tmp_path / "proc"
        dev.mkdir()
        for node in (*nodes, "null", "shm"):
            (dev / node).touch()
        if version is not None:
            (proc / "driver" / "nvidia").mkdir(parents=True)
            (proc / "driver" / "nvidia" / "version").write_text(VERSION_FILES[version])
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value)
        return Host(dev, proc, lambda: driver)

    return make


@pytest.fixture
def no_gpu(make_host: MakeHost) -> MakeHost:
    """Return a function that makes a host without a GPU or a driver."""

    def make(**environment: str) -> Host:
        return make_host(nodes=(), version=None, driver=None, **environment)

    return make


def error_of(host: Host, required: bool = False, torch_cuda: str | None = "13.0") -> str:
    with pytest.raises(SettingError) as caught:
        explain_missing_gpu(required, torch_cuda, host)
    return str(caught.value)


# --- a GPU is there, and torch cannot use it --------------------------------------------------


@pytest.mark.parametrize(
    ("torch_cuda", "driver_cuda", "cause"),
    [
        ("13.0", (12, 8), "CUDA 13 needs driver 580 or newer; update the driver"),
        ("12.6", (11, 4), "CUDA 12 needs driver 525 or newer; update the driver"),
        ("21.0", (13, 0), "CUDA 21 needs a driver for CUDA 21 or newer; update the driver"),
    ],
)
def test_an_old_driver_is_an_error_with_all_versions(
    torch_cuda: str, driver_cuda: tuple[int, int], cause: str, make_host: MakeHost
) -> None:
    host = make_host(driver=Driver(driver_cuda, init_error=0))
    assert error_of(host, torch_cuda=torch_cuda) == (
        f"there is a GPU (driver 535.104.05), but torch, built for CUDA {torch_cuda}, cannot use"
        f" it: {cause}, or set CLIP_DEVICE=cpu"
    )


def test_a_newer_minor_version_needs_no_newer_driver(make_host: MakeHost) -> None:
    """A driver for CUDA 13.0 runs programs for CUDA 13.4: the cause is another one."""
    assert "the cause is not known" in error_of(make_host(), torch_cuda="13.4")


def test_a_torch_without_cuda_is_an_error(make_host: MakeHost) -> None:
    assert error_of(make_host(), torch_cuda=None) == (
        "there is a GPU (driver 535.104.05), but torch, built without CUDA, cannot use it:"
        " install a torch built for CUDA, or set CLIP_DEVICE=cpu"
    )


def test_a_missing_driver_library_is_an_error(make_host: MakeHost) -> None:
    """As in a container that was given the device nodes only."""
    message = error_of(make_host(driver=None))
    assert "(driver 535.104.05)" in message
    assert "libcuda.so.1 cannot be loaded; install the driver, start a container with" in message


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (34, "stub of the CUDA toolkit"),
        (100, "the driver finds no GPU; run nvidia-smi"),
        (802, "start NVIDIA's fabric manager"),
        (803, "different versions; restart the host"),
        (804, "compatibility package"),
        (999, "nvidia-modprobe -u"),
        (46, "the cause is not known; run nvidia-smi"),
    ],
)
def test_the_result_of_cuinit_names_the_cause(code: int, cause: str, make_host: MakeHost) -> None:
    message = error_of(make_host(driver=Driver((13, 0), code)))
    assert message.startswith(f"there is a GPU (driver 535.104.05, cuInit returns {code}), but")
    assert cause in message
    assert message.endswith(", or set CLIP_DEVICE=cpu")


@pytest.mark.parametrize("version", VERSION_FILES)
def test_the_version_of_the_driver_is_that_of_proc(version: str, make_host: MakeHost) -> None:
    assert make_host(version=version).driver_version() == version


@pytest.mark.parametrize(
    ("driver", "named"), [(DRIVER, "(driver for CUDA 13.0)"), (None, "(driver unknown)")]
)
def test_without_proc_the_driver_is_named_by_its_cuda(
    driver: Driver | None, named: str, make_host: MakeHost
) -> None:
    assert named in error_of(make_host(version=None, driver=driver))


def test_windows_gpus_count_if_the_library_is_there(make_host: MakeHost) -> None:
    """WSL has the node of Windows' driver instead of NVIDIA's."""
    host = make_host(nodes=("dxg",), version=None, driver=Driver((12, 6), 0))
    assert "(driver for CUDA 12.6)" in error_of(host)


def test_windows_gpus_of_other_makers_are_none(
    make_host: MakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    explain_missing_gpu(False, "13.0", make_host(nodes=("dxg",), version=None, driver=None))
    assert caplog.messages == []


# --- CUDA_VISIBLE_DEVICES ---------------------------------------------------------------------


@pytest.mark.parametrize("value", ["", " ", "-1", "-1,0", "none", "NoDevFiles"])
def test_a_gpu_hidden_on_purpose_is_a_warning(
    value: str, make_host: MakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    host = make_host(driver=Driver((13, 0), 100), CUDA_VISIBLE_DEVICES=value)
    explain_missing_gpu(False, "13.0", host)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert f"CUDA_VISIBLE_DEVICES is {value!r}, which hides the GPU" in record.getMessage()
    assert "set CLIP_DEVICE=cpu to silence this" in record.getMessage()


def test_a_hidden_gpu_that_is_required_is_an_error(make_host: MakeHost) -> None:
    host = make_host(CUDA_VISIBLE_DEVICES="-1")
    assert error_of(host, required=True) == (
        "CLIP_DEVICE is 'cuda', but CUDA_VISIBLE_DEVICES is '-1', which hides the GPU; unset one of"
        " the two"
    )


@pytest.mark.parametrize("value", ["7", "GPU-8932f937"])
def test_an_index_that_does_not_exist_is_named_as_the_cause(
    value: str, make_host: MakeHost
) -> None:
    host = make_host(driver=Driver((13, 0), 100), CUDA_VISIBLE_DEVICES=value)
    message = error_of(host)
    assert f"CUDA_VISIBLE_DEVICES is {value!r}, and no such GPU is here; unset it" in message


@pytest.mark.parametrize(
    ("driver", "cause"),
    [
        (Driver((12, 2), 0), "update the driver"),
        (Driver((13, 0), 803), "different versions"),
        (Driver((13, 0), 0), "the cause is not known"),
    ],
)
def test_a_valid_index_is_not_named_as_the_cause(
    driver: Driver, cause: str, make_host: MakeHost
) -> None:
    """Only if the driver finds no device can the variable be the cause."""
    message = error_of(make_host(driver=driver, CUDA_VISIBLE_DEVICES="0"))
    assert cause in message
    assert "CUDA_VISIBLE_DEVICES" not in message


# --- no GPU -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "environment",
    [
        {"NVIDIA_VISIBLE_DEVICES": "all"},
        {"NVIDIA_VISIBLE_DEVICES": "GPU-8932f937"},
        {"NVIDIA_DRIVER_CAPABILITIES": "all"},
    ],
)
def test_an_image_for_a_gpu_without_one_logs_a_warning(
    environment: dict[str, str], no_gpu: MakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    """NVIDIA's base images set the one variable, Cog the other."""
    explain_missing_gpu(False, "13.0", no_gpu(**environment))
    assert caplog.record_tuples == [
        (
            "clip_embed.model.gpu_diagnosis",
            logging.WARNING,
            "WARNING: this container has no GPU: predictions run on the CPU, far more slowly; start"
            " it with `docker run --gpus all`, or set CLIP_DEVICE=cpu to silence this",
        )
    ]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NVIDIA_VISIBLE_DEVICES": "", "NVIDIA_DRIVER_CAPABILITIES": "all"},
        {"NVIDIA_VISIBLE_DEVICES": "void", "NVIDIA_DRIVER_CAPABILITIES": "all"},
        {"NVIDIA_VISIBLE_DEVICES": "none", "NVIDIA_DRIVER_CAPABILITIES": "all"},
        {"CUDA_VISIBLE_DEVICES": ""},
    ],
)
def test_where_no_gpu_is_expected_nothing_is_logged(
    environment: dict[str, str], no_gpu: MakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    explain_missing_gpu(False, "13.0", no_gpu(**environment))
    assert caplog.messages == []


def test_the_control_node_alone_is_no_gpu(
    make_host: MakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    """NVIDIA_VISIBLE_DEVICES=none gives a container the driver, and no GPU."""
    host = make_host(nodes=("nvidiactl", "nvidia-uvm"), NVIDIA_VISIBLE_DEVICES="none")
    explain_missing_gpu(False, "13.0", host)
    assert caplog.messages == []


def test_a_machine_without_devices_has_no_gpu(tmp_path: Path) -> None:
    assert not Host(tmp_path / "no such folder", tmp_path, lambda: None).has_gpu()


def test_a_library_of_the_name_without_its_functions_is_no_driver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert query_driver() is None


def test_the_stub_of_the_toolkit_is_named_as_the_cause(make_host: MakeHost) -> None:
    """It fails, and says no version of CUDA."""
    assert "is the stub of the CUDA toolkit" in error_of(make_host(driver=Driver((0, 0), 34)))


def test_without_a_gpu_the_drivers_library_is_not_loaded(no_gpu: MakeHost) -> None:
    host = no_gpu(NVIDIA_VISIBLE_DEVICES="all")
    unused = Host(host.dev, host.proc, lambda: pytest.fail("loads libcuda"))
    explain_missing_gpu(False, "13.0", unused)


@pytest.mark.parametrize(
    ("driver", "missing"),
    [
        (None, "(no device node /dev/nvidia0, no driver library libcuda.so.1)"),
        (DRIVER, "(no device node /dev/nvidia0)"),
    ],
)
def test_a_required_gpu_that_is_not_there_is_an_error(
    driver: Driver | None, missing: str, make_host: MakeHost
) -> None:
    host = make_host(nodes=(), version=None, driver=driver)
    assert error_of(host, required=True) == (
        f"CLIP_DEVICE is 'cuda', but there is no GPU {missing}; install the driver on the host,"
        " start a container with `docker run --gpus all`, or use 'cpu' or leave it unset"
    )


# --- the driver's library ---------------------------------------------------------------------


class FakeLibrary:
    """libcuda.so.1 of a driver for CUDA 12.2 that cannot start."""

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 12020
        return 0

    def cuInit(self, flags: int) -> int:
        return 803


def test_the_library_is_asked_for_its_version_and_state(monkeypatch: pytest.MonkeyPatch) -> None:
    libraries = {"libcuda.so.1": FakeLibrary()}
    monkeypatch.setattr(ctypes, "CDLL", libraries.__getitem__)
    assert query_driver() == Driver(cuda=(12, 2), init_error=803)


def test_no_library_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_diagnosis, "LIBRARY", "libcuda-of-no-machine.so.1")
    assert query_driver() is None
