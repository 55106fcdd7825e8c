"""Start CUDA in the background: create its context while torch is imported, and load cuBLAS while
the weights are copied.

torch would do both at their first use, which takes 0.4 s on an H100.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

log = logging.getLogger("clip_embed.startup")


def create_context() -> None:
    """Create the CUDA context of the first GPU, in a background thread; torch will find it.

    A failure is only logged: torch meets it too, and reports it.
    """
    threading.Thread(target=_create_context, name="cuda-context", daemon=True).start()


def _create_context() -> None:
    device, context = ctypes.c_int(), ctypes.c_void_p()
    try:
        driver = ctypes.CDLL("libcuda.so.1")  # calls through it release the interpreter lock
        for function, arguments in (
            ("cuInit", (0,)),
            ("cuDeviceGet", (ctypes.byref(device), 0)),
            ("cuDevicePrimaryCtxRetain", (ctypes.byref(context), device)),
        ):
            if error := getattr(driver, function)(*arguments):
                log.debug("%s returned %d", function, error)
                return
    except (OSError, AttributeError) as error:
        log.debug("no CUDA driver: %r", error)


def load_cublas(device: torch.device) -> None:
    """Run a small matrix product on a GPU, which loads cuBLAS: 0.1 s."""
    import torch

    if device.type == "cuda":
        x = torch.zeros(8, 8, dtype=torch.float16, device=device)
        torch.nn.functional.linear(x, x, x[0])
