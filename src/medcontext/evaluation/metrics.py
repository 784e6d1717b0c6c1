"""Dice and HD95 of one object, with a stated answer for objects that are absent.

========================  ======  =======  ======================================
the object is in          Dice    HD95     meaning
========================  ======  =======  ======================================
both                      0 to 1  mm       scored
neither                   None    None     nothing to find: not counted
one of the two            0.0     None     missed or spurious: counted as such
========================  ======  =======  ======================================

No value is ever NaN or infinite, and a missed object never gets the perfect distance of 0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Mask = npt.NDArray[np.bool_]


def dice(a: Mask, b: Mask) -> float | None:
    """Dice overlap ``2 |a and b| / (|a| + |b|)`` of two masks of one shape; ``None`` where both are empty.

    Raises:
        ValueError: The shapes differ.
    """
    _same_shape(a, b)
    total = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    return 2 * int(np.count_nonzero(a & b)) / total if total else None


def hd95(a: Mask, b: Mask, spacing: tuple[float, float, float]) -> float | None:
    """95th percentile in mm of the surface distances of both directions pooled; ``None`` where a mask is empty.

    The definition is MedPy's ``hd95``: the surface of a mask is its voxels with a face neighbour outside it (outside
    the array counts as outside), distances run from centre to centre, the two sets of distances are pooled before the
    percentile is taken, and the percentile is interpolated linearly. Tools that take the larger of the two directed
    percentiles give other numbers. Everything happens in the box around both masks, which changes no distance.

    Args:
        a: ``(X, Y, Z)`` mask.
        b: Mask of the same shape.
        spacing: Voxel size in mm along each array axis.

    Raises:
        ValueError: The shapes differ.
    """
    _same_shape(a, b)
    if not a.any() or not b.any():
        return None
    box = _bounding_box(a | b)
    surface_a, surface_b = _surface(a[box]), _surface(b[box])
    distances = np.concatenate(
        [
            ndimage.distance_transform_edt(~surface_b, sampling=spacing)[surface_a],
            ndimage.distance_transform_edt(~surface_a, sampling=spacing)[surface_b],
        ]
    )
    return float(np.percentile(distances, 95))


def _same_shape(a: Mask, b: Mask) -> None:
    if a.shape != b.shape:
        raise ValueError(f"masks of one shape are needed, not {a.shape} and {b.shape}")


def _bounding_box(mask: Mask) -> tuple[slice, ...]:
    """The smallest box that holds every true voxel; there must be one."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        inside = np.flatnonzero(mask.any(axis=others))
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(box)


def _surface(mask: Mask) -> Mask:
    """The voxels of ``mask`` with a face neighbour outside it; what lies outside the array counts as outside."""
    inner: Mask = ndimage.binary_erosion(mask, border_value=0)
    return mask & ~inner
