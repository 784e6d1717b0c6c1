"""One step: what is not finite is skipped, counted, and in the end stops the run; nothing else notices."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn

from medcontext.data.sampling import PatchBatches
from medcontext.errors import MedContextError
from medcontext.inference.model import load_tensors
from medcontext.method.presets import MethodConfig
from medcontext.training import loop, setup
from medcontext.training.bad_steps import BadSteps
from medcontext.training.config import TrainConfig
from medcontext.training.device import autocast, make_scaler
from medcontext.training.run import RunFolder
from medcontext.training.schedule import MOMENTUM, make_optimizer
from medcontext.training.train import train
from tests.test_train import SECONDS

SHORT = SECONDS | {"max_steps": 6, "log_every": 2, "validations": 1}


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> TrainConfig:
    return TrainConfig(cache=tmp_path_factory.mktemp("cache"), **SHORT)


def spoiled(monkeypatch, steps: set[int]) -> None:
    """Batches of these steps, counted from 1, hold an infinite voxel."""
    honest = PatchBatches.__getitem__

    def spoil(self, step):
        batch = honest(self, step)
        if step + 1 in steps:
            batch["image"][0, 0, 0, 0, 0] = float("inf")
        return batch

    monkeypatch.setattr(PatchBatches, "__getitem__", spoil)


def test_a_step_that_is_not_finite_is_skipped_and_noted_with_its_cases(tiny, settings, tmp_path, monkeypatch):
    spoiled(monkeypatch, {1, 4})
    students = {}
    step = loop.train_step

    def watched(training, batch):
        row = step(training, batch)
        students[training.step] = torch.cat([p.detach().flatten() for p in training.method.network.parameters()])
        return row

    monkeypatch.setattr(loop, "train_step", watched)
    run = RunFolder(train(tiny, tmp_path / "run", settings))
    assert torch.equal(students[3], students[4])
    assert len({tuple(each.tolist()) for each in students.values()}) == 5
    assert all(each.isfinite().all() for each in students.values())
    noted = json.loads(run.bad_steps.read_text())
    assert [each["step"] for each in noted] == [1, 4]
    train_cases = run.read_split().train
    assert all(len(each["cases"]) == 2 and set(each["cases"]) <= set(train_cases) for each in noted)
    assert [row["skipped_steps"] for row in run.history() if row["kind"] == "train"] == [1, 2, 2]
    steps = [state["step"] for state in load_tensors(run.last)["optimizer"]["state"].values()]
    assert {int(each) for each in steps} == {4}


def test_a_step_is_skipped_where_the_optimiser_does_not_look_at_the_flag(tiny, settings, tmp_path, monkeypatch):
    """As on MPS."""
    spoiled(monkeypatch, {2})

    def heedless(*arguments):
        optimizer = make_optimizer(*arguments)
        optimizer.register_step_pre_hook(lambda itself, *_: delattr(itself, "found_inf"))
        return optimizer

    monkeypatch.setattr("medcontext.training.train.make_optimizer", heedless)
    monkeypatch.setattr("medcontext.training.step.HEEDLESS", {"cpu"})
    state = load_tensors(RunFolder(train(tiny, tmp_path / "run", settings)).last)
    assert all(value.isfinite().all() for value in state["method"]["student"].values())
    assert {int(each["step"]) for each in state["optimizer"]["state"].values()} == {5}


def test_too_many_in_a_row_stop_the_run_with_its_cases(tiny, settings, tmp_path, monkeypatch):
    spoiled(monkeypatch, {2, 4, 5, 6})
    with pytest.raises(MedContextError, match="not finite in 3 steps in a row") as error:
        train(tiny, tmp_path / "run", dataclasses.replace(settings, max_bad_steps=3))
    run = RunFolder(tmp_path / "run")
    assert error.value.file == str(run.bad_steps)
    assert "step 6, with case_" in error.value.found
    assert [each["step"] for each in json.loads(run.bad_steps.read_text())] == [2, 4, 5, 6]
    state = load_tensors(run.last)
    assert state["method"]["step"] == 6
    assert all(value.isfinite().all() for value in state["method"]["student"].values())


def test_a_streak_is_found_when_the_notes_are_looked_at_late(tmp_path):
    """As on a GPU, where nothing waits for a step."""
    bad = BadSteps(RunFolder(tmp_path), 3, lambda step: [f"case of {step}"], lambda text: None)
    for step, flag in enumerate([1, 1, 0, 1, 1], start=1):
        bad.note(step, torch.tensor(bool(flag)))
    bad.settle()
    assert bad.count == 4
    again = BadSteps(RunFolder(tmp_path), 3, lambda step: [f"case of {step}"], lambda text: None)
    again.load_state_dict(bad.state_dict())
    for step, flag in enumerate([1, 0, 0], start=6):
        again.note(step, torch.tensor(bool(flag)))
    with pytest.raises(MedContextError, match="3 steps in a row") as error:
        again.settle()
    assert "step 6, with case of 5" in error.value.found


def test_batch_statistics_of_a_skipped_step_are_forgotten(tiny, settings, tmp_path, monkeypatch):
    spoiled(monkeypatch, {2})
    honest = setup.build

    def with_statistics(*arguments):
        network = honest(*arguments)
        for parent in list(network.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.InstanceNorm3d):
                    setattr(parent, name, nn.BatchNorm3d(child.num_features))
        return network

    monkeypatch.setattr("medcontext.training.train.build", with_statistics)
    run = RunFolder(train(tiny, tmp_path / "run", dataclasses.replace(settings, max_steps=2)))
    state = load_tensors(run.last)["method"]
    means = {name: value for part in ("student", "teacher") for name, value in state[part].items() if "running" in name}
    assert means
    assert all(value.isfinite().all() for value in means.values())


def test_fp16_scales_the_loss_and_learns_as_fp32_does(tiny, settings, tmp_path):
    settings = dataclasses.replace(settings, method=MethodConfig(consistency_weight=1e-4))
    runs = {
        precision: RunFolder(train(tiny, tmp_path / precision, dataclasses.replace(settings, precision=precision)))
        for precision in ("fp32", "fp16")
    }
    for logged in ("loss/total", "gradient_share/consistency"):
        values = {name: [row[logged] for row in run.history() if logged in row] for name, run in runs.items()}
        assert values["fp16"] == pytest.approx(values["fp32"], rel=0.05)
        assert min(values["fp32"]) > 0
    assert [row["step"] for row in runs["fp32"].history() if "gradient_share/masked" in row] == [6]
    assert load_tensors(runs["fp16"].last)["scaler"]["scale"] > 1
    assert load_tensors(runs["fp32"].last)["scaler"] == {}


def test_a_scale_that_is_too_large_is_found_by_skipping():
    module = nn.Linear(4, 4)
    optimizer = make_optimizer(module, "adamw", 0.0)
    scaler = make_scaler("fp16", "cpu")
    scaler.scale(torch.zeros(1))
    with autocast("fp16", "cpu"):
        out = module(torch.full((1, 4), 100.0))
    assert out.dtype == torch.float16
    before = scaler.get_scale()
    scaler.scale(out.float().sum() * 1e4).backward()
    scaler.unscale_(optimizer)
    assert not all(p.grad.isfinite().all() for p in module.parameters())
    scaler.update()
    assert scaler.get_scale() < before


def test_a_long_gradient_is_shortened_to_the_clip(tiny, settings, tmp_path, monkeypatch):
    """The first step of SGD with Nesterov's momentum goes 1 + momentum times along the gradient."""
    rate, clip = 1.0, 1e-3
    moved = []
    step = loop.train_step

    def watched(training, batch):
        before = nn.utils.parameters_to_vector(training.method.student.parameters()).detach()
        row = step(training, batch)
        moved.append(nn.utils.parameters_to_vector(training.method.student.parameters()).detach() - before)
        return row

    monkeypatch.setattr(loop, "train_step", watched)
    changes = {"optimizer": "sgd", "learning_rate": rate, "weight_decay": 0.0, "gradient_clip": clip}
    short = dataclasses.replace(settings, max_steps=1, log_every=1, **changes)
    run = RunFolder(train(tiny, tmp_path / "run", short))
    (logged,) = [row["gradient_norm"] for row in run.history() if row["kind"] == "train"]
    assert logged > 100 * clip, "logged is how long it was"
    assert [float(each.norm()) for each in moved] == pytest.approx([(1 + MOMENTUM) * rate * clip], rel=1e-3)
