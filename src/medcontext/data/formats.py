"""File formats of one volume per file: NIfTI, NRRD and MetaImage, with their geometry as an affine to RAS+ mm.

A damaged header may declare any size, so nothing is read by what a header says alone: memory grows with the bytes
that are there. What a library raises on damaged bytes is not documented; the caller turns it into one error.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medcontext.errors import MedContextError
from medcontext.memory import GIB, free_memory

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""ITK and DICOM count millimetres to the left and back, NIfTI to the right and front."""

HEADER_BYTES = 1 << 22
"""Longest text header; Slicer keeps the names of all segments in one."""

CHUNK = 1 << 20

DEFLATE_MOST = 1032
"""No byte of a compressed file becomes more than so many (https://zlib.net/zlib_tech.html)."""

METAIMAGE_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
"""MetaImage's names of numbers; its long has four bytes on every machine."""

NRRD_DOMAINS = ("domain", "space", "time", "???")
"""Kinds of NRRD axes that lie in space for ITK; the others (vector, list, ...) hold channels."""


Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Volume:
    """What a file holds: ``array`` ``(X, Y, Z)`` or ``(X, Y, Z, C)`` as stored, ``affine`` to RAS+ mm, NIfTI header."""

    array: npt.NDArray[Any]
    affine: Numbers
    header: Any = None


def read_nifti(path: Path) -> Volume:
    """Read NIfTI-1 or NIfTI-2 with its scaling applied; nibabel says what the header means, isal decompresses."""
    import nibabel as nib
    from isal import igzip
    from nibabel.volumeutils import apply_read_scaling

    with igzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
        start = stream.read(nib.Nifti2Header.sizeof_hdr)
        kind: Any = nib.Nifti2Header if nib.Nifti2Header.may_contain_header(start) else nib.Nifti1Header
        header = kind(start[: kind.sizeof_hdr])
        _require_voxel_size(path, kind(start[: kind.sizeof_hdr], check=False))
        shape, dtype, offset = header.get_data_shape(), header.get_data_dtype(), header.get_data_offset()
        size = offset + _size(path, shape, dtype)
        _require_memory(path, size, dtype)
        data = _at_most(stream, size + 1, bytearray(start))
    _require_length(path, len(data), size)
    array: npt.NDArray[Any] = np.ndarray(shape, dtype, data, offset, order="F")
    header = kind.from_fileobj(io.BytesIO(data[:offset]))  # once more, for its extensions
    slope, intercept = header.get_slope_inter()
    if dtype.kind in "iuf" and slope is not None:
        array = apply_read_scaling(array, np.float64(slope), np.float64(intercept))
    if array.ndim == 5 and array.shape[3] == 1:  # ITK leaves the fourth axis to time
        array = array[:, :, :, 0]
    return Volume(array, header.get_best_affine(), header)


def _require_voxel_size(path: Path, header: Any) -> None:
    """Refuse a size of 0 where it counts, which nibabel would take for 1 mm."""
    sizes = header["pixdim"][1:4]
    if header["sform_code"] == 0 and not sizes.all():
        raise MedContextError(
            "The header gives a voxel no size.",
            file=path,
            found=f"voxels of {' x '.join(f'{size:g}' for size in sizes)} mm",
            expected="sizes above 0",
            remedy="export it again from the DICOM, or correct the spacing in its header",
        )


def read_nrrd(path: Path) -> Volume:
    """Read NRRD (``.nrrd``, or ``.nhdr`` with one data file beside it), raw or gzip; SimpleITK says where it lies."""
    import SimpleITK as sitk  # noqa: N813
    from isal import igzip

    fields, start = text_fields(path, ":", last="\n")
    if "color" in fields.get("kinds", "") or fields.get("byte skip", "0") != "0" or fields.get("line skip", "0") != "0":
        raise _unsupported(path, "colours, or a data file with bytes to skip", "numbers alone")
    encoding = fields.get("encoding", "none").lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise _unsupported(path, f"encoding {encoding}", "encoding raw or gzip")
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO")
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    number = re.fullmatch(
        r"(?:vector of )?(\d+)-bit (signed|unsigned|float).*", sitk.GetPixelIDValueAsString(reader.GetPixelID())
    )
    if number is None:
        raise _unsupported(path, f"type {fields.get('type')}", "real numbers")
    order = ">" if fields.get("endian", "little").lower() == "big" else "<"
    dtype = np.dtype(f"{order}{number[2][0].replace('s', 'i')}{int(number[1]) // 8}")
    shape = tuple(int(length) for length in fields["sizes"].split())
    source = fields.get("data file", fields.get("datafile"))
    beside = None if source is None else _beside(path, source)
    size = _size(path, shape, dtype)
    _require_memory(beside or path, size, dtype)
    with (beside or path).open("rb") as file:
        file.seek(0 if beside else start)
        data = _at_most(file if encoding == "raw" else igzip.open(file), size + 1)
    _require_length(beside or path, len(data), size)
    array: npt.NDArray[Any] = np.ndarray(shape, dtype, data, order="F")
    if reader.GetNumberOfComponents() > 1:
        kinds = fields["kinds"].split()
        array = np.moveaxis(array, next(axis for axis, kind in enumerate(kinds) if kind not in NRRD_DOMAINS), -1)
    n = reader.GetDimension()
    if array.shape[:n] != reader.GetSize():
        raise _unsupported(path, f"sizes {fields['sizes']}", f"axes in the order of {reader.GetSize()}")
    axes = np.reshape(reader.GetDirection(), (n, n)) * reader.GetSpacing()
    return Volume(array, _affine(axes, reader.GetOrigin()))


def read_metaimage(path: Path) -> Volume:
    """Read MetaImage (``.mha``, or ``.mhd`` with one data file beside it), binary, compressed or not.

    Not by SimpleITK: its reader of this format ends the whole process on some damaged headers (2.5.7).
    """
    from isal import isal_zlib

    fields, start = text_fields(path, "=", last="elementdatafile")
    shape = tuple(int(length) for length in fields["dimsize"].split())
    if fields["elementtype"] not in METAIMAGE_TYPES or fields.get("binarydata", "True").lower() != "true":
        raise _unsupported(path, f"elements {fields['elementtype']}, or text", "binary numbers")
    big = fields.get("elementbyteordermsb", fields.get("binarydatabyteordermsb", "False")).lower() == "true"
    dtype = np.dtype((">" if big else "<") + METAIMAGE_TYPES[fields["elementtype"]])
    channels = int(fields.get("elementnumberofchannels", "1"))
    stored = (channels, *shape) if channels > 1 else shape
    size = _size(path, stored, dtype)
    source = fields["elementdatafile"]
    beside = None if source.lower() == "local" else _beside(path, source)
    _require_memory(beside or path, size, dtype)
    with (beside or path).open("rb") as file:
        file.seek(max(0, int(fields.get("headersize", "0"))) if beside else start)
        if fields.get("compresseddata", "False").lower() == "true":
            worker = isal_zlib.decompressobj()
            data = bytearray(worker.decompress(file.read(), size + 1))
            whole = worker.eof
        else:
            data, whole = _at_most(file, size + 1), True
    _require_length(beside or path, len(data), size, whole)
    array: npt.NDArray[Any] = np.ndarray(stored, dtype, data, order="F")
    if channels > 1:
        array = np.moveaxis(array, 0, -1)
    direction, spacing, origin = metaimage_place(fields)
    return Volume(array, _affine(direction * spacing, origin))


def metaimage_place(fields: Mapping[str, str]) -> tuple[Numbers, Numbers, Numbers]:
    """Direction (its columns are the axes), spacing and origin in LPS mm, as a MetaImage's header gives them."""
    n = len(fields["dimsize"].split())
    matrix = _numbers(fields, ("transformmatrix", "rotation", "orientation"), n * n, np.eye(n)).reshape(n, n)
    spacing = _numbers(fields, ("elementspacing", "elementsize"), n, np.ones(n))
    return matrix.T, spacing, _numbers(fields, ("offset", "position", "origin"), n, np.zeros(n))


def _size(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Bytes of the voxels that a header declares."""
    if not shape or min(shape) < 1:
        raise MedContextError(
            "The image has no voxels.", file=path, found=f"shape {shape}", remedy="export it again from its source"
        )
    return math.prod(shape) * dtype.itemsize


def _require_memory(path: Path, size: int, dtype: np.dtype[Any]) -> None:
    """Refuse voxels that the file may hold and the memory can't, as they are stored and, beside that, as 4 bytes each.
    A file too small for them is found out by reading."""
    free, needed = free_memory("cpu"), size
    if dtype != np.float32:
        needed += size // dtype.itemsize * 4
    if free < needed and size <= DEFLATE_MOST * path.stat().st_size:
        raise MedContextError(
            "There is too little memory to read this scan.",
            file=path,
            found=f"{free / GIB:.1f} GiB free",
            expected=f"{needed / GIB:,.1f} GiB, by what its header declares",
            remedy="see whether the file is what it should be; if it is, end other programs, or cut it into parts",
        )


def _at_most(stream: Any, most: int, data: bytearray | None = None) -> bytearray:
    """Append to ``data`` what a stream holds until it is ``most`` bytes long; memory grows with what is there."""
    data = bytearray() if data is None else data
    while chunk := stream.read(max(0, min(CHUNK, most - len(data)))):
        data += chunk
    return data


def _require_length(path: Path, found: int, declared: int, whole: bool = True) -> None:
    """Refuse voxels that are fewer or more than the header declares: one of the two is damaged."""
    if found != declared or not whole:
        raise MedContextError(
            "This file is truncated or damaged: its header and its voxels disagree.",
            file=path,
            found="more than that" if found > declared else f"{found:,} bytes",
            expected=f"{declared:,} bytes, as the header declares",
            remedy="copy, download or export it again",
        )


def text_fields(path: Path, sign: str, last: str) -> tuple[dict[str, str], int]:
    """The fields of a text header, one ``name<sign> value`` a line, names in small letters; and where the header ends:
    behind the line that begins with ``last``, or behind an empty one.
    """
    fields = {}
    with path.open("rb") as file:
        while line := file.readline(HEADER_BYTES).decode("latin-1").strip():
            if sign in line and not line.startswith("#") and ":=" not in line:
                name, _, value = line.partition(sign)
                fields[name.strip().lower()] = value.strip()
            if line.lower().startswith(last) or file.tell() > HEADER_BYTES:
                break
        return fields, file.tell()


def _numbers(fields: Mapping[str, str], names: tuple[str, ...], count: int, default: Numbers) -> Numbers:
    """The numbers of the first of these fields that is there."""
    for name in names:
        if name in fields:
            numbers = np.array(fields[name].split(), dtype=np.float64)
            if len(numbers) != count:
                raise ValueError(f"{name} = {fields[name]}: {count} numbers are needed")
            return numbers
    return default


def _beside(path: Path, name: str) -> Path:
    """The data file that a header names: one file in the header's own folder, and no other place."""
    if Path(name).name != name or not (path.parent / name).is_file():
        raise MedContextError(
            "The file of the voxels is missing.",
            file=path,
            found=f"the header names {name!r}",
            expected="one file in the same folder",
            remedy="put both files into one folder under their first names, or export the scan as one file",
        )
    return path.parent / name


def _affine(axes: Numbers, origin: Any) -> Numbers:
    """Voxel index to RAS+ mm, from axes (columns, mm per voxel) and origin in LPS; a fourth axis holds channels."""
    n = min(3, len(axes))
    affine = np.eye(4)
    affine[:n, :n] = axes[:n, :n]
    affine[:n, 3] = origin[:n]
    return LPS @ affine


def _unsupported(path: Path, found: str, expected: str) -> MedContextError:
    return MedContextError(
        "This kind of file can't be read.",
        file=path,
        found=found,
        expected=expected,
        remedy="convert it, for example to .nii.gz with 3D Slicer or ITK-SNAP",
    )


READERS = {
    ".nii.gz": read_nifti,
    ".nii": read_nifti,
    ".seg.nrrd": read_nrrd,
    ".nrrd": read_nrrd,
    ".nhdr": read_nrrd,
    ".mha": read_metaimage,
    ".mhd": read_metaimage,
}

ENDINGS = tuple(READERS)
"""File endings of scans that can be read; beside them, a folder of DICOM slices is a scan."""
