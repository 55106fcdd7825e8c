"""Publishing: a pull returns the checkpoint bit for bit, and a prefix never holds half a model."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import httpx
import open_clip
import pytest
import safetensors
import safetensors.torch
import stamina
import torch

import weights
from clip_embed.checkpoint import load
from clip_embed.checkpoint.manifest import Manifest, encode_checksum
from clip_embed.checkpoint.stores import TransientError
from clip_embed.errors import AccessError
from scripts import publish_weights
from scripts.lib.storage import (
    DirectoryStorage,
    OnProgress,
    StorageFile,
    open_storage,
)
from scripts.publishing import shards
from scripts.publishing.model import Model, read_model
from scripts.publishing.publish import publish
from tests.helpers.paths import DEMO_MODEL, TINY

SMALL_SHARDS = 2**18
Tensors = Mapping[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use several shards even for a tiny model, and no emulator of this machine."""
    monkeypatch.setattr(shards, "SHARD_BYTES", SMALL_SHARDS)
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)


@pytest.fixture(scope="module")
def trained() -> dict[str, torch.Tensor]:
    """Return a tiny checkpoint whose values all fit float16, as those of OpenAI's release do."""
    return dict(read_model("random:7", str(TINY)).tensors)


def pulled(location: Path | str) -> dict[str, torch.Tensor]:
    """Return the tensors that a service would load from `location`."""
    with weights.pull(str(location)) as pull:
        return load.load_tensors(pull.blocks(), torch.device("cpu"), torch.float32)


def stored(directory: Path) -> dict[str, torch.dtype]:
    """Return the dtype of every tensor in the shards, as safetensors itself reads them."""
    found: dict[str, torch.dtype] = {}
    for path in directory.glob("*.safetensors"):
        found |= {name: tensor.dtype for name, tensor in safetensors.torch.load_file(path).items()}
    return found


def assert_same(loaded: Tensors, source: Tensors) -> None:
    """Compare names, shapes and bits."""
    assert loaded.keys() == source.keys()
    for name, tensor in source.items():
        assert loaded[name].shape == tensor.shape, name
        assert torch.equal(loaded[name].view(torch.int32), tensor.view(torch.int32)), name


def publish_source(source: str, destination: Path | str) -> None:
    """Do what the command does: SOURCE DEST --model tiny.json."""
    publish(read_model(source, str(TINY)), open_storage(str(destination)))


class DyingStorage(DirectoryStorage):
    """A directory whose publisher dies after every write."""

    def write(self, *arguments: Any, **named: Any) -> None:
        super().write(*arguments, **named)
        raise KeyboardInterrupt


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# --- round trip -----------------------------------------------------------------------------


def save_plain(state: Tensors, path: Path) -> None:
    torch.save(dict(state), path)


def save_training(state: Tensors, path: Path) -> None:
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 3, "state_dict": wrapped}, path)


def save_openai(state: Tensors, path: Path) -> None:
    sizes = {"input_resolution": 56, "context_length": 77, "vocab_size": 49408}
    torch.save({**{name: tensor.half() for name, tensor in state.items()}, **sizes}, path)


def save_safetensors(state: Tensors, path: Path) -> None:
    safetensors.torch.save_file(dict(state), path)


@pytest.mark.parametrize(
    ("save", "name"),
    [
        pytest.param(save_plain, "model.pt", id="a state dict"),
        pytest.param(save_training, "epoch_3.pt", id="a training checkpoint"),
        pytest.param(save_openai, "openai.pth", id="OpenAI's extra entries"),
        pytest.param(save_safetensors, "model.safetensors", id="safetensors"),
    ],
)
def test_pull_returns_the_checkpoint_bit_for_bit(
    save: Callable[[Tensors, Path], None], name: str, trained: Tensors, tmp_path: Path
) -> None:
    save(trained, tmp_path / name)
    publish_source(str(tmp_path / name), tmp_path / "out")
    assert_same(pulled(tmp_path / "out"), trained)


@pytest.mark.usefixtures("bucket")
def test_pull_from_a_bucket_returns_the_checkpoint_bit_for_bit(
    trained: Tensors, tmp_path: Path
) -> None:
    save_plain(trained, tmp_path / "model.pt")
    publish_source(str(tmp_path / "model.pt"), "gs://models/publish/back")
    assert_same(pulled("gs://models/publish/back"), trained)


def test_values_that_fit_float16_take_half_the_bytes(trained: Tensors, tmp_path: Path) -> None:
    save_plain(trained, tmp_path / "model.pt")
    publish_source(str(tmp_path / "model.pt"), tmp_path / "out")
    assert set(stored(tmp_path / "out").values()) == {torch.float16}
    numbers = sum(tensor.numel() for tensor in trained.values())
    size = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert 2 * numbers < size < 2.02 * numbers


@pytest.mark.parametrize("value", [1 + 2**-11, 65520.0, 1e-8, 1e-40, 0.1])
def test_one_value_outside_float16_keeps_its_tensor_in_float32(
    value: float, trained: Tensors, tmp_path: Path
) -> None:
    """Other tensors stay float16, whether the value is too fine, too large or too small."""
    changed = {name: tensor.clone() for name, tensor in trained.items()}
    changed["text_projection"][3, 5] = value
    save_plain(changed, tmp_path / "model.pt")
    publish_source(str(tmp_path / "model.pt"), tmp_path / "out")
    wide = {name for name, dtype in stored(tmp_path / "out").items() if dtype == torch.float32}
    assert wide == {"text_projection"}
    assert_same(pulled(tmp_path / "out"), changed)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(-0.0, id="negative zero"),
        pytest.param(2.0**-24, id="smallest subnormal"),
        pytest.param(-1023 * 2.0**-24, id="largest subnormal"),
        pytest.param(65504.0, id="largest"),
    ],
)
def test_extreme_values_of_float16_are_stored_as_float16(value: float) -> None:
    tensor = torch.tensor([1.0, value])
    narrow = shards.narrow(tensor)
    assert narrow.dtype == torch.float16
    assert torch.equal(narrow.float().view(torch.int32), tensor.view(torch.int32))


def test_bfloat16_checkpoint_loses_nothing(trained: Tensors, tmp_path: Path) -> None:
    """Many bfloat16 values do not fit float16."""
    state = {name: tensor.bfloat16() for name, tensor in trained.items()}
    save_plain(state, tmp_path / "model.pt")
    publish_source(str(tmp_path / "model.pt"), tmp_path / "out")
    assert_same(pulled(tmp_path / "out"), {name: each.float() for name, each in state.items()})


# --- the published files --------------------------------------------------------------------


@pytest.fixture(scope="module")
def directory(trained: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Publish the checkpoint; return the directory."""
    folder = tmp_path_factory.mktemp("publish")
    save_plain(trained, folder / "model.pt")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(shards, "SHARD_BYTES", SMALL_SHARDS)
        publish_source(str(folder / "model.pt"), folder / "out")
    return folder / "out"


def test_manifest_lists_every_file_of_the_service_with_size_and_checksum(directory: Path) -> None:
    """Config and tokenizer are there twice: the copies with usual names are for other tools."""
    files = files_of(directory)
    manifest = Manifest.parse(files.pop("manifest.json"), "here")
    assert (manifest.model, manifest.source) == ("tiny", "model.pt")
    listed = {file.stored_as: file for file in manifest.files}
    assert files.keys() - listed.keys() == {
        "open_clip_config.json",
        "tokenizer.json",
        "model.safetensors.index.json",
    }
    for name, file in listed.items():
        assert file.size == len(files[name])
        assert file.crc32c == encode_checksum(google_crc32c.value(files[name]))
        if not name.endswith(".safetensors"):
            assert files[name] == files[file.name]


def test_stored_name_depends_on_the_content(directory: Path) -> None:
    """It is the file's name with the beginning of its SHA-256."""
    for file in Manifest.parse((directory / "manifest.json").read_bytes(), "here").files:
        digest = hashlib.sha256((directory / file.stored_as).read_bytes()).hexdigest()
        stem, suffix = file.name.rsplit(".", 1)
        assert file.stored_as == f"{stem}-{digest[:16]}.{suffix}"


def test_shards_exceed_the_limit_only_for_a_single_tensor(directory: Path) -> None:
    sizes = {}
    for path in directory.glob("*.safetensors"):
        loaded = safetensors.torch.load_file(path)
        sizes[path.name] = (sum(tensor.nbytes for tensor in loaded.values()), len(loaded))
    assert len(sizes) > 1
    assert all(size <= SMALL_SHARDS or count == 1 for size, count in sizes.values())


def test_hugging_face_index_names_the_shard_of_every_tensor(directory: Path) -> None:
    index = json.loads((directory / "model.safetensors.index.json").read_bytes())
    for path in directory.glob("*.safetensors"):
        with safetensors.safe_open(path, "pt") as shard:
            for name in shard.keys():  # noqa: SIM118  (not a mapping)
                assert index["weight_map"].pop(name) == path.name
    assert index["weight_map"] == {}


def test_config_has_the_format_of_open_clips_hub(directory: Path) -> None:
    config = json.loads((directory / "open_clip_config.json").read_bytes())
    assert config["model_cfg"] == json.loads(TINY.read_bytes())
    assert config["preprocess_cfg"] == {
        "mean": list(open_clip.OPENAI_DATASET_MEAN),
        "std": list(open_clip.OPENAI_DATASET_STD),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }


def test_random_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        publish_source(f"random:{seed}", tmp_path / name)
    a, b, c = (files_of(tmp_path / name) for name in "abc")
    assert a == b
    shards = [{name for name in files if name.endswith(".safetensors")} for files in (a, c)]
    assert shards[0] != shards[1]


# --- publishing again -----------------------------------------------------------------------


class RecordingStorage(DirectoryStorage):
    """A directory that records the names of written files. fails_at: the write of a name that
    begins so fails."""

    def __init__(self, path: Path, fails_at: str | None = None) -> None:
        super().__init__(str(path))
        self.written: list[str] = []
        self._fails_at = fails_at

    def write(
        self,
        name: str,
        data: bytes,
        *,
        cache_control: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        if self._fails_at and name.startswith(self._fails_at):
            raise OSError("no space left")
        self.written.append(name)
        super().write(name, data, cache_control=cache_control, on_progress=on_progress)


def tiny(seed: int) -> Model:
    return read_model(f"random:{seed}", str(TINY))


def changed(model: Model, name: str) -> Model:
    """Return `model` with one tensor negated."""
    tensors = {**model.tensors, name: -model.tensors[name]}
    return Model(model.name, model.source, tensors, model.config)


def test_publishing_the_same_model_again_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(tiny(1), open_storage(str(tmp_path / "out")))
    again = RecordingStorage(tmp_path / "out")
    publish(tiny(1), again)
    assert again.written == []
    size = sum(len(data) for data in files_of(tmp_path / "out").values())
    report = capsys.readouterr().out.splitlines()[-1]
    assert report.endswith(f"; 0.0 MB written, {size / 1e6:.1f} MB were there already")


def test_publishing_again_writes_missing_and_different_files(tmp_path: Path) -> None:
    model = tiny(1)
    """The other shards are shared by both publications."""
    publish(model, open_storage(str(tmp_path)))
    (tmp_path / "tokenizer.json").unlink()
    again = RecordingStorage(tmp_path)
    publish(changed(model, "ln_final.weight"), again)
    [shard] = [name for name in again.written if name.endswith(".safetensors")]
    assert again.written == [
        shard,
        "tokenizer.json",
        "model.safetensors.index.json",
        "manifest.json",
    ]
    assert "ln_final.weight" in safetensors.torch.load_file(tmp_path / shard)
    assert_same(pulled(tmp_path), changed(model, "ln_final.weight").tensors)


def test_manifest_is_written_last(tmp_path: Path) -> None:
    destination = RecordingStorage(tmp_path)
    publish(tiny(1), destination)
    assert destination.written[-1] == "manifest.json"
    assert sorted(destination.written) == sorted(files_of(tmp_path))


def test_failed_publication_leaves_no_manifest(tmp_path: Path) -> None:
    failing = RecordingStorage(tmp_path, fails_at="model-00002-of-00005")
    with pytest.raises(OSError, match="no space left"):
        publish(tiny(1), failing)
    assert any(name.startswith("model-00001-of-00005") for name in files_of(tmp_path))
    assert "manifest.json" not in files_of(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "open_clip_config.json"])
def test_file_of_another_model_is_not_replaced(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(FileExistsError, match=f"holds another model's {name}, which publishing"):
        publish(tiny(0), open_storage(str(tmp_path)))
    assert files_of(tmp_path) == {name: b"{}"}


def test_interrupted_first_publication_is_continued(tmp_path: Path) -> None:
    for _ in range(50):
        try:
            publish(tiny(0), DyingStorage(str(tmp_path)))
            break
        except KeyboardInterrupt:
            continue
    assert pulled(tmp_path).keys() == tiny(0).tensors.keys()


def test_interrupted_first_publication_may_be_followed_by_another_model(tmp_path: Path) -> None:
    """Its files have copies under names of their content, as no other tool writes."""
    publish(tiny(0), open_storage(str(tmp_path)))
    (tmp_path / "manifest.json").unlink()
    other = replace(tiny(0), config={**tiny(0).config, "note": "other"})
    publish(other, open_storage(str(tmp_path)))
    assert (tmp_path / "manifest.json").exists()


def test_failed_republication_leaves_the_old_manifest(tmp_path: Path) -> None:
    """The old model can still be pulled."""
    publish(tiny(1), open_storage(str(tmp_path)))
    before = files_of(tmp_path)["manifest.json"]
    failing = RecordingStorage(tmp_path, fails_at="model-00002-of-00005")
    with pytest.raises(OSError, match="no space left"):
        publish(tiny(2), failing)
    assert files_of(tmp_path)["manifest.json"] == before
    assert_same(pulled(tmp_path), tiny(1).tensors)


# --- in a bucket ----------------------------------------------------------------------------


def objects(emulator: str, prefix: str) -> dict[str, dict[str, Any]]:
    """Return the metadata of the objects below `prefix`, by name."""
    url = f"{emulator}/storage/v1/b/models/o"
    listing = httpx.get(url, params={"prefix": f"{prefix}/"}, timeout=10).raise_for_status().json()
    return {item["name"].removeprefix(f"{prefix}/"): item for item in listing.get("items", [])}


def generations(emulator: str, prefix: str) -> dict[str, str]:
    return {name: item["generation"] for name, item in objects(emulator, prefix).items()}


@pytest.mark.usefixtures("bucket")
def test_publishing_the_same_model_again_keeps_the_generations(emulator: str) -> None:
    """The manifest keeps its generation too: running services notice nothing."""
    publish_source("random:1", "gs://models/again")
    before = generations(emulator, "again")
    publish_source("random:1", "gs://models/again")
    assert generations(emulator, "again") == before


@pytest.mark.usefixtures("bucket")
def test_publishing_again_overwrites_nothing_that_a_pull_reads(emulator: str) -> None:
    publish(tiny(1), open_storage("gs://models/changed"))
    before = generations(emulator, "changed")
    other = changed(tiny(1), "ln_final.weight")
    publish(other, open_storage("gs://models/changed"))
    after = generations(emulator, "changed")
    overwritten = {name for name in before if after[name] != before[name]}
    assert overwritten == {"manifest.json", "model.safetensors.index.json"}
    assert len(after) == len(before) + 1
    assert_same(pulled("gs://models/changed"), other.tensors)


@pytest.mark.usefixtures("bucket")
def test_only_the_manifest_is_excluded_from_caches(emulator: str) -> None:
    publish_source("random:1", "gs://models/cached")
    found = {name: item.get("cacheControl") for name, item in objects(emulator, "cached").items()}
    assert found.pop("manifest.json") == "no-store"
    assert not any(found.values())


# --- storage --------------------------------------------------------------------------------


@pytest.fixture(params=["directory", "bucket"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return an empty location of each kind."""
    if request.param == "directory":
        return str(tmp_path / "files")
    request.getfixturevalue("bucket")
    return f"gs://models/storage/{tmp_path.name}"


def test_written_file_is_listed_and_read(location: str) -> None:
    storage = open_storage(location)
    assert storage.version("a/b.bin") is None
    storage.write("a/b.bin", b"0123456789")
    checksum = encode_checksum(google_crc32c.value(b"0123456789"))
    version = storage.version("a/b.bin")
    assert version is not None
    assert version.crc32c == checksum
    assert abs(version.modified - time.time()) < 60
    assert list(storage.names()) == ["a/b.bin"]
    assert list(storage.names("b")) == []
    assert storage.size("a/b.bin") == 10
    assert storage.read("a/b.bin") == b"0123456789"
    assert storage.read("a/b.bin", 2, 5) == b"234"
    for operation in (storage.size, storage.read):
        with pytest.raises(FileNotFoundError):
            operation("none")
    storage.delete("a/b.bin")
    storage.delete("a/b.bin")
    assert list(storage.names()) == []


def test_storage_file_seeks_and_reads_ranges(location: str) -> None:
    open_storage(location).write("a", b"0123456789")
    file = StorageFile(open_storage(location), "a")
    assert file.read(3) == b"012"
    file.seek(-2, os.SEEK_END)
    assert (file.read(), file.read(), file.tell()) == (b"89", b"", 10)


@pytest.mark.usefixtures("bucket")
def test_object_with_an_empty_path_segment_is_read() -> None:
    """Cloud Storage allows such names; obstore, which reads all other objects, does not."""
    storage = open_storage("gs://models/segments")
    storage.write("a//b", b"0123456789")
    assert storage.read("a//b", 2, 5) == b"234"
    with pytest.raises(FileNotFoundError):
        storage.read("a//none")


@pytest.mark.usefixtures("bucket")
def test_prefix_may_be_empty() -> None:
    assert open_storage("gs://models/").version("nothing.json") is None


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(str(tmp_path))
    storage.write("a", b"old")

    def fail(source: object, destination: object) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="power cut"):
        storage.write("a", b"new")
    assert files_of(tmp_path) == {"a": b"old"}


def test_progress_ends_at_the_size_of_the_file(location: str) -> None:
    sent: list[int] = []
    open_storage(location).write("a", b"0123456789", on_progress=sent.append)
    assert sent[-1] == 10


@pytest.mark.usefixtures("no_cloud_environment")
def test_progress_moves_back_when_an_upload_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cloud Storage accepts the first half of a resumable upload, then fails once."""
    sent: list[int] = []

    def upload(blob: Any, file: Any, size: int, checksum: str) -> None:
        file.read(6)
        file.seek(4)
        file.read(6)
        blob._set_properties({"generation": 1})

    monkeypatch.setattr("google.cloud.storage.Blob.upload_from_file", upload)
    open_storage("gs://models/retried").write("a", b"0123456789", on_progress=sent.append)
    assert sent == [6, 10]


class FlakyStore:
    """A store whose first reads fail."""

    location = "here"

    def __init__(self, failures: int) -> None:
        self._failures = failures

    def read(self, name: str, start: int = 0, end: int | None = None) -> memoryview:
        self._failures -= 1
        if self._failures >= 0:
            raise TransientError("HTTP 503")
        return memoryview(b"data")


@pytest.mark.parametrize("failures", [7, 8])
def test_read_is_attempted_eight_times(failures: int, tmp_path: Path) -> None:
    storage = DirectoryStorage(str(tmp_path))
    storage._store = FlakyStore(failures)
    with stamina.set_testing(True, attempts=8, cap=True):
        if failures == 7:
            assert storage.read("a") == b"data"
        else:
            with pytest.raises(OSError, match="here/a: HTTP 503 after 8 attempts; run the same"):
                storage.read("a")


@pytest.mark.usefixtures("no_cloud_environment")
def test_without_credentials_only_reading_is_anonymous() -> None:
    assert open_storage("gs://public/model").location == "gs://public/model"
    with pytest.raises(AccessError, match="set GOOGLE_APPLICATION_CREDENTIALS"):
        open_storage("gs://public/model", allow_anonymous=False)


@pytest.mark.parametrize("location", ["https://host/clip", "s3://bucket/clip", "gs://", "gs:///a"])
def test_other_location_is_refused(location: str) -> None:
    with pytest.raises(
        ValueError, match=r"^the location .*; give gs://bucket/prefix or a directory"
    ):
        open_storage(location)


# --- invalid arguments and checkpoints ------------------------------------------------------


class Tripwire:
    """Creates a file when it is unpickled."""

    path: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    Tripwire.path = tmp_path / "tripped"
    torch.save({"state_dict": {"a": Tripwire()}}, tmp_path / "evil.pt")
    with pytest.raises(SystemExit, match=r"evil\.pt holds a .* save its state_dict alone"):
        read_model(str(tmp_path / "evil.pt"), str(TINY))
    assert not Tripwire.path.exists()
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert Tripwire.path.exists(), "unpickling should have created the file"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("a.pt", b"hello", id="not a pickle"),
        pytest.param("a.pt", b"", id="empty"),
        pytest.param("a.safetensors", b"hello", id="not safetensors"),
        pytest.param("a.pt", [torch.ones(1)], id="a list"),
        pytest.param("a.pt", {"a": 1}, id="a number"),
    ],
)
def test_file_that_is_not_a_checkpoint_is_refused(name: str, content: Any, tmp_path: Path) -> None:
    """The error is one sentence, with the name of the file and the way out."""
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(SystemExit) as caught:
        read_model(str(tmp_path / name), str(TINY))
    assert str(caught.value).startswith(f"{tmp_path / name} ")
    way_out = "; save the model's state_dict|; fetch or save it anew|; give the file that the train"
    assert re.search(way_out, str(caught.value))


@pytest.mark.parametrize(
    ("source", "model", "says"),
    [
        ("nothing.pt", str(TINY), "there is no file or directory 'nothing.pt'; check the path"),
        ("openai", str(TINY), "there is no file or directory 'openai', and open_clip has no"),
        ("opnai", "ViT-L-14-quickgelu", "(known: openai, "),
        ("random:", str(TINY), "'random:': give a seed, as in random:0"),
        ("random:-1", str(TINY), "'random:-1': give a seed"),
        ("random:x", str(TINY), "'random:x': give a seed"),
        ("random:0", "ViT-L-15", "open_clip knows no model 'ViT-L-15'; try ViT-L-14-quickgelu"),
        (
            "random:0",
            "nothing.json",
            "there is no file nothing.json; give a JSON file with embed_di",
        ),
        (
            "random:0",
            str(DEMO_MODEL / "manifest.json"),
            "has no embed_dim and no vision_cfg and no text_cfg; give a JSON file with embed_dim",
        ),
    ],
)
def test_invalid_argument_is_named_with_the_valid_ones(source: str, model: str, says: str) -> None:
    with pytest.raises(SystemExit) as caught:
        read_model(source, model)
    assert says in str(caught.value)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Run the command in this process."""
    monkeypatch.setattr("sys.argv", ["publish_weights.py", *arguments, "--model", str(TINY)])
    publish_weights.main()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        pytest.param(lambda state: state.pop("logit_scale"), "logit_scale is missing", id="less"),
        pytest.param(
            lambda state: state.update(extra=torch.ones(1)), "extra is unknown", id="more"
        ),
        pytest.param(
            lambda state: state.update(text_projection=torch.ones(2, 3)),
            "text_projection has shape [2, 3], expected [16, 768]",
            id="other shape",
        ),
    ],
)
def test_checkpoint_of_another_model_is_refused_before_anything_is_written(
    spoil: Callable[[dict[str, torch.Tensor]], object],
    says: str,
    trained: Tensors,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error names the tensors that do not fit."""
    state = dict(trained)
    spoil(state)
    save_plain(state, tmp_path / "model.pt")
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, str(tmp_path / "model.pt"), str(tmp_path / "out"))
    assert str(caught.value).startswith(f"{tmp_path / 'model.pt'}: the weights do not fit")
    assert says in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_web_server_is_refused_as_destination(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """https://host/clip does not become a directory of that name."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="give gs://bucket/prefix or a directory"):
        run(monkeypatch, "random:0", "https://host/clip")
    assert list(tmp_path.iterdir()) == []


def test_command_publishes_and_reports_the_saved_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "random:0", str(tmp_path / "out"))
    assert pulled(tmp_path / "out").keys() == tiny(0).tensors.keys()
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'out'}: tiny (random:0), " in printed
    assert "in float32 (50% saved); " in printed


def test_saved_bytes_are_reported_only_if_there_are_any(
    trained: Tensors, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = {name: tensor + 1e-7 for name, tensor in trained.items()}
    publish(replace(tiny(0), tensors=tensors), open_storage(str(tmp_path)))
    assert "saved)" not in capsys.readouterr().out


def test_help_is_printed_without_importing_torch() -> None:
    """torch and open_clip take seconds to import."""
    script = """
import sys
import time
from scripts import publish_weights
sys.argv = ["publish_weights.py", "--help"]
try:
    publish_weights.main()
finally:
    assert sys.modules.keys().isdisjoint({"torch", "open_clip"})
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "publish_weights.py SOURCE DEST" in done.stdout
    help_text = " ".join(done.stdout.split())
    assert "the architecture, if SOURCE does not tell it: ViT-L-14, or a JSON file" in help_text
    assert "mean per channel, for pixels from 0 to 1" in help_text
    assert "standard deviation per channel" in help_text
