"""Dice + cross-entropy, forth and back, beside MONAI's. ``python -m benchmarks.loss [--json]``.

One JSON object per line with ``library``, ``seconds``, ``peak_gib`` (beyond the logits) and ``loss``, which agree.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.common import grown_by, machine, peak_gib, seconds_of
from medcontext.losses.dice_ce import dice_ce

SHAPE = (2, 14, 96, 96, 96)


def losses() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Ours and MONAI's, with the same settings."""
    from monai.losses.dice import DiceCELoss

    monai = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False)
    return {"medcontext": dice_ce, "monai": lambda logits, target: monai(logits, target[:, None])}


def batch(device: str) -> tuple[Tensor, Tensor]:
    """Logits and labels of two patches with 14 classes."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(SHAPE, generator=generator).to(device).requires_grad_()
    target = torch.randint(0, SHAPE[1], (SHAPE[0], *SHAPE[2:]), generator=generator)
    return logits, target.to(device)


def memory(library: str, device: str) -> float:
    """GiB at the peak of one loss, forth and back."""
    loss, (logits, target) = losses()[library], batch(device)
    return grown_by(lambda: torch.autograd.backward(loss(logits, target)), device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    logits, target = batch(options.device)
    actions = {
        library: (lambda loss=loss: torch.autograd.backward(loss(logits, target))) for library, loss in losses().items()
    }
    taken = seconds_of(actions, options.repeats, options.device)
    for library, loss in losses().items():
        row = {
            "library": library,
            "seconds": round(taken[library], 4),
            "peak_gib": round(peak_gib(memory, library, options.device), 3),
            "loss": round(loss(logits, target).item(), 6),
            **machine(options.device),
        }
        print(
            json.dumps(row) if options.json else f"{library:11} {row['seconds']} s, {row['peak_gib']} GiB", flush=True
        )


if __name__ == "__main__":
    main()
