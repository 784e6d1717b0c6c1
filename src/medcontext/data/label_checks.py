"""What can be wrong with one label map, by itself and beside its image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from medcontext.data.facts import is_structure
from medcontext.data.labels import Labels
from medcontext.data.scan import AFFINE_TOLERANCE, LabelMap, Scan, voxels_apart
from medcontext.errors import MedContextError

LISTED = 12
"""So many numbers are named in a finding, no more."""


def label_problems(labels: LabelMap, counts: Mapping[int, int], declared: Labels | None) -> list[MedContextError]:
    """Numbers that are not declared, and maps in which every voxel is to be ignored.

    Args:
        labels: The label map.
        counts: Its numbers and how many voxels carry them.
        declared: The labels of the data set, if it declares any.
    """
    allowed = (lambda n: n >= 0) if declared is None else declared.declared.__contains__
    wrong = [number for number in counts if not allowed(number)]
    if wrong:
        return [
            MedContextError(
                "The label map holds labels that are not declared.",
                file=labels.path,
                found=f"labels {_numbers(wrong)}, in {sum(counts[number] for number in wrong)} voxels",
                expected="labels from 0 up" if declared is None else f"the declared {_numbers(declared.declared)}",
                remedy="declare them in dataset.json, or correct the label map",
            )
        ]
    if declared is not None and set(counts) == {declared.ignore}:
        return [
            MedContextError(
                "Every voxel of this label map is to be ignored.",
                file=labels.path,
                found=f"only the ignore label {declared.ignore}",
                expected="some voxels that are labelled, or background",
                remedy="label it, or remove the case",
            )
        ]
    return []


def label_remarks(labels: LabelMap, counts: Mapping[int, int], declared: Labels | None) -> list[MedContextError]:
    """Maps in which nothing is labelled."""
    if any(is_structure(number, declared) for number in counts):
        return []
    return [
        MedContextError(
            "This label map is empty.",
            file=labels.path,
            found="background only",
            expected="something labelled",
            remedy="fine if nothing is there to segment; otherwise label it",
        )
    ]


def grid_problems(scan: Scan, labels: LabelMap) -> list[MedContextError]:
    """Image and label map that don't lie voxel on voxel."""
    if scan.array.shape[1:] != labels.array.shape:
        return [
            MedContextError(
                "Image and label map differ in shape.",
                file=labels.path,
                found=f"label map {labels.array.shape}, image {scan.array.shape[1:]}",
                expected="the same shape",
                remedy="pair it with the image it was drawn on, or export it again on that image's grid",
            )
        ]
    apart = voxels_apart(labels.array.shape, scan.affine, labels.affine)
    if apart <= AFFINE_TOLERANCE:
        return []
    return [
        MedContextError(
            "Image and label map lie in different places.",
            file=labels.path,
            found=f"affines that put the same voxel up to {apart:.3g} voxels apart",
            expected=f"the affine of the image, within {AFFINE_TOLERANCE:g}",
            remedy="if the voxels do match, write the label map again with the image's affine",
        )
    ]


def _numbers(numbers: Iterable[int]) -> str:
    listed = sorted(numbers)
    return ", ".join(map(str, listed[:LISTED])) + (f", ... ({len(listed)} in all)" if len(listed) > LISTED else "")
