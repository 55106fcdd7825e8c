"""torch, imported in less time: without what only tracing needs, its libraries loaded beforehand.

The last thing `import torch` does is to import `torch._meta_registrations`, and with it all of
torch's decompositions, references and primitives: Python kernels that compute the shapes of tensors
without data, for torch.compile and torch.export. A network that is only run never calls one. That
is a quarter of the import.

Another fifth is loading a gigabyte of C++ libraries. The import statement does that with the
interpreter's lock held, so that nothing else can run Python meanwhile; `load_libraries` does not.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import types

_TRACING = "torch._meta_registrations"


def load_libraries() -> None:
    """Load the libraries that `import torch` will need, while other threads run Python.

    Only a matter of speed: if they cannot be loaded, `import torch` says why. Not for a process
    that will use a GPU: torch chooses the order of CUDA's libraries with more care.
    """
    package = importlib.util.find_spec("torch")
    if package is None or not package.origin:
        return
    # Not ctypes.CDLL(path): that keeps the interpreter's lock while it loads.
    dlopen = ctypes.CDLL(None).dlopen
    dlopen.argtypes, dlopen.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_void_p
    folder = os.path.join(os.path.dirname(package.origin), "lib")
    for name, visible in (("libtorch_global_deps.so", os.RTLD_GLOBAL), ("libtorch.so", 0)):
        dlopen(os.fsencode(os.path.join(folder, name)), os.RTLD_NOW | visible)


def import_torch() -> None:
    """`import torch` without `torch._meta_registrations`.

    Whoever wants to trace in this process after all imports that first; until then torch._dynamo
    cannot be imported. Where torch is there already, or has no such part, this changes nothing.
    """
    if "torch" in sys.modules:
        return
    sys.modules[_TRACING] = types.ModuleType(_TRACING)
    try:
        import torch
    finally:
        del sys.modules[_TRACING]
    vars(torch).pop(_TRACING.rpartition(".")[2], None)
