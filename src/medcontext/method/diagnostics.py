"""What shows whether the method works, at nearly no cost: context score, gradient shares, and signs of collapse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ONE_CLASS = 0.9999
"""A class that is given more than this share of the voxels is given all."""

NO_CLASS = 0.99
"""Entropy beyond which the teacher tells no class from another."""


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


def teacher_state(logits: Tensor, target: Tensor | None) -> dict[str, Tensor]:
    """Where a collapse shows.

    ``teacher_entropy`` is the mean entropy of the teacher's class probabilities (1 = it knows nothing);
    ``teacher_occupancy/<class>`` the share of the voxels it gives to each class; ``collapsed`` is 1 if it says the same
    everywhere: one class alone although the label has more, or every class alike.
    """
    log_probability = F.log_softmax(logits.float(), dim=1)
    classes = logits.shape[1]
    entropy = -(log_probability.exp() * log_probability).sum(dim=1).mean() / math.log(classes)
    occupancy = torch.bincount(logits.argmax(dim=1).flatten(), minlength=classes) / logits[:, 0].numel()
    more = torch.tensor(True) if target is None else (target != target.flatten()[0]).any()
    collapsed = (((occupancy.amax() > ONE_CLASS) & more.to(occupancy.device)) | (entropy > NO_CLASS)).float()
    each = {f"teacher_occupancy/{k}": share for k, share in enumerate(occupancy)}
    return {"teacher_entropy": entropy, "collapsed": collapsed, **each}


def gradient_norms(terms: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> dict[str, Tensor]:
    """Norm over all parameters of each (weighted) loss term's own gradient.

    Neither ``.grad`` nor what hangs on it (the synchronisation of DDP) is touched, and the graph is kept.
    """
    learned = [p for p in parameters if p.requires_grad]
    norms = {}
    for name, term in terms.items():
        gradients = torch.autograd.grad(term, learned, retain_graph=True, allow_unused=True)
        norms[name] = torch.stack([each.float().norm() for each in gradients if each is not None]).norm()
    return norms


def shares(norms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each gradient norm's share of their sum: a term whose share is about 0 teaches nothing."""
    total = sum(norms.values())
    return {f"gradient_share/{name}": norm / total for name, norm in norms.items()}
