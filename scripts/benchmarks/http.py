"""Load the whole service with wrk, and two other servers with the same weights.

(a) is transformers in a synchronous Cog predictor, written like Replicate's own CLIP model; (b) is
infinity-emb. All three servers run at the same time, and are loaded in turn.
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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from clip_embed.batching import Batcher, BatchQueue
from clip_embed.model.batch_limits import SERVICE_LIMITS
from clip_embed.model.config import ClipConfig
from scripts.benchmarks.bucket import filled_bucket
from scripts.benchmarks.captions import captions
from scripts.benchmarks.cold_start import peer
from scripts.benchmarks.model import load_ours
from scripts.benchmarks.peers import convert
from scripts.benchmarks.peers.infinity import infinity, install
from scripts.benchmarks.report import Figure, Section
from scripts.lib.cog_server import CACHE, ROOT, SCHEMA, CogServer
from scripts.lib.storage import open_storage
from scripts.publishing import DEFAULT_MODEL
from scripts.publishing.model import read_model
from scripts.publishing.publish import publish

WRK_SCRIPT = Path(__file__).resolve().parent / "load.lua"
CONNECTIONS = (1, 32)
KINDS = ("text", "image")
# On two cores a batch of 32 images, as infinity-emb makes them, takes most of a minute.
SECONDS = {("text", 1): 8, ("text", 32): 8, ("image", 1): 20, ("image", 32): 120}
TIMEOUT = 180  # seconds
DIMENSIONS = 768
JSON = {"Content-Type": "application/json"}
OVERHEAD_REQUESTS = 40
WARM_UP_CALLS = 3


@dataclass(frozen=True)
class Server:
    """One contender. text, image: the request body, with % for a caption or a data: URI."""

    name: str
    url: str
    text: str
    image: str

    def bodies(self, kind: str) -> list[str]:
        """Return JSON documents of one line each."""
        template = json.dumps(json.loads(self.text if kind == "text" else self.image))
        values = captions(200) if kind == "text" else _photographs()
        return [template.replace("%", value) for value in values]


@dataclass(frozen=True)
class Load:
    """A run of wrk, as load.lua reports it.

    refused: responses other than 200. broken: connections that were lost or timed out.
    p50, p95, p99: milliseconds.
    """

    ok: int
    refused: int
    broken: int
    seconds: float
    p50: float
    p95: float
    p99: float


def run(runs: int) -> list[Section]:
    """Run `bench.py http`."""
    if shutil.which("wrk") is None:
        raise SystemExit("bench.py http: wrk is not installed (Debian's package of that name)")
    install()
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        directory = Path(folder)
        with _servers(directory) as servers:
            sections = [
                _load_in_turn(servers, kind, connections, directory, runs)
                for kind in KINDS
                for connections in CONNECTIONS
            ]
            sections.append(_overhead_of_server(servers[0]))
        return [*sections, _overhead_of_batcher(directory, 5 * runs)]


@contextlib.contextmanager
def _servers(directory: Path) -> Iterator[list[Server]]:
    """Start the contenders, this service first, with the weights of `random:0`."""
    _write_models(directory)
    schema = _write_plain_schema(directory / "schema.json")
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(CogServer({"CLIP_WEIGHTS": str(directory / "ours")}))
        ours.wait_ready()
        with filled_bucket() as url:
            environment = {"STORAGE_EMULATOR_HOST": url}
            other = stack.enter_context(peer("transformers_predict.py", environment, schema))
            other.wait_ready()
        infinity_url = stack.enter_context(
            infinity(directory / "transformers", directory / "infinity.log")
        )
        cog = {"text": '{"input": {"text": "%"}}', "image": '{"input": {"image": "%"}}'}
        openai = '{"model": "clip", "modality": "%s", "input": ["%%"]}'
        yield [
            Server("this service", f"{ours.url}/predictions", **cog),
            Server("(a) transformers, one at a time, in Cog", f"{other.url}/predictions", **cog),
            Server("(b) infinity-emb", infinity_url, openai % "text", openai % "image"),
        ]


def _write_models(directory: Path) -> None:
    """Write the weights for this service and for infinity-emb; (a) reads them from a bucket."""
    model = read_model("random:0", DEFAULT_MODEL)
    publish(model, open_storage(str(directory / "ours")))
    for_infinity = directory / "transformers"
    for_infinity.mkdir()
    config = ClipConfig.from_open_clip(model.config["model_cfg"])
    convert.write_transformers(for_infinity, config, model.tensors)
    convert.convert_for_transformers_4(for_infinity)


def _write_plain_schema(path: Path) -> Path:
    """Write the schema of a plain `cog build`, in which the output is a list."""
    schema = json.loads(SCHEMA.read_text())
    schema["components"]["schemas"]["Output"] = {
        "title": "Output",
        "type": "array",
        "items": {"type": "number"},
    }
    path.write_text(json.dumps(schema))
    return path


def _photographs() -> list[str]:
    """Return the example photographs as data: URIs."""
    return [
        f"data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}"
        for path in sorted((ROOT / "examples").glob("*.jpg"))
    ]


def _load_in_turn(
    servers: Sequence[Server], kind: str, connections: int, directory: Path, runs: int
) -> Section:
    bodies = directory / "bodies"
    loads: dict[str, list[Load]] = {}
    for server in servers:
        bodies.write_text("\n".join(server.bodies(kind)) + "\n")
        loads[server.name] = []
        for _ in range(runs):
            _wrk(server, kind, min(connections, 4), 3, bodies)  # warm-up
            load = _wrk(server, kind, connections, SECONDS[kind, connections], bodies)
            print(f"  {kind}, {connections:>2} connections, {server.name}: {load}", flush=True)
            loads[server.name].append(load)
    title = f"{kind}, {connections} connection{'s' if connections > 1 else ''}"
    return _table(title, loads)


def _wrk(server: Server, kind: str, connections: int, seconds: int, bodies: Path) -> Load:
    """Load `server` with clients that each send the next request after a response."""
    # Requests that the last run abandoned occupy the server until it notices or finishes them.
    time.sleep(2)
    _check_embedding(server, kind)
    command = ["wrk", "--threads", "1", "--connections", str(connections)]
    command += ["--timeout", f"{TIMEOUT}s", "--script", str(WRK_SCRIPT), "--latency", server.url]
    command += ["--duration", f"{seconds}s", "--", str(bodies)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Load(**json.loads(done.stdout.splitlines()[-1]))


def _check_embedding(server: Server, kind: str) -> None:
    """Raise SystemExit unless `server` embeds: wrk counts a failed prediction with status 200."""
    body = server.bodies(kind)[0]
    answer = httpx.post(server.url, content=body, timeout=TIMEOUT, headers=JSON).json()
    vector = answer["output"] if "output" in answer else answer["data"][0]["embedding"]
    if len(vector) != DIMENSIONS:
        raise SystemExit(f"{server.name} does not embed: {str(answer)[:300]}")


def _table(title: str, loads: dict[str, list[Load]]) -> Section:
    figures = [
        Figure(
            f"{title}: {name}",
            tuple(load.ok / load.seconds for load in each),
            "predictions/s",
            more_is_better=True,
        )
        for name, each in loads.items()
    ]
    ours = figures[0]
    rows = []
    for figure, (name, each) in zip(figures, loads.items(), strict=True):
        latencies = (
            statistics.median(values)
            for values in zip(*((load.p50, load.p95, load.p99) for load in each), strict=True)
        )
        ratio = ""
        if figure is not ours:
            ratio = f"{figure.ratio_to(ours):.2f}×" if figure.median else "no answers"
        cells = [
            f"{figure.median:,.1f}",
            *(f"{latency:,.0f}" for latency in latencies),
            sum(load.refused for load in each),
            sum(load.broken for load in each),
            ratio,
        ]
        rows.append(f"| {name} | {' | '.join(map(str, cells))} |")
    head = (
        f"| {title} | predictions/s | p50 ms | p95 ms | p99 ms | other than 200 | broken"
        " | this service is faster by |"
    )
    return Section("\n".join([head, "|---" * 8 + "|", *rows]), figures)


def _overhead_of_server(server: Server) -> Section:
    """Compare prediction time with encode time, by the service's own metrics."""
    overheads = []
    with httpx.Client(timeout=60) as client:
        for body in server.bodies("text")[:OVERHEAD_REQUESTS]:
            metrics = client.post(server.url, content=body, headers=JSON).json()["metrics"]
            overheads.append(1e3 * metrics["predict_time"] - metrics["encode_ms"])
    return Section(
        "predict_time minus encode time, one text at a time:"
        f" {statistics.median(overheads):.1f} ms (median of {OVERHEAD_REQUESTS})."
    )


def _overhead_of_batcher(folder: Path, calls: int) -> Section:
    """Embed one text at a time without a server: by a direct call, and through the batcher."""
    model = load_ours(folder)
    embedder = model.embedder
    batcher = Batcher()
    texts = BatchQueue(
        embedder.embed_texts, SERVICE_LIMITS["cpu"].tokens, lambda tokens: tokens.eot_index + 1
    )
    direct_seconds, batcher_seconds = [], []

    async def measure() -> None:
        for text in captions(calls):
            tokens = model.tokenizer.tokenize(text)
            begin = time.perf_counter()
            batcher.run_on_device_thread(lambda tokens=tokens: embedder.embed_texts([tokens]))
            middle = time.perf_counter()
            await batcher.submit(texts, tokens)
            direct_seconds.append(middle - begin)
            batcher_seconds.append(time.perf_counter() - middle)

    asyncio.run(measure())
    direct, batched = (
        statistics.median(seconds[WARM_UP_CALLS:]) for seconds in (direct_seconds, batcher_seconds)
    )
    return Section(
        f"One text by a direct call {1e3 * direct:.1f} ms, through the batcher"
        f" {1e3 * batched:.1f} ms ({batched / direct:.2f}×)."
    )
