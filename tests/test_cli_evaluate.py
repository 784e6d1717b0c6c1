"""``medcontext evaluate``, as a user types it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from medcontext.errors import MedContextError
from medcontext.evaluation import evaluate as module
from medcontext.files import require_writable
from tests.conftest import write_nifti
from tests.test_cli import run

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of three cases, of which two are predicted, and a prediction of another."""
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c", "d"):
        label = np.zeros((12, 10, 8), np.uint8)
        label[2:7, 2:7, 2:6], label[8:11, 3:6, 2:5] = 1, 3
        seen = np.where(rng.random(label.shape) < 0.05, 0, label).astype(np.uint8)
        chances = np.stack([seen == 0, seen == 1, seen == 3], axis=-1) * 0.7 + 0.1
        if name != "d":
            write_nifti(tmp_path / "data" / "labelsTr" / f"{name}.nii.gz", label, AFFINE)
            write_nifti(tmp_path / "data" / "imagesTr" / f"{name}.nii.gz", label.astype(np.float32), AFFINE)
        if name != "c":
            write_nifti(tmp_path / "predicted" / f"{name}.nii.gz", seen, AFFINE)
            write_nifti(tmp_path / "chances" / f"{name}.nii.gz", chances.astype(np.float32), AFFINE)
    description = {"labels": {"background": 0, "liver": 1, "tumour": 3}}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(description))
    return tmp_path


def evaluate(folder: Path, *options: object) -> int:
    return run("evaluate", folder / "predicted", folder / "data" / "labelsTr", *options)


def test_everything_at_once(folder, capsys):
    files = {ending: folder / "out" / f"scores.{ending}" for ending in ("json", "csv", "png")}
    code = evaluate(
        folder, "--data", folder / "data", "--hd95", "directed", "--tolerance", "{liver: 3, 3: 1}", "--lesions",
        "[tumour]", "--lesion-iou", 0.2, "--probabilities", folder / "chances", "--diagram", files["png"],
        "--json", files["json"], "--csv", files["csv"],
    )  # fmt: skip
    said = capsys.readouterr().out
    assert code == 0
    result = json.loads(files["json"].read_text())
    assert result["settings"] == {
        "policy": "medcontext",
        "hd95": "directed",
        "tolerance_mm": {"1": 3.0, "3": 1.0},
        "lesions": [3],
        "lesion_iou": 0.2,
        "structures": {"1": [1], "3": [3]},
    }
    assert (result["unpredicted"], result["without_truth"]) == (["c"], ["d"])
    with files["csv"].open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["case"], row["name"]) for row in rows] == [
        (case, name) for case in ("a", "b") for name in ("liver", "tumour")
    ]
    assert float(rows[0]["dice"]) == result["cases"][0]["dice"]
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    for text in ("1 liver", "3 tumour", "lesions", "no prediction, and were not scored: c", "no truth, and were not"):
        assert text in said
    ece = result["calibration"]["labels"]["1"]["ece"]
    assert f"liver {ece:.4f}" in said


def test_where_every_voxel_is_ignored_there_is_no_calibration(folder, capsys):
    description = {"labels": {"background": 0, "liver": 1, "tumour": 3, "ignore": 9}}
    (folder / "data" / "dataset.json").write_text(json.dumps(description))
    for name in ("a", "b", "c"):
        write_nifti(folder / "data" / "labelsTr" / f"{name}.nii.gz", np.full((12, 10, 8), 9, np.uint8), AFFINE)
    scores = folder / "scores.json"
    options = "--data", folder / "data", "--probabilities", folder / "chances", "--json", scores
    assert evaluate(folder, *options) == 0
    assert "expected calibration error: - over every voxel; liver -, tumour -" in capsys.readouterr().out
    assert json.loads(scores.read_text())["calibration"]["overall"]["ece"] is None


@pytest.mark.parametrize("told", ["names", "data"])
def test_patients_are_told_by_the_names_or_by_the_data_set(folder, told):
    """A data set's list knows them; a pattern, here of what stands before the underscore, is asked first."""
    truth = folder / "data" / "labelsTr"
    lines = ["name,image,label,patient"]
    for each in (folder / "predicted", truth):
        (each / "b.nii.gz").rename(each / "a_later.nii.gz")
    for name in ("a", "a_later"):
        file = truth / f"{name}.nii.gz"
        lines.append(f"{name},{file},{file},{name if told == 'names' else 'P1'}")
    (folder / "cases.csv").write_text("\n".join(lines))
    description = (folder / "data" / "dataset.json").read_text()
    (folder / "dataset.json").write_text(description)
    scores = folder / "scores.json"
    options = ("--patient", "^[^_]+") if told == "names" else ()
    assert evaluate(folder, "--data", folder / "cases.csv", *options, "--json", scores) == 0
    result = json.loads(scores.read_text())
    assert result["patients"] == ({"a_later": "a"} if told == "names" else {"a": "P1", "a_later": "P1"})
    assert result["mean"]["cases"] == 2
    assert result["mean"]["ci"]["dice"] is None


@pytest.mark.parametrize(("lesions", "counted"), [("3", [3]), ("tumour", [3]), ("[1, tumour]", [1, 3])])
def test_lesions_by_name_and_number(folder, lesions, counted):
    file = folder / "scores.json"
    assert evaluate(folder, "--data", folder / "data", "--lesions", lesions, "--json", file) == 0
    assert json.loads(file.read_text())["settings"]["lesions"] == counted


def test_a_policy_by_name(folder, capsys):
    assert evaluate(folder, "--policy", "official") == 0
    assert "Policy official: as the nnFormer code" in capsys.readouterr().out
    assert evaluate(folder, "--policy", "lenient") == 2


def test_predictions_of_another_grid_are_resampled_when_told_to(folder, capsys):
    path = folder / "predicted" / "a.nii.gz"
    write_nifti(path, np.ones((6, 5, 8), np.uint8), AFFINE @ np.diag([2.0, 2, 1, 1]))
    assert evaluate(folder) == 1
    said = capsys.readouterr().err
    assert str(path) in said
    assert "--resample" in said
    assert evaluate(folder, "--resample") == 0
    assert "were resampled to the grid of their truth: a" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--json", "--csv", "--diagram"])
@pytest.mark.parametrize("place", [".", "predicted/a.nii.gz/scores"])
def test_files_that_can_not_be_written_are_found_out_before_scoring(folder, option, place, monkeypatch, capsys):
    monkeypatch.setattr(module, "read_pair", lambda *_, **__: pytest.fail("scored first"))
    assert evaluate(folder, "--probabilities", folder / "chances", option, folder / place) == 1
    said = capsys.readouterr().err
    assert "can't be written" in said
    assert str(folder / place) in said


def test_a_file_that_can_be_written_leaves_nothing_behind(tmp_path):
    require_writable(tmp_path / "new" / "scores.json", None)
    assert list(tmp_path.rglob("*")) == [tmp_path / "new"]
    with pytest.raises(MedContextError, match="can't be written"):
        require_writable(tmp_path / "new")


def test_what_can_not_be_scored_is_told_without_a_traceback(folder, capsys):
    (folder / "nothing").mkdir()
    assert run("evaluate", folder / "nothing", folder / "data" / "labelsTr") == 1
    assert "no label maps in this folder" in capsys.readouterr().err
    assert evaluate(folder, "--diagram", folder / "x.png") == 1
    assert "--probabilities" in capsys.readouterr().err
    assert evaluate(folder, "--tolerance", -2) == 1
    assert "tolerance" in capsys.readouterr().err
    (folder / "data" / "dataset.json").unlink()
    assert evaluate(folder, "--data", folder / "data") == 1
    assert "does not say what its labels are" in capsys.readouterr().err
