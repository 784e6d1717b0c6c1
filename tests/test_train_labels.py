"""Trainings on regions, on partly labelled scans, on several files per case, on given splits and plans."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medcontext.data.dataset import open_dataset
from medcontext.data.plan_file import read_plan, write_plan
from medcontext.data.scan import read_labels
from medcontext.data.split import Split
from medcontext.data.split_file import SplitFile, write_split_file
from medcontext.errors import MedContextError
from medcontext.inference.predict import predict_files
from medcontext.inference.predictor import Predictor
from medcontext.inference.scans import find_scans
from medcontext.progress import Progress
from medcontext.studies.holdout import score_held_out
from medcontext.training.config import TrainConfig
from medcontext.training.run import RunFolder
from medcontext.training.train import train
from tests.conftest import make_tiny, write_nifti
from tests.test_train import SECONDS


@pytest.fixture
def settings(tmp_path) -> TrainConfig:
    return TrainConfig(cache=tmp_path / "cache", **SECONDS)


def describe(root: Path, **changes: object) -> None:
    file = root / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_regions_are_learned_predicted_and_scored(tmp_path, settings):
    data = make_tiny(tmp_path / "data")
    describe(
        data, labels={"background": 0, "both": [1, 2], "high": [2]}, regions_class_order=[1, 2], modality={"0": "MRI"}
    )
    run = RunFolder(train(data, tmp_path / "run", dataclasses.replace(settings, max_steps=120)))
    assert run.read_plan().labels.outputs == 2
    result = score_held_out(run, open_dataset(data), device="cpu", progress=Progress(quiet=True))
    labels = result["mean"]["labels"]
    assert {number: entry["name"] for number, entry in labels.items()} == {"1": "both", "2": "high"}
    assert labels["1"]["dice"] > 0.6
    predicted = [read_labels(path).array for path in run.predictions.glob("*.nii.gz")]
    assert set(np.unique(np.concatenate([array.ravel() for array in predicted]))) <= {0, 1, 2}
    assert any("context_score" in row for row in run.history())


def test_voxels_that_nobody_labelled_teach_nothing(tmp_path, settings):
    data = make_tiny(tmp_path / "data")
    describe(data, labels={"background": 0, "low": 1, "high": 2, "ignore": 7})
    for path in (data / "labelsTr").iterdir():
        image = nib.load(path)
        array = np.asarray(image.dataobj).copy()
        array[array == 2] = 7
        write_nifti(path, array, image.affine)
    run = RunFolder(train(data, tmp_path / "run", dataclasses.replace(settings, max_steps=60, seed=1)))
    assert run.read_plan().labels.ignore == 7
    scans = find_scans(data)
    assert len(scans) == 8
    assert not predict_files(Predictor.load(run.path), scans, tmp_path / "out").failed
    for name in scans:
        predicted = read_labels(tmp_path / "out" / f"{name}.nii.gz").array
        true = read_labels(data / "labelsTr" / f"{name}.nii.gz").array
        assert 7 not in predicted
        assert (predicted[true == 1] == 1).mean() > 0.9
        # What nobody labelled is brighter than 'low': taken for background only by who was taught that it is that.
        assert (predicted[true == 7] > 0).mean() > 0.6
    result = score_held_out(run, open_dataset(data), device="cpu", progress=Progress(quiet=True))
    rows = [row for row in result["cases"] if row["label"] == 2]
    assert {row["case"] for row in rows} == set(run.read_split().test) != set()
    assert {row["outcome"] for row in rows} <= {"absent", "spurious"}, "no voxel of it is known"


def test_one_file_per_channel_is_trained_and_predicted(tmp_path, settings):
    data = make_tiny(tmp_path / "data")
    for path in sorted((data / "imagesTr").iterdir()):
        shutil.copy(path, path.with_name(path.name.replace(".nii.gz", "_0001.nii.gz")))
        path.rename(path.with_name(path.name.replace(".nii.gz", "_0000.nii.gz")))
    describe(data, modality={"0": "T1", "1": "T2"})
    run = train(data, tmp_path / "run", settings)
    predictor = Predictor.load(run)
    assert predictor.plan.channels == 2
    scans = find_scans(data / "imagesTr", predictor.plan.channels)
    assert set(scans) == set(open_dataset(data).cases)
    assert not predict_files(predictor, scans, tmp_path / "out").failed


def test_a_fold_of_a_split_file_and_few_of_its_cases(tiny, tmp_path, settings):
    names = [f"case_{n:02d}" for n in range(8)]
    folds = (Split(tuple(names[4:]), (), tuple(names[:4])), Split(tuple(names[:5]), (names[5],), tuple(names[6:])))
    write_split_file(tmp_path / "split.json", SplitFile("mine", "here", folds))
    settings = dataclasses.replace(settings, split=tmp_path / "split.json", max_steps=2)
    whole = RunFolder(train(tiny, tmp_path / "whole", settings)).read_split()
    assert whole.test == folds[0].test
    assert len(whole.validation) == 1
    assert set(whole.train) | set(whole.validation) == set(names[4:])
    assert RunFolder(train(tiny, tmp_path / "second", dataclasses.replace(settings, fold=1))).read_split() == folds[1]
    few = [
        RunFolder(train(tiny, tmp_path / str(n), dataclasses.replace(settings, fold=1, few_shot=n))).read_split()
        for n in (2, 3)
    ]
    assert [len(split.train) for split in few] == [2, 3]
    assert set(few[0].train) < set(few[1].train) < set(names[:5])
    assert all((split.validation, split.test) == (folds[1].validation, folds[1].test) for split in few)
    with pytest.raises(MedContextError, match="no such fold"):
        train(tiny, tmp_path / "third", dataclasses.replace(settings, fold=2))
    assert not (tmp_path / "third").exists()


def test_an_edited_plan_is_followed_and_one_for_other_data_refused(tiny, tmp_path, settings):
    first = RunFolder(train(tiny, tmp_path / "first", dataclasses.replace(settings, max_steps=2)))
    edited = dataclasses.replace(first.read_plan(), spacing=(3.0, 2.0, 2.0), patch=(8, 16, 8), steps=3)
    write_plan(tmp_path / "plan.json", edited)
    open_settings = dataclasses.replace(settings, patch=None, max_steps=None, plan=tmp_path / "plan.json")
    second = RunFolder(train(tiny, tmp_path / "second", open_settings))
    assert second.read_plan() == edited == read_plan(second.plan)
    assert second.read_config()["max_steps"] == 3
    write_plan(tmp_path / "plan.json", dataclasses.replace(edited, channels=2))
    with pytest.raises(MedContextError, match="data of other channels"):
        train(tiny, tmp_path / "third", open_settings)


def test_too_little_memory_is_said_before_there_is_a_run(tiny, tmp_path, settings, monkeypatch):
    monkeypatch.setattr("medcontext.training.setup.free_memory", lambda device, processes: 1e5)
    with pytest.raises(MedContextError, match="too little memory") as caught:
        train(tiny, tmp_path / "run", settings)
    assert "--patch" in str(caught.value)
    assert not (tmp_path / "run").exists()
