"""Read the held-out drawings in `examples/`: Twemoji, a style the demo's model has not seen."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / "examples"
SHEET = FOLDER / "twemoji.webp"  # square tiles, row by row
NAMES = FOLDER / "twemoji.json"  # the names of the tiles, in the same order
COLUMNS = 44


@dataclass(frozen=True)
class Drawing:
    """name: Unicode's short name. picture: RGBA, square."""

    name: str
    picture: Image.Image

    def png(self) -> bytes:
        """Encode the picture as a PNG file."""
        file = io.BytesIO()
        self.picture.save(file, "PNG", compress_level=1)
        return file.getvalue()


def held_out() -> list[Drawing]:
    """Return all drawings, in Unicode's order."""
    names = json.loads(NAMES.read_bytes())
    with Image.open(SHEET) as sheet:
        tiles = sheet.convert("RGBA")
    size = tiles.width // COLUMNS
    drawings = []
    for i, name in enumerate(names):
        left, top = i % COLUMNS * size, i // COLUMNS * size
        drawings.append(Drawing(name, tiles.crop((left, top, left + size, top + size))))
    return drawings


def pack(names: Sequence[str], pictures: Sequence[Image.Image]) -> None:
    """Write the files that `held_out` reads. pictures: RGBA, square, all of one size.

    Used once, to make the files in `examples/`.
    """
    size = pictures[0].width
    rows = -(-len(pictures) // COLUMNS)
    tiles = Image.new("RGBA", (COLUMNS * size, rows * size), (255, 255, 255, 0))
    for i, picture in enumerate(pictures):
        tiles.paste(picture, (i % COLUMNS * size, i // COLUMNS * size))
    tiles.save(SHEET, "WEBP", quality=90, alpha_quality=100, method=6)
    NAMES.write_text(json.dumps(list(names), ensure_ascii=False, indent=0) + "\n")
