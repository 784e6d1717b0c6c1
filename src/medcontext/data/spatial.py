"""Random changes to where a patch's voxels are taken from. Image and label move together, by one grid."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import torch
from torch import Tensor

from medcontext.data.augment_config import AugmentConfig
from medcontext.data.fingerprint import has_thick_slices

Size = tuple[int, int, int]
Spacing = tuple[float, float, float]

SLAB = 8
"""Slices that are interpolated at once. What lies between then stays in the processor's cache and in memory that is at
hand: three times as fast as a whole patch."""

CELLS = 4
"""Distances between control points that an elastic deformation lays over each axis of a patch."""


@dataclass(frozen=True)
class Deformation:
    """Where each voxel of a patch is taken from: bent, then mapped, both about the patch's centre; then mirrored.

    Attributes:
        matrix: ``(3, 3)`` float64 over (D, H, W), from an output voxel to the input voxel.
        shifts: ``(3, d, h, w)`` float64, voxels by which the control points of a cubic B-spline move; d is 1 where all
            slices bend alike. None: nothing bends.
        mirrored: Axes that are mirrored.
    """

    matrix: Tensor
    shifts: Tensor | None
    mirrored: tuple[int, ...]

    @property
    def still(self) -> bool:
        """Whether every voxel is taken from where it is, but for mirroring."""
        return self.shifts is None and torch.equal(self.matrix, torch.eye(3, dtype=self.matrix.dtype))

    @property
    def slicewise(self) -> bool:
        """Whether slices stay parallel to themselves and move alike, at most nearer to or further from one another."""
        flat = self.shifts is None or (self.shifts.shape[1] == 1 and not self.shifts[0].any())
        return flat and not self.matrix[0, 1:].any() and not self.matrix[1:, 0].any()


def draw_deformation(config: AugmentConfig, spacing: Spacing, patch: Size, rng: np.random.Generator) -> Deformation:
    """Draw a deformation, in millimetres, so that a rotation is one also where voxels are not cubes."""
    thick = has_thick_slices(spacing)
    matrix = np.eye(3)
    if rng.random() < config.rotation_probability:
        angles = np.radians(rng.uniform(-config.rotation_degrees, config.rotation_degrees, 3))
        matrix = _rotation(angles * [1, not thick, not thick])
    if rng.random() < config.scale_probability:
        factor = rng.uniform(*config.scale)
        matrix = matrix @ np.diag([1 if thick else factor, factor, factor])
    shifts = None
    if rng.random() < config.elastic_probability:
        distance = np.array([0 if thick else patch[0], *patch[1:]]).reshape(3, 1, 1, 1) / CELLS
        points = CELLS + 3
        drawn = rng.uniform(-1, 1, (3, 1 if thick else points, points, points))
        shifts = torch.from_numpy(drawn * distance * rng.uniform(*config.elastic))
    mirrored = tuple(axis for axis in config.mirror_axes if rng.random() < 0.5)
    millimetres = np.array(spacing)
    return Deformation(torch.from_numpy(matrix * millimetres / millimetres[:, None]), shifts, mirrored)


def reach(deformation: Deformation, patch: Size) -> Size:
    """Size of the input box around the centre that holds every voxel an output patch is taken from."""
    extent = torch.tensor(patch, dtype=torch.float64) - 1
    if deformation.shifts is not None:
        # A B-spline stays within the hull of its control points.
        extent = extent + 2 * deformation.shifts.abs().amax((1, 2, 3))
    needed = deformation.matrix.abs() @ extent
    d, h, w = (math.ceil(round(float(length), 6)) + 1 for length in needed)
    return d, h, w


def warp(image: Tensor, label: Tensor, deformation: Deformation, patch: Size) -> tuple[Tensor, Tensor]:
    """Take a patch out of a box.

    Args:
        image: ``(C, D, H, W)`` float32, of the size that :func:`reach` says.
        label: ``(D, H, W)`` class indices.
        deformation: From :func:`draw_deformation`.
        patch: Output size.

    Returns:
        ``(C, *patch)`` by linear and ``(*patch)`` by nearest-neighbour interpolation, through the same grid.
    """
    if deformation.slicewise and not deformation.still:
        image, label = _space_slices(image, label, float(deformation.matrix[0, 0]), patch[0])
        (where,) = _positions(deformation, (1, *image.shape[2:]), (1, *patch[1:]), image.device)
        # Every slice is a picture that is taken through the same grid.
        image = torch.cat([_linear(some, where[1:, 0]) for some in _slabs(image.flatten(0, 1), 0)])
        image, label = image.view(-1, *patch), _nearest(label, where[1:, 0])
    elif not deformation.still:
        slabs = _positions(deformation, image.shape[1:], patch, image.device)
        taken = [(_linear(image, where), _nearest(label, where)) for where in slabs]
        image, label = torch.cat([each for each, _ in taken], dim=1), torch.cat([each for _, each in taken])
    if deformation.mirrored:
        axes = [axis - 3 for axis in deformation.mirrored]
        image, label = image.flip(axes), label.flip(axes)
    return image, label


def _linear(image: Tensor, where: Tensor) -> Tensor:
    """The last n axes of ``image`` at ``where`` ``(n, *patch)``, linearly between the 2^n voxels around."""
    box = image.shape[-len(where) :]
    steps = [math.prod(box[axis + 1 :]) for axis in range(len(box))]
    low = where.int()
    for length, places in zip(box, low, strict=True):
        places.clamp_max_(max(length - 2, 0))
    share = (where - low).flatten(1)
    corner = _flat_index(low, box)
    voxels = image.flatten(-len(box))

    def between(axis: int, offset: int) -> Tensor:
        if axis == len(box):
            return voxels.narrow(-1, offset, voxels.shape[-1] - offset).index_select(-1, corner)
        if box[axis] == 1:
            return between(axis + 1, offset)
        return between(axis + 1, offset).lerp_(between(axis + 1, offset + steps[axis]), share[axis])

    return between(0, 0).view(*image.shape[: -len(box)], *where.shape[1:])


def _nearest(label: Tensor, where: Tensor) -> Tensor:
    """The last n axes of ``label`` at ``where`` ``(n, *patch)``, as integers: no class is ever mixed with another."""
    box = label.shape[-len(where) :]
    chosen = label.flatten(-len(box)).index_select(-1, _flat_index(where.round().int(), box))
    return chosen.view(*label.shape[: -len(box)], *where.shape[1:])


def _flat_index(places: Tensor, box: tuple[int, ...]) -> Tensor:
    """One number for each of the places ``(n, *patch)`` int32 in a box."""
    index = places[0]
    for length, place in zip(box[1:], places[1:], strict=True):
        index = index * length + place
    return index.flatten()


def _space_slices(image: Tensor, label: Tensor, step: float, count: int) -> tuple[Tensor, Tensor]:
    """So many slices, ``step`` input slices apart about the middle."""
    last = image.shape[1] - 1
    places = ((torch.arange(count, device=image.device) - (count - 1) / 2) * step + last / 2).clamp_(0, last)
    below = places.long()
    above = (below + 1).clamp_max(last)
    share = (places - below).view(-1, 1, 1)
    between = torch.lerp(image.index_select(1, below), image.index_select(1, above), share)
    return between, label.index_select(0, places.round().long())


def _positions(deformation: Deformation, box: tuple[int, ...], patch: Size, device: torch.device) -> Iterator[Tensor]:
    """Where in the box, in voxels, each voxel of the patch is taken from: ``(3, slices, H, W)`` float32, by slabs."""
    matrix = deformation.matrix.float().to(device)
    d, h, w = (
        matrix[:, axis].view(3, 1) * (torch.arange(length, device=device) - (length - 1) / 2)
        for axis, length in enumerate(patch)
    )
    middle = torch.tensor(box, device=device).view(3, 1, 1, 1) / 2 - 0.5
    plane = h[:, None, :, None] + w[:, None, None, :] + middle
    bent = _bent_slabs(deformation.shifts, patch) if deformation.shifts is not None else repeat(None)
    for along, shift in zip(_slabs(d, 1), bent, strict=False):
        where = along[:, :, None, None] + plane
        if shift is not None:
            where += torch.tensordot(matrix, shift.to(device), 1)
        # Rounding may leave the box by a hair.
        yield where.clamp_(torch.zeros_like(middle), 2 * middle)


def _slabs(tensor: Tensor, axis: int) -> Iterator[Tensor]:
    length = tensor.shape[axis]
    return (tensor.narrow(axis, start, min(SLAB, length - start)) for start in range(0, length, SLAB))


def _bent_slabs(shifts: Tensor, patch: Size) -> Iterator[Tensor]:
    """Shift of each voxel between the control points, by a uniform cubic B-spline: ``(3, slices, H, W)`` float32."""
    d, h, w = (_basis(length, points) for length, points in zip(patch, shifts.shape[1:], strict=True))
    within = torch.einsum("cijk,hj,wk->cihw", shifts, h, w)
    return (torch.einsum("cihw,di->cdhw", within, some).float() for some in _slabs(d, 0))


def _basis(length: int, points: int) -> Tensor:
    """``(length, points)`` float64: weight of each control point at each voxel; one point is everywhere the same."""
    if points == 1:
        return torch.ones(length, 1, dtype=torch.float64)
    places = (torch.arange(length, dtype=torch.float64) + 0.5) * ((points - 3) / length)
    distance = (places[:, None] - (torch.arange(points) - 1)).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp_min(0) ** 3 / 6
    return torch.where(distance < 1, near, far)


def _rotation(
    angles: np.ndarray[tuple[int], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = (other for other in range(3) if other != axis)
        turn = np.eye(3)
        turn[[first, first, second, second], [first, second, first, second]] = (
            math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)
        )  # fmt: skip
        matrix = matrix @ turn
    return matrix
