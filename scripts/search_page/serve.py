"""Serve the page on 127.0.0.1 until Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import socket
import threading
import webbrowser

import uvicorn

from scripts.lib.cog_server import check_address
from scripts.lib.embedding_client import Client
from scripts.lib.picture_index import PROBE, PictureIndex
from scripts.search_page.app import make_app
from scripts.search_page.queries import Embedder
from scripts.search_page.ranking import Ranking

HOST = "127.0.0.1"  # there is no authentication: never another


def run(options: argparse.Namespace, client: Client) -> None:
    """Run `search.py serve`. Raises SystemExit, ServiceError, IndexMismatchError."""
    with listen(options.port) as listener:
        probe = client.text(PROBE)
        index = PictureIndex(options.db, probe, create=False)
        serve(index, Embedder(client, len(probe)), listener, options.open)


def listen(port: int) -> socket.socket:
    """Return a socket that listens on `port`; 0: on a free one. Raises SystemExit."""
    if not 0 <= port <= 65535:
        raise SystemExit(f"--port is {port}; give a number from 1 to 65535")
    try:
        if port:
            check_address(HOST, port)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    return socket.create_server((HOST, port))


def serve(
    index: PictureIndex, embedder: Embedder, listener: socket.socket, open_browser: bool
) -> None:
    """Serve the page of an index until Ctrl-C. Raises SystemExit if the index is empty."""
    ranking = Ranking(index)
    if not ranking.paths:
        raise SystemExit("search.py: the index is empty; run `search.py index FOLDER` first")
    port = listener.getsockname()[1]
    url = f"http://{HOST}:{port}"
    config = uvicorn.Config(
        make_app(ranking, embedder, port),
        log_level="error",
        lifespan="off",
        ws="none",
        server_header=False,
    )
    print(f"{len(ranking.paths):,} pictures: open {url} (Ctrl-C ends it)", flush=True)
    # In a thread, uvicorn leaves Ctrl-C alone: it would wait for all answers first. Threads that it
    # starts are daemons like this one, and end with the process.
    run_server = uvicorn.Server(config).run
    server = threading.Thread(target=run_server, args=([listener],), daemon=True)
    server.start()
    with contextlib.suppress(KeyboardInterrupt):
        if open_browser:  # a browser in the terminal returns when it is closed
            webbrowser.open(url)
        server.join()
