"""How long a study will take, before it begins."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medcontext.data.dataset import Dataset, open_dataset
from medcontext.errors import MedContextError
from medcontext.progress import Progress
from medcontext.studies.study import State, left_of
from medcontext.studies.study_file import PlannedRun, Study
from medcontext.training.config import TrainConfig
from medcontext.training.run import RunFolder

RunState = State | Literal["left alone"]
"""How far a run is; left alone: its folder holds something else than the study asks for, and it won't be trained."""


@dataclass(frozen=True)
class Forecast:
    """A run, how far it is, and the seconds that its remaining steps will take (None: not known)."""

    run: PlannedRun
    state: RunState
    seconds: float | None


def forecast(
    study: Study,
    out: Path,
    *,
    device: str = "auto",
    threads: int = 1,
    cache: Path | None = None,
    recorded: Collection[str] = (),
    progress: Progress | None = None,
) -> list[Forecast]:
    """Every run with the time that it still takes.

    A step of a run takes as long as it did in the runs of the same shape (network and its settings, spacing, patch,
    batch, passes) that have been made in ``out``, validation and diagnostics with them; where there is none it is
    measured, on noise and alone.
    Where the data set is not at hand, times are not known.

    Args:
        study: The study.
        out: Its folder, which need not exist.
        device: It will be trained on.
        threads: Of each run.
        cache: Folder that remembers what has been checked.
        recorded: Names of runs that need not be trained, whatever is in ``out``.
        progress: Where to say how far it is.
    """
    progress = progress or Progress(quiet=True)
    states = {planned.name: _state(planned, out, recorded, progress) for planned in study.runs}
    known: dict[str, float | None] = dict(
        _measured((planned for planned in study.runs if states[planned.name] != "left alone"), out)
    )
    dataset = _dataset(study, progress)
    forecasts = []
    for planned in study.runs:
        state, seconds = states[planned.name], 0.0
        for stage in _stages(planned.config, out / planned.name) if state in ("new", "begun") else ():
            if stage.shape not in known:
                asked = dataclasses.replace(stage, config=dataclasses.replace(stage.config, device=device, cache=cache))
                known[stage.shape] = None if dataset is None else _measure(dataset, asked, threads, progress)
            per_step, steps = known[stage.shape], stage.steps_left
            seconds += math.nan if per_step is None or steps is None else per_step * steps
        forecasts.append(Forecast(planned, state, None if math.isnan(seconds) else seconds))
    return forecasts


def _state(planned: PlannedRun, out: Path, recorded: Collection[str], progress: Progress) -> RunState:
    try:
        return left_of(planned, out, recorded)
    except MedContextError as error:
        progress.say(f"{planned.name} is left alone: {error}")
        return "left alone"


@dataclass(frozen=True)
class _Stage:
    """A training, or its pre-training, and its folder."""

    config: TrainConfig
    run: RunFolder
    pretrains: bool

    @property
    def shape(self) -> str:
        """What the time of a step depends on; of settings left open, all runs of a study make the same."""
        config, method = self.config, self.config.method_config()
        terms = [weight > 0 for weight in (method.clean_weight, method.masked_weight, method.consistency_weight)]
        passes = [config.compared_batch, method.active, method.hide, *terms]
        passes = [config.unlabelled_batch] if self.pretrains else passes
        network = [config.network, config.network_settings]
        return json.dumps([*network, config.spacing, config.patch, config.batch_size, passes])

    @property
    def steps_left(self) -> int | None:
        """Of those that are planned; None: it is left to the plan how many these are."""
        planned = self.config.pretrain_steps if self.pretrains else self.config.max_steps
        return None if planned is None else planned - max((row["step"] for row in self.run.history()), default=0)


def _stages(config: TrainConfig, folder: Path) -> list[_Stage]:
    run = RunFolder(folder)
    pretraining = [_Stage(config, run.pretraining, pretrains=True)] if config.pretrain_steps else []
    return [_Stage(config, run, pretrains=False), *pretraining]


def _measured(runs: Iterable[PlannedRun], out: Path) -> Iterable[tuple[str, float]]:
    """Shape of a stage -> seconds of its steps, of what has been made so far."""
    for planned in runs:
        for stage in _stages(planned.config, out / planned.name):
            rows = [row for row in stage.run.history() if row["kind"] == "train"]
            if rows:
                yield stage.shape, rows[-1]["seconds"] / rows[-1]["step"]


def _dataset(study: Study, progress: Progress) -> Dataset | None:
    try:
        return open_dataset(study.data)
    except MedContextError as error:
        progress.say(f"times are not known: {error}")
        return None


def _measure(dataset: Dataset, stage: _Stage, threads: int, progress: Progress) -> float | None:
    """Seconds of a step, with nothing else at work on these cores."""
    import torch

    from medcontext.training.device import choose_device
    from medcontext.training.estimate import step_seconds
    from medcontext.training.pretraining import of_equal_cost
    from medcontext.training.setup import build, checked, plan_for, resolve

    config = stage.config
    device = choose_device(config.device)
    plan = plan_for(checked(dataset.with_patients(config.patient), config.cache, progress), config, device)
    resolved = resolve(config, plan, device)
    if stage.pretrains:
        resolved, plan = of_equal_cost(resolved, plan)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return step_seconds(build(resolved, plan), resolved, plan, device)
    finally:
        torch.set_num_threads(before)
