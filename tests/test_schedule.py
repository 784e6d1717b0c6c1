"""Optimisers, their schedules, and the end of a training: after steps, after a time, or when nothing gets better."""

from __future__ import annotations

import dataclasses
import itertools
import re

import pytest
import torch
from torch import nn

from medcontext.errors import MedContextError
from medcontext.inference.model import load_tensors
from medcontext.studies.run_facts import facts
from medcontext.training import budget, loop
from medcontext.training.budget import STEPS_SHARE, seconds_in
from medcontext.training.config import TrainConfig
from medcontext.training.run import RunFolder
from medcontext.training.schedule import learning_rate, make_optimizer
from medcontext.training.train import train
from tests.test_train import SECONDS, breaking_off_after, same


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> TrainConfig:
    return TrainConfig(cache=tmp_path_factory.mktemp("cache"), **SECONDS)


def test_the_learning_rate_of_adamw_rises_and_falls_to_nothing():
    rates = [learning_rate("adamw", 0.1, step, 200) for step in range(200)]
    assert max(rates) == pytest.approx(0.1)
    assert rates.index(max(rates)) in (5, 6)
    assert rates[0] == pytest.approx(0.1 / 6)
    assert rates[-1] < 1e-4
    assert all(a >= b for a, b in itertools.pairwise(rates[6:]))


def test_the_learning_rate_of_sgd_is_that_of_pytorchs_polynomial_schedule():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    reference = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=50, power=0.9)
    for step in range(50):
        assert learning_rate("sgd", 0.01, step, 50) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        reference.step()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_weight_decay_leaves_norms_and_biases_out(name):
    module = nn.Sequential(nn.Conv3d(1, 2, 3), nn.InstanceNorm3d(2, affine=True))
    groups = make_optimizer(module, name, 0.3).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(1, 0.3), (3, 0.0)]


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_an_optimiser_that_skips_its_first_steps_goes_on_as_if_they_had_not_been(name):
    """The states of PyTorch's own SGD hold whatever memory held before, if the first step is skipped."""
    modules = [nn.Linear(3, 3), nn.Linear(3, 3)]
    modules[1].load_state_dict(modules[0].state_dict())
    plain, skipping = modules
    reference = (
        torch.optim.AdamW(plain.parameters(), lr=0.1, weight_decay=0.0)
        if name == "adamw"
        else torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.99, nesterov=True)
    )
    ours = make_optimizer(skipping, name, 0.0)
    for group in ours.param_groups:
        group["lr"] = 0.1
    image = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    for bad in (True, True, False, False, True, False):
        skipping.zero_grad()
        skipping(image).square().sum().backward()
        if bad:
            skipping.weight.grad.fill_(float("nan"))
        ours.found_inf = torch.tensor(float(bad))
        ours.step()
        if not bad:
            plain.zero_grad()
            plain(image).square().sum().backward()
            reference.step()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain.parameters(), skipping.parameters(), strict=True))


def test_sgd_trains_and_resumes(tiny, settings, tmp_path):
    sgd = dataclasses.replace(settings, optimizer="sgd", max_steps=6)
    whole = RunFolder(train(tiny, tmp_path / "whole", sgd))
    rates = [row["learning_rate"] for row in whole.history() if "learning_rate" in row]
    assert rates == pytest.approx([0.01 * (1 - step / 6) ** 0.9 for step in (2, 5)])
    config = whole.read_config()
    assert (config["learning_rate"], config["weight_decay"]) == (0.01, 3e-5)
    run = RunFolder(tmp_path / "run")
    with breaking_off_after(3):
        train(tiny, run.path, sgd)
    train(tiny, run.path, sgd, resume=True)
    assert same(run, whole)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("8h", 28800), ("90m", 5400), ("1d 12h", 129600), ("1.5h", 5400), ("2h30m", 9000), ("40s", 40)],
)
def test_times_as_people_write_them(text, seconds):
    assert seconds_in(text) == seconds


@pytest.mark.parametrize("text", ["", "8", "8 hours", "0h", "-2h", "h"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(MedContextError, match="max_time"):
        seconds_in(text)


def test_steps_and_schedule_are_fitted_to_a_time_once(tiny, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "step_seconds", lambda *arguments: 10.0)
    timed = dataclasses.replace(settings, max_steps=None, max_time="1m")
    run = RunFolder(train(tiny, tmp_path / "run", timed))
    steps = int(60 * STEPS_SHARE / 10)
    assert run.read_config()["max_steps"] == run.read_plan().steps == run.history()[-1]["step"] == steps
    assert run.read_config()["max_time"] == "1m"
    assert any("1 min 00 s at 10 s a step" in reason for reason in run.read_plan().reasons)
    monkeypatch.setattr(budget, "step_seconds", lambda *arguments: pytest.fail("timed again"))
    train(tiny, run.path, timed, resume=True)
    with pytest.raises(MedContextError, match="not both"):
        train(tiny, tmp_path / "both", dataclasses.replace(timed, max_steps=3))
    monkeypatch.setattr(budget, "step_seconds", lambda *arguments: 100.0)
    with pytest.raises(MedContextError, match="Not one step"):
        train(tiny, tmp_path / "short", timed)
    assert not (tmp_path / "short").exists()


def test_patience_ends_a_training_that_no_longer_gets_better(tiny, settings, tmp_path, monkeypatch):
    scores = iter([0.5, 0.6, 0.55, 0.6, 0.9, 0.9])
    monkeypatch.setattr(loop, "validate", lambda networks, *rest: dict.fromkeys(networks, next(scores)))
    patient = dataclasses.replace(settings, validations=6, patience=2, save_every=100)
    run = RunFolder(train(tiny, tmp_path / "run", patient))
    assert [row["step"] for row in run.history() if row["kind"] == "validation"] == [2, 4, 6, 8]
    assert load_tensors(run.best)["about"]["step"] == 4
    assert facts(run)["Model"].endswith(" at step 4, chosen by validation")
    assert re.fullmatch(r"8 of 12 in [\d.]+ s", facts(run)["Steps"])
    train(tiny, run.path, patient, resume=True)
    assert load_tensors(run.last)["method"]["step"] == 8
    scores = iter([0.5, 0.6, 0.55, 0.6])
    run = RunFolder(train(tiny, tmp_path / "last", dataclasses.replace(patient, keep="last")))
    about = load_tensors(run.best)["about"]
    assert (about["step"], about["validation_dice"]) == (8, 0.6)
    assert facts(run)["Model"].endswith(" at the last step")
    with pytest.raises(MedContextError, match="needs validation cases"):
        train(tiny, tmp_path / "none", dataclasses.replace(patient, validation_share=0))
