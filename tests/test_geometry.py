"""There and back again: nothing moves between a scan's own grid and the plan's."""

from __future__ import annotations

import dataclasses

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medcontext.data.geometry import (
    largest_class,
    reorient,
    reorient_back,
    reoriented_spacing,
    resample_image,
    resample_labels,
    resampled_size,
)
from medcontext.data.plan import Normalisation, Plan
from medcontext.data.prepare import prepare_case, prepare_image, read_prepared, write_prepared
from medcontext.data.scan import LabelMap, Scan
from medcontext.errors import MedContextError
from medcontext.inference.predictor import to_native
from tests.conftest import oriented

CODES = [
    first + second + third
    for letters in ("RAS", "RSA", "ARS", "ASR", "SRA", "SAR")
    for first in (letters[0], {"R": "L", "A": "P", "S": "I"}[letters[0]])
    for second in (letters[1], {"R": "L", "A": "P", "S": "I"}[letters[1]])
    for third in (letters[2], {"R": "L", "A": "P", "S": "I"}[letters[2]])
]
codes = st.sampled_from(CODES)


def oblique(seed: int, spacing=(0.8, 1.1, 2.5)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(np.eye(3) + 0.15 * rng.normal(size=(3, 3)))
    turn *= np.sign(np.diag(turn))
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = rng.normal(0, 50, 3)
    return affine


def plan_with(orientation: str, spacing=(1.0, 1.0, 1.0), **changes) -> Plan:
    plan = Plan("test", 1, {3: "a", 7: "b"}, orientation, spacing, Normalisation("case"), (8, 8, 8), 2, 10)
    return dataclasses.replace(plan, **changes)


@given(stored=codes, target=codes, seed=st.integers(0, 100))
def test_reorienting_agrees_with_nibabel_and_can_be_undone(stored, target, seed):
    array = np.random.default_rng(seed).normal(size=(3, 4, 5))
    array, affine = oriented(array, oblique(seed), stored)
    turned = reorient(array[None], affine, target)
    expected, turned_affine = oriented(array, affine, target)
    assert np.array_equal(turned[0], expected)
    assert reoriented_spacing(affine, target) == pytest.approx(tuple(nib.affines.voxel_sizes(turned_affine)))
    assert np.array_equal(reorient_back(turned, affine, target)[0], array)


@given(stored=codes, seed=st.integers(0, 50), spacing=st.tuples(*[st.floats(0.7, 2.5)] * 3))
@settings(deadline=None)
def test_a_case_goes_to_the_plan_and_back(stored, seed, spacing):
    """A large block of each label, prepared and predicted perfectly, comes back where it was, in its own numbers."""
    native = np.zeros((14, 16, 12), dtype=np.int32)
    native[2:8, 3:13, 2:10] = 3
    native[8:13, 3:13, 2:10] = 7
    array, affine = oriented(native, oblique(seed), stored)
    scan = Scan("a", array[None].astype(np.float32), affine, None)
    plan = plan_with("SAR", spacing)
    case = prepare_case(scan, LabelMap("a", array, affine, None), plan)
    assert case.image.shape[1:] == case.label.shape
    logits = torch.nn.functional.one_hot(torch.from_numpy(case.label).long(), 3).movedim(-1, 0).float()
    back = to_native(logits, plan, array.shape, affine)
    assert back.shape == array.shape
    assert set(np.unique(back)) <= {0, 3, 7}
    for label in (3, 7):
        overlap = 2 * ((back == label) & (array == label)).sum() / ((back == label).sum() + (array == label).sum())
        assert overlap > 0.6
        # Half a voxel of the coarser of the two grids, along any axis.
        moved = np.abs(np.argwhere(back == label).mean(0) - np.argwhere(array == label).mean(0)).max()
        assert moved <= 0.5 * max(1, max(spacing) / 0.8)


def test_at_its_own_spacing_a_case_comes_back_exactly():
    rng = np.random.default_rng(0)
    array, affine = oriented(rng.choice([0, 3, 7], (9, 7, 8)).astype(np.int32), oblique(1), "LSP")
    plan = plan_with("SAR", reoriented_spacing(affine, "SAR"))
    case = prepare_case(
        Scan("a", rng.normal(size=(1, *array.shape)), affine, None), LabelMap("a", array, affine, None), plan
    )
    logits = torch.nn.functional.one_hot(torch.from_numpy(case.label).long(), 3).movedim(-1, 0).float()
    assert np.array_equal(to_native(logits, plan, array.shape, affine), array)
    for k, value in enumerate((3, 7)):
        assert len(case.places[k]) == (array == value).sum()
        assert (case.label[tuple(case.places[k].T)] == k + 1).all()


def test_resampling_keeps_the_extent_and_a_linear_ramp():
    size = resampled_size((10, 20, 30), (3, 1, 1), (1, 1, 2))
    assert size == (30, 20, 15)
    ramp = torch.arange(30.0).expand(1, 10, 20, 30)
    centres = (torch.arange(15) + 0.5) * 2 - 0.5
    assert torch.allclose(resample_image(ramp, size)[0, 4, 5], centres)
    assert resample_image(ramp, (10, 20, 30)) is ramp


@given(size=st.tuples(*[st.integers(2, 9)] * 3), seed=st.integers(0, 20))
@settings(deadline=None)
def test_one_class_at_a_time_is_the_same_as_all_at_once(size, seed):
    labels = torch.randint(0, 5, (4, 6, 5), generator=torch.Generator().manual_seed(seed))
    one_hot = torch.nn.functional.one_hot(labels, 5).movedim(-1, 0).float()
    together = torch.nn.functional.interpolate(one_hot[None], size, mode="trilinear")[0]
    first, second = together.topk(2, dim=0).values
    clear = first - second > 1e-5
    assert torch.equal(resample_labels(labels, size, 5)[clear], together.argmax(0)[clear])
    scores = torch.randn(5, *size, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(largest_class(scores, size), scores.argmax(0))


def test_normalisation_ignores_the_scale_of_an_mri_and_keeps_that_of_a_ct():
    rng = np.random.default_rng(0)
    image = rng.normal(50, 20, (2, 8, 9, 7)).astype(np.float32)
    plan = plan_with("SAR", channels=2)
    first = prepare_image(Scan("a", image, np.eye(4), None), plan)
    scaled = prepare_image(Scan("a", image * 3000 + 17, np.eye(4), None), plan)
    assert np.allclose(first, scaled, atol=1e-3)
    assert np.allclose(first.mean((1, 2, 3)), 0, atol=1e-4)
    assert np.allclose(first.std((1, 2, 3)), 1, atol=1e-3)
    ct = plan_with("RAS", channels=2, normalisation=Normalisation("ct", 30, 70, 50, 10))
    assert np.allclose(
        prepare_image(Scan("a", image, np.eye(4), None), ct), (np.clip(image, 30, 70) - 50) / 10, atol=1e-5
    )


def test_a_scan_of_other_channels_is_refused():
    with pytest.raises(MedContextError, match="channels"):
        prepare_image(Scan("a", np.ones((2, 4, 4, 4), np.float32), np.eye(4), None), plan_with("SAR"))


def test_a_prepared_case_is_read_back_as_it_was(tmp_path):
    array = np.random.default_rng(0).choice([0, 3, 7], (9, 7, 8)).astype(np.int32)
    case = prepare_case(
        Scan("a", array[None] * 1.5, np.eye(4), None), LabelMap("a", array, np.eye(4), None), plan_with("SAR")
    )
    write_prepared(tmp_path / "case", case)
    again = read_prepared(tmp_path / "case")
    assert isinstance(again.image, np.memmap)
    assert np.array_equal(again.image, case.image)
    assert np.array_equal(again.label, case.label)
    assert all(np.array_equal(a, b) for a, b in zip(again.places, case.places, strict=True))
