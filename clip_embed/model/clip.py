"""CLIP's two towers in plain torch: token ids or pixels in, projected features out.

Independent of files, devices and batching. The architecture comes from `open_clip_config.json`
and the parameter names are open_clip's, so that one class serves ViT-L/14 and the tiny models of
the tests.

Letters in shape comments: B batch, L tokens of a text, N tokens of all texts, P patches + 1,
W width, H heads, D embedding.
Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
2021, section 2.4, and open_clip's implementation; tests/reference compares the two.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_embed.errors import ModelError
from clip_embed.model.config import ClipConfig, TowerConfig


def _empty_parameter(*shape: int) -> nn.Parameter:
    """Return a parameter on the meta device, without memory, until the weights are loaded.

    `nn.Embedding(device="meta")` would import torch._dynamo, which takes 1.7 s (torch 2.14.1).
    """
    return nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)


class Linear(nn.Module):
    """`nn.Linear` without its random initialization."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = _empty_parameter(outputs, inputs)
        self.bias = _empty_parameter(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def scaled(self, x: Tensor, factor: float, bias: Tensor) -> Tensor:
        """Return factor · x Wᵀ + bias in one call, for x: [N, C]."""
        return torch.addmm(bias, x, self.weight.t(), alpha=factor)


AddLayerNorm = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""x, update, weight, bias → x + update, and its layer normalization."""


class LayerNorm(nn.Module):
    """Layer normalization over the last dimension, which torch accumulates in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = _empty_parameter(width)
        self.bias = _empty_parameter(width)
        self.fused: AddLayerNorm | None = None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias)

    def of_sum(self, x: Tensor, update: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return x + update, and its normalization. If update is None, return x and its own."""
        if update is not None:
            if self.fused is not None:
                return self.fused(x, update, self.weight, self.bias)
            x = x + update
        return x, self(x)


QUICK_GELU_FACTOR = 1.702


class Packing:
    """The layout of a packed batch: texts one after another, [N, C] instead of [B, L, C].

    Only attention needs padding, and it is a fiftieth of the work; everything else is computed
    without it, so short texts in a batch with long ones cost only their own tokens.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        """lengths: tokens of each text, B of them, none zero."""
        self.shape = len(lengths), max(lengths)
        counts = torch.tensor(lengths)
        rows = torch.repeat_interleave(torch.arange(len(lengths)), counts)
        columns = torch.cat([torch.arange(length) for length in lengths])
        self.columns = columns.to(device)  # int64 [N], position of each token in its text
        self.ends = (counts - 1).to(device)  # int64 [B], position of each end-of-text in its text
        self._starts = (counts.cumsum(0) - counts).to(device)  # int64 [B], of each text in [N]
        # int64 [N], position of each token in [B · L]; None if it is the same as in [N]
        self._flat = None
        if len(columns) < self.shape[0] * self.shape[1]:
            self._flat = (rows * self.shape[1] + columns).to(device)

    def at_ends(self, x: Tensor) -> Tensor:
        """Return the rows of the end-of-text tokens, [B, C], from [N, C]."""
        return x.index_select(0, self._starts + self.ends)

    def keys_until_ends(self) -> Tensor:
        """Return which keys an end-of-text token attends to: bool [B, 1, 1, L]."""
        keys = torch.arange(self.shape[1], device=self.ends.device)
        return (keys <= self.ends.unsqueeze(1)).view(self.shape[0], 1, 1, -1)

    def pad(self, x: Tensor) -> Tensor:
        """Convert [N, C] to [B, L, C], with zeros for padding."""
        batch, length = self.shape
        if self._flat is not None:
            x = x.new_zeros((batch * length, x.shape[-1])).index_copy_(0, self._flat, x)
        return x.view(batch, length, -1)

    def pack(self, x: Tensor) -> Tensor:
        """Convert [B, L, C] to [N, C]."""
        x = x.flatten(0, 1)
        return x if self._flat is None else x.index_select(0, self._flat)


class Attention(nn.Module):
    """Multi-head self-attention; queries, keys and values share one projection, as in open_clip."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = _empty_parameter(3 * width, width)
        self.in_proj_bias = _empty_parameter(3 * width)
        self.out_proj = Linear(width, width)

    def forward(self, x: Tensor, packing: Packing | None) -> Tensor:
        # [B, L, W], or [N, W] if packed
        q, k, v = self._project(x, packing, slice(None)).unbind(0)
        # Texts are packed and attend causally; images are not packed and attend fully.
        x = F.scaled_dot_product_attention(q, k, v, is_causal=packing is not None)
        x = x.transpose(1, 2).flatten(2)  # [B, L, W]
        return self.out_proj(x if packing is None else packing.pack(x))  # type: ignore[no-any-return]

    def pooled(self, x: Tensor, pooled: Tensor, packing: Packing | None) -> Tensor:
        """Return what `forward` gives for the pooled tokens only: [B, W], from their rows of x."""
        width = x.shape[-1]
        q = F.linear(pooled, self.in_proj_weight[:width], self.in_proj_bias[:width])
        q = q.view(len(q), self.heads, 1, -1)  # [B, H, 1, W/H]
        k, v = self._project(x, packing, slice(width, None)).unbind(0)
        mask = None if packing is None else packing.keys_until_ends()
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(x.flatten(1))  # type: ignore[no-any-return]

    def _project(self, x: Tensor, packing: Packing | None, rows: slice) -> Tensor:
        """Return queries, keys and values, or those that `rows` selects: [3, B, H, L, W/H]."""
        out = F.linear(x, self.in_proj_weight[rows], self.in_proj_bias[rows])
        if packing is not None:
            out = packing.pad(out)
        out = out.view(*out.shape[:2], -1, self.heads, x.shape[-1] // self.heads)
        return out.permute(2, 0, 3, 1, 4)


class Mlp(nn.Module):
    """The feed-forward part of a block."""

    def __init__(self, config: TowerConfig, quick_gelu: bool) -> None:
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.c_fc = Linear(config.width, hidden)
        self.quick_gelu = quick_gelu
        self.c_proj = Linear(hidden, config.width)
        self._scaled_bias: Tensor | None = None

    def scale_bias(self) -> None:
        """Prepare the loaded weights for `forward`, which computes QuickGELU, x · sigmoid(1.702 x),
        as SiLU(1.702 x) / 1.702.

        The matrix products apply both factors at no cost, so a single pass over the widest
        activation is enough. The bias is multiplied here: on a GPU, a product with a factor for its
        bias needs two more such passes.
        """
        if self.quick_gelu:
            self._scaled_bias = self.c_fc.bias * QUICK_GELU_FACTOR

    def forward(self, x: Tensor) -> Tensor:
        if not self.quick_gelu:
            return self.c_proj(F.gelu(self.c_fc(x)))  # type: ignore[no-any-return]
        assert self._scaled_bias is not None
        wide = self.c_fc.scaled(x.flatten(0, -2), QUICK_GELU_FACTOR, self._scaled_bias)
        wide = F.silu(wide, inplace=True)
        narrow = self.c_proj.scaled(wide, 1 / QUICK_GELU_FACTOR, self.c_proj.bias)
        return narrow.view(x.shape)


class ResidualAttentionBlock(nn.Module):
    """One pre-norm residual block."""

    def __init__(self, config: TowerConfig, quick_gelu: bool) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.width)
        self.attn = Attention(config.width, config.heads)
        self.ln_2 = LayerNorm(config.width)
        self.mlp = Mlp(config, quick_gelu)

    def forward(
        self, x: Tensor, update: Tensor | None, packing: Packing | None
    ) -> tuple[Tensor, Tensor]:
        """Return the new residual, and an update that is still to be added to it.

        x, update: what the block before returned. So each sum is computed together with the
        normalization that follows.
        """
        x, normed = self.ln_1.of_sum(x, update)
        x, normed = self.ln_2.of_sum(x, self.attn(normed, packing))
        return x, self.mlp(normed)

    def pooled(self, x: Tensor, update: Tensor | None, packing: Packing | None) -> Tensor:
        """Return the sum of what `forward` gives, for the pooled tokens only: [B, W].

        These are the class tokens of images, and the end-of-text tokens of texts.
        """
        x, normed = self.ln_1.of_sum(x, update)
        if packing is None:
            x, pooled = x[:, 0], normed[:, 0]
        else:
            x, pooled = packing.at_ends(x), packing.at_ends(normed)
        x, normed = self.ln_2.of_sum(x, self.attn.pooled(normed, pooled, packing))
        return x + self.mlp(normed)  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """A stack of blocks, of whose output only the pooled tokens are used.

    So the last block is computed for these alone, except for keys and values: one in 14 of all
    operations less for a text, and one in 28 for an image.
    """

    def __init__(self, config: TowerConfig, quick_gelu: bool) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(
            ResidualAttentionBlock(config, quick_gelu) for _ in range(config.layers)
        )

    def forward(self, x: Tensor, packing: Packing | None, depth: int | None = None) -> Tensor:
        # [B, L, W], or [N, W] if packed -> [B, W]
        blocks = list(self.resblocks)[:depth]
        update = None
        for block in blocks[:-1]:
            x, update = block(x, update, packing)
        return blocks[-1].pooled(x, update, packing)  # type: ignore[no-any-return, operator]


class PatchEmbedding(nn.Module):
    """One vector per patch: a convolution whose stride equals its kernel size, computed as a matrix
    product, which needs no cuDNN (0.1 s of a start on an H100)."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.weight = _empty_parameter(width, 3, patch_size, patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        size = self.weight.shape[-1]
        side = pixels.shape[-1] // size
        x = pixels.view(len(pixels), 3, side, size, side, size)  # [B, 3, S/p, p, S/p, p]
        x = x.permute(0, 2, 4, 1, 3, 5).reshape(len(x), side * side, -1)  # [B, P - 1, 3 · p · p]
        return F.linear(x, self.weight.flatten(1))  # [B, P - 1, W]


class VisionTower(nn.Module):
    """The image tower: pixels to the projected feature of the class token."""

    def __init__(self, config: ClipConfig, quick_gelu: bool) -> None:
        super().__init__()
        width = config.vision.width
        patches = (config.image_size // config.patch_size) ** 2
        self.conv1 = PatchEmbedding(width, config.patch_size)
        self.class_embedding = _empty_parameter(width)
        self.positional_embedding = _empty_parameter(patches + 1, width)
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(config.vision, quick_gelu)
        self.ln_post = LayerNorm(width)
        self.proj = _empty_parameter(width, config.embed_dim)

    def forward(self, pixels: Tensor, depth: int | None) -> Tensor:
        x = self.conv1(pixels)
        class_token = self.class_embedding.expand(len(x), 1, -1)
        x = torch.cat([class_token, x], dim=1)  # [B, P, W]
        x = self.ln_pre(x + self.positional_embedding)
        x = self.transformer(x, None, depth)  # [B, W]
        return self.ln_post(x) @ self.proj  # type: ignore[no-any-return]  # [B, D]


class Clip(nn.Module):
    """Both towers, on the meta device until `load`."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.visual = VisionTower(config, config.quick_gelu)
        self.token_embedding = _Embedding(config.vocab_size, config.text.width)
        self.positional_embedding = _empty_parameter(config.context_length, config.text.width)
        self.transformer = Transformer(config.text, config.quick_gelu)
        self.ln_final = LayerNorm(config.text.width)
        self.text_projection = _empty_parameter(config.text.width, config.embed_dim)
        # Scales cosine similarities in training. In every checkpoint, and not used here.
        self.logit_scale = _empty_parameter()

    def misfits(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Describe each tensor that is missing, unknown or of another shape than its parameter."""
        expected = {name: tuple(p.shape) for name, p in self.named_parameters()}
        given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        return [
            *(f"{name} is missing" for name in expected if name not in given),
            *(f"{name} is unknown" for name in given if name not in expected),
            *(
                f"{name} has shape {list(given[name])}, expected {list(shape)}"
                for name, shape in expected.items()
                if given.get(name, shape) != shape
            ),
        ]

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Use `tensors` as parameters, without copying them.

        Raises ModelError, which names the first few tensors that are missing, unknown or of another
        shape; the network is then unchanged.
        """
        if problems := self.misfits(tensors):
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise ModelError(
                f"the weights do not fit the network: {'; '.join(problems[:3])}{more}; publish the"
                " model again with scripts/publish_weights.py"
            )
        self.load_state_dict(tensors, strict=True, assign=True)
        for module in self.modules():
            if isinstance(module, Mlp):
                module.scale_bias()

    @contextlib.contextmanager
    def fusing(self, add_layer_norm: AddLayerNorm | None) -> Iterator[None]:
        """Use `add_layer_norm` in both towers inside the `with` body. It has no gradient."""
        norms = [module for module in self.modules() if isinstance(module, LayerNorm)]
        for norm in norms:
            norm.fused = add_layer_norm
        try:
            yield
        finally:
            for norm in norms:
                norm.fused = None

    def encode_image(self, pixels: Tensor, depth: int | None = None) -> Tensor:
        """Return the projected features of images, [B, D], not normalized.

        pixels: [B, 3, S, S], normalized with the model's mean and standard deviation, in the
        parameters' dtype. depth: run only so many blocks, to warm up.
        """
        return self.visual(pixels, depth)  # type: ignore[no-any-return]

    def encode_text(self, tokens: Tensor, packing: Packing) -> Tensor:
        """Return the projected features of texts, [B, D], not normalized.

        tokens: int64 [N], the texts one after another, each up to its end-of-text token, whose
        feature is the text's. Attention is causal, so padding after it would change nothing.
        packing: the layout of the texts, none longer than context_length.
        """
        x = self.token_embedding(tokens)  # [N, W]
        x = x + self.positional_embedding[packing.columns]
        x = self.transformer(x, packing)  # [B, W]
        return self.ln_final(x) @ self.text_projection  # type: ignore[no-any-return]


class _Embedding(nn.Module):
    """`nn.Embedding` without its random initialization."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.weight = _empty_parameter(count, width)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)
