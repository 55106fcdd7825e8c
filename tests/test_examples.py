"""The examples people copy, run as they stand: those of README.md and examples/api/README.md.

Only addresses are exchanged: `http://localhost:5000` is the real Cog server, `your-site.example` a
listener, and `api.replicate.com` a stand-in that asks for what Replicate's API asks for and
forwards to the real server. What Replicate itself does is not tested.
"""

from __future__ import annotations

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

from conftest import ROOT
from local_server import CogServer

PAGES = [ROOT / "README.md", ROOT / "examples" / "api" / "README.md"]
FENCE = re.compile(r"^```(sh|python|js)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TOKEN, VERSION = "a-token", "0123abcd"


@dataclass(frozen=True)
class Example:
    """One fence: its place, its language and its text."""

    place: str
    language: str
    code: str

    @property
    def webhook(self) -> bool:
        return "your-site.example" in self.code

    @property
    def replicate(self) -> bool:
        return "api.replicate.com" in self.code


def examples(page: Path) -> list[Example]:
    """The page's fences in Python and JavaScript, and those that call curl."""
    text = page.read_text()
    found = []
    for match in FENCE.finditer(text):
        language, code = match.groups()
        if language != "sh" or "curl " in code:
            line = text.count("\n", 0, match.start()) + 1
            found.append(Example(f"{page.relative_to(ROOT)}:{line}", language, code))
    return found


API = examples(PAGES[1])
README = examples(PAGES[0])


class _Handler(http.server.BaseHTTPRequestHandler):
    """JSON in, JSON out, nothing on the terminal."""

    def log_message(self, *arguments: Any) -> None:
        pass

    def read(self) -> dict[str, Any]:
        return dict(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def serve(handler: type[_Handler]) -> http.server.ThreadingHTTPServer:
    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    return listening


@dataclass
class World:
    """Where the examples' addresses lead, and what arrived there."""

    server: CogServer
    replicate_url: str = ""
    hook_url: str = ""
    arrived: queue.Queue[dict[str, Any]] = field(default_factory=queue.Queue)
    polled: int = 0

    def run(self, example: Example, directory: Path) -> str:
        """Run the example in `directory`; what it printed, or what `vector` holds as JSON."""
        code = example.code
        for written, meant in (
            ("http://localhost:5000", self.server.url),
            ("https://api.replicate.com", self.replicate_url),
            ("https://your-site.example/clip", self.hook_url),
        ):
            code = code.replace(written, meant)
        if example.language == "sh":
            command = ["bash", "-euo", "pipefail", "-c", code]
        elif example.language == "python":
            if "vector = " in code:
                code += "\nprint(json.dumps(vector))\n"
            command = [sys.executable, "-c", code]
        else:
            if "const vector = " in code:
                code += "\nconsole.log(JSON.stringify(vector));\n"
            (directory / "example.mjs").write_text(code)
            command = [node(), "example.mjs"]
        done = subprocess.run(
            command,
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "REPLICATE_API_TOKEN": TOKEN, "CLIP_VERSION": VERSION},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def node() -> str:
    """Node.js; where it is missing the test is skipped, but not where everything must run."""
    found = shutil.which("node")
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("node is missing; the JavaScript examples need it")
        pytest.skip("node is missing; the JavaScript examples need it")
    return found


@pytest.fixture(scope="module")
def world(server: CogServer) -> Iterator[World]:
    here = World(server)

    class Hook(_Handler):
        def do_POST(self) -> None:
            here.arrived.put(self.read())
            self.answer(200, {})

    class Replicate(_Handler):
        """Knows one model. What has no webhook is done at the second look, as after a cold boot."""

        results: dict[str, dict[str, Any]] = {}  # noqa: RUF012

        def refused(self) -> bool:
            if self.headers["Authorization"] == f"Bearer {TOKEN}":
                return False
            self.answer(401, {"detail": "You did not pass a valid authentication token"})
            return True

        def do_POST(self) -> None:
            body = self.read()
            if self.refused():
                return
            if self.path != "/v1/predictions" or body.get("version") != VERSION:
                self.answer(422, {"detail": "no such version"})
                return
            name = f"p{len(self.results)}"
            urls = {"get": f"{here.replicate_url}/v1/predictions/{name}"}
            self.results[name] = {**here.server.predict(**body["input"]), "id": name, "urls": urls}
            if "webhook" in body:
                assert body["webhook_events_filter"] == ["completed"]
                here.arrived.put(self.results[name])
            # curl is not written to look again: it gets what a warm model gives.
            elif self.headers["User-Agent"].startswith("curl"):
                self.answer(201, self.results[name])
                return
            self.answer(201, {"id": name, "status": "starting", "output": None, "urls": urls})

        def do_GET(self) -> None:
            if not self.refused():
                here.polled += 1
                self.answer(200, self.results[self.path.rsplit("/", 1)[1]])

    hook, replicate = serve(Hook), serve(Replicate)
    here.hook_url = f"http://127.0.0.1:{hook.server_port}/clip"
    here.replicate_url = f"http://127.0.0.1:{replicate.server_port}"
    try:
        yield here
    finally:
        for listening in (hook, replicate):
            listening.shutdown()
            listening.server_close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where a reader stands: a checkout with a photograph of their own."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    shutil.copyfile(ROOT / "examples" / "cat.jpg", tmp_path / "photo.jpg")
    return tmp_path


def expected(world: World, example: Example) -> list[float]:
    """The vector that the example asks for: of photo.jpg, or of its one text."""
    if "photo.jpg" in example.code:
        import base64

        photo = base64.b64encode((ROOT / "examples" / "cat.jpg").read_bytes()).decode()
        return list(world.server.predict(image=f"data:image/jpeg;base64,{photo}")["output"])
    return list(world.server.predict(text="a red bicycle")["output"])


def assert_close(vector: Any, wanted: list[float]) -> None:
    """Flat, and equal up to what company in a batch changes."""
    assert isinstance(vector, list)
    assert len(vector) == len(wanted)
    assert vector == pytest.approx(wanted, abs=2e-5)


def test_every_language_has_every_kind() -> None:
    """Server and Replicate, waiting and called back, in curl, Python and JavaScript."""
    kinds = {(example.language, example.replicate, example.webhook) for example in API}
    assert len(kinds) == len(API) == 12


@pytest.mark.parametrize("example", API, ids=lambda example: example.place)
def test_an_example_brings_the_vector(world: World, directory: Path, example: Example) -> None:
    """What it prints, what `vector` holds, or what the webhook gets is the server's own vector."""
    looked = world.polled
    printed = world.run(example, directory)
    if example.webhook:
        told = world.arrived.get(timeout=60)
        assert told["status"] == "succeeded"
        if not example.replicate:
            assert f'"{told["id"]}"' in example.code
        vector = told["output"]
        assert world.arrived.empty()
    else:
        answer = json.loads(printed)
        vector = answer["output"] if example.language == "sh" else answer
        again = example.replicate and example.language != "sh"
        assert world.polled - looked == int(again)
    assert_close(vector, expected(world, example))


@pytest.mark.parametrize(
    "example",
    [example for example in README if example.language != "python"],
    ids=lambda example: example.place,
)
def test_the_readme_brings_the_vector(world: World, directory: Path, example: Example) -> None:
    """curl and JavaScript of the README."""
    printed = world.run(example, directory)
    answer = json.loads(printed)
    assert_close(answer["output"] if example.language == "sh" else answer, expected(world, example))


def test_the_readmes_python_runs_from_top_to_bottom(world: World, directory: Path) -> None:
    """Its Python in one go, as read: vectors, their cosine, and a search in LanceDB.

    The photograph that is searched for finds itself first.
    """
    code = "\n".join(example.code for example in README if example.language == "python")
    code += "\nprint(json.dumps([picture, sentence, cosine(picture, sentence), found]))\n"
    whole = Example("README.md", "python", code)
    picture, sentence, cosine, found = json.loads(world.run(whole, directory).splitlines()[-1])
    assert len(picture) == len(sentence) == 768
    length = sum(a * a for a in picture) ** 0.5 * sum(b * b for b in sentence) ** 0.5
    assert cosine == pytest.approx(
        sum(a * b for a, b in zip(picture, sentence, strict=True)) / length, abs=1e-6
    )
    assert found[0] == "cat.jpg"
