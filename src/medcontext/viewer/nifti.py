"""A volume as the bytes of a NIfTI-1 file, which the page's NiiVue reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from medcontext.data.scan import spacing_of

LABEL_INTENT = "label"
SHOWN_TYPES = (np.uint8, np.int16, np.uint16)
"""Whole numbers that a texture holds; everything else is shown as float32."""


def compact(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same values in the smallest type that a browser shows and that holds them; what is not finite becomes the
    lowest value that is."""
    if array.dtype.newbyteorder("=") in SHOWN_TYPES:
        return array
    if array.dtype.kind == "f":
        finite = np.isfinite(array)
        if not finite.all():
            array = np.where(finite, array, array[finite].min(initial=np.inf) if finite.any() else 0)
    low, high = array.min(), array.max()
    if array.dtype.kind != "f" or (array == np.rint(array)).all():
        for kind in SHOWN_TYPES:
            if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
                return array.astype(kind)
    return array.astype(np.float32)


def nifti_parts(
    array: npt.NDArray[Any], affine: npt.NDArray[np.float64], *, labels: bool = False
) -> tuple[memoryview, memoryview]:
    """Header and voxels of ``(X, Y, Z)`` or ``(X, Y, Z, C)``, little-endian, x running fastest, not compressed."""
    import nibabel as nib

    header = nib.Nifti1Header(endianness="<")
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_zooms((*spacing_of(affine), *([1.0] * (array.ndim - 3))))
    header.set_sform(affine, 1)
    header.set_xyzt_units("mm")
    header["vox_offset"] = 352
    header["scl_slope"], header["scl_inter"] = 1, 0
    if labels:
        header.set_intent(LABEL_INTENT)
    stored = np.asfortranarray(array, dtype=array.dtype.newbyteorder("<"))
    return memoryview(header.binaryblock + bytes(4)), stored.reshape(-1, order="F").view(np.uint8).data
