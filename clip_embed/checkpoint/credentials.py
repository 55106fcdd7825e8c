"""Use Google's Application Default Credentials, of every kind that google-auth knows.

Called only after a bucket has refused an anonymous request, so that a public bucket waits for
neither the import of google-auth nor a metadata server, and broken credentials do not matter there.

No message quotes google-auth, or a file that it has read: either may show a key or a token.
"""

from __future__ import annotations

import json
import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from clip_embed.checkpoint.location import LOOPBACK
from clip_embed.errors import AccessError, TransientError
from clip_embed.settings import (
    billing_project,
    google_credentials_file,
    trusted_certificates,
)

if TYPE_CHECKING:
    import google.auth.credentials
    import google.auth.transport
    import requests

ANSWER_SECONDS = 6.0
"""Timeout for finding the credentials, and for a token. A metadata server that is silent fails the
setup within the timeout of the manifest (weights.MANIFEST_SECONDS)."""

READ_ONLY = "https://www.googleapis.com/auth/devstorage.read_only"

_METADATA_HOSTS = ("169.254.169.254", "metadata.google.internal", "metadata")
_TRANSIENT_STATUSES = (429, 500, 502, 503, 504)
_MAX_KEY_BYTES = 1_000_000
_PAUSES = (0.25, 0.5, 1.0)  # seconds; a metadata server answers 503 while a node starts

# Cloud Storage gives the same answer in both cases.
_REFUSED = "the bucket is private, or it holds no model there and may not be listed"
_TO_PROVIDE = "mount a key and set GOOGLE_APPLICATION_CREDENTIALS, use a service account"
_KINDS = (
    "service_account",
    "authorized_user",
    "external_account",
    "external_account_authorized_user",
    "impersonated_service_account",
    "gdch_service_account",
)

Result = TypeVar("Result")


def find_google_credentials(
    scope: str,
) -> tuple[google.auth.credentials.Credentials, google.auth.transport.Request]:
    """Return the Application Default Credentials, and the transport that renews their token.

    Raises AccessError if there are none, or if they are broken. Its message is for use within a
    sentence.
    """
    file = google_credentials_file()
    if file is not None and (problem := _unusable_file(file[1])):
        raise AccessError(f"{_source()} {problem}")
    request = _make_request()
    try:
        credentials = _within(ANSWER_SECONDS, lambda: _load(scope, request))
    except TimeoutError:
        silent = (
            f"{_source()} was not loaded"
            if file
            else "there are no Application Default Credentials here: Google's metadata server did"
            " not answer"
        )
        raise AccessError(f"{silent} within {ANSWER_SECONDS:.0f} s") from None
    except Exception as error:
        # `from None`: google-auth may quote the key, byte by byte.
        raise AccessError(_explain_missing(error)) from None
    return credentials, request


def _load(
    scope: str, request: google.auth.transport.Request
) -> google.auth.credentials.Credentials:
    import google.auth
    import google.auth.credentials

    # Given the scope, `default` would ask Google for the id of a project, which is not needed here,
    # and fail where that fails (external accounts, google-auth 2.62).
    credentials, _ = google.auth.default(request=request)
    return google.auth.credentials.with_scopes_if_required(credentials, [scope])  # type: ignore[no-untyped-call, no-any-return]


class Credentials:
    """Credentials that renew their token. Used by several threads at once."""

    def __init__(self, credentials: google.auth.credentials.Credentials, request: Any) -> None:
        self._credentials, self._request = credentials, request
        self._lock = threading.Lock()

    @classmethod
    def find(cls) -> Credentials:
        """Find credentials to read a bucket that refuses anonymous requests. Raises AccessError."""
        try:
            return cls(*find_google_credentials(READ_ONLY))
        except AccessError as error:
            raise AccessError(
                f"{_REFUSED}, and {error}; {_TO_PROVIDE}, or make the bucket public"
            ) from None

    def headers(self) -> dict[str, str]:
        """Return the headers of a request, with a token that is valid for some minutes.

        Raises AccessError if no token is given, TransientError if renewing one times out.
        """
        with self._lock:
            if not self._credentials.valid:
                try:
                    renew(self._credentials, self._request)
                except AccessError as error:
                    raise AccessError(f"{_REFUSED}, and {error}") from None
            headers: dict[str, str] = {}
            self._credentials.apply(headers)  # type: ignore[no-untyped-call]
        if project := billing_project():
            headers["x-goog-user-project"] = project
        return headers


def renew(credentials: google.auth.credentials.Credentials, request: Any) -> None:
    """Get a new token, within ANSWER_SECONDS.

    Raises AccessError if none is given, TransientError if renewing one times out.
    """
    from google.auth.exceptions import TransportError

    had_token = credentials.token is not None
    try:
        _within(ANSWER_SECONDS, lambda: credentials.refresh(request))  # type: ignore[no-untyped-call]
    except Exception as error:
        late = isinstance(error, TimeoutError | TransportError)
        if late and had_token:
            raise TransientError("Google's token service does not answer") from None
        problem = (
            "Google's token service does not answer; check the network and the proxy"
            if late
            else f"Google gives no token for it ({type(error).__name__}); renew or replace it"
        )
        raise AccessError(f"{_source()} fails: {problem}") from None
    token = credentials.token
    if not isinstance(token, str) or not token.isascii() or not token.isprintable():
        raise AccessError(f"{_source()} fails: what Google gives for it is no token; replace it")


def google_session() -> requests.Session:
    """Return a session of requests for Google's libraries.

    SSL_CERT_FILE names the trusted certificates, as it does for obstore; requests itself reads only
    REQUESTS_CA_BUNDLE. This host and the metadata server are never reached through a proxy.
    """
    import requests

    session = requests.Session()
    session.verify = trusted_certificates() or True
    for host in (*LOOPBACK, *_METADATA_HOSTS):
        session.proxies[f"http://{host}"] = ""  # None would mean: as the environment says
    return session


def _make_request() -> google.auth.transport.Request:
    """Return google-auth's transport, with retries and on `google_session`."""
    import google.auth.transport.requests

    class PatientRequest(google.auth.transport.requests.Request):
        """Retries transient HTTP statuses. google-auth takes a 503 for "no such server"."""

        def __call__(self, *arguments: Any, **named: Any) -> Any:
            for pause in _PAUSES:
                response = super().__call__(*arguments, **named)  # type: ignore[no-untyped-call]
                if response.status not in _TRANSIENT_STATUSES:
                    return response
                time.sleep(pause)
            return super().__call__(*arguments, **named)  # type: ignore[no-untyped-call]

    # At DEBUG it logs URLs, and that of an external account may hold a key.
    logging.getLogger("urllib3").setLevel(logging.INFO)
    return PatientRequest(google_session())


def _within(seconds: float, function: Callable[[], Result]) -> Result:
    """Call `function` in a thread. Raises TimeoutError after `seconds`, or what it raises.

    google-auth's own timeouts are 120 s for some requests, and its retries cannot be limited.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="google-auth", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError
    return results[0]


def _source() -> str:
    """Name the credentials: the file, if its name cannot be a secret, or this machine."""
    file = google_credentials_file()
    if file is None:
        return "the account of this machine"
    name, path = file
    # A key that was put into the variable itself is not quoted.
    text = str(path)
    is_path = len(text) < 256 and "{" not in text and text.isprintable()
    if not is_path or not (text.startswith(("/", ".", "~")) or text.endswith(".json")):
        return f"the credentials file that {name} names"
    return f"the credentials file {text} ({name})"


def _unusable_file(path: Path) -> str | None:
    """Return what is wrong with a file that google-auth must not read; None if nothing is."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None  # google-auth finds that out
    is_stream = stat.S_ISFIFO(status.st_mode)
    if not is_stream and (not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_KEY_BYTES):
        return "is no key: it is no file, or a very large one"
    return None


def _explain_missing(error: Exception) -> str:
    """Say in one sentence why google-auth found no credentials, without its words."""
    file = google_credentials_file()
    if file is None:
        if type(error).__name__ == "DefaultCredentialsError":
            return "there are no Application Default Credentials here"
        return f"{_source()} cannot be read ({type(error).__name__})"
    return f"{_source()} {_problem_of(file[1])}"


def _problem_of(path: Path) -> str:
    try:
        text = path.read_bytes().decode()
        if text.startswith("\ufeff"):
            return "begins with a byte order mark; save it as UTF-8 without one"
        document = json.loads(text)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        return "is not UTF-8; save it as Google delivered it"
    except (ValueError, RecursionError):
        return "is not JSON"
    kind = document.get("type") if isinstance(document, dict) else None
    if kind not in _KINDS:
        return f"is no file of credentials: its type is none of {', '.join(_KINDS)}"
    required = ("private_key", "client_email", "token_uri")
    if kind == "service_account" and all(
        isinstance(document.get(name), str) and document[name] for name in required
    ):
        return (
            "holds a damaged private key: its line breaks may have been lost or escaped twice, or"
            " its end is missing; copy the file as Google delivered it"
        )
    return f"is incomplete for its type, {kind}"
