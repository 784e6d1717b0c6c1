"""What the report knows of a run, and how it calls labels and writes numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcontext.evaluation.masked import MaskedPass
from medcontext.evaluation.summary import mean

UNDEFINED = "–"  # noqa: RUF001

Label = tuple[int, str]
"""Number and name; runs of different data sets may call the same number differently."""


@dataclass(frozen=True)
class RunResults:
    """One trained run, or all folds of a cross-validation, as the report shows it.

    Attributes:
        name: What the run is called; no two runs of a report share it.
        data: Folder or file of the data set.
        facts: What was trained on what, shown as a table: preset, network, steps, seed, training cases, and so on.
        environment: Versions and machine, shown as a table.
        histories: Name of a fold (empty for a single run) -> records of its training log, in order: flat dicts with
            ``kind``, ``step`` and numbers.
        evaluation: What :func:`medcontext.evaluation.evaluate.evaluate` returned for the predictions.
        predictions: Case -> predicted label map, in the data set's own label numbers.
        structures: Label -> its name, and the label numbers that it is made of.
        calibrations: Name of a fold -> ``calibration`` of its evaluation, where probabilities were predicted.
        masked: What its masked student sees and rebuilds, or in words why there is nothing to show; None for
            supervised training.
    """

    name: str
    data: Path
    facts: Mapping[str, str]
    environment: Mapping[str, str]
    histories: Mapping[str, Sequence[Mapping[str, Any]]]
    evaluation: Mapping[str, Any]
    predictions: Mapping[str, Path]
    structures: Mapping[int, tuple[str, tuple[int, ...]]]
    calibrations: Mapping[str, Mapping[str, Any]]
    masked: MaskedPass | str | None = None

    @property
    def cases(self) -> list[str]:
        """The scored ones, in order of their names."""
        return sorted({row["case"] for row in self.evaluation["cases"]})

    def label(self, number: int) -> Label:
        """A label as the run calls it."""
        return number, self.structures[number][0] if number in self.structures else f"label {number}"

    def means(self) -> dict[Label, Mapping[str, Any]]:
        """Mean scores of every label."""
        return {self.label(int(number)): entry for number, entry in self.evaluation["mean"]["labels"].items()}

    def rows(self) -> dict[tuple[str, Label], Mapping[str, Any]]:
        """Scores of every case and label."""
        return {(row["case"], self.label(row["label"])): row for row in self.evaluation["cases"]}

    def dice_by_case(self) -> dict[str, float | None]:
        """Mean Dice over the labels of every case."""
        by_case: dict[str, list[float | None]] = {}
        for row in self.evaluation["cases"]:
            by_case.setdefault(row["case"], []).append(row["dice"])
        return {case: mean(values) for case, values in by_case.items()}


def labels_of(runs: Sequence[RunResults]) -> list[Label]:
    """The labels that any of the runs was scored on."""
    return sorted({label for run in runs for label in run.means()})


def number(value: float | None, form: str) -> str:
    """Text of a score; a dash where it is not defined."""
    return UNDEFINED if value is None else format(value, form)


def count(number: int, what: str) -> str:
    """So many of something."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
