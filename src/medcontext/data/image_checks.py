"""What can be wrong with one image by itself: its intensities, and its place in space."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from medcontext.data.scan import Scan, spacing_of
from medcontext.errors import MedContextError

SMALLEST_SPACING, LARGEST_SPACING = 0.05, 20.0
"""Voxel sizes in mm beyond which a header is more likely wrong than right: finer than micro-imaging of living animals,
coarser than any slice distance in use."""

SMALLEST_EXTENT, LARGEST_EXTENT = 5.0, 2_500.0
"""In mm: nothing that is scanned is smaller along its longest side, nor longer than a whole body."""

SCALED = 10.0
"""CT values that all lie within plus and minus this are normalised: Hounsfield units of a body span hundreds."""

EIGHT_BITS = 255.0

Range = tuple[float, float]


def channel_file(scan: Scan, images: tuple[Path, ...], channel: int) -> Path:
    """The file that a channel comes from."""
    return images[channel] if len(images) == len(scan.array) else scan.path


def value_ranges(scan: Scan) -> tuple[Range, ...]:
    """Minimum and maximum of each channel; NaN or infinite where any voxel is."""
    with np.errstate(invalid="ignore"):
        return tuple((float(values.min()), float(values.max())) for values in scan.array)


def intensity_problems(scan: Scan, images: tuple[Path, ...], ranges: tuple[Range, ...]) -> list[MedContextError]:
    """Channels with values that are not finite, and constant ones."""
    problems = []
    for channel, (low, high) in enumerate(ranges):
        file = channel_file(scan, images, channel)
        if not np.isfinite((low, high)).all():
            bad = int((~np.isfinite(scan.array[channel])).sum())
            problems.append(
                MedContextError(
                    "The image holds values that are not finite.",
                    file=file,
                    found=f"{bad} voxels of NaN or infinity in channel {channel}",
                    expected="a number in every voxel",
                    remedy="export it again, or replace these voxels by a background value",
                )
            )
        elif low == high:
            problems.append(
                MedContextError(
                    "The image is constant.",
                    file=file,
                    found=f"every voxel of channel {channel} is {low:g}",
                    expected="intensities that differ",
                    remedy="export it again; nothing can be learned from it",
                )
            )
    return problems


def hounsfield_remarks(
    scan: Scan, images: tuple[Path, ...], ranges: tuple[Range, ...], modality: tuple[str, ...]
) -> list[MedContextError]:
    """Channels that are declared to be CT and can't be in Hounsfield units, where air is -1000 and fat about -100."""
    if len(modality) != len(ranges):
        return []
    remarks = []
    for channel, (low, high) in enumerate(ranges):
        if modality[channel].strip().upper() != "CT":
            continue
        if low >= -SCALED and high <= SCALED:
            why = "these look normalised; export the scan again from the DICOM"
        elif low >= 0 and high <= EIGHT_BITS:
            why = "these look like a windowed 8-bit picture; export the scan again from the DICOM"
        elif low >= 0:
            why = "apply the DICOM's rescale slope and intercept; unsigned CT is usually 1024 too high"
        else:
            continue
        remarks.append(
            MedContextError(
                "This CT is not in Hounsfield units.",
                file=channel_file(scan, images, channel),
                found=f"values from {low:g} to {high:g}",
                expected="air near -1000, water 0; or a modality other than CT in dataset.json",
                remedy=why,
            )
        )
    return remarks


def geometry_remarks(scan: Scan) -> list[MedContextError]:
    """Voxel sizes and extents that no scanner gives, as when metres or micrometres are taken for millimetres."""
    spacing = spacing_of(scan.affine)
    extent = [n * size for n, size in zip(scan.array.shape[1:], spacing, strict=True)]
    remarks = []
    if min(spacing) <= SMALLEST_SPACING or max(spacing) >= LARGEST_SPACING:
        remarks.append(
            MedContextError(
                "The voxel size is unlikely.",
                file=scan.path,
                found=f"{_listed(spacing)} mm",
                expected=f"between {SMALLEST_SPACING:g} and {LARGEST_SPACING:g} mm",
                remedy="see whether the header is in millimetres; correct its spacing",
            )
        )
    if max(extent) < SMALLEST_EXTENT or max(extent) > LARGEST_EXTENT:
        remarks.append(
            MedContextError(
                "The size of the scanned volume is unlikely.",
                file=scan.path,
                found=f"{_listed(extent)} mm",
                expected=f"a longest side between {SMALLEST_EXTENT:g} and {LARGEST_EXTENT:g} mm",
                remedy="see whether the header is in millimetres; correct its spacing",
            )
        )
    return remarks


def has_no_geometry(affine: npt.NDArray[np.float64], shape: tuple[int, ...]) -> bool:
    """Whether this is the affine of a file that nobody gave one.

    Such a file has voxels of 1 mm, unrotated axes, and world zero at its first voxel (or one before it, where voxels
    are counted from 1) or, as nibabel reads a NIfTI header without an affine, at its middle.
    https://nipy.org/nibabel/nifti_images.html#choosing-the-image-affine
    """
    if not np.array_equal(np.abs(affine[:3, :3]), np.eye(3)):
        return False
    middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
    return bool((np.abs(affine[:3, 3]) <= 1).all() or (np.abs(middle) <= 0.5).all())


def _listed(values: object) -> str:
    return " x ".join(f"{value:.3g}" for value in np.asarray(values))
