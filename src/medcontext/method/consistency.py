"""How the masked student is compared with the teacher. All in float32, whatever precision the passes ran in."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from medcontext.losses.dice_ce import in_parts, softmax
from medcontext.method.presets import MethodConfig

TINY = 1e-12


def consistency(
    config: MethodConfig, student: Tensor, teacher: Tensor, hidden: Tensor, regions: bool = False
) -> Tensor:
    """Compare the logits of the masked student with the teacher's.

    Only the region that counts is compared, and only where, or as much as, the teacher is sure
    (``config.consistency_over``, ``config.confidence``); nothing of a sample that the student saw whole, as the teacher
    did. Per sample,

    - ``relative`` is ``||z_m - z_t||^2 / ||z_t||^2``,
    - ``dice`` is ``1 - 2 sum(p_m p_t) / (sum(p_m^2) + sum(p_t^2))``, the mean over classes or regions,
    - ``kl`` and ``cosine`` are means over the voxels that are compared,

    and the term is the mean over the batch, to which a sample seen whole adds nothing: each counts alike, whoever its
    neighbours are and however many processes share the batch. ``paper`` is ``MSE(z_m, z_t) / ||z_t||_2`` over all that
    is compared, the norm over the whole batch as in the paper's formula.

    Args:
        config: Form, region and confidence.
        student: ``(B, K, D, H, W)`` logits of the masked pass.
        teacher: The same shape, without gradient.
        hidden: ``(B, 1, D, H, W)`` boolean.
        regions: Whether every output is a region of its own (a sigmoid); their divergences are added up.

    Returns:
        A scalar.
    """
    teacher = teacher.detach()
    probabilities = torch.sigmoid if regions else partial(torch.softmax, dim=1)
    masked = hidden.flatten(1).any(1).float()
    region = hidden.float() if config.consistency_over == "hidden" else masked.view(-1, 1, 1, 1, 1).expand_as(hidden)
    sure = region * _confidence(config, teacher, region, regions)

    def mean(values: Tensor) -> Tensor:
        return (_sums(sure * values) / _sums(region).clamp_min(1)).mean()

    if config.consistency == "kl" and regions:
        return mean(_binary_divergence(student, teacher, config.temperature))
    if config.consistency == "kl":
        divergence: Tensor = _Divergence.apply(student, teacher, config.temperature)  # type: ignore[no-untyped-call]
        return mean(divergence)
    student, teacher = student.float(), teacher.float()
    if config.consistency == "paper":
        error = (sure * (student - teacher) ** 2).sum() / (region.sum() * student.shape[1]).clamp_min(1)
        return error / (region * teacher**2).sum().sqrt().clamp_min(TINY)
    if config.consistency == "relative":
        energy = _sums(region * teacher**2).clamp_min(TINY)
        return (_sums(sure * (student - teacher) ** 2) / energy).mean()
    if config.consistency == "dice":
        return _dice(probabilities(student), probabilities(teacher), region, sure).mean()
    return mean(1 - F.cosine_similarity(student, teacher, dim=1, eps=1e-6)[:, None])


class _Divergence(torch.autograd.Function):
    """``T^2 KL(softmax(z_t / T) || softmax(z_m / T))`` per voxel, whose derivative by z_m is ``T (p_m - p_t)``.

    Written out because composed operations keep five arrays of the size of the logits, and this keeps one.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        kind = torch.promote_types(student.dtype, torch.float32)
        divergence = student.new_empty(len(student), 1, *student.shape[2:], dtype=kind)
        gradient = student.new_empty(student.shape)
        for z_m, z_t, value, slope in in_parts(student, teacher, divergence, gradient):
            z_m, p_m, level_m = softmax(z_m, temperature)
            z_t, p_t, level_t = softmax(z_t, temperature)
            nats = z_t.sub_(z_m).mul_(p_t).sum(dim=1, keepdim=True) - (level_t - level_m)
            value.copy_(nats.mul_(temperature**2).view(value.shape))
            slope.copy_(p_m.sub_(p_t).mul_(temperature).view(slope.shape))
        ctx.save_for_backward(gradient)
        return divergence

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None


def _binary_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T^2 KL`` between what is said of each region, per voxel ``(B, 1, D, H, W)``."""
    z_m, z_t = student.float() / temperature, teacher.float() / temperature
    # p_t log(p_t / p_m) + (1 - p_t) log((1 - p_t) / (1 - p_m)), with log(1 - p) = -softplus(z).
    divergence = z_t.sigmoid() * (z_t - z_m) - F.softplus(z_t) + F.softplus(z_m)
    return temperature**2 * divergence.sum(dim=1, keepdim=True)


def _confidence(config: MethodConfig, teacher: Tensor, region: Tensor, regions: bool) -> Tensor:
    """How much each voxel counts: ``(B, 1, D, H, W)``, or a number per sample (MIC, Hoyer et al., CVPR 2023)."""
    if config.confidence == "none":
        return torch.ones_like(region)
    teacher = teacher.float()
    # Of regions, the least sure one counts: sure that a voxel is in it, or that it is not.
    likeliest = teacher.abs().sigmoid().amin(1, keepdim=True) if regions else teacher.softmax(1).amax(1, keepdim=True)
    sure = (likeliest >= config.confidence_threshold).float()
    if config.confidence == "voxel":
        return sure
    each = (1, 2, 3, 4)
    return (sure * region).sum(each, keepdim=True) / region.sum(each, keepdim=True).clamp_min(1)


def _dice(student: Tensor, teacher: Tensor, region: Tensor, sure: Tensor) -> Tensor:
    """Soft Dice loss per sample ``(B,)``: mean over its classes, weighted by its mean confidence."""
    voxels = (2, 3, 4)
    overlap = 2 * (region * student * teacher).sum(voxels)
    size = (region * (student**2 + teacher**2)).sum(voxels)
    weight = _sums(sure) / _sums(region).clamp_min(1)
    return weight * (1 - (overlap + TINY) / (size + TINY)).mean(1)


def _sums(values: Tensor) -> Tensor:
    """Of each sample: ``(B,)``."""
    return values.flatten(1).sum(1)
