"""`open_clip_config.json`: what it may say, and what is wrong with it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from clip_embed.config import read_config
from clip_embed.errors import ModelError
from conftest import TINY

PREPROCESS = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


def document(**text: Any) -> bytes:
    """A whole file around the tests' tiny model, with other options of its text tower."""
    model = json.loads(TINY.read_text())
    model["text_cfg"] |= text
    return json.dumps({"model_cfg": model, "preprocess_cfg": PREPROCESS}).encode()


def test_both_halves_are_read() -> None:
    """The network's architecture, and how its images are prepared, at the network's size."""
    config, preprocessing = read_config(document())
    assert (config.text.width, config.text.heads) == (64, 2)
    assert preprocessing.size == config.image_size == 56


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"model_cfg": {}}', b"null", b"\xff"])
def test_what_is_no_configuration_is_called_so(data: bytes) -> None:
    """Not JSON, or JSON of another kind: one error, which names the file."""
    with pytest.raises(ModelError, match=r"open_clip_config\.json is malformed"):
        read_config(data)


def test_heads_must_share_the_width_evenly() -> None:
    """A text tower that cannot be cut into its heads is refused, with both numbers."""
    with pytest.raises(ModelError, match="width 64 is no multiple of 3 heads"):
        read_config(document(heads=3))
