"""Choose the device of the network, and its precision there."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch

from clip_embed.errors import SettingError
from clip_embed.model.gpu_diagnosis import THIS_HOST, Host, explain_missing_gpu

WORKING_BYTES = 750_000_000
"""GPU memory beside the weights: CUDA graphs, activations, and the kernels that are loaded. 0.70 GB
on an H100, after CUDA's own 0.55 GB, which are taken before free memory is read."""


def choose_device(wanted: str | None, host: Host = THIS_HOST) -> torch.device:
    """Return the device `wanted` ("cuda" or "cpu", from CLIP_DEVICE), or the GPU if there is one.

    Raises SettingError for any other name, for "cuda" if there is no GPU, and for a GPU that torch
    cannot use unless `wanted` is "cpu".
    """
    if wanted not in (None, "cuda", "cpu"):
        raise SettingError(f"CLIP_DEVICE is {wanted!r}; use 'cuda' or 'cpu', or leave it unset")
    if wanted != "cpu":
        if torch.cuda.is_available():
            _check_kernels()
            return torch.device("cuda")
        explain_missing_gpu(wanted == "cuda", torch.version.cuda, host)
    return torch.device("cpu")


def check_memory(device: torch.device, weight_bytes: int) -> None:
    """Raise SettingError unless a GPU has memory for the weights and for predictions.

    Nothing is checked on a CPU. The first call in a process takes as long as CUDA needs to start.
    """
    if device.type != "cuda":
        return
    with gpu_errors():
        free, total = torch.cuda.mem_get_info(device)
    needed = weight_bytes + WORKING_BYTES
    if free < needed:
        raise SettingError(
            f"{free / 1e9:.2f} GB of the GPU's {total / 1e9:.2f} GB are free, and the model needs"
            f" {needed / 1e9:.2f} GB; end other processes that use it (nvidia-smi lists them),"
            " choose another GPU with CUDA_VISIBLE_DEVICES, or set CLIP_DEVICE=cpu"
        )


def choose_dtype(device: torch.device) -> torch.dtype:
    """Return float16 for a GPU, float32 for a CPU.

    float16 is what a GPU's tensor cores take and what OpenAI released the weights in; on a CPU
    anything narrower than float32 is slower.
    """
    return torch.float16 if device.type == "cuda" else torch.float32


def _check_kernels() -> None:
    """Raise SettingError if this torch has no kernels for the GPU's generation."""
    architectures = torch.cuda.get_arch_list()
    with gpu_errors():
        capability = torch.cuda.get_device_capability()
        name = torch.cuda.get_device_name()
    if architectures and not any(_runs_on(each, capability) for each in architectures):
        raise SettingError(
            f"the GPU {name} has compute capability {capability[0]}.{capability[1]}, and torch"
            f" {torch.__version__} has kernels for {', '.join(architectures)} only; choose another"
            " GPU (with CUDA_VISIBLE_DEVICES, if there are several), or set CLIP_DEVICE=cpu"
        )


def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Return whether kernels for `architecture`, as "sm_86", run on a GPU of this capability.

    sm_ is machine code, for this and later minors of its major. compute_ is PTX, which the driver
    compiles for anything newer. The suffix "a" binds both to one capability, "f" to one major.
    Source: NVIDIA, "CUDA Programming Guide", the CUDA platform.
    """
    match = re.fullmatch(r"(sm|compute)_(\d+)(\w?)", architecture)
    if match is None:
        return True  # such as AMD's gfx90a: not known here
    kind, number, suffix = match.groups()
    built = divmod(int(number), 10)
    if suffix == "a":
        return capability == built
    if kind == "compute" and not suffix:
        return capability >= built
    return capability[0] == built[0] and capability >= built


@contextlib.contextmanager
def gpu_errors() -> Iterator[None]:
    """Turn CUDA's errors in the `with` body into SettingError: the GPU fails, is full, or another
    process holds it. For setup only."""
    try:
        yield
    except (RuntimeError, torch.cuda.DeferredCudaCallError) as error:
        if "CUDA" not in str(error) and "NVIDIA" not in str(error):
            raise  # of a thread, or of a CPU's memory
        # torch's further lines are advice on debugging kernels.
        first_line, _, _ = str(error).partition("\n")
        raise SettingError(
            f"the GPU cannot be used: {first_line}; see its processes, compute mode and state with"
            " nvidia-smi, or set CLIP_DEVICE=cpu"
        ) from error
