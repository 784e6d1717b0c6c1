"""Few-shot subsets: nested, of whole patients, with every class as soon as the order allows."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medcontext.data.few_shot import few_shot, missing_classes
from medcontext.errors import MedContextError

SEEDS = st.integers(0, 999)


@st.composite
def cohorts(draw):
    """Case to patient and case to the classes in it."""
    patients, classes = {}, {}
    for number in range(draw(st.integers(1, 9))):
        for scan in range(draw(st.integers(1, 3))):
            patients[f"P{number}_{scan}"] = f"P{number}"
            classes[f"P{number}_{scan}"] = draw(st.frozensets(st.integers(1, 6), max_size=4))
    return patients, classes


def subsets(patients, classes, seed):
    return [
        few_shot(patients, count, seed=seed, patients=patients, classes=classes)
        for count in range(1, len(patients) + 1)
    ]


def together(patient, patients, classes):
    return set().union(*(classes[name] for name in patients if patients[name] == patient))


@given(cohort=cohorts(), seed=SEEDS, covered=st.booleans())
@settings(max_examples=60, deadline=None)
def test_smaller_subsets_are_prefixes_of_larger_ones_and_patients_stay_whole(cohort, seed, covered):
    patients, classes = cohort
    drawn = subsets(patients, classes if covered else None, seed)
    for smaller, larger in pairwise(drawn):
        assert larger[: len(smaller)] == smaller
    for count, subset in enumerate(drawn, start=1):
        inside = {patients[name] for name in subset}
        assert len(set(subset)) == len(subset)
        assert set(subset) == {name for name in patients if patients[name] in inside}
        # No patient more than it takes.
        last = [name for name in subset if patients[name] == patients[subset[-1]]]
        assert len(subset) - len(last) < count <= len(subset)
    names = [list(patients)[place] for place in np.random.default_rng(seed).permutation(len(patients))]
    again = few_shot(names, 1, seed=seed, patients=dict(reversed(patients.items())), classes=classes)
    assert again == few_shot(patients, 1, seed=seed, patients=patients, classes=classes)


@given(cohort=cohorts(), seed=SEEDS)
@settings(max_examples=100, deadline=None)
def test_every_class_is_there_as_soon_as_a_greedy_cover_can_have_it(cohort, seed):
    patients, classes = cohort
    everything = set().union(*classes.values())
    drawn = subsets(patients, classes, seed)
    order = list(dict.fromkeys(patients[name] for name in drawn[-1]))
    own = {one: together(one, patients, classes) for one in order}
    seen: set[int] = set()
    needed = 0
    for place, one in enumerate(order):
        if seen == everything:
            break
        assert len(own[one] - seen) == max(len(own[other] - seen) for other in order[place:])
        seen |= own[one]
        needed += 1
    least = next(
        size
        for size in range(len(order) + 1)
        if any(set().union(*(own[one] for one in chosen)) == everything for chosen in combinations(order, size))
    )
    # Chvátal's bound: the harmonic number of the largest patient's classes.
    assert least <= needed <= least * sum(1 / n for n in range(1, max(map(len, own.values())) + 1))
    for subset in drawn:
        inside = {patients[name] for name in subset}
        if len(inside) >= needed:
            assert missing_classes(subset, patients, classes) == ()


def test_a_rare_class_is_in_the_smallest_subset_whatever_the_seed():
    """One case in fifty has class 3; a draw by chance would miss it."""
    classes = {f"{number:02d}": {1, 2} | ({3} if number == 31 else set()) for number in range(50)}
    assert {few_shot(classes, 1, seed=seed, classes=classes) for seed in range(20)} == {("31",)}
    by_chance = [few_shot(classes, 4, seed=seed) for seed in range(20)]
    assert sum(missing_classes(subset, classes, classes) == (3,) for subset in by_chance) > 10


def test_chance_decides_between_equals_and_orders_the_others():
    classes = {f"{number:02d}": {1} if number < 10 else {2} for number in range(20)}
    drawn = [few_shot(classes, 6, seed=seed, classes=classes) for seed in range(80)]
    assert all({tuple(classes[name]) for name in subset[:2]} == {(1,), (2,)} for subset in drawn)
    for place in (0, 1, 5):
        assert len({subset[place] for subset in drawn}) > 15


def test_what_is_missing_is_said():
    classes = {"a": [1, 9], "b": [2, 4], "c": [3], "d": []}
    subset = few_shot(classes, 1, seed=0, classes=classes)
    assert subset in (("a",), ("b",))
    assert missing_classes(subset, classes, classes) == ((2, 3, 4) if subset == ("a",) else (1, 3, 9))
    assert set(few_shot(classes, 3, seed=0, classes=classes)) == {"a", "b", "c"}
    assert missing_classes(["c"], ["c", "d"], classes) == ()


def test_what_cannot_be_drawn_is_refused():
    for count in (0, 3):
        with pytest.raises(MedContextError, match="count") as error:
            few_shot(["a", "b"], count, seed=0)
        assert "from 1 to 2" in error.value.expected
    with pytest.raises(MedContextError, match="no patient") as error:
        few_shot(["a", "b"], 1, seed=0, patients={"a": "p"})
    assert error.value.found == "b"
    with pytest.raises(MedContextError, match="no list of classes") as error:
        few_shot(["a", "b"], 1, seed=0, classes={"b": [1]})
    assert error.value.found == "a"
