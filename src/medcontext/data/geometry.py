"""Between a scan's own grid and the plan's: axes and direction, then spacing. Both ways."""

from __future__ import annotations

import itertools
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int, int]
Affine = npt.NDArray[np.float64]
Box = tuple[slice, slice, slice]


def filled_box(image: npt.NDArray[Any], above: float | None = None) -> Box:
    """The smallest box of ``(C, X, Y, Z)`` around all voxels that are filled in any channel; all of it where none is.

    Args:
        image: Intensities.
        above: The value beyond which a voxel counts as filled; None: all but 0 do.
    """
    filled = reduce(np.bitwise_or, (channel != 0 if above is None else channel > above for channel in image))
    box = []
    for axis in range(3):
        first, second = (other for other in (2, 1, 0) if other != axis)
        places = np.flatnonzero(filled.any(axis=first).any(axis=second))
        box.append(slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, filled.shape[axis]))
    x, y, z = box
    return x, y, z


def reorient(array: npt.NDArray[Any], affine: Affine, orientation: str) -> npt.NDArray[Any]:
    """Turn the last three axes of ``array``, which lie as ``affine`` says, to ``orientation`` (such as ``"SAR"``)."""
    return _turn(array, _axes_between(affine, orientation))


def reorient_back(array: npt.NDArray[Any], affine: Affine, orientation: str) -> npt.NDArray[Any]:
    """Undo :func:`reorient`."""
    there = _axes_between(affine, orientation)
    back = np.empty_like(there)
    for source, (target, flip) in enumerate(there):
        back[int(target)] = source, flip
    return _turn(array, back)


def reoriented_spacing(affine: Affine, orientation: str) -> tuple[float, float, float]:
    """Spacing in mm along the axes that :func:`reorient` gives."""
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    turned = np.empty(3)
    for source, (target, _) in enumerate(_axes_between(affine, orientation)):
        turned[int(target)] = sizes[source]
    d, h, w = (float(size) for size in turned)
    return d, h, w


def resampled_size(size: Size, spacing: tuple[float, ...], target: tuple[float, ...]) -> Size:
    """Size of the grid that covers the same extent at another spacing."""
    d, h, w = (max(1, round(n * old / new)) for n, old, new in zip(size, spacing, target, strict=True))
    return d, h, w


def resample_image(image: Tensor, size: Size) -> Tensor:
    """Trilinear resampling of ``(C, D, H, W)`` to ``size`` over the same extent, edges of the outer voxels aligned.

    Nothing is smoothed before the grid is made coarser.
    """
    if tuple(image.shape[1:]) == size:
        return image
    if image.shape[1] == size[0]:
        # The slices stay where they are: the same values in half the time.
        return F.interpolate(image, size[1:], mode="bilinear", align_corners=False)
    return F.interpolate(image[None], size, mode="trilinear", align_corners=False)[0]


TIE = 1e-5
"""Two classes that share a voxel to this precision share it equally; single precision can't tell them apart."""

MIXED_VOXELS = 2**17
"""Voxels between classes that are resampled at once; what this takes stays in a processor's cache."""


def resample_labels(labels: npt.NDArray[Any], size: Size) -> npt.NDArray[Any]:
    """Resample class indices ``(D, H, W)`` as if each class were an image of its own, of zeros and ones: the largest
    value wins, and of equal ones the lowest index.

    A new voxel lies between eight old ones. Where they agree there is nothing to compute; elsewhere only their (at
    most eight) classes can win, so that the number of classes costs nothing.
    """
    if labels.shape == size:
        return labels
    axes = [neighbours_along(old, new) for old, new in zip(labels.shape, size, strict=True)]
    lowest = highest = labels
    for axis, (before, after, _) in enumerate(axes):
        lowest = np.minimum(lowest.take(before, axis), lowest.take(after, axis))
        highest = np.maximum(highest.take(before, axis), highest.take(after, axis))
    mixed = np.flatnonzero(lowest != highest)
    resampled = lowest.ravel()
    for start in range(0, len(mixed), MIXED_VOXELS):
        part = mixed[start : start + MIXED_VOXELS]
        resampled[part] = _winners(labels, axes, np.unravel_index(part, size))
    return resampled.reshape(size)


Neighbours = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float32]]


def neighbours_along(old: int, new: int) -> Neighbours:
    """For each of ``new`` voxels along an axis, the old ones before and after it, and how far it is from the first to
    the second. One that lies on an old voxel has it on both sides."""
    place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    before = np.floor(place).astype(np.intp)
    return before, np.ceil(place).astype(np.intp), (place - before).astype(np.float32)


def _winners(labels: npt.NDArray[Any], axes: list[Neighbours], voxels: tuple[Any, ...]) -> npt.NDArray[Any]:
    """The class with the largest share in each of the new ``voxels`` (their indices along D, H and W)."""
    classes, weights = [], []
    for corner in itertools.product((0, 1), repeat=3):
        sides = list(zip(corner, axes, voxels, strict=True))
        classes.append(labels[tuple(neighbours[side][voxel] for side, neighbours, voxel in sides)])
        shares = [neighbours[2][voxel] if side else 1 - neighbours[2][voxel] for side, neighbours, voxel in sides]
        weights.append(shares[0] * shares[1] * shares[2])
    held = [sum(weight * (other == own) for other, weight in zip(classes, weights, strict=True)) for own in classes]
    most = np.maximum.reduce(held) - TIE
    candidates = [
        np.where(share >= most, own, np.iinfo(own.dtype).max) for share, own in zip(held, classes, strict=True)
    ]
    winners: npt.NDArray[Any] = np.minimum.reduce(candidates)
    return winners


def _axes_between(affine: Affine, orientation: str) -> npt.NDArray[Any]:
    from nibabel import orientations

    transform: npt.NDArray[Any] = orientations.ornt_transform(
        orientations.io_orientation(affine), orientations.axcodes2ornt(tuple(orientation))
    )
    return transform


def _turn(array: npt.NDArray[Any], axes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Apply a nibabel orientation transform (source axis -> target axis, flip) to the last three axes, as a view."""
    lead = array.ndim - 3
    flipped = np.flip(array, tuple(lead + axis for axis, (_, flip) in enumerate(axes) if flip < 0))
    order = [lead + int(axis) for axis in np.argsort(axes[:, 0])]
    return np.transpose(flipped, (*range(lead), *order))
