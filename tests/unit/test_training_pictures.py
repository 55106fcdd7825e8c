"""Which drawings of a package become pictures of which emoji, without npm."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFont

from scripts.training import pictures
from scripts.training.pictures import Emoji, Style

PIZZA = Emoji("1f355", "pizza", ("slice", "round"))
PHONE = Emoji("260e", "telephone", ("phone",))  # in Unicode: BLACK TELEPHONE
RED_HEART = Emoji("2764", "red heart", ("heart",))
BLUE_HEART = Emoji("1f499", "blue heart", ())
MOUSE = Emoji("1f401", "mouse", ())
COPYRIGHT = Emoji("a9", "copyright", ("round",))
KEYCAP = Emoji("31-20e3", "keycap: 1", ())
FRANCE = Emoji("1f1eb-1f1f7", "flag: France", ())
KNOWN = [PIZZA, PHONE, RED_HEART, BLUE_HEART, MOUSE, COPYRIGHT, KEYCAP, FRANCE]


def style(kind: str, files: str = "", black: bool = False) -> Style:
    return Style("test", "@icons/test@1.0.0", "MIT", "somebody", kind, files, black)


def write_package(folder: Path, of: Style, files: dict[str, Any]) -> Path:
    """Write an npm package as if it had been fetched."""
    package = folder / of.package.replace("/", "+")
    package.mkdir(parents=True)
    for name, content in files.items():
        (package / name).write_text(json.dumps(content))
    return package


def icons(*names: str, **aliases: dict[str, Any]) -> dict[str, Any]:
    bodies = {name: {"body": f"<path id='{name}' fill='currentColor'/>"} for name in names}
    return {"icons.json": {"icons": bodies, "aliases": aliases}}


def found(of: Style, folder: Path) -> dict[str, Any]:
    return pictures.find_pictures(of, KNOWN, folder)


@pytest.fixture
def emoji_sets(tmp_path: Path) -> Path:
    """The sets whose names and aliases the other sets of emoji share."""
    for each in (*pictures.HELD_OUT, pictures.TRAINING[0]):
        files = icons("pizza", **{"pizza-slice": {"parent": "pizza"}})
        write_package(tmp_path, each, files | {"chars.json": {"1f355": "pizza"}})
    return tmp_path


def test_icon_of_an_emoji_set_is_found_by_former_names(emoji_sets: Path) -> None:
    write_package(emoji_sets, style("emoji"), icons("pizza-slice", "blacktelephone", "else"))
    assert set(found(style("emoji"), emoji_sets)) == {PIZZA.code, PHONE.code}


def test_number_of_a_second_drawing_does_not_matter(emoji_sets: Path) -> None:
    write_package(emoji_sets, style("emoji"), icons("pizza-2"))
    assert set(found(style("emoji"), emoji_sets)) == {PIZZA.code}


def test_keyword_counts_if_one_emoji_has_it(emoji_sets: Path) -> None:
    write_package(emoji_sets, style("emoji"), icons("phone", "round"))
    assert set(found(style("emoji"), emoji_sets)) == {PHONE.code}


def test_other_icons_need_the_exact_name(tmp_path: Path) -> None:
    write_package(tmp_path, style("icons"), icons("pizza", "slice", "phone", "black-telephone"))
    assert set(found(style("icons"), tmp_path)) == {PIZZA.code, PHONE.code}


def test_icons_with_a_homonym_are_left_out(tmp_path: Path) -> None:
    write_package(tmp_path, style("icons"), icons("pizza", "mouse"))
    assert set(found(style("icons"), tmp_path)) == {PIZZA.code}


def test_transformed_aliases_are_left_out(tmp_path: Path) -> None:
    turned = {"parent": "else", "rotate": 1}
    write_package(tmp_path, style("icons"), icons("else", pizza=turned))
    assert found(style("icons"), tmp_path) == {}


def test_icons_without_a_color_are_black(tmp_path: Path) -> None:
    write_package(tmp_path, style("icons"), icons("pizza"))
    assert "fill='#000000'" in found(style("icons"), tmp_path)[PIZZA.code]


def test_black_drawings_of_what_differs_in_color_are_left_out(tmp_path: Path) -> None:
    for black in (False, True):
        of = style("files", "*.png", black)
        folder = tmp_path / str(black)
        write_package(folder, of, {f"{emoji.code}.png": None for emoji in KNOWN})
        missing = {emoji.code for emoji in KNOWN} - set(found(of, folder))
        expected = {RED_HEART.code, BLUE_HEART.code, FRANCE.code} if black else set()
        assert missing == expected


def test_files_are_found_by_code_points(tmp_path: Path) -> None:
    of = style("files", "*.png")
    write_package(tmp_path, of, {"1F355.png": None, "0031-fe0f-20e3.png": None, "1f9ff.png": None})
    assert {code: path.name for code, path in found(of, tmp_path).items()} == {
        PIZZA.code: "1F355.png",
        KEYCAP.code: "0031-fe0f-20e3.png",
    }


@pytest.fixture
def font(tmp_path: Path) -> Style:
    """A font that has a copyright sign and digits, but no emoji."""
    of = style("font", "*.ttf")
    default = ImageFont.load_default(20)
    assert isinstance(default, ImageFont.FreeTypeFont)
    (write_package(tmp_path, of, {}) / "test.ttf").write_bytes(default.path.getvalue())  # type: ignore[union-attr]
    return of


def test_font_gives_emoji_that_are_one_glyph(font: Style, tmp_path: Path) -> None:
    assert set(found(font, tmp_path)) == {COPYRIGHT.code}


def test_glyph_fills_the_picture(font: Style, tmp_path: Path) -> None:
    alpha = pictures.draw(found(font, tmp_path)[COPYRIGHT.code])[:, :, 3]
    rows, columns = np.nonzero(alpha.max(1))[0], np.nonzero(alpha.max(0))[0]
    assert max(np.ptp(rows), np.ptp(columns)) >= pictures.SIZE - 2


def test_drawings_are_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "ProcessPoolExecutor", lambda **_: ThreadPoolExecutor())
    of = style("files", "*.png")
    package = write_package(tmp_path, of, {})
    Image.new("RGB", (72, 36), "red").save(package / "260e.png")
    first = pictures.drawings(of, KNOWN, tmp_path)
    (package / "260e.png").unlink()
    second = pictures.drawings(of, KNOWN, tmp_path)
    assert first.classes.tolist() == second.classes.tolist() == [KNOWN.index(PHONE)]
    assert np.array_equal(first.pixels, second.pixels)
    # In the middle of a transparent square.
    assert first.pixels[0, :, 32, 3].tolist() == [0] * 16 + [255] * 32 + [0] * 16
