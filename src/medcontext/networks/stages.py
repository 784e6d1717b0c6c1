"""nnU-Net's rule for the stages of a U-Net, shared by the U-Nets here (Isensee et al., Nature Methods 2021).

Patches are halved as they are; nnU-Net makes them longer until that works out.
"""

from __future__ import annotations

import math

from medcontext.networks.halving import THICK, next_halving
from medcontext.networks.spec import Size, Spacing, require_deep_voxels, require_multiples

SMALLEST_SIDE = 4
"""An axis is halved only while at least this many voxels are left along it."""

FEWEST_STAGES = 3

Steps = list[list[int]]
"""One (D, H, W) per stage."""


def plan_stages(patch: Size, spacing: Spacing, most: int) -> tuple[Steps, Steps]:
    """Strides and kernels of at most ``most`` stages for a patch (D, H, W) at a spacing in mm.

    An axis takes part in a stage's pooling while it is long enough and its spacing below twice the finest of those that
    are, and in convolutions from where its spacing is below twice the finest, so that thick slices are not mixed before
    their plane is as coarse as they are; in those of the last stage always. Where there is too little to halve, stages
    without pooling make up three.
    """
    size, millimetres = list(patch), list(spacing)
    strides, kernels = [[1, 1, 1]], [_kernel([1, 1, 1], millimetres)]
    while len(strides) < most:
        stride = next_halving(size, millimetres, SMALLEST_SIDE)
        if max(stride) == 1 and len(strides) >= FEWEST_STAGES:
            break
        size = [count // step for count, step in zip(size, stride, strict=True)]
        millimetres = [length * step for length, step in zip(millimetres, stride, strict=True)]
        strides.append(stride)
        kernels.append(_kernel(kernels[-1], millimetres))
    return strides, [*kernels[:-1], [3, 3, 3]]


def double_features(first: int, most: int, stages: int) -> list[int]:
    """Features per stage: doubled from stage to stage up to ``most``."""
    return [min(first * 2**stage, most) for stage in range(stages)]


def require_strides_fit(name: str, patch: Size, strides: Steps) -> None:
    """Refuse a patch that these strides do not divide, or of which they leave one voxel.

    Raises:
        MedContextError: It is one.
    """
    d, h, w = (math.prod(steps) for steps in zip(*strides, strict=True))
    require_multiples(name, patch, (d, h, w))
    require_deep_voxels(name, patch, (d, h, w))


def _kernel(before: list[int], spacing: list[float]) -> list[int]:
    """An axis that has once taken part goes on doing so."""
    return [
        3 if length == 3 or step < THICK * min(spacing) else 1 for length, step in zip(before, spacing, strict=True)
    ]
