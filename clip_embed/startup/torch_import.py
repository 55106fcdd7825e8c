"""Import torch in less time: without the part for tracing, and with its libraries preloaded.

`import torch` ends with `torch._meta_registrations`, which imports torch's decompositions,
references and primitives: Python kernels that compute the shapes of tensors without data, for
torch.compile and torch.export. A network that only runs never calls one, and they are a quarter of
the import (torch 2.14.1).

Another fifth is loading a gigabyte of C++ libraries. The import statement does that with the
interpreter lock held, so no other thread can run Python meanwhile; `load_libraries` releases it.

All of this can be replaced by a plain `import torch`; only the start gets slower.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import types

_TRACING = "torch._meta_registrations"


def gpu_is_likely(device: str | None) -> bool:
    """Guess, before torch can tell, whether a GPU will be used. device: as in CLIP_DEVICE."""
    return device == "cuda" or (device != "cpu" and os.path.exists("/dev/nvidiactl"))


def load_libraries() -> None:
    """Load the shared libraries of torch while other threads run Python.

    If they cannot be loaded, `import torch` reports why. On macOS their names end in .dylib, and
    `import torch` loads them.
    """
    package = importlib.util.find_spec("torch")
    if package is None or not package.origin:
        return
    # ctypes.CDLL(path) would keep the interpreter lock while it loads; calling dlopen does not.
    dlopen = ctypes.CDLL(None).dlopen
    dlopen.argtypes, dlopen.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_void_p
    folder = os.path.join(os.path.dirname(package.origin), "lib")
    for name, visible in (("libtorch_global_deps.so", os.RTLD_GLOBAL), ("libtorch.so", 0)):
        dlopen(os.fsencode(os.path.join(folder, name)), os.RTLD_NOW | visible)


def import_torch() -> None:
    """Import torch without `torch._meta_registrations`.

    To use torch.compile or torch.export in this process, import torch._meta_registrations first;
    until then torch._dynamo cannot be imported. If torch is imported already, or has no such
    module, nothing changes.
    """
    if "torch" in sys.modules:
        return
    sys.modules[_TRACING] = types.ModuleType(_TRACING)
    try:
        import torch
    finally:
        del sys.modules[_TRACING]
    vars(torch).pop(_TRACING.rpartition(".")[2], None)
