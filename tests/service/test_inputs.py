"""Test bad inputs: each gives a vector or one clear error within limits of time and memory, and the
service stays healthy. pytest prints a table of the results at the end of the session."""

from __future__ import annotations

import asyncio
import base64
import collections
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import torch

import weights
from clip_embed import embedder
from clip_embed.checkpoint import load
from clip_embed.inputs import preprocess
from clip_embed.startup.cpu_quota import usable_cpus
from scripts.lib.cog_server import CogServer
from tests.helpers import fuzz
from tests.helpers.bad_inputs import images, texts, urls
from tests.helpers.bad_inputs.case import EITHER, MAX_PIXELS, VECTOR, Case
from tests.helpers.paths import ROOT
from tests.helpers.result_tables import INPUTS
from tests.helpers.run_isolated import Outcome

SECONDS = 20.0
"""CPU time allowed per input on a slow machine, in seconds. The slowest input takes under two."""

MEGABYTES = {"at the limit": 280.0, "odd sizes": 280.0}
MEGABYTES_OTHERWISE = 128.0
"""Memory that a process may gain for one input: 24 bytes for each allowed pixel, and 40 MB for the
file and its decoder. Images that are small, or refused for their size, must need less."""

IN_FLIGHT = 8
MEGABYTES_IN_FLIGHT = 60.0
"""Memory per request in flight: a text of 10 MB as a string of wide characters, and its copies."""

IMAGES, TEXTS = list(images.KINDS), list(texts.TEXTS)


def check(case: Case, error: str | None, expected: str) -> None:
    """Assert the expected outcome, and that an error is one sentence that says what to do."""
    if expected == VECTOR:
        assert error is None
    elif expected != EITHER:
        assert error is not None
        assert re.search(expected, error)
    if error is not None and expected not in (texts.LONE_SURROGATE,):  # errors written by Cog
        assert len(error) < 500
        assert "\n" not in error
        assert re.search(r"; (send|save) ", error), error
        assert "Traceback" not in error


def check_kind(cases: list[Case], errors: list[str | None], where: str, seconds: float) -> None:
    """Check all cases of a kind and add a row to the table."""
    refused = sum(error is not None for error in errors)
    row = (where, cases[0].kind, len(cases), len(cases) - refused, refused, seconds)
    INPUTS.append(row)
    for case, error in zip(cases, errors, strict=True):
        expected = case.from_cog if case.from_cog and where == "server" else case.expected
        try:
            check(case, error, expected)
        except AssertionError as wrong:
            pytest.fail(f"{case.kind}: {case.name} should be {expected!r}: {error!r}\n{wrong}")


def of_kind(kind: str) -> list[Case]:
    return [case for case in [*images.cases(), *texts.cases()] if case.kind == kind]


def test_bad_images_are_many_and_distinct() -> None:
    """There are at least 250 images of more than 12 kinds."""
    cases = images.cases()
    assert len({(case.kind, case.name) for case in cases}) == len(cases) >= 250
    assert len({case.kind for case in cases}) > 12


@pytest.mark.parametrize("target", ["image", "text"])
def test_mutated_bad_inputs_give_a_result_or_an_error(target: str) -> None:
    """A fixed number of runs of the fuzzer's targets, from its seeds."""
    rng, seeds = random.Random(target), list(fuzz.seeds(target))
    for _ in range(400):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 8)):
            start = rng.randrange(len(data) + 1)
            data[start : start + rng.randint(0, 4)] = rng.randbytes(rng.randint(0, 4))
        fuzz.TARGETS[target](bytes(data))


# --- each input in its own process -----------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Write all inputs to files, in the layout of tests/helpers/run_isolated.py."""
    directory = tmp_path_factory.mktemp("inputs")
    (directory / "tokenizer.json").write_bytes((tiny_model / "tokenizer.json").read_bytes())
    listed: dict[str, Any] = {"max_pixels": MAX_PIXELS}
    for modality, cases in (("images", images.cases()), ("texts", texts.cases())):
        listed[modality] = []
        for case in cases:
            name = f"{len(listed[modality])}-{modality}/{case.name}"
            (directory / name).parent.mkdir()
            if isinstance(case.content, bytes):
                (directory / name).write_bytes(case.content)
            else:
                (directory / name).write_text(json.dumps(case.content))
            listed[modality].append(name)
    (directory / "inputs.json").write_text(json.dumps(listed))
    return directory


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> dict[str, list[tuple[Case, Outcome]]]:
    """Prepare every input in its own process and group the outcomes by kind."""
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "run_isolated.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    found = [Outcome(**json.loads(line)) for line in done.stdout.splitlines()]
    by_kind = collections.defaultdict(list)
    for case, outcome in zip([*images.cases(), *texts.cases()], found, strict=True):
        assert outcome.name.endswith(case.name)
        by_kind[case.kind].append((case, outcome))
    return by_kind


@pytest.mark.parametrize("kind", [*IMAGES, *TEXTS])
def test_input_is_prepared_or_refused_within_limits(
    kind: str, outcomes: dict[str, list[tuple[Case, Outcome]]]
) -> None:
    """No input crashes, raises another error, or exceeds the limits of time and memory."""
    pairs = outcomes[kind]
    errors = [outcome.error or outcome.lost for _, outcome in pairs]
    seconds = sum(outcome.seconds for _, outcome in pairs)
    check_kind([case for case, _ in pairs], errors, "alone", seconds)
    for _, outcome in pairs:
        assert outcome.lost is None, outcome
        assert outcome.seconds < SECONDS, outcome
        assert outcome.megabytes < MEGABYTES.get(kind, MEGABYTES_OTHERWISE), outcome


def test_image_error_begins_with_the_file_name(
    outcomes: dict[str, list[tuple[Case, Outcome]]],
) -> None:
    for kind in IMAGES:
        for case, outcome in outcomes[kind]:
            assert outcome.error is None or outcome.error.startswith(f"{case.name} "), outcome


def test_prepared_images_give_finite_vectors(
    folder: Path, outcomes: dict[str, list[tuple[Case, Outcome]]], tiny_model: Path
) -> None:
    published = {
        path.name: path.read_bytes() for path in tiny_model.iterdir() if path.suffix == ".json"
    }
    with weights.pull(str(tiny_model)) as pull:
        loaded = load.load_tensors(pull.blocks(), torch.device("cpu"), torch.float32)
        network = embedder.Embedder.build(published["open_clip_config.json"], loaded)
    prepared = [o.name for kind in IMAGES for _, o in outcomes[kind] if o.error is None]
    assert len(prepared) > 200
    arrays = [np.load(folder / f"{name}.npy") for name in prepared]
    assert {(array.shape, array.dtype.name) for array in arrays} == {((224, 224, 3), "uint8")}
    size = network.config.image_size  # the tiny network's, which is smaller
    for start in range(0, len(arrays), 32):
        corners = [array[:size, :size] for array in arrays[start : start + 32]]
        batch = [preprocess.Pixels(corner, size, size) for corner in corners]
        vectors = network.embed_images(batch)
        assert vectors.shape == (len(batch), 768)
        assert np.isfinite(vectors).all()


# --- all inputs through the real server ------------------------------------------------------


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[CogServer]:
    """Start a server for these tests alone: they check its memory and its files."""
    environment = {
        "CLIP_WEIGHTS": str(tiny_model),
        "CLIP_MAX_IMAGE_PIXELS": str(MAX_PIXELS),
    }
    with CogServer(environment) as running:
        running.wait_ready()
        yield running


def uri(case: Case) -> str:
    return f"data:{case.media_type};base64,{base64.b64encode(case.content).decode()}"


def send_all(server: CogServer, requests: list[dict[str, Any]]) -> list[httpx.Response]:
    """Send all requests, IN_FLIGHT at a time, and return their responses in order."""
    responses: list[httpx.Response | None] = [None] * len(requests)
    pending = iter(range(len(requests)))

    async def client(http: httpx.AsyncClient) -> None:
        for number in pending:
            body = json.dumps({"input": requests[number]})  # lone surrogates become escapes
            responses[number] = await http.post("/predictions", content=body, timeout=120)

    async def all_clients() -> None:
        headers = {"Content-Type": "application/json"}
        async with httpx.AsyncClient(base_url=server.url, headers=headers) as http:
            await asyncio.gather(*(client(http) for _ in range(IN_FLIGHT)))

    asyncio.run(all_clients())
    return [response for response in responses if response is not None]


def worker(server: CogServer) -> psutil.Process:
    assert server.process is not None
    [process] = psutil.Process(server.process.pid).children()
    return process


def peak_megabytes(process: psutil.Process) -> float:
    """Return the peak resident memory of `process`."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    [kilobytes] = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return int(kilobytes) / 1e3


@pytest.fixture(scope="module")
def known(server: CogServer) -> tuple[dict[str, Any], list[float], psutil.Process, float]:
    """Return an input, its vector on a fresh server, the worker process, and its peak memory."""
    photo = (ROOT / "examples" / "cat.jpg").read_bytes()
    inputs = {"image": uri(Case("", "", photo, VECTOR, "image/jpeg"))}
    vector = server.predict(**inputs)["output"]
    return inputs, vector, worker(server), peak_megabytes(worker(server))


def error_of(response: httpx.Response) -> str | None:
    """Return None for a vector of 768 finite floats, else the error, of Cog or of the service."""
    if response.status_code >= 400:  # from Cog itself
        return f"HTTP {response.status_code}: {response.text}"
    document = response.json()
    if document["status"] == "succeeded":
        vector = np.array(document["output"])
        assert vector.shape == (768,)
        assert np.isfinite(vector).all()
        return None
    assert document["status"] == "failed", document
    return str(document["error"])


def check_unharmed(server: CogServer, known: Any) -> None:
    """Assert that the same worker is READY and gives the same vector as before."""
    inputs, vector, process, _ = known
    assert server.health()["status"] == "READY"
    assert worker(server) == process
    assert np.abs(np.array(server.predict(**inputs)["output"]) - vector).max() <= 2e-5


@pytest.mark.parametrize("kind", IMAGES)
def test_server_stays_healthy_after_bad_images(kind: str, server: CogServer, known: Any) -> None:
    """Each image, sent as a data: URI, gives a vector or a failed prediction with its error."""
    cases, started = of_kind(kind), time.monotonic()
    responses = send_all(server, [{"image": uri(case)} for case in cases])
    seconds = time.monotonic() - started
    check_kind(cases, [error_of(response) for response in responses], "server", seconds)
    check_unharmed(server, known)


@pytest.mark.parametrize("kind", TEXTS)
def test_server_stays_healthy_after_bad_texts(kind: str, server: CogServer, known: Any) -> None:
    """Each text gives a vector or an error. Cog itself refuses lone surrogates as invalid JSON."""
    cases, started = of_kind(kind), time.monotonic()
    responses = send_all(server, [{"text": case.content} for case in cases])
    seconds = time.monotonic() - started
    check_kind(cases, [error_of(response) for response in responses], "server", seconds)
    check_unharmed(server, known)


def test_server_stays_healthy_after_bad_image_urls(server: CogServer, known: Any) -> None:
    """Each URL gives an error, and none reads a file of the server."""
    cases, started = urls.cases(), time.monotonic()
    responses = send_all(server, [{"image": case.content} for case in cases])
    seconds = time.monotonic() - started
    check_kind(cases, [error_of(response) for response in responses], "server", seconds)
    check_unharmed(server, known)


def test_peak_memory_is_bounded(server: CogServer, known: Any) -> None:
    """At most one image per core is decoded at a time, beside the requests in flight. This test
    runs after those above, on their server."""
    _, _, process, before = known
    limit = before + usable_cpus() * max(MEGABYTES.values()) + IN_FLIGHT * MEGABYTES_IN_FLIGHT
    assert before < peak_megabytes(process) < limit


def test_no_image_remains_on_disk(server: CogServer, known: Any) -> None:
    """This test runs after those above, on their server."""
    assert not list(Path(server.directory, "tmp").iterdir())
