"""torch, imported without what only tracing needs: a quarter of the time its import takes.

The last thing `import torch` does is to import `torch._meta_registrations`, and with it all of
torch's decompositions, references and primitives: Python kernels that compute the shapes of tensors
without data, for torch.compile and torch.export. A network that is only run never calls one.
"""

from __future__ import annotations

import sys
import types

_TRACING = "torch._meta_registrations"


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
