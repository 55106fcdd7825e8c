"""examples/nginx.conf in front of the real server, run by the real nginx.

The file runs as it is, but for its addresses and the directories that nginx writes to.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from scripts.lib.cog_server import CogServer, free_port
from scripts.lib.embedding_client import COG_BODY_BYTES, COG_FILE_BYTES, Client, RefusedError
from tests.helpers.nginx import running_nginx
from tests.helpers.paths import ROOT

EXAMPLE = ROOT / "examples" / "nginx.conf"
TEMP_PATHS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
COG_DIRECTORIES = Path("/tmp/coglet/predictions")
TEXT = {"input": {"text": "a red bicycle"}}
ASYNC = {"Prefer": "respond-async"}


def example(upstream: int, port: int, directory: Path) -> str:
    """Return the example with other addresses, and `directory` for what nginx writes."""
    config = EXAMPLE.read_text()
    temp_paths = "".join(f"{name}_temp_path {directory}/{name};" for name in TEMP_PATHS)
    for old, new in (
        ("server 127.0.0.1:8000;", f"server 127.0.0.1:{upstream};"),
        ("listen 80;", f"listen 127.0.0.1:{port};"),
        ("http {\n", f"http {{ access_log off; {temp_paths}\n"),
    ):
        assert config.count(old) == 1, old
        config = config.replace(old, new)
    return config


@contextlib.contextmanager
def nginx(upstream: int, directory: Path) -> Iterator[httpx.Client]:
    """Run the example in front of port `upstream`; return a client of it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with (
        running_nginx(example(upstream, port, directory), directory, port),
        httpx.Client(base_url=url, timeout=60, trust_env=False) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def proxy(server: CogServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of the example in front of the real server."""
    with nginx(server.port, tmp_path_factory.mktemp("nginx")) as client:
        yield client


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A server that accepts connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=200) as server:
        server.settimeout(10)
        yield server


@pytest.fixture
def silent(listener: socket.socket, tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of the example in front of `listener`."""
    with nginx(listener.getsockname()[1], tmp_path) as client:
        yield client


def error(response: httpx.Response) -> str:
    """Return the sentence of an error of nginx, which is JSON."""
    assert response.headers["Content-Type"] == "application/json"
    [(name, sentence)] = response.json().items()
    assert name == "error"
    return str(sentence)


def raw(proxy: httpx.Client, request: str) -> tuple[int, Any]:
    """Send a request as it is written, and return status and JSON. httpx would normalize it."""
    address = (proxy.base_url.host, proxy.base_url.port)
    with socket.create_connection(address, 30) as connection:
        connection.sendall(request.encode())
        with connection.makefile("rb") as answer:
            head, _, body = answer.read().partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def request_line(line: str, body: str = "") -> str:
    """Return a request whose body is JSON."""
    return (
        f"{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    )


# --- routes that pass -----------------------------------------------------------------------


def test_text_is_embedded(proxy: httpx.Client, server: CogServer) -> None:
    document = proxy.post("/predictions", json=TEXT).json()
    assert document["status"] == "succeeded"
    assert document["output"] == server.predict(**TEXT["input"])["output"]
    assert len(document["output"]) == 768


def test_image_in_a_file_of_nginx_is_embedded(proxy: httpx.Client) -> None:
    """The largest body that the client sends, most of which nginx writes to disk, reaches Cog."""
    with pytest.raises(RefusedError, match="not an image"):
        Client(str(proxy.base_url)).image_bytes(bytes(COG_FILE_BYTES), "huge.tif")


@pytest.mark.parametrize("path", ["/health-check", "/openapi.json", "/"])
def test_page_is_read(proxy: httpx.Client, server: CogServer, path: str) -> None:
    assert proxy.get(path).json() == httpx.get(server.url + path, trust_env=False).json()


def test_prediction_with_an_id_is_started_and_cancelled(
    proxy: httpx.Client, server: CogServer, listener: socket.socket
) -> None:
    """Its image is a URL that never answers, so it runs until it is cancelled."""
    prediction_id = f"A-z_{uuid.uuid4().hex}".ljust(64, "0")
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/photo.jpg"
    started = proxy.put(
        f"/predictions/{prediction_id}", json={"input": {"image": url}}, headers=ASYNC
    )
    assert (started.status_code, started.json()["id"]) == (202, prediction_id)
    connection, _ = listener.accept()
    with connection:
        assert proxy.post(f"/predictions/{prediction_id}/cancel").status_code == 200
        deadline = time.monotonic() + 20
        while True:
            cancelled = proxy.post(f"/predictions/{prediction_id}/cancel")
            if cancelled.status_code == 404 or time.monotonic() > deadline:
                break
            time.sleep(0.1)
    assert (cancelled.status_code, cancelled.json()) == (404, {})  # from Cog: it is over


@pytest.mark.parametrize("media_type", ["Application/JSON", "application/json; charset=utf-8"])
def test_media_type_of_json_may_have_parameters(proxy: httpx.Client, media_type: str) -> None:
    response = proxy.post(
        "/predictions", content=json.dumps(TEXT), headers={"Content-Type": media_type}
    )
    assert response.json()["status"] == "succeeded"


def test_errors_of_the_service_pass_unchanged(proxy: httpx.Client, server: CogServer) -> None:
    wrong = {"input": {"text": 5}}
    direct = httpx.post(f"{server.url}/predictions", json=wrong, trust_env=False)
    response = proxy.post("/predictions", json=wrong)
    assert (response.status_code, response.json()) == (422, direct.json())


# --- routes that do not pass ----------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "POST /shutdown",
        "GET /shutdown",
        "POST //shutdown",
        "POST /%73hutdown",
        "POST /predictions/../shutdown",
        "POST /predictions/%2e%2e/shutdown",
        "POST /predictions%2f..%2fshutdown",
        "POST http://localhost/shutdown",
        "POST /trainings",
        "GET /predictions",
        "PUT /predictions",
        "POST /predictions/",
        "POST /Predictions",
        "POST /predictions?",
        "POST /predictions/good",
        "GET /predictions/good",
        "DELETE /predictions/good",
        "PUT /predictions/good/cancel",
        "POST /predictions/good/cancel/",
        "POST /predictions/good/Cancel",
        "POST /predictions/a%2fb/cancel",
        "POST /health-check",
        "GET /health-check/",
        "OPTIONS /predictions",
        "GET /metrics",
    ],
)
def test_other_route_is_not_found(proxy: httpx.Client, server: CogServer, line: str) -> None:
    """The answer is that of nginx, and the server stays up."""
    status, document = raw(proxy, request_line(line, json.dumps(TEXT)))
    assert status == 404
    assert document["error"].startswith("there is no such route")
    assert server.health()["status"] in ("READY", "BUSY")


def made(name: str) -> list[Path]:
    """Return the directories under /tmp with `name` in their names, where Cog may make them."""
    places = (Path("/tmp"), Path("/tmp/coglet"), COG_DIRECTORIES, Path("/"))
    return [path for place in places for path in place.glob(f"*{name}*")]


@pytest.mark.parametrize(
    "hostile",
    [
        "..%2f..%2f{name}",
        "%2ftmp%2f{name}",
        "%2e%2e%2f{name}",
        "../{name}",
        "a/{name}",
        "a%2f..%2f{name}",
        "%2f{name}",
        "/{name}",
        "./{name}",
        "{name}.",
        "{name}%00",
        "{name}%0a",
        "{name}%20",
        "{name}\u00e9",
        "{name}/",
        "{name}" + "x" * 300,
        "{name}" + "x" * 33,
        "",
    ],
)
def test_id_that_is_not_well_formed_is_refused(
    proxy: httpx.Client, server: CogServer, hostile: str
) -> None:
    """No directory is made, under any part of the id."""
    name = uuid.uuid4().hex
    line = f"PUT /predictions/{hostile.format(name=name)}"
    status, document = raw(proxy, request_line(line, json.dumps(TEXT)))
    assert status in (400, 404)
    assert "error" in document
    assert made(name) == []
    assert server.health()["status"] in ("READY", "BUSY")


@pytest.mark.parametrize("hostile", ["../../{name}", "/tmp/{name}", "{name}" + "x" * 300, "{name}"])
def test_id_in_a_body_is_refused(proxy: httpx.Client, hostile: str) -> None:
    """By Cog, with 422: nginx gives every POST an id in its path, and any other contradicts it."""
    name = uuid.uuid4().hex
    response = proxy.post("/predictions", json={**TEXT, "id": hostile.format(name=name)})
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", "id"]
    assert made(name) == []


def test_ids_of_the_path_and_of_the_body_must_be_equal(proxy: httpx.Client) -> None:
    name = uuid.uuid4().hex
    url = f"/predictions/{name}"
    assert proxy.put(url, json={**TEXT, "id": f"/tmp/x{name}"}).status_code == 422
    assert made(name) == []
    assert proxy.put(url, json={**TEXT, "id": name}).json()["id"] == name


def test_cog_itself_accepts_such_ids(server: CogServer) -> None:
    """Cog 0.23.1 makes a directory anywhere. If this fails, the proxy need not check ids."""
    name = uuid.uuid4().hex
    httpx.put(f"{server.url}/predictions/%2ftmp%2f{name}", json=TEXT, trust_env=False)
    assert made(name) == [Path("/tmp") / name]
    shutil.rmtree(Path("/tmp") / name)


# --- bodies ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "media_type",
    [
        None,
        "",
        "text/plain",
        "text/plain; application/json",
        "text/plain, application/json",
        "application/jsonx",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
    ],
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/predictions"), ("PUT", "/predictions/a")])
def test_body_of_another_type_is_refused(
    proxy: httpx.Client, method: str, path: str, media_type: str | None
) -> None:
    """A web page of another origin can send only such types."""
    headers = {} if media_type is None else {"Content-Type": media_type}
    response = proxy.request(method, path, content=json.dumps(TEXT), headers=headers)
    assert response.status_code == 415
    assert error(response) == "send Content-Type: application/json"


@pytest.mark.parametrize("chunked", [False, True])
def test_body_over_the_limit_is_refused(proxy: httpx.Client, chunked: bool) -> None:
    """The client gets the answer although it is still sending."""
    mebibyte = bytes(2**20)
    body = (mebibyte for _ in range(101)) if chunked else bytes(COG_BODY_BYTES + 1)
    response = proxy.post(
        "/predictions", content=body, headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 413
    assert "larger than 100 MiB" in error(response)


def test_slow_client_takes_no_slot(silent: httpx.Client, listener: socket.socket) -> None:
    """The service is not asked before the body is complete."""
    request = request_line("POST /predictions", json.dumps(TEXT)).encode()
    address = (silent.base_url.host, silent.base_url.port)
    with socket.create_connection(address, 10) as connection:
        connection.sendall(request[:-5])
        listener.settimeout(0.5)
        with pytest.raises(TimeoutError):
            listener.accept()
        connection.sendall(request[-5:])
        listener.settimeout(10)
        listener.accept()[0].close()


def test_service_learns_the_address_of_the_client(
    silent: httpx.Client, listener: socket.socket
) -> None:
    """And not what the client claims."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(silent.get, "/", headers={"X-Forwarded-For": "8.8.8.8"})
        connection, _ = listener.accept()
        with connection:
            head = connection.recv(65536).decode()
        assert "X-Forwarded-For: 127.0.0.1\r\n" in head
        assert "8.8.8.8" not in head
        assert answer.result().status_code == 502


def test_server_sent_events_leave_at_once(silent: httpx.Client, listener: socket.socket) -> None:
    """The client reads each event before the response is complete."""
    address = (silent.base_url.host, silent.base_url.port)
    with socket.create_connection(address, 10) as client:
        client.sendall(request_line("POST /predictions", json.dumps(TEXT)).encode())
        service, _ = listener.accept()
        with service, client.makefile("rb") as answer:
            service.recv(65536)
            service.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n"
            )
            for number in range(3):
                service.sendall(b"9\r\ndata: %d\n\n\r\n" % number)
                while (line := answer.readline()) != b"data: %d\n" % number:
                    assert line


# --- limits ---------------------------------------------------------------------------------


def test_service_that_is_down_and_too_many_requests(tmp_path: Path) -> None:
    """Both are errors in JSON that ask for a retry; nginx does not stop asking the service."""
    with nginx(free_port(), tmp_path) as client:
        responses = [client.get("/health-check") for _ in range(400)]
    assert responses[0].status_code == 502
    assert "retry" in error(responses[0])
    assert {response.status_code for response in responses} == {502, 429}
    refused = next(response for response in responses if response.status_code == 429)
    assert "50 requests per second" in error(refused)
    assert refused.headers["Retry-After"] == "1"


def test_concurrent_requests_of_a_client_are_limited(silent: httpx.Client) -> None:
    """The 33rd at once gets 429."""
    address = (silent.base_url.host, silent.base_url.port)
    with contextlib.ExitStack() as stack:
        for _ in range(32):
            connection = stack.enter_context(socket.create_connection(address, 10))
            connection.sendall(request_line("GET /health-check").encode())
        time.sleep(0.5)
        response = silent.get("/health-check")
    assert response.status_code == 429
    assert "32 at once" in error(response)
