"""Image files of every accepted format become pixels; other files are rejected.

tests/reference/test_pixels.py compares the pixels with open_clip's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image

from clip_embed.errors import ImageError, ModelError
from clip_embed.inputs import color, preprocess
from clip_embed.inputs.preprocess import PreprocessConfig, preprocess_image
from tests.helpers.bad_inputs import files
from tests.helpers.sample_images import (
    CONFIG,
    MEAN,
    SIZE,
    STD,
    assert_equal,
    assert_similar,
    noise,
    save_and_preprocess,
    scene,
)

# --- configuration --------------------------------------------------------------------------


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
def test_unsupported_preprocess_cfg_is_rejected(changed: Mapping[str, Any], message: str) -> None:
    """The error names the option and its value."""
    with pytest.raises(ModelError, match=f"^preprocess_cfg: {message}$"):
        PreprocessConfig.from_open_clip({"mean": MEAN, "std": STD, **changed}, SIZE)


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
def test_lossless_format_has_the_original_pixels(
    name: str, options: Mapping[str, Any], tmp_path: Path
) -> None:
    assert_equal(save_and_preprocess(scene(), tmp_path / name, **options), scene())


@pytest.mark.parametrize(
    ("name", "format_name"),
    [
        ("picture.jpg", "JPEG"),
        ("picture.webp", "WEBP"),
        ("picture.avif", "AVIF"),
        ("picture.heic", "HEIF"),
    ],
)
def test_lossy_format_has_nearly_the_original_pixels(
    name: str, format_name: str, tmp_path: Path
) -> None:
    assert_similar(save_and_preprocess(scene(), tmp_path / name, quality=90), scene())
    with Image.open(tmp_path / name) as reopened:
        assert reopened.format == format_name


def test_gif_has_the_colors_of_its_palette(tmp_path: Path) -> None:
    picture = scene().quantize(200)
    assert_equal(save_and_preprocess(picture, tmp_path / "picture.gif"), picture.convert("RGB"))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("animation.gif", {}),
        ("animation.png", {}),
        ("animation.webp", {"lossless": True}),
        ("pages.tif", {}),
    ],
)
def test_first_frame_or_page_is_used(name: str, options: Mapping[str, Any], tmp_path: Path) -> None:
    first = scene().quantize(64).convert("RGB")
    others = [Image.new("RGB", first.size, color) for color in ("red", "blue")]
    pixels = save_and_preprocess(
        first, tmp_path / name, save_all=True, append_images=others, **options
    )
    assert_equal(pixels, first)


@pytest.mark.parametrize("name", ["both-eyes.mpo", "burst.heic", "animation.avif"])
def test_first_photo_of_a_file_is_used(name: str, tmp_path: Path) -> None:
    other = Image.new("RGB", scene().size, "red")
    pixels = save_and_preprocess(scene(), tmp_path / name, save_all=True, append_images=[other])
    assert_similar(pixels, scene())
    with Image.open(tmp_path / name) as reopened:
        assert getattr(reopened, "n_frames", 1) == 2


@pytest.mark.parametrize("name", ["picture", "picture.txt", "picture.jpg", "picture.heic"])
def test_format_is_detected_from_the_content(name: str, tmp_path: Path) -> None:
    """The names of uploads and URLs are often wrong; this file is a PNG."""
    scene().save(tmp_path / name, format="PNG")
    assert_equal(preprocess_image(tmp_path / name, CONFIG), scene())


# --- the limit on pixels --------------------------------------------------------------------


def test_too_many_pixels_are_rejected_before_decoding(tmp_path: Path) -> None:
    """The error names file, size and limit; this file holds nothing to decode."""
    header = files.PNG + files.header(10_001, 12_000, depth=8, color=2)
    (tmp_path / "huge.png").write_bytes(header + files.chunk(b"IDAT", b""))
    with pytest.raises(ImageError) as caught:
        preprocess_image(tmp_path / "huge.png", CONFIG)
    assert str(caught.value) == (
        "huge.png is 10001 × 12000, 120,012,000 pixels; the limit is 120,000,000"
        " (CLIP_MAX_IMAGE_PIXELS); send it smaller"
    )


@pytest.mark.parametrize("extension", ["jpg", "webp", "gif", "bmp", "tif", "avif", "heic"])
def test_pixel_limit_is_inclusive_in_every_format(extension: str, tmp_path: Path) -> None:
    path = tmp_path / f"picture.{extension}"
    scene(100, 101).save(path)
    with pytest.raises(ImageError, match=r"is 100 × 101, 10,100 pixels; the limit is 10,000 "):
        preprocess_image(path, CONFIG, max_pixels=10_000)
    assert preprocess_image(path, CONFIG, max_pixels=10_100).array.shape == (SIZE, SIZE, 3)


# --- errors ---------------------------------------------------------------------------------


def error_message(path: Path, content: bytes) -> str:
    """Return the message of the ImageError that a file with `content` raises."""
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        preprocess_image(path, CONFIG)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("letter.txt", b"Dear Sir or Madam, <html>"),
        ("feed.xml", b"<?xml version='1.0'?><rss/>"),
        ("random.png", Random(0).randbytes(5_000)),
    ],
)
def test_file_that_is_not_an_image_is_rejected(name: str, content: bytes, tmp_path: Path) -> None:
    """The error names the file and the accepted formats."""
    assert error_message(tmp_path / name, content) == (
        f"{name} is not an image this service can read;"
        " send one of JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF and HEIC"
    )


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
HTML_MESSAGE = "is an HTML page, not an image; send the image's own address"
SVG_MESSAGE = "is an SVG, which this service cannot draw; send it as a PNG"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!doctype html><title>404</title>", HTML_MESSAGE),
        (b"\xef\xbb\xbf\r\n<!-- a > b -->\n<HTML lang=en>", HTML_MESSAGE),
        (b"<?xml version='1.0'?><!DOCTYPE html PUBLIC '-//W3C//DTD XHTML 1.0'>", HTML_MESSAGE),
        (SVG, SVG_MESSAGE),
        (b"<?xml version='1.0'?>\n<!-- drawn -->\n<!DOCTYPE svg PUBLIC '-'>\n" + SVG, SVG_MESSAGE),
        (b"<!DOCTYPE x [<!ENTITY a 'b'>]><svg>&a;</svg>", SVG_MESSAGE),
        (b"%PDF-1.7\n1 0 obj\n", "is a PDF, not an image; send a page of it as PNG or JPEG"),
        (b"", "is empty; send an image"),
    ],
)
def test_page_drawing_document_or_empty_file_is_named(
    content: bytes, message: str, tmp_path: Path
) -> None:
    assert error_message(tmp_path / "file", content) == f"file {message}"


def test_many_comments_take_no_time(tmp_path: Path) -> None:
    """A regular expression that tried every way to divide them would not end."""
    message = error_message(tmp_path / "file", b"<!---->" * 9_999)
    assert message.startswith("file is not an image this service can read; ")


@pytest.mark.parametrize(
    ("name", "content", "format_name"),
    [
        ("signature.jpg", b"\xff\xd8\xff", "JPEG"),
        (
            "no-strips.tif",
            files.tiff([(256, 4, 1, 9), (257, 4, 1, 9), (258, 3, 1, 8), (262, 3, 1, 1)]),
            "TIFF",
        ),
        ("begun.gif", b"GIF89a", "GIF"),
    ],
    ids=["signature alone", "no pixels", "header alone"],
)
def test_unreadable_file_of_an_accepted_format_is_rejected(
    name: str, content: bytes, format_name: str, tmp_path: Path
) -> None:
    """The error names the format, which is accepted in general."""
    assert error_message(tmp_path / name, content) == (
        f"{name} is a damaged {format_name}, or of a kind this service cannot read;"
        " save it anew as JPEG or PNG"
    )


@pytest.mark.parametrize(
    "extension", ["eps", "pcx", "tga", "ppm", "ico", "jp2", "icns", "sgi", "qoi", "dds"]
)
def test_other_formats_that_pillow_reads_are_rejected(extension: str, tmp_path: Path) -> None:
    path = tmp_path / f"picture.{extension}"
    scene().save(path)
    with Image.open(path) as opened:
        assert opened.format not in preprocess.FORMATS
    with pytest.raises(ImageError, match=r"is not an image this service can read; send one of"):
        preprocess_image(path, CONFIG)


def test_lack_of_memory_is_an_image_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next image is preprocessed as usual."""

    def raise_memory_error(*_: object) -> Image.Image:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(color, "to_rgb", raise_memory_error)
        with pytest.raises(ImageError, match=r"^x\.png takes more memory than there is; "):
            save_and_preprocess(scene(), tmp_path / "x.png")
    assert_equal(save_and_preprocess(scene(), tmp_path / "x.png"), scene())


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "gif", "bmp", "tif", "heic"])
def test_truncated_file_is_rejected(extension: str, tmp_path: Path) -> None:
    """A file that ends within its pixels is never decoded in part."""
    path = tmp_path / f"picture.{extension}"
    noise(120, 80).save(path)
    path.write_bytes(path.read_bytes()[:-1_000])
    with pytest.raises(ImageError, match=rf"^picture\.{extension} is (damaged or )?incomplete: "):
        preprocess_image(path, CONFIG)


def test_truncated_avif_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "picture.avif"
    noise(300, 200).save(path)
    intact = path.read_bytes()
    for missing in (20, 1_000, len(intact) // 2):
        path.write_bytes(intact[:-missing])
        with pytest.raises(ImageError, match=r"^picture\.avif is incomplete: "):
            preprocess_image(path, CONFIG)


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "gif", "bmp", "tif", "avif", "heic"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_bytes_give_pixels_or_an_image_error(extension: str, tmp_path: Path) -> None:
    """No other exception is raised for 40 files with three wrong bytes each."""
    path = tmp_path / f"picture.{extension}"
    scene(60, 40).save(path)
    intact, rng = path.read_bytes(), Random(extension)
    rejected = 0
    for _ in range(40):
        damaged = bytearray(intact)
        for _ in range(3):
            damaged[rng.randrange(math.ceil(len(intact) / rng.choice([1, 8])))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            assert preprocess_image(path, CONFIG, 1_000_000).array.shape == (SIZE, SIZE, 3)
        except ImageError:
            rejected += 1
    assert rejected > 0
