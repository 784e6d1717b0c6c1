"""Few-shot subsets of the training cases: nested, of whole patients, with every class as early as can be."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np

from medcontext.data.split import by_patient, shuffled, value_of
from medcontext.errors import require


def few_shot(
    train: Iterable[str],
    count: int,
    *,
    seed: int,
    patients: Mapping[str, str] | None = None,
    classes: Mapping[str, Collection[int]] | None = None,
) -> tuple[str, ...]:
    """The first patients, in an order that the seed decides, who together have ``count`` cases or more.

    The subset of fewer cases is a prefix of that of more, so that a curve over their number never trades cases. Only
    training cases are drawn from: validation and test stay what they are. With two scans of each patient, as in ACDC,
    the protocol of 7 labelled patients is a ``count`` of 14.

    Where ``classes`` are given, patients that add most classes not seen so far come first, until every class that
    occurs in ``train`` is there (greedy set cover: Chvátal, Mathematics of Operations Research 4(3), 1979); chance
    decides between equals and orders the others. What a smaller subset lacks, :func:`missing_classes` says.

    Args:
        train: Names of cases.
        count: Cases; more come out where a patient would otherwise be cut in two.
        seed: Of the order.
        patients: Case name to patient. None: every case is a patient.
        classes: Case name to the classes that occur in it, background left out. None: the order is left to chance.

    Returns:
        Names in the drawn order.

    Raises:
        MedContextError: ``count`` is below 1 or above the number of cases, or a case has no patient or classes.
    """
    names = sorted(train)
    require(1 <= count <= len(names), "count", count, f"a whole number from 1 to {len(names)}, the training cases")
    groups = by_patient(names, patients or {name: name for name in names})
    order = shuffled(groups, np.random.default_rng(seed))
    if classes is not None:
        order = _covering_first(order, {one: _classes_of(cases, classes) for one, cases in groups.items()})
    subset: list[str] = []
    for one in order:
        if len(subset) >= count:
            break
        subset += groups[one]
    return tuple(subset)


def missing_classes(
    subset: Iterable[str], train: Iterable[str], classes: Mapping[str, Collection[int]]
) -> tuple[int, ...]:
    """Classes that occur in ``train`` and in no case of ``subset``, in ascending order."""
    return tuple(sorted(_classes_of(train, classes) - _classes_of(subset, classes)))


def _classes_of(cases: Iterable[str], classes: Mapping[str, Collection[int]]) -> set[int]:
    return {number for name in cases for number in value_of(name, classes, "list of classes")}


def _covering_first(order: list[str], classes: Mapping[str, set[int]]) -> list[str]:
    """Those that add most classes first, until none is missing; between equals, and after that, as they were."""
    missing = set().union(*classes.values())
    first: list[str] = []
    while missing:
        best = max(order, key=lambda one: len(classes[one] & missing))
        missing -= classes[best]
        first.append(best)
    return first + [one for one in order if one not in first]
