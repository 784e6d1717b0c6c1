"""Scans without a label: learned from through the teacher alone, reproducibly, and their truth, if any, never read."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from medcontext.data.augment_config import AugmentConfig
from medcontext.data.cache import cache_key, prepare_all
from medcontext.data.case import UnlabelledCase
from medcontext.data.check import check_dataset
from medcontext.data.dataset import open_dataset
from medcontext.data.plan import make_plan
from medcontext.data.prepare import Prepared, read_prepared, write_prepared
from medcontext.data.sampling import PatchBatches
from medcontext.data.scan import read_labels
from medcontext.errors import MedContextError
from medcontext.inference.model import load_tensors
from medcontext.method.objective import MedContext
from medcontext.method.presets import PRESETS, MethodConfig
from medcontext.training.cases import split_for, unlabelled_for
from medcontext.training.config import TrainConfig
from medcontext.training.distribution import require_equal_shares
from medcontext.training.run import RunFolder
from medcontext.training.train import train
from tests.conftest import THREE_PASSES, make_tiny
from tests.test_distributed import command
from tests.test_train import KILLED_AT_STEP_7, SECONDS, same

FEW = {
    "few_shot": 2,
    "unlabelled_batch": 2,
    "method": dataclasses.replace(PRESETS["medcontext"], consistency_weight=1.0),
}
STILL = AugmentConfig(
    **{each.name: 0.0 for each in dataclasses.fields(AugmentConfig) if each.name.endswith("_probability")}
)


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> TrainConfig:
    return TrainConfig(cache=tmp_path_factory.mktemp("cache"), **SECONDS, **FEW)


@pytest.fixture(scope="module")
def trained(tiny, settings, tmp_path_factory) -> RunFolder:
    return RunFolder(train(tiny, tmp_path_factory.mktemp("runs") / "whole", settings))


@pytest.fixture(scope="module")
def prepared(tiny, tmp_path_factory):
    """Three cases with and five without their label, and their plan."""
    dataset = open_dataset(tiny)
    plan = dataclasses.replace(make_plan(check_dataset(dataset)), patch=(16, 16, 16))
    cache = tmp_path_factory.mktemp("cache")
    names = sorted(dataset.cases)
    labelled = prepare_all([dataset.cases[name] for name in names[:3]], plan, cache)
    return labelled, prepare_all([dataset.without_label(name) for name in names[3:]], plan, cache), plan


def draw(prepared, seed: int = 0, share: tuple[int, int] = (0, 1), unlabelled_batch: int = 2) -> PatchBatches:
    labelled, unlabelled, plan = prepared
    return PatchBatches(labelled, plan, AugmentConfig(), seed, 20, share, unlabelled, unlabelled_batch)


def test_labelled_patches_are_the_same_with_and_without_unlabelled_ones(prepared):
    alone, beside = draw(prepared, unlabelled_batch=0), draw(prepared)
    for step in (0, 7):
        one, more = alone[step], beside[step]
        assert torch.equal(more["image"][:2], one["image"])
        assert torch.equal(more["label"][:2], one["label"])
        assert (one["labelled"], more["labelled"]) == ([True] * 2, [True, True, False, False])
        assert more["cases"][:2] == one["cases"]
        assert more["cases"] == beside.cases(step)
        assert not more["label"][2:].any()
        assert torch.equal(more["image"], draw(prepared)[step]["image"])
        assert not torch.equal(more["image"][2:], draw(prepared, seed=1)[step]["image"][2:])
        assert not torch.equal(more["image"][2], more["image"][3])
    seen = [name for step in range(20) for name in beside[step]["cases"][2:]]
    turns = [seen[first : first + 5] for first in range(0, 40, 5)]
    assert all(sorted(turn) == sorted(prepared[1]) for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 1


def test_both_draw_of_one_scan_by_chance_of_their_own(prepared):
    """The same scan on both sides: nothing of the one side shows on the other."""
    _, scans, plan = prepared
    batch = PatchBatches(scans, plan, AugmentConfig(), 0, 20, unlabelled=scans, unlabelled_batch=2)[0]
    assert not torch.equal(batch["image"][:2], batch["image"][2:])


def test_shares_of_a_batch_are_the_whole_batch(prepared):
    parts = [draw(prepared, share=(rank, 2))[3] for rank in range(2)]
    whole = draw(prepared)[3]
    for group in (slice(0, 1), slice(1, 2)):
        rows = slice(2 * group.start, 2 * group.stop)
        assert torch.equal(torch.cat([part["image"][group] for part in parts]), whole["image"][rows])
        assert [name for part in parts for name in part["cases"][group]] == whole["cases"][rows]
    assert [part["labelled"] for part in parts] == [[True, False]] * 2


def test_unlabelled_patches_lie_anywhere(prepared, tmp_path):
    """Of an image whose voxels say where they are, all corners are met, each about as often as any other."""
    plan = prepared[2]
    ramp = np.arange(24, dtype=np.float32)
    image = np.stack(np.meshgrid(ramp, ramp, ramp, indexing="ij"))
    write_prepared(tmp_path / "case", Prepared(image, None, ()))
    plan = dataclasses.replace(plan, channels=3)
    batches = PatchBatches(
        {}, dataclasses.replace(plan, batch_size=0), STILL, 0, 300, (0, 1), {"c": tmp_path / "case"}, 1
    )
    corners = np.array([batches[step]["image"][0, :, 0, 0, 0].tolist() for step in range(300)])
    for axis in range(3):
        counts = np.bincount(corners[:, axis].astype(int), minlength=9)
        assert len(counts) == 9
        assert ((counts - 300 / 9) ** 2 / (300 / 9)).sum() < 26.1, "chi-square, 8 degrees of freedom, p = 0.001"


def test_a_case_is_prepared_without_reading_its_label(tiny, prepared, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(tiny, data)
    dataset, plan = open_dataset(data), prepared[2]
    name, *_ = dataset.cases
    dataset.cases[name].label.write_bytes(b"no label map")
    (folder,) = prepare_all([dataset.without_label(name)], plan, tmp_path / "cache").values()
    case = read_prepared(folder)
    assert (case.label, case.places) == (None, ())
    assert sorted(path.name for path in folder.iterdir()) == ["image.b2nd", "places.npz"]
    whole = open_dataset(tiny).cases[name]
    (other,) = prepare_all([whole], plan, tmp_path / "cache").values()
    assert other != folder
    as_a_channel = UnlabelledCase(name, (*whole.images, whole.label), name)
    assert cache_key(as_a_channel, plan) != cache_key(whole, plan)
    (other / "label.b2nd").unlink()
    with pytest.raises(MedContextError, match="damaged"):
        read_prepared(other)


def with_garbage(tiny: Path, data: Path, names) -> Path:
    """The same data, with the voxels of these label maps in random order: the same classes, and no truth."""
    shutil.copytree(tiny, data)
    rng = np.random.default_rng(0)
    for name in names:
        path = data / "labelsTr" / f"{name}.nii.gz"
        image = nib.load(path)
        shuffled = rng.permutation(np.asarray(image.dataobj).ravel()).reshape(image.shape)
        nib.save(nib.Nifti1Image(shuffled, image.affine, image.header), path)
        assert not np.array_equal(read_labels(path).array, read_labels(tiny / "labelsTr" / path.name).array)
    return data


def test_the_truth_of_unlabelled_cases_is_never_learned_from(trained, tiny, settings, tmp_path):
    unlabelled = json.loads(trained.about.read_text())["unlabelled"]
    split = trained.read_split()
    assert len(split.train) == 2
    assert set(unlabelled) == {f"case_{k:02d}" for k in range(8)} - {*split.train, *split.validation, *split.test}
    fresh = dataclasses.replace(settings, cache=tmp_path / "cache")
    data = with_garbage(tiny, tmp_path / "garbage", unlabelled)
    assert same(RunFolder(train(data, tmp_path / "garbage_run", fresh)), trained)
    data = with_garbage(tiny, tmp_path / "spoiled", split.train[:1])
    assert not same(RunFolder(train(data, tmp_path / "spoiled_run", fresh)), trained)


def test_unlabelled_scans_teach_through_the_teacher_alone(tiny, settings, tmp_path):
    """The supervised loss of the first step is that of the same patches without them."""
    short = dataclasses.replace(settings, method=THREE_PASSES, max_steps=2, log_every=1, validations=1)
    beside = RunFolder(train(tiny, tmp_path / "beside", short))
    without = RunFolder(train(tiny, tmp_path / "without", dataclasses.replace(short, unlabelled_batch=0)))
    assert without.read_split() == beside.read_split()
    one, other = without.history()[0], beside.history()[0]
    assert one["loss/clean"] == other["loss/clean"]
    assert one["loss/consistency"] != other["loss/consistency"]
    assert not same(without, beside)


def test_a_killed_run_goes_on_bit_by_bit(trained, tiny, settings, tmp_path):
    arguments = [str(tiny), str(tmp_path / "killed"), str(settings.cache), repr(SECONDS | FEW)]
    killed = subprocess.run([sys.executable, "-c", KILLED_AT_STEP_7, *arguments], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run = RunFolder(tmp_path / "killed")
    assert load_tensors(run.last)["method"]["step"] == 4
    train(tiny, run.path, settings, resume=True)
    assert same(run, trained)


def test_two_processes_learn_the_same_as_one(tiny, settings, tmp_path):
    changes = {"max_steps": 2, "log_every": 1, "validations": 1, "validation_share": 0.2}
    pinned = dataclasses.replace(THREE_PASSES, mask_patch=(8, 8, 8))
    short = dataclasses.replace(settings, method=pinned, **changes)
    one, two = RunFolder(train(tiny, tmp_path / "one", short)), RunFolder(tmp_path / "two")
    more = ("--devices", 2, "--few-shot", 2, "--unlabelled-batch", 2)
    done = subprocess.run(
        [sys.executable, *command(tiny, two, short, *more)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for single, double in zip(one.history(), two.history(), strict=True):
        for name in ("loss/clean", "loss/masked", "loss/consistency") if single["kind"] == "train" else ():
            assert double[name] == pytest.approx(single[name], rel=1e-4)


def test_processes_can_not_share_an_odd_number(monkeypatch):
    fabric = Fabric(accelerator="cpu", devices=1)
    monkeypatch.setattr(Fabric, "world_size", 2)
    with pytest.raises(MedContextError, match="shared equally") as error:
        require_equal_shares(1, fabric, "--unlabelled-batch")
    assert "--unlabelled-batch 2" in error.value.remedy


@pytest.mark.parametrize("fill", ["mean", "noise"])
def test_masks_that_processes_share_are_those_of_one(fill):
    config = MethodConfig(mask_patch=(2, 2, 2), fill=fill)
    drawn = []
    for share, samples, known in (((0, 1), 6, 4), ((0, 2), 3, 2), ((1, 2), 3, 2)):
        method = MedContext(torch.nn.Conv3d(1, 2, 1), config, total_steps=1, share=share)
        image = torch.zeros(samples, 1, 8, 8, 8)
        drawn.append((method.draw_mask(image, range(known)), method._draw_noise(image, known)))
    for whole, first, second in zip(*drawn, strict=True):
        if whole is not None:
            assert torch.equal(torch.cat([first[:2], second[:2], first[2:], second[2:]]), whole)


def test_unlabelled_samples_are_spared_the_clean_pass():
    seen = []
    image, label = torch.randn(3, 1, 8, 8, 8), torch.randint(2, (3, 8, 8, 8))
    gradients = []
    for passes in ("apart", "together"):
        torch.manual_seed(0)
        network = torch.nn.Conv3d(1, 2, 3, padding=1)
        method = MedContext(
            network, dataclasses.replace(THREE_PASSES, mask_patch=(2, 2, 2), passes=passes), total_steps=1
        )
        network.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
        method(image, label, labelled=[True, False, True], diagnose=True)["total"].backward()
        gradients.append(network.weight.grad)
    assert seen == [2, 3, 5]
    assert torch.allclose(*gradients, atol=1e-6)


def without_labels(root: Path, names) -> Path:
    for name in names:
        (root / "labelsTr" / f"{name}.nii.gz").unlink()
    return root


def test_images_without_a_label_are_an_oversight_unless_they_are_asked_for(tmp_path, settings):
    data = without_labels(make_tiny(tmp_path / "data"), ["case_06", "case_07"])
    short = dataclasses.replace(settings, max_steps=2, validations=1, few_shot=None)
    with pytest.raises(MedContextError, match="no label map") as error:
        train(data, tmp_path / "refused", dataclasses.replace(short, unlabelled_batch=0))
    assert "--unlabelled-batch" in error.value.remedy
    run = RunFolder(train(data, tmp_path / "run", short))
    assert json.loads(run.about.read_text())["unlabelled"] == ["case_06", "case_07"]
    train(data, run.path, short, resume=True)


def test_no_unlabelled_scan_is_of_a_patient_who_is_held_out(tmp_path, settings):
    data = without_labels(make_tiny(tmp_path / "data"), ["case_06", "case_07"])
    for path in sorted(data.rglob("*.nii.gz")):
        number = int(path.name[5:7])
        path.rename(path.with_name(f"p{number % 6}_{number}.nii.gz"))
    report = check_dataset(open_dataset(data).with_patients("^(p.)"))
    counts = set()
    for seed in range(60):
        asked, said = dataclasses.replace(settings, few_shot=3, split_seed=seed), []
        split = split_for(report, asked, said.append)
        held = {name[:2] for name in (*split.validation, *split.test)}
        rest = {f"p{k}_{k}" for k in range(6)} - {*split.train, *split.validation, *split.test}
        free = {name for name in ("p0_6", "p1_7") if name[:2] not in held}
        assert set(unlabelled_for(report, asked, split, said.append)) == rest | free
        assert f"from 1 training cases left out by few_shot, and from {len(free)} of 2 scans" in said[-1]
        counts.add(len(free))
    assert counts == {0, 1, 2}


def test_nothing_to_learn_from_is_said(tiny, settings, tmp_path):
    with pytest.raises(MedContextError, match="no scans to learn from") as error:
        train(tiny, tmp_path / "run", dataclasses.replace(settings, few_shot=None))
    assert "few_shot" in error.value.remedy
    assert not (tmp_path / "run").exists()
    for changes in (
        {"preset": "supervised"},
        {"preset": "medcontext"},
        {"method": dataclasses.replace(PRESETS["paper"], consistency_weight=0.0)},
    ):
        with pytest.raises(MedContextError, match="Nothing would be learned"):
            TrainConfig(unlabelled_batch=1, **changes)


def test_regions_and_ignored_voxels_go_with_unlabelled_scans(tmp_path, settings):
    data = make_tiny(tmp_path / "data")
    description = json.loads((data / "dataset.json").read_text())
    description["labels"] = {"background": 0, "both": [1, 2], "high": [2], "ignore": 7}
    (data / "dataset.json").write_text(json.dumps({**description, "regions_class_order": [1, 2]}))
    for path in sorted((data / "labelsTr").iterdir()):
        image = nib.load(path)
        label = np.asarray(image.dataobj).copy()
        label[:3] = 7
        nib.save(nib.Nifti1Image(label, image.affine, image.header), path)
    run = RunFolder(train(data, tmp_path / "run", dataclasses.replace(settings, max_steps=4, log_every=1)))
    rows = [row for row in run.history() if row["kind"] == "train"]
    assert all({"loss/masked", "loss/consistency", "context_score"} <= row.keys() for row in rows)
    unlabelled = json.loads(run.about.read_text())["unlabelled"]
    fresh = dataclasses.replace(settings, max_steps=4, log_every=1, cache=tmp_path / "cache")
    other = with_garbage(data, tmp_path / "garbage", unlabelled)
    assert same(RunFolder(train(other, tmp_path / "again", fresh)), run)
