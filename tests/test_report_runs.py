"""Reports of real runs: what is gathered from run folders and cross-validations, and what a masked student sees."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from medcontext.data.dataset import open_dataset
from medcontext.data.prepare import prepare_image
from medcontext.data.scan import read_scan
from medcontext.errors import MedContextError
from medcontext.files import read_json
from medcontext.inference.model import load_model, load_tensors
from medcontext.method.diagnostics import hard_dice
from medcontext.method.presets import PRESETS, MethodConfig
from medcontext.studies import masked_pass as module
from medcontext.studies import run_facts
from medcontext.studies.cross_validation import cross_validate
from medcontext.studies.masked_pass import masked_pass
from medcontext.studies.reporting import pooled, report_runs
from medcontext.training.config import TrainConfig
from medcontext.training.run import RunFolder
from medcontext.training.train import train
from tests.html_pages import Page
from tests.test_cli import run as command
from tests.test_train import NETWORK

METHOD = dataclasses.replace(PRESETS["medcontext"], mask_patch=(4, 4, 4), ratio=0.3)


def settings(cache, **changes) -> TrainConfig:
    small = {"patch": (16, 16, 16), "network_settings": NETWORK, "validations": 1, "max_steps": 4, "log_every": 1}
    return TrainConfig(**{**small, "method": METHOD, "cache": cache, "workers": 0, **changes})


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """Three runs on the tiny data set, by what they were trained by; not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    cache = folder / "cache"
    base = dataclasses.replace(PRESETS["supervised"])
    learned = dataclasses.replace(METHOD, mask="tube", fill="learnable")
    made = {
        "ours": settings(cache),
        "base": settings(cache, preset="supervised", method=base),
        "tubes": settings(cache, preset="paper", method=learned, seed=1),
    }
    return {name: RunFolder(train(tiny, folder / name, config)) for name, config in made.items()}


def test_runs_stand_beside_one_another(runs, tmp_path):
    page = report_runs([run.path for run in runs.values()], out=tmp_path / "three.html")
    assert page == tmp_path / "three.html"
    assert not (runs["ours"].path / "report.html").exists()
    parsed = Page(page.read_text())
    text = "".join(parsed.text)
    for preset, run in zip(("medcontext", "supervised", "paper"), runs.values(), strict=True):
        mean = read_json(run.evaluation)["mean"]
        assert f"{preset}{mean['dice']:.3f} mean Dice" in text
    facts = next(row for row in parsed.rows if row[0] == "Masking")
    assert facts[1:] == [
        "random, 30 % hidden, voxels, mean in their place",
        "none",
        "tube, 30 % hidden, voxels, learnable in their place",
    ]
    assert ["Preset", "medcontext", "supervised", "paper"] in parsed.rows
    assert next(row for row in parsed.rows if row[0] == "Command")
    shown = [alt for alt in parsed.labelled("div") if "Mean Dice where it was hidden" in alt]
    assert len(shown) == 2, "of the runs that were trained with masks"
    test = runs["ours"].read_split().test
    assert {row[0] for row in parsed.rows if len(row) == 11 and row[0] in test} == set(test)


def test_it_is_told_how_many_samples_were_masked():
    told = run_facts._masking(MethodConfig(ratio=(0.0, 0.3), mask_probability=0.5))
    assert told == "random, 0 to 30 % hidden of 50 % of the samples, voxels, mean in their place"
    assert " hidden in the first 80 % of the steps," in run_facts._masking(MethodConfig(mask_until=0.8))


def test_names_that_presets_dont_tell_apart_are_those_of_the_folders(runs, tmp_path):
    other = shutil.copytree(runs["ours"].path, tmp_path / "again")
    same = shutil.copytree(runs["ours"].path, tmp_path / "elsewhere" / "again")
    page = report_runs([runs["ours"].path, other], out=tmp_path / "page.html")
    text = "".join(Page(page.read_text()).text)
    assert "medcontext (ours)" in text
    assert "medcontext (again)" in text
    assert "not distinguishable from noise" in text
    html = report_runs([other, same], out=tmp_path / "page.html").read_text()
    assert f"medcontext ({same})" in html


def test_what_can_be_mended_is_said(runs, tmp_path):
    ours = runs["ours"].path
    with pytest.raises(MedContextError, match="given twice"):
        report_runs([ours, ours / ".." / "ours"], out=tmp_path / "page.html")
    with pytest.raises(MedContextError, match="no such run folder"):
        report_runs([tmp_path / "nowhere"], out=tmp_path / "page.html")
    with pytest.raises(MedContextError, match="not a run folder"):
        report_runs([tmp_path], out=tmp_path / "page.html")
    with pytest.raises(MedContextError, match="can't be written"):
        report_runs([ours], out=tmp_path)
    assert not (tmp_path / "page.html").exists()


def test_a_data_set_that_was_moved_is_where_the_run_was_last_resumed(own_tiny, runs, tmp_path):
    config = settings(tmp_path / "cache")
    run = RunFolder(train(own_tiny, tmp_path / "run", config))
    moved = own_tiny.rename(tmp_path / "moved")
    with pytest.raises(MedContextError, match="not where it was") as error:
        report_runs([run.path])
    assert "--resume" in error.value.remedy
    train(moved, run.path, config, resume=True)
    assert run.data == moved
    assert report_runs([run.path]).is_file()


def test_the_command_takes_runs_in_a_row(runs, tmp_path, capsys):
    ours, base = (shutil.copytree(runs[name].path, tmp_path / name) for name in ("ours", "base"))
    assert command("report", ours, base) == 0
    assert f"report: {ours / 'report.html'}" in capsys.readouterr().out
    assert command("report", base, "--out", tmp_path / "b.html", "--calibration") == 0
    page = Page((tmp_path / "b.html").read_text())
    assert "Calibration" in page.text
    calibration = read_json(RunFolder(base).evaluation)["calibration"]
    told = [alt for alt in page.labelled() if alt.startswith("supervised, ")]
    assert len(told) == 3
    for entry in (calibration["overall"], *calibration["labels"].values()):
        assert any(f"expected calibration error {entry['ece']:.3f}." in alt for alt in told)
    assert command("report") == 2


def test_a_cross_validation_is_one_run_that_holds_out_every_case(tiny, tmp_path):
    cross_validate(tiny, tmp_path / "cv", settings(tmp_path / "cache", max_steps=2), folds=2)
    page = Page(report_runs([tmp_path / "cv"]).read_text())
    text = "".join(page.text)
    assert (tmp_path / "cv" / "report.html").is_file()
    cases = [f"case_{k:02d}" for k in range(8)]
    assert sorted({row[0] for row in page.rows if row[0] in cases}) == cases
    summary = read_json(tmp_path / "cv" / "summary.json")
    rows = [read_json(RunFolder(tmp_path / "cv" / f"fold-{k}").evaluation)["cases"] for k in (0, 1)]
    for label, entry in summary["labels"].items():
        low = next(row for row in page.rows if row[0] == entry["name"] and len(row) == 5)
        assert low[1].startswith(f"{entry['dice']['pooled']:.3f} ")
        assert low[4] == str(entry["missed"])
        assert [row for fold in rows for row in fold if row["label"] == int(label)]
    assert "8 held-out cases" in text
    folds = next(row[1] for row in page.rows if row[0] == "Folds")
    assert folds.startswith("2, mean Dice ")
    told = next(alt for alt in page.labelled() if alt.startswith("Total loss"))
    assert "medcontext fold 0: from" in told
    assert "medcontext fold 1: from" in told
    # Folds that hold out the same cases are no cross-validation.
    shutil.rmtree(tmp_path / "cv" / "fold-1")
    shutil.copytree(tmp_path / "cv" / "fold-0", tmp_path / "cv" / "fold-1")
    with pytest.raises(MedContextError, match="hold out each case once"):
        report_runs([tmp_path / "cv"])


# The masked pass


def looked_at(run: RunFolder, tiny):
    name = run.read_split().test[0]
    return masked_pass(run, name, open_dataset(tiny).cases[name])


@pytest.mark.parametrize("name", ["ours", "tubes"])
def test_the_student_gets_the_patch_but_for_what_the_mask_hides(runs, tiny, name):
    seen = looked_at(runs[name], tiny)
    np.testing.assert_array_equal(seen.given[~seen.hidden], seen.image[~seen.hidden])
    assert seen.image.shape == seen.given.shape == seen.hidden.shape == (16, 16, 16)
    plan = runs[name].read_plan()
    prepared, _ = prepare_image(read_scan(*open_dataset(tiny).cases[seen.case].images), plan)
    inside = seen.image != plan.normalisation.outside
    assert np.isin(seen.image[inside], prepared).all(), "the scan, hidden or not"
    assert (seen.given[seen.hidden & inside] != seen.image[seen.hidden & inside]).mean() > 0.9
    if name == "ours":
        np.testing.assert_allclose(seen.given[seen.hidden], seen.image[~seen.hidden].mean(), rtol=1e-4, atol=1e-5)
    else:
        stored = load_tensors(runs[name].last)["method"]["student"]["hidden_value"]
        np.testing.assert_array_equal(seen.given[seen.hidden], np.float32(stored[0]))
        # A tube hides the same at every depth: axis D runs to the head.
        assert (seen.hidden == seen.hidden[:, :, :1]).all()
    blocks = np.array([
        seen.hidden[4 * i : 4 * i + 4, 4 * j : 4 * j + 4, 4 * k : 4 * k + 4].mean()
        for i in range(4) for j in range(4) for k in range(4)
    ])  # fmt: skip
    assert set(blocks) == {0.0, 1.0}, "whole patches are hidden or shown"
    expected = round(0.3 * 64) if name == "ours" else 4 * round(0.3 * 16)
    assert blocks.sum() == expected
    assert seen.step == 4


def test_what_is_shown_comes_from_the_last_weights_of_student_and_teacher(runs, tiny):
    seen = looked_at(runs["ours"], tiny)
    model = load_model(runs["ours"].path)
    stored = load_tensors(runs["ours"].last)["method"]
    # The plan's axes (D, H, W) run to the head, the front and the right; those shown are in RAS.
    assert model.plan.orientation == "SAR"

    def said(weights, image):
        model.network.load_state_dict(weights)
        with torch.no_grad():
            logits = model.network(torch.from_numpy(image.transpose(2, 1, 0).copy())[None, None])
        return logits, np.stack([(logits[0].argmax(0) == k).numpy().transpose(2, 1, 0) for k in (1, 2)])

    student = {name.removeprefix("network."): value for name, value in stored["student"].items()}
    hidden = torch.from_numpy(seen.hidden.transpose(2, 1, 0).copy())[None]
    truth = torch.from_numpy((seen.truth * np.array([1, 2])[:, None, None, None]).sum(0).transpose(2, 1, 0).copy())
    for name, weights, image in (
        ("student", student, seen.image),
        ("masked", student, seen.given),
        ("teacher", stored["teacher"], seen.image),
    ):
        logits, structures = said(weights, image)
        np.testing.assert_array_equal(getattr(seen, name), structures)
        dice = float(hard_dice(logits, truth[None], hidden).nanmean())
        assert seen.dice[name] == (None if np.isnan(dice) else pytest.approx(dice)), name
    assert (seen.student != seen.teacher).any()
    assert seen.truth.any(axis=(1, 2, 3)).all()


def test_two_runs_of_one_mask_are_shown_the_same(runs, tiny, tmp_path):
    other = RunFolder(shutil.copytree(runs["ours"].path, tmp_path / "other"))
    one, two = looked_at(runs["ours"], tiny), looked_at(other, tiny)
    np.testing.assert_array_equal(one.hidden, two.hidden)
    assert looked_at(runs["base"], tiny) is None


def test_without_a_last_checkpoint_that_is_said(runs, tiny, tmp_path):
    run = RunFolder(shutil.copytree(runs["ours"].path, tmp_path / "run"))
    run.last.write_bytes(run.last.read_bytes()[:1000])
    assert "can't be shown: This checkpoint is damaged" in looked_at(run, tiny)
    run.last.unlink()
    page = "".join(Page(report_runs([run.path]).read_text()).text)
    assert "The last checkpoint, last.pt, is not in the run folder" in page


def test_regions_and_voxels_that_nobody_labelled(own_tiny, tmp_path):
    description = json.loads((own_tiny / "dataset.json").read_text())
    description["labels"] = {"background": 0, "whole": [1, 2], "high": 2}
    description["regions_class_order"] = [1, 2]
    (own_tiny / "dataset.json").write_text(json.dumps(description))
    config = settings(tmp_path / "cache", max_steps=2, test_share=0.25, validation_share=0.0)
    run = RunFolder(train(own_tiny, tmp_path / "run", config))
    seen = looked_at(run, own_tiny)
    whole, high = seen.truth
    assert (whole >= high).all()
    assert whole.sum() > high.sum() > 0
    assert seen.masked.shape == seen.truth.shape
    page = Page(report_runs([run.path]).read_text())
    assert "whole" in "".join(page.text)


def test_hidden_tokens_leave_the_scan_as_it_is():
    student = nn.Module()
    student.hides = "tokens"
    text = module._hiding(METHOD, student)
    assert text == "random mask of 4 x 4 x 4 voxels, as tokens of the network, which gets the scan itself unchanged"


def test_scores_of_folds_are_those_of_one_run_with_its_patients(runs, tmp_path):
    """A patient whose scans were held out in two folds, which no split of ours does, is still one."""
    report_runs([runs["ours"].path], out=tmp_path / "page.html")
    whole = read_json(runs["ours"].evaluation)
    cases = sorted({row["case"] for row in whole["cases"]})
    folds = []
    for case in cases:
        rows = [row for row in whole["cases"] if row["case"] == case]
        folds.append(whole | {"cases": rows, "patients": {case: "one"}})
    found = pooled(folds, {})
    assert len(cases) > 1
    assert found["patients"] == dict.fromkeys(cases, "one")
    assert found["mean"]["dice"] == pytest.approx(whole["mean"]["dice"])
    assert found["mean"]["ci"]["dice"] is None
    assert pooled([fold | {"patients": {}} for fold in folds], {})["mean"]["ci"] == whole["mean"]["ci"]
