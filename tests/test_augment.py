"""Changes to patches: image and label as one, every intensity against its formula, as far and as often as is said."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.interpolate import BSpline

from medcontext.data.augment_config import AugmentConfig
from medcontext.data.intensity import (
    add_noise,
    apply_gamma,
    blur,
    change_contrast,
    lower_resolution,
    vary_intensity,
)
from medcontext.data.spatial import Deformation, draw_deformation, reach, warp
from medcontext.errors import MedContextError

CHANCES = [field.name for field in dataclasses.fields(AugmentConfig) if field.name.endswith("_probability")]
STILL = AugmentConfig(**dict.fromkeys(CHANCES, 0.0))
INTENSITIES = ("noise", "blur", "brightness", "contrast", "low_resolution", "inverted_gamma", "gamma")
PATCH = (14, 17, 20)
spacings = st.sampled_from([(1.0, 1.0, 1.0), (5.0, 1.0, 1.25), (0.5, 1.0, 2.0), (1.0, 0.7, 0.7)])
spatial = st.builds(
    dataclasses.replace,
    st.just(STILL),
    rotation_probability=st.sampled_from([0.0, 1.0]),
    rotation_degrees=st.sampled_from([30.0, 170.0]),
    scale_probability=st.sampled_from([0.0, 1.0]),
    elastic_probability=st.sampled_from([0.0, 1.0]),
    elastic=st.just((0.1, 0.4)),
    mirror_axes=st.sampled_from([(), (0, 2), (0, 1, 2)]),
)


def with_only(**changes: object) -> AugmentConfig:
    return dataclasses.replace(STILL, channel_probability=1.0, **changes)


def image_of(*size: int, seed: int = 0) -> torch.Tensor:
    values = np.random.default_rng(seed).normal(0.3, 1, size) ** 3
    return torch.from_numpy(values.astype(np.float32))


def blocks(size: tuple[int, ...], rng: np.random.Generator) -> torch.Tensor:
    """Classes -1 to 3 in blocks of five voxels."""
    coarse = rng.integers(-1, 4, [-(-length // 5) for length in size]).astype(np.int16)
    fine = np.kron(coarse, np.ones((5, 5, 5), dtype=np.int16))
    return torch.from_numpy(fine[tuple(slice(length) for length in size)].copy())


def places(deformation: Deformation, box: tuple[int, ...], patch: tuple[int, ...]) -> np.ndarray:
    """``(3, *patch)`` input positions in float64, by scipy's B-splines and a plain matrix product."""
    centred = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in patch], indexing="ij"))
    if deformation.shifts is not None:
        bent = deformation.shifts.numpy()
        for axis, length in enumerate(patch):
            points = bent.shape[axis + 1]
            if points == 1:
                bent = np.repeat(bent, length, axis + 1)
            else:
                at = (np.arange(length) + 0.5) / length * (points - 3) + 3
                moved = BSpline(np.arange(points + 4.0), np.moveaxis(bent, axis + 1, 0), 3)(at)
                bent = np.moveaxis(moved, 0, axis + 1)
        centred = centred + bent
    for axis in deformation.mirrored:
        centred = np.flip(centred, axis + 1)
    mapped = np.einsum("ij,jdhw->idhw", deformation.matrix.numpy(), centred)
    return mapped + (np.array(box).reshape(3, 1, 1, 1) - 1) / 2


@given(config=spatial, spacing=spacings, seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=60)
def test_a_patch_is_taken_from_where_an_independent_formula_says(config, spacing, seed):
    rng = np.random.default_rng(seed)
    deformation = draw_deformation(config, spacing, PATCH, rng)
    box = reach(deformation, PATCH)
    image, label = image_of(2, *box, seed=seed), blocks(box, rng)
    moved, chosen = warp(image.clone(), label.clone(), deformation, PATCH)
    at = places(deformation, box, PATCH)
    # The box holds every voxel that is looked at, and is not much larger than that.
    assert at.min() > -1e-6
    assert (at.max((1, 2, 3)) < np.array(box) - 1 + 1e-6).all()
    if deformation.shifts is None:
        assert (at.max((1, 2, 3)) > np.array(box) - 2.5).all()
    for channel, found in zip(image, moved, strict=True):
        expected = ndimage.map_coordinates(channel.double().numpy(), at, order=1, mode="nearest")
        assert np.allclose(found.numpy(), expected, atol=1e-3)
    # Halfway between two voxels either is the nearest.
    clear = (np.abs(at - np.floor(at) - 0.5) > 1e-3).all(0)
    expected = label.numpy()[tuple(np.round(at).astype(int))]
    assert chosen.dtype == label.dtype
    assert np.array_equal(chosen.numpy()[clear], expected[clear])
    assert moved.shape[1:] == chosen.shape == PATCH


@given(config=spatial, spacing=spacings, seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=60)
def test_a_label_painted_into_the_image_stays_on_its_structure(config, spacing, seed):
    """Where the image shows nothing but a class, the label is that class; where it shows none of it, another."""
    rng = np.random.default_rng(seed)
    deformation = draw_deformation(config, spacing, PATCH, rng)
    label = blocks(reach(deformation, PATCH), rng)
    classes = range(-1, 4)
    image = torch.stack([(label == k).float() for k in classes])
    moved, chosen = warp(image, label, deformation, PATCH)
    certain = 0
    for k, painted in zip(classes, moved, strict=True):
        assert (chosen[painted > 1 - 1e-4] == k).all()
        assert (chosen[painted < 1e-4] != k).all()
        # The nearest of the eight voxels around weighs an eighth at least.
        assert (painted[chosen == k] > 0.12).all()
        certain += int((painted > 1 - 1e-4).sum())
    assert certain > 0.05 * chosen.numel()


def test_a_quarter_turn_is_numpys():
    image = image_of(1, 9, 9, 9)
    label = (image[0] > 0).to(torch.uint8)
    for axes, turn in (((1, 2), [[1, 0, 0], [0, 0, -1], [0, 1, 0]]), ((0, 1), [[0, -1, 0], [1, 0, 0], [0, 0, 1]])):
        quarter = Deformation(torch.tensor(turn, dtype=torch.float64), None, ())
        moved, chosen = warp(image, label, quarter, (9, 9, 9))
        turned = [np.rot90(image[0].numpy(), k, axes) for k in (1, 3)]
        assert [np.allclose(moved[0].numpy(), each, atol=1e-4) for each in turned].count(True) == 1
        assert torch.equal(chosen.bool(), moved[0] > 0)


def test_the_box_holds_what_the_strongest_bend_looks_at():
    """All control points moved alike, to either side, are a shift of the patch."""
    for shift in (3.0, -3.0):
        shifted = Deformation(torch.eye(3, dtype=torch.float64), torch.full((3, 7, 7, 7), shift).double(), ())
        box = reach(shifted, (8, 8, 8))
        image = image_of(1, *box)
        moved, _ = warp(image, image[0], shifted, (8, 8, 8))
        first = [(length - 8) // 2 + int(shift) for length in box]
        assert min(first) >= 0
        expected = image[:, first[0] : first[0] + 8, first[1] : first[1] + 8, first[2] : first[2] + 8]
        assert torch.allclose(moved, expected, atol=1e-4)


def test_a_patch_one_voxel_wide_can_be_warped():
    config = with_only(scale_probability=1.0)
    deformation = draw_deformation(config, (1.0, 1.0, 1.0), (6, 1, 6), np.random.default_rng(0))
    box = reach(deformation, (6, 1, 6))
    moved, label = warp(torch.full((1, *box), 2.0), torch.ones(box, dtype=torch.uint8), deformation, (6, 1, 6))
    assert torch.allclose(moved, torch.full((1, 6, 1, 6), 2.0))
    assert label.unique().tolist() == [1]


def test_a_patch_of_one_slice_keeps_it():
    config = with_only(rotation_probability=1.0, scale_probability=1.0)
    deformation = draw_deformation(config, (5.0, 1.0, 1.0), (1, 12, 12), np.random.default_rng(0))
    box = reach(deformation, (1, 12, 12))
    assert box[0] == 1
    image, label = warp(torch.full((1, *box), 2.0), torch.ones(box, dtype=torch.uint8), deformation, (1, 12, 12))
    assert torch.allclose(image, torch.full((1, 1, 12, 12), 2.0))
    assert label.shape == (1, 12, 12)


@given(seed=st.integers(0, 1000), spacing=spacings)
@settings(deadline=None, max_examples=40)
def test_rotation_and_scale_are_true_in_millimetres_and_in_range(seed, spacing):
    config = with_only(rotation_probability=1.0, scale_probability=1.0, rotation_degrees=25.0)
    matrix = draw_deformation(config, spacing, PATCH, np.random.default_rng(seed)).matrix.numpy()
    metric = np.diag(spacing)
    inside = metric @ matrix @ np.linalg.inv(metric)
    thick = spacing[0] == 5
    if thick:
        assert matrix[0].tolist() == matrix[:, 0].tolist() == [1, 0, 0]
        inside = inside[1:, 1:]
    factor = np.linalg.det(inside) ** (1 / len(inside))
    assert 0.7 <= factor <= 1.4
    turn = inside / factor
    assert np.allclose(turn @ turn.T, np.eye(len(turn)))
    # Three turns of 25 degrees, one after another, at most add up.
    cosine = turn[0, 0] if thick else (np.trace(turn) - 1) / 2
    assert 0 < np.degrees(np.arccos(cosine)) <= (25 if thick else 75)


def test_thick_slices_bend_alike_and_within_their_plane():
    config = with_only(elastic_probability=1.0, rotation_probability=1.0)
    deformation = draw_deformation(config, (5.0, 1.0, 1.25), PATCH, np.random.default_rng(0))
    at = places(deformation, PATCH, PATCH)
    assert np.array_equal(at[0], np.broadcast_to(np.arange(PATCH[0])[:, None, None], PATCH))
    assert np.array_equal(at[1:], np.broadcast_to(at[1:, :1], (2, *PATCH)))


def test_elastic_never_folds_space():
    config = with_only(elastic_probability=1.0, elastic=(0.4, 0.4))
    for seed in range(10):
        deformation = draw_deformation(config, (1.0, 1.0, 1.0), (40, 40, 40), np.random.default_rng(seed))
        at = places(deformation, (0, 0, 0), (40, 40, 40))
        jacobian = np.stack([np.stack(np.gradient(each)) for each in at])
        assert (np.linalg.det(np.moveaxis(jacobian, (0, 1), (-2, -1))) > 0).all()
        assert np.abs(at - places(Deformation(deformation.matrix, None, ()), (0, 0, 0), (40, 40, 40))).max() > 0.5


def test_only_the_named_axes_are_mirrored_each_half_of_the_time():
    image = image_of(1, 6, 6, 6)
    config = with_only(mirror_axes=(0, 2))
    seen = []
    for seed in range(200):
        deformation = draw_deformation(config, (1.0, 1.0, 1.0), (6, 6, 6), np.random.default_rng(seed))
        moved, label = warp(image, image[0], deformation, (6, 6, 6))
        axes = [axes for axes in ((), (1,), (3,), (1, 3)) if torch.equal(moved, image.flip(axes))]
        assert len(axes) == 1
        assert torch.equal(label, moved[0])
        seen += axes
    assert min(seen.count(axes) for axes in ((), (1,), (3,), (1, 3))) > 25


@pytest.mark.parametrize("deviations", [(0.5, 0.8, 1.0), (1.0, 0.6, 0.5), (2.1, 0.3, 0.7)])
def test_blur_is_scipys(deviations):
    channel = image_of(9, 12, 15)
    expected = ndimage.gaussian_filter(channel.double().numpy(), deviations, mode="nearest", truncate=4)
    blur(channel, np.array(deviations))
    assert np.allclose(channel.numpy(), expected, atol=1e-5)


def test_contrast_is_its_formula():
    for factor in (0.75, 1.25):
        channel = image_of(9, 12, 15)
        values = channel.double().numpy()
        expected = np.clip((values - values.mean()) * factor + values.mean(), values.min(), values.max())
        change_contrast(channel, factor)
        assert np.allclose(channel.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("exponent", [0.7, 1.5])
def test_gamma_is_its_formula_and_keeps_mean_and_deviation(exponent):
    channel = image_of(9, 12, 15)
    values = channel.double().numpy()
    curved = ((values - values.min()) / np.ptp(values)) ** exponent
    expected = (curved - curved.mean()) / curved.std() * values.std() + values.mean()
    apply_gamma(channel, exponent)
    assert np.allclose(channel.numpy(), expected, atol=1e-4)
    constant = torch.full((4, 4, 4), 1.5)
    apply_gamma(constant, exponent)
    assert torch.allclose(constant, torch.full((4, 4, 4), 1.5))


def test_inverted_gamma_is_the_gamma_of_the_inverted_image():
    image = image_of(1, 9, 12, 15)
    config = with_only(inverted_gamma_probability=1.0, gamma=(1.5, 1.5))
    expected = -image[0]
    apply_gamma(expected, 1.5)
    vary_intensity(image, config, False, np.random.default_rng(0))
    assert torch.allclose(image[0], -expected, atol=1e-5)


@pytest.mark.parametrize(("share", "in_plane"), [(0.5, False), (0.5, True), (0.73, False), (1.0, False)])
def test_low_resolution_is_nearest_down_and_linear_up(share, in_plane):
    channel = image_of(10, 12, 16)
    expected = channel.double().numpy()
    for axis, length in enumerate(channel.shape):
        if in_plane and axis == 0:
            continue
        kept = round(length * share)
        nearest = np.floor((np.arange(kept) + 0.5) * length / kept).astype(int)
        at = ((np.arange(length) + 0.5) * kept / length - 0.5).clip(0, kept - 1)
        low = np.floor(at).astype(int).clip(0, max(kept - 2, 0))
        weight = (at - low).reshape([-1 if each == axis else 1 for each in range(3)])
        coarse = expected.take(nearest, axis)
        expected = coarse.take(low, axis) * (1 - weight) + coarse.take((low + 1).clip(0, kept - 1), axis) * weight
    lower_resolution(channel, share, in_plane)
    assert np.allclose(channel.numpy(), expected, atol=1e-4)


def test_noise_has_its_deviation_and_no_pattern():
    image = torch.zeros(2, 40, 40, 40)
    add_noise(image, 0.3, np.random.default_rng(0))
    assert image.std(dim=(1, 2, 3)).numpy() == pytest.approx([0.3, 0.3], rel=0.02)
    assert image.mean().abs() < 0.005
    assert abs(np.corrcoef(image.flatten(1).numpy())[0, 1]) < 0.02


@pytest.mark.parametrize("name", ["brightness", "contrast"])
def test_factors_are_in_range_and_as_often_below_one_as_above(name):
    config = with_only(**{f"{name}_probability": 1.0, name: (0.75, 2.0)})
    # The least and the greatest value keep the range wide, so that no contrast is cut.
    image = torch.cat([torch.randn(1, 4, 5, 5), torch.full((1, 1, 5, 5), 60.0), torch.full((1, 1, 5, 5), -60.0)], 1)
    factors = []
    for seed in range(200):
        changed = image.clone()
        vary_intensity(changed, config, False, np.random.default_rng(seed))
        factors.append(float(changed[0, :4].std() / image[0, :4].std()))
    assert min(factors) >= 0.7499
    assert max(factors) <= 2.0001
    assert 0.4 < np.mean([factor < 1 for factor in factors]) < 0.6
    assert min(factors) < 0.77
    assert max(factors) > 1.9


@pytest.mark.parametrize("name", INTENSITIES)
def test_every_intensity_is_varied_as_often_as_is_said(name):
    config = with_only(**{f"{name}_probability": 0.3})
    image = image_of(2, 6, 6, 6)
    changed = 0
    for seed in range(300):
        varied = image.clone()
        vary_intensity(varied, config, False, np.random.default_rng(seed))
        assert varied.isfinite().all()
        changed += not torch.equal(varied, image)
    # Four standard deviations of a binomial.
    assert changed / 300 == pytest.approx(0.3, abs=4 * (0.21 / 300) ** 0.5)


@pytest.mark.parametrize("name", ["blur", "low_resolution"])
def test_channels_take_part_by_themselves(name):
    config = dataclasses.replace(with_only(**{f"{name}_probability": 1.0, name: (0.5, 0.5)}), channel_probability=0.5)
    image = image_of(3, 6, 6, 6)
    changed = np.zeros((200, 3), dtype=bool)
    for seed in range(200):
        varied = image.clone()
        vary_intensity(varied, config, False, np.random.default_rng(seed))
        changed[seed] = (varied != image).flatten(1).any(1).numpy()
    assert changed.mean(0) == pytest.approx([0.5] * 3, abs=0.15)
    assert len(np.unique(changed, axis=0)) == 8


def test_intensities_depend_on_the_generator_alone():
    image = image_of(2, 8, 8, 8)
    config = dataclasses.replace(AugmentConfig(), **{f"{name}_probability": 1.0 for name in INTENSITIES})
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(results))
        results.append(image.clone())
        vary_intensity(results[-1], config, True, np.random.default_rng(seed))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    vary_intensity(results[0], STILL, False, np.random.default_rng(0))
    assert torch.equal(results[0], results[1])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, value) for name in CHANCES for value in (-0.1, 1.1)],
        ("rotation_degrees", -1.0),
        ("mirror_axes", (3,)),
        ("scale", (0.0, 1.0)),
        ("scale", (1.4, 0.7)),
        ("elastic", (0.0, 0.5)),
        ("noise", (-0.1, 0.1)),
        ("blur", (0.0, 1.0)),
        ("gamma", (0.7, float("inf"))),
        ("contrast", (float("nan"), 1.0)),
        ("low_resolution", (0.5, 1.5)),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(MedContextError, match=f"'{name}'"):
        AugmentConfig(**{name: value})
