"""Muon: gradients with their singular values made alike, for the matrices inside a network.

Knows nothing of what the network is for. torch.optim.Muon computes in bfloat16, for which many
processors have no instructions; this one stays in float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def orthogonal(gradient: Tensor) -> Tensor:
    """Of `gradient` = U S Vᵀ [..., M, N] about U Vᵀ, by five Newton-Schulz steps.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
    """
    x = gradient / (gradient.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    if tall := x.shape[-2] > x.shape[-1]:
        x = x.mT
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal.

    parameters: matrices [M, N]; one of [3 N, N] is taken for the three of an attention's input.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for matrix in group["params"]:
                state = self.state[matrix]
                if not state:
                    state["momentum"] = torch.zeros_like(matrix)
                running = state["momentum"].lerp_(matrix.grad, 1 - group["momentum"])
                ahead = matrix.grad.lerp(running, group["momentum"])  # Nesterov's
                rows, columns = matrix.shape
                parts = ahead.view(3 if rows == 3 * columns else 1, -1, columns)
                # A taller matrix makes more of the same input.
                louder = max(1.0, parts.shape[1] / columns) ** 0.5
                matrix.sub_(orthogonal(parts).view_as(matrix), alpha=group["lr"] * louder)
