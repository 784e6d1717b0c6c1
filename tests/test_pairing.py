"""Predictions on another grid, brought to the truth's: against brute force, and through evaluate."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from medcontext.data.scan import LabelMap
from medcontext.evaluation.evaluate import evaluate
from medcontext.evaluation.pairing import resampled, some
from tests.conftest import oriented, write_nifti

LABELS = arrays.arrays(np.int32, arrays.array_shapes(min_dims=3, max_dims=3, max_side=5), elements=st.integers(0, 9))


def label_map(array: np.ndarray, affine: np.ndarray) -> LabelMap:
    return LabelMap(Path("in memory"), array, affine, None)


def grid(spacing: tuple[float, ...], origin: tuple[float, ...], turn: float) -> np.ndarray:
    """Affine of axes that are turned about the third one."""
    cos, sin = np.cos(turn), np.sin(turn)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) * spacing
    affine[:3, 3] = origin
    return affine


@settings(deadline=None, max_examples=50)
@given(
    LABELS,
    arrays.array_shapes(min_dims=3, max_dims=3, max_side=5),
    st.tuples(*[st.floats(0.5, 3)] * 3),
    st.tuples(*[st.floats(-3, 3)] * 3),
    st.floats(-3, 3),
)
def test_every_voxel_gets_the_label_that_its_centre_lies_in(array, shape, spacing, origin, turn):
    source, target = grid((1.0, 2.0, 1.5), (0.5, 0.0, -1.0), 0.3), grid(spacing, origin, turn)
    found = resampled(label_map(array, source), label_map(np.zeros(shape, np.int32), target))
    assert found.array.shape == shape
    assert np.array_equal(found.affine, target)
    there = np.linalg.inv(source) @ target
    for voxel in np.ndindex(shape):
        place = (there @ [*voxel, 1])[:3]
        if np.abs(place - np.floor(place) - 0.5).min() < 1e-6:
            continue  # on the border between two voxels
        index = tuple(np.round(place).astype(int).tolist())
        inside = all(0 <= i < n for i, n in zip(index, array.shape, strict=True))
        assert found.array[voxel] == (array[index] if inside else 0)


def test_the_same_grid_in_another_order_of_axes_loses_nothing(tmp_path):
    array = np.random.default_rng(0).integers(0, 3, (7, 6, 5)).astype(np.uint8)
    affine = grid((1.0, 2.0, 3.0), (5.0, -7.0, 11.0), 0.0)
    truth = write_nifti(tmp_path / "truth" / "a.nii.gz", array, affine).parent
    for codes in ("LPS", "SRA", "AIL"):
        predicted = write_nifti(tmp_path / codes / "a.nii.gz", *oriented(array, affine, codes)).parent
        result = evaluate(predicted, truth, resample=True)
        assert {row["dice"] for row in result["cases"]} == {1.0}
        assert result["resampled"] == ["a"]


def test_a_coarser_prediction_is_scored_in_the_grid_of_the_truth(tmp_path):
    fine = np.zeros((16, 16, 8), np.uint8)
    fine[4:12, 4:12, 2:6] = 1
    coarse = fine[::2, ::2, ::2]
    # The centre of a coarse voxel lies half a fine voxel behind that of its first fine one.
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    larger = np.diag([2.0, 2.0, 2.0, 1.0])
    larger[:3, 3] = 0.5
    truth = write_nifti(tmp_path / "truth" / "a.nii.gz", fine, affine).parent
    predicted = write_nifti(tmp_path / "predicted" / "a.nii.gz", coarse, larger).parent
    row = evaluate(predicted, truth, resample=True)["cases"][0]
    assert (row["dice"], row["hd95_mm"]) == (1.0, 0.0)
    assert row["truth_ml"] == pytest.approx(8 * 8 * 4 / 1000)


def test_what_lies_on_the_same_grid_is_not_resampled(tmp_path):
    array = np.ones((3, 3, 3), np.uint8)
    for folder in ("truth", "predicted"):
        nib.save(nib.Nifti1Image(array, np.eye(4)), (tmp_path / f"{folder}.nii.gz"))
    assert evaluate(tmp_path / "predicted.nii.gz", tmp_path / "truth.nii.gz", resample=True)["resampled"] == []


def test_long_lists_of_names_are_cut():
    assert some("abc") == "a, b, c"
    assert some("abcdef", 4) == "a, b, c, d and 2 more"
