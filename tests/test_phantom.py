"""The phantoms: repeatable, valid as files, CT-like, and with organs whose places predict one another."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine, obliquity
from nibabel.orientations import aff2axcodes
from scipy.ndimage import binary_erosion, uniform_filter

from medcontext.data.phantom import HOUNSFIELD, LABELS, PhantomCase, make_phantoms, phantom_case
from medcontext.data.scan import read_labels, read_scan, scan_files, spacing_of
from medcontext.errors import MedContextError

CASES = 30
TISSUE = {"liver": "liver", "spleen": "spleen", "left_kidney": "kidney", "right_kidney": "kidney", "aorta": "blood"}


@cache
def phantoms() -> list[PhantomCase]:
    return [phantom_case(np.random.default_rng([0, index])) for index in range(CASES)]


def inside(case: PhantomCase, organ: str) -> npt.NDArray[np.int16]:
    """The HU of the organ's voxels that do not touch its border."""
    return np.asarray(case.image[binary_erosion(case.labels == LABELS[organ])])


def centroid(case: PhantomCase, organ: str) -> npt.NDArray[np.float64]:
    """World mm."""
    return np.asarray(apply_affine(case.affine, np.argwhere(case.labels == LABELS[organ]).mean(0)))


def centres(organ: str) -> npt.NDArray[np.float64]:
    """The organ's centroid in each case, ``(CASES, 3)`` mm, seen from the patient's own aorta."""
    return np.array([centroid(case, organ) - centroid(case, "aorta") for case in phantoms()])


def correlation(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    return float(np.corrcoef(first, second)[0, 1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_phantoms(tmp_path_factory.mktemp("phantoms") / "made", cases=3, seed=5)


def test_the_same_seed_gives_the_same_patient_and_another_seed_another():
    first, again, other = (phantom_case(np.random.default_rng(seed)) for seed in (4, 4, 5))
    assert first.image.tobytes() == again.image.tobytes()
    assert first.labels.tobytes() == again.labels.tobytes()
    assert first.affine.tobytes() == again.affine.tobytes()
    assert not np.allclose(first.affine, other.affine)


def test_a_case_does_not_depend_on_how_many_are_made(folder, tmp_path):
    fewer = make_phantoms(tmp_path / "fewer", cases=2, seed=5)
    for name in ("imagesTr/phantom_001.nii.gz", "labelsTr/phantom_001.nii.gz"):
        assert (fewer / name).read_bytes() == (folder / name).read_bytes()
    assert (folder / name).read_bytes() != (folder / name.replace("001", "002")).read_bytes()


def test_making_phantoms_leaves_the_global_generator_alone(tmp_path):
    np.random.seed(1)
    before = np.random.get_state()[1].tolist()  # type: ignore[index]
    make_phantoms(tmp_path / "made", cases=1)
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_every_patient_has_every_organ_in_a_small_ct(seed):
    case = phantom_case(np.random.default_rng(seed))
    assert case.image.dtype == np.int16
    assert case.labels.dtype == np.uint8
    assert case.image.shape == case.labels.shape
    counts = np.bincount(case.labels.ravel())
    assert len(counts) == len(LABELS)
    assert counts.min() > 300
    pixels, lines, slices = sorted(case.image.shape, reverse=True)
    assert 80 <= pixels <= 97
    assert 50 <= lines <= 78
    assert 22 <= slices <= 42


def test_organs_have_their_tissues_grey_values_and_air_is_air():
    for organ, tissue in TISSUE.items():
        mean, spread = HOUNSFIELD[tissue]
        means = [inside(case, organ).mean() for case in phantoms()]
        assert np.mean(means) == pytest.approx(mean, abs=0.6 * spread), organ
        assert np.abs(np.subtract(means, mean)).max() < 2.6 * spread, organ
        assert np.std(means) > 0.3 * spread, organ
    for case in phantoms():
        corners = case.image[:: case.image.shape[0] - 1, :: case.image.shape[1] - 1, :: case.image.shape[2] - 1]
        assert np.abs(corners + 1000.0).max() < 120
        assert 10 < inside(case, "liver").std() < 26
        assert case.image.min() >= -1024
        assert case.image.max() > 250  # bone


def test_kidneys_look_alike_within_a_patient():
    left, right = ([inside(case, side).mean() for case in phantoms()] for side in ("left_kidney", "right_kidney"))
    assert np.abs(np.subtract(left, right)).max() < 12
    assert np.std(left) > 5  # while patients differ


def test_a_threshold_does_not_find_an_organ():
    for organ in set(TISSUE) - {"liver"}:
        best = []
        for case in phantoms()[:8]:
            smooth, wanted = uniform_filter(case.image.astype(np.float32), 3), case.labels == LABELS[organ]
            low, high = np.percentile(smooth[wanted], (5, 95))
            found = (smooth >= low) & (smooth <= high)
            best.append(2 * (found & wanted).sum() / (found.sum() + wanted.sum()))
        assert np.mean(best) < 0.5, organ


def test_bowel_looks_like_the_organs():
    """In front of the aorta, between the flanks and below the liver lies bowel: unlabelled, and as bright as organs."""
    bright = []
    for case in phantoms():
        voxels = np.argwhere(binary_erosion(case.labels == 0))
        x, y, z = (apply_affine(case.affine, voxels) - centroid(case, "aorta")).T
        below = z < (centroid(case, "liver") - centroid(case, "aorta"))[2] - 20
        belly = case.image[tuple(voxels[(abs(x) < 60) & (y > 20) & (y < 60) & below].T)]
        bright.append(((belly > 70) & (belly < 170)).mean())
    assert np.mean(bright) > 0.05
    assert np.std(bright) > 0.02  # and never in the same places


def test_noise_is_alike_in_neighbouring_voxels():
    for case in phantoms()[:8]:
        liver = binary_erosion(case.labels == LABELS["liver"], iterations=2)
        pairs = liver[1:] & liver[:-1]
        assert 0.15 < correlation(case.image[1:][pairs], case.image[:-1][pairs]) < 0.7


def test_borders_are_mixed_in_proportion():
    """Between air and skin, far from any other tissue, a sharp edge would leave nothing between -880 and -220 HU."""
    for case in phantoms()[:8]:
        skin = case.image > -550
        edge = binary_erosion(~skin, border_value=1) ^ ~skin | binary_erosion(skin, border_value=1) ^ skin
        mixed = (case.image[edge] > -880) & (case.image[edge] < -220)
        assert mixed.mean() > 0.25
        shares = (case.image[edge][mixed] + 1000.0) / 900
        assert shares.mean() == pytest.approx(0.5, abs=0.1)
        assert shares.std() > 0.12  # all shares, not one halfway value


def test_grids_differ_from_patient_to_patient_and_are_oblique():
    affines = [case.affine for case in phantoms()]
    assert len({aff2axcodes(affine) for affine in affines}) >= 6
    assert len({np.argmax(spacing_of(affine)) for affine in affines}) == 3  # the slices run along any axis
    assert len({case.image.shape for case in phantoms()}) > CASES / 2
    assert len({tuple(np.round(spacing_of(affine), 2)) for affine in affines}) == CASES
    for affine in affines:
        degrees = np.degrees(obliquity(affine))
        assert 1.5 < degrees.max() < 10
        axes = affine[:3, :3] / spacing_of(affine)
        np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-5)
        fine, also_fine, thick = sorted(spacing_of(affine))
        assert fine == pytest.approx(also_fine, rel=1e-5)
        assert 2 < fine < 4.4 <= thick + 1e-5 < 6.1


def test_sides_are_right_in_the_world_whatever_the_storage_order():
    """World x grows towards the patient's right, y towards the front, z upwards."""
    liver, spleen, left, right = (centres(organ) for organ in ("liver", "spleen", "left_kidney", "right_kidney"))
    assert (liver[:, 0] > 20).all()
    assert (spleen[:, 0] < -40).all()
    assert (right[:, 0] > 30).all()
    assert (left[:, 0] < -30).all()
    assert (liver[:, 1] > right[:, 1]).all()
    assert (liver[:, 2] > right[:, 2]).all()
    assert (spleen[:, 2] > left[:, 2]).all()


def test_the_place_of_one_organ_predicts_the_place_of_another():
    liver, spleen, left, right = (centres(organ) for organ in ("liver", "spleen", "left_kidney", "right_kidney"))
    assert correlation(liver[:, 2], right[:, 2]) > 0.6
    assert correlation(spleen[:, 2], left[:, 2]) > 0.6
    assert correlation(liver[:, 2], spleen[:, 2]) > 0.3
    volume = np.array([(c.labels == LABELS["liver"]).sum() * abs(np.linalg.det(c.affine[:3, :3])) for c in phantoms()])
    assert correlation(volume, right[:, 2] - left[:, 2]) < -0.4  # a larger liver pushes the right kidney down
    for first, second in ((liver, right), (spleen, left)):
        assert np.std(first[:, 2] - second[:, 2]) > 2  # and yet each varies a little by itself


def test_the_files_are_a_decathlon_data_set(folder):
    description = json.loads((folder / "dataset.json").read_text())
    assert description["modality"] == {"0": "CT"}
    assert description["labels"] == {str(value): name for name, value in LABELS.items()}
    assert description["numTraining"] == len(description["training"]) == 3
    assert {path.name for path in folder.iterdir()} == {"dataset.json", "imagesTr", "labelsTr"}
    for part, key in (("imagesTr", "image"), ("labelsTr", "label")):
        named = [folder / pair[key] for pair in description["training"]]
        assert sorted(named) == sorted(scan_files(folder / part).values()) == sorted((folder / part).iterdir())


def test_what_is_read_back_is_what_was_made(folder):
    for index in range(3):
        case = phantom_case(np.random.default_rng([5, index]))
        scan = read_scan(folder / f"imagesTr/phantom_{index:03d}.nii.gz")
        labels = read_labels(folder / f"labelsTr/phantom_{index:03d}.nii.gz")
        np.testing.assert_array_equal(scan.array[0], case.image)
        np.testing.assert_array_equal(labels.array, case.labels)
        for read in (scan, labels):
            np.testing.assert_array_equal(read.affine, case.affine)
            assert read.header.get_xyzt_units()[0] == "mm"
            assert int(read.header["sform_code"]) == int(read.header["qform_code"]) == 1
            np.testing.assert_allclose(read.header.get_qform(), case.affine, atol=1e-3)
        assert scan.header.get_data_dtype() == np.int16
        assert labels.header.get_data_dtype() == np.uint8


def test_progress_is_told_after_each_case(tmp_path):
    told: list[tuple[int, int]] = []
    (tmp_path / "empty").mkdir()
    assert make_phantoms(tmp_path / "empty", 2, progress=lambda done, of: told.append((done, of))) == tmp_path / "empty"
    assert told == [(1, 2), (2, 2)]


def test_nothing_is_ever_overwritten(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for taken in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(MedContextError, match="something in the phantoms' place") as refusal:
            make_phantoms(taken, 1)
        assert refusal.value.file == str(taken)
        assert refusal.value.remedy
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(("cases", "seed"), [(0, 0), (1, -1)])
def test_impossible_numbers_are_refused_before_anything_is_written(tmp_path, cases, seed):
    with pytest.raises(MedContextError, match="1 case or more"):
        make_phantoms(tmp_path / "made", cases, seed)
    assert not (tmp_path / "made").exists()
