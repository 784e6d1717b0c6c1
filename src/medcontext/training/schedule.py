"""Learning rate and optimiser."""

from __future__ import annotations

import math

import torch
from torch import nn

WARM_UP = 0.03
"""Share of the steps over which the learning rate rises from 0."""


def learning_rate(highest: float, step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to 0: a pure function of the step (from 0) of ``steps``."""
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return highest * (step + 1) / warm_up
    return highest * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))) / 2


def make_optimizer(module: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and kernels only, not on norms, biases or mask tokens."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        fused=True,
    )
