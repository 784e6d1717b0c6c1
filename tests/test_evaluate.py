"""Folders of label maps in, scores and their policy out; every way of mismatching is named."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console

from medcontext.data.labels import Labels, Region
from medcontext.errors import MedContextError
from medcontext.evaluation.evaluate import comparison, evaluate, table
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
    far = float(np.percentile([1, 0, 0, 2], 95))
    rows = {(row["case"], row["label"]): (row["dice"], row["hd95_mm"], row["outcome"]) for row in result["cases"]}
    assert rows == {
        ("a", 1): (0.5, pytest.approx(far), "both"),
        ("a", 2): (0.0, None, "missed"),
        ("a", 3): (None, None, "absent"),
        ("b", 1): (1.0, 0.0, "both"),
        ("b", 2): (None, None, "absent"),
        ("b", 3): (0.0, None, "spurious"),
    }
    assert result["mean"]["labels"] == {
        "1": {"dice": 0.75, "hd95_mm": pytest.approx(far / 2), "scored": 2, "missed": 0, "spurious": 0, "absent": 0},
        "2": {"dice": 0.0, "hd95_mm": None, "scored": 1, "missed": 1, "spurious": 0, "absent": 1},
        "3": {"dice": 0.0, "hd95_mm": None, "scored": 1, "missed": 0, "spurious": 1, "absent": 1},
    }
    assert result["mean"]["dice"] == pytest.approx(0.25)
    assert result["mean"]["hd95_mm"] == pytest.approx(far / 2)
    assert result["unpredicted"] == ["c"]
    assert set(result["definition"]) == {"dice", "hd95_mm", "empty", "mean"}


def test_the_result_is_plain_json(folders, tmp_path):
    result = evaluate(*folders)
    write_json(tmp_path / "scores.json", result)
    assert json.loads((tmp_path / "scores.json").read_text()) == result


def test_names_choose_the_labels_and_are_carried(folders):
    predicted, truth = folders
    (predicted / "b.nii.gz").unlink()
    result = evaluate(predicted, truth, declared=Labels({2: "gland", 1: "duct", 9: "never there"}))
    labels = result["mean"]["labels"]
    assert [(label, entry["name"]) for label, entry in labels.items()] == [
        ("1", "duct"),
        ("2", "gland"),
        ("9", "never there"),
    ]
    assert labels["9"] == {
        "name": "never there", "dice": None, "hd95_mm": None, "scored": 0, "missed": 0, "spurious": 0, "absent": 1,
    }  # fmt: skip
    assert result["mean"]["dice"] == pytest.approx(0.25), "a label that is nowhere is not part of the mean"


def test_labels_of_the_truth_that_have_no_name_are_passed_over(folders):
    predicted, truth = folders
    (predicted / "b.nii.gz").unlink()
    declared = Labels({1: "duct"}, background=(2,))
    assert {row["label"] for row in evaluate(predicted, truth, declared)["cases"]} == {1}


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
    ("array", "affine", "problem"),
    [
        (np.zeros((6, 4, 5)), AFFINE, "differ in shape"),
        (np.zeros((6, 4, 4)), shifted(0.2), "lie differently in space"),
        (np.zeros((6, 4, 4)), FLIPPED, "lie differently in space"),
        (np.zeros((6, 4, 4)), COARSER, "lie differently in space"),
    ],
)
def test_another_grid_is_refused(folders, array, affine, problem):
    predicted, truth = folders
    path = write(predicted / "b.nii.gz", array, affine)
    with pytest.raises(MedContextError, match=problem) as caught:
        evaluate(predicted, truth)
    assert caught.value.file == str(path)
    assert str(truth / "b.nii.gz") in str(caught.value.expected)
    assert caught.value.found
    assert caught.value.remedy


def test_undeclared_labels_in_a_prediction_are_refused(folders):
    predicted, truth = folders
    with pytest.raises(MedContextError, match="not declared") as caught:
        evaluate(predicted, truth, declared=Labels({1: "duct", 2: "gland"}))
    assert caught.value.file == str(predicted / "b.nii.gz")
    assert caught.value.found == "label 3"
    assert "1, 2" in str(caught.value.expected)


def test_a_prediction_without_truth_is_refused(folders):
    predicted, truth = folders
    path = write(predicted / "z.nii.gz", volume())
    with pytest.raises(MedContextError, match="no true label map") as caught:
        evaluate(predicted, truth)
    assert caught.value.file == str(path)


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


def shown(renderable: Any) -> list[list[str]]:
    """The table's lines as cells, as a terminal of 120 columns shows them."""
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(renderable)
    lines = console.export_text().splitlines()
    return [[cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in lines if "│" in line]


def test_the_table_has_a_row_per_label_and_the_mean(folders):
    predicted, truth = folders
    (predicted / "b.nii.gz").unlink()
    rows = shown(table(evaluate(predicted, truth, declared=Labels({1: "duct [red]", 2: "gland"}))))
    assert rows == [
        ["1 duct [red]", "0.500", "1.85", "1", "0", "0"],
        ["2 gland", "0.000", "-", "1", "1", "0"],
        ["mean", "0.250", "1.85", "", "", ""],
    ]


def test_results_stand_side_by_side(folders):
    predicted, truth = folders
    first = evaluate(predicted, truth)
    far = f"{first['mean']['hd95_mm']:.2f}"
    rows = shown(comparison({"first": first, "perfect": evaluate(truth, truth)}))
    assert rows == [
        ["1", "0.750", far, "0", "1.000", "0.00", "0"],
        ["2", "0.000", "-", "1", "1.000", "0.00", "0"],
        ["3", "0.000", "-", "0", "-", "-", "-"],
        ["mean", "0.250", far, "", "1.000", "0.00", ""],
    ]
