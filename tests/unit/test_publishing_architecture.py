"""Names of architectures as people write them, and what the tensors' shapes tell."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from clip_embed.errors import ModelError
from clip_embed.inputs.preprocess import PreprocessConfig
from clip_embed.model.clip import Clip
from clip_embed.model.config import ClipConfig
from scripts.publishing import architecture
from scripts.publishing.errors import PublishError


@pytest.mark.parametrize(
    ("text", "name", "quick_gelu"),
    [
        ("ViT-L-14", "ViT-L-14", None),
        ("ViT-L/14", "ViT-L-14", None),
        ("vit-l-14", "ViT-L-14", None),
        ("ViT_L_14", "ViT-L-14", None),
        (" ViT-L/14 ", "ViT-L-14", None),
        ("ViT-L/14@336px", "ViT-L-14-336", None),
        ("ViT-L-14-336px", "ViT-L-14-336", None),
        ("ViT-B/32", "ViT-B-32", None),
        ("ViT-L-14-quickgelu", "ViT-L-14-quickgelu", True),
        ("vit-l/14-QuickGELU", "ViT-L-14-quickgelu", True),
        ("ViT-bigG-14", "ViT-bigG-14", None),
    ],
)
def test_name_is_found_as_people_write_it(text: str, name: str, quick_gelu: bool | None) -> None:
    """A name without -quickgelu does not say the activation: both are called so."""
    wanted = architecture.read_wanted(text)
    assert (wanted.name, wanted.quick_gelu) == (name, quick_gelu)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ViT-L-15", "open_clip knows no model 'ViT-L-15'; try ViT-L-14-quickgelu, ViT-L-14"),
        ("VIT-B32", "open_clip knows no model 'VIT-B32'; try ViT-B-32-quickgelu, ViT-B-32"),
        ("gpt", "open_clip knows no model 'gpt'; try ViT-L-14-quickgelu, or a JSON file"),
        ("", "open_clip knows no model ''; try ViT-L-14-quickgelu"),
        ("RN50", "--model RN50 describes a ResNet CLIP"),
        ("ViT-B-16-SigLIP", "--model ViT-B-16-SigLIP describes SigLIP"),
        ("EVA02-L-14", "--model EVA02-L-14 describes EVA (eva02_large_patch14_clip_224)"),
        ("coca_ViT-L-14", "--model coca_ViT-L-14 describes CoCa"),
        ("convnext_base", "--model convnext_base describes a timm image tower (convnext_base)"),
        ("roberta-ViT-B-32", "describes a Hugging Face text tower (roberta-base)"),
        ("ViT-L-14-CLIPA", "describes a model with another tokenizer (bert-base-uncased)"),
    ],
)
def test_other_model_is_refused_by_name(text: str, says: str) -> None:
    with pytest.raises(PublishError) as caught:
        architecture.read_wanted(text)
    assert says in str(caught.value)


def test_config_file_may_be_open_clips_of_the_hub(tmp_path: Path) -> None:
    model_cfg = architecture.named_configs()["ViT-B-32"]
    path = tmp_path / "open_clip_config.json"
    path.write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {}}))
    wanted = architecture.read_wanted(str(path))
    assert (wanted.name, wanted.model_cfg) == ("open_clip_config", model_cfg)


@pytest.mark.parametrize("stated", [True, False])
def test_config_file_may_state_the_activation(stated: bool, tmp_path: Path) -> None:
    model_cfg = {**architecture.named_configs()["ViT-B-32"], "quick_gelu": stated}
    (tmp_path / "a.json").write_text(json.dumps(model_cfg))
    assert architecture.read_wanted(str(tmp_path / "a.json")).quick_gelu is stated


NAMES = ["ViT-L-14", "ViT-B-32", "ViT-B-16", "ViT-L-14-336", "ViT-H-14", "ViT-g-14", "ViT-bigG-14"]


@pytest.mark.parametrize("name", NAMES)
def test_architecture_is_found_by_the_shapes_of_the_tensors(name: str) -> None:
    """Tensors on the meta device have no memory."""
    config = ClipConfig.from_open_clip(architecture.named_configs()[name])
    tensors = {key: torch.empty_like(p) for key, p in Clip(config).named_parameters()}
    sizes = architecture.sizes_of_tensors(tensors)
    assert sizes == architecture.sizes_of_config(config)
    assert architecture.find_named(sizes) == name


@pytest.mark.parametrize("name", ["ViT-L-14", "ViT-B-32", "ViT-B-16"])
def test_unknown_sizes_get_heads_of_64_channels(name: str) -> None:
    config = ClipConfig.from_open_clip(architecture.named_configs()[name])
    built = architecture.build_model_cfg(architecture.sizes_of_config(config), "it")
    assert ClipConfig.from_open_clip(built) == config


def test_width_that_has_no_heads_of_64_channels_needs_a_config() -> None:
    sizes = architecture.sizes_of_config(
        ClipConfig.from_open_clip(architecture.named_configs()["ViT-L-14"])
    )
    with pytest.raises(
        PublishError, match=r"no multiples of 64; give the architecture with --mode"
    ):
        architecture.build_model_cfg({**sizes, "text width": 100}, "it")


@pytest.mark.parametrize(("hidden", "width"), [(8192, 1664), (6144, 1408), (100, 3), (4096, 1024)])
def test_mlp_ratio_gives_the_width_again(hidden: int, width: int) -> None:
    assert int(width * architecture.mlp_ratio(hidden, width)) == hidden


def test_options_that_state_a_default_are_dropped() -> None:
    """Configs on the hub may hold them; the service knows no such options."""
    model_cfg = {
        **architecture.named_configs()["ViT-B-32"],
        "vision_cfg": {"width": 768, "pool_type": "tok"},
        "text_cfg": {"width": 512, "pool_type": "argmax"},
        "custom_text": False,
    }
    dropped = architecture.drop_defaults(model_cfg)
    assert (dropped["vision_cfg"], dropped["text_cfg"]) == ({"width": 768}, {"width": 512})
    ClipConfig.from_open_clip(dropped)
    other = {**model_cfg, "text_cfg": {"pool_type": "last"}}
    with pytest.raises(PublishError, match="pool_type not supported"):
        architecture.parse_config(other, "it")


@pytest.mark.parametrize("stem", ["ViT-L-14-quickgelu", "vit_l_14", "RN50"])
def test_json_file_is_not_called_what_it_is_not(stem: str, tmp_path: Path) -> None:
    """open_clip's names stand for its architectures."""
    model_cfg = {**architecture.named_configs()["ViT-B-32"], "embed_dim": 96}
    (tmp_path / f"{stem}.json").write_text(json.dumps(model_cfg))
    assert architecture.read_wanted(str(tmp_path / f"{stem}.json")).name == "ViT-768x12-32"


@pytest.mark.parametrize("file", ["a.json", "a.JSON", "ViT-H-14.json"])
def test_json_file_of_a_known_architecture_is_found(file: str, tmp_path: Path) -> None:
    model_cfg = architecture.named_configs()["ViT-B-32"]
    (tmp_path / file).write_text(json.dumps(model_cfg))
    name = architecture.read_wanted(str(tmp_path / file)).name
    assert name == ("a" if file.startswith("a.") else "ViT-B-32")


@pytest.mark.parametrize("section", ["vision_cfg", "text_cfg"])
@pytest.mark.parametrize("text", ["NaN", "Infinity", "1" + "0" * 400])
def test_mlp_ratio_that_is_not_finite_is_refused(section: str, text: str, tmp_path: Path) -> None:
    model_cfg = json.dumps({"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}})
    path = tmp_path / "a.json"
    path.write_text(model_cfg.replace(f'"{section}": {{', f'"{section}": {{"mlp_ratio": {text}'))
    with pytest.raises(PublishError, match=f"{section}: mlp_ratio is (nan|inf); expected a finite"):
        architecture.read_wanted(str(path))


def test_options_that_change_nothing_are_accepted() -> None:
    sections = {"act_kwargs": {}, "norm_kwargs": {}}
    model_cfg = {
        **architecture.named_configs()["ViT-B-32"],
        "vision_cfg": {"patch_size": 32, "pos_embed_type": "learnable", **sections},
        "text_cfg": sections,
    }
    architecture.parse_config(model_cfg, "it")
    for option in ({"act_kwargs": {"approximate": "tanh"}}, {"pos_embed_type": "sin_cos_2d"}):
        with pytest.raises(PublishError, match=f"{next(iter(option))} not supported"):
            architecture.parse_config({**model_cfg, "vision_cfg": option}, "it")


@pytest.mark.parametrize("number", ["99999999999", "9" * 5000, "1000", "²"])
def test_number_that_no_block_has_is_not_counted(number: str) -> None:
    names = ("0", "1", number)
    tensors = {f"transformer.resblocks.{name}.x": torch.ones(1) for name in names}
    assert architecture.sizes_of_tensors(tensors) == {"text layers": 2}


@pytest.mark.parametrize("value", [math.nan, math.inf, 10**400, True])
@pytest.mark.parametrize("name", ["mean", "std"])
def test_service_refuses_a_normalization_that_is_not_finite(name: str, value: float) -> None:
    """Of a model that an older version published."""
    preprocess_cfg = {"mean": [0.5] * 3, "std": [0.5] * 3, name: [value, 0.5, 0.5]}
    with pytest.raises(ModelError, match=f"preprocess_cfg: {name} is .*; expected three numbers"):
        PreprocessConfig.from_open_clip(preprocess_cfg, 224)
