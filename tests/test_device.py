"""Devices and precision are chosen from what is there, and bf16 is not trusted where it computes nonsense."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from medcontext.errors import MedContextError
from medcontext.progress import Progress
from medcontext.training import device, setup
from medcontext.training.config import TrainConfig
from medcontext.training.distribution import device_of
from tests.predicting import plan


def test_a_device_that_is_not_there_is_refused():
    assert device.choose_device("cpu") == "cpu"
    with pytest.raises(MedContextError, match="no such device"):
        device.choose_device("cuda:99")


def test_there_is_one_mps_whatever_fabric_calls_it(monkeypatch):
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert [device.choose_device(asked) for asked in ("mps", "mps:0")] == ["mps", "mps"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert device.choose_device("auto") == "mps"
    for name, expected in (("mps:0", "mps"), ("cuda:1", "cuda:1"), ("cpu", "cpu")):
        assert device_of(SimpleNamespace(device=torch.device(name))) == expected


def test_precision_is_as_asked_or_as_the_hardware_has_it(monkeypatch):
    assert device.choose_precision("fp32", "cpu") == "fp32"
    assert device.choose_precision("bf16", "cpu") == "bf16"
    for has in (True, False):
        monkeypatch.setattr(device, "_cpu_has_bf16", lambda has=has: has)
        assert device.choose_precision("auto", "cpu") == ("bf16" if has else "fp32")
        # Older CUDA devices emulate bf16, slower than they compute in fp16.
        monkeypatch.setattr(
            "torch.cuda.is_bf16_supported", lambda including_emulation=True, has=has: has or including_emulation
        )
        assert device.choose_precision("auto", "cuda:0") == ("bf16" if has else "fp16")
    assert device.choose_precision("auto", "mps") == "fp32"


def test_convolutions_of_few_slices_are_tried_against_float32(monkeypatch):
    network = nn.Sequential(nn.Conv3d(1, 16, 3, (4, 1, 1), 1), nn.Conv3d(16, 16, 3, 1, 1))
    tried = []
    honest = device._same_gradient
    monkeypatch.setattr(
        device, "_same_gradient", lambda module, shape: tried.append(tuple(shape)) or honest(module, shape)
    )
    held = device.bf16_gradients_hold(network, torch.zeros(2, 1, 12, 6, 6))
    assert tried == [(2, 16, 3, 6, 6)]
    assert held
    assert not network[0]._forward_hooks

    def wrong(image, weight, *rest):
        out = nn.functional.conv_transpose3d(image, weight.transpose(0, 1)) if weight.dtype == torch.bfloat16 else None
        return convolution(image, weight, *rest) if out is None else out

    convolution = nn.functional.conv3d
    monkeypatch.setattr(nn.functional, "conv3d", wrong)
    assert not honest(nn.Conv3d(16, 16, 3, 1, 1), torch.Size((2, 16, 3, 6, 6)))


@pytest.mark.parametrize(
    ("asked", "holds", "chosen"), [("auto", True, "bf16"), ("auto", False, "fp32"), ("bf16", False, "bf16")]
)
def test_bf16_gives_way_where_its_gradients_are_wrong_unless_it_is_asked_for(asked, holds, chosen, monkeypatch):
    monkeypatch.setattr(device, "_cpu_has_bf16", lambda: True)
    monkeypatch.setattr(setup, "bf16_gradients_hold", lambda network, image: holds)
    said = []
    monkeypatch.setattr(Progress, "say", lambda self, text: said.append(text))
    config = TrainConfig(device="cpu", precision=asked)
    fabric = Fabric(accelerator="cpu", devices=1)
    resolved = setup.tried(config, plan(patch=(16, 16, 16)), fabric, Progress(quiet=True))
    assert resolved.precision == chosen
    assert any("wrongly in bf16" in text for text in said) is not holds
