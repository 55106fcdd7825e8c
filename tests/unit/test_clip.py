"""The network accepts exactly the tensors of its architecture."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import weights
from clip_embed.checkpoint.load import load_tensors
from clip_embed.errors import ModelError
from clip_embed.model.clip import Clip, Packing
from clip_embed.model.config import ClipConfig
from tests.helpers.paths import TINY

CONFIG = ClipConfig.from_open_clip(json.loads(TINY.read_text()))


def test_load_gives_every_parameter_a_value(tiny_model: Path) -> None:
    """Parameters are on the meta device before."""
    model = Clip(CONFIG)
    assert all(parameter.is_meta for parameter in model.parameters())
    with weights.pull(str(tiny_model)) as pull:
        model.load(load_tensors(pull.blocks(), torch.device("cpu"), torch.float32))
    assert not [name for name, parameter in model.named_parameters() if parameter.is_meta]
    assert not list(model.buffers())


def test_loaded_network_gives_back_the_tensors_it_was_given(tiny_model: Path) -> None:
    with weights.pull(str(tiny_model)) as pull:
        tensors = load_tensors(pull.blocks(), torch.device("cpu"), torch.float32)
    model = Clip(CONFIG)
    model.load(tensors)
    state = model.state_dict()
    assert state.keys() == tensors.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())


def test_gradients_reach_every_parameter() -> None:
    """The demo's model is trained with this network (scripts/training)."""
    model = Clip(dataclasses.replace(CONFIG, quick_gelu=False))
    model.load({name: torch.full(p.shape, 0.01) for name, p in model.named_parameters()})
    model.requires_grad_(True)
    size = CONFIG.image_size
    images = model.encode_image(torch.rand(2, 3, size, size))
    texts = model.encode_text(torch.arange(9), Packing([4, 5], torch.device("cpu")))
    (images.sum() + texts.sum()).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == ["logit_scale"]  # the loss uses it


def test_load_rejects_tensors_of_another_network() -> None:
    """The error names missing, unknown and misshapen tensors, and nothing is loaded."""
    model = Clip(CONFIG)
    tensors = {name: torch.zeros(p.shape) for name, p in model.named_parameters()}
    tensors |= {"stranger": torch.zeros(1), "visual.proj": torch.zeros(2, 2)}
    del tensors["ln_final.bias"]
    with pytest.raises(ModelError) as caught:
        model.load(tensors)
    for problem in (
        "ln_final.bias is missing",
        "stranger is unknown",
        "visual.proj has shape [2, 2], expected [64, 768]",
    ):
        assert problem in str(caught.value)
    assert next(model.parameters()).is_meta
