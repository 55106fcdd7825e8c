"""Fetch emoji in several styles from the npm registry, with names and keywords, and draw them."""

from __future__ import annotations

import io
import json
import re
import subprocess
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

SIZE = 64  # pixels per side of the model's input

NAMES = "emojibase-data@17.0.0"
KEYWORDS = "emojilib@4.0.3"


@dataclass(frozen=True)
class Style:
    """The drawings of one designer.

    name: in tables. package: of npm. license, credit: for the model card. black: drawn in black.

    kind: what the package holds.
        "emoji": an icon set of Iconify, named after emoji
        "icons": an icon set of Iconify for other uses; only exact names count
        "files": pictures, named after code points
        "font": a font
    files: pattern of the files, for the last two.
    """

    name: str
    package: str
    license: str
    credit: str
    kind: str = "emoji"
    files: str = ""
    black: bool = False


def _icons(name: str, version: str, license: str, credit: str, black: bool = False) -> Style:
    return Style(name, f"@iconify-json/{name}@{version}", license, credit, "icons", black=black)


def _google(name: str, version: str) -> Style:
    package, license = f"emoji-datasource-google@{version}", "Apache-2.0; flags public domain"
    return Style(name, package, license, "Noto Emoji, Google", "files", "img/google/64/*.png")


# Names that icon sets give to other things: a computer mouse, memory, a stamp, a ball game.
HOMONYMS = {"mouse", "ram", "seal", "cricket", "rock", "anchor", "satellite", "label"}

# Styles with a share-alike license (OpenMoji, the first EmojiOne) are not used for training, so the
# question whether weights inherit the license does not arise.
TRAINING = [
    Style("noto", "@iconify-json/noto@1.2.9", "Apache-2.0", "Noto Emoji, Google"),
    Style("noto-blob", "@iconify-json/noto-v1@1.2.5", "Apache-2.0", "Noto Emoji v1, Google"),
    Style("fluent", "@iconify-json/fluent-emoji@1.2.7", "MIT", "Fluent Emoji, Microsoft"),
    Style("fluent-flat", "@iconify-json/fluent-emoji-flat@1.2.6", "MIT", "Fluent Emoji, Microsoft"),
    Style(
        "fluent-3d",
        "@lobehub/fluent-emoji-3d@1.1.0",
        "MIT",
        "Fluent Emoji, Microsoft",
        "files",
        "assets/*.webp",
    ),
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
        black=True,
    ),
    _google("noto-2016", "3.0.0"),
    _google("noto-2018", "4.0.4"),
    _google("noto-2021", "7.0.2"),
    _google("noto-2024", "16.0.0"),
    Style(
        "emojitwo-black",
        "@iconify-json/emojione-monotone@1.2.1",
        "CC-BY-4.0",
        "EmojiTwo / Emoji One 2",
        black=True,
    ),
    Style(
        "noto-black",
        "@expo-google-fonts/noto-emoji@0.4.7",
        "OFL-1.1",
        "Noto Emoji font, Google",
        "font",
        "400Regular/*.ttf",
        black=True,
    ),
    Style(
        "noto-symbols",
        "@fontsource/noto-sans-symbols-2@5.3.0",
        "OFL-1.1",
        "Noto Sans Symbols 2, Google",
        "font",
        "files/*-2-symbols-400-normal.woff",
        black=True,
    ),
    _icons("icon-park", "1.2.4", "Apache-2.0", "ByteDance"),
    _icons("dinkie-icons", "1.2.0", "MIT", "atelierAnchor", black=True),
    _icons("game-icons", "1.2.4", "CC-BY-3.0", "GameIcons", black=True),
    _icons("mdi", "1.2.3", "Apache-2.0", "Pictogrammers", black=True),
    _icons("hugeicons", "1.2.35", "MIT", "Hugeicons", black=True),
    _icons("fa7-solid", "1.2.5", "CC-BY-4.0", "Font Awesome", black=True),
    _icons("ph", "1.2.2", "MIT", "Phosphor Icons", black=True),
    _icons("tabler", "1.2.41", "MIT", "Paweł Kuna", black=True),
    _icons("lucide", "1.2.137", "ISC", "Lucide Contributors", black=True),
    _icons("boxicons", "1.2.0", "MIT", "Boxicons", black=True),
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
    names = _exact_names(known)
    codes = {emoji.code for emoji in known}
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
    # Keywords last: they are the least specific. Single words count if only one emoji has them.
    counts = Counter(word for emoji in known for word in emoji.keywords)
    for emoji in known:
        for word in emoji.keywords[::-1]:
            if len(word.split()) > 1 or counts[word] == 1:
                names.setdefault(slug(word), emoji.code)
    return names


def _exact_names(known: list[Emoji]) -> dict[str, str]:
    """Map the slugs of the emoji's labels, and of their characters' names in Unicode, to codes."""
    names: dict[str, str] = {}
    for emoji in known:
        names.setdefault(slug(emoji.label), emoji.code)
    for emoji in known:
        if "-" not in emoji.code:
            names.setdefault(slug(unicodedata.name(chr(int(emoji.code, 16)), "")), emoji.code)
    return names


def _icon_names(known: list[Emoji]) -> dict[str, str]:
    """Map names that an icon of no emoji set can have to codes: exact ones without homonyms."""
    things = [emoji for emoji in known if not _is_flag(emoji.code)]
    return {name: code for name, code in _exact_names(things).items() if name not in HOMONYMS}


def _differ_in_color(known: list[Emoji]) -> set[str]:
    """Return the codes of emoji that only their color tells from another, such as hearts."""
    colors = "red|orange|yellow|green|light blue|blue|purple|brown|black|white|gr[ae]y|pink"
    shapes = [re.sub(rf"\b({colors})\b", "", emoji.label) for emoji in known]
    counts = Counter(shapes)
    return {emoji.code for emoji, shape in zip(known, shapes, strict=True) if counts[shape] > 1}


def _emoji_set_names(
    package: Path, known: list[Emoji], folder: Path
) -> Callable[[str], str | None]:
    """Return a function that gives the code of an icon of an Iconify package of emoji."""
    names = _known_names(known, folder)
    loose = {name.replace("-", ""): code for name, code in reversed(names.items())}
    chars = package / "chars.json"
    if chars.exists():
        names |= {name: code_of(code) for code, name in _read(chars).items()}

    def code_for(name: str) -> str | None:
        unnumbered = re.sub(r"-[1-9]$", "", name)  # "glasses-2" is a second drawing
        return names.get(name) or loose.get(unnumbered.replace("-", ""))

    return code_for


# --- pictures -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Glyph:
    """An emoji in a font."""

    font: Path
    text: str


Source = str | Path | Glyph  # SVG, a file, or an emoji in a font


def _find_icons(package: Path, code_for: Callable[[str], str | None]) -> dict[str, Source]:
    """Return the SVG of each code that `code_for` gives an icon of an Iconify package."""
    icons = _read(package / "icons.json")
    aliases = icons.get("aliases", {})
    found: dict[str, Source] = {}
    for name in (*icons["icons"], *aliases):
        alias = aliases.get(name)
        icon = icons["icons"].get(alias["parent"] if alias else name)
        code = code_for(name)
        if icon is None or code is None or (alias and len(alias) > 1):  # more: it is transformed
            continue
        width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
        left, top = (icon.get(side, icons.get(side, 0)) for side in ("left", "top"))
        body = icon["body"].replace("currentColor", "#000000")
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
            f' viewBox="{left} {top} {width} {height}">{body}</svg>'
        )
        found.setdefault(code, svg)
    return found


def _render(svg: str) -> Image.Image:
    import resvg_py  # not needed once the pictures are drawn

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIZE, height=2 * SIZE))
    return Image.open(io.BytesIO(png))


def _find_files(paths: Iterable[Path]) -> dict[str, Source]:
    return {code_of(path.stem): path for path in sorted(paths)}


def _find_glyphs(font: Path, known: list[Emoji]) -> dict[str, Source]:
    """Return the emoji that `font` draws as one glyph."""
    loaded = _load_font(font)
    missing = bytes(loaded.getmask("\U0010ffff"))
    found: dict[str, Source] = {}
    for emoji in known:
        text = "".join(chr(int(point, 16)) for point in emoji.code.split("-"))
        one_glyph = loaded.getlength(text) == loaded.getlength(text[0])
        if one_glyph and bytes(loaded.getmask(text)) not in (missing, b""):
            found[emoji.code] = Glyph(font, text)
    return found


@cache
def _load_font(path: Path) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, 2 * SIZE)


def draw(source: Source) -> npt.NDArray[np.uint8]:
    """Draw one picture: RGBA [SIZE, SIZE, 4]."""
    if isinstance(source, Path):
        with Image.open(source) as picture:
            return _to_square(picture)
    return _to_square(_render(source) if isinstance(source, str) else _render_glyph(source))


def _render_glyph(glyph: Glyph) -> Image.Image:
    mask = Image.new("L", (4 * SIZE, 4 * SIZE))
    middle = (2 * SIZE, 2 * SIZE)
    ImageDraw.Draw(mask).text(middle, glyph.text, 255, _load_font(glyph.font), anchor="mm")
    mask = mask.crop(mask.getbbox())
    picture = Image.new("RGBA", mask.size)
    picture.putalpha(mask)
    return picture


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
        found = find_pictures(style, known, folder)
        classes = [index for index, emoji in enumerate(known) if emoji.code in found]
        # Threads would wait for each other in resvg. No fork: the caller may have threads.
        with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
            pictures = pool.map(draw, [found[known[index].code] for index in classes], chunksize=8)
            pixels = list(tqdm(pictures, f"drawing {style.name}", len(classes)))
        partial = file.with_suffix(".partial.npz")
        np.savez(partial, pixels=np.stack(pixels), classes=np.array(classes))
        partial.rename(file)
    with np.load(file) as arrays:
        return Drawings(style.name, arrays["pixels"], arrays["classes"])


def find_pictures(style: Style, known: list[Emoji], folder: Path) -> dict[str, Source]:
    """Return what to draw for each code in the package of `style`."""
    package = download(style.package, folder)
    if style.kind == "emoji":
        found = _find_icons(package, _emoji_set_names(package, known, folder))
    elif style.kind == "icons":
        found = _find_icons(package, _icon_names(known).get)
    elif style.kind == "files":
        found = _find_files(package.glob(style.files))
    else:
        font = next(package.glob(style.files))
        found = _find_glyphs(font, known)
    codes = {emoji.code for emoji in known}
    if style.black:
        codes -= {code for code in codes if _is_flag(code)} | _differ_in_color(known)
    return {code: source for code, source in found.items() if code in codes}


def _is_flag(code: str) -> bool:
    """Return whether the code is the flag of a country or a region."""
    return code.startswith(("1f1", "1f3f4-e"))
