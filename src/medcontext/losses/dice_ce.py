"""Dice + cross-entropy, the field's standard loss, without ever building a one-hot target; and deep supervision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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
    loss: Tensor = _DiceCE.apply(logits, target, include_background, squared, smooth)  # type: ignore[no-untyped-call]
    return loss


class _DiceCE(torch.autograd.Function):
    """Value and gradient in one go: two arrays of the size of the logits instead of the seven of composed operations.

    With ``D = (2 I + above) / (P + T + below)``, ``I`` the overlap and ``P`` the predicted size, the derivative of the
    Dice term by ``p`` is ``a [y = k] + c`` (``+ 2 c p`` where squared), ``a = -2 / (n (P + T + below))`` and
    ``c = (2 I + above) / (n (P + T + below)^2)``; the softmax then gives ``p (g - sum_k p g)``.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, background: bool, squared: bool, smooth: tuple[float, float]
    ) -> Tensor:
        kind = torch.promote_types(logits.dtype, torch.float32)
        # Some networks give their classes last in memory, which every sum over voxels below would pay for.
        scores = logits.detach().contiguous().flatten(2)
        p = torch.softmax(scores, dim=1, dtype=kind)
        flat = target.flatten(1)
        of_true_class = p.gather(1, flat[:, None]).squeeze(1)
        overlap = p.new_zeros(p.shape[:2]).scatter_add_(1, flat, of_true_class)
        true_size = torch.zeros_like(overlap).scatter_add_(1, flat, torch.ones_like(of_true_class))
        predicted_size = torch.linalg.vector_norm(p, dim=2) ** 2 if squared else p.sum(dim=2)
        numerator, size = 2 * overlap + smooth[0], predicted_size + true_size + smooth[1]
        counted = slice(0 if background else 1, None)
        dice = (numerator / size)[:, counted]
        voxels = flat.numel()
        # The logarithm of a small probability is taken from the logits, for it may be 0 in float32: with j the most
        # likely class, log sum exp z = z_j - log p_j.
        true_score = scores.gather(1, flat[:, None]).squeeze(1).to(kind)
        cross_entropy = (scores.amax(dim=1).to(kind) - p.amax(dim=1).log() - true_score).mean()

        if ctx.needs_input_grad[0]:
            a, c = torch.zeros_like(size), torch.zeros_like(size)
            a[:, counted] = (-2 / size / dice.numel())[:, counted]
            c[:, counted] = (numerator / size**2 / dice.numel())[:, counted]
            gradient = p * c[:, :, None] if not squared else p * p * (2 * c[:, :, None])
            gradient.scatter_add_(1, flat[:, None], (of_true_class * a.gather(1, flat))[:, None])
            gradient.addcmul_(p, gradient.sum(dim=1, keepdim=True) - 1 / voxels, value=-1)
            gradient.scatter_add_(1, flat[:, None], p.new_full((), -1 / voxels).expand_as(flat[:, None]))
            ctx.save_for_backward(gradient.view(logits.shape).to(logits.dtype))
        return 1 - dice.mean() + cross_entropy

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0].to(gradient.dtype), None, None, None, None


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
    return by_halves([loss(head, nearest(target[:, None], head.shape[2:])[:, 0]) for head in outputs])


def by_halves(terms: Sequence[Tensor]) -> Tensor:
    """Mean of terms, finest first, each worth half of the one before."""
    weights = [0.5**place for place in range(len(terms))]
    return torch.stack([weight * term for weight, term in zip(weights, terms, strict=True)]).sum() / sum(weights)


def nearest(values: Tensor, size: Sequence[int]) -> Tensor:
    """Labels or a mask ``(B, 1, D, H, W)`` on another grid, by nearest-neighbour sampling."""
    if tuple(values.shape[2:]) == tuple(size):
        return values
    return F.interpolate(values.float(), tuple(size), mode="nearest-exact").to(values.dtype)
