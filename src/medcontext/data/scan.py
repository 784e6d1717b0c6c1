"""Scans and label maps as they lie on disk: the array, the affine, and the header they are written back with."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medcontext.errors import MedContextError
from medcontext.files import replacing

ENDINGS = (".nii.gz", ".nii")
"""File endings that can be read and written."""


@dataclass(frozen=True)
class Scan:
    """A scan in its native grid.

    Attributes:
        path: Where it was read from.
        array: ``(C, X, Y, Z)`` float32 intensities, in the file's own axis order.
        affine: ``(4, 4)`` float64, voxel index to millimetres in RAS+ world space.
        header: The NIfTI header, kept so that a prediction is written with the same geometry and units.
    """

    path: Path
    array: npt.NDArray[np.float32]
    affine: npt.NDArray[np.float64]
    header: Any


@dataclass(frozen=True)
class LabelMap:
    """A label map in its native grid: ``array`` is ``(X, Y, Z)`` int32; the rest as in :class:`Scan`."""

    path: Path
    array: npt.NDArray[np.int32]
    affine: npt.NDArray[np.float64]
    header: Any


def case_name(path: Path) -> str:
    """The file's name without its ending: ``scan_01.nii.gz`` is case ``scan_01``."""
    for ending in ENDINGS:
        if path.name.endswith(ending):
            return path.name.removesuffix(ending)
    raise MedContextError(
        "This file is not of a kind that can be read.", file=path, expected=f"a name ending in {' or '.join(ENDINGS)}"
    )


def scan_files(folder: Path) -> dict[str, Path]:
    """Case name -> file, for every readable kind of file directly in ``folder``, sorted; hidden files are passed over.

    Raises:
        MedContextError: There is no such folder, or two files of one case.
    """
    if not folder.is_dir():
        raise MedContextError("There is no such folder.", file=folder, remedy="check the path")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.name.endswith(ENDINGS):
            continue
        name = case_name(path)
        if name in found:
            raise MedContextError(
                "Two files are of the same case.", file=path, found=f"also {found[name].name}", remedy="remove one"
            )
        found[name] = path
    return found


def spacing_of(affine: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Voxel size in mm along each array axis."""
    x, y, z = (float(size) for size in np.linalg.norm(affine[:3, :3], axis=0))
    return x, y, z


def read_scan(path: Path) -> Scan:
    """Read an image of one channel ``(X, Y, Z)`` or several ``(X, Y, Z, C)``.

    Raises:
        MedContextError: Absent, truncated, not NIfTI, not 3D or 4D, or a degenerate affine.
    """
    image, array = _read(path)
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4:
        raise _wrong_dimensions(path, array.shape, "3 axes, or 4 with the channels last")
    return Scan(path, np.moveaxis(array, -1, 0).astype(np.float32), image.affine.astype(np.float64), image.header)


def read_labels(path: Path) -> LabelMap:
    """Read a label map. Whole numbers stored as floats are accepted; fractions are not.

    Raises:
        MedContextError: As :func:`read_scan`, or values that are not whole numbers.
    """
    image, array = _read(path)
    if array.ndim == 4 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3:
        raise _wrong_dimensions(path, array.shape, "3 axes")
    if not np.issubdtype(array.dtype, np.integer):
        whole = np.isfinite(array) & (array == np.round(array))
        if not whole.all():
            example = array[~whole].ravel()[0]
            raise MedContextError(
                "Label values are not whole numbers.",
                file=path,
                found=f"{int((~whole).sum())} such voxels, for example {example:g}",
                expected="one whole number per voxel",
                remedy="export the label map again; if it was resampled, use nearest-neighbour interpolation",
            )
    if max(float(array.max()), -float(array.min())) > np.iinfo(np.int32).max:
        raise MedContextError(
            "Label numbers are too large.",
            file=path,
            found=f"{array.max():g}",
            expected="at most 2147483647",
            remedy="give the labels smaller numbers",
        )
    return LabelMap(path, array.astype(np.int32), image.affine.astype(np.float64), image.header)


def write_labels(path: Path, array: npt.NDArray[Any], like: Scan | LabelMap) -> None:
    """Write ``array`` ``(X, Y, Z)`` as a label map with the geometry (affine, codes, units) of ``like``."""
    import nibabel as nib

    header = like.header.copy()
    header.set_data_shape(array.shape)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    kind = next(kind for kind in (np.uint8, np.uint16, np.int32) if array.max(initial=0) <= np.iinfo(kind).max)
    header.set_data_dtype(kind)
    image = nib.Nifti1Image(array.astype(kind), like.affine, header)
    with replacing(path) as temporary:
        nib.save(image, temporary)


def _read(path: Path) -> tuple[Any, npt.NDArray[Any]]:
    """The nibabel image and its values; every way of failing becomes one error that names the file."""
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    if not path.is_file():
        raise MedContextError("There is no such file.", file=path, remedy="check the path")
    case_name(path)
    try:
        image: Any = nib.load(path)
        array = np.asanyarray(image.dataobj)
    except (ImageFileError, HeaderDataError) as error:
        raise MedContextError(
            "This file is not a readable NIfTI image.", file=path, found=str(error), remedy="export it again as NIfTI"
        ) from error
    except (EOFError, OSError, ValueError, zlib.error, OverflowError, MemoryError) as error:
        raise MedContextError(
            "This file is truncated or damaged.",
            file=path,
            found=f"{type(error).__name__}: {error}",
            remedy="copy or download it again",
        ) from error
    if array.dtype.kind not in "biuf" or not array.size:
        raise MedContextError(
            "The voxels are not single numbers." if array.size else "The image has no voxels.",
            file=path,
            found=f"shape {array.shape}, type {array.dtype}",
            expected="one whole or real number per voxel",
            remedy="export it as a grey-value image; an RGB picture is none",
        )
    if image.affine is None or not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-12:
        raise MedContextError(
            "The affine does not describe a grid in space.",
            file=path,
            found=f"affine {np.round(image.affine, 4).tolist()}",
            expected="an invertible affine, voxel index to mm",
            remedy="export the file again from the original DICOM",
        )
    return image, array


def _wrong_dimensions(path: Path, shape: tuple[int, ...], expected: str) -> MedContextError:
    return MedContextError(
        "The array has the wrong number of axes.",
        file=path,
        found=f"shape {shape}",
        expected=expected,
        remedy="export one volume per file, channels along the fourth axis of an image",
    )
