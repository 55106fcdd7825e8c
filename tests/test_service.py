"""The contract, through the real Cog server with weights from the real emulator."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import functools
import http.client
import http.server
import importlib.metadata
import inspect
import json
import math
import os
import queue
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import pillow_heif
import psutil
import pytest
import yaml
from PIL import Image

import predict
from clip_embed.errors import NoInputError
from conftest import PHOTOS, ROOT
from local_server import SCHEMA, CogServer

CAT = ROOT / "examples" / "cat.jpg"


def data_uri(data: bytes, kind: str = "application/octet-stream") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.fixture(scope="module")
def client(server: CogServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as running:
        yield running


@pytest.fixture(scope="module")
def photos_url() -> Iterator[str]:
    """The example photographs on a web server of this machine."""
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=str(ROOT / "examples")
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture
def webhooks() -> Iterator[tuple[str, queue.Queue[dict[str, Any]]]]:
    """A URL that receives webhooks, and the bodies it received."""
    received: queue.Queue[dict[str, Any]] = queue.Queue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/hook", received
        running.shutdown()


def embed(client: httpx.Client, **inputs: Any) -> dict[str, Any]:
    """A prediction that must succeed: its whole response."""
    response = client.post("/predictions", json={"input": inputs})
    assert response.status_code == 200, response.text
    body = dict(response.json())
    assert body["status"] == "succeeded", body
    assert_vector(body["output"])
    return body


def refusal(client: httpx.Client, **inputs: Any) -> str:
    """A prediction that must fail: its error. The service stays ready."""
    body = client.post("/predictions", json={"input": inputs}).json()
    assert body["status"] == "failed", body
    assert client.get("/health-check").json()["status"] == "READY"
    return str(body["error"])


def assert_vector(output: Any) -> None:
    assert type(output) is list
    assert len(output) == 768
    assert all(type(value) is float and math.isfinite(value) for value in output)
    assert len(set(output)) > 700  # a vector, not a constant


def test_text_gives_a_flat_list_of_768_floats(client: httpx.Client) -> None:
    """Text comes back as 768 finite floats, with its tokens and times as metrics."""
    body = embed(client, text="a red bicycle")
    metrics = body["metrics"]
    assert metrics["tokens"] == 5
    assert metrics["truncated"] is False
    for name in ("prepare_ms", "queue_ms", "encode_ms"):
        assert 0 <= metrics[name] < 60_000


def test_image_as_data_uri(client: httpx.Client) -> None:
    """An image comes as a data: URI; its size is a metric."""
    body = embed(client, image=data_uri(CAT.read_bytes(), "image/jpeg"))
    assert (body["metrics"]["image_width"], body["metrics"]["image_height"]) == (451, 300)


def test_image_as_url(client: httpx.Client, photos_url: str) -> None:
    """An image comes as a URL and gives the same vector as its bytes."""
    by_url = embed(client, image=f"{photos_url}/cat.jpg")["output"]
    assert by_url == embed(client, image=data_uri(CAT.read_bytes()))["output"]


@pytest.mark.parametrize(
    "name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF"], ids=str.lower
)
def test_every_format_is_embedded(client: httpx.Client, name: str) -> None:
    """Each accepted format gives about the vector of the original photograph."""
    pillow_heif.register_heif_opener()
    encoded = BytesIO()
    Image.open(CAT).save(encoded, format=name, quality=95)
    vector = np.array(embed(client, image=data_uri(encoded.getvalue()))["output"])
    original = np.array(embed(client, image=data_uri(CAT.read_bytes()))["output"])
    cosine = vector @ original / (np.linalg.norm(vector) * np.linalg.norm(original))
    assert cosine > 0.98


def test_the_image_wins(client: httpx.Client) -> None:
    """Of text and image the image is embedded, and the log says that the text was ignored."""
    picture = data_uri(CAT.read_bytes())
    both = embed(client, text="a red bicycle", image=picture)
    assert both["output"] == embed(client, image=picture)["output"]
    assert "text is ignored" in both["logs"]


@pytest.mark.parametrize("inputs", [{}, {"text": ""}], ids=["neither", "empty text"])
def test_nothing_to_embed(client: httpx.Client, inputs: dict[str, str]) -> None:
    """Neither input, or empty text alone, is an error that says what to send."""
    assert "send text, such as 'a red bicycle', or an image" in refusal(client, **inputs)


def test_blank_text(client: httpx.Client) -> None:
    """Text without a visible character is an error that shows it."""
    assert "text is ' \\t\\n', which holds no visible character" in refusal(client, text=" \t\n")


def test_bad_images_are_named(client: httpx.Client) -> None:
    """What is not an image is an error that lists what is; a path of the server is not read."""
    page = data_uri(b"<html>not an image</html>", "text/html")
    assert "send one of JPEG, PNG, WebP" in refusal(client, image=page)
    cut = data_uri(CAT.read_bytes()[:9000], "image/jpeg")
    assert "is damaged or incomplete" in refusal(client, image=cut)
    assert "send an http:// or https:// URL" in refusal(client, image=str(CAT))


@pytest.mark.parametrize("inputs", [{"text": 5}, {"text": ["a"]}, {"image": {"a": 1}}], ids=str)
def test_wrong_types_are_refused(client: httpx.Client, inputs: dict[str, Any]) -> None:
    """A value of the wrong type is answered with 422 and the name of the input."""
    response = client.post("/predictions", json={"input": inputs})
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", "input", next(iter(inputs))]


def test_long_text_is_cut_and_says_so(client: httpx.Client) -> None:
    """Ten thousand words are embedded by their first 75 tokens; metric and log record the cut."""
    body = embed(client, text="word " * 10_000)
    assert body["metrics"]["truncated"] is True
    assert body["metrics"]["tokens"] == 77
    assert "text is cut: CLIP reads its first 75 tokens" in body["logs"]
    assert body["output"] == embed(client, text="word " * 75)["output"]


def test_webhook(client: httpx.Client, webhooks: Any) -> None:
    """An asynchronous prediction is accepted at once and delivered to its webhook."""
    url, received = webhooks
    request = {"input": {"text": "later"}, "webhook": url, "webhook_events_filter": ["completed"]}
    response = client.post("/predictions", json=request, headers={"Prefer": "respond-async"})
    assert response.status_code == 202
    delivered = received.get(timeout=20)
    assert delivered["status"] == "succeeded"
    assert delivered["id"] == response.json()["id"]
    assert delivered["output"] == embed(client, text="later")["output"]


def test_put_is_idempotent(client: httpx.Client, webhooks: Any) -> None:
    """The same ID sent again while its prediction is running starts no second one."""
    url, received = webhooks
    name = uuid.uuid4().hex
    # A large picture, so that the first is still running when the second comes.
    encoded = BytesIO()
    Image.effect_noise((4000, 4000), 80).save(encoded, format="PNG", compress_level=1)
    request = {
        "input": {"image": data_uri(encoded.getvalue())},
        "webhook": url,
        "webhook_events_filter": ["completed"],
    }
    for _ in range(2):
        response = client.put(
            f"/predictions/{name}", json=request, headers={"Prefer": "respond-async"}
        )
        assert response.status_code == 202
        assert response.json()["id"] == name
    assert received.get(timeout=30)["id"] == name
    with pytest.raises(queue.Empty):
        received.get(timeout=1.5)


def test_cancel(client: httpx.Client, webhooks: Any) -> None:
    """A running prediction can be cancelled, and the service goes on."""
    url, received = webhooks
    name = uuid.uuid4().hex
    # Few bytes and many pixels: Cog has read the request long before the picture is prepared.
    encoded = BytesIO()
    Image.new("RGB", (9000, 9000), "teal").save(encoded, format="PNG")
    request = {
        "input": {"image": data_uri(encoded.getvalue())},
        "webhook": url,
        "webhook_events_filter": ["completed"],
    }
    client.put(f"/predictions/{name}", json=request, headers={"Prefer": "respond-async"})
    time.sleep(0.2)
    assert client.post(f"/predictions/{name}/cancel").status_code == 200
    assert received.get(timeout=30)["status"] == "canceled"
    embed(client, text="still here")


def test_cancelling_what_is_unknown(client: httpx.Client) -> None:
    """There is nothing to cancel under an ID nobody used."""
    assert client.post(f"/predictions/{uuid.uuid4().hex}/cancel").status_code == 404


def test_in_flight_together_equals_one_by_one(client: httpx.Client) -> None:
    """Sixteen predictions in flight give the vectors they give one at a time."""
    inputs: list[dict[str, str]] = [{"text": "word " * n} for n in range(1, 11)]
    inputs += [{"image": data_uri(photo.read_bytes())} for photo in PHOTOS]
    assert len(inputs) == 16
    alone = [embed(client, **each)["output"] for each in inputs]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda each: embed(client, **each)["output"], inputs))
    assert np.abs(np.array(alone) - np.array(together)).max() <= 2e-5


def test_openapi_is_the_prepared_schema(client: httpx.Client) -> None:
    """/openapi.json is openapi.json, and a real response fits it."""
    served = client.get("/openapi.json").json()
    assert served == json.loads(SCHEMA.read_text())
    response_schema = {"$ref": "#/components/schemas/PredictionResponse", **served}
    jsonschema.validate(embed(client, text="a"), response_schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"output": [[0.0] * 768]}, response_schema)


def test_schema_agrees_with_the_signature() -> None:
    """openapi.json names the inputs of `predict`, in order, with their descriptions and types."""
    properties = json.loads(SCHEMA.read_text())["components"]["schemas"]["Input"]["properties"]
    parameters = list(inspect.signature(predict.Predictor.predict).parameters.values())[1:]
    assert [parameter.name for parameter in parameters] == sorted(
        properties, key=lambda name: properties[name]["x-order"]
    )
    for parameter in parameters:
        schema = properties[parameter.name]
        assert parameter.default.description == schema["description"]
        assert parameter.default.default is None
        assert schema["nullable"] is True
        assert schema["type"] == "string"
        is_file = parameter.annotation == predict.Path | None
        assert schema.get("format") == ("uri" if is_file else None)
    assert inspect.signature(predict.Predictor.predict).return_annotation == list[float]


# The part of Cog's documented configuration that a GPU image can use. Source: Cog, docs/yaml.md.
COG_YAML = {
    "type": "object",
    "additionalProperties": False,
    "required": ["build", "predict"],
    "properties": {
        "build": {
            "type": "object",
            "additionalProperties": False,
            "required": ["python_version"],
            "properties": {
                "gpu": {"type": "boolean"},
                "cuda": {"type": "string", "pattern": r"^\d+\.\d+(\.\d+)?$"},
                "python_version": {"enum": ["3.10", "3.11", "3.12", "3.13"]},
                "python_requirements": {"type": "string"},
                "sdk_version": {"type": "string"},
                "system_packages": {"type": "array", "items": {"type": "string"}},
                "run": {"type": "array", "items": {"type": "string"}},
            },
        },
        "environment": {"type": "array", "items": {"type": "string", "pattern": r"^\w+="}},
        "image": {"type": "string"},
        "predict": {"type": "string", "pattern": r"^[\w.]+\.py:\w+$"},
    },
}


def test_cog_yaml_is_valid() -> None:
    """cog.yaml has only keys Cog documents, and names what exists and what is pinned."""
    document = yaml.safe_load((ROOT / "cog.yaml").read_text())
    jsonschema.validate(document, COG_YAML)
    file, _, name = document["predict"].partition(":")
    assert (ROOT / file).is_file()
    assert hasattr(predict, name)
    assert (ROOT / document["build"]["python_requirements"]).is_file()
    tested = importlib.metadata.version("cog")
    assert document["build"]["sdk_version"] == tested
    assert document["build"]["python_version"] == f"{sys.version_info[0]}.{sys.version_info[1]}"


def plain_schema(directory: Path) -> Path:
    """The schema as `cog build` writes it by itself: the output's type stands at its top."""
    schema = json.loads(SCHEMA.read_text())
    schema["components"]["schemas"]["Output"] = {
        "title": "Output",
        "type": "array",
        "items": {"type": "number"},
    }
    path = directory / "plain.json"
    path.write_text(json.dumps(schema))
    return path


@pytest.mark.parametrize("schema", ["plain build", "none"])
def test_the_output_is_flat_however_it_is_built(
    client: httpx.Client, tiny_model: Path, tmp_path: Path, schema: str
) -> None:
    """The response is a flat list after a plain `cog build`, and without any schema, too."""
    file = plain_schema(tmp_path) if schema == "plain build" else None
    with CogServer({"CLIP_WEIGHTS": str(tiny_model)}, schema=file) as other:
        other.wait_ready()
        with httpx.Client(base_url=other.url, timeout=60) as its_client:
            vector = embed(its_client, text="a red bicycle")["output"]
    assert vector == embed(client, text="a red bicycle")["output"]


def test_awaited_directly_it_is_a_plain_list(
    client: httpx.Client, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Cog, `predict` returns a list of floats, the service's own vector."""
    monkeypatch.setenv("CLIP_WEIGHTS", str(tiny_model))
    predictor = predict.Predictor()
    predictor.setup()
    vector = asyncio.run(predictor.predict(text="a red bicycle", image=None))
    assert_vector(vector)
    # Cog's JSON may differ in a float64's last digit, never in float32's.
    served = embed(client, text="a red bicycle")["output"]
    assert np.array_equal(np.float32(vector), np.float32(served))
    with pytest.raises(NoInputError):
        asyncio.run(predictor.predict(text=None, image=None))


def test_a_long_text_is_tokenized_off_the_loop(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long text takes tenths of a second, in which the event loop serves others; for a short one
    a thread would cost more than it spares."""
    monkeypatch.setenv("CLIP_WEIGHTS", str(tiny_model))
    predictor = predict.Predictor()
    predictor.setup()
    tokenize, threads = predictor._tokenizer.tokenize, []

    def watched(text: str) -> Any:
        threads.append(threading.current_thread())
        return tokenize(text)

    monkeypatch.setattr(predictor._tokenizer, "tokenize", watched)
    for text in ("a bicycle", "a bicycle " * predict.SHORT_TEXT):
        asyncio.run(predictor.predict(text=text, image=None))
    assert [thread is threading.main_thread() for thread in threads] == [True, False]


def test_cog_starts_no_thread_for_an_image(tiny_model: Path, photos_url: str) -> None:
    """Neither for a data: URI nor for a URL: a client that hangs up while a thread is being started
    may end the service (predict.py). How `scripts/soak.py` found it takes minutes."""
    counting = f"{ROOT / 'tests' / 'counting_predict.py'}:Predictor"
    with CogServer({"CLIP_WEIGHTS": str(tiny_model)}, predictor=counting) as server:
        server.wait_ready()
        for image in (data_uri(CAT.read_bytes()), f"{photos_url}/cat.jpg"):
            assert server.predict(image=image)["status"] == "succeeded"
        assert server.health()["status"] == "READY"


def test_what_is_set_for_the_server_does_not_slow_the_pull(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cog.yaml gives Cog's server one thread; obstore, in the worker, may have as many as cores."""
    monkeypatch.setenv("CLIP_WEIGHTS", str(tiny_model))
    monkeypatch.setenv("TOKIO_WORKER_THREADS", "1")
    predict.Predictor().setup()
    assert "TOKIO_WORKER_THREADS" not in os.environ


def test_health_goes_from_starting_to_ready(tiny_model: Path) -> None:
    """/health-check is STARTING during set-up, then READY, with the set-up's log."""
    with CogServer({"CLIP_WEIGHTS": str(tiny_model)}) as starting:
        seen = []
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and "READY" not in seen:
            try:
                health = starting.health()
            except OSError:
                continue
            seen.append(health["status"])
            time.sleep(0.01)
        assert seen[0] == "STARTING"
        assert set(seen) == {"STARTING", "READY"}
        assert "ready: tiny (random:1), 768 floats, cpu" in starting.setup_log()


@pytest.mark.parametrize(
    ("location", "sentence"),
    [
        (None, "CLIP_WEIGHTS is not set; set CLIP_WEIGHTS to gs://bucket/prefix"),
        ("/nowhere", "/nowhere holds no manifest.json; publish a model there with"),
        ("gs://models/empty", "gs://models/empty holds no manifest.json; publish a model there"),
        (
            "https://models.invalid/clip",
            "https://models.invalid/clip/manifest.json cannot be read: the host name cannot be",
        ),
    ],
    ids=["unset", "nowhere", "no manifest", "unknown host"],
)
def test_set_up_that_cannot_work_says_why(
    emulator: str, location: str | None, sentence: str
) -> None:
    """Set-up fails within 15 s, and /health-check shows SETUP_FAILED and one sentence."""
    started = time.monotonic()
    environment = {"CLIP_WEIGHTS": location, "STORAGE_EMULATOR_HOST": emulator}
    with CogServer(environment) as broken:
        status = broken.wait()["status"]
        assert time.monotonic() - started < 15
        log = broken.setup_log()
    assert status == "SETUP_FAILED"
    assert sentence in log
    assert "Traceback" not in log


@pytest.mark.parametrize("fault", ["text nan", "text wrong", "image nan", "image wrong"])
def test_a_network_gone_wrong_is_unhealthy(tiny_model: Path, fault: str) -> None:
    """/health-check embeds a known text and image: other or unusable answers than at set-up."""
    unwell = f"{ROOT / 'tests' / 'unwell_predict.py'}:Predictor"
    environment = {"CLIP_WEIGHTS": str(tiny_model), "FAULT": fault}
    with CogServer(environment, predictor=unwell) as server:
        assert server.wait()["status"] == "UNHEALTHY"


def test_a_network_left_alone_is_healthy(tiny_model: Path) -> None:
    """The same predictor without a fault: what makes it unhealthy is the fault."""
    well = f"{ROOT / 'tests' / 'unwell_predict.py'}:Predictor"
    with CogServer({"CLIP_WEIGHTS": str(tiny_model), "FAULT": "none"}, predictor=well) as server:
        assert [server.wait()["status"], server.health()["status"]] == ["READY", "READY"]


def test_what_a_health_check_found_holds_for_a_while(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Set-up is a check; until what one found is too old, good or bad, there is no other."""
    monkeypatch.setenv("CLIP_WEIGHTS", str(tiny_model))
    predictor = predict.Predictor()
    predictor.setup()
    findings = [False, True]
    monkeypatch.setattr(predictor._embedder, "is_healthy", lambda: findings.pop(0))
    answers = []
    for holds in (60, -1, 60, -1):
        monkeypatch.setattr(predict, "HEALTH_SECONDS", holds)
        answers.append(asyncio.run(predictor.healthcheck()))
    assert answers == [True, False, False, True]


def test_beyond_the_limit_is_refused_at_once_and_then_served(tiny_model: Path) -> None:
    """Of many at once, those beyond the limit are answered 409; afterwards all is as before."""
    with CogServer({"CLIP_WEIGHTS": str(tiny_model), "COG_MAX_CONCURRENCY": "4"}) as server:
        server.wait_ready()
        url = f"{server.url}/predictions"
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            long = {"input": {"text": "words " * 30_000}}
            answers = [
                answer.status_code
                for answer in pool.map(lambda _: httpx.post(url, json=long, timeout=60), range(64))
            ]
        assert set(answers) == {200, 409}
        assert answers.count(200) >= 4
        assert server.health()["status"] == "READY"
        assert server.predict(text="a red bicycle")["status"] == "succeeded"


def test_within_the_limit_nobody_is_refused(tiny_model: Path) -> None:
    """Thirty-two clients that ask again and again: with two threads in Cog's server, some were
    answered 409 with places free (cog.yaml)."""
    each, clients = 100, 32
    body = json.dumps({"input": {"text": "a bicycle"}})
    headers = {"Content-Type": "application/json"}
    with CogServer({"CLIP_WEIGHTS": str(tiny_model)}) as server:
        server.wait_ready()

        def client(_: int) -> list[int]:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            statuses = []
            for _ in range(each):
                connection.request("POST", "/predictions", body, headers)
                answer = connection.getresponse()
                answer.read()
                statuses.append(answer.status)
            return statuses

        with concurrent.futures.ThreadPoolExecutor(clients) as pool:
            statuses = [status for some in pool.map(client, range(clients)) for status in some]
    assert statuses.count(200) == len(statuses) == each * clients


def test_a_worker_that_is_killed_is_not_ready(tiny_model: Path) -> None:
    """Once the worker is gone the server says so, or ends: nobody sends it more."""
    with CogServer({"CLIP_WEIGHTS": str(tiny_model)}) as server:
        server.wait_ready()
        assert server.process is not None
        for worker in psutil.Process(server.process.pid).children(recursive=True):
            worker.kill()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                if server.process.poll() is not None or server.health()["status"] != "READY":
                    break
            except OSError:
                break
            time.sleep(0.05)
        else:
            pytest.fail("the server went on being READY")
