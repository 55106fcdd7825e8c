"""Send hostile requests to the real server: it stays READY, answers others, and leaves no file."""

from __future__ import annotations

import asyncio
import collections
import http.client
import json
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from scripts.lib.cog_server import CogServer
from scripts.lib.hostile_web_server import HostileWebServer
from tests.helpers.paths import ROOT
from tests.helpers.result_tables import ATTACKS
from tests.service.conftest import Webhooks

LIMITS = {"CLIP_MAX_IMAGE_BYTES": "10000000", "CLIP_IMAGE_URL_SECONDS": "4"}


@pytest.fixture(scope="module")
def web() -> Iterator[HostileWebServer]:
    with HostileWebServer() as server:
        yield server


@pytest.fixture(scope="module")
def target(tiny_model: Path) -> Iterator[CogServer]:
    """Run a server for which only 127.0.0.1 is a public address."""
    predictor = f"{ROOT / 'tests' / 'helpers' / 'public_loopback_predict.py'}:Predictor"
    with CogServer({"CLIP_WEIGHTS": str(tiny_model), **LIMITS}, predictor=predictor) as server:
        server.wait_ready()
        yield server


def bytes_left(server: CogServer) -> int:
    """Return the bytes of the files that the server holds, with and without a name."""
    named = sum(p.stat().st_size for p in Path(server.directory, "tmp").rglob("*") if p.is_file())
    assert server.process is not None
    [worker] = psutil.Process(server.process.pid).children()
    unnamed = [path for path in Path(f"/proc/{worker.pid}/fd").iterdir() if _is_deleted(path)]
    return named + sum(path.stat().st_size for path in unnamed)


def _is_deleted(descriptor: Path) -> bool:
    try:
        target = str(descriptor.readlink())
    except OSError:
        return False
    return target.startswith("/") and target.endswith("(deleted)") and "/tmp" in target


def record(attack: str, outcome: str, begin: float, server: CogServer) -> None:
    """Note an attack, and assert that the server has survived it."""
    seconds = time.monotonic() - begin
    left = bytes_left(server)
    ATTACKS.append((attack, outcome, seconds, left))
    assert left == 0
    assert server.health()["status"] == "READY"
    assert server.predict(text="a red bicycle")["status"] == "succeeded"


def attack(server: CogServer, label: str, url: str, expected: str, seconds: float) -> None:
    """Send a URL, and assert that it is refused with `expected` within `seconds`."""
    begin = time.monotonic()
    body = server.predict(image=url)
    assert body["status"] == "failed"
    error = str(body["error"]).partition("Error: ")[2]
    assert expected in error
    assert "\n" not in error
    assert time.monotonic() - begin < seconds
    record(label, error.partition(";")[0], begin, server)


@pytest.mark.parametrize(
    ("path", "expected", "seconds"),
    [
        ("endless", "is larger than 10,000,000 bytes", 3),
        ("bomb", "is larger than 10,000,000 bytes", 6),
        ("trickle", "did not arrive within 4 s", 6),
        ("slow-head", "did not arrive within 4 s", 6),
        ("closed", "is incomplete", 2),
        ("page", "HTML page", 2),
        ("status-404", "answers HTTP 404", 2),
    ],
)
def test_hostile_response_is_refused(
    path: str, expected: str, seconds: float, target: CogServer, web: HostileWebServer
) -> None:
    attack(target, f"URL: {path}", f"{web.url}/{path}", expected, seconds)
    assert web.wait_until_idle(2)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.2", "localhost.localdomain.invalid", "2130706434", "0x7f000002", "127.2"),
        *("0177.0.0.2", "0.0.0.0", "[::1]", "[::ffff:127.0.0.2]", "169.254.169.254", "10.0.0.1"),
        *("192.168.0.1", "172.16.0.1", "100.64.0.1", "[fd00::1]", "[fe80::1]", "[64:ff9b::a00:1]"),
    ],
)
def test_private_address_is_refused(host: str, target: CogServer, web: HostileWebServer) -> None:
    """In the URL, and in a redirect of a public server."""
    sentence = "has no public internet address"
    attack(target, f"address: {host}", f"http://{host}:{web.port}/a", sentence, 5)
    redirect = f"{web.url}/redirect?http://{host}:{web.port}/a"
    attack(target, f"redirect to {host}", redirect, sentence, 5)


def test_text_is_answered_while_downloads_use_their_share_of_slots(
    target: CogServer, web: HostileWebServer
) -> None:
    """64 clients send the URL of a trickle, and hang up after 3 s. Meanwhile texts are answered
    within a second, and further downloads are refused at once."""

    async def slow_client(http: httpx.AsyncClient) -> str:
        try:
            response = await http.post(
                "/predictions", json={"input": {"image": f"{web.url}/trickle"}}, timeout=3
            )
        except httpx.TimeoutException:
            return "hung up"
        return "busy" if "try again soon" in response.text else response.text

    async def text_client(http: httpx.AsyncClient) -> float:
        while web.open < 48:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)  # for the refusals of the other 16
        slowest = 0.0
        for _ in range(20):
            begin = time.monotonic()
            response = await http.post("/predictions", json={"input": {"text": "a"}}, timeout=10)
            assert response.status_code == 200, response.text
            slowest = max(slowest, time.monotonic() - begin)
            await asyncio.sleep(0.1)
        return slowest

    async def all_of_them() -> tuple[collections.Counter[str], float]:
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=target.url, limits=limits, trust_env=False) as http:
            slowest = asyncio.create_task(text_client(http))
            outcomes = await asyncio.gather(*(slow_client(http) for _ in range(64)))
            return collections.Counter(outcomes), await slowest

    begin = time.monotonic()
    outcomes, slowest = asyncio.run(all_of_them())
    assert outcomes == {"hung up": 48, "busy": 16}
    assert slowest < 1
    assert web.wait_until_idle(1)
    outcome = f"48 hang up, 16 refused as busy; a text took at most {slowest:.2f} s"
    record("64 URLs that trickle", outcome, begin, target)


@pytest.mark.parametrize("path", ["trickle", "slow-head"])
def test_download_can_be_canceled(
    path: str, target: CogServer, web: HostileWebServer, webhooks: tuple[str, Webhooks]
) -> None:
    """Within a second its connection is closed, and its webhook is sent."""
    webhook, received = webhooks
    with httpx.Client(base_url=target.url, trust_env=False) as client:
        url = f"/predictions/{uuid.uuid4().hex}"
        body = {
            "input": {"image": f"{web.url}/{path}"},
            "webhook": webhook,
            "webhook_events_filter": ["completed"],
        }
        assert client.put(url, json=body, headers={"Prefer": "respond-async"}).status_code == 202
        deadline = time.monotonic() + 5
        while not web.open and time.monotonic() < deadline:
            time.sleep(0.01)
        begin = time.monotonic()
        assert client.post(f"{url}/cancel").status_code == 200
        assert received.get(timeout=1)["status"] == "canceled"
        assert web.wait_until_idle(1)
        assert time.monotonic() - begin < 1.5
    record(f"cancel of {path}", "canceled, the connection is closed", begin, target)


def test_client_that_hangs_up_ends_the_download(target: CogServer, web: HostileWebServer) -> None:
    body = {"input": {"image": f"{web.url}/trickle"}}
    with pytest.raises(httpx.TimeoutException):
        httpx.post(f"{target.url}/predictions", json=body, timeout=0.5, trust_env=False)
    begin = time.monotonic()
    assert web.wait_until_idle(1)
    record("hang-up during a download", "the connection is closed", begin, target)


def test_data_uri_over_the_limit_is_refused(target: CogServer) -> None:
    label, uri = "data: URI of 12 MB", "data:image/png;base64," + "A" * 16_000_000
    attack(target, label, uri, "image is 12,000,000 bytes; the limit is 10,000,000", 5)


def test_5000_predictions_leave_nothing(tiny_model: Path) -> None:
    """No directory of Cog's is left, memory does not grow, and no thread or file stays open."""
    predictor = f"{ROOT / 'tests' / 'helpers' / 'short_intervals_predict.py'}:Predictor"
    with CogServer({"CLIP_WEIGHTS": str(tiny_model)}, predictor=predictor) as server:
        server.wait_ready()
        begin = time.monotonic()
        send_texts(server, 300)
        assert server.process is not None
        [worker] = psutil.Process(server.process.pid).children()
        before = _footprint(worker)
        names = send_texts(server, 5000)
        deadline = time.monotonic() + 30
        while (left := existing(names)) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not left
        megabytes, threads, files = (
            after - earlier for after, earlier in zip(_footprint(worker), before, strict=True)
        )
        assert megabytes < 30
        assert threads <= 10  # Tokio keeps some for ten seconds
        assert files <= 2
        record("5,000 predictions", "no directory of theirs is left", begin, server)


def _footprint(worker: psutil.Process) -> tuple[float, int, int]:
    return worker.memory_info().rss / 1e6, worker.num_threads(), worker.num_fds()


def existing(names: list[str]) -> list[str]:
    """Return the predictions whose directories exist."""
    return [name for name in names if Path("/tmp/coglet/predictions", name).exists()]


def send_texts(server: CogServer, count: int) -> list[str]:
    """Send `count` predictions from 16 clients, and return their ids."""
    ids: list[str] = []
    left, lock = iter(range(count)), threading.Lock()

    body, headers = json.dumps({"input": {"text": "a"}}), {"Content-Type": "application/json"}

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        while True:
            with lock:
                if next(left, None) is None:
                    return
            connection.request("POST", "/predictions", body, headers)
            response = json.load(connection.getresponse())
            assert response["status"] == "succeeded", response
            ids.append(response["id"])

    threads = [threading.Thread(target=client) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == count
    return ids
