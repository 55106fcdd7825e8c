"""Hide installed packages from `import` unless the image has them.

Python imports this module at startup if its directory is on PYTHONPATH. IMAGE_PACKAGES names the
distributions that the image has, separated by spaces.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import sysconfig
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_SITE_PACKAGES = sysconfig.get_path("purelib")
_VISIBLE = {
    os.path.join(_SITE_PACKAGES, file)
    for name in os.environ["IMAGE_PACKAGES"].split()
    for file in importlib.metadata.files(name) or []
}


class VisibleFinder(PathFinder):
    """Finds modules like PathFinder, but none of a package that the image lacks."""

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = super().find_spec(name, path, target)
        file = spec.origin if spec is not None else None
        if file is not None and file.startswith(_SITE_PACKAGES) and file not in _VISIBLE:
            return None
        return spec


sys.meta_path[sys.meta_path.index(PathFinder)] = VisibleFinder
