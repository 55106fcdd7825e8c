"""Files that end too early are refused, whatever their decoder would make of them."""

from __future__ import annotations

import struct
import time
from io import BytesIO
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from clip_embed.errors import ImageError
from clip_embed.inputs.preprocess import preprocess_image
from clip_embed.inputs.truncation import find_tiff_truncation, find_truncation, webp_first_frame
from tests.helpers.bad_inputs.files import MEDIA_TYPES, encode, noise, plain, scene
from tests.helpers.sample_images import CONFIG


@pytest.fixture(scope="module")
def grid() -> bytes:
    """A HEIC of six tiles, as phones write it."""
    tile_size = pillow_heif.options.GRID_TILE_SIZE
    pillow_heif.options.GRID_TILE_SIZE = 128
    try:
        return encode(scene(300, 200), "HEIF", quality=80)
    finally:
        pillow_heif.options.GRID_TILE_SIZE = tile_size


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


# --- HEIC and AVIF --------------------------------------------------------------------------


@pytest.mark.parametrize("percent", [30, 50, 70, 90, 99])
def test_cut_heic_grid_is_refused(percent: int, grid: bytes) -> None:
    """libheif 1.21 and later would leave the missing tiles green."""
    cut = grid[: len(grid) * percent // 100]
    with pytest.raises(ImageError, match=r"^x\.heic is incomplete: .*; send the whole file$"):
        preprocess_image(BytesIO(cut), CONFIG, name="x.heic")


@pytest.mark.parametrize("name", ["heic", "avif"])
def test_bytes_after_a_heic_or_avif_are_allowed(name: str) -> None:
    """Phones append a video or their own data, which may be cut or look like a long box."""
    whole = preprocess_image(BytesIO(plain(name)), CONFIG).array
    for after in (b"\0", b"trailing bytes", bytes(99), box(b"mpvd", bytes(99))[:50]):
        array = preprocess_image(BytesIO(plain(name) + after), CONFIG).array
        np.testing.assert_array_equal(array, whole)


def test_box_sizes_of_64_bits_and_to_the_end_of_the_file_are_read() -> None:
    beginning = box(b"ftyp", b"heic")
    assert find_truncation(beginning + struct.pack(">I4s", 0, b"mdat") + bytes(9)) is None
    large = beginning + struct.pack(">I4sQ", 1, b"mdat", 16 + 9) + bytes(9)
    assert find_truncation(large) is None
    assert find_truncation(large[:-1]) == "its mdat box ends at byte 37, the file at byte 36"
    assert find_truncation(beginning + struct.pack(">I4s", 1, b"mdat")) is not None


@pytest.mark.parametrize(
    ("version", "item"),
    [
        (0, struct.pack(">HHHII", 1, 0, 1, 50, 99)),
        (1, struct.pack(">HHHHII", 1, 0, 0, 1, 50, 99)),
        (2, struct.pack(">IHHHII", 1, 0, 0, 1, 50, 99)),
    ],
)
def test_data_of_a_picture_behind_the_end_is_found(version: int, item: bytes) -> None:
    """The box of the data may end at the end of the file, wherever that is."""
    count = struct.pack(">I" if version == 2 else ">H", 1)
    location = box(b"iloc", bytes([version, 0, 0, 0, 0x44, 0]) + count + item)
    start = box(b"ftyp", b"heic") + box(b"meta", bytes(4) + location)
    start += struct.pack(">I4s", 0, b"mdat")
    assert find_truncation(start.ljust(149, b"\0")) is None
    assert find_truncation(start.ljust(148, b"\0")) == (
        "the data of its pictures ends at byte 149, the file at byte 148"
    )


def test_items_in_other_files_or_items_are_not_in_this_one() -> None:
    for method, reference in ((2, 0), (0, 1)):
        item = struct.pack(">HHHHII", 1, method, reference, 1, 50, 9_999)
        location = box(b"iloc", bytes([1, 0, 0, 0, 0x44, 0]) + struct.pack(">H", 1) + item)
        assert find_truncation(box(b"ftyp", b"heic") + box(b"meta", bytes(4) + location)) is None


def test_millions_of_declared_parts_take_no_time() -> None:
    """Extents without offset and length occupy no bytes."""
    items = struct.pack(">HHH", 1, 0, 65_535) * 65_535
    location = box(b"iloc", bytes(6) + struct.pack(">H", 65_535) + items)
    assert find_truncation(box(b"ftyp", b"heic") + box(b"meta", bytes(4) + location)) is None
    assert find_truncation(box(b"ftyp", b"heic") + box(b"free", b"") * 1_000_000) is None


# --- the other formats ----------------------------------------------------------------------


def test_cut_webp_is_refused() -> None:
    with pytest.raises(ImageError, match=r"^image is incomplete: its RIFF chunk ends at byte "):
        preprocess_image(BytesIO(plain("webp")[:-2]), CONFIG)
    assert find_truncation(plain("webp") + b"more") is None


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("extension", [*MEDIA_TYPES, "lzw.tif", "progressive.jpg"])
def test_file_cut_within_its_pixels_is_refused(extension: str) -> None:
    """The places are all over the file."""
    formats = {"lzw.tif": "TIFF", "progressive.jpg": "JPEG", "tif": "TIFF", "jpg": "JPEG"}
    format_name = formats.get(extension, "HEIF" if extension == "heic" else extension.upper())
    options: dict[str, dict[str, Any]] = {
        "lzw.tif": {"compression": "tiff_lzw"},
        "progressive.jpg": {"progressive": True},
    }
    whole = encode(noise(90, 60), format_name, **options.get(extension, {}))
    for length in np.linspace(20, len(whole) - 40, 15).astype(int):
        with pytest.raises(ImageError):
            preprocess_image(BytesIO(whole[:length]), CONFIG)


def test_compressed_strip_or_tile_behind_the_end_is_found() -> None:
    strips = {259: 5, 273: (8, 108), 279: (100, 50)}
    assert find_tiff_truncation(strips, 158) is None
    cut = "its last strip or tile ends at byte 158, the file at byte 157"
    assert find_tiff_truncation(strips, 157) == cut
    assert find_tiff_truncation({259: 8, 324: (8, 108), 325: (100, 50)}, 157) == cut


def test_uncompressed_strip_may_be_declared_too_long() -> None:
    """Old writers give the last strip the length of the others."""
    assert find_tiff_truncation({273: (8, 108), 279: (100, 100)}, 150) is None


# --- first frames ---------------------------------------------------------------------------


def animated_webp(canvas: int, x: int = 0) -> bytes:
    """Return an opaque animation of 64 × 64 pixels on a larger canvas."""
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    data = bytearray(
        encode(frames[0], "WEBP", lossless=True, save_all=True, append_images=frames[1:])
    )
    data[24:30] = (canvas - 1).to_bytes(3, "little") * 2
    frame = data.index(b"ANMF") + 8
    data[frame : frame + 3] = (x // 2).to_bytes(3, "little")
    return bytes(data)


def test_place_of_the_first_frame_of_a_webp_is_read() -> None:
    assert webp_first_frame(animated_webp(128, 32)) == (32, 0, 96, 64)
    assert webp_first_frame(plain("webp")) is None


def test_canvas_of_a_webp_is_white_outside_its_first_frame() -> None:
    """It is transparent there (RFC 9649); Pillow makes it black."""
    array = preprocess_image(BytesIO(animated_webp(224, 32)), CONFIG).array
    assert (array[:64, 32:96] == [255, 0, 0]).all()
    assert (array[:, :32] == 255).all()
    assert (array[:, 96:] == 255).all()
    assert (array[64:] == 255).all()


@pytest.mark.parametrize("transparency", [{}, {"transparency": 3}])
def test_canvas_of_a_gif_is_white_outside_its_first_frame(transparency: dict[str, int]) -> None:
    """It is transparent there, as in browsers; Pillow gives it color 0."""
    frame = Image.new("P", (64, 64), 1)
    frame.putpalette([0, 0, 255, 255, 0, 0, 0, 255, 0, 9, 9, 9])
    data = encode(frame, "GIF", **transparency)
    start = data.index(b"\x2c\0\0\0\0") + 1
    data = (
        data[:6] + struct.pack("<HH", 224, 224) + data[10:start] + b"\x20\0\0\0" + data[start + 4 :]
    )
    array = preprocess_image(BytesIO(data), CONFIG).array
    assert (array[:64, 32:96] == [255, 0, 0]).all()
    assert (array[:, :32] == 255).all()
    assert (array[:, 96:] == 255).all()
    assert (array[64:] == 255).all()


def test_time_for_many_boxes_is_bounded() -> None:
    """One `meta` box is read: thousands may claim to hold the same thousands of extents."""
    extents = 10_000
    entry = struct.pack(">HHHH", 1, 0, extents, 0)
    iloc = struct.pack(">IBBBBH", 0, 0, 0x11, 0x00, 0, 1)[:8] + struct.pack(">H", 1) + entry
    children = box(b"iloc", iloc + bytes(2 * extents))
    data = box(b"ftyp", b"heic" + bytes(4)) + box(b"meta", bytes(4) + children) * 200
    begin = time.process_time()
    find_truncation(data)
    assert time.process_time() - begin < 1
