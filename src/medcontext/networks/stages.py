"""nnU-Net's rule for the stages of a U-Net, shared by the U-Nets here (Isensee et al., Nature Methods 2021)."""

from __future__ import annotations

import math

from medcontext.networks.spec import Size, Spacing, require_deep_voxels, require_multiples

SMALLEST_SIDE = 4
"""An axis is halved only while at least this many voxels are left along it."""

FEWEST_STAGES = 3

Steps = list[list[int]]
"""One (D, H, W) per stage."""


def plan_stages(patch: Size, spacing: Spacing, most: int) -> tuple[Steps, Steps]:
    """Strides and kernels of at most ``most`` stages for a patch (D, H, W) at a spacing in mm.

    An axis takes part in a stage's pooling while it is long enough and not coarser than twice the finest, and in its
    convolutions once its spacing is within twice the finest, so that thick slices are not mixed before their plane is
    as coarse as they are. Where there is too little to halve, stages without pooling make up three.
    """
    size, millimetres = list(patch), list(spacing)
    strides = [[1, 1, 1]]
    kernels = [_kernel(millimetres)]
    while len(strides) < most:
        finest = min(millimetres)
        stride = [
            2 if count % 2 == 0 and count // 2 >= SMALLEST_SIDE and step < 2 * finest else 1
            for count, step in zip(size, millimetres, strict=True)
        ]
        if max(stride) == 1 and len(strides) >= FEWEST_STAGES:
            break
        size = [count // step for count, step in zip(size, stride, strict=True)]
        millimetres = [length * step for length, step in zip(millimetres, stride, strict=True)]
        strides.append(stride)
        kernels.append(_kernel(millimetres))
    return strides, kernels


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


def _kernel(spacing: list[float]) -> list[int]:
    return [1 if step >= 2 * min(spacing) else 3 for step in spacing]
