"""A DICOM series: a folder that holds one scan, one file per slice."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from medcontext.data import decompress
from medcontext.data.formats import ENDINGS, LPS, Volume
from medcontext.errors import MedContextError

if TYPE_CHECKING:
    from pydicom import Dataset

UNEVEN = 0.25
"""Slices may lie this share of their spacing off an even stack, which rounded positions explain; more is an error."""

OF_PIXELS = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelData",
    "SOPClassUID",
    "SOPInstanceUID",
)
"""All that a decoder has to know of a compressed slice."""


@dataclass(frozen=True)
class Slice:
    """What the header of a slice says.

    Attributes:
        file: The file.
        series: UID of its series, and the series' ``description``.
        position: Of the first pixel, in LPS mm.
        axes: ``(2, 3)``, LPS mm from column to column and from row to row.
        size: (columns, rows).
        packed: Whether its pixels are compressed.
    """

    file: Path
    series: str
    description: str
    position: npt.NDArray[np.float64]
    axes: npt.NDArray[np.float64]
    size: tuple[int, int]
    packed: bool


def read_series(folder: Path) -> Volume:
    """Read the one series in ``folder`` as ``(X, Y, Z)`` float32 in rescaled units (for CT: Hounsfield units).

    Slices are sorted by position; the third axis of the affine is the step between slices, so that an oblique or
    tilted stack lies where it was scanned.

    Raises:
        MedContextError: No series or several, a slice that can't be read or is missing, or an uneven stack.
    """
    slices = ordered_slices(folder)
    first, last = slices[0], slices[-1]
    array = np.empty((*first.size, len(slices)), dtype=np.float32, order="F")
    _fill(array, slices)
    affine = np.eye(4)
    affine[:3, :2] = first.axes.T
    affine[:3, 2] = (last.position - first.position) / (len(slices) - 1)
    affine[:3, 3] = first.position
    return Volume(array, LPS @ affine)


def ordered_slices(folder: Path) -> list[Slice]:
    """The slices of the one series in ``folder``, from first to last.

    Raises:
        MedContextError: As :func:`read_series`.
    """
    return _in_order(folder, [_header(file) for file in sorted(slice_files(folder))])


def slice_files(folder: Path) -> Iterator[Path]:
    """The DICOM files directly in a folder, in any order; told by names and magic bytes, which costs little."""
    for file in folder.iterdir():
        if not file.name.startswith(".") and file.name != "DICOMDIR" and file.is_file():
            if file.suffix.lower() == ".dcm":
                yield file
                continue
            if file.name.lower().endswith(ENDINGS):  # scans of other formats need not be opened to be told from slices
                continue
            try:
                with file.open("rb") as opened:
                    is_slice = opened.read(132)[128:] == b"DICM"
            except PermissionError:
                is_slice = True  # as far as anybody can tell; reading it says why not
            if is_slice:
                yield file


def read_slice(file: Path, with_pixels: bool) -> Dataset:
    """One parsed file, from memory: pydicom asks for as many bytes as a damaged length field says."""
    import pydicom

    try:
        return pydicom.dcmread(io.BytesIO(file.read_bytes()), stop_before_pixels=not with_pixels)
    except Exception as error:  # what it raises on damaged bytes is not documented
        raise _damaged(file, error) from error


def _header(file: Path) -> Slice:
    dataset = read_slice(file, with_pixels=False)
    try:
        if dataset.BitsAllocated not in (8, 16, 32):
            raise ValueError(f"{dataset.BitsAllocated} bits allocated; 8, 16 or 32 are needed")
        if dataset.SamplesPerPixel != 1 or int(dataset.get("NumberOfFrames") or 1) != 1:
            raise MedContextError(
                "This DICOM file is not one grey-value slice.",
                file=file,
                found=f"{dataset.SamplesPerPixel} samples a pixel, {dataset.get('NumberOfFrames') or 1} frames",
                expected="one slice a file, one number a pixel",
                remedy="convert the scan to NIfTI, for example with dcm2niix",
            )
        row, column = np.reshape(_floats(dataset, "ImageOrientationPatient", 6), (2, 3))
        between_rows, between_columns = _floats(dataset, "PixelSpacing", 2)
        return Slice(
            file=file,
            series=str(dataset.SeriesInstanceUID),
            description=str(dataset.get("SeriesDescription", "")),
            position=_floats(dataset, "ImagePositionPatient", 3),
            axes=np.stack([row * between_columns, column * between_rows]),
            size=(int(dataset.Columns), int(dataset.Rows)),
            packed=dataset.file_meta.TransferSyntaxUID.is_encapsulated,
        )
    except MedContextError:
        raise
    except AttributeError as error:
        raise MedContextError(
            "This DICOM file is not a slice with a place in space.",
            file=file,
            found=str(error),
            expected="position, orientation, spacing and size of the slice",
            remedy="remove it from the folder if it belongs to no scan (a report, a scout view), else export it again",
        ) from error
    except Exception as error:  # a damaged value
        raise _damaged(file, error) from error


def _floats(dataset: Dataset, name: str, count: int) -> npt.NDArray[np.float64]:
    if getattr(dataset, name) is None:
        raise AttributeError(f"{name} is empty")
    values = np.array([float(value) for value in getattr(dataset, name)])
    if len(values) != count or not np.isfinite(values).all():
        raise ValueError(f"{name} is {values.tolist()}; {count} finite numbers are needed")
    return values


def _in_order(folder: Path, slices: Sequence[Slice]) -> list[Slice]:
    """The slices from first to last, after it is sure that they make one even stack."""
    _require_one_series(folder, slices)
    first = slices[0]
    for each in slices:
        if each.size != first.size or np.abs(each.axes - first.axes).max() > 1e-3 * np.abs(first.axes).max():
            raise MedContextError(
                "A slice of the series is unlike the others.",
                file=each.file,
                found=f"size {each.size}, axes {each.axes.round(4).tolist()} mm per pixel",
                expected=f"as {first.file.name}: size {first.size}, axes {first.axes.round(4).tolist()}",
                remedy="remove it from the folder if it is a scout view, else export the series again",
            )
    normal = np.cross(*first.axes)
    normal /= np.linalg.norm(normal)
    ordered = sorted(slices, key=lambda each: float(each.position @ normal))
    _require_even(folder, ordered, normal)
    return ordered


def _require_one_series(folder: Path, slices: Sequence[Slice]) -> None:
    series: dict[str, list[Slice]] = {}
    for each in slices:
        series.setdefault(each.series, []).append(each)
    if len(series) > 1:
        raise MedContextError(
            "This folder holds several DICOM series.",
            file=folder,
            found="; ".join(
                f"{len(of_one)} slices of {uid} {of_one[0].description}".strip() for uid, of_one in series.items()
            ),
            expected="the slices of one series",
            remedy="give every series a folder of its own",
        )
    if len(slices) < 2:
        raise MedContextError(
            "There is no DICOM series in this folder.",
            file=folder,
            found=f"{len(slices)} slices",
            expected="at least two slices",
            remedy="put all slices of one series directly into the folder",
        )


def _require_even(folder: Path, ordered: Sequence[Slice], normal: npt.NDArray[np.float64]) -> None:
    positions = np.array([each.position for each in ordered])
    steps = np.diff(positions @ normal)
    usual = float(np.median(steps))
    worst = int(np.argmax(np.abs(steps - usual)))
    one, other = ordered[worst], ordered[worst + 1]
    if steps.min() < 1e-3:
        worst = int(np.argmin(steps))
        raise MedContextError(
            "Two slices lie in the same place.",
            file=folder,
            found=f"{ordered[worst].file.name} and {ordered[worst + 1].file.name}",
            expected="one slice for each position",
            remedy="keep one phase, echo or copy of the scan in the folder",
        )
    if abs(steps[worst] - usual) > UNEVEN * usual:
        raise MedContextError(
            "Slices are missing, or unevenly spaced.",
            file=folder,
            found=f"{steps[worst]:.4g} mm between {one.file.name} and {other.file.name}, {usual:.4g} mm elsewhere",
            expected="the same distance between all slices",
            remedy="export the whole series again; if it was scanned so, resample it to even spacing first",
        )
    line = np.linspace(positions[0], positions[-1], len(positions))
    off = np.linalg.norm(positions - line, axis=1)
    if off.max() > UNEVEN * usual + 1e-3:
        raise MedContextError(
            "The slices are not stacked evenly along a line.",
            file=ordered[int(off.argmax())].file,
            found=f"this slice lies {off.max():.4g} mm off it",
            expected="slices one behind the other at even distances",
            remedy="export the series again; if it was scanned so, resample it to even spacing first",
        )


def _fill(array: npt.NDArray[np.float32], slices: Sequence[Slice]) -> None:
    """Put the slices, in rescaled units, into ``(X, Y, Z)``."""
    from pydicom.pixels.processing import apply_modality_lut

    with tempfile.TemporaryDirectory() as scratch:
        unpacked = _decompressed(Path(scratch), slices)
        for index, each in enumerate(slices):
            dataset = read_slice(each.file, with_pixels=True)
            try:
                stored = np.load(unpacked[each.file]) if each.file in unpacked else dataset.pixel_array
                array[..., index] = np.reshape(apply_modality_lut(stored, dataset), each.size[::-1]).T
            except Exception as error:  # a damaged value
                raise _damaged(each.file, error) from error


def _decompressed(scratch: Path, slices: Sequence[Slice]) -> dict[Path, Path]:
    """Files of stored values of those slices that are compressed.

    Made by GDCM, in a process of its own, from files with nothing in them but the pixels: damage to a slice can make it
    write where it must not, and damage elsewhere in a file, fill all memory.
    """
    import pydicom

    unpacked = {}
    for index, each in enumerate(slices):
        if not each.packed:
            continue
        dataset = read_slice(each.file, with_pixels=True)
        try:
            bare = pydicom.Dataset()
            for name in OF_PIXELS:
                bare[name] = dataset[name]
            bare.file_meta = pydicom.dataset.FileMetaDataset()
            bare.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
            bare.save_as(scratch / f"{index}.dcm", enforce_file_format=True)
        except Exception as error:  # a damaged value
            raise _damaged(each.file, error) from error
        unpacked[each.file] = scratch / f"{index}.npy"
    if unpacked:
        subprocess.run(
            [sys.executable, "-P", decompress.__file__, str(scratch)], stderr=subprocess.DEVNULL, check=False
        )
        for file, values in unpacked.items():
            if not values.exists():
                raise _damaged(file, RuntimeError("GDCM can't decompress it"))
    return unpacked


def _damaged(file: Path, error: Exception) -> MedContextError:
    return MedContextError(
        "This DICOM file is damaged, or of a kind that can't be read.",
        file=file,
        found=f"{type(error).__name__}: {' '.join(str(error).split())}"[:300],
        remedy="export it again, or convert the scan to NIfTI, for example with dcm2niix",
    )
