"""Resuming: whatever moment a process dies at, the run goes on from a whole checkpoint and ends with the same bits."""

from __future__ import annotations

import dataclasses
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from medcontext.errors import MedContextError
from medcontext.inference.model import load_tensors
from medcontext.training import checkpoint, loop
from medcontext.training.checkpoint import newest_checkpoint, write_checkpoint
from medcontext.training.config import TrainConfig
from medcontext.training.run import RunFolder
from medcontext.training.signals import stop_asked
from medcontext.training.train import train
from tests.test_train import SECONDS, breaking_off_after, same

MANY = SECONDS | {"max_steps": 40, "log_every": 5, "save_every": 1}
"""So many checkpoints that a process is likely to die while it writes one."""

COUNTED = 1
"""Steps on tensors without numbers that are taken before a run to count its memory."""

GOES_ON = """
import sys
import time
from pathlib import Path
from medcontext.training import loop
from medcontext.training.config import TrainConfig
from medcontext.training.train import train

data, out, cache, settings, held_at = sys.argv[1:]
step = loop.train_step

def held(training, batch):
    if training.step == int(held_at):
        time.sleep(600)
    return step(training, batch)

loop.train_step = held
train(data, out, TrainConfig(cache=Path(cache), **eval(settings)), resume=True)
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> TrainConfig:
    return TrainConfig(cache=tmp_path_factory.mktemp("cache"), **MANY)


@pytest.fixture(scope="module")
def whole(tiny, settings, tmp_path_factory) -> RunFolder:
    return RunFolder(train(tiny, tmp_path_factory.mktemp("runs") / "whole", settings))


def test_a_run_killed_again_and_again_ends_with_the_same_bits(whole, tiny, settings, tmp_path):
    """Three times at a random moment, some of which fall into the writing of a checkpoint.

    Each process waits at a step to be killed, if it comes so far: none can end before, however fast the machine.
    """
    run = RunFolder(tmp_path / "run")
    arguments = [sys.executable, "-c", GOES_ON, str(tiny), str(run.path), str(settings.cache), repr(MANY)]
    moments = random.Random(0)
    steps = []
    for held_at in (12, 24, 36):
        process = subprocess.Popen([*arguments, str(held_at)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        before = _written(run)
        deadline = time.monotonic() + 60
        while _written(run) == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(moments.uniform(0.0, 0.15))
        process.kill()
        _, said = process.communicate()
        assert process.returncode == -signal.SIGKILL, said
        steps.append(load_tensors(newest_checkpoint(run, lambda text: None))["method"]["step"])
    assert steps == sorted(set(steps))
    assert steps[-1] < 40
    train(tiny, run.path, settings, resume=True)
    assert same(run, whole)
    assert [row["step"] for row in run.history()] == [row["step"] for row in whole.history()]
    assert not [*run.path.glob(".unfinished-*")]


def _written(run: RunFolder) -> float:
    return max((file.stat().st_mtime for file in (run.last, run.previous) if file.is_file()), default=0.0)


def test_a_process_that_dies_between_two_renames_leaves_the_newest(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    for value in (1, 2):
        write_checkpoint(run, {"value": value})

    def dies(self, target):
        if self == run.next:
            raise KeyboardInterrupt
        return honest(self, target)

    honest = Path.replace
    monkeypatch.setattr(Path, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(run, {"value": 3})
    assert not run.last.exists()
    assert load_tensors(newest_checkpoint(run, pytest.fail))["value"] == 3
    monkeypatch.undo()
    write_checkpoint(run, {"value": 4})
    assert load_tensors(newest_checkpoint(run, pytest.fail))["value"] == 4
    assert load_tensors(run.previous)["value"] == 2


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def one_bit_changed(file: Path) -> None:
    """In the middle of a tensor, where torch.load would not notice."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_short, emptied, one_bit_changed])
def test_a_damaged_checkpoint_falls_back_on_the_one_before(damage, whole, tiny, settings, tmp_path):
    run = RunFolder(shutil.copytree(whole.path, tmp_path / "run"))
    damage(run.last)
    said = []
    assert load_tensors(newest_checkpoint(run, said.append))["method"]["step"] == 39
    assert "last.pt is damaged" in said[0]
    assert not run.last.exists()
    train(tiny, run.path, settings, resume=True)
    assert same(run, whole)
    damage(run.last)
    damage(run.previous)
    with pytest.raises(MedContextError, match="No checkpoint of this run is whole") as error:
        train(tiny, run.path, settings, resume=True)
    assert all(f"{name}: " in error.value.found for name in ("last.pt", "previous.pt"))


def test_an_error_leaves_a_checkpoint_that_goes_on_with_the_same_bits(whole, tiny, settings, tmp_path, monkeypatch):
    """Within a step, where masks are drawn already, within a validation, and where its model is written."""
    settings = dataclasses.replace(settings, save_every=1000)

    def fails(module, where: str, at: int):
        honest, calls = getattr(module, where), iter(range(1, 1000))

        def once(*arguments):
            if next(calls) == at:
                raise RuntimeError("something broke")
            return honest(*arguments)

        monkeypatch.setattr(module, where, once)

    run = RunFolder(tmp_path / "run")
    within_step = torch.nn.utils, "clip_grad_norm_", 8 + COUNTED
    for broken, step in ((within_step, 7), ((loop, "validate", 1), 20), ((loop, "save_model", 1), 20)):
        fails(*broken)
        with pytest.raises(RuntimeError, match="something broke"):
            train(tiny, run.path, settings, resume=True)
        monkeypatch.undo()
        assert load_tensors(run.last)["method"]["step"] == step
    train(tiny, run.path, settings, resume=True)
    assert same(run, whole)
    assert [row["step"] for row in run.history()] == [row["step"] for row in whole.history()]
    best, other = (load_tensors(each.best) for each in (run, whole))
    assert best["about"] == other["about"]
    assert all(torch.equal(value, other["weights"][name]) for name, value in best["weights"].items())


def test_a_resumed_run_keeps_the_best_model_from_before_it_stopped(tiny, settings, tmp_path, monkeypatch):
    settings = dataclasses.replace(settings, max_steps=4)
    scores = iter([0.8, 0.5])
    monkeypatch.setattr(loop, "validate", lambda networks, *rest: dict.fromkeys(networks, next(scores)))
    run = RunFolder(tmp_path / "run")
    with breaking_off_after(3):
        train(tiny, run.path, settings)
    best = run.best.read_bytes()
    train(tiny, run.path, settings, resume=True)
    scored = [(row["step"], row["dice/student"]) for row in run.history() if row["kind"] == "validation"]
    assert scored == [(2, 0.8), (4, 0.5)]
    assert run.best.read_bytes() == best
    about = load_tensors(run.best)["about"]
    assert (about["step"], about["validation_dice"]) == (2, 0.8)


def test_a_checkpoint_that_can_not_be_written_stops_the_run_and_loses_nothing(tiny, settings, tmp_path, monkeypatch):
    """The disk fills up while the run is under way."""
    honest = checkpoint.save_tensors
    calls = iter(range(1, 1000))

    def full(path, state):
        if next(calls) > 3:
            raise MedContextError("A checkpoint could not be written.", file=path)
        honest(path, state)

    monkeypatch.setattr(checkpoint, "save_tensors", full)
    with pytest.raises(MedContextError, match="could not be written"):
        train(tiny, tmp_path / "run", settings)
    run = RunFolder(tmp_path / "run")
    assert load_tensors(run.last)["method"]["step"] == 3
    assert load_tensors(run.previous)["method"]["step"] == 2


def test_a_checkpoint_is_written_by_the_minute(tiny, settings, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("medcontext.training.state.write_checkpoint", lambda run, state: written.append(state))
    often = dataclasses.replace(settings, max_steps=3, save_every=1000, save_minutes=1e-6)
    train(tiny, tmp_path / "run", often)
    assert [state["method"]["step"] for state in written] == [1, 2, 3]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_scheduler_that_takes_the_machine_leaves_a_checkpoint(number, tiny, settings, tmp_path, monkeypatch):
    step = loop.train_step

    def warned(training, batch):
        row = step(training, batch)
        if training.step == 5:
            signal.raise_signal(number)
        return row

    monkeypatch.setattr(loop, "train_step", warned)
    with pytest.raises(KeyboardInterrupt):
        train(tiny, tmp_path / "run", dataclasses.replace(settings, save_every=1000))
    assert load_tensors(RunFolder(tmp_path / "run").last)["method"]["step"] == 5
    assert signal.getsignal(number) == signal.SIG_DFL


def test_a_second_ctrl_c_stops_at_once():
    with stop_asked() as asked:
        signal.raise_signal(signal.SIGINT)
        assert asked.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
