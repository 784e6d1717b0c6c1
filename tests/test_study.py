"""Studies: expanded, skipped when done, resumed, apart from one another's failures, gathered."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import yaml
from PIL import Image

from medcontext.data.dataset import open_dataset
from medcontext.data.split import make_split
from medcontext.data.split_file import SplitFile, read_split_file, write_split_file
from medcontext.errors import MedContextError
from medcontext.evaluation import pictures
from medcontext.inference.model import load_tensors
from medcontext.method.presets import PRESETS
from medcontext.progress import Progress
from medcontext.studies import figures
from medcontext.studies import results as gathering
from medcontext.studies import study as studying
from medcontext.studies.conduct import conduct, rehearse
from medcontext.studies.convergence import convergence, in_words
from medcontext.studies.extremes import Scored, extremes_figure, picture_of_runs
from medcontext.studies.extremes import _chosen as chosen
from medcontext.studies.figures import convergence_figure, gains_figure
from medcontext.studies.forecast import forecast
from medcontext.studies.holdout import score_held_out
from medcontext.studies.outcome import of_folder
from medcontext.studies.recorded import recorded
from medcontext.studies.results import gather, summary
from medcontext.studies.study import run_study, state_of
from medcontext.studies.study_file import Comparison, read_study
from medcontext.training import estimate
from medcontext.training.resume import has_cases_of
from medcontext.training.run import RunFolder, describe_environment
from tests.conftest import make_tiny
from tests.test_cli import run as command

SHIPPED = sorted((Path(__file__).parents[1] / "studies").glob("*.yaml"))
WITH_THE_DATA = {"acdc": "nnformer", "brats": "nnformer", "synapse": "transunet"}
"""Studies of published splits, which come with the import of their data; every other split lies beside its study."""

TINY = {
    "name": "tiny",
    "about": "Does it work?",
    "data": "data",
    "split": "split.json",
    "settings": {
        "network_settings": {"features": [4, 4, 8], "strides": [[1] * 3, [2] * 3, [2] * 3], "kernels": [[3] * 3] * 3},
        "patch": [16, 16, 16],
        "batch_size": 1,
        "max_steps": 4,
        "log_every": 2,
        "save_every": 1,
        "validations": 1,
        "precision": "fp32",
    },
    "factors": {
        "training_cases": [2, "all"],
        "arm": {
            "supervised": {"preset": "supervised"},
            "longer": {"preset": "supervised", "max_steps_factor": 2.3333},
            "medcontext": {"preset": "medcontext", "method": {"ratio": 0.5}},
        },
        "seed": [0, 1],
    },
    "comparisons": [["supervised", "medcontext", "equal_steps"], ["longer", "medcontext", "equal_compute"]],
}


def dump(content) -> str:
    return yaml.safe_dump(content, sort_keys=False)


@pytest.fixture(scope="module")
def room(tmp_path_factory) -> Path:
    """A folder with data, a split, and the study above as it should be, read-only."""
    return furnished(tmp_path_factory.mktemp("study"))


def furnished(room: Path) -> Path:
    """With data and a split in it."""
    cases = open_dataset(make_tiny(room / "data")).cases
    split = make_split(cases, test_share=0.375, validation_share=0.2, seed=0)
    write_split_file(room / "split.json", SplitFile("tiny", "a test", (split,)))
    return room


@pytest.fixture
def write(room, tmp_path):
    """Write a study with changes, and read it."""

    def written(changes=None, **settings):
        content = {**TINY, **(changes or {})}
        content["settings"] = {**content["settings"], **settings}
        file = tmp_path / "study.yaml"
        file.write_text(dump({**content, "split": str(room / "split.json")}))
        return read_study(file, room)

    return written


ARMS = {arm: settings for arm, settings in TINY["factors"]["arm"].items() if arm != "longer"}
TWO_ARMS = {
    "factors": {"training_cases": [2], "arm": ARMS, "seed": [0, 1]},
    "comparisons": [["supervised", "medcontext", name] for name in ("equal_steps", "equal_compute")],
    "pictures": ["equal_steps"],
}
SMALL = {
    "factors": {
        "arm": {"supervised": {"preset": "supervised"}, "medcontext": {"preset": "medcontext"}},
        "seed": [0],
    },
    "comparisons": [["supervised", "medcontext", "equal_steps"]],
}


def test_a_study_stands_for_its_runs_with_stable_names_seed_after_seed(write, room):
    study = write()
    names = [run.name for run in study.runs]
    assert names[:6] == [
        "2-cases/supervised/seed-0",
        "2-cases/longer/seed-0",
        "2-cases/medcontext/seed-0",
        "all-cases/supervised/seed-0",
        "all-cases/longer/seed-0",
        "all-cases/medcontext/seed-0",
    ]
    assert names[6:] == [name.replace("seed-0", "seed-1") for name in names[:6]]
    configs = {run.name: run.config for run in study.runs}
    few = configs["2-cases/medcontext/seed-1"]
    assert (few.few_shot, few.seed, few.split_seed, few.preset) == (2, 1, 1, "medcontext")
    assert few.method_config() == dataclasses.replace(PRESETS["medcontext"], ratio=0.5)
    assert few.split == room / "split.json"
    assert few.patch == (16, 16, 16)
    assert configs["all-cases/longer/seed-0"].max_steps == 9
    assert configs["all-cases/longer/seed-0"].few_shot is None
    assert configs["all-cases/longer/seed-0"].method_config() == PRESETS["supervised"]


def test_later_factors_go_before_earlier_ones_and_a_seed_may_be_a_fold(write):
    factors = {
        "network": {"wide": {"max_steps": 7, "learning_rate": "1e-3"}, "unet": {}},
        "arm": {"a": {"max_steps": 9}},
        "seed": {"fold-0": {"seed": 3, "split_seed": 5}},
    }
    study = write({"factors": factors, "comparisons": []})
    assert [run.name for run in study.runs] == ["wide/a/fold-0", "unet/a/fold-0"]
    config = study.runs[0].config
    assert (config.max_steps, config.seed, config.split_seed, config.learning_rate) == (9, 3, 5, 0.001)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"setings": {}}, "unknown 'setings'"),
        ({"about": ""}, "no 'about'"),
        ({"name": "../elsewhere"}, "../elsewhere"),
        ({"factors": {"arm": {"a": {}}}}, "no factor 'seed'"),
        ({"factors": {"arm": {"../a": {}}, "seed": [0]}}, "'../a'"),
        ({"factors": {"arm": {"a": {}}, "seed": 3}}, "factor 'seed'"),
        ({"settings": {"max_steps": 4, "max_stepz": 3}}, "max_stepz"),
        ({"settings": {"max_steps": 4, "batch_size": "many"}}, "batch_size"),
        ({"settings": {"max_steps": 4, "batch_size": -1}}, "batch_size = -1"),
        ({"settings": {"max_steps": 4, "method": {"ratio": 3.0}}}, "ratio = 3.0"),
        ({"settings": {"max_steps": 4, "method": {"mask": "stripes"}}}, "stripes"),
        ({"settings": {}}, "max_steps_factor: 2.3333"),
        ({"settings": {"max_steps": 4, "network": "package.module:factory"}}, "package.module:factory"),
        ({"settings": {"max_steps": 4, "few_shot": 2}}, "training_cases in its place"),
        ({"settings": {"max_steps": 4, "split": "other.json"}}, "split at the top of the file in its place"),
        ({"settings": {"max_steps": "10"}}, "max_steps: '10'"),
        ({"settings": {"max_steps": 4, "method": 3}}, "method: 3"),
        ({"settings": ["max_steps"]}, "settings: ['max_steps']"),
        ({"factors": ["arm", "seed"]}, "factors: ['arm', 'seed']"),
        ({"comparisons": 3}, "comparisons: 3"),
        ({"comparisons": [["supervised", "nothing", "x"]]}, "nothing"),
        ({"pictures": ["equal"]}, "equal_compute, equal_steps"),
        ({"gains": ["equal_steps", "equal_compute"]}, "gains: equal_steps"),
        ({"gains": [["equal_steps", "equal"]]}, "gains: ['equal_steps', 'equal']"),
        ({"gains": [["x", "x"]], "comparisons": [["supervised", "medcontext", "x"]] * 2}, "gains: ['x', 'x']"),
        ({"settings": {"max_steps": 4, "unlabelled_batch": 1}}, "unlabelled_batch = 1"),
    ],
)
def test_what_is_wrong_with_a_study_file_is_said_with_its_name(room, tmp_path, changes, told):
    file = tmp_path / "study.yaml"
    file.write_text(dump({**TINY, "split": str(room / "split.json"), **changes}))
    with pytest.raises(MedContextError) as caught:
        read_study(file, room)
    assert str(file) in str(caught.value)
    assert told in str(caught.value)


def test_a_missing_split_is_said_before_anything_is_run(room, tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(dump({**TINY, "split": "nothing.json"}))
    with pytest.raises(MedContextError, match="split file of this study is missing"):
        conduct(file, room, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_studies_ship():
    """A test that is done for each of them is skipped where there are none."""
    assert len(SHIPPED) >= 20
    assert WITH_THE_DATA.keys() <= {file.stem for file in SHIPPED}


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_the_studies_that_ship_can_be_read(file):
    study = read_study(file, Path("data"))
    assert study.name == file.stem
    assert len({run.name for run in study.runs}) == len(study.runs) >= 3
    split = study.runs[0].config.split
    if study.name in WITH_THE_DATA:
        assert split == Path("data", study.name, "splits", f"{WITH_THE_DATA[study.name]}.json").resolve()
        return
    folds = read_split_file(split).folds
    for run in study.runs:
        assert folds[run.config.fold].test
        assert (run.config.few_shot or 1) <= len(folds[run.config.fold].train)


def test_no_choice_is_made_on_the_held_out_hippocampi():
    splits = SHIPPED[0].parent / "splits"
    main, few, development = (
        read_split_file(splits / f"hippocampus{name}.json").folds[0] for name in ("", "-few-shot", "-development")
    )
    assert (len(main.train), len(main.validation), len(main.test)) == (120, 20, 60)
    assert set(few.test) == set(main.test)
    assert set(few.train) == set(main.train)
    assert set(few.validation) == set(development.validation) < set(main.validation)
    assert set(development.train) | set(development.test) == set(main.train)
    for name in ("ablation", "convergence", "development", "forms", "hiding-nnformer", "learning-rate", "teacher"):
        content = yaml.safe_load((SHIPPED[0].parent / f"{name}-hippocampus.yaml").read_text())
        assert content["split"] == "splits/hippocampus-development.json"


def test_no_choice_is_made_on_the_held_out_ventricles():
    splits = SHIPPED[0].parent / "splits"
    main, development = (read_split_file(splits / f"ventricle{name}.json").folds[0] for name in ("", "-development"))
    assert set(development.train) | set(development.test) == set(main.train)
    patients = [{name.partition("_phase")[0] for name in part} for part in (development.train, development.test)]
    assert not patients[0] & patients[1]
    content = yaml.safe_load((SHIPPED[0].parent / "development-ventricle.yaml").read_text())
    assert content["split"] == "splits/ventricle-development.json"


@pytest.fixture(scope="module")
def conducted(room, tmp_path_factory) -> Path:
    """The study above with two arms and few cases, done: its folder, with the results in it."""
    out = tmp_path_factory.mktemp("conducted")
    (room / "study.yaml").write_text(dump({**TINY, **TWO_ARMS}))
    assert conduct(room / "study.yaml", room, out, jobs=2, device="cpu", cache=room / "cache") == {}
    return out


def test_every_run_is_trained_and_scored_and_its_checkpoint_removed(conducted, room):
    study = read_study(room / "study.yaml", room)
    assert len(study.runs) == 4
    test = set(read_split_file(room / "split.json").folds[0].test)
    subsets = {}
    for planned in study.runs:
        run = RunFolder(conducted / planned.name)
        assert state_of(planned, conducted) == "done"
        assert {row["case"] for row in json.loads(run.evaluation.read_text())["cases"]} == test
        assert run.best.is_file()
        assert not run.last.exists()
        assert not run.previous.exists()
        assert json.loads(run.about.read_text())["threads"] == studying.threads_for(2)
        subsets.setdefault(planned.levels["seed"], set()).add(run.read_split().train)
    assert [len(each) for each in subsets.values()] == [1, 1], "the arms of a seed share their training cases"
    assert subsets["seed-0"] != subsets["seed-1"]


def test_what_is_done_is_not_done_again(conducted, room, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in conducted.rglob("*.pt")}
    assert len(before) == 4
    monkeypatch.setattr(studying, "_start", lambda planned, *_: pytest.fail(f"{planned.name} was started"))
    monkeypatch.setattr(studying, "time", Mock(sleep=lambda _: pytest.fail("there is nothing to wait for")))
    assert run_study(read_study(room / "study.yaml", room), conducted, cache=room / "cache") == {}
    assert {path: path.stat().st_mtime_ns for path in conducted.rglob("*.pt")} == before


def test_results_are_gathered(conducted):
    found = json.loads((conducted / "tiny.json").read_text())
    assert len(found["runs"]) == 4
    assert found["missing"] == []
    assert found["hardware"]
    assert found["date"]
    rows = list(csv.DictReader((conducted / "tiny.csv").read_text().splitlines()))
    run = found["runs"][0]
    by_label = {}
    for row in rows:
        if row["run"] == run["name"] and row["dice"]:
            by_label.setdefault(row["label"], []).append(float(row["dice"]))
    assert run["dice"] == pytest.approx(sum(sum(v) / len(v) for v in by_label.values()) / len(by_label), abs=1e-5)
    about = load_tensors(RunFolder(conducted / run["name"]).best)["about"]
    assert (about["validation_dice"], about["step"], about["which"]) == (
        pytest.approx(run["validation_dice"]), run["scored_step"], run["scored_is"],
    )  # fmt: skip
    assert (found["settings"]["patch"], found["settings"]["method.mask_per"]) == ([16, 16, 16], "sample")
    assert not {"preset", "method.ratio", "seed"} & found["settings"].keys()
    assert [each["settings"]["seed"] for each in found["runs"]] == [0, 0, 1, 1]
    helped, hurt = (found["comparisons"][0][key] for key in ("helped_most", "hurt_most"))
    assert (len(helped), hurt) == (3, []), "of three cases none is named twice"
    assert helped[0][1] >= helped[-1][1]
    page = (conducted / "tiny.md").read_text()
    assert f"Largest gains: {helped[0][0]}" in page
    assert "smallest:" not in page
    assert "p is not corrected for the number of comparisons" in page
    assert "p_holm" in found["definition"]["comparison"]
    assert "p_holm" not in page
    assert page.count("| medcontext against supervised (equal_steps, equal_compute) |") == 1
    assert (conducted / "tiny.svg").read_text().startswith("<?xml")
    first, second = found["comparisons"]
    assert (first["picture"], second["picture"]) == ("tiny/2-cases-supervised-medcontext.png", None)
    with Image.open(conducted / first["picture"]) as picture:
        assert (picture.format, picture.width) == ("PNG", 700)
        assert b"Software" not in (conducted / first["picture"]).read_bytes()
    assert f"]({first['picture']})" in page
    assert (conducted / "tiny-convergence.svg").read_text().startswith("<?xml")
    for arm in found["convergence"]:
        assert f"{arm['levels']['arm']}: not known, it was validated too seldom" in page
        mine = [each["name"] for each in found["runs"] if arm["levels"].items() <= each["levels"].items()]
        logged = [row for name in mine for row in RunFolder(conducted / name).history() if "dice/student" in row]
        best = [max(row["dice/student"], row.get("dice/teacher", 0)) for row in logged]
        assert [row["step"] for row in logged] == [4, 4]
        assert (arm["steps"], arm["dice"]) == ([4], [pytest.approx(fmean(best))])
    text = "".join(path.read_text() for path in conducted.glob("tiny.*"))
    assert str(conducted) not in text
    assert str(Path.home()) not in text


def test_the_summary_has_a_row_per_comparison_and_above_0_is_better(conducted):
    rows = json.loads((conducted / "summary.json").read_text())
    assert [row["comparison"] for row in rows] == ["equal_steps", "equal_compute"]
    found = json.loads((conducted / "tiny.json").read_text())["runs"]
    for row in rows:
        assert (row["dataset"], row["network"], row["preset"]) == ("data", "unet", "medcontext")
        assert (row["training_cases"], row["seeds"], row["study"]) == (2, 2, "tiny")
        mine = [run["dice"] for run in found if run["levels"]["arm"] == "medcontext"]
        assert row["dice_medcontext"] == pytest.approx(sum(mine) / 2)
        assert row["dice_gain"] == pytest.approx(row["dice_medcontext"] - row["dice_baseline"])
        assert row["hd95_mm_gain"] == pytest.approx(row["hd95_mm_baseline"] - row["hd95_mm_medcontext"])
        for metric in ("dice", "hd95_mm"):
            low, high = row[f"{metric}_gain_ci"]
            assert low <= row[f"{metric}_gain"] <= high


def test_other_comparisons_are_not_summarised_and_several_studies_are(conducted, tmp_path):
    shutil.copy(conducted / "tiny.json", tmp_path / "first.json")
    other = json.loads((conducted / "tiny.json").read_text()) | {"study": "second"}
    other["comparisons"][0]["name"] = "ablation"
    for each in other["comparisons"]:
        each["training_cases"] = 4
    (tmp_path / "second.json").write_text(json.dumps(other))
    (tmp_path / "summary.json").write_text("[]")
    assert len(summary(tmp_path)) == 3


@pytest.mark.parametrize(
    ("seeds", "steps", "named"), [(1, 9, "tiny"), (2, 4, "tiny"), (2, 9, "more"), (2, 3, "tiny"), (3, 3, "more")]
)
def test_of_studies_that_compare_the_same_the_summary_has_the_largest(conducted, tmp_path, seeds, steps, named):
    shutil.copy(conducted / "tiny.json", tmp_path / "first.json")
    other = json.loads((conducted / "tiny.json").read_text()) | {"study": "more"}
    for each in other["comparisons"]:
        assert (len(each["seeds"]), each["steps"]) == (2, [4, 4])
        each |= {"seeds": list(range(seeds)), "steps": [4, steps]}
    (tmp_path / "second.json").write_text(json.dumps(other))
    rows = summary(tmp_path)
    assert [row["comparison"] for row in rows] == ["equal_steps", "equal_compute"]
    assert {row["study"] for row in rows} == {named}
    for split, level in (("another", {}), (other["split"], {"augmentation": "none"})):
        other["split"] = split
        for each in other["comparisons"]:
            each["levels"] = {"training_cases": "2-cases", **level}
            each.pop("steps", None)
        for run in other["runs"]:
            run["levels"] |= level
        (tmp_path / "second.json").write_text(json.dumps(other))
        assert [row["study"] for row in summary(tmp_path)] == ["tiny", "tiny", "more", "more"], "of other cases or arms"


@pytest.mark.parametrize("other_rate", [True, False])
def test_arms_and_learning_rates_have_rows_of_their_own(other_rate, conducted, tmp_path):
    shutil.copy(conducted / "tiny.json", tmp_path / "first.json")
    other = json.loads((conducted / "tiny.json").read_text()) | {"study": "more"}
    for run in other["runs"]:
        if run["levels"]["arm"] == "medcontext":
            run |= {"learning_rate": 0.7} if other_rate else {"levels": run["levels"] | {"arm": "else"}}
    for each in other["comparisons"]:
        each["arm"] = "medcontext" if other_rate else "else"
    (tmp_path / "second.json").write_text(json.dumps(other))
    rows = summary(tmp_path)
    assert [row["study"] for row in rows] == ["tiny", "tiny", "more", "more"]
    assert [row["learning_rates"] for row in rows[2:]] == [[3e-3, 0.7 if other_rate else 3e-3]] * 2


def test_a_failed_run_is_told_and_a_run_whose_scores_are_gone_is_scored_again(conducted, room, write, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(conducted, out)
    broken = {"broken": {"preset": "supervised", "patch": [15, 16, 16]}}
    study = write({**TWO_ARMS, "factors": {**TWO_ARMS["factors"], "arm": {**broken, **ARMS}, "seed": [0]}})
    planned = next(planned for planned in study.runs if planned.name == "2-cases/supervised/seed-0")
    run = RunFolder(out / planned.name)
    weights = run.best.read_bytes()
    run.evaluation.unlink()
    assert state_of(planned, out) == "trained"
    failed = run_study(study, out, cache=room / "cache")
    assert list(failed) == ["2-cases/broken/seed-0"]
    assert "15" in str(failed["2-cases/broken/seed-0"])
    assert "seed-0.log" in str(failed["2-cases/broken/seed-0"])
    assert state_of(planned, out) == "done"
    assert run.best.read_bytes() == weights, "trained again"
    found = gather(study, out, tmp_path / "results")
    assert found["missing"] == ["2-cases/broken/seed-0"]
    assert len(found["comparisons"]) == 2
    assert "Not done yet: 1 of 3" in (tmp_path / "results" / "tiny.md").read_text()


def test_a_run_that_patience_ended_is_done_though_steps_are_left(conducted, room, tmp_path):
    shutil.copytree(conducted, tmp_path / "out")
    planned = read_study(room / "study.yaml", room).runs[0]
    run = RunFolder(tmp_path / "out" / planned.name)
    run.forget_after(3)
    assert state_of(planned, tmp_path / "out") == "done"
    told = json.loads(run.about.read_text())
    del told["finished"]
    run.about.write_text(json.dumps(told))
    assert state_of(planned, tmp_path / "out") == "begun"


def test_a_model_newer_than_its_scores_has_not_been_scored(conducted, room, tmp_path):
    shutil.copytree(conducted, tmp_path / "out")
    planned = read_study(room / "study.yaml", room).runs[0]
    run = RunFolder(tmp_path / "out" / planned.name)
    later = run.evaluation.stat().st_mtime + 10
    os.utime(run.best, (later, later))
    assert state_of(planned, tmp_path / "out") == "trained"


def test_a_run_whose_network_is_gone_is_left_alone_and_told(conducted, room, tmp_path):
    out, results = tmp_path / "out", tmp_path / "results"
    shutil.copytree(conducted, out)
    study = read_study(room / "study.yaml", room)
    planned = study.runs[-1]
    network = RunFolder(out / planned.name).best
    network.unlink()
    with pytest.raises(MedContextError, match="its network is gone") as caught:
        state_of(planned, out)
    assert caught.value.file == str(network)
    failed = run_study(study, out, cache=room / "cache")
    assert [str(error) for error in failed.values()] == [str(caught.value)]
    assert gather(study, out, results)["left_out"] == [planned.name]
    assert run_study(study, out, cache=room / "cache", recorded=[planned.name]) == {}


def made_up(arm, seed, validations, steps=100):
    return {"levels": {"arm": arm, "seed": seed}, "steps": steps, "validations": validations}


def test_an_arm_is_at_its_end_if_its_last_quarter_gained_little():
    """Means over the seeds, at the steps that both have; a dip at the end is no gain."""
    rising = [[25, 0.2], [50, 0.4], [75, 0.6], [100, 0.7]]
    level = [[25, 0.5], [50, 0.7], [75, 0.6], [100, 0.702]]
    runs = [
        made_up("rising", "seed-0", rising),
        made_up("rising", "seed-1", [[step, dice + 0.1] for step, dice in rising] + [[90, 0.99]]),
        made_up("level", "seed-0", level),
        made_up("falling", "seed-0", [[50, 0.6], [75, 0.8], [100, 0.7]]),
        made_up("once", "seed-0", [[100, 0.7]]),
        made_up("never", "seed-0", []),
        made_up("stopped", "seed-0", [[25, 0.5], [50, 0.4]]),
    ]
    found = {arm["levels"]["arm"]: arm for arm in convergence(runs)}
    assert found["rising"]["steps"] == [25, 50, 75, 100]
    assert found["rising"]["dice"] == pytest.approx([0.25, 0.45, 0.65, 0.75])
    gains = {name: arm["last_quarter_gain"] for name, arm in found.items()}
    assert gains == {
        "rising": pytest.approx(0.1),
        "level": pytest.approx(0.002),
        "falling": pytest.approx(-0.1),
        "once": None,
        "never": None,
        "stopped": None,
    }
    assert "rising: still gaining, +0.1000" in in_words(found["rising"])
    assert "level: at its end, +0.0020" in in_words(found["level"])
    assert "falling: at its end" in in_words(found["falling"])
    assert in_words(found["never"]) == "never: not known, it was validated too seldom"
    assert in_words(found["stopped"]) == "stopped: not known, a run was stopped before the last quarter"
    assert convergence_figure(list(found.values())) == convergence_figure(list(found.values()))
    assert convergence_figure([found["never"]]) is None
    many = [{**found["level"], "levels": {"arm": f"arm-{k}"}} for k in range(25)]
    assert convergence_figure(many[:24]) is not None
    assert convergence_figure(many) is None, "no two arms look the same"


def made_up_scores(source: Path, path: Path, dices: dict[str, float]) -> RunFolder:
    """A copy of a scored run, with other scores, of one label."""
    run = RunFolder(path)
    shutil.copytree(source, path)
    evaluation = json.loads(run.evaluation.read_text())
    rows = [{**evaluation["cases"][0], "case": case, "label": 1, "dice": dice} for case, dice in dices.items()]
    run.evaluation.write_text(json.dumps({**evaluation, "cases": rows}))
    return run


def test_the_drawn_cases_are_those_of_the_largest_and_the_smallest_gain(conducted, room, tmp_path, monkeypatch):
    """Scores made up for five cases and three seeds, so that it is known which are to be drawn, and of which seed."""
    gains = {
        "case_00": (0.1, 0.2, 0.3),
        "case_01": (-0.2, 0.0, -0.1),
        "case_02": (0.0, 0.1, 0.1),
        "case_03": (0.5, 0.2, 0.3),
        "case_04": (0.0, 0.0, 0.0),
    }
    before, after = [], []
    for seed in range(3):
        for runs, arm, share in ((before, "supervised", 0), (after, "medcontext", 1)):
            dices = {case: 0.4 + share * gain[seed] for case, gain in gains.items()}
            source = conducted / "2-cases" / arm / "seed-0"
            runs.append(made_up_scores(source, tmp_path / f"{arm}-{seed}", dices))
    drawn = []
    monkeypatch.setattr(pictures, "overlay_figure", lambda cases, names: drawn.extend(cases) or b"")
    first, second = (
        [Scored(json.loads(run.evaluation.read_text()), run.predictions) for run in runs] for runs in (before, after)
    )
    rest = ("before", "after"), open_dataset(room / "data"), before[0].read_plan().labels
    extremes_figure(first, second, *rest)
    assert [(case.rank, case.name) for case in drawn] == [
        ("largest gain +0.333", "case_03"),
        ("largest gain +0.200", "case_00"),
        ("smallest gain +0.000", "case_04"),
        ("smallest gain -0.100", "case_01"),
    ]
    for case, seed in zip(drawn, (2, 1, 0, 2), strict=True):
        assert case.predictions == {
            "before": (before[seed].predictions / f"{case.name}.nii.gz", pytest.approx(0.4)),
            "after": (after[seed].predictions / f"{case.name}.nii.gz", pytest.approx(0.4 + gains[case.name][seed])),
        }
        assert case.truth == room / "data" / "labelsTr" / f"{case.name}.nii.gz"
    drawn.clear()
    # A seed whose label maps are gone counts, and another one is shown.
    extremes_figure(first, [*second[:2], dataclasses.replace(second[2], predictions=None)], *rest)
    assert [case.rank.split()[-1] for case in drawn] == ["+0.333", "+0.200", "+0.000", "-0.100"]
    shown = [case.predictions["after"][0] for case in drawn]
    assert shown == [
        after[seed].predictions / f"{case.name}.nii.gz" for case, seed in zip(drawn, (1, 1, 0, 1), strict=True)
    ]
    drawn.clear()
    file = tmp_path / "extremes.png"
    assert command("compare", before[0].path, after[0].path, "--pictures", file) == 0
    assert file.exists()
    assert [case.name for case in drawn] == ["case_03", "case_00", "case_04", "case_01"]
    after[0].evaluation.unlink()
    with pytest.raises(MedContextError, match="predicted and scored"):
        picture_of_runs([before[0].path], [after[0].path], ("before", "after"))


def test_of_a_few_cases_none_is_drawn_twice():
    ranked = [("a", 0.3), ("b", 0.2), ("c", 0.1)]
    assert [case for _, (case, _) in chosen(ranked)] == ["a", "b", "c"]
    assert [(rank, case) for rank, (case, _) in chosen(ranked[:1])] == [("largest", "a")]


def studied(room, out, results) -> dict:
    """The study of ``conducted``, done with the results in a folder of their own."""
    assert conduct(room / "study.yaml", room, out, device="cpu", cache=room / "cache", results=results) == {}
    return json.loads((results / "tiny.json").read_text())


def test_a_run_whose_folder_is_gone_lives_on_in_the_results(conducted, room, tmp_path, capsys):
    out, results = tmp_path / "out", tmp_path / "results"
    shutil.copytree(conducted, out)
    whole, table = studied(room, out, results), (results / "tiny.csv").read_bytes()
    picture = (results / "tiny" / "2-cases-supervised-medcontext.png").read_bytes()
    shutil.rmtree(out / "2-cases" / "supervised" / "seed-1")
    table_of_runs = rehearse(room / "study.yaml", room, out, results=results, progress=Progress())
    assert list(table_of_runs.columns[1].cells) == ["done"] * 4
    assert "4 of 4 runs are in" in capsys.readouterr().err
    for gone in (out / "2-cases" / "medcontext", out):
        shutil.rmtree(gone)
        again = studied(room, out, results)
        assert not list(gone.rglob("*.pt")), "trained again"
        assert again == whole
        assert (results / "tiny.csv").read_bytes() == table
        assert (results / "tiny" / "2-cases-supervised-medcontext.png").read_bytes() == picture


@pytest.mark.parametrize("written", range(4))
def test_results_whose_writing_is_broken_off_can_be_read(written, conducted, room, tmp_path, monkeypatch):
    """First and where there are some of fewer runs: of the scores and the table of runs, neither lacks the other's."""
    study = read_study(room / "study.yaml", room)
    known = {
        name: dataclasses.replace(each, missing=dict.fromkeys(("blocks", "slab"), each.rows))
        for name, each in recorded(study, conducted).items()
    }
    few = dict(list(known.items())[:2])
    gather(study, tmp_path / "gone", tmp_path / "before", few)
    for results, there in ((tmp_path / "none", {}), (tmp_path / "before", few)):
        with monkeypatch.context() as patch:
            left = iter(range(written))
            for name in ("write_text", "write_json"):
                honest = getattr(gathering, name)

                def breaks(file, content, honest=honest, left=left):
                    if next(left, None) is None:
                        raise KeyboardInterrupt
                    honest(file, content)

                patch.setattr(gathering, name, breaks)
            with pytest.raises(KeyboardInterrupt):
                gather(study, tmp_path / "gone", results, known)
        held = recorded(study, results)
        assert held.keys() == there.keys()
        assert all(each.missing.keys() == {"blocks", "slab"} for each in held.values())
        gather(study, tmp_path / "gone", results, known)
        assert recorded(study, results).keys() == known.keys()


def test_a_picture_that_can_not_be_drawn_anew_goes_once_it_shows_something_else(conducted, room, tmp_path):
    study, results = read_study(room / "study.yaml", room), tmp_path / "results"
    picture = results / "tiny" / "2-cases-supervised-medcontext.png"
    gather(study, conducted, results)
    known = recorded(study, results)
    gather(study, tmp_path / "none", results, known)
    assert f"]({picture.relative_to(results)})" in (results / "tiny.md").read_text()
    name = study.runs[0].name
    others = [{**row, "dice": row["dice"] and row["dice"] / 2} for row in known[name].rows]
    found = gather(study, tmp_path / "none", results, {**known, name: dataclasses.replace(known[name], rows=others)})
    assert not picture.exists()
    assert found["comparisons"][0]["picture"] is None
    assert ".png" not in (results / "tiny.md").read_text()


def test_results_of_other_settings_or_cases_are_not_taken_for_these(conducted, room, tmp_path):
    study = read_study(room / "study.yaml", room)
    asked = {run.name for run in study.runs}
    assert recorded(study, conducted).keys() == asked
    few, *others = study.runs
    other_method = dataclasses.replace(few.config.method_config(), ratio=0.4)
    changes = {"learning_rate": 0.5}, {"few_shot": 3}, {"few_shot": None}, {"patience": 2}, {"method": other_method}
    for change in changes:
        changed = dataclasses.replace(few, config=dataclasses.replace(few.config, **change))
        found = recorded(dataclasses.replace(study, runs=(changed, *others)), conducted)
        assert found.keys() == {run.name for run in others}
    told = json.loads((conducted / "tiny.json").read_text())
    for where in (told["settings"], *(run["settings"] for run in told["runs"])):
        where.pop("method.mask_probability", None)
    shutil.copy(conducted / "tiny.csv", tmp_path)
    (tmp_path / "tiny.json").write_text(json.dumps(told))
    assert recorded(study, tmp_path).keys() == asked, "made before there was this setting, which is at its default"
    method = dataclasses.replace(few.config.method_config(), mask_probability=0.5)
    later = dataclasses.replace(few, config=dataclasses.replace(few.config, method=method))
    found = recorded(dataclasses.replace(study, runs=(later, *others)), tmp_path)
    assert found.keys() == {run.name for run in others}
    elsewhere = dataclasses.replace(few, config=dataclasses.replace(few.config, device="cuda", workers=3))
    assert recorded(dataclasses.replace(study, runs=(elsewhere, *others)), conducted).keys() == asked
    file = json.loads((conducted / "tiny.json").read_text())
    (tmp_path / "tiny.json").write_text(json.dumps({**file, "split": "split.json (another)"}))
    assert recorded(study, tmp_path) == {}
    (tmp_path / "tiny.json").write_text(json.dumps({**file, "runs": [{"name": few.name}]}))
    with pytest.raises(MedContextError, match="results of this study can't be read"):
        recorded(study, tmp_path)
    (tmp_path / "tiny.json").write_text(json.dumps(file))
    (tmp_path / "tiny.csv").unlink()
    with pytest.raises(MedContextError, match=r"tiny\.csv"):
        recorded(study, tmp_path)


def test_scans_of_one_patient_count_as_one_patient(conducted, room, tmp_path):
    """As the run's settings find them in the names of its cases, and on from there into the results."""
    out, results = tmp_path / "out", tmp_path / "results"
    shutil.copytree(conducted, out)
    study, pattern = read_study(room / "study.yaml", room), "case"
    for planned in study.runs:
        run = RunFolder(out / planned.name)
        settings = yaml.safe_load(run.config.read_text())
        run.config.write_text(dump(settings | {"patient": pattern}))
        scored = score_held_out(run, open_dataset(room / "data"), device="cpu", progress=Progress(quiet=True))
        assert scored["patients"] == dict.fromkeys(run.read_split().test, "case")
    runs = [dataclasses.replace(run, config=dataclasses.replace(run.config, patient=pattern)) for run in study.runs]
    asked = dataclasses.replace(study, runs=tuple(runs))
    found = gather(asked, out, results)
    assert set(found["patients"].values()) == {"case"}
    overall = found["comparisons"][0]["result"]["dice"]["overall"]
    assert (overall["cases"], overall["patients"], overall["interval"]) == (3, 1, None)
    assert "One patient says nothing about others" in found["comparisons"][0]["verdict"]
    shutil.rmtree(out)
    again = gather(asked, out, results, recorded(asked, results))
    assert (again["patients"], again["comparisons"]) == (found["patients"], found["comparisons"])


@pytest.mark.parametrize(
    ("asked", "jobs", "threads"),
    [(None, 1, 8), (None, 3, 2), (None, 20, 1), ("1", 1, 1), ("3", 2, 3), ("16", 2, 4), ("", 2, 4), ("0", 2, 4)],
)
def test_a_run_has_its_share_of_the_cores_or_what_it_is_given(asked, jobs, threads, monkeypatch):
    monkeypatch.setattr(studying, "processors", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert studying.threads_for(jobs) == threads


def test_an_arm_that_is_called_otherwise_keeps_its_runs(conducted, room):
    study = read_study(room / "study.yaml", room)
    renamed = [dataclasses.replace(run, name=run.name.replace("medcontext", "masked")) for run in study.runs]
    before, found = recorded(study, conducted), recorded(dataclasses.replace(study, runs=tuple(renamed)), conducted)
    assert {run.name for run in renamed} == found.keys() != before.keys()
    for run, called in zip(study.runs, renamed, strict=True):
        assert found[called.name].rows == before[run.name].rows
        assert found[called.name].facts == before[run.name].facts | {"name": called.name}


def test_a_hidden_patch_that_is_left_open_is_that_of_the_spacing(conducted, room, tmp_path):
    study = read_study(room / "study.yaml", room)
    asked = {run.name for run in study.runs if run.config.preset == "medcontext"}
    told = json.loads((conducted / "tiny.json").read_text())
    assert recorded(study, conducted).keys() > asked
    shutil.copy(conducted / "tiny.csv", tmp_path)
    for where in (told["settings"], *(run["settings"] for run in told["runs"])):
        where["method.mask_patch"] = [8, 8, 8]
    assert told["settings"]["spacing"] == [1.5, 1.0, 1.0]
    (tmp_path / "tiny.json").write_text(json.dumps(told))
    found = recorded(study, tmp_path)
    assert found
    assert not asked & found.keys(), "of cubes in voxels, which are none in mm"


def test_what_an_arm_leaves_to_the_plan_another_arm_may_set(conducted, room, tmp_path):
    """What the plan chose for the one is what the other asks for: each has its own runs all the same."""
    results, out = tmp_path / "results", tmp_path / "gone"
    study = read_study(room / "study.yaml", room)
    gather(study, conducted, results)
    rate = json.loads((results / "tiny.json").read_text())["settings"]["learning_rate"]
    supervised = ARMS["supervised"]
    factors = {**TWO_ARMS["factors"], "arm": {"supervised": supervised, "told": {**supervised, "learning_rate": rate}}}
    file = tmp_path / "study.yaml"
    content = {**TINY, "split": str(room / "split.json"), "factors": factors, "comparisons": []}
    file.write_text(dump(content))
    asked = read_study(file, room)
    assert set(recorded(asked, results)) == {f"2-cases/supervised/seed-{seed}" for seed in (0, 1)}
    assert gather(asked, out, results, recorded(asked, results))["missing"] == [
        f"2-cases/told/seed-{seed}" for seed in (0, 1)
    ]
    file.write_text(dump({**content, "name": "other"}))
    taken = recorded(read_study(file, room), results)
    assert set(taken) == {f"2-cases/told/seed-{seed}" for seed in (0, 1)}, "of another study, whoever asks for more"


def test_what_another_process_has_done_meanwhile_is_not_lost(conducted, room, tmp_path, monkeypatch):
    """Two processes share the runs of a study, each in a folder of its own, and write to the same results."""
    file, results = room / "study.yaml", tmp_path / "results"
    outs = [tmp_path / "one", tmp_path / "two"]
    for out, others in zip(outs, ("medcontext", "supervised"), strict=True):
        shutil.copytree(conducted, out)
        shutil.rmtree(out / "2-cases" / others)

    def meanwhile(study, out, **_):
        if out == outs[0]:
            conduct(file, room, outs[1], results=results)
        return {}

    monkeypatch.setattr("medcontext.studies.conduct.run_study", meanwhile)
    conduct(file, room, outs[0], results=results)
    assert len(json.loads((results / "tiny.json").read_text())["runs"]) == 4


def test_a_run_tells_what_it_was_resumed_with_and_how_many_steps_it_had(conducted, room, tmp_path):
    study = read_study(room / "study.yaml", room)
    planned = study.runs[0]
    run = RunFolder(tmp_path / planned.name)
    shutil.copytree(conducted / planned.name, run.path)
    before = of_folder(planned, run).facts
    assert before["steps"] == 4
    run.note(resumed=[{"source": before["commit"]}, {"source": "abc", "processor": "another"}])
    run.config.write_text(yaml.safe_dump({**run.read_config(), "max_steps": 100, "patience": 1}))
    facts = of_folder(planned, run).facts
    assert (facts["commit"], facts["steps"]) == (f"{before['commit']}; then abc", 4)
    assert facts["hardware"].startswith(f"{before['hardware']}; then another, ")
    assert facts["software"] == before["software"]


def test_runs_of_another_study_that_were_made_just_so_are_not_done_again(conducted, room, tmp_path, capsys):
    """Whatever they are called there; and it is said whose they are."""
    results = tmp_path / "results"
    study = read_study(room / "study.yaml", room)
    gather(study, conducted, results)
    names = {"supervised": "plain", "medcontext": "masked"}
    arms = {names[arm]: settings for arm, settings in ARMS.items()} | {"longer": TINY["factors"]["arm"]["longer"]}
    other = {**TINY, "name": "other", "factors": {"arm": arms, "seed": [0, 1, 2]}, "split": str(room / "split.json")}
    other["comparisons"] = [["plain", "masked", "equal_steps"]]
    other["settings"] = {**TINY["settings"], "training_cases": 2}
    file = tmp_path / "other.yaml"
    file.write_text(dump(other))
    there, asked = recorded(study, results), read_study(file, room)
    table = rehearse(file, room, tmp_path / "out", results=results, progress=Progress())
    assert "4 of 9 runs are in" in (said := capsys.readouterr().err)
    assert "move tiny.json away" in said
    assert [list(column.cells).count("done") for column in table.columns][1] == 4
    known = recorded(asked, results)
    assert known.keys() == {f"{arm}/seed-{seed}" for arm in names.values() for seed in (0, 1)}
    for arm, here in names.items():
        for seed in ("seed-0", "seed-1"):
            theirs, taken = there[f"2-cases/{arm}/{seed}"], known[f"{here}/{seed}"]
            assert taken.rows == theirs.rows
            assert taken.facts["of_study"] == "tiny"
            assert taken.facts["levels"] == {"arm": here, "seed": seed}
    found = gather(asked, tmp_path / "none", results, known)
    assert found["comparisons"][0]["result"]["dice"] == json.loads((results / "tiny.json").read_text())["comparisons"][
        0]["result"]["dice"]  # fmt: skip
    page = (results / "other.md").read_text()
    assert "of [tiny](tiny.md): plain/seed-0, masked/seed-0, plain/seed-1, masked/seed-1." in page
    assert "of_study" not in (results / "tiny.json").read_text()
    again = recorded(asked, results)
    assert {name: run.facts for name, run in again.items()} == {name: run.facts for name, run in known.items()}
    rehearse(file, room, tmp_path / "none", results=results, progress=Progress())
    assert "move other.json, tiny.json away" in capsys.readouterr().err
    scores = results / "tiny.csv"
    kept = scores.read_text()
    lines = [",".join([*line.split(",")[:3], "0.125", *line.split(",")[4:]]) for line in kept.splitlines()[1:]]
    scores.write_text("\n".join([kept.splitlines()[0], *lines]))
    assert {row["dice"] for run in recorded(asked, results).values() for row in run.rows} == {0.125}, "done anew there"
    scores.write_text(kept)
    (results / "tiny.json").unlink()
    assert recorded(study, results) == {}, "what others took over is no reason not to do it anew"


def test_a_run_that_is_removed_is_done_anew_where_the_results_lie_among_the_runs(conducted, room, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(conducted, out)
    gone = RunFolder(out / "2-cases" / "supervised" / "seed-1")
    shutil.rmtree(gone.path)
    assert conduct(room / "study.yaml", room, out, device="cpu", cache=room / "cache") == {}
    assert gone.best.is_file()


@pytest.mark.parametrize(
    ("fact", "key", "told", "has_ratio"),
    [
        ("hardware", "same_hardware", "trained on different hardware", False),
        ("commit", "same_commit", "trained at different commits", True),
    ],
)
def test_a_comparison_across_hardware_or_commits_says_so(conducted, room, tmp_path, fact, key, told, has_ratio):
    """Times on different hardware have no ratio."""
    study = read_study(room / "study.yaml", room)
    runs = recorded(study, conducted)
    first = next(iter(runs))
    other = {**runs, first: dataclasses.replace(runs[first], facts={**runs[first].facts, fact: "another"})}
    for name, known in (("alike", runs), ("unlike", other)):
        found = gather(study, tmp_path / "gone", tmp_path / name, known)
        assert {each[key] for each in found["comparisons"]} == {name == "alike"}
        page = (tmp_path / name / "tiny.md").read_text()
        assert page.count(told) == (name == "unlike")
        compared = [row for row in page.splitlines() if " (equal_" in row]
        ratio = r"\| \d+\.\d\d \|$" if name == "alike" or has_ratio else r"\| - \|$"
        assert all(re.search(ratio, row) for row in compared)


def test_the_gpu_is_a_part_of_the_hardware(conducted, room, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H200")
    about = describe_environment(room / "data")
    study = read_study(room / "study.yaml", room)
    planned = study.runs[0]
    run = RunFolder(tmp_path / planned.name)
    shutil.copytree(conducted / planned.name, run.path)
    run.note(**about)
    assert "H200" not in of_folder(planned, run).facts["hardware"], "trained on the CPU"
    run.config.write_text(yaml.safe_dump({**run.read_config(), "device": "cuda:0"}))
    assert "; cuda (NVIDIA H200) in fp32" in of_folder(planned, run).facts["hardware"]


def test_structures_that_one_arm_missed_are_counted_beside_hd95(conducted, room, tmp_path):
    study = read_study(room / "study.yaml", room)
    runs = recorded(study, conducted)
    name = next(planned.name for planned in study.runs if planned.levels["arm"] == "medcontext")
    missed, *others = [row for row in runs[name].rows if row["hd95_mm"] is not None]
    rows = [{**missed, "dice": 0.0, "hd95_mm": None, "outcome": "missed"}, *others]
    whole = {**runs, name: dataclasses.replace(runs[name], rows=[missed, *others])}
    page = tmp_path / "tiny.md"
    for known, told in ((whole, 0), ({**runs, name: dataclasses.replace(runs[name], rows=rows)}, 1)):
        gather(study, tmp_path / "gone", tmp_path, known)
        assert page.read_text().count(", 1 left out |") == told


def test_gains_stand_beside_one_another(conducted, room, tmp_path):
    """Two of four arms gain 0.1 and 0.3; of one seed a run is missing, so that it says nothing of the gains."""
    study = read_study(room / "study.yaml", room)
    runs = recorded(study, conducted)
    names = {"supervised": 0.4, "medcontext": 0.5, "plain": 0.2, "masked": 0.5}
    row = next(iter(runs.values())).rows[0]
    planned, known = [], {}
    for each in study.runs:
        for arm, dice in names.items() if each.levels["arm"] == "supervised" else ():
            levels = {**each.levels, "arm": arm}
            run = dataclasses.replace(each, name="/".join(levels.values()), levels=levels)
            planned.append(run)
            if (arm, levels["seed"]) != ("masked", "seed-1"):
                rows = [{**row, "case": case, "dice": dice + k / 100} for k, case in enumerate("abc")]
                of = runs[each.name]
                facts = {**of.facts, "name": run.name, "levels": levels}
                known[run.name] = dataclasses.replace(of, planned=run, facts=facts, rows=rows, missing={"slab": rows})
    compared = [Comparison("supervised", "medcontext", "usual"), Comparison("plain", "masked", "other")]
    asked = dataclasses.replace(
        study, runs=tuple(planned), comparisons=tuple(compared), gains=(("other", "usual"),), pictures=()
    )
    found = gather(asked, tmp_path / "gone", tmp_path, known)
    assert [(each["missing"], each["first"], each["second"]) for each in found["gains"]] == [
        (None, "other", "usual"), ("slab", "other", "usual"),
    ]  # fmt: skip
    for each in found["gains"]:
        assert (each["levels"], each["seeds"]) == ({"training_cases": "2-cases"}, ["seed-0"])
        result = each["result"]
        assert [result[key] for key in ("first", "second", "difference")] == pytest.approx([0.3, 0.1, -0.2])
        assert (result["losses"], result["distinguishable"]) == (3, True)
    page = (tmp_path / "tiny.md").read_text().partition("## Gains beside one another")[2]
    assert "| nothing | 2-cases | usual | other | 1 | +0.3000 | +0.1000 | -0.2000 [-0.2000, -0.2000] |" in page
    gather(dataclasses.replace(asked, gains=()), tmp_path / "gone", tmp_path, known)
    assert "## Gains beside one another" not in (tmp_path / "tiny.md").read_text()


def test_the_runs_table_says_how_often_the_teacher_was_scored(conducted, room, tmp_path):
    study = read_study(room / "study.yaml", room)
    runs = recorded(study, conducted)
    for which, told in (("teacher", "2"), ("student", "0"), (None, "-")):
        said = {
            name: dataclasses.replace(each, facts={**each.facts, "scored_is": which}) for name, each in runs.items()
        }
        gather(study, tmp_path / "gone", tmp_path / told, said)
        page = (tmp_path / told / "tiny.md").read_text().partition("## Runs")[2].partition("## Convergence")[0]
        heads, _, *rows = [[cell.strip() for cell in line.split("|")] for line in page.splitlines() if "|" in line]
        assert [row[heads.index("of the teacher")] for row in rows] == [told] * 2


def test_what_is_missed_is_told_as_a_mean_over_the_seeds(conducted, room, tmp_path):
    """So that it can be compared between arms of different numbers of seeds."""
    study = read_study(room / "study.yaml", room)
    runs = recorded(study, conducted)
    planned, known = [*study.runs], {}
    for each in study.runs[:2]:
        levels = {**each.levels, "seed": "seed-2"}
        planned.append(dataclasses.replace(each, name="/".join(levels.values()), levels=levels))
    asked = dataclasses.replace(study, runs=tuple(planned), pictures=())
    for counts, told in (
        ({"supervised": (1, 3, 5), "medcontext": (1, 1, 2)}, ["3", "1.3"]),
        ({"supervised": (0, 0, 0), "medcontext": (12, 11)}, ["0", "11.5"]),
    ):
        for each in planned:
            arm, seed = each.levels["arm"], int(each.levels["seed"].removeprefix("seed-"))
            of = runs[each.name.replace("seed-2", "seed-0")]
            facts = {**of.facts, "name": each.name, "levels": each.levels, "missed": 0}
            known[each.name] = dataclasses.replace(of, planned=each, facts=facts)
            if seed < len(counts[arm]):
                facts["missed"] = counts[arm][seed]
            else:
                del known[each.name]
        gather(asked, tmp_path / "gone", tmp_path, known)
        page = (tmp_path / "tiny.md").read_text().partition("## Runs")[2].partition("## Convergence")[0]
        heads, _, *rows = [[cell.strip() for cell in line.split("|")] for line in page.splitlines() if "|" in line]
        assert [row[heads.index("missed")] for row in rows] == told


def drawn_gains(monkeypatch, comparisons):
    """The axes of their figure."""
    kept = []
    monkeypatch.setattr(figures, "_svg", kept.append)
    gains_figure(comparisons)
    return kept[0].axes[0]


def gained(arm, cases, difference, interval):
    overall = {"difference": difference, "interval": interval}
    result = {"dice": {"overall": overall}}
    return {"baseline": "plain", "arm": arm, "levels": {}, "training_cases": cases, "result": result}


@pytest.mark.parametrize("as_curves", [True, False])
def test_a_gain_without_an_interval_has_no_bar(as_curves, monkeypatch):
    """Such as that of one patient; a bar of no width would say that it is known exactly."""
    comparisons = [gained("one", 2, 0.2, None), gained("one" if as_curves else "two", 4, 0.3, [0.1, 0.4])]
    ((points, caps, (bars,)),) = drawn_gains(monkeypatch, comparisons).containers
    axis = int(as_curves)
    assert [*points.get_data()[axis]] == [0.2, 0.3]
    assert [segment[:, axis].tolist() for segment in bars.get_segments() if len(segment)] == [pytest.approx([0.1, 0.4])]
    assert [cap.get_data()[axis][1] for cap in caps] == pytest.approx([0.1, 0.4])
    assert np.isnan([cap.get_data()[axis][0] for cap in caps]).all()


def test_gains_without_any_interval_are_drawn():
    assert gains_figure([gained("one", 2, 0.2, None), gained("one", 4, 0.3, None)]).startswith("<?xml")


def test_no_two_curves_of_gains_look_alike(monkeypatch):
    comparisons = [gained(f"arm-{k}", cases, 0.1, [0.0, 0.2]) for k in range(24) for cases in (2, 4)]
    looks = set(
        re.findall(r"none; (stroke-dasharray: \S+ )?.*?stroke: (\S+); stroke-width: 1\.5", gains_figure(comparisons))
    )
    assert len(looks) == 24
    lines = [line for line, *_ in drawn_gains(monkeypatch, comparisons).containers]
    assert [line.is_dashed() for line in lines] == [False] * 6 + [True] * 18


def test_nothing_is_gathered_of_nothing(write, tmp_path):
    with pytest.raises(MedContextError, match="No run of this study is done"):
        gather(write(), tmp_path / "out", tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_a_run_of_other_settings_is_left_alone_and_told(conducted, room, write):
    study = write(TWO_ARMS, learning_rate=0.5)
    before = {path: path.stat().st_mtime_ns for path in conducted.rglob("*.pt")}
    failed = run_study(study, conducted, cache=room / "cache")
    assert len(failed) == 4
    assert "learning_rate: 0.003 before, 0.5 now" in str(failed["2-cases/supervised/seed-0"])
    assert {path: path.stat().st_mtime_ns for path in conducted.rglob("*.pt")} == before


@pytest.mark.parametrize(("setting", "made"), [("patience", 3), ("patient", "(.*)_"), ("few_shot", 3)])
def test_a_run_that_had_what_the_study_leaves_out_is_of_other_settings(setting, made, conducted, room, tmp_path):
    shutil.copytree(conducted, tmp_path / "out")
    planned = read_study(room / "study.yaml", room).runs[0]
    planned = dataclasses.replace(planned, config=dataclasses.replace(planned.config, few_shot=None))
    file = RunFolder(tmp_path / "out" / planned.name).config
    told = {**yaml.safe_load(file.read_text()), "few_shot": None}
    file.write_text(yaml.safe_dump(told))
    assert state_of(planned, tmp_path / "out") == "done"
    file.write_text(yaml.safe_dump({**told, setting: made}))
    with pytest.raises(MedContextError, match="other settings") as caught:
        state_of(planned, tmp_path / "out")
    assert caught.value.found == f"{setting}: {made} before, None now"


def test_a_run_of_other_settings_is_left_out_of_the_results_and_told(conducted, room, tmp_path, capsys):
    out, results, file = tmp_path / "out", tmp_path / "results", room / "study.yaml"
    shutil.copytree(conducted, out)
    other = read_study(file, room).runs[-1].name
    config = RunFolder(out / other).config
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "patience": 3}))
    failed = conduct(file, room, out, device="cpu", cache=room / "cache", results=results, progress=Progress())
    assert list(failed) == [other]
    assert f"{other} is left out of the results" in capsys.readouterr().err
    found = json.loads((results / "tiny.json").read_text())
    assert (len(found["runs"]), found["missing"], found["left_out"]) == (3, [other], [other])
    assert f"folders hold something else: {other}." in (results / "tiny.md").read_text()
    table = rehearse(file, room, out, progress=Progress())
    assert list(table.columns[1].cells) == ["done"] * 3 + ["left alone"]
    assert "patience: 3 before, None now" in capsys.readouterr().err


def test_what_the_results_hold_is_done_whatever_is_in_the_folder(conducted, room, tmp_path):
    out, results, file = tmp_path / "out", tmp_path / "results", room / "study.yaml"
    shutil.copytree(conducted, out)
    gather(read_study(file, room), out, results)
    config = RunFolder(out / read_study(file, room).runs[-1].name).config
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "patience": 3}))
    assert conduct(file, room, out, device="cpu", cache=room / "cache", results=results) == {}
    assert len(json.loads((results / "tiny.json").read_text())["runs"]) == 4


def forget_split(run: RunFolder) -> None:
    """As runs are that were made before they noted it."""
    told = json.loads(run.about.read_text())
    del told["split"]
    run.about.write_text(json.dumps(told))


@pytest.mark.parametrize("noted", [True, False])
def test_a_split_that_was_edited_is_another_one(noted, conducted, room, tmp_path):
    """Where it lies is the same, and so is what is held out."""
    shutil.copytree(room, tmp_path / "room", ignore=shutil.ignore_patterns("cache"))
    file, split = tmp_path / "room" / "study.yaml", tmp_path / "room" / "split.json"
    planned = read_study(file, tmp_path / "room").runs[0]
    run = RunFolder(tmp_path / "out" / planned.name)
    shutil.copytree(conducted / planned.name, run.path)
    run.config.write_text(yaml.safe_dump({**run.read_config(), "split": str(split)}))
    if not noted:
        forget_split(run)
    assert state_of(planned, tmp_path / "out") == "done"
    fold = read_split_file(split).folds[0]
    left = tuple(name for name in fold.train if name not in run.read_split().train)
    write_split_file(split, SplitFile("tiny", "a test", (dataclasses.replace(fold, train=left),)))
    with pytest.raises(MedContextError, match="other cases"):
        state_of(planned, tmp_path / "out")


@pytest.mark.parametrize(("noted", "few_shot"), [(True, 2), (True, None), (False, 2), (False, None)])
def test_a_split_with_more_cases_to_learn_from_is_another_one_where_the_run_noted_it(
    noted, few_shot, conducted, room, tmp_path
):
    """Few of them would be others, or one of all cases is not among them; a run of an earlier version can't tell."""
    split, out = tmp_path / "split.json", tmp_path / "out"
    shutil.copy(room / "split.json", split)
    planned = read_study(room / "study.yaml", room).runs[0]
    planned = dataclasses.replace(planned, config=dataclasses.replace(planned.config, split=split, few_shot=few_shot))
    run = RunFolder(shutil.copytree(conducted / planned.name, out / planned.name))
    (fold,) = read_split_file(split).folds
    assert json.loads(run.about.read_text())["split"] == SplitFile("", "", (fold,)).hash
    run.config.write_text(yaml.safe_dump({**run.read_config(), "split": str(split), "few_shot": few_shot}))
    if few_shot is None:
        run.split.write_text(json.dumps(dataclasses.asdict(fold)))
    if not noted:
        forget_split(run)
    more = dataclasses.replace(fold, train=(*fold.train, "case_new"))
    turned = dataclasses.replace(fold, train=fold.train[::-1])
    for folds in ((fold,), (turned,), (fold, more)):
        write_split_file(split, SplitFile("other", "a test", folds))
        assert state_of(planned, out) == "done"
    write_split_file(split, SplitFile("tiny", "a test", (more, fold)))
    assert has_cases_of(run.path, planned.config) is not noted
    second = dataclasses.replace(planned.config, fold=1)
    assert has_cases_of(run.path, second)
    assert not has_cases_of(run.path, dataclasses.replace(second, fold=2))
    if noted:
        with pytest.raises(MedContextError, match="other cases"):
            state_of(planned, out)
    else:
        assert state_of(planned, out) == "done"


@pytest.mark.parametrize("noted", [True, False])
def test_a_split_counts_by_its_cases_and_not_by_its_place(noted, conducted, room, tmp_path):
    (tmp_path / "split.json").write_bytes((room / "split.json").read_bytes())
    file = tmp_path / "study.yaml"
    file.write_text(dump({**TINY, **TWO_ARMS, "split": str(tmp_path / "split.json")}))
    planned = read_study(file, room).runs[0]
    run = RunFolder(shutil.copytree(conducted / planned.name, tmp_path / planned.name))
    if not noted:
        forget_split(run)
    assert state_of(planned, tmp_path) == "done"
    (fold,), ran = read_split_file(room / "split.json").folds, run.read_split()
    write_split_file(tmp_path / "split.json", SplitFile("own", "of the run", (ran,)))
    assert state_of(planned, tmp_path) == "done"
    for part, other in (("test", "train"), ("train", "validation")):
        moved = getattr(ran, part)[0]
        kept = tuple(name for name in getattr(fold, part) if name != moved)
        changed = dataclasses.replace(fold, **{part: kept, other: (*getattr(fold, other), moved)})
        write_split_file(tmp_path / "split.json", SplitFile("other", "a test", (changed,)))
        with pytest.raises(MedContextError, match=f"{room}/split.json before"):
            state_of(planned, tmp_path)


def test_a_run_is_said_to_have_taken_its_own_time(write, tmp_path, monkeypatch, capsys):
    """One after the other, by a clock that moves only where it is waited."""
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.append(now.pop() + seconds))
    monkeypatch.setattr(studying, "time", clock)
    monkeypatch.setattr(studying, "LOOK_SECONDS", 60.0)
    processes = iter(Mock(poll=Mock(side_effect=[*[None] * looks, 0]), returncode=0) for looks in (2, 1))
    monkeypatch.setattr(studying, "_start", lambda *_: next(processes))
    assert run_study(write(SMALL), tmp_path / "out", progress=Progress()) == {}
    assert re.findall(r"done after (.*?);", capsys.readouterr().err) == ["2 min 00 s", "1 min 00 s"]


CONDUCT = """
import sys
from pathlib import Path
from medcontext.progress import Progress
from medcontext.studies.conduct import conduct
file, room, out = map(Path, sys.argv[1:])
try:
    conduct(file, room, out, jobs=2, device="cpu", cache=room / "cache", progress=Progress())
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_stopped_runs_write_their_checkpoints_and_go_on(write, room, tmp_path):
    study = write(SMALL, max_steps=100_000, save_every=100_000)
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", CONDUCT, str(study.file), str(room), str(out)], stderr=subprocess.PIPE, text=True
    )
    runs = [RunFolder(out / planned.name) for planned in study.runs]
    try:
        deadline = time.monotonic() + 60
        while not all(len(run.history()) > 1 for run in runs):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with pytest.raises(MedContextError, match="Another process is at work"):
            run_study(study, out)
    finally:
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "stopping 2 run(s)" in said
    assert "No run of this study is done" in said
    for planned, run in zip(study.runs, runs, strict=True):
        step = load_tensors(run.last)["method"]["step"]
        assert 0 < step < 100_000
        assert run.history()[-1]["step"] <= step
        assert state_of(planned, out) == "begun"
    # Let the next step be the last one, so that going on comes to an end.
    planned, run = study.runs[1], runs[1]
    end = int(load_tensors(run.last)["method"]["step"]) + 1
    run.config.write_text(yaml.safe_dump({**yaml.safe_load(run.config.read_text()), "max_steps": end}))
    run.plan.write_text(json.dumps({**json.loads(run.plan.read_text()), "steps": end}))
    run.note(hashes={})
    shorter = dataclasses.replace(planned, config=dataclasses.replace(planned.config, max_steps=end))
    assert run_study(dataclasses.replace(study, runs=(shorter,)), out, cache=room / "cache") == {}
    assert f"going on from step {end - 1}" in (out / f"{planned.name}.log").read_text()
    assert state_of(shorter, out) == "done"


def test_a_study_that_is_stopped_writes_what_is_done(conducted, room, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(conducted, out)
    study = read_study(room / "study.yaml", room)
    shutil.rmtree(out / study.runs[-1].name)

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("medcontext.studies.study._start", stopped)
    with pytest.raises(KeyboardInterrupt):
        conduct(room / "study.yaml", room, out, results=tmp_path / "results")
    found = json.loads((tmp_path / "results" / "tiny.json").read_text())
    assert found["missing"] == [study.runs[-1].name]
    assert len(found["runs"]) == len(study.runs) - 1


def test_some_runs_can_be_done_before_the_others(conducted, room, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(conducted, out)
    study, gone = read_study(room / "study.yaml", room), ("2-cases/medcontext/seed-0", "2-cases/medcontext/seed-1")
    for name in gone:
        shutil.rmtree(out / name)
    asked = {"device": "cpu", "cache": room / "cache"}
    table = rehearse(room / "study.yaml", room, out, only="*/seed-1", **asked)
    assert [cell.plain for cell in table.columns[0].cells] == [
        run.name for run in study.runs if run.levels["seed"] == "seed-1"
    ]
    assert conduct(room / "study.yaml", room, out, only="*/medcontext/seed-1, */supervised/seed-?", **asked) == {}
    found = json.loads((out / "tiny.json").read_text())
    assert found["missing"] == [gone[0]]
    assert len(found["runs"]) == 3
    with pytest.raises(MedContextError, match="No run of this study has such a name") as error:
        conduct(room / "study.yaml", room, out, only="*/seed-1,medcontext", **asked)
    assert error.value.found == "--only 'medcontext'"
    assert "2-cases/supervised/seed-0" in str(error.value)


@pytest.mark.parametrize("do", [conduct, rehearse])
def test_no_jobs_at_a_time_are_refused(do, write, room, tmp_path):
    with pytest.raises(MedContextError, match="jobs") as caught:
        do(write().file, room, tmp_path / "out", jobs=0)
    assert caught.value.expected == "a whole number, 1 or more"


def test_the_time_is_taken_from_runs_of_the_same_shape_or_measured(conducted, room, write, tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "_timed", lambda step, device: step() or estimate.ENOUGH_SECONDS)
    study = read_study(room / "study.yaml", room)
    assert {each.seconds for each in forecast(study, conducted)} == {0.0}
    shutil.copytree(conducted, tmp_path / "out")
    gone, alike = (run for run in study.runs if run.levels["arm"] == "medcontext")
    shutil.rmtree(tmp_path / "out" / gone.name)
    missing = next(each for each in forecast(study, tmp_path / "out") if each.run == gone)
    last = [row for row in RunFolder(conducted / alike.name).history() if row["kind"] == "train"][-1]
    assert missing.state == "new"
    assert missing.seconds == pytest.approx(last["seconds"] / last["step"] * 4)
    measured = forecast(write(SMALL), tmp_path / "none", device="cpu", cache=room / "cache")
    assert [each.seconds for each in measured] == [4 * estimate.ENOUGH_SECONDS] * 2


def test_the_time_is_taken_from_runs_whose_patch_was_left_to_the_plan_too(conducted, room, tmp_path):
    """The data set is not at hand, so that nothing can be measured."""
    study = read_study(room / "study.yaml", room)
    shutil.copytree(conducted, tmp_path / "out")
    gone = next(run for run in study.runs if run.levels["arm"] == "medcontext")
    shutil.rmtree(tmp_path / "out" / gone.name)

    def seconds_left(**settings) -> float | None:
        runs = []
        for run in study.runs:
            asked = {"patch": None, "batch_size": None, **(settings if run.name == gone.name else {})}
            runs.append(dataclasses.replace(run, config=dataclasses.replace(run.config, **asked)))
        elsewhere = dataclasses.replace(study, runs=tuple(runs), data=tmp_path / "none")
        return next(each.seconds for each in forecast(elsewhere, tmp_path / "out") if each.run.name == gone.name)

    assert seconds_left() > 0
    assert seconds_left(network_settings={"features": [8, 8, 8]}) is None


def test_the_time_of_a_pretraining_is_counted_too(write, room, tmp_path, monkeypatch):
    seconds = {1: 3.0, 3: 5.0}
    monkeypatch.setattr(estimate, "step_seconds", lambda network, config, plan, device: seconds[plan.batch_size])
    arms = {
        "plain": {"preset": "supervised"},
        "pre": {"pretrain_steps": 10},
        "more": {"pretrain_steps": 10, "unlabelled_batch": 2},
    }
    study = write({"factors": {"arm": arms, "seed": [0]}, "comparisons": []}, preset="supervised")
    found = forecast(study, tmp_path / "none", device="cpu", cache=room / "cache")
    assert [each.seconds for each in found] == [4 * 3.0, 4 * 3.0 + 10 * 3.0, 4 * 3.0 + 10 * 5.0]


def test_a_pretraining_is_an_arm_whose_time_and_steps_are_told(write, room, tmp_path):
    arm = {"pre": {"preset": "supervised", "pretrain_steps": 3, "unlabelled_batch": 1, "training_cases": 2}}
    study = write({"factors": {"arm": arm, "seed": [0]}, "comparisons": []})
    assert run_study(study, tmp_path / "out", cache=room / "cache") == {}
    found = gather(study, tmp_path / "out", tmp_path / "results")
    (run,) = found["runs"]
    assert not list((tmp_path / "out").rglob("previous.pt")) + list((tmp_path / "out").rglob("last.pt"))
    folder = RunFolder(tmp_path / "out" / "pre" / "seed-0")
    parts = [
        rows[-1]["seconds"]
        for rows in ([row for row in each.history() if "seconds" in row] for each in (folder, folder.pretraining))
    ]
    assert run["seconds"] == pytest.approx(sum(parts))
    page = (tmp_path / "results" / "tiny.md").read_text()
    assert f"| 2 + {run['unlabelled_cases']} unlabelled | 3 + 4 |" in page
    assert run["unlabelled_cases"] > 0


def test_a_rehearsal_lists_the_runs_without_their_data(tmp_path):
    file = next(file for file in SHIPPED if file.stem == "synapse")
    table = rehearse(file, tmp_path, tmp_path / "out")
    assert table.row_count == 108
    assert "not known" in str(table.caption)
    assert not (tmp_path / "out").exists()
