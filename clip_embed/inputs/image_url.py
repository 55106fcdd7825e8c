"""Download an image from a client's URL, within limits and from public addresses only.

Everything is asynchronous, so that a download ends when its prediction is canceled. Bodies of more
than MEMORY_BYTES go to an unnamed temporary file, so no file remains, however the download ends.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import ssl
import tempfile
import time
import urllib.parse
import zlib
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

import certifi
import httpcore
import requests

from clip_embed.errors import DownloadError
from clip_embed.inputs.public_address import (
    AddressCheckingBackend,
    NoAllowedAddressError,
    is_public,
    literal_address,
)

CONNECT_SECONDS = 5.0
RESPONSE_SECONDS = 15.0
"""Timeout for the head of a response, name resolution and connection included."""

IDLE_SECONDS = 10.0
"""Timeout between two parts of a response."""

MIN_RATE_AFTER_SECONDS, MIN_BYTES_PER_SECOND = 5.0, 10_000
"""A body that is slower on average is given up, after so many seconds."""

MIN_MEAN_PART, MIN_PART_AFTER = 256, 1_000
"""A body that comes in parts of fewer bytes on average is given up, after so many parts: each part
costs a tenth of a millisecond."""

MAX_REDIRECTS = 5
MAX_URL_LENGTH = 16_384
"""In characters. Signed URLs have up to about 3,000."""

MEMORY_BYTES = 4 * 2**20
"""A larger body goes to an unnamed file."""

DECODED_CHUNK = 2**20
"""Bytes that are decompressed at a time."""

_WAY_OUT = "send the image itself as a data: URI"
_REDIRECTS = {301, 302, 303, 307, 308}


def is_http_url(value: str) -> bool:
    """Return whether `value` starts with http:// or https:// in any case."""
    return value[:20].lstrip().lower().startswith(("http://", "https://"))


@dataclass(frozen=True)
class DownloadLimits:
    """bytes: of the body, before and after decoding. seconds: for one image, redirects included.
    downloads: at once. addresses: "public", "any" or "none"."""

    bytes: int
    seconds: float
    downloads: int
    addresses: str = "public"


@dataclass(frozen=True)
class Download:
    """file: open, unnamed, at its beginning. name: the last part of the URL. size: in bytes."""

    file: BinaryIO
    name: str
    size: int


class ImageDownloader:
    """Downloads images. Use it from one event loop at a time."""

    def __init__(self, limits: DownloadLimits, user_agent: str) -> None:
        self._limits = limits
        self._headers: dict[bytes | str, bytes | str] = {
            "User-Agent": user_agent,
            "Accept": "image/*, */*;q=0.5",
            "Accept-Encoding": "identity",  # images are compressed already
        }
        self._running = 0
        # Names are resolved in threads of their own: a dead name server holds each for half a
        # minute, and the event loop's shared threads serve others.
        self._resolver = ThreadPoolExecutor(limits.downloads, thread_name_prefix="resolve")
        self._ssl: ssl.SSLContext | None = None

    @property
    def running(self) -> int:
        """Downloads that are running now."""
        return self._running

    async def download(self, url: str) -> Download:
        """Download `url`. Raises DownloadError, also if too many downloads are running."""
        name = file_name_of(url)
        if self._limits.addresses == "none":
            raise DownloadError(
                f"{name}: this service downloads no images (CLIP_IMAGE_URLS=none); {_WAY_OUT}",
                "disabled",
            )
        if self._running >= self._limits.downloads:
            raise DownloadError(
                f"{name}: {self._running} images are being downloaded, as many as this service"
                f" downloads at once; try again soon, or {_WAY_OUT}",
                "busy",
            )
        self._running += 1
        try:
            async with asyncio.timeout(self._limits.seconds):
                return await self._follow(url, name)
        except TimeoutError as error:
            raise DownloadError(
                f"{name} did not arrive within {self._limits.seconds:g} s"
                f" (CLIP_IMAGE_URL_SECONDS); {_WAY_OUT}",
                "time",
            ) from error
        finally:
            self._running -= 1

    async def _follow(self, url: str, name: str) -> Download:
        """Request `url` and what it redirects to."""
        authorization: tuple[str, str] | None = None
        for _ in range(MAX_REDIRECTS + 1):
            parts = _split(url, name)
            origin = f"{parts.scheme}://{parts.hostname}:{parts.port}"
            if parts.username is not None:
                authorization = origin, _basic_authorization(parts)
            headers = {**self._headers}
            if authorization and authorization[0] == origin:  # never sent to another host
                headers["Authorization"] = authorization[1]
            async with contextlib.AsyncExitStack() as stack:
                response = await self._request(stack, parts, headers, name)
                location = _header(response, b"location")
                if response.status not in _REDIRECTS or not location:
                    return await self._receive(response, name)
                url = _redirect(parts, location, name)
        raise DownloadError(
            f"{name} is redirected more than {MAX_REDIRECTS} times; send its final URL", "redirects"
        )

    async def _request(
        self,
        stack: contextlib.AsyncExitStack,
        parts: urllib.parse.SplitResult,
        headers: Mapping[bytes | str, bytes | str],
        name: str,
    ) -> httpcore.Response:
        """Return the response, of which only the head has been read."""
        timeouts = {"connect": CONNECT_SECONDS, "read": IDLE_SECONDS, "write": IDLE_SECONDS}
        try:
            async with asyncio.timeout(RESPONSE_SECONDS):
                pool = await stack.enter_async_context(await self._open_pool(parts))
                response: httpcore.Response = await stack.enter_async_context(
                    pool.stream(
                        "GET",
                        parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(),
                        headers=headers,
                        extensions={"timeout": timeouts},
                    )
                )
        except NoAllowedAddressError as error:
            problem = "has no public internet address (CLIP_IMAGE_URLS=public)"
            if self._limits.addresses == "any":
                problem = "has no internet address"
            raise DownloadError(
                f"{name}: {_host(parts)} {problem}; {_WAY_OUT}", "address"
            ) from error
        except (TimeoutError, httpcore.TimeoutException) as error:
            raise DownloadError(
                f"{name}: {_host(parts)} did not respond in time; {_WAY_OUT}", "time"
            ) from error
        except (OSError, httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise _connection_error(error, parts, name) from error
        return response

    async def _open_pool(self, parts: urllib.parse.SplitResult) -> httpcore.AsyncConnectionPool:
        """Return the connections of one request: direct, or by the proxy of the environment."""
        host = parts.hostname or ""
        if self._ssl is None and parts.scheme == "https":
            self._ssl = await asyncio.get_running_loop().run_in_executor(
                self._resolver, _make_ssl_context
            )
        proxies = requests.utils.get_environ_proxies(parts.geturl(), no_proxy=None)
        proxy = requests.utils.select_proxy(parts.geturl(), proxies)
        public_only = self._limits.addresses == "public"
        if proxy:
            # The proxy resolves the name, so only an address can be checked here.
            literal = literal_address(host)
            is_local = f".{host.rstrip('.')}".endswith(".localhost")
            if public_only and (is_local or (literal and not is_public(literal))):
                raise NoAllowedAddressError
            return _proxy_pool(proxy, self._ssl)
        backend = AddressCheckingBackend(self._resolver, public_only)
        return httpcore.AsyncConnectionPool(self._ssl, network_backend=backend)

    async def _receive(self, response: httpcore.Response, name: str) -> Download:
        """Read the body into a file."""
        if response.status != 200:
            raise DownloadError(
                f"{name} cannot be downloaded: its server answers HTTP {response.status};"
                f" check the URL, or {_WAY_OUT}",
                "http_status",
            )
        length = _header(response, b"content-length")
        if length.isdecimal() and int(length) > self._limits.bytes:
            raise self._too_large(name)
        file, size = _SpooledBody(), 0
        try:
            async for chunk in _decoded(self._require_minimum_rate(response, name), response, name):
                size += len(chunk)
                if size > self._limits.bytes:
                    raise self._too_large(name)
                file.write(chunk)
            return Download(file.finish(), name, size)
        except (TimeoutError, httpcore.TimeoutException) as error:
            raise DownloadError(
                f"{name} stopped arriving after {size:,} bytes; {_WAY_OUT}", "time"
            ) from error
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise DownloadError(
                f"{name} is incomplete: its server closed the connection after {size:,} bytes;"
                f" {_WAY_OUT}",
                "connection",
            ) from error
        except zlib.error as error:
            raise DownloadError(
                f"{name} arrives with a damaged Content-Encoding; {_WAY_OUT}", "encoding"
            ) from error
        except OSError as error:
            raise DownloadError(
                f"{name} cannot be stored: {error.strerror}; try again later, or send it smaller",
                "disk",
            ) from error

    def _too_large(self, name: str) -> DownloadError:
        return DownloadError(
            f"{name} is larger than {self._limits.bytes:,} bytes (CLIP_MAX_IMAGE_BYTES); send it"
            " smaller",
            "size",
        )

    async def _require_minimum_rate(
        self, response: httpcore.Response, name: str
    ) -> AsyncIterator[bytes]:
        """Yield the body as it arrives. Raises DownloadError if it is too slow to be of use."""
        started, received, parts = time.monotonic(), 0, 0
        async for chunk in response.aiter_stream():
            received, parts = received + len(chunk), parts + 1
            seconds = time.monotonic() - started
            if received > self._limits.bytes:
                raise self._too_large(name)
            if parts > MIN_PART_AFTER and received < MIN_MEAN_PART * parts:
                raise DownloadError(
                    f"{name} arrives in parts of {received // parts} bytes, too small; {_WAY_OUT}",
                    "connection",
                )
            if seconds > MIN_RATE_AFTER_SECONDS and received < MIN_BYTES_PER_SECOND * seconds:
                raise DownloadError(
                    f"{name} arrives at {received / seconds:,.0f} bytes per second, too slowly;"
                    f" {_WAY_OUT}",
                    "time",
                )
            yield chunk
            await asyncio.sleep(0)  # parts that have arrived already would not let others run


class _SpooledBody:
    """Collects bytes in memory, and in an unnamed file when there are many.

    `tempfile.SpooledTemporaryFile` would not do: its `fileno` writes a small body to disk, too.
    """

    def __init__(self) -> None:
        self._memory: BytesIO | None = BytesIO()
        self._file: BinaryIO = self._memory

    def write(self, data: bytes) -> None:
        """Append `data`. Raises OSError if the disk is full."""
        if self._memory is not None and self._memory.tell() + len(data) > MEMORY_BYTES:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - belongs to the caller of finish
            self._file.write(self._memory.getbuffer())
            self._memory = None
        self._file.write(data)

    def finish(self) -> BinaryIO:
        """Return the file, at its beginning. Raises OSError if the disk is full."""
        self._file.flush()
        self._file.seek(0)
        return self._file


def _make_ssl_context() -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certifi.where())
    context.load_default_certs()  # the system's, or those of SSL_CERT_FILE
    return context


def _proxy_pool(proxy: str, ssl_context: ssl.SSLContext | None) -> httpcore.AsyncConnectionPool:
    parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    login = None
    if parts.username is not None:
        login = urllib.parse.unquote(parts.username), urllib.parse.unquote(parts.password or "")
    url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return httpcore.AsyncHTTPProxy(url, proxy_auth=login, ssl_context=ssl_context)


def _split(url: str, name: str) -> urllib.parse.SplitResult:
    """Escape and split a URL. Raises DownloadError unless it is an HTTP URL with a host."""
    if len(url) > MAX_URL_LENGTH:
        raise DownloadError(
            f"{name}: its URL has {len(url):,} characters; the limit is {MAX_URL_LENGTH:,};"
            f" {_WAY_OUT}",
            "url",
        )
    prepared = requests.PreparedRequest()
    try:
        prepared.prepare_url(url.strip(), None)
        parts = urllib.parse.urlsplit(prepared.url or "")
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except (requests.RequestException, ValueError):
        valid = False
    if not valid:
        raise DownloadError(
            f"{name}: only http:// and https:// URLs are downloaded; {_WAY_OUT}", "url"
        )
    return parts


def _redirect(parts: urllib.parse.SplitResult, location: str, name: str) -> str:
    """Return the URL that a redirect leads to. Raises DownloadError if it is malformed."""
    try:
        return urllib.parse.urljoin(parts.geturl(), location)
    except ValueError as error:
        raise DownloadError(
            f"{name} is redirected to a malformed URL; send its final URL", "redirects"
        ) from error


def _host(parts: urllib.parse.SplitResult) -> str:
    """Return the host for messages, cut to the longest valid name (RFC 1035)."""
    return (parts.hostname or "")[:253]


def _basic_authorization(parts: urllib.parse.SplitResult) -> str:
    login = urllib.parse.unquote(f"{parts.username}:{parts.password or ''}")
    return f"Basic {base64.b64encode(login.encode()).decode()}"


def _header(response: httpcore.Response, name: bytes) -> str:
    """Return a header of the response, empty if it lacks it."""
    for key, value in response.headers:
        if key.lower() == name:
            return str(value, "latin-1").strip()
    return ""


async def _decoded(
    body: AsyncIterator[bytes], response: httpcore.Response, name: str
) -> AsyncIterator[bytes]:
    """Undo the Content-Encoding, which servers may apply unasked, a piece at a time."""
    encoding = _header(response, b"content-encoding").lower()
    if encoding in ("", "identity"):
        async for chunk in body:
            yield chunk
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise DownloadError(
            f"{name} is sent with Content-Encoding {encoding[:40]!r}, which was not asked for;"
            f" {_WAY_OUT}",
            "encoding",
        )
    decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)
    async for chunk in body:
        while chunk:
            yield decoder.decompress(chunk, DECODED_CHUNK)
            if decoder.eof:
                return
            chunk = decoder.unconsumed_tail
            await asyncio.sleep(0)
    raise zlib.error("incomplete")


def _connection_error(
    error: Exception, parts: urllib.parse.SplitResult, name: str
) -> DownloadError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return DownloadError(
                f"{name}: the certificate of {_host(parts)} is not valid"
                f" ({cause.verify_message}); {_WAY_OUT}",
                "tls",
            )
        cause = cause.__cause__ or cause.__context__
    return DownloadError(
        f"{name}: no HTTP response came from {_host(parts)}; check the URL, or {_WAY_OUT}",
        "connection",
    )


def file_name_of(url: str) -> str:
    """Return the last part of a URL's path for messages: printable, at most 80 characters.

    Without what may be a secret: parameters after ";", and what precedes "@".
    """
    try:
        path = urllib.parse.urlsplit(url).path
    except ValueError:
        path = ""
    name = path.partition(";")[0].rstrip("/").rpartition("/")[2].rpartition("@")[2]
    name = re.sub(r"[^\w.()+=~ -]", "_", urllib.parse.unquote(name))
    if len(name) > 80:
        name = f"{name[:60]}…{name[-19:]}"
    return name or "image"
