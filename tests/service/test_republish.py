"""Publishing again: a prefix can be pulled at every moment, and old files can be removed."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import weights
from clip_embed.checkpoint import load
from scripts import remove_old_weights
from scripts.lib.storage import DirectoryStorage, open_storage
from scripts.publishing import shards
from scripts.publishing.model import Model, read_model
from scripts.publishing.publish import publish
from tests.helpers import result_tables
from tests.helpers.paths import TINY

PULLS = 20


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 2**18)


@pytest.fixture(scope="module")
def models() -> tuple[Model, Model]:
    """Return two models of one architecture that share no tensor but those of one value."""
    old, new = (read_model(f"random:{seed}", str(TINY)) for seed in (1, 2))
    return old, new


@pytest.fixture(params=["directory", "bucket"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "directory":
        return str(tmp_path / "model")
    request.getfixturevalue("bucket")
    return f"gs://models/republish/{tmp_path.name}"


def pulled_model(location: str, models: tuple[Model, Model]) -> int | None:
    """Pull a model; return which of `models` it is, None for a mixture."""
    with weights.pull(location, streams=2) as pull:
        tensors = load.load_tensors(pull.blocks(), torch.device("cpu"), torch.float32)
    for number, model in enumerate(models):
        if all(torch.equal(tensors[name], value) for name, value in model.tensors.items()):
            return number
    return None


@pytest.fixture
def republishing(location: str, models: tuple[Model, Model]) -> Iterator[list[int]]:
    """Publish both models in turn to `location`, again and again; yield what was published."""
    published: list[int] = []
    stop = threading.Event()

    def run() -> None:
        for number in itertools.cycle((0, 1)):
            publish(models[number], open_storage(location))
            published.append(number)
            if stop.is_set():
                return

    thread = threading.Thread(target=run)
    thread.start()
    while not published:
        time.sleep(0.01)
    yield published
    stop.set()
    thread.join()


def test_pulls_during_republication_get_one_model_whole(
    location: str, models: tuple[Model, Model], republishing: list[int]
) -> None:
    """20 pulls start while two models replace each other: each gets the old or the new one."""
    found: list[int | None] = []
    with ThreadPoolExecutor(4) as pool:
        pulls = []
        for _ in range(PULLS):
            pulls.append(pool.submit(pulled_model, location, models))
            time.sleep(0.1)
        found += [pull.result() for pull in pulls]
    assert len(republishing) > 2, "nothing was republished meanwhile"
    assert None not in found
    kind = "bucket" if location.startswith("gs://") else "directory"
    result_tables.REPUBLISHED.append(
        (kind, len(republishing), PULLS, found.count(0), found.count(1), found.count(None))
    )


def test_publisher_that_dies_leaves_the_old_model(
    models: tuple[Model, Model], tmp_path: Path
) -> None:
    """It dies after each of its writes; the next attempt writes one more file."""
    publish(models[0], open_storage(str(tmp_path)))
    before = (tmp_path / "manifest.json").read_bytes()

    class Dying(DirectoryStorage):
        def write(self, *arguments: object, **named: object) -> None:
            super().write(*arguments, **named)  # type: ignore[arg-type]
            raise KeyboardInterrupt

    for attempt in itertools.count():  # noqa: B007
        try:
            publish(models[1], Dying(str(tmp_path)))
        except KeyboardInterrupt:
            written = (tmp_path / "manifest.json").read_bytes() != before
            assert pulled_model(str(tmp_path), models) == (1 if written else 0)
        else:
            break
    assert attempt > 5
    assert pulled_model(str(tmp_path), models) == 1


def test_directory_of_transformers_is_not_written_to(
    models: tuple[Model, Model], tmp_path: Path
) -> None:
    """Its index would be replaced by one with other names."""
    index = {"weight_map": {"logit_scale": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileExistsError, match=r"holds another model's model\.safetensors"):
        publish(models[0], open_storage(str(tmp_path)))
    assert len(list(tmp_path.iterdir())) == 1


def test_one_of_two_publishers_wins_whole(location: str, models: tuple[Model, Model]) -> None:
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            list(pool.map(lambda model: publish(model, open_storage(location)), models))
            assert pulled_model(location, models) in (0, 1)


def remove(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["remove_old_weights.py", *arguments])
    remove_old_weights.main()


def test_old_files_are_removed_by_a_command(
    location: str, models: tuple[Model, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that publishing did not write stay, and for a day all files do."""
    storage = open_storage(location)
    publish(models[0], storage)
    first = set(storage.names())
    publish(models[1], storage)
    storage.write("notes.txt", b"mine")
    both = set(storage.names())
    remove(monkeypatch, location)
    remove(monkeypatch, location, "--older-than", "0", "--dry-run")
    time.sleep(0.01)
    assert set(storage.names()) == both
    remove(monkeypatch, location, "--older-than", "0")
    left = set(storage.names())
    assert left < both
    assert "notes.txt" in left
    assert len(left) == len(first) + 1
    assert pulled_model(location, models) == 1


def test_files_of_format_version_1_are_removed(
    tiny_model: Path,
    models: tuple[Model, Model],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They lie under their usual names, which a checkpoint of transformers has as well: hence an
    option. Before, the model can be pulled."""
    location = tmp_path / "old"
    shutil.copytree(tiny_model, location)
    with weights.pull(str(location)) as pull:
        [old, *_] = [file.stored_as for file in pull.manifest.shards]
    assert (location / old).exists()
    publish(models[1], open_storage(str(location)))
    time.sleep(0.01)
    remove(monkeypatch, str(location), "--older-than", "0")
    assert (location / old).exists()
    remove(monkeypatch, str(location), "--older-than", "0", "--version-1")
    assert not (location / old).exists()
    assert pulled_model(str(location), models) == 1


def test_files_of_a_pull_that_has_begun_are_kept(
    models: tuple[Model, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old model was published long ago, and replaced a moment ago."""
    storage = open_storage(str(tmp_path))
    publish(models[0], storage)
    for path in tmp_path.iterdir():
        os.utime(path, (0, 1000))
    publish(models[1], storage)
    before = set(storage.names())
    remove(monkeypatch, str(tmp_path))
    assert set(storage.names()) == before


@pytest.mark.parametrize("hours", ["-5", "inf", "-inf", "nan", "day"])
def test_invalid_age_is_refused(
    hours: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit):
        remove(monkeypatch, str(tmp_path), f"--older-than={hours}")


def test_location_without_a_model_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model-00001-of-00001.safetensors").write_bytes(b"mine")
    with pytest.raises(SystemExit, match=r"holds no manifest\.json, so nothing was removed"):
        remove(monkeypatch, str(tmp_path), "--older-than", "0")
    assert len(list(tmp_path.iterdir())) == 1
