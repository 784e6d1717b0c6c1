"""Lesions found, missed and made up: by hand, and against every way of pairing them."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from medcontext.evaluation.lesions import Detection, detect
from tests.test_metrics import block

SHAPE = (20, 6, 6)


def lesions(*slabs: tuple[int, int]) -> np.ndarray:
    """Slabs across the whole volume, from one index along x to another."""
    mask = np.zeros(SHAPE, bool)
    for start, stop in slabs:
        mask[start:stop] = True
    return mask


@pytest.mark.parametrize(
    ("prediction", "truth", "iou", "expected"),
    [
        pytest.param(lesions(), lesions(), 0.1, (0, 0, 0), id="none"),
        pytest.param(lesions((2, 4)), lesions(), 0.1, (0, 0, 1), id="spurious"),
        pytest.param(lesions(), lesions((2, 4), (8, 9)), 0.1, (0, 2, 0), id="missed"),
        pytest.param(lesions((2, 4), (8, 9)), lesions((2, 4), (8, 9)), 1.0, (2, 0, 0), id="exact"),
        pytest.param(lesions((3, 5)), lesions((2, 4)), 1 / 3, (1, 0, 0), id="at the threshold"),
        pytest.param(lesions((3, 5)), lesions((2, 4)), 0.34, (0, 1, 1), id="below the threshold"),
        pytest.param(lesions((0, 12)), lesions((1, 5), (6, 10)), 0.1, (1, 1, 0), id="two in one count once"),
        pytest.param(lesions((1, 5), (6, 10)), lesions((0, 12)), 0.1, (1, 0, 1), id="one in two counts once"),
        # The long one overlaps both true ones; if it took the first, the short one would find none.
        pytest.param(lesions((0, 3), (4, 12)), lesions((1, 6), (7, 12)), 0.1, (2, 0, 0), id="as many as possible"),
    ],
)
def test_detection_by_hand(prediction, truth, iou, expected):
    found = detect(prediction, truth, iou)
    assert (found.found, found.missed, found.spurious) == expected


@pytest.mark.parametrize(("both", "union", "iou"), [(7, 100, 0.07), (55, 100, 0.55), (1, 10, 0.1)])
def test_a_lesion_that_overlaps_by_just_the_threshold_is_found(both, union, iou):
    masks = np.zeros((2, 1, 1, union), dtype=bool)
    masks[0, ..., :both], masks[1] = True, True
    assert detect(*masks, iou=iou).found == 1
    masks[0, ..., both - 1] = False
    assert detect(*masks, iou=iou).found == 0


def test_voxels_that_touch_by_a_corner_are_one_lesion():
    diagonal = block((4, 4, 4), 0, 0, 0) | block((4, 4, 4), 1, 1, 1)
    assert detect(diagonal, diagonal).found == 1
    assert detect(diagonal, np.zeros((4, 4, 4), bool)).spurious == 1


def slow(prediction: np.ndarray, truth: np.ndarray, iou: float) -> int:
    """The most lesions that any pairing finds, by trying them all."""
    parts = [ndimage.label(mask, np.ones((3, 3, 3))) for mask in (prediction, truth)]
    (predicted, n), (true, m) = parts
    pairs = {
        (i, j)
        for i in range(1, n + 1)
        for j in range(1, m + 1)
        if ((predicted == i) & (true == j)).sum() >= iou * ((predicted == i) | (true == j)).sum()
    }
    for size in range(min(n, m), 0, -1):
        for some in combinations(range(1, n + 1), size):
            if any(
                all(pair in pairs for pair in zip(some, p, strict=True)) for p in permutations(range(1, m + 1), size)
            ):
                return size
    return 0


MASKS = arrays.arrays(bool, (9, 3, 1), elements=st.booleans())


@settings(deadline=None, max_examples=60)
@given(MASKS, MASKS, st.sampled_from([0.1, 0.25, 0.5]))
def test_as_many_are_found_as_any_pairing_finds(prediction, truth, iou):
    found = detect(prediction, truth, iou)
    assert found.found == slow(prediction, truth, iou)
    counts = [ndimage.label(mask, np.ones((3, 3, 3)))[1] for mask in (prediction, truth)]
    assert [found.found + found.spurious, found.found + found.missed] == counts


def test_shares_and_totals():
    total = Detection.total([Detection(3, 1, 0), Detection(0, 0, 0), Detection(1, 0, 2)])
    assert (total.found, total.missed, total.spurious) == (4, 1, 2)
    assert (total.sensitivity, total.precision, total.f1) == (4 / 5, 4 / 6, 8 / 11)
    nothing = Detection(0, 0, 0)
    assert (nothing.sensitivity, nothing.precision, nothing.f1) == (None, None, None)


def test_noise_of_thousands_of_lesions_is_counted_at_once():
    rng = np.random.default_rng(0)
    masks = rng.random((2, 60, 60, 60)) < 0.02
    found = detect(*masks)
    assert found.missed > 1000
    assert found.spurious > 1000
