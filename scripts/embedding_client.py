"""A running service, asked for vectors over HTTP: a local Cog server, Docker, or Replicate's API.

Both speak of predictions in the same way; Replicate wants a token and a version, and may answer
before it is done. Knows nothing of search, pictures or models.
"""

from __future__ import annotations

import base64
import http.client
import json
import mimetypes
import os
import threading
import time
import urllib.parse
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

TOKEN = "REPLICATE_API_TOKEN"

# Larger files go through its files API: Replicate advises against data URIs of 1 MB and more, and a
# request that is asked again is sent again whole.
REPLICATE_INLINE_BYTES = 256 * 1024
# Seconds Replicate may keep a request open for its result; the most it allows.
REPLICATE_WAIT = 60
# Busy, overloaded or restarting: asked again, for so many seconds in all.
RETRIED = (409, 425, 429, 500, 502, 503, 504)
PATIENCE = 120.0
TIMEOUT = 120.0  # seconds for one answer


class RefusedError(Exception):
    """The service embedded nothing and says why: this input is at fault."""


class ServiceError(Exception):
    """The service cannot be used: no connection, no permission, no such place, no vectors."""


class Client:
    """Text or a picture in, the vector out. Safe to use from several threads at once.

    url: a server (`http://localhost:5000`), or where Replicate creates predictions
    (`https://api.replicate.com/v1/predictions`, `…/v1/deployments/OWNER/NAME/predictions`).
    version: the model's, which `/v1/predictions` asks for. token: default: the environment's.
    """

    def __init__(self, url: str, version: str | None = None, token: str | None = None) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ServiceError(f"--url is {url!r}; give http://host:port or https://host/path")
        self._scheme, self._netloc = parts.scheme, parts.netloc
        path = parts.path.rstrip("/")
        self.replicate = path.startswith("/v1/")
        self._path = path if path.endswith("/predictions") else path + "/predictions"
        self._version = version
        # Sent to Replicate's API alone: a token is nobody else's business.
        token = token or os.environ.get(TOKEN)
        if self.replicate and not token:
            raise ServiceError(f"{url} asks for a token: set {TOKEN}")
        self._token = token if self.replicate else None
        self._threads = threading.local()

    def text(self, text: str) -> npt.NDArray[np.float32]:
        """float32 [D]. Raises RefusedError, ServiceError."""
        return self._vector({"text": text})

    def image(self, path: Path) -> npt.NDArray[np.float32]:
        """float32 [D]; the file goes as it is. Raises OSError, RefusedError, ServiceError."""
        return self.image_bytes(path.read_bytes(), path.name)

    def image_bytes(self, data: bytes, name: str) -> npt.NDArray[np.float32]:
        """float32 [D]. name: the file's, whose suffix says what it is. Raises as `image`."""
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        if self.replicate and len(data) > REPLICATE_INLINE_BYTES:
            return self._vector({"image": self._uploaded(name, kind, data)})
        return self._vector({"image": f"data:{kind};base64,{base64.b64encode(data).decode()}"})

    def _vector(self, inputs: dict[str, str]) -> npt.NDArray[np.float32]:
        body: dict[str, Any] = {"input": inputs}
        if self._version:
            body["version"] = self._version
        answer = self._request("POST", self._path, json.dumps(body).encode(), "application/json")
        deadline = time.monotonic() + PATIENCE
        pause = 0.2
        while answer.get("status") in ("starting", "processing"):
            if time.monotonic() > deadline:
                raise ServiceError(f"no result after {PATIENCE:.0f} s: {answer.get('id')}")
            time.sleep(pause)
            pause = min(2 * pause, 2.0)
            answer = self._request("GET", self._own(answer["urls"]["get"]))
        if answer.get("status") != "succeeded":
            raise RefusedError(str(answer.get("error") or answer.get("status") or answer)[:300])
        try:
            vector = np.array(answer["output"], np.float32)
        except (KeyError, TypeError, ValueError):
            vector = np.empty(0, np.float32)
        if vector.ndim != 1 or not len(vector) or not np.isfinite(vector).all():
            raise ServiceError(f"the answer is no vector: {str(answer.get('output'))[:80]}")
        return vector

    def _own(self, url: str) -> str:
        """The path of an address the service gave; on another host it would be sent the token."""
        parts = urllib.parse.urlsplit(url)
        if parts.netloc != self._netloc:
            raise ServiceError(f"the result is said to be at {parts.netloc}, not {self._netloc}")
        return parts.path

    def _uploaded(self, name: str, kind: str, data: bytes) -> str:
        boundary = uuid.uuid4().hex
        name = name.replace('"', "_")
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="content"; filename="{name}"\r\n'
            f"Content-Type: {kind}\r\n\r\n"
        )
        body = head.encode() + data + f"\r\n--{boundary}--\r\n".encode()
        answer = self._request(
            "POST", "/v1/files", body, f"multipart/form-data; boundary={boundary}"
        )
        return str(answer["urls"]["get"])

    def _request(
        self, method: str, path: str, body: bytes | None = None, kind: str | None = None
    ) -> dict[str, Any]:
        headers = {"Content-Type": kind} if kind else {}
        if self._token:
            headers |= {"Authorization": f"Bearer {self._token}"}
            headers |= {"Prefer": f"wait={REPLICATE_WAIT}"} if method == "POST" else {}
        deadline = time.monotonic() + PATIENCE
        pause = 0.02
        while True:
            connection: http.client.HTTPConnection = self._connection()
            waits: float | None = None
            try:
                connection.request(method, path, body, headers)
                response = connection.getresponse()
                status, data = response.status, response.read()
                waits = _seconds(response.getheader("Retry-After"))
                problem = f"{status} {response.reason}: {data[:200].decode(errors='replace')}"
            except (OSError, http.client.HTTPException) as error:
                self._threads.connection.close()
                del self._threads.connection
                # A connection refused outright is nobody there; others may have been busy.
                status, data, problem = 0, b"", f"{type(error).__name__}: {error}"
                if isinstance(error, ConnectionRefusedError | OSError) and not isinstance(
                    error, ConnectionResetError | BrokenPipeError | TimeoutError
                ):
                    raise ServiceError(f"{self._scheme}://{self._netloc}: {problem}") from error
            if 200 <= status < 300:
                try:
                    return dict(json.loads(data))
                except ValueError:
                    raise ServiceError(f"{path} answers no JSON: {data[:80]!r}") from None
            if status in (400, 413, 422):
                raise RefusedError(problem)
            if (status and status not in RETRIED) or time.monotonic() > deadline:
                raise ServiceError(f"{self._scheme}://{self._netloc}{path}: {problem}")
            time.sleep(waits if waits is not None else pause)
            pause = min(2 * pause, 2.0)

    def _connection(self) -> http.client.HTTPConnection:
        """This thread's own, kept open between requests."""
        if not hasattr(self._threads, "connection"):
            kind = (
                http.client.HTTPSConnection
                if self._scheme == "https"
                else http.client.HTTPConnection
            )
            self._threads.connection = kind(self._netloc, timeout=TIMEOUT)
        connection: http.client.HTTPConnection = self._threads.connection
        return connection


def _seconds(retry_after: str | None) -> float | None:
    return min(float(retry_after), 60.0) if (retry_after or "").isdecimal() else None
