"""How long a study will take, before it begins."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from medcontext.data.dataset import Dataset, open_dataset
from medcontext.errors import MedContextError
from medcontext.progress import Progress
from medcontext.studies.study import State, state_of
from medcontext.studies.study_file import PlannedRun, Study
from medcontext.training.config import TrainConfig
from medcontext.training.run import RunFolder, from_stored


@dataclass(frozen=True)
class Forecast:
    """A run, how far it is, and the seconds that its remaining steps will take (None: not known)."""

    run: PlannedRun
    state: State
    seconds: float | None


def forecast(
    study: Study,
    out: Path,
    *,
    device: str = "auto",
    threads: int = 1,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> list[Forecast]:
    """Every run with the time that it still takes.

    A step of a run takes as long as it did in the runs of the same shape (network, patch, batch, passes) that have been
    made in ``out``, validation and diagnostics with them; where there is none it is measured, on noise and alone.
    Where the data set is not at hand, times are not known.

    Args:
        study: The study.
        out: Its folder, which need not exist.
        device: It will be trained on.
        threads: Of each run.
        cache: Folder that remembers what has been checked.
        progress: Where to say how far it is.

    Raises:
        MedContextError: A run in ``out`` was made with other settings.
    """
    progress = progress or Progress(quiet=True)
    known = dict(_measured(RunFolder(out / planned.name) for planned in study.runs))
    dataset = _dataset(study, progress)
    states = {planned.name: state_of(planned, out) for planned in study.runs}
    forecasts = []
    for planned in study.runs:
        state, shape = states[planned.name], _shape(planned.config)
        if state in ("done", "trained"):
            forecasts.append(Forecast(planned, state, 0.0))
            continue
        if shape not in known:
            asked = dataclasses.replace(planned.config, device=device, cache=cache)
            known[shape] = None if dataset is None else _measure(dataset, asked, threads, progress)
        per_step = known[shape]
        steps = _steps_left(planned, out)
        forecasts.append(Forecast(planned, state, None if per_step is None or steps is None else per_step * steps))
    return forecasts


def _measured(runs: Iterable[RunFolder]) -> Iterable[tuple[str, float | None]]:
    for run in runs:
        rows = [row for row in run.history() if row["kind"] == "train"]
        if rows:
            yield _shape(from_stored(run.read_config())), rows[-1]["seconds"] / rows[-1]["step"]


def _shape(config: TrainConfig) -> str:
    """What the time of a step depends on; of settings left open, all runs of a study make the same."""
    return json.dumps(
        [config.network, config.patch, config.batch_size, config.method_config().active, config.method_config().hide]
    )


def _steps_left(planned: PlannedRun, out: Path) -> int | None:
    if planned.config.max_steps is None:
        return None
    rows = [row["step"] for row in RunFolder(out / planned.name).history()]
    return planned.config.max_steps - max(rows, default=0)


def _dataset(study: Study, progress: Progress) -> Dataset | None:
    try:
        return open_dataset(study.data)
    except MedContextError as error:
        progress.say(f"times are not known: {error}")
        return None


def _measure(dataset: Dataset, config: TrainConfig, threads: int, progress: Progress) -> float | None:
    """Seconds of a step, with nothing else at work on these cores."""
    import torch

    from medcontext.training.device import choose_device
    from medcontext.training.estimate import step_seconds
    from medcontext.training.setup import build, checked, plan_for, resolve

    device = choose_device(config.device)
    plan = plan_for(checked(dataset.with_patients(config.patient), config.cache, progress), config, device)
    resolved = resolve(config, plan, device)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return step_seconds(build(resolved, plan), resolved, plan, device)
    finally:
        torch.set_num_threads(before)
