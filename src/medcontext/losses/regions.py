"""Dice + binary cross-entropy for regions that may contain one another, each with an output of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dice_bce(logits: Tensor, target: Tensor, membership: Tensor, *, smooth: float = 1e-5) -> Tensor:
    """Mean soft Dice loss over samples and regions plus mean binary cross-entropy over regions and voxels, in float32.

    Voxels whose class index is negative are ignored by both.

    Args:
        logits: ``(B, R, D, H, W)``, one output per region.
        target: ``(B, D, H, W)`` class indices, int64.
        membership: ``(R, K)`` boolean: which class belongs to which region.
        smooth: Added above and below the fraction of the Dice term.

    Returns:
        A scalar.
    """
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(2)
    known = (target >= 0).flatten(1)[:, None].to(scores.dtype)
    true = in_regions(target, membership).flatten(2).to(scores.dtype) * known
    p = scores.sigmoid() * known
    dice = (2 * (p * true).sum(2) + smooth) / (p.sum(2) + true.sum(2) + smooth)
    cross_entropy = F.binary_cross_entropy_with_logits(scores, true, reduction="none") * known
    return (1 - dice).mean() + cross_entropy.sum() / (known.sum() * scores.shape[1]).clamp_min(1)


def in_regions(target: Tensor, membership: Tensor) -> Tensor:
    """``(B, R, D, H, W)`` boolean: which voxel lies in which region, from class indices ``(B, D, H, W)``."""
    return membership[:, target.clamp_min(0)].movedim(0, 1)
