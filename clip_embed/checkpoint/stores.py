"""Read published bytes from a directory, a web server or a Cloud Storage bucket.

Each store turns its errors into four kinds: missing, access denied, final, and transient, which may
be retried (fetch.py). obstore is imported only for locations that need it, and google-auth only for
private buckets.
"""

from __future__ import annotations

import os
import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from clip_embed.errors import AccessError, LocationError, TransferError
from clip_embed.settings import storage_emulator_url

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_CONNECT_TIMEOUT = timedelta(seconds=4)
_READ_TIMEOUT = timedelta(seconds=5)  # between two reads of one response
_REQUEST_TIMEOUT = timedelta(seconds=60)
_HOW_TO_SET = (
    "set CLIP_WEIGHTS to gs://bucket/prefix, https://host/prefix or a directory"
    " that scripts/publish_weights.py has filled"
)


class TransientError(Exception):
    """A failure that may not repeat. busy: the server asks for patience (HTTP 429, 503).

    attempts: how many were made in all, once no further one is made.
    """

    def __init__(self, problem: str, busy: bool = False) -> None:
        super().__init__(problem)
        self.busy = busy
        self.attempts = 1


class Store(Protocol):
    """Published files, read by several threads at once. location: for messages."""

    location: str

    def read(
        self, name: str, start: int = 0, end: int | None = None, generation: str | None = None
    ) -> memoryview:
        """Return bytes start to end of the file `name`, or all of it if end is None.

        generation: of the object, where the store has generations.

        Raises FileNotFoundError, AccessError, TransferError (no retry can help), TransientError.
        """


class DirectoryStore:
    """A directory on this machine."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._directory = Path(location.removeprefix("file://")).expanduser()

    def read(
        self, name: str, start: int = 0, end: int | None = None, generation: str | None = None
    ) -> memoryview:
        try:
            with open(self._directory / name, "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size if end is None else end - start
                return memoryview(os.pread(file.fileno(), size, start))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(name) from error
        except PermissionError as error:
            raise AccessError(f"{self._directory / name} may not be read by this user") from error
        except OSError as error:
            raise TransientError(str(error)) from error


class RemoteStore:
    """A bucket or a web server, through obstore (Rust), which releases the interpreter lock."""

    def __init__(self, location: str, store: ObjectStore) -> None:
        self.location = location
        self._store = store

    def read(
        self, name: str, start: int = 0, end: int | None = None, generation: str | None = None
    ) -> memoryview:
        import obstore

        options: dict[str, Any] = {}
        if end is not None:
            options["range"] = (start, end)
        if generation is not None:
            options["version"] = generation
        try:
            return memoryview(obstore.get(self._store, name, options=options).bytes())  # type: ignore[arg-type]
        except Exception as error:
            # `from None`: obstore quotes the server's response, which may quote the token.
            raise _from_obstore(error, f"{self.location}/{name}") from None


def _from_obstore(error: Exception, where: str) -> Exception:
    """Turn an error of obstore's into one of ours. The only place that does."""
    from obstore import exceptions

    # The lines after the first repeat it for obstore's developers.
    message = str(error).split("\n", 1)[0]
    status = re.search(r"status code: (\d{3})", message)
    code = int(status.group(1)) if status else None
    # obstore's web store raises FileNotFoundError for a 405, too.
    if code == 404 or (code is None and isinstance(error, FileNotFoundError)):
        return FileNotFoundError(where)
    if isinstance(error, exceptions.UnauthenticatedError | exceptions.PermissionDeniedError):
        # Without a status it was google-auth that failed, and obstore quotes its message.
        cause = f"HTTP {code}" if code else message.rpartition("credential provider: ")[2]
        return AccessError(
            f"{where} refuses access ({cause}); make the bucket readable, or give this service"
            " credentials that may read it (Application Default Credentials)"
        )
    if isinstance(error, exceptions.NotSupportedError) or "non-partial response" in message:
        return TransferError(
            f"{where}: the server ignores Range requests; serve it with one that does not"
        )
    if code in (400, 405, 412, 416):
        return TransferError(f"{where}: the server refused the request (HTTP {code})")
    if code is not None:
        return TransientError(f"HTTP {code}", busy=code in (429, 503))
    detail = str(error)
    for sign, meaning in (
        ("dns error", "the host name cannot be resolved"),
        ("Connection refused", "connection refused"),
        ("Timeout", "timed out"),
        ("TimedOut", "timed out"),
        ("certificate", "the server's certificate is not trusted"),
    ):
        if sign in detail:
            return TransientError(meaning)
    return TransientError(
        message.removeprefix("Generic HTTP error: ").removeprefix("Generic GCS error: ")
    )


def _client_options(allow_http: bool) -> dict[str, Any]:
    return {
        "allow_http": allow_http,
        "connect_timeout": _CONNECT_TIMEOUT,
        "read_timeout": _READ_TIMEOUT,
        "timeout": _REQUEST_TIMEOUT,
        "user_agent": "clip-embed",
    }


# obstore must not retry: fetch.py does.
_NO_RETRIES: dict[str, Any] = {"max_retries": 0, "retry_timeout": timedelta(0)}


def _http_store(location: str) -> Store:
    from obstore.store import HTTPStore

    parts = urlsplit(location)
    if parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise LocationError(
            f"{location} is not encrypted; use https:// (http:// only on this host)"
        )
    try:
        store = HTTPStore.from_url(
            location,
            client_options=_client_options(parts.scheme == "http"),  # type: ignore[arg-type]
            retry_config=_NO_RETRIES,  # type: ignore[arg-type]
        )
    except Exception as error:
        raise LocationError(f"{location} cannot be opened ({error}); {_HOW_TO_SET}") from error
    return RemoteStore(location, store)


def _gcs_store(location: str, credentials: Any = None) -> Store:
    from obstore.store import GCSStore

    parts = urlsplit(location)
    emulator = storage_emulator_url() or ""
    options: dict[str, Any] = {"base_url": emulator} if emulator else {}
    if credentials is not None:
        options["credential_provider"] = credentials
    else:
        options["skip_signature"] = True
    try:
        store = GCSStore(
            parts.netloc,
            prefix=parts.path.strip("/") or None,
            client_options=_client_options(emulator.startswith("http://")),  # type: ignore[arg-type]
            retry_config=_NO_RETRIES,  # type: ignore[arg-type]
            **options,
        )
    except Exception as error:
        raise LocationError(
            f"{location} cannot be opened ({str(error).splitlines()[0]}); check the bucket's name"
            " and GOOGLE_APPLICATION_CREDENTIALS"
        ) from error
    return RemoteStore(location, store)


def _application_default_credentials() -> Any:
    """Return a credential provider for obstore, based on google-auth, which knows every kind.

    Raises AccessError if there are no credentials.
    """
    import google.auth
    import google.auth.transport.requests

    try:
        credentials, _ = google.auth.default(
            scopes=["https://www.googleapis.com/auth/devstorage.read_only"]
        )
    except google.auth.exceptions.GoogleAuthError as error:
        raise AccessError(
            "the bucket is private and there are no Application Default Credentials here; mount a"
            " key and set GOOGLE_APPLICATION_CREDENTIALS, use a service account, or make the bucket"
            " public"
        ) from error

    def provide() -> dict[str, Any]:
        if not credentials.valid:
            credentials.refresh(google.auth.transport.requests.Request())  # type: ignore[no-untyped-call]
        return {"token": credentials.token, "expires_at": None}

    return provide


def open_store(location: str | None) -> Store:
    """Open the store that `location` (CLIP_WEIGHTS) names. Raises LocationError."""
    if location is None or not location.strip():
        raise LocationError(f"CLIP_WEIGHTS is not set; {_HOW_TO_SET}")
    location = location.strip()
    scheme, separator, rest = location.partition("://")
    if not separator or scheme == "file":
        return DirectoryStore(location.rstrip("/") or "/")
    # The next messages quote no part that may hold a secret: they end up in logs.
    if scheme not in ("gs", "http", "https"):
        raise LocationError(f"CLIP_WEIGHTS begins with {scheme}://; {_HOW_TO_SET}")
    try:
        parts = urlsplit(location)
        host, _ = parts.hostname, parts.port  # validated when they are accessed
    except ValueError:
        raise LocationError(f"CLIP_WEIGHTS is not a well-formed URL; {_HOW_TO_SET}") from None
    if "@" in parts.netloc or "?" in rest or "#" in rest:
        raise LocationError(
            "CLIP_WEIGHTS holds a user name, a password, a query or a fragment, which it cannot"
            f" have; {_HOW_TO_SET}"
        )
    if not host:
        raise LocationError(f"CLIP_WEIGHTS is {location!r}, which has no host; {_HOW_TO_SET}")
    location = location.rstrip("/")
    return _gcs_store(location) if scheme == "gs" else _http_store(location)


def with_credentials(store: Store) -> Store | None:
    """Open `store` with Application Default Credentials; None where they cannot help.

    Called only after a bucket has refused an anonymous request, so that a public one waits for
    neither the import of google-auth nor a metadata server. Raises AccessError if there are none.
    """
    if not store.location.startswith("gs://") or storage_emulator_url():
        return None
    return _gcs_store(store.location, _application_default_credentials())
