"""The whole service under load from wrk, beside others that serve the same weights.

(a) is transformers in a synchronous Cog predictor, as Replicate's own CLIP model is written; (b) is
infinity-emb. All three are up at once and loaded in turn.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

import publish_weights
from benchmarks import model
from benchmarks.bucket import filled_bucket
from benchmarks.captions import captions
from benchmarks.cold_start import peer
from benchmarks.peers import convert
from benchmarks.peers.infinity import infinity, install
from benchmarks.report import Figure
from clip_embed import batching
from local_server import CACHE, ROOT, SCHEMA, CogServer

LOAD = Path(__file__).resolve().parent / "load.lua"
CONNECTIONS = (1, 32)
KINDS = ("text", "image")
# On two cores a batch of 32 images, as infinity-emb makes them, takes most of a minute.
SECONDS = {("text", 1): 8, ("text", 32): 8, ("image", 1): 20, ("image", 32): 120}
TIMEOUT = 180
JSON = {"Content-Type": "application/json"}
LONE = 40  # predictions of one connection whose metrics are looked at


@dataclass(frozen=True)
class Server:
    """One contender. text, image: the body of a request for a caption, or for a data: URI."""

    name: str
    url: str
    text: str
    image: str

    def bodies(self, kind: str) -> list[str]:
        """One request body a line."""
        template = json.loads(getattr(self, kind))
        return [
            json.dumps(template).replace("%", value)
            for value in (captions(200) if kind == "text" else photographs())
        ]


@dataclass(frozen=True)
class Load:
    """What wrk saw: answers other than 200 (refused), and connections lost (broken)."""

    good: int
    refused: int
    broken: int
    seconds: float
    p50: float
    p95: float
    p99: float


def photographs() -> list[str]:
    """As data: URIs."""
    return [
        f"data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}"
        for path in sorted((ROOT / "examples").glob("*.jpg"))
    ]


def run(runs: int) -> tuple[str, list[Figure]]:
    """Everything `bench.py http` prints, and its figures."""
    if shutil.which("wrk") is None:
        raise SystemExit("bench.py http: wrk is not installed (Debian's package of that name)")
    install()
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        directory = Path(folder)
        with servers(directory) as contenders:
            loads = {
                (server.name, kind, connections): [
                    load(server, kind, connections, directory) for _ in range(runs)
                ]
                for kind in KINDS
                for connections in CONNECTIONS
                for server in contenders
            }
            lone = lone_text(contenders[0])
        direct = direct_text(directory, 5 * runs)
    lines = []
    figures = []
    for kind in KINDS:
        for connections in CONNECTIONS:
            table, rates = _table(
                kind, connections, [(s.name, loads[s.name, kind, connections]) for s in contenders]
            )
            lines += [table, ""]
            figures += rates
    return "\n".join([*lines, *lone, *direct]), figures


@contextlib.contextmanager
def servers(directory: Path) -> Iterator[list[Server]]:
    """The contenders, ready, each with the weights of `random:0`."""
    published = publish_weights.read_model("random:0", publish_weights.DEFAULT_MODEL)
    publish_weights.publish(published, publish_weights.Directory(str(directory / "ours")))
    for_peers = directory / "transformers"
    for_peers.mkdir()
    config = convert.ClipConfig.from_open_clip(published.config["model_cfg"])
    convert.write_transformers(for_peers, config, published.tensors)
    convert.for_older_transformers(for_peers)
    del published
    cog = {"text": '{"input": {"text": "%"}}', "image": '{"input": {"image": "%"}}'}
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(CogServer({"CLIP_WEIGHTS": str(directory / "ours")}))
        ours.wait_ready()
        with filled_bucket(peers=True) as url:
            other = stack.enter_context(
                peer(
                    "transformers_predict.py",
                    {"STORAGE_EMULATOR_HOST": url},
                    _plain_schema(directory / "schema.json"),
                )
            )
            other.wait_ready()
        third = stack.enter_context(infinity(for_peers, directory / "infinity.log"))
        openai = '{"model": "clip", "modality": "%s", "input": ["%%"]}'
        yield [
            Server("this service", f"{ours.url}/predictions", **cog),
            Server("(a) transformers, one at a time, in Cog", f"{other.url}/predictions", **cog),
            Server("(b) infinity-emb", third, openai % "text", openai % "image"),
        ]


def _plain_schema(path: Path) -> Path:
    """That of the same inputs after a plain `cog build`, in which the output is a list."""
    schema = json.loads(SCHEMA.read_text())
    schema["components"]["schemas"]["Output"] = {
        "title": "Output",
        "type": "array",
        "items": {"type": "number"},
    }
    path.write_text(json.dumps(schema))
    return path


def load(server: Server, kind: str, connections: int, directory: Path) -> Load:
    """`connections` clients that each send the next request once they have an answer."""
    bodies = directory / "bodies"
    bodies.write_text("\n".join(server.bodies(kind)) + "\n")

    def wrk(clients: int, seconds: int) -> Load:
        # What wrk abandoned before holds its place until the server has noticed, or has done it.
        time.sleep(2)
        # An answer 200 may say that a prediction failed: wrk counts it all the same.
        answer = httpx.post(
            server.url, content=server.bodies(kind)[0], timeout=TIMEOUT, headers=JSON
        ).json()
        vector = answer["output"] if "output" in answer else answer["data"][0]["embedding"]
        if len(vector) != 768:
            raise SystemExit(f"{server.name} does not embed: {str(answer)[:300]}")
        command = ["wrk", "--threads", "1", "--connections", str(clients)]
        command += ["--timeout", f"{TIMEOUT}s", "--script", str(LOAD), "--latency", server.url]
        command += ["--duration", f"{seconds}s", "--", str(bodies)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return Load(**json.loads(done.stdout.splitlines()[-1]))

    wrk(min(connections, 4), 3)
    result = wrk(connections, SECONDS[kind, connections])
    print(f"  {kind}, {connections:>2} connections, {server.name}: {result}", flush=True)
    return result


def lone_text(server: Server) -> list[str]:
    """What a prediction costs beside the forward pass, by the service's own metrics."""
    beside = []
    with httpx.Client(timeout=60) as client:
        for body in server.bodies("text")[:LONE]:
            metrics = client.post(server.url, content=body, headers=JSON).json()["metrics"]
            beside.append(1e3 * metrics["predict_time"] - metrics["encode_ms"])
    return [
        f"predict_time minus encode time, one text at a time: {statistics.median(beside):.1f} ms"
        f" (median of {LONE})."
    ]


def direct_text(folder: Path, runs: int) -> list[str]:
    """One text at a time without a server: by a direct call, and through the batcher."""
    embedder, tokenizer = model.ours(folder)
    batcher = batching.Batcher()
    lane = batching.Lane(embedder.embed_texts, 1024, lambda tokens: tokens.end + 1)
    direct, batched = [], []

    async def measure() -> None:
        for text in captions(runs):
            tokens = tokenizer.tokenize(text)
            begin = time.perf_counter()
            batcher.run(lambda tokens=tokens: embedder.embed_texts([tokens]))
            middle = time.perf_counter()
            await batcher.submit(lane, tokens)
            direct.append(middle - begin)
            batched.append(time.perf_counter() - middle)

    asyncio.run(measure())
    one, other = statistics.median(direct[3:]), statistics.median(batched[3:])
    return [
        f"One text by a direct call {1e3 * one:.1f} ms, through the batcher {1e3 * other:.1f} ms"
        f" ({other / one:.2f}×)."
    ]


def _table(
    kind: str, connections: int, loads: list[tuple[str, list[Load]]]
) -> tuple[str, list[Figure]]:
    rows, figures = [], []
    plural = "s" if connections > 1 else ""
    for name, each in loads:
        rates = tuple(load.good / load.seconds for load in each)
        title = f"{kind}, {connections} connection{plural}: {name}"
        figures.append(Figure(title, rates, "predictions/s", more_is_better=True))
        mine, figure = figures[0], figures[-1]
        p50, p95, p99 = (
            statistics.median(getattr(load, field) for load in each)
            for field in ("p50", "p95", "p99")
        )
        better = ""
        if figure is not mine:
            better = f"{figure.ratio_to(mine):.2f}×" if figure.median else "it answered none"
        rows.append(
            f"| {name} | {figure.median:,.1f} | {p50:,.0f} | {p95:,.0f} | {p99:,.0f}"
            f" | {sum(load.refused for load in each)} | {sum(load.broken for load in each)}"
            f" | {better} |"
        )
    head = (
        f"| {kind}, {connections} connection{plural} | predictions/s | p50 ms | p95 ms | p99 ms"
        " | other than 200 | broken | ours is better by |"
    )
    return "\n".join([head, "|---" * 8 + "|", *rows]), figures
