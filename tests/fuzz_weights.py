"""Fuzz targets for what is parsed from the network: the manifest and the safetensors header.

TARGETS: by name, functions of bytes that may raise nothing but what they promise.
`python tests/fuzz_weights.py manifest -runs=100000` runs one under atheris.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from clip_embed.errors import ManifestError
from clip_embed.manifest import BLOCK_SIZE, ITEM_SIZE, Manifest, parse_safetensors_header


def manifest(data: bytes) -> None:
    """A manifest is consistent, or a ManifestError; what it names lies inside its prefix."""
    with contextlib.suppress(ManifestError):
        parsed = Manifest.parse(data, "somewhere")
        for file in parsed.files:
            assert "/" not in file.name
            assert not file.name.startswith(".")
            assert len(file.blocks) == -(-file.size // BLOCK_SIZE)
        assert Manifest.parse(parsed.to_json(), "somewhere") == parsed


def header(data: bytes) -> None:
    """Tensors tile the file, or a ManifestError. The first two bytes say how long the file is."""
    first = memoryview(data[2:])
    size = len(first) + int.from_bytes(data[:2], "little")
    with contextlib.suppress(ManifestError):
        infos = parse_safetensors_header(first, size, "somewhere")
        position = 8 + int.from_bytes(first[:8], "little")
        for info in infos:
            assert (info.start, info.dtype in ITEM_SIZE) == (position, True)
            assert all(side >= 0 for side in info.shape)
            position = info.end
        assert position == size


TARGETS = {"manifest": manifest, "header": header}

if __name__ == "__main__":
    import atheris

    atheris.instrument_all()
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
