"""A training run: steps, the average of the parameters, and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clip_embed.model.clip import Clip
from scripts.training.batches import Batches
from scripts.training.trainee import Losses, Trainee

WARM_UP = 0.02  # fraction of the budget in which the learning rates rise
DECAY = 0.4  # fraction in which they decrease to 0, at the end
AVERAGE_DECAY = 0.999  # of the exponential moving average
MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Budget:
    """The end of a run: a number of steps, or else of seconds."""

    steps: int | None = None
    seconds: float | None = None

    def used(self, steps: int, seconds: float) -> float:
        """Return the fraction that is used, from 0 to 1."""
        if self.steps is not None:
            return min(1.0, steps / self.steps)
        assert self.seconds is not None
        return min(1.0, seconds / self.seconds)


class TrainingRun:
    """Trains until the budget is used, and can be stopped and continued at every checkpoint."""

    def __init__(self, trainee: Trainee, batches: Batches, budget: Budget) -> None:
        self.steps_done = 0
        self._budget = budget
        self._trainee, self._batches = trainee, batches
        self._optimizers = trainee.optimizers()
        for group in self._groups():
            group["initial_lr"] = group["lr"]
        self.average: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in trainee.named_parameters()
        }
        self._begin = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds of training, those before a checkpoint included."""
        return time.perf_counter() - self._begin

    @property
    def used(self) -> float:
        """The fraction of the budget that is used."""
        return self._budget.used(self.steps_done, self.seconds)

    def averaged_clip(self) -> Clip:
        """Return a network with the moving average of the parameters; it shares their memory."""
        clip = Clip(self._trainee.clip.config)
        clip.load(self.published())
        return clip

    def published(self) -> dict[str, Tensor]:
        """Return the part of the average that is published: both towers."""
        return {
            name.removeprefix("clip."): tensor
            for name, tensor in self.average.items()
            if name.startswith("clip.")
        }

    def averaged_prototypes(self) -> Tensor:
        """Return the vector of each class, [C, D]."""
        return self.average["prototypes"] @ self.average["clip.text_projection"]

    def step(self) -> Losses:
        """Train on the next batch, and return its losses, on the device."""
        losses = self._trainee.losses(self._batches.next_batch())
        losses.total().backward()
        nn.utils.clip_grad_norm_(self._trainee.parameters(), MAX_GRADIENT_NORM)
        factor = learning_rate_factor(self.used)
        for group in self._groups():
            group["lr"] = group["initial_lr"] * factor
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self._trainee.clamp_logit_scales()
        self._update_average()
        self.steps_done += 1
        return losses

    def _groups(self) -> Iterator[dict[str, Any]]:
        for optimizer in self._optimizers:
            yield from optimizer.param_groups

    @torch.no_grad()
    def _update_average(self) -> None:
        # A shorter average in the first steps, when the parameters change most.
        decay = min(AVERAGE_DECAY, (1 + self.steps_done) / (10 + self.steps_done))
        parameters = list(self._trainee.parameters())
        torch._foreach_lerp_(list(self.average.values()), parameters, 1 - decay)

    def save(self, checkpoint: Path) -> None:
        """Write a checkpoint, atomically."""
        state = {
            "trainee": self._trainee.state_dict(),
            "optimizers": [each.state_dict() for each in self._optimizers],
            "average": self.average,
            "budget": str(self._budget),
            "steps_done": self.steps_done,
            "seconds": self.seconds,
            "batches": self._batches.state_dict(),
        }
        partial = checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.rename(checkpoint)

    def load(self, checkpoint: Path) -> None:
        """Continue from a checkpoint. Raises SystemExit if that run had another budget."""
        # On the CPU first: the state of a random generator is read there for every device.
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        if state["budget"] != str(self._budget):
            raise SystemExit(
                f"{checkpoint} is of a run with {state['budget']}, not {self._budget}:"
                " delete it, or give other --weights"
            )
        self._trainee.load_state_dict(state["trainee"])
        for optimizer, its_state in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(its_state)
        for name, tensor in state["average"].items():
            self.average[name].copy_(tensor)
        self.steps_done = state["steps_done"]
        self._begin = time.perf_counter() - state["seconds"]
        self._batches.load_state_dict(state["batches"])


def learning_rate_factor(used: float) -> float:
    """Return the factor of the learning rates: it rises, stays at 1, and decreases to 0.

    used: fraction of the budget.
    """
    # Not 0 at the start, so that a run of one step changes something.
    return min(1.0, used / WARM_UP + 0.01, (1 - used) / DECAY)
