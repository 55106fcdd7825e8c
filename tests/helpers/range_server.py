"""Serve byte ranges of files on this machine, with the faults that a test asks for.

Paths are those of a web server and of Cloud Storage's XML API (host/bucket/object): `url` stands
for `https://host` or `https://storage.googleapis.com`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass(frozen=True)
class Request:
    """One request, parsed.

    path: decoded, without the leading slash. range: first byte and the byte after the last, None
    for the whole file. query: the last value of each parameter. headers: names in lower case.
    earlier: number of earlier requests for the same path and range.
    """

    path: str
    range: tuple[int, int] | None
    query: Mapping[str, str]
    headers: Mapping[str, str]
    earlier: int

    @property
    def name(self) -> str:
        """Return the last part of the path."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class Answer:
    """One response. body: whole, or in parts, each sent as soon as it is produced.

    headers: Content-Length is added to a whole body if it is missing, and never corrected: after a
    body of another length the connection is closed.
    """

    status: int
    body: bytes | Iterable[bytes] = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class Hangup(Exception):
    """Raised by a fault, or by its body, to close the connection without sending more."""


Fault = Callable[[Request, Answer], Answer]
"""Maps a request and its correct answer to the answer that is sent. Called in the request's own
thread: it may sleep, wait, or raise Hangup."""


class RangeServer:
    """A web server of `directory` on a free port of 127.0.0.1. Use it as a context manager.

    requests: all so far, in order of arrival. fault: may be set at any time.
    """

    def __init__(self, directory: Path, fault: Fault | None = None) -> None:
        self.directory = directory
        self.fault = fault
        self.requests: list[Request] = []
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), type("Bound", (_Handler,), {"owner": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> RangeServer:
        threading.Thread(
            target=self._server.serve_forever, args=(0.02,), name="range-server", daemon=True
        ).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def requests_for(self, name: str) -> list[Request]:
        """Return the requests for files called `name`."""
        with self._lock:
            return [request for request in self.requests if request.name == name]

    def answer(self, target: str, headers: Mapping[str, str]) -> Answer:
        """Return the answer to GET `target`, with the fault applied. Raises Hangup."""
        parts = urlsplit(target)
        path = unquote(parts.path).lstrip("/")
        with self._lock:
            byte_range = _parse_range(headers.get("range"))
            earlier = sum((each.path, each.range) == (path, byte_range) for each in self.requests)
            query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
            request = Request(path, byte_range, query, headers, earlier)
            self.requests.append(request)
        correct = self._correct_answer(request)
        return self.fault(request, correct) if self.fault else correct

    def _correct_answer(self, request: Request) -> Answer:
        file_path = self.directory / request.path
        if ".." in file_path.parts or not file_path.is_file():
            return Answer(404, b"not here")
        modified = time.gmtime(file_path.stat().st_mtime)
        headers = {
            "Last-Modified": time.strftime("%a, %d %b %Y %H:%M:%S GMT", modified),
            "ETag": '"1"',
        }
        with open(file_path, "rb") as file:
            if request.range is None:
                return Answer(200, file.read(), headers)
            size = file.seek(0, 2)
            start, end = request.range[0], min(request.range[1], size)
            if start >= size:
                return Answer(416, b"", {"Content-Range": f"bytes */{size}"})
            file.seek(start)
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
            return Answer(206, file.read(end - start), headers)


def _parse_range(header: str | None) -> tuple[int, int] | None:
    if header is None:
        return None
    first, _, last = header.removeprefix("bytes=").partition("-")
    return int(first), int(last) + 1


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: clients of a server with faults close connections."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keep connections alive, like real servers
    # Send headers and body in one packet if possible, and small packets at once.
    wbufsize = 1 << 16
    disable_nagle_algorithm = True
    owner: RangeServer

    def do_GET(self) -> None:
        try:
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = self.owner.answer(self.path, headers)
            self._send(answer)
        except (Hangup, OSError):
            self.close_connection = True

    def _send(self, answer: Answer) -> None:
        whole = isinstance(answer.body, bytes)
        length = {"Content-Length": str(len(answer.body))} if whole else {}
        sent = {**length, **answer.headers}
        self.send_response(answer.status)
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        count = 0
        for part in [answer.body] if whole else answer.body:
            self.wfile.write(part)
            self.wfile.flush()
            count += len(part)
        if str(count) != sent.get("Content-Length"):
            raise Hangup  # the client cannot find the start of the next answer

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing."""
