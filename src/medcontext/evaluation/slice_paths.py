"""What a slice becomes in a page: its intensities a small grey picture, its masks the data of SVG paths."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt
from contourpy import contour_generator

LOSSLESS = 128 * 128
"""Pixels up to which a grey picture is a PNG: blown up, the blocks of a JPEG would show."""

LARGEST = 360
"""Pixels of a grey picture's longer side, at most."""

QUALITY = 88

LEVELS = (1.0, 99.5)
"""Percentiles of the intensities, in a slice, that are black and white."""


def grey(image: npt.NDArray[np.floating[Any]]) -> str:
    """The picture as a data address: a PNG, or a JPEG where that is much smaller."""
    from PIL import Image

    low, high = np.percentile(image, LEVELS)
    levels = np.clip((image - low) / max(high - low, 1e-6), 0, 1) * 255
    picture = Image.fromarray(np.round(levels).astype(np.uint8))
    small = picture.width * picture.height <= LOSSLESS
    picture.thumbnail((LARGEST, LARGEST))
    made = io.BytesIO()
    if small:
        picture.save(made, format="png", optimize=True)
    else:
        picture.save(made, format="jpeg", quality=QUALITY, optimize=True)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(made.getvalue()).decode('ascii')}"


def outline(mask: npt.NDArray[np.bool_]) -> str:
    """Outlines of ``(H, W)`` as the data of a path; a unit is half a voxel, from the upper left corner of the first."""
    lines: Any = contour_generator(z=np.pad(mask, 1).astype(float)).lines(0.5)
    parts = []
    for line in lines:
        # Padded by one, and a voxel's centre lies half a voxel from its corner.
        points = np.round(2 * (line - 0.5)).astype(int)
        steps = np.diff(points, axis=0)
        turns = np.flatnonzero((steps[1:] != steps[:-1]).any(axis=1)) + 1
        corners = points[[0, *turns]]
        moves = " ".join(f"{x} {y}" for x, y in np.diff(corners, axis=0))
        parts.append(f"M{corners[0, 0]} {corners[0, 1]}l{moves}z")
    return "".join(parts)


def cells(mask: npt.NDArray[np.bool_]) -> str:
    """All voxels of ``(H, W)`` as rectangles, equal rows together; units as for :func:`outline`."""
    parts, begin = [], 0
    for row in range(1, len(mask) + 1):
        if row < len(mask) and (mask[row] == mask[begin]).all():
            continue
        ends = np.flatnonzero(np.diff(np.pad(mask[begin], 1).astype(int)))
        for left, end in zip(ends[::2], ends[1::2], strict=True):
            parts.append(f"M{2 * left} {2 * begin}h{2 * (end - left)}v{2 * (row - begin)}h{-2 * (end - left)}z")
        begin = row
    return "".join(parts)
