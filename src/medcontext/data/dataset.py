"""What is in a data folder: which cases, which channels, which labels. Nothing but names and JSON is read here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcontext.data.scan import ENDINGS, scan_files
from medcontext.errors import MedContextError
from medcontext.files import read_json

LAYOUTS = (("imagesTr", "labelsTr"), ("images", "labels"))
"""Folders of images and labels: the Medical Segmentation Decathlon's, and the plain one."""


@dataclass(frozen=True)
class Case:
    """One labelled scan: its name and its two files."""

    name: str
    image: Path
    label: Path


@dataclass(frozen=True)
class Dataset:
    """A folder of labelled scans.

    Attributes:
        root: The folder.
        name: From ``dataset.json``, or the folder's own name.
        modality: Of each channel as declared (``"CT"``, ``"MRI"``, ...); empty where nothing is declared.
        labels: Label number to name as declared, without the background; None where nothing is declared.
        cases: Images that have a label, by name.
        unlabelled: Image files without a label, by case.
        unpaired: Label files without an image, by case.
    """

    root: Path
    name: str
    modality: tuple[str, ...]
    labels: Mapping[int, str] | None
    cases: Mapping[str, Case]
    unlabelled: Mapping[str, Path]
    unpaired: Mapping[str, Path]


def open_dataset(root: Path) -> Dataset:
    """Look at a data folder: ``imagesTr`` and ``labelsTr``, or ``images`` and ``labels``, ``dataset.json`` if there.

    A label belongs to the image of the same file name.

    Raises:
        MedContextError: No such folder, an empty one, one of another layout, or a ``dataset.json`` that can't be used.
    """
    if not root.is_dir():
        raise MedContextError("There is no such data folder.", file=root, remedy="check the path")
    for images, labels in LAYOUTS:
        if (root / images).is_dir() and (root / labels).is_dir():
            break
    else:
        raise MedContextError(
            "This folder is not a data set.",
            file=root,
            found=", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing: it is empty",
            expected="a folder 'imagesTr' beside 'labelsTr', or 'images' beside 'labels'",
            remedy="put the scans in 'images' and their label maps, under the same file names, in 'labels'",
        )
    image_files, label_files = scan_files(root / images), scan_files(root / labels)
    if not image_files and not label_files:
        raise MedContextError(
            "This data set holds no scans.", file=root / images, expected=f"files ending in {' or '.join(ENDINGS)}"
        )
    description = read_json(root / "dataset.json") if (root / "dataset.json").is_file() else {}
    return Dataset(
        root=root,
        name=str(description.get("name", root.resolve().name)),
        modality=_modality(description),
        labels=_labels(root / "dataset.json", description),
        cases={name: Case(name, image_files[name], label_files[name]) for name in image_files if name in label_files},
        unlabelled={name: path for name, path in image_files.items() if name not in label_files},
        unpaired={name: path for name, path in label_files.items() if name not in image_files},
    )


def _modality(description: Mapping[str, Any]) -> tuple[str, ...]:
    channels = description.get("modality") or description.get("channel_names") or {}
    return tuple(str(channels[key]) for key in sorted(channels, key=int))


def _labels(file: Path, description: Mapping[str, Any]) -> dict[int, str] | None:
    """Declared labels without the background, written number-to-name (Decathlon) or name-to-number (nnU-Net)."""
    declared = description.get("labels")
    if not declared:
        return None
    try:
        if all(str(key).isdigit() for key in declared):
            numbers = {int(key): str(name) for key, name in declared.items()}
        else:
            numbers = {int(number): str(name) for name, number in declared.items()}
    except (TypeError, ValueError, AttributeError):
        raise MedContextError(
            "The labels declared in dataset.json can't be read.",
            file=file,
            found=str(declared)[:200],
            expected='{"0": "background", "1": "liver", ...}',
            remedy="give every label one whole number and one name",
        ) from None
    return {number: numbers[number] for number in sorted(numbers) if number != 0}
