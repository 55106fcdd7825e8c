"""Read published bytes from a directory, a web server or a Cloud Storage bucket.

Each store turns its errors into four kinds: missing, access denied, final, and transient, which may
be retried (fetch.py). obstore is imported only for locations that need it, and google-auth only for
private buckets.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from clip_embed.checkpoint.credentials import Credentials
from clip_embed.checkpoint.location import HOW_TO_SET, LOOPBACK, Location, parse_location
from clip_embed.errors import AccessError, LocationError, TransferError, TransientError
from clip_embed.settings import storage_emulator_url

if TYPE_CHECKING:
    from obstore.store import ObjectStore

CLOUD_STORAGE = "https://storage.googleapis.com"
"""The XML API: an object's URL is this, its bucket and its name."""

WHOLE_FILE_BYTES = 2**30
"""Largest file that is read without a range."""

_CONNECT_TIMEOUT = timedelta(seconds=4)
_READ_TIMEOUT = timedelta(seconds=5)  # between two reads of one response
_REQUEST_TIMEOUT = timedelta(seconds=60)


class Store(Protocol):
    """Published files, read by several threads at once. location: for messages."""

    location: str

    def read(self, name: str, start: int = 0, end: int | None = None) -> memoryview:
        """Return bytes start to end of the file `name`, or all of it if end is None.

        Raises FileNotFoundError, AccessError, TransferError (no retry can help), TransientError.
        """


class DirectoryStore:
    """A directory on this machine."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._directory = Path(os.path.expanduser(location.removeprefix("file://")))

    def read(self, name: str, start: int = 0, end: int | None = None) -> memoryview:
        try:
            with open(self._directory / name, "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                if end is not None and end > size:
                    raise TransferError(
                        f"{self._directory / name} has only {size} bytes; copy or publish the model"
                        " again"
                    )
                return memoryview(os.pread(file.fileno(), (end or size) - start, start))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(name) from error
        except PermissionError as error:
            raise AccessError(f"{self._directory / name} may not be read by this user") from error
        except IsADirectoryError as error:
            raise TransferError(
                f"{self._directory / name} is a directory; publish again"
            ) from error
        except OSError as error:
            raise TransientError(str(error)) from error


class RemoteStore:
    """A bucket or a web server, through obstore (Rust), which releases the interpreter lock.

    A bucket is read through obstore's HTTPStore as well. Its GCSStore (0.12) reads every credential
    of the environment, fails on those that it does not know although none is needed, and quotes
    broken keys. Use it once tests/service/pull/test_credentials.py passes with it.
    """

    def __init__(
        self, location: Location, url: str, credentials: Credentials | None = None
    ) -> None:
        """url: of the files, without a slash at its end. credentials: None for anonymous requests.

        Raises LocationError if the URL or the certificates of this machine cannot be used.
        """
        self.location = location.text
        self.on_cloud_storage = location.scheme == "gs"
        self._url = url
        self._credentials = credentials
        self._lock = threading.Lock()
        self._headers: Mapping[str, str] = {}
        self._store = self._open() if credentials is None else None

    def read(self, name: str, start: int = 0, end: int | None = None) -> memoryview:
        import obstore

        options: dict[str, Any] = {} if end is None else {"range": (start, end)}
        store = self._authorized_store()
        try:
            result = obstore.get(store, name, options=options)  # type: ignore[arg-type]
            first, last = result.range
            if last - first > (WHOLE_FILE_BYTES if end is None else end - start):
                # obstore would allocate whatever the server announces, and abort if it cannot.
                raise TransferError(
                    f"{self.location}/{name}: the server sends {last - first} bytes, too many"
                )
            return memoryview(result.bytes())
        except TransferError:
            raise
        except Exception as error:
            # `from None`: obstore quotes the server's response, which may quote the token.
            raise self._convert(error, f"{self.location}/{name}") from None

    def _authorized_store(self) -> ObjectStore:
        """Return the store whose requests carry a valid token. It is opened anew, with connections
        of its own, when the token is renewed, about once an hour."""
        if self._credentials is None:
            assert self._store is not None
            return self._store
        try:
            headers = self._credentials.headers()
        except AccessError as error:
            raise AccessError(f"{self.location}: {error}") from None
        with self._lock:
            if self._store is None or headers != self._headers:
                self._headers = headers
                self._store = self._open()
            return self._store

    def _open(self) -> ObjectStore:
        from obstore.store import HTTPStore

        try:
            return HTTPStore.from_url(
                self._url,
                client_options=_client_options(self._url, self._headers),  # type: ignore[arg-type]
                # obstore must not retry: fetch.py does.
                retry_config={"max_retries": 0, "retry_timeout": timedelta(0)},
            )
        except Exception as error:
            if "No CA certificates" in str(error):
                raise LocationError(
                    f"{self.location} cannot be opened: this machine has no trusted certificates;"
                    " install ca-certificates, or set SSL_CERT_FILE"
                ) from None
            way_out = "correct STORAGE_EMULATOR_HOST" if self._is_emulated() else HOW_TO_SET
            raise LocationError(
                f"{self.location} cannot be opened ({type(error).__name__}); {way_out}"
            ) from None

    def _is_emulated(self) -> bool:
        return self.on_cloud_storage and storage_emulator_url() is not None

    def _convert(self, error: Exception, where: str) -> Exception:
        """Turn an error of obstore's into one of ours. Quotes nothing of it but a status."""
        from obstore import exceptions

        detail = re.sub(r"https?://[^\s,]+", "", str(error))  # the location decides nothing
        # The lines after the first repeat it for obstore's developers.
        status = re.search(r"status code: (\d{3})", detail.split("\n", 1)[0])
        code = int(status.group(1)) if status else None
        # obstore's web store raises FileNotFoundError for a 405, too.
        if code == 404 or (code is None and isinstance(error, FileNotFoundError)):
            return FileNotFoundError(where)
        if code in (400, 403) and ("UserProject" in detail or "requester pays" in detail):
            return AccessError(
                f"{where} refuses access (HTTP {code}): requests to this bucket are paid by the"
                " requester; set CLIP_BILLING_PROJECT to a project that these credentials may bill"
            )
        if code in (401, 403):
            return AccessError(f"{where} refuses access (HTTP {code}){self._way_into()}")
        if isinstance(error, exceptions.NotSupportedError) or "non-partial response" in detail:
            return TransferError(
                f"{where}: the server ignores Range requests; serve it with one that does not"
            )
        if code in (400, 405, 412, 416):
            return TransferError(f"{where}: the server refused the request (HTTP {code})")
        if code is not None:
            return TransientError(f"HTTP {code}", busy=code in (429, 503))
        for sign, problem in _FINAL_PROBLEMS.items():
            if sign in detail:
                return TransferError(f"{where} cannot be read: {problem}")
        for sign, problem in _TRANSIENT_PROBLEMS.items():
            if sign in detail:
                return TransientError(problem)
        return TransientError(f"the request failed ({type(error).__name__})")

    def _way_into(self) -> str:
        if not self.on_cloud_storage:
            return "; make it readable without a login"
        if self._credentials is None:
            return (
                "; make the bucket readable, or give this service credentials that may read it"
                " (Application Default Credentials)"
            )
        return (
            " to these credentials: they may not read it, or it does not exist and they may not"
            " list the bucket, which Cloud Storage answers alike; grant them the role Storage"
            " Object Viewer, or correct CLIP_WEIGHTS"
        )


# Parts of obstore's error text (0.12), checked in order: the error of a dead proxy contains both
# ConnectFailed and ConnectionRefused.
_FINAL_PROBLEMS = {
    "ProxyAuthRequired": "the proxy asks for a login (HTTP 407); put one into https_proxy",
    "InvalidCertificate": "the server's certificate is not trusted; if it is signed by an authority"
    " of your own, set SSL_CERT_FILE",
    "MissingContentLength": "the server sends no Content-Length; serve plain files",
    "InvalidContentType": "the server does not speak TLS there; check the scheme and the port",
}
_TRANSIENT_PROBLEMS = {
    "TunnelUnsuccessful": "the proxy (https_proxy) cannot reach the server",
    "ConnectFailed": "the proxy (https_proxy) cannot be reached",
    "dns error": "the host name cannot be resolved",
    "ConnectionRefused": "connection refused",
    "TimedOut": "timed out",
    "Timeout": "timed out",
    "ConnectionReset": "the server closed the connection",
    "IncompleteMessage": "the server closed the connection",
    "UnexpectedEof": "the server closed the connection",
    "Parse": "the response is not HTTP",
}


def _client_options(url: str, headers: Mapping[str, str]) -> dict[str, Any]:
    options: dict[str, Any] = {
        "connect_timeout": _CONNECT_TIMEOUT,
        "read_timeout": _READ_TIMEOUT,
        "timeout": _REQUEST_TIMEOUT,
        "user_agent": "clip-embed",
    }
    if headers:
        options["default_headers"] = dict(headers)
    parts = urlsplit(url)
    if parts.scheme == "http":
        options["allow_http"] = True
    if parts.hostname in LOOPBACK:
        # reqwest would use http_proxy even for this host. Setting another proxy, with this host as
        # an exception, is the only way to prevent that.
        options |= {"proxy_url": "http://127.0.0.1:9", "proxy_excludes": ",".join(LOOPBACK)}
    return options


def open_store(location: str | None) -> Store:
    """Open the store that `location` (CLIP_WEIGHTS) names. Raises LocationError."""
    parsed = parse_location(location)
    if parsed.scheme == "file":
        return DirectoryStore(parsed.text)
    return RemoteStore(parsed, _url_of(parsed))


def with_credentials(store: Store) -> Store | None:
    """Open `store` with Application Default Credentials; None where they cannot help.

    Called only after a bucket has refused an anonymous request (credentials.py). Raises AccessError
    if there are none.
    """
    if not isinstance(store, RemoteStore) or not store.on_cloud_storage or storage_emulator_url():
        return None
    location = parse_location(store.location)
    try:
        return RemoteStore(location, _url_of(location), Credentials.find())
    except AccessError as error:
        raise AccessError(f"{location.text}: {error}") from None


def _url_of(location: Location) -> str:
    if location.scheme != "gs":
        return location.text
    return f"{storage_emulator_url() or CLOUD_STORAGE}/{location.object_path}"
