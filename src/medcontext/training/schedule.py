"""Optimisers and the schedules that belong to them."""

from __future__ import annotations

import math

import torch
from torch import nn

from medcontext.training.config import OptimizerName

WARM_UP = 0.03
"""Share of the steps over which AdamW's learning rate rises from 0."""

MOMENTUM, POWER, SGD_RATE = 0.99, 0.9, 0.01
"""Of SGD, as nnU-Net trains (Isensee et al., Nature Methods 2021): momentum, power of the decay, first rate."""

WEIGHT_DECAY: dict[OptimizerName, float] = {"adamw": 0.01, "sgd": 3e-5}
"""Unless another is asked for; SGD's is nnU-Net's."""


def learning_rate(optimizer: OptimizerName, highest: float, step: int, steps: int) -> float:
    """A pure function of the step (from 0) of ``steps``, which ends at 0.

    AdamW: linear warm-up, then half a cosine. SGD: ``(1 - step / steps) ** 0.9`` from the first step on.
    """
    if optimizer == "sgd":
        return float(highest * (1 - step / steps) ** POWER)
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return highest * (step + 1) / warm_up
    return highest * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))) / 2


def make_optimizer(module: nn.Module, optimizer: OptimizerName, weight_decay: float | None) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov's momentum; both fused: such an optimiser can skip a step on the device.

    Args:
        module: To learn.
        optimizer: Which.
        weight_decay: On what has two axes or more, not on norms, most biases or mask tokens; None: the optimiser's own.
    """
    if weight_decay is None:
        weight_decay = WEIGHT_DECAY[optimizer]
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=True)
    sgd = torch.optim.SGD(groups, lr=SGD_RATE, momentum=MOMENTUM, nesterov=True, fused=True)
    for parameter in parameters:
        # PyTorch 2.13 makes them at the first step without filling them, and leaves them so if that step is skipped.
        sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd
