"""A web server on loopback that misbehaves, in threads of this process."""

from __future__ import annotations

import contextlib
import functools
import gzip
import http.server
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from io import BytesIO

from PIL import Image

BOMB_BYTES = 100_000_000
CLOSE_POLL_SECONDS = 0.01


def make_picture() -> bytes:
    """Return a small PNG."""
    encoded = BytesIO()
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(encoded, "PNG")
    return encoded.getvalue()


PICTURE = make_picture()


@functools.cache
def gzip_bomb() -> bytes:
    """Return 0.4 MB that gunzips to BOMB_BYTES zeros."""
    encoded = BytesIO()
    with gzip.GzipFile(fileobj=encoded, mode="wb", compresslevel=1) as file:
        for _ in range(BOMB_BYTES // 10**7):
            file.write(bytes(10**7))
    return encoded.getvalue()


class HostileWebServer:
    """Serves one misbehavior per path. Use it as a context manager.

    certificate: a file with a certificate and its key, for https.
    requests: the path and the headers of each request. open: connections that are being answered.
    """

    def __init__(self, address: str = "127.0.0.1", certificate: str | None = None) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.open = 0
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def do_GET(self) -> None:
                with owner._answering(self):
                    owner._answer(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self._http = http.server.ThreadingHTTPServer((address, 0), Handler)
        self._http.daemon_threads = True
        self.port = self._http.server_port
        self.url = f"http{'s' if certificate else ''}://{address}:{self.port}"
        if certificate:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(certificate)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True)

    def __enter__(self) -> HostileWebServer:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self._http.shutdown()
        self._http.server_close()

    @property
    def paths(self) -> list[str]:
        """The paths requested so far."""
        return [path for path, _ in self.requests]

    def wait_until_idle(self, seconds: float) -> bool:
        """Wait until no request is being answered. Returns whether that happened in time."""
        deadline = time.monotonic() + seconds
        while self.open and time.monotonic() < deadline:
            time.sleep(CLOSE_POLL_SECONDS)
        return not self.open

    @contextlib.contextmanager
    def _answering(self, request: http.server.BaseHTTPRequestHandler) -> Iterator[None]:
        with self._lock:
            self.requests.append((request.path, dict(request.headers)))
            self.open += 1
        try:
            with contextlib.suppress(OSError):  # the client hung up
                yield
        finally:
            with self._lock:
                self.open -= 1

    def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        name, _, argument = request.path.lstrip("/").partition("?")
        if name == "redirect":  # /redirect?URL
            self._head(request, 302, Location=urllib.parse.unquote(argument))
        elif name.startswith("status-"):
            self._head(request, int(name.removeprefix("status-")))
        elif name == "slow-head":
            request.wfile.write(b"HTTP/1.0 200 OK\r\n")
            self._forever(lambda: request.wfile.write(b"X-Line: 1\r\n"), 0.1)
        elif name == "trickle":
            self._head(request, 200, Content_Length="1000000")
            self._forever(lambda: request.wfile.write(b"\xff"), 0.1)
        elif name == "endless":
            self._head(request, 200)
            self._forever(lambda: request.wfile.write(bytes(2**20)), 0)
        elif name == "bomb":
            self._body(request, gzip_bomb(), Content_Encoding="gzip")
        elif name == "gzip":
            self._body(request, gzip.compress(PICTURE), Content_Encoding="gzip")
        elif name == "cut-gzip":
            self._body(request, gzip.compress(PICTURE)[:-20], Content_Encoding="gzip")
        elif name == "brotli":
            self._body(request, PICTURE, Content_Encoding="br")
        elif name == "small-parts":
            self._head(request, 200, Transfer_Encoding="chunked")
            request.wfile.write(b"1\r\na\r\n" * 100_000)
        elif name == "gzip-tail":  # a complete member, and zeros without end
            self._head(request, 200, Content_Encoding="gzip")
            request.wfile.write(gzip.compress(PICTURE))
            self._forever(lambda: request.wfile.write(bytes(2**16)), 0)
        elif name == "empty-blocks":  # of deflate: bytes without end that decode to nothing
            self._head(request, 200, Content_Encoding="deflate")
            request.wfile.write(b"\x78\x9c")
            self._forever(lambda: request.wfile.write(b"\0\0\0\xff\xff" * 10_000), 0)
        elif name == "closed":
            self._head(request, 200, Content_Length=str(len(PICTURE)))
            request.wfile.write(PICTURE[: len(PICTURE) // 2])
        elif name == "large":  # 20 MB: more than is kept in memory
            self._body(request, PICTURE + bytes(20_000_000))
        elif name == "page":
            self._body(request, b"<!doctype html><title>Sign in</title>")
        else:
            self._body(request, PICTURE)

    def _head(
        self, request: http.server.BaseHTTPRequestHandler, status: int, **headers: str
    ) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()

    def _body(
        self, request: http.server.BaseHTTPRequestHandler, body: bytes, **headers: str
    ) -> None:
        self._head(request, 200, **headers)
        request.wfile.write(body)

    def _forever(self, send: Callable[[], object], pause: float) -> None:
        while not self._stopped.wait(pause):
            send()
