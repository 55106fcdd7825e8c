"""Run the code examples of README.md, docs/search.md and examples/api/README.md.

Only addresses are replaced: `http://localhost:5000` by the real Cog server, `your-site.example` by
a webhook receiver, and `api.replicate.com` by a fake API that checks the token and the version and
forwards to the real server. Replicate's own service is not tested.
"""

from __future__ import annotations

import base64
import email
import http.server
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from scripts.lib.cog_server import CogServer
from tests.helpers.paths import ROOT

FENCE = re.compile(r"^```(sh|python|js)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TOKEN, VERSION = "a-token", "0123abcd"


@dataclass(frozen=True)
class Example:
    """One code block. location: file and line."""

    location: str
    language: str
    code: str

    @property
    def webhook(self) -> bool:
        return "your-site.example" in self.code

    @property
    def replicate(self) -> bool:
        return "api.replicate.com" in self.code or "import replicate" in self.code


def examples(page: Path) -> list[Example]:
    """Return the page's code blocks in Python and JavaScript, and those that call curl."""
    text = page.read_text()
    found = []
    for match in FENCE.finditer(text):
        language, code = match.groups()
        if language != "sh" or "curl " in code:
            line = text.count("\n", 0, match.start()) + 1
            found.append(Example(f"{page.relative_to(ROOT)}:{line}", language, code))
    return found


README = examples(ROOT / "README.md")
SEARCH = examples(ROOT / "docs" / "search.md")
API = examples(ROOT / "examples" / "api" / "README.md")


class _Handler(http.server.BaseHTTPRequestHandler):
    """Receives and sends JSON; logs nothing."""

    def log_message(self, *arguments: Any) -> None:
        pass

    def read(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def serve(handler: type[_Handler]) -> http.server.ThreadingHTTPServer:
    """Start a server on a free port."""
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    return running


@dataclass
class World:
    """The servers behind the examples' addresses.

    webhook_bodies: received by the webhook receiver. polls: requests for a running prediction.
    """

    server: CogServer
    replicate_url: str = ""
    webhook_url: str = ""
    webhook_bodies: queue.Queue[dict[str, Any]] = field(default_factory=queue.Queue)
    polls: int = 0

    def run(self, example: Example, directory: Path) -> str:
        """Run the example in `directory`; return its output, or its variable `vector` as JSON."""
        code = example.code
        for address, replacement in (
            ("http://localhost:5000", self.server.url),
            ("https://api.replicate.com", self.replicate_url),
            ("https://your-site.example/clip", self.webhook_url),
            ("you/clip-embed:VERSION", f"you/clip-embed:{VERSION}"),
        ):
            code = code.replace(address, replacement)
        if example.language == "sh":
            command = ["bash", "-euo", "pipefail", "-c", code]
        elif example.language == "python":
            if "vector = " in code:
                code += "\nimport json\nprint(json.dumps(vector))\n"
            command = [sys.executable, "-c", code]
        else:
            if "const vector = " in code:
                code += "\nconsole.log(JSON.stringify(vector));\n"
            (directory / "example.mjs").write_text(code)
            command = [node(), "example.mjs"]
        completed = subprocess.run(
            command,
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=120,
            env={
                **os.environ,
                "REPLICATE_API_TOKEN": TOKEN,
                "REPLICATE_BASE_URL": self.replicate_url,  # read by Replicate's client
                "CLIP_VERSION": VERSION,
            },
        )
        assert completed.returncode == 0, completed.stderr
        return completed.stdout


def node() -> str:
    """Return the path of Node.js. Without it the test is skipped, and in CI it fails."""
    found = shutil.which("node")
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("node is missing; the JavaScript examples need it")
        pytest.skip("node is missing; the JavaScript examples need it")
    return found


@pytest.fixture(scope="module")
def world(server: CogServer) -> Iterator[World]:
    world = World(server)

    class Webhook(_Handler):
        def do_POST(self) -> None:
            world.webhook_bodies.put(json.loads(self.read()))
            self.answer(200, {})

    class Replicate(_Handler):
        """Has one model, which is cold: a prediction is done when it is polled for the first time.

        Exceptions: a webhook is called at once, and curl, which cannot poll, gets its result.
        """

        results: dict[str, dict[str, Any]] = {}  # noqa: RUF012
        files: dict[str, str] = {}  # noqa: RUF012

        def refused(self) -> bool:
            if self.headers["Authorization"] == f"Bearer {TOKEN}":
                return False
            self.answer(401, {"detail": "You did not pass a valid authentication token"})
            return True

        def do_POST(self) -> None:
            body = self.read()
            if self.refused():
                return
            if self.path == "/v1/files":
                self.answer(201, self.store_file(body))
                return
            request = json.loads(body)
            if self.path != "/v1/predictions" or request.get("version") != VERSION:
                self.answer(422, {"detail": "no such version"})
                return
            name = f"p{len(self.results)}"
            prediction = {
                "id": name,
                "model": "you/clip-embed",
                "version": VERSION,
                "urls": {"get": f"{world.replicate_url}/v1/predictions/{name}"},
            }
            inputs = {
                name: self.files.get(value, value) for name, value in request["input"].items()
            }
            self.results[name] = {**world.server.predict(**inputs), **prediction}
            if "webhook" in request:
                assert request["webhook_events_filter"] == ["completed"]
                world.webhook_bodies.put(self.results[name])
            elif self.headers["User-Agent"].startswith("curl"):
                self.answer(201, self.results[name])
                return
            self.answer(201, {**prediction, "status": "starting", "output": None})

        def store_file(self, body: bytes) -> dict[str, Any]:
            """Store an upload as a data URI, which is the input when its URL is sent."""
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            [part] = email.message_from_bytes(head + body).get_payload()
            url = f"{world.replicate_url}/v1/files/{len(self.files)}"
            encoded = base64.b64encode(part.get_payload(decode=True)).decode()
            self.files[url] = f"data:{part.get_content_type()};base64,{encoded}"
            return {
                "id": "f",
                "name": part.get_filename(),
                "content_type": part.get_content_type(),
                "size": len(body),
                "etag": "",
                "checksums": {},
                "metadata": {},
                "created_at": "2026-01-01T00:00:00Z",
                "urls": {"get": url},
            }

        def do_GET(self) -> None:
            if self.refused():
                return
            if self.path == f"/v1/models/you/clip-embed/versions/{VERSION}":
                version = {"id": VERSION, "created_at": "2026-01-01T00:00:00Z", "cog_version": ""}
                self.answer(200, {**version, "openapi_schema": {}})
                return
            world.polls += 1
            self.answer(200, self.results[self.path.rsplit("/", 1)[1]])

    webhook, replicate = serve(Webhook), serve(Replicate)
    world.webhook_url = f"http://127.0.0.1:{webhook.server_port}/clip"
    world.replicate_url = f"http://127.0.0.1:{replicate.server_port}"
    try:
        yield world
    finally:
        for running in (webhook, replicate):
            running.shutdown()
            running.server_close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The reader's working directory: a checkout, with a photo.jpg."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    shutil.copyfile(ROOT / "examples" / "cat.jpg", tmp_path / "photo.jpg")
    return tmp_path


def expected(world: World, example: Example) -> list[float]:
    """Return the vector that the example requests: of photo.jpg, or of the one text."""
    if "photo.jpg" in example.code:
        photo = base64.b64encode((ROOT / "examples" / "cat.jpg").read_bytes()).decode()
        return list(world.server.predict(image=f"data:image/jpeg;base64,{photo}")["output"])
    return list(world.server.predict(text="a red bicycle")["output"])


def assert_close(vector: Any, wanted: list[float]) -> None:
    """Check that `vector` is a flat list, and equal within what batching changes."""
    assert isinstance(vector, list)
    assert len(vector) == len(wanted)
    assert vector == pytest.approx(wanted, abs=2e-5)


def test_api_examples_cover_every_combination() -> None:
    """Server and Replicate, with and without a webhook, in curl, Python and JavaScript."""
    kinds = {(example.language, example.replicate, example.webhook) for example in API}
    assert len(kinds) == len(API) == 12


@pytest.mark.parametrize("example", API, ids=lambda example: example.location)
def test_api_example_returns_the_vector(world: World, directory: Path, example: Example) -> None:
    """Its output, its variable `vector` or the body of the webhook is the server's vector."""
    polls_before = world.polls
    printed = world.run(example, directory)
    if example.webhook:
        body = world.webhook_bodies.get(timeout=60)
        assert body["status"] == "succeeded"
        if not example.replicate:
            assert f"/predictions/{body['id']}" in example.code
        vector = body["output"]
        assert world.webhook_bodies.empty()
    else:
        answer = json.loads(printed)
        vector = answer["output"] if example.language == "sh" else answer
        must_poll = example.replicate and example.language != "sh"
        assert world.polls - polls_before == int(must_poll)
    assert_close(vector, expected(world, example))


@pytest.mark.parametrize(
    "example",
    [example for example in README if example.language != "python"],
    ids=lambda example: example.location,
)
def test_readme_example_returns_the_vector(world: World, directory: Path, example: Example) -> None:
    """The README's examples in curl and JavaScript."""
    printed = world.run(example, directory)
    answer = json.loads(printed)
    assert_close(answer["output"] if example.language == "sh" else answer, expected(world, example))


def test_readme_python_gives_vectors_that_search_md_finds(world: World, directory: Path) -> None:
    """README's Python for a server gives two vectors and their cosine similarity; the example of
    docs/search.md continues it, and finds the photograph itself first."""
    [readme] = [e.code for e in README if e.language == "python" and "localhost:5000" in e.code]
    [search] = [e.code for e in SEARCH if e.language == "python"]
    code = readme + search
    code += (
        "\nimport json\nprint(json.dumps([picture, sentence, cosine(picture, sentence), found]))"
    )
    whole = Example("README.md", "python", code)
    picture, sentence, cosine, found = json.loads(world.run(whole, directory).splitlines()[-1])
    assert len(picture) == len(sentence) == 768
    length = sum(a * a for a in picture) ** 0.5 * sum(b * b for b in sentence) ** 0.5
    assert cosine == pytest.approx(
        sum(a * b for a, b in zip(picture, sentence, strict=True)) / length, abs=1e-6
    )
    assert found[0] == "cat.jpg"


def test_readme_python_for_replicates_client_returns_the_vector(
    world: World, directory: Path
) -> None:
    """A text, and a file that the client uploads."""
    polls_before = world.polls
    [example] = [e for e in README if "import replicate" in e.code]
    vector = json.loads(world.run(example, directory))
    assert world.polls - polls_before == 2
    assert_close(vector, expected(world, example))
