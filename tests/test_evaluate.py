"""Folders of label maps in, scores and their policy out; every way of mismatching is named."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from rich.console import Console

from medcontext.data.label_checks import grid_problems
from medcontext.data.labels import Labels, Region
from medcontext.data.scan import read_labels, read_scan
from medcontext.errors import MedContextError
from medcontext.evaluation.evaluate import evaluate, label_boxes
from medcontext.evaluation.metrics import METRICS, hd95
from medcontext.evaluation.score_tables import comparison, csv_rows, lesion_table, table
from medcontext.evaluation.scoring import Scoring
from medcontext.files import write_json

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


def write(path: Path, array: Any, affine: Any = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(array, np.uint8), affine), path)
    return path


def volume(**voxels: list[tuple[int, int, int]]) -> Any:
    """``(6, 4, 4)`` zeros with label ``n`` at the indices given as ``l<n>``."""
    array = np.zeros((6, 4, 4), np.uint8)
    for label, places in voxels.items():
        for place in places:
            array[place] = int(label[1:])
    return array


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Case ``a``: label 1 half right, 2 missed. Case ``b``: label 1 right, 3 spurious. Case ``c``: not predicted."""
    truth, predicted = tmp_path / "truth", tmp_path / "predicted"
    write(truth / "a.nii.gz", volume(l1=[(0, 0, 0), (1, 0, 0)], l2=[(3, 3, 3)]))
    write(predicted / "a.nii.gz", volume(l1=[(1, 0, 0), (1, 1, 0)]))
    write(truth / "b.nii.gz", volume(l1=[(2, 2, 2)]))
    write(predicted / "b.nii.gz", volume(l1=[(2, 2, 2)], l3=[(5, 0, 0)]))
    write(truth / "c.nii.gz", volume(l1=[(2, 2, 2)]))
    return predicted, truth


def test_scores_counts_and_means_by_hand(folders):
    result = evaluate(*folders)
    # Case a, label 1: surfaces {(0,0,0), (1,0,0)} and {(1,0,0), (1,1,0)}; distances 1, 0 there and 0, 2 mm back.
    far = pytest.approx(float(np.percentile([1, 0, 0, 2], 95)))
    rows = {(row["case"], row["label"]): row for row in result["cases"]}
    keys = ("dice", "iou", "hd95_mm", "assd_mm", "sensitivity", "precision", "outcome")
    assert {key: tuple(row[each] for each in keys) for key, row in rows.items()} == {
        ("a", 1): (0.5, 1 / 3, far, 0.75, 0.5, 0.5, "both"),
        ("a", 2): (0.0, 0.0, None, None, 0.0, None, "missed"),
        ("a", 3): (None, None, None, None, None, None, "absent"),
        ("b", 1): (1.0, 1.0, 0.0, 0.0, 1.0, 1.0, "both"),
        ("b", 2): (None, None, None, None, None, None, "absent"),
        ("b", 3): (0.0, 0.0, None, None, None, 0.0, "spurious"),
    }
    volumes = {key: (row["volume_ml"], row["truth_ml"], row["volume_difference_ml"]) for key, row in rows.items()}
    ml = 0.006  # of a voxel
    assert volumes["a", 1] == pytest.approx((2 * ml, 2 * ml, 0))
    assert volumes["a", 2] == pytest.approx((0, ml, -ml))
    assert volumes["b", 3] == pytest.approx((ml, 0, ml))
    assert volumes["b", 2] == (None, None, None)
    mean = result["mean"]
    keys = ("dice", "hd95_mm", "scored", "missed", "spurious", "absent")
    assert {label: tuple(entry[key] for key in keys) for label, entry in mean["labels"].items()} == {
        "1": (0.75, pytest.approx(0.5 * far.expected), 2, 0, 0, 0),
        "2": (0.0, None, 1, 1, 0, 1),
        "3": (0.0, None, 1, 0, 1, 1),
    }
    assert (mean["dice"], mean["cases"]) == (pytest.approx(0.25), 2)
    assert mean["hd95_mm"] == pytest.approx(0.5 * far.expected)
    assert result["unpredicted"] == ["c"]
    assert result["without_truth"] == result["resampled"] == []
    assert set(result["definition"]) == {"dice", "hd95_mm", "assd_mm", "nsd", "empty", "mean", "ci"}


def test_scans_of_one_patient_are_drawn_together(folders):
    result = evaluate(*folders, patient={"a": "one", "b": "one", "elsewhere": "two"})
    assert result["patients"] == {"a": "one", "b": "one"}
    assert result["mean"]["cases"] == 2
    assert result["mean"]["ci"]["dice"] is None
    assert result["mean"]["labels"]["1"]["ci"]["dice"] is None
    assert evaluate(*folders, patient={"a": "one"})["mean"] == evaluate(*folders)["mean"]
    assert evaluate(*folders, patient=".")["patients"] == {}
    with pytest.raises(MedContextError, match="No patient is found"):
        evaluate(*folders, patient="x")


def test_intervals_are_those_of_the_cases(folders):
    mean = evaluate(*folders)["mean"]
    # Two cases, so a resample has the one, the other or both.
    assert mean["labels"]["1"]["ci"]["dice"] == [0.5, 1.0]
    assert mean["labels"]["2"]["ci"]["dice"] is None, "of one case only"
    assert mean["ci"]["hd95_mm"] == pytest.approx([0.0, mean["labels"]["1"]["hd95_mm"] * 2])


def test_maps_without_any_label_have_no_scores(tmp_path):
    files = [write(tmp_path / f"{name}.nii.gz", volume()) for name in ("predicted", "truth")]
    result = evaluate(*files)
    assert result["cases"] == []
    assert (result["mean"]["cases"], result["mean"]["dice"], result["mean"]["ci"]["dice"]) == (1, None, None)
    assert "1 case(s)" in printed(table(result))


def test_the_result_is_plain_json(folders, tmp_path):
    result = evaluate(*folders)
    write_json(tmp_path / "scores.json", result)
    assert json.loads((tmp_path / "scores.json").read_text()) == result


def test_names_choose_the_labels_and_are_carried(folders):
    predicted, truth = folders
    (predicted / "b.nii.gz").unlink()
    result = evaluate(predicted, truth, declared=Labels({2: "gland", 1: "duct", 9: "never there"}))
    labels = result["mean"]["labels"]
    assert {label: entry["name"] for label, entry in labels.items()} == {
        "1": "duct",
        "2": "gland",
        "9": "never there",
    }
    assert (labels["9"]["dice"], labels["9"]["ci"]["dice"]) == (None, None)
    assert (labels["9"]["scored"], labels["9"]["absent"]) == (0, 1)
    assert result["mean"]["dice"] == pytest.approx(0.25), "a label that is nowhere is not part of the mean"


def test_labels_of_the_truth_that_have_no_name_are_passed_over(folders):
    predicted, truth = folders
    (predicted / "b.nii.gz").unlink()
    declared = Labels({1: "duct"}, background=(2,))
    assert {row["label"] for row in evaluate(predicted, truth, declared)["cases"]} == {1}


def test_a_label_map_that_training_takes_for_its_scans_own_can_be_scored(tmp_path):
    """Headers are rounded; a prediction has the affine of the scan, the truth its own."""
    for apart, fits in ((0.019, True), (0.021, False)):
        moved = AFFINE.copy()
        moved[0, 3] += apart
        truth = write(tmp_path / "truth.nii.gz", volume(l1=[(1, 1, 1)]), moved)
        predicted = write(tmp_path / "predicted.nii.gz", volume(l1=[(1, 1, 1)]))
        assert (grid_problems(read_scan(predicted), read_labels(truth)) == []) == fits
        if fits:
            assert evaluate(predicted, truth)["mean"]["dice"] == 1
        else:
            with pytest.raises(MedContextError, match="another grid"):
                evaluate(predicted, truth)


def test_the_voxels_of_a_tilted_scan_are_sheared(tmp_path):
    tilted = AFFINE.copy()
    tilted[1, 2] = 1.5
    truth = write(tmp_path / "truth.nii.gz", volume(l1=[(1, 1, 0)]), tilted)
    predicted = write(tmp_path / "predicted.nii.gz", volume(l1=[(1, 1, 2)]), tilted)
    row = evaluate(predicted, truth)["cases"][0]
    assert row["truth_ml"] == pytest.approx(0.006)
    assert row["hd95_mm"] == pytest.approx(math.hypot(2 * 1.5, 2 * 3.0))
    turned = tilted.copy()
    turned[:3, :3] = [[0, 2.0, 0], [1.0, 0, 0], [0, 0, 3.0]]
    for file in (truth, predicted):
        write(file, np.asanyarray(nib.load(file).dataobj), turned)
    assert evaluate(predicted, truth)["cases"][0]["hd95_mm"] == pytest.approx(6.0)


def test_a_tolerance_of_a_label_that_is_nowhere_counts_for_nothing(folders):
    plain, more = (evaluate(*folders, scoring=Scoring("official", tolerance=t)) for t in (2.0, {"1": 2.0, "9": 1.0}))
    assert more["mean"]["labels"].keys() == plain["mean"]["labels"].keys()
    assert more["mean"]["dice"] == plain["mean"]["dice"]


def test_regions_are_scored_as_unions_and_go_by_the_number_they_are_written_with(tmp_path):
    whole, core = Region("whole", (1, 2), 2), Region("core", (1,), 1)
    truth = write(tmp_path / "truth.nii.gz", volume(l1=[(0, 0, 0)], l2=[(1, 0, 0), (2, 0, 0)]))
    predicted = write(tmp_path / "predicted.nii.gz", volume(l1=[(1, 0, 0)], l2=[(0, 0, 0), (2, 0, 0)]))
    result = evaluate(predicted, truth, Labels({1: "label 1", 2: "label 2"}, regions=(whole, core)))
    assert [(row["label"], row["dice"]) for row in result["cases"]] == [(1, 0.0), (2, 1.0)]
    assert {entry["name"] for entry in result["mean"]["labels"].values()} == {"whole", "core"}


def test_what_the_truth_ignores_is_not_scored(tmp_path):
    truth = write(tmp_path / "truth.nii.gz", volume(l1=[(0, 0, 0)], l9=[(1, 0, 0), (2, 0, 0)]))
    predicted = write(tmp_path / "predicted.nii.gz", volume(l1=[(0, 0, 0), (1, 0, 0), (2, 0, 0)]))
    result = evaluate(predicted, truth, Labels({1: "duct"}, ignore=9))
    assert [(row["dice"], row["hd95_mm"]) for row in result["cases"]] == [(1.0, 0.0)]
    elsewhere = write(tmp_path / "elsewhere.nii.gz", volume(l1=[(1, 0, 0)]))
    blank = write(tmp_path / "blank.nii.gz", volume(l9=[(1, 0, 0)]))
    assert evaluate(elsewhere, blank, Labels({1: "duct"}, ignore=9))["cases"][0]["outcome"] == "absent"


def test_spacing_comes_from_the_affine_in_array_order(tmp_path):
    turned = np.array([[0, 0, -7.0, 3], [5.0, 0, 0, -2], [0, 0.5, 0, 1], [0, 0, 0, 1]])
    for place, distance in (((1, 0, 0), 5.0), ((0, 1, 0), 0.5), ((0, 0, 1), 7.0)):
        truth = write(tmp_path / "truth.nii.gz", volume(l1=[(0, 0, 0)]), turned)
        predicted = write(tmp_path / "predicted.nii.gz", volume(l1=[place]), turned)
        assert evaluate(predicted, truth)["cases"][0]["hd95_mm"] == pytest.approx(distance)


def test_single_files_and_progress(folders):
    predicted, truth = folders
    seen: list[tuple[int, int]] = []
    evaluate(predicted, truth, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 2), (2, 2)]
    one = evaluate(predicted / "a.nii.gz", truth)
    assert {row["case"] for row in one["cases"]} == {"a"}
    assert one["unpredicted"] == ["b", "c"]
    renamed = evaluate(predicted / "a.nii.gz", truth / "b.nii.gz")
    assert {row["case"] for row in renamed["cases"]} == {"a"}
    assert renamed["unpredicted"] == []


def test_a_slightly_rounded_affine_is_the_same_grid(folders):
    predicted, truth = folders
    write(predicted / "b.nii.gz", volume(l1=[(2, 2, 2)]), AFFINE + np.full((4, 4), 1e-5) * (AFFINE != 1))
    assert evaluate(predicted, truth)["mean"]["labels"]["1"]["dice"] == 0.75


def shifted(mm: float) -> Any:
    affine = AFFINE.copy()
    affine[0, 3] = mm
    return affine


FLIPPED = AFFINE @ np.diag([-1.0, 1, 1, 1])
COARSER = AFFINE * np.array([1.01, 1, 1, 1])


@pytest.mark.parametrize(
    ("array", "affine"),
    [
        (np.zeros((6, 4, 5)), AFFINE),
        (np.zeros((6, 4, 4)), shifted(0.2)),
        (np.zeros((6, 4, 4)), FLIPPED),
        (np.zeros((6, 4, 4)), COARSER),
    ],
)
def test_another_grid_is_refused_with_both_grids_named(folders, array, affine):
    predicted, truth = folders
    path = write(predicted / "b.nii.gz", array, affine)
    with pytest.raises(MedContextError, match="on another grid") as caught:
        evaluate(predicted, truth)
    assert caught.value.file == str(path)
    assert str(truth / "b.nii.gz") in str(caught.value.expected)
    assert f"{array.shape}, affine {np.round(affine, 4).tolist()}" in str(caught.value.found)
    assert f"(6, 4, 4), affine {AFFINE.tolist()}" in str(caught.value.expected)
    assert "--resample" in str(caught.value.remedy)


def test_undeclared_labels_are_refused_on_either_side(folders):
    predicted, truth = folders
    with pytest.raises(MedContextError, match="not declared") as caught:
        evaluate(predicted, truth, declared=Labels({1: "duct", 2: "gland"}))
    assert caught.value.file == str(predicted / "b.nii.gz")
    assert caught.value.found == "label 3"
    assert "1, 2" in str(caught.value.expected)
    with pytest.raises(MedContextError, match="not declared") as caught:
        evaluate(predicted, truth, declared=Labels({1: "duct", 3: "stone"}))
    assert caught.value.file == str(truth / "a.nii.gz")


def test_cases_of_one_side_only_are_listed_and_not_scored(folders):
    predicted, truth = folders
    write(predicted / "z.nii.gz", volume())
    result = evaluate(predicted, truth)
    assert (result["unpredicted"], result["without_truth"]) == (["c"], ["z"])
    assert {row["case"] for row in result["cases"]} == {"a", "b"}


def test_no_case_in_common_is_told_with_both_sides(folders, tmp_path):
    _, truth = folders
    others = write(tmp_path / "others" / "pred_a.nii.gz", volume()).parent
    with pytest.raises(MedContextError, match="has the name of a true label map") as caught:
        evaluate(others, truth)
    assert "pred_a" in str(caught.value.found)
    assert "a, b, c" in str(caught.value.found)


@pytest.mark.parametrize("absent", ["predictions", "labels"])
@pytest.mark.parametrize(("make", "problem"), [(False, "no such folder"), (True, "no label maps")])
def test_folders_that_are_absent_or_empty(folders, tmp_path, absent, make, problem):
    predicted, truth = folders
    folder = tmp_path / "nothing"
    if make:
        folder.mkdir()
    with pytest.raises(MedContextError, match=problem) as caught:
        evaluate(folder if absent == "predictions" else predicted, folder if absent == "labels" else truth)
    assert caught.value.file == str(folder)


def test_a_damaged_file_is_named(folders):
    predicted, truth = folders
    path = predicted / "b.nii.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(MedContextError, match="truncated") as caught:
        evaluate(predicted, truth)
    assert caught.value.file == str(path)


def test_every_case_that_can_not_be_scored_is_told_at_once(folders):
    predicted, truth = folders
    write(predicted / "c.nii.gz", volume())
    damaged = predicted / "a.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    done = []
    with pytest.raises(MedContextError, match="2 of 3 cases can't be scored") as caught:
        evaluate(predicted, truth, declared=Labels({1: "duct"}), progress=lambda *at: done.append(at), workers=2)
    assert done == [(1, 3), (2, 3), (3, 3)]
    for told in (str(damaged), "truncated", str(predicted / "b.nii.gz"), "label 3"):
        assert told in caught.value.found
    assert "c.nii.gz" not in caught.value.found


def test_the_policy_is_applied_to_every_row_and_said(folders):
    result = evaluate(*folders, scoring=Scoring(policy="official"))
    rows = {(row["case"], row["label"]): row for row in result["cases"]}
    # Distances in voxels: 1, 0 there and 0, 1 back.
    assert rows["a", 1]["hd95_mm"] == pytest.approx(1.0)
    assert rows["a", 1]["truth_ml"] == pytest.approx(0.012)
    assert (rows["a", 2]["dice"], rows["a", 2]["hd95_mm"], rows["a", 2]["outcome"]) == (0.0, 0.0, "missed")
    assert (rows["a", 3]["dice"], rows["a", 3]["hd95_mm"], rows["a", 3]["outcome"]) == (1.0, 0.0, "absent")
    assert result["mean"]["labels"]["2"]["dice"] == 0.5
    assert result["settings"]["policy"] == "official"
    assert "nnFormer" in result["definition"]["empty"]
    far = evaluate(*folders, scoring=Scoring(policy="penalised"))["mean"]["labels"]["2"]
    assert far["hd95_mm"] == pytest.approx(math.hypot(6, 4 * 2, 4 * 3))


@pytest.mark.parametrize(
    ("definition", "expected"), [("pooled", "MedPy"), ("directed", "MONAI"), ("weighted", "surface-distance")]
)
def test_the_definition_of_hd95_can_be_chosen(tmp_path, definition, expected):
    rng = np.random.default_rng(1)
    arrays = [rng.integers(0, 2, (6, 5, 4)) for _ in range(2)]
    files = [write(tmp_path / f"{k}.nii.gz", array) for k, array in enumerate(arrays)]
    result = evaluate(*files, scoring=Scoring(hd95=definition))
    value = hd95(*(array.astype(bool) for array in arrays), (1.0, 2.0, 3.0), definition)
    assert result["cases"][0]["hd95_mm"] == pytest.approx(value)
    assert expected in result["definition"]["hd95_mm"]
    assert result["settings"]["hd95"] == definition


def test_tolerances_are_of_each_label_by_name_or_number(folders):
    predicted, truth = folders
    (predicted / "b.nii.gz").unlink()
    declared = Labels({1: "duct", 2: "gland"})

    def nsd_of(tolerance: Any) -> float:
        return evaluate(predicted, truth, declared, Scoring(tolerance=tolerance))["mean"]["labels"]["1"]["nsd"]

    assert nsd_of(0) < nsd_of(1.0) < nsd_of(2.0) == 1.0
    assert nsd_of({"duct": 0}) == nsd_of({"1": 0}) == nsd_of(0)
    assert nsd_of({"gland": 0}) == nsd_of(2.0)
    told = evaluate(predicted, truth, declared, Scoring(tolerance={"gland": 1}))["settings"]["tolerance_mm"]
    assert told == {"1": 2.0, "2": 1.0}


@pytest.mark.parametrize("scoring", [Scoring(tolerance={"liver": 1}), Scoring(lesions=("liver",))])
@pytest.mark.parametrize("declared", [None, Labels({1: "duct", 2: "gland", 3: "stone"})])
def test_labels_that_are_not_there_can_not_be_asked_for(folders, scoring, declared):
    with pytest.raises(MedContextError, match="no label of this name") as caught:
        evaluate(*folders, declared=declared, scoring=scoring)
    assert caught.value.found == "liver"
    assert ("2 gland" if declared else "above 0") in str(caught.value.expected)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tolerance": -1},
        {"tolerance": {"1": math.nan}},
        {"lesion_iou": 0},
        {"lesion_iou": 1.1},
        {"hd95": "max"},
        {"policy": "mine"},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(MedContextError):
        Scoring(**wrong)


def test_lesions_are_counted_for_the_labels_asked_for(tmp_path):
    truth, predicted = tmp_path / "truth", tmp_path / "predicted"
    write(truth / "a.nii.gz", volume(l1=[(0, 0, 0), (3, 3, 3)], l2=[(5, 0, 0)]))
    write(predicted / "a.nii.gz", volume(l1=[(0, 0, 0), (5, 3, 0)], l2=[(5, 0, 0)]))
    write(truth / "b.nii.gz", volume(l2=[(5, 0, 0)]))
    write(predicted / "b.nii.gz", volume(l1=[(2, 2, 2)], l2=[(5, 0, 0)]))
    result = evaluate(predicted, truth, scoring=Scoring(lesions=("1", "7")))
    keys = ("lesions_found", "lesions_missed", "lesions_spurious", "lesions_f1")
    rows = {(row["case"], row["label"]): tuple(row.get(key, "-") for key in keys) for row in result["cases"]}
    assert rows["a", 1] == (1, 1, 1, 0.5)
    assert rows["b", 1] == (0, 0, 1, 0.0)
    assert rows["a", 2] == ("-",) * 4
    assert rows["a", 7] == (0, 0, 0, None)
    total = result["mean"]["labels"]["1"]
    assert tuple(total[key] for key in keys) == (1, 1, 2, 0.4)
    assert (total["lesions_sensitivity"], total["lesions_precision"]) == (0.5, pytest.approx(1 / 3))
    assert total["lesions_spurious_per_case"] == 1.0
    assert "lesions_found" not in result["mean"]["labels"]["2"]
    assert "0.1" in result["definition"]["lesions"]
    rows = lesion_table(result)
    assert "spurious" in printed(rows)
    assert lesion_table(evaluate(predicted, truth)) is None


def test_numbers_of_atlases_are_scored_like_any(tmp_path):
    files = []
    for name, place in (("truth", (1, 1, 1)), ("predicted", (1, 2, 1))):
        array = np.zeros((6, 4, 4), np.int32)
        array[place], array[5, 3, 3] = 2_000_000_000, -3
        nib.save(nib.Nifti1Image(array, AFFINE), tmp_path / f"{name}.nii.gz")
        files.append(tmp_path / f"{name}.nii.gz")
    rows = {row["label"]: (row["dice"], row["hd95_mm"]) for row in evaluate(*files)["cases"]}
    assert rows == {-3: (1.0, 0.0), 2_000_000_000: (0.0, 2.0)}


@settings(deadline=None, max_examples=25)
@given(arrays.arrays(np.int32, arrays.array_shapes(min_dims=3, max_dims=3, max_side=5), elements=st.integers(0, 4)))
def test_boxes_hold_their_labels_and_nothing_around_them(array):
    for labels in (array, array * 40_000, array - 2):
        boxes = label_boxes(labels)
        assert boxes.keys() == set(np.unique(labels).tolist()) - {0}
        for label, box in boxes.items():
            places = np.argwhere(labels == label)
            assert [(s.start, s.stop) for s in box] == [*zip(places.min(0), places.max(0) + 1, strict=True)]


def test_threads_change_nothing(folders):
    assert evaluate(*folders, workers=3) == evaluate(*folders)
    with pytest.raises(MedContextError, match="workers"):
        evaluate(*folders, workers=0)


def printed(renderable: Any, width: int = 120) -> str:
    """As a terminal shows it."""
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def cells(text: str) -> list[list[str]]:
    """The lines of a table as cells: what stands between two or more spaces, or lines."""
    return [re.split(r" *[│┃] *|  +", line.strip(" │┃")) for line in text.splitlines() if re.search(r"\d|mean", line)]


def test_the_table_has_a_row_per_label_and_the_mean(folders):
    predicted, truth = folders
    result = evaluate(predicted, truth, declared=Labels({1: "duct [red]", 2: "gland", 3: "stone"}))
    text = printed(table(result))
    assert cells(text)[:7] == [
        ["label", "Dice", "HD95 mm", "NSD", "ASSD mm", "volume ml", "scored", "missed", "spurious"],
        ["1 duct [red]", "0.750", "0.92", "1.000", "0.38", "+0.00", "2", "0", "0"],
        ["0.500 1.000", "0.00 1.85", "1.000 1.000"],
        ["2 gland", "0.000", "-", "0.000", "-", "-0.01", "1", "1", "0"],
        ["3 stone", "0.000", "-", "0.000", "-", "+0.01", "1", "0", "1"],
        ["mean", "0.250", "0.92", "0.333", "0.38", "+0.00"],
        ["0.250 0.500", "0.00 1.85", "0.333 0.500"],
    ]
    assert "2 case(s); below a mean its 95 % interval. Policy medcontext: a label in neither map is not counted" in text
    assert "0.750" in printed(table(result), width=80), "nothing is cut on a narrow terminal"


def test_results_stand_side_by_side(folders):
    predicted, truth = folders
    first = evaluate(predicted, truth)
    far = f"{first['mean']['hd95_mm']:.2f}"
    rows = cells(printed(comparison({"first": first, "perfect": evaluate(truth, truth)})))
    assert rows[-4:] == [
        ["1", "0.750", far, "0", "1.000", "0.00", "0"],
        ["2", "0.000", "-", "1", "1.000", "0.00", "0"],
        ["3", "0.000", "-", "0", "-", "-", "-"],
        ["mean", "0.250", far, "", "1.000", "0.00"],
    ]


def test_csv_has_a_line_for_every_case_and_label(folders):
    result = evaluate(*folders, scoring=Scoring(lesions=("1",)))
    rows = list(csv.DictReader(io.StringIO(csv_rows(result))))
    assert [(row["case"], row["label"]) for row in rows] == [(r["case"], str(r["label"])) for r in result["cases"]]
    for row, original in zip(rows, result["cases"], strict=True):
        for key in METRICS:
            assert row[key] == ("" if original[key] is None else str(original[key]))
    assert rows[0]["lesions_found"] == "1"
    assert (rows[1]["lesions_found"], rows[1]["outcome"], rows[1]["name"]) == ("", "missed", "")
