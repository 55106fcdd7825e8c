"""A JPEG without its end-of-image marker is completed if every pixel is there."""

from __future__ import annotations

import struct
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clip_embed.errors import ImageError
from clip_embed.inputs.jpeg_end_marker import append_missing_eoi, has_all_scans
from clip_embed.inputs.preprocess import preprocess_image
from tests.helpers.bad_inputs.files import encode, noise, plain, scene
from tests.helpers.sample_images import CONFIG

ENCODERS: list[dict[str, Any]] = [
    {"quality": 10},
    {"quality": 75},
    {"quality": 95, "subsampling": 0},
    {"optimize": True},
    {"progressive": True},
    {"restart_marker_blocks": 3},
]
PICTURES = {
    "noise": noise(90, 61),
    "scene": scene(200, 133),
    "gray": scene().convert("L"),
    "CMYK": scene().convert("CMYK"),
    "flat": Image.new("RGB", (100, 75), "teal"),
}


@pytest.mark.parametrize("options", ENCODERS, ids=str)
@pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES)
def test_only_the_last_marker_may_be_missing(
    picture: Image.Image, options: dict[str, Any], tmp_path: Path
) -> None:
    """A file cut earlier is refused, or has the same pixels: its last bits may say nothing."""
    whole = encode(picture, "JPEG", **options)
    pixels = preprocess_image(BytesIO(whole), CONFIG).array
    for missing in (1, 2):
        (tmp_path / "x.jpg").write_bytes(whole[:-missing])
        np.testing.assert_array_equal(preprocess_image(tmp_path / "x.jpg", CONFIG).array, pixels)
    refused = 0
    for missing in range(3, 40, 3):
        try:
            array = preprocess_image(BytesIO(whole[:-missing]), CONFIG).array
        except ImageError as error:
            assert "truncated" in str(error)  # noqa: PT017
            refused += 1
        else:
            np.testing.assert_array_equal(array, pixels)
    assert refused >= 11


def test_jpeg_with_its_last_marker_or_of_another_format_is_not_completed() -> None:
    assert append_missing_eoi(plain("jpg")) is None
    assert append_missing_eoi(plain("png")) is None
    assert append_missing_eoi(b"\xff\xd8\xff") is None


def test_progressive_jpeg_cut_between_two_scans_is_refused() -> None:
    """All bits of the scans before are there; those of the next ones are not."""
    whole = plain("progressive.jpg")
    assert has_all_scans(whole)
    scan = whole.index(b"\xff\xda") + 1
    cuts = 0
    while (scan := whole.find(b"\xff\xda", scan + 1)) >= 0:
        before = whole.rfind(b"\xff\xc4", 0, scan)  # its tables stand before a scan
        for end in (scan, before):
            if end > whole.index(b"\xff\xda"):
                assert not has_all_scans(whole[:end])
                assert append_missing_eoi(whole[:end]) is None
                cuts += 1
    assert cuts >= 9


def test_fast_jpeg_completes_a_file_too() -> None:
    whole = encode(scene(), "JPEG")
    array = preprocess_image(BytesIO(whole[:-2]), CONFIG, fast_jpeg=True).array
    np.testing.assert_array_equal(array, preprocess_image(BytesIO(whole), CONFIG).array)


def test_time_for_many_scans_is_bounded() -> None:
    """A scan may claim 255 components, and a file may hold a scan in every few bytes."""
    scan = b"\xff\xda" + struct.pack(">HB", 516, 255) + bytes(510) + b"\0\xff\0"
    begin = time.process_time()
    assert not has_all_scans(b"\xff\xd8" + scan * 20_000)
    assert time.process_time() - begin < 1
