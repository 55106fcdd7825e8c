"""Use Google's Application Default Credentials, of every kind that google-auth knows.

Called only after a bucket has refused an anonymous request, so that a public bucket waits for
neither the import of google-auth nor a metadata server, and broken credentials do not matter there.

No message quotes google-auth, or a file that it has read: either may show a key or a token.
"""

from __future__ import annotations

import json
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
_PASSING_STATUS = (429, 500, 502, 503, 504)
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

    Raises AccessError if there are none, or if they are broken; its message is a clause.
    """
    request = _make_request()
    try:
        credentials = _within(ANSWER_SECONDS, lambda: _load(scope, request))
    except TimeoutError:
        silent = (
            f"the credentials {_source()} were not loaded"
            if google_credentials_file()
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

        Raises AccessError if no token is given, TransientError if a later one is late.
        """
        with self._lock:
            if not self._credentials.valid:
                self._refresh()
            headers: dict[str, str] = {}
            self._credentials.apply(headers)  # type: ignore[no-untyped-call]
        if project := billing_project():
            headers["x-goog-user-project"] = project
        return headers

    def _refresh(self) -> None:
        from google.auth.exceptions import TransportError

        had_token = self._credentials.token is not None
        try:
            _within(ANSWER_SECONDS, lambda: self._credentials.refresh(self._request))  # type: ignore[no-untyped-call]
        except Exception as error:
            late = isinstance(error, TimeoutError | TransportError)
            if late and had_token:
                raise TransientError("Google's token service does not answer") from None
            problem = (
                "Google's token service does not answer; check the network and the proxy"
                if late
                else f"they get no token ({type(error).__name__}); renew or replace them"
            )
            raise AccessError(
                f"{_REFUSED}, and the credentials {_source()} fail: {problem}"
            ) from None


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
        """Retries statuses that may not repeat. google-auth takes a 503 for "no such server"."""

        def __call__(self, *arguments: Any, **named: Any) -> Any:
            for pause in _PAUSES:
                response = super().__call__(*arguments, **named)  # type: ignore[no-untyped-call]
                if response.status not in _PASSING_STATUS:
                    return response
                time.sleep(pause)
            return super().__call__(*arguments, **named)  # type: ignore[no-untyped-call]

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
    file = google_credentials_file()
    return f"in {file[1]}" if file else "of this machine"


def _explain_missing(error: Exception) -> str:
    """Say in one sentence why google-auth found no credentials, without its words."""
    file = google_credentials_file()
    if file is None:
        if type(error).__name__ == "DefaultCredentialsError":
            return "there are no Application Default Credentials here"
        return f"the credentials of this machine cannot be read ({type(error).__name__})"
    return f"the credentials file {file[1]} ({file[0]}) {_problem_of(file[1])}"


def _problem_of(path: Path) -> str:
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except ValueError:
        return "is not JSON"
    kind = document.get("type") if isinstance(document, dict) else None
    if kind not in _KINDS:
        return f"is no file of credentials: its type is none of {', '.join(_KINDS)}"
    if kind == "service_account" and isinstance(document.get("private_key"), str):
        return (
            "holds a damaged private key: its line breaks may have been lost or escaped twice, or"
            " its end is missing; copy the file as Google delivered it"
        )
    return f"is incomplete for its type, {kind}"
