"""The commands, as a user types them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from medcontext.cli.main import main
from medcontext.inference.model import load_model
from medcontext.method.presets import PRESETS
from medcontext.networks import registry
from medcontext.training.config import TrainConfig
from medcontext.training.run import RunFolder, plain
from tests.test_train import NETWORK


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


def train_arguments(data, out, cache):
    small = ["--patch", "[16,16,16]", "--network-settings", json.dumps(NETWORK), "--validations", "1"]
    return ["train", data, "--out", out, "--cache", cache, "--max-steps", 6, *small]


PAPER = ["--preset", "paper", "--method.mask_patch", "[8,8,8]"]


def test_the_whole_way(tiny, tmp_path, capsys):
    cache = tmp_path / "cache"
    assert run("check", tiny, "--json", tmp_path / "check.json") == 0
    assert json.loads((tmp_path / "check.json").read_text())["findings"] == []
    assert run("plan", tiny, "--json", tmp_path / "plan.json") == 0
    assert json.loads((tmp_path / "plan.json").read_text())["labels"]["names"] == {"1": "low", "2": "high"}
    assert run(*train_arguments(tiny, tmp_path / "ours", cache)) == 0
    assert run(*train_arguments(tiny, tmp_path / "base", cache), "--preset", "supervised") == 0
    assert run("predict", tmp_path / "ours", tiny / "imagesTr", tmp_path / "predicted") == 0
    assert run("evaluate", tmp_path / "predicted", tiny / "labelsTr", "--json", tmp_path / "scores.json") == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert {(row["case"], row["label"]) for row in scores["cases"]} == {
        (f"case_{case:02d}", label) for case in range(8) for label in (1, 2)
    }
    assert all({"dice", "hd95_mm"} <= row.keys() for row in scores["cases"])
    assert {"dice", "hd95_mm", "labels"} <= scores["mean"].keys()
    assert run("report", tmp_path / "ours", tmp_path / "base") == 0
    page = (tmp_path / "ours" / "report.html").read_text()
    assert "medcontext" in page
    assert "supervised" in page
    test = RunFolder(tmp_path / "ours").read_split().test
    assert sorted(path.name for path in RunFolder(tmp_path / "ours").predictions.glob("*.gz")) == [
        f"{n}.nii.gz" for n in test
    ]
    assert run("predict", tmp_path / "ours", tiny, tmp_path / "held_out", "--split", "test") == 0
    assert sorted(path.name for path in (tmp_path / "held_out").glob("*.gz")) == [f"{name}.nii.gz" for name in test]
    assert "report.html" in capsys.readouterr().out


def test_the_demonstration(tmp_path, monkeypatch, capsys):
    from medcontext.studies import demo

    monkeypatch.setattr(demo, "CASES", 5)
    monkeypatch.setattr(demo, "STEPS", 2)
    assert run("demo", "--out", tmp_path / "demo") == 0
    said = capsys.readouterr().out
    assert "supervised" in said
    assert (tmp_path / "demo" / "medcontext" / "report.html").is_file()
    assert run("demo", "--out", tmp_path / "demo") == 1
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "file").touch()
    assert run("demo", "--out", tmp_path / "own", "--replace") == 1
    assert (tmp_path / "own" / "file").exists()


def test_check_fails_on_bad_data_and_lists_every_error(own_tiny, capsys, monkeypatch):
    monkeypatch.chdir(own_tiny.parent)  # paths that a column of the table has room for
    (own_tiny / "labelsTr" / "case_01.nii.gz").unlink()
    (own_tiny / "imagesTr" / "case_02.nii.gz").write_bytes(b"broken")
    assert run("check", own_tiny.name) == 1
    said = capsys.readouterr().out
    assert "case_01.nii.gz" in said
    assert "case_02.nii.gz" in said
    assert "2 error(s)" in said


@pytest.mark.parametrize("name", ["[old]", "[/raw]"])
def test_brackets_in_names_are_no_markup(own_tiny, capsys, monkeypatch, name):
    monkeypatch.chdir(own_tiny.parent)
    Path(name).parent.mkdir(exist_ok=True)
    data = own_tiny.rename(name)
    (data / "labelsTr" / "case_01.nii.gz").unlink()
    assert run("check", name) == 1
    assert name in capsys.readouterr().out


def test_a_name_that_is_no_text_is_shown_all_the_same(own_tiny):
    """As of a file that was packed on another system."""
    label = own_tiny / "labelsTr" / "case_01.nii.gz"
    try:
        label.rename(label.parent / os.fsdecode(b"caf\xe9.nii.gz"))
    except OSError:
        pytest.skip("this file system has no such names")
    found = subprocess.run(
        [sys.executable, "-m", "medcontext", "check", own_tiny],
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"}, capture_output=True, check=False,
    )  # fmt: skip
    assert found.returncode == 1
    assert b"Traceback" not in found.stderr
    assert b"error(s)" in found.stdout


def test_errors_are_sentences_and_not_tracebacks(tmp_path, capsys):
    assert run("check", tmp_path / "nowhere") == 1
    said = capsys.readouterr().err
    assert said.startswith("error: There is no such data set.")
    assert str(tmp_path / "nowhere") in said
    assert run("predict", tmp_path, tmp_path, tmp_path / "out") == 1
    assert "no trained model" in capsys.readouterr().err


def test_a_place_that_can_not_be_written_is_an_error_and_not_a_traceback(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run("phantom", tmp_path / "file" / "data", "--cases", 1) == 1
    assert "error: Not a directory" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_traceback():
    command = [sys.executable, "-m", "medcontext", "networks", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""


def test_called_wrongly_is_exit_code_2(capsys):
    assert run() == 2
    assert run("train", "data") == 2
    assert run("nonsense") == 2
    assert "Traceback" not in capsys.readouterr().err


def printed_config(capsys, *arguments: object) -> dict:
    assert run("train", "data", "--out", "run", *arguments, "--print_config") == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_every_setting_can_be_printed_set_and_read_back(tmp_path, capsys):
    config = printed_config(
        capsys, "--preset", "paper", "--method.ratio", "0.6", "--max-steps", "7", "--augment.scale", "[1, 1]"
    )
    assert config["method"]["mask"] == "tube"
    assert config["method"]["ratio"] == 0.6
    assert config["max_steps"] == 7
    assert config["augment"]["scale"] == [1, 1]
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump({"preset": "paper", "seed": 5}))
    read = printed_config(capsys, "--config", tmp_path / "settings.yaml")
    assert read["method"]["consistency"] == "paper"
    assert read["seed"] == 5
    ours = printed_config(capsys)
    assert ours["method"]["mask"] == "random"


@pytest.mark.parametrize(
    ("arguments", "preset"),
    [
        (["--preset", "supervised"], "supervised"),
        (["--preset=supervised"], "supervised"),
        (["--config", "official.yaml"], "official"),
        (["--config=official.yaml"], "official"),
        (["--config", "preset: official"], "official"),
        (["--config", "official.yaml", "--config", "seed.yaml"], "official"),
        (["--config", "official.yaml", "--preset", "supervised"], "supervised"),
        (["--preset", "supervised", "--config", "official.yaml"], "supervised"),
        (["--preset", "supervised", "--config", "seed.yaml"], "supervised"),
        (["--config", "official.yaml", "--config", "preset: paper"], "paper"),
    ],
)
def test_the_method_is_that_of_the_preset_however_it_is_asked_for(arguments, preset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("official.yaml").write_text("preset: official\n")
    Path("seed.yaml").write_text("seed: 5\n")
    config = printed_config(capsys, *arguments)
    assert config["preset"] == preset
    assert config["method"] == plain(TrainConfig(method=PRESETS[preset]))["method"]
    assert config["seed"] == (5 if "seed.yaml" in arguments else 0)


def test_a_method_is_not_trained_under_the_name_of_another_preset(tmp_path, capsys):
    full = tmp_path / "full.yaml"
    full.write_text(yaml.safe_dump(printed_config(capsys)))
    assert run("train", "data", "--out", "run", "--config", full, "--preset", "supervised", "--print_config") == 2
    assert f"{full} has the method of preset medcontext, and supervised is asked for" in capsys.readouterr().err
    assert printed_config(capsys, "--config", full, "--preset", "medcontext", "--seed", 3)["seed"] == 3
    assert run("train", "data", "--out", "run", "--pres", "supervised", "--print_config") == 2
    assert "the nearest is 'preset'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["train", "data", "--out", "new", "--config", "run/config.yaml"], 2, "Problems parsing config"),
        (["train", "data", "--out", "run", "--resume"], 1, "What this run was made of can't be read."),
        (["report", "run"], 1, "What this run was made of can't be read."),
        (["study", "run/config.yaml", "."], 1, "This file is not valid YAML."),
    ],
)
def test_no_file_of_settings_is_run(arguments, code, told, own_tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run/config.yaml").write_text("name: !!python/object/apply:os.system [touch executed]\n")
    for name in ("plan.json", "split.json", "run.json"):
        Path("run", name).write_text("{}")
    assert run(*arguments) == code
    assert told in capsys.readouterr().err
    assert not Path("executed").exists()


@pytest.mark.parametrize("place", [0, 1, 3])
def test_what_is_said_goes_before_what_is_in_a_file_wherever_it_stands(place, tmp_path, capsys):
    full = tmp_path / "full.yaml"
    full.write_text(yaml.safe_dump(printed_config(capsys, "--seed", 7)))
    said = ["elsewhere", "--out", "new"]
    said[place:place] = ["--config", str(full)]
    assert run("train", *said, "--resume", "--print_config") == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert [config[key] for key in ("data", "out", "resume", "seed")] == ["elsewhere", "new", True, 7]


def test_the_config_of_a_run_starts_another_like_it(tiny, tmp_path, capsys):
    assert run(*train_arguments(tiny, tmp_path / "first", tmp_path / "cache"), *PAPER) == 0
    capsys.readouterr()
    stored = yaml.safe_load((tmp_path / "first" / "config.yaml").read_text())
    read = printed_config(capsys, "--config", tmp_path / "first" / "config.yaml")
    assert {key: read[key] for key in stored} == stored
    assert run("train", tiny, "--out", tmp_path / "second", "--config", tmp_path / "first" / "config.yaml") == 0
    assert yaml.safe_load((tmp_path / "second" / "config.yaml").read_text()) == stored
    assert run(*train_arguments(tiny, tmp_path / "first", tmp_path / "cache"), *PAPER, "--resume") == 0


def test_phantoms_from_the_command_line(tmp_path):
    assert run("phantom", tmp_path / "data", "--cases", 2, "--seed", 3) == 0
    assert len(list((tmp_path / "data" / "labelsTr").iterdir())) == 2
    assert run("check", tmp_path / "data") == 0
    assert run("phantom", tmp_path / "data") == 1


def test_unetr_with_hidden_tokens_on_a_scan_smaller_than_its_patch(tiny, tmp_path):
    settings = {"features": 4, "hidden": 24, "mlp": 48, "heads": 2}
    arguments = [
        "--network",
        "unetr",
        "--network-settings",
        json.dumps(settings),
        "--preset",
        "paper",
        "--max-steps",
        2,
    ]
    assert run("train", tiny, "--out", tmp_path / "run", *arguments, "--cache", tmp_path / "cache") == 0
    assert all(size % 16 == 0 for size in RunFolder(tmp_path / "run").read_plan().patch)
    shutil.copy(tiny / "imagesTr" / "case_00.nii.gz", tmp_path)
    assert run("predict", tmp_path / "run", tmp_path / "case_00.nii.gz", tmp_path / "out") == 0
    scan, label = (nib.load(folder / "case_00.nii.gz") for folder in (tmp_path, tmp_path / "out"))
    assert label.shape == scan.shape
    assert np.allclose(label.affine, scan.affine)


OWN_NETWORK = """
from torch import nn

def build(channels, classes, patch, features=4):
    return nn.Sequential(nn.Conv3d(channels, features, 3, padding=1), nn.ReLU(), nn.Conv3d(features, classes, 1))
"""


def test_your_own_network_is_trained_by_name_and_no_file_can_choose_it(tiny, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(OWN_NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ["--network", "mine:build", "--patch", "[16,16,16]", "--max-steps", 2, "--cache", tmp_path / "cache"]
    assert run("train", tiny, "--out", tmp_path / "run", *arguments) == 0
    registry._imported.clear()
    assert run("predict", tmp_path / "run", tiny, tmp_path / "out") == 1
    assert "--network mine:build" in capsys.readouterr().err
    assert run("train", tiny, "--out", tmp_path / "run", "--resume") == 1
    assert run("predict", tmp_path / "run", tiny, tmp_path / "out", "--network", "mine:build") == 0


def test_training_begins_with_the_weights_it_is_given(tiny, tmp_path, capsys):
    cache, begun = tmp_path / "cache", tmp_path / "first"
    assert run(*train_arguments(tiny, begun, cache)) == 0
    arguments = train_arguments(tiny, tmp_path / "second", cache)
    assert run(*arguments, "--pretrained", begun / "best.pt", "--learning-rate", "1e-12", "--preset", "supervised") == 0
    assert "loaded" in capsys.readouterr().err
    first, second = (load_model(each).network.state_dict() for each in (begun, tmp_path / "second"))
    assert all(torch.allclose(first[key], second[key], atol=1e-6) for key in first)


def test_every_preset_and_a_network_with_several_heads(tiny, tmp_path):
    deep = json.dumps(NETWORK | {"deep_supervision": True})
    arguments = ["--patch", "[16,16,16]", "--network-settings", deep, "--max-steps", 2, "--cache", tmp_path / "cache"]
    arguments += ["--method.mask_patch", "[8,8,8]"]
    for preset in ("medcontext", "official", "supervised"):
        assert run("train", tiny, "--out", tmp_path / preset, "--preset", preset, *arguments) == 0
    assert run("predict", tmp_path / "official", tiny, tmp_path / "out", "--split", "test") == 0
