"""Draw search results as a picture: a contact sheet, and a heat map of similarities.

Works on pictures and numbers; models, embeddings and services are not its subject.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps

# Pixels.
TILE_SIZE = 112  # width and height of a result
GAP = 12
CAPTION_HEIGHT = 48  # under a result: two lines of its name, one of its score
QUERY_WIDTH = 260  # the column of queries, at the left
TITLE_HEIGHT = 48
CELL_SIZE = 68  # of the heat map
SCALE_WIDTH = 240  # of the heat map's color scale
INK, FAINT_INK, PAPER, BACKGROUND = "#1b1f24", "#68707a", "#ffffff", "#f4f5f7"
EXPECTED_FRAME = "#2da44e"
# Color scale from low to high. Brightness rises with the value, so it also works in grayscale.
COLOR_SCALE = np.array(
    [(36, 18, 74), (68, 60, 130), (46, 110, 142), (36, 158, 137), (122, 204, 92), (250, 230, 60)]
)


@dataclass(frozen=True)
class Match:
    """One search result. expected: it is the right answer, and gets a frame."""

    picture: Image.Image
    caption: str
    score: float
    expected: bool = False


@dataclass(frozen=True)
class ResultRow:
    """A query, a text or a picture, and its matches, best first."""

    query: str | Image.Image
    matches: Sequence[Match]


def draw_results(title: str, rows: Sequence[ResultRow]) -> Image.Image:
    """Draw a contact sheet: one row per query, the query at the left of its matches."""
    columns = max((len(row.matches) for row in rows), default=0)
    row_height = TILE_SIZE + CAPTION_HEIGHT + GAP
    width = QUERY_WIDTH + columns * (TILE_SIZE + GAP) + 2 * GAP
    canvas = Image.new("RGB", (width, TITLE_HEIGHT + len(rows) * row_height + GAP), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP, GAP), title, INK, _font(20))
    if any(match.expected for row in rows for match in row.matches):
        _draw_legend(draw, width)
    for number, row in enumerate(rows):
        top = TITLE_HEIGHT + number * row_height
        if isinstance(row.query, str):
            text = _wrap(draw, f"“{row.query}”", _font(17), QUERY_WIDTH - 2 * GAP)
            _, _, _, text_height = draw.multiline_textbbox((0, 0), text, _font(17))
            position = (GAP, top + (TILE_SIZE - text_height) // 2)
            draw.multiline_text(position, text, INK, _font(17))
        else:
            _paste(canvas, row.query, QUERY_WIDTH - TILE_SIZE - GAP, top)
        for column, match in enumerate(row.matches):
            left = QUERY_WIDTH + column * (TILE_SIZE + GAP)
            _paste(canvas, match.picture, left, top)
            if match.expected:
                frame = (left - 3, top - 3, left + TILE_SIZE + 2, top + TILE_SIZE + 2)
                draw.rectangle(frame, outline=EXPECTED_FRAME, width=3)
            _draw_caption(draw, match, left, top + TILE_SIZE + 3)
    return canvas


def _draw_legend(draw: ImageDraw.ImageDraw, width: int) -> None:
    """Say at the top right what a frame means."""
    text = "the right answer"
    left = width - 2 * GAP - round(draw.textlength(text, _font(14)))
    draw.text((left, GAP + 4), text, FAINT_INK, _font(14))
    draw.rectangle((left - 26, GAP + 4, left - 10, GAP + 20), outline=EXPECTED_FRAME, width=3)


def _draw_caption(draw: ImageDraw.ImageDraw, match: Match, left: int, top: int) -> None:
    """Write the name of a result in at most two lines, and its score below."""
    lines = _wrap(draw, match.caption, _font(12), TILE_SIZE).split("\n")
    for line in [lines[0], " ".join(lines[1:])]:
        if line:
            draw.text((left, top), _truncate(draw, line, _font(12), TILE_SIZE), INK, _font(12))
            top += 14
    draw.text((left, top), f"{match.score:.3f}", FAINT_INK, _font(12))


def draw_heat_map(
    title: str,
    similarity: npt.NDArray[np.floating],
    rows: Sequence[str],
    columns: Sequence[Image.Image],
) -> Image.Image:
    """Draw a table of similarities in colors, from the lowest to the highest value.

    similarity: [R, C]. rows: R texts. columns: C pictures.
    """
    left, top = QUERY_WIDTH + 60, TITLE_HEIGHT + CELL_SIZE + GAP
    size = (left + len(columns) * CELL_SIZE + 2 * GAP, top + len(rows) * CELL_SIZE + 56)
    canvas = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP, GAP), title, INK, _font(20))
    low, high = float(similarity.min()), float(similarity.max())
    for column, picture in enumerate(columns):
        _paste(canvas, picture, left + column * CELL_SIZE + 2, TITLE_HEIGHT, CELL_SIZE - 4)
    for row, name in enumerate(rows):
        text = _wrap(draw, name, _font(14), left - 2 * GAP)
        middle = top + row * CELL_SIZE + CELL_SIZE // 2
        draw.multiline_text((GAP, middle), text, INK, _font(14), "lm")
        for column in range(len(columns)):
            value = float(similarity[row, column])
            x, y = left + column * CELL_SIZE, top + row * CELL_SIZE
            fraction = (value - low) / max(high - low, 1e-9)
            draw.rectangle((x, y, x + CELL_SIZE - 2, y + CELL_SIZE - 2), _color(fraction))
            ink = "#ffffff" if fraction < 0.6 else INK
            draw.text((x + CELL_SIZE // 2, middle), f"{value:.2f}", ink, _font(14), "mm")
    bottom = top + len(rows) * CELL_SIZE + GAP
    for x in range(SCALE_WIDTH):
        color = _color(x / (SCALE_WIDTH - 1))
        draw.line((left + x, bottom, left + x, bottom + 14), color)
    draw.text((left, bottom + 18), f"{low:.2f}", FAINT_INK, _font(13))
    draw.text((left + SCALE_WIDTH, bottom + 18), f"{high:.2f}", FAINT_INK, _font(13), "ra")
    draw.text((left + SCALE_WIDTH + 16, bottom - 1), "cosine similarity", FAINT_INK, _font(13))
    return canvas


def stack(*pictures: Image.Image) -> Image.Image:
    """Return one picture with all `pictures` below each other."""
    size = (max(p.width for p in pictures), sum(p.height for p in pictures))
    canvas = Image.new("RGB", size, BACKGROUND)
    top = 0
    for picture in pictures:
        canvas.paste(picture, (0, top))
        top += picture.height
    return canvas


def _paste(
    canvas: Image.Image, picture: Image.Image, left: int, top: int, size: int = TILE_SIZE
) -> None:
    """Paste `picture`, upright and scaled to fit, in the middle of a white square."""
    canvas.paste(PAPER, (left, top, left + size, top + size))
    picture = (ImageOps.exif_transpose(picture) or picture).convert("RGBA")
    picture = ImageOps.contain(picture, (size - 8, size - 8), Image.Resampling.LANCZOS)
    corner = (left + (size - picture.width) // 2, top + (size - picture.height) // 2)
    canvas.paste(picture, corner, picture)


def _color(fraction: float) -> tuple[int, int, int]:
    """Interpolate COLOR_SCALE. fraction: 0 to 1."""
    position = min(max(fraction, 0.0), 1.0) * (len(COLOR_SCALE) - 1)
    lower = min(int(position), len(COLOR_SCALE) - 2)
    step = COLOR_SCALE[lower + 1] - COLOR_SCALE[lower]
    red, green, blue = COLOR_SCALE[lower] + step * (position - lower)
    return int(red), int(green), int(blue)


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return Pillow's built-in font: no font must be installed."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _truncate(
    draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: int
) -> str:
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[:-1]
    return text + "…"


def _wrap(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)
