"""Predictions as files, in the format that was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medcontext.data.labels import Labels
from medcontext.data.scan import Scan, write_labels
from medcontext.data.writing import write_nifti
from medcontext.errors import MedContextError
from medcontext.files import replacing
from medcontext.inference.dicom_seg import require_highdicom, write_seg
from medcontext.inference.scans import Scans

Format = Literal["nii.gz", "nrrd", "seg.nrrd", "mha", "dcm", "same"]
"""Of label maps: ``seg.nrrd`` has names and colours for 3D Slicer, ``dcm`` is DICOM SEG, ``same`` is as the scan."""


def ending_for(kind: Format, scan: Path) -> str:
    """File ending of a label map in a format, for a scan."""
    if kind != "same":
        return f".{kind}"
    if scan.is_dir():
        return ".dcm"
    if scan.suffix.lower() in (".nrrd", ".nhdr"):
        return ".nrrd"
    return ".mha" if scan.suffix.lower() in (".mha", ".mhd") else ".nii.gz"


def require_format(kind: Format, scans: Scans) -> None:
    """Refuse a format that can't be written for these scans, before the work.

    Raises:
        MedContextError: DICOM SEG of a scan that is no DICOM series, or without the package that writes it.
    """
    as_seg = [paths[0] for paths in scans.values() if ending_for(kind, paths[0]) == ".dcm"]
    if as_seg:
        require_highdicom()
    for scan in as_seg:
        if not scan.is_dir():
            raise MedContextError(
                "A DICOM SEG belongs to a DICOM series, and this scan is none.",
                file=scan,
                expected="a folder of DICOM slices",
                remedy="predict from the DICOM series, or choose another format",
            )


def write_values(file: Path, values: npt.NDArray[Any], like: Scan) -> None:
    """Write ``(n, X, Y, Z)`` values as float32 NIfTI ``(X, Y, Z, n)``, or ``(X, Y, Z)`` of one, in the scan's place."""
    channels_last = np.moveaxis(values, 0, -1)
    file.parent.mkdir(exist_ok=True)
    with replacing(file) as temporary:
        array = channels_last if len(values) > 1 else channels_last[..., 0]
        write_nifti(temporary, array, like.affine, like.header, np.float32)


def write_prediction(file: Path, array: npt.NDArray[Any], like: Scan, labels: Labels) -> None:
    """Write a label map in the format that its name says, in the place of its scan; all of it or nothing.

    Args:
        file: To write.
        array: ``(X, Y, Z)`` label numbers.
        like: The scan; its voxels aren't needed.
        labels: What the numbers mean.
    """
    if file.name.endswith(".dcm"):
        write_seg(file, array, like.path, labels)
    else:
        write_labels(file, array, like, labels)
