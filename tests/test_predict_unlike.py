"""Scans that a model is not for: refused before memory is taken, or segmented with a warning that has numbers."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medcontext.data.check import check_dataset
from medcontext.data.dataset import open_dataset
from medcontext.data.plan import Normalisation, make_plan
from medcontext.data.prepare import prepare_case, require_memory
from medcontext.data.scan import Scan, read_scan
from medcontext.errors import MedContextError
from medcontext.inference.predict import predict_files
from medcontext.inference.predictor import Predictor
from medcontext.inference.scans import find_scans
from medcontext.inference.unlike import KEY, remarks, seen_in
from medcontext.progress import Progress
from tests.conftest import write_nifti
from tests.predicting import plan, write_model
from tests.test_formats import absurd

CT_SEEN = {
    "spacing": {"least": [1.0, 0.7, 0.7], "most": [5.0, 0.9, 0.9]},
    "intensities": [{"low": [-1024.0, -980.0], "high": [300.0, 1500.0]}],
}
MRI_SEEN = {
    "spacing": {"least": [1.0, 0.7, 0.7], "most": [5.0, 0.9, 0.9]},
    "intensities": [{"low": [-3.0, 40.0], "high": [112.0, 1.7e6]}],
}
CT = Normalisation("ct", -200.0, 300.0, 50.0, 80.0)
MRI = Normalisation("case")


def scan_of(low: float, high: float, spacing=(0.8, 0.8, 2.0), shape=(20, 20, 20)) -> Scan:
    values = np.random.default_rng(0).uniform(low, high, (1, *shape)).astype(np.float32)
    return Scan(Path("scan.nii.gz"), values, np.diag([*spacing, 1.0]), None)


def said(scan: Scan, seen, **changes) -> list[str]:
    return [each.problem.split()[1] for each in remarks(scan, plan(**changes), {KEY: seen})]


def test_a_scan_like_those_of_the_training_is_passed_over():
    assert said(scan_of(-1000, 800), CT_SEEN, normalisation=CT) == []
    assert said(scan_of(0, 900), MRI_SEEN, normalisation=MRI) == []
    assert said(scan_of(-5, 900), MRI_SEEN, normalisation=MRI) == []


@pytest.mark.parametrize(("low", "high"), [(0, 900), (0, 255), (24, 4000), (-1, 1), (0, 1)])
def test_mri_for_ct_is_seen(low, high):
    (remark,) = remarks(scan_of(low, high), plan(normalisation=CT), {KEY: CT_SEEN})
    assert "intensities" in remark.problem
    assert "-1024 to 1500" in remark.expected
    assert f"to {np.percentile(scan_of(low, high).array, 99.5):.4g}" in remark.found


def test_ct_for_mri_is_seen():
    assert said(scan_of(-1000, 800), MRI_SEEN, normalisation=MRI) == ["intensities"]
    mixed = {**MRI_SEEN, "intensities": [{"low": [-3.0, 0.0], "high": [2.0, 5.0]}]}
    assert said(scan_of(-2, 2), mixed, normalisation=MRI) == []


@pytest.mark.parametrize(
    ("spacing", "unlike"),
    [((0.8, 0.8, 10), False), ((0.8, 0.8, 10.1), True), ((0.34, 0.8, 2), True), ((0.36, 0.8, 2), False)],
)
def test_voxels_far_outside_of_the_training_are_seen(spacing, unlike):
    """Along the plan's axes, S first: twice the coarsest and half the finest are still within."""
    assert said(scan_of(0, 900, spacing, (20, 20, 9)), MRI_SEEN, normalisation=MRI) == (["voxels"] if unlike else [])


def test_a_scan_much_smaller_than_a_patch_is_seen():
    large = {"patch": (64, 64, 64), "spacing": (1.0, 1.0, 1.0), "normalisation": MRI}
    assert said(scan_of(0, 900, (1, 1, 1), (64, 64, 20)), MRI_SEEN, **large) == []
    assert said(scan_of(0, 900, (1, 1, 1), (64, 64, 15)), MRI_SEEN, **large) == ["scan"]
    (remark,) = remarks(scan_of(0, 900, (1, 1, 1), (30, 30, 15)), plan(**large), {KEY: MRI_SEEN})
    assert remark.found.startswith("15 x 30 x 30 voxels")


def test_a_model_that_does_not_say_what_it_has_seen_warns_of_less():
    assert remarks(scan_of(-1000, 800, (9, 9, 9)), plan(normalisation=MRI), {}) == ()
    assert [each.problem for each in remarks(scan_of(0, 9, (50, 50, 50)), plan(), {})] == [
        "The voxel size is unlikely."
    ]


def test_what_the_training_scans_were_like_is_kept_as_it_was(tiny):
    report = check_dataset(open_dataset(tiny))
    seen = seen_in(report.facts.values(), make_plan(report))
    scans = [nib.load(path) for path in sorted((tiny / "imagesTr").iterdir())]
    turned = [nib.as_closest_canonical(scan) for scan in scans]
    spacings = np.array([np.array(scan.header.get_zooms())[::-1] for scan in turned])  # S, A, R as the plan's axes
    assert seen["spacing"]["least"] == pytest.approx(spacings.min(axis=0))
    assert seen["spacing"]["most"] == pytest.approx(spacings.max(axis=0))
    ranges = np.array([np.percentile(scan.get_fdata(), (0.5, 99.5)) for scan in scans])
    assert seen["intensities"] == [
        {
            "low": pytest.approx([ranges[:, 0].min(), ranges[:, 0].max()]),
            "high": pytest.approx([ranges[:, 1].min(), ranges[:, 1].max()]),
        }
    ]
    assert json.loads(json.dumps(seen)) == seen


def test_remarks_are_said_and_kept_and_the_scans_segmented(tmp_path, capsys):
    model = write_model(tmp_path / "run", about={KEY: MRI_SEEN})
    for index in range(5):
        array = np.random.default_rng(index).uniform(-1000, 900, (9, 9, 9)).astype(np.float32)
        write_nifti(tmp_path / "scans" / f"scan_{index}.nii.gz", array, np.diag([0.8, 0.8, 2, 1]))
    outcome = predict_files(
        Predictor.load(model), find_scans(tmp_path / "scans"), tmp_path / "out", progress=Progress()
    )
    assert (len(outcome.written), len(outcome.remarks), outcome.failed) == (5, 5, {})
    text = capsys.readouterr().err
    assert text.count("unlike those of the training scans.\n  file") == 3
    assert "5 scans in all" in text
    kept = json.loads((tmp_path / "out" / "summary.json").read_text())["remarks"]
    assert "in training" in kept["scan_4"][0]["expected"]


def test_gigantic_headers_are_refused_before_memory_is_taken(tmp_path):
    (tmp_path / "scans").mkdir()
    absurd(tmp_path / "scans")
    predictor, scans = Predictor.load(write_model(tmp_path / "run")), find_scans(tmp_path / "scans")
    assert len(scans) == 8
    tracemalloc.start()
    outcome = predict_files(predictor, scans, tmp_path / "out")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert outcome.failed.keys() == scans.keys()
    assert "54,000,000,000,352 bytes" in outcome.failed["a"].expected
    assert most < 60e6


def test_a_header_in_other_units_is_refused_before_memory_is_taken(tmp_path):
    """Micrometres taken for millimetres: a thousand times as many voxels along every axis at the plan's spacing."""
    scan = scan_of(0, 900, (700, 700, 2500), (64, 64, 30))
    tracemalloc.start()
    with pytest.raises(MedContextError, match="too little memory") as error:
        require_memory(scan, plan())
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    with pytest.raises(MedContextError, match="too little memory"):
        prepare_case(scan, None, plan())
    assert "2500 x 700 x 700 mm" in error.value.found
    assert "75000 x 44800 x 29867 voxels" in error.value.expected
    path = write_nifti(tmp_path / "scans" / "wide.nii.gz", scan.array[0], scan.affine)
    failed = predict_files(Predictor.load(write_model(tmp_path / "run")), find_scans(path), tmp_path / "out").failed
    assert "millimetres" in failed["wide"].remedy
    require_memory(scan_of(0, 900), plan())


@pytest.mark.parametrize(("normalisation", "copies"), [(CT, 2.5), (MRI, 4.5)])
def test_memory_for_all_copies_while_a_scan_is_prepared_is_asked_for(monkeypatch, normalisation, copies):
    """A scan of 60 x 60 x 60 voxels that has 8 times as many at the network's spacing."""
    scan = scan_of(0, 900, (1, 1, 1), (60, 60, 60))
    made = plan(normalisation=normalisation, spacing=(0.5, 0.5, 0.5))
    taken = copies * 4 * 120**3
    monkeypatch.setattr("medcontext.data.prepare.free_memory", lambda _: 0.9 * taken)
    with pytest.raises(MedContextError, match="too little memory"):
        require_memory(scan, made)
    monkeypatch.setattr("medcontext.data.prepare.free_memory", lambda _: 1.2 * taken)
    require_memory(scan, made)


def test_probabilities_that_memory_can_not_hold_are_refused(monkeypatch):
    """Those of 500 outputs for 24 x 24 x 24 voxels take 13.8 MB in half precision."""
    scan = scan_of(0, 900, (1, 1, 1.5), (24, 24, 24))
    monkeypatch.setattr("medcontext.data.prepare.free_memory", lambda _: 10e6)
    require_memory(scan, plan())
    with pytest.raises(MedContextError, match="too little memory") as error:
        require_memory(scan, plan(), 500)
    assert "no probabilities" in error.value.remedy


def test_ct_for_a_model_of_mri_on_real_scans(real_scans, tmp_path):
    """What is recorded in training from real hippocampus MRI tells real CT from it, and other MRI not."""
    report = check_dataset(open_dataset(small_copy(real_scans / "Task04_Hippocampus", tmp_path / "data")))
    made = make_plan(report)
    about = {KEY: seen_in(report.facts.values(), made)}
    folder = real_scans / "format_variety" / "imagesTr"
    found = {
        name: {each.problem.split()[1] for each in remarks(read_scan(folder / f"{name}.nii.gz"), made, about)}
        for name in ("ct_multiorgan_3mm_crop", "sct_t1_RAS", "sct_t2s_aniso_LAS")
    }
    assert found == {
        "ct_multiorgan_3mm_crop": {"voxels", "intensities"},
        "sct_t1_RAS": set(),
        "sct_t2s_aniso_LAS": {"voxels"},
    }


def small_copy(source: Path, target: Path) -> Path:
    for folder in ("imagesTr", "labelsTr"):
        (target / folder).mkdir(parents=True)
        for path in sorted((source / "labelsTr").iterdir())[:6]:
            (target / folder / path.name).symlink_to(source / folder / path.name)
    (target / "dataset.json").symlink_to(source / "dataset.json")
    return target
