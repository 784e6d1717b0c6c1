"""What one object's mask in a prediction is worth against the same object's mask in the truth.

With TP, FP and FN the voxels that both masks have, that only the prediction has, and that only the truth has:

==================  ==========================================================================================
``dice``            2 TP / (2 TP + FP + FN)
``iou``             TP / (TP + FP + FN)
``sensitivity``     TP / (TP + FN)
``precision``       TP / (TP + FP)
``hd95``            95th percentile of the distances between both surfaces, in mm
``assd``            average symmetric surface distance, in mm: the mean of both directions together
``nsd``             normalised surface distance (surface Dice): share of both surfaces within a tolerance of the other
volumes             in ml, and prediction minus truth
==================  ==========================================================================================

``hd95`` and ``assd`` are of the surface's voxels, ``nsd`` of its elements, as published numbers mostly are (see
:mod:`.surfaces`). A function gives ``None`` where it is not defined: no quotient by 0, no distance from or to an object
that is not there. So no value is ever NaN or infinite, and a missed object never gets the perfect distance of 0; what
counts instead is a matter of the policy (:mod:`.policies`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from medcontext.evaluation.surfaces import Hd95, Mask, Voxel, element_distances, volume_of, voxel_distances

OVERLAPS = ("dice", "iou", "nsd")
"""Scores from 0 to 1 that compare both masks alike."""

DISTANCES = ("hd95_mm", "assd_mm")
"""Scores in mm, the lower the better."""

METRICS = (*OVERLAPS, *DISTANCES, "sensitivity", "precision", "volume_ml", "truth_ml", "volume_difference_ml")
"""What :func:`measure` gives."""

MM3_PER_ML = 1000.0


def dice(prediction: Mask, truth: Mask) -> float | None:
    """Dice overlap of two masks of one shape; ``None`` where both are empty.

    Raises:
        ValueError: The shapes differ.
    """
    return _Voxels.of(prediction, truth).dice


def iou(prediction: Mask, truth: Mask) -> float | None:
    """Intersection over union of two masks of one shape (the Jaccard index); ``None`` where both are empty.

    Raises:
        ValueError: The shapes differ.
    """
    return _Voxels.of(prediction, truth).iou


def hd95(prediction: Mask, truth: Mask, voxel: Voxel, definition: Hd95 = "pooled") -> float | None:
    """95th percentile of the surface distances in mm; ``None`` where a mask is empty.

    Args:
        prediction: ``(X, Y, Z)`` mask.
        truth: Mask of the same shape.
        voxel: Its size in mm along each array axis, or its edges.
        definition: ``pooled``, ``directed`` or ``weighted``: see :meth:`.surfaces.Distances.hd95`. The last one is of
            the surfaces' elements, the others of their voxels.

    Raises:
        ValueError: The shapes differ.
    """
    pair = _cropped(prediction, truth)
    if pair is None:
        return None
    distances = element_distances if definition == "weighted" else voxel_distances
    return distances(*pair, voxel).hd95(definition)


def assd(prediction: Mask, truth: Mask, voxel: Voxel) -> float | None:
    """Average symmetric surface distance in mm; ``None`` where a mask is empty.

    Raises:
        ValueError: The shapes differ.
    """
    pair = _cropped(prediction, truth)
    return None if pair is None else voxel_distances(*pair, voxel).assd()


def nsd(prediction: Mask, truth: Mask, voxel: Voxel, tolerance: float) -> float | None:
    """Normalised surface distance at a tolerance in mm; 0 where one mask is empty, ``None`` where both are.

    Raises:
        ValueError: The shapes differ.
    """
    pair = _cropped(prediction, truth)
    if pair is None:
        return 0.0 if _Voxels.of(prediction, truth).any else None
    return element_distances(*pair, voxel, within=tolerance).nsd(tolerance)


def measure(
    prediction: Mask, truth: Mask, voxel: Voxel, *, tolerance: float, hd95: Hd95 = "pooled", cubes: bool = False
) -> dict[str, float | None]:
    """Everything at once: :data:`METRICS` by name.

    Args:
        prediction: ``(X, Y, Z)`` mask, cut to the box around both objects where speed matters.
        truth: Mask of the same shape.
        voxel: Its size in mm along each array axis, or its edges.
        tolerance: Of the normalised surface distance, in mm.
        hd95: Definition of it.
        cubes: Compute distances (not volumes) as if every voxel were a cube of 1 mm.

    Raises:
        ValueError: The shapes differ.
    """
    voxels = _Voxels.of(prediction, truth)
    ml = volume_of(voxel) / MM3_PER_ML
    distances: dict[str, float | None] = dict.fromkeys(DISTANCES)
    surface_dice = 0.0 if voxels.any else None
    if voxels.prediction and voxels.truth:
        grid = (1.0, 1.0, 1.0) if cubes else voxel
        exact = hd95 == "weighted"
        between = voxel_distances(prediction, truth, grid)
        elements = element_distances(prediction, truth, grid, math.inf if exact else tolerance)
        distances = {"hd95_mm": (elements if exact else between).hd95(hd95), "assd_mm": between.assd()}
        surface_dice = elements.nsd(tolerance)
    return {
        "dice": voxels.dice,
        "iou": voxels.iou,
        "nsd": surface_dice,
        **distances,
        "sensitivity": voxels.both / voxels.truth if voxels.truth else None,
        "precision": voxels.both / voxels.prediction if voxels.prediction else None,
        "volume_ml": voxels.prediction * ml,
        "truth_ml": voxels.truth * ml,
        "volume_difference_ml": (voxels.prediction - voxels.truth) * ml,
    }


@dataclass(frozen=True)
class _Voxels:
    """How many voxels each mask has, and how many both."""

    prediction: int
    truth: int
    both: int

    @classmethod
    def of(cls, prediction: Mask, truth: Mask) -> _Voxels:
        if prediction.shape != truth.shape:
            raise ValueError(f"masks of one shape are needed, not {prediction.shape} and {truth.shape}")
        return cls(*(int(np.count_nonzero(mask)) for mask in (prediction, truth, prediction & truth)))

    @property
    def any(self) -> bool:
        return self.prediction + self.truth > 0

    @property
    def dice(self) -> float | None:
        return 2 * self.both / (self.prediction + self.truth) if self.any else None

    @property
    def iou(self) -> float | None:
        return self.both / (self.prediction + self.truth - self.both) if self.any else None


def _cropped(prediction: Mask, truth: Mask) -> tuple[Mask, Mask] | None:
    """Both masks within the box around them, which changes no distance; None where one is empty.

    Raises:
        ValueError: The shapes differ.
    """
    voxels = _Voxels.of(prediction, truth)
    if not voxels.prediction or not voxels.truth:
        return None
    either = prediction | truth
    box = []
    for axis in range(either.ndim):
        others = tuple(other for other in range(either.ndim) if other != axis)
        inside = np.flatnonzero(either.any(axis=others))
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return prediction[tuple(box)], truth[tuple(box)]
