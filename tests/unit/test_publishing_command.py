"""publish_weights.py: what happens before, after and instead of reading the source."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import errors

from clip_embed.errors import AccessError
from scripts import publish_weights
from scripts.lib import storage
from scripts.publishing import architecture, model, sources
from scripts.publishing import publish as publishing
from scripts.publishing.errors import PublishError, redact, report
from scripts.publishing.hub import HubRepository


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> SystemExit:
    """Run the command, which must not succeed."""
    monkeypatch.setattr("sys.argv", ["publish_weights.py", *arguments])
    with pytest.raises(SystemExit) as caught:
        publish_weights.main()
    return caught.value


def fail_with(error: BaseException) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


def test_destination_is_checked_before_the_source_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(model, "read_model", fail_with(AssertionError("the source was read")))
    code = run(monkeypatch, "random:0", str(tmp_path / "file")).code
    assert str(tmp_path / "file") in str(code)
    assert "is a file, and no directory" in str(code)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (AccessError("gs://b denies access (HTTP 403); grant them"), "gs://b denies access (HTTP"),
        (FileNotFoundError("gs://b does not exist; create it"), "gs://b does not exist; create it"),
        (OSError("gs://b: 503 Busy"), "gs://b: 503 Busy"),
    ],
)
def test_destination_that_denies_access_is_one_sentence(
    error: Exception, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(storage.DirectoryStorage, "check_writable", fail_with(error))
    code = str(run(monkeypatch, "random:0", str(tmp_path)).code)
    assert code.startswith(says)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/x/a"),
            "No space left on device (/x/a)",
        ),
        (AccessError("gs://b/c denies access (HTTP 403)"), "gs://b/c denies access (HTTP 403)"),
        (OSError("gs://b/c: the server answers 503"), "gs://b/c: the server answers 503"),
    ],
)
def test_failure_while_writing_is_one_sentence(
    error: Exception, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(model, "read_model", lambda *_, **__: None)
    monkeypatch.setattr(publishing, "publish", fail_with(error))
    code = str(run(monkeypatch, "random:0", str(tmp_path / "out")).code)
    assert says in code
    assert "\n" not in code


def test_interrupt_ends_with_a_line_and_status_130(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model, "read_model", fail_with(KeyboardInterrupt()))
    assert run(monkeypatch, "random:0", str(tmp_path / "out")).code == 130
    assert capsys.readouterr().err == "interrupted; run the same command again to continue\n"


@pytest.mark.parametrize("location", ["https://user:secret@host/clip", "s3://bucket/clip"])
def test_other_destination_is_one_line_and_status_1(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = str(run(monkeypatch, "random:0", location).code)
    assert "\n" not in line
    assert "give gs://bucket/prefix or a directory" in line
    assert "secret" not in line


def test_empty_destination_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "DEST is empty" in str(run(monkeypatch, "random:0", "").code)


def test_messages_of_libraries_become_one_line() -> None:
    assert PublishError("one\n\n  two").code == "one two"


def test_password_of_a_url_is_redacted() -> None:
    assert redact("https://a:b@host/x") == "https://***@host/x"
    assert redact("https:/a:b@host/x") == "https://***@host/x"
    assert redact("//a:b@host/x") == "//***@host/x"
    assert redact("/data/a@b/x") == "/data/a@b/x"


# --- the hub's cache ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "org/clip: there is no space left for model.safetensors in the hub's cache, ",
        ),
        (PermissionError(errno.EACCES, "denied"), "cannot be written; set HF_HOME to a directory"),
        (
            errors.OfflineModeIsEnabled("offline"),
            "model.safetensors is not in the hub's cache, and HF_HUB_OFFLINE is set; unset it",
        ),
        (ValueError("Illegal header value b'Bearer hf_x'"), "cannot be downloaded (ValueError); c"),
        (TimeoutError("Bearer hf_x"), "cannot be downloaded (TimeoutError); check HF_ENDPOINT"),
    ],
)
def test_failure_of_the_hubs_cache_is_one_sentence(
    error: Exception, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail_with(error))
    with pytest.raises(PublishError) as caught:
        HubRepository("org/clip", "org/clip").file("model.safetensors")
    assert says in str(caught.value)
    assert "hf_x" not in str(caught.value)


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "http://[::1",
        "http://127.0.0.1:SECRET",
        "127.0.0.1:9",
        "ftp://SECRET@a",
        "https://",
        " ",
    ],
)
@pytest.mark.parametrize("source", ["org/clip", "openai", "random:0"])
def test_broken_endpoint_is_named_before_the_hubs_library_reads_it(
    endpoint: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its import raises ValueError, which quotes a part of the value."""
    architecture.named_configs()  # found through open_clip's package, and cached
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    for module in ("huggingface_hub", "open_clip"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(PublishError) as caught:
        sources.find_source(source, None)
    assert "HF_ENDPOINT is " in str(caught.value)
    assert "set it to the address of a hub, as in https://huggingface.co" in str(caught.value)
    assert "SECRET" not in str(caught.value)


# --- what is printed ----------------------------------------------------------------------------


def test_control_characters_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    """A name of a file or a tensor may hold escape sequences of the terminal."""
    hostile = "a\x1b[2J\rb\x9b\u202e\udcff"
    escaped = r"a\x1b[2J\rb\x9b\u202e\udcff"
    assert PublishError(hostile).code == escaped
    report(f"{hostile}\nc")
    assert capsys.readouterr().out == f"{escaped}\\nc\n"


def test_long_word_is_shortened() -> None:
    message = str(PublishError(f"a.pt: {'x' * 100_000} is unknown").code)
    assert len(message) < 500
    assert message.startswith("a.pt: xxx")
    assert message.endswith("xxx is unknown")


def test_report_is_written_in_ascii_where_stdout_is(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    report("é.pt: ✓")
    assert raw.getvalue() == b"\\xe9.pt: \\u2713\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_full_stdout_is_not_blamed_on_the_source(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(model, "read_model", lambda *_, **__: report("a.pt: open_clip checkpoint"))
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        code = run(monkeypatch, "a.pt", str(tmp_path)).code
    assert str(code).startswith("stdout cannot be written (No space left on device)")


def test_closed_stdout_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    report("a.pt: open_clip checkpoint")
