"""What a plan looks like as JSON: plans are edited by hand, and every mistake is named before it costs anything."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

from medcontext.data.labels import READABLE, Labels, unreadable
from medcontext.errors import MedContextError

Test = Callable[[Any], bool]
Form = tuple[Test, str]
"""A test of a value, and in words what passes it."""


def _whole(value: Any, least: int = 1) -> bool:
    return type(value) is int and value >= least


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _several(value: Any, test: Test, count: int | None = None) -> bool:
    return isinstance(value, list | tuple) and count in (None, len(value)) and all(map(test, value))


def _text(value: Any) -> bool:
    return isinstance(value, str)


WHOLE: Form = (_whole, "a whole number, 1 or more")
NUMBER: Form = (_number, "a number")
ORIENTATIONS = tuple("".join(letters) for letters in permutations("SAR"))

PLAN: Mapping[str, Form] = {
    "dataset": (_text, "text"),
    "channels": WHOLE,
    "labels": (lambda value: isinstance(value, Mapping), "an object with names, background, ignore and regions"),
    "orientation": (lambda value: value in ORIENTATIONS, f"one of {', '.join(ORIENTATIONS)}"),
    "spacing": (
        lambda value: _several(value, lambda each: _number(each) and each > 0, 3),
        "three sizes (D, H, W) in mm, above 0",
    ),
    "normalisation": (lambda value: isinstance(value, Mapping), "an object with kind, low, high, mean and std"),
    "patch": (lambda value: _several(value, _whole, 3), "three whole numbers of voxels (D, H, W), 1 or more"),
    "batch_size": WHOLE,
    "steps": WHOLE,
    "scale": (lambda value: value in ("small", "full"), "small or full"),
    "reasons": (lambda value: _several(value, _text), "a list of text"),
}

NORMALISATION: Mapping[str, Form] = {
    "kind": (lambda value: value in ("ct", "case"), "ct or case"),
    "low": NUMBER,
    "high": NUMBER,
    "mean": NUMBER,
    "std": (lambda value: _number(value) and value >= 0, "a number, 0 or more"),
}

LABELS: Mapping[str, Form] = {
    "names": (
        lambda value: (
            isinstance(value, Mapping)
            and len(value) > 0
            and all(str(key).isdigit() and int(key) > 0 and _text(name) for key, name in value.items())
        ),
        "an object of label number (1 or more) to name",
    ),
    "background": (lambda value: _several(value, _whole), "a list of label numbers"),
    "ignore": (lambda value: value is None or _whole(value), "a label number, or null"),
    "regions": (
        lambda value: _several(value, lambda each: isinstance(each, Mapping)),
        "a list of objects with name, numbers and written",
    ),
}

REGION: Mapping[str, Form] = {
    "name": (_text, "text"),
    "numbers": (lambda value: _several(value, _whole) and len(value) > 0, "a list of label numbers"),
    "written": WHOLE,
}

OPTIONAL = ("scale", "reasons")


def require_form(values: Any, file: Path | None = None) -> None:
    """Refuse what is no plan.

    Args:
        values: As read from JSON, or as a plan gave them.
        file: Where they were read, for the error.

    Raises:
        MedContextError: Naming the key: unknown, missing, of the wrong type, impossible, or at odds with another.
    """
    if not isinstance(values, Mapping):
        raise _wrong(file, type(values).__name__, "a plan, as 'medcontext plan --json' writes it")
    _require(values, PLAN, "", file, OPTIONAL)
    normalisation, labels = values["normalisation"], values["labels"]
    _require(normalisation, NORMALISATION, "normalisation.", file)
    if normalisation["kind"] == "ct" and not (
        normalisation["low"] < normalisation["high"] and normalisation["std"] > 0
    ):
        raise _wrong(file, f"normalisation = {dict(normalisation)}", "for ct, low below high and std above 0")
    _require(labels, LABELS, "labels.", file)
    for place, region in enumerate(labels["regions"]):
        _require(region, REGION, f"labels.regions.{place}.", file)
    _require_consistent(labels, file)


def _require_consistent(labels: Mapping[str, Any], file: Path | None) -> None:
    """Every number means one thing."""
    named = [int(number) for number in labels["names"]]
    numbers = [*named, *labels["background"], *([] if labels["ignore"] is None else [labels["ignore"]])]
    twice = sorted({number for number in numbers if numbers.count(number) > 1})
    if twice:
        raise _wrong(file, f"labels: {twice[0]} more than once", "every number once in names, background and ignore")
    written = [region["written"] for region in labels["regions"]]
    if len(set(written)) < len(written):
        raise _wrong(file, f"labels.regions: written {written}", "a number of its own for every region")
    unknown = sorted({number for region in labels["regions"] for number in region["numbers"]} - set(named))
    if unknown:
        raise _wrong(file, f"labels.regions: label {unknown[0]}", "numbers that labels.names has")
    lost = unreadable(Labels.from_dict(labels).regions)
    if lost is not None:
        raise _wrong(file, f"labels.regions: {lost}", READABLE)


def _require(
    values: Mapping[str, Any], forms: Mapping[str, Form], where: str, file: Path | None, optional: tuple[str, ...] = ()
) -> None:
    for key in values:
        if key not in forms:
            raise _wrong(file, f"the unknown key {where}{key}", f"the keys {', '.join(forms)}")
    for key, (test, expected) in forms.items():
        if key not in values and key not in optional:
            raise _wrong(file, f"no {where}{key}", f"{where}{key}: {expected}")
        if key in values and not test(values[key]):
            raise _wrong(file, f"{where}{key} = {values[key]!r}"[:200], expected)


def _wrong(file: Path | None, found: str, expected: str) -> MedContextError:
    return MedContextError(
        "This plan can't be used.",
        file=file,
        found=found,
        expected=expected,
        remedy="correct it, or make the plan anew with 'medcontext plan'",
    )
