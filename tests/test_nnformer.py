"""nnFormer: its size as published, its attention against brute force, and what of a hidden image it can still see."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medcontext.errors import MedContextError
from medcontext.method.hiding import Student
from medcontext.method.presets import MethodConfig
from medcontext.networks.nnformer import SPEC, DownSampling, NNFormer, StochasticDepth, TransformerBlock
from medcontext.networks.tokens import fit_strides, token_grids
from medcontext.networks.volume_attention import VolumeAttention, relative_index
from tests.reaching import reached_voxels

CUBE = (32, 32, 32)
ISOTROPIC = (1.0, 1.0, 1.0)


def tiny(patch=CUBE, spacing=ISOTROPIC, channels=1, **changes) -> nn.Module:
    torch.manual_seed(0)
    return SPEC.build(channels, 3, patch, SPEC.settings(patch, spacing, "tiny") | changes)


def small_acdc(**changes) -> nn.Module:
    """The ACDC setting, strides, windows and all, with few features."""
    torch.manual_seed(0)
    settings = SPEC.published["acdc"].settings | {"embedding": 8, "heads": [1, 2, 2, 4], "decoder_heads": [1, 2, 2]}
    return SPEC.build(1, 4, (14, 32, 32), settings | changes)


@pytest.mark.parametrize("name", ["synapse", "acdc", "brats"])
def test_parameters_as_released(name):
    published = SPEC.published[name]
    with torch.device("meta"):
        network = SPEC.build(published.channels, published.classes, published.patch, published.settings)
        logits = network(torch.empty(1, published.channels, *published.patch))
    assert sum(parameter.numel() for parameter in network.parameters()) == published.parameters
    assert logits[0].shape == (1, published.classes, *published.patch)
    assert len(logits) == 3
    assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}


@pytest.mark.parametrize(
    ("name", "spacing"), [("synapse", (3.0, 0.76, 0.76)), ("brats", ISOTROPIC)], ids=["synapse", "brats"]
)
def test_full_settings_fit_the_published_patches_as_published(name, spacing):
    published = SPEC.published[name]
    settings = SPEC.settings(published.patch, spacing, "full")
    for key in ("strides", "windows", "depths", "mlp_ratio", "stochastic_depth", "dropout"):
        assert settings[key] == published.settings[key], key
    assert set(settings) == set(published.settings)


@pytest.mark.parametrize("scale", ["tiny", "small", "full"])
@pytest.mark.parametrize("patch", [CUBE, (10, 160, 96), (16, 8, 8), (7, 22, 41)])
def test_settings_are_plain_and_build(scale, patch):
    settings = SPEC.settings(patch, (5.0, 1.2, 1.0), scale)
    assert json.loads(json.dumps(settings)) == settings
    with torch.device("meta"):
        network = SPEC.build(2, 5, patch, settings)
        assert network(torch.empty(2, 2, *patch)).shape == (2, 5, *patch)


@pytest.mark.parametrize(
    ("patch", "spacing", "strides"),
    [
        ((64, 128, 128), (3.0, 0.76, 0.76), [[2, 4, 4], [2, 2, 2], [2, 2, 2], [2, 2, 2]]),
        ((14, 160, 160), (6.35, 1.52, 1.52), [[1, 4, 4], [2, 2, 2], [1, 2, 2]]),
        ((128, 128, 128), ISOTROPIC, [[4, 4, 4], [2, 2, 2], [2, 2, 2], [2, 2, 2]]),
        ((8, 8, 8), ISOTROPIC, [[4, 4, 4], [1, 1, 1]]),
        ((4, 64, 64), (0.5, 1.0, 1.0), [[2, 2, 2], [1, 2, 2], [1, 2, 2], [1, 2, 2]]),
    ],
)
def test_strides_make_cubes_of_what_can_be_halved(patch, spacing, strides):
    found = fit_strides(patch, spacing, 4)
    assert found[: len(strides)] == strides
    assert all(min(grid) >= 1 for grid in token_grids(patch, found))
    whole = [math.prod(steps) for steps in zip(*found, strict=True)]
    assert all(size % step == 0 for size, step in zip(patch, whole, strict=True))


@pytest.mark.parametrize(
    ("patch", "spacing"),
    [(CUBE, ISOTROPIC), ((24, 40, 56), ISOTROPIC), ((10, 36, 44), (4.0, 1.0, 1.0)), ((7, 20, 18), ISOTROPIC)],
)
def test_logits_for_any_patch_and_with_deep_supervision(patch, spacing):
    image = torch.randn(2, 1, *patch)
    assert tiny(patch, spacing)(image).shape == (2, 3, *patch)
    network = tiny(patch, spacing, deep_supervision=True)
    strides = network.strides
    grids = token_grids(patch, strides)
    expected = [(2, 3, *(n * s for n, s in zip(grid, strides[0], strict=True))) for grid in grids[:-1]]
    for mode in (True, False):
        logits = network.train(mode)(image)
        assert [tuple(level.shape) for level in logits] == expected
    assert expected[0] == (2, 3, *patch)


def test_odd_numbers_of_tokens_are_halved_and_restored():
    logits = small_acdc()(torch.randn(1, 1, 14, 32, 32))
    assert [tuple(level.shape[2:]) for level in logits] == [(14, 32, 32), (14, 16, 16), (7, 8, 8)]


def test_a_network_takes_other_patches_than_the_one_it_was_built_for():
    assert tiny()(torch.randn(1, 1, 20, 48, 36)).shape == (1, 3, 20, 48, 36)


def test_gradients_reach_every_parameter_of_the_acdc_setting():
    network = small_acdc(deep_supervision=True, stochastic_depth=0.0)
    sum(level.square().mean() for level in network(torch.randn(2, 1, 14, 32, 32))).backward()
    idle = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    assert not idle


# Attention within local volumes


def volume_of(place, window, shift):
    return tuple((p - s) // w for p, w, s in zip(place, window, shift, strict=True))


def attention_by_brute_force(attention, grid, query, key, value):
    """Token by token, head by head, in the words of the paper: no rolling, no padding, no masks."""
    window, heads = attention.window, attention.heads
    shift = [w // 2 if attention.shifted and n > w else 0 for n, w in zip(grid, window, strict=True)]
    table = attention.relative_bias.detach().reshape(*(2 * w - 1 for w in window), heads)
    places = list(itertools.product(*(range(count) for count in grid)))
    width = query.shape[-1] // heads
    result = torch.zeros_like(value)
    for here in places:
        others = [there for there in places if volume_of(there, window, shift) == volume_of(here, window, shift)]
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = [
                query[0][here][part] @ key[0][there][part] / math.sqrt(width)
                + table[tuple(a - b + w - 1 for a, b, w in zip(here, there, window, strict=True))][head]
                for there in others
            ]
            weights = torch.stack(scores).softmax(0)
            result[0][here][part] = sum(w * value[0][there][part] for w, there in zip(weights, others, strict=True))
    return result


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
    ("grid", "window"),
    [((4, 4, 2), (2, 2, 2)), ((5, 4, 3), (2, 4, 2)), ((3, 2, 7), (3, 5, 3)), ((2, 3, 3), (2, 3, 3))],
    ids=["divides", "filled up", "larger than the grid", "global"],
)
def test_attention_is_what_brute_force_gives(grid, window, shifted):
    torch.manual_seed(1)
    attention = VolumeAttention(2, window, shifted, dropout=0.0).double()
    nn.init.normal_(attention.relative_bias)
    query, key, value = torch.randn(3, 1, *grid, 6, dtype=torch.float64)
    expected = attention_by_brute_force(attention, grid, query, key, value)
    with torch.no_grad():
        torch.testing.assert_close(attention(query, key, value), expected)


@pytest.mark.parametrize("shifted", [False, True])
def test_a_token_attends_to_exactly_the_tokens_of_its_volume(shifted):
    grid, window = (5, 4, 6), (2, 4, 4)
    shift = (1, 0, 2) if shifted else (0, 0, 0)
    attention = VolumeAttention(1, window, shifted, dropout=0.0)
    tokens = torch.randn(1, *grid, 4, requires_grad=True)
    mixed = attention(tokens, tokens, tokens)
    for here in itertools.product(*(range(count) for count in grid)):
        (gradient,) = torch.autograd.grad(mixed[0][here].sum(), tokens, retain_graph=True)
        seen = {tuple(place) for place in gradient[0].abs().sum(-1).nonzero().tolist()}
        places = itertools.product(*(range(count) for count in grid))
        assert seen == {there for there in places if volume_of(there, window, shift) == volume_of(here, window, shift)}


def test_every_offset_has_a_bias_of_its_own():
    window = (3, 2, 4)
    index = relative_index(window)
    places = np.array(list(itertools.product(*(range(side) for side in window))))
    offsets = {}
    for (i, here), (j, there) in itertools.product(enumerate(places), enumerate(places)):
        offsets.setdefault(tuple(here - there), set()).add(int(index[i, j]))
    assert all(len(rows) == 1 for rows in offsets.values())
    assert sorted(row for rows in offsets.values() for row in rows) == list(range(5 * 3 * 7))


def test_samples_of_a_batch_do_not_see_each_other():
    network, image = tiny((24, 24, 24)).eval(), torch.randn(2, 1, 24, 24, 24)
    with torch.no_grad():
        torch.testing.assert_close(network(image)[1:], network(image[1:]), atol=1e-5, rtol=1e-4)


def test_skip_attention_asks_with_the_decoder_and_answers_with_the_encoder():
    torch.manual_seed(2)
    settings = {"dropout": 0.0, "mlp_ratio": 2}
    attention = VolumeAttention(1, (2, 1, 2), False, 0.0)
    block = TransformerBlock(6, attention, True, 0.0, settings)
    tokens, skip = torch.randn(2, 1, 2, 1, 2, 6)
    norm = block.norm1
    key, value = block.project(norm(skip)).reshape(4, 12).split(6, dim=-1)
    bias = attention.relative_bias[attention.relative_index][..., 0]
    weights = (norm(tokens).reshape(4, 6) @ key.T / math.sqrt(6) + bias).softmax(-1)
    expected = tokens + skip + block.output(weights @ value).reshape(tokens.shape)
    expected = expected + block.mlp(block.norm2(expected))
    torch.testing.assert_close(block(tokens, skip), expected)


def test_every_second_block_is_shifted_and_the_decoder_starts_with_skip_attention():
    network = tiny(depths=[3, 3, 3])
    for stages, expected in ((network.encoder, [False, True, False]), (network.decoder, [False, True, True])):
        for stage in stages:
            assert [block.attention.shifted for block in stage.blocks] == expected
            projections = [block.project.out_features // block.project.in_features for block in stage.blocks]
            assert projections == [3 if stages is network.encoder else 2, 3, 3]


@pytest.mark.parametrize(
    ("grid", "stride", "padding"),
    [((4, 6, 8), (2, 2, 2), (1, 1, 1)), ((7, 6, 5), (2, 2, 2), (0, 1, 0)), ((3, 4, 5), (1, 2, 2), (0, 1, 0))],
)
def test_down_sampling_is_a_strided_convolution(grid, stride, padding):
    down = DownSampling(4, stride)
    tokens = torch.randn(2, *grid, 4)
    features = down.norm(F.gelu(tokens)).permute(0, 4, 1, 2, 3)
    expected = F.conv3d(features, down.reduce.weight, down.reduce.bias, stride, padding).permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(down(tokens), expected)
    assert expected.shape[1:4] == tuple(count // step for count, step in zip(grid, stride, strict=True))


# Randomness


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean():
    branch = torch.ones(4000, 1, 1, 2, 3)
    depth = StochasticDepth(0.25)
    torch.manual_seed(0)
    kept = depth(branch).reshape(4000, 6)
    assert kept.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (kept == kept[:, :1]).all()
    assert kept.mean().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(depth.eval()(branch), branch)


def test_stochastic_depth_rises_along_encoder_and_decoder():
    network = tiny(stochastic_depth=0.3)

    def rates(stages):
        return [block.stochastic_depth.rate for stage in stages for block in stage.blocks]

    assert rates(network.encoder) == pytest.approx(np.linspace(0, 0.3, 6))
    assert rates(network.decoder) == pytest.approx(np.linspace(0, 0.3, 4))


@pytest.mark.parametrize(("mode", "changes"), [(False, {}), (True, {"stochastic_depth": 0.0})])
def test_nothing_is_drawn_but_for_dropout_and_stochastic_depth(mode, changes):
    network, image = tiny(**changes).train(mode), torch.randn(1, 1, *CUBE)
    before = torch.random.get_rng_state()
    with torch.no_grad():
        assert torch.equal(network(image), network(image))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("changes", [{"stochastic_depth": 0.5}, {"dropout": 0.5, "stochastic_depth": 0.0}])
def test_rates_are_heeded_in_train_mode(changes):
    network, image = tiny(**changes).train(), torch.randn(1, 1, *CUBE)
    with torch.no_grad():
        assert not torch.equal(network(image), network(image))


# Hidden tokens


def seen_by_visible_tokens(visible: torch.Tensor, size: int) -> torch.Tensor:
    """Voxels that tokens of 4 voxels see through the embedding: theirs, 9 before and 6 after."""
    seen = torch.zeros(size, size, size, dtype=torch.bool)
    for place in visible.nonzero().tolist():
        seen[tuple(slice(max(0, 4 * p - 9), 4 * p + 10) for p in place)] = True
    return seen


def test_hidden_tokens_are_seen_through_the_overlap_of_the_embedding_only():
    size = 64
    student = Student(
        tiny((size,) * 3).eval(), MethodConfig(hide="tokens", mask_patch=(32,) * 3), 1, SPEC.patch_embedding
    )
    student = student.double()
    mask = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    mask[0, 0], mask[0, 1, 1, 1] = True, True
    reached = reached_voxels(student, torch.randn(1, 1, *(size,) * 3, dtype=torch.float64), mask)[0]
    visible = ~mask[0].repeat_interleave(8, 0).repeat_interleave(8, 1).repeat_interleave(8, 2)
    expected = seen_by_visible_tokens(visible, size)
    assert torch.equal(reached, expected)
    assert not expected.all()


def test_with_every_token_hidden_nothing_is_seen():
    config = MethodConfig(hide="tokens", mask_patch=(8, 8, 8))
    student = Student(tiny().eval(), config, 1, SPEC.patch_embedding)
    mask = torch.ones(1, 4, 4, 4, dtype=torch.bool)
    assert not reached_voxels(student, torch.randn(1, 1, *CUBE), mask).any()
    with torch.no_grad():
        assert torch.equal(student(torch.randn(1, 1, *CUBE), mask), student(torch.zeros(1, 1, *CUBE), mask))


# Patches, precision


@pytest.mark.parametrize(
    ("patch", "nearest"),
    [((30, 32, 35), r"\[32, 32, 36\]"), ((8, 32, 32), r"\[16, 32, 32\]")],
    ids=["no whole tokens", "small"],
)
def test_impossible_patches_are_refused_with_the_nearest(patch, nearest):
    settings = SPEC.settings(CUBE, ISOTROPIC, "tiny")
    with pytest.raises(MedContextError, match=nearest):
        SPEC.build(1, 3, patch, settings)
    with pytest.raises(MedContextError, match=nearest):
        tiny()(torch.randn(1, 1, *patch))


@pytest.mark.parametrize("patch", [CUBE, (20, 28, 36)])
def test_bf16_autocast(patch):
    network, image = tiny(patch).eval(), torch.randn(2, 1, *patch)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(image)
    logits.float().square().mean().backward()
    assert all(value.grad.isfinite().all() for value in network.parameters())
    with torch.no_grad():
        exact = network(image)
    assert (logits - exact).abs().max() < 0.05 * exact.abs().max()


def test_it_is_the_network_that_build_gives():
    assert isinstance(tiny(), NNFormer)
    width = tiny().get_submodule(SPEC.patch_embedding)(torch.randn(1, 1, *CUBE)).shape
    assert width == (1, 12, 8, 8, 8)
