"""Calibration: against brute force, against probabilities that are true by construction, and every bad file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medcontext.data.labels import Labels, Region
from medcontext.data.scan import read_labels
from medcontext.errors import MedContextError
from medcontext.evaluation.calibration import BINS, LEAST, count, expected_error, reliability, summarise
from medcontext.evaluation.evaluate import evaluate
from medcontext.evaluation.reliability_figure import reliability_figure
from tests.conftest import write_nifti

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])
DECLARED = Labels({5: "duct", 2: "gland"}, background=(7,))
SHAPE = (12, 10, 8)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def drawn(rng: np.random.Generator, probabilities: np.ndarray, numbers: tuple[int, ...]) -> np.ndarray:
    """A label map that is drawn from the probabilities."""
    places = (probabilities.cumsum(axis=-1) < rng.random(probabilities.shape[:-1])[..., None]).sum(axis=-1)
    return np.array(numbers)[np.minimum(places, len(numbers) - 1)].astype(np.uint8)


def write_case(folder: Path, name: str, probabilities: np.ndarray, truth: np.ndarray, best: np.ndarray) -> None:
    write_nifti(folder / "probabilities" / f"{name}.nii.gz", probabilities.astype(np.float32), AFFINE)
    write_nifti(folder / "truth" / f"{name}.nii.gz", truth, AFFINE)
    write_nifti(folder / "predicted" / f"{name}.nii.gz", best, AFFINE)


def slow_error(probabilities: np.ndarray, right: np.ndarray) -> float:
    """One voxel at a time."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    for value, is_it in zip(probabilities.tolist(), right.tolist(), strict=True):
        bins.setdefault(min(int(value * BINS), BINS - 1), []).append((value, is_it))
    gaps = [abs(sum(v for v, _ in each) - sum(r for _, r in each)) for each in bins.values()]
    return sum(gaps) / len(probabilities)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_expected_error_equals_brute_force(voxels):
    values, right = (np.array(each) for each in zip(*voxels, strict=True))
    assert expected_error(count(values, right)) == pytest.approx(slow_error(values, right), abs=1e-12)


def test_expected_error_by_hand():
    # 0.9 said of four voxels, of which two are: off by 0.4; 0.5 of two, of which one is.
    values, right = np.array([0.9] * 4 + [0.5] * 2), np.array([True, True, False, False, True, False])
    assert expected_error(count(values, right)) == pytest.approx(4 / 6 * 0.4)
    assert expected_error(count(np.zeros(0), np.zeros(0, bool))) is None
    assert count(np.array([0.0, 1.0]), np.array([False, True]))[0, [0, -1]].tolist() == [1, 1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two cases whose truth is drawn from the probabilities, so that these are calibrated."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        probabilities = softmax(rng.normal(0, 2, (*SHAPE, 3)))
        best = np.array([0, 5, 2])[probabilities.argmax(axis=-1)].astype(np.uint8)
        write_case(tmp_path, name, probabilities, drawn(rng, probabilities, (0, 5, 2)), best)
    return tmp_path


def calibration_of(folder: Path, declared: Labels | None = DECLARED) -> dict[str, Any]:
    result = evaluate(folder / "predicted", folder / "truth", declared, probabilities=folder / "probabilities")
    return result["calibration"]


def test_channels_are_the_background_and_the_labels_as_declared(folder):
    found = calibration_of(folder)
    values, truths = [], []
    for name in ("a", "b"):
        values.append(nib_array(folder / "probabilities" / f"{name}.nii.gz"))
        truths.append(nib_array(folder / "truth" / f"{name}.nii.gz"))
    every, truth = np.stack(values).reshape(-1, 3), np.stack(truths).ravel()
    best = every.argmax(axis=1)
    expected = slow_error(every.max(axis=1), np.array([0, 5, 2])[best] == truth)
    assert found["overall"]["ece"] == pytest.approx(expected, rel=1e-6)
    assert found["overall"]["voxels"] == len(truth)
    errors = {}
    for channel, label in ((1, "5"), (2, "2")):
        counted = every[:, channel] >= LEAST
        errors[label] = slow_error(every[counted, channel], truth[counted] == int(label))
        assert found["labels"][label]["ece"] == pytest.approx(errors[label], rel=1e-6)
        assert found["labels"][label]["voxels"] == counted.sum() < len(truth)
    assert found["labels"]["5"]["name"] == "duct"
    assert found["ece"] == pytest.approx(sum(errors.values()) / 2, rel=1e-6)


def nib_array(path: Path) -> np.ndarray:
    import nibabel as nib

    return np.asarray(nib.load(path).dataobj)


def test_true_probabilities_are_calibrated_and_sharpened_ones_are_not(folder):
    good = calibration_of(folder)
    assert good["overall"]["ece"] < 0.05
    assert good["ece"] < 0.05
    for file in (folder / "probabilities").iterdir():
        sharp = nib_array(file) ** 4
        write_nifti(file, (sharp / sharp.sum(axis=-1, keepdims=True)).astype(np.float32), AFFINE)
    bad = calibration_of(folder)
    assert bad["overall"]["ece"] > 0.15
    assert bad["ece"] > 0.1
    last = bad["overall"]["bins"][-1]
    assert last["probability"] > last["frequency"] + 0.1, "too sure"


def test_bins_hold_the_reliability_diagram(folder):
    bins = calibration_of(folder)["labels"]["2"]["bins"]
    for each in bins:
        assert each["low"] <= each["probability"] <= each["high"]
        assert 0 <= each["frequency"] <= 1
    assert sum(each["voxels"] for each in bins) == calibration_of(folder)["labels"]["2"]["voxels"]


def test_without_a_declaration_channel_k_is_label_k(tmp_path):
    rng = np.random.default_rng(1)
    probabilities = softmax(rng.normal(0, 2, (*SHAPE, 3)))
    best = probabilities.argmax(axis=-1).astype(np.uint8)
    write_case(tmp_path, "a", probabilities, drawn(rng, probabilities, (0, 1, 2)), best)
    found = calibration_of(tmp_path, None)
    assert found["labels"].keys() == {"1", "2"}
    assert found["overall"]["ece"] < 0.08
    write_nifti(tmp_path / "truth" / "a.nii.gz", np.full(SHAPE, 3, np.uint8), AFFINE)
    with pytest.raises(MedContextError, match="no channel") as caught:
        calibration_of(tmp_path, None)
    assert caught.value.file == str(tmp_path / "truth" / "a.nii.gz")


def test_regions_have_a_channel_each_and_need_not_sum_up_to_one(tmp_path):
    rng = np.random.default_rng(2)
    declared = Labels({1: "a", 2: "b"}, regions=(Region("whole", (1, 2), 2), Region("core", (1,), 1)))
    truth = rng.integers(0, 3, SHAPE).astype(np.uint8)
    probabilities = np.stack([np.where(truth > 0, 0.95, 0.05), np.where(truth == 1, 0.75, 0.35)], axis=-1)
    write_case(tmp_path, "a", probabilities, truth, truth)
    found = calibration_of(tmp_path, declared)
    assert found["overall"] is None
    assert found["labels"]["2"]["name"] == "whole"
    assert found["labels"]["2"]["ece"] == pytest.approx(0.05, abs=1e-6)
    assert found["labels"]["1"]["ece"] == pytest.approx(np.where(truth == 1, 0.25, 0.35).mean(), abs=1e-6), (
        "the core is label 1 alone"
    )


def test_what_nobody_labelled_is_not_counted(tmp_path):
    truth = np.zeros(SHAPE, np.uint8)
    truth[:6] = 9
    probabilities = np.zeros((*SHAPE, 2))
    probabilities[..., 0] = np.where(truth == 9, 0.0, 1.0)
    probabilities[..., 1] = 1 - probabilities[..., 0]
    write_case(tmp_path, "a", probabilities, truth, np.zeros(SHAPE, np.uint8))
    found = calibration_of(tmp_path, Labels({1: "duct"}, ignore=9))
    assert found["overall"]["ece"] == 0.0
    assert found["overall"]["voxels"] == truth.size // 2
    assert found["labels"]["1"]["ece"] is None


def test_further_background_counts_as_background(tmp_path):
    truth = np.full(SHAPE, 7, np.uint8)
    probabilities = np.zeros((*SHAPE, 3))
    probabilities[..., 0] = 1
    write_case(tmp_path, "a", probabilities, truth, np.zeros(SHAPE, np.uint8))
    assert calibration_of(tmp_path)["overall"]["ece"] == 0.0


@pytest.mark.parametrize(
    ("change", "problem", "found"),
    [
        (lambda p: p[..., :2], "one channel for each class", "2 channels"),
        (lambda p: np.log(p + 1e-9), "no probabilities", "values from -"),
        (lambda p: p * 0.5, "no probabilities", "to 0.5"),
        (lambda p: np.where(p > 0.9, np.nan, p), "no probabilities", "nan"),
        (lambda p: p[:-1], "another grid", "shape (11, 10, 8)"),
    ],
)
def test_what_is_no_probability_map_is_refused(folder, change, problem, found):
    path = folder / "probabilities" / "b.nii.gz"
    write_nifti(path, change(nib_array(path)).astype(np.float32), AFFINE)
    with pytest.raises(MedContextError, match=problem) as caught:
        calibration_of(folder)
    assert caught.value.file == str(path)
    assert found in str(caught.value.found)
    assert caught.value.remedy


def test_a_map_elsewhere_in_space_is_refused(folder):
    moved = AFFINE.copy()
    moved[0, 3] = 1.0
    path = folder / "probabilities" / "a.nii.gz"
    write_nifti(path, nib_array(path), moved)
    with pytest.raises(MedContextError, match="another grid"):
        calibration_of(folder)


def test_every_case_needs_its_map(folder):
    (folder / "probabilities" / "b.nii.gz").unlink()
    with pytest.raises(MedContextError, match="no probability map") as caught:
        calibration_of(folder)
    assert "b" in str(caught.value.found)


def test_the_diagram_has_a_panel_for_each_label(folder):
    truth = read_labels(folder / "truth" / "a.nii.gz")
    case = reliability(folder / "probabilities" / "a.nii.gz", truth, DECLARED)
    few = summarise([{key: case[key] for key in ("overall", "5")}], {})
    sizes = []
    for calibration in (few, summarise([case], {5: "duct", 2: "gland"})):
        picture = Image.open(io.BytesIO(reliability_figure(calibration)))
        assert len(np.unique(np.asarray(picture.convert("L")))) > 50, "something is drawn"
        sizes.append(picture.size[0])
    assert sizes[0] < sizes[1]
