"""Fuzz targets for what strangers send: manifest and safetensors header, images and texts.

TARGETS: by name, functions of bytes that may raise nothing but what they promise.
`python tests/fuzz.py image -max_total_time=300` runs one under atheris; images and texts begin with
those of `hurtful.py`. What is written in C is not instrumented: there the fuzzer is blind, and only
sees what comes of it.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import numpy as np

if __name__ == "__main__":
    import atheris

    # Of what these import: the rest would be instrumented for minutes and to no end.
    watched: contextlib.AbstractContextManager[object] = atheris.instrument_imports(
        include=["clip_embed", "PIL", "pillow_heif", "ftfy", "html"]
    )
else:
    watched = contextlib.nullcontext()

with watched:
    from PIL import Image

    from clip_embed import image as images
    from clip_embed import text as texts
    from clip_embed.errors import ImageError, ManifestError, TextError
    from clip_embed.manifest import BLOCK_SIZE, ITEM_SIZE, Manifest, parse_safetensors_header

from publish_weights import tokenizer_json  # after them: it imports most of them

SIZE = 224
PREPROCESSING = images.Preprocessing(SIZE, (0.5,) * 3, (0.25,) * 3, Image.Resampling.BICUBIC)
# Small, so that time goes into variety and not into pixels.
MAX_PIXELS = 200_000
CONTEXT_LENGTH = 77

_FOLDER = tempfile.TemporaryDirectory()
_FILE = Path(_FOLDER.name, "picture")
TOKENIZER = texts.Tokenizer(tokenizer_json(), CONTEXT_LENGTH)
_START, _END = TOKENIZER.tokenize("a").ids[[0, -1]]


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


def image(data: bytes) -> None:
    """A file is a square of pixels, or an ImageError: one sentence, with the name and a way out."""
    _FILE.write_bytes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pixels = images.prepare(_FILE, PREPROCESSING, MAX_PIXELS)
    except ImageError as error:
        said = str(error)
        assert said.startswith("picture ")
        assert "; send " in said or "; save " in said
        assert "\n" not in said
        assert len(said) < 500
    else:
        assert (pixels.array.shape, pixels.array.dtype) == ((SIZE, SIZE, 3), np.uint8)
        assert 0 < pixels.width * pixels.height <= MAX_PIXELS


def text(data: bytes) -> None:
    """A text, lone surrogates included, is ids from start to end, or a TextError."""
    try:
        string = data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        string = data.decode("utf-8", "replace")
    try:
        tokens = TOKENIZER.tokenize(string)
    except TextError:
        assert not texts.clean(string)
        return
    ids = tokens.ids
    assert ids.dtype == np.int64
    assert 2 <= len(ids) <= CONTEXT_LENGTH
    assert (ids[0], ids[-1], ids[tokens.end]) == (_START, _END, _END)
    assert not (ids[: tokens.end] == _END).any()
    assert tokens.truncated <= (len(ids) == CONTEXT_LENGTH)
    assert ids.min() >= 0
    assert ids.max() <= _END


TARGETS = {"manifest": manifest, "header": header, "image": image, "text": text}


def seeds(target: str) -> Iterator[bytes]:
    """What the fuzzer begins with: the hurtful inputs that are short."""
    import hurtful

    if target == "image":
        yield from (case.content for case in hurtful.images() if len(case.content) < 20_000)
    elif target == "text":
        for case in hurtful.texts():
            yield case.content[:2_000].encode("utf-8", "surrogatepass")


def main(target: str, options: list[str]) -> None:
    """Fuzz one target; options are libFuzzer's."""
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds(target)):
            Path(corpus, str(number)).write_bytes(seed)
        atheris.Setup([sys.argv[0], "-max_len=20000", *options, corpus], TARGETS[target])
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
