"""What can be wrong with a scan beside the others of its data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from medcontext.data.dataset import CHANNEL_SUFFIX, Dataset
from medcontext.data.description import FILE
from medcontext.data.examine import Examined, Member
from medcontext.data.facts import CaseFacts, by_direction
from medcontext.data.findings import Finding
from medcontext.data.scan import case_name
from medcontext.errors import MedContextError

SPACING_FACTOR = 4.0
"""A voxel size this many times above or below the median of the data set, along one direction, is worth a look."""

FEWEST_TO_COMPARE = 3
"""With fewer scans nobody can say which is the odd one."""


def missing_partners(dataset: Dataset) -> list[Finding]:
    """Training images without a label map, where that is not meant, and label maps without an image."""
    images = [
        Finding(
            "error",
            name,
            MedContextError(
                "This image has no label map.",
                file=case.images[0],
                found=_close(name, dataset.unpaired),
                expected=f"a label map named {name}",
                remedy="add or rename the label map, move the image out of the training folder, or learn from it "
                "without a label ('medcontext train --unlabelled-batch 1')",
            ),
        )
        for name, case in ({} if dataset.unlabelled_meant else dataset.unlabelled).items()
    ]
    labels = [
        Finding(
            "error",
            name,
            MedContextError(
                "This label map has no image.",
                file=path,
                found=_close(name, dataset.unlabelled),
                expected=f"an image named {name}",
                remedy="add or rename the image, or remove the label map",
            ),
        )
        for name, path in dataset.unpaired.items()
    ]
    return images + labels


def odd_channels(dataset: Dataset, examined: Sequence[tuple[Member, Examined]]) -> list[Finding]:
    """Images whose number of channels is not the declared one (not the commonest, where none is declared), or of
    whose files per channel one is missing."""
    counts = [seen.facts.channels for member, seen in examined if seen.facts and member.role == "train"]
    if not counts:
        return []
    expected = len(dataset.modality) or max(sorted(set(counts)), key=counts.count)
    return [
        member.finding(
            MedContextError(
                "The image has the wrong number of channels.",
                file=member.images[0],
                found=f"{seen.facts.channels}, in {', '.join(path.name for path in member.images)}",
                expected=f"{expected}, as {'declared' if dataset.modality else 'most cases have'}",
                remedy="export all channels of every case, in the same order; or correct the channels in dataset.json",
            )
        )
        for member, seen in examined
        if seen.facts and (seen.facts.channels != expected or not _numbered_from_zero(member))
    ]


def odd_geometry(examined: Sequence[tuple[Member, Examined]]) -> list[Finding]:
    """Scans with voxels of quite another size than the others, and scans without a geometry among others with one."""
    compared = [(member, seen.facts, seen.no_geometry) for member, seen in examined if seen.facts]
    if len(compared) < FEWEST_TO_COMPARE:
        return []
    spacings = np.array([by_direction(facts.orientation, facts.spacing) for _, facts, _ in compared])
    median = np.median(spacings, axis=0)
    odd = (np.maximum(spacings / median, median / spacings) > SPACING_FACTOR).any(axis=1)
    lost = np.array([without for _, _, without in compared])
    findings = []
    for (member, _, without), spacing, is_odd in zip(compared, spacings, odd, strict=True):
        if without and lost.mean() < 0.5:
            findings.append(
                Finding(
                    "warning",
                    member.name,
                    MedContextError(
                        "This image seems to have lost its geometry.",
                        file=member.images[0],
                        found="voxels of 1 x 1 x 1 mm, axes and origin of a file that was given none",
                        expected=f"spacing, axes and origin of its own, as {int((~lost).sum())} others have",
                        remedy="export it again from the DICOM, or copy the geometry from the original",
                    ),
                )
            )
        elif is_odd:
            findings.append(
                Finding(
                    "warning",
                    member.name,
                    MedContextError(
                        "The voxel size is far from that of the other scans.",
                        file=member.images[0],
                        found=f"{_listed(spacing)} mm (right, anterior, superior)",
                        expected=f"within {SPACING_FACTOR:g} times of the median {_listed(median)} mm",
                        remedy="fine if it was scanned so; otherwise correct the spacing in its header",
                    ),
                )
            )
    return findings


def absent_labels(dataset: Dataset, facts: Mapping[str, CaseFacts]) -> list[Finding]:
    """Declared labels that no case has; an error where none has any."""
    if not facts:
        return []
    seen = {number for case in facts.values() for number in case.voxels}
    if not seen & (seen if dataset.labels is None else dataset.labels.names.keys()):
        return [
            Finding(
                "error",
                None,
                MedContextError(
                    "Nothing is labelled in this data set.",
                    file=dataset.root,
                    found=f"background only in the label maps of {len(facts)} case(s)",
                    remedy="label at least one structure in one case or more",
                ),
            )
        ]
    if dataset.labels is None:
        return []
    absent = [f"{number} ({name})" for number, name in dataset.labels.names.items() if number not in seen]
    if not absent:
        return []
    file = (dataset.root if dataset.root.is_dir() else dataset.root.parent) / FILE
    return [
        Finding(
            "warning",
            None,
            MedContextError(
                "Labels are declared that occur in no case.",
                file=file if file.is_file() else dataset.root,
                found=f"no voxel of {', '.join(absent)} in {len(facts)} case(s)",
                expected="every declared label in one case or more",
                remedy="nothing can be learned of them: remove them from the declaration, or add cases that have them",
            ),
        )
    ]


def _numbered_from_zero(member: Member) -> bool:
    """False where files named by channel skip a number; nothing is asked of files with other names."""
    names = [CHANNEL_SUFFIX.fullmatch(case_name(path)) for path in member.images]
    numbers = [int(match[2]) for match in names if match and match[1] == member.name]
    return numbers == list(range(len(numbers)))


def _close(name: str, others: Iterable[str]) -> str | None:
    """One of ``others`` that is this name with something added or left off, as in ``liver_01`` and ``liver_01_seg``."""
    for other in others:
        short, long = sorted((name, other), key=len)
        if long.startswith(short) and not long[len(short) :][:1].isalnum():
            return f"{other}, which has no partner either"
    return None


def _listed(values: Iterable[float]) -> str:
    return " x ".join(f"{value:.3g}" for value in values)
