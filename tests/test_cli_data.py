"""The commands around data: recipes, splits, plans that are edited and given back."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medcontext.data.recipes.catalogue import RECIPES
from tests.conftest import write_nifti
from tests.test_cli import run, train_arguments
from tests.test_recipes import decathlon, pack


def findings(file: Path) -> list[dict[str, str]]:
    return json.loads(file.read_text())["findings"]


def test_recipes_are_listed_and_explained(capsys):
    assert run("data", "list") == 0
    said = capsys.readouterr().out
    assert all(name in said for name in RECIPES)
    assert run("data", "list", "--name", "acdc") == 0
    assert "creatis" in capsys.readouterr().out
    assert run("data", "list", "--name", "mars") == 1
    assert "synapse" in capsys.readouterr().err
    assert run("data", "fetch", "synapse", "out") == 1
    assert "registration" in capsys.readouterr().err
    assert run("data") == 2


def test_a_download_is_imported_and_can_be_checked(tmp_path, capsys):
    tree, rng = decathlon(tmp_path / "tree"), np.random.default_rng(0)
    for image in tree.glob("*/imagesT[rs]/hippocampus_*.nii.gz"):
        write_nifti(image, rng.normal(size=(1, 2, 2)), nib.load(image).affine)
    archive = pack(tree, tmp_path / "Task04_Hippocampus.tar")
    assert run("data", "import", "msd/Task04_Hippocampus", archive, tmp_path / "data") == 0
    assert "3 labelled cases" in capsys.readouterr().out
    assert run("check", tmp_path / "data", "--json", tmp_path / "check.json") == 0
    facts = json.loads((tmp_path / "check.json").read_text())["facts"]
    assert sorted(facts) == ["hippocampus_001", "hippocampus_003", "hippocampus_004"]


def test_a_split_is_written_checked_and_trained_on(own_tiny, tmp_path, capsys):
    assert run("split", own_tiny, tmp_path / "s.json", "--folds", "2", "--patient", r"(\d+)$", "--seed", 3) == 0
    said = capsys.readouterr().out
    assert "fold 1: 1 train, 1 validation, 2 held out" in said
    assert "4 patients" in said
    assert run("split", own_tiny, tmp_path / "one.json", "--test-share", "0.25", "--validation-share", "0.25") == 0
    assert "fold 0: 2 train, 1 validation, 1 held out" in capsys.readouterr().out
    assert run("check", own_tiny, "--split", tmp_path / "s.json") == 0
    assert run("check", own_tiny, "--split", tmp_path / "s.json", "--patient", "case", "--json", tmp_path / "c") == 1
    assert [each["problem"] for each in findings(tmp_path / "c")] == ["A split has a patient on two sides."]
    arguments = train_arguments(own_tiny, tmp_path / "run", tmp_path / "cache")
    assert run(*arguments, "--split", tmp_path / "s.json", "--fold", 1) == 0
    trained = json.loads((tmp_path / "run" / "split.json").read_text())
    assert trained == json.loads((tmp_path / "s.json").read_text())["folds"][1]


@pytest.mark.parametrize("share", [-1, 1, 30])
@pytest.mark.parametrize("option", ["--test-share", "--validation-share"])
def test_a_share_is_a_share(tiny, tmp_path, capsys, option, share):
    assert run("split", tiny, tmp_path / "s.json", option, share) == 1
    assert "a share from 0" in capsys.readouterr().err
    assert not (tmp_path / "s.json").exists()


def test_data_with_errors_are_not_planned(own_tiny, capsys):
    (own_tiny / "imagesTr" / "case_02.nii.gz").write_bytes(b"broken")
    assert run("plan", own_tiny) == 1
    assert "1 error(s)" in capsys.readouterr().err


def test_a_plan_is_edited_compared_and_followed(tiny, tmp_path, capsys):
    assert run("plan", tiny, "--patch", "[16,16,16]", "--json", tmp_path / "plan.json", "--preset", "supervised") == 0
    said = capsys.readouterr().out
    assert "s per step" in said
    assert "8 of 8 cases" in said
    plan = json.loads((tmp_path / "plan.json").read_text()) | {"spacing": [3.0, 2.0, 2.0], "steps": 3}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert run("plan", tiny, "--patch", "[16,16,16]", "--against", tmp_path / "plan.json") == 0
    assert "spacing: 3 x 2 x 2 -> 1.5 x 1 x 1" in capsys.readouterr().out
    arguments = [each for each in train_arguments(tiny, tmp_path / "run", tmp_path / "cache") if each != "--max-steps"]
    arguments.remove(6)
    assert run(*arguments, "--plan", tmp_path / "plan.json") == 0
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["spacing"] == [3.0, 2.0, 2.0]
    (tmp_path / "plan.json").write_text(json.dumps(plan | {"spacings": 1}))
    assert run(*arguments, "--replace", "--plan", tmp_path / "plan.json") == 1
    assert "spacings" in capsys.readouterr().err


def test_a_leak_between_training_and_test_is_an_error(own_tiny, tmp_path):
    (own_tiny / "imagesTs").mkdir()
    (own_tiny / "imagesTs" / "new.nii.gz").write_bytes((own_tiny / "imagesTr" / "case_01.nii.gz").read_bytes())
    assert run("check", own_tiny, "--json", tmp_path / "c") == 1
    assert "new" in str(findings(tmp_path / "c"))


def test_a_file_of_another_grid_is_found(own_tiny, tmp_path):
    path = own_tiny / "labelsTr" / "case_02.nii.gz"
    image = nib.load(path)
    write_nifti(path, np.asarray(image.dataobj)[:-1], image.affine)
    assert run("check", own_tiny, "--json", tmp_path / "c") == 1
    assert [(each["case"], each["problem"]) for each in findings(tmp_path / "c")] == [
        ("case_02", "Image and label map differ in shape.")
    ]
