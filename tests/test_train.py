"""A training in its folder: whole, repeatable, resumable, and never at the cost of what is there already."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from medcontext.data.dataset import open_dataset
from medcontext.data.plan_file import read_plan
from medcontext.data.scan import read_labels, read_scan
from medcontext.errors import MedContextError
from medcontext.inference.model import load_model, load_tensors, save_tensors
from medcontext.inference.predict import predict_files
from medcontext.inference.predictor import Predictor
from medcontext.inference.scans import find_scans
from medcontext.method.presets import PRESETS
from medcontext.networks.registry import network_spec
from medcontext.studies.run_facts import facts
from medcontext.training import loop
from medcontext.training.config import TrainConfig
from medcontext.training.resume import to_resume
from medcontext.training.run import RunFolder
from medcontext.training.train import train
from tests.conftest import write_nifti

NETWORK = {"features": [4, 8, 8], "strides": [[1] * 3, [2] * 3, [2] * 3], "kernels": [[3] * 3] * 3}
SECONDS = {
    "network_settings": NETWORK,
    "patch": (16, 16, 16),
    "max_steps": 12,
    "log_every": 3,
    "save_every": 4,
    "validations": 2,
    "precision": "fp32",
}
"""Settings of a training of seconds."""

KILLED_AT_STEP_7 = """
import os, signal, sys
from pathlib import Path
from medcontext.training import loop
from medcontext.method.presets import MethodConfig
from medcontext.training.config import TrainConfig
from medcontext.training.train import train

data, out, cache, settings = sys.argv[1:]
done, step = 0, loop.train_step

def counted(*arguments):
    global done
    done += 1
    if done == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*arguments)

loop.train_step = counted
train(data, out, TrainConfig(cache=Path(cache), **eval(settings)))
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> TrainConfig:
    return TrainConfig(cache=tmp_path_factory.mktemp("cache"), **SECONDS)


@pytest.fixture(scope="module")
def trained(tiny, settings, tmp_path_factory) -> RunFolder:
    return RunFolder(train(tiny, tmp_path_factory.mktemp("runs") / "whole", settings))


def weights(run: RunFolder) -> list[torch.Tensor]:
    state = load_tensors(run.last)["method"]
    return [*state["student"].values(), *(state["teacher"] or {}).values()]


@contextmanager
def breaking_off_after(steps: int) -> Iterator[None]:
    """A training in here fails where it has taken so many steps."""
    honest = loop.train_step

    def dies(training, batch):
        if training.step == steps:
            raise RuntimeError("something broke")
        return honest(training, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", dies)
        with pytest.raises(RuntimeError, match="something broke"):
            yield


def same(first: RunFolder, second: RunFolder) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))


def test_a_run_folder_holds_everything_that_made_it(trained, tiny):
    config = yaml.safe_load(trained.config.read_text())
    assert config["method"]["mask"] == "random"
    assert (config["spacing"], config["method"]["mask_patch"]) == ([1.5, 1.0, 1.0], [4, 8, 8])
    assert [key for key, value in config.items() if value is None] == [
        "pretrained", "max_time", "patience", "plan", "split", "few_shot", "patient",
    ]  # fmt: skip
    assert json.loads(trained.plan.read_text())["orientation"] == "SAR"
    split = trained.read_split()
    assert len(split.train) + len(split.validation) + len(split.test) == 8
    about = json.loads(trained.about.read_text())
    assert about["data"] == str(tiny.resolve())
    assert about["versions"]["torch"] == torch.__version__
    if (Path(__file__).parents[1] / ".git").exists():
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, check=True)
        assert about["source"].rstrip("+") == head.stdout.decode()[:12]
    rows = trained.history()
    assert [row["step"] for row in rows if row["kind"] == "train"] == [3, 6, 9, 12]
    assert [row["step"] for row in rows if row["kind"] == "validation"] == [6, 12]
    logged = {"loss/masked", "loss/total", "momentum", "context_score"}
    assert logged <= {key for row in rows for key in row}
    assert not any("gradient_share/masked" in row for row in rows), "a single term has no share"
    assert [row["step"] for row in rows if "context_score" in row] == [3, 6, 9, 12]
    assert not [path for path in trained.path.rglob("*") if path.name.startswith(".unfinished")]


def test_the_same_seed_gives_the_same_run_and_another_seed_another(trained, tiny, settings, tmp_path):
    again = RunFolder(train(tiny, tmp_path / "again", settings))
    assert same(again, trained)
    other = RunFolder(train(tiny, tmp_path / "other", dataclasses.replace(settings, seed=1)))
    assert not same(other, trained)
    assert other.read_split() == trained.read_split()


PAPER = dataclasses.replace(PRESETS["paper"], mask_patch=(8, 8, 8))
DROPPING = {"network": "nnformer", "network_settings": None, "patch": (32, 32, 32)}
"""A network that draws random numbers itself: stochastic depth."""


def test_a_setting_of_the_network_leaves_the_others_to_the_plan(tiny, settings, tmp_path):
    asked = dataclasses.replace(settings, network_settings={"features": [4, 6, 8]}, max_steps=2, validations=1)
    run = RunFolder(train(tiny, tmp_path / "run", asked))
    plan = read_plan(run.plan)
    planned = network_spec("unet").settings(plan.patch, plan.spacing, plan.scale)
    assert run.read_config()["network_settings"] == planned | {"features": [4, 6, 8]} != planned
    for wrong, message in [({"feature": [4, 6, 8]}, "no such settings"), ({"features": [4]}, "about its stages")]:
        with pytest.raises(MedContextError, match=message) as error:
            train(tiny, tmp_path / "wrong", dataclasses.replace(asked, network_settings=wrong))
        assert "features" in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [{}, {"preset": "paper", "method": PAPER}, {"preset": "supervised"}, DROPPING],
    ids=["ours", "paper", "supervised", "nnformer"],
)
def test_a_killed_run_goes_on_bit_by_bit(changes, trained, tiny, settings, tmp_path):
    """A real process is killed in the middle; what it did after its last checkpoint is done again."""
    if "network" in changes:
        spacing, patch = (1.0, 1.0, 1.0), changes["patch"]
        tiny_size = network_spec("nnformer").settings(patch, spacing, "tiny")
        assert tiny_size["stochastic_depth"] > 0
        changes = changes | {"network_settings": tiny_size}
    settings = dataclasses.replace(settings, **changes)
    whole = RunFolder(train(tiny, tmp_path / "whole", settings)) if changes else trained
    logged = {key for row in whole.history() for key in row}
    assert ({"loss/clean", "batch_dice/student", "context_gap"} <= logged) == (changes.get("preset") == "paper")
    arguments = [str(tiny), str(tmp_path / "killed"), str(settings.cache), repr(SECONDS | changes)]
    killed = subprocess.run([sys.executable, "-c", KILLED_AT_STEP_7, *arguments], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run = RunFolder(tmp_path / "killed")
    assert load_tensors(run.last)["method"]["step"] == 4
    train(tiny, run.path, settings, resume=True)
    assert same(run, whole)
    assert [row["step"] for row in run.history()] == [row["step"] for row in whole.history()]


def test_a_run_under_way_is_left_alone_and_ctrl_c_writes_its_checkpoint(tiny, settings, tmp_path):
    run = RunFolder(tmp_path / "run")
    command = [sys.executable, "-m", "medcontext", "train", str(tiny), "--out", str(run.path), "--max-steps", "100000"]
    command += ["--patch", "[16,16,16]", "--network-settings", json.dumps(NETWORK), "--cache", str(settings.cache)]
    command += ["--log-every", "2", "--precision", "fp32"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 120
    while not run.history() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    before = run.config.read_bytes()
    for way in ({"resume": True}, {"replace": True}):
        with pytest.raises(MedContextError, match="Another process is at work"):
            train(tiny, run.path, settings, **way)
    assert run.config.read_bytes() == before
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "--resume" in said
    stopped_at = load_tensors(run.last)["method"]["step"]
    assert stopped_at >= 2
    assert run.history()[-1]["step"] <= stopped_at


def test_a_folder_in_use_is_refused_and_replaced_only_if_it_is_a_run(trained, tiny, settings, tmp_path):
    with pytest.raises(MedContextError, match="exists already") as error:
        train(tiny, trained.path, settings)
    assert "--resume" in error.value.remedy
    assert "--replace" in error.value.remedy
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    (precious / "config.yaml").write_text("a: 1")
    for way in ({"replace": True}, {"resume": True}):
        with pytest.raises(MedContextError, match="something else than a run"):
            train(tiny, precious, settings, **way)
    assert (precious / "thesis.txt").read_text() == "years of work"
    (precious / "folds.json").write_text("{}")
    with pytest.raises(MedContextError, match="something else than a run") as error:
        train(tiny, precious, resume=True)
    assert "--folds" in error.value.remedy
    copy = shutil.copytree(trained.path, tmp_path / "copy")
    with pytest.raises(MedContextError, match="nothing left to see"):
        train(tiny, copy, dataclasses.replace(settings, patch=(4, 8, 8)), replace=True)
    assert same(RunFolder(copy), trained)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    train(tiny, copy, dataclasses.replace(settings, max_steps=2), replace=True)
    assert RunFolder(copy).history()[-1]["step"] == 2


def test_a_run_is_not_resumed_with_other_settings(trained, tiny, settings):
    with pytest.raises(MedContextError, match="other settings") as error:
        train(tiny, trained.path, dataclasses.replace(settings, learning_rate=0.5), resume=True)
    assert "learning_rate" in error.value.found
    with pytest.raises(MedContextError, match="other settings") as error:
        train(tiny, trained.path, dataclasses.replace(settings, preset="paper"), resume=True)
    assert "preset" in error.value.found
    before = weights(trained)
    with pytest.raises(MedContextError, match="other settings") as error:
        train(tiny, trained.path, dataclasses.replace(settings, seed=7), resume=True)
    assert error.value.found == "seed: 0 before, 7 now"
    train(tiny, trained.path, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(weights(trained), before, strict=True))


@pytest.mark.parametrize(("asked", "fits"), [(None, True), ((4, 8, 8), True), ((8, 8, 8), False)])
def test_a_hidden_patch_that_is_left_open_is_the_one_that_the_run_has(asked, fits, trained, settings):
    method = dataclasses.replace(PRESETS["medcontext"], mask_patch=asked)
    config = dataclasses.replace(settings, method=method)
    stored = trained.read_settings()
    if fits:
        assert to_resume(config, stored, trained.path) == stored
    else:
        with pytest.raises(MedContextError, match="other settings"):
            to_resume(config, stored, trained.path)


def test_a_run_is_not_resumed_by_another_plan(trained, tiny, settings, tmp_path):
    copy = RunFolder(shutil.copytree(trained.path, tmp_path / "copy"))
    plan = json.loads(copy.plan.read_text())
    copy.plan.write_text(json.dumps(plan))
    train(tiny, copy.path, settings, resume=True)
    copy.plan.write_text(json.dumps(plan | {"spacing": [2.0, 2.0, 2.0]}))
    with pytest.raises(MedContextError, match="plan has changed") as error:
        train(tiny, copy.path, settings, resume=True)
    assert "hash" in error.value.expected


def test_a_full_disk_leaves_the_older_checkpoint_whole(trained, tmp_path):
    """The real limit of a file's size stands for a full disk: writing fails half-way."""
    import resource

    path = Path(shutil.copy(trained.last, tmp_path / "last.pt"))
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(MedContextError, match="could not be written") as error:
            save_tensors(path, {"large": torch.randn(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "MB are free" in error.value.found
    assert "older checkpoint is whole" in error.value.remedy
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["last.pt"]


def test_loading_never_executes_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'executed'}",)

    for save in (torch.save, lambda value, file: file.write_bytes(pickle.dumps(value, protocol=2))):
        save({"weights": Evil(), "format": 1}, tmp_path / "evil.pt")
        with pytest.raises(MedContextError, match="not opened"):
            load_model(tmp_path / "evil.pt")
    assert not (tmp_path / "executed").exists()


def test_files_that_are_no_model_are_refused(trained, tmp_path):
    for content in (b"", b"no model", trained.best.read_bytes()[:-500]):
        (tmp_path / "bad.pt").write_bytes(content)
        with pytest.raises(MedContextError) as error:
            load_model(tmp_path / "bad.pt")
        assert error.value.file == str(tmp_path / "bad.pt")
    with pytest.raises(MedContextError, match="not a model"):
        load_model(trained.last)
    with pytest.raises(MedContextError, match="no trained model"):
        load_model(tmp_path)


def test_predictions_have_the_shape_affine_and_labels_of_their_scan(trained, tiny, tmp_path):
    predictor = Predictor.load(trained.path)
    scans = find_scans(tiny)
    assert len(scans) == 8
    assert not predict_files(predictor, scans, tmp_path / "out").failed
    for name, (path,) in scans.items():
        scan, labels = read_scan(path), read_labels(tmp_path / "out" / f"{name}.nii.gz")
        assert labels.array.shape == scan.array.shape[1:]
        assert np.array_equal(labels.affine, scan.affine)
        assert set(np.unique(labels.array)) <= {0, 1, 2}
        assert np.array_equal(predictor(scan.array[0], scan.affine), labels.array)


def test_one_bad_scan_does_not_stop_the_others(trained, tiny, tmp_path):
    folder = shutil.copytree(tiny / "imagesTr", tmp_path / "scans")
    (folder / "case_00.nii.gz").write_bytes(b"broken")
    write_nifti(folder / "case_01.nii.gz", np.ones((9, 9, 9, 3), np.float32), np.eye(4))
    write_nifti(folder / "tiny.nii.gz", np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float32), np.eye(4))
    failed = predict_files(Predictor.load(trained.path), find_scans(folder), tmp_path / "out").failed
    assert sorted(failed) == ["case_00", "case_01"]
    written = sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz"))
    assert written == [f"case_0{k}.nii.gz" for k in range(2, 8)] + ["tiny.nii.gz"]
    assert read_labels(tmp_path / "out" / "tiny.nii.gz").array.shape == (3, 2, 4)


def test_bad_data_is_refused_before_training(own_tiny, settings, tmp_path):
    label = own_tiny / "labelsTr" / "case_02.nii.gz"
    label.write_bytes(label.read_bytes()[:100])
    with pytest.raises(MedContextError, match="1 error") as error:
        train(own_tiny, tmp_path / "run", settings)
    assert error.value.file == str(label)
    assert not (tmp_path / "run" / "config.yaml").exists()
    train(
        shutil.copytree(own_tiny, tmp_path / "mended", ignore=lambda *_: ["case_02.nii.gz"]), tmp_path / "run", settings
    )


def test_resuming_without_a_case_that_was_learned_from_is_refused(own_tiny, settings, tmp_path):
    run = RunFolder(train(own_tiny, tmp_path / "run", dataclasses.replace(settings, max_steps=2)))
    name = run.read_split().train[0]
    for folder in ("imagesTr", "labelsTr"):
        (own_tiny / folder / f"{name}.nii.gz").unlink()
    with pytest.raises(MedContextError, match="has changed") as error:
        train(own_tiny, run.path, dataclasses.replace(settings, max_steps=2), resume=True)
    assert name in error.value.found


def test_a_run_that_another_process_began_meanwhile_is_left_alone(trained, tiny, settings, tmp_path, monkeypatch):
    """Both found nothing there; checking and planning takes a while."""
    out = tmp_path / "run"
    split_for = sys.modules["medcontext.training.train"].split_for

    def meanwhile(*arguments):
        shutil.copytree(trained.path, out)
        return split_for(*arguments)

    monkeypatch.setattr("medcontext.training.train.split_for", meanwhile)
    with pytest.raises(MedContextError, match="exists already"):
        train(tiny, out, dataclasses.replace(settings, max_steps=2))
    assert RunFolder(out).best.read_bytes() == trained.best.read_bytes()


def test_no_run_is_made_of_the_folder_that_one_is_in(tiny, settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("medcontext.training.train.checked", lambda *_: pytest.fail("after it was checked"))
    with pytest.raises(MedContextError, match="can't be made anew"):
        train(tiny, Path(), settings)
    assert list(tmp_path.iterdir()) == []


def test_without_validation_the_last_teacher_is_kept(own_tiny, settings, tmp_path):
    run = RunFolder(train(own_tiny, tmp_path / "run", dataclasses.replace(settings, validation_share=0, max_steps=4)))
    model = load_model(run.path)
    assert model.about["which"] == "teacher"
    assert model.about["step"] == 4
    teacher = load_tensors(run.last)["method"]["teacher"]
    assert all(torch.equal(value, teacher[name]) for name, value in model.network.state_dict().items())
    assert len(open_dataset(own_tiny).cases) == 4
    # The last step is logged though it is none that all are logged after.
    assert settings.log_every == 3
    assert facts(run)["Steps"].startswith("4 in ")


def test_of_a_run_that_is_under_way_it_is_told_how_many_steps_were_done(trained, tmp_path):
    run = RunFolder(shutil.copytree(trained.path, tmp_path / "run"))
    assert re.fullmatch(r"12 in [\d.]+ s", facts(run)["Steps"])
    run.forget_after(9)
    told = json.loads(run.about.read_text())
    del told["finished"]
    run.about.write_text(json.dumps(told))
    assert re.fullmatch(r"9 of 12 in [\d.]+ s, not finished", facts(run)["Steps"])
    run.config.write_text(yaml.safe_dump({**run.read_config(), "max_steps": 12_000, "pretrain_steps": 7}))
    assert re.fullmatch(r"9 of 12,000 in [\d.]+ s, not finished, after 7 of pre-training", facts(run)["Steps"])
    run.metrics.unlink()
    assert facts(run)["Steps"].startswith("0 of 12,000 in ")


def test_predictions_never_write_over_scans_or_a_truth(trained, own_tiny):
    predictor, scans = Predictor.load(trained.path), find_scans(own_tiny)
    for folder in ("imagesTr", "labelsTr"):
        before = {path: path.read_bytes() for path in (own_tiny / folder).iterdir()}
        with pytest.raises(MedContextError, match="written over"):
            predict_files(predictor, scans, own_tiny / folder)
        assert before == {path: path.read_bytes() for path in (own_tiny / folder).iterdir()}
    for _ in range(2):
        assert not predict_files(predictor, scans, own_tiny / "out").failed


def test_other_scans_under_the_same_names_are_not_resumed_on(own_tiny, settings, tmp_path):
    run = RunFolder(train(own_tiny, tmp_path / "run", dataclasses.replace(settings, max_steps=2)))
    moved = own_tiny.rename(tmp_path / "moved")
    train(moved, run.path, resume=True)
    assert len(json.loads(run.about.read_text())["resumed"]) == 1
    first, second = (*run.read_split().train, *run.read_split().test)[:2]
    for folder in ("imagesTr", "labelsTr"):
        shutil.copy(moved / folder / f"{second}.nii.gz", moved / folder / f"{first}.nii.gz")
    with pytest.raises(MedContextError, match="has changed") as error:
        train(moved, run.path, resume=True)
    assert first in error.value.found


def test_the_best_of_validations_that_can_fail(trained, tiny, settings, tmp_path, monkeypatch):
    """A score of nothing is no score; without any, the newest is kept until there is one."""
    given = iter([(np.nan, np.nan), (np.nan, 0.5), (0.4, np.nan), (0.6, 0.3), (np.nan, np.nan)])
    monkeypatch.setattr(loop, "validate", lambda networks, *rest: dict(zip(networks, next(given), strict=True)))
    kept = []
    save = loop.save_model
    monkeypatch.setattr(loop, "save_model", lambda *a: kept.append((a[3]["step"], a[3]["which"])) or save(*a))
    train(tiny, tmp_path / "run", dataclasses.replace(settings, max_steps=10, validations=5))
    assert kept == [(2, "teacher"), (4, "teacher"), (8, "student")]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_steps": 0},
        {"batch_size": 0},
        {"patch": (0, 8, 8)},
        {"spacing": (0.0, 1.0, 1.0)},
        {"log_every": 0},
        {"save_every": 0},
        {"save_minutes": 0.0},
        {"max_bad_steps": 0},
        {"patience": 0},
        {"validations": 0},
        {"workers": -1},
        {"seed": -1},
        {"gradient_clip": 0.0},
        {"learning_rate": -1.0},
        {"test_share": -0.5},
        {"validation_share": 1.0},
    ],
)
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(MedContextError, match=next(iter(wrong))):
        TrainConfig(**wrong)
