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
    TIE,
    reorient,
    reorient_back,
    reoriented_spacing,
    resample_image,
    resample_labels,
    resampled_size,
)
from medcontext.data.labels import Labels
from medcontext.data.plan import Normalisation, Plan
from medcontext.data.prepare import prepare_case
from medcontext.data.scan import LabelMap, Scan
from medcontext.inference.native import to_native
from medcontext.inference.sliding import Slab
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
    plan = Plan("test", 1, Labels({3: "a", 7: "b"}), orientation, spacing, Normalisation("case"), (8, 8, 8), 2, 10)
    return dataclasses.replace(plan, **changes)


def labels_from(logits: torch.Tensor, plan: Plan, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    whole = Slab(logits, 0, logits.shape[1])
    return to_native([whole], logits.shape[1:], plan, shape, affine).labels


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
    scan = Scan("a", array[None].astype(np.float32) + 1, affine, None)
    plan = plan_with("SAR", spacing)
    case = prepare_case(scan, LabelMap("a", array, affine, None), plan)
    assert case.image.shape[1:] == case.label.shape
    logits = torch.nn.functional.one_hot(torch.from_numpy(case.label).long(), 3).movedim(-1, 0).float()
    back = labels_from(logits, plan, array.shape, affine)
    assert back.shape == array.shape
    assert set(np.unique(back)) <= {0, 3, 7}
    for label in (3, 7):
        overlap = 2 * ((back == label) & (array == label)).sum() / ((back == label).sum() + (array == label).sum())
        # A block of 5 voxels may be 2 of the plan's.
        assert overlap > 0.5
        # Half a voxel of the coarser of the two grids, along any axis.
        moved = np.abs(np.argwhere(back == label).mean(0) - np.argwhere(array == label).mean(0)).max()
        assert moved <= 0.5 * max(1, max(spacing) / 0.8)


def test_at_its_own_spacing_a_case_comes_back_exactly():
    rng = np.random.default_rng(0)
    array, affine = oriented(rng.choice([0, 3, 7], (9, 7, 8)).astype(np.int32), oblique(1), "LSP")
    plan = plan_with("SAR", reoriented_spacing(affine, "SAR"))
    case = prepare_case(
        Scan("a", rng.normal(size=(1, *array.shape)).astype(np.float32), affine, None),
        LabelMap("a", array, affine, None),
        plan,
    )
    logits = torch.nn.functional.one_hot(torch.from_numpy(case.label).long(), 3).movedim(-1, 0).float()
    assert np.array_equal(labels_from(logits, plan, array.shape, affine), array)
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


@given(
    old=st.tuples(*[st.integers(1, 12)] * 3),
    new=st.tuples(*[st.integers(1, 14)] * 3),
    coarse=st.integers(1, 4),
    seed=st.integers(0, 10_000),
)
@settings(deadline=None, max_examples=150)
def test_labels_are_resampled_as_images_of_every_class(old, new, coarse, seed):
    """Against one-hot images resampled in float64 by PyTorch; where two classes tie, the lower one wins."""
    rng = np.random.default_rng(seed)
    blocks = rng.choice([-1, 0, 1, 2, 5, 89], [-(-n // coarse) for n in old])
    labels = np.kron(blocks, np.ones((coarse,) * 3))[tuple(slice(n) for n in old)].astype(np.int16)
    classes = np.unique(labels)
    images = torch.from_numpy(np.stack([labels == k for k in classes]).astype(np.float64))
    scores = torch.nn.functional.interpolate(images[None], new, mode="trilinear", align_corners=False)[0].numpy()
    expected = classes[(scores >= scores.max(axis=0) - TIE).argmax(axis=0)]
    resampled = resample_labels(labels, new)
    assert resampled.dtype == np.int16
    assert resampled.shape == new
    # Single precision may take a near tie for a tie; no further than that.
    ordered = np.sort(np.concatenate([scores, np.full((1, *new), -1.0)]), axis=0)
    clear = np.abs(ordered[-1] - ordered[-2] - TIE) > TIE / 2
    assert clear.mean() > 0.9
    assert np.array_equal(resampled[clear], expected[clear])


def test_labels_between_many_voxels_are_resampled_in_parts(monkeypatch):
    labels = np.random.default_rng(0).integers(0, 200, (12, 13, 14)).astype(np.uint8)
    whole = resample_labels(labels, (20, 9, 17))
    monkeypatch.setattr("medcontext.data.geometry.MIXED_VOXELS", 100)
    assert np.array_equal(resample_labels(labels, (20, 9, 17)), whole)
    assert resample_labels(labels, (12, 13, 14)) is labels


@given(size=st.tuples(*[st.integers(1, 14)] * 3), seed=st.integers(0, 100))
@settings(deadline=None)
def test_images_are_resampled_as_pytorch_does_in_double_precision(size, seed):
    image = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, 6, 7, 8)))
    for target in (size, (6, *size[1:])):
        expected = torch.nn.functional.interpolate(image[None], target, mode="trilinear", align_corners=False)[0]
        assert torch.allclose(resample_image(image.float(), target).double(), expected, atol=1e-5)
