"""Dice and HD95 against brute force and against numbers worked out by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from medcontext.evaluation.metrics import Mask, dice, hd95

SHAPES = arrays.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5)
SPACINGS = st.tuples(*[st.floats(0.2, 8.0)] * 3)


def pairs() -> st.SearchStrategy[tuple[Mask, Mask]]:
    """Two masks of one shape."""
    masks = SHAPES.map(lambda shape: arrays.arrays(bool, shape))
    return masks.flatmap(lambda mask: st.tuples(mask, mask))


def surface_points(mask: Mask, spacing: tuple[float, ...]) -> list[tuple[float, ...]]:
    """Centres in mm of the voxels with a face neighbour that is not of the mask, one voxel at a time."""
    voxels = {tuple(int(i) for i in voxel) for voxel in np.argwhere(mask)}
    steps = [step for step in itertools.product((-1, 0, 1), repeat=3) if sum(map(abs, step)) == 1]
    outer = [v for v in voxels if any(tuple(np.add(v, step).tolist()) not in voxels for step in steps)]
    return [tuple(i * size for i, size in zip(v, spacing, strict=True)) for v in outer]


def slow_hd95(a: Mask, b: Mask, spacing: tuple[float, ...]) -> float:
    """Every surface point against every other; then both directions pooled, as MedPy does."""
    points_a, points_b = surface_points(a, spacing), surface_points(b, spacing)
    to_b = [min(math.dist(p, q) for q in points_b) for p in points_a]
    to_a = [min(math.dist(p, q) for q in points_a) for p in points_b]
    return float(np.percentile(to_b + to_a, 95))


def block(shape: tuple[int, ...], *slices: Any) -> Mask:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slices)] = True
    return mask


def with_hole() -> Mask:
    mask = block((7, 7, 7), slice(1, 6), slice(1, 6), slice(1, 6))
    mask[3, 3, 3] = False
    return mask


SOLID = block((7, 7, 7), slice(1, 6), slice(1, 6), slice(1, 6))


@settings(deadline=None)
@given(pairs(), SPACINGS)
def test_hd95_equals_brute_force(masks, spacing):
    a, b = masks
    if not a.any() or not b.any():
        assert hd95(a, b, spacing) is None
    else:
        assert hd95(a, b, spacing) == pytest.approx(slow_hd95(a, b, spacing), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        pytest.param(with_hole(), SOLID, id="the wall of a hole is surface"),
        pytest.param(np.ones((4, 3, 5), bool), np.ones((4, 3, 5), bool), id="whole volume"),
        pytest.param(np.ones((4, 3, 5), bool), block((4, 3, 5), 1, 1, 2), id="whole volume and one voxel"),
        pytest.param(block((6, 6, 6), slice(0, 3)), block((6, 6, 6), slice(3, 6)), id="both touch the border"),
        pytest.param(block((6, 6, 6), 0, 0, 0), block((6, 6, 6), 5, 5, 5), id="single voxels in opposite corners"),
        pytest.param(block((9, 4, 4), slice(0, 9, 4)), block((9, 4, 4), slice(2, 7)), id="in several parts"),
    ],
)
def test_hd95_equals_brute_force_where_shapes_are_awkward(a, b):
    spacing = (0.7, 1.3, 5.0)
    assert hd95(a, b, spacing) == pytest.approx(slow_hd95(a, b, spacing), rel=1e-9, abs=1e-12)


def test_hd95_of_two_voxels_is_their_distance_in_mm():
    a, b = block((4, 4, 4), 0, 0, 0), block((4, 4, 4), 1, 2, 3)
    assert hd95(a, b, (12.0, 1.5, 4 / 3)) == pytest.approx(13.0)  # (12, 3, 4) mm


def test_hd95_pools_both_directions():
    """Ten voxels, and the same ten with a far one: from there alone, the percentile would be halfway to the far one."""
    a = block((41, 1, 1), slice(0, 10))
    b = a.copy()
    b[40] = True
    assert np.percentile([0.0] * 10 + [31.0], 95) == 15.5
    assert hd95(a, b, (1.0, 1.0, 1.0)) == 0.0


@given(pairs(), SPACINGS)
@settings(deadline=None)
def test_scores_are_symmetric_and_in_range(masks, spacing):
    a, b = masks
    assert dice(a, b) == dice(b, a)
    assert hd95(a, b, spacing) == hd95(b, a, spacing)
    overlap, distance = dice(a, b), hd95(a, b, spacing)
    assert overlap is None or 0.0 <= overlap <= 1.0
    assert distance is None or (math.isfinite(distance) and distance >= 0.0)


@given(pairs())
@example((np.zeros((1, 1, 1), bool), np.ones((1, 1, 1), bool)))
def test_dice_counts_voxels(masks):
    a, b = masks
    total = int(a.sum()) + int(b.sum())
    assert dice(a, b) == (None if total == 0 else 2 * int((a & b).sum()) / total)


def test_an_object_in_neither_mask_is_not_counted():
    empty = np.zeros((3, 3, 3), bool)
    assert dice(empty, empty) is None
    assert hd95(empty, empty, (1.0, 1.0, 1.0)) is None


@pytest.mark.parametrize("flip", [False, True])
def test_a_missed_object_has_no_overlap_and_no_distance(flip):
    a, b = np.zeros((3, 3, 3), bool), block((3, 3, 3), 1, 1, 1)
    if flip:
        a, b = b, a
    assert dice(a, b) == 0.0
    assert hd95(a, b, (1.0, 1.0, 1.0)) is None


@given(arrays.arrays(bool, SHAPES), SPACINGS)
def test_a_perfect_prediction_scores_one_and_zero(mask, spacing):
    if mask.any():
        assert dice(mask, mask) == 1.0
        assert hd95(mask, mask, spacing) == 0.0


@pytest.mark.parametrize("score", [dice, lambda a, b: hd95(a, b, (1.0, 1.0, 1.0))])
def test_masks_of_two_shapes_are_refused(score):
    with pytest.raises(ValueError, match=r"\(2, 2, 2\) and \(2, 2, 1\)"):
        score(np.ones((2, 2, 2), bool), np.ones((2, 2, 1), bool))
