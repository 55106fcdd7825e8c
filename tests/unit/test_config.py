"""Reading of `open_clip_config.json`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from clip_embed.errors import ModelError
from clip_embed.model.config import ClipConfig, read_config
from tests.helpers.paths import TINY

PREPROCESS_CFG = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


def make_document(**text_cfg: Any) -> bytes:
    """Return the configuration of the tiny model, with changes to its text tower."""
    model_cfg = json.loads(TINY.read_text())
    model_cfg["text_cfg"] |= text_cfg
    return json.dumps({"model_cfg": model_cfg, "preprocess_cfg": PREPROCESS_CFG}).encode()


def test_read_config_returns_architecture_and_preprocessing() -> None:
    """Images are prepared at the image size of the network."""
    config, preprocess_config = read_config(make_document())
    assert (config.text.width, config.text.heads) == (16, 2)
    assert preprocess_config.size == config.image_size == 56


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"model_cfg": {}}', b"null", b"\xff"])
def test_read_config_rejects_a_malformed_file(data: bytes) -> None:
    """JSON that lacks a part, or is of another type, raises the same error as no JSON."""
    with pytest.raises(ModelError, match=r"open_clip_config\.json is malformed"):
        read_config(data)


def test_read_config_rejects_a_width_that_heads_do_not_divide() -> None:
    with pytest.raises(ModelError, match="width 16 is no multiple of 3 heads"):
        read_config(make_document(heads=3))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"embed_dim": None}, "embed_dim is None; expected int"),
        ({"embed_dim": 0}, "embed_dim is 0; expected a positive number"),
        ({"quick_gelu": 1}, "quick_gelu is 1; expected bool"),
        ({"vision_cfg": {"timm_model_name": "vit"}}, "timm_model_name not supported"),
        ({"vision_cfg": {"layers": [3, 4, 6, 3]}}, "layers is [3, 4, 6, 3]; expected int"),
        ({"vision_cfg": {"width": 100}}, "width 100 is not a multiple of 64"),
        ({"vision_cfg": {"image_size": 225}}, "image_size 225 is not a multiple of patch_size 16"),
        ({"text_cfg": {"heads": 7}}, "width 512 is no multiple of 7 heads"),
        ({"text_cfg": {"hf_model_name": "bert"}}, "hf_model_name not supported"),
        ({"text_cfg": 3}, "text_cfg is 3; expected dict"),
    ],
)
def test_from_open_clip_rejects_unsupported_architectures(
    change: dict[str, object], problem: str
) -> None:
    """No option of open_clip's is ignored."""
    config: dict[str, object] = {"embed_dim": 512, "vision_cfg": {}, "text_cfg": {}}
    with pytest.raises(ModelError) as caught:
        ClipConfig.from_open_clip(config | change)
    assert problem in str(caught.value)
