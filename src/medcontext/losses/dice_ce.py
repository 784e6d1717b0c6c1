"""Dice + cross-entropy, the field's standard loss, without ever building a one-hot target."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dice_ce(logits: Tensor, target: Tensor, *, include_background: bool = False, smooth: float = 1e-5) -> Tensor:
    """Mean soft Dice loss over samples and classes plus mean cross-entropy over voxels, in float32.

    ``dice = 1 - (2 * sum(p * y) + smooth) / (sum(p) + sum(y) + smooth)`` per sample and class, with ``p`` the softmax
    of the logits: the same numbers as MONAI's ``DiceCELoss(softmax=True, to_onehot_y=True)`` with the same
    ``include_background``.

    Args:
        logits: ``(B, K, D, H, W)``, K at least 2, class 0 being the background.
        target: ``(B, D, H, W)`` class indices, int64.
        include_background: Whether class 0 counts in the Dice term.
        smooth: Added above and below the fraction; a class absent from both then scores 1.

    Returns:
        A scalar.
    """
    batch, classes = logits.shape[:2]
    log_probability = F.log_softmax(logits.float(), dim=1).flatten(2)
    flat = target.flatten(1)
    cross_entropy = F.nll_loss(log_probability, flat)

    probability = log_probability.exp()
    of_true_class = probability.gather(1, flat[:, None]).squeeze(1)
    overlap = torch.zeros(batch, classes, device=logits.device).scatter_add(1, flat, of_true_class)
    true_size = torch.zeros_like(overlap).scatter_add(1, flat, torch.ones_like(of_true_class))
    dice = (2 * overlap + smooth) / (probability.sum(dim=2) + true_size + smooth)
    return 1 - dice[:, 0 if include_background else 1 :].mean() + cross_entropy
