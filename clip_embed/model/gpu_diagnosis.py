"""Say why torch sees no GPU, and what to do about it.

`torch.cuda.is_available()` only answers no. An unused GPU costs as much as a used one, so a GPU
that cannot be used is an error; a container that was started without its GPU is worth a warning.

A leaf, without torch: what torch knows is passed in. The driver's library is loaded only if there
is a GPU, in WSL, or if CLIP_DEVICE is "cuda". Sources: NVIDIA, "CUDA Driver API", CUresult; "CUDA
Compatibility", minor version compatibility; "Container Toolkit", specialized configurations with
Docker.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clip_embed.errors import SettingError
from clip_embed.settings import image_expects_gpu, visible_gpus

log = logging.getLogger(__name__)

LIBRARY = "libcuda.so.1"
"""The part of the driver that torch loads."""

NEEDED_DRIVER = {"11": "driver 450", "12": "driver 525", "13": "driver 580"}
"""By major version of CUDA: the oldest driver that runs programs built for any of its minors."""

NO_DEVICE = 100

INIT_ERRORS = {
    34: f"{LIBRARY} is the stub of the CUDA toolkit; remove its directory from LD_LIBRARY_PATH",
    NO_DEVICE: "the driver finds no GPU; run nvidia-smi to see the state of the GPU",
    802: "the host is not ready; start NVIDIA's fabric manager there, and then this service",
    803: f"{LIBRARY} and the driver in the kernel have different versions; restart the host if its"
    " driver was updated, remove CUDA's directory `compat` from LD_LIBRARY_PATH",
    804: f"{LIBRARY} is CUDA's compatibility package, which does not support this GPU; remove its"
    " directory `compat` from LD_LIBRARY_PATH",
    999: "the driver does not say why, as without /dev/nvidia-uvm or after the host was suspended;"
    " run `nvidia-modprobe -u` on the host, reload the kernel module nvidia_uvm",
}
"""Results of cuInit: the cause and the way out."""

ON_CPU = "predictions run on the CPU, far more slowly"


@dataclass(frozen=True)
class Driver:
    """The answers of the driver's library. cuda: the newest version of CUDA that it supports, as
    (12, 2). init_error: the result of cuInit, 0 for success."""

    cuda: tuple[int, int]
    init_error: int


def query_driver() -> Driver | None:
    """Return the driver's version of CUDA and its state, None if its library cannot be loaded."""
    version = ctypes.c_int()  # 12020 is CUDA 12.2
    try:
        library = ctypes.CDLL(LIBRARY)
        library.cuDriverGetVersion(ctypes.byref(version))
        init_error = library.cuInit(0)
    except (OSError, AttributeError):  # AttributeError: it is another library of that name
        return None
    major, rest = divmod(version.value, 1000)
    return Driver((major, rest // 10), init_error)


@dataclass(frozen=True)
class Host:
    """The files and calls that show whether there is a GPU. settings.py reads the variables."""

    dev: Path = Path("/dev")
    proc: Path = Path("/proc")
    query_driver: Callable[[], Driver | None] = query_driver

    def has_gpu(self) -> bool:
        """Return whether a GPU is attached to this machine or container.

        /dev/nvidiactl alone is none: containers have it with NVIDIA_VISIBLE_DEVICES=none. WSL has
        /dev/dxg for GPUs of all makers, and the library only for NVIDIA's.
        """
        try:
            names = [name for name in os.listdir(self.dev) if name.startswith("nvidia")]
        except OSError:
            return False
        if any(name.removeprefix("nvidia").isdecimal() for name in names):
            return True
        return (self.dev / "dxg").exists() and self.query_driver() is not None

    def driver_version(self) -> str | None:
        """Return the version of the driver in the kernel. None if there is none, and in WSL."""
        try:
            text = (self.proc / "driver" / "nvidia" / "version").read_text()
        except OSError:
            return None
        version = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
        return version and version[0]


THIS_HOST = Host()


def explain_missing_gpu(required: bool, torch_cuda: str | None, host: Host = THIS_HOST) -> None:
    """Report why torch sees no GPU. Returns if the CPU may be used instead.

    required: CLIP_DEVICE is "cuda". torch_cuda: the CUDA version that torch is built for.

    Raises SettingError if a GPU is there and not hidden on purpose, or if it is required. Logs a
    warning if one was probably meant to be used.
    """
    if not host.has_gpu():
        if required:
            raise SettingError(_no_gpu(host))
        if image_expects_gpu():
            log.warning(
                "WARNING: this container has no GPU: %s; start it with `docker run --gpus all`, or"
                " set CLIP_DEVICE=cpu to silence this",
                ON_CPU,
            )
    elif _is_hidden(visible_gpus()):
        hidden = f"CUDA_VISIBLE_DEVICES is {visible_gpus()!r}, which hides the GPU"
        if required:
            raise SettingError(f"CLIP_DEVICE is 'cuda', but {hidden}; unset one of the two")
        log.warning(
            "WARNING: %s: %s; unset it, or set CLIP_DEVICE=cpu to silence this", hidden, ON_CPU
        )
    else:
        raise SettingError(_unusable_gpu(host, torch_cuda))


def _is_hidden(visible: str | None) -> bool:
    """Return whether the value hides all GPUs on purpose. "NoDevFiles" is Slurm's, for none."""
    if visible is None:
        return False
    value = visible.strip().lower()
    return value.startswith("-") or value in ("", "none", "void", "nodevfiles")


def _no_gpu(host: Host) -> str:
    missing = "no device node /dev/nvidia0"
    if host.query_driver() is None:
        missing += f", no driver library {LIBRARY}"
    return (
        f"CLIP_DEVICE is 'cuda', but there is no GPU ({missing}); install the driver on the host,"
        " start a container with `docker run --gpus all`, or use 'cpu' or leave it unset"
    )


def _unusable_gpu(host: Host, torch_cuda: str | None) -> str:
    """Return a sentence on a GPU that is there, and that torch cannot use."""
    driver = host.query_driver()
    version = host.driver_version()
    if version is None and driver is not None:
        version = "for CUDA {}.{}".format(*driver.cuda)
    facts = [f"driver {version or 'unknown'}"]
    if driver is not None and driver.init_error:
        facts.append(f"cuInit returns {driver.init_error}")
    built = f"for CUDA {torch_cuda}" if torch_cuda else "without CUDA"
    return (
        f"there is a GPU ({', '.join(facts)}), but torch, built {built}, cannot use it:"
        f" {_cause(driver, torch_cuda, visible_gpus())}, or set CLIP_DEVICE=cpu"
    )


def _cause(driver: Driver | None, torch_cuda: str | None, visible: str | None) -> str:
    """Return the likeliest cause, and the way out."""
    if torch_cuda is None:
        return "install a torch built for CUDA"
    if driver is None:
        return (
            f"the driver's library {LIBRARY} cannot be loaded; install the driver, start a"
            " container with `docker run --gpus all` and NVIDIA_DRIVER_CAPABILITIES=all"
        )
    major = torch_cuda.partition(".")[0]
    if driver.cuda[0] and driver.cuda[0] < int(major):  # a stub does not say its version
        needed = NEEDED_DRIVER.get(major, f"a driver for CUDA {major}")
        return f"CUDA {major} needs {needed} or newer; update the driver"
    if driver.init_error == NO_DEVICE and visible is not None:
        return (
            f"CUDA_VISIBLE_DEVICES is {visible!r}, and no such GPU is here; unset it, correct it"
            " (the first GPU is 0)"
        )
    return INIT_ERRORS.get(
        driver.init_error, "the cause is not known; run nvidia-smi to see the state of the GPU"
    )
