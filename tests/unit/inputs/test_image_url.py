"""Downloads of image URLs: limits, addresses, redirects, errors, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpcore
import pytest

from clip_embed.errors import DownloadError
from clip_embed.inputs import image_url, public_address
from clip_embed.inputs.image_url import (
    MAX_REDIRECTS,
    Download,
    DownloadLimits,
    ImageDownloader,
    file_name_of,
)
from clip_embed.inputs.public_address import is_public
from scripts.lib.hostile_web_server import PICTURE, HostileWebServer
from tests.helpers.certificates import write_certificate


@pytest.fixture(scope="module")
def web() -> Iterator[HostileWebServer]:
    with HostileWebServer() as server:
        yield server


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def downloader(addresses: str = "any", seconds: float = 20, **limits: Any) -> ImageDownloader:
    chosen = {"bytes": 1_000_000, "downloads": 4, **limits}
    return ImageDownloader(
        DownloadLimits(addresses=addresses, seconds=seconds, **chosen), "tests/1"
    )


def download(url: str, **limits: Any) -> Download:
    return asyncio.run(downloader(**limits).download(url))


def refusal(url: str, **limits: Any) -> DownloadError:
    with pytest.raises(DownloadError) as caught:
        download(url, **limits)
    assert "\n" not in str(caught.value)
    return caught.value


# --- what is downloaded ---------------------------------------------------------------------


@pytest.mark.parametrize("path", ["picture.png", "gzip"])
def test_download_returns_the_file_and_its_name(path: str, web: HostileWebServer) -> None:
    """A Content-Encoding that was not asked for is undone."""
    done = download(f"{web.url}/{path}")
    assert done.file.read() == PICTURE
    assert (done.name, done.size) == (path, len(PICTURE))


def test_request_names_the_service_and_asks_for_no_encoding(web: HostileWebServer) -> None:
    download(f"{web.url}/picture.png")
    _, headers = web.requests[-1]
    assert headers["User-Agent"] == "tests/1"
    assert headers["Accept-Encoding"] == "identity"
    assert headers["Host"] == f"127.0.0.1:{web.port}"


def test_large_body_goes_to_a_file_without_a_name(
    web: HostileWebServer, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    done = download(f"{web.url}/large", bytes=30_000_000)
    assert done.size == 20_000_000 + len(PICTURE)
    assert os.fstat(done.file.fileno()).st_nlink == 0
    assert done.file.read(len(PICTURE)) == PICTURE
    done.file.close()
    assert not list(tmp_path.iterdir())


def test_login_is_sent_to_its_own_host_only(web: HostileWebServer) -> None:
    """A redirect to another host, or to another port, gets none."""
    login = f"http://user:p%40ss@127.0.0.1:{web.port}"
    download(f"{login}/redirect?{web.url}/picture.png")
    assert web.requests[-1][1]["Authorization"] == "Basic dXNlcjpwQHNz"
    with HostileWebServer() as other:
        for server, host in ((web, "localhost"), (other, "127.0.0.1")):
            download(f"{login}/redirect?http://{host}:{server.port}/picture.png")
            path, headers = server.requests[-1]
            assert path == "/picture.png"
            assert "Authorization" not in headers


# --- limits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["endless", "bomb", "large", "empty-blocks"])
def test_body_over_the_limit_is_refused(path: str, web: HostileWebServer) -> None:
    """Bytes are counted before and after decoding."""
    error = refusal(f"{web.url}/{path}")
    assert str(error).startswith(f"{path} is larger than 1,000,000 bytes (CLIP_MAX_IMAGE_BYTES);")
    assert error.reason == "size"
    assert web.wait_until_idle(2)


def test_bomb_is_decoded_in_pieces(web: HostileWebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much a chunk holds, no piece is larger than DECODED_CHUNK."""
    sizes: list[int] = []
    write = image_url._SpooledBody.write

    def watched(file: image_url._SpooledBody, data: bytes) -> None:
        sizes.append(len(data))
        write(file, data)

    monkeypatch.setattr(image_url._SpooledBody, "write", watched)
    refusal(f"{web.url}/bomb", bytes=50_000_000)
    assert max(sizes) <= image_url.DECODED_CHUNK
    assert sum(sizes) <= 50_000_000


def test_body_in_tiny_parts_is_given_up(web: HostileWebServer) -> None:
    """Each part costs time on the event loop."""
    assert "small-parts arrives in parts of 1 bytes, too small;" in str(
        refusal(f"{web.url}/small-parts")
    )


def test_download_lets_other_tasks_run(web: HostileWebServer) -> None:
    """Also while parts have arrived already."""

    async def run() -> int:
        turns = 0
        download = asyncio.create_task(downloader().download(f"{web.url}/small-parts"))
        while not download.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert asyncio.run(run()) > 1_000


def test_bytes_after_a_gzip_member_are_not_read(web: HostileWebServer) -> None:
    assert download(f"{web.url}/gzip-tail").file.read() == PICTURE
    assert web.wait_until_idle(2)


def test_download_has_a_deadline(web: HostileWebServer) -> None:
    begin = time.monotonic()
    error = refusal(f"{web.url}/trickle", seconds=0.2)
    assert time.monotonic() - begin < 2
    assert str(error).startswith("trickle did not arrive within 0.2 s (CLIP_IMAGE_URL_SECONDS);")
    assert web.wait_until_idle(2)


def test_slow_head_has_a_deadline(web: HostileWebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that sends one header line after another is never idle."""
    monkeypatch.setattr(image_url, "RESPONSE_SECONDS", 0.3)
    error = refusal(f"{web.url}/slow-head")
    assert str(error).startswith("slow-head: 127.0.0.1 did not respond in time;")


def test_slow_body_ends_early(web: HostileWebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_url, "MIN_RATE_AFTER_SECONDS", 0.2)
    error = refusal(f"{web.url}/trickle")
    assert re.match(r"trickle arrives at \d+ bytes per second, too slowly; ", str(error))


def test_silent_body_ends_early(web: HostileWebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_url, "IDLE_SECONDS", 0.05)
    error = refusal(f"{web.url}/trickle")
    assert re.match(r"trickle stopped arriving after \d+ bytes; ", str(error))


def test_further_downloads_are_refused_while_as_many_as_allowed_run(web: HostileWebServer) -> None:
    """One that is canceled makes room at once, and its connection is closed."""

    async def run() -> None:
        downloads = downloader(downloads=2)
        slow = [asyncio.create_task(downloads.download(f"{web.url}/trickle")) for _ in range(2)]
        await asyncio.sleep(0.15)
        with pytest.raises(
            DownloadError, match=r"^picture\.png: 2 images are being downloaded, as"
        ):
            await downloads.download(f"{web.url}/picture.png")
        slow[0].cancel()
        await asyncio.wait(slow[:1])
        assert (await downloads.download(f"{web.url}/picture.png")).size == len(PICTURE)
        slow[1].cancel()
        await asyncio.wait(slow)

    asyncio.run(run())
    assert web.wait_until_idle(2)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_full_disk_is_an_error_of_this_download(
    web: HostileWebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small image still needs no disk."""
    monkeypatch.setattr(tempfile, "TemporaryFile", partial(open, "/dev/full", "r+b"))
    error = refusal(f"{web.url}/large", bytes=30_000_000)
    assert str(error).startswith("large cannot be stored: No space left on device; try again later")
    assert download(f"{web.url}/picture.png").size == len(PICTURE)


# --- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("status-404", "cannot be downloaded: its server answers HTTP 404; check the URL"),
        ("status-500", "cannot be downloaded: its server answers HTTP 500; check the URL"),
        ("status-304", "cannot be downloaded: its server answers HTTP 304; check the URL"),
        ("closed", "is incomplete: its server closed the connection after"),
        ("cut-gzip", "arrives with a damaged Content-Encoding"),
        ("brotli", "is sent with Content-Encoding 'br', which was not asked for"),
    ],
)
def test_error_names_the_file_and_the_cause(path: str, message: str, web: HostileWebServer) -> None:
    assert f"{path} {message}" in str(refusal(f"{web.url}/{path}"))


def test_closed_port_is_an_error() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        error = refusal(f"http://127.0.0.1:{bound.getsockname()[1]}/a.png")
    assert str(error).startswith("a.png: no HTTP response came from 127.0.0.1; check the URL, or")


@pytest.mark.parametrize(
    "url",
    [
        *("http://", "http:///a.png", "http://[::1/a.png", "http://a:99999/b", "https://a:b/c"),
        *("http://\uff11\uff12\uff17.0.0.1/a", "http://\u2460\u2461\u2466.0.0.1/a"),
    ],
)
def test_malformed_url_is_refused(url: str) -> None:
    assert "only http:// and https:// URLs are downloaded" in str(refusal(url))


def test_very_long_url_is_refused() -> None:
    """A message never quotes more than the longest name of a host."""
    error = str(refusal("http://a/" + "b" * 20_000))
    assert "its URL has 20,009 characters; the limit is 16,384;" in error
    assert len(str(refusal(f"http://{'a' * 10_000}.example/b.png"))) < 500


def test_unknown_host_is_an_error() -> None:
    """Where private addresses are allowed, the message does not speak of public ones."""
    error = refusal("http://unknown.invalid/a.png")
    assert str(error).startswith("a.png: unknown.invalid has no internet address; send the")


def test_downloads_can_be_switched_off(web: HostileWebServer) -> None:
    count = len(web.requests)
    assert "CLIP_IMAGE_URLS=none" in str(refusal(f"{web.url}/picture.png", addresses="none"))
    assert len(web.requests) == count


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://example.com/a/cat%20photo.jpg?size=1#x", "cat photo.jpg"),
        ("https://example.com/", "image"),
        ("https://user:secret@example.com", "image"),
        ("https://user:pa/SECRET@example.com/", "example.com"),
        ("https://example.com/a.jpg;sig=SECRET", "a.jpg"),
        ("https://example.com/a.jpg?X-Goog-Signature=SECRET", "a.jpg"),
        ("https://example.com/%0a%1b[31mred", "__[31mred".replace("[", "_")),
        (f"https://example.com/{'x' * 100}.jpg", f"{'x' * 60}…{'x' * 15}.jpg"),
        ("https://[", "image"),
    ],
)
def test_name_is_the_last_part_of_the_url(url: str, name: str) -> None:
    assert file_name_of(url) == name


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_certificate(tmp_path_factory.mktemp("tls"))


def test_untrusted_certificate_is_an_error(certificate: str) -> None:
    with HostileWebServer(certificate=certificate) as web:
        error = refusal(f"{web.url}/a.png")
    assert str(error).startswith(
        "a.png: the certificate of 127.0.0.1 is not valid (self-signed certificate);"
    )
    assert error.reason == "tls"


def test_certificate_of_ssl_cert_file_is_trusted(
    certificate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    with HostileWebServer(certificate=certificate) as web:
        assert download(f"{web.url}/a.png").size == len(PICTURE)


# --- addresses ------------------------------------------------------------------------------

PRIVATE = [
    *("127.0.0.1", "127.1.2.3", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1"),
    *("169.254.169.254", "192.0.0.192", "168.63.129.16", "198.18.0.1", "224.0.0.1", "240.0.0.1"),
    *("255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254"),
    *("ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "2002:7f00:1::"),
    *("2001:0:4136:e378:8000:63bf:3fff:fdd2", "64:ff9b::7f00:1", "64:ff9b:1::808:808"),
    *("2001:db8::1", "localhost", ""),
]
PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_address_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_globally_routable_address_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.1"),
        *("0", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "127.0.0.1."),
    ],
)
def test_private_host_is_refused_before_a_connection(host: str, web: HostileWebServer) -> None:
    """In every notation, and with one sentence, whether the port is open or closed."""
    count = len(web.requests)
    messages = {
        str(refusal(f"http://{host}:{port}/a.png", addresses="public")) for port in (web.port, 1)
    }
    assert len(web.requests) == count
    assert len(messages) == 1
    assert "has no public internet address" in messages.pop()


def test_unknown_name_and_private_name_are_refused_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the names of an internal network could be listed."""
    answers = {"private.example": [(0, 0, 0, "", ("10.0.0.7", 80))]}

    def getaddrinfo(host: str, *_: object, **__: object) -> Any:
        if host not in answers:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return answers[host]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    private, unknown = (
        str(refusal(f"http://{host}/a", addresses="public"))
        for host in ("private.example", "unknown.example")
    )
    assert private.replace("private", "unknown") == unknown


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let one loopback address stand for the internet, and others for what must not be reached.

    Returns the addresses that are connected to.
    """
    addresses: list[str] = []
    connect = httpcore.AnyIOBackend.connect_tcp

    def recorded(backend: httpcore.AnyIOBackend, address: str, *arguments: Any) -> Any:
        addresses.append(address)
        return connect(backend, address, *arguments)

    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", recorded)
    monkeypatch.setattr(public_address, "is_public", lambda address: address == "127.0.0.1")
    return addresses


@pytest.mark.parametrize("host", ["127.0.0.2", "2130706434"])
def test_redirect_to_a_private_host_is_refused(
    host: str, web: HostileWebServer, connected: list[str]
) -> None:
    """Also where the address is written as one number."""
    url = f"{web.url}/redirect?http://{host}:{web.port}/picture.png"
    assert "has no public internet address" in str(refusal(url, addresses="public"))
    assert connected == ["127.0.0.1"]


def test_host_is_resolved_once(
    web: HostileWebServer, monkeypatch: pytest.MonkeyPatch, connected: list[str]
) -> None:
    """The address that was checked is the one that is connected to (DNS rebinding)."""
    resolved: list[str] = []
    getaddrinfo = socket.getaddrinfo

    def rebinding(host: str, port: int, *arguments: Any, **options: Any) -> Any:
        if host != "rebinding.example":
            return getaddrinfo(host, port, *arguments, **options)
        resolved.append(host)
        address = "127.0.0.1" if len(resolved) == 1 else "127.0.0.2"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    done = download(f"http://rebinding.example:{web.port}/picture.png", addresses="public")
    assert done.size == len(PICTURE)
    assert resolved == ["rebinding.example"]
    assert connected == ["127.0.0.1"]


def test_public_address_of_a_host_with_both_is_used(
    web: HostileWebServer, monkeypatch: pytest.MonkeyPatch, connected: list[str]
) -> None:
    both = ["127.0.0.2", "127.0.0.1"]
    monkeypatch.setattr(public_address, "_resolve", lambda host, port: both)
    assert download(f"http://both.example:{web.port}/a", addresses="public").size == len(PICTURE)
    assert connected == ["127.0.0.1"]


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/a", "file:///etc/passwd", "gopher://a/"])
def test_redirect_to_another_scheme_is_refused(target: str, web: HostileWebServer) -> None:
    assert "only http:// and https://" in str(refusal(f"{web.url}/redirect?{target}"))


@pytest.mark.parametrize("target", ["http://[", "http://a]/", "http://a:99999/"])
def test_malformed_redirect_is_an_error(target: str, web: HostileWebServer) -> None:
    url = f"{web.url}/redirect?{urllib.parse.quote(target, safe='')}"
    assert refusal(url).reason in ("redirects", "url")


def test_login_with_odd_characters_is_never_quoted(web: HostileWebServer) -> None:
    """urllib's errors quote the login."""
    for login in ("us\uff20er:SECRET", "user:SEC\uff03RET", "user:SECRET%00"):
        for path in ("status-404", f"redirect?{web.url}/status-404"):
            error = refusal(f"http://{login}@127.0.0.1:{web.port}/{path}")
            assert "SEC" not in str(error)


def test_redirects_are_limited(web: HostileWebServer) -> None:
    url = f"{web.url}/picture.png"
    for _ in range(MAX_REDIRECTS):
        url = f"{web.url}/redirect?{url}"
    assert download(url).size == len(PICTURE)
    error = refusal(f"{web.url}/redirect?{url}")
    assert "is redirected more than 5 times" in str(error)


def test_proxy_of_the_environment_is_used(
    web: HostileWebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy resolves names, so only an address in the URL can be refused here."""
    monkeypatch.setenv("http_proxy", web.url)
    done = download("http://images.example/picture.png", addresses="public")
    assert done.size == len(PICTURE)
    assert web.paths[-1] == "http://images.example/picture.png"
    count = len(web.requests)
    for host in ("10.0.0.1", "2130706433", "localhost", "a.localhost.", "[::1]"):
        error = refusal(f"http://{host}:8080/a.png", addresses="public")
        assert "has no public internet address" in str(error)
    assert len(web.requests) == count


def test_proxy_is_not_used_for_excepted_hosts(
    web: HostileWebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert download(f"{web.url}/picture.png").size == len(PICTURE)
