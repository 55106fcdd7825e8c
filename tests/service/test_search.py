"""Search a folder of pictures through a running service: scripts/search.py and its modules."""

from __future__ import annotations

import base64
import http.server
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import stamina
from PIL import Image

from scripts import search
from scripts.lib import embedding_client, picture_index
from scripts.lib.cog_server import CogServer
from scripts.lib.embedding_client import Client, RefusedError, ServiceError
from scripts.lib.picture_index import PROBE, Entry, IndexMismatchError, PictureIndex, Stamp
from scripts.lib.search import index_folder
from tests.helpers.paths import PHOTOS, ROOT

CAT = ROOT / "examples" / "cat.jpg"
NO_PICTURE = b"these bytes are not a picture"


def run(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run scripts/search.py like a user."""
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "search.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
    )


Run = Callable[..., Any]


@pytest.fixture
def run_here(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs scripts/search.py in this process; its result has out and err."""

    def run_here(*arguments: str) -> Any:
        capsys.readouterr()
        search.main(arguments)
        return capsys.readouterr()

    return run_here


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder and a subfolder with the example photographs."""
    inner = tmp_path / "photos" / "more"
    inner.mkdir(parents=True)
    for number, photo in enumerate(PHOTOS):
        shutil.copy(photo, inner if number % 2 else inner.parent)
    return inner.parent


class FakeService:
    """Answers like Cog, or, below /v1, like Replicate. The vector depends only on the input."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        """All that arrived: method, path, headers, body."""
        self.busy = 0
        """Number of requests that are answered with `busy_status` first."""
        self.busy_status = 409
        self.busy_headers: dict[str, str] = {}
        self.dropped = 0
        """Number of requests that get no answer: the connection is closed."""
        self.largest = 10**9
        """Bytes of a body beyond which it is answered with 413."""
        self.slow = False
        """Whether Replicate answers "processing", until the prediction is polled."""
        self.delay = 0.0
        """Seconds until a request is answered."""
        self.files: list[bytes] = []
        """Bodies of uploads."""
        self.predicted: dict[str, dict[str, Any]] = {}
        """Replicate's predictions, by path."""
        self.urls_host: str | None = None
        """Origin of the URLs in Replicate's answers, if it is not this server's."""
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                fake.requests.append(("POST", self.path, dict(self.headers), body))
                if fake.dropped:
                    fake.dropped -= 1
                    self.close_connection = True
                    return
                self.answer(*fake.post(self.path, body))

            def do_GET(self) -> None:
                fake.requests.append(("GET", self.path, dict(self.headers), b""))
                self.answer(200, fake.predicted[self.path])

            def answer(self, status: int, document: dict[str, Any]) -> None:
                data = json.dumps(document).encode()
                self.send_response(status)
                for name, value in fake.busy_headers.items() if status >= 400 else ():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        # The interval is how long close() waits for the thread.
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def post(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        time.sleep(self.delay)
        if self.busy:
            self.busy -= 1
            return self.busy_status, {"detail": "Already running the maximum number of predictions"}
        if len(body) > self.largest:
            return 413, {"detail": "too large"}
        if path == "/v1/files":
            self.files.append(body)
            return 201, self.file_document()
        inputs = json.loads(body)["input"]
        _, _, encoded = inputs.get("image", "").partition("base64,")
        if base64.b64decode(encoded) == NO_PICTURE:
            document = {"status": "failed", "output": None, "error": "this is not a picture"}
        else:
            [value] = inputs.values()
            seed = int.from_bytes(value.encode()[-60:], "big") % 2**32
            vector = np.random.default_rng(seed).normal(size=768).tolist()
            document = {"status": "succeeded", "output": vector, "error": None}
        if not path.startswith("/v1/"):
            return 200, document
        number = len(self.predicted)
        url = f"/v1/predictions/{number}"
        document |= {
            "id": str(number),
            "model": "me/clip",
            "version": "abc123",
            "urls": {"get": (self.urls_host or self.url) + url},
        }
        self.predicted[url] = document
        if self.slow:
            return 201, {**document, "status": "processing", "output": None, "error": None}
        return 201, document

    def file_document(self) -> dict[str, Any]:
        """The last upload, as Replicate's files API describes it."""
        return {
            "id": str(len(self.files)),
            "name": "file",
            "content_type": "image/png",
            "size": len(self.files[-1]),
            "etag": "",
            "checksums": {},
            "metadata": {},
            "created_at": "2026-01-01T00:00:00Z",
            "urls": {"get": f"{self.url}/v1/files/{len(self.files)}"},
        }

    def predictions(self) -> list[dict[str, Any]]:
        """The bodies of all requests for a prediction."""
        return [
            json.loads(body) for _, path, _, body in self.requests if path.endswith("/predictions")
        ]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def fake() -> Iterator[FakeService]:
    service = FakeService()
    yield service
    service.close()


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("REPLICATE_API_TOKEN", "r8_secret")
    return "r8_secret"


# --- with the real service ------------------------------------------------------------------


def test_index_then_query_with_a_picture_finds_that_picture_first(
    server: CogServer, folder: Path, tmp_path: Path, run_here: Run
) -> None:
    """`query` with an indexed picture ranks it first with cosine 1 and writes a contact sheet;
    `query` with a text works in the same way."""
    db, sheet = str(tmp_path / "db"), tmp_path / "sheet.png"
    indexed = run("index", str(folder), "--url", server.url, "--db", db)
    assert indexed.returncode == 0, indexed.stderr
    assert f"{len(PHOTOS)} embedded, 0 already there, 0 gone, 0 skipped" in indexed.stdout
    found = run_here("query", str(CAT), "--url", server.url, "--db", db, "--sheet", str(sheet))
    lines = found.out.splitlines()
    assert re.fullmatch(r" +1  1\.0000  .*/cat\.jpg", lines[0])
    scores = [float(line.split()[1]) for line in lines[: len(PHOTOS)]]
    assert scores == sorted(scores, reverse=True)
    with Image.open(sheet) as picture:
        assert picture.width > 600
    found = run_here("query", "a bicycle", "--url", server.url, "--db", db, "--sheet", str(sheet))
    assert len(found.out.splitlines()) == len(PHOTOS) + 1


def test_scores_are_the_cosine_similarities_of_the_services_vectors(
    server: CogServer, folder: Path, tmp_path: Path
) -> None:
    client = Client(server.url)
    index = PictureIndex(tmp_path / "db", client.text(PROBE), create=True)
    index_folder(folder, client, index, 4)
    query = client.text("a rocket")
    for hit in index.nearest(query, 3):
        vector = client.image(Path(hit.path))
        cosine = query @ vector / np.linalg.norm(query) / np.linalg.norm(vector)
        assert hit.score == pytest.approx(cosine, abs=1e-5)


def test_index_skips_and_lists_files_that_the_service_refuses(
    server: CogServer, folder: Path, tmp_path: Path, run_here: Run
) -> None:
    """Broken files are listed with the service's error message; all others are embedded."""
    (folder / "broken.jpg").write_bytes(NO_PICTURE)
    (folder / "empty.png").write_bytes(b"")
    printed = run_here("index", str(folder), "--url", server.url, "--db", str(tmp_path / "db"))
    assert f"{len(PHOTOS)} embedded, 0 already there, 0 gone, 2 skipped" in printed.out
    for name in ("broken.jpg", "empty.png"):
        assert re.search(rf"skipped .*/{name}: .+", printed.err)


def test_index_skips_a_file_that_is_too_large_for_a_request(
    server: CogServer, folder: Path, tmp_path: Path, run_here: Run
) -> None:
    """It is listed at once, with both sizes and the way out; all others are embedded."""
    with (folder / "huge.tif").open("wb") as huge:
        huge.truncate(150_000_000)
    begin = time.monotonic()
    printed = run_here("index", str(folder), "--url", server.url, "--db", str(tmp_path / "db"))
    assert time.monotonic() - begin < 60  # a broken connection is retried for 120 s
    assert f"{len(PHOTOS)} embedded, 0 already there, 0 gone, 1 skipped" in printed.out
    assert re.search(
        r"skipped .*/huge\.tif: .* 150,000,000 bytes, .* 78,642,432 .* scale", printed.err
    )


def test_largest_file_that_is_sent_reaches_the_service(server: CogServer) -> None:
    """The limit of the client is that of Cog: the service itself refuses these bytes."""
    with pytest.raises(RefusedError, match="not an image"):
        Client(server.url).image_bytes(bytes(embedding_client.COG_FILE_BYTES), "huge.tif")


# --- the index ------------------------------------------------------------------------------


def test_interrupted_index_continues_where_it_stopped(fake: FakeService, tmp_path: Path) -> None:
    """After Ctrl-C, a second run embeds only the remaining pictures. Each is indexed once."""
    folder, db = tmp_path / "photos", tmp_path / "db"
    folder.mkdir()
    for number in range(200):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number:03}.png")
    fake.delay = 0.02
    command = ["index", str(folder), "--url", fake.url, "--db", str(db), "--in-flight", "4"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "search.py"), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell ignores SIGINT for its background jobs, and child processes inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while len(fake.predictions()) < 60 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "run the same command again to continue" in errors
    first = len(fake.predictions()) - 1  # without the probe
    assert 0 < first < 200
    fake.requests.clear()
    fake.delay = 0.0
    done = run(*command)
    embedded, kept = (
        int(n) for n in re.findall(r"(\d+) embedded, (\d+) already there", done.stdout)[0]
    )
    assert embedded + kept == 200
    assert len(fake.predictions()) - 1 == embedded
    # Only the requests in flight at the time of the signal may be lost.
    assert first - 8 <= kept <= first
    index = PictureIndex(db, Client(fake.url).text(PROBE), create=False)
    assert sorted(index.stamps()) == sorted(str(path) for path in folder.iterdir())
    assert len(index.nearest(np.ones(768, np.float32), 1000)) == 200


def test_index_embeds_changed_files_again_and_removes_deleted_ones(
    fake: FakeService, folder: Path, tmp_path: Path
) -> None:
    client = Client(fake.url)
    index = PictureIndex(tmp_path / "db", client.text(PROBE), create=True)
    index_folder(folder, client, index, 4)
    cat = next(folder.rglob("cat.jpg"))
    rocket = next(folder.rglob("rocket.jpg"))
    Image.new("RGB", (8, 8), "red").save(cat)
    rocket.unlink()
    report = index_folder(folder, client, index, 4)
    assert (report.embedded, report.kept, report.removed) == (1, len(PHOTOS) - 2, 1)
    [best] = index.nearest(client.image(cat), 1)
    assert (best.path, round(best.score, 4)) == (str(cat), 1.0)
    assert str(rocket) not in index.stamps()


def test_indexing_a_second_folder_keeps_the_first(
    fake: FakeService, folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other it's"
    other.mkdir()
    shutil.copy(CAT, other)
    client = Client(fake.url)
    index = PictureIndex(tmp_path / "db", client.text(PROBE), create=True)
    index_folder(folder, client, index, 4)
    report = index_folder(other, client, index, 4)
    assert (report.embedded, report.removed) == (1, 0)
    assert len(index.stamps()) == len(PHOTOS) + 1
    (other / "cat.jpg").unlink()
    assert index_folder(other, client, index, 4).removed == 1


def test_index_of_another_model_is_refused(tmp_path: Path) -> None:
    """An index never mixes vectors of two models, even if both have the same dimension."""
    rng = np.random.default_rng(0)
    mine, other = rng.normal(size=(2, 768)).astype(np.float32)
    PictureIndex(tmp_path / "db", mine, create=True)
    PictureIndex(tmp_path / "db", mine * 3, create=False)  # the length does not matter
    with pytest.raises(IndexMismatchError, match="another model's vectors"):
        PictureIndex(tmp_path / "db", other, create=True)
    with pytest.raises(IndexMismatchError, match="another model's vectors"):
        PictureIndex(tmp_path / "db", mine[:512], create=False)


def test_query_without_an_index_says_what_to_do(fake: FakeService, tmp_path: Path) -> None:
    """The error names the command to run, and no empty index is created."""
    with pytest.raises(SystemExit, match=r"run `search\.py index` first"):
        search.main(["query", "a cat", "--url", fake.url, "--db", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("quantized", [False, True])
def test_nearest_ranks_by_exact_cosine_similarity(
    quantized: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Order and scores equal NumPy's, with and without quantized vectors, and also for entries that
    were added after quantization."""
    monkeypatch.setattr(picture_index, "QUANTIZED_FROM", 2000 if quantized else 10**9)
    rng = np.random.default_rng(1)
    probe, query, *vectors = rng.normal(size=(3002, 768)).astype(np.float32)
    index = PictureIndex(tmp_path / "db", probe, create=True)
    entries = [Entry(str(i), Stamp(1, i), vector) for i, vector in enumerate(vectors)]
    index.put(entries[:2500])
    index.compact()
    assert bool(index._table.list_indices()) == quantized
    index.put(entries[2500:])
    cosines = np.array(vectors) @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    best = np.argsort(-cosines)[:20]
    hits = index.nearest(query, 20)
    assert [hit.path for hit in hits] == [str(i) for i in best]
    assert [hit.score for hit in hits] == pytest.approx(cosines[best].tolist(), abs=1e-5)
    assert len(index.nearest(probe, 5000)) == 3000


# --- Replicate's API ------------------------------------------------------------------------


def test_replicate_gets_token_version_and_wait_header(fake: FakeService, token: str) -> None:
    vector = Client(fake.url + "/v1/predictions", version="abc123").text("a cat")
    assert vector.shape == (768,)
    [(method, path, headers, body)] = fake.requests
    assert (method, path) == ("POST", "/v1/predictions")
    assert headers["Authorization"] == f"Bearer {token}"
    assert headers["Prefer"].startswith("wait")
    assert json.loads(body) == {"version": "abc123", "input": {"text": "a cat"}}


def test_unfinished_prediction_is_polled(fake: FakeService, token: str) -> None:
    """An answer that says "processing" is polled until it is done, with the token."""
    client = Client(fake.url + "/v1/deployments/me/clip/predictions")
    vector = client.text("a cat")
    assert fake.requests[-1][1] == "/v1/deployments/me/clip/predictions"
    fake.slow = True
    np.testing.assert_array_equal(client.text("a cat"), vector)
    method, path, headers, _ = fake.requests[-1]
    assert (method, path) == ("GET", "/v1/predictions/1")
    assert headers["Authorization"] == f"Bearer {token}"


def test_prediction_that_never_finishes_is_an_error(
    fake: FakeService, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_client, "poll", stamina.RetryingCaller(attempts=2, wait_max=0.01))
    fake.slow = True
    monkeypatch.setattr(fake, "predicted", _Running())
    with pytest.raises(ServiceError, match="no result after 120 s: 0"):
        Client(fake.url + "/v1/predictions", "v").text("a cat")


class _Running(dict[str, dict[str, Any]]):
    """Predictions that are processing whenever they are looked at."""

    def __getitem__(self, url: str) -> dict[str, Any]:
        return {**super().__getitem__(url), "status": "processing"}


def test_token_is_sent_to_no_other_host(fake: FakeService, token: str) -> None:
    """Neither a Cog server nor a host that an answer points to receives the token."""
    Client(fake.url).text("a cat")
    assert "Authorization" not in fake.requests[-1][2]
    other = FakeService()
    fake.slow, fake.urls_host = True, other.url
    Client(fake.url + "/v1/predictions", "v").text("a cat")
    other.close()
    assert other.requests == []


def test_large_files_are_uploaded_to_replicate(
    fake: FakeService, token: str, tmp_path: Path
) -> None:
    """A file over 256 KiB is uploaded unchanged, and its URL is the input. Cog gets a data URI."""
    large = tmp_path / "noise.png"
    noise = np.random.default_rng(0).integers(0, 255, (400, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(large)
    client = Client(fake.url + "/v1/predictions", "v")
    client.image(large)
    client.image(CAT)
    assert large.read_bytes() in fake.files[0]
    sent = [body["input"]["image"] for body in fake.predictions()]
    assert sent[0] == f"{fake.url}/v1/files/1"
    assert sent[1].startswith("data:image/jpeg;base64,")
    Client(fake.url).image(large)
    assert fake.predictions()[-1]["input"]["image"].startswith("data:image/png;base64,")


def test_upload_is_retried(fake: FakeService, token: str, tmp_path: Path) -> None:
    """The second attempt sends the whole file again."""
    data = bytes(300_000)
    fake.busy, fake.busy_status = 1, 503
    Client(fake.url + "/v1/predictions", "v").image_bytes(data, "black.bmp")
    assert [data in body for _, path, _, body in fake.requests if path == "/v1/files"] == [True] * 2


def test_index_through_replicate(
    fake: FakeService, token: str, folder: Path, tmp_path: Path, run_here: Run
) -> None:
    """The whole command works with predictions that have to be polled, and with failed ones."""
    fake.slow = True
    (folder / "bad.jpg").write_bytes(NO_PICTURE)
    command = ["--url", fake.url + "/v1/predictions", "--version", "abc"]
    printed = run_here("index", str(folder), *command, "--db", str(tmp_path / "db"))
    assert f"{len(PHOTOS)} embedded, 0 already there, 0 gone, 1 skipped" in printed.out
    assert "bad.jpg: this is not a picture" in printed.err
    assert {body["version"] for body in fake.predictions()} == {"abc"}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/v1/predictions", "needs the model's version: --version"),
        ("/v1/collections", "is not an address for predictions"),
    ],
)
def test_incomplete_replicate_address_is_an_error(path: str, message: str, token: str) -> None:
    with pytest.raises(ServiceError, match=message):
        Client("https://api.replicate.com" + path)


def test_replicate_without_token_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes before anything is sent."""
    monkeypatch.delenv("REPLICATE_API_TOKEN", raising=False)
    with pytest.raises(ServiceError, match="REPLICATE_API_TOKEN"):
        Client("https://api.replicate.com/v1/predictions", "v")


# --- sizes ----------------------------------------------------------------------------------


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """Lower the limit of a file to 1,000 bytes."""
    monkeypatch.setattr(embedding_client, "COG_FILE_BYTES", 1000)
    return 1000


def test_file_over_the_limit_is_not_read(
    fake: FakeService, tmp_path: Path, small_limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither into memory nor into a request. One at the limit is sent."""
    client, picture = Client(fake.url), tmp_path / "picture.bmp"
    picture.write_bytes(bytes(small_limit))
    client.image(picture)
    picture.write_bytes(bytes(small_limit + 1))
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("the file is read"))
    with pytest.raises(RefusedError, match=r"the file has 1,001 bytes, .* holds 1,000 "):
        client.image(picture)
    assert len(fake.requests) == 1


def test_bytes_over_the_limit_are_not_sent(fake: FakeService, small_limit: int) -> None:
    with pytest.raises(RefusedError, match="1,001 bytes"):
        Client(fake.url).image_bytes(bytes(small_limit + 1), "black.bmp")
    assert fake.requests == []


def test_limit_of_cog_does_not_apply_to_replicate(
    fake: FakeService, token: str, small_limit: int
) -> None:
    Client(fake.url + "/v1/predictions", "v").image_bytes(bytes(300_000), "black.bmp")
    assert len(fake.files) == 1


def test_index_skips_files_that_a_proxy_answers_with_413(
    fake: FakeService, folder: Path, tmp_path: Path, run_here: Run
) -> None:
    """A proxy in front of the service may have a lower limit."""
    fake.largest = 60_000
    large = [photo.name for photo in PHOTOS if photo.stat().st_size * 4 / 3 > fake.largest]
    assert 0 < len(large) < len(PHOTOS)
    printed = run_here("index", str(folder), "--url", fake.url, "--db", str(tmp_path / "db"))
    embedded = len(PHOTOS) - len(large)
    assert f"{embedded} embedded, 0 already there, 0 gone, {len(large)} skipped" in printed.out
    for name in large:
        assert re.search(
            rf"skipped .*/{name}: 413 (Request Entity|Content) Too Large: ", printed.err
        )
    assert len(fake.requests) == 1 + len(PHOTOS)


# --- retries and errors ---------------------------------------------------------------------


@pytest.fixture(params=["", "/v1/predictions"], ids=["Cog", "Replicate"])
def client(request: pytest.FixtureRequest, fake: FakeService, token: str) -> Client:
    """A client of `fake`, through either API."""
    return Client(fake.url + request.param, "abc123")


@pytest.mark.parametrize("status", [409, 425, 429, 500, 502, 503, 504])
def test_busy_service_is_retried(fake: FakeService, client: Client, status: int) -> None:
    fake.busy, fake.busy_status = 3, status
    assert client.text("a cat").shape == (768,)
    assert len(fake.requests) == 4


def test_dropped_connection_is_retried(fake: FakeService, client: Client) -> None:
    fake.dropped = 2
    assert client.text("a cat").shape == (768,)
    assert len(fake.requests) == 3


def test_retry_after_is_honoured(fake: FakeService, client: Client) -> None:
    fake.busy, fake.busy_status, fake.busy_headers = 1, 429, {"Retry-After": "1"}
    begin = time.monotonic()
    client.text("a cat")
    assert 1.0 <= time.monotonic() - begin < 2.0


def test_retries_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry-After is limited to 60 s, and retries to 120 s."""
    response = httpx.Response(429, headers={"Retry-After": "3600"})
    request = httpx.Request("POST", "http://localhost")
    error = httpx.HTTPStatusError("busy", request=request, response=response)
    assert embedding_client._backoff(error) == 60.0
    assert "timeout=120.0" in repr(embedding_client.retry)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_refused_input_is_not_retried(fake: FakeService, client: Client, status: int) -> None:
    fake.busy, fake.busy_status = 1, status
    with pytest.raises(RefusedError, match=rf"^{status} .*maximum number of predictions"):
        client.text("a cat")
    assert len(fake.requests) == 1


def test_text_that_is_not_unicode_is_refused(client: Client) -> None:
    with pytest.raises(RefusedError, match="not valid Unicode"):
        client.text("caf\udce9")


@pytest.mark.parametrize("status", [302, 401, 403, 404])
def test_service_that_cannot_be_used_is_not_retried(
    fake: FakeService, client: Client, status: int
) -> None:
    fake.busy, fake.busy_status = 1, status
    with pytest.raises(ServiceError, match=rf"^{fake.url}(/v1)?/predictions: {status} "):
        client.text("a cat")
    assert len(fake.requests) == 1


def test_failed_prediction_raises_the_services_message(fake: FakeService, client: Client) -> None:
    with pytest.raises(RefusedError, match=r"^this is not a picture$"):
        client.image_bytes(NO_PICTURE, "bad.jpg")
    assert len(fake.requests) == 1


@pytest.mark.parametrize("answer", ["[]", "{}", "no JSON", '{"status": "succeeded"}'])
def test_unexpected_answer_is_an_error(
    fake: FakeService, client: Client, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address that answers 200 but is not this service ends with one sentence."""
    monkeypatch.setattr(json, "dumps", lambda document, **_: answer)
    with pytest.raises(ServiceError, match=r"does not answer like|is not a vector") as raised:
        client.text("a cat")
    assert "\n" not in str(raised.value)


def test_refused_connection_fails_at_once(tmp_path: Path) -> None:
    """The command ends with one sentence, without retries or a stack trace."""
    begin = time.monotonic()
    done = run("index", str(tmp_path), "--url", "http://127.0.0.1:9", "--db", str(tmp_path / "db"))
    assert time.monotonic() - begin < 30
    assert done.returncode == 1
    assert done.stderr.startswith("search.py: http://127.0.0.1:9: ConnectionRefusedError")
    assert len(done.stderr.splitlines()) == 1


def test_proxies_of_the_environment_are_not_used(
    fake: FakeService, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert client.text("a cat").shape == (768,)
