"""Label maps as DICOM SEG, which belong to the series that they were predicted from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medcontext.data.dicom import ordered_slices, read_slice
from medcontext.data.labels import Labels
from medcontext.data.writing import segments
from medcontext.errors import MedContextError
from medcontext.files import replacing
from medcontext.version import __version__


def require_highdicom() -> None:
    """Refuse what can't be done without it, before the work.

    Raises:
        MedContextError: It is not installed.
    """
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise MedContextError(
            "DICOM SEG can't be written here.",
            found=str(error),
            expected="the package highdicom",
            remedy="pip install 'medcontext[seg]', or choose another format",
        ) from None


def write_seg(path: Path, array: npt.NDArray[np.int32], series: Path, labels: Labels) -> None:
    """Write ``(X, Y, Z)`` label numbers as a DICOM SEG with one binary segment for each structure.

    Segments are numbered from 1 in the order of the structures (DICOM allows no gaps), with their names, their numbers
    in the data set (as the segment's description) and the colours of the pictures. A region's segment is all of the
    region, what lies in inner ones included. What they are is coded as tissue, since names say no more.

    Args:
        path: File to write.
        array: In the grid of the series.
        series: Folder of its slices.
        labels: What the numbers mean.

    Raises:
        MedContextError: The series lacks what a SEG says of its patient and study.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    algorithm = hd.AlgorithmIdentificationSequence("medcontext", codes.DCM.ArtificialIntelligence, __version__)
    described = []
    for place, segment in enumerate(segments(labels), start=1):
        item = hd.seg.SegmentDescription(
            segment_number=place,
            segment_label=segment.name[:64],
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            display_color=hd.color.CIELabColor.from_rgb(*(255 * value for value in segment.colour)),
        )
        item.SegmentDescription = f"label {segment.number}"
        described.append(item)
    try:
        ordered = ordered_slices(series)
        slices = [read_slice(each.file, with_pixels=False) for each in ordered]
        apart = float(np.linalg.norm(ordered[-1].position - ordered[0].position)) / (len(ordered) - 1)
        for each in slices:  # highdicom (0.28) wants a thickness, which DICOM lets be absent
            each.SliceThickness = each.get("SliceThickness") or apart
            # Scanners and tools write other distances here than slices lie apart, and readers of the SEG believe it.
            each.SpacingBetweenSlices = apart
        made = hd.seg.Segmentation(
            source_images=slices,
            pixel_array=_pixels(array, labels),
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=described,
            series_instance_uid=hd.UID(),
            series_number=int(slices[0].get("SeriesNumber") or 0) + 1000,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="MedContext",
            manufacturer_model_name="medcontext",
            software_versions=__version__,
            device_serial_number="-",
            content_label="SEGMENTATION",
            series_description="Segmentation by medcontext",
        )
    except (AttributeError, ValueError, TypeError) as error:
        raise MedContextError(
            "No DICOM SEG can be made for this series.",
            file=series,
            found=str(error)[:300],
            expected="slices that say which patient, study and frame of reference they belong to",
            remedy="export the series again with these, or choose another format",
        ) from error
    # Names of labels and of patients may be in any script; the slices' own character set has room for theirs alone.
    made.SpecificCharacterSet = "ISO_IR 192"
    with replacing(path) as temporary:
        made.save_as(temporary)


def _pixels(array: npt.NDArray[np.int32], labels: Labels) -> npt.NDArray[np.integer[Any]]:
    """Segment numbers ``(Z, Y, X)``; of regions, which may contain one another, ``(Z, Y, X, K)`` of each 0 or 1."""
    numbers = [numbers for _, numbers in labels.structures.values()]
    if labels.regions:
        return np.stack([np.isin(array.T, each) for each in numbers], axis=-1).astype(np.uint8)
    numbered = np.zeros(array.T.shape, dtype=np.uint16)
    for place, each in enumerate(numbers, start=1):
        numbered[np.isin(array.T, each)] = place
    return numbered
