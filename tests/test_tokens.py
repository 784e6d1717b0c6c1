"""Tokens are found whatever their layout, and a hidden patch hides exactly its own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medcontext.errors import MedContextError
from medcontext.method.hiding import Student
from medcontext.method.masking import draw_mask, mask_grid
from medcontext.method.presets import MethodConfig
from medcontext.method.tokens import mask_over_tokens

LAYOUTS = ("channels first", "channels last", "list", "list first")


class Embedded(nn.Module):
    """A network that is its patch embedding, in any layout."""

    def __init__(self, stride: tuple[int, int, int], layout: str, width: int = 7) -> None:
        super().__init__()
        self.layout = layout
        self.embedding = Embedding(stride, layout, width)

    def forward(self, image):
        return self.embedding(image)


class Embedding(nn.Module):
    def __init__(self, stride, layout, width):
        super().__init__()
        self.convolution = nn.Conv3d(1, width, stride, stride)
        self.layout = layout

    def forward(self, image):
        tokens = self.convolution(image)
        return {
            "channels first": lambda: tokens,
            "channels last": lambda: tokens.permute(0, 2, 3, 4, 1),
            "list": lambda: tokens.flatten(2).transpose(1, 2),
            "list first": lambda: tokens.flatten(2),
        }[self.layout]()


@pytest.mark.parametrize("layout", LAYOUTS)
@given(
    stride=st.tuples(*[st.sampled_from([1, 2, 4])] * 3),
    times=st.tuples(*[st.sampled_from([1, 2, 3])] * 3),
    grid=st.tuples(*[st.integers(2, 3)] * 3),
)
@settings(max_examples=25, deadline=None)
def test_hidden_tokens_are_those_of_hidden_patches(layout, stride, times, grid):
    if layout.startswith("list"):
        stride = (stride[0],) * 3
    patch = tuple(s * t for s, t in zip(stride, times, strict=True))
    volume = tuple(p * g for p, g in zip(patch, grid, strict=True))
    config = MethodConfig(hide="tokens", mask_patch=patch, ratio=0.5)
    mask = draw_mask(config, 2, mask_grid(volume, patch), torch.Generator().manual_seed(0))
    student = Student(Embedded(stride, layout), config, 1, "embedding")
    nn.init.constant_(student.mask_token, 7.0)
    with torch.no_grad():
        seen = student(torch.randn(2, 1, *volume), mask)
    seen = {"channels last": lambda: seen.permute(0, 4, 1, 2, 3), "list": lambda: seen.transpose(1, 2)}.get(
        layout, lambda: seen
    )()
    marked = (seen == 7.0).all(1).view(2, *(v // s for v, s in zip(volume, stride, strict=True)))
    for axis, count in enumerate(times, start=1):
        mask = mask.repeat_interleave(count, dim=axis)
    assert torch.equal(marked, mask)


def test_a_layout_that_can_be_read_in_two_ways_is_refused():
    network = Embedded((2, 2, 2), "channels last", width=4)
    tokens = network(torch.randn(1, 1, 8, 8, 8))
    mask = torch.zeros(1, 4, 4, 4, dtype=torch.bool)
    with pytest.raises(MedContextError, match="two ways"):
        mask_over_tokens(mask, (2, 2, 2), (8, 8, 8), tokens, network.embedding)
    assert mask_over_tokens(mask, (2, 2, 2), (8, 8, 8), tokens, network.embedding.convolution)[1] == 1


@pytest.mark.parametrize("shape", [(1, 65, 6), (1, 6), (1, 5, 4, 4, 4)])
def test_other_layouts_are_refused(shape):
    with pytest.raises(MedContextError, match="voxels") as error:
        mask_over_tokens(
            torch.zeros(1, 4, 4, 4, dtype=torch.bool), (4, 4, 4), (16, 16, 16), torch.zeros(shape), nn.Linear(3, 6)
        )
    assert "hide=voxels" in error.value.remedy


def test_an_embedding_without_a_layer_is_refused():
    with pytest.raises(MedContextError, match="no convolution"):
        Student(nn.Sequential(nn.Identity()), MethodConfig(hide="tokens"), 1, "0")


def test_a_method_without_a_masked_pass_hides_nothing_whatever_mask_it_is_given():
    config = MethodConfig(hide="tokens", mask_patch=(2, 2, 2), clean_weight=1.0, masked_weight=0.0)
    student = Student(Embedded((2, 2, 2), "list"), config, channels=1, patch_embedding="embedding")
    image = torch.randn(1, 1, 4, 4, 4)
    assert torch.equal(student(image, torch.ones(1, 2, 2, 2, dtype=torch.bool)), student(image))
