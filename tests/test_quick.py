"""Quick validations: on the right patches, with the right Dice, at the right steps, and without a trace elsewhere."""

from __future__ import annotations

import csv
import dataclasses
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning_fabric import Fabric
from numpy.lib.stride_tricks import sliding_window_view
from torch import nn

from medcontext.data.plan import Plan
from medcontext.data.prepare import read_prepared
from medcontext.errors import MedContextError
from medcontext.evaluation.curves import curves
from medcontext.inference.model import load_model
from medcontext.method.diagnostics import dice_of, hard_dice, overlap
from medcontext.networks.registry import network_spec
from medcontext.training import quick
from medcontext.training.config import TrainConfig
from medcontext.training.logs import RunLogs
from medcontext.training.quick import BATCHES, QuickValidation, validation_steps
from medcontext.training.run import RunFolder
from medcontext.training.train import train
from tests.test_train import SECONDS, same

NAMES = ("quick_dice/student", "quick_dice/teacher")


def dropping(channels, classes, patch):
    """A network that draws random numbers and keeps running statistics."""
    return nn.Sequential(
        nn.Conv3d(channels, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU(), nn.Dropout(0.5), nn.Conv3d(6, classes, 1)
    )


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> TrainConfig:
    network_spec("tests.test_quick:dropping", allow_import=True)
    changes = {"network": "tests.test_quick:dropping", "network_settings": None, "validation_share": 0.5}
    return TrainConfig(cache=tmp_path_factory.mktemp("cache"), **{**SECONDS, **changes})


@pytest.fixture(scope="module")
def trained(tiny, settings, tmp_path_factory) -> RunFolder:
    return RunFolder(train(tiny, tmp_path_factory.mktemp("runs") / "run", settings))


def rows(run: RunFolder, kind: str = "quick") -> list[dict]:
    return [row for row in run.history() if row["kind"] == kind]


def folders(run: RunFolder, settings: TrainConfig) -> dict[str, Path]:
    prepared = json.loads(run.about.read_text())["prepared"]
    return {name: settings.cache / prepared[name] for name in run.read_split().validation}


def looking(run: RunFolder, settings: TrainConfig, plan: Plan, seed: int = 0) -> QuickValidation:
    return QuickValidation(folders(run, settings), plan, seed, "cpu", Fabric(accelerator="cpu", devices=1))


@given(st.integers(1, 3000), st.integers(1, 20), st.integers(0, 8))
def test_quick_ones_lie_evenly_between_those_of_whole_volumes(steps, validations, between):
    whole, patches = validation_steps(steps, validations, between)
    assert steps in whole
    assert not whole & patches
    assert all(1 <= step < steps for step in patches)
    assert validation_steps(steps, validations, 0) == (whole, frozenset())
    if steps >= validations * (between + 1):
        ends = [0, *sorted(whole)]
        assert len(ends) == validations + 1
        for first, last in pairwise(ends):
            assert sum(first < step < last for step in patches) == between
        gaps = [b - a for a, b in pairwise([0, *sorted(whole | patches)])]
        assert max(gaps) - min(gaps) <= 1


def test_every_one_is_a_row_of_its_own_kind_everywhere(trained):
    assert [row["step"] for row in rows(trained)] == [2, 3, 4, 8, 9, 10]
    assert all(set(NAMES) <= row.keys() and 0 <= row[name] <= 1 for row in rows(trained) for name in NAMES)
    with (trained.path / "metrics-quick.csv").open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [2, 3, 4, 8, 9, 10]
    assert [row["step"] for row in rows(trained, "validation")] == [6, 12]
    drawn, _ = curves({"run": {"": rows(trained)}})
    assert "Quick validation Dice" in drawn[0]
    assert drawn != curves({"run": {"": [{**row, NAMES[1]: 0.0} for row in rows(trained)]}})[0]


def test_patches_are_cut_out_of_the_validation_cases_as_they_are(trained, settings):
    plan = dataclasses.replace(trained.read_plan(), patch=(6, 8, 8), batch_size=3)
    taken = looking(trained, settings, plan)._patches
    assert len(taken) == BATCHES
    whole = [read_prepared(folder) for folder in folders(trained, settings).values()]
    assert all(min(case.image.shape[1:]) >= 8 for case in whole)
    labelled = 0
    for image, label in taken:
        assert image.shape == (3, 1, 6, 8, 8)
        for one, its_label in zip(image.numpy(), label.numpy(), strict=True):
            places = [
                np.argwhere((sliding_window_view(case.image[:][0], plan.patch) == one[0]).all((3, 4, 5)))
                for case in whole
            ]
            (number,) = [k for k, found in enumerate(places) if len(found)]
            ((d, h, w),) = places[number]
            assert np.array_equal(whole[number].label[d : d + 6, h : h + 8, w : w + 8], its_label)
            labelled += bool(its_label.any())
    assert labelled >= 6, "half of them are drawn around a labelled voxel"
    again, other = looking(trained, settings, plan), looking(trained, settings, plan, seed=1)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(taken, again._patches, strict=True))
    assert not all(torch.equal(a[0], b[0]) for a, b in zip(taken, other._patches, strict=True))


def test_dice_is_that_of_all_patches_together(trained, settings):
    look = looking(trained, settings, dataclasses.replace(trained.read_plan(), patch=(8, 8, 8), batch_size=2))
    network = dropping(1, 3, (8, 8, 8)).train()
    state = torch.random.get_rng_state()
    found = look({"any": network, "same": network})
    assert torch.equal(torch.random.get_rng_state(), state)
    assert network.training
    network.eval()
    with torch.no_grad():
        predicted = np.concatenate([network(image.float()).argmax(1).numpy() for image, _ in look._patches])
    truth = np.concatenate([label.numpy() for _, label in look._patches])
    expected = [
        2 * np.sum((predicted == k) & (truth == k), dtype=np.float64) / (np.sum(predicted == k) + np.sum(truth == k))
        for k in (1, 2)
    ]
    assert found["any"] == found["same"] == pytest.approx(np.mean(expected), abs=1e-6)


@pytest.mark.parametrize("regions", [False, True])
def test_counts_of_parts_add_up_to_the_dice_of_the_whole(regions):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(4, 3, 5, 6, 7, generator=generator)
    target = torch.randint(-1, 3, (4, 5, 6, 7), generator=generator)
    members = torch.tensor([[False, True, True], [False, False, True], [False, True, False]]) if regions else None
    parts = [overlap(logits[k : k + 1], target[k : k + 1], None, members) for k in range(4)]
    together = dice_of(torch.stack(parts).sum(0))
    assert torch.allclose(together, hard_dice(logits, target, None, members))
    counted = (target >= 0).numpy()
    for place, dice in enumerate(together.tolist()):
        if members is None:
            predicted, true = logits.argmax(1).numpy() == place + 1, target.numpy() == place + 1
        else:
            predicted = logits[:, place].numpy() > 0
            true = np.isin(target.numpy(), np.flatnonzero(members[place].numpy()))
        predicted, true = predicted[counted], true[counted]
        assert dice == pytest.approx(2 * (predicted & true).sum() / (predicted.sum() + true.sum()), abs=1e-6)


def test_on_or_off_the_training_is_the_same_to_the_bit(trained, tiny, settings, tmp_path):
    off = RunFolder(train(tiny, tmp_path / "off", dataclasses.replace(settings, quick_validations=0)))
    assert rows(off) == []
    assert not (off.path / "metrics-quick.csv").exists()
    assert same(off, trained)
    assert rows(off, "validation") == rows(trained, "validation")
    losses = [[row["loss/total"] for row in rows(run, "train")] for run in (off, trained)]
    assert losses[0] == losses[1]


def test_no_model_is_chosen_by_one(trained, tiny, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(QuickValidation, "__call__", lambda self, networks: dict.fromkeys(networks, 1.0))
    run = RunFolder(train(tiny, tmp_path / "run", dataclasses.replace(settings, patience=2)))
    assert [row[NAMES[0]] for row in rows(run)] == [1.0] * 6
    first, second = (load_model(each.path) for each in (run, trained))
    assert first.about == second.about
    assert same(run, trained)


def test_one_that_failed_is_done_once_the_run_goes_on(trained, tiny, settings, tmp_path, monkeypatch):
    honest, done = QuickValidation.__call__, []

    def failing(self, networks):
        done.append(networks)
        if len(done) == 3:
            raise torch.OutOfMemoryError("as if")
        return honest(self, networks)

    with monkeypatch.context() as patched:
        patched.setattr(QuickValidation, "__call__", failing)
        with pytest.raises(MedContextError, match="too little memory"):
            train(tiny, tmp_path / "run", settings)
    run = RunFolder(tmp_path / "run")
    assert [row["step"] for row in rows(run)] == [2, 3]
    assert not run.finished
    train(tiny, run.path, settings, resume=True)
    assert run.finished
    assert rows(run) == rows(trained)
    assert same(run, trained)


def test_a_picture_that_failed_does_not_have_its_validation_counted_twice(
    trained, tiny, settings, tmp_path, monkeypatch
):
    def failing(self, pixels, step):
        raise OSError("as if the disk were full")

    with monkeypatch.context() as patched:
        patched.setattr(RunLogs, "picture", failing)
        with pytest.raises(OSError, match="as if"):
            train(tiny, tmp_path / "run", settings)
    run = RunFolder(tmp_path / "run")
    assert len(rows(run, "validation")) == 1
    train(tiny, run.path, settings, resume=True)
    assert rows(run, "validation") == rows(trained, "validation")
    assert same(run, trained)


def test_without_validation_cases_there_is_none(tiny, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(quick, "overlap", lambda *_: pytest.fail("looked at"))
    run = RunFolder(train(tiny, tmp_path / "run", dataclasses.replace(settings, validation_share=0, max_steps=4)))
    assert rows(run) == []


def test_a_number_below_0_is_refused():
    with pytest.raises(MedContextError, match="quick_validations"):
        TrainConfig(quick_validations=-1)
