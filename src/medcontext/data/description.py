"""``dataset.json``: what a data set says of itself, in the Decathlon's words or in nnU-Net's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medcontext.data.labels import READABLE, Labels, Region, unreadable
from medcontext.errors import MedContextError
from medcontext.files import read_json

FILE = "dataset.json"


@dataclass(frozen=True)
class Description:
    """What is declared.

    Attributes:
        name: Of the data set; None where nothing is said.
        modality: Of each channel (``"CT"``, ``"MRI"``, ...); empty where nothing is said.
        labels: None where nothing is said.
        protocol: What a publication lays down for this data set: ``spacing``, ``clip``.
    """

    name: str | None = None
    modality: tuple[str, ...] = ()
    labels: Labels | None = None
    protocol: Mapping[str, Any] = field(default_factory=dict)


def read_description(folder: Path) -> Description:
    """From ``dataset.json`` in this folder; empty if there is none.

    Raises:
        MedContextError: It can't be read, or its labels can't.
    """
    file = folder / FILE
    if not file.is_file():
        return Description()
    content = read_json(file)
    if not isinstance(content, dict):
        raise MedContextError("This file does not describe a data set.", file=file, expected="a JSON object")
    name, protocol = content.get("name"), content.get("protocol") or {}
    if not isinstance(protocol, dict):
        raise MedContextError(
            "The protocol in dataset.json can't be read.",
            file=file,
            found=str(protocol)[:200],
            expected='an object, such as {"spacing": [1.0, 1.0, 1.0]}',
            remedy="correct or remove it",
        )
    return Description(
        name=None if name is None else str(name),
        modality=_modality(file, content.get("modality") or content.get("channel_names") or {}),
        labels=_labels(file, content),
        protocol=protocol,
    )


def _modality(file: Path, channels: Any) -> tuple[str, ...]:
    try:
        return tuple(str(channels[key]) for key in sorted(channels, key=int))
    except (TypeError, ValueError, KeyError, IndexError):
        raise MedContextError(
            "The channels declared in dataset.json can't be read.",
            file=file,
            found=str(channels)[:200],
            expected='{"0": "CT"}, or one such entry per channel',
            remedy="number the channels from 0 and name each",
        ) from None


def _labels(file: Path, content: Mapping[str, Any]) -> Labels | None:
    """Number to name (Decathlon) or name to number (nnU-Net), or name to several numbers (nnU-Net's regions)."""
    declared = content.get("labels")
    if not declared:
        return None
    try:
        if all(str(key).lstrip("-").isdigit() for key in declared):
            numbers: dict[str, Any] = {str(name): int(key) for key, name in declared.items()}
            if len(numbers) < len(declared):
                raise ValueError("two labels of one name")
        else:
            numbers = dict(declared)
        background = tuple(int(number) for number in (content.get("background_labels") or {}).values())
        ignore = int(numbers.pop("ignore")) if "ignore" in numbers else None
        if any(isinstance(number, list) for number in numbers.values()):
            labels = _regions(numbers, [int(n) for n in content["regions_class_order"]], background, ignore)
            _require_readable(file, labels)
        else:
            named = sorted((int(number), str(name)) for name, number in numbers.items() if int(number) != 0)
            if len({number for number, _ in named}) < len(named):
                raise ValueError("two labels of one number")
            labels = Labels(dict(named), background, ignore)
        _require_one_meaning(labels)
    except (TypeError, ValueError, OverflowError, AttributeError, KeyError) as error:
        raise MedContextError(
            "The labels declared in dataset.json can't be read.",
            file=file,
            found=f"{str(declared)[:200]} ({error})",
            expected='{"0": "background", "1": "liver", ...}; for regions {"background": 0, "tumor": [1, 2], ...} '
            "with regions_class_order",
            remedy="give every label one whole number and one name of its own",
        ) from None
    return labels


def _require_one_meaning(labels: Labels) -> None:
    """As of a plan: every number is above 0 and has one meaning."""
    numbers = [*labels.names, *labels.background, *([] if labels.ignore is None else [labels.ignore])]
    wrong = next((number for number in numbers if number < 1), None)
    if wrong is not None:
        raise ValueError(f"label {wrong}: labels, ignored voxels and further background have numbers above 0")
    twice = next((number for number in numbers if numbers.count(number) > 1), None)
    if twice is not None:
        raise ValueError(f"label {twice} has two meanings")


def _require_readable(file: Path, labels: Labels) -> None:
    found = unreadable(labels.regions)
    if found is not None:
        raise MedContextError(
            "The regions declared in dataset.json could not be read back from a label map.",
            file=file,
            found=found,
            expected=READABLE,
            remedy="correct regions_class_order; its numbers are label numbers, in the order of the regions",
        )


def _regions(numbers: Mapping[str, Any], written: list[int], background: tuple[int, ...], ignore: int | None) -> Labels:
    listed = {
        name: tuple(int(n) for n in (each if isinstance(each, list) else [each]))
        for name, each in numbers.items()
        if each not in (0, [0])
    }
    if len(written) != len(listed) or len(set(written)) < len(written):
        raise ValueError(f"{len(listed)} regions need as many different numbers in regions_class_order")
    names = {n: f"label {n}" for n in sorted({n for each in listed.values() for n in each})}
    regions = tuple(Region(name, each, n) for (name, each), n in zip(listed.items(), written, strict=True))
    return Labels(names, background, ignore, regions)
