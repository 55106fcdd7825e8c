"""Take a picture of the page for search, for the documentation.

Start the page first: scripts/demo --page. Then, in another terminal:
.venv/bin/python -m tests.helpers.page_picture docs/search_page.webp
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

from tests.helpers.chromium import running_chromium

URL = "http://127.0.0.1:8100"
SENTENCE = "a green plant"
LABELS = "animal, food, plant, face, flag, vehicle"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--url", default=URL)
    parser.add_argument("--sentence", default=SENTENCE)
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=800)
    options = parser.parse_args()
    with running_chromium() as browser:
        size = {"width": options.width, "height": options.height}
        page = browser.new_page(viewport=size, color_scheme=options.scheme)
        page.goto(options.url)
        _fill(page, options.sentence)
        png = page.screenshot()
    with Image.open(io.BytesIO(png)) as picture:
        picture.convert("RGB").save(options.file, quality=88, method=6)


def _fill(page: Page, sentence: str) -> None:
    """Search, add tags, and wait until all pictures are there."""
    page.fill("#text", sentence)
    if page.locator("#labels").is_visible():
        page.fill("#labels", LABELS)
        page.wait_for_selector("#tags button")
        page.locator("#labels").blur()
    page.wait_for_timeout(1000)  # for the answers to the last letters
    page.wait_for_load_state("networkidle")


if __name__ == "__main__":
    main()
