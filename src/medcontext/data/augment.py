"""Random changes to a patch that leave its meaning as it is. Image and label move together, by one grid."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medcontext.data.augment_config import AugmentConfig

Size = tuple[int, int, int]


def spatial_matrix(config: AugmentConfig, spacing: tuple[float, float, float], rng: np.random.Generator) -> Tensor:
    """Draw the map from an output voxel to the input voxel it is taken from, both counted from the patch's centre.

    It is drawn in millimetres, so that a rotation is one also where voxels are not cubes.

    Returns:
        ``(3, 3)`` float64 over (D, H, W).
    """
    flip = np.ones(3)
    for axis in config.mirror_axes:
        flip[axis] = rng.choice((-1.0, 1.0))
    matrix = np.diag(flip)
    if rng.random() < config.spatial_probability:
        thick = max(spacing) >= 2 * min(spacing)
        angles = np.radians(rng.uniform(-config.rotation_degrees, config.rotation_degrees, 3))
        if thick:
            angles[np.arange(3) != int(np.argmax(spacing))] = 0
        matrix = matrix @ _rotation(angles) / rng.uniform(1 - config.scale, 1 + config.scale)
    millimetres = np.diag(spacing)
    return torch.from_numpy(np.linalg.inv(millimetres) @ matrix @ millimetres)


def reach(matrix: Tensor, patch: Size) -> Size:
    """Size of the input box around the centre that holds every voxel an output patch is taken from."""
    needed = matrix.abs() @ (torch.tensor(patch, dtype=matrix.dtype) - 1)
    d, h, w = (math.ceil(round(float(length), 6)) + 1 for length in needed)
    return d, h, w


def warp(image: Tensor, label: Tensor, matrix: Tensor, patch: Size) -> tuple[Tensor, Tensor]:
    """Take a patch out of the middle of a box through ``matrix``.

    Args:
        image: ``(C, D, H, W)``, at least as large as :func:`reach` says.
        label: ``(D, H, W)`` class indices.
        matrix: From :func:`spatial_matrix`.
        patch: Output size.

    Returns:
        ``(C, *patch)`` by linear and ``(*patch)`` by nearest-neighbour interpolation, through the same grid.
    """
    box = torch.tensor(image.shape[1:], dtype=matrix.dtype)
    # grid_sample counts in half extents and in the order W, H, D.
    normalised = torch.diag(2 / box) @ matrix @ torch.diag(torch.tensor(patch, dtype=matrix.dtype) / 2)
    theta = torch.cat([normalised.flip(0, 1), torch.zeros(3, 1)], dim=1).float()
    grid = F.affine_grid(theta[None], [1, 1, *patch], align_corners=False)
    moved = F.grid_sample(image[None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0]
    chosen = F.grid_sample(label[None, None].float(), grid, mode="nearest", padding_mode="border", align_corners=False)
    return moved, chosen[0, 0].to(label.dtype)


def vary_intensity(image: Tensor, config: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """Gamma, contrast, brightness and noise on a normalised image ``(C, D, H, W)``, in nnU-Net's published ranges."""
    chance = config.intensity_probability
    if rng.random() < chance:
        low, high = image.amin(), image.amax()
        extent = (high - low).clamp_min(1e-6)
        image = ((image - low) / extent) ** float(rng.uniform(0.7, 1.5)) * extent + low
    if rng.random() < chance:
        mean = image.mean()
        image = (image - mean) * float(rng.uniform(0.75, 1.25)) + mean
    if rng.random() < chance:
        image = image + float(rng.normal(0, 0.1))
    if rng.random() < chance:
        noise = rng.standard_normal(image.shape, dtype=np.float32) * float(rng.uniform(0, 0.1) ** 0.5)
        image = image + torch.from_numpy(noise)
    return image


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
