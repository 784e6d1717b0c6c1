"""FSDP: two processes that share the network train as one, and what they write is whole."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys

import pytest
import torch

from medcontext.errors import MedContextError
from medcontext.inference.model import load_model, load_tensors
from medcontext.training.config import TrainConfig
from medcontext.training.distribution import launch
from medcontext.training.run import RunFolder
from medcontext.training.train import train
from tests.test_distributed import SHORT, command, require_same_losses
from tests.test_train import same, weights
from tests.trouble import troubled


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> TrainConfig:
    return TrainConfig(cache=tmp_path_factory.mktemp("cache"), **SHORT)


def sharded(tiny, run: RunFolder, settings: TrainConfig, *more: object) -> list[str]:
    return command(tiny, run, settings, "--devices", 2, "--strategy", "fsdp", *more)


@pytest.fixture(scope="module")
def one(tiny, settings, tmp_path_factory) -> RunFolder:
    return RunFolder(train(tiny, tmp_path_factory.mktemp("runs") / "one", settings))


@pytest.fixture(scope="module")
def two(tiny, settings, tmp_path_factory) -> RunFolder:
    run = RunFolder(tmp_path_factory.mktemp("runs") / "two")
    done = subprocess.run([sys.executable, *sharded(tiny, run, settings)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="module")
def killed(tiny, settings, tmp_path_factory) -> RunFolder:
    """After a checkpoint at step 2, in the middle of the last one."""
    run = RunFolder(tmp_path_factory.mktemp("runs") / "killed")
    said = troubled("dies", 1, *sharded(tiny, run, dataclasses.replace(settings, save_every=2))[2:])
    assert "Another process of this training has ended" in said
    assert load_tensors(run.last)["method"]["step"] == 2
    return run


def test_losses_scores_and_weights_are_those_of_one_process(one, two):
    require_same_losses(one, two)
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(weights(one), weights(two), strict=True))
    which = load_model(two.path).about["which"]
    state = load_tensors(two.last)["method"]
    kept = load_model(two.path).network.state_dict()
    assert all(
        torch.equal(value, state[which][("network." if which == "student" else "") + name])
        for name, value in kept.items()
    )


def test_a_checkpoint_holds_whole_tensors_and_nothing_beside(one, two):
    first, second = (load_tensors(run.last)["optimizer"]["state"] for run in (one, two))
    assert [{name: value.shape for name, value in each.items()} for each in first.values()] == [
        {name: value.shape for name, value in each.items()} for each in second.values()
    ]
    assert two.last.stat().st_size < 1.2 * one.last.stat().st_size


def test_a_killed_run_goes_on_with_the_same_bits(killed, two, tiny, settings, tmp_path):
    run = RunFolder(shutil.copytree(killed.path, tmp_path / "run"))
    done = subprocess.run([sys.executable, *sharded(tiny, run, settings, "--resume")], capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert same(run, two)


def test_one_process_goes_on_where_two_stopped(killed, one, tiny, settings, tmp_path):
    run = RunFolder(shutil.copytree(killed.path, tmp_path / "run"))
    train(tiny, run.path, settings, resume=True)
    require_same_losses(one, run)


@pytest.mark.parametrize("wrong", [{"optimizer": "sgd"}, {"compile": True}])
def test_what_can_not_be_sharded_is_refused(wrong):
    with pytest.raises(MedContextError, match="trained in shards"):
        launch(TrainConfig(device="cpu", devices=2, strategy="fsdp", **wrong))
