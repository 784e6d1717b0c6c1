"""What goes wrong while training runs is said so that it can be mended; and options that change how it is computed."""

from __future__ import annotations

import dataclasses
import json
import os
import traceback

import pytest
import torch

from medcontext.cli.main import main
from medcontext.cli.parser import nearest
from medcontext.data.sampling import PatchBatches
from medcontext.errors import MedContextError
from medcontext.inference.model import load_tensors
from medcontext.training import compiled as compiling
from medcontext.training import loop
from medcontext.training.config import TrainConfig
from medcontext.training.device import deterministic
from medcontext.training.run import RunFolder
from medcontext.training.train import train
from tests.test_train import DROPPING, SECONDS, same

SHORT = SECONDS | {"max_steps": 6, "log_every": 2, "validations": 1}


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> TrainConfig:
    return TrainConfig(cache=tmp_path_factory.mktemp("cache"), **SHORT)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.99 GB)"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_memory_that_does_not_suffice_names_what_to_lower(error, tiny, settings, tmp_path, monkeypatch):
    step = loop.train_step

    def fails(training, batch):
        if training.step == 3:
            raise error
        return step(training, batch)

    monkeypatch.setattr(loop, "train_step", fails)
    with pytest.raises(MedContextError, match="too little memory") as said:
        train(tiny, tmp_path / "run", settings)
    assert "step 4 on cpu" in said.value.found
    assert all(option in said.value.remedy for option in ("--patch", "--batch-size", "--resume"))
    assert said.value.__cause__ is error
    assert load_tensors(RunFolder(tmp_path / "run").last)["method"]["step"] == 3


def test_a_deterministic_training_after_other_work_on_cuda_says_what_to_set(tiny, settings, tmp_path, monkeypatch):
    def fails(training, batch):
        raise RuntimeError("Deterministic behavior was enabled, but cuBLAS ... CUBLAS_WORKSPACE_CONFIG=:4096:8 ...")

    monkeypatch.setattr(loop, "train_step", fails)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with pytest.raises(MedContextError) as said:
        train(tiny, tmp_path / "run", dataclasses.replace(settings, deterministic=True))
    assert "CUBLAS_WORKSPACE_CONFIG=:4096:8" in said.value.remedy
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8", "from before anything is timed"


def test_an_error_of_a_worker_comes_with_its_own_traceback(tiny, settings, tmp_path, monkeypatch):
    def fails(self, name, rng):
        raise ValueError("a scan like no other")

    monkeypatch.setattr(PatchBatches, "_patch", fails)
    with pytest.raises(ValueError, match="a scan like no other") as error:
        train(tiny, tmp_path / "run", dataclasses.replace(settings, workers=1))
    assert "in fails" in "".join(traceback.format_exception(error.value))


def test_deterministic_while_it_trains_and_no_longer(tiny, settings, tmp_path, monkeypatch):
    seen = []
    step = loop.train_step
    monkeypatch.setattr(
        loop, "train_step", lambda *a: seen.append(torch.are_deterministic_algorithms_enabled()) or step(*a)
    )
    train(tiny, tmp_path / "run", dataclasses.replace(settings, max_steps=2, deterministic=True))
    assert seen == [True, True]
    assert not torch.are_deterministic_algorithms_enabled()
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()


def test_a_network_that_can_not_be_compiled_is_trained_as_it_is(tiny, settings, tmp_path, monkeypatch):
    plain = RunFolder(train(tiny, tmp_path / "plain", settings))
    monkeypatch.setattr(compiling, "_compile", lambda module: _Broken())
    run = RunFolder(train(tiny, tmp_path / "run", dataclasses.replace(settings, compile=True)))
    assert same(run, plain)


class _Broken(torch.nn.Module):
    def forward(self, *arguments):
        raise RuntimeError("no compiler here")


@pytest.mark.parametrize("fill", ["mean", "noise"])
def test_a_compiled_network_trains_to_the_same_within_rounding(tiny, settings, tmp_path, monkeypatch, fill):
    settings = dataclasses.replace(settings, method=dataclasses.replace(settings.method_config(), fill=fill))
    plain = RunFolder(train(tiny, tmp_path / "plain", settings))
    calls = []
    monkeypatch.setattr(
        compiling, "_compile", lambda module: calls.append(1) or torch.compile(module, backend="aot_eager")
    )
    run = RunFolder(train(tiny, tmp_path / "run", dataclasses.replace(settings, compile=True)))
    assert len(calls) == 2
    losses = [[row["loss/total"] for row in each.history() if "loss/total" in row] for each in (plain, run)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert load_tensors(run.last)["method"]["student"].keys() == load_tensors(plain.last)["method"]["student"].keys()


@pytest.mark.parametrize("hide", ["tokens", "both"])
def test_a_compiled_network_has_its_tokens_hidden(hide, tiny, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "_compile", lambda module: module)
    method = dataclasses.replace(settings.method_config(), hide=hide)
    changes = DROPPING | {"max_steps": 1, "log_every": 1, "method": method}
    runs = [
        RunFolder(train(tiny, tmp_path / str(compiles), dataclasses.replace(settings, compile=compiles, **changes)))
        for compiles in (False, True)
    ]
    assert same(*runs)


def test_a_run_records_hashes_of_data_and_plan(tiny, settings, tmp_path):
    records = [
        json.loads(
            RunFolder(train(tiny, tmp_path / str(size), dataclasses.replace(settings, **change))).about.read_text()
        )
        for size, change in enumerate(({"max_steps": 1}, {"max_steps": 1, "seed": 1}, {"max_steps": 2}))
    ]
    hashes = [record["hashes"] for record in records]
    assert hashes[0] == hashes[1]
    assert hashes[0]["data"] == hashes[2]["data"]
    assert hashes[0]["plan"] != hashes[2]["plan"]


@pytest.mark.parametrize(
    ("asked", "meant"),
    [("max_step", "max_steps"), ("--learning-rat=3", "learning_rate"), ("method.rati", "method.ratio"), ("zzz", None)],
)
def test_the_nearest_setting(asked, meant):
    assert nearest(asked) == meant


def test_a_wrong_setting_is_answered_with_the_nearest(tmp_path, capsys):
    (tmp_path / "settings.yaml").write_text("lerning_rate: 0.1\n")
    for wrong in (["--lerning-rate", "0.1"], ["--config", str(tmp_path / "settings.yaml")]):
        with pytest.raises(SystemExit) as end:
            main(["train", str(tmp_path), "--out", str(tmp_path / "run"), *wrong])
        assert end.value.code == 2
        assert "the nearest is 'learning_rate'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text"),
    [("config", "[]"), ("config", "a: ["), ("split", "{}"), ("split", "[]"), ("about", "[]"), ("about", "{}")],
)
def test_what_was_damaged_in_a_run_folder_is_named(name, text, tmp_path):
    run = RunFolder(tmp_path)
    file = getattr(run, name)
    file.write_text(text)
    read = {"config": run.read_config, "split": run.read_split, "about": lambda: run.data}[name]
    with pytest.raises(MedContextError, match="can't be read") as error:
        read()
    assert error.value.file == str(file)


@pytest.mark.parametrize("text", ["", "a: [", "seed: 0", "method: 3", "method: {mask: tube, no_such: 1}"])
def test_settings_that_were_damaged_are_named(text, tmp_path):
    run = RunFolder(tmp_path)
    run.config.write_text(text)
    with pytest.raises(MedContextError, match="this run was made of can't be read") as error:
        run.read_settings()
    assert error.value.file == str(run.config)
