"""A training run: steps, the average of the parameters, and checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from clip_embed.inputs.tokenizer import Tokenizer
from clip_embed.model.clip import Clip
from scripts.training.batches import Batches, tokenize
from scripts.training.trainee import Trainee

WARM_UP_STEPS = 30
DECAY = 0.7  # fraction of the steps in which the learning rate decreases, at the end
AVERAGE_DECAY = 0.99  # of the exponential moving average
MAX_GRADIENT_NORM = 1.0


class TrainingRun:
    """Trains for `steps` steps, and can be stopped and continued at every checkpoint."""

    def __init__(
        self, trainee: Trainee, batches: Batches, tokenizer: Tokenizer, steps: int
    ) -> None:
        self.steps = steps
        self.steps_done = 0
        self._trainee, self._batches, self._tokenizer = trainee, batches, tokenizer
        self._optimizers = trainee.optimizers()
        self._schedules = [
            LambdaLR(each, lambda step: learning_rate_factor(step, steps))
            for each in self._optimizers
        ]
        self.average: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in trainee.clip.named_parameters()
        }

    def averaged_clip(self) -> Clip:
        """Return a network with the moving average of the parameters; it shares their memory."""
        clip = Clip(self._trainee.clip.config)
        clip.load(self.average)
        return clip

    def step(self) -> float:
        """Train on the next batch, and return its loss."""
        pixels, texts, classes = self._batches.next_batch()
        loss = self._trainee.loss(pixels, tokenize(self._tokenizer, texts), classes)
        loss.backward()
        nn.utils.clip_grad_norm_(self._trainee.parameters(), MAX_GRADIENT_NORM)
        for optimizer, schedule in zip(self._optimizers, self._schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        self._trainee.clamp_logit_scales()
        self._update_average()
        self.steps_done += 1
        return loss.item()

    @torch.no_grad()
    def _update_average(self) -> None:
        # A shorter average in the first steps, when the parameters change most.
        decay = min(AVERAGE_DECAY, (1 + self.steps_done) / (10 + self.steps_done))
        for name, parameter in self._trainee.clip.named_parameters():
            self.average[name].lerp_(parameter, 1 - decay)

    def save(self, checkpoint: Path) -> None:
        """Write a checkpoint, atomically."""
        state = {
            "trainee": self._trainee.state_dict(),
            "optimizers": [each.state_dict() for each in self._optimizers],
            "schedules": [each.state_dict() for each in self._schedules],
            "average": self.average,
            "steps_done": self.steps_done,
            "batches": self._batches.state_dict(),
        }
        partial = checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.rename(checkpoint)

    def load(self, checkpoint: Path) -> None:
        """Continue from a checkpoint of a run with the same arguments."""
        # A file of our own: the state of the random generators is not plain weights.
        state = torch.load(checkpoint, weights_only=False)
        self._trainee.load_state_dict(state["trainee"])
        for parts, states in (
            (self._optimizers, state["optimizers"]),
            (self._schedules, state["schedules"]),
        ):
            for part, part_state in zip(parts, states, strict=True):
                part.load_state_dict(part_state)
        self.average, self.steps_done = state["average"], state["steps_done"]
        self._batches.load_state_dict(state["batches"])


def learning_rate_factor(step: int, steps: int) -> float:
    """Return the factor of the learning rates: it rises, stays at 1, and decreases to 0."""
    return min(1.0, (step + 1) / WARM_UP_STEPS, (steps - step) / (steps * DECAY))
