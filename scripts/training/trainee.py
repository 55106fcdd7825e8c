"""The service's own network with a loss and optimizers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_embed.model.clip import Clip
from clip_embed.model.config import ClipConfig
from scripts.training.batches import Batch
from scripts.training.initialize import initial_parameters

MATRIX_RATE = 0.01  # learning rate of the matrices in the blocks, with Muon
TEXT_RATE, IMAGE_RATE = 2e-3, 1e-3  # of all other parameters, with AdamW
WEIGHT_DECAY = 0.05  # of matrices
LABEL_SMOOTHING = 0.1
MAX_LOGIT_SCALE = 60.0


@dataclass(frozen=True)
class Losses:
    """Scalars. picture, text: against the classes. match: of pictures and their captions. teacher:
    1 - cosine of the sentences' features and the teacher's vectors."""

    picture: Tensor
    text: Tensor
    match: Tensor
    teacher: Tensor

    def total(self) -> Tensor:
        return self.picture + self.text / 2 + self.match / 4 + self.teacher / 2


class Trainee(nn.Module):
    """CLIP with a learned prototype for each class, and a linear map to the teacher's vectors.

    Pictures and texts are classified by their similarity to the prototypes: each batch compares
    them with all classes. Prototypes and map are not published.
    """

    def __init__(self, config: ClipConfig, class_count: int, teacher_width: int) -> None:
        super().__init__()
        self.clip = Clip(config)
        self.clip.load(initial_parameters(self.clip))
        self.clip.requires_grad_(True)
        # [C, width of the text tower]: the text projection then keeps the prototypes in the
        # subspace that texts can reach.
        self.prototypes = nn.Parameter(torch.randn(class_count, config.text.width) * 0.1)
        self.text_logit_scale = nn.Parameter(self.clip.logit_scale.detach().clone())
        self.teacher_head = nn.Linear(config.embed_dim, teacher_width)

    def losses(self, batch: Batch) -> Losses:
        """Compute the losses of a batch, the towers in bfloat16 on a GPU."""
        device = batch.pixels.device.type
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            images = self.clip.encode_image(batch.pixels)
            texts = self.clip.encode_text(batch.tokens, batch.layout)
        images = F.normalize(images.float(), dim=-1)  # [B, D]
        texts = F.normalize(texts.float(), dim=-1)  # [T, D]
        prototypes = F.normalize(self.prototypes @ self.clip.text_projection, dim=-1)  # [C, D]
        scale, text_scale = self.clip.logit_scale.exp(), self.text_logit_scale.exp()
        return Losses(
            F.cross_entropy(
                scale * images @ prototypes.T, batch.classes, label_smoothing=LABEL_SMOOTHING
            ),
            F.cross_entropy(text_scale * texts @ prototypes.T, batch.targets),
            match_loss(scale * images @ texts[: len(images)].T, batch.classes),
            self._teacher_loss(texts, batch.teacher),
        )

    def _teacher_loss(self, texts: Tensor, teacher: Tensor) -> Tensor:
        known = teacher.any(1)
        cosine = F.cosine_similarity(self.teacher_head(texts), teacher, eps=1e-6)
        return ((1 - cosine) * known).sum() / known.sum().clamp(min=1)

    @torch.no_grad()
    def clamp_logit_scales(self) -> None:
        """Limit the factors of the cosine similarities. Call it after each step."""
        for scale in (self.clip.logit_scale, self.text_logit_scale):
            scale.clamp_(max=math.log(MAX_LOGIT_SCALE))

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Return Muon for the matrices in the blocks, and AdamW for all other parameters."""
        matrices: list[nn.Parameter] = []
        others: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if "resblocks" in name and parameter.ndim == 2:
                matrices.append(parameter)
            else:
                rate = IMAGE_RATE if ".visual." in name else TEXT_RATE
                decays = parameter.ndim > 1 and "embedding" not in name and name != "prototypes"
                others.setdefault((rate, WEIGHT_DECAY * decays), []).append(parameter)
        groups = [
            {"params": parameters, "lr": rate, "weight_decay": decay}
            for (rate, decay), parameters in others.items()
        ]
        return [
            torch.optim.Muon(
                matrices, lr=MATRIX_RATE, weight_decay=WEIGHT_DECAY, adjust_lr_fn="original"
            ),
            torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True),
        ]


def match_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Return CLIP's loss, both directions summed, with several correct answers for a class.

    logits: of pictures and captions, [B, B]. classes: int64 [B], of both.
    """
    targets = (classes[:, None] == classes).float()
    targets /= targets.sum(1, keepdim=True)
    return F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)
