"""Resuming a run: with the settings that it began with, and no others."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from medcontext.data.split_file import SplitFile, read_split_file
from medcontext.errors import MedContextError
from medcontext.files import read_json
from medcontext.method.presets import MethodConfig
from medcontext.training.config import TrainConfig
from medcontext.training.run import RunFolder

MAY_CHANGE = frozenset({
    *("device", "devices", "num_nodes", "strategy", "precision", "compile", "workers", "cache", "loggers"),
    *("log_every", "save_every", "save_minutes", "max_bad_steps", "quick_validations"),
})  # fmt: skip
"""Settings that a resumed run may be given anew: they do not change what is learned."""

NONE_SAYS = frozenset({"few_shot", "pretrained", "patience", "max_time", "patient"})
"""Settings that the plan does not settle where they are left open: None is what they are then."""

SPLIT = "split"
"""Key of a run's ``run.json``: what :func:`fold_hash` says of it."""


def to_resume(asked: TrainConfig, stored: TrainConfig, folder: Path, *, in_full: bool = False) -> TrainConfig:
    """The settings of a run that is resumed: its own, with what may change (:data:`MAY_CHANGE`) as asked for now, and
    with the split file where it lies now: it counts by its cases and not by its place.

    Args:
        asked: What is asked for now; None: whatever the run began with.
        stored: What the run began with.
        folder: The run folder.
        in_full: None of :data:`NONE_SAYS` is asked for as well: nothing of the kind.

    Raises:
        MedContextError: Something else is asked for than the run began with; every such setting is named.
    """
    network = None if asked.network_settings is None else (stored.network_settings or {}) | asked.network_settings
    wanted = dataclasses.replace(asked, method=_method_of(asked, stored.spacing), network_settings=network)
    stored = dataclasses.replace(stored, method=_method_of(stored, stored.spacing))
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    said = NONE_SAYS if in_full else frozenset()
    given = {name: getattr(wanted, name) for name in names if name in said or getattr(wanted, name) is not None}
    if wanted.split not in (None, stored.split) and has_cases_of(folder, wanted):
        stored = dataclasses.replace(stored, split=wanted.split)
    now = {name: given.pop(name) for name in MAY_CHANGE if name in given}
    changed = [
        f"{name}: {getattr(stored, name)} before, {value} now"
        for name, value in given.items()
        if value != getattr(stored, name)
    ]
    if changed:
        raise MedContextError(
            "A run can't be resumed with other settings than it began with.",
            file=folder,
            found="; ".join(changed),
            remedy="resume it without these options, or start a new run in another folder",
        )
    kept = {name: value for name, value in now.items() if value != "auto"}
    return dataclasses.replace(stored, **kept)


def _method_of(config: TrainConfig, spacing: tuple[float, float, float] | None) -> MethodConfig:
    method = config.method_config()
    return method if spacing is None else method.for_spacing(spacing)


def has_cases_of(folder: Path, asked: TrainConfig) -> bool:
    """Whether a run is made of the cases that a split file says, which may be in another place than it was."""
    run = RunFolder(folder)
    assert asked.split is not None
    if not run.split.is_file() or not asked.split.is_file():
        return False
    folds, ran = read_split_file(asked.split).folds, run.read_split()
    if asked.fold >= len(folds):
        return False
    noted = read_json(run.about).get(SPLIT)
    if noted is not None:
        # The run's own split is a file of one fold, too.
        return fold_hash(asked) in (noted, SplitFile("", "", (ran,)).hash)
    # A run of an earlier version.
    said = folds[asked.fold]
    return (
        set(ran.test) == set(said.test)
        and set(ran.train) <= set(said.train)
        and set(ran.validation) <= set(said.validation or said.train)
    )


def fold_hash(config: TrainConfig) -> str:
    """Of the cases of the fold of a split file that the settings ask for."""
    assert config.split is not None
    return SplitFile("", "", (read_split_file(config.split).folds[config.fold],)).hash
