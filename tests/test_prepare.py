"""What the network sees of a case: the right values, and the same in training and prediction."""

from __future__ import annotations

import dataclasses
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medcontext.data.labels import Labels
from medcontext.data.plan import Normalisation, Plan
from medcontext.data.prepare import KEPT_PLACES, prepare_case, prepare_image, read_prepared, write_prepared
from medcontext.data.scan import LabelMap, Scan
from medcontext.data.stored import StoredArray
from medcontext.errors import MedContextError

CASE = Normalisation("case")
CT = Normalisation("ct", -150.0, 250.0, 40.0, 80.0)
LABELS = Labels({3: "a", 7: "b"}, ignore=9)


def plan_for(channels=1, normalisation=CASE, spacing=(1.0, 1.0, 1.0), labels=LABELS) -> Plan:
    return Plan("test", channels, labels, "RAS", spacing, normalisation, (8, 8, 8), 2, 10)


def scan_of(array: np.ndarray) -> Scan:
    return Scan("scan.nii.gz", array.astype(np.float32), np.eye(4), None)


def labels_of(array: np.ndarray) -> LabelMap:
    return LabelMap("label.nii.gz", array.astype(np.int32), np.eye(4), None)


def by_hand(image: np.ndarray) -> np.ndarray:
    """Clipped to percentiles and standardised, in float64, channel by channel."""
    low, high = np.percentile(image.astype(np.float64), (0.5, 99.5), axis=(1, 2, 3), keepdims=True)
    clipped = np.clip(image.astype(np.float64), low, high)
    axes = {"axis": (1, 2, 3), "keepdims": True}
    return (clipped - clipped.mean(**axes)) / clipped.std(**axes)


@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 1e5), offset=st.floats(-1, 50))
@settings(deadline=None, max_examples=30)
def test_mri_is_standardised_channel_by_channel(seed, scale, offset):
    image = ((np.random.default_rng(seed).gamma(2, 1, (2, 8, 9, 7)) + offset) * scale).astype(np.float32)
    image[1] *= 3
    before = image.copy()
    assert np.allclose(prepare_image(scan_of(image), plan_for(2))[0], by_hand(image), atol=2e-3)
    assert np.array_equal(image, before)


def test_a_channel_of_few_points_keeps_them():
    """As a map of clicks or scribbles; between percentiles that are the same nothing would be left of it."""
    image = np.random.default_rng(0).gamma(2, 1, (2, 16, 16, 16)).astype(np.float32)
    image[1] = 0
    image[1, 3, 4:8, 5] = 2
    prepared, _ = prepare_image(scan_of(image), plan_for(2))
    share = (image[1] > 0).mean()
    expected = (image[1] - 2 * share) / (2 * np.sqrt(share * (1 - share)))
    assert np.allclose(prepared[1], expected, rtol=1e-4)


def test_ct_keeps_its_scale():
    image = np.random.default_rng(0).normal(50, 300, (1, 8, 9, 7)).astype(np.float32)
    before = image.copy()
    expected = (np.clip(image.astype(np.float64), -150, 250) - 40) / 80
    assert np.allclose(prepare_image(scan_of(image), plan_for(normalisation=CT))[0], expected, atol=1e-5)
    assert np.array_equal(image, before)


def test_percentiles_of_large_scans_are_those_of_all_voxels():
    """A ramp along each axis in turn: a sample that met only some columns of it would be off."""
    for axis in range(3):
        ramp = np.moveaxis(np.broadcast_to(np.arange(1.0, 257.0), (128, 64, 256)), -1, axis).astype(np.float32)
        prepared, _ = prepare_image(scan_of(ramp[None]), plan_for())
        assert np.allclose(prepared, by_hand(ramp[None]), atol=0.01)


@given(
    seed=st.integers(0, 1000),
    start=st.tuples(*[st.integers(0, 5)] * 3),
    size=st.tuples(*[st.integers(2, 6)] * 3),
    kind=st.sampled_from([CASE, CT]),
    channels=st.integers(1, 2),
    spacing=st.sampled_from([(1.0, 1.0, 1.0), (1.0, 0.7, 1.6)]),
)
@settings(deadline=None, max_examples=60)
def test_an_empty_border_changes_nothing_for_training_and_prediction(seed, start, size, kind, channels, spacing):
    rng = np.random.default_rng(seed)
    image = np.full((channels, 12, 13, 14), 0.0 if kind is CASE else -1000.0)
    box = tuple(slice(first, first + length) for first, length in zip(start, size, strict=True))
    # The first channel fills the box; the second is all empty, or the last one is.
    image[(seed % channels, *box)] = rng.uniform(50, 200, size)
    label = rng.choice([3, 7, 9], image.shape[1:])
    plan = plan_for(channels, kind, spacing)
    seen, where = prepare_image(scan_of(image), plan)
    assert where == box
    alone, whole = prepare_image(scan_of(image[:, *box]), plan)
    assert whole == tuple(slice(0, length) for length in size)
    assert np.array_equal(seen, alone)
    case = prepare_case(scan_of(image), labels_of(label), plan)
    expected = prepare_case(scan_of(image[:, *box]), labels_of(label[box]), plan)
    assert np.array_equal(case.image, seen)
    assert np.array_equal(case.label, expected.label)
    assert case.label.shape == seen.shape[1:]
    assert (case.label != 0).all()
    assert all(np.array_equal(own, other) for own, other in zip(case.places, expected.places, strict=True))
    assert np.array_equal(prepare_case(scan_of(image), None, plan).image, seen)


@pytest.mark.parametrize("signs", list(product((1, -1), repeat=3)))
def test_a_scan_of_one_slice_is_prepared_however_it_is_turned(signs):
    image = np.random.default_rng(0).gamma(2, 1, (1, 6, 5, 1)).astype(np.float32)
    scan = dataclasses.replace(scan_of(image), affine=np.diag([*signs, 1.0]))
    labels = dataclasses.replace(labels_of(np.ones((6, 5, 1))), affine=scan.affine)
    prepared = prepare_case(scan, labels, plan_for())
    assert prepared.image.shape == (1, *prepared.label.shape) == (1, 6, 5, 1)


def test_an_empty_scan_is_kept_whole():
    for kind, value in ((CASE, 0.0), (CT, -1000.0)):
        nothing = np.full((1, 5, 6, 7), value)
        case = prepare_case(scan_of(nothing), labels_of(np.zeros((5, 6, 7))), plan_for(normalisation=kind))
        assert case.image.shape == (1, 5, 6, 7)
        assert np.isfinite(case.image).all()
        assert [len(places) for places in case.places] == [0, 0]


def test_places_are_all_of_a_small_class_and_evenly_many_of_a_large_one():
    label = np.zeros((40, 50, 60), dtype=int)
    label[:, :25] = 3
    label[5, 40, 7:10] = 7
    label[:, 45:] = 9
    case = prepare_case(scan_of(np.ones((1, 40, 50, 60))), labels_of(label), plan_for())
    large, small = case.places
    assert sorted(map(tuple, small.tolist())) == [(5, 40, 7), (5, 40, 8), (5, 40, 9)]
    assert len(large) == len(set(map(tuple, large.tolist()))) == KEPT_PLACES
    assert (label[tuple(large.T)] == 3).all()
    # Evenly: every row, column and slice has about its share, within five standard deviations of a fair draw.
    for axis, length in enumerate((40, 25, 60)):
        share = np.bincount(large[:, axis], minlength=length)[:length]
        assert np.abs(share - KEPT_PLACES / length).max() < 5 * np.sqrt(KEPT_PLACES / length)


@pytest.mark.parametrize(("labels", "kind"), [(LABELS, np.int16), (Labels({3: "a", 7: "b"}), np.uint8)])
def test_a_case_is_read_back_as_it_was(tmp_path, labels, kind):
    rng = np.random.default_rng(0)
    array = rng.choice([0, 3, 7], (70, 18, 20), p=[0.9, 0.09, 0.01])
    image = rng.normal(10, 1, (2, *array.shape))
    case = prepare_case(scan_of(image), labels_of(array), plan_for(2, labels=labels))
    write_prepared(tmp_path / "case", case)
    again = read_prepared(tmp_path / "case")
    assert isinstance(again.image, StoredArray)
    assert isinstance(again.label, StoredArray)
    assert again.image.shape == case.image.shape
    assert again.label.dtype == again.label[:].dtype == kind
    assert np.array_equal(again.label, case.label)
    # Half precision: 11 binary digits.
    assert np.allclose(again.image, case.image, rtol=2.0**-11, atol=1e-6)
    box = (slice(60, 69), slice(3, 18), slice(0, 5))
    assert np.array_equal(again.image[(slice(None), *box)], again.image[:][(slice(None), *box)])
    assert np.array_equal(again.label[box], case.label[box])
    for one, other in zip(again.places, case.places, strict=True):
        assert one.dtype == np.int32
        assert np.array_equal(one, other)


def test_intensities_that_a_foolish_plan_makes_huge_stay_finite(tmp_path):
    foolish = Normalisation("ct", -1000, 3000, 0, 1e-3)
    image = np.linspace(-1000, 3000, 4**3).reshape(1, 4, 4, 4)
    case = prepare_case(scan_of(image), labels_of(np.ones((4, 4, 4))), plan_for(normalisation=foolish))
    write_prepared(tmp_path / "case", case)
    assert np.isfinite(read_prepared(tmp_path / "case").image).all()


def test_a_scan_that_does_not_fit_the_plan_is_refused():
    with pytest.raises(MedContextError, match="channels"):
        prepare_image(scan_of(np.ones((2, 4, 4, 4))), plan_for())
    broken = np.ones((1, 4, 4, 4))
    broken[0, 1, 2, 3] = np.nan
    with pytest.raises(MedContextError, match="not finite"):
        prepare_image(scan_of(broken), plan_for())
