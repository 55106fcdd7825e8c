"""Publishing: what comes back from a published prefix is the checkpoint, to the last bit, in fewer
bytes; and a prefix is at no time half a model."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import open_clip
import pytest
import safetensors
import safetensors.torch
import torch
from tqdm import tqdm

import publish_weights
import weights
from clip_embed import tensors
from clip_embed.manifest import Manifest
from conftest import TINY

SMALL_SHARDS = 2**20
Tensors = Mapping[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards even of a tiny model, and no credentials of this machine."""
    monkeypatch.setattr(publish_weights, "SHARD_BYTES", SMALL_SHARDS)
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)


@pytest.fixture(scope="module")
def trained() -> dict[str, torch.Tensor]:
    """A tiny checkpoint whose values all fit float16, as OpenAI's do."""
    return dict(publish_weights.read_model("random:7", str(TINY)).tensors)


def pulled(location: Path | str) -> dict[str, torch.Tensor]:
    """What a service would get from `location`."""
    with weights.pull(str(location)) as pull:
        return tensors.load(pull.blocks(), torch.device("cpu"), torch.float32)


def stored(directory: Path) -> dict[str, torch.dtype]:
    """The dtype of every tensor as it lies in the shards, by safetensors' own reading."""
    found: dict[str, torch.dtype] = {}
    for path in directory.glob("*.safetensors"):
        found |= {name: tensor.dtype for name, tensor in safetensors.torch.load_file(path).items()}
    return found


def assert_same(loaded: Tensors, source: Tensors) -> None:
    """The same names, shapes and bits."""
    assert loaded.keys() == source.keys()
    for name, tensor in source.items():
        assert loaded[name].shape == tensor.shape, name
        assert torch.equal(loaded[name].view(torch.int32), tensor.view(torch.int32)), name


def publish(source: str, destination: Path | str) -> None:
    """As the command does: SOURCE DEST --model tiny.json."""
    kind = publish_weights.Bucket if str(destination).startswith("gs://") else None
    opened = (kind or publish_weights.Directory)(str(destination))
    publish_weights.publish(publish_weights.read_model(source, str(TINY)), opened)


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# --- there and back -------------------------------------------------------------------------


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
def test_a_checkpoint_comes_back_bit_for_bit(
    save: Callable[[Tensors, Path], None], name: str, trained: Tensors, tmp_path: Path
) -> None:
    """Whatever kind of checkpoint was published, a pull gives its tensors under open_clip's
    names."""
    save(trained, tmp_path / name)
    publish(str(tmp_path / name), tmp_path / "out")
    assert_same(pulled(tmp_path / "out"), trained)


def test_a_bucket_gives_back_what_was_published(
    trained: Tensors, tmp_path: Path, emulator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same through Cloud Storage."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    save_plain(trained, tmp_path / "model.pt")
    publish(str(tmp_path / "model.pt"), "gs://models/publish/back")
    assert_same(pulled("gs://models/publish/back"), trained)


def test_values_that_fit_float16_take_half_the_bytes(trained: Tensors, tmp_path: Path) -> None:
    """A checkpoint that is upcast float16 is stored as float16 throughout."""
    save_plain(trained, tmp_path / "model.pt")
    publish(str(tmp_path / "model.pt"), tmp_path / "out")
    assert set(stored(tmp_path / "out").values()) == {torch.float16}
    numbers = sum(tensor.numel() for tensor in trained.values())
    size = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert 2 * numbers < size < 2.02 * numbers


@pytest.mark.parametrize("value", [1 + 2**-11, 65520.0, 1e-8, 1e-40, 0.1])
def test_one_value_that_does_not_fit_keeps_its_tensor_wide(
    value: float, trained: Tensors, tmp_path: Path
) -> None:
    """A single value too fine, too large or too small for float16 makes its own tensor float32,
    and no other."""
    changed = {name: tensor.clone() for name, tensor in trained.items()}
    changed["text_projection"][3, 5] = value
    save_plain(changed, tmp_path / "model.pt")
    publish(str(tmp_path / "model.pt"), tmp_path / "out")
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
def test_values_at_the_edge_of_float16_stay_narrow(value: float) -> None:
    """What float16 holds exactly is stored as float16, sign of zero and subnormals included."""
    tensor = torch.tensor([1.0, value])
    narrow = publish_weights.narrow(tensor)
    assert narrow.dtype == torch.float16
    assert torch.equal(narrow.float().view(torch.int32), tensor.view(torch.int32))


def test_bfloat16_loses_nothing(trained: Tensors, tmp_path: Path) -> None:
    """A bfloat16 checkpoint comes back exactly, though much of it fits no float16."""
    state = {name: tensor.bfloat16() for name, tensor in trained.items()}
    save_plain(state, tmp_path / "model.pt")
    publish(str(tmp_path / "model.pt"), tmp_path / "out")
    assert_same(pulled(tmp_path / "out"), {name: each.float() for name, each in state.items()})


# --- what lies there ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def directory(trained: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint, published."""
    folder = tmp_path_factory.mktemp("publish")
    save_plain(trained, folder / "model.pt")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(publish_weights, "SHARD_BYTES", SMALL_SHARDS)
        publish(str(folder / "model.pt"), folder / "out")
    return folder / "out"


def test_the_manifest_describes_every_other_object(directory: Path) -> None:
    """The manifest lists each object beside it, with its size and checksum, and says what the
    model is and where it came from."""
    files = files_of(directory)
    manifest = Manifest.parse(files.pop("manifest.json"), "here")
    assert (manifest.model, manifest.source) == ("tiny", "model.pt")
    assert {file.name: file.size for file in manifest.files} == {
        name: len(data) for name, data in files.items()
    }
    for file in manifest.files:
        computed = google_crc32c.value(files[file.name])
        assert file.crc32c == publish_weights.manifest.encode_checksum(computed)


def test_shards_are_of_bounded_size(directory: Path) -> None:
    """A shard is no larger than the limit, unless a single tensor is."""
    sizes = {}
    for path in directory.glob("*.safetensors"):
        loaded = safetensors.torch.load_file(path)
        sizes[path.name] = (sum(tensor.nbytes for tensor in loaded.values()), len(loaded))
    assert len(sizes) > 1
    assert all(size <= SMALL_SHARDS or count == 1 for size, count in sizes.values())


def test_the_index_is_hugging_faces(directory: Path) -> None:
    """model.safetensors.index.json says for every tensor which shard holds it."""
    index = json.loads((directory / "model.safetensors.index.json").read_bytes())
    for path in directory.glob("*.safetensors"):
        with safetensors.safe_open(path, "pt") as shard:
            for name in shard.keys():  # noqa: SIM118  (not a mapping)
                assert index["weight_map"].pop(name) == path.name
    assert index["weight_map"] == {}


def test_the_configuration_is_open_clips(directory: Path) -> None:
    """open_clip_config.json holds architecture and preprocessing as open_clip's hub has them."""
    config = json.loads((directory / "open_clip_config.json").read_bytes())
    assert config["model_cfg"] == json.loads(TINY.read_bytes())
    assert config["preprocess_cfg"] == {
        "mean": list(open_clip.OPENAI_DATASET_MEAN),
        "std": list(open_clip.OPENAI_DATASET_STD),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }


def test_random_weights_are_reproducible(tmp_path: Path) -> None:
    """The same seed publishes the same bytes, another seed others."""
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        publish(f"random:{seed}", tmp_path / name)
    a, b, c = (files_of(tmp_path / name) for name in "abc")
    assert a == b
    assert a["model-00001-of-00003.safetensors"] != c["model-00001-of-00003.safetensors"]


# --- again ----------------------------------------------------------------------------------


class Recorder:
    """A directory, and a record of what is written there. fails_at: the name at which writing
    fails."""

    def __init__(self, path: Path, fails_at: str | None = None) -> None:
        self.location = str(path)
        self.written: list[str] = []
        self._directory = publish_weights.Directory(str(path))
        self._fails_at = fails_at

    def checksum(self, name: str) -> tuple[str, str | None] | None:
        return self._directory.checksum(name)

    def write(self, name: str, data: bytes, progress: tqdm[Any]) -> str | None:
        if name == self._fails_at:
            raise OSError("no space left")
        self.written.append(name)
        return self._directory.write(name, data, progress)


def tiny(seed: int) -> publish_weights.Model:
    return publish_weights.read_model(f"random:{seed}", str(TINY))


def changed(model: publish_weights.Model, name: str) -> publish_weights.Model:
    """`model` with one tensor turned about."""
    other = {**model.tensors, name: -model.tensors[name]}
    return publish_weights.Model(model.name, model.source, other, model.config)


def test_publishing_again_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is there already is not written again, and the command says so."""
    publish_weights.publish(tiny(1), publish_weights.Directory(str(tmp_path / "out")))
    again = Recorder(tmp_path / "out")
    publish_weights.publish(tiny(1), again)
    assert again.written == []
    assert "; 0.0 MB written, 8." in capsys.readouterr().out.splitlines()[-1]


def test_what_is_missing_or_different_is_written(tmp_path: Path) -> None:
    """Only objects that are not there, or not the same, are written, and then the manifest if it
    has changed."""
    model = tiny(1)
    publish_weights.publish(model, publish_weights.Directory(str(tmp_path)))
    (tmp_path / "tokenizer.json").unlink()
    again = Recorder(tmp_path)
    publish_weights.publish(changed(model, "ln_final.weight"), again)
    [shard] = [name for name in again.written if name.endswith(".safetensors")]
    assert again.written == ["tokenizer.json", shard, "manifest.json"]
    assert "ln_final.weight" in safetensors.torch.load_file(tmp_path / shard)
    assert_same(pulled(tmp_path), changed(model, "ln_final.weight").tensors)


def test_the_manifest_is_written_last(tmp_path: Path) -> None:
    """Everything it lists is there before the manifest is."""
    destination = Recorder(tmp_path)
    publish_weights.publish(tiny(1), destination)
    assert destination.written[-1] == "manifest.json"
    assert sorted(destination.written) == sorted(files_of(tmp_path))


def test_a_publication_that_fails_leaves_no_model(tmp_path: Path) -> None:
    """Until the last object is there, there is no manifest: nothing that could be pulled."""
    failing = Recorder(tmp_path, fails_at="model-00002-of-00003.safetensors")
    with pytest.raises(OSError, match="no space left"):
        publish_weights.publish(tiny(1), failing)
    assert "model-00001-of-00003.safetensors" in files_of(tmp_path)
    assert "manifest.json" not in files_of(tmp_path)


def test_a_republication_that_fails_leaves_the_old_manifest(tmp_path: Path) -> None:
    """Over an older model a failed publication leaves the older manifest, which does not vouch for
    the new bytes."""
    publish_weights.publish(tiny(1), publish_weights.Directory(str(tmp_path)))
    before = files_of(tmp_path)["manifest.json"]
    failing = Recorder(tmp_path, fails_at="model-00002-of-00003.safetensors")
    with pytest.raises(OSError, match="no space left"):
        publish_weights.publish(tiny(2), failing)
    assert files_of(tmp_path)["manifest.json"] == before


def test_a_file_is_never_seen_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory's files are replaced whole: one that fails leaves the old one as it was."""
    target = publish_weights.Directory(str(tmp_path))
    with tqdm(disable=True) as progress:
        target.write("a", b"old", progress)

        def fail(source: object, destination: object) -> None:
            raise OSError("power cut")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="power cut"):
            target.write("a", b"new", progress)
    assert (tmp_path / "a").read_bytes() == b"old"


# --- in a bucket ----------------------------------------------------------------------------


def objects(emulator: str, prefix: str) -> dict[str, dict[str, Any]]:
    """What the emulator says of the objects below `prefix`, by name."""
    url = f"{emulator}/storage/v1/b/models/o?prefix={prefix}/"
    with urllib.request.urlopen(url, timeout=10) as response:
        listing = json.load(response)
    return {item["name"].removeprefix(f"{prefix}/"): item for item in listing.get("items", [])}


def generations(emulator: str, prefix: str) -> dict[str, str]:
    return {name: item["generation"] for name, item in objects(emulator, prefix).items()}


def test_the_manifest_knows_the_generations(emulator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every object is listed with the generation it has in the bucket."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    publish("random:1", "gs://models/generations")
    with weights.pull("gs://models/generations") as pull:
        listed = {file.name: file.generation for file in pull.manifest.files}
    there = generations(emulator, "generations")
    del there["manifest.json"]
    assert listed == there


def test_publishing_again_keeps_the_generations(
    emulator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Objects that are the same are not uploaded again, not even the manifest: running services
    notice nothing."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    publish("random:1", "gs://models/again")
    before = generations(emulator, "again")
    publish("random:1", "gs://models/again")
    assert generations(emulator, "again") == before


def test_what_changed_gets_a_new_generation(emulator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the shard that differs and the manifest are uploaded, and the manifest knows it."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    bucket = publish_weights.Bucket("gs://models/changed")
    publish_weights.publish(tiny(1), bucket)
    before = generations(emulator, "changed")
    other = changed(tiny(1), "ln_final.weight")
    publish_weights.publish(other, bucket)
    after = generations(emulator, "changed")
    new = {name for name in after if after[name] != before[name]}
    assert "manifest.json" in new
    assert len(new) == 2
    assert_same(pulled("gs://models/changed"), other.tensors)


def test_the_manifest_is_not_cached(emulator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches keep no copy of the manifest: an old one names generations that are gone. (Objects of
    public buckets are cached for an hour unless they say otherwise.)"""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    publish("random:1", "gs://models/cached")
    assert objects(emulator, "cached")["manifest.json"]["cacheControl"] == "no-store"


def test_a_prefix_may_be_empty(emulator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """gs://bucket and gs://bucket/ are places, too."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    assert publish_weights.Bucket("gs://models/").checksum("nothing.json") is None


# --- what is refused ------------------------------------------------------------------------


class Tripwire:
    """What runs if it is ever unpickled."""

    path: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    """A pickle that would call something is refused with a sentence, and calls nothing."""
    Tripwire.path = tmp_path / "tripped"
    torch.save({"state_dict": {"a": Tripwire()}}, tmp_path / "evil.pt")
    with pytest.raises(SystemExit, match=r"evil\.pt is not a checkpoint of named tensors and no"):
        publish_weights.read_model(str(tmp_path / "evil.pt"), str(TINY))
    assert not Tripwire.path.exists()
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert Tripwire.path.exists(), "the trap itself does not work"


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
def test_a_file_that_is_no_checkpoint_is_refused(name: str, content: Any, tmp_path: Path) -> None:
    """Whatever else a file holds, the answer is one sentence that names it and says what to do."""
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(SystemExit) as caught:
        publish_weights.read_model(str(tmp_path / name), str(TINY))
    assert str(caught.value).startswith(f"{tmp_path / name} is not a checkpoint of named tensors")
    assert "save its state_dict alone" in str(caught.value)


@pytest.mark.parametrize(
    ("source", "model", "says"),
    [
        ("nothing.pt", str(TINY), "'nothing.pt' is neither a file, nor random:SEED, nor a pret"),
        ("openai", str(TINY), "'openai' is neither a file, nor random:SEED, nor a pretrained tag"),
        ("opnai", "ViT-L-14-quickgelu", "(known: openai, "),
        ("random:", str(TINY), "'random:': give a seed, as in random:0"),
        ("random:-1", str(TINY), "'random:-1': give a seed"),
        ("random:x", str(TINY), "'random:x': give a seed"),
        ("random:0", "ViT-L-15", "open_clip knows no model 'ViT-L-15'; try ViT-L-14-quickgelu"),
        ("random:0", "nothing.json", "nothing.json cannot be read as a model config"),
    ],
)
def test_a_wrong_argument_is_answered_in_a_sentence(source: str, model: str, says: str) -> None:
    """A SOURCE or NAME that means nothing is named, with what would do."""
    with pytest.raises(SystemExit) as caught:
        publish_weights.read_model(source, model)
    assert says in str(caught.value)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """The command itself, in this process."""
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
            "text_projection has shape [2, 3], expected [64, 768]",
            id="other shape",
        ),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_before_anything_is_written(
    spoil: Callable[[dict[str, torch.Tensor]], object],
    says: str,
    trained: Tensors,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A checkpoint that does not fit NAME is refused with the tensors that do not, and the
    destination is not even made."""
    state = dict(trained)
    spoil(state)
    save_plain(state, tmp_path / "model.pt")
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, str(tmp_path / "model.pt"), str(tmp_path / "out"))
    assert str(caught.value).startswith(f"{tmp_path / 'model.pt'}: the weights do not fit")
    assert says in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_destination_of_another_kind_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An https:// or s3:// destination is not taken for a directory of that name."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        run(monkeypatch, "random:0", "https://host/clip")
    assert "give gs://bucket/prefix or a directory" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_command_publishes_and_says_what_it_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SOURCE DEST --model NAME publishes, and reports the bytes saved against float32."""
    run(monkeypatch, "random:0", str(tmp_path / "out"))
    assert pulled(tmp_path / "out").keys() == tiny(0).tensors.keys()
    assert f"{tmp_path / 'out'}: tiny (random:0), " in capsys.readouterr().out
