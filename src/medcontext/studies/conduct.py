"""A study from its file to its results: what ``medcontext study`` does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from medcontext.errors import MedContextError, require
from medcontext.files import alone_in
from medcontext.progress import Progress, clock
from medcontext.studies.forecast import Forecast, forecast
from medcontext.studies.outcome import Outcome
from medcontext.studies.recorded import recorded
from medcontext.studies.results import gather
from medcontext.studies.study import run_study, threads_for
from medcontext.studies.study_file import Study, read_study


def conduct(
    file: Path,
    data_root: Path,
    out: Path | None = None,
    *,
    jobs: int = 1,
    device: str = "auto",
    cache: Path | None = None,
    results: Path | None = None,
    only: str = "*",
    progress: Progress | None = None,
) -> dict[str, MedContextError]:
    """Do what is left of a study, and write what came of it so far.

    Args:
        file: Study file.
        data_root: Folder of the data sets.
        out: Folder for the runs; None: ``runs/NAME``.
        jobs: Runs at a time, each on its share of the cores.
        device: To train on.
        cache: Folder of prepared cases; None: ``~/.cache/medcontext``.
        results: Folder for the results of all studies; None: the study's own folder. Runs that it already holds, made
            with these settings by this or by another study, are not done again, though their folders be gone.
        only: Do the runs whose name matches this shell pattern, or one of several between commas; the results are of
            all that are done.
        progress: Where to say how far it is.

    Returns:
        The runs that failed, by name, and why.

    Raises:
        KeyboardInterrupt: Stopped, and what is done so far was written; the same call goes on.
        MedContextError: The file is no study, no run has such a name, ``jobs`` is less than 1, the folder is in use, or
            no run was done.
    """
    require(jobs >= 1, "jobs", jobs, "a whole number, 1 or more")
    study = read_study(file, data_root)
    chosen = _chosen(study, only)
    out = out or Path("runs") / study.name
    known = _known(study, results, progress)
    progress = progress or Progress(quiet=True)
    try:
        failed = run_study(chosen, out, jobs=jobs, device=device, cache=cache, recorded=known, progress=progress)
    except KeyboardInterrupt:
        _gather_the_done(study, out, results, progress)
        raise
    if len(failed) == len(chosen.runs):
        raise next(iter(failed.values()))
    _say_what_is_left_out(_gather(study, out, results), progress)
    return failed


def _gather(study: Study, out: Path, results: Path | None) -> dict[str, Any]:
    """With what the results hold by now: another process may have done other runs of the study meanwhile."""
    if results is None:
        return gather(study, out, out)
    results.mkdir(parents=True, exist_ok=True)
    with alone_in(results, wait=True):
        return gather(study, out, results, recorded(study, results))


def _gather_the_done(study: Study, out: Path, results: Path | None, progress: Progress) -> None:
    """Of a study that is stopped, so that its results can be kept where its runs can't."""
    try:
        found = _gather(study, out, results)
    except MedContextError as error:
        progress.say(str(error))
    else:
        progress.say(
            f"{study.name}: {len(found['runs'])} of {len(study.runs)} runs are done; written to {results or out}"
        )
        _say_what_is_left_out(found, progress)


def _say_what_is_left_out(found: Mapping[str, Any], progress: Progress) -> None:
    for name in found["left_out"]:
        progress.say(f"{name} is left out of the results: its folder does not hold what the study asks for")


def rehearse(
    file: Path,
    data_root: Path,
    out: Path | None = None,
    *,
    jobs: int = 1,
    device: str = "auto",
    cache: Path | None = None,
    results: Path | None = None,
    only: str = "*",
    progress: Progress | None = None,
) -> Table:
    """The runs of a study and the time each will take, as a table for the terminal; nothing is trained."""
    require(jobs >= 1, "jobs", jobs, "a whole number, 1 or more")
    study = read_study(file, data_root)
    runs = forecast(
        _chosen(study, only),
        out or Path("runs") / study.name,
        device=device,
        threads=threads_for(jobs),
        cache=cache,
        recorded=_known(study, results, progress),
        progress=progress,
    )
    return _table(study.name, runs, jobs)


def _chosen(study: Study, only: str) -> Study:
    """The study with the runs of such names alone."""
    patterns = [pattern.strip() for pattern in only.split(",")]
    strange = [pattern for pattern in patterns if not any(fnmatchcase(each.name, pattern) for each in study.runs)]
    if strange:
        raise MedContextError(
            "No run of this study has such a name.",
            file=study.file,
            found=f"--only '{strange[0]}'",
            expected=f"names as {study.runs[0].name}, * standing for any characters, several between commas",
            remedy="--dry-run lists the names",
        )
    runs = tuple(each for each in study.runs if any(fnmatchcase(each.name, pattern) for pattern in patterns))
    return dataclasses.replace(study, runs=runs)


def _known(study: Study, results: Path | None, progress: Progress | None) -> dict[str, Outcome]:
    """Runs that results apart from the runs' own folder hold; there, a run that was removed is wanted anew."""
    known = {} if results is None else recorded(study, results)
    if known and progress:
        studies = {str(outcome.facts.get("of_study", study.name)) for outcome in known.values()}
        if results is not None and (results / f"{study.name}.json").is_file():
            # It holds what was taken over from other studies as well.
            studies.add(study.name)
        progress.say(
            f"{study.name}: {len(known)} of {len(study.runs)} runs are in {results} already and are not done again "
            f"(move {', '.join(f'{name}.json' for name in sorted(studies))} away to have them anew)"
        )
    return known


def _table(name: str, runs: list[Forecast], jobs: int) -> Table:
    table = Table(title=f"{name}: {len(runs)} runs", caption=_total(runs, jobs))
    for column in ("run", "state", "steps", "time left"):
        table.add_column(column, justify="left" if column in ("run", "state") else "right")
    for each in runs:
        steps = each.run.config.max_steps
        left = "not known" if each.seconds is None else clock(each.seconds)
        table.add_row(Text(each.run.name), each.state, "as planned" if steps is None else f"{steps:,}", left)
    return table


def _total(runs: list[Forecast], jobs: int) -> str:
    unknown = sum(each.seconds is None for each in runs)
    if unknown:
        return f"the time of {unknown} run(s) is not known"
    seconds = sum(each.seconds or 0.0 for each in runs)
    return f"{clock(seconds)} of training in all, {clock(seconds / jobs)} with {jobs} at a time"
