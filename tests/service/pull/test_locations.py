"""Test which locations CLIP_WEIGHTS may name, and the errors for those that hold no model."""

from __future__ import annotations

import errno
import os
import traceback
from pathlib import Path
from typing import Any

import pytest

import weights
from clip_embed.checkpoint import stores
from clip_embed.errors import AccessError, LocationError, ManifestError, TransientError
from scripts.lib.storage import open_storage
from tests.helpers.published_model import BLOCK, SECOND, EmulatorBucket, pull_error
from tests.helpers.range_server import RangeServer

# --- malformed locations --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "message"),
    [
        pytest.param(None, "CLIP_WEIGHTS is not set", id="unset"),
        pytest.param("", "CLIP_WEIGHTS is not set", id="empty"),
        pytest.param(" \n", "CLIP_WEIGHTS is not set", id="blank"),
        pytest.param("ftp://host/clip", "begins with ftp://", id="ftp"),
        pytest.param("s3://bucket/clip", "begins with s3://", id="s3"),
        pytest.param("gs://", "'gs://', which has no host", id="gs without bucket"),
        pytest.param("gs://bucket//clip", "a segment that is empty", id="empty segment"),
        pytest.param("gs://bucket/a/../clip", "a segment that is empty, '.'", id="parent segment"),
        pytest.param("https://host/a/./clip", "a segment that is empty, '.'", id="dot segment"),
        pytest.param("gs://bucket/a\tb", "control character", id="tab"),
        pytest.param("/weights/a\nb", "control character", id="line break in a directory"),
        pytest.param("gs://Bucket/clip", "names the bucket 'Bucket'", id="capital letter"),
        pytest.param("~nosuchuser/clip", "a home directory that does not exist", id="home"),
        pytest.param("gs:/bucket/clip", "begins with gs: without two slashes", id="one slash"),
        pytest.param("GS:bucket", "begins with GS: without two slashes", id="no slash"),
        pytest.param("https:/u:hunter2@h/a", "begins with https: without", id="https, one slash"),
        pytest.param("gs://bucket/\udcff", "bytes that are no text", id="surrogate"),
        pytest.param("gs://b/clip", "names the bucket 'b'", id="short name of a bucket"),
        pytest.param("gs:///clip", "has no host", id="gs without bucket, with prefix"),
        pytest.param("https://", "has no host", id="https without host"),
        pytest.param("https:///clip", "has no host", id="https without host, with path"),
        pytest.param("https://[::1/clip", "not a well-formed URL", id="incomplete IPv6 address"),
        pytest.param("https://host:99999/clip", "not a well-formed URL", id="port out of range"),
        pytest.param("https://host:port/clip", "not a well-formed URL", id="port not a number"),
        pytest.param("https://ho st/clip", "cannot be opened", id="space in host"),
    ],
)
def test_malformed_location_is_refused(location: str | None, message: str) -> None:
    """The error lists the three forms of a location, or names what is wrong with this one.
    Publishing refuses the same locations."""
    error = pull_error(location)
    assert isinstance(error, LocationError)
    assert message in str(error)
    listed = "set CLIP_WEIGHTS to gs://bucket/prefix, https://host/prefix or a dir" in str(error)
    assert listed or str(error).startswith("CLIP_WEIGHTS ")
    with pytest.raises(ValueError, match=r"^DEST "):
        open_storage(location or "", name="DEST")


@pytest.mark.parametrize(
    "location",
    [
        "https://user:hunter2@host/clip",
        "https://hunter2@host/clip",
        "https://host/clip?token=hunter2",
        "https://host/clip#hunter2",
        "https://host/clip?X-Goog-Signature=hunter2&x=/manifest.json",
        "https://user:hunter2/x@host/clip",
        "https://user:hunter2@[bad/clip",
        "http://user:hunter2@127.0.0.1/clip",
        "gs://user:hunter2@bucket/clip",
        "gs://bucket/clip?token=hunter2",
        "ftp://user:hunter2@host/clip",
    ],
)
def test_secret_in_a_location_is_refused_and_not_quoted(location: str) -> None:
    """Neither the message nor the traceback shows the secret."""
    error = pull_error(location)
    assert isinstance(error, LocationError)
    assert "CLIP_WEIGHTS" in str(error)
    assert "hunter2" not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    "location",
    ["http://example.com/clip", "http://127.0.0.1.example.com/clip", "http://10.0.0.1/clip"],
)
def test_plain_http_is_refused_for_other_hosts(location: str) -> None:
    error = pull_error(location)
    assert isinstance(error, LocationError)
    assert f"{location} is not encrypted; use https://" in str(error)


@pytest.mark.parametrize("form", ["http://{}", "{}", "http://{}/"])
def test_storage_emulator_host_is_read_with_and_without_scheme(
    form: str,
    bucket: EmulatorBucket,
    small_model: Path,
    emulator: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """google-cloud-storage accepts the same forms."""
    location = bucket.put_model(small_model, "forms")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", form.format(emulator.removeprefix("http://")))
    with weights.pull(location) as pull:
        assert sorted(block.offset for block in pull.blocks()) == [0, BLOCK]


# --- locations without a model --------------------------------------------------------------


def test_directory_without_manifest_is_an_error(tmp_path: Path) -> None:
    """The error names the directory and the script that publishes a model."""
    error = pull_error(str(tmp_path))
    assert isinstance(error, LocationError)
    assert str(error).startswith(f"{tmp_path} holds no manifest.json; publish a model there")
    assert "scripts/publish_weights.py" in str(error)


@pytest.mark.parametrize("prefix", ["models/nothing", "no-such-bucket/clip"])
def test_bucket_without_manifest_is_an_error(prefix: str, bucket: EmulatorBucket) -> None:
    """An empty prefix and a missing bucket give the same error."""
    error = pull_error(f"gs://{prefix}")
    assert isinstance(error, LocationError)
    assert str(error).startswith(f"gs://{prefix} holds no manifest.json")


def test_web_server_without_manifest_is_not_retried(web_server: RangeServer) -> None:
    error = pull_error(f"{web_server.url}/nothing")
    assert isinstance(error, LocationError)
    assert str(error).startswith(f"{web_server.url}/nothing holds no manifest.json")
    assert len(web_server.requests) == 1


def test_truncated_manifest_is_refused(small_model: Path) -> None:
    whole = (small_model / "manifest.json").read_bytes()
    (small_model / "manifest.json").write_bytes(whole[:-5])
    error = pull_error(str(small_model))
    assert isinstance(error, ManifestError)
    assert str(error).startswith(f"{small_model}/manifest.json is not valid JSON")


def test_manifest_over_4_mib_is_refused(small_model: Path) -> None:
    """The rest of the file is valid JSON."""
    padded = (small_model / "manifest.json").read_bytes() + b" " * (4 * 2**20)
    (small_model / "manifest.json").write_bytes(padded)
    error = pull_error(str(small_model))
    assert isinstance(error, ManifestError)
    assert "too large to be a manifest" in str(error)


# --- directories ----------------------------------------------------------------------------


def test_unreadable_file_is_an_access_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The error names the file. root may read every file, so `open` is replaced here."""

    def refuse(path: Path, *rest: Any, **more: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(AccessError, match=r"manifest\.json may not be read by this user"):
        stores.open_store(str(tmp_path)).read("manifest.json")


def test_other_error_of_the_file_system_is_transient(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*arguments: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "manifest.json").touch()
    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(TransientError, match="Input/output error"):
        stores.open_store(str(tmp_path)).read("manifest.json")


def test_damaged_directory_is_not_retried(small_model: Path) -> None:
    """It is no matter of the network."""
    shard = small_model / SECOND
    shard.write_bytes(shard.read_bytes()[:-5])
    assert f"{shard} has only 9000" in str(pull_error(str(small_model)))
    (small_model / "manifest.json").unlink()
    (small_model / "manifest.json").mkdir()
    message = f"{small_model}/manifest.json is a directory; publish again"
    assert str(pull_error(str(small_model))) == message


@pytest.mark.parametrize("location", ["~nosuchuser/clip", "~"])
def test_home_that_does_not_exist_is_no_traceback(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/nowhere")
    assert isinstance(pull_error(location), LocationError)
    with weights.pull(location, cache="~nosuchuser/cache"):
        pass
