"""Bad input is found, named and explained, and does not stop the check of the others."""

from __future__ import annotations

import json
import shutil
import time

import nibabel as nib
import numpy as np
import pytest

from medcontext.data import check as check_module
from medcontext.data.check import check_dataset
from medcontext.data.dataset import open_dataset
from medcontext.data.labels import Labels
from medcontext.data.scan import read_labels
from medcontext.errors import MedContextError
from tests.conftest import write_nifti


def check(root):
    return check_dataset(open_dataset(root))


def rewrite(path, change):
    image = nib.load(path)
    array, affine = change(np.asarray(image.dataobj).copy(), image.affine.copy())
    write_nifti(path, array, affine)


def spoil_nan(array, affine):
    array[1, 2, 3] = np.nan
    return array, affine


SPOILED = {
    "not finite": ("imagesTr", spoil_nan),
    "constant": ("imagesTr", lambda array, affine: (np.full_like(array, 7), affine)),
    "differ in shape": ("labelsTr", lambda array, affine: (array[1:], affine)),
    "different places": ("labelsTr", lambda array, affine: (array, affine + np.diag([0.2, 0, 0, 0]))),
    "not declared": ("labelsTr", lambda array, affine: (array * 3, affine)),
    "not whole numbers": ("labelsTr", lambda array, affine: (array.astype(np.float32) * 0.5, affine)),
    "number of axes": ("labelsTr", lambda array, affine: (np.stack([array, array], -1), affine)),
    "wrong number of channels": ("imagesTr", lambda array, affine: (np.stack([array, array], -1), affine)),
}


def test_a_good_data_set_has_no_findings_and_all_its_facts(tiny):
    report = check(tiny)
    assert not report.findings
    assert len(report.facts) == 8
    assert report.labels == Labels({1: "low", 2: "high"})
    facts = report.facts["case_00"]
    labels = np.asarray(nib.load(tiny / "labelsTr" / "case_00.nii.gz").dataobj)
    assert facts.voxels == {1: int((labels == 1).sum()), 2: int((labels == 2).sum())}
    assert facts.orientation == "RAS"
    assert facts.spacing == pytest.approx((1, 1, 1.5))


def test_progress_counts_files(tiny):
    said = []
    check_dataset(open_dataset(tiny), lambda done, total: said.append((done, total)))
    assert said == [(done, 16) for done in range(2, 17, 2)]


def test_as_many_scans_at_once_as_fit_in_free_memory(tiny, monkeypatch):
    workers, pool = [], check_module.ThreadPoolExecutor
    monkeypatch.setattr(
        check_module, "ThreadPoolExecutor", lambda max_workers: workers.append(max_workers) or pool(max_workers)
    )
    monkeypatch.setattr("medcontext.memory.processors", lambda: 6)
    dataset = open_dataset(tiny)
    largest = max(sum(path.stat().st_size for path in (*each.images, each.label)) for each in dataset.cases.values())
    for free in (1e12, 2 * 3 * 20 * largest, 1):
        monkeypatch.setattr("medcontext.memory.free_memory", lambda _, free=free: float(free))
        assert not check_dataset(dataset).errors
    assert workers == [6, 3, 1]


def test_a_check_that_is_stopped_stops(tiny, monkeypatch):
    read = []
    monkeypatch.setattr("medcontext.data.check.WORKERS", 1)

    def read_slowly(path):
        read.append(path)
        time.sleep(0.05)
        return read_labels(path)

    monkeypatch.setattr("medcontext.data.examine.read_labels", read_slowly)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_dataset(open_dataset(tiny), stop)
    assert 1 <= len(read) < 8


@pytest.mark.parametrize("problem", sorted(SPOILED))
def test_each_problem_is_found_in_its_file_alone(own_tiny, problem):
    folder, change = SPOILED[problem]
    bad = own_tiny / folder / "case_01.nii.gz"
    rewrite(bad, change)
    report = check(own_tiny)
    assert [finding.case for finding in report.errors] == ["case_01"]
    error = report.errors[0].error
    assert problem in error.problem
    assert error.file == str(bad)
    assert error.found
    assert error.remedy
    assert sorted(report.facts) == ["case_00", "case_02", "case_03"]


def test_truncated_files_and_missing_partners(own_tiny):
    cut = own_tiny / "imagesTr" / "case_00.nii.gz"
    cut.write_bytes(cut.read_bytes()[:-200])
    (own_tiny / "labelsTr" / "case_01.nii.gz").unlink()
    (own_tiny / "imagesTr" / "case_02.nii.gz").unlink()
    report = check(own_tiny)
    assert {finding.case: finding.error.file for finding in report.errors} == {
        "case_00": str(cut),
        "case_01": str(own_tiny / "imagesTr" / "case_01.nii.gz"),
        "case_02": str(own_tiny / "labelsTr" / "case_02.nii.gz"),
    }
    assert list(report.facts) == ["case_03"]
    assert json.loads(json.dumps(report.to_dict()))["findings"][0]["remedy"]


def test_an_empty_label_map_is_a_warning(own_tiny):
    rewrite(own_tiny / "labelsTr" / "case_01.nii.gz", lambda array, affine: (np.zeros_like(array), affine))
    report = check(own_tiny)
    assert not report.errors
    assert [finding.case for finding in report.findings] == ["case_01"]
    assert len(report.facts) == 4


def test_labels_are_discovered_where_none_are_declared(own_tiny):
    (own_tiny / "dataset.json").unlink()
    (own_tiny / "imagesTr").rename(own_tiny / "images")
    (own_tiny / "labelsTr").rename(own_tiny / "labels")
    report = check(own_tiny)
    assert not report.findings
    assert list(report.labels.names) == [1, 2]


def test_folders_that_are_no_data_set(tmp_path):
    with pytest.raises(MedContextError, match="no such data set"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(MedContextError, match="not a data set") as error:
        open_dataset(tmp_path)
    assert "empty" in error.value.found
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    with pytest.raises(MedContextError, match="no labelled scans"):
        open_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("{not json")
    write_nifti(tmp_path / "images" / "a.nii.gz", np.zeros((2, 2, 2), np.uint8), np.eye(4))
    with pytest.raises(MedContextError, match="not valid JSON"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    "declared", [{"background": 0, "low": 1, "high": 2}, {"0": "background", "1": "low", "2": "high"}]
)
def test_labels_are_declared_either_way_round(own_tiny, declared):
    (own_tiny / "dataset.json").write_text(json.dumps({"labels": declared}))
    assert open_dataset(own_tiny).labels == Labels({1: "low", 2: "high"})


def test_the_real_bad_files_are_refused_and_the_good_ones_checked(real_scans, tmp_path):
    source = real_scans / "Task04_Hippocampus"
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
        for name in ("hippocampus_001.nii.gz", "hippocampus_003.nii.gz"):
            shutil.copy(source / folder / name, tmp_path / folder)
        for path in (source / "_bad_input" / folder.removesuffix("Tr")).iterdir():
            shutil.copy(path, tmp_path / folder)
    shutil.copy(
        source / "_bad_input" / "labels" / "hippocampus_010.nii.gz", tmp_path / "labelsTr" / "hippocampus_118.nii.gz"
    )
    shutil.copy(source / "dataset.json", tmp_path)
    report = check(tmp_path)
    problems = {finding.case: finding.error for finding in report.errors}
    assert sorted(problems) == ["hippocampus_010", "hippocampus_118", "hippocampus_281"]
    assert "no image" in problems["hippocampus_010"].problem
    assert "no image" in problems["hippocampus_281"].problem
    assert "differ in shape" in problems["hippocampus_118"].problem
    assert "hippocampus_118" in problems["hippocampus_118"].file
    assert sorted(report.facts) == ["hippocampus_001", "hippocampus_003"]


@pytest.mark.parametrize(
    ("name", "cases", "labels"),
    [
        ("Task04_Hippocampus", 200, 2),
        ("Sunnybrook_LV_png", 60, 1),
        ("MouseBrain_FVB_NCrl_invivo", 6, 37),
        ("MS_lesion_4ch", 2, 1),
    ],
)
def test_the_real_data_sets_are_whole_and_raise_no_false_alarm(real_scans, name, cases, labels):
    report = check(real_scans / name)
    assert not report.findings
    assert len(report.facts) == cases
    assert len(report.labels.names) == labels
    assert all(counts["cases"] for counts in report.label_counts().values())


def test_real_scans_of_every_orientation_are_whole(real_scans):
    report = check(real_scans / "format_variety")
    assert not report.errors
    assert len(report.facts) == 6
    assert {facts.orientation for facts in report.facts.values()} == {"RAS", "LAS", "PSR", "LPS"}
