"""Publishing from the Hugging Face hub, and from what answers in its place. No request leaves
this machine: HF_ENDPOINT is a server on 127.0.0.1."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch

from tests.helpers import checkpoints
from tests.helpers.hub_server import HubServer, Repository
from tests.helpers.paths import ROOT
from tests.helpers.result_tables import SOURCES

TOKEN = "hf_theTokenOfTheseTests"

# Several commands in one process: each start takes seconds. huggingface_hub reads HF_ENDPOINT when
# it is imported, so that it cannot be this process.
DRIVER = """
import contextlib, io, json, sys, time
time.sleep = lambda seconds: None  # huggingface_hub waits before each of its retries
from scripts import publish_weights
results = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    code = 0
    sys.argv = ["publish_weights.py", *arguments]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            publish_weights.main()
        except SystemExit as error:
            code = error.code
    results.append({"code": code, "out": out.getvalue(), "err": err.getvalue()})
print(json.dumps(results))
"""


@dataclass(frozen=True)
class Result:
    """code: None or 0 for success, else the sentence. output: all that was printed."""

    code: object
    output: str


def run_all(
    commands: Mapping[str, list[str]], home: Path, endpoint: str, token: str = ""
) -> dict[str, Result]:
    """Run commands with their own hub and cache. Return their results by name."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        "HF_HUB_ETAG_TIMEOUT": "2",
        "HF_TOKEN": token,
        "PYTHONPATH": str(ROOT),
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(list(commands.values()))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    return {
        name: Result(result["code"], result["out"] + result["err"] + done.stderr)
        for name, result in zip(commands, results, strict=True)
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def hub(folder: Path) -> Iterator[HubServer]:
    """Run a hub with good, refused and broken repositories."""
    network = checkpoints.open_clip_model()
    checkpoints.write_config(folder / "open_clip", checkpoints.open_clip_config())
    safetensors.torch.save_file(
        dict(network.state_dict()), folder / "open_clip" / "open_clip_model.safetensors"
    )
    # timm's repositories hold a config.json of timm, which is not transformers'.
    (folder / "open_clip" / "config.json").write_text('{"architecture": "vit_mini"}')
    checkpoints.save_transformers(
        checkpoints.transformers_model(), folder / "transformers", max_shard_size="5MB"
    )
    # Big, so that its download would be seen among the requests.
    squash = checkpoints.open_clip_config(resize_mode="squash")
    checkpoints.write_config(folder / "squash", squash)
    (folder / "squash" / "open_clip_model.safetensors").write_bytes(bytes(1000))
    checkpoints.save_transformers(checkpoints.transformers_model(), folder / "both")
    checkpoints.write_config(folder / "both", checkpoints.open_clip_config())
    (folder / "siglip").mkdir()
    (folder / "siglip" / "config.json").write_text('{"model_type": "siglip"}')
    (folder / "empty").mkdir()
    weights = "open_clip_model.safetensors"
    repositories = {
        "org/open_clip": Repository(folder / "open_clip"),
        "org/transformers": Repository(folder / "transformers"),
        "org/private": Repository(folder / "open_clip", token=TOKEN),
        "org/secret": Repository(folder / "open_clip", token="hf_another"),
        "org/gated": Repository(folder / "open_clip", gated=True),
        "org/broken": Repository(folder / "open_clip", broken=weights),
        "org/shortened": Repository(folder / "open_clip", shortened=weights),
        "org/forbidden": Repository(folder / "open_clip", status=403),
        "org/busy": Repository(folder / "open_clip", status=501),
        "org/squash": Repository(folder / "squash"),
        "org/both": Repository(folder / "both"),
        "org/siglip": Repository(folder / "siglip"),
        "org/empty": Repository(folder / "empty"),
    }
    with HubServer(repositories) as server:
        yield server


GOOD = {
    "hf-hub:org/open_clip": "hf-hub:org/open_clip: open_clip model; ViT-128x2-8 with GELU",
    "org/open_clip": "org/open_clip: open_clip model; ViT-128x2-8 with GELU",
    "org/transformers": "org/transformers: transformers model; ViT-128x2-8 with QuickGELU",
    "https://huggingface.co/org/transformers": "org/transformers: transformers model;",
    "hf-hub:org/private": "hf-hub:org/private: open_clip model; ViT-128x2-8 with GELU",
}
REFUSED = {
    "org/nothing": "there is no file or directory org/nothing here; as a hub name: 127.0.0.1 ",
    "hf-hub:org/nothing": "hf-hub:org/nothing: 127.0.0.1 has no public model org/nothing; check",
    "org/secret": "there is no file or directory org/secret here; as a hub name: 127.0.0.1 h",
    "org/gated": "org/gated: org/gated is gated; accept its terms on 127.0.0.1, and set HF_TOKEN",
    "org/forbidden": "org/forbidden: 127.0.0.1 denies access to config.json (HTTP 403); set HF_TO",
    "org/busy": "org/busy: 127.0.0.1 answers HTTP 501 for config.json; run the same command again",
    "org/broken": "org/broken: the download of open_clip_model.safetensors was interrupted (",
    "org/shortened": "org/shortened: the download of open_clip_model.safetensors was interrupted",
    "org/squash": "org/squash: open_clip_config.json: resize_mode 'squash' cannot be prepared here",
    "hf-hub:org/both": "hf-hub:org/both: open_clip_config.json has GELU, but config.json says ",
    "org/siglip": "org/siglip: config.json: model_type is 'siglip', not 'clip', which this service",
    "org/empty": "org/empty has neither open_clip_config.json nor config.json; give a repository",
    "hf-hub:a/b/c": "hf-hub:a/b/c: that is no name of a model on the hub; give hf-hub:ORG/NAME",
}


def out_of(folder: Path, source: str) -> Path:
    return folder / "out" / source.replace("/", "_").replace(":", "_")


@pytest.fixture(scope="module")
def results(hub: HubServer, folder: Path) -> dict[str, Result]:
    """Publish from every repository; return the results by source."""
    commands = {source: [source, str(out_of(folder, source))] for source in (*GOOD, *REFUSED)}
    return run_all(commands, folder / "home", hub.url, TOKEN)


@pytest.mark.parametrize("source", GOOD)
def test_model_of_the_hub_is_published(
    source: str, results: dict[str, Result], folder: Path, tmp_path: Path
) -> None:
    result = results[source]
    assert result.code in (0, None), result.code
    assert GOOD[source] in result.output
    out = out_of(folder, source)
    manifest = json.loads((out / "manifest.json").read_bytes())
    assert manifest["source"] == source.removeprefix("https://huggingface.co/")
    if "transformers" in source:
        reference = checkpoints.transformers_reference(checkpoints.transformers_model())
    else:
        reference = checkpoints.directory_reference(folder / "open_clip")
    vectors = checkpoints.embed_with_service(out, tmp_path)
    difference, cosine = reference.difference(vectors)
    SOURCES.append((source, GOOD[source].partition("; ")[2], vectors.shape[1], difference))
    assert difference <= 1e-4
    assert cosine >= 0.999999


@pytest.mark.parametrize("source", REFUSED)
def test_failure_of_the_hub_is_one_sentence(
    source: str, results: dict[str, Result], folder: Path
) -> None:
    result = results[source]
    assert str(result.code).startswith(REFUSED[source])
    assert "\n" not in str(result.code)
    assert result.output == "", "only the sentence is printed"
    assert not out_of(folder, source).exists()


def test_token_is_never_printed(results: dict[str, Result]) -> None:
    assert not [source for source, result in results.items() if TOKEN in str(result)]


@pytest.mark.usefixtures("results")
def test_tensors_are_not_downloaded_if_the_config_is_refused(hub: HubServer) -> None:
    paths = [path for _, path in hub.requests]
    assert any("org/squash/resolve" in path for path in paths)
    assert not [path for path in paths if "org/squash" in path and path.endswith(".safetensors")]


def test_unreachable_hub_is_named(results: dict[str, Result], folder: Path) -> None:
    """What is in the cache is published without a network."""
    assert results
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # nobody listens
        endpoint = f"http://user:{TOKEN}@127.0.0.1:{unused.getsockname()[1]}"
        commands = {
            "cached": ["hf-hub:org/open_clip", str(folder / "out" / "cached")],
            "cached transformers": ["org/transformers", str(folder / "out" / "cached_2")],
            "new": ["org/new", str(folder / "out" / "new")],
        }
        found = run_all(commands, folder / "home", endpoint)
    assert found["cached"].code in (0, None)
    assert found["cached transformers"].code in (0, None)
    assert str(found["new"].code) == (
        "there is no file or directory org/new here; as a hub name: 127.0.0.1 cannot be reached"
        " (ConnectError); check the network, HTTPS_PROXY and HF_ENDPOINT"
    )
    assert TOKEN not in str(found)
