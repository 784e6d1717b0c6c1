"""What is in a data set: which cases, which channels, which labels. Nothing but names and text is read here."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medcontext.data import case_list
from medcontext.data.case import Case, UnlabelledCase
from medcontext.data.description import read_description
from medcontext.data.formats import ENDINGS
from medcontext.data.labels import Labels
from medcontext.data.scan import scan_files
from medcontext.data.split import patients_of
from medcontext.errors import MedContextError

LAYOUTS = (("imagesTr", "labelsTr", "imagesTs"), ("images", "labels", "imagesTs"))
"""Folders of images, of labels and of unlabelled test images: the Decathlon's (and nnU-Net's), and the plain one."""

CHANNEL_SUFFIX = re.compile(r"(.+)_(\d{4})")
"""nnU-Net's way of naming one file per channel: ``liver_012_0000``, ``liver_012_0001``."""


@dataclass(frozen=True)
class Dataset:
    """Labelled scans.

    Attributes:
        root: The folder, or the case list.
        name: As declared, or the folder's own name.
        modality: Of each channel as declared (``"CT"``, ``"MRI"``, ...); empty where nothing is declared.
        labels: As declared; None where nothing is declared.
        cases: Images that have a label, by name.
        unlabelled: Training images that have no label, by name.
        unpaired: Label files without an image, by case.
        test: Images that are there to be predicted, by case.
        protocol: What a publication lays down for this data set.
        unlabelled_meant: Whether training images without a label are there to be learned from, and no oversight.
    """

    root: Path
    name: str
    modality: tuple[str, ...]
    labels: Labels | None
    cases: Mapping[str, Case]
    unlabelled: Mapping[str, UnlabelledCase] = field(default_factory=dict)
    unpaired: Mapping[str, Path] = field(default_factory=dict)
    test: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    unlabelled_meant: bool = False

    @property
    def patients(self) -> dict[str, str]:
        """Case name to patient."""
        return {name: case.patient for name, case in self.cases.items()}

    @property
    def strata(self) -> dict[str, str] | None:
        """Case name to group, such as a diagnosis; None where no case has one."""
        if not any(case.stratum for case in self.cases.values()):
            return None
        return {name: str(case.stratum) for name, case in self.cases.items()}

    def with_patients(self, pattern: str | None) -> Dataset:
        """The same data set, its patients found in the names of the cases by a regular expression, if one is given.

        Raises:
            MedContextError: It is none, or a name in which no patient is found.
        """
        if pattern is None:
            return self
        found = patients_of([*self.cases, *self.unlabelled], pattern)
        cases = {name: dataclasses.replace(case, patient=found[name]) for name, case in self.cases.items()}
        unlabelled = {name: dataclasses.replace(case, patient=found[name]) for name, case in self.unlabelled.items()}
        return dataclasses.replace(self, cases=cases, unlabelled=unlabelled)

    def without_label(self, name: str) -> UnlabelledCase | None:
        """A scan to be learned from without a label, whether it has one or not; None where there is no such scan."""
        if name not in self.cases:
            return self.unlabelled.get(name)
        case = self.cases[name]
        return UnlabelledCase(name, case.images, case.patient)


def open_dataset(root: Path) -> Dataset:
    """Look at a data set.

    It is a folder with ``imagesTr`` and ``labelsTr`` (Medical Segmentation Decathlon, nnU-Net v2), or with ``images``
    and ``labels``, or with a case list ``cases.jsonl`` or ``cases.csv``; or such a list by itself. ``dataset.json``
    is read if it is there. In folders a label belongs to the image of the same name, or to its channels' files
    ``NAME_0000``, ``NAME_0001``, ...

    Raises:
        MedContextError: No such folder, an empty one, one of another layout, or a list or a ``dataset.json`` that
            can't be used.
    """
    if not root.exists():
        raise MedContextError("There is no such data set.", file=root, remedy="check the path")
    folder = root if root.is_dir() else root.parent
    declared = read_description(folder)
    listed = root if root.is_file() else case_list.find(root)
    parts = _from_list(listed) if listed is not None else _from_folders(root)
    if not any(parts.get(key) for key in ("cases", "unlabelled", "unpaired")):
        raise MedContextError(
            "This data set holds no labelled scans.", file=root, expected=f"files ending in {', '.join(ENDINGS)}"
        )
    return Dataset(
        root=root,
        name=declared.name or folder.resolve().name,
        modality=declared.modality,
        labels=declared.labels,
        protocol=declared.protocol,
        **parts,
    )


def _from_list(file: Path) -> dict[str, Any]:
    listed, to_predict = case_list.read(file)
    return {
        "cases": {name: case for name, case in listed.items() if isinstance(case, Case)},
        "unlabelled": {name: case for name, case in listed.items() if isinstance(case, UnlabelledCase)},
        "unlabelled_meant": True,
        "test": to_predict,
    }


def _from_folders(root: Path) -> dict[str, Any]:
    found = next((layout for layout in LAYOUTS if all((root / part).is_dir() for part in layout[:2])), None)
    if found is None:
        raise MedContextError(
            "This folder is not a data set.",
            file=root,
            found=", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing: it is empty",
            expected="a folder 'imagesTr' beside 'labelsTr', or 'images' beside 'labels', or a list 'cases.csv'",
            remedy="put the scans in 'images' and their label maps, under the same file names, in 'labels'",
        )
    images, labels, test = (root / part for part in found)
    image_files, label_files = scan_files(images), scan_files(labels)
    test_files = scan_files(test) if test.is_dir() else {}
    grouped = by_channel(image_files)
    if grouped is None or not any(name in label_files for name in grouped):
        grouped, grouped_test = _one_file_each(image_files), _one_file_each(test_files)
    else:
        grouped_test = by_channel(test_files) or _one_file_each(test_files)
    return {
        "cases": {
            name: Case(name, files, label_files[name], patient=name)
            for name, files in grouped.items()
            if name in label_files
        },
        "unlabelled": {
            name: UnlabelledCase(name, files, patient=name)
            for name, files in grouped.items()
            if name not in label_files
        },
        "unpaired": {name: path for name, path in label_files.items() if name not in grouped},
        "test": grouped_test,
    }


def by_channel(images: Mapping[str, Path]) -> dict[str, tuple[Path, ...]] | None:
    """Case name to its files in the order of their channels; None where the files are not named by channel."""
    grouped: dict[str, tuple[Path, ...]] = {}
    for name in sorted(images):
        match = CHANNEL_SUFFIX.fullmatch(name)
        if match is None:
            return None
        grouped[match.group(1)] = (*grouped.get(match.group(1), ()), images[name])
    return grouped


def _one_file_each(files: Mapping[str, Path]) -> dict[str, tuple[Path, ...]]:
    return {name: (path,) for name, path in files.items()}
