"""Whole trainings, step by step, against a reference in float64 that is written from the formulas alone.

For every preset and every hiding place: the losses, every gradient, the weights after each optimiser step, and the
teacher after each of its updates; for ``official`` these are the formulas of the released code (UNETR path): one tube
mask of ratio 0.6 for the batch, the token over the position, DiceCE with squares and background, a mean squared error
over the norm of the whole batch, and a teacher that follows once an epoch with the momentum of a table that restarts.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medcontext.method.objective import MedContext
from medcontext.method.presets import PRESETS, MethodConfig
from tests.formulas import dice_ce

SIZE, TOKEN = (8, 8, 8), 4
STEPS, PER_EPOCH, RATE = 5, 2, 0.05


class Tokens(nn.Module):
    """UNETR in miniature: an embedding, a position, something that mixes tokens, and a skip from the raw image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv3d(2, 5, TOKEN, TOKEN)
        self.position = nn.Parameter(torch.randn(1, 5, 2, 2, 2))
        self.positioned = Passage(5)
        self.mix = nn.Conv3d(5, 5, 3, padding=1)
        self.decode = nn.ConvTranspose3d(5, 3, TOKEN, TOKEN)
        self.skip = nn.Conv3d(2, 3, 3, padding=1)

    def forward(self, image):
        tokens = self.positioned(self.embed(image) + self.position)
        return self.decode(torch.tanh(self.mix(tokens))) + self.skip(image)


class Passage(nn.Conv3d):
    """Lets through what it is given; a convolution only to tell its width."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 1)
        self.requires_grad_(False)

    def forward(self, tokens):
        return tokens * 1


def network() -> Tokens:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tokens()


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(2, 2, *SIZE, generator=generator), torch.randint(0, 3, (2, *SIZE), generator=generator))
        for _ in range(STEPS)
    ]


def upsampled(mask: torch.Tensor, step: int) -> torch.Tensor:
    return F.interpolate(mask[:, None].double(), scale_factor=step, mode="nearest") > 0.5


def masked_pass(config: MethodConfig, net: Tokens, image, mask, token, value, hide: str):
    """The masked student from its definition."""
    hidden = upsampled(mask, TOKEN)
    if hide != "tokens":
        shown = []
        for b in range(len(image)):
            for c in range(2):
                visible = image[b, c][~hidden[b, 0]].mean()
                stand_in = visible if config.fill == "mean" else value[c]
                shown.append(torch.where(hidden[b, 0], stand_in, image[b, c]))
        image = torch.stack(shown).view_as(image)
    tokens = net.embed(image)
    marked = token[None, :, None, None, None]
    if hide != "voxels" and config.token_position == "before":
        tokens = torch.where(mask[:, None], marked, tokens)
    tokens = tokens + net.position
    if hide != "voxels" and config.token_position == "after":
        tokens = torch.where(mask[:, None], marked, tokens)
    return net.decode(torch.tanh(net.mix(tokens))) + net.skip(image)


def agreement(config: MethodConfig, masked, target):
    if config.consistency == "paper":
        return ((masked - target) ** 2).mean() / (target**2).sum().sqrt()
    p, q = masked.softmax(1), target.softmax(1)
    return (q * (q.log() - p.log())).sum(1).mean()


def momentum(config: MethodConfig, step: int) -> float:
    if config.momentum_schedule == "cosine":
        return 1 - 0.5 * (1 - config.momentum) * (1 + math.cos(math.pi * step / STEPS))
    if config.momentum_schedule == "restarting":
        return float(torch.linspace(0, config.momentum, 50 * PER_EPOCH, dtype=torch.float64)[step % PER_EPOCH])
    return min(config.momentum, step / (step + 1))


def test_a_field_that_is_set_in_python_changes_the_default_preset():
    assert MethodConfig(mask_patch=(4, 4, 4)) == replace(PRESETS["medcontext"], mask_patch=(4, 4, 4))


@settings(max_examples=200, deadline=None)
@given(st.tuples(*[st.floats(0.05, 20.0)] * 3))
def test_what_the_default_preset_hides_is_a_cube_in_mm(spacing):
    """To a factor of the root of 2 along each axis, but for voxels that are longer than it."""
    config = PRESETS["medcontext"].for_spacing(spacing)
    width = 8 * min(spacing)
    assert max(size for size, step in zip(config.mask_patch, spacing, strict=True) if step == min(spacing)) == 8
    for size, step in zip(config.mask_patch, spacing, strict=True):
        assert size in (1, 2, 4, 8)
        assert 0.7071 <= size * step / width <= 1.4143 or (size == 1 and step > width)
    assert config.for_spacing((1.0, 2.0, 3.0)) is config, "what is set stays"


def test_hidden_patches_where_the_spacing_is_not_known_or_a_size_is_set():
    assert PRESETS["medcontext"].hidden_patch == (8, 8, 8)
    assert PRESETS["medcontext"].for_spacing((8.0, 2.5, 2.5)).hidden_patch == (2, 8, 8)
    assert PRESETS["medcontext"].for_spacing((1.5, 1.0, 1.0)).hidden_patch == (4, 8, 8)
    for name in ("paper", "official"):
        assert PRESETS[name].for_spacing((8.0, 2.5, 2.5)).hidden_patch == (16, 16, 16)


@pytest.mark.parametrize("hide", ["voxels", "tokens", "both"])
@pytest.mark.parametrize("preset", ["medcontext", "paper", "official"])
def test_a_training_is_its_formulas_step_by_step(preset, hide):
    config = replace(PRESETS[preset], mask_patch=(TOKEN, TOKEN, TOKEN), hide=hide)
    net = network()
    method = MedContext(
        net,
        config,
        total_steps=STEPS,
        steps_per_epoch=PER_EPOCH,
        channels=2,
        patch_embedding="embed",
        positioned_embedding="positioned",
    )
    masks = iter([method.draw_mask(image) for image, _ in batches()])
    method._generator.manual_seed(0)
    optimizer = torch.optim.SGD(method.student.parameters(), lr=RATE)

    reference, teacher = copy.deepcopy(net).double(), copy.deepcopy(net).double()
    token = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    value = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    for step, (image, label) in enumerate(batches()):
        mask = next(masks)
        if preset == "official":
            assert torch.equal(mask[0], mask[1])
            assert torch.equal(mask[..., 0], mask[..., 1])
        squared = config.loss == "dice_ce_squared"
        clean = dice_ce(reference(image.double()), label, squared=squared)
        z_m = masked_pass(config, reference, image.double(), mask, token, value, hide)
        with torch.no_grad():
            z_t = teacher(image.double())
        terms = {"masked": dice_ce(z_m, label, squared=squared)}
        if preset != "medcontext":
            terms |= {"consistency": agreement(config, z_m, z_t), "clean": clean}
        weights = {"consistency": config.consistency_weight}
        terms["total"] = sum(weights.get(name, 1.0) * term for name, term in terms.items())
        leaves = [*(p for p in reference.parameters() if p.requires_grad), token, value]
        expected = torch.autograd.grad(terms["total"], leaves, allow_unused=True)

        losses = method(image, label, backward=torch.Tensor.backward)
        for name, term in terms.items():
            assert losses[name].item() == pytest.approx(term.item(), rel=1e-4, abs=1e-8), (step, name)
        learned = [getattr(method.student, name, None) for name in ("mask_token", "hidden_value")]
        mine = [*(p for p in net.parameters() if p.requires_grad), *learned]
        for own, other in zip(mine, expected, strict=True):
            if own is None or other is None:
                assert own is None
                assert other is None
            else:
                assert torch.allclose(own.grad.double(), other, rtol=2e-3, atol=1e-6)
        optimizer.step()
        optimizer.zero_grad()
        method.after_step()
        with torch.no_grad():
            for leaf, gradient in zip(leaves, expected, strict=True):
                if gradient is not None:
                    leaf -= RATE * gradient
            if preset != "official" or (step + 1) % PER_EPOCH == 0:
                m = momentum(config, step)
                for average, weight in zip(teacher.parameters(), reference.parameters(), strict=True):
                    average.mul_(m).add_((1 - m) * weight)
        for average, other in zip(method.teacher._network.parameters(), teacher.parameters(), strict=True):
            assert torch.allclose(average.double(), other, atol=1e-5)


def test_the_official_teacher_is_almost_a_copy_and_the_papers_is_not():
    """Once more what the table of the method says: 0.02 at the most, against 0.996."""
    gaps = {}
    for preset in ("paper", "official"):
        method = MedContext(
            network(), replace(PRESETS[preset], hide="voxels"), total_steps=100, steps_per_epoch=PER_EPOCH
        )
        with torch.no_grad():
            method.network.position.add_(1.0)
        before = method.teacher.network.position.clone()
        for _ in range(PER_EPOCH):
            method.after_step()
        gaps[preset] = ((method.teacher.network.position - before) / 1.0).mean().item()
    assert gaps["official"] > 0.98
    assert gaps["paper"] < 0.01
