"""The grid of voxels: whether two are the same, how to say which, and a coarser one for a browser."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medcontext.data.scan import AFFINE_TOLERANCE, LabelMap, spacing_of, voxels_apart
from medcontext.errors import MedContextError

Affine = npt.NDArray[np.float64]

LONGEST_AXIS = 2048
"""Voxels along an axis of a 3D texture that graphics hardware holds; WebGL promises less, nearly all give this."""


def steps(shape: tuple[int, ...], spacing: tuple[float, ...], most: int) -> tuple[int, int, int]:
    """Which voxels along each axis are shown, 1 for all of them, so that at most ``most`` are.

    Voxels are left out along the axis where the shown ones lie closest, so that they become more like cubes.
    """
    chosen = [-(-length // LONGEST_AXIS) for length in shape]
    while math.prod(-(-length // step) for length, step in zip(shape, chosen, strict=True)) > most:
        apart = [
            size * step if step < length else math.inf
            for size, step, length in zip(spacing, chosen, shape, strict=True)
        ]
        chosen[int(np.argmin(apart))] += 1
    x, y, z = chosen
    return x, y, z


def described(shape: tuple[int, ...], affine: Affine) -> str:
    """A grid in words: size, spacing, where its first voxel lies and which way its axes run."""
    import nibabel as nib

    voxels, spacing, first = (
        mark.join(f"{value:.5g}" for value in values)
        for mark, values in ((" x ", shape), (" x ", spacing_of(affine)), (", ", affine[:3, 3] + 0.0))
    )
    axes = "".join(nib.aff2axcodes(affine))
    return f"{voxels} voxels of {spacing} mm, axes {axes}, first voxel at ({first}) mm"


def require_same_grid(labels: LabelMap, scan: Path, shape: tuple[int, ...], affine: Affine) -> None:
    """Refuse a label map that was not made on the scan of this shape and affine.

    Raises:
        MedContextError: With both grids.
    """
    difference = ""
    if labels.array.shape == shape:
        apart = voxels_apart(shape, affine, labels.affine)
        if apart <= AFFINE_TOLERANCE:
            return
        difference = f": the same voxel lies up to {apart:.3g} voxels apart"
    raise MedContextError(
        "A label map lies on another grid than the scan.",
        file=labels.path,
        found=described(labels.array.shape, labels.affine) + difference,
        expected=f"{described(shape, affine)}, as {scan}",
        remedy="view it on the scan that it was made on, or resample it to the grid of this scan first",
    )
