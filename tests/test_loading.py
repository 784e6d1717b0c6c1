"""Batches made ahead are those made one by one."""

from __future__ import annotations

import dataclasses
import threading
import traceback

import pytest
import torch

from medcontext.data.augment_config import AugmentConfig
from medcontext.data.cache import prepare_all
from medcontext.data.check import check_dataset
from medcontext.data.dataset import open_dataset
from medcontext.data.loading import batches_of
from medcontext.data.plan import make_plan
from medcontext.data.sampling import PatchBatches


@pytest.fixture(scope="module")
def batches(tiny, tmp_path_factory) -> PatchBatches:
    dataset = open_dataset(tiny)
    plan = dataclasses.replace(make_plan(check_dataset(dataset)), patch=(16, 16, 16))
    folders = prepare_all(dataset.cases.values(), plan, tmp_path_factory.mktemp("cache"))
    return PatchBatches(folders, plan, AugmentConfig(), seed=0, steps=40)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_make_the_same_batches_in_the_same_order(batches, workers):
    before = torch.get_num_threads()
    made = list(batches_of(batches, range(5, 40), workers))
    assert len(made) == 35
    assert torch.get_num_threads() == before
    for ahead, alone in zip(made, batches_of(batches, range(5, 40), 0), strict=True):
        assert ahead["cases"] == alone["cases"]
        assert torch.equal(ahead["image"], alone["image"])
        assert torch.equal(ahead["label"], alone["label"])


def test_what_goes_wrong_is_raised_as_it_was(batches, monkeypatch):
    def broken(name: str, rng: object) -> None:
        raise ZeroDivisionError(name)

    monkeypatch.setattr(batches, "_patch", broken)
    with pytest.raises(ZeroDivisionError) as caught:
        next(batches_of(batches, range(3), 2))
    assert "in broken" in "".join(traceback.format_exception(caught.value))


def test_nothing_is_left_behind_by_one_who_stops_early(batches):
    some = batches_of(batches, range(40), 2)
    next(some)
    assert any(thread.name.startswith("patches") for thread in threading.enumerate())
    some.close()
    assert not any(thread.name.startswith("patches") for thread in threading.enumerate())
