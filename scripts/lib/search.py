"""Update the index of a folder of pictures, and answer queries: the body of scripts/search.py."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from scripts.lib.contact_sheet import Match, ResultRow, draw_results
from scripts.lib.embedding_client import Client, RefusedError, ServiceError
from scripts.lib.picture_index import PROBE, Entry, IndexMismatchError, PictureIndex, Stamp

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
SUFFIXES += (".heic", ".heif")
# Embeddings are stored in batches. After a crash, at most one batch has to be embedded again.
STORE_EVERY = 256  # pictures
STORE_SECONDS = 5.0
PREVIEW_SIZE = 512  # pixels; pictures on the contact sheet are smaller
MATCHES_PER_ROW = 6


@dataclass
class Report:
    """Result of `index_folder`, in pictures. kept: unchanged. skipped: file and reason."""

    embedded: int = 0
    kept: int = 0
    removed: int = 0
    skipped: list[tuple[Path, str]] = field(default_factory=list)


def pictures_in(folder: Path) -> list[Path]:
    """Return the files with the suffix of a picture, sorted, without hidden files and folders."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(
        path
        for path in found
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def index_folder(folder: Path, client: Client, index: PictureIndex, in_flight: int) -> Report:
    """Update `index` from `folder`, with `in_flight` concurrent requests.

    Raises ServiceError; pictures that are embedded by then are stored.
    """
    folder = folder.resolve()
    report = Report()
    stored = index.stamps()
    paths = pictures_in(folder)
    present = {str(path) for path in paths}
    deleted = [p for p in stored if Path(p).is_relative_to(folder) and p not in present]
    index.remove(deleted)
    report.removed = len(deleted)

    pending: list[Entry] = []
    last_store = time.monotonic()

    def store(min_entries: int) -> None:
        nonlocal last_store
        overdue = time.monotonic() - last_store > STORE_SECONDS
        if len(pending) >= min_entries or (pending and overdue):
            index.put(pending)
            pending.clear()
            last_store = time.monotonic()

    progress = tqdm(total=len(paths), desc="indexing", unit="picture")
    with ThreadPoolExecutor(in_flight) as pool, progress:
        try:
            changed = _changed(paths, stored, report, progress)
            for path, result in _embed_files(changed, client, pool, 2 * in_flight):
                progress.update()
                if isinstance(result, Entry):
                    pending.append(result)
                    report.embedded += 1
                else:
                    report.skipped.append((path, result))
                    progress.write(f"skipped {path}: {result}", file=sys.stderr)
                store(STORE_EVERY)
        finally:  # also after KeyboardInterrupt
            pool.shutdown(wait=False, cancel_futures=True)
            store(1)
    if report.embedded or deleted:
        index.compact()
    return report


def _changed(
    paths: Sequence[Path], stored: dict[str, Stamp], report: Report, progress: tqdm[None]
) -> Iterator[tuple[Path, Stamp]]:
    """Yield the files that are not in the index, or have changed since."""
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


def _embed_files(
    files: Iterator[tuple[Path, Stamp]], client: Client, pool: ThreadPoolExecutor, max_queued: int
) -> Iterator[tuple[Path, Entry | str]]:
    """Yield each file with its entry, or the reason why it is skipped, in order of completion.

    max_queued: files submitted to `pool` and not yielded yet.
    """

    def embed(path: Path, stamp: Stamp) -> Entry | str:
        try:
            return Entry(str(path), stamp, client.image(path))
        except (OSError, RefusedError) as error:
            return str(error)

    queued: dict[Future[Entry | str], Path] = {}
    while True:
        for path, stamp in files:
            queued[pool.submit(embed, path, stamp)] = path
            if len(queued) >= max_queued:
                break
        if not queued:
            return
        done, _ = wait(queued, return_when=FIRST_COMPLETED)
        for future in done:
            yield queued.pop(future), future.result()


def embed_query(client: Client, query: str) -> tuple[str | Image.Image, npt.NDArray[np.float32]]:
    """Return the query as it is shown, and its vector. A name with a picture's suffix is a file."""
    path = Path(query)
    if path.suffix.lower() in SUFFIXES:
        if not path.is_file():
            raise SystemExit(f"{query}: no such file")
        return _preview(path), client.image(path)
    return query, client.text(query)


def _preview(path: Path) -> Image.Image:
    """Open a picture for the contact sheet; a gray square if it cannot be opened."""
    if path.suffix.lower() in (".heic", ".heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
    try:
        with Image.open(path) as picture:
            picture.draft("RGB", (PREVIEW_SIZE, PREVIEW_SIZE))
            picture.load()
            return picture.copy()
    except (OSError, ValueError):
        return Image.new("RGB", (64, 64), "#dddddd")


def run(options: argparse.Namespace) -> None:
    """Run a command of search.py. Raises SystemExit with one sentence."""
    try:
        client = Client(options.url, options.version)
        if options.command == "index":
            _run_index(client, options)
        elif options.command == "serve":
            from scripts.search_page import serve  # half a second, for this command only

            serve.run(options, client)
        else:
            _run_query(client, options)
    except (ServiceError, RefusedError, IndexMismatchError) as error:
        raise SystemExit(f"search.py: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("\ninterrupted; run the same command again to continue") from None


def _run_index(client: Client, options: argparse.Namespace) -> None:
    if not options.folder.is_dir():
        raise SystemExit(f"{options.folder} is not a folder")
    index = PictureIndex(options.db, client.text(PROBE), create=True)
    report = index_folder(options.folder, client, index, options.in_flight)
    print(
        f"{report.embedded} embedded, {report.kept} already there,"
        f" {report.removed} gone, {len(report.skipped)} skipped; index: {options.db}"
    )


def _run_query(client: Client, options: argparse.Namespace) -> None:
    index = PictureIndex(options.db, client.text(PROBE), create=False)
    shown, vector = embed_query(client, options.query)
    hits = index.nearest(vector, options.count)
    for rank, hit in enumerate(hits, 1):
        print(f"{rank:>4}  {hit.score:.4f}  {hit.path}")
    matches = [Match(_preview(Path(h.path)), Path(h.path).name, h.score) for h in hits]
    rows = [
        ResultRow(shown, matches[i : i + MATCHES_PER_ROW])
        for i in range(0, len(matches), MATCHES_PER_ROW)
    ]
    options.sheet.parent.mkdir(parents=True, exist_ok=True)
    draw_results(f"{len(hits)} results from {options.db.name}", rows).save(options.sheet)
    print(f"contact sheet: {options.sheet}")
