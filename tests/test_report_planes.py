"""Three planes: one voxel, one scale in mm, the patient the right way, outlines where the labels are."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.path import Path as Polygon
from PIL import Image

from medcontext.evaluation.plane_pictures import Column, plane_pictures
from medcontext.evaluation.planes import LEAST, MARGIN, SIDES, choose_voxel, three_planes
from medcontext.evaluation.slice_paths import cells, grey, outline
from tests.html_pages import Page

SHAPE, SPACING = (20, 24, 10), (1.0, 0.5, 3.0)


def boxes() -> np.ndarray:
    labels = np.zeros(SHAPE, np.int32)
    labels[4:9, 5:12, 2:6], labels[9:13, 8:15, 4:8] = 1, 5
    return labels


@pytest.mark.parametrize("whole", [False, True])
def test_the_planes_show_the_same_voxel_and_are_cut_alike(whole):
    labels = boxes()
    unique = np.arange(labels.size, dtype=np.float64).reshape(SHAPE)
    voxel = (7, 9, 4)
    planes = three_planes(unique, [labels], {1: (1,), 5: (5,)}, SPACING, voxel, whole=whole)
    assert [plane.name for plane in planes] == ["axial", "coronal", "sagittal"]
    for plane, axis in zip(planes, (2, 1, 0), strict=True):
        assert (plane.index, plane.count) == (voxel[axis], SHAPE[axis])
        assert plane.image[plane.cross] == unique[voxel]
        assert plane.maps[0][:, *plane.cross].tolist() == [labels[voxel] == 1, labels[voxel] == 5]
        assert plane.side == planes[0].side
        assert plane.spacing == tuple(SPACING[other] for other in (2, 1, 0) if other != axis)
        # The same place in mm from the edges of the square, whichever plane shows it.
        if whole:
            assert plane.image.shape == tuple(SHAPE[other] for other in (2, 1, 0) if other != axis)
    x = [plane.corner[1] + (plane.cross[1] + 0.5) * plane.spacing[1] for plane in planes]
    y = [plane.corner[0] + (plane.cross[0] + 0.5) * plane.spacing[0] for plane in planes]
    assert x[0] == pytest.approx(x[1]), "left to right, in axial and coronal"
    assert y[1] == pytest.approx(y[2]), "up and down, in coronal and sagittal"
    assert y[0] == pytest.approx(x[2]), "front to back, in axial and sagittal"


def test_right_front_and_head_are_where_the_letters_say():
    gradients = np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in SHAPE), indexing="ij"))
    letters = {"R": (0, -1), "L": (0, 1), "A": (1, -1), "P": (1, 1), "S": (2, -1), "I": (2, 1)}
    for axis, gradient in enumerate(gradients):
        # RAS+: the values of an axis grow towards R, A or S... and the array's first axis grows to the patient's right.
        for plane in three_planes(gradient, [boxes()], {1: (1, 5)}, SPACING, (7, 9, 4)):
            left, right, upper, lower = SIDES[plane.name]
            across = plane.image[0, -1] - plane.image[0, 0]
            down = plane.image[-1, 0] - plane.image[0, 0]
            assert np.sign(across) == (letters[right][1] * -1 if letters[right][0] == axis else 0)
            assert np.sign(down) == (letters[lower][1] * -1 if letters[lower][0] == axis else 0)
            assert (letters[left][0], letters[upper][0]) == (letters[right][0], letters[lower][0])


@settings(max_examples=40, deadline=None)
@given(
    arrays(bool, (9, 7, 8)),
    st.tuples(*[st.floats(0.3, 6)] * 3),
)
def test_all_that_is_labelled_lies_within_the_square_in_mm(mask, spacing):
    labels = mask.astype(np.int32)
    voxel = choose_voxel(labels, [])
    for plane in three_planes(np.zeros(mask.shape), [labels], {1: (1,)}, spacing, voxel):
        axis = {"axial": 2, "coronal": 1, "sagittal": 0}[plane.name]
        assert plane.maps[0].sum() == np.take(labels, voxel[axis], axis).sum(), "nothing labelled is cut off"
        for place in (0, 1):
            first = plane.corner[place]
            last = first + plane.image.shape[place] * plane.spacing[place]
            assert first > -plane.spacing[place]
            assert last < plane.side + plane.spacing[place]
    longest = max(np.array(mask.shape) * spacing)
    found = np.argwhere(mask)
    extent = ((np.ptp(found, axis=0) + 1) * spacing).max() if len(found) else 0
    assert plane.side == pytest.approx(max(MARGIN * extent, LEAST * longest) if len(found) else longest)


def test_the_voxel_lies_where_most_is_labelled_and_disputed():
    truth = boxes()
    x, y, z = choose_voxel(truth, [])
    both = [np.isin(np.arange(n), np.flatnonzero((truth == 1).any(apart) & (truth == 5).any(apart)))
            for n, apart in zip(SHAPE, ((1, 2), (0, 2), (0, 1)), strict=True)]  # fmt: skip
    assert both[1][y]
    assert both[2][z]
    one = (truth == 1).astype(np.int32)
    wrong = one.copy()
    wrong[6, 5:12, 2:6] = 0
    assert choose_voxel(one, [wrong])[0] == 6, "the slice that is missed"
    assert choose_voxel(one * 0, []) == (10, 12, 5)
    stacked = np.stack([truth == 1, truth == 5])
    assert choose_voxel(stacked, [stacked]) == choose_voxel(truth, [truth])
    assert (x, y, z) == choose_voxel(truth, [truth])


def filled(data: str, shape: tuple[int, int], scale: float = 2.0) -> np.ndarray:
    """Which voxels' centres lie inside the outlines, by the rule of odd crossings."""
    inside = np.zeros(shape, bool)
    rows, columns = np.indices(shape)
    centres = np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5], axis=1) * scale
    for part in data.split("M")[1:]:
        start, _, moves = part.rstrip("z").partition("l")
        steps = np.array(moves.split(), dtype=float).reshape(-1, 2)
        corners = np.cumsum([np.array(start.split(), dtype=float), *steps], axis=0)
        inside ^= Polygon([*corners, corners[0]], closed=True).contains_points(centres).reshape(shape)
    return inside


@settings(max_examples=60, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_an_outline_goes_around_the_mask_and_nothing_else(mask):
    np.testing.assert_array_equal(filled(outline(mask), mask.shape), mask)


@settings(max_examples=60, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_hidden_cells_are_the_masks_voxels(mask):
    drawn = np.zeros(mask.shape, int)
    for left, top, wide, tall, back in re.findall(r"M(\d+) (\d+)h(\d+)v(\d+)h(-\d+)z", cells(mask)):
        left, top, wide, tall = (int(each) // 2 for each in (left, top, wide, tall))
        assert int(back) == -2 * wide
        drawn[top : top + tall, left : left + wide] += 1
    np.testing.assert_array_equal(drawn, mask)


def decoded(address: str) -> np.ndarray:
    data = base64.b64decode(address.partition(";base64,")[2])
    return np.asarray(Image.open(io.BytesIO(data)))


def test_grey_pictures_are_exact_where_small_and_compact_where_large():
    rng = np.random.default_rng(0)
    small = rng.normal(size=(30, 40))
    picture = decoded(grey(small))
    low, high = np.percentile(small, [1, 99.5])
    np.testing.assert_allclose(picture, np.clip((small - low) / (high - low), 0, 1) * 255, atol=0.51)
    large = np.cumsum(rng.normal(size=(600, 500)), axis=1)
    assert grey(large).startswith("data:image/jpeg")
    assert max(decoded(grey(large)).shape) == 360
    assert len(grey(large)) < 60_000
    assert decoded(grey(np.zeros((4, 4)))).max() == 0


def test_pictures_have_a_square_for_each_plane_and_column():
    labels = boxes()
    predicted = np.roll(labels, 1, axis=0)
    image = labels.astype(float)
    hidden = np.zeros((1, *SHAPE), bool)
    hidden[0, 4:12, 6:18] = True
    maps = [np.stack([each == 1, each == 5]) for each in (labels, predicted)]
    planes = three_planes(image, [*maps, hidden], {}, SPACING, (9, 9, 4))
    columns = [
        Column("truth", "", 0, numbered=True),
        Column("run", "Dice 0.5", 1, outlined=0),
        Column("hidden", "", None, hidden=2),
    ]
    html = plane_pictures("here", [planes], columns, "what is seen")
    page = Page(html)
    assert page.labelled("div") == ["what is seen"]
    assert page.unsaid == []
    squares = [attrs["viewbox"] for tag, attrs in page.tags if tag == "svg" and attrs["class"] == "slice"]
    assert squares == [f"0 0 {planes[0].side:.5g} {planes[0].side:.5g}"] * 9
    first, second, third = re.findall(r'<svg class="slice".*?</svg>', html)[:3]
    assert re.findall(r'href="#([^"]*)" stroke', first) == ["here-axial-0-0", "here-axial-0-1"]
    assert [f">{number}</text>" in first for number in (1, 2)] == [True, True]
    assert re.findall(r'href="#([^"]*)" class="truth"', second) == ["here-axial-0-0", "here-axial-0-1"]
    assert re.findall(r'href="#([^"]*)" stroke', second) == ["here-axial-1-0", "here-axial-1-1"]
    assert ">1</text>" not in second
    assert re.findall(r'href="#([^"]*)"', third) == ["here-axial-image-0", "here-axial-2-0"]
    ids = {attrs["id"]: attrs for _, attrs in page.tags if "id" in attrs}
    assert {attrs["href"][1:] for tag, attrs in page.tags if tag == "use"} <= ids.keys()
    for plane in planes:
        for place in (0, 1):
            for structure, mask in enumerate(plane.maps[place]):
                found = ids.get(f"here-{plane.name}-{place}-{structure}")
                assert (found is not None) == mask.any()
                if found is not None:
                    np.testing.assert_array_equal(filled(found["d"], mask.shape), mask)
        covered = ids[f"here-{plane.name}-2-0"]
        assert covered["class"] == "hidden"
        assert covered["d"] == cells(plane.maps[2][0])
