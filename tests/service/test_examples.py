"""Run the code examples of README.md, docs/ and examples/api/README.md.

Only addresses are replaced: `http://localhost:8000` by the real Cog server, `your-site.example` by
a webhook receiver, and `api.replicate.com` by a fake API that checks the token and the version and
forwards to the real server. Replicate's clients are the real ones, its service is not tested.
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
from typing import Any, NoReturn

import numpy as np
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
        return "your-site.example/clip" in self.code

    @property
    def replicate(self) -> bool:
        return "api.replicate.com" in self.code or "import replicate" in self.code.lower()


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
MODEL_PAGE = examples(ROOT / "docs" / "model_page.md")
REPLICATE = [e for e in examples(ROOT / "docs" / "replicate.md") if e.replicate]
JAVASCRIPT_CLIENT = "replicate@1.4.0"


class _Handler(http.server.BaseHTTPRequestHandler):
    """Receives and sends JSON; logs nothing."""

    def log_message(self, *arguments: Any) -> None:
        pass

    def read(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def answer(self, status: int, body: dict[str, Any]) -> None:
        self.send(status, "application/json", json.dumps(body).encode())

    def send(self, status: int, content_type: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
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
    model: what was sent to change the model's page.
    """

    server: CogServer
    replicate_url: str = ""
    webhook_url: str = ""
    webhook_bodies: queue.Queue[dict[str, Any]] = field(default_factory=queue.Queue)
    polls: int = 0
    model: dict[str, str] = field(default_factory=dict)

    def run(self, example: Example, directory: Path) -> str:
        """Run the example in `directory`; return its output, or its variable `vector` as JSON."""
        code = example.code
        for address, replacement in (
            ("http://localhost:8000", self.server.url),
            ("https://api.replicate.com", self.replicate_url),
            ("https://your-site.example/clip", self.webhook_url),
            ("https://your-site.example/photo.jpg", f"{self.replicate_url}/photo.jpg"),
            ("you/clip-embed:VERSION", f"you/clip-embed:{VERSION}"),
            ('"version": "VERSION"', f'"version": "{VERSION}"'),
            ("new Replicate()", f'new Replicate({{ baseUrl: "{self.replicate_url}/v1" }})'),
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
        skip_or_fail("node is missing; the JavaScript examples need it")
    return found


def skip_or_fail(reason: str) -> NoReturn:
    """Skip the test, or fail it in CI, where everything must be installed."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


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
            part, *_ = email.message_from_bytes(head + body).get_payload()
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

        def do_PATCH(self) -> None:
            body = self.read()
            if not self.refused():
                assert self.path == "/v1/models/you/clip-embed"
                world.model = json.loads(body)
                self.answer(200, {})

        def do_GET(self) -> None:
            if self.path == "/photo.jpg":  # a public web site
                self.send(200, "image/jpeg", (ROOT / "examples" / "cat.jpg").read_bytes())
                return
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
    for folder in ("docs", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
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
    """Its output, its variable `vector` or the body of the webhook is the server's vector.

    Also when it runs a second time.
    """
    for _ in range(2):
        assert_close(run_api_example(world, directory, example), expected(world, example))


def run_api_example(world: World, directory: Path, example: Example) -> Any:
    """Run the example and return the vector."""
    polls_before = world.polls
    printed = world.run(example, directory)
    if example.webhook:
        body = world.webhook_bodies.get(timeout=60)
        assert body["status"] == "succeeded"
        if not example.replicate:
            assert f"/predictions/{body['id']}" in example.code
        assert world.webhook_bodies.empty()
        return body["output"]
    answer = json.loads(printed)
    must_poll = example.replicate and example.language != "sh"
    assert world.polls - polls_before == int(must_poll)
    return answer["output"] if example.language == "sh" else answer


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
    docs/search.md continues it, and finds the photograph itself first, also the second time."""
    [readme] = [e.code for e in README if e.language == "python" and "localhost:8000" in e.code]
    [search] = [e.code for e in SEARCH if e.language == "python"]
    code = readme + search
    code += (
        "\nimport json\nprint(json.dumps([picture, sentence, cosine(picture, sentence), found]))"
    )
    whole = Example("README.md", "python", code)
    first, second = (json.loads(world.run(whole, directory).splitlines()[-1]) for _ in range(2))
    assert second == first
    picture, sentence, cosine, found = first
    assert len(picture) == len(sentence) == 768
    length = sum(a * a for a in picture) ** 0.5 * sum(b * b for b in sentence) ** 0.5
    assert cosine == pytest.approx(
        sum(a * b for a, b in zip(picture, sentence, strict=True)) / length, abs=1e-6
    )
    assert found[0] == "cat.jpg"


def test_readme_python_for_replicates_client_returns_the_vector(
    world: World, directory: Path
) -> None:
    """Of a file that the client uploads."""
    polls_before = world.polls
    [example] = [e for e in README if "import replicate" in e.code]
    vector = json.loads(world.run(example, directory))
    assert world.polls - polls_before == example.code.count("replicate.run(")
    assert_close(vector, expected(world, example))


# --- docs/model_page.md and docs/replicate.md -----------------------------------------------


@pytest.fixture(scope="module")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install Replicate's client for JavaScript, and return the folder that holds it."""
    folder = tmp_path_factory.mktemp("npm")
    npm = shutil.which("npm")
    command = [npm or "npm", "install", "--no-audit", "--no-fund", JAVASCRIPT_CLIENT]
    if npm is None or subprocess.run(command, cwd=folder, capture_output=True).returncode:
        skip_or_fail(f"npm cannot install {JAVASCRIPT_CLIENT}, which the example needs")
    return folder / "node_modules"


def run_replicate_example(
    world: World, directory: Path, example: Example, request: pytest.FixtureRequest
) -> Any:
    """Run the example; return the last line that it prints, decoded."""
    if example.language == "js":
        node()
        folder: Path = request.getfixturevalue("node_modules")
        (directory / "node_modules").symlink_to(folder)
    return json.loads(world.run(example, directory).splitlines()[-1])


@pytest.mark.parametrize(
    "example",
    [e for e in MODEL_PAGE + REPLICATE if "vector = " in e.code or e.language == "sh"],
    ids=lambda example: example.location,
)
def test_example_for_replicate_returns_the_vector(
    world: World, directory: Path, example: Example, request: pytest.FixtureRequest
) -> None:
    answer = run_replicate_example(world, directory, example, request)
    assert_close(answer["output"] if example.language == "sh" else answer, expected(world, example))


@pytest.mark.parametrize(
    "example",
    [e for e in MODEL_PAGE if "similarity = " in e.code],
    ids=lambda example: example.location,
)
def test_example_compares_a_text_with_an_image(
    world: World, directory: Path, example: Example, request: pytest.FixtureRequest
) -> None:
    """It prints the cosine similarity of the server's vectors."""
    similarity = run_replicate_example(world, directory, example, request)
    text, image = (
        np.array(expected(world, Example("", "", code))) for code in ("a red bicycle", "photo.jpg")
    )
    cosine = text @ image / (np.linalg.norm(text) * np.linalg.norm(image))
    assert similarity == pytest.approx(cosine, abs=1e-5)


def test_replicate_examples_cover_every_language() -> None:
    """A text, an image and a comparison on the model's page, and the first prediction."""
    assert [e.language for e in MODEL_PAGE] == ["sh", "sh", "python", "js"]
    assert [e.language for e in REPLICATE] == ["sh", "python", "js", "python"]


def test_model_page_is_sent_with_its_fields(world: World, directory: Path) -> None:
    """The lines before the page become fields of the model."""
    [example] = [e for e in REPLICATE if "model_page.md" in e.code]
    world.run(example, directory)
    readme = world.model.pop("readme")
    assert readme.startswith("# CLIP embeddings")
    assert readme in (ROOT / "docs" / "model_page.md").read_text()
    assert sorted(world.model) == ["description", "github_url", "license_url", "paper_url"]
    assert world.model["paper_url"] == "https://arxiv.org/abs/2103.00020"
