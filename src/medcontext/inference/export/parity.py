"""Whether an exported network gives what the network gave."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medcontext.inference.export.formats import Exported

LARGEST_DIFFERENCE = 1e-3
"""Of the largest logit. Other kernels sum in another order: measured, up to 2e-5 in single precision."""

LEAST_AGREEMENT = 0.999
"""Share of the voxels that must get the same label; of noise, some always lie between two labels."""

SAMPLES = 2


@dataclass(frozen=True)
class Parity:
    """How far an exported network is from the one it was made of, on random patches.

    Attributes:
        largest_difference: Of two logits.
        largest_logit: Of the network, without its sign.
        label_agreement: Share of the voxels with the same label, or of the outputs on the same side of 0 for regions.
        voxels: That were compared.
    """

    largest_difference: float
    largest_logit: float
    label_agreement: float
    voxels: int

    @property
    def holds(self) -> bool:
        """Whether it is near enough; what is not finite never is."""
        return (
            self.largest_difference <= LARGEST_DIFFERENCE * self.largest_logit < float("inf")
            and self.label_agreement >= LEAST_AGREEMENT
        )

    def __str__(self) -> str:
        return (
            f"largest difference {self.largest_difference:.1e} between logits up to {self.largest_logit:.1f}, the same "
            f"label in {100 * self.label_agreement:.4f} % of {self.voxels:,} voxels"
        )


@torch.no_grad()
def compare(network: nn.Module, exported: Exported, patches: Tensor, regions: bool) -> Parity:
    """Run both on each of several patches.

    Args:
        network: Gives one tensor of logits ``(B, K, D, H, W)``; in eval mode.
        exported: The same network in another form.
        patches: ``(B, C, D, H, W)``; given one at a time.
        regions: Whether every output stands for a region of its own, not all of them for one label.
    """
    difference, largest, agreed, compared = 0.0, 0.0, 0, 0
    for sample in patches:
        patch = sample[None]
        expected, found = network(patch), exported(patch)
        difference = max(difference, float((found - expected).abs().max().nan_to_num(torch.inf)))
        largest = max(largest, float(expected.abs().max()))
        same = (found > 0) == (expected > 0) if regions else found.argmax(1) == expected.argmax(1)
        agreed, compared = agreed + int(same.sum()), compared + same.numel()
    return Parity(difference, largest, agreed / compared, compared)
