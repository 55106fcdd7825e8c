"""Test the service through the real Cog server, with weights from the Cloud Storage emulator."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import functools
import http.client
import http.server
import json
import math
import queue
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
from PIL import Image

import predict
from clip_embed.errors import NoInputError
from scripts.lib.cog_server import SCHEMA, CogServer
from tests.helpers import google_accounts, private_bucket_predict, unwell_predict
from tests.helpers.paths import PHOTOS, ROOT
from tests.helpers.range_server import Answer, RangeServer

CAT = ROOT / "examples" / "cat.jpg"


def data_uri(data: bytes, media_type: str = "application/octet-stream") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


@pytest.fixture(scope="module")
def client(server: CogServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as running:
        yield running


@pytest.fixture(scope="module")
def photos_url() -> Iterator[str]:
    """Serve the example photographs from a local web server and return its URL."""
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=str(ROOT / "examples")
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def variant(module: str) -> str:
    """Return Cog's reference to a variant of predict.py in tests/helpers."""
    return f"{ROOT / 'tests' / 'helpers' / module}.py:Predictor"


def embed(client: httpx.Client, **inputs: Any) -> dict[str, Any]:
    """Send a prediction, assert that it succeeds, and return its response."""
    response = client.post("/predictions", json={"input": inputs})
    assert response.status_code == 200, response.text
    body = dict(response.json())
    assert body["status"] == "succeeded", body
    assert_vector(body["output"])
    return body


def embed_error(client: httpx.Client, **inputs: Any) -> str:
    """Send a prediction, assert that it fails and the service stays ready, and return its error."""
    body = client.post("/predictions", json={"input": inputs}).json()
    assert body["status"] == "failed", body
    assert client.get("/health-check").json()["status"] == "READY"
    return str(body["error"])


def assert_vector(output: Any) -> None:
    assert type(output) is list
    assert len(output) == 768
    assert all(type(value) is float and math.isfinite(value) for value in output)
    assert len(set(output)) > 700  # a vector, not a constant


def test_text_returns_a_flat_list_of_768_floats(client: httpx.Client) -> None:
    """The metrics hold the number of tokens and the time of each stage."""
    body = embed(client, text="a red bicycle")
    metrics = body["metrics"]
    assert metrics["tokens"] == 5
    assert metrics["truncated"] is False
    for name in ("prepare_ms", "queue_ms", "encode_ms"):
        assert 0 <= metrics[name] < 60_000


def test_image_as_data_uri_is_embedded(client: httpx.Client) -> None:
    """The metrics hold the size of the image."""
    body = embed(client, image=data_uri(CAT.read_bytes(), "image/jpeg"))
    assert (body["metrics"]["image_width"], body["metrics"]["image_height"]) == (451, 300)


def test_image_as_url_gives_the_vector_of_its_bytes(client: httpx.Client, photos_url: str) -> None:
    by_url = embed(client, image=f"{photos_url}/cat.jpg")["output"]
    assert by_url == embed(client, image=data_uri(CAT.read_bytes()))["output"]


@pytest.mark.parametrize(
    "name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF"], ids=str.lower
)
def test_image_format_is_accepted(client: httpx.Client, name: str) -> None:
    """The vector is close to that of the original photograph."""
    pillow_heif.register_heif_opener()
    encoded = BytesIO()
    Image.open(CAT).save(encoded, format=name, quality=95)
    vector = np.array(embed(client, image=data_uri(encoded.getvalue()))["output"])
    original = np.array(embed(client, image=data_uri(CAT.read_bytes()))["output"])
    cosine = vector @ original / (np.linalg.norm(vector) * np.linalg.norm(original))
    assert cosine > 0.98


def test_image_takes_precedence_over_text(client: httpx.Client) -> None:
    """The log says that the text is ignored."""
    image = data_uri(CAT.read_bytes())
    both = embed(client, text="a red bicycle", image=image)
    assert both["output"] == embed(client, image=image)["output"]
    assert "text is ignored" in both["logs"]


@pytest.mark.parametrize("inputs", [{}, {"text": ""}, {"image": ""}], ids=str)
def test_missing_input_error_says_what_to_send(
    client: httpx.Client, inputs: dict[str, str]
) -> None:
    assert "send text, such as 'a red bicycle', or an image" in embed_error(client, **inputs)


def test_blank_text_error_quotes_the_text(client: httpx.Client) -> None:
    error = embed_error(client, text=" \t\n")
    assert "text is ' \\t\\n', which holds no visible character" in error


def test_error_for_a_file_that_is_not_an_image_lists_the_formats(client: httpx.Client) -> None:
    text = data_uri(b"not an image", "text/plain")
    assert "send one of JPEG, PNG, WebP" in embed_error(client, image=text)


def test_truncated_image_is_refused(client: httpx.Client) -> None:
    truncated = data_uri(CAT.read_bytes()[:9000], "image/jpeg")
    assert "is damaged or incomplete" in embed_error(client, image=truncated)


def test_path_on_the_server_is_not_read(client: httpx.Client) -> None:
    assert "send an http:// or https:// URL" in embed_error(client, image=str(CAT))


@pytest.mark.parametrize("inputs", [{"text": 5}, {"text": ["a"]}, {"image": {"a": 1}}], ids=str)
def test_value_of_wrong_type_returns_422(client: httpx.Client, inputs: dict[str, Any]) -> None:
    """The response names the input."""
    response = client.post("/predictions", json={"input": inputs})
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", "input", next(iter(inputs))]


def test_long_text_is_truncated_to_the_context_length(client: httpx.Client) -> None:
    """The first 75 tokens are embedded; a metric and the log record the truncation."""
    body = embed(client, text="word " * 10_000)
    assert body["metrics"]["truncated"] is True
    assert body["metrics"]["tokens"] == 77
    assert "text is cut: CLIP reads its first 75 tokens" in body["logs"]
    assert body["output"] == embed(client, text="word " * 75)["output"]


def test_async_prediction_is_delivered_to_its_webhook(client: httpx.Client, webhooks: Any) -> None:
    url, received = webhooks
    request = {"input": {"text": "later"}, "webhook": url, "webhook_events_filter": ["completed"]}
    response = client.post("/predictions", json=request, headers={"Prefer": "respond-async"})
    assert response.status_code == 202
    delivered = received.get(timeout=20)
    assert delivered["status"] == "succeeded"
    assert delivered["id"] == response.json()["id"]
    assert delivered["output"] == embed(client, text="later")["output"]


def test_put_is_idempotent(client: httpx.Client, webhooks: Any) -> None:
    """A second PUT with the ID of a running prediction starts no second one."""
    url, received = webhooks
    prediction_id = uuid.uuid4().hex
    # A large image, so that the first prediction is still running when the second PUT arrives.
    encoded = BytesIO()
    Image.effect_noise((4000, 4000), 80).save(encoded, format="PNG", compress_level=1)
    request = {
        "input": {"image": data_uri(encoded.getvalue())},
        "webhook": url,
        "webhook_events_filter": ["completed"],
    }
    for _ in range(2):
        response = client.put(
            f"/predictions/{prediction_id}", json=request, headers={"Prefer": "respond-async"}
        )
        assert response.status_code == 202
        assert response.json()["id"] == prediction_id
    assert received.get(timeout=30)["id"] == prediction_id
    with pytest.raises(queue.Empty):
        received.get(timeout=1.5)


def test_running_prediction_can_be_cancelled(client: httpx.Client, webhooks: Any) -> None:
    """The service still answers afterwards."""
    url, received = webhooks
    prediction_id = uuid.uuid4().hex
    # Few bytes, many pixels: Cog reads the request long before the image is preprocessed.
    encoded = BytesIO()
    Image.new("RGB", (9000, 9000), "teal").save(encoded, format="PNG")
    request = {
        "input": {"image": data_uri(encoded.getvalue())},
        "webhook": url,
        "webhook_events_filter": ["completed"],
    }
    client.put(f"/predictions/{prediction_id}", json=request, headers={"Prefer": "respond-async"})
    time.sleep(0.2)
    assert client.post(f"/predictions/{prediction_id}/cancel").status_code == 200
    assert received.get(timeout=30)["status"] == "canceled"
    embed(client, text="still here")


def test_cancelling_an_unknown_prediction_returns_404(client: httpx.Client) -> None:
    assert client.post(f"/predictions/{uuid.uuid4().hex}/cancel").status_code == 404


def test_concurrent_predictions_equal_sequential_ones(client: httpx.Client) -> None:
    """Sixteen predictions in flight give the same vectors as one at a time."""
    inputs: list[dict[str, str]] = [{"text": "word " * n} for n in range(1, 11)]
    inputs += [{"image": data_uri(photo.read_bytes())} for photo in PHOTOS]
    assert len(inputs) == 16
    sequential = [embed(client, **each)["output"] for each in inputs]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        concurrent_ones = list(pool.map(lambda each: embed(client, **each)["output"], inputs))
    assert np.abs(np.array(sequential) - np.array(concurrent_ones)).max() <= 2e-5


def test_served_schema_is_openapi_json(client: httpx.Client) -> None:
    assert client.get("/openapi.json").json() == json.loads(SCHEMA.read_text())


def test_response_conforms_to_the_served_schema(client: httpx.Client) -> None:
    """The schema accepts a real response and refuses a nested list."""
    served = client.get("/openapi.json").json()
    response_schema = {"$ref": "#/components/schemas/PredictionResponse", **served}
    jsonschema.validate(embed(client, text="a"), response_schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"output": [[0.0] * 768]}, response_schema)


def test_predict_awaited_from_python_returns_a_plain_list(
    client: httpx.Client, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Cog's server, `predict` returns the same vector as a list of floats."""
    monkeypatch.setenv("CLIP_WEIGHTS", str(tiny_model))
    predictor = predict.Predictor()
    predictor.setup()
    vector = asyncio.run(predictor.predict(text="a red bicycle", image=None))
    assert_vector(vector)
    # Cog's JSON may differ in the last digit of a float64, but not as float32.
    served = embed(client, text="a red bicycle")["output"]
    assert np.array_equal(np.float32(vector), np.float32(served))
    with pytest.raises(NoInputError):
        asyncio.run(predictor.predict(text=None, image=None))


def test_cog_starts_no_thread_for_an_image(tiny_model: Path, photos_url: str) -> None:
    """A client that disconnects while Cog starts a thread can end the service: Cog raises an
    exception in the thread that prepares the input, and CPython 3.11 may deliver it to the new one.
    `scripts/soak.py` reproduces that in minutes; this test looks for the thread itself."""
    environment = {"CLIP_WEIGHTS": str(tiny_model), "CLIP_IMAGE_URLS": "any"}
    with CogServer(environment, predictor=variant("counting_predict")) as server:
        server.wait_ready()
        for image in (data_uri(CAT.read_bytes()), f"{photos_url}/cat.jpg"):
            assert server.predict(image=image)["status"] == "succeeded"
        assert server.health()["status"] == "READY"


def test_health_is_starting_then_ready(tiny_model: Path) -> None:
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


def test_the_log_of_setup_is_complete(server: CogServer) -> None:
    """/health-check holds the last line of setup. Without a pause at the end of setup, Cog loses it
    one time in eight."""
    assert "ready: tiny (random:1), 768 floats, cpu" in server.setup_log()


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
    ids=["unset", "missing directory", "empty prefix", "unknown host"],
)
def test_failed_setup_is_explained_in_the_health_check(
    emulator: str, location: str | None, sentence: str
) -> None:
    """Within 15 s, /health-check is SETUP_FAILED and its log holds one sentence, no traceback."""
    started = time.monotonic()
    environment = {"CLIP_WEIGHTS": location, "STORAGE_EMULATOR_HOST": emulator}
    with CogServer(environment) as broken:
        status = broken.wait()["status"]
        assert time.monotonic() - started < 15
        log = broken.setup_log()
    assert status == "SETUP_FAILED"
    assert sentence in log
    assert "Traceback" not in log


@pytest.mark.parametrize("kind", ["escaped twice", "letters lowered"])
def test_health_check_does_not_show_a_broken_key(kind: str, tmp_path: Path) -> None:
    """The error of setup is public: /health-check needs no login."""
    key = google_accounts.make_private_key()
    with google_accounts.GoogleServer() as google, RangeServer(tmp_path) as cloud:
        cloud.fault = lambda request, answer: Answer(401)
        broken = google_accounts.broken_keys(key)[kind]
        content = google_accounts.service_account(google, broken)
        (tmp_path / "key.json").write_text(json.dumps(content))
        environment = {
            "CLIP_WEIGHTS": "gs://bucket/clip",
            "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "key.json"),
            "STORAGE_EMULATOR_HOST": None,
            private_bucket_predict.ENVIRONMENT_VARIABLE: cloud.url,
        }
        predictor = variant("private_bucket_predict")
        with (
            open(tmp_path / "log", "w") as log,
            CogServer(environment, predictor=predictor, log=log) as server,
        ):
            server.wait()
            assert "holds a damaged private key" in server.setup_log()
            response = json.dumps(server.health())
    shown = response + (tmp_path / "log").read_text()
    assert google_accounts.shows_key(shown, key) is None


def test_health_check_detects_changed_weights(tiny_model: Path, tmp_path: Path) -> None:
    """/health-check is UNHEALTHY while a known text or image does not give the vector of setup."""
    fault = tmp_path / "fault"
    fault.write_text("none")
    environment = {"CLIP_WEIGHTS": str(tiny_model), unwell_predict.ENVIRONMENT_VARIABLE: str(fault)}
    with CogServer(environment, predictor=variant("unwell_predict")) as server:
        server.wait_ready()
        statuses = {}
        for text in ("none", *unwell_predict.FAULTS):
            fault.write_text(text)
            statuses[text] = server.health()["status"]
        assert statuses == {"none": "READY", **dict.fromkeys(unwell_predict.FAULTS, "UNHEALTHY")}
        fault.write_text("none")
        assert server.health()["status"] == "READY"


def test_requests_over_the_concurrency_limit_return_409(tiny_model: Path) -> None:
    """The requests within the limit succeed, and so does a request afterwards."""
    with CogServer({"CLIP_WEIGHTS": str(tiny_model), "COG_MAX_CONCURRENCY": "4"}) as server:
        server.wait_ready()
        url = f"{server.url}/predictions"
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            long = {"input": {"text": "words " * 30_000}}
            statuses = [
                response.status_code
                for response in pool.map(
                    lambda _: httpx.post(url, json=long, timeout=60), range(64)
                )
            ]
        assert set(statuses) == {200, 409}
        assert statuses.count(200) >= 4
        assert server.health()["status"] == "READY"
        assert server.predict(text="a red bicycle")["status"] == "succeeded"


def test_no_request_is_refused_while_slots_are_free(tiny_model: Path) -> None:
    """Thirty-two clients send requests in a loop. With two threads in Cog's server, some responses
    were 409 although slots were free (cog.yaml)."""
    requests_per_client, clients = 100, 32
    body = json.dumps({"input": {"text": "a bicycle"}})
    headers = {"Content-Type": "application/json"}
    with CogServer({"CLIP_WEIGHTS": str(tiny_model)}) as server:
        server.wait_ready()

        def client(_: int) -> list[int]:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            statuses = []
            for _ in range(requests_per_client):
                connection.request("POST", "/predictions", body, headers)
                response = connection.getresponse()
                response.read()
                statuses.append(response.status)
            return statuses

        with concurrent.futures.ThreadPoolExecutor(clients) as pool:
            statuses = [status for some in pool.map(client, range(clients)) for status in some]
    assert statuses.count(200) == len(statuses) == requests_per_client * clients


def test_server_without_its_worker_is_not_ready(tiny_model: Path) -> None:
    """Once the worker is killed, the server ends or /health-check is no longer READY."""
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
            pytest.fail("the server is still READY")
