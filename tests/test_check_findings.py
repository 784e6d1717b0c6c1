"""What is wrong without any file being broken: of each kind of finding, one that must come and one that must not."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from medcontext.data.check import check_dataset, check_split
from medcontext.data.dataset import open_dataset
from medcontext.data.split import Split
from medcontext.data.split_file import SplitFile
from tests.conftest import ORIENTATIONS, oriented, write_nifti

AFFINE = np.array([[-0.7, 0, 0, 90.0], [0, -0.7, 0, 110], [0, 0, 2.5, -300], [0, 0, 0, 1]])


def image(seed, shape=(16, 18, 20), low=-900, high=1200):
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.int16)


def label(seed, shape=(16, 18, 20), number=1):
    array = np.zeros(shape, dtype=np.uint8)
    array[2 + seed : 6 + seed, 3:9, 4:10] = number
    return array


def make(root, cases, description=None, images="imagesTr"):
    """Cases: name to (image, label, affine), each with None for what is not there."""
    for name, (scan, labels, affine) in cases.items():
        affine = AFFINE if affine is None else affine
        if scan is not None:
            write_nifti(root / images / f"{name}.nii.gz", scan, affine)
        if labels is not None:
            write_nifti(root / "labelsTr" / f"{name}.nii.gz", labels, affine)
    if description is not None:
        (root / "dataset.json").write_text(json.dumps(description))
    return root


def good(count=4, **changes):
    return {f"case{k}": (image(k, **changes), label(k), None) for k in range(count)}


def findings(root):
    """(severity, case, problem) of each."""
    return [(each.severity, each.case, each.error.problem) for each in check_dataset(open_dataset(root)).findings]


def test_good_cases_have_none(tmp_path):
    assert findings(make(tmp_path, good(), {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "a"}})) == []


@pytest.mark.parametrize(
    ("low", "high", "remedy"),
    [(0, 3000, "rescale slope"), (0, 255, "8-bit"), (0, 2, "normalised"), (-3, 4, "normalised")],
)
def test_ct_that_is_not_in_hounsfield_units(tmp_path, low, high, remedy):
    odd = image(9, low=low, high=high)
    odd[0, 0, :2] = low, high - 1
    cases = good() | {"odd": (odd, label(8), None)}
    report = check_dataset(open_dataset(make(tmp_path, cases, {"modality": {"0": "CT"}})))
    assert [(each.severity, each.case) for each in report.findings] == [("warning", "odd")]
    assert "Hounsfield" in report.findings[0].error.problem
    assert remedy in report.findings[0].error.remedy
    assert f"{low} to {high - 1}" in report.findings[0].error.found


def test_mri_may_have_any_intensities(tmp_path):
    assert findings(make(tmp_path, good(low=0, high=200), {"modality": {"0": "MRI"}})) == []


@pytest.mark.parametrize(
    ("spacing", "problem"),
    [
        ((0.0007, 0.0007, 0.0025), "The voxel size is unlikely."),
        ((700, 700, 2500), "The voxel size is unlikely."),
        ((0.06, 0.06, 0.06), "The size of the scanned volume is unlikely."),
        ((0.7, 0.7, 11), "The voxel size is far from that of the other scans."),
        ((0.1, 0.7, 2.5), "The voxel size is far from that of the other scans."),
    ],
)
def test_suspicious_spacing(tmp_path, spacing, problem):
    cases = good() | {"odd": (image(9), label(8), np.diag([*spacing, 1]))}
    found = findings(make(tmp_path, cases))
    assert ("warning", "odd", problem) in found
    assert {case for _, case, _ in found} == {"odd"}


def test_a_volume_longer_than_a_body(tmp_path):
    affine = np.diag([15.0, 15, 15, 1])
    cases = {f"case{k}": (image(k, (8, 8, 150 + 20 * k)), label(k, (8, 8, 150 + 20 * k)), affine) for k in range(2)}
    assert findings(make(tmp_path, cases)) == [("warning", "case1", "The size of the scanned volume is unlikely.")]


def test_a_test_image_of_the_same_name_is_another_scan(tmp_path):
    root = make(tmp_path, good())
    alone = check_dataset(open_dataset(root))
    make(root, {"case1": (image(9), None, None)}, images="imagesTs")
    both = check_dataset(open_dataset(root))
    assert both.findings == ()
    assert both.to_dict() == alone.to_dict()


def test_an_affine_without_three_directions(tmp_path):
    affine = np.eye(4)
    affine[0, 2] = 1e18
    found = findings(make(tmp_path, good() | {"odd": (image(9), label(8), affine)}))
    assert found == [("error", "odd", "The affine does not describe a grid in space.")] * 2


def test_spacing_is_compared_by_direction_and_not_by_axis(tmp_path):
    affine = np.diag([0.5, 0.5, 5, 1])
    cases = {
        f"case{k}": (*(oriented(part, affine, codes)[0] for part in (image(k), label(k))), None)
        for k, codes in enumerate(ORIENTATIONS)
    }
    cases = {
        name: (scan, labels, oriented(image(0), affine, codes)[1])
        for (name, (scan, labels, _)), codes in zip(cases.items(), ORIENTATIONS, strict=True)
    }
    assert findings(make(tmp_path, cases)) == []


@pytest.mark.parametrize("affine", [np.eye(4), np.diag([-1.0, -1, 1, 1]), "none in the header"])
def test_a_scan_that_lost_its_geometry(tmp_path, affine):
    root = make(tmp_path, good(), {"labels": {"0": "background", "1": "a"}})
    for folder, array in (("imagesTr", image(9)), ("labelsTr", label(8))):
        stored = nib.Nifti1Image(array, None if isinstance(affine, str) else affine)
        nib.save(stored, root / folder / "odd.nii.gz")
    assert findings(root) == [("warning", "odd", "This image seems to have lost its geometry.")]


def test_voxels_of_one_millimetre_in_a_place_of_their_own_are_a_geometry(tmp_path):
    affine = np.diag([-1.0, 1, 1, 1])
    affine[:3, 3] = 90, -126, -72
    assert findings(make(tmp_path, good() | {"mni": (image(9), label(8), affine)})) == []


def test_a_data_set_without_any_geometry_is_not_told_case_by_case(tmp_path):
    cases = {name: (scan, labels, np.eye(4)) for name, (scan, labels, _) in good().items()}
    assert findings(make(tmp_path, cases)) == []


def test_declared_labels_that_occur_nowhere(tmp_path):
    declared = {"0": "background", "1": "liver", "3": "spleen"}
    report = check_dataset(open_dataset(make(tmp_path, good(), {"labels": declared})))
    assert [(each.severity, each.case) for each in report.findings] == [("warning", None)]
    assert "3 (spleen)" in report.findings[0].error.found
    assert "liver" not in report.findings[0].error.found
    assert report.findings[0].error.file == str(tmp_path / "dataset.json")


@pytest.mark.parametrize("declared", [{}, {"labels": {"0": "background", "1": "liver"}}])
def test_where_nothing_is_labelled_nothing_can_be_trained(tmp_path, declared):
    cases = {name: (image, label * 0, affine) for name, (image, label, affine) in good().items()}
    errors = check_dataset(open_dataset(make(tmp_path, cases, declared))).errors
    assert [(each.case, each.error.problem) for each in errors] == [(None, "Nothing is labelled in this data set.")]


def test_a_label_that_one_case_lacks_is_counted_and_no_finding(tmp_path):
    cases = good()
    both = label(2)
    both[12, 3, 4:8] = 2
    cases["case2"] = (cases["case2"][0], both, None)
    report = check_dataset(open_dataset(make(tmp_path, cases, {"labels": {"background": 0, "big": 1, "small": 2}})))
    assert report.findings == ()
    assert report.to_dict()["label_counts"] == {
        "1": {"name": "big", "cases": 4, "voxels": 4 * 4 * 6 * 6},
        "2": {"name": "small", "cases": 1, "voxels": 4},
    }


def test_only_ignored_voxels_are_an_error_and_only_background_numbers_a_warning(tmp_path):
    cases = good() | {
        "ignored": (image(8), np.full((16, 18, 20), 9, np.uint8), None),
        "table": (image(9), label(8, number=5), None),
    }
    description = {"labels": {"background": 0, "organ": 1, "ignore": 9}, "background_labels": {"table": 5}}
    assert findings(make(tmp_path, cases, description)) == [
        ("error", "ignored", "Every voxel of this label map is to be ignored."),
        ("warning", "table", "This label map is empty."),
    ]


def test_a_missing_file_of_one_channel(tmp_path):
    two = {f"case{k}_000{c}": (image(10 * k + c), None, None) for k in range(3) for c in range(2)}
    del two["case1_0001"]
    labels = {f"case{k}": (None, label(k), None) for k in range(3)}
    report = check_dataset(open_dataset(make(tmp_path, two | labels)))
    assert [(each.severity, each.case) for each in report.findings] == [("error", "case1")]
    assert report.findings[0].error.found == "1, in case1_0000.nii.gz"
    assert report.findings[0].error.expected.startswith("2")


def test_a_skipped_channel_number(tmp_path):
    two = {f"case{k}_000{c}": (image(10 * k + c), None, None) for k in range(3) for c in range(2)}
    two["case1_0002"] = two.pop("case1_0001")
    labels = {f"case{k}": (None, label(k), None) for k in range(3)}
    assert findings(make(tmp_path, two | labels)) == [("error", "case1", "The image has the wrong number of channels.")]


def test_a_constant_channel_is_named_by_its_file(tmp_path):
    two = {f"case{k}_000{c}": (image(10 * k + c), None, None) for k in range(3) for c in range(2)}
    two["case1_0001"] = (np.full((16, 18, 20), 3, np.int16), None, None)
    labels = {f"case{k}": (None, label(k), None) for k in range(3)}
    report = check_dataset(open_dataset(make(tmp_path, two | labels)))
    assert [each.error.file for each in report.findings] == [str(tmp_path / "imagesTr" / "case1_0001.nii.gz")]
    assert report.findings[0].error.problem == "The image is constant."


def test_a_partner_of_nearly_the_same_name_is_named(tmp_path):
    cases = good() | {"scan_1": (image(8), None, None), "scan_1_seg": (None, label(8), None)}
    report = check_dataset(open_dataset(make(tmp_path, cases)))
    assert [(each.severity, each.case) for each in report.findings] == [("error", "scan_1"), ("error", "scan_1_seg")]
    assert "scan_1_seg" in report.findings[0].error.found
    assert "scan_1," in report.findings[1].error.found


def test_test_images_are_read_and_keep_nothing_from_being_trained_on(tmp_path):
    root = make(tmp_path, good(), {"modality": {"0": "MRI"}})
    make(root, {"two": (np.stack([image(7), image(8)], -1), None, None)}, images="imagesTs")
    (root / "imagesTs" / "broken.nii.gz").write_bytes(b"no scan")
    report = check_dataset(open_dataset(root))
    assert [(each.severity, each.case) for each in report.findings] == [("warning", "broken"), ("warning", "two")]
    assert len(report.facts) == 4


def test_another_number_is_not_nearly_the_same_name(tmp_path):
    cases = good() | {"scan_1": (image(8), None, None), "scan_10": (None, label(8), None)}
    report = check_dataset(open_dataset(make(tmp_path, cases)))
    assert [each.error.found for each in report.findings] == [None, None]


# Duplicates: the image of case1 once more, in one way or another.


def test_the_same_scan_under_another_name_type_and_orientation(tmp_path):
    root = make(tmp_path, good())
    for folder, array in (("imagesTr", image(1).astype(np.float64)), ("labelsTr", label(1).astype(np.int32))):
        write_nifti(root / folder / "copy.nii", *oriented(array, AFFINE, "SAL"))
    report = check_dataset(open_dataset(root))
    assert [(each.severity, each.case) for each in report.findings] == [("error", "copy")]
    assert report.findings[0].error.problem == "The same scan is there twice."
    assert str(root / "imagesTr" / "case1.nii.gz") in report.findings[0].error.found
    assert "other labels" not in report.findings[0].error.found


def test_the_same_scan_with_other_labels(tmp_path):
    report = check_dataset(open_dataset(make(tmp_path, good() | {"copy": (image(1), label(7), None)})))
    assert [(each.severity, each.case) for each in report.findings] == [("error", "copy")]
    assert "with other labels" in report.findings[0].error.found


def test_a_training_scan_among_the_test_images(tmp_path):
    root = make(tmp_path, good())
    make(root, {"a_held": (image(1), None, None), "new": (image(9), None, None)}, images="imagesTs")
    assert findings(root) == [("error", "a_held", "A test image is also trained on.")]


def test_the_same_test_image_twice_is_a_warning(tmp_path):
    root = make(tmp_path, good())
    make(root, {"one": (image(9), None, None), "two": (image(9), None, None)}, images="imagesTs")
    assert findings(root) == [("warning", "two", "The same scan is there twice.")]


def test_one_scan_labelled_twice_for_one_patient_is_a_warning(tmp_path):
    make(tmp_path, good() | {"copy": (image(1), label(7), None)})
    rows = [f"{name},imagesTr/{name}.nii.gz,labelsTr/{name}.nii.gz,{name}" for name in good()]
    rows.append("copy,imagesTr/copy.nii.gz,labelsTr/copy.nii.gz,case1")
    (tmp_path / "cases.csv").write_text("\n".join(["name,image,label,patient", *rows]))
    assert findings(tmp_path) == [("warning", "copy", "The same scan is there twice.")]


def test_one_label_map_for_two_images(tmp_path):
    assert findings(make(tmp_path, good() | {"odd": (image(9), label(1), None)})) == [
        ("warning", "odd", "Two images have the same label map.")
    ]


def test_empty_label_maps_are_no_duplicates(tmp_path):
    empty = np.zeros((16, 18, 20), np.uint8)
    found = findings(make(tmp_path, good() | {"a": (image(8), empty, None), "b": (image(9), empty, None)}))
    assert {problem for _, _, problem in found} == {"This label map is empty."}


def test_constant_images_are_constant_and_no_duplicates(tmp_path):
    same = np.zeros((16, 18, 20), np.int16)
    found = findings(make(tmp_path, good() | {"a": (same, label(8), None), "b": (same, label(9), None)}))
    assert found == [("error", "a", "The image is constant."), ("error", "b", "The image is constant.")]


def test_the_same_image_in_two_channels(tmp_path):
    cases = {f"case{k}": (np.stack([image(k), image(k + 10)], -1), label(k), None) for k in range(3)}
    cases["odd"] = (np.stack([image(8), image(8)], -1), label(5), None)
    assert findings(make(tmp_path, cases)) == [("warning", "odd", "Two channels of this image are the same.")]


def test_a_channel_of_another_case(tmp_path):
    cases = {f"case{k}": (np.stack([image(k), image(k + 10)], -1), label(k), None) for k in range(3)}
    cases["odd"] = (np.stack([image(8), image(11)], -1), label(5), None)
    report = check_dataset(open_dataset(make(tmp_path, cases)))
    assert [(each.severity, each.case) for each in report.findings] == [("error", "odd")]
    assert "in a channel" in report.findings[0].error.found
    assert "case1" in report.findings[0].error.found


def test_a_patient_on_two_sides_of_a_split(tmp_path):
    dataset = open_dataset(make(tmp_path, good()))
    whole = SplitFile("s", "by hand", (Split(("case0", "case1"), ("case2",), ("case3",)),))
    assert check_split(dataset, whole) == ()
    patients = dict.fromkeys(dataset.cases, "someone") | {"case0": "p", "case1": "p"}
    (error,) = check_split(dataset, whole, patients)
    assert error.severity == "error"
    assert "patient on two sides" in error.error.problem
    assert "someone" in error.error.found
    (unknown,) = check_split(dataset, SplitFile("s", "by hand", (Split(("case0",), (), ("elsewhere",)),)))
    assert unknown.severity == "error"
    assert "elsewhere" in unknown.error.found
    (unused,) = check_split(dataset, SplitFile("s", "by hand", (Split(("case0",), (), ("case3",)),)))
    assert unused.severity == "warning"
    assert "2 of 4" in unused.error.found
