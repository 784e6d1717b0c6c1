"""The facts that a plan is made from, beside plain formulas; the hash that finds duplicates, beside nibabel."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medcontext.data.facts import PERCENTILE_VOXELS, CaseFacts, by_direction, count_labels, gather_facts
from medcontext.data.labels import TABLE_SIZE, Labels
from medcontext.data.scan import LabelMap, Scan
from medcontext.data.voxel_hash import voxel_hash
from tests.conftest import oriented

CODES = st.tuples(st.permutations(["RL", "AP", "SI"]), st.tuples(*[st.integers(0, 1)] * 3)).map(
    lambda drawn: "".join(pair[side] for pair, side in zip(*drawn, strict=True))
)


def facts_of(image, label, declared=None, affine=None):
    affine = np.eye(4) if affine is None else affine
    labels = LabelMap(Path("l"), label.astype(np.int32), affine, None)
    return gather_facts(Scan(Path("i"), image, affine, None), labels, count_labels(labels.array), declared)


@given(st.integers(0, 1000), st.sampled_from("CF"))
def test_facts_are_what_plain_formulas_give(seed, order):
    rng = np.random.default_rng(seed)
    image = np.zeros((2, 9, 8, 7), np.float32)
    corner = rng.integers(0, 3, 3)
    size = rng.integers(1, 5, 3)
    inside = tuple(slice(a, a + n) for a, n in zip(corner, size, strict=True))
    image[(slice(None), *inside)] = rng.uniform(1, 9, (2, *size))
    label = rng.choice([0, 2, 3, 4, 9], (9, 8, 7))
    declared = Labels({2: "a", 3: "b"}, background=(4,), ignore=9)
    facts = facts_of(np.asarray(image, order=order), np.asarray(label, order=order), declared)
    assert facts.voxels == {n: int((label == n).sum()) for n in (2, 3) if (label == n).any()}
    assert facts.ignored == int((label == 9).sum())
    assert facts.filled == pytest.approx(np.prod(size) / label.size)
    for (low, few, most, high), channel in zip(facts.intensities, image, strict=True):
        assert (low, high) == (channel.min(), channel.max())
        assert (few, most) == pytest.approx(tuple(np.percentile(channel, (0.5, 99.5))))
    wanted = image[:, np.isin(label, [2, 3])].T
    assert sorted(map(tuple, facts.foreground)) == sorted(map(tuple, wanted))


def test_percentiles_of_a_large_scan_come_near_those_of_all_its_voxels():
    image = np.random.default_rng(0).normal(50, 20, (1, 100, 100, 60)).astype(np.float32)
    assert image.size > 2 * PERCENTILE_VOXELS
    # A border one voxel thick is what a stride of the row length would see alone, or not at all.
    image[:, :, :, 0] = 1000
    (low, few, most, high) = facts_of(image, np.zeros(image.shape[1:])).intensities[0]
    assert (low, high) == (image.min(), image.max())
    assert few == pytest.approx(np.percentile(image, 0.5), abs=1)
    assert most == np.percentile(image, 99.5) == 1000


@given(st.lists(st.integers(-3, 5) | st.integers(TABLE_SIZE - 2, TABLE_SIZE + 2), min_size=8, max_size=8))
def test_labels_are_counted(numbers):
    array = np.array(numbers, np.int32).reshape(2, 2, 2)
    assert count_labels(array) == {n: numbers.count(n) for n in sorted(set(numbers))}


def test_the_sample_of_the_foreground_is_bounded_and_spread():
    image = np.arange(30**3, dtype=np.float32).reshape(1, 30, 30, 30)
    sample = facts_of(image, np.ones((30, 30, 30))).foreground
    assert 2_000 <= len(sample) < 4_000
    assert np.histogram(sample, 10, (0, 30**3))[0].min() > 150


@given(CODES)
def test_directions_are_those_of_nibabel(codes):
    affine = oriented(np.zeros((2, 3, 4)), np.diag([1.0, 2, 3, 1]), codes)[1]
    facts = facts_of(np.zeros((1, 2, 3, 4), np.float32), np.zeros((2, 3, 4)), affine=affine)
    assert facts.orientation == codes
    assert by_direction(facts.orientation, facts.spacing) == pytest.approx((1, 2, 3))


def test_facts_survive_a_way_through_json():
    facts = facts_of(np.random.default_rng(0).normal(0, 1, (2, 5, 6, 7)).astype(np.float32), np.ones((5, 6, 7)))
    again = CaseFacts.from_dict(facts.to_dict(), facts.foreground)
    assert {**vars(again), "foreground": None} == {**vars(facts), "foreground": None}


@given(CODES, st.integers(0, 1000), st.sampled_from("CF"))
def test_the_hash_is_of_what_is_shown_and_of_nothing_else(codes, seed, order):
    rng = np.random.default_rng(seed)
    array = rng.integers(0, 1000, rng.integers(2, 6, 3)).astype(np.float32)
    affine = np.diag([0.7, 0.8, 3, 1]) + np.pad(rng.normal(0, 0.05, (3, 3)), (0, 1))
    expected = voxel_hash(array, affine)
    turned, turned_affine = oriented(array, affine, codes)
    assert nib.aff2axcodes(turned_affine) == tuple(codes)
    assert voxel_hash(np.asarray(turned, order=order), turned_affine) == expected
    place = tuple(rng.integers(0, array.shape))
    array[place] += 1
    assert voxel_hash(array, affine) != expected


def test_scans_of_other_shapes_hash_differently():
    voxels = np.arange(24, dtype=np.float32)
    shapes = [(2, 3, 4), (4, 3, 2), (1, 4, 6), (24, 1, 1), (1, 1, 24)]
    assert len({voxel_hash(voxels.reshape(shape, order="F"), np.eye(4)) for shape in shapes}) == len(shapes)
