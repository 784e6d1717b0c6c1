"""Regions that contain one another: an output for each, from the loss to the diagnostics."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from monai.losses.dice import DiceLoss
from torch import nn

from medcontext.losses.regions import dice_bce, in_regions
from medcontext.method.consistency import consistency
from medcontext.method.diagnostics import hard_dice, teacher_state
from medcontext.method.objective import MedContext
from medcontext.method.presets import MethodConfig
from tests.conftest import THREE_PASSES

MEMBERSHIP = torch.tensor([[0, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1]], dtype=torch.bool)
SIZE = (3, 4, 5)


def drawn(seed: int = 0, kind: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 3, *SIZE, generator=generator, dtype=kind)
    return logits, torch.randint(0, 4, (2, *SIZE), generator=generator)


def one_by_one(target: torch.Tensor) -> torch.Tensor:
    """Membership voxel by voxel, in words: all three labels; 1 and 3; 3 alone."""
    return torch.stack([target > 0, (target == 1) | (target == 3), target == 3], dim=1)


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_monais_dice_plus_binary_cross_entropy(seed):
    logits, target = drawn(seed)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    true = one_by_one(target).double()
    dice = DiceLoss(sigmoid=True, smooth_nr=1e-5, smooth_dr=1e-5)
    expected = dice(theirs, true) + F.binary_cross_entropy_with_logits(theirs, true)
    found = dice_bce(ours, target, MEMBERSHIP)
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert torch.equal(in_regions(target, MEMBERSHIP), one_by_one(target))


def test_what_is_ignored_is_as_if_it_were_not_there():
    logits, target = drawn()
    target[:, :, :, 3:] = -1
    logits.requires_grad_()
    cut = logits.detach()[..., :3].clone().requires_grad_()
    found, expected = dice_bce(logits, target, MEMBERSHIP), dice_bce(cut, target[..., :3], MEMBERSHIP)
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    assert not logits.grad[..., 3:].any()
    torch.testing.assert_close(logits.grad[..., :3], cut.grad)


def test_half_precision_logits_of_any_size_are_safe():
    logits, target = drawn(kind=torch.float32)
    for kind, size in ((torch.float16, 3e3), (torch.bfloat16, 1e6)):
        loss = dice_bce((logits * size).to(kind), target, MEMBERSHIP)
        assert loss.dtype == torch.float32
        assert loss.isfinite()


def test_dice_is_counted_region_by_region():
    logits, target = drawn()
    hidden = torch.rand(target.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    target[0, 0] = -1
    found = hard_dice(logits, target, hidden, MEMBERSHIP)
    for k in range(3):
        there = hidden & (target >= 0)
        a, b = (logits[:, k] > 0)[there], one_by_one(target)[:, k][there]
        assert found[k].item() == pytest.approx(2 * (a & b).sum().item() / (a.sum() + b.sum()).item())


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_divergence_is_between_coins(temperature):
    student, teacher = drawn(0)[0], drawn(1)[0]
    config = MethodConfig(consistency="kl", temperature=temperature)
    hidden = torch.ones(2, 1, *SIZE, dtype=torch.bool)
    found = consistency(config, student, teacher, hidden, regions=True)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Bernoulli(logits=teacher / temperature),
        torch.distributions.Bernoulli(logits=student / temperature),
    )
    torch.testing.assert_close(found.double(), temperature**2 * expected.sum(1).mean(), atol=1e-6, rtol=1e-6)
    assert consistency(config, teacher, teacher, hidden, regions=True).item() == pytest.approx(0, abs=1e-6)


def test_consistency_by_dice_compares_sigmoids_and_confidence_is_the_least_sure_regions():
    student, teacher = drawn(0)[0], drawn(1)[0]
    hidden = torch.ones(2, 1, *SIZE, dtype=torch.bool)
    p, q = student.sigmoid(), teacher.sigmoid()
    each = 1 - 2 * (p * q).sum((2, 3, 4)) / ((p**2).sum((2, 3, 4)) + (q**2).sum((2, 3, 4)))
    found = consistency(MethodConfig(consistency="dice"), student, teacher, hidden, regions=True)
    assert found.item() == pytest.approx(each.mean().item(), abs=1e-5)
    config = MethodConfig(consistency="kl", confidence="voxel", confidence_threshold=0.9)
    sure = (torch.maximum(q, 1 - q) >= 0.9).all(1)
    assert 0 < sure.sum() < sure.numel()
    divergence = torch.distributions.kl_divergence(
        torch.distributions.Bernoulli(logits=teacher), torch.distributions.Bernoulli(logits=student)
    ).sum(1)
    found = consistency(config, student, teacher, hidden, regions=True)
    assert found.item() == pytest.approx((sure * divergence).mean().item(), rel=1e-5)


def test_a_teacher_that_says_the_same_everywhere_is_collapsed():
    target = drawn()[1]
    healthy = (one_by_one(target).double() - 0.5) * 20
    state = teacher_state(healthy, target, regions=True)
    assert state["collapsed"] == 0
    assert state["teacher_occupancy/2"].item() == pytest.approx((target == 3).double().mean().item())
    p = torch.tensor(0.3).double()
    flat = torch.full_like(healthy, math.log(0.3 / 0.7))
    entropy = -(p * p.log2() + (1 - p) * (1 - p).log2())
    assert teacher_state(flat, target, regions=True)["teacher_entropy"].item() == pytest.approx(
        entropy.item(), abs=1e-6
    )
    assert teacher_state(flat, target, regions=True)["collapsed"] == 1
    assert teacher_state(torch.zeros_like(flat), target, regions=True)["collapsed"] == 1


def test_a_whole_step_learns_regions():
    torch.manual_seed(0)
    network = nn.Conv3d(1, 3, 3, padding=1)
    method = MedContext(network, replace(THREE_PASSES, mask_patch=(2, 2, 2)), total_steps=60, membership=MEMBERSHIP)
    optimizer = torch.optim.Adam(method.student.parameters(), lr=0.05)
    target = torch.zeros(1, 8, 8, 8, dtype=torch.int64)
    target[:, 2:6, 2:6, 2:6], target[:, 3:5, 3:5, 3:5] = 2, 3
    image = target.float()[:, None]
    for _ in range(60):
        losses = method(image, target, diagnose=True)
        losses["total"].backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step()
    assert {"clean", "masked", "consistency", "context_score", "teacher_entropy"} <= set(losses)
    assert hard_dice(network(image), target, membership=MEMBERSHIP)[[0, 2]].min() > 0.9
