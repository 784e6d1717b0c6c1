"""Between a scan's own grid and the plan's: axes and direction, then spacing. Both ways."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int, int]
Affine = npt.NDArray[np.float64]


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
    """Trilinear resampling of ``(C, D, H, W)`` to ``size`` over the same extent, edges of the outer voxels aligned."""
    if tuple(image.shape[1:]) == size:
        return image
    return F.interpolate(image[None], size, mode="trilinear", align_corners=False)[0]


def resample_labels(labels: Tensor, size: Size, classes: int) -> Tensor:
    """Resample class indices ``(D, H, W)``: each class linearly, the largest wins. One class in memory at a time."""
    if tuple(labels.shape) == size:
        return labels
    return largest_class((resample_image((labels == k)[None].float(), size)[0] for k in range(classes)), size)


def largest_class(scores: Any, size: Size) -> Tensor:
    """Index of the largest of several score maps ``(D, H, W)`` of this size, taken one at a time: int64."""
    best = torch.full(size, -torch.inf)
    winner = torch.zeros(size, dtype=torch.int64)
    for k, score in enumerate(scores):
        better = score > best
        winner[better] = k
        best = torch.where(better, score, best)
    return winner


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
