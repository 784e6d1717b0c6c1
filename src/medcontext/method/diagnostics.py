"""What shows whether the method works: context score and signs of collapse, for little; gradient shares, for a step."""

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


def hard_dice(logits: Tensor, target: Tensor, region: Tensor | None = None, membership: Tensor | None = None) -> Tensor:
    """Dice of the most likely class, per foreground class, pooled over the batch; or Dice per region.

    Args:
        logits: ``(B, K, D, H, W)``.
        target: ``(B, D, H, W)`` class indices; voxels of a negative one are left out.
        region: ``(B, D, H, W)`` boolean; only these voxels count. None: all.
        membership: ``(K, classes)`` boolean for outputs that are regions: which class belongs to which.

    Returns:
        ``(K - 1,)`` float32, or ``(K,)`` for regions; NaN where there is nothing in either, which has no Dice.
    """
    return dice_of(overlap(logits, target, region, membership))


def dice_of(counts: Tensor) -> Tensor:
    """Dice from what :func:`overlap` counts, or from the sum of several such counts."""
    both, predicted, true = counts
    dice: Tensor = 2 * both / (predicted + true)
    return dice.float()


def overlap(logits: Tensor, target: Tensor, region: Tensor | None = None, membership: Tensor | None = None) -> Tensor:
    """Voxels of each foreground class, or region, in prediction and truth, in the prediction, and in the truth.

    Args:
        logits: As :func:`hard_dice` takes them, and so are the others.

    Returns:
        ``(3, K - 1)`` int64, or ``(3, K)`` for regions.
    """
    counted = target >= 0 if region is None else (target >= 0) & region
    if membership is not None:
        predicted = logits.movedim(1, -1)[counted] > 0
        true = membership.T[target[counted]]
        return torch.stack([(predicted & true).sum(0), predicted.sum(0), true.sum(0)])
    classes = logits.shape[1]
    # Counted from 1, so that 0 is what is left out.
    chosen = torch.where(counted, logits.argmax(dim=1) + 1, 0)
    wanted = torch.where(counted, target + 1, 0)
    agreed = torch.where(chosen == wanted, chosen, 0)
    return torch.stack([torch.bincount(each.flatten(), minlength=classes + 1)[2:] for each in (agreed, chosen, wanted)])


def context(
    clean: Tensor | None, masked: Tensor, target: Tensor, hidden: Tensor, membership: Tensor | None = None
) -> dict[str, Tensor]:
    """How well the hidden part is rebuilt from what is around it.

    ``context_score`` is the mean foreground Dice of the masked pass inside the hidden region only; ``context_gap`` is
    what the clean pass, if there is one, which sees that region, gets there beyond it. Zero gap: context alone is
    enough.
    """
    score = hard_dice(masked, target, hidden, membership).nanmean()
    gap = {} if clean is None else {"context_gap": hard_dice(clean, target, hidden, membership).nanmean() - score}
    return {"context_score": score, **gap}


def teacher_state(logits: Tensor, target: Tensor | None, regions: bool = False) -> dict[str, Tensor]:
    """Where a collapse shows.

    ``teacher_entropy`` is the mean entropy of the teacher's probabilities (1 = it knows nothing);
    ``teacher_occupancy/<class>`` the share of the voxels it gives to each class, or region; ``collapsed`` is 1 if it
    says the same everywhere although the label has more, or nothing at all.
    """
    logits = logits.float()
    outputs = logits.shape[1]
    if regions:
        entropy = (F.softplus(logits) - logits * logits.sigmoid()).mean() / math.log(2)
        occupancy = (logits > 0).float().mean((0, 2, 3, 4))
        same = ((occupancy > ONE_CLASS) | (occupancy < 1 - ONE_CLASS)).all()
    else:
        log_probability = F.log_softmax(logits, dim=1)
        entropy = -(log_probability.exp() * log_probability).sum(dim=1).mean() / math.log(outputs)
        occupancy = torch.bincount(logits.argmax(dim=1).flatten(), minlength=outputs) / logits[:, 0].numel()
        same = occupancy.amax() > ONE_CLASS
    # Several classes, leaving out what is ignored.
    more = (
        torch.tensor(True) if target is None else target.amax() > torch.where(target < 0, target.amax(), target).amin()
    )
    collapsed = ((same & more.to(same.device)) | (entropy > NO_CLASS)).float()
    each = {f"teacher_occupancy/{k}": share for k, share in enumerate(occupancy)}
    return {"teacher_entropy": entropy, "collapsed": collapsed, **each}


def observed(
    clean: Tensor | None,
    masked: Tensor | None,
    teacher: Tensor | None,
    truth: Tensor | None,
    hidden: Tensor | None,
    membership: Tensor | None = None,
) -> dict[str, Tensor]:
    """All of the above, of the passes that there were.

    Args:
        clean: Logits ``(B, K, D, H, W)`` of the clean pass.
        masked: Of the masked pass.
        teacher: Of the teacher.
        truth: ``(B, D, H, W)`` class indices; None where no sample has a label.
        hidden: ``(B, D, H, W)`` boolean, what the masked pass did not see.
        membership: As :func:`hard_dice` takes it.
    """
    seen: dict[str, Tensor] = {}
    if clean is not None and truth is not None:
        seen["batch_dice/student"] = hard_dice(clean, truth, membership=membership).nanmean()
    if teacher is not None:
        seen |= teacher_state(teacher, truth, membership is not None)
        if truth is not None:
            seen["batch_dice/teacher"] = hard_dice(teacher, truth, membership=membership).nanmean()
    if masked is not None and truth is not None and hidden is not None:
        seen |= context(clean, masked, truth, hidden, membership)
    return seen


def gradient_norms(
    terms: Mapping[str, Tensor], parameters: Sequence[nn.Parameter], scale: float = 1.0
) -> dict[str, Tensor]:
    """Norm over all parameters of each (weighted) loss term's own gradient, times ``scale``.

    Neither ``.grad`` nor what hangs on it (the synchronisation of DDP) is touched, and the graph is kept.
    """
    learned = [p for p in parameters if p.requires_grad]
    norms = {}
    for name, term in terms.items():
        gradients = torch.autograd.grad(scale * term, learned, retain_graph=True, allow_unused=True)
        norms[name] = torch.stack([each.float().norm() for each in gradients if each is not None]).norm()
    return norms


def shares(norms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each gradient norm's share of their sum: a term whose share is about 0 teaches nothing."""
    total = sum(norms.values())
    return {f"gradient_share/{name}": norm / total for name, norm in norms.items()}
