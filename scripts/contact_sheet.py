"""Pictures to look at: rows of finds, and a table of similarities in colours. Knows nothing of
models, vectors or services.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps

TILE = 112  # pixels a picture may take
GAP = 12
CAPTION = 34  # pixels under a picture
SIDE = 260  # pixels for the query
INK, FAINT, PAPER, GROUND = "#1b1f24", "#68707a", "#ffffff", "#f4f5f7"
# From dark to light as values rise: anchors of a ramp that also works in greyscale.
RAMP = np.array(
    [(36, 18, 74), (68, 60, 130), (46, 110, 142), (36, 158, 137), (122, 204, 92), (250, 230, 60)]
)


@dataclass(frozen=True)
class Find:
    """A picture with a word and a score under it. right: framed, where the answer is known."""

    picture: Image.Image
    caption: str
    score: float
    right: bool = False


@dataclass(frozen=True)
class Row:
    """What was asked for, in words or as a picture, and what was found, best first."""

    query: str | Image.Image
    finds: Sequence[Find]


def sheet(title: str, rows: Sequence[Row]) -> Image.Image:
    """One row under another, the query at the left."""
    columns = max((len(row.finds) for row in rows), default=0)
    height = TILE + CAPTION + GAP
    size = (SIDE + columns * (TILE + GAP) + 2 * GAP, 48 + len(rows) * height + GAP)
    canvas = Image.new("RGB", size, GROUND)
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP, GAP), title, INK, _font(20))
    for number, row in enumerate(rows):
        top = 48 + number * height
        if isinstance(row.query, str):
            text = _wrapped(draw, f"“{row.query}”", _font(17), SIDE - 2 * GAP)
            box = draw.multiline_textbbox((0, 0), text, _font(17))
            middle = top + (TILE - box[3]) // 2
            draw.multiline_text((GAP, middle), text, INK, _font(17))
        else:
            _paste(canvas, row.query, SIDE - TILE - GAP, top)
        for column, find in enumerate(row.finds):
            left = SIDE + column * (TILE + GAP)
            _paste(canvas, find.picture, left, top)
            if find.right:
                frame = (left - 3, top - 3, left + TILE + 2, top + TILE + 2)
                draw.rectangle(frame, outline="#2da44e", width=3)
            caption = _cut(draw, find.caption, _font(12), TILE)
            draw.text((left, top + TILE + 3), caption, INK, _font(12))
            draw.text((left, top + TILE + 17), f"{find.score:.3f}", FAINT, _font(12))
    return canvas


def heat_map(
    title: str,
    similarity: npt.NDArray[np.floating],
    rows: Sequence[str],
    columns: Sequence[Image.Image],
) -> Image.Image:
    """similarity: [rows, columns]; the darkest cell is the least of them, the lightest the most."""
    cell, top = 68, 48 + 68 + GAP
    left = SIDE + 60
    canvas = Image.new(
        "RGB", (left + len(columns) * cell + 2 * GAP, top + len(rows) * cell + 56), GROUND
    )
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP, GAP), title, INK, _font(20))
    low, high = float(similarity.min()), float(similarity.max())
    for column, picture in enumerate(columns):
        _paste(canvas, picture, left + column * cell + 2, 48, cell - 4)
    for row, name in enumerate(rows):
        text = _wrapped(draw, name, _font(14), left - 2 * GAP)
        draw.multiline_text((GAP, top + row * cell + cell // 2), text, INK, _font(14), "lm")
        for column in range(len(columns)):
            value = float(similarity[row, column])
            x, y = left + column * cell, top + row * cell
            share = (value - low) / max(high - low, 1e-9)
            draw.rectangle((x, y, x + cell - 2, y + cell - 2), _colour(share))
            ink = "#ffffff" if share < 0.6 else INK
            draw.text((x + cell // 2, y + cell // 2), f"{value:.2f}", ink, _font(14), "mm")
    bottom = top + len(rows) * cell + GAP
    for x in range(240):
        draw.line((left + x, bottom, left + x, bottom + 14), _colour(x / 239))
    draw.text((left, bottom + 18), f"{low:.2f}", FAINT, _font(13))
    draw.text((left + 240, bottom + 18), f"{high:.2f}", FAINT, _font(13), "ra")
    draw.text((left + 256, bottom - 1), "cosine similarity", FAINT, _font(13))
    return canvas


def below(*parts: Image.Image) -> Image.Image:
    """One picture of several, each under the last."""
    canvas = Image.new("RGB", (max(p.width for p in parts), sum(p.height for p in parts)), GROUND)
    top = 0
    for part in parts:
        canvas.paste(part, (0, top))
        top += part.height
    return canvas


def _paste(
    canvas: Image.Image, picture: Image.Image, left: int, top: int, size: int = TILE
) -> None:
    """The whole picture on white paper, upright, in the middle of its place."""
    canvas.paste(PAPER, (left, top, left + size, top + size))
    picture = (ImageOps.exif_transpose(picture) or picture).convert("RGBA")
    picture = ImageOps.contain(picture, (size - 8, size - 8), Image.Resampling.LANCZOS)
    place = (left + (size - picture.width) // 2, top + (size - picture.height) // 2)
    canvas.paste(picture, place, picture)


def _colour(share: float) -> tuple[int, int, int]:
    place = min(max(share, 0.0), 1.0) * (len(RAMP) - 1)
    below_ = min(int(place), len(RAMP) - 2)
    red, green, blue = RAMP[below_] + (RAMP[below_ + 1] - RAMP[below_]) * (place - below_)
    return int(red), int(green), int(blue)


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own: no font need be installed."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _cut(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[:-1]
    return text + "…"


def _wrapped(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)
