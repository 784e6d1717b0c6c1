"""Processes that fail alone: the others end too, with an error that says why, and the run goes on with ``--resume``."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from medcontext.errors import MedContextError
from medcontext.inference.model import load_tensors
from medcontext.training.config import TrainConfig
from medcontext.training.distribution import launch
from medcontext.training.run import RunFolder
from medcontext.training.train import train
from tests.test_distributed import SHORT, command
from tests.trouble import troubled

MANY = SHORT | {"max_steps": 6, "save_every": 2, "validations": 1}


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> TrainConfig:
    return TrainConfig(cache=tmp_path_factory.mktemp("cache"), **MANY)


def step_of(run: RunFolder) -> int:
    step: int = load_tensors(run.last)["method"]["step"]
    return step


def test_a_process_that_is_killed_ends_all_and_the_run_goes_on(tiny, settings, tmp_path):
    run = RunFolder(tmp_path / "run")
    said = troubled("dies", 1, *command(tiny, run, settings, "--devices", 2)[2:])
    assert "Another process of this training has ended" in said
    assert step_of(run) == 3
    train(tiny, run.path, settings, resume=True)
    assert step_of(run) == 6


def test_a_full_disk_ends_all_and_loses_nothing(tiny, settings, tmp_path):
    run = RunFolder(tmp_path / "run")
    said = troubled("disk", 0, *command(tiny, run, settings, "--devices", 2)[2:])
    assert said.count("error: ") == 1
    assert "No space left on device" in said
    assert step_of(run) == 4


def test_a_case_that_one_process_finds_damaged_is_named(tiny, settings, tmp_path):
    run = RunFolder(tmp_path / "run")
    said = troubled("case", 1, *command(tiny, run, settings, "--devices", 2)[2:])
    named = re.search(r"A prepared case in the cache is damaged.*?of case (\w+)", said, re.DOTALL)
    assert named is not None, said
    assert named[1] in run.read_split().train


@pytest.mark.parametrize("process", [0, 1])
def test_preparation_is_waited_for_and_a_silent_process_is_not(process):
    said = troubled("hangs", process)
    assert said.count("prepared") == 2
    assert "gives no answer" in said


def under_slurm(tasks: int, rank: int = 0) -> dict[str, str]:
    """What srun tells a task (https://slurm.schedmd.com/srun.html, output environment variables)."""
    said = {"JOB_ID": 4711, "JOB_NAME": "train", "NTASKS": tasks, "NTASKS_PER_NODE": tasks, "NNODES": 1, "NODEID": 0}
    said |= {"NODELIST": "localhost", "PROCID": rank, "LOCALID": rank}
    return {f"SLURM_{name}": str(value) for name, value in said.items()}


@pytest.fixture
def port() -> Iterator[int]:
    """A free one that nobody else is given meanwhile: it is bound, but not listened at, and PyTorch reuses such."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("localhost", 0))
        yield held.getsockname()[1]


def test_a_job_of_slurm_that_is_warned_stops_with_the_code_that_the_script_requeues_at(tiny, settings, port, tmp_path):
    """As in docs/training.md: two tasks, the warning to both."""
    run = RunFolder(tmp_path / "run")
    long = dataclasses.replace(settings, max_steps=100_000)
    started = [sys.executable, *command(tiny, run, long, "--devices", 2, "--num-nodes", 1, "--resume")]
    at = {"MASTER_PORT": str(port)}
    tasks = [
        subprocess.Popen(started, stderr=subprocess.PIPE, text=True, env=os.environ | at | under_slurm(2, rank))
        for rank in range(2)
    ]
    deadline = time.monotonic() + 100
    while len(run.history()) < 3 and time.monotonic() < deadline and all(task.poll() is None for task in tasks):
        time.sleep(0.2)
    for task in tasks:
        task.send_signal(signal.SIGUSR1)
    said = [task.communicate(timeout=90)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [130, 130], said
    assert "2 x cpu" in said[0]
    step = step_of(run)
    assert step >= 3
    alone = [sys.executable, *command(tiny, run, long, "--devices", 1, "--resume")]
    with subprocess.Popen(alone, stderr=subprocess.PIPE, text=True) as again:
        assert f"going on from step {step}" in next(line for line in again.stderr if "going on" in line)
        again.kill()


def test_a_warning_before_the_first_step_stops_with_that_code_too(tiny, settings, tmp_path, monkeypatch):
    monkeypatch.setattr("medcontext.training.train._begin", lambda *arguments: signal.raise_signal(signal.SIGUSR1))
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(KeyboardInterrupt):
        train(tiny, tmp_path / "run", settings)
    assert signal.getsignal(signal.SIGUSR1) == before


@pytest.mark.parametrize("devices", [1, 2])
def test_another_number_of_tasks_than_devices_is_refused(devices, monkeypatch):
    for name, value in under_slurm(4).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MedContextError, match="another number of processes") as error:
        launch(TrainConfig(device="cpu", devices=devices))
    assert "SLURM_NTASKS = 4" in error.value.found
