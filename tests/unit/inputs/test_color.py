"""Orientation, transparency and pixel types of image files become upright 8-bit RGB."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from clip_embed.errors import ImageError
from clip_embed.inputs.preprocess import preprocess_image
from tests.helpers.bad_inputs import files
from tests.helpers.sample_images import (
    CONFIG,
    SIZE,
    Array,
    assert_equal,
    assert_similar,
    gray,
    max_difference,
    noise,
    save_and_preprocess,
    scene,
)

# --- EXIF orientation -----------------------------------------------------------------------

ORIENTATION = 0x0112

# EXIF orientation → how a camera stores the rows and columns of an upright picture. The comments
# say at which side of the upright picture row 0 and column 0 belong (CIPA DC-008, tag 0x0112).
STORE: Mapping[int, Callable[[Array], Array]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],  # top, right
    3: lambda upright: upright[::-1, ::-1],  # bottom, right
    4: lambda upright: upright[::-1],  # bottom, left
    5: lambda upright: upright.transpose(1, 0, 2),  # left, top
    6: lambda upright: upright.transpose(1, 0, 2)[::-1],  # right, top
    7: lambda upright: upright.transpose(1, 0, 2)[::-1, ::-1],  # right, bottom
    8: lambda upright: upright.transpose(1, 0, 2)[:, ::-1],  # left, bottom
}


def stored_scene(orientation: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(STORE[orientation](np.asarray(scene()))))


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


@pytest.mark.parametrize("orientation", STORE)
@pytest.mark.parametrize("name", ["photo.png", "photo.webp", "photo.tif"])
def test_orientation_is_applied(name: str, orientation: int, tmp_path: Path) -> None:
    """Width and height are those of the upright picture."""
    options = {"lossless": True} if name.endswith("webp") else {}
    pixels = save_and_preprocess(
        stored_scene(orientation), tmp_path / name, exif=exif(orientation), **options
    )
    assert_equal(pixels, scene())
    assert (pixels.width, pixels.height) == scene().size


@pytest.mark.parametrize("orientation", STORE)
@pytest.mark.parametrize("name", ["photo.jpg", "photo.avif", "photo.heic"])
def test_orientation_of_lossy_formats_is_applied_once(
    name: str, orientation: int, tmp_path: Path
) -> None:
    """HEIC and AVIF have an orientation in their container, which decoders apply; HEIC has it in
    EXIF as well."""
    picture, tags = stored_scene(orientation), exif(orientation).tobytes()
    pixels = save_and_preprocess(picture, tmp_path / name, exif=tags)
    assert_similar(pixels, scene())
    assert (pixels.width, pixels.height) == scene().size


def test_orientation_of_avif_in_container_and_exif_is_applied_once(tmp_path: Path) -> None:
    path = tmp_path / "photo.avif"
    tags = exif(6)
    # Pillow moves the orientation to the container, so write another tag and rename it afterwards.
    tags[ORIENTATION + 1] = 6
    stored_scene(6).save(path, exif=tags, quality=90)
    data = path.read_bytes()
    assert data.count(b"\x01\x13\x00\x03") == 1
    path.write_bytes(data.replace(b"\x01\x13\x00\x03", b"\x01\x12\x00\x03"))
    assert_similar(preprocess_image(path, CONFIG), scene())


def test_orientation_of_heic_in_exif_alone_is_ignored(tmp_path: Path) -> None:
    """In HEIC the container decides (ISO/IEC 23008-12)."""
    path = tmp_path / "photo.heic"
    pixels = save_and_preprocess(scene(), path, exif=exif(6))  # an object stays in EXIF
    data = path.read_bytes()
    assert b"Exif" in data
    assert b"irot" not in data
    assert_similar(pixels, scene())


TIFF_HEADER = b"Exif\0\0MM\0*\0\0\0\x08"


@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param(b"Exif\0\0junk", id="not a TIFF"),
        pytest.param(b"no EXIF at all", id="not EXIF"),
        pytest.param(TIFF_HEADER + b"\0\x05\x01\x12", id="ends within the first of five tags"),
        pytest.param(
            TIFF_HEADER + b"\0\1\x01\x12\0\x03\0\0\xff\xff\0\6\0\6\0\0\0\0",
            id="65,535 orientations",
        ),
        pytest.param(
            TIFF_HEADER + b"\0\1\x01\x12\0\x03\0\0\0\1\0\x63\0\0\0\0\0\0", id="orientation 99"
        ),
        pytest.param(
            TIFF_HEADER + b"\0\1\x01\x12\0\x02\0\0\0\x026\0\0\0\0\0\0\0", id="orientation a string"
        ),
    ],
)
@pytest.mark.parametrize("name", ["photo.png", "photo.webp", "photo.jpg"])
@pytest.mark.filterwarnings("ignore:.*EXIF", "ignore:Tag data larger than file")
def test_damaged_exif_is_ignored(name: str, damaged: bytes, tmp_path: Path) -> None:
    pixels = save_and_preprocess(scene(), tmp_path / name, exif=damaged, quality=90)
    assert_similar(pixels, scene())


# --- transparency ---------------------------------------------------------------------------


def blend_with_white(color: Array, alpha: Array) -> Array:
    return np.round((color * (alpha / 255.0)) + 255.0 * (1 - alpha / 255.0))


@pytest.mark.parametrize(
    ("name", "options"),
    [("x.png", {}), ("x.tif", {}), ("x.webp", {"lossless": True, "exact": True})],
)
def test_alpha_is_laid_on_white(name: str, options: Mapping[str, Any], tmp_path: Path) -> None:
    values = np.asarray(noise(SIZE, SIZE)).copy()
    alpha = np.broadcast_to(np.arange(SIZE, dtype=np.uint8)[:, None, None], (SIZE, SIZE, 1))
    picture = Image.fromarray(np.concatenate([values, alpha], axis=2))
    pixels = save_and_preprocess(picture, tmp_path / name, **options)
    assert max_difference(pixels.array, blend_with_white(values, alpha)) <= 1


def test_gray_with_alpha_is_laid_on_white(tmp_path: Path) -> None:
    picture = Image.new("LA", (SIZE, SIZE), (100, 51))
    assert save_and_preprocess(picture, tmp_path / "x.png").array[0, 0].tolist() == gray(224)


@pytest.mark.parametrize("name", ["x.png", "x.gif"])
def test_transparent_palette_color_becomes_white(name: str, tmp_path: Path) -> None:
    """The other colors do not change."""
    picture = scene(SIZE, SIZE).quantize(16)
    colors = np.asarray(picture.convert("RGB")).copy()
    colors[np.asarray(picture) == 5] = 255
    pixels = save_and_preprocess(picture, tmp_path / name, transparency=5)
    np.testing.assert_array_equal(pixels.array, colors)


def test_palette_with_alpha_per_color_is_laid_on_white(tmp_path: Path) -> None:
    picture = Image.new("P", (SIZE, SIZE), 0)
    picture.putpalette([200, 0, 0, 0, 100, 0, 0, 0, 50])
    picture.paste(1, (0, 0, SIZE, 80))
    picture.paste(2, (0, 80, SIZE, 160))
    pixels = save_and_preprocess(picture, tmp_path / "x.png", transparency=bytes([255, 51, 0]))
    assert pixels.array[[0, 100, 200], 0].tolist() == [[204, 224, 204], [255] * 3, [200, 0, 0]]


@pytest.mark.parametrize(
    ("mode", "values", "transparent", "expected"),
    [
        ("RGB", [(255, 0, 0), (254, 0, 0)], (255, 0, 0), [[255] * 3, [254, 0, 0]]),
        ("L", [10, 11], 10, [[255] * 3, [11] * 3]),
        ("1", [0, 1], 0, [[255] * 3, [255] * 3]),
        ("I;16", [257, 514], 257, [[255] * 3, [2] * 3]),
    ],
    ids=["RGB", "gray", "bilevel", "16-bit gray"],
)
def test_transparent_color_of_a_png_becomes_white(
    mode: str, values: list[Any], transparent: Any, expected: list[list[int]], tmp_path: Path
) -> None:
    """The color that differs by one step does not change."""
    picture = Image.new(mode, (SIZE, SIZE), values[0])
    picture.paste(values[1], (0, SIZE // 2, SIZE, SIZE))
    pixels = save_and_preprocess(picture, tmp_path / "x.png", transparency=transparent)
    assert pixels.array[[0, SIZE - 1], 0].tolist() == expected


@pytest.mark.parametrize(
    ("depth", "color", "row", "key", "expected"),
    [
        pytest.param(2, 0, b"\x1b", [1], [0, 255, 170, 255], id="2-bit gray 0, 1, 2, 3"),
        pytest.param(4, 0, b"\x17\x8f", [7], [17, 255, 136, 255], id="4-bit gray 1, 7, 8, 15"),
        pytest.param(
            16,
            2,
            struct.pack(">12H", *[0x1234] * 3, *[0x1334] * 3, *[9] * 6) * 56,
            [0x1234] * 3,
            [255, 0x13, 0, 0],
            id="16-bit RGB",
        ),
    ],
)
def test_transparent_color_of_a_png_without_8_bits_becomes_white(
    depth: int, color: int, row: bytes, key: list[int], expected: list[int], tmp_path: Path
) -> None:
    """The file names the transparent color in its own bit depth."""
    transparent = files.chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    rows = row * (SIZE * depth * (3 if color else 1) // 8 // len(row))
    data = files.png(depth, color, rows, transparent, size=(SIZE, SIZE))
    (tmp_path / "x.png").write_bytes(data)
    array = preprocess_image(tmp_path / "x.png", CONFIG).array
    assert array[0, :4, 0].tolist() == expected


def test_fully_transparent_color_does_not_bleed(tmp_path: Path) -> None:
    """Transparency is laid on white before resizing, so a hidden color does not show at edges."""
    picture = Image.new("RGBA", (500, 400), "white")
    picture.paste((255, 0, 0, 0), (0, 0, 250, 400))
    assert (save_and_preprocess(picture, tmp_path / "x.png").array == 255).all()


def test_transparent_first_frame_of_an_animation_is_laid_on_white(tmp_path: Path) -> None:
    first = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    first.paste((0, 0, 255, 255), (0, 0, SIZE, 112))
    second = Image.new("RGBA", first.size)
    pixels = save_and_preprocess(first, tmp_path / "x.gif", save_all=True, append_images=[second])
    assert pixels.array[[0, SIZE - 1], 0].tolist() == [[0, 0, 255], [255] * 3]


# --- palette, grayscale, CMYK ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.bmp"])
@pytest.mark.parametrize("mode", ["1", "L", "P"], ids=["bilevel", "gray", "palette"])
def test_image_becomes_rgb_before_resizing(mode: str, name: str, tmp_path: Path) -> None:
    picture = scene().convert(mode)
    assert_equal(save_and_preprocess(picture, tmp_path / name), picture.convert("RGB"))


def test_cmyk_jpeg_has_its_original_colors(tmp_path: Path) -> None:
    """Adobe's convention inverts the values of a CMYK JPEG."""
    path = tmp_path / "print.jpg"
    pixels = save_and_preprocess(scene().convert("CMYK"), path, quality=90)
    with Image.open(path) as reopened:
        assert (reopened.mode, "adobe" in reopened.info) == ("CMYK", True)
    assert_similar(pixels, scene())


def test_cmyk_tiff_has_its_original_colors(tmp_path: Path) -> None:
    picture = scene().convert("CMYK")
    assert_equal(save_and_preprocess(picture, tmp_path / "print.tif"), picture.convert("RGB"))


# --- 16 bits, 32 bits and floats ------------------------------------------------------------

RAMP = np.arange(SIZE)


def repeat_rows(values: Array) -> Array:
    return np.broadcast_to(values, (SIZE, SIZE)).copy()


@pytest.fixture
def preprocess_tiff(tmp_path: Path) -> Callable[..., list[int]]:
    """Return a function that preprocesses a TIFF of equal gray rows, and returns one of them."""

    def write_and_preprocess(values: Array, byte_order: str = "<") -> list[int]:
        path = tmp_path / "x.tif"
        path.write_bytes(files.samples(repeat_rows(values), byte_order))
        array = preprocess_image(path, CONFIG).array
        assert (array == array[:1, :, :1]).all()  # gray, and all rows are equal
        return array[0, :, 0].tolist()  # type: ignore[no-any-return]

    return write_and_preprocess


PreprocessTiff = Callable[..., list[int]]


def test_16_bit_png_is_scaled_to_8_bits(tmp_path: Path) -> None:
    """0 is black, 65535 is white."""
    values = (RAMP * 257).astype(np.uint16)
    values[-2:] = 65535, 32768
    pixels = save_and_preprocess(Image.fromarray(repeat_rows(values)), tmp_path / "x.png")
    assert pixels.array[0, :, 0].tolist() == [*range(SIZE - 2), 255, 128]


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_16_bit_tiff_is_scaled_to_8_bits(byte_order: str, preprocess_tiff: PreprocessTiff) -> None:
    assert preprocess_tiff((RAMP * 257).astype(np.uint16), byte_order) == RAMP.tolist()


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_16_bit_tiff_of_small_values_stays_dark(
    byte_order: str, preprocess_tiff: PreprocessTiff
) -> None:
    """Values are read as 16-bit even if none exceeds 255."""
    assert max(preprocess_tiff(RAMP.astype(np.uint16), byte_order)) == 1


def test_32_bit_tiff_is_read_as_16_bit(preprocess_tiff: PreprocessTiff) -> None:
    """Few files use more than 16 bits, and none says which value is white."""
    values = (RAMP * 257).astype(np.int32)
    values[-2:] = 1_000_000, -5
    assert preprocess_tiff(values) == [*range(SIZE - 2), 255, 0]


def test_32_bit_tiff_of_small_values_is_read_as_8_bit(preprocess_tiff: PreprocessTiff) -> None:
    """This applies if no value exceeds 255."""
    assert preprocess_tiff(RAMP.astype(np.int32)) == RAMP.tolist()


def test_float_tiff_of_values_up_to_1_is_scaled_by_255(preprocess_tiff: PreprocessTiff) -> None:
    """1 is white if no value exceeds 1."""
    values = (RAMP / 255).astype(np.float32)
    values[-2:] = 1.0, -0.5
    assert preprocess_tiff(values) == [*range(SIZE - 2), 255, 0]


def test_float_tiff_of_values_above_1_is_read_as_0_to_255(preprocess_tiff: PreprocessTiff) -> None:
    """255 is white if a value exceeds 1."""
    values = RAMP.astype(np.float32)
    values[-2:] = 1e9, -1e9
    assert preprocess_tiff(values) == [*range(SIZE - 2), 255, 0]


@pytest.mark.filterwarnings("error")
def test_nan_is_black_and_infinity_is_white_in_a_float_tiff(
    preprocess_tiff: PreprocessTiff,
) -> None:
    """NaN is black, infinity is white, and neither changes the scale of the other pixels."""
    values = (RAMP / 255).astype(np.float32)
    values[-3:] = np.nan, np.inf, -np.inf
    assert preprocess_tiff(values) == [*range(SIZE - 3), 0, 255, 0]


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("kind", ["u2", "i2", "i4", "f4"])
def test_compressed_tiff_equals_the_uncompressed_one(
    kind: str, byte_order: str, tmp_path: Path
) -> None:
    """This holds for both byte orders, which Pillow 13 confuses for compressed files."""
    values = repeat_rows(RAMP / 255 if kind == "f4" else RAMP * 128).astype(kind)
    data = zlib.compress(values.astype(values.dtype.newbyteorder(byte_order)).tobytes())
    deflate = (259, files.SHORT, 1, 8)
    plain, compressed = tmp_path / "plain.tif", tmp_path / "compressed.tif"
    plain.write_bytes(files.samples(values, byte_order))
    compressed.write_bytes(files.samples(values, byte_order, deflate, data=data))
    arrays = [preprocess_image(path, CONFIG).array for path in (plain, compressed)]
    np.testing.assert_array_equal(arrays[0], arrays[1])
    assert arrays[0].max() > 100


# --- kinds of TIFF that Pillow 13 reads wrongly ---------------------------------------------

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
STRIP, SAMPLES, ROWS, STRIP_BYTES, PLANES, EXTRA = 273, 277, 278, 279, 284, 338
COLOR_MAP, SAMPLE_FORMAT = 320, 339
DEFLATE = {COMPRESSION: 8}


def tiff(
    planes: list[bytes], tags: Mapping[int, int | list[int]], order: str = "<", side: int = SIZE
) -> bytes:
    """Return a TIFF of one strip per plane, deflated if the tags say so."""
    if tags.get(COMPRESSION) == 8:
        planes = [zlib.compress(plane) for plane in planes]
    offsets = [8 + sum(map(len, planes[:number])) for number in range(len(planes))]
    every: dict[int, int | list[int]] = {WIDTH: side, HEIGHT: side, BITS: 8, ROWS: side, **tags}
    every |= {STRIP: offsets, STRIP_BYTES: [len(plane) for plane in planes]}
    data, entries = b"".join(planes), []
    for tag, value in sorted(every.items()):
        values = value if isinstance(value, list) else [value]
        kind, letter = (files.SHORT, "H") if tag in (BITS, COLOR_MAP, EXTRA) else (files.LONG, "I")
        packed = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(packed) <= 4:
            [content] = struct.unpack(f"{order}I", packed.ljust(4, b"\0"))
            kind = files.LONG if kind == files.SHORT and len(values) == 1 else kind
            content = values[0] if len(values) == 1 else content
        else:
            data += bytes(len(data) % 2)
            content = 8 + len(data)
            data += packed
        entries.append((tag, kind, len(values), content))
    return files.tiff(entries, data, order)


def preprocess_bytes(data: bytes) -> Array:
    return preprocess_image(BytesIO(data), CONFIG).array


def bytes_of(values: Array, kind: str, order: str = "<") -> bytes:
    return values.astype(f"{order}{kind}").tobytes()


COLORS = np.asarray(scene(SIZE, SIZE))
GRAY = repeat_rows(RAMP)
GRAY_RGB = np.stack([GRAY] * 3, axis=-1)
ORDERS = pytest.mark.parametrize("order", ["<", ">"])
COMPRESSIONS = pytest.mark.parametrize("compression", [{}, DEFLATE], ids=["raw", "deflate"])


@COMPRESSIONS
def test_16_bit_tiff_where_0_is_white_is_inverted(compression: Mapping[int, int]) -> None:
    """Pillow inverts up to 8 bits only."""
    rows = bytes_of(65_535 - GRAY * 257, "u2")
    data = tiff([rows], {BITS: 16, PHOTOMETRIC: 0, **compression})
    np.testing.assert_array_equal(preprocess_bytes(data), GRAY_RGB)


@ORDERS
@COMPRESSIONS
def test_float_tiff_where_0_is_white_is_inverted(
    order: str, compression: Mapping[int, int]
) -> None:
    rows = bytes_of(1 - GRAY / 255, "f4", order)
    data = tiff([rows], {BITS: 32, PHOTOMETRIC: 0, SAMPLE_FORMAT: 3, **compression}, order)
    assert max_difference(preprocess_bytes(data), GRAY_RGB) <= 1


@COMPRESSIONS
def test_12_bit_tiff_is_scaled_to_8_bits(compression: Mapping[int, int]) -> None:
    """4095 is white."""
    values = GRAY * 4095 // 255
    first, second = values[:, 0::2], values[:, 1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1)
    data = tiff([bytes_of(packed, "u1")], {BITS: 12, PHOTOMETRIC: 1, **compression})
    assert max_difference(preprocess_bytes(data), GRAY_RGB) <= 1


@ORDERS
@COMPRESSIONS
@pytest.mark.parametrize("kind", ["u1", "u2"])
def test_tiff_of_separate_planes_has_its_colors(
    kind: str, order: str, compression: Mapping[int, int]
) -> None:
    """Pillow reads uncompressed planes of 16 bits as if they had 8."""
    bits, scale = (8, 1) if kind == "u1" else (16, 257)
    planes = [bytes_of(COLORS[..., n].astype(int) * scale, kind, order) for n in range(3)]
    tags: dict[int, int | list[int]] = {
        BITS: [bits] * 3,
        PHOTOMETRIC: 2,
        SAMPLES: 3,
        PLANES: 2,
        **compression,
    }
    np.testing.assert_array_equal(preprocess_bytes(tiff(planes, tags, order)), COLORS)


@pytest.mark.parametrize(("extra", "is_scaled"), [(0, False), (1, True), (2, False)])
def test_alpha_in_separate_planes_is_laid_on_white(extra: int, is_scaled: bool) -> None:
    """Extra samples: 0 unspecified, 1 associated (colors are multiplied by it), 2 unassociated."""
    alpha, white = (0, 0) if extra == 0 else (102, 153)
    colors = COLORS.astype(int)
    stored = colors * alpha // 255 if is_scaled else colors
    planes = [bytes_of(stored[..., n] * 257, "u2") for n in range(3)]
    planes.append(bytes_of(np.full((SIZE, SIZE), alpha * 257), "u2"))
    tags: dict[int, int | list[int]] = {BITS: [16] * 4, PHOTOMETRIC: 2, SAMPLES: 4, PLANES: 2}
    expected = colors if extra == 0 else colors * alpha / 255 + white
    array = preprocess_bytes(tiff(planes, {**tags, EXTRA: extra}))
    assert max_difference(array, expected) <= 3


def test_16_bit_cmyk_in_separate_planes_has_its_colors() -> None:
    planes = [bytes_of((255 - COLORS[..., n].astype(int)) * 257, "u2") for n in range(3)]
    planes.append(bytes(2 * SIZE * SIZE))
    tags: dict[int, int | list[int]] = {BITS: [16] * 4, PHOTOMETRIC: 5, SAMPLES: 4, PLANES: 2}
    np.testing.assert_array_equal(preprocess_bytes(tiff(planes, tags)), COLORS)


def reverse_bits(data: bytes) -> bytes:
    return bytes(int(f"{value:08b}"[::-1], 2) for value in data)


def test_fill_order_2_is_read() -> None:
    """The bits of each byte are reversed. Pillow lacks some kinds, and ignores it for planes."""
    planes = [reverse_bits(COLORS[..., n].tobytes()) for n in range(3)]
    tags: dict[int, int | list[int]] = {
        BITS: [8] * 3,
        PHOTOMETRIC: 2,
        SAMPLES: 3,
        PLANES: 2,
        FILL_ORDER: 2,
    }
    np.testing.assert_array_equal(preprocess_bytes(tiff(planes, tags)), COLORS)
    inverted = reverse_bits(bytes_of(255 - GRAY, "u1"))
    data = tiff([inverted], {PHOTOMETRIC: 0, FILL_ORDER: 2})
    np.testing.assert_array_equal(preprocess_bytes(data), GRAY_RGB)
    indices = reverse_bits(bytes_of(GRAY[:, ::2] // 16 * 17, "u1"))
    gray16 = [value * 4369 for value in range(16)] * 3
    data = tiff([indices], {BITS: 4, PHOTOMETRIC: 3, FILL_ORDER: 2, COLOR_MAP: gray16})
    np.testing.assert_array_equal(preprocess_bytes(data)[:, ::2], GRAY_RGB[:, ::2] // 16 * 17)


@COMPRESSIONS
def test_palette_of_8_bit_values_is_not_black(compression: Mapping[int, int]) -> None:
    """TIFF 6.0 wants 16 bits; libtiff's tools take a palette without values over 255 for 8."""
    colors = [*range(256), *range(255, -1, -1), *[128] * 256]
    data = tiff([bytes_of(GRAY, "u1")], {PHOTOMETRIC: 3, COLOR_MAP: colors, **compression})
    expected = np.stack([GRAY, 255 - GRAY, np.full_like(GRAY, 128)], axis=-1)
    np.testing.assert_array_equal(preprocess_bytes(data), expected)


def test_gray_with_associated_alpha_is_laid_on_white() -> None:
    """51 of 255 is a fifth; the stored gray is already multiplied by it."""
    rows = bytes([20, 51]) * SIZE * SIZE
    tags: dict[int, int | list[int]] = {BITS: [8, 8], PHOTOMETRIC: 1, SAMPLES: 2, EXTRA: 1}
    assert preprocess_bytes(tiff([rows], tags))[0, 0].tolist() == gray(224)


@pytest.mark.parametrize(
    ("tags", "kind", "way_out"),
    [
        ({BITS: 10, PHOTOMETRIC: 1}, "10 bits per sample of grayscale", "8 or 16 bits"),
        (
            {BITS: 12, PHOTOMETRIC: 0},
            "12 bits per sample of grayscale (WhiteIsZero)",
            "8 or 16 bits",
        ),
        (
            {BITS: 64, PHOTOMETRIC: 1, SAMPLE_FORMAT: 3},
            "64 bits per floating-point sample of grayscale",
            "8 or 16 bits",
        ),
        (
            {BITS: [8] * 3, PHOTOMETRIC: 8, SAMPLES: 3, PLANES: 2},
            "8 bits per sample of CIELAB in separate planes",
            "",
        ),
        (
            {BITS: [8] * 3, PHOTOMETRIC: 6, SAMPLES: 3, PLANES: 2},
            "8 bits per sample of YCbCr in separate planes",
            "",
        ),
        (
            {BITS: [8] * 2, PHOTOMETRIC: 1, SAMPLES: 2, PLANES: 2, EXTRA: 2, **DEFLATE},
            "8 bits per sample of grayscale with extra samples in separate planes",
            "",
        ),
        (
            {PHOTOMETRIC: 1, COMPRESSION: 50_002},
            "8 bits per sample of grayscale in compression 50002",
            "",
        ),
        (
            {PHOTOMETRIC: 1, COMPRESSION: 50_001},
            "8 bits per sample of grayscale in compression 50001",
            "",
        ),
        (
            {BITS: [1] * 3, PHOTOMETRIC: 2, SAMPLES: 3},
            "1 bit per sample of RGB",
            "8 or 16 bits",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tiff_of_another_kind_is_refused_by_name(
    tags: Mapping[int, int | list[int]], kind: str, way_out: str
) -> None:
    samples = tags.get(SAMPLES, 1)
    assert isinstance(samples, int)
    planes = [bytes(SIZE * SIZE * 8)] * (samples if tags.get(PLANES) == 2 else 1)
    with pytest.raises(ImageError) as caught:
        preprocess_image(BytesIO(tiff(planes, tags)), CONFIG, name="scan.tif")
    assert str(caught.value) == (
        f"scan.tif is a TIFF with {kind}, which this service cannot read;"
        f" save it anew {f'with {way_out}' if way_out else 'as JPEG or PNG'}"
    )


# --- XMP ------------------------------------------------------------------------------------

XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description
 xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>"""


@pytest.mark.parametrize("with_exif", [False, True], ids=["alone", "beside EXIF"])
@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp", "x.tif", "x.avif", "x.heic"])
def test_orientation_in_xmp_is_ignored(name: str, with_exif: bool, tmp_path: Path) -> None:
    """Browsers apply that of EXIF only. Pillow takes XMP's where EXIF has none."""
    other = Image.Exif()
    other[0x010F] = "Maker"
    options: dict[str, Any] = {"exif": other} if with_exif else {}
    if name == "x.png":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode())
    elif name == "x.tif":
        options = {"tiffinfo": {700: XMP, **({0x010F: "Maker"} if with_exif else {})}}
    else:
        options["xmp"] = XMP
    path = tmp_path / name
    if name == "x.heic":  # its encoder would move the orientation to the container
        options["xmp"] = XMP.replace(b'"6"', b'"1"')
    scene().save(path, quality=90, **options)
    path.write_bytes(path.read_bytes().replace(b'tiff:Orientation="1"', b'tiff:Orientation="6"'))
    assert XMP in path.read_bytes()
    pixels = preprocess_image(path, CONFIG)
    assert_similar(pixels, scene())
    assert (pixels.width, pixels.height) == scene().size


# --- BMP ------------------------------------------------------------------------------------


def bmp_with_alpha(alpha: list[int], header_size: int) -> bytes:
    """Return a BMP of 32 bits with a mask of alpha, one row per value."""
    rows = b"".join(bytes([0, 0, 200, value]) * SIZE for value in reversed(alpha))
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack("<IiiHHI20x", header_size, SIZE, len(alpha), 1, 32, 3)
    info = (info + struct.pack("<4I", *masks)).ljust(header_size, b"\0")
    start = 14 + header_size
    return struct.pack("<2sIHHI", b"BM", start + len(rows), 0, 0, start) + info + rows


@pytest.mark.parametrize("header_size", [56, 108, 124], ids=["V3", "V4", "V5"])
def test_alpha_of_a_bmp_counts_unless_it_is_0_everywhere(header_size: int) -> None:
    """As in Chromium: writers that know no transparency leave alpha empty."""
    empty = preprocess_bytes(bmp_with_alpha([0] * SIZE, header_size))
    assert (empty == [200, 0, 0]).all()
    used = preprocess_bytes(bmp_with_alpha([0] * 112 + [255] * 112, header_size))
    assert (used[:112] == 255).all()
    assert (used[112:] == [200, 0, 0]).all()
