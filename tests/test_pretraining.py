"""Masked-image pre-training: the error where the image is hidden, a training of its own, and what is taken from it."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from medcontext.data.plan import Plan
from medcontext.errors import MedContextError
from medcontext.inference.model import load_tensors
from medcontext.method.masking import mask_to_voxels
from medcontext.method.presets import MethodConfig
from medcontext.method.pretraining import HIDING, Reconstruction
from medcontext.training import loop
from medcontext.training import train as training
from medcontext.training.config import TrainConfig
from medcontext.training.pretraining import of_equal_cost, pretraining_config, pretraining_outputs
from medcontext.training.run import RunFolder
from medcontext.training.train import train
from tests.test_train import KILLED_AT_STEP_7, SECONDS, same

STAGES = {"preset": "supervised", "pretrain_steps": 10, "few_shot": 2, "unlabelled_batch": 2}


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> TrainConfig:
    return TrainConfig(cache=tmp_path_factory.mktemp("cache"), **SECONDS, **STAGES)


@pytest.fixture(scope="module")
def trained(tiny, settings, tmp_path_factory) -> RunFolder:
    return RunFolder(train(tiny, tmp_path_factory.mktemp("runs") / "whole", settings))


class Paints(nn.Module):
    """Gives what it is told at two resolutions, whatever it sees, and remembers what it saw."""

    def __init__(self, *paintings: torch.Tensor) -> None:
        super().__init__()
        self.paintings = nn.ParameterList(paintings)

    def forward(self, image):
        self.seen = image.detach()
        return list(self.paintings)


def test_the_error_is_that_of_the_hidden_voxels_alone():
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(3, 2, 8, 8, 8, generator=generator)
    network = Paints(*(torch.randn(3, 4, size, size, size, generator=generator) for size in (8, 4)))
    config = MethodConfig(mask_patch=(4, 4, 4), ratio=(0.2, 0.9))
    method = Reconstruction(network, config, total_steps=2, channels=2, generator=torch.Generator().manual_seed(5))
    again = Reconstruction(network, config, total_steps=2, channels=2, generator=torch.Generator().manual_seed(5))
    hidden = mask_to_voxels(again.draw_mask(image), (4, 4, 4), (8, 8, 8))[:, 0].numpy()
    loss = method(image)["total"]
    loss.backward()
    errors = []
    for painting, every in zip(network.paintings, (slice(None), slice(1, None, 2)), strict=True):
        where, true = (array[..., every, every, every] for array in (hidden, image.double().numpy()))
        painted = painting.detach().double().numpy()
        each = [np.mean([(painted[b, c] - true[b, c])[where[b]] ** 2 for c in range(2)]) for b in range(3)]
        errors.append(np.mean(each))
    assert loss.item() == pytest.approx((errors[0] + 0.5 * errors[1]) / 1.5, rel=1e-5)
    seen = torch.from_numpy(hidden)[:, None].expand_as(image)
    assert torch.equal(network.seen[~seen], image[~seen])
    assert not (network.seen[seen] == image[seen]).any()
    gradient = network.paintings[0].grad
    assert torch.equal(gradient[:, :2] != 0, seen)
    assert not gradient[:, 2:].any()
    assert method.teacher is None
    method.after_step()
    assert method.step == 1


def test_a_network_learns_to_paint_what_is_hidden():
    """Waves, of which a network sees the quarter that is left."""
    torch.manual_seed(0)
    along = torch.arange(16) * 0.4
    waves = [torch.sin(along + phase).view(-1, 1, 1) + torch.cos(along + phase).view(1, -1, 1) for phase in range(4)]
    image = torch.stack([wave.expand(16, 16, 16) for wave in waves])[:, None]
    network = nn.Sequential(nn.Conv3d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv3d(8, 1, 5, padding=2))
    method = Reconstruction(network, dataclasses.replace(HIDING, mask_patch=(2, 2, 2)), total_steps=40)
    optimizer = torch.optim.Adam(method.student.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        losses.append(method(image, backward=torch.Tensor.backward)["total"].item())
        optimizer.step()
        optimizer.zero_grad()
        method.after_step()
    assert losses[-1] < 0.6 * losses[0]


def test_the_training_begins_with_the_pretrained_weights_and_a_fresh_head(
    trained, tiny, settings, tmp_path, monkeypatch
):
    states = []

    def watched(state, batches, progress):
        states.append({key: value.clone() for key, value in state.method.network.state_dict().items()})
        loop.fit(state, batches, progress)

    monkeypatch.setattr(training, "fit", watched)
    run = RunFolder(train(tiny, tmp_path / "run", settings))
    assert same(run, trained)
    pretrained = load_tensors(run.pretraining.best)["weights"]
    before, at_begin = states
    fresh = {key for key, value in at_begin.items() if value.shape != pretrained[key].shape}
    assert fresh == {"output_block.conv.conv.weight", "output_block.conv.conv.bias"}
    assert all(torch.equal(at_begin[key], pretrained[key]) for key in at_begin.keys() - fresh)
    assert not any(torch.equal(before[key], pretrained[key]) for key in before if key.endswith("conv1.conv.weight"))
    other = RunFolder(
        train(tiny, tmp_path / "other", dataclasses.replace(settings, pretrain_steps=0, unlabelled_batch=0))
    )
    assert not same(other, run)
    assert torch.equal(states[2]["output_block.conv.conv.weight"], at_begin["output_block.conv.conv.weight"])


def test_a_pretraining_has_its_own_record_and_no_segmentation(trained):
    rows = trained.pretraining.history()
    assert [row["step"] for row in rows] == [3, 6, 9, 10]
    assert all("loss/total" in row and "loss/clean" not in row for row in rows)
    assert not (trained.pretraining.path / "overlays").exists()
    assert {row["step"] for row in trained.history() if row["kind"] != "quick"} == {3, 6, 9, 12}


@pytest.mark.parametrize("steps", [10, 4], ids=["in it", "after it"])
def test_a_run_that_is_killed_goes_on_bit_by_bit(steps, trained, tiny, settings, tmp_path):
    settings = dataclasses.replace(settings, pretrain_steps=steps)
    whole = trained if steps == 10 else RunFolder(train(tiny, tmp_path / "whole", settings))
    told = repr(SECONDS | STAGES | {"pretrain_steps": steps})
    arguments = [str(tiny), str(tmp_path / "killed"), str(settings.cache), told]
    killed = subprocess.run([sys.executable, "-c", KILLED_AT_STEP_7, *arguments], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run = RunFolder(tmp_path / "killed")
    assert not run.last.exists()
    assert load_tensors(run.pretraining.last)["method"]["step"] == 4
    assert run.pretraining.best.exists() == (steps == 4)
    made = run.pretraining.best.stat().st_mtime_ns if steps == 4 else None
    train(tiny, run.path, settings, resume=True)
    assert made in (None, run.pretraining.best.stat().st_mtime_ns), "what is done is not done again"
    assert same(run, whole)
    assert [row["step"] for row in run.pretraining.history()] == [row["step"] for row in whole.pretraining.history()]


def test_it_draws_other_patches_than_the_training_and_never_as_many_outputs(settings):
    settings = dataclasses.replace(settings, spacing=(8.0, 2.5, 2.5))
    config = pretraining_config(settings)
    assert config.method == dataclasses.replace(HIDING, mask_patch=(2, 8, 8)), "cubes in mm, as in the training"
    assert config.seed != settings.seed
    assert config.seed != pretraining_config(dataclasses.replace(settings, seed=1)).seed
    assert (config.max_steps, config.pretrain_steps, config.compared_batch) == (10, 0, 2)
    assert settings.compared_batch == 0
    for channels, outputs, expected in ((1, 3, 1), (3, 3, 4), (4, 3, 4)):
        plan = plan_like(channels, outputs)
        assert pretraining_outputs(plan) == expected


def plan_like(channels: int, outputs: int) -> Plan:
    from tests.test_estimate import plan_of

    plan = plan_of((32, 32, 32))
    assert plan.labels.outputs == outputs
    return dataclasses.replace(plan, channels=channels)


def test_its_steps_are_counted_as_supervised_ones_of_all_patches(settings):
    plan = plan_like(1, 3)
    config, counted = of_equal_cost(settings, plan)
    assert counted.batch_size == plan.batch_size + 2
    assert not config.method_config().active
    assert (config.unlabelled_batch, config.pretrain_steps) == (0, 0)


def test_a_time_can_not_be_shared_with_it():
    with pytest.raises(MedContextError, match="pretrain_steps"):
        TrainConfig(pretrain_steps=5, max_time="1h")
