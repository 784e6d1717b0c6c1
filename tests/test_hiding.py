"""Which hidden voxels can still change what a network says: none when voxels are hidden, UNETR's skip for tokens."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medcontext.errors import MedContextError
from medcontext.method.hiding import Student, fill_voxels
from medcontext.method.masking import draw_mask, mask_grid, mask_to_voxels
from medcontext.method.presets import MethodConfig
from medcontext.method.tokens import mask_over_tokens
from medcontext.networks.registry import NETWORKS, build_network, network_spec
from tests.reaching import reached_voxels

PATCH = (32, 32, 32)


def small(name: str) -> nn.Module:
    settings = network_spec(name).settings(PATCH, (1, 1, 1), "tiny")
    return build_network(name, 2, 3, PATCH, settings, seed=0).eval()


def mask_for(config: MethodConfig, batch: int = 2) -> torch.Tensor:
    return draw_mask(config, batch, mask_grid(PATCH, config.hidden_patch), torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("fill", ["zero", "learnable"])
def test_no_hidden_voxel_reaches_any_network(name, fill):
    config = MethodConfig(hide="voxels", fill=fill, mask_patch=(8, 8, 8))
    mask = mask_for(config)
    image = torch.randn(2, 2, *PATCH)
    reached = reached_voxels(Student(small(name), config, 2, None), image, mask)
    hidden = mask_to_voxels(mask, config.hidden_patch, PATCH)[:, 0]
    assert not reached[hidden].any()
    assert reached[~hidden].float().mean() > 0.9


@pytest.mark.parametrize("name", sorted(name for name, spec in NETWORKS.items() if spec.patch_embedding))
def test_hiding_both_leaves_no_path_whatever_the_embedding(name):
    config = MethodConfig(hide="both", fill="zero", mask_patch=(16, 16, 16), ratio=0.5)
    student = Student(small(name), config, 2, network_spec(name).patch_embedding)
    mask = mask_for(config)
    assert student.hides == "both"
    reached = reached_voxels(student, torch.randn(2, 2, *PATCH), mask)
    hidden = mask_to_voxels(mask, config.hidden_patch, PATCH)[:, 0]
    assert not reached[hidden].any()
    assert reached[~hidden].float().mean() > 0.9


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("fill", ["mean", "noise"])
def test_hidden_voxels_may_hold_anything(name, fill):
    config = MethodConfig(hide="voxels", fill=fill)
    mask, student = mask_for(config), Student(small(name), config, 2, None)
    hidden = mask_to_voxels(mask, config.hidden_patch, PATCH)
    image, noise = torch.randn(2, 2, 2, *PATCH)
    with torch.no_grad():
        assert torch.equal(student(image, mask, noise), student(image.masked_fill(hidden, 1e6), mask, noise))


def test_hidden_tokens_of_unetr_reach_it_by_the_first_skip_only():
    config = MethodConfig(hide="tokens", mask="tube", mask_patch=(16, 16, 16), ratio=0.5)
    network, mask = small("unetr"), mask_for(config)
    student = Student(network, config, 2, network_spec("unetr").patch_embedding)
    image = torch.randn(2, 2, *PATCH)
    hidden = mask_to_voxels(mask, config.hidden_patch, PATCH)[:, 0]
    assert reached_voxels(student, image, mask)[hidden].any()
    network.encoder1.register_forward_hook(lambda module, inputs, output: output.detach())
    reached = reached_voxels(student, image, mask)
    assert not reached[hidden].any()
    assert reached[~hidden].all()


def test_hidden_tokens_keep_their_position():
    config = MethodConfig(hide="tokens", mask_patch=(16, 16, 16), ratio=0.5)
    network, mask = small("unetr"), mask_for(config)
    student = Student(network, config, 2, network_spec("unetr").patch_embedding)
    nn.init.constant_(network.vit.patch_embedding.position_embeddings, 3.0)
    nn.init.constant_(student.mask_token, 5.0)
    seen = []
    network.vit.patch_embedding.register_forward_hook(lambda module, inputs, output: seen.append(output))
    student(torch.randn(2, 2, *PATCH), mask)
    assert torch.equal((seen[0] == 8.0).all(-1), mask.flatten(1))


def test_a_student_shown_everything_is_the_network():
    network = small("unetr")
    student = Student(network, MethodConfig(hide="tokens"), 2, network_spec("unetr").patch_embedding)
    image = torch.randn(2, 2, *PATCH)
    with torch.no_grad():
        assert torch.equal(student(image), network(image))
        nothing = torch.zeros_like(mask_for(MethodConfig()))
        assert torch.equal(Student(network, MethodConfig(), 2, None)(image, nothing), network(image))
    assert not network.vit.patch_embedding.patch_embeddings._forward_hooks


@pytest.mark.parametrize(("name", "where"), [("unet", "voxels"), ("unetr", "tokens")])
def test_auto_hides_tokens_where_there_are_any(name, where):
    student = Student(small(name), MethodConfig(hide="auto"), 2, network_spec(name).patch_embedding)
    assert student.hides == where


@pytest.mark.parametrize("fill", ["mean", "noise"])
def test_fill_by_the_mean_of_what_is_visible_and_noise_of_its_deviation(fill):
    image, noise = torch.randn(2, 2, 3, 4, 5, 6, dtype=torch.float64)
    image = 2 + 3 * image
    hidden = torch.rand(2, 1, 4, 5, 6) < 0.4
    filled = fill_voxels(image, hidden, fill, noise=noise)
    for sample in range(2):
        for channel in range(3):
            there = hidden[sample, 0]
            visible = image[sample, channel][~there]
            drawn = visible.std(correction=0) * noise[sample, channel][there] if fill == "noise" else 0
            expected = visible.mean() + drawn
            assert torch.allclose(filled[sample, channel][there], expected, atol=1e-6)
            assert torch.equal(filled[sample, channel][~there], image[sample, channel][~there])


def test_learned_values_get_a_gradient_per_channel():
    student = Student(nn.Identity(), MethodConfig(fill="learnable"), 2, None)
    mask = mask_for(MethodConfig())
    student(torch.randn(2, 2, *PATCH), mask).sum().backward()
    hidden = mask_to_voxels(mask, (8, 8, 8), PATCH).sum()
    assert student.hidden_value.grad.tolist() == [float(hidden)] * 2


def test_a_patch_that_is_no_whole_number_of_tokens_is_refused_with_the_nearest():
    tokens = torch.zeros(1, 8, 2, 2, 2)
    with pytest.raises(MedContextError, match=r"\[16, 16, 16\]"):
        mask_over_tokens(torch.zeros(1, 4, 4, 4, dtype=torch.bool), (8, 8, 8), PATCH, tokens, nn.Conv3d(1, 8, 16, 16))


def test_tokens_of_a_network_without_any_are_refused():
    with pytest.raises(MedContextError, match="hide=voxels"):
        Student(small("unet"), MethodConfig(hide="tokens"), 2, None)
