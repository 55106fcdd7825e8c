"""Test pulls from private buckets: Application Default Credentials, their errors, and secrecy."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google.auth
import google.auth.exceptions
import pytest

import weights
from clip_embed.checkpoint import stores
from clip_embed.errors import AccessError, LocationError, WeightsError
from tests.helpers.faults import at, cut_short, flip_a_bit, hang_up, status
from tests.helpers.published_model import FIRST, collect, published, pull_error
from tests.helpers.range_server import Answer, Fault, RangeServer, Request


@dataclasses.dataclass
class Credentials:
    """Credentials as google-auth returns them. error: what `refresh` raises, if anything."""

    token: str | None = None
    error: Exception | None = None
    refreshed: int = 0

    @property
    def valid(self) -> bool:
        return self.token is not None

    def refresh(self, request: object) -> None:
        self.refreshed += 1
        if self.error:
            raise self.error
        self.token = "sesame"


@pytest.fixture
def cloud(web_server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> RangeServer:
    """Serve gs://bucket/clip as Cloud Storage itself, not as an emulator.

    obstore reads GOOGLE_BASE_URL; only its refusal of http:// has to be lifted.
    """
    monkeypatch.setenv("GOOGLE_BASE_URL", web_server.url)
    options = stores._client_options
    monkeypatch.setattr(stores, "_client_options", lambda allow_http: options(True))
    return web_server


def private(request: Request, answer: Answer) -> Answer:
    """Answer only requests that carry the right token."""
    authorization = request.headers.get("authorization")
    if authorization == "Bearer sesame":
        return answer
    return Answer(403 if authorization else 401, b"no")


def test_private_bucket_is_read_with_application_default_credentials(
    cloud: RangeServer, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one anonymous request is refused, credentials are looked up once, with a read-only
    scope, and every later request carries their token."""
    cloud.fault = private
    credentials = Credentials()
    scopes: list[Any] = []

    def default(**arguments: Any) -> tuple[Credentials, str]:
        scopes.append(arguments["scopes"])
        return credentials, "project"

    monkeypatch.setattr(google.auth, "default", default)
    with weights.pull("gs://bucket/clip") as pull:
        assert collect(pull) == published(model)
    assert scopes == [["https://www.googleapis.com/auth/devstorage.read_only"]]
    assert credentials.refreshed == 1
    anonymous, *signed = cloud.requests
    assert (anonymous.name, anonymous.headers.get("authorization")) == ("manifest.json", None)
    assert {request.headers.get("authorization") for request in signed} == {"Bearer sesame"}


def test_public_bucket_is_read_without_credentials(
    cloud: RangeServer, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credentials are neither looked up nor sent."""

    def default(**arguments: Any) -> Any:
        raise AssertionError("credentials were looked up")

    monkeypatch.setattr(google.auth, "default", default)
    with weights.pull("gs://bucket/clip") as pull:
        assert collect(pull) == published(model)
    assert not any("authorization" in request.headers for request in cloud.requests)


def test_missing_credentials_error_says_how_to_provide_them(cloud: RangeServer) -> None:
    """google-auth finds no credentials here."""
    cloud.fault = private
    error = pull_error("gs://bucket/clip")
    assert isinstance(error, AccessError)
    assert "the bucket is private and there are no Application Default Credentials" in str(error)
    assert "set GOOGLE_APPLICATION_CREDENTIALS" in str(error)
    assert "make the bucket public" in str(error)


def test_refused_credentials_are_not_retried(
    cloud: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bucket gets two requests: one anonymous, one with credentials."""
    # A pull that retries gets 404 after ten requests, so that the test ends.
    cloud.fault = lambda request, answer: (
        private(request, answer) if request.earlier < 10 else Answer(404)
    )
    wrong = Credentials(token="wrong")
    monkeypatch.setattr(google.auth, "default", lambda **_: (wrong, "project"))
    error = pull_error("gs://bucket/clip")
    assert isinstance(error, AccessError)
    assert str(error).startswith("gs://bucket/clip/manifest.json refuses access (HTTP 403)")
    assert len(cloud.requests) == 2


def test_failed_refresh_error_quotes_google_auth(
    cloud: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.fault = private
    revoked = Credentials(error=google.auth.exceptions.RefreshError("key was revoked"))
    monkeypatch.setattr(google.auth, "default", lambda **_: (revoked, "project"))
    error = pull_error("gs://bucket/clip")
    assert isinstance(error, AccessError)
    assert "refuses access (RefreshError: key was revoked)" in str(error)


def test_missing_key_file_error_names_the_variable(
    cloud: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GOOGLE_APPLICATION_CREDENTIALS names a file that does not exist."""
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")
    error = pull_error("gs://bucket/clip")
    assert isinstance(error, LocationError)
    assert "GOOGLE_APPLICATION_CREDENTIALS" in str(error)


@pytest.mark.parametrize(
    "fault",
    [*(status(code) for code in (400, 401, 403, 404, 412, 500)), hang_up, cut_short, flip_a_bit],
    ids=[
        "400",
        "401",
        "403",
        "404",
        "412",
        "500",
        "no response",
        "connection reset",
        "flipped bit",
    ],
)
def test_token_is_never_shown(
    fault: Fault,
    cloud: RangeServer,
    limit_attempts: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """However a request with a token fails, the message, the traceback, the log and the output do
    not contain it."""
    limit_attempts(2)
    monkeypatch.setattr(google.auth, "default", lambda **_: (Credentials(), "project"))
    caplog.set_level("DEBUG")
    failing = at(FIRST, fault)
    cloud.fault = lambda request, answer: failing(request, private(request, answer))
    with weights.pull("gs://bucket/clip") as pull, pytest.raises(WeightsError) as caught:
        collect(pull)
    assert any(request.headers.get("authorization") for request in cloud.requests)
    shown = "".join([*traceback.format_exception(caught.value), caplog.text, *capfd.readouterr()])
    assert "sesame" not in shown
