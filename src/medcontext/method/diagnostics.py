"""What shows whether the method works, at nearly no cost: context score, gradient shares, and signs of collapse."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def hard_dice(logits: Tensor, target: Tensor, region: Tensor | None = None) -> Tensor:
    """Dice of the most likely class, per foreground class, pooled over the batch.

    Args:
        logits: ``(B, K, D, H, W)``.
        target: ``(B, D, H, W)`` class indices.
        region: ``(B, D, H, W)`` boolean; only these voxels count. None: all.

    Returns:
        ``(K - 1,)`` float32; NaN for a class absent from both, which has no Dice.
    """
    classes = logits.shape[1]
    chosen = logits.argmax(dim=1)
    if region is not None:
        chosen, target = chosen[region], target[region]
    predicted = torch.bincount(chosen.flatten(), minlength=classes)
    true = torch.bincount(target.flatten(), minlength=classes)
    both = torch.bincount(chosen[chosen == target].flatten(), minlength=classes)
    return (2 * both / (predicted + true))[1:].float()


def context(clean: Tensor, masked: Tensor, target: Tensor, hidden: Tensor) -> dict[str, Tensor]:
    """How well the hidden part is rebuilt from what is around it.

    ``context_score`` is the mean foreground Dice of the masked pass inside the hidden region only; ``context_gap`` is
    what the clean pass, which sees that region, gets there beyond it. Zero gap: context alone is enough.
    """
    score = hard_dice(masked, target, hidden).nanmean()
    return {"context_score": score, "context_gap": hard_dice(clean, target, hidden).nanmean() - score}


def teacher_state(logits: Tensor) -> dict[str, Tensor]:
    """Where a collapse shows: entropy of the teacher (1 = it knows nothing) and share of the voxels per class."""
    log_probability = F.log_softmax(logits.float(), dim=1)
    classes = logits.shape[1]
    entropy = -(log_probability.exp() * log_probability).sum(dim=1).mean() / math.log(classes)
    occupancy = torch.bincount(logits.argmax(dim=1).flatten(), minlength=classes) / logits[:, 0].numel()
    return {"teacher_entropy": entropy} | {f"teacher_occupancy/{k}": share for k, share in enumerate(occupancy)}


def backward_norms(
    terms: Mapping[str, Tensor], parameters: Sequence[nn.Parameter], backward: Callable[..., Any]
) -> dict[str, Tensor]:
    """Back-propagate (weighted) loss terms of one graph, one by one, and measure what each adds to the gradient.

    Args:
        terms: By name.
        parameters: Those whose gradient counts; what it holds already is added to.
        backward: Called as ``backward(term, retain_graph=...)``.

    Returns:
        The norm over all parameters of each term's own gradient.
    """
    norms = {}
    last = list(terms)[-1]
    for name, term in terms.items():
        before = [None if p.grad is None else p.grad.clone() for p in parameters]
        backward(term, retain_graph=name != last)
        added = [
            p.grad if b is None else p.grad - b for p, b in zip(parameters, before, strict=True) if p.grad is not None
        ]
        norms[name] = torch.stack([each.float().norm() for each in added]).norm()
    return norms


def shares(norms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each gradient norm's share of their sum: a term whose share is about 0 teaches nothing."""
    total = sum(norms.values())
    return {f"gradient_share/{name}": norm / total for name, norm in norms.items()}
