"""Test pulls behind proxies, and with certificates that are trusted, not trusted or missing."""

from __future__ import annotations

import os
import socket
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

import weights
from clip_embed.checkpoint import fetch
from clip_embed.checkpoint.credentials import google_session
from clip_embed.errors import LocationError, TransferError
from scripts.lib.hostile_web_server import HostileWebServer
from scripts.lib.storage import google_client, open_storage
from tests.helpers.certificates import write_certificate
from tests.helpers.faults import hang_up
from tests.helpers.published_model import EmulatorBucket, collect, published, pull_error
from tests.helpers.range_server import Answer, RangeServer

DEAD_PROXY = "http://user:hunter2@127.0.0.1:1"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith(("_proxy", "_ca_bundle")) or name.startswith("SSL_CERT"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _two_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "RETRY", fetch.RetryPolicy(2, 0.01, 0.01))


@pytest.fixture
def https(tmp_path: Path) -> Iterator[HostileWebServer]:
    """Run a web server whose certificate nobody trusts, and that serves a picture at every URL."""
    with HostileWebServer(certificate=write_certificate(tmp_path)) as server:
        yield server


def test_untrusted_certificate_is_an_error(https: HostileWebServer) -> None:
    error = pull_error(f"{https.url}/clip")
    assert isinstance(error, TransferError)
    assert str(error).startswith(
        f"{https.url}/clip/manifest.json cannot be read: the server's cert"
    )
    assert "is not trusted; if it is signed by an authority of your own, set SSL_CERT_FILE" in str(
        error
    )
    assert https.requests == []


def test_certificate_of_ssl_cert_file_is_trusted_by_obstore_and_googles_libraries(
    https: HostileWebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(requests.exceptions.SSLError):
        google_session().get(https.url, timeout=5)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
    assert google_session().get(https.url, timeout=5).ok
    assert "the server sends no Content-Length" in str(pull_error(f"{https.url}/clip"))
    assert https.paths == ["/", "/clip/manifest.json"]


def test_machine_without_certificates_is_an_error(
    https: HostileWebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
    monkeypatch.setenv("SSL_CERT_DIR", "/nowhere")
    error = pull_error(f"{https.url}/clip")
    assert isinstance(error, LocationError)
    assert str(error) == (
        f"{https.url}/clip cannot be opened: this machine has no trusted certificates; install"
        " ca-certificates, or set SSL_CERT_FILE"
    )


def test_server_without_tls_is_an_error(web_server: RangeServer) -> None:
    url = web_server.url.replace("http:", "https:")
    assert "does not speak TLS there; check the scheme" in str(pull_error(f"{url}/clip"))


@contextmanager
def proxy(answer: bytes) -> Iterator[str]:
    """Run a proxy that answers every connection alike; yield its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://user:hunter2@127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("407 Proxy Authentication Required", "the proxy asks for a login (HTTP 407); put one"),
        ("403 Forbidden", "the proxy (https_proxy) cannot reach the server"),
        ("502 Bad Gateway", "the proxy (https_proxy) cannot reach the server"),
    ],
)
def test_refusal_of_a_proxy_is_an_error(
    answer: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxy(f"HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n".encode()) as url:
        monkeypatch.setenv("https_proxy", url)
        error = pull_error("https://weights.example/clip")
    assert isinstance(error, TransferError)
    assert says in str(error)
    assert "hunter2" not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize("location", ["https://weights.example/clip", "gs://bucket/clip"])
def test_dead_proxy_is_an_error(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", DEAD_PROXY)
    error = pull_error(location)
    assert isinstance(error, TransferError)
    assert "the proxy (https_proxy) cannot be reached" in str(error)
    assert "hunter2" not in "".join(traceback.format_exception(error))


def test_web_server_on_loopback_is_reached_without_the_proxy(
    url: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", DEAD_PROXY)
    monkeypatch.setenv("all_proxy", DEAD_PROXY)
    with weights.pull(url) as pull:
        assert collect(pull) == published(model)


def test_emulator_on_loopback_is_reached_without_the_proxy(
    bucket: EmulatorBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For reads through obstore, and for writes through Google's client."""
    monkeypatch.setenv("http_proxy", DEAD_PROXY)
    google_client.cache_clear()
    storage = open_storage("gs://models/without-proxy")
    storage.check_writable()
    storage.write("a", b"0123")
    assert storage.read("a") == b"0123"


def test_announced_length_is_not_allocated(web_server: RangeServer, url: str) -> None:
    """obstore would end the process: it cannot allocate a terabyte."""
    web_server.fault = lambda request, answer: Answer(200, b"", {"Content-Length": str(10**12)})
    error = pull_error(url)
    assert isinstance(error, TransferError)
    assert str(error).endswith("the server sends 1000000000000 bytes, too many")


def test_words_of_the_location_do_not_decide_the_error(web_server: RangeServer) -> None:
    web_server.fault = hang_up
    error = pull_error(f"{web_server.url}/InvalidCertificate/Timeout")
    assert "cannot be read: the server closed the connection" in str(error)
    assert len(web_server.requests) == 2
