"""Two processes train as one with the same batches: the same losses, the same scores, one set of files."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import subprocess
import sys
import time
from unittest.mock import Mock

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from medcontext.data.augment_config import AugmentConfig
from medcontext.data.plan import Plan
from medcontext.data.sampling import PatchBatches
from medcontext.errors import MedContextError
from medcontext.inference.model import load_tensors
from medcontext.method.objective import MedContext
from medcontext.method.presets import MethodConfig
from medcontext.training import distribution, state, step
from medcontext.training.config import TrainConfig
from medcontext.training.distribution import (
    first_does,
    follow_first,
    launch,
    mean_of,
    of_all,
    require_equal_shares,
    whole_batch_norm,
)
from medcontext.training.loop import _agreed
from medcontext.training.run import RunFolder, from_stored
from medcontext.training.train import train
from tests.conftest import THREE_PASSES
from tests.test_train import NETWORK, SECONDS, weights

SHORT = SECONDS | {"max_steps": 4, "log_every": 1, "save_every": 100, "validations": 2, "validation_share": 0.5}
SHORT |= {"method": dataclasses.replace(THREE_PASSES, mask_patch=(8, 8, 8))}

SPEED = {"data_wait", "steps_per_second"}
"""Not known at the first step of a run, nor of a resumed one."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> TrainConfig:
    return TrainConfig(cache=tmp_path_factory.mktemp("cache"), **SHORT)


def command(data, run: RunFolder, settings: TrainConfig, *more: object) -> list[str]:
    options = {
        "out": run.path,
        "cache": settings.cache,
        "patch": list(settings.patch),
        "network-settings": json.dumps(NETWORK),
        "max-steps": settings.max_steps,
        "log-every": settings.log_every,
        "save-every": settings.save_every,
        "validations": settings.validations,
        "validation-share": settings.validation_share,
        "precision": "fp32",
        "device": "cpu",
        "method.clean_weight": settings.method_config().clean_weight,
        "method.consistency_weight": settings.method_config().consistency_weight,
        "method.ratio": settings.method_config().ratio,
        "method.mask_patch": list(settings.method_config().mask_patch),
    }
    given = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    return ["-m", "medcontext", "train", str(data), *given, *map(str, more)]


def require_same_losses(one: RunFolder, two: RunFolder) -> None:
    rows = [run.history() for run in (one, two)]
    assert [row["step"] for row in rows[1]] == [row["step"] for row in rows[0]] == [1, 1, 2, 2, 3, 3, 4, 4]
    for single, double in zip(*rows, strict=True):
        assert single.keys() - SPEED == double.keys() - SPEED
        names = ("loss/clean", "loss/masked", "loss/consistency", "loss/total", "gradient_norm")
        for name in names if single["kind"] == "train" else ():
            assert double[name] == pytest.approx(single[name], rel=1e-4)
        for name in single if single["kind"] in ("validation", "quick") else ():
            assert double[name] == pytest.approx(single[name], abs=0.002)


def test_two_processes_give_the_losses_and_scores_of_one_and_write_once(tiny, settings, tmp_path):
    one = RunFolder(train(tiny, tmp_path / "one", settings))
    two = RunFolder(tmp_path / "two")
    started = [sys.executable, *command(tiny, two, settings, "--devices", 2)]
    done = subprocess.run(started, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "2 x cpu" in done.stderr
    assert len(one.read_split().validation) == 3
    require_same_losses(one, two)
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(weights(one), weights(two), strict=True))
    assert sorted(each.name for each in two.path.iterdir()) == sorted(each.name for each in one.path.iterdir())
    assert from_stored(two.read_config()) == dataclasses.replace(from_stored(one.read_config()), devices=2)


def test_processes_of_torchrun_stop_together_and_one_goes_on(tiny, settings, tmp_path):
    """A signal to one of them is enough."""
    run = RunFolder(tmp_path / "run")
    long = dataclasses.replace(settings, max_steps=100_000, validations=1)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen([*launcher, *command(tiny, run, long)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while len(run.history()) < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=90)
    assert said.count("the checkpoint is written") == 1, said
    taken = load_tensors(run.last)["method"]["step"]
    assert taken >= 3
    assert run.history()[-1]["step"] == taken


LEAVE = """
import atexit
import os
import torch
from medcontext.training.config import TrainConfig
from medcontext.training.distribution import launch
# In one write, so that what one process says can't come between a word of the other and the end of its line.
atexit.register(lambda: os.write(1, b"open\\n" if torch.distributed.is_initialized() else b"closed\\n"))
fabric = launch(TrainConfig(device="cpu", devices=2))
assert fabric.world_size == 2 and torch.distributed.is_initialized()
"""


def test_processes_close_their_connections_before_they_end(tmp_path):
    (tmp_path / "leave.py").write_text(LEAVE)
    done = subprocess.run([sys.executable, tmp_path / "leave.py"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.split()) == (0, ["closed"] * 2), done.stderr


def test_shares_of_a_batch_are_the_whole_batch(tiny, settings, tmp_path):
    run = RunFolder(train(tiny, tmp_path / "run", dataclasses.replace(settings, max_steps=1, validations=1)))
    plan = Plan.from_dict(run.read_plan().to_dict() | {"batch_size": 4})
    folders = {name: settings.cache / key for name, key in json.loads(run.about.read_text())["prepared"].items()}
    whole = PatchBatches(folders, plan, AugmentConfig(), 0, 5)[3]
    parts = [PatchBatches(folders, plan, AugmentConfig(), 0, 5, (rank, 2))[3] for rank in range(2)]
    for name in ("image", "label"):
        assert torch.equal(torch.cat([part[name] for part in parts]), whole[name])
    assert [case for part in parts for case in part["cases"]] == whole["cases"]


@pytest.mark.parametrize("fill", ["mean", "noise"])
def test_shares_of_the_masks_are_the_masks_of_the_whole_batch(fill):
    config = MethodConfig(mask_patch=(2, 2, 2), fill=fill, mask_probability=0.5)
    image = torch.randn(4, 1, 8, 8, 8)
    drawn = []
    for share in ((0, 1), (0, 2), (1, 2)):
        method = MedContext(torch.nn.Conv3d(1, 2, 1), config, total_steps=1, share=share)
        own = image[: len(image) // share[1]]
        drawn.append((method.draw_mask(own), method._draw_noise(own)))
    (mask, noise), *parts = drawn
    assert torch.equal(torch.cat([part[0] for part in parts]), mask)
    if fill == "noise":
        assert torch.equal(torch.cat([part[1] for part in parts]), noise)


def test_what_can_not_be_shared_is_refused(monkeypatch):
    monkeypatch.setattr(distribution, "choose_device", lambda asked: "mps")
    with pytest.raises(MedContextError, match="not so many devices"):
        launch(TrainConfig(devices=2))
    fabric = Fabric(accelerator="cpu", devices=1)
    monkeypatch.setattr(Fabric, "world_size", 4)
    with pytest.raises(MedContextError, match="shared equally") as error:
        require_equal_shares(6, fabric)
    assert "--batch-size 8" in error.value.remedy


@pytest.mark.parametrize(
    ("processes", "kind", "norm"),
    [(2, "cuda", nn.SyncBatchNorm), (2, "cpu", nn.BatchNorm3d), (1, "cuda", nn.BatchNorm3d)],
)
def test_batch_normalisation_looks_at_the_whole_batch_on_several_gpus(processes, kind, norm):
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.Sequential(nn.BatchNorm3d(2)))
    made = whole_batch_norm(Mock(world_size=processes, device=torch.device(kind)), network)
    assert [type(each) for each in (made[0], made[1][0])] == [nn.Conv3d, norm]


def test_statistics_of_batch_normalisation_are_those_of_the_first_process(tiny, settings, tmp_path, monkeypatch):
    """Student and teacher have those that are told of; here they are 7."""

    def told(_: Fabric, buffers: list[torch.Tensor]) -> None:
        for buffer in buffers:
            buffer.fill_(7.0)

    monkeypatch.setattr(step, "follow_first", told)
    changes = {"network_settings": NETWORK | {"norm": "batch"}, "max_steps": 1, "validations": 1}
    run = RunFolder(train(tiny, tmp_path / "run", dataclasses.replace(settings, **changes)))
    saved = load_tensors(run.last)["method"]
    for network in (saved["student"], saved["teacher"]):
        statistics = [each for name, each in network.items() if name.endswith(("running_mean", "running_var"))]
        assert statistics
        assert all((each == 7).all() for each in statistics)


def test_the_first_process_alone_writes_the_checkpoint(tiny, settings, tmp_path, monkeypatch):
    """Another one, for which nothing is done here, writes none."""
    monkeypatch.setattr(state, "first_does", lambda fabric, work: None)
    run = RunFolder(train(tiny, tmp_path / "run", dataclasses.replace(settings, max_steps=1, validations=1)))
    assert run.history()
    assert not run.last.exists()


def exchange(rank: int, store: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)

    def all_reduce(tensor: torch.Tensor, reduce_op: str) -> torch.Tensor:
        torch.distributed.all_reduce(tensor)
        assert reduce_op == "sum"
        return tensor

    fabric = Mock(world_size=2, device=torch.device("cpu"), is_global_zero=rank == 0, all_reduce=all_reduce)
    statistics = [torch.full((2,), rank + 5.0), torch.tensor(rank + 7)]
    follow_first(fabric, statistics)
    assert [each.tolist() for each in statistics] == [[5, 5], 7]
    values = torch.tensor([rank + 1.0, math.nan if rank else 4.0, math.inf if rank else 1.0, math.nan])
    assert mean_of(fabric, values)[:3].tolist() == [1.5, 4.0, math.inf]
    assert mean_of(fabric, values)[3].isnan()
    assert of_all(fabric, {f"case {1 - rank}": rank}) == {"case 0": 1, "case 1": 0}
    # One is asked to stop; the other, by its own clock, is late for a checkpoint.
    for device, agreed in (("cpu", (True, True)), ("cuda:0", (False, False))):
        assert _agreed(Mock(fabric=fabric, device=device), rank == 0, rank == 1, logged=False) == agreed
    assert first_does(fabric, lambda: "done once") == "done once"
    with pytest.raises(ZeroDivisionError if rank == 0 else SystemExit):
        first_does(fabric, lambda: 1 // 0)
    # A process that ends while gloo's threads are at work is now and then aborted.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_what_processes_tell_one_another(tmp_path):
    torch.multiprocessing.spawn(exchange, (str(tmp_path / "store"),), 2)
