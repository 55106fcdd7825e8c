"""Search a folder of pictures by words or by another picture, through a running service.

    search.py index FOLDER       [--url URL] [--db FOLDER] [--in-flight N]
    search.py query TEXT|PICTURE [--url URL] [--db FOLDER] [--count N] [--sheet FILE]

URL is a local Cog server or container (default http://localhost:5000), or where Replicate creates
predictions: https://api.replicate.com/v1/predictions with --version, or a deployment's
…/v1/deployments/OWNER/NAME/predictions; the token comes from REPLICATE_API_TOKEN.

`index` can be stopped at any time and run again: what is stored is not embedded twice, what has
changed is embedded again, what is gone is forgotten. Files the service refuses are named and
skipped. `query` prints the ranking and writes a contact sheet.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from contact_sheet import Find, Row, sheet
from embedding_client import Client, RefusedError, ServiceError
from picture_index import PROBE, Entry, IndexMismatchError, PictureIndex, Stamp

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
SUFFIXES += (".heic", ".heif")
# What waits in memory to be stored: so much is embedded again after a crash, at most.
STORE_EVERY = 256  # pictures
STORE_SECONDS = 5.0


@dataclass
class Report:
    """What `index_folder` did. skipped: file and reason."""

    embedded: int = 0
    kept: int = 0
    removed: int = 0
    skipped: list[tuple[Path, str]] = field(default_factory=list)


def pictures_in(folder: Path) -> list[Path]:
    """Files that look like pictures by their names, in order, hidden ones left out."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(
        path
        for path in found
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def index_folder(folder: Path, client: Client, index: PictureIndex, in_flight: int) -> Report:
    """Bring `index` up to date with `folder`. Raises ServiceError; what is embedded is kept."""
    folder = folder.resolve()
    report = Report()
    stored = index.stamps()
    paths = pictures_in(folder)
    here = {str(path) for path in paths}
    gone = [p for p in stored if Path(p).is_relative_to(folder) and p not in here]
    index.remove(gone)
    report.removed = len(gone)

    waiting: list[Entry] = []
    last = time.monotonic()

    def store(least: int) -> None:
        nonlocal last
        overdue = time.monotonic() - last > STORE_SECONDS
        if len(waiting) >= least or (waiting and overdue):
            index.put(waiting)
            waiting.clear()
            last = time.monotonic()

    progress = tqdm(total=len(paths), desc="indexing", unit="picture")
    with ThreadPoolExecutor(in_flight) as pool, progress:
        try:
            for path, result in _embedded(_changed(paths, stored, report, progress), client, pool):
                progress.update()
                if isinstance(result, Entry):
                    waiting.append(result)
                    report.embedded += 1
                else:
                    report.skipped.append((path, result))
                    progress.write(f"skipped {path}: {result}", file=sys.stderr)
                store(STORE_EVERY)
        finally:  # also when interrupted
            pool.shutdown(wait=False, cancel_futures=True)
            store(1)
    if report.embedded or gone:
        index.compact()
    return report


def _changed(
    paths: Sequence[Path], stored: dict[str, Stamp], report: Report, progress: tqdm[None]
) -> Iterator[tuple[Path, Stamp]]:
    """The files that are not stored as they are now."""
    for path in paths:
        try:
            stamp = Stamp.of(path)
        except OSError as error:
            report.skipped.append((path, str(error)))
            progress.update()
            continue
        if stored.get(str(path)) == stamp:
            report.kept += 1
            progress.update()
        else:
            yield path, stamp


def _embedded(
    files: Iterator[tuple[Path, Stamp]], client: Client, pool: ThreadPoolExecutor
) -> Iterator[tuple[Path, Entry | str]]:
    """Every file's entry, or why there is none, as they come; a few more are under way."""

    def embed(path: Path, stamp: Stamp) -> Entry | str:
        try:
            return Entry(str(path), stamp, client.image(path))
        except (OSError, RefusedError) as error:
            return str(error)

    ahead = 2 * pool._max_workers
    running: dict[Future[Entry | str], Path] = {}
    while True:
        for path, stamp in files:
            running[pool.submit(embed, path, stamp)] = path
            if len(running) >= ahead:
                break
        if not running:
            return
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            yield running.pop(future), future.result()


def query_vector(client: Client, query: str) -> tuple[str | Image.Image, Sequence[float]]:
    """What was asked for, to be shown, and its vector. A file's name asks with its picture."""
    path = Path(query)
    if path.suffix.lower() in SUFFIXES:
        if not path.is_file():
            raise SystemExit(f"{query}: no such file")
        return _picture(path), client.image(path)  # type: ignore[return-value]
    return query, client.text(query)  # type: ignore[return-value]


def _picture(path: Path) -> Image.Image:
    """To look at; what this machine cannot open is an empty place."""
    if path.suffix.lower() in (".heic", ".heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
    try:
        with Image.open(path) as picture:
            picture.draft("RGB", (512, 512))
            picture.load()
            return picture.copy()
    except (OSError, ValueError):
        return Image.new("RGB", (64, 64), "#dddddd")


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    index = commands.add_parser("index", help="embed a folder of pictures")
    index.add_argument("folder", type=Path)
    index.add_argument(
        "--in-flight", type=int, default=32, help="requests at a time (default: 32, Cog's limit)"
    )
    query = commands.add_parser("query", help="find pictures by words or by a picture")
    query.add_argument("query", metavar="TEXT|PICTURE")
    query.add_argument("--count", type=int, default=12, help="how many (default: 12)")
    query.add_argument("--sheet", type=Path, default=ROOT / ".cache" / "search.png")
    for command in (index, query):
        command.add_argument("--url", default="http://localhost:5000")
        command.add_argument("--version", help="the model's, for Replicate's /v1/predictions")
        command.add_argument("--db", type=Path, default=ROOT / ".cache" / "search-index")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _arguments(arguments)
    try:
        client = Client(options.url, options.version)
        if options.command == "index":
            if not options.folder.is_dir():
                raise SystemExit(f"{options.folder} is not a folder")
            index = PictureIndex(options.db, client.text(PROBE), create=True)
            report = index_folder(options.folder, client, index, options.in_flight)
            print(
                f"{report.embedded} embedded, {report.kept} already there,"
                f" {report.removed} gone, {len(report.skipped)} skipped; index: {options.db}"
            )
        else:
            index = PictureIndex(options.db, client.text(PROBE), create=False)
            shown, vector = query_vector(client, options.query)
            hits = index.nearest(vector, options.count)
            for rank, hit in enumerate(hits, 1):
                print(f"{rank:>4}  {hit.score:.4f}  {hit.path}")
            finds = [Find(_picture(Path(h.path)), Path(h.path).name, h.score) for h in hits]
            rows = [Row(shown, finds[i : i + 6]) for i in range(0, len(finds), 6)]
            options.sheet.parent.mkdir(parents=True, exist_ok=True)
            sheet(f"{len(hits)} of {options.db.name}", rows).save(options.sheet)
            print(f"contact sheet: {options.sheet}")
    except (ServiceError, RefusedError, IndexMismatchError) as error:
        raise SystemExit(f"search.py: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("\nstopped; run the same command to go on") from None


if __name__ == "__main__":
    main()
