"""The commands that compare and study; what they compute is tested where it is computed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.conftest import write_nifti
from tests.test_cli import run
from tests.test_study import SHIPPED


def test_two_methods_are_compared_on_the_same_label_maps(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for case in range(8):
        truth = np.zeros((10, 10, 10), np.uint8)
        truth[2:8, 2:8, 2:8] = 1
        for folder, shift in (("truth", 0), ("near", int(rng.integers(0, 2))), ("far", 3)):
            write_nifti(tmp_path / folder / f"case_{case}.nii.gz", np.roll(truth, shift, axis=0), np.eye(4))
    folders = tmp_path / "far", tmp_path / "near"
    assert run("compare", *folders, "--truth", tmp_path / "truth", "--json", tmp_path / "found.json") == 0
    assert "near is better than far" in " ".join(capsys.readouterr().out.split())
    assert json.loads((tmp_path / "found.json").read_text())
    assert run("compare", *reversed(folders), "--truth", tmp_path / "truth") == 0
    assert "far is worse than near" in " ".join(capsys.readouterr().out.split())
    assert run("compare", f"[{folders[0]},{folders[1]}]", f"[{folders[1]}]", "--truth", tmp_path / "truth") == 1


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path, capsys):
    label = np.zeros((6, 6, 6), np.uint8)
    label[2:4, 2:4, 2:4] = 1
    for folder in ("truth", "one/seed-0", "two/seed-0"):
        write_nifti(tmp_path / folder / "case.nii.gz", label, np.eye(4))
    folders = tmp_path / "one" / "seed-0", tmp_path / "two" / "seed-0"
    assert run("compare", *folders, "--truth", tmp_path / "truth") == 0
    assert all("".join(str(folder).split()) in "".join(capsys.readouterr().out.split()) for folder in folders[1:])


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_every_study_that_ships_can_be_rehearsed_without_its_data(file, tmp_path, capsys):
    assert run("study", file, tmp_path, "--out", tmp_path / "runs", "--dry-run") == 0
    assert " runs" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
