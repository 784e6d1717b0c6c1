"""Reading every file of a data set once, before anything is spent on it: what is wrong, and what is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcontext.data.check_memory import keep, memory_file, recall
from medcontext.data.content import files_of
from medcontext.data.dataset import Dataset
from medcontext.data.duplicates import duplicate_findings
from medcontext.data.examine import Examined, Member, examine
from medcontext.data.facts import CaseFacts
from medcontext.data.findings import Finding
from medcontext.data.labels import Labels
from medcontext.data.set_checks import absent_labels, missing_partners, odd_channels, odd_geometry
from medcontext.data.split_file import SplitFile
from medcontext.errors import MedContextError
from medcontext.memory import at_once

__all__ = ["CaseFacts", "CheckReport", "Finding", "check_dataset", "check_split"]

WORKERS = 8
"""Scans read at a time, at most: more would only wait for the disk."""

BYTES_AT_WORK = 20
"""In memory while a case is checked, for each byte of its files: 12 for each voxel at most, of which compressed scans
have 0.6 to 1.8 a byte."""


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
    def labels(self) -> Labels:
        """The declared labels; where nothing is declared, those found in the label maps."""
        if self.dataset.labels is not None:
            return self.dataset.labels
        found = sorted({number for facts in self.facts.values() for number in facts.voxels})
        return Labels({number: f"label {number}" for number in found})

    def label_counts(self) -> dict[int, dict[str, Any]]:
        """Of every label: its ``name``, in how many ``cases`` it occurs, and ``voxels`` in all."""
        return {
            number: {
                "name": name,
                "cases": sum(number in facts.voxels for facts in self.facts.values()),
                "voxels": sum(facts.voxels.get(number, 0) for facts in self.facts.values()),
            }
            for number, name in self.labels.names.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "dataset": self.dataset.name,
            "root": str(self.dataset.root),
            "cases": list(self.facts),
            "labels": self.labels.to_dict(),
            "label_counts": {str(number): counts for number, counts in self.label_counts().items()},
            "findings": [finding.to_dict() for finding in self.findings],
            "facts": {name: facts.to_dict() for name, facts in self.facts.items()},
        }


def check_dataset(
    dataset: Dataset, progress: Callable[[int, int], None] | None = None, *, cache: Path | None = None
) -> CheckReport:
    """Read every file once, in parallel; one bad file does not stop the check of the others.

    Args:
        dataset: The data set.
        progress: Called with (files done, files in all).
        cache: Folder in which results are kept, so that the next check reads only what has changed since. None: read
            everything, and keep nothing.
    """
    members = _members(dataset)
    examined = [(members[place], seen) for place, seen in sorted(_examine_all(dataset, members, progress, cache))]
    facts = {member.name: seen.facts for member, seen in examined if seen.facts and member.label is not None}
    findings = [
        *missing_partners(dataset),
        *(finding for _, seen in examined for finding in seen.findings),
        *odd_channels(dataset, examined),
        *odd_geometry(examined),
        *absent_labels(dataset, facts),
        *duplicate_findings(examined),
    ]
    findings.sort(key=lambda finding: (finding.severity, finding.case or ""))
    bad = {finding.case for finding in findings if finding.severity == "error"}
    return CheckReport(dataset, tuple(findings), {name: facts[name] for name in sorted(facts) if name not in bad})


def check_split(dataset: Dataset, split: SplitFile, patients: Mapping[str, str] | None = None) -> tuple[Finding, ...]:
    """Look whether a split can be used with a data set.

    Args:
        dataset: The data set.
        split: The split.
        patients: Case name to patient, where it isn't what the data set says.

    Returns:
        An error where a patient is on two sides or a case is not in the data set; a warning where cases go unused.
    """
    try:
        unused = split.checked_against(dataset.patients if patients is None else patients)
    except MedContextError as error:
        return (Finding("error", None, error),)
    if not unused:
        return ()
    return (
        Finding(
            "warning",
            None,
            MedContextError(
                "Some cases of the data set are in no part of the split.",
                file=split.file,
                found=f"{len(unused)} of {len(dataset.cases)}, for example '{unused[0]}'",
                expected="every case in a part",
                remedy="fine if they are meant to be left out; otherwise add them to a part",
            ),
        ),
    )


def _members(dataset: Dataset) -> list[Member]:
    """Everything that is to be read, files without a partner too."""
    labelled = [Member(case.name, case.images, case.label, case.patient) for case in dataset.cases.values()]
    images = [Member(case.name, case.images, None, case.patient) for case in dataset.unlabelled.values()]
    labels = [Member(name, (), path, name) for name, path in dataset.unpaired.items()]
    test = [Member(name, files, None, name, "test") for name, files in dataset.test.items()]
    return [*labelled, *images, *labels, *test]


def _examine_all(
    dataset: Dataset, members: list[Member], progress: Callable[[int, int], None] | None, cache: Path | None
) -> list[tuple[int, Examined]]:
    """Place in ``members`` and result of each, in the order in which they were done."""
    done, files = 0, sum(len(member.files) for member in members)
    results = []
    largest = max((BYTES_AT_WORK * _size(member) for member in members), default=0)
    pool = ThreadPoolExecutor(max_workers=min(WORKERS, at_once(largest)))
    try:
        waiting = {
            pool.submit(_examine_or_recall, member, dataset, cache): place for place, member in enumerate(members)
        }
        for future in as_completed(waiting):
            results.append((waiting[future], future.result()))
            done += len(members[waiting[future]].files)
            if progress:
                progress(done, files)
    finally:
        # Whoever stops a check does not want the rest of it read first.
        pool.shutdown(cancel_futures=True)
    return results


def _size(member: Member) -> int:
    """Bytes of its files; none of those that can't be read, which is said when they are."""
    try:
        return sum(file.stat().st_size for path in member.files for file in files_of(path))
    except OSError:
        return 0


def _examine_or_recall(member: Member, dataset: Dataset, cache: Path | None) -> Examined:
    file = None if cache is None else memory_file(cache, member, dataset.labels, dataset.modality)
    if file is None:
        return examine(member, dataset.labels, dataset.modality)
    examined = recall(file)
    if examined is None:
        examined = examine(member, dataset.labels, dataset.modality)
        keep(file, examined)
    return examined
