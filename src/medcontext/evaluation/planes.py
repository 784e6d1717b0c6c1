"""Three planes through one voxel: the place that shows most, cut to a cube in mm so that all have one scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Voxel = tuple[int, int, int]
Spacing = tuple[float, float, float]
Masks = npt.NDArray[np.bool_]

AXES = {"axial": 2, "coronal": 1, "sagittal": 0}
"""Plane -> the axis of a volume in RAS+ that it is across."""

SIDES = {"axial": ("R", "L", "A", "P"), "coronal": ("R", "L", "S", "I"), "sagittal": ("A", "P", "S", "I")}
"""Plane -> the patient's side at its left, right, upper and lower edge: radiological convention."""

MARGIN = 1.5
"""The cube is so much wider than what is labelled."""

LEAST = 0.2
"""It is at least this share of the scan's longest side."""


@dataclass(frozen=True)
class Plane:
    """One plane, ready to draw: ``(H, W)`` arrays, the first row up and the first column left.

    Attributes:
        name: ``axial``, ``coronal`` or ``sagittal``.
        index: Of the slice, from 0, and ``count`` how many there are.
        image: Intensities.
        maps: What was drawn into the volume, ``(S, H, W)`` for its S structures, in the order given.
        spacing: (down, across) in mm.
        corner: (down, across) in mm, from the upper left corner of the square to that of ``image``.
        cross: (row, column) of the voxel that the planes share.
        side: Of the square in mm; the same for all planes of a scan.
    """

    name: str
    index: int
    count: int
    image: npt.NDArray[np.floating[Any]]
    maps: tuple[Masks, ...]
    spacing: tuple[float, float]
    corner: tuple[float, float]
    cross: tuple[int, int]
    side: float


def choose_voxel(truth: Masks | npt.NDArray[np.int32], others: Sequence[npt.NDArray[Any]]) -> Voxel:
    """The place to show: on each axis the slice with the most labels, then the most labelled and disputed voxels.

    Args:
        truth: True labels in RAS+: ``(X, Y, Z)`` numbers, or ``(S, X, Y, Z)`` of each structure.
        others: Predictions, alike.

    Returns:
        Its indices; the middle of axes along which nothing is labelled by anyone.
    """
    labelled = [truth != 0, *(each != truth for each in others)]
    found = []
    for axis in (-3, -2, -1):
        apart = tuple(other for other in (-3, -2, -1) if other != axis)
        if truth.ndim == 4:
            labels = truth.any(axis=apart).sum(axis=0)
        else:
            numbers = (number for number in np.unique(truth) if number != 0)
            labels = sum((np.any(truth == number, axis=apart).astype(np.int64) for number in numbers), np.int64(0))
        voxels = sum(each.any(axis=0).sum(axis=apart) if each.ndim == 4 else each.sum(axis=apart) for each in labelled)
        score = labels * truth.size + voxels
        found.append(int(np.argmax(score)) if np.any(score) else truth.shape[axis] // 2)
    return found[0], found[1], found[2]


def three_planes(
    image: npt.NDArray[np.floating[Any]],
    maps: Sequence[npt.NDArray[Any]],
    structures: Mapping[int, tuple[int, ...]],
    spacing: Spacing,
    voxel: Voxel,
    *,
    whole: bool = False,
) -> tuple[Plane, ...]:
    """The planes across each axis through ``voxel``, cut to a cube around all that is labelled.

    Args:
        image: ``(X, Y, Z)`` in RAS+.
        maps: Each ``(X, Y, Z)`` label numbers, or ``(S, X, Y, Z)`` boolean of each structure.
        structures: Label -> numbers that it is made of.
        spacing: In mm.
        voxel: That the planes share.
        whole: Show all of the volume instead.
    """
    labelled = [np.asarray(each.any(axis=0) if each.ndim == 4 else each != 0) for each in maps]
    sizes, lengths = np.array(spacing), image.shape
    box = None if whole else _box(labelled)
    if box is None:
        box = np.array([[0, length] for length in lengths])
        side = float((sizes * lengths).max())
    else:
        extents = (box[:, 1] - box[:, 0]) * sizes
        side = float(max(MARGIN * extents.max(), LEAST * (sizes * lengths).max()))
    planes = []
    for name, axis in AXES.items():
        # Both axes that are left run right, front or up in RAS; flipped, they run to the picture's right and down it.
        first, second = (other for other in range(3) if other != axis)
        cuts = [_cut(box[other], lengths[other], spacing[other], side) for other in (second, first)]
        (rows, down), (columns, right) = cuts

        def flat(volume: npt.NDArray[Any], axis: int = axis, rows: slice = rows, columns: slice = columns) -> Any:
            taken = np.take(volume, voxel[axis], axis=axis - 3)
            return np.swapaxes(taken[..., ::-1, ::-1], -1, -2)[..., rows, columns]

        planes.append(
            Plane(
                name=name,
                index=voxel[axis],
                count=lengths[axis],
                image=np.nan_to_num(flat(image)),
                maps=tuple(_masks(flat(each), structures) for each in maps),
                spacing=(spacing[second], spacing[first]),
                corner=(down, right),
                cross=(
                    lengths[second] - 1 - voxel[second] - rows.start,
                    lengths[first] - 1 - voxel[first] - columns.start,
                ),
                side=side,
            )
        )
    return tuple(planes)


def _box(labelled: Sequence[Masks]) -> npt.NDArray[np.int64] | None:
    """``(3, 2)``: first index, and the one after the last, of all that is labelled; None where nothing is."""
    together = np.logical_or.reduce(list(labelled))
    ends = []
    for axis in range(3):
        found = np.flatnonzero(together.any(axis=tuple(other for other in range(3) if other != axis)))
        if not len(found):
            return None
        ends.append((found[0], found[-1] + 1))
    return np.array(ends)


def _cut(ends: npt.NDArray[np.int64], length: int, size: float, side: float) -> tuple[slice, float]:
    """Of a flipped axis: what lies within the square, and how far in mm from the square's edge that begins."""
    centre = length - (ends[0] + ends[1]) / 2
    begin = centre - side / size / 2
    first, last = max(0, int(np.floor(begin))), min(length, int(np.ceil(begin + side / size)))
    return slice(first, last), float((first - begin) * size)


def _masks(flat: npt.NDArray[Any], structures: Mapping[int, tuple[int, ...]]) -> Masks:
    """``(S, H, W)`` of label numbers; of what is given structure by structure, itself."""
    if flat.ndim == 3:
        return np.asarray(flat, dtype=bool)
    return np.stack([np.isin(flat, numbers) for numbers in structures.values()])
