"""Rows of a run in every form: none lost, none twice, whatever fails beside the training."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medcontext.errors import MedContextError
from medcontext.training import logs as logs_module
from medcontext.training.logs import RunLogs
from medcontext.training.run import RunFolder
from medcontext.training.trackers import require_loggers

SETTINGS = {"max_steps": 12, "method": {"ratio": 0.3, "mask_patch": [8, 8, 8]}}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


class Said(list[str]):
    def __call__(self, text: str) -> None:
        self.append(text)


def opened(run: RunFolder, step: int = 0, loggers: tuple[str, ...] = (), say: Any = None) -> RunLogs:
    """As a training does it: the run folder forgets first."""
    run.forget_after(step)
    return RunLogs(run, step, loggers, SETTINGS, Said() if say is None else say)


def train_row(step: int, **more: Any) -> dict[str, Any]:
    return {"kind": "train", "step": step, "loss/total": 1 / (step + 1), "learning_rate": 0.1, **more}


def read_csv(run: RunFolder, kind: str) -> list[dict[str, str]]:
    with (run.path / f"metrics-{kind}.csv").open(newline="") as file:
        return [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def as_csv_says(rows: list[dict[str, Any]], kind: str) -> list[dict[str, str]]:
    return [{name: str(value) for name, value in row.items() if name != "kind"} for row in rows if row["kind"] == kind]


def curve(run: RunFolder, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    return [(each.step, round(each.value, 6)) for each in events.Scalars(tag)]


def test_csv_has_what_the_json_lines_have_also_columns_that_come_later(run):
    logs = opened(run)
    rows = [
        train_row(3),
        train_row(6, context_score=math.nan),
        {"kind": "validation", "step": 6, "dice/student": 0.5},
        train_row(9, context_score=0.25, cases='a, "b"\nc'),
        train_row(12, context_score=math.inf),
    ]
    for row in rows:
        logs.log(row)
        # Readable at every moment, not at the end alone.
        assert read_csv(run, row["kind"]) == as_csv_says(run.history(), row["kind"])
    assert [row["step"] for row in read_csv(run, "train")] == ["3", "6", "9", "12"]
    assert read_csv(run, "train")[2] == {
        "step": "9", "loss/total": "0.1", "learning_rate": "0.1", "context_score": "0.25", "cases": "a, \"b\"\nc"
    }  # fmt: skip
    assert read_csv(run, "validation") == [{"step": "6", "dice/student": "0.5"}]
    assert json.loads(run.metrics.read_text().splitlines()[-1]) == {"kind": "train", **train_row(12)}


def test_a_value_that_is_never_finite_does_not_make_the_file_be_written_anew_each_time(run, monkeypatch):
    logs = opened(run)
    logs.log(train_row(1))
    monkeypatch.setattr(logs_module, "write_text", lambda *_: pytest.fail("written anew"))
    logs.log(train_row(2, context_score=math.nan))
    assert len(read_csv(run, "train")) == 2


@pytest.mark.parametrize("damage", ["none", "csv behind", "csv cut", "json cut"])
def test_a_resumed_run_has_every_row_once(run, damage):
    logs = opened(run)
    for step in (3, 6, 9):
        logs.log(train_row(step))
    logs.log({"kind": "validation", "step": 9, "dice/student": 0.5})
    table = run.path / "metrics-train.csv"
    if damage == "csv behind":
        run.log(train_row(6, extra=1))
    elif damage == "csv cut":
        table.write_bytes(table.read_bytes()[:-7])
    elif damage == "json cut":
        with run.metrics.open("a") as file:
            file.write('{"kind": "train", "st')
    again = opened(run, step=7)
    assert not (run.path / "metrics-validation.csv").exists()
    again.log(train_row(9))
    again.log({"kind": "validation", "step": 9, "dice/student": 0.5})
    expected = [3, 6, 6, 9] if damage == "csv behind" else [3, 6, 9]
    assert [int(row["step"]) for row in read_csv(run, "train")] == expected
    for kind in ("train", "validation"):
        assert read_csv(run, kind) == as_csv_says(run.history(), kind)


def test_files_of_the_user_stay(run):
    (run.path / "notes.csv").write_text("mine")
    opened(run)
    assert (run.path / "notes.csv").read_text() == "mine"


def test_tensorboard_has_every_step_once_after_a_resume(run):
    logs = opened(run, loggers=("tensorboard",))
    for step in (3, 6, 9):
        logs.log(train_row(step, context_score=math.nan))
    logs.save()  # killed here: never closed
    again = opened(run, step=6, loggers=("tensorboard",))
    for step in (9, 12):
        again.log(train_row(step) | {"loss/total": 7.0})
    again.close(success=True)
    assert curve(run, "loss/total") == [(3, 0.25), (6, round(1 / 7, 6)), (9, 7.0), (12, 7.0)]
    assert [step for step, _ in curve(run, "train/learning_rate")] == [3, 6, 9, 12]
    logs.close(success=True)


def test_saved_rows_are_on_disk(run):
    logs = opened(run, loggers=("tensorboard",))
    logs.log(train_row(3))
    logs.save()
    assert curve(run, "loss/total") == [(3, 0.25)]
    logs.close(success=True)


def test_pictures_are_kept_up_to_the_step_of_the_checkpoint(run):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    logs = opened(run, loggers=("tensorboard",))
    for step in (5, 10, 1000):
        logs.picture(pixels, step)
    logs.close(success=True)
    files = sorted(file.name for file in (run.path / "overlays").iterdir())
    assert files == ["step-00000005.png", "step-00000010.png", "step-00001000.png"]
    shown = np.round(imread(run.path / "overlays" / files[0])[..., :3] * 255).astype(np.uint8)
    np.testing.assert_array_equal(shown, pixels)
    events = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert [(each.step, each.height, each.width) for each in events.Images("overlay")] == [
        (step, 20, 30) for step in (5, 10, 1000)
    ]
    opened(run, step=10)
    assert sorted(file.name for file in (run.path / "overlays").iterdir()) == files[:2]


def test_without_tensorboard_it_says_so_once_and_goes_on(run, monkeypatch):
    monkeypatch.setattr("lightning_fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr("lightning_fabric.loggers.tensorboard._TENSORBOARDX_AVAILABLE", False)
    said = Said()
    logs = opened(run, loggers=("tensorboard",), say=said)
    for step in (3, 6):
        logs.log(train_row(step))
    logs.picture(np.zeros((4, 4, 3), np.uint8), 6)
    logs.close(success=True)
    assert len(said) == 1
    assert "tensorboard is not installed" in said[0]
    assert len(read_csv(run, "train")) == 2


class FakeWandbRun:
    """What Weights & Biases does with steps: they go up, and a row of an earlier one is dropped with a warning."""

    def __init__(self, server: dict[str, Any], identity: str) -> None:
        self.id = identity
        self.server = server
        self.rows = server.setdefault(identity, [])
        self.step = self.rows[-1][0] + 1 if self.rows else 0
        self.config = SimpleNamespace(update=lambda values, **_: server.update(settings=values))

    def log(self, values: dict[str, float], step: int) -> None:
        assert step >= self.step, "wandb would warn"
        self.step = step
        self.rows.append((step, values))

    def finish(self, exit_code: int) -> None:
        self.server["exit_code"] = exit_code


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    server: dict[str, Any] = {}
    module = ModuleType("wandb")

    def init(*, project: str, name: str, dir: Path, id: str | None, resume: str) -> FakeWandbRun:  # noqa: A002
        assert (project, name, dir.is_dir(), resume) == ("medcontext", "run", True, "allow")
        return FakeWandbRun(server, id or "abc")

    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return server


def test_wandb_goes_on_with_the_same_run_without_repeating_steps(run, wandb):
    logs = opened(run, loggers=("wandb",))
    for step in (3, 6, 9):
        logs.log(train_row(step))
    logs.log({"kind": "validation", "step": 9, "dice/student": 0.5})
    again = opened(run, step=6, loggers=("wandb",))
    for step in (9, 12):
        again.log(train_row(step))
    again.picture(np.zeros((4, 4, 3), np.uint8), 12)
    again.close(success=False)
    assert [step for step, _ in wandb["abc"]] == [3, 6, 9, 9, 12]
    assert wandb["abc"][0][1] == {"loss/total": 0.25, "train/learning_rate": 0.1}
    assert wandb["settings"] == SETTINGS
    assert wandb["exit_code"] == 1
    assert [key for key in wandb if key not in ("settings", "exit_code")] == ["abc"]


class FakeMlflow:
    """The part of ``MlflowClient`` that is used; as there, a value recorded twice is kept twice."""

    runs: dict[str, Any] = {}  # noqa: RUF012
    experiments: dict[str, Any] = {}  # noqa: RUF012

    def get_experiment_by_name(self, name: str) -> Any:
        return self.experiments.get(name)

    def create_experiment(self, name: str) -> str:
        self.experiments[name] = SimpleNamespace(experiment_id="1")
        return "1"

    def create_run(self, experiment: str, run_name: str) -> Any:
        assert (experiment, run_name) == ("1", "run")
        identity = f"id{len(self.runs)}"
        self.runs[identity] = {"metrics": [], "params": {}, "status": "RUNNING"}
        return SimpleNamespace(info=SimpleNamespace(run_id=identity))

    def update_run(self, identity: str, status: str) -> None:
        self.runs[identity]["status"] = status

    def set_terminated(self, identity: str, status: str) -> None:
        self.runs[identity]["status"] = status

    def get_run(self, identity: str) -> Any:
        metrics = {each.key: each.value for each in self.runs[identity]["metrics"]}
        return SimpleNamespace(data=SimpleNamespace(metrics=metrics, params=self.runs[identity]["params"]))

    def get_metric_history(self, identity: str, name: str) -> list[Any]:
        return [each for each in self.runs[identity]["metrics"] if each.key == name]

    def log_batch(self, identity: str, metrics: Any = (), params: Any = ()) -> None:
        assert len(params) <= 100
        self.runs[identity]["metrics"] += metrics
        for each in params:
            assert self.runs[identity]["params"].setdefault(each.key, each.value) == each.value


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> type[FakeMlflow]:
    module, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    monkeypatch.setattr(FakeMlflow, "runs", {})
    monkeypatch.setattr(FakeMlflow, "experiments", {})
    module.MlflowClient = FakeMlflow  # type: ignore[attr-defined]
    entities.Metric = lambda key, value, timestamp, step: SimpleNamespace(key=key, value=value, step=step)  # type: ignore[attr-defined]
    entities.Param = lambda key, value: SimpleNamespace(key=key, value=value)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return FakeMlflow


def test_mlflow_goes_on_with_the_same_run_without_repeating_steps(run, mlflow):
    logs = opened(run, loggers=("mlflow",))
    for step in (3, 6, 9):
        logs.log(train_row(step))
    again = opened(run, step=6, loggers=("mlflow",))
    for step in (9, 12):
        again.log(train_row(step))
        again.log({"kind": "validation", "step": step, "dice/student": 0.5})
    again.close(success=True)
    assert list(mlflow.runs) == ["id0"]
    stored = mlflow.runs["id0"]
    by_name = {
        name: [each.step for each in stored["metrics"] if each.key == name] for name in ("loss/total", "dice/student")
    }
    assert by_name == {"loss/total": [3, 6, 9, 12], "dice/student": [9, 12]}
    assert stored["params"] == {"max_steps": "12", "method.ratio": "0.3", "method.mask_patch": "[8, 8, 8]"}
    assert stored["status"] == "FINISHED"


def test_a_setting_that_a_resumed_run_is_given_anew_does_not_upset_mlflow(run, mlflow):
    RunLogs(run, 0, ("mlflow",), {"workers": 0}, Said()).close(success=False)
    said = Said()
    RunLogs(run, 6, ("mlflow",), {"workers": 2, "seed": 1}, said).close(success=True)
    assert mlflow.runs["id0"]["params"] == {"workers": "0", "seed": "1"}
    assert said == []


def test_more_settings_than_mlflow_takes_at_once(run, mlflow):
    settings = {f"setting_{k}": k for k in range(150)}
    RunLogs(run, 0, ("mlflow",), settings, Said()).close(success=False)
    assert len(mlflow.runs["id0"]["params"]) == 150
    assert mlflow.runs["id0"]["status"] == "FAILED"


def test_a_tracker_that_fails_is_left_out_and_the_training_goes_on(run, mlflow, wandb, monkeypatch):
    said = Said()
    logs = opened(run, loggers=("mlflow", "wandb"), say=said)
    logs.log(train_row(3))

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(FakeMlflow, "log_batch", unreachable)
    for step in (6, 9):
        logs.log(train_row(step))
    logs.close(success=True)
    assert said == ["mlflow failed, the training goes on without it: no route to host"]
    assert len(read_csv(run, "train")) == 3
    assert len(wandb["abc"]) == 3


def test_a_tracker_that_cannot_be_started_is_left_out(run, mlflow, monkeypatch):
    def unreachable(*_: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(FakeMlflow, "get_experiment_by_name", unreachable)
    said = Said()
    logs = opened(run, loggers=("mlflow",), say=said)
    logs.log(train_row(3))
    assert len(said) == 1
    assert "no route to host" in said[0]
    assert len(read_csv(run, "train")) == 1


def test_wrong_and_missing_loggers_are_named_before_there_is_a_run(monkeypatch):
    require_loggers(("tensorboard",))
    with pytest.raises(MedContextError) as wrong:
        require_loggers(("tensorbord",))
    assert wrong.value.found == "tensorbord"
    assert "mlflow" in str(wrong.value.expected)
    monkeypatch.setattr("medcontext.training.trackers.find_spec", lambda name: None)
    require_loggers(("tensorboard",))
    with pytest.raises(MedContextError) as missing:
        require_loggers(("tensorboard", "wandb"))
    assert "pip install 'medcontext[wandb]'" in str(missing.value.remedy)
