"""Patches: a function of seed and step, with image and label moving as one."""

from __future__ import annotations

import dataclasses
import gc
import math
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from medcontext.data import sampling
from medcontext.data.augment_config import AugmentConfig
from medcontext.data.cache import prepare_all
from medcontext.data.check import check_dataset
from medcontext.data.dataset import open_dataset
from medcontext.data.plan import Normalisation, make_plan
from medcontext.data.prepare import Prepared, read_prepared, write_prepared
from medcontext.data.sampling import OPEN_CASES, PatchBatches, cut

CHANCES = [field.name for field in dataclasses.fields(AugmentConfig) if field.name.endswith("_probability")]
STILL = AugmentConfig(**dict.fromkeys(CHANCES, 0.0))
EVERYTHING = AugmentConfig(**dict.fromkeys(CHANCES, 0.7), mirror_axes=(0, 1, 2))


@pytest.fixture(scope="module")
def prepared(tiny, tmp_path_factory):
    dataset = open_dataset(tiny)
    plan = dataclasses.replace(make_plan(check_dataset(dataset)), patch=(16, 16, 16))
    return prepare_all(dataset.cases.values(), plan, tmp_path_factory.mktemp("cache")), plan


def test_a_batch_is_a_function_of_seed_and_step(prepared):
    folders, plan = prepared
    first = PatchBatches(folders, plan, AugmentConfig(), seed=1, steps=9)
    again = PatchBatches(folders, plan, AugmentConfig(), seed=1, steps=9)
    batch = first[5]
    [first[step] for step in (0, 3)]
    assert batch["image"].shape == (2, 1, 16, 16, 16)
    assert batch["image"].dtype == torch.float32
    assert batch["label"].shape == (2, 16, 16, 16)
    assert batch["label"].dtype == torch.uint8
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


def test_a_box_is_read_once_and_by_slicing_alone():
    """Compressed arrays decompress at every access, and know no numpy functions."""

    class Stored:
        shape, dtype = (2, 5, 6, 7), np.dtype(np.int16)
        read: list[int] = []  # noqa: RUF012

        def __getitem__(self, key):
            part = values[key]
            self.read.append(part.size)
            return part

    values = np.arange(2 * 5 * 6 * 7, dtype=np.int16).reshape(Stored.shape)
    box = cut(Stored(), (3, -2, 1), (4, 4, 4), -1)
    assert Stored.read == [2 * 2 * 2 * 4]
    assert np.array_equal(box, cut(values, (3, -2, 1), (4, 4, 4), -1))
    assert box.dtype == np.int16


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_whatever_the_workers_and_the_threads(prepared, workers):
    """In the training process PyTorch has several threads, in a worker one; sums must not round differently."""
    folders, plan = prepared
    batches = PatchBatches(folders, dataclasses.replace(plan, patch=(24, 40, 40)), EVERYTHING, seed=3, steps=8)
    alone = [batches[step] for step in range(8)]
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for one, other in zip(alone, DataLoader(batches, batch_size=None, num_workers=workers), strict=True):
            assert torch.equal(one["image"], other["image"])
            assert torch.equal(one["label"], other["label"])
            assert one["cases"] == other["cases"]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def stored_case(folder: Path, label: np.ndarray, kind: type = np.float32) -> Path:
    """A case whose image is its label."""
    found = tuple(np.argwhere(label == k).astype(np.int32) for k in range(1, label.max() + 1))
    write_prepared(folder, Prepared(label[None].astype(kind), label, found))
    return folder


def test_a_structure_of_a_few_voxels_is_seen_as_often_as_a_large_one(prepared, tmp_path):
    label = np.zeros((64, 64, 64), dtype=np.uint8)
    label[:, :, :26] = 1
    label[60, 50:55, 40:48] = 2
    assert (label == 2).mean() < 0.00016
    plan = dataclasses.replace(prepared[1], patch=(16, 16, 16))
    batches = PatchBatches({"case": stored_case(tmp_path / "case", label)}, plan, STILL, seed=0, steps=200)
    seen = np.mean([[bool((part == 2).any()) for part in batches[step]["label"]] for step in range(200)])
    # Half of the patches are drawn to a class, and half of those to this one; hardly any other patch meets it.
    assert seen == pytest.approx(0.25 + 0.75 * 0.02, abs=4 * math.sqrt(0.25 * 0.75 / 400))


def test_ignored_voxels_stay_ignored_and_what_lies_beyond_a_scan_is_background(prepared, tmp_path):
    label = np.full((10, 12, 40), -1, dtype=np.int16)
    label[:, :, 20:] = 1
    plan = dataclasses.replace(prepared[1], patch=(16, 16, 16))
    folders = {"case": stored_case(tmp_path / "case", label)}
    for augment in (STILL, EVERYTHING):
        seen = set()
        for batch in (PatchBatches(folders, plan, augment, seed=0, steps=12)[step] for step in range(12)):
            assert batch["label"].dtype == torch.int16
            seen |= set(batch["label"].unique().tolist())
        assert seen == {-1, 0, 1}
    batch = PatchBatches(folders, plan, STILL, seed=0, steps=1)[0]
    inside = batch["label"] != 0
    assert inside.flatten(1).sum(1).tolist() == [10 * 12 * 16] * 2
    assert torch.equal(batch["image"][:, 0][inside], batch["label"][inside].float())


def test_beyond_a_ct_scan_lies_air(prepared, tmp_path):
    """As in prediction: of another value there, every border would be new to the network."""
    plan = dataclasses.replace(prepared[1], normalisation=Normalisation("ct", -200.0, 300.0, 50.0, 80.0))
    folders = {"case": stored_case(tmp_path / "case", np.ones((10, 12, 14), dtype=np.uint8))}
    batch = PatchBatches(folders, plan, STILL, seed=0, steps=1)[0]
    beyond = batch["label"] == 0
    assert beyond.flatten(1).sum(1).tolist() == [16**3 - 10 * 12 * 14] * 2
    assert set(batch["image"][:, 0][beyond].tolist()) == {(-200 - 50) / 80}
    assert set(batch["image"][:, 0][~beyond].tolist()) == {1.0}


@pytest.mark.parametrize(("spacing", "thick"), [((1.5, 0.8, 0.7), False), ((5.0, 0.8, 0.7), True)])
def test_patches_are_turned_in_millimetres_and_thick_slices_kept_apart(prepared, monkeypatch, spacing, thick):
    """What that does to a patch is tested where it is done; here, that the plan's spacing is what decides."""
    folders, plan = prepared
    turned, varied = Mock(wraps=sampling.draw_deformation), Mock(wraps=sampling.vary_intensity)
    monkeypatch.setattr(sampling, "draw_deformation", turned)
    monkeypatch.setattr(sampling, "vary_intensity", varied)
    PatchBatches(folders, dataclasses.replace(plan, spacing=spacing), EVERYTHING, seed=0, steps=1)[0]
    assert [call.args[1] for call in turned.call_args_list] == [spacing] * plan.batch_size
    assert [call.args[2] for call in varied.call_args_list] == [thick] * plan.batch_size


def test_images_stored_in_half_precision_become_single(prepared, tmp_path):
    label = np.ones((20, 20, 20), dtype=np.uint8)
    folders = {"case": stored_case(tmp_path / "case", label, np.float16)}
    batch = PatchBatches(folders, prepared[1], EVERYTHING, seed=0, steps=1)[0]
    assert batch["image"].dtype == torch.float32


def test_what_is_held_in_memory_does_not_grow_with_the_cases(prepared, tmp_path):
    folders, plan = prepared
    many = {}
    for place in range(3 * OPEN_CASES):
        many[f"case {place}"] = tmp_path / str(place)
        many[f"case {place}"].symlink_to(list(folders.values())[place % len(folders)])
    batches = PatchBatches(many, plan, STILL, seed=0, steps=len(many) // plan.batch_size)
    assert len({name for step in range(len(batches)) for name in batches[step]["cases"]}) == 3 * OPEN_CASES
    gc.collect()
    # isinstance would wake every lazy object of every library.
    assert 0 < sum(type(each) is Prepared for each in gc.get_objects()) <= OPEN_CASES
