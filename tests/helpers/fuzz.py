"""Fuzz targets for input from outside: manifests, safetensors headers, images and texts.

TARGETS maps names to functions of bytes that raise an error only if the code under test is wrong.
`python tests/helpers/fuzz.py image -max_total_time=300` runs one of them under atheris. Images and
texts start from those of `bad_inputs`. C code is not instrumented: only its results are seen.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    import atheris

    # atheris instruments modules while they are imported. Everything else would take minutes.
    instrumented: contextlib.AbstractContextManager[object] = atheris.instrument_imports(
        include=["clip_embed", "PIL", "pillow_heif", "ftfy", "html"]
    )
else:
    instrumented = contextlib.nullcontext()

with instrumented:
    from PIL import Image

    from clip_embed.checkpoint.manifest import BLOCK_SIZE, Manifest
    from clip_embed.checkpoint.safetensors_header import ITEM_SIZE, parse_safetensors_header
    from clip_embed.errors import ImageError, ManifestError, TextError
    from clip_embed.inputs.preprocess import PreprocessConfig, preprocess_image
    from clip_embed.inputs.tokenizer import Tokenizer, clean_text

    # These import the modules above, and are not instrumented themselves.
    from tests.helpers.bad_inputs import images, texts
    from tests.helpers.paths import DEMO_MODEL

SIZE = 224
CONFIG = PreprocessConfig(SIZE, (0.5,) * 3, (0.25,) * 3, Image.Resampling.BICUBIC)
MAX_PIXELS = 200_000  # small images leave time for more of them
CONTEXT_LENGTH = 77

_directory = tempfile.TemporaryDirectory()
_path = Path(_directory.name, "picture")
TOKENIZER = Tokenizer((DEMO_MODEL / "tokenizer.json").read_bytes(), CONTEXT_LENGTH)
_START, _END = TOKENIZER.tokenize("a").ids[[0, -1]]


def manifest(data: bytes) -> None:
    """Parse a manifest: it is consistent and names plain files, or a ManifestError is raised."""
    with contextlib.suppress(ManifestError):
        parsed = Manifest.parse(data, "somewhere")
        for file in parsed.files:
            assert "/" not in file.name
            assert not file.name.startswith(".")
            assert len(file.blocks) == -(-file.size // BLOCK_SIZE)
        assert Manifest.parse(parsed.to_json(), "somewhere") == parsed


def header(data: bytes) -> None:
    """Parse a header: the tensors tile the file, or a ManifestError is raised.

    data: the first two bytes are the number of bytes in the file after the header.
    """
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
    """Preprocess a file: the result is a square, or an ImageError of one sentence is raised."""
    _path.write_bytes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pixels = preprocess_image(_path, CONFIG, MAX_PIXELS)
    except ImageError as error:
        message = str(error)
        assert message.startswith("picture ")
        assert "; send " in message or "; save " in message
        assert "\n" not in message
        assert len(message) < 500
    else:
        assert (pixels.array.shape, pixels.array.dtype) == ((SIZE, SIZE, 3), np.uint8)
        assert 0 < pixels.width * pixels.height <= MAX_PIXELS


def text(data: bytes) -> None:
    """Tokenize a text, lone surrogates included: the ids are valid, or a TextError is raised."""
    try:
        string = data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        string = data.decode("utf-8", "replace")
    try:
        tokens = TOKENIZER.tokenize(string)
    except TextError:
        assert not clean_text(string)
        return
    ids = tokens.ids
    assert ids.dtype == np.int64
    assert 2 <= len(ids) <= CONTEXT_LENGTH
    assert (ids[0], ids[-1], ids[tokens.eot_index]) == (_START, _END, _END)
    assert not (ids[: tokens.eot_index] == _END).any()
    assert tokens.truncated <= (len(ids) == CONTEXT_LENGTH)
    assert ids.min() >= 0
    assert ids.max() <= _END


TARGETS = {"manifest": manifest, "header": header, "image": image, "text": text}


def seeds(target: str) -> Iterator[bytes]:
    """Yield the inputs from which the fuzzer starts: the short ones of `bad_inputs`."""
    if target == "image":
        yield from (case.content for case in images.cases() if len(case.content) < 20_000)
    elif target == "text":
        for case in texts.cases():
            yield case.content[:2_000].encode("utf-8", "surrogatepass")


def main(target: str, options: list[str]) -> None:
    """Fuzz one target. options: libFuzzer's."""
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds(target)):
            Path(corpus, str(number)).write_bytes(seed)
        atheris.Setup([sys.argv[0], "-max_len=20000", *options, corpus], TARGETS[target])
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
