"""Scans and label maps as they lie on disk: the array, the affine, and the header they are written back with."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medcontext.data.dicom import read_series, slice_files
from medcontext.data.formats import ENDINGS, READERS, Volume
from medcontext.data.labels import Labels
from medcontext.data.writing import write_metaimage, write_nifti, write_nrrd
from medcontext.errors import MedContextError
from medcontext.files import replacing

WRITTEN = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".mha")
"""File endings of label maps that can be written; with the first kind of NRRD, 3D Slicer shows names and colours."""

AFFINE_TOLERANCE = 0.02
"""Grids that belong together may lie this share of a voxel apart, which header rounding explains; more is an error."""


@dataclass(frozen=True)
class Scan:
    """A scan in its native grid.

    Attributes:
        path: Where it was read from: a file (the first, where every channel has one) or a folder of DICOM slices.
        array: ``(C, X, Y, Z)`` float32 intensities, in the file's own axis order; of DICOM in rescaled units.
        affine: ``(4, 4)`` float64, voxel index to millimetres in RAS+ world space.
        header: The NIfTI header, kept so that a prediction is written with the same geometry and units; else None.
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
    """The file's name without its ending, or the name of a folder of slices: ``scan_01.nii.gz`` is case ``scan_01``."""
    if path.is_dir():
        return path.name
    return path.name[: -len(_ending(path))]


def is_series(folder: Path) -> bool:
    """Whether a path is a folder with DICOM slices directly in it; one that may not be looked into is none."""
    try:
        return folder.is_dir() and next(slice_files(folder), None) is not None
    except PermissionError:
        return False


def scan_files(folder: Path) -> dict[str, Path]:
    """Case name -> path, for every readable kind of file directly in ``folder`` and every sub-folder of DICOM slices,
    sorted; what is hidden is passed over.

    Raises:
        MedContextError: There is no such folder, or two files of one case.
    """
    if not folder.is_dir():
        raise MedContextError("There is no such folder.", file=folder, remedy="check the path")
    found: dict[str, Path] = {}
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        # A link to what isn't there is a scan that can't be read, and no folder with one scan less.
        there = path.is_file() or (path.is_symlink() and not path.exists())
        readable = is_series(path) or (there and path.name.lower().endswith(ENDINGS))
        if not readable:
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


def voxels_apart(shape: tuple[int, ...], affine: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """How far two affines put the same voxel apart, at the worst corner of a grid of this (X, Y, Z) shape.

    Returns:
        In voxels, counted in the smallest spacing of ``affine``.
    """
    corners = np.array([(*corner, 1) for corner in product(*((0, size - 1) for size in shape))])
    apart = np.linalg.norm((corners @ (affine - other).T)[:, :3], axis=1)
    return float(apart.max()) / min(spacing_of(affine))


def read_scan(*paths: Path) -> Scan:
    """Read an image: one file or DICOM series with all channels, or one file per channel, all on the same grid.

    NIfTI holds channels along its fourth axis, NRRD and MetaImage in vectors or along a fourth axis.

    Raises:
        MedContextError: Absent, truncated, damaged, not 3D or 4D, a degenerate affine, or channels on several grids.
    """
    volumes = [_read(path) for path in paths]
    first, affine = paths[0], volumes[0].affine
    for path, volume in zip(paths, volumes, strict=True):
        expected = "3 axes, or 4 with the channels last" if len(paths) == 1 else "3 axes, one channel in each file"
        if volume.array.ndim not in (3, 4) or (len(paths) > 1 and volume.array.ndim != 3):
            raise _wrong_dimensions(path, volume.array.shape, expected)
        _require_same_grid(path, volume, first, volumes[0])
    try:
        if len(paths) > 1:
            array = np.stack([volume.array.astype(np.float32) for volume in volumes])
        else:
            array = volumes[0].array.astype(np.float32, order="F", copy=False)
            array = np.moveaxis(array[..., None] if array.ndim == 3 else array, -1, 0)
    except MemoryError:
        raise MedContextError(
            "There is too little memory to read this scan.",
            file=first,
            found=f"{len(paths)} file(s) of shape {volumes[0].array.shape}",
            remedy="end other programs, or cut the scan into parts",
        ) from None
    return Scan(first, array, affine, volumes[0].header)


def read_volume(path: Path) -> Volume:
    """Read an image as it is stored, which takes less memory: one file or DICOM series, in its own type of numbers.

    Returns:
        ``array`` ``(X, Y, Z)``, or ``(X, Y, Z, C)`` with the channels last.

    Raises:
        MedContextError: As :func:`read_scan`.
    """
    volume = _read(path)
    if volume.array.ndim not in (3, 4):
        raise _wrong_dimensions(path, volume.array.shape, "3 axes, or 4 with the channels last")
    return volume


def read_labels(path: Path) -> LabelMap:
    """Read a label map. Whole numbers stored as floats are accepted; fractions are not.

    Raises:
        MedContextError: As :func:`read_scan`, or values that are not whole numbers.
    """
    volume = _read(path)
    array = volume.array
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
    return LabelMap(path, array.astype(np.int32), volume.affine, volume.header)


def write_labels(path: Path, array: npt.NDArray[Any], like: Scan | LabelMap, labels: Labels | None = None) -> None:
    """Write ``array`` ``(X, Y, Z)`` as a label map in the place of ``like``, in the format that ``path`` says.

    NIfTI keeps codes and units of the NIfTI file that ``like`` was read from; NRRD and MetaImage lie for ITK where the
    file of ``like`` does, bit by bit (of another format, in NRRD, to the last bit but one).

    Args:
        path: File to write.
        array: Label numbers.
        like: The scan.
        labels: What the numbers mean, for formats that can say so (``.seg.nrrd``).

    Raises:
        MedContextError: A format that can't be written.
    """
    ending = _ending(path, WRITTEN)
    low, high = int(array.min(initial=0)), int(array.max(initial=0))
    kinds = (np.uint8, np.uint16, np.int32)
    stored = array.astype(next(k for k in kinds if np.iinfo(k).min <= low and high <= np.iinfo(k).max))
    with replacing(path) as temporary:
        if ending in (".nii.gz", ".nii"):
            write_nifti(temporary, stored, like.affine, like.header)
        elif ending == ".mha":
            write_metaimage(temporary, stored, like.affine, like.path)
        else:
            write_nrrd(temporary, stored, like.affine, like.path, labels if ending == ".seg.nrrd" else None)


def _ending(path: Path, endings: tuple[str, ...] = ENDINGS) -> str:
    """Capitals are read; the libraries that write know small letters alone."""
    name = path.name.lower() if endings == ENDINGS else path.name
    for ending in endings:
        if name.endswith(ending):
            return ending
    raise MedContextError(
        "This file is not of a kind that can be read or written.",
        file=path,
        expected=f"a name ending in {', '.join(endings)}, or a folder of DICOM slices",
        remedy="convert it to one of these; of a DICOM slice, give its folder",
    )


def _read(path: Path) -> Volume:
    """One volume; every way of failing becomes one error that names the file."""
    if not path.exists():
        raise MedContextError("There is no such file.", file=path, remedy="check the path")
    reader = read_series if path.is_dir() else READERS[_ending(path)]
    try:
        with np.errstate(all="ignore"):
            volume = reader(path)
    except MedContextError:
        raise
    except PermissionError as error:
        raise MedContextError(
            "This file can't be read.",
            file=path,
            found=str(error.strerror),
            remedy="give yourself the right to read it",
        ) from error
    except Exception as error:  # what libraries raise on damaged bytes is not documented
        raise MedContextError(
            "This file is truncated, damaged, or not what its ending says.",
            file=path,
            found=f"{type(error).__name__}: {' '.join(str(error).split())}"[:300],
            remedy="copy or download it again, or export it again in the format of its ending",
        ) from error
    array, affine = volume.array, volume.affine.astype(np.float64)
    if array.dtype.kind not in "biuf" or not array.size:
        raise MedContextError(
            "The voxels are not single numbers." if array.size else "The image has no voxels.",
            file=path,
            found=f"shape {array.shape}, type {array.dtype}",
            expected="one whole or real number per voxel",
            remedy="export it as a grey-value image; an RGB picture is none",
        )
    if not spans_space(affine):
        raise MedContextError(
            "The affine does not describe a grid in space.",
            file=path,
            found=f"affine {np.round(affine, 4).tolist()}",
            expected="an invertible affine, voxel index to mm, whose axes point to different sides of the body",
            remedy="export the file again from the original DICOM",
        )
    return Volume(array, affine, volume.header)


def spans_space(affine: npt.NDArray[np.float64]) -> bool:
    """Whether voxels have a volume, and axes that can be told apart by their anatomical directions."""
    import nibabel as nib

    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        return False
    return not np.isnan(nib.orientations.io_orientation(affine)).any()


def _require_same_grid(path: Path, volume: Volume, first: Path, reference: Volume) -> None:
    """Refuse a channel that lies on another grid than the first."""
    shape, expected = volume.array.shape[:3], reference.array.shape[:3]
    if shape != expected:
        raise MedContextError(
            "Channels differ in shape.",
            file=path,
            found=f"shape {shape}",
            expected=f"shape {expected}, as {first.name}",
            remedy="resample all channels of a case to the same grid",
        )
    apart = voxels_apart(shape, reference.affine, volume.affine)
    if apart > AFFINE_TOLERANCE:
        raise MedContextError(
            "Channels lie in different places.",
            file=path,
            found=f"affines that put the same voxel up to {apart:.3g} voxels apart",
            expected=f"the affine of {first.name}",
            remedy="resample all channels of a case to the same grid; if they do match, give them the same affine",
        )


def _wrong_dimensions(path: Path, shape: tuple[int, ...], expected: str) -> MedContextError:
    return MedContextError(
        "The array has the wrong number of axes.",
        file=path,
        found=f"shape {shape}",
        expected=expected,
        remedy="export one volume per file, channels along the fourth axis of an image",
    )
