"""Fetch emoji in several styles from the npm registry, with names and keywords, and draw them."""

from __future__ import annotations

import io
import json
import re
import subprocess
import tarfile
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

SIZE = 64  # pixels per side of the model's input

NAMES = "emojibase-data@17.0.0"
KEYWORDS = "emojilib@4.0.3"


@dataclass(frozen=True)
class Style:
    """The drawings of one designer.

    name: in tables. package: of npm. license, credit: for the model card. kind: the layout of the
    package, "iconify", "webp" or "datasource".
    """

    name: str
    package: str
    license: str
    credit: str
    kind: str = "iconify"


# Styles with a share-alike license (OpenMoji, the first EmojiOne) are not used for training, so the
# question whether weights inherit the license does not arise.
TRAINING = [
    Style("noto", "@iconify-json/noto@1.2.9", "Apache-2.0", "Noto Emoji, Google"),
    Style("noto-blob", "@iconify-json/noto-v1@1.2.5", "Apache-2.0", "Noto Emoji v1, Google"),
    Style("fluent", "@iconify-json/fluent-emoji@1.2.7", "MIT", "Fluent Emoji, Microsoft"),
    Style("fluent-flat", "@iconify-json/fluent-emoji-flat@1.2.6", "MIT", "Fluent Emoji, Microsoft"),
    Style("fluent-3d", "@lobehub/fluent-emoji-3d@1.1.0", "MIT", "Fluent Emoji, Microsoft", "webp"),
    Style("emojitwo", "@iconify-json/emojione@1.2.3", "CC-BY-4.0", "EmojiTwo / Emoji One 2"),
    Style("fxemoji", "@iconify-json/fxemoji@1.2.2", "Apache-2.0", "Firefox OS Emoji, Mozilla"),
    Style(
        "streamline",
        "@iconify-json/streamline-emojis@1.2.4",
        "CC-BY-4.0",
        "Streamline Emojis, Webalys",
    ),
    Style(
        "fluent-black",
        "@iconify-json/fluent-emoji-high-contrast@1.2.6",
        "MIT",
        "Fluent Emoji, Microsoft",
    ),
    # For flags, which the vector edition of Noto lacks.
    Style(
        "noto-raster",
        "emoji-datasource-google@16.0.0",
        "Apache-2.0; flags public domain",
        "Noto Emoji, Google",
        "datasource",
    ),
]
# Not used for training.
TWEMOJI = Style("twemoji", "@iconify-json/twemoji@1.2.5", "CC-BY-4.0", "Twemoji, Twitter, Inc.")
OPENMOJI = Style("openmoji", "@iconify-json/openmoji@1.2.29", "CC-BY-SA-4.0", "OpenMoji")
HELD_OUT = [TWEMOJI, OPENMOJI]


@dataclass(frozen=True)
class Emoji:
    """One class of pictures.

    code: Unicode code points like "1f600-1f3fb", without U+FE0F. label: CLDR's short name.
    keywords: other names and related words, in lower case, without the label.
    """

    code: str
    label: str
    keywords: tuple[str, ...]


def code_of(text: str) -> str:
    """Return the `Emoji.code` of `text`: an emoji, or code points in any usual hex notation."""
    if not re.fullmatch(r"[0-9A-Fa-f]{2,6}([-_ ][0-9A-Fa-f]{2,6})*", text):
        text = "-".join(f"{ord(letter):x}" for letter in text)
    points = (point.lower().lstrip("0") for point in re.split("[-_ ]", text))
    return "-".join(point for point in points if point != "fe0f")


def slug(text: str) -> str:
    """Spell a name like icon sets do: lower case, ASCII, hyphens."""
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace("'", "")).strip("-")


def download(package: str, folder: Path) -> Path:
    """Return the content of an npm package, fetched once. Raises SystemExit if npm fails."""
    target = folder / package.replace("/", "+")
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(
            ["npm", "pack", "--silent", package, "--pack-destination", str(folder)],
            capture_output=True,
            text=True,
            check=True,
        )
    except FileNotFoundError:
        raise SystemExit("npm is not installed; it fetches the pictures") from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"npm cannot fetch {package}: {error.stderr.strip()}") from error
    archive = folder / done.stdout.strip().splitlines()[-1]
    partial = target.with_suffix(".partial")
    with tarfile.open(archive) as tar:
        tar.extractall(partial, filter="data")
    archive.unlink()
    (partial / "package").rename(target)
    partial.rmdir()
    return target


def _read(path: Path) -> Any:
    return json.loads(path.read_bytes())


# --- names ----------------------------------------------------------------------------------


def emojis(folder: Path) -> list[Emoji]:
    """Return all emoji of Unicode 17 except components and skin tones, in Unicode's order."""
    names = download(NAMES, folder) / "en"
    keywords = {
        code_of(char): words
        for char, words in _read(download(KEYWORDS, folder) / "dist" / "emoji-en-US.json").items()
    }
    shortcodes: dict[str, list[str]] = {}
    for source in ("emojibase", "github", "joypixels", "iamcal"):
        for code, given in _read(names / "shortcodes" / f"{source}.json").items():
            shortcodes.setdefault(code_of(code), []).extend(
                [given] if isinstance(given, str) else given
            )
    found = []
    for entry in _read(names / "data.json"):
        if entry.get("group") in (None, 2):  # 2: components, such as hair and skin tones
            continue
        code = code_of(entry["hexcode"])
        label = entry["label"]
        words = [*entry.get("tags", []), *keywords.get(code, []), *shortcodes.get(code, [])]
        cleaned = (re.sub(r"[_\s]+", " ", word).strip().lower() for word in words)
        kept = dict.fromkeys(word for word in cleaned if re.search("[a-z0-9]", word))
        kept.pop(label.lower(), None)
        found.append(Emoji(code, label, tuple(kept)))
    return found


def _known_names(known: list[Emoji], folder: Path) -> dict[str, str]:
    """Map the slug of every current or former name to the emoji's code."""
    names: dict[str, str] = {}
    codes = {emoji.code for emoji in known}
    for emoji in known:
        names.setdefault(slug(emoji.label), emoji.code)
    # Icon sets hold names from older versions of Unicode.
    for style in (*HELD_OUT, TRAINING[0]):
        package = download(style.package, folder)
        icons = _read(package / "icons.json")
        for code, name in _read(package / "chars.json").items():
            if code_of(code) in codes:
                names.setdefault(name, code_of(code))
        for name, alias in icons.get("aliases", {}).items():
            if alias["parent"] in names:
                names.setdefault(name, names[alias["parent"]])
    for name, code in list(names.items()):
        if name.startswith("flag-"):
            names.setdefault("flag-for-" + name.removeprefix("flag-"), code)
    for emoji in known:  # keywords last: they are the least specific
        for word in emoji.keywords[::-1]:
            if len(word.split()) > 1:
                names.setdefault(slug(word), emoji.code)
    return names


# --- pictures -------------------------------------------------------------------------------

Draw = Callable[[], Image.Image]


def _find_icons(package: Path, names: Mapping[str, str], codes: set[str]) -> dict[str, Draw]:
    icons = _read(package / "icons.json")
    exact = dict(names)
    loose = {name.replace("-", ""): code for name, code in reversed(names.items())}
    chars = package / "chars.json"
    if chars.exists():
        exact |= {name: code_of(code) for code, name in _read(chars).items()}
    found: dict[str, Draw] = {}
    for name in (*icons["icons"], *icons.get("aliases", {})):
        alias = icons.get("aliases", {}).get(name)
        icon = icons["icons"].get(alias["parent"] if alias else name)
        code = exact.get(name) or loose.get(name.replace("-", ""))
        if icon is None or code not in codes or (alias and len(alias) > 1):
            continue
        width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
        left, top = (icon.get(side, icons.get(side, 0)) for side in ("left", "top"))
        body = icon["body"].replace("currentColor", "#000000")
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
            f' viewBox="{left} {top} {width} {height}">{body}</svg>'
        )
        found.setdefault(code, lambda svg=svg: _render(svg))  # type: ignore[misc]
    return found


def _render(svg: str) -> Image.Image:
    import resvg_py  # not needed once the pictures are drawn

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIZE, height=2 * SIZE))
    return Image.open(io.BytesIO(png))


def _find_files(paths: Iterator[Path], codes: set[str]) -> dict[str, Draw]:
    found: dict[str, Draw] = {}
    for path in sorted(paths):
        code = code_of(path.stem)
        if code in codes:
            found[code] = lambda path=path: Image.open(path)  # type: ignore[misc]
    return found


def _to_square(picture: Image.Image) -> npt.NDArray[np.uint8]:
    """Return the whole picture, centered on a transparent square: RGBA [SIZE, SIZE, 4]."""
    picture = picture.convert("RGBA")
    picture.thumbnail((SIZE, SIZE), Image.Resampling.BICUBIC, reducing_gap=None)
    canvas = Image.new("RGBA", (SIZE, SIZE), (255, 255, 255, 0))
    canvas.paste(picture, ((SIZE - picture.width) // 2, (SIZE - picture.height) // 2))
    return np.asarray(canvas)


@dataclass(frozen=True)
class Drawings:
    """The pictures of one style.

    pixels: uint8 [N, SIZE, SIZE, 4], RGBA. classes: int64 [N], ascending indexes of emoji.
    """

    style: str
    pixels: npt.NDArray[np.uint8]
    classes: npt.NDArray[np.int64]


def drawings(style: Style, known: list[Emoji], folder: Path) -> Drawings:
    """Return the pictures that `style` has of `known`; drawn once and stored in `folder`."""
    file = folder / f"{style.name}-{SIZE}.npz"
    if not file.exists():
        draw = _find_pictures(style, known, folder)
        classes = [index for index, emoji in enumerate(known) if emoji.code in draw]
        with ThreadPoolExecutor() as pool:
            pictures = pool.map(lambda index: _to_square(draw[known[index].code]()), classes)
            pixels = list(tqdm(pictures, f"drawing {style.name}", len(classes)))
        partial = file.with_suffix(".partial.npz")
        np.savez(partial, pixels=np.stack(pixels), classes=np.array(classes))
        partial.rename(file)
    with np.load(file) as arrays:
        return Drawings(style.name, arrays["pixels"], arrays["classes"])


def _find_pictures(style: Style, known: list[Emoji], folder: Path) -> dict[str, Draw]:
    """Return a function for each code in the package of `style` that draws its picture."""
    package = download(style.package, folder)
    codes = {emoji.code for emoji in known}
    if style.kind == "iconify":
        return _find_icons(package, _known_names(known, folder), codes)
    if style.kind == "webp":
        return _find_files((package / "assets").glob("*.webp"), codes)
    flags = {code for code in codes if _is_flag(code)}
    return _find_files((package / "img" / "google" / "64").glob("*.png"), flags)


def _is_flag(code: str) -> bool:
    """Return whether the code is the flag of a country or a region."""
    return code.startswith(("1f1", "1f3f4-e"))
