"""Patches: a function of seed and step, with image and label moving as one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medcontext.data.augment import reach, spatial_matrix, vary_intensity, warp
from medcontext.data.augment_config import AugmentConfig
from medcontext.data.cache import cache_key, prepare_all
from medcontext.data.check import check_dataset
from medcontext.data.dataset import open_dataset
from medcontext.data.plan import make_plan
from medcontext.data.prepare import read_prepared
from medcontext.data.sampling import PatchBatches, cut
from medcontext.data.split import make_split
from medcontext.errors import MedContextError

STILL = AugmentConfig(spatial_probability=0, intensity_probability=0)
names = st.lists(st.text("abcdef", min_size=1, max_size=4), min_size=5, max_size=40, unique=True)


@pytest.fixture(scope="module")
def prepared(tiny, tmp_path_factory):
    dataset = open_dataset(tiny)
    plan = dataclasses.replace(make_plan(check_dataset(dataset)), patch=(16, 16, 16))
    return prepare_all(dataset.cases.values(), plan, tmp_path_factory.mktemp("cache")), plan


@given(names=names, seed=st.integers(0, 99), test=st.floats(0, 0.4), validation=st.floats(0, 0.4))
def test_a_split_is_a_partition_that_only_the_seed_decides(names, seed, test, validation):
    split = make_split(names, test_share=test, validation_share=validation, seed=seed)
    assert sorted([*split.train, *split.validation, *split.test]) == sorted(names)
    assert split == make_split(reversed(names), test_share=test, validation_share=validation, seed=seed)
    assert bool(split.test) == (test > 0)
    assert bool(split.validation) == (validation > 0)


@given(patients=st.integers(4, 12), seed=st.integers(0, 99))
def test_no_patient_is_on_two_sides(patients, seed):
    cases = [f"P{patient:02d}_phase{phase}" for patient in range(patients) for phase in range(patient % 3 + 1)]
    split = make_split(cases, test_share=0.3, validation_share=0.2, seed=seed, patient=r"(P\d+)_")
    sides = [{name[:3] for name in part} for part in (split.train, split.validation, split.test)]
    assert sum(map(len, sides)) == len(set.union(*sides)) == patients


def test_hippocampus_is_split_160_to_40():
    split = make_split(map(str, range(200)), test_share=0.2, validation_share=0.1, seed=0)
    assert (len(split.train), len(split.validation), len(split.test)) == (144, 16, 40)


def test_too_few_cases_are_refused():
    with pytest.raises(MedContextError, match="too few cases"):
        make_split(["a", "b"], test_share=0.2, validation_share=0.2, seed=0)
    with pytest.raises(MedContextError, match="No patient"):
        make_split(["a", "b", "c"], test_share=0.2, validation_share=0.2, seed=0, patient="x")


def test_a_batch_is_a_function_of_seed_and_step(prepared):
    folders, plan = prepared
    first = PatchBatches(folders, plan, AugmentConfig(), seed=1, steps=9)
    again = PatchBatches(folders, plan, AugmentConfig(), seed=1, steps=9)
    batch = first[5]
    [first[step] for step in (0, 3)]
    assert batch["image"].shape == (2, 1, 16, 16, 16)
    assert batch["image"].dtype == torch.float32
    assert batch["label"].shape == (2, 16, 16, 16)
    assert batch["label"].dtype == torch.int64
    for other, same in ((again[5], True), (first[5], True), (first[6], False)):
        assert torch.equal(batch["image"], other["image"]) is same
    assert not torch.equal(batch["image"], PatchBatches(folders, plan, AugmentConfig(), 2, 9)[5]["image"])
    with pytest.raises(IndexError):
        first[9]


def test_every_case_is_seen_once_before_any_is_seen_twice(prepared):
    folders, plan = prepared
    batches = PatchBatches(folders, plan, STILL, seed=0, steps=8)
    seen = [name for step in range(8) for name in batches[step]["cases"]]
    assert sorted(seen[:8]) == sorted(seen[8:]) == sorted(folders)
    assert seen[:8] != seen[8:]


def test_patches_are_cut_out_of_their_case_unchanged(prepared):
    folders, plan = prepared
    batches = PatchBatches(folders, plan, STILL, seed=0, steps=6)
    for step in range(6):
        batch = batches[step]
        for image, label, name in zip(batch["image"], batch["label"], batch["cases"], strict=True):
            case = read_prepared(folders[name])
            padded = np.pad(case.image[0], 16)
            inside = image[0].numpy()
            places = np.argwhere(padded == inside[8, 8, 8])
            assert any(
                np.array_equal(padded[z - 8 : z + 8, y - 8 : y + 8, x - 8 : x + 8], inside)
                and np.array_equal(np.pad(case.label, 16)[z - 8 : z + 8, y - 8 : y + 8, x - 8 : x + 8], label.numpy())
                for z, y, x in places
            )


@given(start=st.tuples(*[st.integers(-9, 9)] * 3), size=st.tuples(*[st.integers(1, 8)] * 3))
def test_a_box_beyond_the_border_is_filled(start, size):
    array = np.random.default_rng(0).normal(size=(2, 5, 6, 7))
    padded = np.pad(array, ((0, 0), *[(20, 20)] * 3), constant_values=-3.5)
    z, y, x = (first + 20 for first in start)
    expected = padded[:, z : z + size[0], y : y + size[1], x : x + size[2]]
    assert np.array_equal(cut(array, start, size, -3.5), expected)


@given(seed=st.integers(0, 500), spacing=st.sampled_from([(1, 1, 1), (4, 1, 1), (0.5, 1, 2)]))
@settings(deadline=None, max_examples=40)
def test_image_and_label_move_together(seed, spacing):
    """A label painted into the image lies where the label lies after any rotation, scaling and mirroring."""
    config = AugmentConfig(spatial_probability=1, mirror_axes=(0, 2), rotation_degrees=40, scale=0.3)
    patch = (20, 22, 24)
    matrix = spatial_matrix(config, spacing, np.random.default_rng(seed))
    box = reach(matrix, patch)
    label = torch.zeros(box, dtype=torch.uint8)
    centre = [size // 2 for size in box]
    label[tuple(slice(c - 6, c + 5) for c in centre)] = 1
    image, moved = warp(label[None].float(), label, matrix, patch)
    assert moved.shape == patch
    inside, outside = image[0][moved == 1], image[0][moved == 0]
    assert moved.sum() > 100
    # Linear and nearest interpolation agree on the side of the edge: above a half inside, below it outside.
    assert (inside > 0.12).all()
    assert (outside < 0.88).all()
    assert abs((image[0] > 0.5).float().mean() - (moved == 1).float().mean()) < 0.02


def test_a_warp_is_the_rotation_it_says():
    """A quarter turn about the slice axis, against numpy's."""
    image = torch.randn(1, 9, 9, 9, dtype=torch.float64).float()
    turn = torch.tensor([[1, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=torch.float64)
    moved, label = warp(image, (image[0] > 0).to(torch.uint8), turn, (9, 9, 9))
    expected = np.rot90(image[0].numpy(), 1, (1, 2))
    matches = [np.allclose(moved[0].numpy(), np.rot90(image[0].numpy(), k, (1, 2)), atol=1e-4) for k in (1, 3)]
    assert matches.count(True) == 1, expected
    assert torch.equal(label.bool(), moved[0] > 0)


def test_rotations_stay_in_the_plane_of_thick_slices_and_are_true_in_millimetres():
    config = AugmentConfig(spatial_probability=1, scale=0)
    matrix = spatial_matrix(config, (8.0, 1.0, 2.0), np.random.default_rng(0)).numpy()
    assert matrix[0].tolist() == [1, 0, 0]
    metric = np.diag([8.0, 1.0, 2.0])
    turn = metric @ matrix @ np.linalg.inv(metric)
    assert np.allclose(turn @ turn.T, np.eye(3))
    assert not np.allclose(turn, np.eye(3))


def test_intensities_vary_by_the_generator_only():
    image = torch.randn(1, 8, 8, 8)
    config = AugmentConfig(intensity_probability=1)
    first, again, other = (vary_intensity(image, config, np.random.default_rng(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(vary_intensity(image, STILL, np.random.default_rng(0)), image)


def test_the_cache_knows_content_and_plan(own_tiny, tmp_path):
    dataset = open_dataset(own_tiny)
    plan = make_plan(check_dataset(dataset))
    case = dataset.cases["case_00"]
    key = cache_key(case, plan)
    assert cache_key(case, dataclasses.replace(plan, patch=(8, 8, 8), steps=7)) == key
    assert cache_key(case, dataclasses.replace(plan, spacing=(2, 2, 2))) != key
    assert cache_key(dataset.cases["case_01"], plan) != key
    first = prepare_all(dataset.cases.values(), plan, tmp_path / "cache")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")}
    assert len(before) == 8
    assert prepare_all(dataset.cases.values(), plan, tmp_path / "cache") == first
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")}
    case.label.write_bytes(dataset.cases["case_01"].label.read_bytes())
    assert cache_key(case, plan) != key
