"""Shared by the tests of hiding: what of an image a network can still see."""

from __future__ import annotations

import torch
from torch import nn


def reached_voxels(network: nn.Module, image: torch.Tensor, *mask: torch.Tensor) -> torch.Tensor:
    """Which voxels ``(B, D, H, W)`` of the image can change the outputs, by the gradient."""
    image = image.clone().requires_grad_()
    logits = network(image, *mask)
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    return image.grad.abs().sum(1) > 0
