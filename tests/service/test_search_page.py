"""The page of scripts/search.py serve: its server over HTTP, and its use in a real browser."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from starlette.requests import ClientDisconnect
from starlette.testclient import TestClient

from scripts import search
from scripts.lib import demo_page, embedding_client, picture_index
from scripts.lib.cog_server import CogServer
from scripts.lib.drawings import held_out
from scripts.lib.embedding_client import Client, RefusedError, ServiceError
from scripts.lib.picture_index import PROBE, Entry, PictureIndex, Stamp
from scripts.lib.search import index_folder
from scripts.search_page import app, queries
from scripts.search_page.app import make_app
from scripts.search_page.queries import WITHOUT_WEIGHT, Embedder
from scripts.search_page.ranking import Ranking
from scripts.search_page.serve import listen
from scripts.search_page.thumbnails import SIZE, Thumbnails
from tests.helpers.chromium import running_chromium
from tests.helpers.paths import DEMO_MODEL, ROOT

PORT = 8100
WIDTH = 8
COLORS = {"red.png": (255, 0, 0), "green.png": (0, 255, 0), "blue.png": (0, 0, 255)}
COLORS |= {"<b>bold.png": (0, 0, 0), "white.png": (255, 255, 255)}


class FakeClient(Client):
    """Embeds without a service: a text by its words, a picture by the color of its first pixel."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        """All texts that were embedded."""
        self.pictures = 0
        self.error: Exception | None = None
        """Raised instead of an answer."""
        self.blocked = threading.Event()
        self.blocked.set()
        """While it is cleared, no request is answered."""
        self.width = WIDTH

    def text(self, text: str) -> npt.NDArray[np.float32]:
        self.texts.append(text)
        words = ("red", "green", "blue", *"12345")
        return self._answer([2.0 * (word in text) + 0.01 for word in words])

    def image_bytes(self, data: bytes, name: str) -> npt.NDArray[np.float32]:
        self.pictures += 1
        with Image.open(io.BytesIO(data)) as picture:
            return self._answer([*(value + 1.0 for value in picture.getpixel((0, 0))), *[1.0] * 5])

    def image(self, path: Path) -> npt.NDArray[np.float32]:
        return self.image_bytes(path.read_bytes(), path.name)

    def _answer(self, vector: list[float]) -> npt.NDArray[np.float32]:
        self.blocked.wait(30)
        if self.error:
            raise self.error
        return np.array(vector[: self.width], np.float32)


@pytest.fixture
def fake() -> Iterator[FakeClient]:
    client = FakeClient()
    yield client
    client.blocked.set()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a square of each color."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, color in COLORS.items():
        Image.new("RGB", (40, 40), color).save(folder / name)
    return folder


@pytest.fixture
def ranking(fake: FakeClient, folder: Path, tmp_path: Path) -> Ranking:
    """Return the pictures of an index of `folder`."""
    index = PictureIndex(tmp_path / "db", fake.text(PROBE), create=True)
    for path in sorted(folder.iterdir()):
        index.put([Entry(str(path), Stamp.of(path), fake.image(path))])
    fake.texts.clear()
    fake.pictures = 0
    return Ranking(index)


@pytest.fixture
def page(fake: FakeClient, ranking: Ranking) -> Iterator[TestClient]:
    """Return a client of the page's server, at the address that a browser would use."""
    app = make_app(ranking, Embedder(fake, WIDTH), PORT)
    # One event loop for all requests, as in the real server.
    with TestClient(app, f"http://127.0.0.1:{PORT}") as client:
        yield client


def find(page: TestClient, **query: Any) -> list[dict[str, Any]]:
    answer = page.post("/api/search", json={"count": 10, **query})
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


def names(results: list[dict[str, Any]]) -> list[str]:
    return [result["name"] for result in results]


def png(color: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(file, "PNG")
    return file.getvalue()


def send_picture(page: TestClient, data: bytes) -> httpx.Response:
    return page.post(
        "/api/picture", content=data, headers={"Content-Type": "application/octet-stream"}
    )


# --- what is found --------------------------------------------------------------------------


def test_sentence_ranks_by_cosine_similarity(page: TestClient, fake: FakeClient) -> None:
    results = find(page, text="a red thing")
    assert results[0]["name"] == "red.png"
    scores = [result["score"] for result in results]
    assert scores == sorted(scores, reverse=True)
    assert names(find(page, text="a red thing", count=2)) == names(results)[:2]


def test_empty_query_shows_the_first_pictures_without_a_request(
    page: TestClient, fake: FakeClient
) -> None:
    results = find(page, count=3)
    assert names(results) == sorted(COLORS)[:3]
    assert {result["score"] for result in results} == {None}
    assert fake.texts == []


def test_sentence_is_embedded_once(page: TestClient, fake: FakeClient) -> None:
    """A slider that is moved does not cost requests to the service."""
    for count in (1, 2, 3):
        find(page, text="red", without="blue", count=count)
    assert sorted(fake.texts) == ["blue", "red"]


def test_more_like_this_uses_the_stored_vector(page: TestClient, fake: FakeClient) -> None:
    """The picture itself is first, with cosine 1; the service is not asked."""
    row = find(page, text="green")[0]["row"]
    fake.error = ServiceError("down")
    results = find(page, like=row)
    assert results[0]["name"] == "green.png"
    assert results[0]["score"] == pytest.approx(1, abs=1e-5)
    assert fake.pictures == 0


def test_sent_picture_is_a_query(page: TestClient, fake: FakeClient) -> None:
    """It is embedded once, whatever is searched with it."""
    picture = send_picture(page, png((0, 0, 250))).json()["picture"]
    assert names(find(page, picture=picture))[0] == "blue.png"
    assert names(find(page, picture=picture, count=1)) == ["blue.png"]
    assert fake.pictures == 1


def test_sentence_and_picture_are_weighted(page: TestClient, ranking: Ranking) -> None:
    """The query is the weighted mean of both vectors of length 1."""
    picture = send_picture(page, png((0, 0, 250))).json()["picture"]
    both = {"text": "a red thing", "picture": picture}
    assert names(find(page, **both, picture_weight=0.0))[0] == "red.png"
    assert names(find(page, **both, picture_weight=1.0))[0] == "blue.png"
    text, image = FakeClient().text("red"), FakeClient().image_bytes(png((0, 0, 250)), "")
    query = 0.7 * text / np.linalg.norm(text) + 0.3 * image / np.linalg.norm(image)
    for result in find(page, **both, picture_weight=0.3):
        cosine = ranking.vector(result["row"]) @ query / np.linalg.norm(query)
        assert result["score"] == pytest.approx(cosine, abs=1e-5)


def test_but_not_subtracts_a_sentence(page: TestClient, ranking: Ranking) -> None:
    text, without = FakeClient().text("red blue"), FakeClient().text("red")
    query = text / np.linalg.norm(text) - WITHOUT_WEIGHT * without / np.linalg.norm(without)
    results = find(page, text="red blue", without="red")
    assert results[0]["name"] == "blue.png"
    for result in results:
        cosine = ranking.vector(result["row"]) @ query / np.linalg.norm(query)
        assert result["score"] == pytest.approx(cosine, abs=1e-5)


def test_tags_count_the_best_label_of_every_picture(page: TestClient) -> None:
    labels = ["red", "green", "blue"]
    tags = page.post("/api/tags", json={"labels": labels}).json()["tags"]
    assert [tag["label"] for tag in tags] == labels
    assert sum(tag["count"] for tag in tags) == len(COLORS)
    found = {r["name"]: labels[r["tag"]] for r in find(page, labels=labels)}
    assert [found[f"{label}.png"] for label in labels] == labels


@pytest.mark.parametrize("query", [{}, {"text": "red"}])
def test_tag_filters_the_results(page: TestClient, query: dict[str, str]) -> None:
    """With a query, its order; without one, the most typical pictures of the tag first."""
    labels = ["green", "blue"]
    everything = find(page, labels=labels, **query)
    expected = {result["name"] for result in everything if result["tag"] == 1}
    results = find(page, labels=labels, tag=1, **query)
    assert {result["name"] for result in results} == expected
    scores = [result["score"] for result in results]
    assert scores == sorted(scores, reverse=True)
    if query:
        assert scores == pytest.approx([r["score"] for r in everything if r["tag"] == 1], abs=1e-5)
    else:
        assert results[0]["name"] == "blue.png"


def test_tags_read_the_index_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors of all pictures are never in memory together."""
    monkeypatch.setattr(picture_index, "SCAN_ROWS", 100)
    vectors = np.random.default_rng(0).normal(size=(1000, WIDTH)).astype(np.float32)
    index = PictureIndex(tmp_path / "db", vectors[0], create=True)
    index.put(Entry(f"/{i:04}.png", Stamp(1, 1), vector) for i, vector in enumerate(vectors))
    assert max(len(rows) for rows, _ in index.scan()) <= 100
    ranking = Ranking(index)
    labels = np.eye(WIDTH, dtype=np.float32)[:3]
    tags = ranking.tag(labels)
    expected = dict(zip(ranking.paths.values(), (vectors @ labels.T).argmax(axis=1), strict=True))
    assert {ranking.paths[row]: tags.of_row(row) for row in ranking.paths} == expected


def test_index_that_is_updated_meanwhile_is_shown_as_it_was(
    page: TestClient, fake: FakeClient, folder: Path, tmp_path: Path
) -> None:
    """Ids of rows stay valid, and results stay those of the start."""
    before = find(page, text="red")
    index = PictureIndex(tmp_path / "db", fake.text(PROBE), create=True)
    index.remove([str(folder / "red.png")])
    index.put([Entry("/new.png", Stamp(1, 1), fake.text("red"))])
    index.compact()
    assert find(page, text="red") == before
    assert find(page, like=before[0]["row"])[0]["name"] == "red.png"


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1", "127.0.0.1:1"]
)
@pytest.mark.parametrize("path", ["/", "/api/index", "/thumbnail/0", "/page.js"])
def test_another_host_is_refused(page: TestClient, host: str, path: str) -> None:
    """A site whose name leads to this machine cannot read anything (DNS rebinding)."""
    answer = page.get(path, headers={"Host": host})
    assert answer.status_code == 403
    assert answer.json() == {"error": f"open this page at http://127.0.0.1:{PORT}"}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_own_hosts_are_accepted(page: TestClient, host: str) -> None:
    assert page.get("/", headers={"Host": f"{host}:{PORT}"}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:8000"])
def test_another_origin_is_refused(page: TestClient, fake: FakeClient, origin: str) -> None:
    headers = {"Origin": origin}
    assert page.post("/api/search", json={"text": "red"}, headers=headers).status_code == 403
    assert fake.texts == []


def test_no_other_site_is_given_access(page: TestClient) -> None:
    """Browsers show no other site the answers or the pictures, and load nothing from elsewhere."""
    for path in ("/", "/api/index", "/page.css", "/nothing"):
        headers = page.get(path).headers
        assert not [name for name in headers if name.startswith("access-control-")]
        assert headers["Content-Security-Policy"].startswith("default-src 'self';")
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["X-Content-Type-Options"] == "nosniff"
    preflight = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    assert page.options("/api/search", headers=preflight).status_code == 403


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded"])
def test_types_that_any_site_may_send_are_refused(page: TestClient, media_type: str) -> None:
    """Without Origin, too: browsers ask before they send the others."""
    for path in ("/api/search", "/api/picture", "/api/tags"):
        answer = page.post(path, content=b"{}", headers={"Content-Type": media_type})
        assert answer.status_code == 415


def rows_by_name(ranking: Ranking) -> dict[str, int]:
    return {Path(path).name: row for row, path in ranking.paths.items()}


def test_thumbnail_is_the_square_that_clip_sees(page: TestClient, ranking: Ranking) -> None:
    answer = page.get(f"/thumbnail/{rows_by_name(ranking)['red.png']}")
    assert answer.headers["Content-Type"] == "image/webp"
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert picture.size == (SIZE, SIZE)
        red, green, blue = picture.convert("RGB").getpixel((9, 9))
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("row", ["1", "99999999999999", "-1", "..%2f..%2fetc%2fpasswd", "red.png"])
def test_only_rows_of_the_index_are_served(page: TestClient, row: str) -> None:
    assert page.get(f"/thumbnail/{row}").status_code == 404


@pytest.mark.parametrize(
    "path", ["/../app.py", "/%2e%2e/app.py", "/static/../app.py", "//etc/passwd"]
)
def test_no_other_file_is_served(page: TestClient, path: str) -> None:
    assert page.get(path).status_code == 404


def replace_by_link(path: Path) -> None:
    secret = path.parent.parent / "secret.png"
    path.rename(secret)
    path.symlink_to(secret)


def replace_folder_by_link(path: Path) -> None:
    path.parent.rename(path.parent.parent / "elsewhere")
    path.parent.symlink_to(path.parent.parent / "elsewhere")


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_text(path: Path) -> None:
    path.write_text("root:x:0:0")


@pytest.mark.parametrize(
    "change",
    [Path.unlink, replace_by_link, replace_folder_by_link, replace_by_pipe, replace_by_text],
)
def test_file_that_is_gone_or_replaced_is_not_served(
    page: TestClient, ranking: Ranking, folder: Path, change: Callable[[Path], None]
) -> None:
    """Neither from the disk nor from the cache."""
    address = f"/thumbnail/{rows_by_name(ranking)['red.png']}"
    assert page.get(address).status_code == 200
    change(folder / "red.png")
    answer = page.get(address)
    assert answer.status_code == 404
    assert answer.json() == {"error": "this picture is not there any more"}


def test_decompression_bomb_is_not_decoded(
    page: TestClient, ranking: Ranking, folder: Path
) -> None:
    """The limits are those of the service."""
    Image.new("1", (20_000, 20_000)).save(folder / "red.png")
    assert page.get(f"/thumbnail/{rows_by_name(ranking)['red.png']}").status_code == 404


def test_file_over_the_limit_of_bytes_is_not_read(
    page: TestClient, ranking: Ranking, folder: Path
) -> None:
    """A black BMP of 6,000 × 6,000: 36 million pixels are allowed, 108 million bytes are not."""
    header = struct.pack("<2sIIIIiiHHIIiiII", b"BM", 0, 0, 54, 40, 6000, 6000, 1, 24, *[0] * 6)
    with (folder / "red.png").open("wb") as file:
        file.write(header)
        file.truncate(54 + 3 * 6000 * 6000)
    assert page.get(f"/thumbnail/{rows_by_name(ranking)['red.png']}").status_code == 404


def test_changed_file_gets_a_new_thumbnail(
    page: TestClient, ranking: Ranking, folder: Path
) -> None:
    address = f"/thumbnail/{rows_by_name(ranking)['red.png']}"
    before = page.get(address).content
    Image.new("RGB", (41, 41), "yellow").save(folder / "red.png")
    assert page.get(address).content != before


def test_thumbnails_are_cached_within_a_limit(ranking: Ranking) -> None:
    """The least recently used ones are dropped."""
    rows = list(ranking.paths)
    size = max(len(Thumbnails(ranking.paths).get(row)) for row in rows)
    thumbnails = Thumbnails(ranking.paths, cache_bytes=2 * size)
    for row in (*rows, rows[0], rows[1]):
        thumbnails.get(row)
    cached = [row for row, _, _ in thumbnails._cache]
    assert cached[-2:] == rows[:2]
    assert sum(map(len, thumbnails._cache.values())) <= 2 * size


def test_large_upload_is_refused_with_a_sentence(
    page: TestClient, fake: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_client, "COG_FILE_BYTES", 1000)
    assert page.get("/api/index").json()["max_picture_bytes"] == 1000
    answer = send_picture(page, bytes(1001))
    assert answer.status_code == 413
    assert answer.json()["error"] == "the picture has more than 1,000 bytes; choose a smaller file"
    assert fake.pictures == 0


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"no JSON", "is not a JSON object"),
        (b"[]", "is not a JSON object"),
        (b"\xff", "is not a JSON object"),
        (b'{"text": 1}', "text is not a string"),
        (b'{"text": "%s"}' % (b"a" * 2001), "2,001 characters; at most 2,000"),
        (b'{"count": 0}', "count is 0; give a number from 1 to 200"),
        (b'{"count": true}', "count is True"),
        (b'{"count": 1e9}', "count is 1000000000.0"),
        (b'{"picture_weight": 2}', "picture_weight is 2; give a number from 0 to 1"),
        (b'{"picture_weight": NaN}', "picture_weight is nan"),
        (b'{"labels": "cat"}', "labels is not a list"),
        (b'{"labels": ["a"], "tag": 1}', "tag is 1; give a number from 0 to 0"),
        (b'{"labels": ["%s"]}' % (b"a" * 201), "more than 200 characters"),
        (json.dumps({"labels": [str(n) for n in range(101)]}).encode(), "101 labels; give at most"),
    ],
)
def test_malformed_request_is_explained(page: TestClient, body: bytes, says: str) -> None:
    answer = page.post("/api/search", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert says in answer.json()["error"]


def test_large_request_is_refused(page: TestClient) -> None:
    headers = {"Content-Type": "application/json"}
    answer = page.post("/api/search", content=bytes(100_001), headers=headers)
    assert answer.status_code == 413


def test_row_that_is_not_in_the_index_is_explained(page: TestClient) -> None:
    answer = page.post("/api/search", json={"like": 2**40})
    assert (answer.status_code, answer.json()["error"]) == (404, "this picture is not in the index")


def test_request_of_nested_lists_is_refused(page: TestClient) -> None:
    body = b"[" * 90_000
    answer = page.post("/api/search", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400


@pytest.mark.parametrize("row", ["9" * 5000, "x", "-1", "1.0"])
def test_row_that_is_no_number_has_no_thumbnail(page: TestClient, row: str) -> None:
    assert page.get(f"/thumbnail/{row}").status_code == 404


def test_upload_that_is_cut_is_no_error(page: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client raises what the server would print as a traceback."""

    async def disconnected(*arguments: object) -> bytes:
        raise ClientDisconnect

    monkeypatch.setattr(app, "read_body", disconnected)
    assert page.post("/api/picture", content=b"x").status_code == 400


def test_picture_that_was_forgotten_is_explained(page: TestClient) -> None:
    answer = page.post("/api/search", json={"picture": "abc"})
    assert answer.status_code == 410
    assert "send it again" in answer.json()["error"]


# --- when the service fails -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (ServiceError("http://x: refused"), 502, "the service cannot be used: http://x: refused"),
        (RefusedError("not a picture"), 422, "not a picture"),
    ],
)
def test_failure_is_one_sentence_and_the_page_goes_on(
    page: TestClient, fake: FakeClient, error: Exception, status: int, says: str
) -> None:
    fake.error = error
    for answer in (
        page.post("/api/search", json={"text": "red"}),
        page.post("/api/tags", json={"labels": ["red"]}),
        send_picture(page, png((1, 2, 3))),
    ):
        assert (answer.status_code, answer.json()) == (status, {"error": says})
    assert len(find(page)) == len(COLORS)
    fake.error = None
    assert names(find(page, text="red"))[0] == "red.png"


def test_slow_service_is_not_waited_for(
    page: TestClient, fake: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile, what needs no service is answered."""
    monkeypatch.setattr(queries, "SERVICE_SECONDS", 0.2)
    fake.blocked.clear()
    answer = page.post("/api/search", json={"text": "red"})
    assert (answer.status_code, answer.json()["error"]) == (
        502,
        "the service cannot be used: no answer in 0 s",
    )
    assert len(find(page)) == len(COLORS)
    fake.blocked.set()
    assert names(find(page, text="red"))[0] == "red.png"


def test_service_with_another_model_is_explained(page: TestClient, fake: FakeClient) -> None:
    fake.width = WIDTH - 1
    answer = page.post("/api/search", json={"text": "red"})
    assert answer.status_code == 502
    assert "index the pictures again with this model" in answer.json()["error"]


# --- the command ----------------------------------------------------------------------------


def test_serve_without_an_index_says_what_to_run(server: CogServer, tmp_path: Path) -> None:
    arguments = ["--url", server.url, "--port", "0"]
    with pytest.raises(SystemExit, match=r"there is no index .*; run `search\.py index` first"):
        search.main(["serve", *arguments, "--db", str(tmp_path / "none")])
    PictureIndex(tmp_path / "db", Client(server.url).text(PROBE), create=True)
    with pytest.raises(SystemExit, match=r"is empty; run `search\.py index FOLDER` first"):
        search.main(["serve", *arguments, "--db", str(tmp_path / "db")])
    PictureIndex(tmp_path / "other", np.ones(768, np.float32), create=True)
    with pytest.raises(SystemExit, match=r"another model's vectors; name another --db, or delete"):
        search.main(["serve", *arguments, "--db", str(tmp_path / "other")])


def test_serve_without_a_service_ends_with_one_sentence() -> None:
    with pytest.raises(SystemExit, match=r"^search\.py: http://127\.0\.0\.1:9: ConnectionRefused"):
        search.main(["serve", "--url", "http://127.0.0.1:9", "--port", "0"])


def test_serve_explains_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(SystemExit, match=rf"port {port} is in use; choose another with --port"):
            search.main(["serve", "--port", str(port)])


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_serve_explains_a_port_that_does_not_exist(port: str) -> None:
    with pytest.raises(SystemExit, match=f"--port is {port}; give a number from 1 to 65535"):
        search.main(["serve", "--port", port])


@contextlib.contextmanager
def started(*command: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a command that serves the page; yield its process and the page's URL."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell ignores SIGINT for its background jobs, and child processes inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        for line in process.stdout:
            if address := re.search(r"open (http://127\.0\.0\.1:\d+) ", line):
                yield process, address[1]
                break
        else:
            pytest.fail(process.communicate()[1])
    finally:
        process.kill()
        process.communicate()


class SilentService:
    """Answers PROBE like a Cog server, and no other request."""

    def __init__(self) -> None:
        self.waiting = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        output = json.dumps({"status": "succeeded", "output": [1.0] * WIDTH}).encode()
        connection, _ = self._listener.accept()
        answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
        with connection:
            connection.recv(10_000)
            connection.sendall(answer % (len(output), output))
        self._held, _ = self._listener.accept()
        self.waiting.set()


def test_ctrl_c_ends_at_once_without_a_traceback(folder: Path, tmp_path: Path) -> None:
    """Also while a request waits for the service, and while the browser is connected."""
    index = PictureIndex(tmp_path / "db", np.ones(WIDTH, np.float32), create=True)
    index.put([Entry(str(folder / "red.png"), Stamp(1, 1), np.ones(WIDTH, np.float32))])
    service = SilentService()
    command = ["serve", "--url", service.url, "--db", str(tmp_path / "db"), "--port", "0"]
    with started("scripts/search.py", *command) as (process, url), httpx.Client() as browser:
        assert browser.get(url).status_code == 200
        search = {"target": browser.post, "args": (f"{url}/api/search",)}
        search["kwargs"] = {"json": {"text": "a cat"}, "timeout": 30}
        threading.Thread(target=_quietly(**search), daemon=True).start()
        assert service.waiting.wait(30)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=5)
    assert (process.returncode, errors) == (0, "")


def _quietly(target: Callable[..., Any], args: Any, kwargs: Any) -> Callable[[], None]:
    def call() -> None:
        with contextlib.suppress(httpx.HTTPError):
            target(*args, **kwargs)

    return call


def test_page_is_served_on_this_machine_only() -> None:
    with listen(0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


# --- in a browser, with the demo's model ----------------------------------------------------

HOSTILE_NAME = "<img src=x onerror=alert(1)>.png"
DRAWINGS = [*held_out()[::17], *(d for d in held_out() if d.name in ("rocket", "pizza", "guitar"))]
SEARCH = "**/api/search"


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with drawings, one of them with HTML as its name."""
    folder = tmp_path_factory.mktemp("drawings")
    for drawing in DRAWINGS:
        (folder / f"{drawing.name}.png").write_bytes(drawing.png())
    (folder / HOSTILE_NAME).write_bytes(DRAWINGS[0].png())
    return folder


@pytest.fixture(scope="module")
def address(drawings: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run `search.py serve` over the drawings; return the URL of the page."""
    db = tmp_path_factory.mktemp("db")
    with CogServer({"CLIP_WEIGHTS": str(DEMO_MODEL)}) as server:
        server.wait_ready()
        client = Client(server.url)
        index_folder(drawings, client, PictureIndex(db, client.text(PROBE), create=True), 8)
        command = ["serve", "--url", server.url, "--db", str(db), "--port", "0"]
        with started("scripts/search.py", *command) as (_, url):
            yield url


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with running_chromium() as browser:
        yield browser


@pytest.fixture
def tab(chromium: Browser, address: str) -> Iterator[Page]:
    """Open the page. At the end: nothing was requested elsewhere, and the console is empty."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800}, color_scheme="light")
    tab = context.new_page()
    requests: list[str] = []
    complaints: list[str] = []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(address)
    expect(tab.locator(".tile").first).to_be_visible()
    yield tab
    context.close()
    assert complaints == []
    elsewhere = [url for url in requests if not url.startswith((f"{address}/", f"blob:{address}/"))]
    assert elsewhere == []


def search_for(tab: Page, text: str) -> dict[str, Any]:
    """Type a sentence, and return the answer to its last letter."""
    with tab.expect_response(lambda r: text == sent_text(r.request.post_data)) as answer:
        tab.locator("#text").press_sequentially(text)
    return answer.value.json()


def sent_text(body: str | None) -> str | None:
    with contextlib.suppress(ValueError):
        return json.loads(body or "").get("text")
    return None


def expect_results(tab: Page, answer: dict[str, Any]) -> None:
    """Wait until the grid shows an answer."""
    expect(tab.locator("#results .name")).to_have_text([r["name"] for r in answer["results"]])


def drop(tab: Page, path: Path, event: str = "drop") -> None:
    """Drop or paste a file, as the browser reports it to the page."""
    tab.evaluate(
        """([event, name, data]) => {
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            const files = new DataTransfer();
            files.items.add(new File([bytes], name, {type: "image/png"}));
            const options = {bubbles: true, cancelable: true};
            document.body.dispatchEvent(event === "drop"
                ? new DragEvent("drop", {...options, dataTransfer: files})
                : new ClipboardEvent("paste", {...options, clipboardData: files}));
        }""",
        [event, path.name, base64.b64encode(path.read_bytes()).decode()],
    )


def test_typing_shows_pictures_with_similarities(tab: Page) -> None:
    answer = search_for(tab, "pizza")
    expect_results(tab, answer)
    best = answer["results"][0]
    expect(tab.locator(".score").first).to_have_text(f"{best['score']:.3f}")
    image = tab.locator(".tile img").first
    expect(image).to_have_attribute("alt", best["name"])
    expect(image).to_have_js_property("naturalWidth", SIZE)
    expect(tab.locator("#time")).to_have_text(
        re.compile(r"^embedding [\d.]+ ms · search [\d.]+ ms$")
    )
    count = len(DRAWINGS) + 1
    expect(tab.locator("#found")).to_have_text(f"40 of {count} pictures, the most similar first")


def test_late_answer_does_not_replace_a_newer_one(tab: Page) -> None:
    """The answer to the first sentence arrives when that to the second one is shown."""
    tab.evaluate(
        """() => {
            const real = window.fetch;
            window.fetch = async (url, options) => {
                const answer = await real(url, options);
                if (String(options?.body).includes('"rocket"')) {
                    await answer.clone().text();  // all of it has arrived
                    await new Promise((done) => { window.release = done; });
                }
                return answer;
            };
        }"""
    )
    search_for(tab, "rocket")
    tab.locator("#text").clear()
    newer = search_for(tab, "guitar")
    expect_results(tab, newer)
    tab.evaluate("window.release()")
    tab.wait_for_timeout(300)
    expect_results(tab, newer)


@pytest.mark.parametrize("event", ["drop", "paste", "choose"])
def test_picture_is_dropped_pasted_or_chosen(tab: Page, drawings: Path, event: str) -> None:
    """The same picture in the index is first. Removing it shows everything again."""
    path = drawings / "rocket.png"
    if event == "choose":
        tab.locator("#file").set_input_files(path)
    else:
        drop(tab, path, event)
    expect(tab.locator(".score").first).to_have_text("1.000")
    expect(tab.locator(".name").first).to_have_text("rocket.png")
    expect(tab.locator("#preview")).to_have_js_property("complete", True)
    expect(tab.locator("#preview")).not_to_have_js_property("naturalWidth", 0)
    tab.get_by_role("button", name="Remove").click()
    expect(tab.locator(".score").first).to_have_text("")
    expect(tab.locator("#choose")).to_be_visible()


def test_weight_moves_between_sentence_and_picture(tab: Page, drawings: Path) -> None:
    drop(tab, drawings / "rocket.png")
    expect(tab.locator(".name").first).to_have_text("rocket.png")
    expect(tab.get_by_label("Weight")).to_be_hidden()
    search_for(tab, "pizza")
    for weight in ("0", "1"):
        with tab.expect_response(SEARCH) as both:
            tab.get_by_label("Weight").fill(weight)
        expect_results(tab, both.value.json())
        body = json.loads(both.value.request.post_data)
        assert (body["text"], body["picture_weight"]) == ("pizza", float(weight))
    expect(tab.locator(".score").first).to_have_text("1.000")


def test_more_like_this_asks_nothing_of_the_service(tab: Page) -> None:
    search_for(tab, "pizza")
    expect(tab.locator(".score").first).not_to_have_text("")
    name = tab.locator(".name").nth(1).text_content()
    with tab.expect_response(SEARCH) as answer:
        tab.get_by_role("button", name=f"{name} More like this").click()
    body = json.loads(answer.value.request.post_data)
    assert (body["text"], body["picture"]) == ("", None)
    assert body["like"] is not None
    expect(tab.locator(".name").first).to_have_text(name)
    expect(tab.locator(".score").first).to_have_text("1.000")
    expect(tab.locator("#chosen-name")).to_have_text(name)


def test_but_not_and_number_of_results(tab: Page) -> None:
    search_for(tab, "pizza")
    with tab.expect_response(SEARCH) as answer:
        tab.get_by_label("But not …").fill("a face")
    assert json.loads(answer.value.request.post_data)["without"] == "a face"
    expect_results(tab, answer.value.json())
    tab.get_by_role("slider", name="Results").fill("20")
    expect(tab.locator(".tile")).to_have_count(20)


def test_tags_are_counted_and_filter_the_grid(tab: Page) -> None:
    with tab.expect_response("**/api/tags") as answer:
        tab.get_by_label("Tags", exact=True).fill("face, food\nflag")
    counts = {tag["label"]: tag["count"] for tag in answer.value.json()["tags"]}
    assert list(counts) == ["face", "food", "flag"]
    assert sum(counts.values()) == len(DRAWINGS) + 1
    buttons = tab.locator("#tags button")
    expect(buttons).to_have_text([f"{label} {count}" for label, count in counts.items()])
    tab.get_by_role("slider", name="Results").fill("200")
    expect(tab.locator(".tile")).to_have_count(len(DRAWINGS) + 1)
    buttons.nth(2).click()
    expect(buttons.nth(2)).to_have_attribute("aria-pressed", "true")
    expect(tab.locator(".tile")).to_have_count(counts["flag"])
    expect(tab.locator(".tag")).to_have_text(["flag"] * counts["flag"])
    buttons.nth(2).click()
    expect(tab.locator(".tile")).to_have_count(len(DRAWINGS) + 1)


def test_everything_works_with_the_keyboard(tab: Page) -> None:
    tab.get_by_role("slider", name="Results").focus()
    tab.keyboard.press("/")
    expect(tab.get_by_role("searchbox", name="Describe the pictures")).to_be_focused()
    search_for(tab, "a/b")  # no shortcut within the box
    tiles = tab.locator(".tile")
    columns = tab.evaluate("getComputedStyle(results).gridTemplateColumns.split(' ').length")
    for key, focused in (
        ("ArrowDown", 0),
        ("ArrowRight", 1),
        ("ArrowDown", 1 + columns),
        ("ArrowLeft", columns),
        ("ArrowUp", 0),
    ):
        tab.keyboard.press(key)
        expect(tiles.nth(focused)).to_be_focused()
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tab.keyboard.press("ArrowRight")
    name = tab.locator(".name").nth(1).text_content()
    tab.keyboard.press("Enter")
    expect(tab.locator("#chosen-name")).to_have_text(name)
    expect(tab.locator(".name").first).to_have_text(name)
    expect(tiles.first).to_be_focused()
    tab.keyboard.press("Escape")
    expect(tab.locator("#text")).to_be_focused()


def test_screen_reader_is_told_names_and_changes(tab: Page) -> None:
    for role, name in (
        ("searchbox", "Describe the pictures that you look for"),
        ("textbox", "But not …"),
        ("textbox", "Tags"),
        ("slider", "Results"),
        ("list", "Results, the most similar first"),
    ):
        expect(tab.get_by_role(role, name=name)).to_have_count(1)
    expect(tab.locator("#file")).to_have_accessible_name("Like this picture")
    expect(tab.locator("#found")).to_have_attribute("aria-live", "polite")
    expect(tab.locator("#problem")).to_have_attribute("role", "alert")


def test_file_name_is_text(tab: Page) -> None:
    """Not HTML: the hostile name would run a script, and its picture would be requested."""
    tab.get_by_role("slider", name="Results").fill("200")
    expect(tab.locator(".name", has_text=HOSTILE_NAME)).to_have_count(1)
    tab.locator(".tile", has=tab.get_by_alt_text(HOSTILE_NAME)).click()
    expect(tab.locator("#chosen-name")).to_have_text(HOSTILE_NAME)


def test_thumbnails_are_loaded_when_they_come_into_view(tab: Page) -> None:
    requested: list[str] = []
    tab.on("request", lambda request: requested.append(request.url))
    tab.get_by_role("slider", name="Results").fill("200")
    expect(tab.locator(".tile")).to_have_count(len(DRAWINGS) + 1)
    expect(tab.locator(".tile img").first).to_have_js_property("naturalWidth", SIZE)
    tab.wait_for_timeout(300)
    last = tab.locator(".tile img").last
    assert not any(url.endswith(last.get_attribute("src")) for url in requested)
    last.scroll_into_view_if_needed()
    expect(last).to_have_js_property("naturalWidth", SIZE)


def test_colors_follow_the_system(tab: Page) -> None:
    def brightness() -> int:
        color = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(value) for value in re.findall(r"\d+", color)[:3])

    assert brightness() > 600
    tab.emulate_media(color_scheme="dark")
    assert brightness() < 150


def test_page_fits_a_phone(tab: Page) -> None:
    """Nothing is wider than the screen; the options are folded."""
    tab.set_viewport_size({"width": 390, "height": 800})
    expect(tab.get_by_label("Tags", exact=True)).to_be_hidden()
    tab.get_by_text("Picture, exclusion and tags").click()
    tab.get_by_label("Tags", exact=True).fill("face, a quite long label that needs several lines")
    expect(tab.locator("#tags button")).to_have_count(2)
    assert tab.evaluate("document.documentElement.scrollWidth") == 390


def test_failure_is_shown_until_the_service_is_back(chromium: Browser, address: str) -> None:
    """The page repeats its request by itself."""
    tab = chromium.new_page()
    tab.goto(address)
    refusals = [{"error": "http://localhost:8000: refused"}] * 2

    def answer(route: Any) -> None:
        if refusals and sent_text(route.request.post_data) == "rocket":
            route.fulfill(status=502, json=refusals.pop())
        else:
            route.continue_()

    tab.route(SEARCH, answer)
    tab.fill("#text", "rocket")
    expect(tab.get_by_role("alert")).to_have_text("http://localhost:8000: refused; trying again")
    expect(tab.get_by_role("alert")).to_be_hidden(timeout=15_000)
    expect(tab.locator(".score").first).not_to_have_text("")
    assert refusals == []
    tab.close()


def test_large_picture_is_refused_before_it_is_sent(tab: Page, tmp_path: Path) -> None:
    with (tmp_path / "huge.png").open("wb") as huge:
        huge.truncate(78_642_433)
    tab.locator("#file").set_input_files(tmp_path / "huge.png")
    says = "huge.png has more than 78,642,432 bytes; choose a smaller file"
    expect(tab.get_by_role("alert")).to_have_text(says)


# --- the demo -------------------------------------------------------------------------------


def test_demo_serves_the_page_over_its_drawings(tmp_path: Path) -> None:
    """scripts/demo --page starts everything, and Ctrl-C ends everything."""
    with started("scripts/demo.py", "--page", "--port", "0") as (process, url):
        index = httpx.get(f"{url}/api/index").json()
        assert index["pictures"] == len(held_out())
        found = httpx.post(f"{url}/api/search", json={"text": "rocket", "count": 3}, timeout=60)
        assert len(found.json()["results"]) == 3
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        assert process.returncode == 0


def test_demo_indexes_its_drawings_again_for_another_model(
    fake: FakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And keeps them for the same one."""
    monkeypatch.setattr(demo_page, "held_out", lambda: held_out()[:3])
    folder, db = tmp_path / "drawings", tmp_path / "db"
    for width, pictures in ((WIDTH, 3), (WIDTH, 3), (WIDTH - 1, 6)):
        fake.width = width
        index = demo_page.index_drawings(fake, folder, db)
        assert len(index.paths()) == 3
        assert fake.pictures == pictures
