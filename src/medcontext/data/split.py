"""Which cases are learned from, which choose the checkpoint, and which are held out to the end."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from medcontext.errors import MedContextError


@dataclass(frozen=True)
class Split:
    """Names of cases. ``validation`` is taken from what would be trained on; ``test`` is never used for a choice."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def make_split(
    cases: Iterable[str], *, test_share: float, validation_share: float, seed: int, patient: str | None = None
) -> Split:
    """Split by a seed; the same cases and seed give the same split, whatever their order.

    Args:
        cases: Names.
        test_share: Share of the patients that is held out; at least one where it is above 0.
        validation_share: Share of the remaining patients that chooses the checkpoint; at least one where it is above 0.
        seed: Of the draw.
        patient: Regular expression that finds the patient in a case's name (its first group, or the whole match), so
            that no patient is on two sides. None: every case is a patient.

    Raises:
        MedContextError: Too few cases for three parts, or a name in which no patient is found.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(cases):
        groups.setdefault(_patient_of(name, patient), []).append(name)
    order = [list(groups)[place] for place in np.random.default_rng(seed).permutation(len(groups))]
    tested = _share_of(len(order), test_share)
    validated = _share_of(len(order) - tested, validation_share)
    if len(order) - tested - validated < 1:
        raise MedContextError(
            "There are too few cases to split.",
            found=f"{len(order)} {'cases' if patient is None else 'patients'}",
            expected=f"at least {tested + validated + 1}: {tested} to test, {validated} to validate, 1 to train on",
            remedy="add cases, or set test_share or validation_share to 0",
        )
    parts = order[tested + validated :], order[tested : tested + validated], order[:tested]
    return Split(*(tuple(sorted(name for group in part for name in groups[group])) for part in parts))


def _share_of(count: int, share: float) -> int:
    return max(1, round(count * share)) if share > 0 else 0


def _patient_of(name: str, pattern: str | None) -> str:
    if pattern is None:
        return name
    try:
        found = re.search(pattern, name)
    except re.error as error:
        raise MedContextError(
            "The pattern for patients is no regular expression.",
            found=f"'{pattern}': {error}",
            remedy="mend the pattern",
        ) from None
    if found is None:
        raise MedContextError(
            "No patient is found in this case's name.", found=name, expected=f"a match of '{pattern}'"
        )
    return found.group(1) if found.groups() else found.group()
