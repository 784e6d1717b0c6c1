"""How much of a scan a training step sees: what a device can take, the patch, and how many of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Size = tuple[int, int, int]
Spacing = tuple[float, float, float]
Device = Literal["cpu", "gpu"]
Scale = Literal["small", "full"]

PATCHES = 2
"""Per step, at the least: nnU-Net's smallest batch."""

SHARE_OF_DATA = 0.05
"""A batch holds at most this share of the data set's voxels, so that steps differ from one another. nnU-Net's number
(Isensee et al. 2021)."""


@dataclass(frozen=True)
class Budget:
    """What a device can take.

    Attributes:
        voxels: The most of a patch; a step takes :data:`PATCHES` times as many.
        scale: Size of the network.
        device: In words.
    """

    voxels: int
    scale: Scale
    device: str

    @property
    def multiple(self) -> int:
        """Of which a long side is one: U-Nets of this scale halve it three or five times."""
        return 32 if self.scale == "full" else 8


CPU = Budget(48**3, "small", "CPU")
"""On 2 cores this keeps a training step of the small U-Net below a second."""

GPU_TIERS = ((14, 128**3), (7, 96**3), (0, 64**3))
"""GiB that a GPU has at least, and patch voxels there. A card sold with 16 GB reports about 14.6 GiB. 128^3 is what
nnU-Net plans for the full U-Net, a step of which holds 5.5 GiB there in bf16 (2.4 at 96^3, 1.0 at 64^3; counted)."""


def budget_for(device: Device, memory_gib: float | None = None) -> Budget:
    """What a device can take.

    Args:
        device: Its kind.
        memory_gib: All of a GPU's memory; None: not known, and taken to be enough.
    """
    if device == "cpu":
        return CPU
    there = math.inf if memory_gib is None else memory_gib
    voxels = next(voxels for least, voxels in GPU_TIERS if there >= least)
    return Budget(voxels, "full", "GPU" if memory_gib is None else f"GPU of {memory_gib:.0f} GiB")


def choose_patch(case: Sequence[float], spacing: Spacing, budget: Budget, multiple: int | None = None) -> Size:
    """A whole case, cut along its longest side in mm until the device can take it.

    So a patch is as near to a cube in mm as the case allows, as nnU-Net's is: of thick slices it takes few, and much of
    each.

    Args:
        case: Size (D, H, W) in voxels of the median case at ``spacing``.
        spacing: (D, H, W) in mm.
        budget: What the device can take.
        multiple: Every side becomes a multiple of this; None: of what a U-Net halves such a side by.
    """
    size = [_round_up(count, multiple or _multiple_for(count, budget)) for count in case]
    while math.prod(size) > budget.voxels:
        steps = [multiple or _multiple_for(count, budget) for count in size]
        longest = max(
            (axis for axis in range(3) if size[axis] > steps[axis]),
            key=lambda axis: size[axis] * spacing[axis],
            default=None,
        )
        if longest is None:
            break
        size[longest] -= steps[longest]
    d, h, w = size
    return d, h, w


def choose_batch(patch: Size, most: int, dataset_voxels: float) -> int:
    """As many patches as a step can take, but no more than a small share of the data, and never fewer than two.

    Args:
        patch: (D, H, W) in voxels.
        most: Voxels that a step can take.
        dataset_voxels: Of all cases at the planned spacing.
    """
    return max(PATCHES, int(min(most, SHARE_OF_DATA * dataset_voxels) // math.prod(patch)))


def _round_up(count: float, step: int) -> int:
    return max(step, math.ceil(round(count, 3) / step) * step)


def _multiple_for(count: float, budget: Budget) -> int:
    """Short sides (few thick slices) are halved less often than long ones, so that some voxels are left."""
    step = next(step for least, step in ((128, 32), (64, 16), (24, 8), (12, 4), (0, 2)) if count >= least)
    return min(step, budget.multiple)
