"""Where a data set lies and where its vectors go: a folder, or a prefix of a bucket.

Knows nothing of pictures, plans or Ray. Bytes come through `clip_embed.sources`, as the weights do;
names and uploads through google-cloud-storage. Every write is whole or not at all.
"""

from __future__ import annotations

import functools
import io
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from clip_embed import sources
from clip_embed.errors import AccessError

ATTEMPTS = 8
"""Tries per read, the first included: with the pauses between them, about ten seconds."""


class Place(Protocol):
    """Somewhere files are listed, read and written, by several threads and machines at once.

    Names are relative and use "/". `read` gives bytes start to end, or all of them; it raises
    FileNotFoundError, clip_embed.errors.AccessError, or OSError when tries are used up.
    """

    location: str

    def names(self, prefix: str = "") -> Iterator[str]:
        """Every file's name that begins with `prefix`, in a stream; hidden ones, too."""

    def size(self, name: str) -> int: ...

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes: ...

    def write(self, name: str, data: bytes) -> None: ...


class Folder:
    """A directory of this machine, or one that all machines mount."""

    def __init__(self, location: str) -> None:
        self._root = Path(location.removeprefix("file://")).expanduser().resolve()
        self.location = str(self._root)
        self._source = sources.DirectorySource(self.location)

    def names(self, prefix: str = "") -> Iterator[str]:
        for directory, below, files in os.walk(self._root):
            below.sort()
            for file in sorted(files):
                name = (Path(directory) / file).relative_to(self._root).as_posix()
                if name.startswith(prefix):
                    yield name

    def size(self, name: str) -> int:
        return (self._root / name).stat().st_size

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        return _persistently(self._source, name, start, end)

    def write(self, name: str, data: bytes) -> None:
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: a part that was given up may be in writing elsewhere, too.
        handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.chmod(partial, 0o644)
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise


class Bucket:
    """A prefix of a Cloud Storage bucket, or of an emulator's (STORAGE_EMULATOR_HOST)."""

    def __init__(self, location: str) -> None:
        self.location = location.rstrip("/")
        bucket, _, prefix = self.location.removeprefix("gs://").partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._bucket = _client().bucket(bucket)
        self._source = sources.open_source(self.location)

    def names(self, prefix: str = "") -> Iterator[str]:
        # Only names: half a page's bytes, and the answer comes sooner.
        blobs = self._bucket.list_blobs(
            prefix=self._prefix + prefix, fields="items(name),nextPageToken"
        )
        for blob in blobs:
            if not blob.name.endswith("/"):  # consoles make such objects stand for folders
                yield blob.name.removeprefix(self._prefix)

    def size(self, name: str) -> int:
        blob = self._bucket.get_blob(self._prefix + name)
        if blob is None:
            raise FileNotFoundError(f"{self.location}/{name}")
        return int(blob.size)

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        if "//" in f"/{name}":  # legal in Cloud Storage; obstore's paths cannot say it
            from google.api_core.exceptions import NotFound

            try:
                last = None if end is None else end - 1
                return bytes(
                    self._bucket.blob(self._prefix + name).download_as_bytes(start=start, end=last)
                )
            except NotFound as error:
                raise FileNotFoundError(f"{self.location}/{name}") from error
        try:
            return _persistently(self._source, name, start, end)
        except AccessError:
            # As `weights.py` does: credentials are asked for once an anonymous reader is refused.
            signed = sources.with_credentials(self._source)
            if signed is None:
                raise
            self._source = signed
            return _persistently(self._source, name, start, end)

    def write(self, name: str, data: bytes) -> None:
        from google.cloud.storage.retry import DEFAULT_RETRY

        # Written again, a part is the same part: a retry needs no precondition.
        self._bucket.blob(self._prefix + name).upload_from_string(
            data, content_type="application/octet-stream", checksum="crc32c", retry=DEFAULT_RETRY
        )


def _persistently(source: sources.Source, name: str, start: int, end: int | None) -> bytes:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return bytes(source.read(name, start, end))
        except sources.PassingError as error:
            if attempt == ATTEMPTS:
                raise OSError(
                    f"{source.location}/{name}: {error} after {ATTEMPTS} attempts; run the same"
                    " command again once it can be read"
                ) from error
            time.sleep(min(4.0, 0.1 * 2**attempt) * random.uniform(0.5, 1.0))
    raise AssertionError


@functools.cache
def _client() -> Any:
    import google.auth.exceptions
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    if os.environ.get("STORAGE_EMULATOR_HOST"):
        return storage.Client(project="emulator", credentials=AnonymousCredentials())
    try:
        return storage.Client()
    except google.auth.exceptions.DefaultCredentialsError:  # a public bucket needs none
        return storage.Client.create_anonymous_client()


@functools.cache
def open_place(location: str) -> Place:
    """The place `location` names, one per process. Raises ValueError for what is none."""
    scheme, separator, rest = location.partition("://")
    if not separator or scheme == "file":
        return Folder(location)
    if scheme != "gs" or not rest.strip("/"):
        raise ValueError(f"{location!r} is neither a folder nor gs://bucket/prefix")
    return Bucket(location)


class RangeFile(io.RawIOBase):
    """A file of a place, as pyarrow wants it: seekable, and read by ranges."""

    def __init__(self, place: Place, name: str) -> None:
        self._place, self._name = place, name
        self._size, self._at = place.size(name), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        end = self._size if size is None or size < 0 else min(self._at + size, self._size)
        if end <= self._at:
            return b""
        data = self._place.read(self._name, self._at, end)
        self._at += len(data)
        return data
