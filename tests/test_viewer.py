"""What the viewer's page is made of: the grid, label maps, names, and the scene; against numpy and nibabel."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medcontext.data.plan import make_plan
from medcontext.data.plan_file import write_plan
from medcontext.data.scan import LabelMap
from medcontext.data.writing import write_metaimage, write_nrrd
from medcontext.drawing import LABEL_COLOURS, label_colour
from medcontext.errors import MedContextError
from medcontext.viewer.grid import LONGEST_AXIS, require_same_grid, steps
from medcontext.viewer.label_maps import MOST_LABELS, numbers_in, pair_counts, to_indices
from medcontext.viewer.names import Names, find_names, read_names
from medcontext.viewer.nifti import compact, nifti_parts
from medcontext.viewer.scene import Scene, make_scene
from tests.conftest import oriented, write_nifti
from tests.test_dicom import own_locale as own_locale
from tests.test_dicom import write_series
from tests.test_plan import report_of

OBLIQUE = np.array([[0.6, -0.5, 0.1, -20], [0.5, 0.7, -0.3, 35], [0.1, 0.2, 2.4, -100], [0, 0, 0, 1.0]])


def volume_of(scene: Scene, name: str = "scan.nii") -> nib.Nifti1Image:
    """A file of the scene as nibabel reads it."""
    return nib.Nifti1Image.from_bytes(b"".join(scene.files[name]))


def label_map(array: np.ndarray, affine: np.ndarray = OBLIQUE) -> LabelMap:
    return LabelMap(Path("labels.nii.gz"), array.astype(np.int32), affine, None)


@given(st.tuples(*[st.integers(1, 5000)] * 3), st.tuples(*[st.floats(0.1, 8)] * 3), st.integers(1000, 10**8), st.data())
def test_a_grid_is_thinned_until_it_fits(shape, spacing, most, data):
    chosen = steps(shape, spacing, most)
    shown = [len(range(0, n, step)) for n, step in zip(shape, chosen, strict=True)]
    assert math.prod(shown) <= most
    assert max(shown) <= LONGEST_AXIS
    fits = math.prod(shape) <= most and max(shape) <= LONGEST_AXIS
    assert fits == (chosen == (1, 1, 1))


def test_voxels_are_left_out_where_they_lie_closest():
    assert steps((1000, 1000, 1100), (0.3, 0.3, 0.3), 550_000_000) in ((2, 1, 1), (1, 2, 1), (1, 1, 2))
    assert steps((512, 512, 512), (0.7, 0.7, 3.0), 512**3 // 4) == (2, 2, 1)
    assert steps((3000, 10, 10), (1, 1, 1), 10**9) == (2, 1, 1)


@pytest.mark.parametrize(
    ("shape", "affine", "said"),
    [((9, 8, 8), OBLIQUE, "9 x 8 x 8 voxels"), ((8, 8, 8), np.diag([1, 1, 1.5, 1.0]), "voxels of 1 x 1 x 1.5 mm")],
)
def test_labels_on_another_grid_are_refused_with_both_grids(shape, affine, said):
    labels = label_map(np.zeros(shape), affine)
    with pytest.raises(MedContextError) as caught:
        require_same_grid(labels, Path("scan.nii.gz"), (8, 8, 8), OBLIQUE)
    assert said in caught.value.found
    assert "8 x 8 x 8 voxels of 0.7874 x" in caught.value.expected
    assert caught.value.expected.endswith("scan.nii.gz")
    near = label_map(np.zeros((8, 8, 8)), OBLIQUE + 1e-4)
    require_same_grid(near, Path("scan.nii.gz"), (8, 8, 8), OBLIQUE)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.array([-1024, 3071], np.int32), np.int16),
        (np.array([0, 255], np.float64), np.uint8),
        (np.array([0, 65535], np.uint32), np.uint16),
        (np.array([0, 70000], np.int64), np.float32),
        (np.array([0.25, 1e6], np.float64), np.float32),
        (np.array([3, -3], ">i2"), np.dtype(">i2")),
        (np.array([0, 1], np.bool_), np.uint8),
    ],
)
@pytest.mark.parametrize("channels", [0, 3])
def test_a_volume_is_stored_as_it_was(values, kind, channels):
    rng = np.random.default_rng(0)
    array = values[rng.integers(0, 2, (5, 4, 3, channels) if channels else (5, 4, 3))]
    small = compact(array)
    assert small.dtype == kind
    image = nib.Nifti1Image.from_bytes(b"".join(nifti_parts(small, OBLIQUE)))
    assert image.header.endianness == "<"
    np.testing.assert_array_equal(image.get_fdata(), array.astype(np.float64))
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-5)
    np.testing.assert_allclose(image.header.get_zooms()[:3], nib.affines.voxel_sizes(OBLIQUE), rtol=1e-6)


def test_what_is_not_finite_is_shown_as_the_lowest_value():
    array = np.array([[[-2.5, np.nan, np.inf, -np.inf, 7.0]]], np.float32)
    np.testing.assert_array_equal(compact(array), [[[-2.5, -2.5, -2.5, -2.5, 7.0]]])
    assert not compact(np.full((2, 2, 2), np.nan)).any()


@given(st.lists(st.integers(-5, 2**31 - 1), min_size=1, max_size=9, unique=True), st.integers(0, 10**6))
def test_numbers_become_indices(numbers, seed):
    rng = np.random.default_rng(seed)
    array = np.asfortranarray(rng.choice([0, *numbers], (4, 5, 6)))
    there = sorted(set(array.ravel().tolist()) - {0})
    assert numbers_in([label_map(array)]) == set(there)
    indices = to_indices(array.astype(np.int32), there)
    np.testing.assert_array_equal(np.array([0, *there])[indices], array)


def test_indices_leave_room_for_differences():
    assert to_indices(np.ones((1, 1, 1), np.int32), range(1, 252)).dtype == np.uint8
    many = to_indices(np.full((1, 1, 1), 400, np.int32), range(1, 401))
    assert (many.dtype, many.item()) == (np.uint16, 400)


def test_a_scan_given_as_label_map_is_refused():
    with pytest.raises(MedContextError, match="more labels than"):
        numbers_in([label_map(np.arange(30 * 20 * 10).reshape(30, 20, 10))])
    many = np.arange(MOST_LABELS).reshape(20, 10, -1)
    assert len(numbers_in([label_map(many)])) == MOST_LABELS - 1
    with pytest.raises(MedContextError, match="more labels than"):
        numbers_in([label_map(many), label_map(many + 1)])


def test_pairs_are_counted():
    rng = np.random.default_rng(1)
    one, two = (np.asfortranarray(rng.integers(0, 4, (7, 6, 5)).astype(np.uint8)) for _ in range(2))
    expected = [[int(((one == i) & (two == j)).sum()) for j in range(4)] for i in range(4)]
    assert pair_counts(one, two, 4).tolist() == expected


def test_colours_are_those_of_the_report_and_then_others():
    colours = [label_colour(index) for index in range(61)]
    assert colours[:7] == list(LABEL_COLOURS)
    assert len(set(colours)) == 61
    rgb = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in colours[:37]])
    apart = np.linalg.norm(rgb[:, None] - rgb[None], axis=2) + 1000 * np.eye(37)
    assert apart.min() > 25


def test_names_come_from_a_data_set_or_a_run(tmp_path, tiny):
    assert read_names(tiny / "dataset.json") == read_names(tiny) == Names({1: "low", 2: "high"}, ("MRI",))
    assert find_names([tiny / "labelsTr" / "case_00.nii.gz"]).labels == {1: "low", 2: "high"}
    assert find_names([tmp_path / "elsewhere.nii.gz"]) == Names()
    run = tmp_path / "run"
    (run / "test" / "predictions").mkdir(parents=True)
    (run / "config.yaml").write_text("")
    write_plan(run / "plan.json", make_plan(report_of((40, 40, 40), (1, 1, 1))))
    named = read_names(run).labels
    assert named
    assert find_names([run / "test" / "predictions" / "a.nii.gz"]).labels == named
    with pytest.raises(MedContextError, match="No names"):
        read_names(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(MedContextError, match="not valid JSON"):
        read_names(tmp_path / "dataset.json")
    assert find_names([tmp_path / "scan.nii.gz"]) == Names()


def test_colours_follow_the_order_of_the_structures(case, tmp_path):
    """As in the report and in a DICOM SEG, whatever their numbers; what is not declared comes after them."""
    _, paths = case
    described = {"labels": {"background": 0, "whole": [3, 9], "core": [3]}, "regions_class_order": [9, 3]}
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    scene = make_scene(paths["scan"], [paths["a/case"]], paths["truth"], read_names(tmp_path), 10**6)
    colours = {label["name"]: label["colour"] for label in scene.about["labels"]}
    assert colours == {"whole": label_colour(0), "core": label_colour(1), "label 700": label_colour(2)}


@pytest.fixture
def case(tmp_path):
    """A scan, a truth and two predictions, on an oblique grid; numbers with gaps."""
    rng = np.random.default_rng(3)
    scan = rng.integers(-1000, 1500, (12, 10, 8)).astype(np.int16)
    truth = rng.choice([0, 0, 3, 700], (12, 10, 8))
    others = [np.where(rng.random(truth.shape) < 0.3, rng.choice([0, 3, 9], truth.shape), truth) for _ in range(2)]
    arrays = {"scan": scan, "truth": truth, "a/case": others[0], "b/case": others[1]}
    kinds = {"scan": np.int16}
    paths = {
        name: write_nifti(tmp_path / f"{name}.nii.gz", array.astype(kinds.get(name, np.int32)), OBLIQUE)
        for name, array in arrays.items()
    }
    return arrays, paths


def test_a_scene_holds_scan_and_maps(case):
    arrays, paths = case
    labels = [paths["a/case"], paths["b/case"]]
    scene = make_scene(paths["scan"], labels, paths["truth"], Names({3: "liver", 5: "absent"}), 10**6)
    about = scene.about
    assert (about["title"], about["shape"], about["step"]) == ("scan", [12, 10, 8], [1, 1, 1])
    np.testing.assert_allclose(about["affine"], OBLIQUE, atol=1e-5)
    assert [(each["number"], each["name"]) for each in about["labels"]] == [
        (3, "liver"),
        (5, "absent"),
        (9, "label 9"),
        (700, "label 700"),
    ]
    assert [each["title"] for each in about["maps"]] == ["Truth", "a", "b"]
    np.testing.assert_array_equal(volume_of(scene).get_fdata(), arrays["scan"])
    numbers = np.array([0, *(each["number"] for each in about["labels"])])
    for described, name in zip(about["maps"], ("truth", "a/case", "b/case"), strict=True):
        image = volume_of(scene, described["file"])
        np.testing.assert_array_equal(numbers[np.asarray(image.dataobj)], arrays[name])
        assert image.header.get_intent()[0] == "label"
        assert described["voxels"] == [int((arrays[name] == number).sum()) for number in numbers[1:]]
        pairs = {(numbers[i], numbers[j]): count for i, j, count in described["pairs"]}
        assert all(i != j for i, j in pairs)
        for i in numbers:
            for j in numbers[numbers != i]:
                assert pairs.get((i, j), 0) == ((arrays["truth"] == i) & (arrays[name] == j)).sum()
    json.dumps(about, allow_nan=False)


def test_a_voxel_of_a_tilted_scan_has_its_true_volume(tmp_path):
    """Its edges are longer than it is thick: their product is not its volume."""
    sheared = np.diag([1.0, 2.0, 3.0, 1.0])
    sheared[1, 2] = 1.5
    path = write_nifti(tmp_path / "scan.nii.gz", np.zeros((4, 5, 6), np.int16), sheared)
    assert make_scene(path, [], None, Names({}), 10**6).about["voxelMl"] == pytest.approx(0.006)


def test_of_a_large_scan_some_voxels_are_shown_and_all_are_counted(case):
    arrays, paths = case
    scene = make_scene(paths["scan"], [], paths["truth"], Names(), 300)
    step = scene.about["step"]
    assert step != [1, 1, 1]
    shown = volume_of(scene)
    assert math.prod(shown.shape) <= 300
    np.testing.assert_array_equal(shown.get_fdata(), arrays["scan"][:: step[0], :: step[1], :: step[2]])
    voxel = np.array([1, 1, 1, 1])
    np.testing.assert_allclose(shown.affine @ voxel, OBLIQUE @ np.array([*step, 1]), atol=1e-4)
    numbers = [each["number"] for each in scene.about["labels"]]
    assert scene.about["maps"][0]["voxels"] == [int((arrays["truth"] == number).sum()) for number in numbers]
    indices = np.asarray(volume_of(scene, "map0.nii").dataobj)
    np.testing.assert_array_equal(
        np.array([0, *numbers])[indices], arrays["truth"][tuple(slice(None, None, s) for s in step)]
    )


def test_every_format_gives_the_same_scene(case, tmp_path):
    array = case[0]["scan"] // 2 * 2  # the series is written with a slope of 2
    straight = np.diag([-0.8, -0.9, 2.5, 1.0])
    nifti = make_scene(write_nifti(tmp_path / "n.nii.gz", array, straight), [], None, Names(), 10**6)
    write_series(tmp_path / "dicom", array, straight)
    files = [tmp_path / "dicom", tmp_path / "scan.nrrd", tmp_path / "scan.mha"]
    voxels = array.astype(np.int32)
    write_nrrd(files[1], voxels, straight, files[0])
    write_metaimage(files[2], voxels, straight, files[0])
    for file in files:
        scene = make_scene(file, [], None, Names(), 10**6)
        np.testing.assert_array_equal(volume_of(scene).get_fdata(), volume_of(nifti).get_fdata())
        np.testing.assert_allclose(volume_of(scene).affine, volume_of(nifti).affine, atol=1e-4)


def test_windows_fit_the_modality(case, tmp_path):
    _, paths = case
    for names in (Names(), Names({}, ("CT",))):
        windows = make_scene(paths["scan"], [], None, names, 10**6).about["windows"][0]
        assert windows[0] == {"name": "Soft tissue", "low": -160, "high": 240}
        assert {"Lung", "Bone", "Automatic", "Full range"} <= {window["name"] for window in windows}
    mri = make_scene(paths["scan"], [], None, Names({}, ("MRI",)), 10**6).about["windows"][0]
    assert [window["name"] for window in mri] == ["Automatic", "Full range"]
    flat = make_scene(write_nifti(tmp_path / "flat.nii.gz", np.ones((3, 3, 3)), np.eye(4)), [], None, Names(), 10**6)
    assert all(window["low"] < window["high"] for window in flat.about["windows"][0])


def test_channels_are_kept_and_named(tmp_path):
    array = np.random.default_rng(0).normal(size=(5, 4, 3, 2)).astype(np.float32)
    path = write_nifti(tmp_path / "two.nii.gz", array, OBLIQUE)
    scene = make_scene(path, [], None, Names({}, ("FLAIR", "T1")), 10**6)
    assert scene.about["channels"] == ["FLAIR", "T1"]
    assert len(scene.about["windows"]) == 2
    np.testing.assert_array_equal(volume_of(scene).get_fdata(dtype=np.float32), array)
    assert make_scene(path, [], None, Names({}, ("CT",)), 10**6).about["channels"] == []


def test_a_thin_prediction_is_named_by_its_file_without_a_truth(case):
    _, paths = case
    only = make_scene(paths["scan"], [paths["a/case"]], None, Names(), 10**6)
    assert [each["title"] for each in only.about["maps"]] == ["case"]
    both = make_scene(paths["scan"], [paths["a/case"]], paths["truth"], Names(), 10**6)
    assert [each["title"] for each in both.about["maps"]] == ["Truth", "Prediction"]
    same = make_scene(paths["scan"], [paths["a/case"], paths["a/case"]], None, Names(), 10**6)
    assert [each["title"] for each in same.about["maps"]] == ["case", "case"]


def test_another_orientation_is_another_grid(case, tmp_path):
    arrays, paths = case
    turned = write_nifti(tmp_path / "turned.nii.gz", *oriented(arrays["truth"].astype(np.int16), OBLIQUE, "PSR"))
    with pytest.raises(MedContextError, match="another grid"):
        make_scene(paths["scan"], [turned], None, Names(), 10**6)
    with pytest.raises(MedContextError, match="another grid"):
        require_same_grid(
            replace(label_map(arrays["truth"]), affine=OBLIQUE @ np.diag([1, 1, -1, 1])), turned, (12, 10, 8), OBLIQUE
        )
