"""Reading every file of a data set once, before anything is spent on it: what is wrong, and what is there."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medcontext.data.dataset import Case, Dataset
from medcontext.data.scan import LabelMap, Scan, read_labels, read_scan, spacing_of
from medcontext.errors import MedContextError

AFFINE_TOLERANCE = 0.02
"""Image and label may lie this share of a voxel apart, which header rounding explains; more is an error."""

SAMPLED_VOXELS = 2_000
"""Foreground voxels of each case whose intensities stand for the data set's, for the normalisation of CT."""


@dataclass(frozen=True)
class Finding:
    """Something wrong with a file. Errors keep a data set from being trained on; warnings do not."""

    severity: Literal["error", "warning"]
    case: str
    error: MedContextError


@dataclass(frozen=True)
class CaseFacts:
    """What a plan needs to know of a case.

    Attributes:
        shape: (X, Y, Z) in the file's own axis order; ``spacing`` in mm likewise.
        spacing: Voxel size in mm.
        orientation: Of the file's axes, such as ``"RAS"`` or ``"LPS"``.
        channels: Number of image channels.
        voxels: Label number to its number of voxels, background left out.
        foreground: ``(n, C)`` intensities of a sample of labelled voxels.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    orientation: str
    channels: int
    voxels: Mapping[int, int]
    foreground: npt.NDArray[np.float32] = field(repr=False)


@dataclass(frozen=True)
class CheckReport:
    """What :func:`check_dataset` found: everything wrong, and the facts of every case that is whole."""

    dataset: Dataset
    findings: tuple[Finding, ...]
    facts: Mapping[str, CaseFacts]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that keep this data set from being trained on."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def labels(self) -> dict[int, str]:
        """The declared labels; where nothing is declared, those found in the label maps."""
        if self.dataset.labels is not None:
            return dict(self.dataset.labels)
        found = sorted({number for facts in self.facts.values() for number in facts.voxels})
        return {number: f"label {number}" for number in found}

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "dataset": self.dataset.name,
            "cases": list(self.facts),
            "labels": {str(number): name for number, name in self.labels.items()},
            "findings": [
                {"severity": each.severity, "case": each.case, **each.error.to_dict()} for each in self.findings
            ],
        }


def check_dataset(dataset: Dataset, progress: Callable[[int, int], None] | None = None) -> CheckReport:
    """Read every file once, in parallel; one bad file does not stop the check of the others.

    Args:
        dataset: The data set.
        progress: Called with (cases done, cases in all).
    """
    findings = [*_missing_partners(dataset)]
    facts: dict[str, CaseFacts] = {}
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        waiting = {pool.submit(_check_case, dataset, case): name for name, case in dataset.cases.items()}
        for done, future in enumerate(as_completed(waiting), start=1):
            name = waiting[future]
            found, case_facts = future.result()
            findings += found
            if case_facts is not None:
                facts[name] = case_facts
            if progress:
                progress(done, len(waiting))
    findings += _odd_channels(dataset, facts)
    findings.sort(key=lambda finding: (finding.severity, finding.case))
    bad = {finding.case for finding in findings if finding.severity == "error"}
    whole = {name: facts[name] for name in sorted(facts) if name not in bad}
    return CheckReport(dataset, tuple(findings), whole)


def _missing_partners(dataset: Dataset) -> list[Finding]:
    images = [
        Finding(
            "error",
            name,
            MedContextError(
                "This image has no label map.",
                file=path,
                expected=f"a label map of the same name, {path.name}",
                remedy="add the label map, or move the image out of the training folder",
            ),
        )
        for name, path in dataset.unlabelled.items()
    ]
    labels = [
        Finding(
            "error",
            name,
            MedContextError(
                "This label map has no image.",
                file=path,
                expected=f"an image of the same name, {path.name}",
                remedy="add the image, or remove the label map",
            ),
        )
        for name, path in dataset.unpaired.items()
    ]
    return images + labels


def _check_case(dataset: Dataset, case: Case) -> tuple[list[Finding], CaseFacts | None]:
    """Findings of one case; its facts where both files could be read and lie on one grid."""
    findings: list[Finding] = []

    def note(severity: Literal["error", "warning"], error: MedContextError) -> None:
        findings.append(Finding(severity, case.name, error))

    files: list[Scan | LabelMap] = []
    for read, path in ((read_scan, case.image), (read_labels, case.label)):
        try:
            files.append(read(path))
        except MedContextError as error:
            note("error", error)
    if findings:
        return findings, None
    scan, labels = files
    assert isinstance(scan, Scan)
    assert isinstance(labels, LabelMap)
    for problem in (*_intensity_errors(scan), *_label_errors(dataset, labels), *_grid_errors(scan, labels)):
        note("error", problem)
    if not labels.array.any():
        note(
            "warning",
            MedContextError(
                "This label map is empty.",
                file=case.label,
                found="background only",
                remedy="fine if nothing is there to segment; otherwise label it",
            ),
        )
    if scan.array.shape[1:] != labels.array.shape:
        return findings, None
    return findings, _facts(scan, labels)


def _intensity_errors(scan: Scan) -> list[MedContextError]:
    errors = []
    for channel, values in enumerate(scan.array):
        bad = int((~np.isfinite(values)).sum())
        if bad:
            errors.append(
                MedContextError(
                    "The image holds values that are not finite.",
                    file=scan.path,
                    found=f"{bad} voxels of NaN or infinity in channel {channel}",
                    remedy="export it again, or replace these voxels by a background value",
                )
            )
        elif values.min() == values.max():
            errors.append(
                MedContextError(
                    "The image is constant.",
                    file=scan.path,
                    found=f"every voxel of channel {channel} is {values.flat[0]:g}",
                    remedy="export it again; nothing can be learned from it",
                )
            )
    return errors


def _label_errors(dataset: Dataset, labels: LabelMap) -> list[MedContextError]:
    present = set(np.unique(labels.array).tolist()) - {0}
    wrong = sorted(n for n in present if n < 0 or (dataset.labels is not None and n not in dataset.labels))
    if not wrong:
        return []
    declared = (
        "labels from 0 up" if dataset.labels is None else f"0 and the declared {', '.join(map(str, dataset.labels))}"
    )
    return [
        MedContextError(
            "The label map holds labels that are not declared.",
            file=labels.path,
            found=f"labels {', '.join(map(str, wrong[:12]))}",
            expected=declared,
            remedy="declare them in dataset.json, or correct the label map",
        )
    ]


def _grid_errors(scan: Scan, labels: LabelMap) -> list[MedContextError]:
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
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in labels.array.shape])).reshape(3, -1)
    apart = (scan.affine - labels.affine)[:3, :3] @ corners + (scan.affine - labels.affine)[:3, 3:]
    worst = float(np.linalg.norm(apart, axis=0).max())
    if worst <= AFFINE_TOLERANCE * min(spacing_of(scan.affine)):
        return []
    return [
        MedContextError(
            "Image and label map lie in different places.",
            file=labels.path,
            found=f"affines that put the same voxel up to {worst:.3g} mm apart",
            expected="the affine of the image",
            remedy="if the voxels do match, write the label map again with the image's affine",
        )
    ]


def _facts(scan: Scan, labels: LabelMap) -> CaseFacts:
    import nibabel as nib

    numbers, counts = np.unique(labels.array, return_counts=True)
    places = np.flatnonzero(labels.array)
    step = max(1, len(places) // SAMPLED_VOXELS)
    x, y, z = labels.array.shape
    return CaseFacts(
        shape=(x, y, z),
        spacing=spacing_of(scan.affine),
        orientation="".join(nib.aff2axcodes(scan.affine)),
        channels=len(scan.array),
        voxels={int(n): int(count) for n, count in zip(numbers, counts, strict=True) if n != 0},
        foreground=scan.array.reshape(len(scan.array), -1)[:, places[::step]].T.copy(),
    )


def _odd_channels(dataset: Dataset, facts: Mapping[str, CaseFacts]) -> list[Finding]:
    """Cases whose number of channels is not the declared one (not the commonest, where none is declared)."""
    counts = [case.channels for case in facts.values()]
    if not counts:
        return []
    expected = len(dataset.modality) or max(set(counts), key=counts.count)
    return [
        Finding(
            "error",
            name,
            MedContextError(
                "The image has the wrong number of channels.",
                file=dataset.cases[name].image,
                found=f"{case.channels}",
                expected=f"{expected}, as {'declared' if dataset.modality else 'most cases have'}",
                remedy="export all channels of every case, in the same order",
            ),
        )
        for name, case in facts.items()
        if case.channels != expected
    ]
