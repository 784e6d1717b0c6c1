"""Shared by the tests of whole steps: the supervised losses from their formulas, without the package's code."""

from __future__ import annotations

import torch


def dice_ce(logits: torch.Tensor, label: torch.Tensor, *, squared: bool = False) -> torch.Tensor:
    """Mean over samples and foreground classes of the soft Dice loss, plus mean cross-entropy.

    ``squared``: as in the released code, with squares below the fraction and with the background.
    """
    p = logits.softmax(1)
    above, below = (0.0, 1e-6) if squared else (1e-5, 1e-5)
    terms = []
    for b in range(len(label)):
        for k in range(0 if squared else 1, logits.shape[1]):
            truth = (label[b] == k).to(p.dtype)
            size = (p[b, k] ** 2 if squared else p[b, k]).sum() + truth.sum()
            terms.append(1 - (2 * (p[b, k] * truth).sum() + above) / (size + below))
    chosen = torch.stack([p[b].flatten(1)[label[b].flatten(), torch.arange(label[b].numel())] for b in range(len(p))])
    return sum(terms) / len(terms) - chosen.log().mean()
