"""Inputs that hurt: each gives a vector or one clear error, at a bounded cost, and the service goes
on as before. The table at the end of a test session comes from these tests."""

from __future__ import annotations

import asyncio
import base64
import collections
import json
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

import hurtful
import weights
from clip_embed import embedder, image, tensors
from clip_embed.cpus import usable_cpus
from conftest import INPUTS, ROOT
from each_alone import Outcome
from hurtful import EITHER, VECTOR, Case
from local_server import CogServer

SECONDS = 20.0
"""Of processor time, for one input on a slow machine. What needs most takes under two."""

MEGABYTES = {"at the limit": 280.0, "odd sizes": 280.0}
MEGABYTES_OTHERWISE = 128.0
"""By which a process may grow for one input: 24 bytes for each of the pixels that are allowed, and
40 MB for its file and the decoder; for those that are small, or refused for their size, less."""

IN_FLIGHT = 8
MEGABYTES_IN_FLIGHT = 60.0
"""A text of 10 MB, as a string of wide characters, and its copies on the way."""

IMAGES, TEXTS = list(hurtful.KINDS), list(hurtful.TEXTS)


def check(case: Case, error: str | None, expected: str) -> None:
    """The case came out as it should, and an error is one sentence that says what to do."""
    if expected == VECTOR:
        assert error is None
    elif expected != EITHER:
        assert error is not None
        assert re.search(expected, error)
    if error is not None and expected not in (hurtful.HALF, hurtful.BY_COG):  # which are not ours
        assert len(error) < 500
        assert "\n" not in error
        assert re.search(r"; (send|save) ", error), error
        assert "Traceback" not in error


def check_kind(cases: list[Case], errors: list[str | None], where: str, seconds: float) -> None:
    """All cases of a kind; a row of the table."""
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
    return [case for case in [*hurtful.images(), *hurtful.texts()] if case.kind == kind]


def test_there_are_many() -> None:
    """At least 250 images, of more than a dozen kinds, and no two alike."""
    images = hurtful.images()
    assert len({(case.kind, case.name) for case in images}) == len(images) >= 250
    assert len({case.kind for case in images}) > 12


# --- each in a process of its own ------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """All inputs as files, as tests/each_alone.py wants them."""
    made = tmp_path_factory.mktemp("inputs")
    (made / "tokenizer.json").write_bytes((tiny_model / "tokenizer.json").read_bytes())
    listed: dict[str, Any] = {"max_pixels": hurtful.MAX_PIXELS}
    for sort, cases in (("images", hurtful.images()), ("texts", hurtful.texts())):
        listed[sort] = []
        for case in cases:
            name = f"{len(listed[sort])}-{sort}/{case.name}"
            (made / name).parent.mkdir()
            if isinstance(case.content, bytes):
                (made / name).write_bytes(case.content)
            else:
                (made / name).write_text(json.dumps(case.content))
            listed[sort].append(name)
    (made / "inputs.json").write_text(json.dumps(listed))
    return made


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> dict[str, list[tuple[Case, Outcome]]]:
    """By kind, what came of every input."""
    command = [sys.executable, str(ROOT / "tests" / "each_alone.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    found = [Outcome(**json.loads(line)) for line in done.stdout.splitlines()]
    by_kind = collections.defaultdict(list)
    for case, outcome in zip([*hurtful.images(), *hurtful.texts()], found, strict=True):
        assert outcome.name.endswith(case.name)
        by_kind[case.kind].append((case, outcome))
    return by_kind


@pytest.mark.parametrize("kind", [*IMAGES, *TEXTS])
def test_a_vector_or_a_clear_error(
    kind: str, outcomes: dict[str, list[tuple[Case, Outcome]]]
) -> None:
    """Nothing else is raised, nothing crashes, and each costs bounded time and memory."""
    pairs = outcomes[kind]
    errors = [outcome.error or outcome.lost for _, outcome in pairs]
    seconds = sum(outcome.seconds for _, outcome in pairs)
    check_kind([case for case, _ in pairs], errors, "alone", seconds)
    for _, outcome in pairs:
        assert outcome.lost is None, outcome
        assert outcome.seconds < SECONDS, outcome
        assert outcome.megabytes < MEGABYTES.get(kind, MEGABYTES_OTHERWISE), outcome


def test_an_error_names_the_file(outcomes: dict[str, list[tuple[Case, Outcome]]]) -> None:
    """Every error about an image begins with the file's name."""
    for kind in IMAGES:
        for case, outcome in outcomes[kind]:
            assert outcome.error is None or outcome.error.startswith(f"{case.name} "), outcome


def test_what_is_prepared_gives_finite_vectors(
    folder: Path, outcomes: dict[str, list[tuple[Case, Outcome]]], tiny_model: Path
) -> None:
    """Whatever came out of an image, the network makes a finite vector of it."""
    published = {
        path.name: path.read_bytes() for path in tiny_model.iterdir() if path.suffix == ".json"
    }
    with weights.pull(str(tiny_model)) as pull:
        loaded = tensors.load(pull.blocks(), torch.device("cpu"), torch.float32)
        network = embedder.Embedder.build(published["open_clip_config.json"], loaded)
    good = [o.name for kind in IMAGES for _, o in outcomes[kind] if o.error is None]
    assert len(good) > 200
    arrays = [np.load(folder / f"{name}.npy") for name in good]
    assert {(array.shape, array.dtype.name) for array in arrays} == {((224, 224, 3), "uint8")}
    size = network.config.image_size  # the tiny network's, which is smaller
    for start in range(0, len(arrays), 32):
        corners = [array[:size, :size] for array in arrays[start : start + 32]]
        batch = [image.Pixels(corner, size, size) for corner in corners]
        vectors = network.embed_images(batch)
        assert vectors.shape == (len(batch), 768)
        assert np.isfinite(vectors).all()


# --- all of them through the real server -----------------------------------------------------


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[CogServer]:
    """A server that nothing else uses: what these inputs leave behind is looked at."""
    environment = {
        "CLIP_WEIGHTS": str(tiny_model),
        "CLIP_MAX_IMAGE_PIXELS": str(hurtful.MAX_PIXELS),
    }
    with CogServer(environment) as running:
        running.wait_ready()
        yield running


def uri(case: Case) -> str:
    return f"data:{case.media_type};base64,{base64.b64encode(case.content).decode()}"


def send_all(server: CogServer, requests: list[dict[str, Any]]) -> list[httpx.Response]:
    """Answers to all, IN_FLIGHT at a time."""
    answers: list[httpx.Response | None] = [None] * len(requests)
    left = iter(range(len(requests)))

    async def client(http: httpx.AsyncClient) -> None:
        for number in left:
            body = json.dumps({"input": requests[number]})  # lone surrogates become escapes
            answers[number] = await http.post("/predictions", content=body, timeout=120)

    async def all_clients() -> None:
        headers = {"Content-Type": "application/json"}
        async with httpx.AsyncClient(base_url=server.url, headers=headers) as http:
            await asyncio.gather(*(client(http) for _ in range(IN_FLIGHT)))

    asyncio.run(all_clients())
    return [answer for answer in answers if answer is not None]


def worker(server: CogServer) -> psutil.Process:
    assert server.process is not None
    [process] = psutil.Process(server.process.pid).children()
    return process


def peak_megabytes(process: psutil.Process) -> float:
    """The most that was ever resident."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    [kilobytes] = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return int(kilobytes) / 1e3


@pytest.fixture(scope="module")
def known(server: CogServer) -> tuple[dict[str, Any], list[float], psutil.Process, float]:
    """An input, its vector before anything else was asked, the process that gave it, and the
    megabytes it then held."""
    photo = (ROOT / "examples" / "cat.jpg").read_bytes()
    inputs = {"image": uri(Case("", "", photo, VECTOR, "image/jpeg"))}
    vector = server.predict(**inputs)["output"]
    return inputs, vector, worker(server), peak_megabytes(worker(server))


def error_of(answer: httpx.Response) -> str | None:
    """None for a vector of 768 finite floats; else the error, Cog's own included."""
    if answer.status_code >= 400:  # from Cog itself
        return f"HTTP {answer.status_code}: {answer.text}"
    document = answer.json()
    if document["status"] == "succeeded":
        vector = np.array(document["output"])
        assert vector.shape == (768,)
        assert np.isfinite(vector).all()
        return None
    assert document["status"] == "failed", document
    return str(document["error"])


def check_unharmed(server: CogServer, known: Any) -> None:
    """The same worker, READY, with the vector it gave before."""
    inputs, vector, process, _ = known
    assert server.health()["status"] == "READY"
    assert worker(server) == process
    assert np.abs(np.array(server.predict(**inputs)["output"]) - vector).max() <= 2e-5


@pytest.mark.parametrize("kind", IMAGES)
def test_images_through_the_server(kind: str, server: CogServer, known: Any) -> None:
    """As data: URIs of whatever media type: a vector, or failed with the error; and unharmed."""
    cases, started = of_kind(kind), time.monotonic()
    answers = send_all(server, [{"image": uri(case)} for case in cases])
    seconds = time.monotonic() - started
    check_kind(cases, [error_of(answer) for answer in answers], "server", seconds)
    check_unharmed(server, known)


@pytest.mark.parametrize("kind", TEXTS)
def test_texts_through_the_server(kind: str, server: CogServer, known: Any) -> None:
    """The same for texts; halves of surrogate pairs are refused by Cog, as no JSON."""
    cases, started = of_kind(kind), time.monotonic()
    answers = send_all(server, [{"text": case.content} for case in cases])
    seconds = time.monotonic() - started
    check_kind(cases, [error_of(answer) for answer in answers], "server", seconds)
    check_unharmed(server, known)


def test_addresses_through_the_server(server: CogServer, known: Any) -> None:
    """What is no address of an image is an error, and never a file of the server's."""
    cases, started = hurtful.addresses(), time.monotonic()
    answers = send_all(server, [{"image": case.content} for case in cases])
    seconds = time.monotonic() - started
    check_kind(cases, [error_of(answer) for answer in answers], "server", seconds)
    check_unharmed(server, known)


def test_afterwards_memory_is_bounded_and_no_file_is_left(server: CogServer, known: Any) -> None:
    """As many images are decoded at a time as there are cores, so that many times what one may cost
    is the most, with what the requests in flight hold. No copy of an image stays."""
    _, _, process, before = known
    most = before + usable_cpus() * max(MEGABYTES.values()) + IN_FLIGHT * MEGABYTES_IN_FLIGHT
    assert before < peak_megabytes(process) < most
    # Of a download that fails Cog leaves an empty file, swept when it is old (leftovers.py).
    left = [path for path in Path(server.directory, "tmp").rglob("*") if path.is_file()]
    assert len(left) <= sum(case.content.startswith("http") for case in hurtful.addresses())
    assert {(path.parent.name[:11], path.stat().st_size) for path in left} <= {("clip-embed-", 0)}
