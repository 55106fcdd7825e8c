"""Read and write files in a directory or under a prefix of a Cloud Storage bucket.

For commands that publish or process data. A write is atomic: readers see the old file or the new
one, never a part of either. Reads go through `clip_embed.checkpoint.stores`, as the service's do:
obstore takes 0.3 ms of CPU time for an object of 150 kB, google-cloud-storage 2.5 ms. Lists, sizes
and writes go through google-cloud-storage, which retries by itself (its DEFAULT_RETRY).

To add a kind of storage, implement `Storage` and name its scheme in `open_storage`.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import crc32c
import stamina

from clip_embed.checkpoint import stores
from clip_embed.checkpoint.credentials import (
    find_google_credentials,
    google_session,
    renew,
)
from clip_embed.checkpoint.location import Location, parse_location
from clip_embed.checkpoint.manifest import encode_checksum
from clip_embed.errors import AccessError, LocationError, SettingError, TransientError
from clip_embed.settings import billing_project, storage_emulator_url

READ_ATTEMPTS = 8
"""The first one included. The waits between them add up to about ten seconds."""

CHECK_SECONDS = 10.0
"""Timeout of `check_writable`: a command that cannot succeed fails soon."""

_READ_WRITE = "https://www.googleapis.com/auth/devstorage.read_write"
_TO_LOG_IN = "run `gcloud auth application-default login` or set GOOGLE_APPLICATION_CREDENTIALS"
_WAY_OUT = "give gs://bucket/prefix or a directory"

OnProgress = Callable[[int], None]
"""Receives the number of bytes sent so far. A retried upload starts at 0 again."""


@dataclass(frozen=True)
class FileVersion:
    """The content of a file at one time.

    crc32c: base64, as Cloud Storage shows it. modified: seconds since 1970.
    """

    crc32c: str
    modified: float


class Storage(Protocol):
    """Files of one location. Safe to use from several threads and machines at once.

    File names are relative to the location and use "/". Every method raises AccessError if the
    location denies access, and OSError if it does not answer, after retries.
    """

    location: str

    def check_writable(self) -> None:
        """Check that files can be created and replaced here, without writing one.

        Raises AccessError, FileNotFoundError (no such bucket) or OSError, each one sentence.
        """

    def names(self, prefix: str = "") -> Iterator[str]:
        """Yield the name of every file that begins with `prefix`, hidden files included."""

    def size(self, name: str) -> int:
        """Return the size in bytes. Raises FileNotFoundError."""

    def version(self, name: str) -> FileVersion | None:
        """Return the version of the file, None if there is no such file."""

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """Return bytes `start` to `end`, by default all. Raises FileNotFoundError."""

    def write(
        self,
        name: str,
        data: bytes,
        *,
        cache_control: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Replace the file by `data`.

        cache_control: the Cache-Control header with which the file is served, where there is one.
        """

    def delete(self, name: str) -> None:
        """Delete the file, if it exists."""


def open_storage(
    location: str, *, name: str = "the location", allow_anonymous: bool = True
) -> Storage:
    """Open a directory or gs://bucket/prefix. Cached: one object per location and process.

    name: of the argument, for messages. allow_anonymous: without credentials, continue anonymously.
    Public buckets can then be read.
    Raises ValueError for other locations, AccessError if credentials are needed and missing.
    """
    try:
        parsed = parse_location(location, name, _WAY_OUT)
        project = billing_project()
    except LocationError as error:
        # It is not quoted here: it may hold a password.
        raise ValueError(str(error)) from None
    except SettingError as error:
        raise AccessError(str(error)) from None
    if parsed.scheme not in ("gs", "file"):
        raise ValueError(f"{name} is {parsed.text!r}, a web server; {_WAY_OUT}")
    return _open_storage(parsed, allow_anonymous, storage_emulator_url(), project)


@functools.cache
def _open_storage(
    location: Location, allow_anonymous: bool, emulator: str | None, project: str | None
) -> Storage:
    if location.scheme == "file":
        return DirectoryStorage(location.text)
    bucket = google_client(allow_anonymous, emulator).bucket(location.host, user_project=project)
    return GcsStorage(location, bucket, emulator)


# --- a directory ------------------------------------------------------------------------------


class DirectoryStorage:
    """A directory of this machine, or one that all machines mount."""

    def __init__(self, location: str) -> None:
        self._root = Path(os.path.expanduser(location.removeprefix("file://"))).resolve()
        self.location = str(self._root)
        self._store = stores.DirectoryStore(self.location)

    def check_writable(self) -> None:
        existing = self._root
        while not existing.exists():
            existing = existing.parent
        if not existing.is_dir():
            raise NotADirectoryError(f"{existing} is a file, and no directory; name another one")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise AccessError(f"{existing} may not be written by this user; name another directory")

    def names(self, prefix: str = "") -> Iterator[str]:
        for directory, subdirectories, files in os.walk(self._root):
            subdirectories.sort()
            for file in sorted(files):
                name = (Path(directory) / file).relative_to(self._root).as_posix()
                if name.startswith(prefix):
                    yield name

    def size(self, name: str) -> int:
        return (self._root / name).stat().st_size

    def version(self, name: str) -> FileVersion | None:
        try:
            path = self._root / name
            return FileVersion(crc32c_base64(path.read_bytes()), path.stat().st_mtime)
        except FileNotFoundError:
            return None

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        return _read_with_retries(self._store, name, start, end)

    def write(
        self,
        name: str,
        data: bytes,
        *,
        cache_control: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # A unique name: another machine may be writing the same file.
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            partial.write_bytes(data)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        if on_progress is not None:
            on_progress(len(data))

    def delete(self, name: str) -> None:
        (self._root / name).unlink(missing_ok=True)


# --- a bucket ---------------------------------------------------------------------------------


@functools.cache
def google_client(allow_anonymous: bool, emulator: str | None) -> Any:
    """Return the Google client for every bucket of this process.

    emulator: the URL of a Cloud Storage emulator, which needs no credentials. Otherwise the client
    uses Application Default Credentials; without any it is anonymous or raises AccessError.
    """
    from google.auth.credentials import AnonymousCredentials
    from google.auth.transport.requests import AuthorizedSession
    from google.cloud import storage

    credentials, request = AnonymousCredentials(), None
    if not emulator:  # the client itself reads STORAGE_EMULATOR_HOST
        try:
            credentials, request = find_google_credentials(_READ_WRITE)
            renew(credentials, request)  # within a timeout; Google's client has none
        except AccessError as error:
            if not allow_anonymous:
                raise AccessError(f"{error}; {_TO_LOG_IN}") from None
    session = AuthorizedSession(credentials, auth_request=request)
    ours = google_session()
    session.verify = ours.verify
    session.proxies = ours.proxies
    # No method used here needs a project; many accounts have none.
    return storage.Client(project=None, credentials=credentials, _http=session)


class GcsStorage:
    """A prefix of a Cloud Storage bucket, or of an emulator (STORAGE_EMULATOR_HOST)."""

    def __init__(self, location: Location, bucket: Any, emulator: str | None) -> None:
        self.location = location.text
        self._prefix = f"{location.path}/" if location.path else ""
        self._bucket = bucket
        self._emulator = emulator

    @functools.cached_property
    def _store(self) -> stores.Store:
        return stores.open_store(self.location)

    def check_writable(self) -> None:
        from google.cloud.storage.retry import DEFAULT_RETRY

        patience = {"timeout": CHECK_SECONDS, "retry": DEFAULT_RETRY.with_timeout(CHECK_SECONDS)}
        bucket = f"gs://{self._bucket.name}"
        with _google_errors(bucket):
            if self._emulator:  # it knows no permissions
                if not self._bucket.exists(**patience):
                    raise FileNotFoundError(f"{bucket} does not exist; create the bucket first")
                return
            wanted = ["storage.objects.create", "storage.objects.delete", "storage.objects.get"]
            missing = set(wanted) - set(self._bucket.test_iam_permissions(wanted, **patience))
        if missing:
            raise AccessError(
                f"{bucket}: these credentials lack {', '.join(sorted(missing))}; grant them the"
                " role Storage Object User"
            )

    def names(self, prefix: str = "") -> Iterator[str]:
        with _google_errors(self.location):
            # Names alone: half the bytes of a page.
            blobs = self._bucket.list_blobs(
                prefix=self._prefix + prefix, fields="items(name),nextPageToken"
            )
            for blob in blobs:
                if not blob.name.endswith("/"):  # consoles create such objects for folders
                    yield blob.name.removeprefix(self._prefix)

    def size(self, name: str) -> int:
        blob = self._get_blob(name)
        if blob is None:
            raise FileNotFoundError(f"{self.location}/{name} does not exist")
        return int(blob.size)

    def version(self, name: str) -> FileVersion | None:
        blob = self._get_blob(name)
        return None if blob is None else FileVersion(blob.crc32c, blob.updated.timestamp())

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        if "//" in f"/{name}":  # allowed in Cloud Storage; obstore's paths cannot express it
            last = None if end is None else end - 1
            with _google_errors(f"{self.location}/{name}"):
                return bytes(self._blob(name).download_as_bytes(start=start, end=last))
        try:
            return _read_with_retries(self._store, name, start, end)
        except AccessError:
            # As `weights.pull` does: anonymous first, with credentials if that is denied.
            store = stores.with_credentials(self._store)
            if store is None:
                raise
            self._store = store
            return _read_with_retries(store, name, start, end)

    def write(
        self,
        name: str,
        data: bytes,
        *,
        cache_control: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        blob = self._blob(name)
        if cache_control is not None:
            blob.cache_control = cache_control
        file = _ProgressReader(data, on_progress) if on_progress else io.BytesIO(data)
        with _google_errors(f"{self.location}/{name}"):
            blob.upload_from_file(file, size=len(data), checksum="crc32c")

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError), _google_errors(f"{self.location}/{name}"):
            self._blob(name).delete()

    def _blob(self, name: str) -> Any:
        return self._bucket.blob(self._prefix + name)

    def _get_blob(self, name: str) -> Any:
        with _google_errors(f"{self.location}/{name}"):
            return self._bucket.get_blob(self._prefix + name)


@contextlib.contextmanager
def _google_errors(where: str) -> Iterator[None]:
    """Convert the Google client's errors to FileNotFoundError, AccessError or OSError."""
    import requests
    from google.api_core.exceptions import (
        Forbidden,
        GoogleAPIError,
        NotFound,
        RetryError,
        Unauthorized,
    )
    from google.auth.exceptions import GoogleAuthError, TransportError

    way_out = "use Application Default Credentials that may list, read and write there"
    # `from None`, and no word of Google's: they may quote a token or a key.
    try:
        yield
    except NotFound:
        raise FileNotFoundError(f"{where} does not exist") from None
    except (Forbidden, Unauthorized) as error:
        raise AccessError(f"{where} denies access (HTTP {error.code:d}); {way_out}") from None
    except (GoogleAPIError, TransportError, requests.RequestException) as error:
        last = error.cause if isinstance(error, RetryError) else error
        raise OSError(f"{where}: {_network_problem(last)}") from None
    except GoogleAuthError as error:
        raise AccessError(
            f"{where}: the credentials get no token ({type(error).__name__}); {way_out}"
        ) from None


def _network_problem(error: BaseException | None) -> str:
    """Describe an error of requests, or of a server, without its text."""
    import requests

    if isinstance(error, requests.exceptions.SSLError):
        return "the server's certificate is not trusted; set SSL_CERT_FILE if it is your own"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy (https_proxy) refuses the connection, or cannot be reached"
    if isinstance(error, requests.exceptions.Timeout):
        return "no answer in time; check the network"
    if isinstance(error, requests.exceptions.ConnectionError):
        return "no connection; check the network, the proxy and STORAGE_EMULATOR_HOST"
    code = getattr(error, "code", None)
    return f"HTTP {code:d}" if code else f"the request failed ({type(error).__name__})"


class _ProgressReader(io.BytesIO):
    """Bytes that report how far they have been read. A retried upload seeks back."""

    def __init__(self, data: bytes, on_progress: OnProgress) -> None:
        super().__init__(data)
        self._on_progress = on_progress

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self._on_progress(self.tell())
        return data


# --- for every kind ---------------------------------------------------------------------------


def crc32c_base64(data: bytes | memoryview) -> str:
    """Return the crc32c of `data` in base64, as Cloud Storage shows it."""
    return encode_checksum(crc32c.crc32c(data))


def _read_with_retries(store: stores.Store, name: str, start: int, end: int | None) -> bytes:
    try:
        for attempt in stamina.retry_context(
            on=TransientError,
            attempts=READ_ATTEMPTS,
            timeout=None,
            wait_initial=0.1,
            wait_max=4.0,
            wait_jitter=0.2,
        ):
            with attempt:
                return bytes(store.read(name, start, end))
    except TransientError as error:
        raise OSError(
            f"{store.location}/{name}: {error} after {READ_ATTEMPTS} attempts; run the same command"
            " again once it can be read"
        ) from error
    raise AssertionError("unreachable: the loop above returns or raises")


class StorageFile(io.RawIOBase):
    """A seekable file that reads only the ranges that are asked for, as pyarrow needs it."""

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage, self._name = storage, name
        self._size, self._position = storage.size(name), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origins = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}
        self._position = offset + origins[whence]
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        end = self._size if size is None or size < 0 else min(self._position + size, self._size)
        if end <= self._position:
            return b""
        data = self._storage.read(self._name, self._position, end)
        self._position += len(data)
        return data
