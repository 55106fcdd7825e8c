"""Destinations that cannot be published to: each is one sentence, before the source is fetched."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.auth.compute_engine import _metadata
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage as google_storage

from scripts import publish_weights
from scripts.lib import storage
from scripts.publishing import model as publishing_model
from tests.helpers.paths import TINY
from tests.helpers.published_model import EmulatorBucket
from tests.helpers.range_server import Answer, RangeServer

ALL = ["storage.objects.create", "storage.objects.delete", "storage.objects.get"]


@pytest.fixture(autouse=True)
def _fresh_clients(no_cloud_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use no client or account of an earlier test, and wait for nothing long."""
    storage.google_client.cache_clear()
    storage._open_storage.cache_clear()
    monkeypatch.setattr(_metadata, "_NO_GCE_CHECK", True)
    monkeypatch.setattr(storage, "CHECK_SECONDS", 1.0)
    monkeypatch.delenv("CLIP_BILLING_PROJECT", raising=False)


@pytest.fixture
def refusal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[[str], str]:
    """Return a function that publishes to a destination, and returns the sentence of its error.
    It fails if the source is read before."""

    def read(*arguments: object, **named: object) -> None:
        raise AssertionError("the source was read")

    def refusal(destination: str) -> str:
        monkeypatch.setattr(publishing_model, "read_model", read)
        monkeypatch.setattr("sys.argv", ["publish_weights.py", "random:0", destination])
        with pytest.raises(SystemExit) as caught:
            publish_weights.main()
        shown = capfd.readouterr().err
        message = shown.strip() or str(caught.value)
        assert caught.value.code not in (0, None)
        assert "\n" not in message
        assert "Traceback" not in message
        return message

    return refusal


# --- locations and accounts -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("destination", "says"),
    [
        ("", "is empty; give gs://bucket/prefix or a directory"),
        ("gs://", "has no host or bucket; give gs://bucket/prefix or a directory"),
        ("gs://Bucket/a", "DEST names the bucket 'Bucket'; bucket names have three"),
        ("gs://bucket/a//b", "a segment that is empty"),
        ("gs://bucket/a#b", "a query or a fragment, which it cannot have"),
        ("https://host/clip", "give gs://bucket/prefix or a directory"),
        ("gs://bucket/a", "there are no Application Default Credentials here; run `gcloud auth"),
    ],
)
def test_location_is_refused(destination: str, says: str, refusal: Callable[[str], str]) -> None:
    assert says in refusal(destination)


def test_broken_key_is_named_and_not_quoted(
    refusal: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = {
        "type": "service_account",
        "private_key": "hunter2",
        "client_email": "a",
        "token_uri": "a",
    }
    (tmp_path / "key.json").write_text(json.dumps(key))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    message = refusal("gs://bucket/a")
    assert f"{tmp_path}/key.json (GOOGLE_APPLICATION_CREDENTIALS) holds a damaged" in message
    assert "hunter2" not in message


# --- buckets --------------------------------------------------------------------------------


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Serve the JSON API of Cloud Storage, for an account without a project."""
    with RangeServer(tmp_path) as server:
        monkeypatch.setattr(
            storage,
            "find_google_credentials",
            lambda scope: (AnonymousCredentials(), None),
        )
        monkeypatch.setattr(storage, "renew", lambda credentials, request: None)
        monkeypatch.setattr(google_storage._http.Connection, "DEFAULT_API_ENDPOINT", server.url)
        yield server


def permissions(*names: str) -> Answer:
    body = json.dumps({"permissions": names}).encode()
    return Answer(200, body, {"Content-Type": "application/json"})


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (permissions(), "credentials lack storage.objects.create, storage.objects.delete, stora"),
        (permissions(*ALL[::2]), "lack storage.objects.delete; grant them the role Storage Obj"),
        (Answer(403, b"hunter2"), "gs://bucket denies access (HTTP 403); use Application"),
        (Answer(404, b"hunter2"), "gs://bucket does not exist"),
        (Answer(503, b"hunter2"), "gs://bucket: HTTP 503"),
    ],
    ids=["nothing allowed", "no overwriting", "403", "no such bucket", "503"],
)
def test_bucket_is_refused(
    answer: Answer, says: str, cloud: RangeServer, refusal: Callable[[str], str]
) -> None:
    cloud.fault = lambda request, correct: answer
    message = refusal("gs://bucket/clip")
    assert says in message
    assert "hunter2" not in message


def test_bucket_that_may_be_written_is_accepted(cloud: RangeServer) -> None:
    """The account needs no project."""
    cloud.fault = lambda request, correct: permissions(*ALL)
    storage.open_storage("gs://bucket/clip").check_writable()
    paths = [request.path for request in cloud.requests]
    assert "storage/v1/b/bucket/iam/testPermissions" in paths


def test_dead_emulator_is_an_error(
    refusal: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
    message = refusal("gs://bucket/clip")
    assert "gs://bucket: no connection; check the network, the proxy and STORAGE_EMUL" in message


def test_bucket_that_the_emulator_lacks_is_an_error(
    bucket: EmulatorBucket, refusal: Callable[[str], str]
) -> None:
    assert "gs://nowhere does not exist; create the bucket first" in refusal("gs://nowhere/clip")


# --- directories ----------------------------------------------------------------------------


def test_file_is_no_directory(refusal: Callable[[str], str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert f"{tmp_path}/file is a file, and no directory" in refusal(f"{tmp_path}/file/clip")


def test_directory_of_another_user_is_refused(
    refusal: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """root may write everywhere, so `os.access` is replaced here."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "may not be written by this user; name another directory" in refusal(f"{tmp_path}/clip")


def test_full_disk_is_one_sentence_and_leaves_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_bytes = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if "safetensors" in path.name:
            write_bytes(path, data[:1000])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    arguments = ["publish_weights.py", "random:0", f"{tmp_path}/clip", "--model", str(TINY)]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as caught:
        publish_weights.main()
    message = str(caught.value) if isinstance(caught.value.code, str) else capfd.readouterr().err
    assert "cannot be written: No space left on device" in message.splitlines()[-1]
    left = [path.name for path in (tmp_path / "clip").iterdir()]
    assert all(name.endswith(".json") and not name.startswith(".") for name in left)
    assert "manifest.json" not in left
