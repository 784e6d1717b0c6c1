"""Overlap and surface distances against brute force, other libraries, and numbers worked out by hand."""

from __future__ import annotations

import itertools
import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from medcontext.evaluation.metrics import METRICS, assd, dice, hd95, iou, measure, nsd
from medcontext.evaluation.surfaces import Mask, border, element_areas, element_distances

SHAPES = arrays.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5)
SPACINGS = st.tuples(*[st.floats(0.2, 8.0)] * 3)
UNEVEN = (0.7, 1.3, 5.0)


def pairs() -> st.SearchStrategy[tuple[Mask, Mask]]:
    """Two masks of one shape."""
    masks = SHAPES.map(lambda shape: arrays.arrays(bool, shape))
    return masks.flatmap(lambda mask: st.tuples(mask, mask))


def block(shape: tuple[int, ...], *slices: Any) -> Mask:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slices)] = True
    return mask


def with_hole() -> Mask:
    mask = block((7, 7, 7), slice(1, 6), slice(1, 6), slice(1, 6))
    mask[3, 3, 3] = False
    return mask


def ball(radius: float, centre: float = 8.0) -> Mask:
    x, y, z = np.ogrid[:17, :17, :17]
    return (x - centre) ** 2 + (y - 8) ** 2 + (z - 8) ** 2 <= radius**2


SOLID = block((7, 7, 7), slice(1, 6), slice(1, 6), slice(1, 6))
NOISE = np.random.default_rng(0).random((2, 9, 8, 7)) < 0.3
AWKWARD = {
    "the wall of a hole is surface": (with_hole(), SOLID),
    "whole volume": (np.ones((4, 3, 5), bool), np.ones((4, 3, 5), bool)),
    "whole volume and one voxel": (np.ones((4, 3, 5), bool), block((4, 3, 5), 1, 1, 2)),
    "both touch the border": (block((6, 6, 6), slice(0, 3)), block((6, 6, 6), slice(3, 6))),
    "single voxels in opposite corners": (block((6, 6, 6), 0, 0, 0), block((6, 6, 6), 5, 5, 5)),
    "in several parts": (block((9, 4, 4), slice(0, 9, 4)), block((9, 4, 4), slice(2, 7))),
    "one slice": (block((5, 6, 1), slice(1, 4), slice(1, 4)), block((5, 6, 1), slice(2, 5), slice(0, 4))),
    "balls": (ball(6.5), ball(5.0, 9.0)),
    "noise": (NOISE[0], NOISE[1]),
}
awkward = pytest.mark.parametrize(("a", "b"), AWKWARD.values(), ids=AWKWARD)


# Brute force, one voxel at a time


def border_points(mask: Mask, spacing: tuple[float, ...]) -> list[tuple[float, ...]]:
    """Centres in mm of the voxels with a face neighbour that is not of the mask."""
    voxels = {tuple(int(i) for i in voxel) for voxel in np.argwhere(mask)}
    steps = [step for step in itertools.product((-1, 0, 1), repeat=3) if sum(map(abs, step)) == 1]
    outer = [v for v in voxels if any(tuple(np.add(v, step).tolist()) not in voxels for step in steps)]
    return [tuple(i * size for i, size in zip(v, spacing, strict=True)) for v in outer]


def directed(points: list[tuple[float, ...]], others: list[tuple[float, ...]]) -> list[float]:
    """Every point against every other."""
    return [min(math.dist(p, q) for q in others) for p in points]


def slow_distances(a: Mask, b: Mask, spacing: tuple[float, ...]) -> tuple[list[float], list[float]]:
    points_a, points_b = border_points(a, spacing), border_points(b, spacing)
    return directed(points_a, points_b), directed(points_b, points_a)


def monai_areas(spacing: tuple[float, ...]) -> Any:
    """Area by the code of the eight voxels around a corner, the first of them being the highest bit."""
    from monai.metrics.utils import create_table_neighbour_code_to_surface_area

    areas, _ = create_table_neighbour_code_to_surface_area(spacing)
    return areas.numpy().astype(float)


def elements(mask: Mask, spacing: tuple[float, ...], areas: Any) -> list[tuple[tuple[float, ...], float]]:
    """Corners of voxels in mm around which some voxels are of the mask and some are not, and their areas."""
    around = np.pad(mask, 1)
    found = []
    for corner in np.ndindex(tuple(n + 1 for n in mask.shape)):
        code = 0
        for step in itertools.product((0, 1), repeat=3):
            code = 2 * code + int(around[tuple(np.add(corner, step))])
        if code not in (0, 255):
            found.append((tuple(i * size for i, size in zip(corner, spacing, strict=True)), float(areas[code])))
    return found


def slow_elements(a: Mask, b: Mask, spacing: tuple[float, ...]) -> tuple[list[float], list[float], list[float]]:
    """Distances of the elements of both masks, the same of the second alone, and the areas of both."""
    areas = monai_areas(spacing)
    of_a, of_b = elements(a, spacing, areas), elements(b, spacing, areas)
    there = directed([p for p, _ in of_a], [p for p, _ in of_b])
    back = directed([p for p, _ in of_b], [p for p, _ in of_a])
    return there, back, [area for _, area in (*of_a, *of_b)]


def assert_like_brute_force(a: Mask, b: Mask, spacing: tuple[float, ...]) -> None:
    there, back = slow_distances(a, b, spacing)
    near = {"rel": 1e-9, "abs": 1e-12}
    assert hd95(a, b, spacing) == pytest.approx(float(np.percentile(there + back, 95)), **near)
    larger = max(float(np.percentile(each, 95)) for each in (there, back))
    assert hd95(a, b, spacing, "directed") == pytest.approx(larger, **near)
    assert assd(a, b, spacing) == pytest.approx(sum(there + back) / len(there + back), **near)


@settings(deadline=None)
@given(pairs(), SPACINGS)
def test_distances_of_surface_voxels_equal_brute_force(masks, spacing):
    a, b = masks
    if not a.any() or not b.any():
        assert hd95(a, b, spacing) is None
        assert assd(a, b, spacing) is None
    else:
        assert_like_brute_force(a, b, spacing)


@awkward
def test_distances_equal_brute_force_where_shapes_are_awkward(a, b):
    assert_like_brute_force(a, b, UNEVEN)


def test_voxels_with_edges_at_right_angles_have_the_scores_of_their_sizes():
    rng = np.random.default_rng(0)
    a, b = (rng.random((7, 6, 5)) < 0.4 for _ in range(2))
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    turned = tuple(tuple(edge) for edge in np.diag(UNEVEN) @ turn)
    for definition in ("pooled", "directed", "weighted"):
        alike = (measure(a, b, voxel, tolerance=2.0, hd95=definition) for voxel in (UNEVEN, turned))
        assert next(alike) == pytest.approx(next(alike), rel=1e-9)


def test_distances_and_volumes_of_a_tilted_gantry_are_those_in_the_room():
    """Each slice is shifted against the one below: a sheared grid, whose axes are not at right angles."""
    rng = np.random.default_rng(1)
    a, b = (rng.random((6, 5, 4)) < 0.4 for _ in range(2))
    edges = np.array([[0.8, 0, 0], [0, 0.9, 0], [0, 1.7, 4.0]])
    surfaces = [np.argwhere(border(mask)) @ edges for mask in (a, b)]
    distances = np.linalg.norm(surfaces[0][:, None] - surfaces[1][None], axis=-1)
    every = np.concatenate([distances.min(axis=1), distances.min(axis=0)])
    scores = measure(a, b, tuple(map(tuple, edges)), tolerance=1.5)
    assert scores["hd95_mm"] == pytest.approx(np.percentile(every, 95))
    assert scores["assd_mm"] == pytest.approx(every.mean())
    assert scores["volume_ml"] == pytest.approx(a.sum() * 0.8 * 0.9 * 4.0 / 1000)


def test_the_area_of_a_sheared_surface_is_that_in_the_room():
    """The triangle that cuts one corner off a cube becomes the one between the middles of the three edges."""
    edges = np.array([[0.8, 0, 0], [0, 0.9, 0], [0, 1.7, 4.0]])
    area = np.linalg.norm(np.cross(edges[1] - edges[0], edges[2] - edges[0])) / 2 / 4
    assert element_areas(tuple(map(tuple, edges)))[1] == pytest.approx(area)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_areas_do_not_hang_on_how_a_sheared_grid_is_stored(axis):
    """With an axis the other way round, the same voxels have the same neighbours, on its other side."""
    edges = np.array([[1.0, 0.2, 0.0], [0.0, 1.2, 0.1], [0.3, 2.1, 4.5]])
    turned = edges.copy()
    turned[axis] *= -1
    bit = 4 >> axis
    mirrored = [sum(1 << (place ^ bit) for place in range(8) if code >> place & 1) for code in range(256)]
    areas, other = (element_areas(tuple(map(tuple, each))) for each in (edges, turned))
    assert other[mirrored] == pytest.approx(areas)


@pytest.mark.parametrize("corner", list(product((0, 1), repeat=3)))
def test_corners_that_are_cut_off_a_sheared_cube_have_the_area_of_their_triangle(corner):
    edges = np.array([[1.0, 0.2, 0.0], [0.0, 1.2, 0.1], [0.3, 2.1, 4.5]])
    cuts = [edges[axis] * (0.5 - corner[axis]) for axis in range(3)]
    area = np.linalg.norm(np.cross(cuts[1] - cuts[0], cuts[2] - cuts[0])) / 2
    code = 1 << (4 * corner[0] + 2 * corner[1] + corner[2])
    assert element_areas(tuple(map(tuple, edges)))[code] == pytest.approx(area)


@settings(deadline=None, max_examples=20)
@given(pairs(), SPACINGS, st.floats(0, 10))
def test_nsd_equals_brute_force_on_random_masks(masks, spacing, tolerance):
    a, b = masks
    if a.any() and b.any():
        there, back, areas = slow_elements(a, b, spacing)
        distances = np.array(there + back)
        if np.abs(distances - tolerance).min() > 1e-3:
            expected = np.array(areas)[distances <= tolerance].sum() / sum(areas)
            assert nsd(a, b, spacing, tolerance) == pytest.approx(expected, rel=1e-5, abs=1e-7)


@awkward
def test_nsd_and_weighted_hd95_equal_brute_force_where_shapes_are_awkward(a, b):
    there, back, areas = slow_elements(a, b, UNEVEN)
    distances = np.array(there + back)
    for tolerance in (0.0, 0.75, 2.2, 11.0):
        expected = np.array(areas)[distances <= tolerance].sum() / sum(areas)
        assert nsd(a, b, UNEVEN, tolerance) == pytest.approx(expected, rel=1e-5)
    far = []
    for each, own in ((there, areas[: len(there)]), (back, areas[len(there) :])):
        reached = np.cumsum(np.array(own)[np.argsort(each)])
        far.append(np.sort(each)[int(np.argmax(reached >= (0.95 - 1e-6) * reached[-1]))])
    assert hd95(a, b, UNEVEN, "weighted") == pytest.approx(max(far))


# Other libraries


@pytest.mark.filterwarnings("ignore:monai.metrics:FutureWarning")
@awkward
def test_monai_gives_the_same(a, b):
    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_dice import compute_surface_dice
    from monai.metrics.surface_distance import compute_average_surface_distance

    one, other = (torch.from_numpy(each.copy())[None, None] for each in (a, b))
    common = {"include_background": True, "spacing": UNEVEN}
    far = compute_hausdorff_distance(one, other, percentile=95, **common)
    assert hd95(a, b, UNEVEN, "directed") == pytest.approx(float(far), rel=1e-5, abs=1e-6)
    mean = compute_average_surface_distance(one, other, symmetric=True, **common)
    assert assd(a, b, UNEVEN) == pytest.approx(float(mean), rel=1e-5, abs=1e-6)
    shared = compute_surface_dice(one, other, [2.2], use_subvoxels=True, **common)
    assert nsd(a, b, UNEVEN, 2.2) == pytest.approx(float(shared), rel=1e-5)


@awkward
def test_medpy_gives_the_same(a, b):
    binary = pytest.importorskip("medpy.metric.binary", reason="MedPy is not installed (extra 'dev')")
    assert dice(a, b) == pytest.approx(binary.dc(a, b))
    assert iou(a, b) == pytest.approx(binary.jc(a, b))
    assert hd95(a, b, UNEVEN) == pytest.approx(binary.hd95(a, b, UNEVEN), rel=1e-9, abs=1e-12)
    assert assd(a, b, UNEVEN) == pytest.approx(binary.assd(a, b, UNEVEN), rel=1e-9, abs=1e-12)
    scores = measure(a, b, UNEVEN, tolerance=1)
    assert scores["sensitivity"] == pytest.approx(binary.sensitivity(a, b))
    assert scores["precision"] == pytest.approx(binary.precision(a, b))


@pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")
@awkward
def test_surface_distance_gives_the_same(a, b):
    other = pytest.importorskip("surface_distance", reason="surface-distance is not installed (extra 'dev')")
    distances = other.compute_surface_distances(a, b, UNEVEN)
    assert hd95(a, b, UNEVEN, "weighted") == pytest.approx(other.compute_robust_hausdorff(distances, 95), rel=1e-9)
    for tolerance in (0.0, 0.75, 2.2, 11.0):
        expected = other.compute_surface_dice_at_tolerance(distances, tolerance)
        assert nsd(a, b, UNEVEN, tolerance) == pytest.approx(expected, rel=1e-9)
    assert dice(a, b) == pytest.approx(other.compute_dice_coefficient(a, b))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), UNEVEN])
def test_areas_of_elements_are_those_of_marching_cubes(spacing):
    theirs = monai_areas(spacing)
    mirrored = [int(f"{code:08b}"[::-1], 2) for code in range(256)]
    assert element_areas(spacing) == pytest.approx(theirs[mirrored], rel=1e-6)


def test_a_slab_has_the_area_of_its_faces():
    """Away from its edges: 3 x 3 corners on each side, of 0.7 x 1.3 mm."""
    slab = block((3, 3, 4), slice(None), slice(None), slice(1, 3))
    distances = element_distances(slab, slab, UNEVEN)
    whole = float(distances.there_weights.sum())
    wider = block((4, 3, 4), slice(None), slice(None), slice(1, 3))
    more = float(element_distances(wider, wider, UNEVEN).there_weights.sum()) - whole
    # One row more: two faces of 0.7 mm by the width of 3 voxels, whose outer edges are cut off by half a voxel on
    # each side (a slant across 0.65 x 2.5 mm), and the height of two voxels less what those slants take.
    slant = math.hypot(0.65, 2.5)
    assert more == pytest.approx(0.7 * (2 * (2 * 1.3) + 4 * slant + 2 * 5.0))


# By hand


def test_hd95_of_two_voxels_is_their_distance_in_mm():
    a, b = block((4, 4, 4), 0, 0, 0), block((4, 4, 4), 1, 2, 3)
    for definition in ("pooled", "directed"):
        assert hd95(a, b, (12.0, 1.5, 4 / 3), definition) == pytest.approx(13.0)  # (12, 3, 4) mm
    assert assd(a, b, (12.0, 1.5, 4 / 3)) == pytest.approx(13.0)


def test_definitions_of_hd95_differ_where_one_direction_is_far():
    """Ten voxels, and the same ten with a far one: from there alone, the percentile is halfway to the far one."""
    a = block((41, 1, 1), slice(0, 10))
    b = a.copy()
    b[40] = True
    assert hd95(a, b, (1.0, 1.0, 1.0)) == 0.0
    assert hd95(a, b, (1.0, 1.0, 1.0), "directed") == 15.5
    assert assd(a, b, (1.0, 1.0, 1.0)) == pytest.approx(31 / 21)


def test_nsd_counts_what_lies_within_the_tolerance():
    """Cubes of one size, one a voxel of 2 mm further along: the sides lie on one another, two faces are 2 mm apart."""
    a = block((9, 9, 9), slice(2, 6), slice(2, 6), slice(2, 6))
    b = np.roll(a, 1, axis=0)
    exact = [nsd(a, b, (2.0, 1.0, 1.0), tolerance) for tolerance in (0, 0.99, 2.0)]
    assert exact[0] == exact[1]
    assert 0.5 < exact[1] < 0.8
    assert exact[2] == 1.0


def test_a_spacing_in_single_precision_is_within_its_tolerance():
    a, b = block((9, 3, 3), 0, 1, 1), block((9, 3, 3), 7, 1, 1)
    size = float(np.float32(0.3))
    assert 7 * size > 2.1
    # The near faces are six voxels apart, from the far ones it is seven.
    assert [nsd(a, b, (size, 1.0, 1.0), tolerance) for tolerance in (1.7, 2.09, 2.1)] == [0.0, 0.5, 1.0]


@given(pairs(), SPACINGS)
@settings(deadline=None)
def test_scores_are_symmetric_and_in_range(masks, spacing):
    a, b = masks
    scores = measure(a, b, spacing, tolerance=2.0)
    back = measure(b, a, spacing, tolerance=2.0)
    assert tuple(scores) == tuple(back)
    assert set(scores) == set(METRICS)
    for metric in ("dice", "iou", "nsd", "hd95_mm", "assd_mm"):
        assert scores[metric] == (back[metric] if back[metric] is None else pytest.approx(back[metric]))
    assert (scores["sensitivity"], scores["precision"]) == (back["precision"], back["sensitivity"])
    assert scores["volume_difference_ml"] == -back["volume_difference_ml"]
    for metric in ("dice", "iou", "nsd", "sensitivity", "precision"):
        assert scores[metric] is None or 0.0 <= scores[metric] <= 1.0
    for metric in ("hd95_mm", "assd_mm"):
        assert scores[metric] is None or (math.isfinite(scores[metric]) and scores[metric] >= 0.0)


@given(pairs(), SPACINGS)
@settings(deadline=None)
def test_all_at_once_is_each_by_itself(masks, spacing):
    a, b = masks
    for definition in ("pooled", "weighted"):
        scores = measure(a, b, spacing, tolerance=3.0, hd95=definition)
        alone = [dice(a, b), iou(a, b), nsd(a, b, spacing, 3.0), hd95(a, b, spacing, definition), assd(a, b, spacing)]
        at_once = [scores[key] for key in ("dice", "iou", "nsd", "hd95_mm", "assd_mm")]
        assert [v if v is None else pytest.approx(v, abs=1e-12) for v in alone] == at_once


@given(pairs())
@example((np.zeros((1, 1, 1), bool), np.ones((1, 1, 1), bool)))
def test_overlaps_count_voxels(masks):
    a, b = masks
    both, of_a, of_b = int((a & b).sum()), int(a.sum()), int(b.sum())
    assert dice(a, b) == (None if of_a + of_b == 0 else 2 * both / (of_a + of_b))
    assert iou(a, b) == (None if of_a + of_b == 0 else both / int((a | b).sum()))
    scores = measure(a, b, (1.0, 2.0, 3.0), tolerance=1)
    assert scores["sensitivity"] == (both / of_b if of_b else None)
    assert scores["precision"] == (both / of_a if of_a else None)
    volumes = [scores[key] for key in ("volume_ml", "truth_ml", "volume_difference_ml")]
    assert volumes == pytest.approx([of_a * 0.006, of_b * 0.006, (of_a - of_b) * 0.006])


def test_distances_in_voxels_leave_volumes_in_ml():
    a, b = block((9, 3, 3), 0, 1, 1), block((9, 3, 3), 7, 1, 1)
    scores = measure(a, b, (10.0, 10.0, 10.0), tolerance=7, cubes=True)
    assert (scores["hd95_mm"], scores["assd_mm"], scores["nsd"], scores["volume_ml"]) == (7.0, 7.0, 1.0, 1.0)


def test_an_object_in_neither_mask_is_not_counted():
    empty = np.zeros((3, 3, 3), bool)
    assert dice(empty, empty) is None
    assert iou(empty, empty) is None
    assert nsd(empty, empty, UNEVEN, 1) is None
    for definition in ("pooled", "directed", "weighted"):
        assert hd95(empty, empty, UNEVEN, definition) is None
    assert assd(empty, empty, UNEVEN) is None


@pytest.mark.parametrize("flip", [False, True])
def test_a_missed_object_has_no_overlap_and_no_distance(flip):
    a, b = np.zeros((3, 3, 3), bool), block((3, 3, 3), 1, 1, 1)
    if flip:
        a, b = b, a
    assert (dice(a, b), iou(a, b), nsd(a, b, UNEVEN, 100)) == (0.0, 0.0, 0.0)
    for definition in ("pooled", "directed", "weighted"):
        assert hd95(a, b, UNEVEN, definition) is None
    assert assd(a, b, UNEVEN) is None


@given(arrays.arrays(bool, SHAPES), SPACINGS)
def test_a_perfect_prediction_scores_one_and_zero(mask, spacing):
    if mask.any():
        scores = measure(mask, mask, spacing, tolerance=0)
        assert [scores[key] for key in ("dice", "iou", "nsd", "sensitivity", "precision")] == [1.0] * 5
        assert (scores["hd95_mm"], scores["assd_mm"], scores["volume_difference_ml"]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "score",
    [
        dice,
        iou,
        lambda a, b: hd95(a, b, (1.0, 1.0, 1.0)),
        lambda a, b: nsd(a, b, (1.0, 1.0, 1.0), 1),
        lambda a, b: measure(a, b, (1.0, 1.0, 1.0), tolerance=1),
    ],
)
def test_masks_of_two_shapes_are_refused(score):
    with pytest.raises(ValueError, match=r"\(2, 2, 2\) and \(2, 2, 1\)"):
        score(np.ones((2, 2, 2), bool), np.ones((2, 2, 1), bool))
