"""Cross-validation: every fold a run, resumable, each case scored once by a model that never saw it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import scipy.stats
import yaml

from medcontext.data import check
from medcontext.data.dataset import open_dataset
from medcontext.data.split import Split
from medcontext.data.split_file import SplitFile, read_split_file, write_split_file
from medcontext.errors import MedContextError
from medcontext.files import LOCK, alone_in
from medcontext.networks import registry
from medcontext.studies import cross_validation
from medcontext.studies.cross_validation import cross_validate
from medcontext.studies.fold_folder import CrossValidationFolder
from medcontext.studies.fold_summary import folds_table, summarise
from medcontext.training import loop
from medcontext.training.distribution import PREPARING
from medcontext.training.run import RunFolder
from tests.conftest import make_tiny
from tests.test_cli import run
from tests.test_train import NETWORK

FOLDS = 3

KILLED_IN_FOLD_1 = """
import os, signal, sys
from medcontext.cli.main import main
from medcontext.training import loop
from medcontext.training.distribution import PREPARING

done, step = 0, loop.train_step

def counted(*arguments):
    global done
    done += 1
    if done == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*arguments)

loop.train_step = counted
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def room(tmp_path_factory) -> Path:
    """Seven cases, and a cache for all trainings."""
    room = tmp_path_factory.mktemp("room")
    make_tiny(room / "data", cases=7)
    return room


def arguments(room: Path, out: Path, *more: object) -> list[object]:
    settings = ["--patch", "[16,16,16]", "--network-settings", json.dumps(NETWORK), "--precision", "fp32"]
    settings += ["--max-steps", 6, "--save-every", 2, "--validations", 1, "--learning-rate", "0.01"]
    return ["train", room / "data", "--out", out, "--cache", room / "cache", *settings, *more]


@pytest.fixture(scope="module")
def crossed(room) -> CrossValidationFolder:
    """One that ran through; to be read only."""
    assert run(*arguments(room, room / "crossed", "--folds", FOLDS)) == 0
    return CrossValidationFolder(room / "crossed")


def copied(crossed: CrossValidationFolder, to: Path) -> CrossValidationFolder:
    return CrossValidationFolder(shutil.copytree(crossed.path, to))


def summary(folder: CrossValidationFolder) -> dict:
    return json.loads(folder.summary.read_text())


@pytest.fixture
def steps(monkeypatch) -> list[Path]:
    """The run folders in which a step is taken from now on."""
    taken, honest = [], loop.train_step

    def noted(training, batch):
        taken.append(training.run.path)
        return honest(training, batch)

    monkeypatch.setattr(loop, "train_step", noted)
    return taken


def test_every_fold_is_a_run_and_holds_out_its_own_cases(crossed, room, tmp_path):
    names = sorted(path.name for path in crossed.path.iterdir() if path.name != LOCK)
    assert names == ["config.yaml", "fold-0", "fold-1", "fold-2", "folds.json", "summary.json"]
    assert run("split", room / "data", tmp_path / "folds.json", "--folds", FOLDS) == 0
    drawn = read_split_file(crossed.folds)
    assert drawn.hash == read_split_file(tmp_path / "folds.json").hash == summary(crossed)["split"]
    held_out = []
    for fold in range(FOLDS):
        each = crossed.run(fold)
        assert each.finished
        assert each.read_split() == drawn.folds[fold]
        assert json.loads(each.about.read_text())["split"] == SplitFile("", "", (drawn.folds[fold],)).hash
        assert each.read_config()["fold"] == fold
        assert sorted(path.name for path in each.predictions.glob("*.nii.gz")) == [
            f"{name}.nii.gz" for name in each.read_split().test
        ]
        held_out += each.read_split().test
    assert sorted(held_out) == sorted(open_dataset(room / "data").cases)
    assert [each["test"] for each in summary(crossed)["runs"]] == [len(fold.test) for fold in drawn.folds]


def test_the_summary_says_what_the_predictions_say(crossed, room, capsys):
    """Dice from the files themselves, in float64."""
    found = summary(crossed)
    for label in (1, 2):
        folds = []
        for fold in range(FOLDS):
            folds.append([])
            for file in sorted(crossed.run(fold).predictions.glob("*.nii.gz")):
                maps = [nib.load(path).get_fdata() == label for path in (file, room / "data" / "labelsTr" / file.name)]
                folds[-1].append(2.0 * (maps[0] & maps[1]).sum() / (maps[0].sum() + maps[1].sum()))
        entry, pooled = found["labels"][str(label)]["dice"], np.concatenate(folds)
        assert entry["folds"] == pytest.approx([np.mean(scores) for scores in folds])
        assert entry["mean"] == pytest.approx(np.mean([np.mean(scores) for scores in folds]))
        assert entry["sd"] == pytest.approx(np.std([np.mean(scores) for scores in folds], ddof=1))
        assert (entry["pooled"], entry["cases"]) == (pytest.approx(np.mean(pooled)), 7)
        assert entry["interval"][0] <= entry["pooled"] <= entry["interval"][1]
    assert found["unlike"] == {}
    assert max(found["labels"][label]["dice"]["pooled"] for label in "12") > 0.1
    assert run(*arguments(room, crossed.path, "--folds", FOLDS, "--resume")) == 0
    said = capsys.readouterr().out
    for name in ("1 low", "2 high", "overall", "fold 2", "mean (SD)", f"{found['overall']['dice']['pooled']:.3f}"):
        assert name in said
    assert summary(crossed) == found


def test_killed_in_the_middle_it_goes_on_to_the_same_summary(crossed, room, tmp_path, monkeypatch, steps):
    out = CrossValidationFolder(tmp_path / "out")
    asked = arguments(room, out.path, "--folds", FOLDS)
    command = [sys.executable, "-c", KILLED_IN_FOLD_1, *map(str, asked)]
    killed = subprocess.run(command, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not out.summary.exists()
    # Nothing that was checked before is read again.
    monkeypatch.setattr(check, "examine", lambda *_: pytest.fail("read again"))
    assert run(*asked) == 1
    assert run(*asked, "--resume") == 0
    assert [path.name for path in steps] == ["fold-1"] * 4 + ["fold-2"] * 6, "from the checkpoint of step 2"
    assert out.summary.read_bytes() == crossed.summary.read_bytes()


def test_a_fold_can_be_trained_elsewhere(crossed, room, tmp_path, steps):
    out = CrossValidationFolder(tmp_path / "out")
    assert run("split", room / "data", tmp_path / "mine.json", "--folds", FOLDS) == 0
    elsewhere = ("--split", tmp_path / "mine.json", "--fold", 2)
    assert run(*arguments(room, out.run(2).path, *elsewhere)) == 0
    assert run(*arguments(room, out.path, "--folds", FOLDS, "--resume")) == 1, "there are no folds.json"
    shutil.copy(tmp_path / "mine.json", out.folds)
    # What is done needs no checkpoint any more.
    out.run(2).last.unlink()
    out.run(2).previous.unlink()
    steps.clear()
    assert run(*arguments(room, out.path, "--folds", FOLDS, "--resume")) == 0
    assert {path.name for path in steps} == {"fold-0", "fold-1"}
    assert out.summary.read_bytes() == crossed.summary.read_bytes()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--fold", 1], "trains every fold"),
        (["--test-share", 0.3], "which cases are held out"),
        (["--folds", 1], "'folds' is out of range"),
        (["--folds", 8], "too few patients"),
        (["--split", "none.json"], "missing"),
        (["--network", "no"], "no network of this name"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_written(more, said, room, tmp_path, capsys):
    assert run(*arguments(room, tmp_path / "out", "--folds", FOLDS, *more)) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


FOLD = Split(train=("case_00", "case_01"), validation=("case_02",), test=("case_03",))


@pytest.mark.parametrize(
    ("folds", "said"),
    [
        ([FOLD, dataclasses.replace(FOLD, train=("case_04",))], "holds out no case twice"),
        ([FOLD, Split(("case_03",), (), ())], "holds out no case"),
        ([FOLD], "another number of folds"),
        ([FOLD, Split(("case_03",), (), ("case_99",))], "not in the data set"),
    ],
)
def test_a_split_file_that_is_no_cross_validation_is_refused(folds, said, room, tmp_path, capsys):
    write_split_file(tmp_path / "mine.json", SplitFile("mine", "a test", tuple(folds)))
    assert run(*arguments(room, tmp_path / "out", "--folds", 2, "--split", tmp_path / "mine.json")) == 1
    found = capsys.readouterr().err
    assert said in found
    assert str(tmp_path / "mine.json") in found
    assert not (tmp_path / "out").exists()


def test_folds_of_a_file_with_few_cases_to_train_on(room, tmp_path):
    """nnU-Net's form, which has no validation cases: they come out of the training part, as for a single fold."""
    names = [f"case_0{k}" for k in range(7)]
    folds = [{"train": names[:4], "val": names[4:6]}, {"train": names[4:], "val": names[:2]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    more = ("--split", tmp_path / "splits_final.json", "--few-shot", 2)
    assert run(*arguments(room, tmp_path / "out", "--folds", 2, *more)) == 0
    out = CrossValidationFolder(tmp_path / "out")
    assert [(each["train"], each["validation"], each["test"]) for each in summary(out)["runs"]] == [(2, 1, 2)] * 2
    assert read_split_file(out.folds).hash == read_split_file(tmp_path / "splits_final.json").hash
    assert summary(out)["cases"] == 4


def test_it_is_not_resumed_with_other_settings_or_on_other_cases(crossed, room, tmp_path, capsys, steps):
    out = copied(crossed, tmp_path / "out")
    assert run(*arguments(room, out.path, "--folds", FOLDS, "--resume", "--seed", 1)) == 1
    assert "seed: 0 before, 1 now" in capsys.readouterr().err
    assert run(*arguments(room, out.path, "--folds", 2, "--resume")) == 1
    assert "3 fold(s)" in capsys.readouterr().err
    out.run(1).path.rename(tmp_path / "away")
    shutil.copytree(out.run(2).path, out.run(1).path)
    assert run(*arguments(room, out.path, "--folds", FOLDS, "--resume")) == 1
    assert "fold: 2 before, 1 now" in capsys.readouterr().err
    config = out.run(1).read_config() | {"fold": 1}
    out.run(1).config.write_text(yaml.safe_dump(config))
    assert run(*arguments(room, out.path, "--folds", FOLDS, "--resume")) == 1
    assert "other cases than its fold" in capsys.readouterr().err
    shutil.rmtree(out.run(1).path)
    few = shutil.copytree(tmp_path / "away", out.run(1).path)
    (few / "config.yaml").write_text(yaml.safe_dump(config | {"few_shot": 2}))
    assert run(*arguments(room, out.path, "--folds", FOLDS, "--resume")) == 1
    assert "few_shot = 2" in capsys.readouterr().err
    assert steps == []


def test_settings_that_are_not_said_again_stay_as_they_were(crossed, room, tmp_path, steps):
    out = copied(crossed, tmp_path / "out")
    shutil.rmtree(out.run(1).path)
    assert run("train", room / "data", "--out", out.path, "--folds", FOLDS, "--resume") == 0
    assert steps == [out.run(1).path] * 6
    assert out.summary.read_bytes() == crossed.summary.read_bytes()


def test_replacing_removes_folds_and_nothing_else(crossed, room, tmp_path, steps, monkeypatch):
    out = copied(crossed, tmp_path / "out")
    (out.path / "notes.txt").write_text("mine")
    broken = make_tiny(tmp_path / "broken", cases=7)
    (broken / "labelsTr" / "case_03.nii.gz").write_bytes(b"broken")
    bad = ["train", broken, *arguments(room, out.path, "--folds", 2, "--replace")[2:]]
    assert run(*bad) == 1
    with monkeypatch.context() as patch:
        patch.setattr("medcontext.training.setup.free_memory", lambda *_: 0)
        assert run(*arguments(room, out.path, "--folds", 2, "--replace")) == 1
    assert summary(out) == summary(crossed)
    assert all(out.run(fold).finished for fold in range(FOLDS))
    assert run(*arguments(room, out.path, "--folds", 2, "--replace", "--max-steps", 1)) == 0
    assert steps == [out.run(0).path, out.run(1).path]
    assert [each["steps"] for each in summary(out)["runs"]] == [1, 1]
    assert not out.run(2).path.exists()
    assert (out.path / "notes.txt").read_text() == "mine"
    with alone_in(out.path):
        assert run(*arguments(room, out.path, "--folds", 2, "--replace")) == 1
    assert out.run(1).finished, "another process would be at work on it"
    (out.run(1).path / "plan.json").unlink()
    assert run(*arguments(room, out.path, "--folds", 2, "--replace")) == 1
    assert out.run(0).finished
    assert run("train", room / "data", "--out", room / "data", "--folds", 2, "--replace") == 1
    assert len(open_dataset(room / "data").cases) == 7


def test_from_python_it_goes_on_without_settings_and_runs_no_code_that_a_file_names(crossed, room, tmp_path, steps):
    out = copied(crossed, tmp_path / "out")
    shutil.rmtree(out.run(2).path)
    out.summary.unlink()
    found = cross_validate(room / "data", out.path, folds=FOLDS, resume=True)
    assert found == summary(out) == summary(crossed)
    assert steps == [out.run(2).path] * 6
    shutil.rmtree(out.run(2).path)
    out.config.write_text(yaml.safe_dump(yaml.safe_load(out.config.read_text()) | {"network": "os:getcwd"}))
    with pytest.raises(MedContextError, match="not run because a file names it"):
        cross_validate(room / "data", out.path, folds=FOLDS, resume=True)
    assert "os:getcwd" not in registry._imported


def test_folds_that_were_not_trained_alike_are_said_to_be_so(crossed, room, tmp_path, capsys):
    out = copied(crossed, tmp_path / "out")
    config = yaml.safe_load(out.config.read_text()) | {"max_steps": None}
    out.config.write_text(yaml.safe_dump(config))
    shutil.rmtree(out.run(0).path)
    longer = arguments(room, out.run(0).path, "--split", out.folds, "--max-steps", 8)
    assert run(*longer) == 0
    assert run("train", room / "data", "--out", out.path, "--folds", FOLDS, "--resume") == 0
    assert "differ in max_steps" in capsys.readouterr().err
    assert summary(out)["unlike"] == {"max_steps": [8, 6, 6]}


def test_two_processes_share_every_fold(room, tmp_path):
    out = CrossValidationFolder(tmp_path / "out")
    asked = arguments(room, out.path, "--folds", 2, "--max-steps", 2, "--devices", 2, "--device", "cpu")
    command = [sys.executable, "-m", "medcontext", *map(str, asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("overall") == 1
    assert done.stderr.count("on 2 x cpu") == 2
    assert [each["steps"] for each in summary(out)["runs"]] == [2, 2]


def test_the_other_processes_wait_while_the_first_one_works_and_end_with_it(crossed, room, tmp_path, monkeypatch):
    out = copied(crossed, tmp_path / "out")
    waits = []
    monkeypatch.setattr(cross_validation, "first_does", lambda _, work, patience: waits.append(patience) or work())
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"]) as other:
        strategy = SimpleNamespace(launcher=SimpleNamespace(procs=[other]))
        fabric = SimpleNamespace(world_size=2, is_global_zero=True, strategy=strategy)
        monkeypatch.setattr(cross_validation, "launch", lambda _: fabric)
        cross_validate(room / "data", out.path, folds=FOLDS, resume=True)
        assert waits == [PREPARING, PREPARING]
        assert other.poll() is None
        shutil.rmtree(out.run(1).path)
        monkeypatch.setattr(cross_validation, "train", lambda *_, **__: {}["nothing"])
        with pytest.raises(KeyError):
            cross_validate(room / "data", out.path, folds=FOLDS, resume=True)
        assert other.wait(60) == -signal.SIGKILL


def scored(rng: np.random.Generator, fold: int, cases: int) -> dict:
    """An evaluation as the scorer gives it, with labels that are nowhere and HD95 that is not defined."""
    rows = []
    for case in range(cases):
        for label in (1, 4):
            outcome = str(rng.choice(["both", "missed", "spurious", "absent"], p=[0.7, 0.1, 0.1, 0.1]))
            both = outcome == "both"
            dice = rng.random() if both else None if outcome == "absent" else 0.0
            hd95 = rng.random() * 9 if both else None
            rows.append({"case": f"{fold}-{case}", "label": label, "dice": dice, "hd95_mm": hd95, "outcome": outcome})
    labels = {
        str(label): {"name": f"organ {label}", "scored": 0}
        | {name: sum(row["outcome"] == name for row in rows if row["label"] == label) for name in
           ("missed", "spurious", "absent")}
        for label in (1, 4)
    }  # fmt: skip
    return {"cases": rows, "mean": {"labels": labels}, "definition": {"dice": "as ever"}}


def test_scores_that_are_not_defined_are_left_out_of_every_mean():
    rng = np.random.default_rng(0)
    evaluations = [scored(rng, fold, cases) for fold, cases in enumerate((20, 19, 1))]
    for row in evaluations[2]["cases"]:
        row["hd95_mm"] = None
    found = summarise(evaluations)
    assert found["cases"] == 40
    assert found["definition"]["dice"] == "as ever"
    for metric in ("dice", "hd95_mm"):
        overall = []
        for label in (1, 4):
            folds = [
                [row[metric] for row in each["cases"] if row["label"] == label and row[metric] is not None]
                for each in evaluations
            ]
            entry, pooled = found["labels"][str(label)][metric], np.concatenate(folds)
            assert entry["pooled"] == pytest.approx(pooled.mean())
            assert entry["cases"] == len(pooled) < 40
            means = [np.mean(scores) if scores else None for scores in folds]
            assert entry["folds"] == [None if mean is None else pytest.approx(mean) for mean in means]
            # The interval by another bootstrap, as near as two of them are.
            other = scipy.stats.bootstrap((pooled,), np.mean, method="percentile", rng=np.random.default_rng(1))
            assert entry["interval"] == pytest.approx(list(other.confidence_interval), abs=0.03 * np.ptp(pooled))
        for each in evaluations:
            cases = {row["case"]: [] for row in each["cases"]}
            for row in each["cases"]:
                cases[row["case"]] += [] if row[metric] is None else [row[metric]]
            overall += [np.mean(scores) for scores in cases.values() if scores]
        assert found["overall"][metric]["pooled"] == pytest.approx(np.mean(overall))
    assert found["labels"]["1"]["hd95_mm"]["folds"][2] is None
    for label in ("1", "4"):
        missed = sum(
            row["outcome"] == "missed" for each in evaluations for row in each["cases"] if f"{row['label']}" == label
        )
        assert found["labels"][label]["missed"] == missed
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert folds_table(found).row_count == 6


def test_a_label_that_is_nowhere_has_no_score_and_still_a_row():
    row = {"dice": None, "hd95_mm": None, "outcome": "absent", "label": 1}
    counts = {"scored": 0, "missed": 0, "spurious": 0, "absent": 1}
    evaluations = [
        {"cases": [{"case": name, **row}], "mean": {"labels": {"1": counts}}, "definition": {}} for name in "ab"
    ]
    found = summarise(evaluations)
    nothing = {"folds": [None, None], "mean": None, "sd": None, "pooled": None, "interval": None, "cases": 0}
    assert found["labels"]["1"]["dice"] == found["overall"]["dice"] == nothing
    assert found["labels"]["1"]["absent"] == 2
    assert folds_table(found).row_count == 4


def test_a_training_that_ended_by_patience_is_finished(room, tmp_path, steps):
    more = ("--folds", 2, "--validations", 6, "--patience", 1, "--learning-rate", "1e-12", "--preset", "supervised")
    assert run(*arguments(room, tmp_path / "out", *more)) == 0
    assert len(steps) < 12
    before = len(steps)
    assert RunFolder(tmp_path / "out" / "fold-1").finished
    assert run(*arguments(room, tmp_path / "out", *more, "--resume")) == 0
    assert len(steps) == before


@pytest.mark.parametrize("content", ["a: 1", "[1]", "seeds: 3\nmethod: {}\naugment: {}"])
def test_settings_that_someone_changed_are_an_error_and_no_traceback(content, room, tmp_path):
    out = CrossValidationFolder(tmp_path / "out")
    out.path.mkdir()
    out.config.write_text(content)
    write_split_file(out.folds, SplitFile("mine", "a test", (FOLD, dataclasses.replace(FOLD, test=("case_05",)))))
    with pytest.raises(MedContextError, match="this run was made of can't be read") as error:
        cross_validate(room / "data", out.path, folds=2, resume=True)
    assert error.value.file == str(out.config)
