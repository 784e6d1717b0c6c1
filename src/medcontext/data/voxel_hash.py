"""Hashes of what scans show, whatever the file format, compression, data type or order of the axes."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt


def voxel_hash(array: npt.NDArray[Any], affine: npt.NDArray[np.float64]) -> str:
    """Of the voxels ``(X, Y, Z)``, turned to the axes right, anterior, superior; spacing and origin don't count."""
    from nibabel.orientations import apply_orientation, io_orientation

    turned = apply_orientation(array, io_orientation(affine))
    digest = hashlib.sha256(f"{turned.dtype.str}{turned.shape}".encode())
    # Plane by plane and in NIfTI's order of voxels, so that a large scan is not copied.
    for plane in np.moveaxis(turned, -1, 0):
        digest.update(np.ascontiguousarray(plane.T).data)
    return digest.hexdigest()[:32]
