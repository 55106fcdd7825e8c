"""A CUDA kernel for the captured towers: the addition of a residual, and the layer normalization
that follows it.

As two operations of torch (2.11, H100) they read and write GPU memory twice, the second operation
at half of the memory's speed, and take 15% of the time of a large batch of images. Without this
module the towers give the same vectors except for rounding, texts take 6 to 12% longer, and the
images of catalogs 7 to 9% (docs/gpu.md).

The kernel is compiled when the service starts, by the NVRTC that torch has loaded, for any GPU that
this NVRTC knows. `torch.cuda._compile_kernel` does the same; it is private, and imports setuptools,
which the image lacks.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_embed.model.config import ClipConfig

log = logging.getLogger("clip_embed.model")

EPSILON = 1e-5
"""As in torch.nn.functional.layer_norm."""

ROWS_PER_BLOCK = 8
VALUES_PER_STEP = 256
"""A warp reads 32 times 16 bytes at a time, so the width must be a multiple of this."""

_SOURCE = """
struct alignas(16) Eight { unsigned short half[8]; };

__device__ float to_float(unsigned short half) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
    return value;
}

__device__ unsigned short to_half(float value) {
    unsigned short half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
}

__device__ float sum_of_warp(float value) {
    for (int distance = 16; distance > 0; distance /= 2)
        value += __shfl_xor_sync(0xffffffff, value, distance);
    return value;
}

// One warp per row, whose values stay in registers. sum = x + update, rounded to float16;
// normed is computed from the rounded sum, in float32.
template <int WIDTH>
__device__ void add_layer_norm(const Eight* x, const Eight* update, const Eight* weight,
                               const Eight* bias, Eight* sum, Eight* normed, int rows) {
    constexpr int STEPS = WIDTH / 256;
    int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    int lane = threadIdx.x % 32;
    long long start = (long long)row * (WIDTH / 8) + lane;
    float values[STEPS][8];
    float total = 0;
    for (int step = 0; step < STEPS; step++) {
        Eight a = x[start + step * 32], b = update[start + step * 32], added;
        for (int i = 0; i < 8; i++) {
            added.half[i] = to_half(to_float(a.half[i]) + to_float(b.half[i]));
            values[step][i] = to_float(added.half[i]);
            total += values[step][i];
        }
        sum[start + step * 32] = added;
    }
    float mean = sum_of_warp(total) / WIDTH;
    float squares = 0;
    for (int step = 0; step < STEPS; step++)
        for (int i = 0; i < 8; i++) {
            values[step][i] -= mean;
            squares += values[step][i] * values[step][i];
        }
    float scale = rsqrtf(sum_of_warp(squares) / WIDTH + EPSILON);
    for (int step = 0; step < STEPS; step++) {
        Eight w = weight[lane + step * 32], b = bias[lane + step * 32], out;
        for (int i = 0; i < 8; i++)
            out.half[i] = to_half(values[step][i] * scale * to_float(w.half[i])
                                  + to_float(b.half[i]));
        normed[start + step * 32] = out;
    }
}
"""

_KERNEL = """
extern "C" __global__ void add_layer_norm_%(width)d(
    const Eight* x, const Eight* update, const Eight* weight, const Eight* bias,
    Eight* sum, Eight* normed, int rows) {
    add_layer_norm<%(width)d>(x, update, weight, bias, sum, normed, rows);
}
"""


def compile_add_layer_norm(config: ClipConfig, device: torch.device) -> AddLayerNormKernel | None:
    """Return the kernel for both towers on a GPU; None, and a warning, if it does not work there.

    Also None on a CPU, with a torch that is not built for CUDA, and for widths that it does not
    support. Raises RuntimeError if it has made the GPU unusable for this process.
    """
    widths = {config.vision.width, config.text.width}
    if device.type != "cuda" or not torch.version.cuda:
        return None
    if any(width % VALUES_PER_STEP for width in widths):
        return None
    try:
        kernel = AddLayerNormKernel(sorted(widths), device)
        kernel.verify()
    except (RuntimeError, OSError, AttributeError) as error:
        log.warning(
            "addition and layer normalization run one after the other, which is up to 12%% slower:"
            " %s",
            str(error).partition("\n")[0],
        )
        if isinstance(error, RuntimeError):
            _raise_if_unusable(device)
        return None
    return kernel


def _raise_if_unusable(device: torch.device) -> None:
    """Raise RuntimeError if the kernel has failed such that CUDA refuses every later call."""
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        raise RuntimeError(
            f"the kernel of {__name__} has failed on this GPU: {error}; report it, with the name of"
            " the GPU"
        ) from error


class AddLayerNormKernel:
    """Compute x + update and its layer normalization, for float16 on one GPU.

    Raises RuntimeError if the kernel cannot be compiled, loaded or launched.
    """

    def __init__(self, widths: Sequence[int], device: torch.device) -> None:
        """Compile the kernel for rows of these widths."""
        self._device = device
        self._driver = ctypes.CDLL("libcuda.so.1")
        torch.cuda.synchronize(device)  # makes CUDA's context current in this thread
        module = ctypes.c_void_p()
        major, minor = torch.cuda.get_device_capability(device)
        binary = compile_for(f"sm_{major}{minor}", widths)
        self._check(self._driver.cuModuleLoadData(ctypes.byref(module), binary))
        self._kernels: dict[int, ctypes.c_void_p] = {}
        for width in widths:
            kernel = ctypes.c_void_p()
            name = b"add_layer_norm_%d" % width
            self._check(self._driver.cuModuleGetFunction(ctypes.byref(kernel), module, name))
            self._kernels[width] = kernel

    def __call__(
        self, x: Tensor, update: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return x + update and its layer normalization, as two new tensors of x's shape.

        All are float16 and aligned to 16 bytes, and x is not empty.
        """
        x, update = x.contiguous(), update.contiguous()
        self._check_arguments(x, update, weight, bias)
        total, normed = torch.empty_like(x), torch.empty_like(x)
        rows = x.numel() // x.shape[-1]
        tensors = (x, update, weight, bias, total, normed)
        arguments: list[Any] = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
        arguments.append(ctypes.c_int(rows))
        pointers = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        blocks = -(-rows // ROWS_PER_BLOCK)
        stream = ctypes.c_void_p(torch.cuda.current_stream(x.device).cuda_stream)
        self._check(
            self._driver.cuLaunchKernel(
                self._kernels[x.shape[-1]],
                *(blocks, 1, 1),
                *(32 * ROWS_PER_BLOCK, 1, 1),
                0,  # bytes of shared memory
                stream,
                pointers,
                None,
            )
        )
        return total, normed

    def _check_arguments(self, x: Tensor, update: Tensor, weight: Tensor, bias: Tensor) -> None:
        """Raise RuntimeError for tensors that the kernel would misread."""
        if x.shape[-1] not in self._kernels or x.shape != update.shape or not x.numel():
            raise RuntimeError(f"no kernel for {list(x.shape)} and {list(update.shape)}")
        for tensor in (x, update, weight, bias):
            if tensor.dtype != torch.float16 or tensor.data_ptr() % 16:
                raise RuntimeError("a tensor is not float16, or not aligned to 16 bytes")

    @torch.inference_mode()
    def verify(self) -> None:
        """Raise RuntimeError if the kernel does not compute what torch does on the CPU."""
        generator = torch.Generator().manual_seed(0)
        for width in self._kernels:
            x, update, (weight, bias) = (
                torch.randn(rows, width, dtype=torch.float16, generator=generator)
                for rows in (ROWS_PER_BLOCK + 1, ROWS_PER_BLOCK + 1, 2)
            )
            x[0], update[0] = x[0] / 300, update[0] / 300  # so small that EPSILON matters
            tensors = (tensor.to(self._device) for tensor in (x, update, weight, bias))
            total, normed = (tensor.cpu() for tensor in self(*tensors))
            expected = F.layer_norm(x + update, (width,), weight, bias)
            if not (
                torch.equal(total, x + update)
                and torch.allclose(normed, expected, rtol=2e-3, atol=2e-3)
            ):
                raise RuntimeError("its values differ from torch's")

    @staticmethod
    def _check(error: int) -> None:
        if error:
            raise RuntimeError(f"the CUDA driver answers {error}")


def compile_for(architecture: str, widths: Sequence[int]) -> bytes:
    """Return the machine code of the kernels. architecture: such as "sm_90". Needs no GPU."""
    assert torch.version.cuda is not None
    nvrtc = ctypes.CDLL(f"libnvrtc.so.{torch.version.cuda.partition('.')[0]}")
    source = _SOURCE + "".join(_KERNEL % {"width": width} for width in widths)
    options = [f"--gpu-architecture={architecture}".encode(), b"-DEPSILON=%ef" % EPSILON]
    program = ctypes.c_void_p()
    size = ctypes.c_size_t()

    def check(error: int) -> None:
        if error:
            raise RuntimeError(f"NVRTC answers {error}")

    check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), None, 0, None, None))
    try:
        check(
            nvrtc.nvrtcCompileProgram(
                program, len(options), (ctypes.c_char_p * len(options))(*options)
            )
        )
        check(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)))
        binary = ctypes.create_string_buffer(size.value)
        check(nvrtc.nvrtcGetCUBIN(program, binary))
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return binary.raw
