"""Label maps as files, each placed exactly as the scan that it belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medcontext.data.formats import LPS, Numbers, metaimage_place, text_fields
from medcontext.data.labels import Labels

NRRD_PLACE = (
    *("space", "space dimension", "space units", "space directions", "space origin", "measurement frame"),
    *("spacings", "axis mins", "axis maxs", "centers", "centerings"),
)
"""Fields of a NRRD header that say where its voxels lie, in an order in which they may stand."""


@dataclass(frozen=True)
class Segment:
    """How a structure is shown: its number in label maps, its name, and a colour of red, green and blue, 0 to 1."""

    number: int
    name: str
    colour: tuple[float, float, float]


def segments(labels: Labels) -> Iterator[Segment]:
    """The structures of a data set; the first of them in the colours of the pictures."""
    from matplotlib.colors import to_rgb

    from medcontext.drawing import label_colour

    for place, (number, (name, _)) in enumerate(labels.structures.items()):
        yield Segment(number, name, to_rgb(label_colour(place)))


def write_nifti(path: Path, array: npt.NDArray[Any], affine: Numbers, header: Any, stored: Any = None) -> None:
    """Write ``(X, Y, Z)`` or ``(X, Y, Z, n)`` as NIfTI of the version, codes and units of ``header``.

    Args:
        path: File.
        array: Values.
        affine: Of the scan.
        header: Of the scan; None: NIfTI-1 in scanner space, mm.
        stored: Type of the numbers in the file; None: the array's.
    """
    import nibabel as nib

    if header is None:
        header = nib.Nifti1Header()
        header.set_sform(affine, 1)
        header.set_qform(affine, 1)
        header.set_xyzt_units("mm")
    else:
        header = header.copy()
        # Of several channels: label maps of vectors are none for ITK.
        header.set_intent("none")
    header.set_data_shape(array.shape)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    header.set_data_dtype(stored or array.dtype)
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    nib.save(kind(array, affine, header), path)


def write_metaimage(path: Path, array: npt.NDArray[Any], affine: Numbers, scan: Path) -> None:
    """Write ``(X, Y, Z)`` as compressed MetaImage, in the place where ITK sees the scan: the same bits."""
    import SimpleITK as sitk  # noqa: N813

    direction, spacing, origin = _place(scan, affine)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing(spacing.tolist())
    image.SetDirection(direction.ravel().tolist())
    image.SetOrigin(origin.tolist())
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
    except RuntimeError as error:
        # What ITK raises where the disk is full, which other writers say in this way.
        raise OSError(str(error).rpartition("Reason: ")[2].strip()) from error


def write_nrrd(path: Path, array: npt.NDArray[Any], affine: Numbers, scan: Path, labels: Labels | None = None) -> None:
    """Write ``(X, Y, Z)`` as gzipped NRRD.

    Not by SimpleITK: it multiplies directions by spacings and back, so that they come out a bit different. The place of
    a scan that is a NRRD itself is copied as it stands there. http://teem.sourceforge.net/nrrd/format.html

    Args:
        path: File.
        array: Label numbers.
        affine: Of the scan.
        scan: Its file, if there is one.
        labels: Their names and colours are put into the header, in the way of 3D Slicer.
    """
    from isal import igzip

    number = {"i": "int", "u": "uint"}[array.dtype.kind] + str(8 * array.dtype.itemsize)
    fields = {
        "type": number,
        "dimension": "3",
        "sizes": " ".join(map(str, array.shape)),
        "kinds": "domain domain domain",
        "endian": "little",
        "encoding": "gzip",
        **_nrrd_place(scan, affine),
    }
    lines = ["NRRD0005", *(f"{name}: {value}" for name, value in fields.items())]
    lines += [] if labels is None else _slicer_fields(array.shape, labels)
    with path.open("wb") as file:
        file.write(("\n".join(lines) + "\n\n").encode())
        with igzip.IGzipFile("", "wb", fileobj=file, mtime=0) as packed:
            packed.write(array.astype(array.dtype.newbyteorder("<")).tobytes(order="F"))


def _place(scan: Path, affine: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Direction (its columns are the axes), spacing and origin in LPS mm, as ITK reads them from the scan's file; of a
    series, or where ITK can't (it refuses sheared NIfTI), by the affine."""
    import SimpleITK as sitk  # noqa: N813

    found = None
    if scan.suffix.lower() in (".mha", ".mhd") and scan.is_file():
        found = metaimage_place(text_fields(scan, "=", last="elementdatafile")[0])
    elif scan.is_file():
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(scan))
        try:
            reader.ReadImageInformation()
        except RuntimeError:
            pass
        else:
            n = reader.GetDimension()
            if n >= 3:  # a single slice of several channels has 2 for ITK
                found = (
                    np.reshape(reader.GetDirection(), (n, n)),
                    np.array(reader.GetSpacing()),
                    np.array(reader.GetOrigin()),
                )
    if found is not None:
        direction, spacing, origin = found
        return direction[:3, :3], spacing[:3], origin[:3]
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    return lps[:3, :3] / spacing, spacing, lps[:3, 3]


def _nrrd_place(scan: Path, affine: Numbers) -> dict[str, str]:
    if scan.suffix.lower() in (".nrrd", ".nhdr") and scan.is_file():
        fields, _ = text_fields(scan, ":", last="\n")
        if fields["dimension"] == "3":
            return {name: fields[name] for name in NRRD_PLACE if name in fields}
    direction, spacing, origin = _place(scan, affine)
    return {
        "space": "left-posterior-superior",
        "space directions": " ".join(_vector(axis) for axis in (direction * spacing).T),
        "space origin": _vector(origin),
    }


def _vector(values: Numbers) -> str:
    return f"({','.join(repr(float(value)) for value in values)})"


def _slicer_fields(shape: tuple[int, ...], labels: Labels) -> Iterator[str]:
    """Names and colours of the segments, as 3D Slicer keeps them.

    https://slicer.readthedocs.io/en/latest/developer_guide/modules/segmentations.html
    """
    extent = " ".join(f"0 {size - 1}" for size in shape)
    yield "Segmentation_ContainedRepresentationNames:=Binary labelmap|"
    yield "Segmentation_MasterRepresentation:=Binary labelmap"
    yield "Segmentation_ReferenceImageExtentOffset:=0 0 0"
    for place, segment in enumerate(segments(labels)):
        values = {
            "ID": f"Segment_{segment.number}",
            "Name": " ".join(segment.name.split()),
            "Color": " ".join(f"{value:.6g}" for value in segment.colour),
            "LabelValue": segment.number,
            "Layer": 0,
            "Extent": extent,
            "Tags": "|",
        }
        yield from (f"Segment{place}_{name}:={value}" for name, value in values.items())
