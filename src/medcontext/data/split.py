"""Which cases are learned from, which choose the checkpoint, and which are held out to the end."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from medcontext.errors import MedContextError, require

Value = TypeVar("Value")


@dataclass(frozen=True)
class Split:
    """Names of cases. ``validation`` is taken from what would be trained on. ``test`` is used for no choice after the
    plan, which is made from all cases unless one is given: the folds of a data set share it."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def make_split(
    cases: Iterable[str],
    *,
    test_share: float,
    validation_share: float,
    seed: int,
    patient: str | Mapping[str, str] | None = None,
    strata: Mapping[str, Hashable] | None = None,
) -> Split:
    """Split by a seed; the same cases and seed give the same split, whatever their order.

    Args:
        cases: Names.
        test_share: Share of the patients that is held out; at least one where it is above 0.
        validation_share: Share of the remaining patients that chooses the checkpoint; at least one where it is above 0.
        seed: Of the draw.
        patient: The patient of each case, or a regular expression that finds it in the name (:func:`patients_of`), so
            that no patient is on two sides. None: every case is a patient.
        strata: Group of each case, such as a diagnosis or the labels that occur. Both shares are drawn evenly over the
            groups: of each, its share of the patients rounded down or up.

    Raises:
        MedContextError: Too few cases for three parts, or a case with no patient or stratum.
    """
    _require_shares(test_share=test_share, validation_share=validation_share)
    names = sorted(cases)
    patients = patient if isinstance(patient, Mapping) else patients_of(names, patient)
    groups = by_patient(names, patients)
    kinds = _strata_of(groups, strata)
    rng = np.random.default_rng(seed)
    order = shuffled(groups, rng)
    tested = _share_of(len(order), test_share)
    validated = _share_of(len(order) - tested, validation_share)
    _require_enough(groups, tested, validated)
    test, rest = _draw(order, tested, kinds, rng)
    validation, train = _draw(rest, validated, kinds, rng)
    return Split(*(_cases_of(part, groups) for part in (train, validation, test)))


def make_folds(
    patients: Mapping[str, str],
    *,
    folds: int,
    validation_share: float,
    seed: int,
    strata: Mapping[str, Hashable] | None = None,
) -> tuple[Split, ...]:
    """Cross-validation over patients: each patient is held out, as ``test``, in one fold and trained on in the others.

    The validation cases of a fold come from its training part, so that no checkpoint is chosen on held-out cases. To
    keep cases out of every fold, split them off first and give the patients of the others.

    Args:
        patients: Case name to patient (:func:`patients_of`).
        folds: How many, 2 or more. Their numbers of held-out patients differ by one at most.
        validation_share: Share of the patients of each training part; at least one where it is above 0.
        seed: Of the draw.
        strata: Group of each case; the folds' numbers of held-out patients of a group differ by one at most.

    Raises:
        MedContextError: Fewer than 2 folds, too few patients, or a case with no stratum.
    """
    require(folds >= 2, "folds", folds, "a whole number, 2 or more")
    _require_shares(validation_share=validation_share)
    groups = by_patient(sorted(patients), patients)
    if len(groups) < folds:
        raise MedContextError(
            "There are too few patients for so many folds.",
            found=f"{len(groups)} patients, {folds} folds",
            expected="at least one patient to hold out in each fold",
            remedy="ask for fewer folds",
        )
    rng = np.random.default_rng(seed)
    # Dealt out one by one, patients of a stratum after one another: every run of them is spread evenly.
    order = [one for kind in _by_stratum(shuffled(groups, rng), _strata_of(groups, strata)) for one in kind]
    splits = []
    for fold in range(folds):
        test = order[fold::folds]
        train = [one for place, one in enumerate(order) if place % folds != fold]
        whole = Split(_cases_of(train, groups), (), _cases_of(test, groups))
        # With one seed, the checkpoints of most folds would be chosen on the same patients.
        carving = int(rng.integers(2**32))
        splits.append(with_validation(whole, share=validation_share, seed=carving, patients=patients, strata=strata))
    return tuple(splits)


def with_validation(
    split: Split,
    *,
    share: float,
    seed: int,
    patients: Mapping[str, str],
    strata: Mapping[str, Hashable] | None = None,
) -> Split:
    """Move a share of the training patients to ``validation``; a split that has validation cases stays as it is.

    Raises:
        MedContextError: Nothing would be left to train on.
    """
    if split.validation:
        return split
    parts = make_split(split.train, test_share=0, validation_share=share, seed=seed, patient=patients, strata=strata)
    return dataclasses.replace(parts, test=split.test)


def patients_of(cases: Iterable[str], pattern: str | None) -> dict[str, str]:
    """Case name to patient.

    Args:
        cases: Names.
        pattern: Regular expression that finds the patient in a name (its first group, or the whole match). None: every
            case is a patient.

    Raises:
        MedContextError: It is no regular expression, or a name in which no patient is found.
    """
    if pattern is None:
        return {name: name for name in cases}
    try:
        find = re.compile(pattern).search
    except re.error as error:
        raise MedContextError(
            "The pattern for patients is no regular expression.",
            found=f"'{pattern}': {error}",
            remedy="mend the pattern",
        ) from None
    patients = {}
    for name in cases:
        found = find(name)
        patient = found and (found.group(1) if found.groups() else found.group())
        if not patient:
            raise MedContextError(
                "No patient is found in this case's name.", found=name, expected=f"a match of '{pattern}'"
            )
        patients[name] = patient
    return patients


def by_patient(names: Sequence[str], patients: Mapping[str, str]) -> dict[str, list[str]]:
    """Patient to cases, in the order of ``names``.

    Raises:
        MedContextError: A case with no patient.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(value_of(name, patients, "patient"), []).append(name)
    return groups


def shuffled(groups: Mapping[str, list[str]], rng: np.random.Generator) -> list[str]:
    """The patients in a random order."""
    patients = list(groups)
    return [patients[place] for place in rng.permutation(len(patients))]


def value_of(name: str, values: Mapping[str, Value], what: str) -> Value:
    """What is known of a case.

    Raises:
        MedContextError: Nothing is.
    """
    if name not in values:
        raise MedContextError(f"A case has no {what}.", found=name, expected=f"a {what} for every case")
    return values[name]


def _draw(
    order: Sequence[str], count: int, kinds: Mapping[str, Hashable], rng: np.random.Generator
) -> tuple[list[str], list[str]]:
    """``count`` patients, the first of each stratum in ``order``, and the rest.

    Systematic sampling: strata lie end to end on a line of patients with ``count`` marks at equal distances, shifted
    at random, and each gives as many as there are marks on it. So a stratum gives its share of ``count`` rounded down
    or up, the numbers add up, and every patient is as likely to be drawn as any other.
    """
    shift = int(rng.integers(len(order)))
    drawn: set[str] = set()
    begin = 0
    for members in _by_stratum(order, kinds):
        end = begin + len(members)
        marks = (end * count + shift) // len(order) - (begin * count + shift) // len(order)
        drawn.update(members[:marks])
        begin = end
    return [one for one in order if one in drawn], [one for one in order if one not in drawn]


def _by_stratum(order: Iterable[str], kinds: Mapping[str, Hashable]) -> list[list[str]]:
    strata: dict[Hashable, list[str]] = {}
    for one in order:
        strata.setdefault(kinds[one], []).append(one)
    return list(strata.values())


def _strata_of(groups: Mapping[str, list[str]], strata: Mapping[str, Hashable] | None) -> dict[str, Hashable]:
    """Patient to stratum: what all its cases have, taken together."""
    if strata is None:
        return dict.fromkeys(groups)
    return {
        patient: frozenset(value_of(name, strata, "stratum") for name in cases) for patient, cases in groups.items()
    }


def _cases_of(patients: Iterable[str], groups: Mapping[str, list[str]]) -> tuple[str, ...]:
    return tuple(sorted(name for patient in patients for name in groups[patient]))


def _require_shares(**shares: float) -> None:
    for name, share in shares.items():
        require(0 <= share < 1, name, share, "a share from 0 up to, and not including, 1")


def _share_of(count: int, share: float) -> int:
    return max(1, round(count * share)) if share > 0 else 0


def _require_enough(groups: Mapping[str, list[str]], tested: int, validated: int) -> None:
    needed = tested + validated + 1
    if len(groups) < needed:
        raise MedContextError(
            "There are too few cases to split.",
            found=f"{sum(map(len, groups.values()))} cases of {len(groups)} patients",
            expected=f"{needed} patients or more: {tested} to test, {validated} to validate, 1 to train on",
            remedy="add cases, or set test_share or validation_share to 0",
        )
