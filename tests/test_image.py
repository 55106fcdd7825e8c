"""Any picture becomes the pixels open_clip would see, upright, opaque and in RGB; or an error says
what to send instead."""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torchvision.transforms import Compose

import hurtful
from clip_embed import colours, image, resize
from clip_embed.embedder import Embedder
from clip_embed.errors import ImageError, ModelError
from clip_embed.image import Pixels, Preprocessing, prepare
from clip_embed.model import Clip, ClipConfig
from conftest import PHOTOS, TINY

SIZE = 224
MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
PREPROCESSING = Preprocessing(SIZE, MEAN, STD, Image.Resampling.BICUBIC)
REFERENCE = image_transform_v2(PreprocessCfg(size=SIZE, mean=MEAN, std=STD), False)
RESIZE_AND_CROP = Compose(REFERENCE.transforms[:2])

Array = npt.NDArray[Any]
Send = Callable[..., Pixels]


@pytest.fixture
def send(tmp_path: Path) -> Send:
    """Save a picture under a name, which decides on the format, and prepare the file."""

    def save_and_prepare(picture: Image.Image, name: str, **options: Any) -> Pixels:
        picture.save(tmp_path / name, **options)
        return prepare(tmp_path / name, PREPROCESSING)

    return save_and_prepare


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    """A tiny network of zeros: these tests only have it normalise."""
    model = Clip(ClipConfig.from_open_clip(json.loads(TINY.read_text())))
    model.load({name: torch.zeros(p.shape) for name, p in model.named_parameters()})
    return Embedder(model, PREPROCESSING)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Every pixel at random: the slightest difference in geometry shows."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def scene(width: int = 300, height: int = 200) -> Image.Image:
    """Soft and colourful, as photos are, and unlike itself from any other side."""
    return noise(6, 5, seed=3).resize((width, height), Image.Resampling.BICUBIC)


def grey(value: int) -> list[int]:
    return [value] * 3


def expected(picture: Image.Image) -> Array:
    """What open_clip's transform makes of an upright RGB image, before it is normalised."""
    assert picture.mode == "RGB"
    return np.asarray(RESIZE_AND_CROP(picture))


def check_same(pixels: Pixels, picture: Image.Image) -> None:
    np.testing.assert_array_equal(pixels.array, expected(picture))


def check_close(pixels: Pixels, picture: Image.Image) -> None:
    """As close as lossy compression lets it be; two sides of `scene` differ by 60 on average."""
    difference = np.abs(pixels.array.astype(int) - expected(picture))
    assert difference.mean() < 4
    assert difference.max() < 40


# --- pixels equal open_clip's ---------------------------------------------------------------


def _long(short: int, rng: Random) -> int:
    return int(short * 100 ** rng.random())


def sizes() -> Mapping[str, list[tuple[int, int]]]:
    """More than 200 sizes, in kinds."""
    rng = Random(224)
    edges = [1, 2, 3, 111, 112, 223, 224, 225, 226, 447, 448, 449]
    strips = [(short, _long(short, rng)) for short in [*range(1, 20), *range(20, 300, 14)]]
    strips += [(1, 100), (7, 700), (15, 1500)]
    return {
        "squares": [(side, side) for side in [*edges, *range(5, 1500, 90)]],
        "around_224": [(a, b) for a in edges[3:] for b in (3, 223, 224, 225, 336, 500)],
        "small": [(rng.randint(1, 50), rng.randint(1, 50)) for _ in range(40)],
        "any": [(rng.randint(1, 1500), rng.randint(1, 1500)) for _ in range(50)],
        "tall_strips": strips,
        "wide_strips": [(long, short) for short, long in strips],
    }


@pytest.mark.parametrize("kind", sizes())
def test_pixels_equal_open_clip_s(kind: str, send: Send) -> None:
    """An upright RGB image becomes, bit for bit, the square that open_clip's transform cuts."""
    for width, height in sizes()[kind]:
        picture = noise(width, height)
        pixels = send(picture, "picture.bmp")
        assert pixels.array.dtype == np.uint8
        assert np.array_equal(pixels.array, expected(picture)), f"{width} × {height} differs"


@pytest.mark.parametrize("kind", sizes())
def test_normalised_pixels_equal_open_clip_s(kind: str, send: Send, embedder: Embedder) -> None:
    """Normalised by the embedder, its floats are, bit for bit, those of open_clip's transform."""
    pictures = [noise(width, height) for width, height in sizes()[kind]]
    batch = np.stack([send(picture, "picture.bmp").array for picture in pictures])
    normalised = embedder.normalise(torch.from_numpy(batch))
    for picture, values in zip(pictures, normalised, strict=True):
        assert torch.equal(values, REFERENCE(picture)), f"{picture.size} differs"


@pytest.mark.parametrize(("size", "interpolation"), [(336, "bicubic"), (56, "bilinear")])
def test_other_models_preprocessing(size: int, interpolation: str, tmp_path: Path) -> None:
    """Another size and filter, as a model's configuration states them, are open_clip's too."""
    config = {"mean": MEAN, "std": STD, "interpolation": interpolation}
    reference = image_transform_v2(PreprocessCfg(size, interpolation=interpolation), False)
    picture = noise(500, 400)
    picture.save(tmp_path / "picture.bmp")
    pixels = prepare(tmp_path / "picture.bmp", Preprocessing.from_open_clip(config, size))
    square = Compose(reference.transforms[:2])(picture)
    np.testing.assert_array_equal(pixels.array, np.asarray(square))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"interpolation": "random"}, "interpolation 'random' is not supported"),
        ({"resize_mode": "squash"}, "resize_mode 'squash' is not supported"),
        ({"mean": None}, "mean is None; expected three numbers"),
        ({"std": [0.5, 0.5]}, r"std is \[0.5, 0.5\]; expected three numbers"),
        ({"mean": [0.5, 0.5, "0.5"]}, r"mean is \[0.5, 0.5, '0.5'\]; expected three numbers"),
    ],
)
def test_preprocessing_of_another_kind_is_refused(changed: Mapping[str, Any], message: str) -> None:
    """A model that wants its images prepared otherwise fails set-up, and the error says how."""
    with pytest.raises(ModelError, match=f"^preprocess_cfg: {message}$"):
        Preprocessing.from_open_clip({"mean": MEAN, "std": STD, **changed}, SIZE)


# --- long strips ----------------------------------------------------------------------------


def difference(pixels: Pixels, square: Array) -> int:
    return int(np.abs(pixels.array.astype(int) - square).max())


@pytest.mark.parametrize("kind", ["around_224", "small", "any", "tall_strips", "wide_strips"])
def test_a_part_is_what_the_whole_would_be(
    kind: str, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resizing only the part that survives the crop gives what resizing the whole gives, within
    2 of 255, even for noise in black and white."""
    monkeypatch.setattr(resize, "WHOLE_RESIZE_MAX_PIXELS", 0)
    for width, height in sizes()[kind]:
        picture = noise(width, height).point(lambda value: 255 * (value > 127))
        pixels = send(picture, "picture.bmp")
        assert difference(pixels, expected(picture)) <= 2, f"{width} × {height} differs"


@pytest.mark.parametrize(
    ("width", "height"), [(1, 20_000), (20_000, 1), (1, 1_000_001), (40_000_000, 1)]
)
def test_a_very_long_strip(width: int, height: int, send: Send) -> None:
    """A strip one pixel wide becomes the middle of what it would be if it were resized whole, for
    which no machine has the memory."""
    length = max(width, height)
    values = np.random.default_rng(0).integers(0, 256, (length, 1), dtype=np.uint8)
    # Each pixel becomes 224 × 224. Around the middle, a few pixels are all the square draws on.
    top = round((SIZE * length - SIZE) / 2)
    first = top // SIZE - 5
    middle = Image.fromarray(values[first : first + 12]).convert("RGB")
    middle = middle.resize((SIZE, 12 * SIZE), Image.Resampling.BICUBIC)
    square = np.asarray(middle)[top - first * SIZE :][:SIZE]
    if width > height:
        values, square = values.T, square.transpose(1, 0, 2)
    pixels = send(Image.fromarray(values), "strip.tif")
    assert (pixels.width, pixels.height) == (width, height)
    assert difference(pixels, square) <= 1


# --- formats --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("picture.png", {}),
        ("picture.bmp", {}),
        ("picture.dib", {}),
        ("picture.tif", {}),
        ("picture.tif", {"compression": "tiff_lzw"}),
        ("picture.tif", {"compression": "tiff_adobe_deflate"}),
        ("picture.webp", {"lossless": True}),
        ("picture.heic", {"quality": -1, "chroma": 444, "matrix_coefficients": 0}),
    ],
    ids=str,
)
def test_lossless_formats(name: str, options: Mapping[str, Any], send: Send) -> None:
    """A picture without loss has the pixels of the original, whatever file it came in."""
    check_same(send(scene(), name, **options), scene())


@pytest.mark.parametrize(
    ("name", "format_name"),
    [
        ("picture.jpg", "JPEG"),
        ("picture.webp", "WEBP"),
        ("picture.avif", "AVIF"),
        ("picture.heic", "HEIF"),
    ],
)
def test_lossy_formats(name: str, format_name: str, send: Send, tmp_path: Path) -> None:
    """A picture compressed with loss has nearly the pixels of the original."""
    check_close(send(scene(), name, quality=90), scene())
    with Image.open(tmp_path / name) as reopened:
        assert reopened.format == format_name


def test_gif(send: Send) -> None:
    """A GIF has the pixels of its palette's colours."""
    picture = scene().quantize(200)
    check_same(send(picture, "picture.gif"), picture.convert("RGB"))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("animation.gif", {}),
        ("animation.png", {}),
        ("animation.webp", {"lossless": True}),
        ("pages.tif", {}),
    ],
)
def test_the_first_of_several_pictures(name: str, options: Mapping[str, Any], send: Send) -> None:
    """Of an animation or of several pages, the first is embedded."""
    first = scene().quantize(64).convert("RGB")
    others = [Image.new("RGB", first.size, colour) for colour in ("red", "blue")]
    check_same(send(first, name, save_all=True, append_images=others, **options), first)


@pytest.mark.parametrize("name", ["both-eyes.mpo", "burst.heic", "animation.avif"])
def test_the_first_of_several_photos(name: str, send: Send, tmp_path: Path) -> None:
    """Of a camera file that holds several photos, the first is embedded."""
    other = Image.new("RGB", scene().size, "red")
    check_close(send(scene(), name, save_all=True, append_images=[other]), scene())
    with Image.open(tmp_path / name) as reopened:
        assert getattr(reopened, "n_frames", 1) == 2


@pytest.mark.parametrize("name", ["picture", "picture.txt", "picture.jpg", "picture.heic"])
def test_the_content_decides_not_the_name(name: str, tmp_path: Path) -> None:
    """A PNG is one under any name, for uploads and URLs are often named wrongly."""
    scene().save(tmp_path / name, format="PNG")
    check_same(prepare(tmp_path / name, PREPROCESSING), scene())


# --- orientation ----------------------------------------------------------------------------

# How a camera that was held in some way stores a picture: its rows and columns, and the number in
# EXIF that says where the first row and the first column belong (CIPA DC-008, tag 0x0112).
HELD: Mapping[int, Callable[[Array], Array]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],  # row 0 at the top, column 0 at the right
    3: lambda upright: upright[::-1, ::-1],  # bottom, right
    4: lambda upright: upright[::-1],  # bottom, left
    5: lambda upright: upright.transpose(1, 0, 2),  # left, top
    6: lambda upright: upright.transpose(1, 0, 2)[::-1],  # right, top
    7: lambda upright: upright.transpose(1, 0, 2)[::-1, ::-1],  # right, bottom
    8: lambda upright: upright.transpose(1, 0, 2)[:, ::-1],  # left, bottom
}
ORIENTATION = 0x0112


def stored(orientation: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(HELD[orientation](np.asarray(scene()))))


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


@pytest.mark.parametrize("orientation", HELD)
@pytest.mark.parametrize("name", ["photo.png", "photo.webp", "photo.tif"])
def test_orientation(name: str, orientation: int, send: Send) -> None:
    """However the camera was held, the picture is embedded upright, and measured upright."""
    options = {"lossless": True} if name.endswith("webp") else {}
    pixels = send(stored(orientation), name, exif=exif(orientation), **options)
    check_same(pixels, scene())
    assert (pixels.width, pixels.height) == scene().size


@pytest.mark.parametrize("orientation", HELD)
@pytest.mark.parametrize("name", ["photo.jpg", "photo.avif", "photo.heic"])
def test_orientation_of_lossy_formats(name: str, orientation: int, send: Send) -> None:
    """So is a photo as cameras and phones store it, turned once and not twice: HEIC and AVIF say
    how to turn it in their own container, which decoders obey, and HEIC in EXIF besides."""
    pixels = send(stored(orientation), name, exif=exif(orientation).tobytes())
    check_close(pixels, scene())
    assert (pixels.width, pixels.height) == scene().size


def test_avif_is_turned_once(tmp_path: Path) -> None:
    """An AVIF that says in its container and in EXIF how to turn it is turned once."""
    tags = exif(6)
    tags[ORIENTATION + 1] = 6  # Pillow moves the orientation to the container: smuggle another in
    stored(6).save(tmp_path / "photo.avif", exif=tags, quality=90)
    data = (tmp_path / "photo.avif").read_bytes()
    assert data.count(b"\x01\x13\x00\x03") == 1
    data = data.replace(b"\x01\x13\x00\x03", b"\x01\x12\x00\x03")
    (tmp_path / "photo.avif").write_bytes(data)
    check_close(prepare(tmp_path / "photo.avif", PREPROCESSING), scene())


def test_heic_obeys_its_container_alone(send: Send, tmp_path: Path) -> None:
    """In HEIC the container decides: an orientation that is only in EXIF changes nothing
    (ISO/IEC 23008-12)."""
    pixels = send(scene(), "photo.heic", exif=exif(6))  # an object: not moved to the container
    data = (tmp_path / "photo.heic").read_bytes()
    assert b"Exif" in data
    assert b"irot" not in data
    check_close(pixels, scene())


TIFF_HEADER = b"Exif\0\0MM\0*\0\0\0\x08"


@pytest.mark.parametrize(
    "damaged",
    [
        b"Exif\0\0junk",
        b"no EXIF at all",
        TIFF_HEADER + b"\0\x05\x01\x12",  # ends within the first of five tags
        TIFF_HEADER + b"\0\1\x01\x12\0\x03\0\0\xff\xff\0\6\0\6\0\0\0\0",  # 65,535 orientations
        TIFF_HEADER + b"\0\1\x01\x12\0\x03\0\0\0\1\0\x63\0\0\0\0\0\0",  # orientation 99
        TIFF_HEADER + b"\0\1\x01\x12\0\x02\0\0\0\x026\0\0\0\0\0\0\0",  # orientation "6"
    ],
)
@pytest.mark.parametrize("name", ["photo.png", "photo.webp", "photo.jpg"])
@pytest.mark.filterwarnings("ignore:.*EXIF", "ignore:Tag data larger than file")
def test_damaged_exif_is_as_none(name: str, damaged: bytes, send: Send) -> None:
    """EXIF that makes no sense leaves an intact picture as it is."""
    check_close(send(scene(), name, exif=damaged, quality=90), scene())


# --- transparency ---------------------------------------------------------------------------


def on_white(colour: Array, alpha: Array) -> Array:
    return np.round((colour * (alpha / 255.0)) + 255.0 * (1 - alpha / 255.0))


@pytest.mark.parametrize(
    ("name", "options"),
    [("x.png", {}), ("x.tif", {}), ("x.webp", {"lossless": True, "exact": True})],
)
def test_alpha_on_white(name: str, options: Mapping[str, Any], send: Send) -> None:
    """A translucent colour is what it looks like on white paper."""
    values = np.asarray(noise(SIZE, SIZE)).copy()
    alpha = np.broadcast_to(np.arange(SIZE, dtype=np.uint8)[:, None, None], (SIZE, SIZE, 1))
    picture = Image.fromarray(np.concatenate([values, alpha], axis=2))
    pixels = send(picture, name, **options)
    assert difference(pixels, on_white(values, alpha)) <= 1


def test_grey_with_alpha_on_white(send: Send) -> None:
    """So is a translucent grey."""
    picture = Image.new("LA", (SIZE, SIZE), (100, 51))
    assert send(picture, "x.png").array[0, 0].tolist() == grey(224)


def test_one_transparent_palette_colour(send: Send) -> None:
    """The transparent colour of a palette is white, and no other colour changes."""
    picture = scene(SIZE, SIZE).quantize(16)
    colours = np.asarray(picture.convert("RGB")).copy()
    colours[np.asarray(picture) == 5] = 255
    for name in ("x.png", "x.gif"):
        pixels = send(picture, name, transparency=5)
        np.testing.assert_array_equal(pixels.array, colours, err_msg=name)


def test_a_palette_with_a_table_of_alpha(send: Send) -> None:
    """Each colour of a palette may have an alpha of its own."""
    picture = Image.new("P", (SIZE, SIZE), 0)
    picture.putpalette([200, 0, 0, 0, 100, 0, 0, 0, 50])
    picture.paste(1, (0, 0, SIZE, 80))
    picture.paste(2, (0, 80, SIZE, 160))
    pixels = send(picture, "x.png", transparency=bytes([255, 51, 0]))
    assert pixels.array[[0, 100, 200], 0].tolist() == [[204, 224, 204], [255] * 3, [200, 0, 0]]


@pytest.mark.parametrize(
    ("mode", "values", "transparent", "seen"),
    [
        ("RGB", [(255, 0, 0), (254, 0, 0)], (255, 0, 0), [[255] * 3, [254, 0, 0]]),
        ("L", [10, 11], 10, [[255] * 3, [11] * 3]),
        ("1", [0, 1], 0, [[255] * 3, [255] * 3]),
        ("I;16", [257, 514], 257, [[255] * 3, [2] * 3]),
    ],
)
def test_one_transparent_colour(
    mode: str, values: list[Any], transparent: Any, seen: list[list[int]], send: Send
) -> None:
    """The one colour a PNG names as transparent is white, and its neighbour is not."""
    picture = Image.new(mode, (SIZE, SIZE), values[0])
    picture.paste(values[1], (0, SIZE // 2, SIZE, SIZE))
    pixels = send(picture, "x.png", transparency=transparent)
    assert pixels.array[[0, SIZE - 1], 0].tolist() == seen


@pytest.mark.parametrize(
    ("depth", "colour", "row", "key", "seen"),
    [
        (2, 0, b"\x1b", [1], [0, 255, 170, 255]),  # 0, 1, 2, 3 of 3
        (4, 0, b"\x17\x8f", [7], [17, 255, 136, 255]),  # 1, 7, 8, 15 of 15
        (
            16,
            2,
            struct.pack(">12H", *[0x1234] * 3, *[0x1334] * 3, *[9] * 6) * 56,
            [0x1234] * 3,
            [255, 0x13, 0, 0],
        ),
    ],
)
def test_the_transparent_colour_of_a_png_that_has_not_8_bits(
    depth: int, colour: int, row: bytes, key: list[int], seen: list[int], tmp_path: Path
) -> None:
    """The colour is named in the file's own bits, and is white all the same."""
    transparent = hurtful.chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    rows = row * (SIZE * depth * (3 if colour else 1) // 8 // len(row))
    made = hurtful.png(depth, colour, rows, transparent, size=(SIZE, SIZE))
    (tmp_path / "x.png").write_bytes(made)
    array = prepare(tmp_path / "x.png", PREPROCESSING).array
    assert array[0, :4, 0].tolist() == seen


def test_what_is_fully_transparent_is_white(send: Send) -> None:
    """No colour that hides under full transparency is seen, not even at its edge: it is laid on
    white before it is resized."""
    picture = Image.new("RGBA", (500, 400), "white")
    picture.paste((255, 0, 0, 0), (0, 0, 250, 400))
    assert (send(picture, "x.png").array == 255).all()


def test_an_animation_s_transparent_first_frame(send: Send) -> None:
    """An animation's first frame is laid on white, too."""
    first = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    first.paste((0, 0, 255, 255), (0, 0, SIZE, 112))
    pixels = send(first, "x.gif", save_all=True, append_images=[Image.new("RGBA", first.size)])
    assert pixels.array[[0, SIZE - 1], 0].tolist() == [[0, 0, 255], [255] * 3]


# --- modes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.bmp"])
@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_few_colours_become_rgb_before_resizing(mode: str, name: str, send: Send) -> None:
    """Bilevel, grey and palette images are resized as the RGB images they look like."""
    picture = scene().convert(mode)
    check_same(send(picture, name), picture.convert("RGB"))


def test_cmyk_jpeg(send: Send, tmp_path: Path) -> None:
    """A CMYK JPEG, whose values Adobe's convention inverts, has the colours it was made from."""
    pixels = send(scene().convert("CMYK"), "print.jpg", quality=90)
    with Image.open(tmp_path / "print.jpg") as reopened:
        assert (reopened.mode, "adobe" in reopened.info) == ("CMYK", True)
    check_close(pixels, scene())


def test_cmyk_tiff(send: Send) -> None:
    """So has a CMYK TIFF, without loss."""
    picture = scene().convert("CMYK")
    check_same(send(picture, "print.tif"), picture.convert("RGB"))


STEPS = np.arange(SIZE)


def columns(values: Array) -> Array:
    return np.broadcast_to(values, (SIZE, SIZE)).copy()


def tiff(values: Array, byte_order: str) -> bytes:
    """A TIFF of one channel, as instruments write them and Pillow would not."""
    sample_format = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    data = values.astype(values.dtype.newbyteorder(byte_order)).tobytes()
    tags = [
        (256, values.shape[1]),
        (257, values.shape[0]),
        (258, 8 * values.itemsize),  # bits per sample
        (262, 1),  # 0 is black
        (273, 8),  # the data's offset
        (278, values.shape[0]),  # rows per strip
        (279, len(data)),
        (339, sample_format),
    ]
    entries = b"".join(struct.pack(f"{byte_order}HHII", tag, 4, 1, value) for tag, value in tags)
    magic = {"<": b"II*\0", ">": b"MM\0*"}[byte_order]
    offset, count = struct.pack(f"{byte_order}I", 8 + len(data)), struct.pack(f"{byte_order}H", 8)
    return magic + offset + data + count + entries + bytes(4)


@pytest.fixture
def send_tiff(tmp_path: Path) -> Callable[..., list[int]]:
    """One channel's columns in a TIFF: the red of the first row that they become."""

    def prepare_tiff(values: Array, byte_order: str = "<") -> list[int]:
        (tmp_path / "x.tif").write_bytes(tiff(columns(values), byte_order))
        array = prepare(tmp_path / "x.tif", PREPROCESSING).array
        assert (array == array[:1, :, :1]).all()  # grey, and all rows alike
        return array[0, :, 0].tolist()  # type: ignore[no-any-return]

    return prepare_tiff


def test_16_bit_png(send: Send) -> None:
    """In a 16-bit grey PNG 0 is black, 65535 is white, and what lies between is in proportion."""
    values = (STEPS * 257).astype(np.uint16)
    values[-2:] = 65535, 32768
    pixels = send(Image.fromarray(columns(values)), "x.png")
    assert pixels.array[0, :, 0].tolist() == [*range(SIZE - 2), 255, 128]


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_16_bit_tiff(byte_order: str, send_tiff: Callable[..., list[int]]) -> None:
    """So it is in a 16-bit TIFF of either byte order."""
    assert send_tiff((STEPS * 257).astype(np.uint16), byte_order) == STEPS.tolist()


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_a_dark_16_bit_tiff_stays_dark(
    byte_order: str, send_tiff: Callable[..., list[int]]
) -> None:
    """16 bits are 16 bits, even where none of the values needs more than 8."""
    assert max(send_tiff(STEPS.astype(np.uint16), byte_order)) == 1


def test_32_bit_tiff(send_tiff: Callable[..., list[int]]) -> None:
    """32-bit integers are read as 16-bit: few files use the rest, and none says what is white."""
    values = (STEPS * 257).astype(np.int32)
    values[-2:] = 1_000_000, -5
    assert send_tiff(values) == [*range(SIZE - 2), 255, 0]


def test_32_bit_tiff_of_8_bit_values(send_tiff: Callable[..., list[int]]) -> None:
    """32-bit integers of which none exceeds 255 are 8-bit values in a wide type."""
    assert send_tiff(STEPS.astype(np.int32)) == STEPS.tolist()


def test_float_tiff_from_0_to_1(send_tiff: Callable[..., list[int]]) -> None:
    """Floats none of which exceeds 1 run from 0, black, to 1, white."""
    values = (STEPS / 255).astype(np.float32)
    values[-2:] = 1.0, -0.5
    assert send_tiff(values) == [*range(SIZE - 2), 255, 0]


def test_float_tiff_from_0_to_255(send_tiff: Callable[..., list[int]]) -> None:
    """Floats some of which exceed 1 run from 0 to 255."""
    values = STEPS.astype(np.float32)
    values[-2:] = 1e9, -1e9
    assert send_tiff(values) == [*range(SIZE - 2), 255, 0]


@pytest.mark.filterwarnings("error")
def test_float_tiff_with_nan_and_infinity(send_tiff: Callable[..., list[int]]) -> None:
    """NaN is black and infinity white, and neither changes what the other pixels mean."""
    values = (STEPS / 255).astype(np.float32)
    values[-3:] = np.nan, np.inf, -np.inf
    assert send_tiff(values) == [*range(SIZE - 3), 0, 255, 0]


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("kind", ["u2", "i2", "i4", "f4"])
def test_compressed_numbers_of_either_byte_order(
    kind: str, byte_order: str, tmp_path: Path
) -> None:
    """A compressed TIFF shows what the same file shows uncompressed, whichever its byte order."""
    values = columns(STEPS / 255 if kind == "f4" else STEPS * 128).astype(kind)
    plain = hurtful.samples(values, byte_order)
    (tmp_path / "plain.tif").write_bytes(plain)
    data = zlib.compress(values.astype(values.dtype.newbyteorder(byte_order)).tobytes())
    deflate = (259, hurtful.SHORT, 1, 8)
    compressed = hurtful.samples(values, byte_order, deflate, data=data)
    (tmp_path / "compressed.tif").write_bytes(compressed)
    arrays = [
        prepare(tmp_path / f"{name}.tif", PREPROCESSING).array for name in ("plain", "compressed")
    ]
    np.testing.assert_array_equal(*arrays)
    assert arrays[0].max() > 100


# --- limits and errors ----------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces its size, and then nothing."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    )


def test_too_many_pixels(tmp_path: Path) -> None:
    """A file of more pixels than the limit is refused for its size, with the limit and its name,
    before anything is decoded: this one holds nothing to decode."""
    empty = png_header(10_001, 10_000) + b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    (tmp_path / "huge.png").write_bytes(empty)
    with pytest.raises(ImageError) as caught:
        prepare(tmp_path / "huge.png", PREPROCESSING)
    assert str(caught.value) == (
        "huge.png is 10001 × 10000, 100,010,000 pixels; the limit is 100,000,000"
        " (CLIP_MAX_IMAGE_PIXELS); send it smaller"
    )


@pytest.mark.parametrize("extension", ["jpg", "webp", "gif", "bmp", "tif", "avif", "heic"])
def test_the_limit_holds_for_every_format(extension: str, tmp_path: Path) -> None:
    """One pixel row above the limit is refused, at the limit is not, in every format."""
    path = tmp_path / f"picture.{extension}"
    scene(100, 101).save(path)
    with pytest.raises(ImageError, match=r"is 100 × 101, 10,100 pixels; the limit is 10,000 "):
        prepare(path, PREPROCESSING, max_pixels=10_000)
    assert prepare(path, PREPROCESSING, max_pixels=10_100).array.shape == (SIZE, SIZE, 3)


def test_the_limit_is_what_the_variable_says() -> None:
    """CLIP_MAX_IMAGE_PIXELS is a whole number; not set, or empty as `docker -e` may leave it, it is
    the default."""
    assert image.max_pixels("1000") == 1000
    assert image.max_pixels(None) == image.max_pixels(" ") == image.DEFAULT_MAX_PIXELS
    for setting in ("0", "-1", "1e6", "many"):
        with pytest.raises(ValueError, match=f"is '{setting}'; give a whole number of pixels"):
            image.max_pixels(setting)


def refusal(path: Path, content: bytes) -> str:
    """What is said of a file with this content."""
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        prepare(path, PREPROCESSING)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("page.html", b"<!doctype html><title>404</title>"),
        ("drawing.svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'),
        ("paper.pdf", b"%PDF-1.7\n1 0 obj\n"),
        ("empty.jpg", b""),
        ("random.png", Random(0).randbytes(5_000)),
    ],
)
def test_what_is_no_image_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    """A file that is no image is refused by its name, with a list of what can be sent."""
    assert refusal(tmp_path / name, content) == (
        f"{name} is not an image this service can read;"
        " send one of JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF and HEIC"
    )


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("signature.jpg", b"\xff\xd8\xff", "JPEG"),
        ("double.tif", tiff(np.zeros((9, 9)), "<"), "TIFF"),
        ("begun.gif", b"GIF89a", "GIF"),
    ],
)
def test_a_listed_format_that_cannot_be_read_is_named(
    name: str, content: bytes, kind: str, tmp_path: Path
) -> None:
    """A file that begins as one of the formats and is none that can be read is not called
    something else: a TIFF of 64-bit numbers, for one."""
    assert refusal(tmp_path / name, content) == (
        f"{name} is a damaged {kind}, or of a kind this service cannot read;"
        " save it anew as JPEG or PNG"
    )


@pytest.mark.parametrize(
    "extension", ["eps", "pcx", "tga", "ppm", "ico", "jp2", "icns", "sgi", "qoi", "dds"]
)
def test_formats_that_are_not_listed_are_refused(extension: str, tmp_path: Path) -> None:
    """What Pillow could open and we do not list is refused like anything else."""
    path = tmp_path / f"picture.{extension}"
    scene().save(path)
    with Image.open(path) as opened:
        assert opened.format not in image.FORMATS
    with pytest.raises(ImageError, match=r"is not an image this service can read; send one of"):
        prepare(path, PREPROCESSING)


def test_an_image_that_memory_does_not_hold(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is an error about the image, not an empty sentence; the next one may fit."""

    def no_memory(picture: Image.Image) -> Image.Image:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(colours, "to_rgb", no_memory)
        with pytest.raises(ImageError, match=r"^x\.png takes more memory than there is; "):
            send(scene(), "x.png")
    check_same(send(scene(), "x.png"), scene())


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "gif", "bmp", "tif", "heic"])
def test_a_truncated_file_is_refused(extension: str, tmp_path: Path) -> None:
    """A file that breaks off within its pixels is an error, never half a picture."""
    path = tmp_path / f"picture.{extension}"
    noise(300, 200).save(path)
    path.write_bytes(path.read_bytes()[:-1_000])
    with pytest.raises(ImageError, match=rf"^picture\.{extension} is damaged or incomplete: "):
        prepare(path, PREPROCESSING)


def test_a_truncated_avif_is_refused(tmp_path: Path) -> None:
    """So is an AVIF, though to its decoder a part of one may be no AVIF at all."""
    path = tmp_path / "picture.avif"
    noise(300, 200).save(path)
    intact = path.read_bytes()
    for missing in (20, 1_000, len(intact) // 2):
        path.write_bytes(intact[:-missing])
        with pytest.raises(ImageError, match=r"^picture\.avif is (a )?damaged "):
            prepare(path, PREPROCESSING)


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "gif", "bmp", "tif", "avif", "heic"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_bytes_are_an_image_error_or_an_image(extension: str, tmp_path: Path) -> None:
    """Whatever a few wrong bytes make a decoder do, the answer is an image or an ImageError."""
    path = tmp_path / f"picture.{extension}"
    scene(60, 40).save(path)
    intact, rng = path.read_bytes(), Random(extension)
    refused = 0
    for _ in range(100):
        damaged = bytearray(intact)
        for _ in range(3):
            damaged[rng.randrange(math.ceil(len(intact) / rng.choice([1, 8])))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            assert prepare(path, PREPROCESSING, 1_000_000).array.shape == (SIZE, SIZE, 3)
        except ImageError:
            refused += 1
    assert refused > 0


# --- large images, shrunk in stages ---------------------------------------------------------

# One step below the fast path's limit, and two sizes that cameras have.
LARGE = [(2944, 2960), (4000, 3000), (3024, 4032)]


def photograph(width: int, height: int) -> Image.Image:
    """An example enlarged, with a sensor's noise."""
    with Image.open(PHOTOS[0]) as photo:
        large = photo.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    grain = np.random.default_rng(1).normal(0, 6, (height, width, 3))
    return Image.fromarray((np.asarray(large) + grain).clip(0, 255).astype(np.uint8))


def screenshot(width: int, height: int) -> Image.Image:
    """Small coloured text and boxes on white and grey."""
    rng = Random(2)
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    draw.rectangle((0, 0, width // 5, height), fill=(230, 233, 240))
    font = ImageFont.load_default(14)
    line = "The quick brown fox jumps over the lazy dog 0123456789 " * (width // 300)
    for y in range(10, height, 19):
        colour = rng.randrange(200), rng.randrange(200), rng.randrange(200)
        draw.text((width // 5 + 10, y), line, fill=colour, font=font)
        draw.rectangle((5, y, rng.randrange(20, width // 5), y + 12), fill=colour)
    return page


def line_art(width: int, height: int) -> Image.Image:
    """Thin lines in all directions, sharp and black on white, some in colour."""
    rng = Random(3)
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    for number in range(400):
        ends = [rng.randrange(side) for side in (width, height, width, height)]
        colour = "black" if number % 4 else (rng.randrange(256), rng.randrange(256), 0)
        draw.line(ends, fill=colour, width=rng.randrange(1, 8))
    return page


def stripes(width: int, height: int) -> Image.Image:
    """Red and black stripes one pixel wide."""
    values = np.zeros((height, width, 3), dtype=np.uint8)
    values[:, ::2] = (255, 0, 0)
    return Image.fromarray(values)


KINDS = {"photograph": photograph, "screenshot": screenshot, "line art": line_art, "noise": noise}


def camera(orientation: int = 1) -> Image.Exif:
    tags = exif(orientation)
    tags[0x010F] = "A maker of cameras"
    return tags


def exact(path: Path) -> Array:
    """open_clip's transform of the file, decoded whole and turned upright."""
    with Image.open(path) as opened:
        return expected(ImageOps.exif_transpose(opened).convert("RGB"))


def check_bound(pixels: Pixels, square: Array) -> None:
    shift = np.abs(pixels.array.astype(int) - square)
    assert shift.mean() <= 0.3
    assert shift.max() <= 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", LARGE, ids=str)
def test_large_jpegs_are_within_the_bound(
    kind: str, size: tuple[int, int], send: Send, tmp_path: Path
) -> None:
    """Whatever a large JPEG shows, and though it names a camera, its pixels are open_clip's within
    a mean of 0.3 and a maximum of 3 of 255; its size is the file's."""
    pixels = send(KINDS[kind](*size), "x.jpg", quality=90, exif=camera())
    check_bound(pixels, exact(tmp_path / "x.jpg"))
    assert (pixels.width, pixels.height) == size


@pytest.mark.parametrize("kind", KINDS)
def test_large_images_that_are_halved_are_within_the_bound(
    kind: str, send: Send, tmp_path: Path
) -> None:
    """So are those of other formats that are large enough to be halved first."""
    picture = KINDS[kind](3600, 3584)
    pixels = send(picture, "x.bmp")
    check_bound(pixels, expected(picture))
    assert not np.array_equal(pixels.array, expected(picture))  # it was halved


@pytest.mark.parametrize("orientation", HELD)
def test_large_photographs_are_turned_upright(orientation: int, send: Send, tmp_path: Path) -> None:
    """A large photograph is turned as a small one is, and is within the bound however it lies."""
    pixels = send(photograph(4000, 3000), "x.jpg", quality=90, exif=camera(orientation))
    check_bound(pixels, exact(tmp_path / "x.jpg"))
    assert (pixels.width, pixels.height) == ((3000, 4000) if orientation > 4 else (4000, 3000))
    assert not np.array_equal(pixels.array, exact(tmp_path / "x.jpg"))  # the fast path was taken


def test_a_large_grey_photograph(send: Send, tmp_path: Path) -> None:
    """A grey JPEG is within the bound, too, and so is the first of several photographs."""
    grey_photo, other = photograph(4000, 3000).convert("L"), Image.new("L", (64, 64))
    for name, options in {
        "x.jpg": {},
        "x.mpo": {"save_all": True, "append_images": [other]},
    }.items():
        pixels = send(grey_photo, name, quality=90, exif=camera(), **options)
        check_bound(pixels, exact(tmp_path / name))


@pytest.mark.parametrize(
    ("draw", "size", "tags"),
    [
        (scene, (2048, 2056), camera()),  # too small
        (scene, (4001, 3000), camera()),  # a side that the scale does not divide
        (scene, (4000, 3004), camera()),
        (photograph, (4000, 3000), exif(1)),  # no camera is named
        (stripes, (4000, 3000), exif(1)),  # what a partial decoding would get wrong by 19
        (line_art, (4000, 3000), camera()),
        (screenshot, (4000, 3000), camera()),
    ],
    ids=["small", "odd width", "odd height", "no camera", "stripes", "line art", "screenshot"],
)
def test_jpegs_decoded_whole_are_exact(
    draw: Callable[[int, int], Image.Image],
    size: tuple[int, int],
    tags: Image.Exif,
    send: Send,
    tmp_path: Path,
) -> None:
    """A JPEG whose quarter might not show all is open_clip's bit for bit, even a soft picture of a
    size that the scale does not suit."""
    pixels = send(draw(*size), "x.jpg", quality=90, exif=tags)
    np.testing.assert_array_equal(pixels.array, exact(tmp_path / "x.jpg"))


def test_a_truncated_large_photograph_is_refused(tmp_path: Path) -> None:
    """A photograph that breaks off is refused on the fast path as on the other."""
    photograph(4000, 3000).save(tmp_path / "x.jpg", quality=90, exif=camera())
    (tmp_path / "x.jpg").write_bytes((tmp_path / "x.jpg").read_bytes()[:-100_000])
    with pytest.raises(ImageError, match=r"^x\.jpg is damaged or incomplete: "):
        prepare(tmp_path / "x.jpg", PREPROCESSING)
