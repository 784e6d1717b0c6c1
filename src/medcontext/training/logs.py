"""The rows of a run, wherever they can be looked at while it runs: JSON lines, CSV, TensorBoard, trackers, pictures."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from lightning_fabric.loggers.logger import Logger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger

from medcontext.files import replacing, write_text
from medcontext.training.run import RunFolder
from medcontext.training.trackers import open_logger

CSV = "metrics-{kind}.csv"
OVERLAY = "step-{step:08d}.png"


class RunLogs:
    """Writes every row to ``metrics.jsonl`` first; all else is a copy of it.

    ``metrics-<kind>.csv`` (a row per step, a column per name, a name that comes later as a further column), event files
    for ``tensorboard --logdir``, and ``overlays/step-<step>.png``. A run that is resumed goes on from the step of its
    checkpoint, without the rows and pictures of later steps. A logger that fails is left out from there on, and that is
    said: no training ends for it. In a training of several processes, the first one alone has one of these.

    Args:
        run: Its rows after ``step`` must have been forgotten already (:meth:`RunFolder.forget_after`).
        step: Optimiser steps taken so far.
        loggers: Names, of :data:`~medcontext.training.trackers.LOGGERS`.
        settings: All settings as plain values, for the trackers.
        say: Told of a logger that can't be had, or fails.
    """

    def __init__(
        self,
        run: RunFolder,
        step: int,
        loggers: Sequence[str],
        settings: Mapping[str, Any],
        say: Callable[[str], None],
    ) -> None:
        self._run = run
        self._say = say
        self._columns: dict[str, list[str]] = {}
        self._loggers: dict[str, Logger] = {}
        self._forget_after(step)
        for kind in dict.fromkeys(row["kind"] for row in run.history()):
            self._write_csv(kind)
        for name in loggers:
            self._open(name, step, settings)

    def log(self, row: Mapping[str, Any]) -> None:
        """Write a row: ``kind`` (``train``, ``validation``, ``quick``), ``step``, and numbers by name.

        Numbers that are not finite are left out. In TensorBoard and trackers a name without a group (``loss/clean`` has
        one) is shown in the group of its kind.
        """
        row = {name: value for name, value in row.items() if not isinstance(value, float) or math.isfinite(value)}
        self._run.log(row)
        self._append_csv(row)
        numbers = {
            name if "/" in name else f"{row['kind']}/{name}": float(value)
            for name, value in row.items()
            if name != "step" and isinstance(value, int | float)
        }
        for name in list(self._loggers):
            self._try(name, lambda logger: logger.log_metrics(numbers, step=row["step"]))

    def picture(self, pixels: npt.NDArray[np.uint8], step: int) -> None:
        """Write the picture ``(H, W, 3)`` of a step as PNG, and for TensorBoard. It goes to no tracker."""
        from matplotlib.image import imsave

        with replacing(self._run.path / "overlays" / OVERLAY.format(step=step)) as file:
            imsave(file, pixels, format="png")

        def add(logger: Logger) -> None:
            assert isinstance(logger, TensorBoardLogger)
            logger.experiment.add_image("overlay", pixels, step, dataformats="HWC")

        if "tensorboard" in self._loggers:
            self._try("tensorboard", add)

    def save(self) -> None:
        """Write out what is still held; called before every checkpoint, so that no row up to it can be lost."""
        for name in list(self._loggers):
            self._try(name, lambda logger: logger.save())

    def close(self, *, success: bool) -> None:
        """The last call: close the loggers."""
        for name in list(self._loggers):
            self._try(name, lambda logger: logger.finalize("success" if success else "failed"))
        self._loggers.clear()

    def _open(self, name: str, step: int, settings: Mapping[str, Any]) -> None:
        try:
            self._loggers[name] = open_logger(name, self._run.path, step)
        except ModuleNotFoundError:
            self._say(f"{name} is not installed: nothing is written for it (pip install {name})")
            return
        except Exception as error:
            self._say(f"{name} can't be started, the training goes on without it: {error}")
            return
        if name != "tensorboard":
            self._try(name, lambda logger: logger.log_hyperparams(dict(settings)))

    def _try(self, name: str, act: Callable[[Logger], None]) -> None:
        """Act on a logger; one that fails, whatever the cause, is not used any more."""
        try:
            act(self._loggers[name])
        except Exception as error:
            del self._loggers[name]
            self._say(f"{name} failed, the training goes on without it: {error}")

    def _forget_after(self, step: int) -> None:
        """Remove all CSV files, which are written anew, and pictures of later steps."""
        for file in self._run.path.glob(CSV.format(kind="*")):
            file.unlink()
        for file in (self._run.path / "overlays").glob("step-*.png"):
            if file.name > OVERLAY.format(step=step):
                file.unlink()

    def _append_csv(self, row: Mapping[str, Any]) -> None:
        kind, names = row["kind"], self._columns.get(row["kind"], [])
        if not names or not set(row) <= {"kind", *names}:
            self._write_csv(kind)
            return
        with (self._run.path / CSV.format(kind=kind)).open("a", encoding="utf-8", newline="") as file:
            file.write(_as_csv([row], names))

    def _write_csv(self, kind: str) -> None:
        """The whole file, from metrics.jsonl."""
        rows = [row for row in self._run.history() if row["kind"] == kind]
        names = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "kind"]
        self._columns[kind] = names
        head = _as_csv([dict(zip(names, names, strict=True))], names)
        write_text(self._run.path / CSV.format(kind=kind), head + _as_csv(rows, names))


def _as_csv(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([row.get(name, "") for name in names] for row in rows)
    return text.getvalue()
