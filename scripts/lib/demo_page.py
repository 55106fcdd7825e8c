"""Show the page for search over the demo's drawings: the body of scripts/demo --page."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from scripts.lib.cog_server import CACHE, ROOT, CogServer
from scripts.lib.drawings import held_out
from scripts.lib.embedding_client import Client
from scripts.lib.picture_index import PROBE, IndexMismatchError, PictureIndex
from scripts.lib.search import index_folder
from scripts.search_page.queries import Embedder
from scripts.search_page.serve import listen, serve

DRAWINGS = CACHE / "demo-drawings"
INDEX = CACHE / "demo-drawings-index"
IN_FLIGHT = 16  # requests


def run_page(port: int, open_browser: bool) -> None:
    """Serve the page until Ctrl-C; then nothing is left running. Raises SystemExit."""
    with contextlib.suppress(KeyboardInterrupt), listen(port) as listener:
        print("Starting the Cog server with the demo's model", flush=True)
        with CogServer({"CLIP_WEIGHTS": str(ROOT / "demo_model")}) as server:
            server.wait_ready()
            client = Client(server.url)
            probe = client.text(PROBE)
            index = index_drawings(client, DRAWINGS, INDEX)
            serve(index, Embedder(client, len(probe)), listener, open_browser)


def index_drawings(client: Client, folder: Path, db: Path) -> PictureIndex:
    """Write the held-out drawings to files with their names, and index them.

    Drawings that are there already are kept, so that the next start is fast.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for drawing in held_out():
        path = folder / f"{drawing.name}.png"
        if not path.exists():
            path.write_bytes(drawing.png())
    probe = client.text(PROBE)
    try:
        index = PictureIndex(db, probe, create=True)
    except IndexMismatchError:  # the demo's model was trained anew
        shutil.rmtree(db)
        index = PictureIndex(db, probe, create=True)
    index_folder(folder, client, index, IN_FLIGHT)
    return index
