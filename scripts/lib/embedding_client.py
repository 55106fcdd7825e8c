"""Request embeddings from a running service: a local Cog server, a container, or Replicate's API.

`Client` is what callers use. `_CogService` and `_ReplicateService` speak the two APIs, over one
`_RetryTransport`, which holds all timeouts and retries.
"""

from __future__ import annotations

import base64
import contextlib
import io
import mimetypes
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
import numpy as np
import numpy.typing as npt
import stamina
import stamina.instrumentation

TOKEN_VARIABLE = "REPLICATE_API_TOKEN"

# Replicate advises against data URIs of 1 MB and more, and a retry sends the whole request again:
# larger files are uploaded through Replicate's files API.
REPLICATE_INLINE_BYTES = 256 * 1024
# Cog 0.23.1 refuses a larger request body with 413, and closes the connection while the client is
# still sending: the client may see a broken pipe instead, which is otherwise worth a retry.
COG_BODY_BYTES = 100 * 1024 * 1024
# The largest file that fits: base64 makes 4 bytes of 3, and 1,024 bytes are for the JSON around it.
COG_FILE_BYTES = (COG_BODY_BYTES - 1024) // 4 * 3
# Seconds for which Replicate holds a request open until the prediction is done; its maximum is 60.
REPLICATE_WAIT = 60

REQUEST_TIMEOUT = 120.0  # seconds without progress in one request
# Seconds after which a request is not retried, and a running prediction not polled, any more.
RETRY_TIMEOUT = 120.0
RETRY_AFTER_MAX = 60.0  # seconds; the limit of what a Retry-After header may ask for
# The service is at its concurrency limit, overloaded or restarting.
RETRIED_STATUSES = (409, 425, 429, 500, 502, 503, 504)
# The input is at fault, not the service.
REFUSED_STATUSES = (400, 413, 422)
# States of a prediction of Replicate's that is not over.
RUNNING = ("starting", "processing")

retry = stamina.RetryingCaller(
    attempts=None, timeout=RETRY_TIMEOUT, wait_initial=0.02, wait_max=2.0, wait_jitter=0.02
)
poll = stamina.RetryingCaller(
    attempts=None, timeout=RETRY_TIMEOUT, wait_initial=0.2, wait_max=2.0, wait_jitter=0.0
)
# stamina would log every retry. A service at its limit answers 409 many times: not worth a line.
stamina.instrumentation.set_on_retry_hooks(())


class RefusedError(Exception):
    """The service refused this input; the message is the service's reason."""


class ServiceError(Exception):
    """The service cannot be used: no connection, no permission, wrong address, or no vector."""


class Client:
    """Client of one service. Safe to use from several threads at once.

    url: a server (`http://localhost:8000`), or where Replicate creates predictions
    (`https://api.replicate.com/v1/predictions`, `…/v1/deployments/OWNER/NAME/predictions`).
    version: of the model; required for `/v1/predictions`. token: for Replicate; default: the
    environment variable REPLICATE_API_TOKEN. It is sent to the host of `url` and to no other.

    Proxies in the environment are not used.
    """

    def __init__(self, url: str, version: str | None = None, token: str | None = None) -> None:
        try:
            address = httpx.URL(url)
        except httpx.InvalidURL:
            address = httpx.URL()
        if address.scheme not in ("http", "https") or not address.host:
            raise ServiceError(f"--url is {url!r}; give http://host:port or https://host/path")
        self._origin = f"{address.scheme}://{address.netloc.decode()}"
        path = address.path.rstrip("/").removesuffix("/predictions")
        self._service: _Service
        if path == "/v1" or path.startswith("/v1/"):
            token = token or os.environ.get(TOKEN_VARIABLE)
            if not token:
                raise ServiceError(f"{url} needs a token: set {TOKEN_VARIABLE}")
            self._service = _ReplicateService(self._origin, path, version, token)
        else:
            self._service = _CogService(f"{self._origin}{path}")

    def text(self, text: str) -> npt.NDArray[np.float32]:
        """Embed a text. Returns float32 [D]. Raises RefusedError, ServiceError."""
        try:
            text.encode()
        except UnicodeEncodeError as error:  # bytes of the command line that are not UTF-8
            raise RefusedError(f"the text is not valid Unicode: {error}") from error
        return self._embed({"text": text})

    def image(self, path: Path) -> npt.NDArray[np.float32]:
        """Embed an image file. Returns float32 [D]. Raises OSError, RefusedError, ServiceError.

        A file that is too large for a request is refused unread.
        """
        self._service.check_size(path.stat().st_size)
        return self.image_bytes(path.read_bytes(), path.name)

    def image_bytes(self, data: bytes, name: str) -> npt.NDArray[np.float32]:
        """Embed the contents of an image file. The suffix of `name` tells the media type."""
        self._service.check_size(len(data))
        media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
        with self._translated_errors():
            file = self._service.file_input(data, name, media_type)
        return self._embed({"image": file})

    def _embed(self, inputs: dict[str, str]) -> npt.NDArray[np.float32]:
        with self._translated_errors():
            result = self._service.predict(inputs)
        if result.status != "succeeded":
            raise RefusedError(str(result.error or result.status)[:300])
        return _vector(result.output)

    @contextlib.contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Turn httpx's errors into RefusedError and ServiceError."""
        try:
            yield
        except httpx.HTTPStatusError as error:
            response = error.response
            detail = " ".join(response.text.split())[:200]
            problem = f"{response.status_code} {response.reason_phrase}: {detail}"
            if response.status_code in REFUSED_STATUSES:
                raise RefusedError(problem) from error
            raise ServiceError(f"{self._origin}{response.request.url.path}: {problem}") from error
        except httpx.HTTPError as error:
            cause = _socket_error(error)
            raise ServiceError(f"{self._origin}: {type(cause).__name__}: {cause}") from error


@dataclass(frozen=True)
class _Result:
    """A prediction that is over. output: the vector, if status is "succeeded"."""

    status: str
    output: object
    error: str | None


class _Service(Protocol):
    def check_size(self, size: int) -> None:
        """Raise RefusedError if a file of `size` bytes cannot be sent."""

    def file_input(self, data: bytes, name: str, media_type: str) -> str:
        """Return the string that represents a file in a prediction's input."""

    def predict(self, inputs: dict[str, str]) -> _Result:
        """Run one prediction. Raises httpx.HTTPError, ServiceError."""


class _CogService:
    """Cog's own HTTP API: https://github.com/replicate/cog/blob/main/docs/http.md"""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/predictions"
        self._http = httpx.Client(transport=_RetryTransport())

    def check_size(self, size: int) -> None:
        if size > COG_FILE_BYTES:
            raise RefusedError(
                f"the file has {size:,} bytes, and a request to Cog holds {COG_FILE_BYTES:,}"
                f" ({COG_BODY_BYTES:,} in base64); scale the image down"
            )

    def file_input(self, data: bytes, name: str, media_type: str) -> str:
        return _data_uri(data, media_type)

    def predict(self, inputs: dict[str, str]) -> _Result:
        response = self._http.post(self._url, json={"input": inputs})
        try:
            document = response.json()
            return _Result(
                status=str(document["status"]),
                output=document.get("output"),
                error=document.get("error"),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ServiceError(
                f"{self._url} does not answer like a prediction service: {response.text[:80]!r}"
            ) from None


class _ReplicateService:
    """Replicate's API, through Replicate's own client."""

    def __init__(self, origin: str, path: str, version: str | None, token: str) -> None:
        import replicate  # half a second, for users of Replicate only

        deployment = re.fullmatch(r"/v1/deployments/([^/]+)/([^/]+)", path)
        if path != "/v1" and not deployment:
            raise ServiceError(
                f"{origin}{path} is not an address for predictions; give /v1/predictions or"
                " /v1/deployments/OWNER/NAME/predictions"
            )
        if path == "/v1" and not version:
            raise ServiceError(f"{origin}{path}/predictions needs the model's version: --version")
        self._deployment = deployment and (deployment[1], deployment[2])
        self._version = version
        self._origin = origin
        self._api = replicate.Client(token, base_url=origin, transport=_RetryTransport())

    def check_size(self, size: int) -> None:
        """Accept all sizes: large files are uploaded, and Replicate answers 413 at its limit."""

    def file_input(self, data: bytes, name: str, media_type: str) -> str:
        if len(data) <= REPLICATE_INLINE_BYTES:
            return _data_uri(data, media_type)
        try:
            file = self._api.files.create(io.BytesIO(data), filename=name, content_type=media_type)
            return file.urls["get"]
        except (ValueError, KeyError, TypeError) as error:
            raise self._unexpected(error) from error

    def predict(self, inputs: dict[str, str]) -> _Result:
        try:
            if self._deployment:
                prediction = self._api.deployments.predictions.create(
                    self._deployment, inputs, wait=REPLICATE_WAIT
                )
            else:
                prediction = self._api.predictions.create(
                    self._version, inputs, wait=REPLICATE_WAIT
                )
            if prediction.status in RUNNING:
                poll(_RunningError, self._reload, prediction)  # prediction.wait() has no timeout
        except _RunningError:
            raise ServiceError(f"no result after {RETRY_TIMEOUT:.0f} s: {prediction.id}") from None
        except (ValueError, TypeError) as error:
            raise self._unexpected(error) from error
        return _Result(prediction.status, prediction.output, prediction.error)

    def _reload(self, prediction: Any) -> None:
        """Update `prediction` from the server. Raises _RunningError if it is not over yet."""
        prediction.reload()
        if prediction.status in RUNNING:
            raise _RunningError

    def _unexpected(self, error: Exception) -> ServiceError:
        """Describe a response that is not JSON, or not what Replicate's client expects."""
        reason = " ".join(str(error).split())[:200]
        return ServiceError(f"{self._origin} does not answer like Replicate's API: {reason}")


class _RunningError(Exception):
    """A prediction is still running."""


class _RetryTransport(httpx.HTTPTransport):
    """HTTP transport that retries, and raises httpx.HTTPStatusError unless the status is 2xx.

    A transport, because replicate 1.0.7 wraps every transport in retries of its own, which know no
    total timeout, do not limit Retry-After and leave out POST. They never see a status to retry.
    """

    def __init__(self) -> None:
        # Callers limit their concurrency themselves, by their number of threads.
        super().__init__(limits=httpx.Limits(max_connections=None, max_keepalive_connections=None))

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        # Replicate's client would upload files without a timeout.
        request.extensions["timeout"] = httpx.Timeout(REQUEST_TIMEOUT).as_dict()
        return retry(_backoff, self._send, request)

    def _send(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        response.request = request
        response.read()
        return response.raise_for_status()


def _backoff(error: Exception) -> bool | float:
    """Whether to retry after `error`; a float is the server's Retry-After in seconds."""
    if isinstance(error, httpx.HTTPStatusError):
        retry_after = error.response.headers.get("Retry-After", "")
        if error.response.status_code in RETRIED_STATUSES and retry_after.isdecimal():
            return min(float(retry_after), RETRY_AFTER_MAX)
        return error.response.status_code in RETRIED_STATUSES
    if isinstance(error, httpx.ConnectError):
        # Not if nothing listens there, or if the name or the certificate is wrong.
        return isinstance(_socket_error(error), ConnectionResetError)
    transient = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError)
    return isinstance(error, transient)


def _socket_error(error: BaseException) -> BaseException:
    """Return the OSError that httpx and httpcore wrapped in `error`, if there is one."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return cause or error


def _data_uri(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def _vector(output: object) -> npt.NDArray[np.float32]:
    """Convert a prediction's output to float32 [D]. Raises ServiceError."""
    try:
        vector = np.array(output, np.float32)
    except (TypeError, ValueError):
        vector = np.empty(0, np.float32)
    if vector.ndim != 1 or not len(vector) or not np.isfinite(vector).all():
        raise ServiceError(f"the output is not a vector: {str(output)[:80]}")
    return vector
