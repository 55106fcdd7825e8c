"""Serve repositories as the Hugging Face hub does, on 127.0.0.1, to huggingface_hub.

The part of the protocol that `hf_hub_download` uses (huggingface_hub 2.4.0): HEAD and GET of
/ORG/NAME/resolve/REVISION/FILE. Set HF_ENDPOINT to `url`, which is read when it is imported.
"""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

_RESOLVE = re.compile(r"/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


@dataclass(frozen=True)
class Repository:
    """A repository of one commit. directory: its files.

    token: without it the repository does not seem to exist. gated: it exists, but its files are
    refused. broken: this file arrives in part, and the connection is closed; again and again.
    shortened: this file is complete for the server, but shorter than the server first said.
    status: the answer to every request.
    """

    directory: Path
    token: str | None = None
    gated: bool = False
    broken: str = ""
    shortened: str = ""
    status: int = 200

    @property
    def commit(self) -> str:
        return hashlib.sha1(str(self.directory).encode()).hexdigest()


@dataclass
class HubServer:
    """A hub with these repositories, by "ORG/NAME". Use it as a context manager.

    requests: method and path of all so far.
    """

    repositories: dict[str, Repository]
    requests: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        handler = type("Bound", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        self.hub.requests.append((self.command, self.path))
        parsed = _RESOLVE.fullmatch(self.path)
        repository = self.hub.repositories.get(parsed["repository"]) if parsed else None
        if parsed is None or repository is None:
            return self._refuse(401, "RepoNotFound")  # the hub does not tell which exist
        if repository.status != 200:
            return self._refuse(repository.status, "")
        authorization = self.headers.get("Authorization", "")
        if repository.token and authorization != f"Bearer {repository.token}":
            return self._refuse(401, "RepoNotFound")
        if repository.gated:
            return self._refuse(403 if authorization else 401, "GatedRepo")
        path = repository.directory / parsed["file"]
        if not path.is_file():
            return self._refuse(404, "EntryNotFound", repository.commit)
        data = path.read_bytes()
        etag = hashlib.sha1(data).hexdigest()
        start = self._range_start()
        if with_body and parsed["file"] == repository.shortened:
            data = data[:-10]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", repository.commit)
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if with_body and parsed["file"] == repository.broken:
            if not start:
                self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif with_body:
            self.wfile.write(data[start:])
        return None

    def _range_start(self) -> int:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        return int(asked[1]) if asked else 0

    def _refuse(self, status: int, code: str, commit: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Stay silent: pytest shows stderr."""
