"""One scan of a data set with its label map, read and looked at by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from medcontext.data.facts import CaseFacts, count_labels, gather_facts, is_structure
from medcontext.data.findings import Finding
from medcontext.data.image_checks import (
    geometry_remarks,
    has_no_geometry,
    hounsfield_remarks,
    intensity_problems,
    value_ranges,
)
from medcontext.data.label_checks import grid_problems, label_problems, label_remarks
from medcontext.data.labels import Labels
from medcontext.data.scan import LabelMap, Scan, read_labels, read_scan
from medcontext.data.voxel_hash import voxel_hash
from medcontext.errors import MedContextError

Read = TypeVar("Read", Scan, LabelMap)


@dataclass(frozen=True)
class Member:
    """What is read together: a labelled scan, a test image, an image whose label is missing, or a label by itself.

    Attributes:
        name: Of the case.
        images: Its image files; none for a label map without an image.
        label: None where there is none.
        patient: Whose scan it is.
        role: Whether it is there to train on, or to be predicted.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None
    patient: str
    role: Literal["train", "test"] = "train"

    @property
    def files(self) -> tuple[Path, ...]:
        """All its files."""
        return self.images if self.label is None else (*self.images, self.label)

    def finding(self, error: MedContextError) -> Finding:
        """An error, or a warning for a test image: it keeps nothing from being trained on."""
        return Finding("error" if self.role == "train" else "warning", self.name, error)


@dataclass(frozen=True)
class Examined:
    """What a member is found to be.

    Attributes:
        findings: What is wrong with it by itself.
        facts: None where something is wrong that keeps it from being used, or there is no image.
        image_hashes: Content of each channel; None for a constant one.
        label_hash: Content of the label map; None where there is none, or nothing is labelled.
        no_geometry: Whether the image has the affine of a file that nobody gave one.
    """

    findings: tuple[Finding, ...]
    facts: CaseFacts | None = None
    image_hashes: tuple[str | None, ...] = ()
    label_hash: str | None = None
    no_geometry: bool = False


def examine(member: Member, declared: Labels | None, modality: tuple[str, ...]) -> Examined:
    """Read a member's files and check them. Every file is looked at, whatever is wrong with the others.

    Args:
        member: What to read.
        declared: The labels of the data set, if it declares any.
        modality: Of each channel, as declared.
    """
    problems: list[MedContextError] = []
    remarks: list[MedContextError] = []
    scan = _attempt(lambda: read_scan(*member.images), problems) if member.images else None
    path = member.label
    labels = _attempt(lambda: read_labels(path), problems) if path is not None else None
    image_hashes: tuple[str | None, ...] = ()
    if scan is not None:
        ranges = value_ranges(scan)
        problems += intensity_problems(scan, member.images, ranges)
        remarks += hounsfield_remarks(scan, member.images, ranges, modality)
        remarks += geometry_remarks(scan)
        image_hashes = tuple(
            None if low == high else voxel_hash(values, scan.affine)
            for values, (low, high) in zip(scan.array, ranges, strict=True)
        )
    label_hash = None
    counts: dict[int, int] = {}
    if labels is not None:
        counts = count_labels(labels.array)
        wrong = label_problems(labels, counts, declared)
        problems += wrong
        remarks += [] if wrong else label_remarks(labels, counts, declared)
        if any(is_structure(number, declared) for number in counts):
            label_hash = voxel_hash(labels.array, labels.affine)
    if scan is not None and labels is not None:
        problems += grid_problems(scan, labels)
    findings = [member.finding(problem) for problem in problems]
    findings += [Finding("warning", member.name, remark) for remark in remarks]
    return Examined(
        findings=tuple(findings),
        facts=None if problems or scan is None else gather_facts(scan, labels, counts, declared),
        image_hashes=image_hashes,
        label_hash=label_hash,
        no_geometry=scan is not None and has_no_geometry(scan.affine, scan.array.shape[1:]),
    )


def _attempt(read: Callable[[], Read], problems: list[MedContextError]) -> Read | None:
    try:
        return read()
    except MedContextError as error:
        problems.append(error)
        return None
