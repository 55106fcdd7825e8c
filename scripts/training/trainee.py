"""The service's own network with a loss and optimizers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_embed.model.clip import Clip, Packing
from clip_embed.model.config import ClipConfig
from scripts.training.initialize import initial_parameters, linear_discriminants

MATRIX_RATE = 0.01  # learning rate of the matrices in the blocks, with Muon
TEXT_RATE, IMAGE_RATE = 2e-3, 5e-4  # of all other parameters, with AdamW
MAX_LOGIT_SCALE = 60.0
INITIALIZATION_PICTURES = 1500


class Trainee(nn.Module):
    """CLIP with a learned prototype for each class.

    Pictures and sentences are classified by their similarity to the prototypes: each batch compares
    them with all 1,914 classes, more than there are pictures or sentences in a batch.
    """

    @torch.no_grad()
    def __init__(self, config: ClipConfig, pixels: Tensor, classes: Tensor) -> None:
        """pixels: normalized drawings [N, 3, S, S] of every class. classes: int64 [N]."""
        super().__init__()
        self.clip = Clip(config)
        sample = torch.randperm(len(pixels))[:INITIALIZATION_PICTURES]
        self.clip.load(initial_parameters(self.clip, pixels[sample]))
        visual = self.clip.visual
        # The projection is still the identity.
        features = torch.cat([self.clip.encode_image(part) for part in pixels.split(256)])
        mean, directions, prototypes = linear_discriminants(
            features[:, : config.vision.width], classes, config.text.width
        )
        visual.ln_post.bias.copy_(-mean)
        visual.proj.copy_(directions @ self.clip.text_projection)
        self.clip.requires_grad_(True)
        # [C, width of the text tower]: the text projection then keeps the prototypes in the
        # subspace that texts can reach.
        self.prototypes = nn.Parameter(prototypes)
        self.text_logit_scale = nn.Parameter(self.clip.logit_scale.detach().clone())

    def loss(self, pixels: Tensor, texts: tuple[Tensor, Packing], classes: Tensor) -> Tensor:
        """Compute the loss of a batch.

        pixels: [B, 3, S, S]. texts: T texts, as arguments of `Clip.encode_text`. classes: int64
        [T], of the texts; the first B are also those of the pictures.
        """
        images = F.normalize(self.clip.encode_image(pixels), dim=-1)
        sentences = F.normalize(self.clip.encode_text(*texts), dim=-1)
        prototypes = F.normalize(self.prototypes @ self.clip.text_projection, dim=-1)
        image_classes = classes[: len(images)]
        scale = self.clip.logit_scale.exp()
        image_loss = F.cross_entropy(scale * images @ prototypes.T, image_classes)
        text_scale = self.text_logit_scale.exp()
        text_loss = F.cross_entropy(text_scale * sentences @ prototypes.T, classes)
        # CLIP's own loss, in both directions, with several correct answers for a class.
        logits = scale * images @ sentences[: len(images)].T  # [B, B]
        targets = (image_classes[:, None] == image_classes).float()
        targets /= targets.sum(1, keepdim=True)
        contrastive_loss = sum(
            -(F.log_softmax(each, 1) * targets).sum(1).mean() for each in (logits, logits.T)
        )
        return image_loss + text_loss / 2 + contrastive_loss / 4  # type: ignore[no-any-return]

    @torch.no_grad()
    def clamp_logit_scales(self) -> None:
        """Limit the factors of the cosine similarities. Call it after each step."""
        for scale in (self.clip.logit_scale, self.text_logit_scale):
            scale.clamp_(max=math.log(MAX_LOGIT_SCALE))

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Return Muon for the matrices in the blocks, and AdamW for all other parameters."""
        self.clip.visual.conv1.requires_grad_(False)  # training does not improve it
        matrices, image, text = [], [], [self.prototypes, self.text_logit_scale]
        for name, parameter in self.clip.named_parameters():
            if parameter.requires_grad:
                is_matrix = "resblocks" in name and parameter.ndim == 2
                others = image if name.startswith("visual.") else text
                (matrices if is_matrix else others).append(parameter)
        groups = [{"params": image, "lr": IMAGE_RATE}, {"params": text, "lr": TEXT_RATE}]
        # These arguments are closest to the Muon that trained the published weights: no weight
        # decay, "original" scaling of the learning rate. It computed in float32, and treated the
        # query, key and value matrices one by one; the loss after 16 steps was 10.25, and is 10.22
        # with this. torch's computes in bfloat16: slow on CPUs without instructions for it.
        return [
            torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=0.0, adjust_lr_fn="original"),
            torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
        ]
