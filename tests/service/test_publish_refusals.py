"""Publishing refuses what the service could not reproduce: one sentence, and nothing is written."""

from __future__ import annotations

import io
import json
import math
import os
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
from scripts.publishing import architecture, checkpoint_file, model, transformers_model
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
        assert 20 < len(message) < 900
        assert message.isprintable()
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


@pytest.mark.parametrize(
    ("name", "tensor", "says"),
    [
        ("visual.proj", lambda: torch.zeros(64, 96).to_sparse(), "visual.proj is a sparse tensor"),
        ("visual.proj", lambda: torch.zeros(64, 96).to_sparse_csr(), "proj is a sparse tensor"),
        ("visual.proj", lambda: torch.empty(64, 96, device="meta"), "is a tensor without values"),
        (
            "visual.proj",
            lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
            "visual.proj is a nested tensor",
        ),
        (
            "visual.proj",
            lambda: torch.zeros(1).expand(10**6, 10**6),
            "visual.proj is an expanded tensor of 1,000,000,000,000 values; save it as an ordinary",
        ),
        (
            "transformer.resblocks.99999999999.ln_1.weight",
            lambda: torch.zeros(2),
            "transformer.resblocks.99999999999.ln_1.weight is unknown",
        ),
        (f"transformer.resblocks.{'9' * 5000}.w", lambda: torch.zeros(2), "is unknown; give the"),
        ("visual.a\n\x1b[31mb", lambda: torch.zeros(2), r"visual.a \x1b[31mb is unknown"),
        # Names and shapes are checked before values.
        ("extra.weight", lambda: torch.full((2,), math.nan), "extra.weight is unknown"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensor_of_another_kind_is_refused_by_name(
    name: str,
    tensor: Callable[[], torch.Tensor],
    says: str,
    state: Tensors,
    refuse: Any,
    tmp_path: Path,
) -> None:
    state[name] = tensor()
    assert says in refuse(save(state, tmp_path / "a.pt"))


def test_queries_and_keys_of_other_shapes_are_refused(refuse: Any, tmp_path: Path) -> None:
    prefix = "text_model.encoder.layers.0.self_attn"
    state = {
        "vision_model.pre_layrnorm.weight": torch.zeros(2),
        f"{prefix}.q_proj.weight": torch.zeros(64, 64),
        f"{prefix}.k_proj.weight": torch.zeros(32, 32),
        f"{prefix}.v_proj.weight": torch.zeros(64, 64),
    }
    message = refuse(save(state, tmp_path / "a.bin"))
    assert "values of transformer.resblocks.0 have the shapes [64, 64], [32, 32], [64, " in message


def test_tensor_by_the_names_of_both_libraries_is_refused(refuse: Any, tmp_path: Path) -> None:
    state = {
        "vision_model.pre_layrnorm.weight": torch.zeros(2),
        "text_model.final_layer_norm.weight": torch.zeros(2),
        "visual.ln_pre.weight": torch.zeros(2),
    }
    message = refuse(save(state, tmp_path / "a.bin"))
    assert "holds visual.ln_pre.weight twice, by its names in open_clip and in tr" in message


def test_tied_tensors_are_published_as_copies(state: Tensors, run: Any, tmp_path: Path) -> None:
    """In float32: float16 makes copies anyway."""
    base = torch.full((100,), 1 / 3)
    state["visual.ln_pre.weight"] = state["visual.ln_post.weight"] = base[:64]
    state["ln_final.weight"] = base[36:]
    run(save(state, tmp_path / "a.pt"))
    assert all(torch.equal(published(tmp_path)[name], base[:64]) for name in TIED)


TIED = ("visual.ln_pre.weight", "visual.ln_post.weight", "ln_final.weight")


def published(folder: Path) -> Tensors:
    """Return the tensors in the shards that `run` published."""
    found: Tensors = {}
    for path in (folder / "out").glob("*.safetensors"):
        found |= safetensors.torch.load_file(path)
    return found


def marked(state: Tensors) -> Tensors:
    """Return other weights of the same architecture."""
    return {**state, "ln_final.bias": torch.ones_like(state["ln_final.bias"])}


def prefixed(state: Tensors, prefix: str) -> Tensors:
    return {prefix + name: tensor for name, tensor in state.items()}


def write_shards(folder: Path, *shards: Tensors, name: str = "model") -> Path:
    """Write safetensors shards and their index. Return the index."""
    folder.mkdir(exist_ok=True)
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"{name}-{number:05}-of-{len(shards):05}.safetensors"
        plain = {
            key: tensor.clone(memory_format=torch.contiguous_format)
            for key, tensor in shard.items()
        }
        safetensors.torch.save_file(plain, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    index = folder / f"{name}.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index


def test_ema_weights_in_a_shard_of_their_own_are_not_taken(
    state: Tensors, run: Any, tmp_path: Path
) -> None:
    write_shards(tmp_path / "model", state, prefixed(marked(state), "ema_model."))
    lines = run(tmp_path / "model")
    assert "; its ordinary weights, not its EMA weights; " in lines[0]
    assert not published(tmp_path)["ln_final.bias"].any()


def test_tensor_in_two_shards_is_refused(state: Tensors, refuse: Any, tmp_path: Path) -> None:
    stale = {"ln_final.bias": marked(state)["ln_final.bias"]}
    write_shards(tmp_path / "model", state, stale)
    message = refuse(tmp_path / "model")
    assert (
        "model holds ln_final.bias in two shards, model-00001-of-00002.safetensors and" in message
    )


def test_shard_that_holds_other_things_is_refused(
    state: Tensors, refuse: Any, tmp_path: Path
) -> None:
    write_shards(tmp_path / "model", state, {"extra": torch.zeros(1)})
    save({"state_dict": state}, tmp_path / "model" / "model-00002-of-00002.safetensors")
    assert "00002-of-00002.safetensors is a shard that holds other things" in refuse(
        tmp_path / "model"
    )


@pytest.mark.parametrize("config", [None, {"model_cfg": MINI, "preprocess_cfg": {}}])
def test_index_given_as_source_is_the_one_that_is_read(
    config: Any, state: Tensors, run: Any, tmp_path: Path
) -> None:
    directory = open_clip_directory(tmp_path, config)
    if config is None:
        (directory / "open_clip_config.json").unlink()
    safetensors.torch.save_file({"a": torch.zeros(1)}, directory / "model.safetensors")
    index = write_shards(directory, marked(state), name="other")
    lines = run(index)
    assert ("with the config beside it; ViT-64x1-8 with GELU" in lines[0]) == (config is not None)
    assert published(tmp_path)["ln_final.bias"].all()


def test_towers_of_two_models_are_refused(state: Tensors, refuse: Any, tmp_path: Path) -> None:
    mixed = {
        f"{'clip.' if name.startswith('visual.') else 'model.'}{name}": tensor
        for name, tensor in state.items()
    }
    message = refuse(save(mixed, tmp_path / "a.ckpt"))
    assert (
        "holds parts of two models, such as model.positional_embedding and clip.visual." in message
    )


@pytest.mark.parametrize("stray", ["visual.proj", "loss.weight"])
def test_complete_ema_weights_beside_a_stray_tensor_are_taken(
    stray: str, state: Tensors, run: Any, tmp_path: Path
) -> None:
    ema = prefixed(marked(state), "ema.")
    lines = run(save({"state_dict": {**ema, stray: torch.zeros(64, 96)}}, tmp_path / "a.ckpt"))
    assert "its EMA weights, as its other tensors are no whole model" in lines[0]
    lines = run(save({"model": {stray: torch.zeros(2)}, "ema": state}, tmp_path / "b.ckpt"))
    assert "its EMA weights, as its other tensors are no whole model" in lines[0]


class CountingDict(dict[str, Any]):
    """A dict that refuses to be searched without end."""

    searches = 0

    def get(self, *arguments: Any) -> Any:
        CountingDict.searches += 1
        assert CountingDict.searches < 500_000
        return super().get(*arguments)


def test_nested_dicts_are_searched_to_a_limit() -> None:
    nested: Any = {"x": 1}
    for _ in range(14):
        nested = CountingDict.fromkeys(
            ("state_dict", "model_state_dict", "model", "module"), nested
        )
    assert checkpoint_file._find_state(nested) is None


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
    text = config if isinstance(config, str) else json.dumps(config)
    path.write_bytes(text.encode(errors="surrogateescape"))
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
        (
            {"model_cfg": MINI, "preprocess_cfg": {"std": [1, 1, 0]}},
            "std is [1, 1, 0]; expected three numbers from 0.001 to 1",
        ),
        ({"model_cfg": MINI, "preprocess_cfg": {"mean": [math.nan, 0, 0]}}, "mean is [nan, 0, 0];"),
        ({"model_cfg": MINI, "preprocess_cfg": {"mean": [10**400, 0, 0]}}, "expected three number"),
        ({"model_cfg": MINI, "preprocess_cfg": {"mean": [True, 0, 0]}}, "mean is [True, 0, 0]; "),
        ({"model_cfg": MINI, "preprocess_cfg": {"std": [math.inf, 1, 1]}}, "std is [inf, 1, 1]; "),
        ({"model_cfg": MINI, "preprocess_cfg": {"std": [1e-320, 1, 1]}}, "numbers from 0.001 to"),
        ({"model_cfg": MINI, "preprocess_cfg": {"interpolation": []}}, "interpolation [] is not"),
        (
            {"model_cfg": {**MINI, "vision_cfg": {"mlp_ratio": math.inf}}},
            "vision_cfg: mlp_ratio is inf; expected a finite number",
        ),
        ("[" * 100_000, "open_clip_config.json is not valid JSON: it is nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "it holds a number of more than 4,300 digits; fetch or"),
        ('{"a": "\udcff"}', "open_clip_config.json is not valid JSON: byte 7 is not UTF-8"),
        ({"model_cfg": MINI, "preprocess_cfg": {"mode": "L"}}, "images of mode 'L' cannot be"),
        ({"model_cfg": MINI}, "model has none of open_clip_model.safetensors"),
    ],
)
def test_open_clip_config_is_refused_before_the_tensors_are_read(
    config: Any, says: str, refuse: Any, tmp_path: Path
) -> None:
    """There are none in this directory."""
    assert says in refuse(open_clip_directory(tmp_path, config))


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"quick_gelu": False}, "open_clip_config.json has GELU, but config.json says QuickGELU"),
        ({"embed_dim": 32}, "open_clip_config.json contradicts config.json: it has embed_dim 32"),
        ({"mean": [0.1, 0.1, 0.1]}, "says mean [0.1, 0.1, 0.1], but preprocessor_config.json say"),
        ({"interpolation": "bilinear"}, "says interpolation bilinear, but preprocessor_config."),
    ],
)
def test_two_configs_that_contradict_each_other_are_refused(
    change: dict[str, Any], says: str, as_file: bool, state: Tensors, refuse: Any, tmp_path: Path
) -> None:
    model_cfg, quick_gelu = transformers_model.read_config(CLIP, "config.json")
    model_cfg |= {"quick_gelu": quick_gelu}
    preprocess_cfg = {"mean": [0.5, 0.5, 0.5]}
    for key, value in change.items():
        (model_cfg if key in model_cfg else preprocess_cfg)[key] = value
    directory = open_clip_directory(
        tmp_path, {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    )
    (directory / "config.json").write_text(json.dumps(CLIP))
    processor = json.dumps({"image_mean": [0.5, 0.5, 0.5]})
    (directory / "preprocessor_config.json").write_text(processor)
    path = save(state, directory / "model.safetensors")
    assert says in refuse(path if as_file else directory)


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize(
    ("quick_gelu", "preprocess_cfg", "says"),
    [
        (False, {}, "OpenAI's format has QuickGELU, but open_clip_config.json says GELU; correct"),
        (True, {"mean": [0.5, 0.5, 0.5]}, "OpenAI's format says mean [0.48145466, 0.4578275, 0.4"),
        (True, {}, None),
    ],
)
def test_config_beside_openais_state_dict_must_not_contradict_it(
    quick_gelu: bool,
    preprocess_cfg: Any,
    says: str | None,
    as_file: bool,
    state: Tensors,
    refuse: Any,
    run: Any,
    tmp_path: Path,
) -> None:
    config = {"model_cfg": {**MINI, "quick_gelu": quick_gelu}, "preprocess_cfg": preprocess_cfg}
    directory = open_clip_directory(tmp_path, config)
    sizes = {"input_resolution": 32, "context_length": 8, "vocab_size": 49408}
    path = save({**state, **sizes}, directory / "a.pt")
    source = path if as_file else directory
    if says is None:
        assert "OpenAI's state dict; ViT-64x1-8 with QuickGELU" in run(source)[0]
    else:
        assert says in refuse(source)


def test_config_of_a_training_is_left_out(state: Tensors, run: Any, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"lr": 0.1}')
    path = save(state, tmp_path / "model" / "a.pt")
    expected = (
        "a.pt: open_clip checkpoint (config.json beside it is not of a CLIP of transformers: "
    )
    assert run(path.parent)[0].startswith(expected)


def test_several_checkpoints_beside_a_config_are_named(
    state: Tensors, refuse: Any, tmp_path: Path
) -> None:
    directory = open_clip_directory(tmp_path, {"model_cfg": MINI})
    for number in (1, 2):
        save(state, directory / f"epoch_{number}.pt")
    message = refuse(directory)
    assert (
        "model holds 2 checkpoints, none of which has a usual name such as open_clip_mo" in message
    )
    assert ": epoch_1.pt, epoch_2.pt; give one of them" in message


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_checkpoint_is_read_by_its_content(
    name: str, compression: int, state: Tensors, run: Any, tmp_path: Path
) -> None:
    with (
        zipfile.ZipFile(save(state, tmp_path / "plain")) as plain,
        zipfile.ZipFile(tmp_path / name, "w", compression) as packed,
    ):
        for member in plain.namelist():
            packed.writestr(member, plain.read(member))
    assert run(tmp_path / name)[0].startswith(f"{name}: open_clip checkpoint; ViT-64x1-8")


@pytest.mark.parametrize("name", ["a\n\x1b[31mb.pt", os.fsdecode(b"\xff.pt")])
def test_control_characters_of_a_file_name_are_not_printed(
    name: str, state: Tensors, run: Any, tmp_path: Path
) -> None:
    assert all(line.isprintable() for line in run(save(state, tmp_path / name)))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert manifest["source"].isprintable()


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
        ({}, "model has no checkpoint, and its config.json names no model_type, so it is not"),
        ({"model_type": None}, "model_type is None, not 'clip'"),
        ({**CLIP, "architectures": ["CLIPVisionModel"]}, "architectures is CLIPVisionModel; publi"),
        ({**CLIP, "quantization_config": {"load_in_8bit": True}}, "the tensors are quantized"),
        (text(hidden_act="gelu_new"), "text_config.hidden_act is 'gelu_new'; this service has"),
        (text(hidden_act=["gelu"]), "text_config.hidden_act is ['gelu']; this service has quick"),
        (vision(hidden_act={}), "vision_config.hidden_act is {}; this service has quick_gelu"),
        ({**CLIP, "architectures": 5}, "architectures is 5; expected a list of names"),
        ({**CLIP, "architectures": "ChineseCLIPModel"}, "architectures is 'ChineseCLIPModel'; exp"),
        ({**CLIP, "architectures": [5]}, "architectures is [5]; expected a list of names"),
        ({**CLIP, "text_config_dict": 5}, "text_config_dict is 5; expected an object"),
        ({**CLIP, "model_type": "x" * 10_000}, "model_type is 'xxx"),
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
        ({"do_center_crop": None}, "do_center_crop is null; this service resizes the shorter"),
        ({"do_center_crop": 0}, "do_center_crop is 0; this service resizes the shorter"),
        ({"do_resize": None}, "do_resize is null"),
        ({"do_normalize": None}, "do_normalize is null"),
        ({"do_rescale": 0}, "do_rescale is 0"),
        ({"do_resize": False}, "do_resize is false"),
        ({"do_normalize": False}, "do_normalize is false"),
        ({"do_rescale": False}, "do_rescale is false"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor is 0.00784313725490196, not 1/255"),
        ({"rescale_factor": math.nan}, "rescale_factor is nan, not 1/255"),
        ({"resample": None}, "resample is null; this service has 2 (bilinear) and 3 (bicubic)"),
        ({"resample": [3]}, "resample is [3]; this service has 2 (bilinear) and 3 (bicubic)"),
        ({"image_mean": [math.nan] * 3}, "image_mean is [nan, nan, nan]; expected three numbers"),
        ({"image_mean": [123.7, 116.3, 103.5]}, "expected three numbers from 0 to 1, for pixels"),
        ({"image_std": [True, True, True]}, "image_std is [True, True, True]; expected three"),
        ({"image_std": [1e-320, 1, 1]}, "expected three numbers from 0.001 to 1, for pixels fr"),
        ({"resample": 0}, "resample is 0; this service has 2 (bilinear) and 3 (bicubic)"),
        ({"size": {"height": 224, "width": 224}}, "size is {'height': 224, 'width': 224}, but the"),
        ({"size": {"shortest_edge": 256}}, "but the model reads 224 pixels"),
        ({"crop_size": 336}, "crop_size is 336, but the model reads 224 pixels"),
        ({"default_to_square": True}, "default_to_square is true; this service"),
        ({"do_pad": True}, "do_pad is true; this service"),
        ({"image_mean": 0.5}, "image_mean is 0.5; expected three numbers"),
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
        (write_not_a_checkpoint, " holds a tests.service.test_publish_refusals.Other, which is no"),
        (write_plain_pickle, "is no checkpoint: it has the format of neither safetensors nor"),
        (truncate, "is truncated or damaged; fetch or save it anew"),
        (truncate_safetensors, "is truncated or damaged; fetch or save it anew"),
        (lambda path: path.write_bytes(b""), "a.bin is empty; fetch or save it anew"),
        (lambda path: path.write_bytes(b" <html>"), "is a web page, not a checkpoint; download"),
        (lambda path: path.write_text("hello"), "is damaged, or no checkpoint (KeyError while"),
        (
            lambda path: path.write_text(json.dumps(MINI)),
            "is a config, not a checkpoint; give it with --model, and the checkpoint as SOURCE",
        ),
        (
            lambda path: path.write_text(json.dumps({"model_cfg": MINI})),
            "is a config, not a checkpoint; give it with --model",
        ),
        (
            lambda path: path.write_text(json.dumps({"model_type": "clip"})),
            "is a config of transformers, not a checkpoint; give the directory that holds it",
        ),
        (lambda path: path.write_text("[1]"), "is a JSON file, not a checkpoint; give the file of"),
        (lambda path: path.write_bytes(b"PK\3\4" + bytes(50)), "is truncated or damaged; fetch"),
        (
            lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid"),
            "is a pointer of Git LFS, not the file itself; run `git lfs pull` there",
        ),
        (
            lambda path: torch.save({"state_dict": {}}, path),
            "holds a dict without named tensors; save",
        ),
        (
            lambda path: torch.save([torch.zeros(1)], path),
            "holds a list without named tensors; save",
        ),
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
        ("/nowhere/model.pt", "there is no file or directory '/nowhere/model.pt'; check the path"),
        ("./model", "there is no file or directory './model'; check the path"),
        ("https:/user:secret@host/a.pt", "'https://***@host/a.pt'; check the path"),
        ("//user:secret@host/a.pt", "'//***@host/a.pt'; check the path"),
        ("x" * 5000 + ".pt", "File name too long"),
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


@pytest.mark.parametrize("value", ["1e-320,1,1", "0,1,1", "inf,1,1", "nan,1,1", "1,1,2"])
def test_standard_deviation_out_of_range_is_refused(value: str, refuse: Any) -> None:
    message = refuse("random:0", f"--std={value}")
    assert f"--std is '{value}'; give three numbers from 0.001 to 1, for red, green" in message


@pytest.mark.parametrize("value", ["0.5", "0.5,0.5,x", "1,2,3", "", "nan,0.5,0.5", "-1,0,0"])
def test_normalization_that_is_no_normalization_is_refused(value: str, refuse: Any) -> None:
    message = refuse("random:0", f"--mean={value}")
    assert "give three numbers from 0 to 1, for red, green and blue, as in --mean 0.5" in message


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
    assert "a.pt holds a " in message
    assert "as that would run code from the file; save its state_dict alone" in message
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
    assert "is damaged, or no checkpoint (" in refuse(tmp_path / "a.pt")
