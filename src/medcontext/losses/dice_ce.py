"""Dice + cross-entropy, the field's standard loss, without ever building a one-hot target; and deep supervision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def dice_ce(
    logits: Tensor,
    target: Tensor,
    *,
    include_background: bool = False,
    squared: bool = False,
    smooth: tuple[float, float] = (1e-5, 1e-5),
    ignoring: bool = False,
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
        ignoring: Whether there may be voxels of a negative class index, which neither term counts.

    Returns:
        A scalar.
    """
    settings = include_background, squared, smooth, ignoring
    loss: Tensor = _DiceCE.apply(logits, target, *settings)  # type: ignore[no-untyped-call]
    return loss


class _DiceCE(torch.autograd.Function):
    """Written out, part by part: nothing of the size of the logits is made but the gradient, in their precision.

    With ``D = (2 I + above) / (P + T + below)``, ``I`` the overlap and ``P`` the predicted size, the derivative of the
    Dice term by ``p`` is ``a [y = k] + c`` (``+ 2 c p`` where squared), ``a = -2 / (n (P + T + below))`` and
    ``c = (2 I + above) / (n (P + T + below)^2)``; the softmax then gives ``p (g - sum_k p g)``. All parts must have
    been seen before the first can have its gradient; to compute the softmax again then costs less than to keep it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        background: bool,
        squared: bool,
        smooth: tuple[float, float],
        ignoring: bool,
    ) -> Tensor:
        kind = torch.promote_types(logits.dtype, torch.float32)
        overlap, predicted_size, true_size = logits.new_zeros(3, *logits.shape[:2], dtype=kind)
        cross_entropy = logits.new_zeros((), dtype=kind)
        for part, truth in in_parts(logits, target[:, None]):
            scores, p, level = softmax(part)
            true_class, known = _labelled(truth, p, ignoring)
            of_true_class = p.gather(1, true_class)
            overlap += _by_class(of_true_class, true_class, p)
            true_size += _by_class(known, true_class, p)
            predicted_size += torch.linalg.vector_norm(p, dim=2) ** 2 if squared else p.sum(dim=2)
            # Not the logarithm of the probability, which may be 0 in float32.
            cross_entropy += ((level - scores.gather(1, true_class)) * known).sum()
        numerator, size = 2 * overlap + smooth[0], predicted_size + true_size + smooth[1]
        counted = slice(0 if background else 1, None)
        dice = (numerator / size)[:, counted]
        a, c = torch.zeros_like(size), torch.zeros_like(size)
        a[:, counted] = (-2 / size / dice.numel())[:, counted]
        c[:, counted] = (numerator / size**2 / dice.numel())[:, counted]
        # As a number where it is known: a tensor would be copied to the device, for which everything waits.
        voxels = (target >= 0).sum().clamp_min(1) if ignoring else target.numel()
        ctx.save_for_backward(logits, target, a, c, a.new_ones(()) / voxels)
        ctx.squared, ctx.ignoring = squared, ignoring
        loss: Tensor = 1 - dice.mean() + cross_entropy / voxels
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, *factors = ctx.saved_tensors
        a, c, of_voxel = (upstream * factor for factor in factors)
        gradient = logits.new_empty(logits.shape)
        for part, truth, out in in_parts(logits, target[:, None], gradient):
            p = softmax(part)[1]
            true_class, known = _labelled(truth, p, ctx.ignoring)
            at_true_class = p.gather(1, true_class) * a.gather(1, true_class[:, 0])[:, None] - of_voxel * known
            slope = 2 * c[:, :, None] * p if ctx.squared else c[:, :, None]
            slope = slope - ((slope * p).sum(dim=1, keepdim=True) + at_true_class)
            out.copy_(p.mul_(slope).scatter_add_(1, true_class, at_true_class).view(out.shape))
        return gradient, None, None, None, None, None


def _labelled(truth: Tensor, p: Tensor, ignoring: bool) -> tuple[Tensor, Tensor]:
    """The true class of each voxel, and 1 where there is one, ``(B, 1, n)``; elsewhere 0, and so is ``p`` then."""
    true_class = truth.flatten(2)
    if not ignoring:
        return true_class, p.new_ones(()).expand(true_class.shape)
    known = (true_class >= 0).to(p.dtype)
    p.mul_(known)
    return true_class.clamp_min(0), known


def _by_class(values: Tensor, true_class: Tensor, like: Tensor) -> Tensor:
    """Sums ``(B, K)`` of values ``(B, 1, n)`` over the voxels of every class."""
    return like.new_zeros(like.shape[:2]).scatter_add_(1, true_class[:, 0], values[:, 0])


def in_parts(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Slabs of logits ``(B, K, D, H, W)``, and of other volumes along with them.

    On a CPU they are so small that what is computed from one stays in the cache (a fresh array of the size of the
    logits costs more than a softmax); elsewhere so large that starting the computations costs nothing beside them.
    """
    numbers = 2**18 if logits.device.type == "cpu" else 2**24
    depth = max(1, numbers // logits[:, :, :1].numel())
    return zip(*(torch.split(volume, depth, dim=2) for volume in (logits, *others)), strict=True)


def softmax(logits: Tensor, temperature: float = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Of logits ``(B, K, ...)`` in at least float32, the voxels in one axis, their own to be overwritten.

    Returns:
        The logits divided by the temperature ``z``, their softmax ``p``, both ``(B, K, n)``, and ``log sum exp z``,
        ``(B, 1, n)``.
    """
    kind = torch.promote_types(logits.dtype, torch.float32)
    # Some networks give their classes last in memory, which the softmax would pay for dearly.
    z = logits.to(kind, memory_format=torch.contiguous_format, copy=True).flatten(2).div_(temperature)
    p = torch.softmax(z, dim=1)
    # With j the most likely class.
    return z, p, z.amax(dim=1, keepdim=True) - p.amax(dim=1, keepdim=True).log()


def dice_ce_squared(logits: Tensor, target: Tensor, *, ignoring: bool = False) -> Tensor:
    """The settings of UNETR's released code: background included, squared denominators, no smoothing above."""
    return dice_ce(logits, target, include_background=True, squared=True, smooth=(0.0, 1e-6), ignoring=ignoring)


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
