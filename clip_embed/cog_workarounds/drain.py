"""Let asynchronous predictions finish, and their webhooks leave, before Cog exits on SIGTERM.

Cog 0.23.1 stops listening on SIGTERM, waits for open requests, and exits. A prediction that was
requested with `Prefer: respond-async` has no open request, so it is dropped without a webhook.

So this process keeps one request open whose body never ends. When the server no longer listens, the
request is ended as soon as no prediction is running, and then the server exits.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable

log = logging.getLogger("clip_embed.cog")

DRAIN_SECONDS = 25.0
"""Longest delay of the exit. Kubernetes' default grace period is 30 s."""

WEBHOOK_SECONDS = 1.0
"""Seconds without a running prediction before the exit, so that the last webhook is sent."""

POLL_SECONDS = 0.5

_UNFINISHED_REQUEST = (
    b"POST /predictions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 2\r\n\r\n{"
)


def start_draining_on_exit(port: int, running: Callable[[], int]) -> None:
    """Start a thread that delays the exit of the server at `port` while predictions are running."""
    threading.Thread(target=_delay_exit, args=(port, running), name="drain", daemon=True).start()


def _delay_exit(port: int, running: Callable[[], int]) -> None:
    try:
        request = socket.create_connection(("127.0.0.1", port), 5)
        request.sendall(_UNFINISHED_REQUEST)
    except OSError as error:
        # The server does not listen on 127.0.0.1.
        log.warning("asynchronous predictions are dropped on SIGTERM: %s", error)
        return
    with request:
        while _listens(port):
            time.sleep(POLL_SECONDS)
        deadline = time.monotonic() + DRAIN_SECONDS
        idle_since = time.monotonic()
        while (now := time.monotonic()) < deadline and now - idle_since < WEBHOOK_SECONDS:
            time.sleep(0.05)
            if running():
                idle_since = time.monotonic()


def _listens(port: int) -> bool:
    try:
        with contextlib.closing(socket.create_connection(("127.0.0.1", port), 5)):
            return True
    except ConnectionRefusedError:
        return False
    except OSError:  # too busy to answer
        return True
