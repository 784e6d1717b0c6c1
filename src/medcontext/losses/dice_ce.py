"""Dice + cross-entropy, the field's standard loss, without ever building a one-hot target; and deep supervision."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def dice_ce(
    logits: Tensor,
    target: Tensor,
    *,
    include_background: bool = False,
    squared: bool = False,
    smooth: tuple[float, float] = (1e-5, 1e-5),
) -> Tensor:
    """Mean soft Dice loss over samples and classes plus mean cross-entropy over voxels, in float32.

    ``dice = 1 - (2 sum(p y) + above) / (sum(p) + sum(y) + below)`` per sample and class, with ``p`` the softmax of the
    logits: the same numbers as MONAI's ``DiceCELoss(softmax=True, to_onehot_y=True)`` with the same settings.

    Args:
        logits: ``(B, K, D, H, W)``, K at least 2, class 0 being the background.
        target: ``(B, D, H, W)`` class indices, int64.
        include_background: Whether class 0 counts in the Dice term.
        squared: Sum squares below the fraction.
        smooth: Added above and below the fraction. If both are equal, a class absent from both scores 1.

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
    predicted_size = (probability * probability if squared else probability).sum(dim=2)
    dice = (2 * overlap + smooth[0]) / (predicted_size + true_size + smooth[1])
    return 1 - dice[:, 0 if include_background else 1 :].mean() + cross_entropy


def dice_ce_squared(logits: Tensor, target: Tensor) -> Tensor:
    """The settings of UNETR's released code: background included, squared denominators, no smoothing above."""
    return dice_ce(logits, target, include_background=True, squared=True, smooth=(0.0, 1e-6))


def over_heads(loss: Callable[[Tensor, Tensor], Tensor], outputs: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
    """A loss over the heads of a deeply supervised network, each worth half of the next finer one; weights sum to 1.

    Args:
        loss: Of ``(logits, target)``.
        outputs: Logits, or a list of them, finest first.
        target: ``(B, D, H, W)`` class indices; coarser heads get it by nearest-neighbour sampling, as in nnU-Net.
    """
    if isinstance(outputs, Tensor):
        return loss(outputs, target)
    weights = [0.5**head for head in range(len(outputs))]
    terms = [weight * loss(head, _at(target, head)) for weight, head in zip(weights, outputs, strict=True)]
    return torch.stack(terms).sum() / sum(weights)


def _at(target: Tensor, logits: Tensor) -> Tensor:
    size = logits.shape[2:]
    if target.shape[1:] == size:
        return target
    return F.interpolate(target[:, None].float(), size, mode="nearest-exact")[:, 0].long()
