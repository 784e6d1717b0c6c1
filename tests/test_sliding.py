"""Whole volumes from windows: against the formula in float64, and against MONAI."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers.utils import sliding_window_inference
from torch import Tensor, nn

from medcontext.errors import MedContextError
from medcontext.inference import sliding
from medcontext.inference.sliding import Slab, sliding_logits, sliding_slabs

sizes = st.tuples(*[st.integers(1, 17)] * 3)
patches = st.tuples(*[st.sampled_from([3, 5, 6, 8])] * 3)


class Watched(nn.Module):
    """A convolution, whose output near the border of a window is not that of its middle, and what it was shown."""

    def __init__(self, channels: int = 2, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv3d(channels, classes, 3, padding=1)
        self.seen: list[Tensor] = []

    def forward(self, image: Tensor) -> Tensor:
        self.seen.extend(image)
        return self.convolution(image)


def image_of(size: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(2, *size, generator=torch.Generator().manual_seed(seed))


def put_together(slabs, size: tuple[int, ...]) -> Tensor:
    """The volume, as someone sees it who takes slices as they are finished, and the one before once more."""
    slices: list[Tensor] = []
    for slab in slabs:
        assert slab.start == len(slices)
        if slices:
            assert torch.equal(slab[slab.start - 1], slices[-1])
        slices += [slab[d].clone() for d in range(slab.start, slab.stop)]
    assert len(slices) == size[0]
    return torch.stack(slices, dim=1)


def by_formula(network: nn.Module, image: Tensor, patch: tuple[int, ...], outside: float) -> np.ndarray:
    """Half a window from one to the next, the last flush with the end; a Gaussian of an eighth of the window, and never
    less than a thousandth of its largest value."""
    network = network.double()
    before = [max(0, p - n) // 2 for p, n in zip(patch, image.shape[1:], strict=True)]
    after = [max(0, p - n) - b for p, n, b in zip(patch, image.shape[1:], before, strict=True)]
    padded = np.pad(
        image.double().numpy(), [(0, 0), *zip(before, after, strict=True)], constant_values=np.float32(outside)
    )
    bells = [np.exp(-0.5 * ((np.arange(p) - (p - 1) / 2) / (p / 8)) ** 2) for p in patch]
    weight = np.einsum("d,h,w->dhw", *bells)
    weight = np.maximum(weight, max(weight.min(), 1e-3))
    starts = []
    for side, n in zip(patch, padded.shape[1:], strict=True):
        step = max(1, side // 2)
        starts.append(sorted({min(start, n - side) for start in range(0, n - side + step, step)}))
    above, below = np.zeros((3, *padded.shape[1:])), np.zeros(padded.shape[1:])
    for start in itertools.product(*starts):
        window = tuple(slice(s, s + side) for s, side in zip(start, patch, strict=True))
        logits = network(torch.from_numpy(padded[(slice(None), *window)])[None])[0].detach().numpy()
        above[(slice(None), *window)] += logits * weight
        below[window] += weight
    inside = tuple(slice(b, b + n) for b, n in zip(before, image.shape[1:], strict=True))
    return (above / below)[(slice(None), *inside)]


@given(size=sizes, patch=patches, seed=st.integers(0, 100))
@settings(deadline=None, max_examples=40)
def test_windows_are_blended_by_the_formula(size, patch, seed):
    image = image_of(size, seed)
    whole = sliding_logits(Watched(), image, patch, -1.5)
    expected = by_formula(Watched(), image, patch, -1.5)
    assert whole.dtype == torch.float32
    assert not whole.requires_grad
    np.testing.assert_allclose(whole.numpy(), expected, atol=1e-5)
    assert torch.equal(put_together(sliding_slabs(Watched(), image, patch, -1.5), size), whole)


def test_the_result_is_monais():
    image = image_of((21, 30, 9))
    network = Watched()
    expected = sliding_window_inference(image[None], (8, 8, 12), 3, network, overlap=0.5, mode="gaussian", cval=-1.0)
    torch.testing.assert_close(sliding_logits(network, image, (8, 8, 12), -1.0), expected[0])


def test_no_more_slices_are_held_than_a_window_has_and_one():
    slabs = list(sliding_slabs(Watched(), image_of((60, 8, 8)), (8, 8, 8), 0.0))
    assert {slab.ring.shape[1] for slab in slabs} == {9}
    assert len(slabs) == 14
    assert sliding_logits(Watched(), image_of((60, 8, 8)), (8, 8, 8), 0.0).shape == (3, 60, 8, 8)


def test_windows_of_one_value_are_computed_once():
    image = image_of((40, 8, 8))
    image[:, 10:] = torch.tensor([-1.0, 2.0])[:, None, None, None]
    image[:, 38:] = 0.5
    network = Watched()
    logits = sliding_logits(network, image, (8, 8, 8), 0.0)
    # Three windows begin before slice 10, five hold the first value alone, one reaches into the last slices.
    shown = [tuple(window.flatten(1).unique(dim=1).shape) for window in network.seen]
    assert len(network.seen) == 3 + 1 + 1
    assert shown.count((2, 1)) == 1
    np.testing.assert_allclose(logits.numpy(), by_formula(Watched(), image, (8, 8, 8), 0.0), atol=1e-5)


def test_one_constant_is_not_taken_for_another():
    image = image_of((64, 8, 8))
    image[0] = 1.0
    for part, value in enumerate([2.0, 3.0, 2.0]):
        image[1, 16 * part : 16 * part + 16] = value
    logits = sliding_logits(Watched(), image, (8, 8, 8), 0.0)
    np.testing.assert_allclose(logits.numpy(), by_formula(Watched(), image, (8, 8, 8), 0.0), atol=1e-5)


def test_the_same_bits_come_out_again():
    image = image_of((20, 17, 9))
    first, second = (sliding_logits(Watched(), image, (8, 8, 8), 0.0) for _ in range(2))
    assert torch.equal(first, second)


def test_the_finest_of_several_outputs_is_taken():
    class Deep(Watched):
        def forward(self, image):
            return [super().forward(image), torch.zeros(1)]

    image = image_of((9, 9, 9))
    assert torch.equal(sliding_logits(Deep(), image, (8, 8, 8), 0.0), sliding_logits(Watched(), image, (8, 8, 8), 0.0))


def test_what_is_too_large_in_single_precision_is_held_in_half(monkeypatch):
    image = image_of((40, 12, 12))
    exact = by_formula(Watched(), image, (8, 8, 8), 0.0)
    whole = sliding_logits(Watched(), image, (8, 8, 8), 0.0)
    monkeypatch.setattr(sliding, "SINGLE_PRECISION", 4 * whole[:, :9].numel() - 1)
    slabs = list(sliding_slabs(Watched(), image, (8, 8, 8), 0.0))
    assert slabs[0].ring.dtype == torch.float16
    halved = put_together(sliding_slabs(Watched(), image, (8, 8, 8), 0.0), (40, 12, 12))
    # Up to eight sums, each rounded to 11 bits.
    np.testing.assert_allclose(halved.float().numpy(), exact, atol=8 * 2**-11 * np.abs(exact).max())
    assert sliding_logits(Watched(), image, (8, 8, 8), 0.0).dtype == torch.float32
    huge = put_together(sliding_slabs(lambda x: 1e9 * Watched()(x), image, (8, 8, 8), 0.0), (40, 12, 12))
    assert torch.isfinite(huge).all()


def test_logits_are_held_where_there_is_room(monkeypatch):
    free = {"meta": 1000.0, "cpu": 1e9}
    monkeypatch.setattr(sliding, "free_memory", free.__getitem__)
    device = torch.device("meta")
    assert sliding._ring((2, 5, 5, 4), device, always_single=False).device == device
    assert sliding._ring((2, 5, 5, 5), device, always_single=False).device == torch.device("cpu")


def test_too_little_memory_is_said_after_one_window(monkeypatch):
    monkeypatch.setattr(sliding, "free_memory", lambda device: 1000.0)
    network = Watched()
    with pytest.raises(MedContextError, match="not enough memory") as error:
        sliding_logits(network, image_of((40, 8, 8)), (8, 8, 8), 0.0)
    assert "3 outputs at 40 x 8 x 8" in error.value.expected
    assert len(network.seen) == 1


def test_a_slab_finds_its_slices():
    ring = torch.arange(5.0).expand(1, 5).clone().view(1, 5, 1, 1)
    assert Slab(ring, 8, 10)[9].item() == 4
    assert Slab(ring, 8, 10)[7].item() == 2
