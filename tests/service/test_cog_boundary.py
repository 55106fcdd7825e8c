"""What Cog does wrong around a prediction, and what the service makes of it, in the real server."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from scripts.lib.cog_server import SCHEMA, CogServer
from scripts.lib.hostile_web_server import HostileWebServer
from tests.helpers.cog_schema import plain_build_schema
from tests.helpers.paths import ROOT
from tests.helpers.result_tables import ATTACKS
from tests.service.conftest import Webhooks

SHORT_INTERVALS = f"{ROOT / 'tests' / 'helpers' / 'short_intervals_predict.py'}:Predictor"
TRICKLE_SECONDS = 3


@pytest.fixture
def web() -> Iterator[HostileWebServer]:
    with HostileWebServer() as server:
        yield server


def request_async(server: CogServer, inputs: dict[str, Any], webhook: str, *events: str) -> str:
    """Request an asynchronous prediction, and return its id."""
    response = httpx.post(
        f"{server.url}/predictions",
        json={"input": inputs, "webhook": webhook, "webhook_events_filter": events},
        headers={"Prefer": "respond-async"},
        trust_env=False,
    )
    assert response.status_code == 202
    return str(response.json()["id"])


# --- the output -----------------------------------------------------------------------------


def schema_of(build: str, directory: Path) -> Path | None:
    """Return the file with the schema of a server that was built in this way."""
    if build in ("prepared", "none"):
        return SCHEMA if build == "prepared" else None
    source = (ROOT / "predict.py").read_text()
    if build == "array":  # as Cog derives it from this annotation
        source, count = re.subn(r"\) -> .*?:  #", ") -> list[float]:  #", source)
        assert count == 1
    path = directory / "schema.json"
    path.write_text(json.dumps(plain_build_schema(source, "0.23.1")))
    return path


@contextlib.contextmanager
def built(build: str, tiny_model: Path, directory: Path) -> Iterator[CogServer]:
    """Run a server that was built in this way."""
    schema = schema_of(build, directory)
    with CogServer({"CLIP_WEIGHTS": str(tiny_model)}, schema=schema) as server:
        server.wait_ready()
        yield server


@pytest.mark.parametrize("build", ["prepared", "plain", "none"])
def test_output_is_sent_as_one_message(
    build: str,
    server: CogServer,
    webhooks: tuple[str, Webhooks],
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    """Cog sends each element of a list as a message and a webhook of its own: 768 of them. With
    openapi.json, after a plain `cog build` and without a schema there are three webhooks."""
    url, received = webhooks
    with built(build, tiny_model, tmp_path) as other:
        request_async(other, {"text": "a red bicycle"}, url, "start", "output", "logs", "completed")
        events = []
        while not events or events[-1]["status"] not in ("succeeded", "failed"):
            events.append(received.get(timeout=20))
        time.sleep(0.5)  # an event is not waited for: some may arrive after the last one
        assert len(events) + received.qsize() <= 3
        assert "WARNING" not in other.setup_log()
    assert events[-1]["output"] == server.predict(text="a red bicycle")["output"]
    assert type(events[-1]["output"][0]) is float


def test_numbers_have_the_digits_of_a_float32(server: CogServer) -> None:
    """Nine digits identify a float32. Python and Cog would write 17, for each of them slowly."""
    body = {"input": {"text": "a red bicycle"}}
    answer = httpx.post(f"{server.url}/predictions", json=body, trust_env=False).text
    vector = answer.partition('"output":[')[2].partition("]")[0].split(",")
    assert len(vector) == 768
    for number in vector:
        digits = re.sub(r"e.*|\D", "", number).lstrip("0")
        assert len(digits) <= 9, number


def test_schema_of_an_array_is_flat_too_and_setup_says_how_to_fix_it(
    server: CogServer, tiny_model: Path, tmp_path: Path
) -> None:
    """It takes a list, and so a message for each number. Setup says so in one line."""
    with built("array", tiny_model, tmp_path) as other:
        vector = other.predict(text="a red bicycle")["output"]
        log = other.setup_log().splitlines()
    # As one message it has fewer digits of the same float32.
    served = server.predict(text="a red bicycle")["output"]
    assert np.array_equal(np.float32(vector), np.float32(served))
    [warning] = [line for line in log if "WARNING" in line]
    assert "number by number" in warning
    assert "cog build --openapi-schema openapi.json" in warning


# --- SIGTERM --------------------------------------------------------------------------------


def test_asynchronous_prediction_is_finished_before_the_server_exits(
    tiny_model: Path, web: HostileWebServer, webhooks: tuple[str, Webhooks]
) -> None:
    """On SIGTERM the server refuses new requests at once, and its webhook is still sent."""
    url, received = webhooks
    limits = {"CLIP_IMAGE_URLS": "any", "CLIP_IMAGE_URL_SECONDS": str(TRICKLE_SECONDS)}
    with CogServer({"CLIP_WEIGHTS": str(tiny_model), **limits}) as server:
        server.wait_ready()
        assert server.process is not None
        identifier = request_async(server, {"image": f"{web.url}/trickle"}, url, "completed")
        while not web.open:
            time.sleep(0.01)
        begin = time.monotonic()
        server.process.terminate()
        time.sleep(0.5)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/health-check", trust_env=False)
        assert server.process.wait(15) == 0
        seconds = time.monotonic() - begin
        completed = received.get(timeout=1)
        temporary = sum(1 for path in Path(server.directory, "tmp").rglob("*"))
    assert completed["id"] == identifier
    assert f"did not arrive within {TRICKLE_SECONDS} s" in completed["error"]
    assert seconds < TRICKLE_SECONDS + 4
    assert temporary == 0
    ATTACKS.append(("SIGTERM with work in flight", "its webhook is sent, exit 0", seconds, 0))


def test_idle_server_exits_at_once(tiny_model: Path) -> None:
    with CogServer({"CLIP_WEIGHTS": str(tiny_model)}) as server:
        server.wait_ready()
        assert server.process is not None
        begin = time.monotonic()
        server.process.terminate()
        assert server.process.wait(10) == 0
        assert time.monotonic() - begin < 4


# --- lost slots -----------------------------------------------------------------------------


def wait_until_exit(server: CogServer, seconds: float) -> int:
    """Wait for the server to end by itself, and return its exit status."""
    assert server.process is not None
    return server.process.wait(seconds)


def exhaust_slots(server: CogServer, count: int, send: Callable[[int], object]) -> None:
    """Send requests of which each costs a slot, until the server is BUSY."""
    for number in range(count):
        send(number)
    assert server.health()["status"] in ("BUSY", "UNHEALTHY")


def test_server_that_lost_its_slots_ends(tiny_model: Path) -> None:
    """A client's id that is no file name costs a slot. With 64 of them every request would be
    refused for ever. The process ends with an error, so that it is restarted, and serves again."""
    begin = time.monotonic()
    for attempt in range(2):
        with CogServer({"CLIP_WEIGHTS": str(tiny_model)}, predictor=SHORT_INTERVALS) as server:
            server.wait_ready()
            assert server.predict(text="a red bicycle")["status"] == "succeeded"
            if attempt == 1:  # the restart
                break

            def send(number: int, url: str = server.url) -> None:
                body = {"id": f"{number}" + "x" * 300, "input": {"text": "a"}}
                httpx.post(f"{url}/predictions", json=body, trust_env=False, timeout=30)

            exhaust_slots(server, 70, send)
            assert wait_until_exit(server, 20) == -signal.SIGKILL
    seconds = time.monotonic() - begin
    ATTACKS.append(("70 ids that are no file names", "ends, and is restarted", seconds, 0))


def test_server_that_is_always_busy_goes_on(tiny_model: Path) -> None:
    """With one slot and four clients that ask again and again, a check often finds it BUSY while
    nothing is running."""
    environment = {"CLIP_WEIGHTS": str(tiny_model), "COG_MAX_CONCURRENCY": "1"}
    with CogServer(environment, predictor=SHORT_INTERVALS) as server:
        server.wait_ready()
        assert server.process is not None
        end = time.monotonic() + 6

        def client(_: int) -> list[int]:
            statuses = []
            with httpx.Client(base_url=server.url, trust_env=False, timeout=30) as http:
                while time.monotonic() < end:
                    response = http.post("/predictions", json={"input": {"text": "a"}})
                    statuses.append(response.status_code)
            return statuses

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            statuses = {status for some in pool.map(client, range(4)) for status in some}
        assert statuses == {200, 409}
        assert server.process.poll() is None


def small_disk(options: str) -> tuple[str, ...]:
    """Return a command that runs another one with a disk of its own at /tmp/coglet, where Cog makes
    its directories. Skips without permission."""
    script = f'mkdir -p /tmp/coglet && mount -t tmpfs -o {options} none /tmp/coglet && exec "$@"'
    command = ("unshare", "--mount", "sh", "-c", script, "sh")
    if (
        shutil.which("unshare") is None
        or subprocess.run([*command, "true"], capture_output=True).returncode
    ):
        if os.environ.get("CI") and os.geteuid() == 0:
            pytest.fail("a mount namespace cannot be made, and in CI nothing is skipped")
        pytest.skip("making a mount namespace needs root")
    return command


def test_read_only_root_fails_setup_with_one_sentence(tiny_model: Path) -> None:
    wrapper = small_disk("ro")
    with CogServer({"CLIP_WEIGHTS": str(tiny_model)}, wrapper=wrapper) as server:
        begin = time.monotonic()
        assert server.wait()["status"] == "SETUP_FAILED"
        log = server.setup_log()
    assert "/tmp/coglet/predictions cannot be written to: Read-only file system; Cog needs" in log
    seconds = time.monotonic() - begin
    ATTACKS.append(("read-only /tmp", "setup fails, one sentence", seconds, 0))


def test_read_only_root_with_a_writable_tmp_works(tiny_model: Path) -> None:
    """Nothing but /tmp is written to: TMPDIR is read-only, too."""
    wrapper = small_disk("size=8m")
    environment = {"CLIP_WEIGHTS": str(tiny_model), "TMPDIR": "/proc"}
    with CogServer(environment, wrapper=wrapper) as server:
        server.wait_ready()
        assert server.predict(text="a red bicycle")["status"] == "succeeded"


def test_full_disk_ends_the_server_and_the_restart_works(tiny_model: Path) -> None:
    """Cog cannot make directories while the disk is full, and so loses its slots. A restart fails
    with one sentence while it is still full, and works when there is room again."""
    begin = time.monotonic()
    environment = {"CLIP_WEIGHTS": str(tiny_model)}
    wrapper = small_disk("size=8m,nr_inodes=120")
    with CogServer(environment, wrapper=wrapper, predictor=SHORT_INTERVALS) as server:
        server.wait_ready()
        assert server.process is not None
        tmp = Path(f"/proc/{server.process.pid}/root/tmp/coglet")
        assert server.predict(text="a red bicycle")["status"] == "succeeded"
        with contextlib.suppress(OSError):  # no inode is left
            for number in range(120):
                (tmp / f"file-{number}").touch()

        def send(_: int) -> None:
            httpx.post(f"{server.url}/predictions", json={"input": {"text": "a"}}, trust_env=False)

        exhaust_slots(server, 70, send)
        assert wait_until_exit(server, 20) == -signal.SIGKILL
    with CogServer(environment, wrapper=small_disk("size=8m,nr_inodes=1")) as server:
        assert server.wait()["status"] == "SETUP_FAILED"
        assert "cannot be written to: No space left on device; Cog needs" in server.setup_log()
    with CogServer(environment, wrapper=wrapper) as server:
        server.wait_ready()
        assert server.predict(text="a red bicycle")["status"] == "succeeded"
    seconds = time.monotonic() - begin
    ATTACKS.append(("full disk, and room again", "ends, and is restarted", seconds, 0))


# --- what clients get -----------------------------------------------------------------------


def test_body_without_content_type_names_the_header(server: CogServer) -> None:
    """Cog ignores such a body. (With another Content-Type it answers 415.)"""
    response = httpx.post(
        f"{server.url}/predictions", content=b'{"input": {"text": "a"}}', trust_env=False
    )
    assert "with Content-Type: application/json" in response.json()["error"]


def test_empty_image_beside_a_text_counts_as_absent(server: CogServer) -> None:
    assert server.predict(text="a red bicycle", image="")["status"] == "succeeded"


def test_body_over_cogs_limit_is_413(server: CogServer) -> None:
    """Cog's limit is 100 MiB for the body."""
    body = b'{"input": {"text": "' + b"a" * (100 * 2**20) + b'"}}'
    headers = {"Content-Type": "application/json"}
    try:
        response = httpx.post(
            f"{server.url}/predictions", content=body, headers=headers, trust_env=False
        )
    except (httpx.WriteError, httpx.ReadError):
        return  # it answers and closes while the body is being sent
    assert response.status_code == 413
