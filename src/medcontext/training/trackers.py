"""Where curves go beside the run folder's own files: TensorBoard, and experiment trackers that a lab may run.

Each is a Lightning Fabric logger. Trackers get settings and numbers, never pictures: those show patients, and a tracker
may be on another machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import Logger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger

from medcontext.errors import MedContextError
from medcontext.files import read_json, write_json

PROJECT = "medcontext"
"""Project of Weights & Biases, and experiment of MLflow, that runs are filed under."""


class WandbLogger(Logger):
    """Weights & Biases; where to, and under whose name, is set as always (``wandb login``, ``WANDB_MODE=offline``).

    Args:
        folder: The run folder, whose name the run gets.
        identity: Of the run to go on with; None: a new one.
    """

    def __init__(self, folder: Path, identity: str | None) -> None:
        import wandb

        self._run = wandb.init(project=PROJECT, name=folder.resolve().name, dir=folder, id=identity, resume="allow")

    @property
    def name(self) -> str:
        """The project."""
        return PROJECT

    @property
    def version(self) -> str:
        """Identity of the run."""
        return str(self._run.id)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record numbers. Steps recorded before the run was interrupted are passed over: they are the same."""
        if step is None or step >= self._run.step:
            self._run.log(dict(metrics), step=step)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Record the settings, nested as they are."""
        self._run.config.update(params, allow_val_change=True)

    def finalize(self, status: str) -> None:
        """Wait until all is sent."""
        self._run.finish(exit_code=0 if status == "success" else 1)


class MLflowLogger(Logger):
    """MLflow; where to is set as always (``MLFLOW_TRACKING_URI``).

    Args:
        folder: The run folder, whose name the run gets.
        identity: Of the run to go on with; None: a new one.
    """

    def __init__(self, folder: Path, identity: str | None) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        self._recorded: dict[str, int] = {}
        if identity is None:
            known = self._client.get_experiment_by_name(PROJECT)
            experiment = self._client.create_experiment(PROJECT) if known is None else known.experiment_id
            self._id = str(self._client.create_run(experiment, run_name=folder.resolve().name).info.run_id)
            return
        self._id = identity
        self._client.update_run(identity, status="RUNNING")
        # MLflow keeps every value of a step that is recorded twice.
        for name in self._client.get_run(identity).data.metrics:
            history = self._client.get_metric_history(identity, name)
            self._recorded[name] = max(each.step for each in history)

    @property
    def name(self) -> str:
        """The experiment."""
        return PROJECT

    @property
    def version(self) -> str:
        """Identity of the run."""
        return self._id

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record numbers, but for steps that were recorded before the run was interrupted."""
        from mlflow.entities import Metric

        step = step or 0
        now = round(1000 * time.time())
        new = {name: value for name, value in metrics.items() if step > self._recorded.get(name, -1)}
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in new.items()])

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Record the settings; of what is nested each value by its path. MLflow keeps what was recorded first."""
        from mlflow.entities import Param

        recorded = self._client.get_run(self._id).data.params
        new = {name: value for name, value in _flat(params).items() if name not in recorded}
        # 100 at once are the most that a server takes.
        for start in range(0, len(new), 100):
            part = [*new.items()][start : start + 100]
            self._client.log_batch(self._id, params=[Param(name, str(value)) for name, value in part])

    def finalize(self, status: str) -> None:
        """Say how it ended."""
        self._client.set_terminated(self._id, status="FINISHED" if status == "success" else "FAILED")


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {before + name: value}
    return flat


TRACKERS: Mapping[str, Callable[[Path, str | None], Logger]] = {"wandb": WandbLogger, "mlflow": MLflowLogger}

LOGGERS = ("tensorboard", *TRACKERS)
"""Names of everything that curves may go to; those after the first are packages of the same name."""


def require_loggers(names: Sequence[str]) -> None:
    """Look, before there is a run, whether these can be had. TensorBoard, which is on by itself, may be absent.

    Raises:
        MedContextError: There is no such logger, or its package is not installed.
    """
    for name in names:
        if name not in LOGGERS:
            raise MedContextError("There is no such logger.", found=name, expected=" or ".join(LOGGERS))
        if name in TRACKERS and find_spec(name) is None:
            raise MedContextError(
                "The package of a logger is not installed.",
                found=f"loggers has '{name}'",
                remedy=f"pip install 'medcontext[{name}]', or leave it out of loggers",
            )


def open_logger(name: str, folder: Path, step: int) -> Logger:
    """The logger of that name for a run at ``step``; what it recorded of later steps is taken back or not repeated.

    Which run of a tracker it is stands in ``loggers.json`` of the run folder.

    Raises:
        ModuleNotFoundError: TensorBoard is not installed.
    """
    if name == "tensorboard":
        # Read by TensorBoard as: forget what is recorded from this step on.
        return TensorBoardLogger(folder, name=None, version="tensorboard", default_hp_metric=False, purge_step=step + 1)
    file = folder / "loggers.json"
    known = read_json(file) if file.is_file() else {}
    logger = TRACKERS[name](folder, known.get(name))
    write_json(file, known | {name: logger.version})
    return logger
