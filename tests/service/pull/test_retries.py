"""Test which failures of a request are retried, how often, and which end the pull at once."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import weights
from clip_embed.checkpoint import fetch, stores
from clip_embed.errors import AccessError, TransferError, WeightsError
from scripts.lib.cog_server import free_port
from tests.helpers.faults import at, cut_short, hang_up, send_all, status
from tests.helpers.published_model import BLOCK, FIRST, SECOND, collect, published, pull_error
from tests.helpers.range_server import Answer, Fault, Hangup, RangeServer, Request


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json", FIRST])
@pytest.mark.parametrize(
    "fault",
    [
        *(pytest.param(status(code), id=str(code)) for code in (408, 429, 500, 502, 503, 504)),
        pytest.param(hang_up, id="no response"),
        pytest.param(cut_short, id="connection reset"),
    ],
)
def test_transient_failure_is_retried(
    fault: Fault, name: str, web_server: RangeServer, url: str, model: Path
) -> None:
    """Two failures in a row cost two more requests for that object, and no error."""
    web_server.fault = at(name, fault, times=2)
    with weights.pull(url) as pull:
        assert collect(pull) == published(model)
        assert pull.stats.retries == 2
    assert [request.name for request in web_server.requests if request.earlier] == [name, name]


@pytest.mark.parametrize("code", [429, 503])
def test_busy_server_gets_more_attempts(
    code: int, web_server: RangeServer, url: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """429 and 503 are retried more often than other failures: a bucket sends them when a thousand
    replicas start at once."""
    attempts = fetch.BUSY_RETRY.attempts
    without_pauses = fetch.RetryPolicy(attempts, first_pause=0.001, max_pause=0.001)
    monkeypatch.setattr(fetch, "BUSY_RETRY", without_pauses)
    monkeypatch.setattr(fetch, "RETRY", dataclasses.replace(without_pauses, attempts=2))
    web_server.fault = at(FIRST, status(code), block=2, times=attempts - 1)
    with weights.pull(url, streams=4) as pull:
        assert collect(pull) == published(model)
        assert pull.stats.retries == attempts - 1


@pytest.mark.parametrize("name", ["manifest.json", FIRST])
def test_retries_end_after_the_last_attempt(
    name: str, web_server: RangeServer, url: str, limit_attempts: Callable[[int], None]
) -> None:
    """The error names the object and the status of the last response."""
    limit_attempts(3)
    web_server.fault = at(name, status(503))
    error = pull_error(url)
    assert isinstance(error, TransferError)
    assert f"{url}/{name}" in str(error)
    assert "HTTP 503" in str(error)
    ranges = [request.range for request in web_server.requests_for(name)]
    assert ranges.count(None if name == "manifest.json" else (0, BLOCK)) == 3


def test_stalled_connection_times_out_and_is_retried(
    web_server: RangeServer, url: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block is requested again on another connection."""
    monkeypatch.setattr(stores, "_READ_TIMEOUT", timedelta(seconds=0.5))
    released = threading.Event()

    def stall(request: Request, answer: Answer) -> Answer:
        released.wait(20)
        raise Hangup

    web_server.fault = at(SECOND, stall, block=1, times=1)
    started = time.monotonic()
    with weights.pull(url) as pull:
        assert collect(pull) == published(model)
        assert pull.stats.retries == 1
    assert time.monotonic() - started < 10
    released.set()


def test_pull_without_progress_times_out(
    web_server: RangeServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "STALL_SECONDS", 0.5)
    released = threading.Event()

    def stall(request: Request, answer: Answer) -> Answer:
        if request.range:
            released.wait(20)
        return answer

    web_server.fault = stall
    error = pull_error(url)
    released.set()
    assert isinstance(error, TransferError)
    assert str(error).startswith(f"{url}: no data arrived for")


def test_refused_connection_fails_within_seconds() -> None:
    """The manifest is retried a few times, within its deadline."""
    location = f"http://127.0.0.1:{free_port()}/clip"
    started = time.monotonic()
    error = pull_error(location)
    assert isinstance(error, TransferError)
    assert str(error) == (
        f"{location}/manifest.json cannot be read: connection refused; check CLIP_WEIGHTS and the"
        " network"
    )
    assert time.monotonic() - started < 12


# --- failures that are final ----------------------------------------------------------------


def test_server_without_range_support_is_not_retried(web_server: RangeServer, url: str) -> None:
    web_server.fault = lambda request, answer: (
        send_all(request, answer) if request.range else answer
    )
    error = pull_error(url)
    assert isinstance(error, TransferError)
    assert "the server ignores Range requests; serve it with one that does not" in str(error)
    assert not any(request.earlier for request in web_server.requests)


@pytest.mark.parametrize("code", [401, 403])
@pytest.mark.parametrize("name", ["manifest.json", FIRST])
def test_denied_access_is_not_retried(
    code: int, name: str, web_server: RangeServer, url: str
) -> None:
    """The error names the object and says what to do."""
    web_server.fault = at(name, status(code))
    error = pull_error(url)
    assert isinstance(error, AccessError)
    assert str(error).startswith(f"{url}/{name} refuses access (HTTP {code}); make it readable")
    assert not any(request.earlier for request in web_server.requests)


@pytest.mark.parametrize("code", [400, 405, 412, 416])
def test_refused_request_is_not_retried(code: int, web_server: RangeServer, url: str) -> None:
    web_server.fault = at(FIRST, status(code), block=1)
    error = pull_error(url)
    assert isinstance(error, TransferError)
    assert str(error) == f"{url}/{FIRST}: the server refused the request (HTTP {code})"
    assert not any(request.earlier for request in web_server.requests)


# --- panics ---------------------------------------------------------------------------------


def pull_error_within(location: str, seconds: float = 20) -> str:
    """Return the message of the error that a pull ends in, "" if it does not end in time."""
    caught: list[WeightsError] = []
    waiting = threading.Thread(target=lambda: caught.append(pull_error(location)), daemon=True)
    waiting.start()
    waiting.join(seconds)
    return str(caught[0]) if caught else ""


def test_panic_of_obstore_ends_the_pull(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a BaseException, which `except Exception` misses. Its text may hold a secret."""

    class Panic(BaseException):
        pass

    def panicking(*arguments: Any, **named: Any) -> Any:
        raise Panic("hunter2")

    monkeypatch.setattr("obstore.store.HTTPStore.from_url", panicking)
    assert pull_error_within("gs://models/clip").startswith(
        "pulling gs://models/clip failed (Panic), which is a defect"
    )


def test_panic_in_a_block_ends_the_pull(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        pass

    read = stores.DirectoryStore.read

    def panicking(self: stores.DirectoryStore, name: str, *rest: Any) -> memoryview:
        if name == SECOND:
            raise Panic("within")
        return read(self, name, *rest)

    monkeypatch.setattr(stores.DirectoryStore, "read", panicking)
    assert pull_error_within(str(model)).startswith(f"{model}/{SECOND} failed (Panic)")
