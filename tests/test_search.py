"""Searching a folder of pictures through a running service: scripts/search.py and its parts."""

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import picture_index
import search
from conftest import PHOTOS, ROOT
from embedding_client import Client, RefusedError, ServiceError
from local_server import CogServer
from picture_index import PROBE, Entry, IndexMismatchError, PictureIndex, Stamp

CAT = ROOT / "examples" / "cat.jpg"


def run(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """scripts/search.py as a user starts it."""
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "search.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The example photographs, in folders of folders."""
    inner = tmp_path / "photos" / "more"
    inner.mkdir(parents=True)
    for number, photo in enumerate(PHOTOS):
        shutil.copy(photo, inner if number % 2 else inner.parent)
    return inner.parent


class FakeService:
    """Answers as Cog or as Replicate does; the vector depends on the input alone.

    requests: everything received, as (method, path, headers, body). busy: how many more requests
    are answered 409 first. late: predictions are "processing" until asked for again.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.busy = 0
        self.late = False
        self.delay = 0.0
        self.files: list[bytes] = []
        self.kept: dict[str, dict[str, Any]] = {}
        self.elsewhere: str | None = None
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                fake.requests.append(("POST", self.path, dict(self.headers), body))
                self.answer(*fake.post(self.path, body))

            def do_GET(self) -> None:
                fake.requests.append(("GET", self.path, dict(self.headers), b""))
                self.answer(200, fake.kept[self.path])

            def answer(self, status: int, document: dict[str, Any]) -> None:
                data = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def post(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        time.sleep(self.delay)
        if self.busy:
            self.busy -= 1
            return 409, {"detail": "Already running the maximum number of predictions"}
        if path == "/v1/files":
            self.files.append(body)
            return 201, {"urls": {"get": f"{self.url}/v1/files/{len(self.files)}"}}
        inputs = json.loads(body)["input"]
        if "not a picture" in base64.b64decode(
            inputs.get("image", "").partition("base64,")[2] or b""
        ).decode(errors="ignore"):
            return 200, {"status": "failed", "error": "this is not a picture"}
        [value] = inputs.values()
        seed = int.from_bytes(value.encode()[-60:], "big") % 2**32
        vector = np.random.default_rng(seed).normal(size=768).tolist()
        done = {"status": "succeeded", "output": vector}
        if not self.late:
            return 201, done
        place = f"/v1/predictions/{len(self.kept)}"
        self.kept[place] = done
        return 201, {
            "status": "processing",
            "output": None,
            "urls": {"get": (self.elsewhere or self.url) + place},
        }

    def predictions(self) -> list[dict[str, Any]]:
        """The bodies of the predictions asked for."""
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


# --- through the real service ---------------------------------------------------------------


def test_index_then_query_with_a_picture_finds_that_picture_first(
    server: CogServer, folder: Path, tmp_path: Path
) -> None:
    """A folder is embedded through the real server, a picture of it found with cosine 1, and a
    contact sheet written; text is asked for in the same way."""
    db, sheet = str(tmp_path / "db"), tmp_path / "sheet.png"
    indexed = run("index", str(folder), "--url", server.url, "--db", db)
    assert indexed.returncode == 0, indexed.stderr
    assert f"{len(PHOTOS)} embedded, 0 already there, 0 gone, 0 skipped" in indexed.stdout
    found = run("query", str(CAT), "--url", server.url, "--db", db, "--sheet", str(sheet))
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert re.fullmatch(r" +1  1\.0000  .*/cat\.jpg", lines[0])
    scores = [float(line.split()[1]) for line in lines[: len(PHOTOS)]]
    assert scores == sorted(scores, reverse=True)
    with Image.open(sheet) as picture:
        assert picture.width > 600
    text = run("query", "a red bicycle", "--url", server.url, "--db", db, "--sheet", str(sheet))
    assert text.returncode == 0, text.stderr
    assert len(text.stdout.splitlines()) == len(PHOTOS) + 1


def test_scores_are_the_cosines_of_the_services_own_vectors(
    server: CogServer, folder: Path, tmp_path: Path
) -> None:
    """What the index answers is what the service's vectors say by themselves."""
    client = Client(server.url)
    index = PictureIndex(tmp_path / "db", client.text(PROBE), create=True)
    search.index_folder(folder, client, index, 4)
    query = client.text("a rocket")
    for hit in index.nearest(query, 3):
        vector = client.image(Path(hit.path))
        cosine = query @ vector / np.linalg.norm(query) / np.linalg.norm(vector)
        assert hit.score == pytest.approx(cosine, abs=1e-5)


def test_files_the_service_refuses_are_named_and_skipped(
    server: CogServer, folder: Path, tmp_path: Path
) -> None:
    """Broken files are reported with the service's own sentence; the others are all embedded."""
    (folder / "broken.jpg").write_bytes(b"these bytes are no picture")
    (folder / "empty.png").write_bytes(b"")
    done = run("index", str(folder), "--url", server.url, "--db", str(tmp_path / "db"))
    assert done.returncode == 0, done.stderr
    assert f"{len(PHOTOS)} embedded, 0 already there, 0 gone, 2 skipped" in done.stdout
    for name in ("broken.jpg", "empty.png"):
        assert re.search(rf"skipped .*/{name}: .+", done.stderr)


# --- resuming -------------------------------------------------------------------------------


def test_interrupted_indexing_goes_on_without_loss_or_repetition(
    fake: FakeService, tmp_path: Path
) -> None:
    """Ctrl-C in the middle keeps what was embedded; the second run asks for the rest alone, and
    each picture is in the index once."""
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
        # Whoever runs the tests in the background has it ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while len(fake.predictions()) < 60 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "run the same command to go on" in errors
    first = len(fake.predictions()) - 1  # less the probe
    assert 0 < first < 200
    fake.requests.clear()
    fake.delay = 0.0
    done = run(*command)
    embedded, kept = (
        int(n) for n in re.findall(r"(\d+) embedded, (\d+) already there", done.stdout)[0]
    )
    assert embedded + kept == 200
    assert len(fake.predictions()) - 1 == embedded
    # Requests under way when the signal came may be lost; nothing else.
    assert first - 8 <= kept <= first
    index = PictureIndex(db, Client(fake.url).text(PROBE), create=False)
    assert sorted(index.stamps()) == sorted(str(path) for path in folder.iterdir())
    assert len(index.nearest(np.ones(768, np.float32), 1000)) == 200


def test_what_changed_is_embedded_again_and_what_is_gone_is_forgotten(
    fake: FakeService, folder: Path, tmp_path: Path
) -> None:
    """The index follows the folder: a rewritten file gets its new vector, a deleted one leaves."""
    client = Client(fake.url)
    index = PictureIndex(tmp_path / "db", client.text(PROBE), create=True)
    search.index_folder(folder, client, index, 4)
    cat = next(folder.rglob("cat.jpg"))
    rocket = next(folder.rglob("rocket.jpg"))
    Image.new("RGB", (8, 8), "red").save(cat)
    rocket.unlink()
    report = search.index_folder(folder, client, index, 4)
    assert (report.embedded, report.kept, report.removed) == (1, len(PHOTOS) - 2, 1)
    [best] = index.nearest(client.image(cat), 1)
    assert (best.path, round(best.score, 4)) == (str(cat), 1.0)
    assert str(rocket) not in index.stamps()


def test_another_folder_is_added_beside_the_first(
    fake: FakeService, folder: Path, tmp_path: Path
) -> None:
    """Indexing one folder does not forget another's pictures."""
    other = tmp_path / "other it's"
    other.mkdir()
    shutil.copy(CAT, other)
    client = Client(fake.url)
    index = PictureIndex(tmp_path / "db", client.text(PROBE), create=True)
    search.index_folder(folder, client, index, 4)
    report = search.index_folder(other, client, index, 4)
    assert (report.embedded, report.removed) == (1, 0)
    assert len(index.stamps()) == len(PHOTOS) + 1
    (other / "cat.jpg").unlink()
    assert search.index_folder(other, client, index, 4).removed == 1


def test_an_index_of_another_model_is_refused(tmp_path: Path) -> None:
    """Vectors of two models never meet in one ranking, even if they are of one length."""
    rng = np.random.default_rng(0)
    mine, other = rng.normal(size=(2, 768)).astype(np.float32)
    PictureIndex(tmp_path / "db", mine, create=True)
    PictureIndex(tmp_path / "db", mine * 3, create=False)  # a length is no difference
    with pytest.raises(IndexMismatchError, match="another model's vectors"):
        PictureIndex(tmp_path / "db", other, create=True)
    with pytest.raises(IndexMismatchError, match="another model's vectors"):
        PictureIndex(tmp_path / "db", mine[:512], create=False)


def test_a_query_without_an_index_says_what_to_do(fake: FakeService, tmp_path: Path) -> None:
    """No empty ranking, and no empty index left behind."""
    done = run("query", "a cat", "--url", fake.url, "--db", str(tmp_path / "none"))
    assert done.returncode == 1
    assert "run `search.py index` first" in done.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("quantized", [False, True])
def test_the_ranking_is_that_of_the_cosines(
    quantized: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same order and scores as every cosine computed by hand, in a small index and in one
    large enough for 8-bit copies, also of what came after those were made."""
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


def test_replicate_is_asked_in_its_own_way(fake: FakeService, token: str) -> None:
    """Bearer token, version, and a request that waits for its result."""
    vector = Client(fake.url + "/v1/predictions", version="abc123").text("a cat")
    assert vector.shape == (768,)
    [(method, path, headers, body)] = fake.requests
    assert (method, path) == ("POST", "/v1/predictions")
    assert headers["Authorization"] == f"Bearer {token}"
    assert headers["Prefer"].startswith("wait")
    assert json.loads(body) == {"version": "abc123", "input": {"text": "a cat"}}


def test_a_result_that_is_not_ready_is_asked_for_again(fake: FakeService, token: str) -> None:
    """An answer that says "processing" is followed to its urls.get, with the token."""
    client = Client(fake.url + "/v1/deployments/me/clip/predictions")
    now = client.text("a cat")
    fake.late = True
    np.testing.assert_array_equal(client.text("a cat"), now)
    method, path, headers, _ = fake.requests[-1]
    assert (method, path) == ("GET", "/v1/predictions/0")
    assert headers["Authorization"] == f"Bearer {token}"


def test_the_token_is_sent_to_no_other_host(fake: FakeService, token: str) -> None:
    """Not to a service that is no Replicate, nor where an answer points elsewhere."""
    Client(fake.url).text("a cat")
    assert "Authorization" not in fake.requests[-1][2]
    fake.late, fake.elsewhere = True, "http://elsewhere.example"
    with pytest.raises(ServiceError, match=r"elsewhere\.example"):
        Client(fake.url + "/v1/predictions", "v").text("a cat")


def test_large_pictures_go_through_replicates_files(
    fake: FakeService, token: str, tmp_path: Path
) -> None:
    """A file too large for a request is uploaded as it is, and its URL is the input."""
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
    Client(fake.url).image(large)  # a local service takes it as it is
    assert fake.predictions()[-1]["input"]["image"].startswith("data:image/png;base64,")


def test_a_folder_is_indexed_through_replicate(
    fake: FakeService, token: str, folder: Path, tmp_path: Path
) -> None:
    """The whole command, against an API that answers before it is done."""
    fake.late = True
    (folder / "bad.jpg").write_bytes(b"not a picture")
    command = ["--url", fake.url + "/v1/predictions", "--version", "abc"]
    done = run("index", str(folder), *command, "--db", str(tmp_path / "db"))
    assert f"{len(PHOTOS)} embedded, 0 already there, 0 gone, 1 skipped" in done.stdout
    assert "bad.jpg: this is not a picture" in done.stderr
    assert {body["version"] for body in fake.predictions()} == {"abc"}


def test_replicate_without_a_token_says_which_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is sent."""
    monkeypatch.delenv("REPLICATE_API_TOKEN", raising=False)
    with pytest.raises(ServiceError, match="REPLICATE_API_TOKEN"):
        Client("https://api.replicate.com/v1/predictions", "v")


# --- the client by itself -------------------------------------------------------------------


def test_a_busy_service_is_asked_again(fake: FakeService) -> None:
    """409 is Cog at its limit: a moment later it has room."""
    fake.busy = 3
    assert Client(fake.url).text("a cat").shape == (768,)
    assert len(fake.requests) == 4


def test_what_the_service_refuses_is_not_asked_again(fake: FakeService, tmp_path: Path) -> None:
    """A failed prediction carries the service's sentence, after one request."""
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"not a picture")
    with pytest.raises(RefusedError, match="this is not a picture"):
        Client(fake.url).image(bad)
    assert len(fake.requests) == 1


def test_nobody_there_is_said_at_once(tmp_path: Path) -> None:
    """A refused connection ends the command with one sentence, not a stack trace."""
    done = run("index", str(tmp_path), "--url", "http://127.0.0.1:9", "--db", str(tmp_path / "db"))
    assert done.returncode == 1
    assert done.stderr.startswith("search.py: http://127.0.0.1:9: ConnectionRefusedError")
