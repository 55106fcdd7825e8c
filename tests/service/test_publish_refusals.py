"""Publishing refuses what the service could not reproduce: one sentence, and nothing is written."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from clip_embed.model.clip import Clip
from clip_embed.model.config import ClipConfig
from scripts import publish_weights
from scripts.publishing import architecture, model
from scripts.publishing.statement import Statement

MINI: dict[str, Any] = {
    "embed_dim": 96,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def complete() -> Tensors:
    """Return zeros for the parameters of MINI, by open_clip's names."""
    network = Clip(ClipConfig.from_open_clip(MINI))
    state = {name: torch.zeros(p.shape) for name, p in network.named_parameters()}
    # One number, repeated: 4 bytes to save instead of 12 MB.
    state["token_embedding.weight"] = torch.zeros(()).expand(49408, 64)
    return state


@pytest.fixture
def state(complete: Tensors) -> Tensors:
    return dict(complete)


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """Return a function that runs the command and returns the lines it prints."""

    def run(source: object, *options: str) -> list[str]:
        arguments = [str(source), str(tmp_path / "out"), *options]
        monkeypatch.setattr("sys.argv", ["publish_weights.py", *arguments])
        publish_weights.main()
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def refuse(
    run: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Return a function that runs the command, which must fail, and returns its sentence."""

    def refuse(source: object, *options: str) -> str:
        with pytest.raises(SystemExit) as caught:
            run(source, *options)
        message = str(caught.value.code)
        assert "\n" not in message
        assert len(message) > 20
        assert "weights_only" not in message
        printed = capsys.readouterr()
        assert (printed.out, printed.err) == ("", "")
        assert not (tmp_path / "out").exists(), "something was written"
        return message

    return refuse


def save(state: Any, path: Path) -> Path:
    torch.save(state, path)
    return path


# --- tensors ------------------------------------------------------------------------------------


def test_complete_model_is_published(state: Tensors, run: Any, tmp_path: Path) -> None:
    lines = run(save(state, tmp_path / "a.pt"))
    assert lines[0] == "a.pt: open_clip checkpoint; ViT-64x1-8 with QuickGELU, 96 floats"
    assert (tmp_path / "out" / "manifest.json").exists()


def test_link_is_called_by_its_own_name(state: Tensors, run: Any, tmp_path: Path) -> None:
    """The hub's cache holds links to files that are named by their hashes."""
    (tmp_path / "model.pt").symlink_to(save(state, tmp_path / "5a1b2c"))
    assert run(tmp_path / "model.pt")[0].startswith("model.pt: open_clip checkpoint;")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert manifest["source"] == "model.pt"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("ln_final.weight", float("nan"), "ln_final.weight holds NaN"),
        ("visual.proj", float("inf"), "visual.proj holds infinite values"),
        ("logit_scale", float("-inf"), "logit_scale holds infinite values"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_value_that_is_not_finite_is_refused(
    name: str,
    value: float,
    says: str,
    dtype: torch.dtype,
    state: Tensors,
    refuse: Any,
    tmp_path: Path,
) -> None:
    spoiled = {key: tensor.to(dtype) for key, tensor in state.items()}
    spoiled[name] = spoiled[name].clone()
    spoiled[name].view(-1)[-1] = value
    assert says in refuse(save(spoiled, tmp_path / "a.pt"))


def test_float64_that_does_not_fit_float32_is_refused(
    state: Tensors, refuse: Any, tmp_path: Path
) -> None:
    state["ln_final.bias"] = torch.full_like(state["ln_final.bias"], 1e300, dtype=torch.float64)
    assert "ln_final.bias holds infinite values" in refuse(save(state, tmp_path / "a.pt"))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.complex64])
def test_quantized_tensor_is_refused(
    dtype: torch.dtype, state: Tensors, refuse: Any, tmp_path: Path
) -> None:
    state["visual.proj"] = state["visual.proj"].to(dtype)
    name = str(dtype).removeprefix("torch.")
    message = refuse(save(state, tmp_path / "a.pt"))
    assert f"visual.proj is {name}; publish the model that was not quantized" in message


def add(name: str) -> Callable[[Tensors], None]:
    return lambda state: state.update({name: torch.zeros(2, 2)})


def drop(prefix: str) -> Callable[[Tensors], None]:
    def change(state: Tensors) -> None:
        for name in [name for name in state if name.startswith(prefix)]:
            del state[name]

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (add("logit_bias"), "holds logit_bias: SigLIP, which this service does not implement"),
        (add("visual.layer1.0.conv1.weight"), "a ResNet CLIP, which this service does not"),
        (add("visual.trunk.cls_token"), "a timm image tower, which"),
        (add("visual.blocks.0.norm1.weight"), "EVA, which"),
        (add("text_decoder.ln_final.weight"), "CoCa, which"),
        (add("text.transformer.embeddings.word_embeddings.weight"), "a Hugging Face text tower"),
        (add("text.positional_embedding"), "open_clip's CustomTextCLIP, which"),
        (add("bert.embeddings.LayerNorm.weight"), "chinese_clip, which"),
        (drop("visual."), "holds no image tower; publish a checkpoint of both towers"),
        (lambda s: [drop(n)(s) for n in list(s) if not n.startswith("visual.")], "no text tower"),
        (drop("visual.proj"), "tensors are missing that tell its architecture"),
        (drop("ln_final"), "in 2 tensors: ln_final.weight is missing; ln_final.bias is missing;"),
        (add("extra.weight"), "in 1 tensor: extra.weight is unknown; give the architecture that"),
        (drop("transformer.resblocks.0.attn"), "attn.out_proj.weight is missing; …; give the arc"),
        (
            lambda s: s.update({"token_embedding.weight": torch.zeros(30522, 64)}),
            "has a vocabulary of 30,522 tokens; this service's tokenizer is CLIP's, with 49,408",
        ),
    ],
)
def test_other_architecture_is_refused_by_name(
    change: Callable[[Tensors], Any], says: str, state: Tensors, refuse: Any, tmp_path: Path
) -> None:
    change(state)
    message = refuse(save(state, tmp_path / "a.pt"))
    assert message.startswith(str(tmp_path / "a.pt"))
    assert says in message


def test_other_tensors_are_no_clip(refuse: Any, tmp_path: Path) -> None:
    message = refuse(save({"layer.weight": torch.zeros(2)}, tmp_path / "a.pt"))
    assert "is no CLIP checkpoint: it holds layer.weight; give a checkpoint of" in message


# --- contradictions -----------------------------------------------------------------------------


def test_model_that_contradicts_the_tensors_is_refused(
    state: Tensors, refuse: Any, tmp_path: Path
) -> None:
    message = refuse(save(state, tmp_path / "a.pt"), "--model", "ViT-B/32")
    assert "a.pt contradicts --model ViT-B/32: its tensors have embed_dim 96, not 512" in message
    assert "leave --model out" in message


def test_model_that_contradicts_the_config_is_refused(
    state: Tensors, refuse: Any, tmp_path: Path
) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "open_clip_config.json").write_text(json.dumps({"model_cfg": MINI}))
    message = refuse(directory, "--model", "ViT-L-14")
    assert "open_clip_config.json contradicts --model ViT-L-14: it has embed_dim 96" in message
    other = {**MINI, "vision_cfg": {**MINI["vision_cfg"], "head_width": 32}}
    (tmp_path / "heads.json").write_text(json.dumps(other))
    message = refuse(directory, "--model", str(tmp_path / "heads.json"))
    assert "it has 1 and 1 attention heads, not 2 and 1" in message


@pytest.mark.parametrize(
    ("stated", "options", "says"),
    [
        (False, ["--quick-gelu"], "says GELU, but --quick-gelu says QuickGELU"),
        (True, ["--no-quick-gelu"], "says QuickGELU, but --no-quick-gelu says GELU"),
        (False, ["--model", "QUICK"], "quick.json says QuickGELU"),
        (True, ["--model", "PLAIN"], "plain.json says GELU"),
        (True, ["--mean=0.1,0.2,0.3"], "says mean 0.5,0.5,0.5, but --mean says 0.1,0.2,0.3"),
        (True, ["--std=1,1,1"], "says std 0.2,0.2,0.2, but --std says 1,1,1; leave --std out"),
    ],
)
def test_option_that_contradicts_the_config_is_refused(
    stated: bool, options: list[str], says: str, state: Tensors, refuse: Any, tmp_path: Path
) -> None:
    for name, quick_gelu in (("quick", True), ("plain", False)):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({**MINI, "quick_gelu": quick_gelu}))
        options = [str(path) if option == name.upper() else option for option in options]
    directory = tmp_path / "model"
    directory.mkdir()
    config = {
        "model_cfg": {**MINI, "quick_gelu": stated},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.2] * 3},
    }
    (directory / "open_clip_config.json").write_text(json.dumps(config))
    message = refuse(directory, *options)
    assert says in message
    assert "open_clip_config.json" in message


def test_same_statement_twice_is_no_contradiction(state: Tensors, run: Any, tmp_path: Path) -> None:
    (tmp_path / "quick.json").write_text(json.dumps({**MINI, "quick_gelu": True}))
    lines = run(save(state, tmp_path / "a.pt"), "--model", str(tmp_path / "quick.json"))
    assert "with QuickGELU" in lines[0]
    assert not any("nothing says the activation" in line for line in lines)


def test_plain_model_name_chooses_gelu_and_says_so(
    state: Tensors, run: Any, tmp_path: Path
) -> None:
    (tmp_path / "plain.json").write_text(json.dumps(MINI))
    lines = run(save(state, tmp_path / "a.pt"), "--model", str(tmp_path / "plain.json"))
    assert lines[0] == "a.pt: open_clip checkpoint; plain with GELU, 96 floats"
    assert (
        "a.pt: nothing says the activation: GELU was chosen, as in open_clip's plain; give"
        in (lines[2])
    )


@pytest.mark.parametrize(
    ("name", "quick_gelu"),
    [("ViT-L-14", True), ("ViT-B-32", True), ("ViT-H-14", False), ("ViT-B-32-256", False)],
)
def test_choice_without_any_statement_is_openais_activation_if_they_have_the_architecture(
    name: str, quick_gelu: bool
) -> None:
    config = ClipConfig.from_open_clip(architecture.named_configs()[name])
    options = model._Options("a.pt", None, None, {})
    decision = options.decide(Statement(), architecture.sizes_of_config(config))
    assert decision.model_cfg.get("quick_gelu", False) is quick_gelu
    [note] = decision.notes
    assert note.startswith("nothing says the activation: ")


# --- configs ------------------------------------------------------------------------------------


def open_clip_directory(folder: Path, config: Any) -> Path:
    (folder / "model").mkdir()
    path = folder / "model" / "open_clip_config.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return folder / "model"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("{", "open_clip_config.json is not valid JSON"),
        ([], "open_clip_config.json is not a JSON object"),
        ({}, "open_clip_config.json has no model_cfg"),
        ({"model_cfg": {**MINI, "init_logit_bias": -10}}, "describes SigLIP (init_logit_bias)"),
        ({"model_cfg": {**MINI, "multimodal_cfg": {}}}, "describes CoCa"),
        ({"model_cfg": {**MINI, "custom_text": True}}, "describes open_clip's CustomTextCLIP"),
        ({"model_cfg": {**MINI, "vision_cfg": {"layers": [3, 4, 6, 3]}}}, "a ResNet CLIP"),
        ({"model_cfg": {**MINI, "vision_cfg": {"timm_model_name": "eva02_b"}}}, "EVA (eva02_b)"),
        ({"model_cfg": {**MINI, "vision_cfg": {"ls_init_value": 1e-5}}}, "ls_init_value not supp"),
        ({"model_cfg": {**MINI, "text_cfg": {"hf_model_name": "bert"}}}, "text tower (bert)"),
        ({"model_cfg": MINI, "preprocess_cfg": {"resize_mode": "squash"}}, "resize_mode 'squash'"),
        ({"model_cfg": MINI, "preprocess_cfg": {"resize_mode": "longest"}}, "'longest' cannot be"),
        ({"model_cfg": MINI, "preprocess_cfg": {"interpolation": "random"}}, "interpolation 'rand"),
        ({"model_cfg": MINI, "preprocess_cfg": {"mean": [0, 0]}}, "mean is [0, 0]; expected three"),
        ({"model_cfg": MINI, "preprocess_cfg": {"std": [1, 1, 0]}}, "expected three positive num"),
        ({"model_cfg": MINI, "preprocess_cfg": {"mode": "L"}}, "images of mode 'L' cannot be"),
        ({"model_cfg": MINI}, "model has none of open_clip_model.safetensors"),
    ],
)
def test_open_clip_config_is_refused_before_the_tensors_are_read(
    config: Any, says: str, refuse: Any, tmp_path: Path
) -> None:
    """There are none in this directory."""
    assert says in refuse(open_clip_directory(tmp_path, config))


TOWER = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
CLIP = {"model_type": "clip", "projection_dim": 96, "text_config": TOWER, "vision_config": TOWER}


def text(**options: Any) -> dict[str, Any]:
    return {**CLIP, "text_config": {**TOWER, **options}}


def vision(**options: Any) -> dict[str, Any]:
    return {**CLIP, "vision_config": {**TOWER, **options}}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "siglip"}, "config.json: model_type is 'siglip', not 'clip'"),
        ({"model_type": "chinese_clip"}, "model_type is 'chinese_clip', not 'clip'"),
        ({}, "model_type is None, not 'clip'"),
        ({**CLIP, "architectures": ["CLIPVisionModel"]}, "architectures is CLIPVisionModel; publi"),
        ({**CLIP, "quantization_config": {"load_in_8bit": True}}, "the tensors are quantized"),
        (text(hidden_act="gelu_new"), "text_config.hidden_act is 'gelu_new'; this service has"),
        (text(hidden_act="gelu"), "hidden_act is 'gelu' for texts and 'quick_gelu' for images"),
        (text(layer_norm_eps=1e-6), "text_config.layer_norm_eps is 1e-06; this service has 1e-05"),
        (text(eos_token_id=7), "text_config.eos_token_id is 7, so transformers takes a text's fea"),
        (text(eos_token_id=[49407]), "text_config.eos_token_id is [49407]"),
        (text(vocab_size=30522), "has a vocabulary of 30,522 tokens; this service's tokenizer is"),
        (text(hidden_size="64"), "text_config.hidden_size is '64'; expected a positive whole numb"),
        (text(num_attention_heads=3), "hidden_size 64 is no multiple of 3 heads"),
        (vision(num_channels=1), "vision_config.num_channels is 1; this service sends 3"),
        (vision(image_size=[224, 224]), "vision_config.image_size is [224, 224]; expected"),
        (vision(image_size=225), "image_size 225 is not a multiple of patch_size 32"),
        ({**CLIP, "text_config": []}, "model has none of model.safetensors"),  # all defaults
        ({**CLIP, "text_config": 3}, "text_config is 3; expected an object"),
    ],
)
def test_transformers_config_is_refused_before_the_tensors_are_read(
    config: Any, says: str, refuse: Any, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert says in refuse(tmp_path / "model")


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
@pytest.mark.parametrize(
    ("processor", "says"),
    [
        ({"do_center_crop": False}, "do_center_crop is false; this service resizes the shorter"),
        ({"do_resize": False}, "do_resize is false"),
        ({"do_normalize": False}, "do_normalize is false"),
        ({"do_rescale": False}, "do_rescale is false"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor is 0.00784313725490196, not 1/255"),
        ({"resample": 0}, "resample is 0; this service has 2 (bilinear) and 3 (bicubic)"),
        ({"size": {"height": 224, "width": 224}}, "size is {'height': 224, 'width': 224}, but the"),
        ({"size": {"shortest_edge": 256}}, "but the model reads 224 pixels"),
        ({"crop_size": 336}, "crop_size is 336, but the model reads 224 pixels"),
        ({"default_to_square": True}, "default_to_square is true; this service"),
        ({"do_pad": True}, "do_pad is true; this service"),
        ({"image_mean": 0.5}, "mean is 0.5; expected three numbers"),
        ({"image_processor_type": "ViTImageProcessor"}, "prepared by ViTImageProcessor, not CLIP"),
    ],
)
def test_preprocessing_of_transformers_is_refused(
    file: str, processor: Any, says: str, refuse: Any, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(CLIP))
    nested = {"image_processor": processor} if file.startswith("processor_") else processor
    (tmp_path / "model" / file).write_text(json.dumps(nested))
    message = refuse(tmp_path / "model")
    assert f"model: {file}: " in message
    assert says in message


# --- files --------------------------------------------------------------------------------------


class Other:
    """An object that is no tensor."""


def write_not_a_checkpoint(path: Path) -> None:
    torch.save({"state_dict": {}, "args": Other()}, path)


def write_plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": Other()}))


def truncate(path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-100])


def truncate_safetensors(path: Path) -> None:
    data = safetensors.torch.save({"a": torch.zeros(1000)})
    path.write_bytes(data[:-100])


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (write_not_a_checkpoint, "it holds a tests.service.test_publish_refusals.Other; save its"),
        (write_plain_pickle, "is not a checkpoint of named tensors and nothing else: it"),
        (truncate, "is truncated or damaged; fetch or save it anew"),
        (truncate_safetensors, "is truncated or damaged; fetch or save it anew"),
        (lambda path: path.write_bytes(b""), "nothing else: it is empty; save its state_dict"),
        (lambda path: path.write_bytes(b"<html>"), "is not a checkpoint of named tensors and noth"),
        (
            lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid"),
            "is a pointer of Git LFS, not the file itself; run `git lfs pull` there",
        ),
        (lambda path: torch.save({"state_dict": {}}, path), "it holds a dict without tensors"),
        (lambda path: torch.save([torch.zeros(1)], path), "it holds a list without tensors"),
        (
            lambda path: torch.save({"a.b": torch.ones(1), "module.a.b": torch.ones(1)}, path),
            "holds a.b twice, under different prefixes",
        ),
    ],
)
def test_file_that_is_no_checkpoint_is_refused(
    write: Callable[[Path], Any], says: str, refuse: Any, tmp_path: Path
) -> None:
    write(tmp_path / "a.bin")
    message = refuse(tmp_path / "a.bin")
    assert message.startswith(str(tmp_path / "a.bin"))
    assert says in message


def test_directory_without_a_checkpoint_is_refused(refuse: Any, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert "model is a directory without a checkpoint; give one with" in refuse(tmp_path / "model")


def test_directory_of_several_checkpoints_is_refused(refuse: Any, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name in ("epoch_1.pt", "epoch_2.pt"):
        (tmp_path / "model" / name).touch()
    message = refuse(tmp_path / "model")
    assert "holds 2 checkpoints and no config: epoch_1.pt, epoch_2.pt; give one" in message


def test_single_shard_is_refused(state: Tensors, refuse: Any, tmp_path: Path) -> None:
    path = save(state, tmp_path / "model-00001-of-00002.bin")
    assert "is one of 2 shards; give the directory with all and their index" in refuse(path)


@pytest.mark.parametrize("shard", ["missing.safetensors", "../elsewhere.safetensors"])
def test_shard_that_is_missing_or_elsewhere_is_refused(
    shard: str, refuse: Any, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere.safetensors").write_bytes(safetensors.torch.save({}))
    directory = open_clip_directory(tmp_path, {"model_cfg": MINI})
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    assert f"index.json names {shard}, which is missing; fetch the whole mod" in refuse(directory)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("", "SOURCE is empty; give a file, a directory, hf-hub:ORG/NAME or a tag"),
        ("  ", "SOURCE is empty"),
        ("/nowhere/model.pt", "'/nowhere/model.pt' is neither a file, nor random:SEED, nor a pret"),
        ("./model", "there is no such file or directory; check the path"),
        ("https://user:secret@host/a.pt", "https://***@host/a.pt is a URL; download the file and"),
        ("gs://bucket/clip", "gs://bucket/clip is a URL; download the file and"),
        ("~nobody-of-this-name/a", "cannot be read (Could not determine home directory"),
        ("/dev/null", "/dev/null is no file; give a checkpoint or a directory"),
        ("random:", "'random:': give a seed, as in random:0"),
        ("random:99999999999999999999999", "give a seed"),
    ],
)
def test_source_that_is_nothing_is_refused(source: str, says: str, refuse: Any) -> None:
    message = refuse(source)
    assert says in message
    assert "secret" not in message


@pytest.mark.parametrize("value", ["0.5", "0.5,0.5,x", "1,2,3", "", "nan,0.5,0.5", "-1,0,0"])
def test_normalization_that_is_no_normalization_is_refused(value: str, refuse: Any) -> None:
    message = refuse("random:0", f"--mean={value}")
    assert "give three numbers in 0–1, for red, green and blue, as in --mean 0.5,0.5,0.5" in message


# --- TorchScript --------------------------------------------------------------------------------


class Tripwire:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def write_archive(path: Path, tree: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", tree)
        archive.writestr("a/constants.pkl", pickle.dumps(()))
        archive.writestr("a/code/__torch__.py", "raise AssertionError")
        archive.writestr("a/data/0", bytes(16))


def test_code_in_a_torchscript_archive_does_not_run(refuse: Any, tmp_path: Path) -> None:
    write_archive(tmp_path / "a.pt", pickle.dumps(Tripwire(tmp_path / "tripped"), protocol=2))
    message = refuse(tmp_path / "a.pt")
    assert "is not a checkpoint of named tensors and nothing else: it holds a " in message
    assert not (tmp_path / "tripped").exists()
    pickle.loads(pickle.dumps(Tripwire(tmp_path / "tripped")))
    assert (tmp_path / "tripped").exists(), "unpickling should have created the file"


class _Tensor:
    """Is pickled as TorchScript pickles a tensor: 4 floats from `offset` of storage `key`."""

    def __init__(self, key: str, offset: int) -> None:
        self.key, self.offset = key, offset

    def __reduce__(self) -> tuple[Any, ...]:
        storage = _Storage(("storage", torch.FloatStorage, self.key, "cpu", 4))
        return torch._utils._rebuild_tensor_v2, (storage, self.offset, (4,), (1,), False, {})


class _Storage(tuple):  # type: ignore[type-arg]
    pass


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return tuple(value) if isinstance(value, _Storage) else None


@pytest.mark.parametrize(("key", "offset"), [("0", 1), ("0", -1), ("1", 0), ("../version", 0)])
def test_tensor_outside_the_archive_is_refused(
    key: str, offset: int, refuse: Any, tmp_path: Path
) -> None:
    tree = io.BytesIO()
    _Pickler(tree, protocol=2).dump({"a": _Tensor(key, offset)})
    write_archive(tmp_path / "a.pt", tree.getvalue())
    assert "is not a checkpoint of named tensors and nothing else" in refuse(tmp_path / "a.pt")
