"""Test pulls from buckets with every kind of Google account, real google-auth, and secrecy."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.auth import iam
from google.auth.compute_engine import _metadata

import weights
from clip_embed.checkpoint import stores
from clip_embed.errors import AccessError, WeightsError
from tests.helpers import google_accounts, result_tables
from tests.helpers.faults import at, cut_short, flip_a_bit, hang_up, status
from tests.helpers.google_accounts import TOKEN, GoogleServer
from tests.helpers.published_model import FIRST, collect, published, pull_error
from tests.helpers.range_server import Answer, Fault, RangeServer, Request

LOCATION = "gs://bucket/clip"


@pytest.fixture(autouse=True)
def _no_metadata_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask no metadata server of this machine. google-auth reads the variables when imported."""
    monkeypatch.setattr(_metadata, "_NO_GCE_CHECK", True)
    for name in ("SERVICE_ACCOUNT", "CLIP_BILLING_PROJECT", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cloud(web_server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> RangeServer:
    """Serve gs://bucket/clip as Cloud Storage itself, not as an emulator."""
    monkeypatch.setattr(stores, "CLOUD_STORAGE", web_server.url)
    return web_server


@pytest.fixture
def google() -> Iterator[GoogleServer]:
    with GoogleServer() as running:
        yield running


@pytest.fixture(scope="session")
def private_key() -> str:
    return google_accounts.make_private_key()


@pytest.fixture
def log_in(
    google: GoogleServer, private_key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    """Return a function that gives this process an account."""
    accounts = google_accounts.accounts(google, private_key, tmp_path)
    # google-auth takes the account from the URL in the file, and not the host.
    monkeypatch.setattr(iam, "_IAM_ENDPOINT", f"{google.url}/{{}}:generateAccessToken")

    def log_in(kind: str) -> None:
        if kind == "metadata server":
            monkeypatch.setattr(_metadata, "_NO_GCE_CHECK", False)
            monkeypatch.setattr(_metadata, "_GCE_METADATA_HOST", google.host)
            monkeypatch.setenv("GCE_METADATA_IP", google.host)
        else:
            path = tmp_path / "credentials.json"
            path.write_text(json.dumps(accounts[kind]))
            monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))

    return log_in


def private(request: Request, answer: Answer) -> Answer:
    """Answer only requests that carry the right token."""
    authorization = request.headers.get("authorization")
    if authorization == f"Bearer {TOKEN}":
        return answer
    return Answer(403 if authorization else 401, b"no")


def record(account: str, public: str, outcome: str, seconds: float) -> None:
    result_tables.ACCOUNTS.append((account, public, seconds, outcome))


def pull_public(cloud: RangeServer, model: Path) -> str:
    """Pull the bucket while anyone may read it; return what the table shows."""
    cloud.fault = None
    before = len(cloud.requests)
    with weights.pull(LOCATION) as pull:
        assert collect(pull) == published(model)
    assert not any("authorization" in request.headers for request in cloud.requests[before:])
    return "read"


WORKING = (
    "service account",
    "workload identity federation",
    "federation with impersonation",
    "workforce user",
    "impersonated service account",
    "metadata server",
)


@pytest.mark.parametrize("kind", WORKING)
def test_account_reads_a_private_bucket(
    kind: str,
    cloud: RangeServer,
    google: GoogleServer,
    model: Path,
    log_in: Callable[[str], None],
) -> None:
    """One anonymous request is refused; every later one carries a token, which is asked for once.
    A public bucket is read without it."""
    log_in(kind)
    public = pull_public(cloud, model)
    assert google.requests == []
    cloud.fault = private
    cloud.requests.clear()
    begin = time.monotonic()
    with weights.pull(LOCATION) as pull:
        assert collect(pull) == published(model)
    record(kind, public, "read", time.monotonic() - begin)
    anonymous, *signed = cloud.requests
    assert (anonymous.name, anonymous.headers.get("authorization")) == ("manifest.json", None)
    assert {request.headers.get("authorization") for request in signed} == {f"Bearer {TOKEN}"}
    assert google.tokens == (2 if "impersonat" in kind else 1)


def test_token_is_renewed_before_it_expires(
    cloud: RangeServer, google: GoogleServer, model: Path, log_in: Callable[[str], None]
) -> None:
    """google-auth renews a token that is valid for less than 3:45 minutes."""
    cloud.fault = private
    google.token_seconds = 200
    log_in("service account")
    with weights.pull(LOCATION, streams=1) as pull:
        assert collect(pull) == published(model)
    assert google.tokens > 1


@pytest.mark.parametrize(
    ("kind", "metadata", "seconds"),
    [
        ("slow", google_accounts.slow, 9),
        ("503 at first", google_accounts.busy_at_first, 6),
    ],
)
def test_metadata_server_in_difficulties_is_waited_for(
    kind: str,
    metadata: Callable[[int], int],
    seconds: float,
    cloud: RangeServer,
    google: GoogleServer,
    model: Path,
    log_in: Callable[[str], None],
) -> None:
    google.metadata = metadata
    log_in("metadata server")
    public = pull_public(cloud, model)
    cloud.fault = private
    begin = time.monotonic()
    with weights.pull(LOCATION) as pull:
        assert collect(pull) == published(model)
    elapsed = time.monotonic() - begin
    assert elapsed < seconds
    record(f"metadata server, {kind}", public, "read", elapsed)


def set_file(content: str | None) -> Callable[[Path, pytest.MonkeyPatch], None]:
    def set_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        if content is not None:
            (folder / "key.json").write_text(content)
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(folder / "key.json"))

    return set_up


def set_gcloud(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(folder))
    path = folder / "application_default_credentials.json"
    path.write_text('{"type": "authorized_user"}')


def set_variable(name: str, value: str) -> Callable[[Path, pytest.MonkeyPatch], None]:
    return lambda folder, monkeypatch: monkeypatch.setenv(name, value)


PRIVATE = (
    f"{LOCATION}: the bucket is private, or it holds no model there and may not be listed, and "
)
NONE = f"{PRIVATE}there are no Application Default Credentials here"
BROKEN = {
    "none": (lambda folder, monkeypatch: None, NONE),
    "variable empty": (set_variable("GOOGLE_APPLICATION_CREDENTIALS", ""), NONE),
    "SERVICE_ACCOUNT stale": (set_variable("SERVICE_ACCOUNT", "/nowhere"), NONE),
    "GOOGLE_SERVICE_ACCOUNT stale": (set_variable("GOOGLE_SERVICE_ACCOUNT", "/nowhere"), NONE),
    "GOOGLE_SERVICE_ACCOUNT_PATH stale": (
        set_variable("GOOGLE_SERVICE_ACCOUNT_PATH", "/nowhere"),
        NONE,
    ),
    "GOOGLE_SERVICE_ACCOUNT_KEY broken": (
        set_variable("GOOGLE_SERVICE_ACCOUNT_KEY", "{hunter2"),
        NONE,
    ),
    "GOOGLE_SKIP_SIGNATURE broken": (set_variable("GOOGLE_SKIP_SIGNATURE", "maybe"), NONE),
    "file missing": (set_file(None), "cannot be read: No such file or directory"),
    "variable holds the key": (
        set_variable("GOOGLE_APPLICATION_CREDENTIALS", '{"private_key": "hunter2"}'),
        "the credentials file that GOOGLE_APPLICATION_CREDENTIALS names cannot be read",
    ),
    "variable holds the key in base64": (
        set_variable("GOOGLE_APPLICATION_CREDENTIALS", "hunter2" * 30),
        "the credentials file that GOOGLE_APPLICATION_CREDENTIALS names cannot be read",
    ),
    "a device": (set_variable("GOOGLE_APPLICATION_CREDENTIALS", "/dev/zero"), "is no key: it is"),
    "file very large": (set_file(" " * 2_000_000), "is no key: it is no file, or a very large"),
    "file empty": (set_file(""), "is not JSON"),
    "file deeply nested": (set_file("[" * 100_000), "is not JSON"),
    "file with a byte order mark": (set_file("\ufeff{}"), "begins with a byte order mark"),
    "key without an e-mail": (
        set_file('{"type": "service_account", "private_key": "hunter2", "token_uri": "a"}'),
        "is incomplete for its type, service_account",
    ),
    "home unusable": (set_variable("CLOUDSDK_CONFIG", "/" + "a" * 5000), NONE),
    "file a list": (set_file("[]"), "is no file of credentials"),
    "file of unknown type": (set_file('{"type": "hunter2"}'), "is no file of credentials"),
    "gcloud's file incomplete": (set_gcloud, "(gcloud) is incomplete for its type, authorized_us"),
    **{
        f"{kind} incomplete": (
            set_file(json.dumps({"type": kind, "secret": "hunter2"})),
            f"is incomplete for its type, {kind}",
        )
        for kind in (
            "service_account",
            "authorized_user",
            "external_account",
            "external_account_authorized_user",
            "impersonated_service_account",
        )
    },
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_credentials_do_not_matter_for_a_public_bucket(
    kind: str,
    cloud: RangeServer,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """For a private one, the error says which file or setting is at fault and what to do."""
    set_up, says = BROKEN[kind]
    set_up(tmp_path, monkeypatch)
    public = pull_public(cloud, model)
    cloud.fault = private
    begin = time.monotonic()
    error = pull_error(LOCATION)
    record(
        kind,
        public,
        str(error).removeprefix(PRIVATE).replace(str(tmp_path), "…"),
        time.monotonic() - begin,
    )
    assert isinstance(error, AccessError)
    assert str(error).startswith(PRIVATE)
    assert says in str(error)
    assert "set GOOGLE_APPLICATION_CREDENTIALS" in str(error)
    assert str(error).endswith(", or make the bucket public")
    assert "hunter2" not in "".join([*traceback.format_exception(error), caplog.text])


def test_silent_metadata_server_fails_within_the_manifest_deadline(
    cloud: RangeServer, google: GoogleServer, model: Path, log_in: Callable[[str], None]
) -> None:
    google.metadata = google_accounts.silent
    log_in("metadata server")
    public = pull_public(cloud, model)
    cloud.fault = private
    begin = time.monotonic()
    error = pull_error(LOCATION)
    elapsed = time.monotonic() - begin
    record("metadata server, silent", public, str(error).removeprefix(PRIVATE), elapsed)
    assert elapsed < weights.MANIFEST_SECONDS
    assert isinstance(error, AccessError)
    assert f"{NONE}: Google's metadata server did not answer" in str(error)


def test_revoked_credentials_are_an_access_error(
    cloud: RangeServer, google: GoogleServer, model: Path, log_in: Callable[[str], None]
) -> None:
    """The answer of the token service is not quoted."""
    google.token_status = 400
    log_in("service account")
    public = pull_public(cloud, model)
    cloud.fault = private
    begin = time.monotonic()
    error = pull_error(LOCATION)
    record("revoked", public, str(error).rpartition("CREDENTIALS) ")[2], time.monotonic() - begin)
    assert isinstance(error, AccessError)
    assert "fails: Google gives no token for it (RefreshError); renew or replace it" in str(error)
    assert "hunter2" not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize("token", [None, 7, ["a"], "a\nb", "\u00e9", "a\0b"], ids=repr)
def test_answer_without_a_token_is_an_access_error(
    token: Any,
    cloud: RangeServer,
    google: GoogleServer,
    log_in: Callable[[str], None],
) -> None:
    google.token = token
    log_in("service account")
    cloud.fault = private
    error = pull_error(LOCATION)
    assert isinstance(error, AccessError)
    assert "fails: what Google gives for it is no token" in str(error) or (
        "fails: Google gives no token for it (RefreshError)" in str(error)
    )


def test_refused_credentials_are_not_retried(
    cloud: RangeServer, model: Path, log_in: Callable[[str], None]
) -> None:
    """The bucket gets two requests. It answers 403, too, for what does not exist where listing is
    not allowed: the error says both."""
    log_in("service account")
    public = pull_public(cloud, model)
    cloud.requests.clear()
    # A pull that retries gets 404 after ten requests, so that the test ends.
    cloud.fault = lambda request, answer: Answer(403 if request.earlier < 10 else 404)
    begin = time.monotonic()
    error = pull_error(LOCATION)
    record("without permission", public, str(error), time.monotonic() - begin)
    assert isinstance(error, AccessError)
    assert str(error).startswith(
        f"{LOCATION}/manifest.json refuses access (HTTP 403) to these credentials: they may not"
        " read it, or it does not exist"
    )
    assert len(cloud.requests) == 2


# --- requester pays -------------------------------------------------------------------------


def requester_pays(request: Request, answer: Answer) -> Answer:
    """Answer as a bucket does whose requests are paid by the requester."""
    if private(request, answer) is not answer:
        return private(request, answer)
    if request.headers.get("x-goog-user-project") == "shop":
        return answer
    code = b"<Code>UserProjectMissing</Code><Message>Bucket is a requester pays bucket"
    return Answer(400, code)


def test_billing_project_is_sent_to_a_private_bucket(
    cloud: RangeServer,
    model: Path,
    log_in: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cloud.fault = requester_pays
    log_in("service account")
    error = pull_error(LOCATION)
    assert isinstance(error, AccessError)
    assert "are paid by the requester; set CLIP_BILLING_PROJECT" in str(error)
    monkeypatch.setenv("CLIP_BILLING_PROJECT", "shop")
    with weights.pull(LOCATION) as pull:
        assert collect(pull) == published(model)


# --- secrecy --------------------------------------------------------------------------------

KEYS = sorted(google_accounts.broken_keys(google_accounts.make_private_key()))


@pytest.mark.parametrize("kind", KEYS)
def test_broken_key_is_never_shown(
    kind: str,
    private_key: str,
    cloud: RangeServer,
    google: GoogleServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A key that google-auth accepts nevertheless reads the bucket."""
    key = google_accounts.broken_keys(private_key)[kind]
    (tmp_path / "key.json").write_text(json.dumps(google_accounts.service_account(google, key)))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    cloud.fault = private
    caplog.set_level("DEBUG")
    begin = time.monotonic()
    try:
        with weights.pull(LOCATION) as pull:
            collect(pull)
        shown = outcome = "read"
    except AccessError as error:
        outcome = str(error).rpartition("key.json ")[2]
        assert "holds a damaged private key: its line breaks may have been lost" in outcome
        shown = "".join(traceback.format_exception(error))
    record(f"key {kind}", "–", outcome, time.monotonic() - begin)
    shown += "".join([caplog.text, *capfd.readouterr()])
    assert google_accounts.shows_key(shown, private_key) is None


@pytest.mark.parametrize("form", [str, lambda key: str(list(key.encode())), lambda key: key[9:60]])
def test_search_for_a_key_finds_it(form: Callable[[str], str], private_key: str) -> None:
    """The test above would fail if a message showed the key, whole, as numbers or in part."""
    assert google_accounts.shows_key(f"cannot parse {form(private_key)}", private_key)


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
    log_in: Callable[[str], None],
    limit_attempts: Callable[[int], None],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """However a request with a token fails, the message, the traceback, the log and the output do
    not contain it."""
    limit_attempts(2)
    log_in("service account")
    caplog.set_level("DEBUG")
    failing = at(FIRST, fault)
    cloud.fault = lambda request, answer: failing(request, private(request, answer))
    with weights.pull(LOCATION) as pull, pytest.raises(WeightsError) as caught:
        collect(pull)
    assert any(request.headers.get("authorization") for request in cloud.requests)
    shown = "".join([*traceback.format_exception(caught.value), caplog.text, *capfd.readouterr()])
    assert TOKEN not in shown
