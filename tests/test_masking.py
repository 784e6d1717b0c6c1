from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medcontext.errors import MedContextError
from medcontext.method.masking import draw_mask, mask_grid, mask_to_voxels
from medcontext.method.presets import PRESETS, MethodConfig

grids = st.tuples(*[st.integers(1, 6)] * 3).filter(lambda grid: sorted(grid)[:2] != [1, 1])
ratios = st.floats(0.05, 0.95)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(grid=grids, ratio=ratios, axis=st.sampled_from([0, 1, 2]), seed=st.integers(0, 1000))
def test_a_tube_is_hidden_along_its_whole_axis_or_not_at_all(grid, ratio, axis, seed):
    mask = draw_mask(MethodConfig(mask="tube", ratio=ratio, tube_axis=axis), 3, grid, seeded(seed))
    assert mask.shape == (3, *grid)
    columns = mask.movedim(axis + 1, -1)
    assert (columns.all(-1) | ~columns.any(-1)).all()


@given(grid=grids, ratio=ratios, kind=st.sampled_from(["tube", "random", "block"]), seed=st.integers(0, 1000))
def test_every_sample_hides_the_same_exact_number(grid, ratio, kind, seed):
    mask = draw_mask(MethodConfig(mask=kind, ratio=ratio), 4, grid, seeded(seed))
    places = grid[1] * grid[2] if kind == "tube" else grid[0] * grid[1] * grid[2]
    each = grid[0] if kind == "tube" else 1
    expected = min(max(round(ratio * places), 1), places - 1) * each
    assert mask.flatten(1).sum(1).tolist() == [expected] * 4


@pytest.mark.parametrize("kind", ["tube", "random", "block"])
def test_all_places_are_equally_likely(kind):
    config = MethodConfig(mask=kind, ratio=0.4)
    drawn = 4000
    mask = draw_mask(config, drawn, (2, 4, 5), seeded())
    rate = mask.float().mean(0)
    # Five standard deviations of a binomial rate.
    assert (rate - 0.4).abs().max() < 5 * (0.4 * 0.6 / drawn) ** 0.5


def test_masks_follow_the_generator_and_differ_between_samples():
    config = PRESETS["medcontext"]
    first, again = (draw_mask(config, 8, (5, 5, 5), seeded(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, draw_mask(config, 8, (5, 5, 5), seeded(4)))
    assert len({tuple(sample.flatten().tolist()) for sample in first}) == 8


def test_a_block_is_a_box_of_patches_that_lie_together():
    mask = draw_mask(MethodConfig(mask="block", ratio=27 / 343), 20, (7, 7, 7), seeded())
    for sample in mask:
        for axis in range(3):
            others = tuple(other for other in range(3) if other != axis)
            along = sample.any(dim=others)
            # Three neighbours on the closed axis: two changes from hidden to visible and back.
            assert along.sum() == 3
            assert (along != along.roll(1)).sum() == 2


@given(low=st.floats(0.1, 0.5), width=st.floats(0.1, 0.4), seed=st.integers(0, 100))
def test_a_ratio_is_drawn_from_its_range_for_every_mask(low, width, seed):
    mask = draw_mask(MethodConfig(ratio=(low, low + width)), 40, (4, 6, 6), seeded(seed))
    counts = mask.flatten(1).sum(1)
    assert counts.min() >= round(low * 144) - 1
    assert counts.max() <= round((low + width) * 144) + 1
    assert len(set(counts.tolist())) > 3


@pytest.mark.parametrize(("kind", "grid"), [("random", (1, 1, 1)), ("block", (1, 1, 1)), ("tube", (7, 1, 1))])
def test_a_grid_of_one_place_is_refused(kind, grid):
    with pytest.raises(MedContextError, match="nothing left to see") as error:
        draw_mask(MethodConfig(mask=kind), 1, grid, seeded())
    assert "mask_patch" in error.value.remedy


def test_a_batch_can_share_one_mask():
    mask = draw_mask(MethodConfig(mask_per="batch"), 5, (4, 4, 4), seeded())
    assert mask.shape == (5, 4, 4, 4)
    assert all(torch.equal(mask[0], other) for other in mask)


def test_no_mask_where_the_method_is_off():
    assert not draw_mask(PRESETS["supervised"], 2, (3, 3, 3), seeded()).any()
    assert not draw_mask(replace(PRESETS["paper"], ratio=0.0), 2, (3, 3, 3), seeded()).any()


@given(grid=grids, patch=st.tuples(*[st.integers(1, 5)] * 3), cut=st.tuples(*[st.integers(0, 4)] * 3))
def test_voxels_have_the_mask_of_their_patch(grid, patch, cut):
    volume = tuple(max(1, g * p - min(c, p - 1)) for g, p, c in zip(grid, patch, cut, strict=True))
    assert mask_grid(volume, patch) == grid
    mask = draw_mask(MethodConfig(ratio=0.5), 2, grid, seeded())
    voxels = mask_to_voxels(mask, patch, volume)
    assert voxels.shape == (2, 1, *volume)
    where = torch.cartesian_prod(*[torch.arange(n) for n in volume]).reshape(-1, 3)
    d, h, w = (where // torch.tensor(patch)).unbind(1)
    assert torch.equal(voxels[:, 0].flatten(1), mask[:, d, h, w])


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 0.0},
        {"ramp_up": 2.0},
        {"confidence_threshold": -1.0},
        {"ratio": 1.0},
        {"mask_probability": 0.0},
        {"mask_probability": 1.1},
        {"mask_until": 0.0},
        {"mask_until": 1.1},
        {"ratio": -0.1},
        {"momentum": 1.5},
        {"masked_weight": -1.0},
        {"mask_patch": (0, 8, 8)},
        {"ratio": (0.5, 0.2)},
    ],
)
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(MedContextError, match=next(iter(wrong))):
        MethodConfig(**wrong)
