from __future__ import annotations

import copy
import dataclasses
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from medcontext.data.labels import Labels, Region
from medcontext.data.plan import Normalisation, Plan
from medcontext.errors import MedContextError
from medcontext.memory import free_memory
from medcontext.method.objective import MedContext
from medcontext.method.presets import MethodConfig
from medcontext.networks.registry import build_network, network_spec
from medcontext.progress import Progress
from medcontext.training import estimate as module
from medcontext.training import setup
from medcontext.training.config import TrainConfig
from medcontext.training.estimate import Estimate, estimate, sharded_memory, step_memory, step_seconds
from medcontext.training.schedule import make_optimizer
from medcontext.training.setup import tried
from tests.conftest import THREE_PASSES

MIB = 2**20


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(module, "ENOUGH_SECONDS", 0.1)


def plan_of(patch=(16, 16, 16), batch=2, labels=None):
    labels = labels or Labels({1: "a", 2: "b"})
    return Plan("t", 1, labels, "SAR", (1.0, 1.0, 1.0), Normalisation("case"), patch, batch, 100)


def network_of(name, plan, scale="tiny"):
    settings = network_spec(name).settings(plan.patch, plan.spacing, scale)
    return build_network(name, plan.channels, plan.labels.outputs, plan.patch, settings, 0)


def config_of(name="unet", preset="medcontext", precision="fp32"):
    return TrainConfig(network=name, preset=preset, precision=precision)


def test_activations_and_weights_are_counted_as_by_hand():
    """Sixty-four pointwise layers: what autograd keeps of each is its input, one batch of 8 features in float32."""
    plan = plan_of((32, 32, 32))
    layers = [nn.Conv3d(1, 8, 1), *[nn.Conv3d(8, 8, 1) for _ in range(64)], nn.Conv3d(8, 3, 1)]
    deep, shallow = nn.Sequential(*layers), nn.Sequential(layers[0], layers[-1])
    one = 2 * 8 * 32**3 * 4
    config = config_of(preset="supervised")
    between = step_memory(deep, config, plan) - step_memory(shallow, config, plan)
    # Beside the kept inputs, a layer's gradients may be there when the memory is fullest: two more at the most.
    assert 60 * one <= between <= 67 * one
    wide = nn.Sequential(nn.Conv3d(1, 1000, 1), nn.Flatten(2), nn.Conv1d(1000, 2000, 1), nn.Conv1d(2000, 3, 1))
    wide.append(nn.Unflatten(2, (16, 2, 2)))
    weights = sum(p.nbytes for p in wide.parameters())
    flat = plan_of((16, 2, 2))
    # Weights, gradients and two moments; scratch of the clipping comes on top.
    assert 4 * weights <= step_memory(wide, config, flat) <= 6 * weights
    # The method keeps a teacher; a masked pass after a clean one makes the largest weight's gradient beside its own.
    supervised = step_memory(wide, config, flat)
    for method, beside in ((THREE_PASSES, wide[2].weight.nbytes), (None, 0)):
        more = step_memory(wide, dataclasses.replace(config_of(), method=method), flat) - supervised
        assert more == pytest.approx(weights + beside, rel=0.05)


def test_memory_grows_with_the_patch_and_halves_in_bf16():
    plan, config = plan_of((32, 32, 32)), config_of()
    network = network_of("unet", plan)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    one = step_memory(network, config, plan)
    two = step_memory(network, config, dataclasses.replace(plan, batch_size=4))
    assert 1.8 * one < two < 2.2 * one
    assert 0.4 * one < step_memory(network, config_of(precision="bf16"), plan) < 0.8 * one
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(type(p) is nn.Parameter and p.grad is None for p in network.parameters())


def test_unlabelled_patches_are_counted_and_a_pretraining_too(monkeypatch):
    """An unlabelled patch goes through the masked pass, the larger of the two, like any other."""
    plan, config = plan_of((32, 32, 32)), dataclasses.replace(config_of(), method=MethodConfig(consistency_weight=1.0))
    network = network_of("unet", plan)
    one = step_memory(network, config, plan)
    more = step_memory(network, dataclasses.replace(config, unlabelled_batch=2), plan)
    assert 1.8 * one < more < 2.2 * one
    asked = []
    monkeypatch.setattr(setup, "step_memory", lambda network, config, plan: asked.append(plan.batch_size) or 10**15)
    pretrained = dataclasses.replace(config_of(preset="supervised"), pretrain_steps=5, unlabelled_batch=3)
    with pytest.raises(MedContextError, match="too little memory"):
        tried(pretrained, plan, Mock(device=torch.device("cpu"), strategy=None), Progress(quiet=True))
    assert asked == [plan.batch_size, plan.batch_size + 3]


def test_counted_memory_is_what_pytorch_itself_keeps_for_the_backward_pass():
    """A lower bound by other means: the tensors that a real clean pass saves, each storage once."""
    plan, config = plan_of((32, 32, 32)), config_of(preset="supervised")
    network = network_of("unet", plan, "small")
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    method = MedContext(network, "supervised", total_steps=1)
    label = torch.randint(3, (2, 32, 32, 32))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = method(torch.randn(2, 1, 32, 32, 32), label)["total"]
    kept = sum(storage.nbytes() for storage in saved.values())
    loss.backward()
    counted = step_memory(network, config, plan)
    assert kept < counted < 1.6 * kept


@pytest.mark.parametrize("name", ["unet", "resenc_unet", "unetr", "segresnet"])
def test_networks_can_be_counted_and_timed(name):
    plan = plan_of((32, 32, 32))
    found = estimate(network_of(name, plan), config_of(name), plan, "cpu")
    assert found.fits
    assert 0.001 < found.memory_gib < 1
    assert found.total_seconds == pytest.approx(100 * found.seconds_per_step)
    assert f"{found.seconds_per_step:.2g} s per step" in str(found)
    assert set(found.to_dict()) == {field.name for field in dataclasses.fields(Estimate)}


def test_regions_are_counted_with_their_loss():
    plan = plan_of((16, 16, 16), labels=Labels({1: "a", 2: "b"}, regions=(Region("all", (1, 2), 1),)))
    assert estimate(network_of("unet", plan), config_of(), plan, "cpu").fits


def work_of(step):
    """Multiplications and additions of a step's convolutions, forwards and backwards."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def test_time_is_that_of_the_steps_themselves(monkeypatch):
    """The median after one to warm up, by a clock that a step moves on; and a step is as much work as in training."""
    plan, config = plan_of(), config_of()
    network = nn.Sequential(network_of("unet", plan), nn.Dropout(0.1))
    random_state, before = torch.get_rng_state(), copy.deepcopy(network.state_dict())
    now, taken, training_step, lengths = 0.0, [], module._training_step, iter([9.0, 0.03, 0.01, 0.08])

    def clocked(*arguments):
        step = training_step(*arguments)

        def clocked_step():
            nonlocal now
            taken.append(work_of(step))
            now += next(lengths)

        return clocked_step

    optimizers = []
    monkeypatch.setattr(module, "make_optimizer", lambda *how: optimizers.append(make_optimizer(*how)) or optimizers[0])
    monkeypatch.setattr(module, "_training_step", clocked)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now))
    assert step_seconds(network, config, plan, "cpu") == pytest.approx(0.03)
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    method = MedContext(network, "medcontext", total_steps=100)
    image, label = torch.randn(2, 1, *plan.patch), torch.randint(3, (2, *plan.patch))
    assert taken == [work_of(lambda: method(image, label, backward=torch.Tensor.backward))] * 4
    # One more was taken beforehand, for the optimiser's states to be there.
    assert [{int(state["step"]) for state in each.state.values()} for each in optimizers] == [{1 + 4}]


def test_what_does_not_fit_is_not_tried(monkeypatch):
    plan, config = plan_of((32, 32, 32)), config_of()
    network = network_of("unet", plan)
    monkeypatch.setattr(module, "free_memory", lambda device: 1.0 * MIB)
    monkeypatch.setattr(module, "step_seconds", lambda *args: pytest.fail("a step was tried"))
    found = estimate(network, config, plan, "cpu")
    assert not found.fits
    assert found.total_seconds is None
    assert "too little" in str(found)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), RuntimeError("MPS backend out of memory (MPS")])
def test_a_device_that_runs_out_of_memory_is_said_to_be_too_small(error, monkeypatch):
    class Hungry(nn.Conv3d):
        def forward(self, image):
            raise error

    monkeypatch.setattr(module, "step_memory", lambda *args: None)
    found = estimate(Hungry(1, 3, 1), config_of(), plan_of(), "cpu")
    assert not found.fits
    assert "memory not known" in str(found)


def test_a_network_that_looks_at_its_numbers_is_timed_all_the_same():
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv3d(1, 3, 1)

        def forward(self, image):
            return self.layer(image) * (2.0 if image.mean().item() > 0 else 1.0)

    found = estimate(Looks(), config_of(), plan_of(), "cpu")
    assert found.memory_gib is None
    assert found.fits


def test_an_error_of_the_network_itself_is_not_hidden():
    with pytest.raises(RuntimeError):
        step_memory(nn.Conv3d(7, 3, 1), config_of(), plan_of())
    with pytest.raises(RuntimeError, match="channels"):
        step_seconds(nn.Conv3d(7, 3, 1), config_of(), plan_of(), "cpu")


@pytest.mark.parametrize(("norm", "kept"), [(nn.GroupNorm(2, 8), 4), (nn.InstanceNorm3d(8, affine=True), 2)])
def test_the_autocast_of_gpus_keeps_some_norms_in_single_precision(norm, kept):
    """A pointwise layer of 8 features and its norm, sixteen times: in bf16 a norm keeps its input for the gradient. In
    single precision its input is a copy of twice the size, and the next layer keeps the output in bf16 all the same."""
    plan = plan_of((32, 32, 32))
    layers = [each for _ in range(16) for each in (nn.Conv3d(8, 8, 1), copy.deepcopy(norm))]
    network = nn.Sequential(nn.Conv3d(1, 8, 1), *layers, nn.Conv3d(8, 3, 1))
    config = config_of(preset="supervised", precision="bf16")
    cpu, gpu = (step_memory(network, dataclasses.replace(config, device=device), plan) for device in ("cpu", "cuda"))
    one = 2 * 8 * 32**3
    assert gpu - cpu == pytest.approx(16 * (kept - 2) * one, abs=4 * one)


def test_free_memory_is_believable():
    assert 50 * MIB < free_memory("cpu") < 2**44


def test_processes_of_one_machine_share_its_memory(monkeypatch):
    """Of a CPU: a GPU has but one process."""
    plan = plan_of()
    config = config_of()
    needed = step_memory(network_of("unet", plan), config, plan)
    monkeypatch.setattr("medcontext.memory._free_ram", lambda: 3.0 * needed)
    assert free_memory("cpu", 4) == free_memory("cpu") / 4

    def processes(count, strategy=DDPStrategy):
        strategy = Mock(spec=strategy, num_processes=count)
        return Mock(device=torch.device("cpu"), strategy=strategy, world_size=count)

    asked = dataclasses.replace(
        config, network_settings=network_spec("unet").settings(plan.patch, plan.spacing, "tiny")
    )
    assert tried(asked, plan, processes(2), Progress(quiet=True)).device == "cpu"
    with pytest.raises(MedContextError, match="too little memory") as error:
        tried(asked, plan, processes(4), Progress(quiet=True))
    assert "for each of 4" in error.value.found


def test_a_share_of_the_network_is_counted_as_measured():
    """By the resident memory of 2 and of 4 processes that shared 50 million parameters on a CPU, in multiples of the
    weights (torch 2.13): 5.05 and 3.54 at the peak of a step, where one process took 5.12."""
    wide = nn.Linear(1000, 1000)
    weights = sum(p.nbytes for p in wide.parameters())
    for processes, measured in ((2, 5.05), (4, 3.54)):
        counted = sharded_memory(round(5.12 * weights), wide, config_of(), processes) / weights
        assert counted == pytest.approx(measured, abs=0.1)
