"""UNETR++: its size as published, its attention against the formula, and by which way alone a hidden image is seen."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from medcontext.errors import MedContextError
from medcontext.method.hiding import Student
from medcontext.method.masking import mask_to_voxels
from medcontext.method.presets import MethodConfig
from medcontext.networks.unetr_pp import SPEC, EfficientPairedAttention, TransformerBlock
from tests.reaching import reached_voxels

CUBE = (32, 32, 32)
ISOTROPIC = (1.0, 1.0, 1.0)
VARIANTS = {
    "synapse": {},
    "acdc": {"shared_projection": False, "convolutions": 2},
    "brats": {"projection_bias": False, "fusion": "sum"},
}


def tiny(patch=CUBE, spacing=ISOTROPIC, channels=1, **changes) -> nn.Module:
    torch.manual_seed(0)
    return SPEC.build(channels, 3, patch, SPEC.settings(patch, spacing, "tiny") | changes)


@pytest.mark.parametrize("name", ["synapse", "acdc", "brats"])
def test_parameters_as_released(name):
    published = SPEC.published[name]
    assert published.settings.items() >= VARIANTS[name].items()
    with torch.device("meta"):
        network = SPEC.build(published.channels, published.classes, published.patch, published.settings)
        logits = network(torch.empty(1, published.channels, *published.patch))
    assert sum(parameter.numel() for parameter in network.parameters()) == published.parameters
    assert logits[0].shape == (1, published.classes, *published.patch)


@pytest.mark.parametrize(
    ("name", "spacing"), [("synapse", (3.0, 0.76, 0.76)), ("acdc", (6.35, 1.52, 1.52)), ("brats", ISOTROPIC)]
)
def test_full_settings_fit_the_published_patches_nearly_as_published(name, spacing):
    published = SPEC.published[name]
    settings = SPEC.settings(published.patch, spacing, "full")
    assert settings["strides"] == published.settings["strides"]
    assert settings["widths"] == published.settings["widths"]
    assert settings["depths"] == published.settings["depths"]
    assert settings["places"][:3] == published.settings["places"][:3]
    assert set(settings) == set(published.settings)
    if name == "synapse":
        assert settings == published.settings | {"deep_supervision": False}


@pytest.mark.parametrize("scale", ["tiny", "small", "full"])
@pytest.mark.parametrize("patch", [CUBE, (10, 96, 64), (16, 8, 8), (7, 22, 13)])
def test_settings_are_plain_and_build(scale, patch):
    settings = SPEC.settings(patch, (5.0, 1.2, 1.0), scale)
    assert json.loads(json.dumps(settings)) == settings
    with torch.device("meta"):
        network = SPEC.build(3, 5, patch, settings)
        assert network(torch.empty(2, 3, *patch)).shape == (2, 5, *patch)


@pytest.mark.parametrize(
    ("patch", "spacing", "levels"),
    [
        (CUBE, ISOTROPIC, [CUBE, (8, 8, 8), (4, 4, 4)]),
        ((10, 24, 40), (4.0, 1.0, 1.0), [(10, 24, 40), (10, 6, 10), (5, 3, 5)]),
        ((7, 16, 24), (1.0, 1.0, 1.0), [(7, 16, 24), (7, 4, 6), (7, 2, 3)]),
    ],
)
def test_logits_for_any_patch_and_with_deep_supervision(patch, spacing, levels):
    image = torch.randn(2, 1, *patch)
    assert tiny(patch, spacing)(image).shape == (2, 3, *patch)
    network = tiny(patch, spacing, deep_supervision=True)
    for mode in (True, False):
        logits = network.train(mode)(image)
        assert [tuple(level.shape) for level in logits] == [(2, 3, *level) for level in levels[: len(logits)]]
        assert len(logits) == min(3, len(network.decoder) + 1)


@pytest.mark.parametrize("variant", ["acdc", "brats"])
def test_gradients_reach_every_parameter_of_the_other_variants(variant):
    network = tiny(deep_supervision=True, dropout=0.0, **VARIANTS[variant])
    for block in network.modules():
        if isinstance(block, TransformerBlock):
            nn.init.ones_(block.scale)
    sum(level.square().mean() for level in network(torch.randn(2, 1, *CUBE))).backward()
    idle = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    assert not idle


# Efficient paired attention


def attention_by_formula(attention: EfficientPairedAttention, tokens: torch.Tensor) -> torch.Tensor:
    """Head by head, as in the paper: Q_shared, K_shared, V_channel, V_spatial, of one sample ``(N, C)``."""
    count, width = tokens.shape
    q, k, v_channel, v_spatial = (tokens @ attention.project.weight.T).split(width, dim=1)
    spatial, channel = [], []
    for head in range(attention.heads):
        part = slice(head * width // attention.heads, (head + 1) * width // attention.heads)
        projected_k = attention.project_key(k[:, part].T).T
        projected_v = attention.project_value(v_spatial[:, part].T).T
        unit_q = q[:, part] / q[:, part].norm(dim=0)
        unit_k = k[:, part] / k[:, part].norm(dim=0)
        to_places = torch.softmax(unit_q @ projected_k.T * attention.spatial_temperature[head], dim=1)
        spatial.append(to_places @ projected_v)
        to_channels = torch.softmax(unit_q.T @ unit_k * attention.channel_temperature[head], dim=1)
        channel.append(v_channel[:, part] @ to_channels.T)
    together, apart = torch.cat(spatial, 1), torch.cat(channel, 1)
    assert together.shape == (count, width)
    if not attention.concatenate:
        return together + apart
    return torch.cat([attention.spatial_output(together), attention.channel_output(apart)], dim=1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_attention_is_what_the_formula_gives(variant):
    torch.manual_seed(0)
    settings = SPEC.settings(CUBE, ISOTROPIC, "tiny") | VARIANTS[variant] | {"heads": 3}
    attention = EfficientPairedAttention(12, 30, 7, settings).double().eval()
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    tokens = torch.randn(2, 30, 12, dtype=torch.float64)
    with torch.no_grad():
        expected = torch.stack([attention_by_formula(attention, sample) for sample in tokens])
        torch.testing.assert_close(attention(tokens), expected)
    assert (attention.project_key is attention.project_value) == (variant != "acdc")
    assert (attention.project_key.bias is None) == (variant == "brats")


def test_a_block_adds_attention_and_detail_and_keeps_places():
    grid, settings = (2, 3, 4), SPEC.settings(CUBE, ISOTROPIC, "tiny")
    block = TransformerBlock(8, grid, 5, settings).eval()
    nn.init.normal_(block.position)
    nn.init.zeros_(block.detail[-1].weight)
    nn.init.zeros_(block.detail[-1].bias)
    features = torch.randn(2, 8, *grid)
    with torch.no_grad():
        moved = block(features) - features
    assert torch.allclose(moved[0], moved[1], atol=1e-4)
    assert torch.allclose(moved[0, :, 1, 2, 3], block.position[0, 1 * 12 + 2 * 4 + 3], atol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_any_number_of_channels(channels):
    assert tiny(channels=channels)(torch.randn(1, channels, *CUBE)).shape == (1, 3, *CUBE)
    assert tiny(channels=channels).norms[0].num_groups == math.gcd(channels, 12)


def test_norm_is_heeded():
    kinds = {type(module) for module in tiny(norm="instance").modules()}
    assert nn.InstanceNorm3d in kinds
    assert nn.BatchNorm3d not in kinds
    assert nn.BatchNorm3d in {type(module) for module in tiny().modules()}


# Randomness


@pytest.mark.parametrize(("mode", "changes"), [(False, {}), (True, {"dropout": 0.0})])
def test_nothing_is_drawn_but_for_dropout(mode, changes):
    network, image = tiny(**changes).train(mode), torch.randn(1, 1, *CUBE)
    before = torch.random.get_rng_state()
    with torch.no_grad():
        assert torch.equal(network(image), network(image))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_dropout_is_heeded_in_train_mode():
    network, image = tiny(dropout=0.5).train(), torch.randn(1, 1, *CUBE)
    with torch.no_grad():
        assert not torch.equal(network(image), network(image))
        attention, tokens = network.encoder[0][0].attention, torch.randn(1, 512, 12)
        assert not torch.equal(attention(tokens), attention(tokens))


# Hidden tokens


def test_hidden_tokens_are_seen_by_the_first_skip_only():
    config = MethodConfig(hide="tokens", mask_patch=(8, 8, 8))
    network = tiny().eval()
    student = Student(network, config, 1, SPEC.patch_embedding)
    mask = torch.rand(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    image = torch.randn(2, 1, *CUBE)
    hidden = mask_to_voxels(mask, config.mask_patch, CUBE)[:, 0]
    assert reached_voxels(student, image, mask)[hidden].any()
    network.encoder1.register_forward_hook(lambda module, inputs, output: output.detach())
    reached = reached_voxels(student, image, mask)
    assert not reached[hidden].any()
    assert reached[~hidden].float().mean() > 0.99


# Patches, precision


@pytest.mark.parametrize(
    ("patch", "nearest"),
    [((30, 32, 40), r"\[32, 32, 32\]"), ((8, 32, 32), r"\[16, 32, 32\]"), ((16, 16, 16), r"\[16, 16, 32\]")],
    ids=["no whole tokens", "small", "one token"],
)
def test_impossible_patches_are_refused_with_the_nearest(patch, nearest):
    with pytest.raises(MedContextError, match=nearest):
        SPEC.build(1, 3, patch, SPEC.settings(CUBE, ISOTROPIC, "tiny"))


def test_another_patch_than_the_one_it_was_built_for_is_refused():
    with pytest.raises(MedContextError, match=r"\[32, 32, 48\].*\[32, 32, 32\]|expected: \[32, 32, 32\]"):
        tiny()(torch.randn(1, 1, 32, 32, 48))


def test_bf16_autocast():
    # Not 32 slices: oneDNN 3.12 gets bf16 weight gradients of 3^3 convolutions wrong where 2 slices are left.
    patch = (48, 32, 32)
    network, image = tiny(patch).eval(), torch.randn(2, 1, *patch)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(image)
    logits.float().square().mean().backward()
    assert all(value.grad.isfinite().all() for value in network.parameters())
    with torch.no_grad():
        exact = network(image)
    assert (logits - exact).abs().max() < 0.05 * exact.abs().max()
