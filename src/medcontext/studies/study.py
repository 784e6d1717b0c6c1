"""The runs of a study, side by side in processes of their own: skipped when done, resumed where they stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from medcontext.data.split_file import read_split_file
from medcontext.errors import MedContextError
from medcontext.files import alone_in, read_json
from medcontext.memory import processors
from medcontext.progress import Progress, clock
from medcontext.studies.missing_parts import MISSING, scores_file
from medcontext.studies.study_file import PlannedRun, Study
from medcontext.training.resume import has_cases_of, to_resume
from medcontext.training.run import RunFolder

State = Literal["done", "trained", "begun", "new"]

LOOK_SECONDS = 0.5
"""How often the processes are looked at."""


def state_of(planned: PlannedRun, out: Path) -> State:
    """How far a run is: ``done`` is trained to its end and scored on the held-out cases after that, in every way that
    the study asks for, and as predicted.

    Raises:
        MedContextError: There is a run of this name with other settings, or of other cases.
    """
    run = RunFolder(out / planned.name)
    if not run.open(resume=True, replace=False):
        return "new"
    to_resume(planned.config, run.read_settings(), run.path, in_full=True)
    if not has_cases_of(run.path, planned.config):
        raise MedContextError(
            "This run was made for other cases than the study asks for.",
            file=run.path,
            expected=f"the cases of {planned.config.split}",
            remedy="move it away, or give the study another folder",
        )
    if not run.finished:
        return "begun"
    if not run.best.is_file():
        raise MedContextError(
            "This run has come to its end, and its network is gone.",
            file=run.best,
            remedy="move the run's folder away to have it trained anew",
        )
    files = [run.evaluation, *(scores_file(run, kind) for kind in MISSING if planned.missing_parts)]
    scored = all(file.is_file() and file.stat().st_mtime >= run.best.stat().st_mtime for file in files)
    # A report on a run that was tuned scores it with its post-processing, which would count as a gain of its arm.
    return "done" if scored and not read_json(run.evaluation).get("postprocessing") else "trained"


def left_of(planned: PlannedRun, out: Path, recorded: Collection[str]) -> State:
    """As :func:`state_of`, and ``done`` where results hold the run (``recorded``), unless what was trained is at hand
    and only its scoring is left."""
    try:
        state = state_of(planned, out)
    except MedContextError:
        if planned.name not in recorded:
            raise
        return "done"
    return "done" if planned.name in recorded and state != "trained" else state


def run_study(
    study: Study,
    out: Path,
    *,
    jobs: int = 1,
    device: str = "auto",
    cache: Path | None = None,
    recorded: Collection[str] = (),
    progress: Progress | None = None,
) -> dict[str, MedContextError]:
    """Do every run of a study that is not done yet: train, predict and score its held-out cases.

    Each run is a run folder below ``out``, made by a process of its own, whose output goes to a ``.log`` file beside
    it. The cores are shared evenly between the processes. Checkpoints of runs that are done are removed.

    Args:
        study: The study.
        out: Its folder.
        jobs: Runs at a time.
        device: To train on.
        cache: Folder of prepared cases; None: ``~/.cache/medcontext``.
        recorded: Names of runs that need not be trained, whatever is in ``out``.
        progress: Where to say how far it is.

    Returns:
        The runs that failed, by name, and why; the others are done.

    Raises:
        KeyboardInterrupt: Stopped by Ctrl-C or SIGTERM. Every run under way has written its checkpoint.
        MedContextError: Another process is at work in ``out``, or the split file is missing.
    """
    progress = progress or Progress(quiet=True)
    failed: dict[str, MedContextError] = {}
    _require_split(study)
    out.mkdir(parents=True, exist_ok=True)
    with alone_in(out):
        waiting: deque[PlannedRun] = deque()
        for planned in study.runs:
            try:
                if left_of(planned, out, recorded) != "done":
                    waiting.append(planned)
            except MedContextError as error:
                failed[planned.name] = error
                progress.say(f"{planned.name} is left alone: {error}")
        done, began = len(study.runs) - len(waiting) - len(failed), dict[str, float]()
        progress.say(f"{study.name}: {len(study.runs)} runs, {done} done, {len(waiting)} to do, {jobs} at a time")
        running: dict[subprocess.Popen[bytes], PlannedRun] = {}
        with _interrupted_by_sigterm():
            try:
                while waiting or running:
                    while waiting and len(running) < jobs:
                        planned = waiting.popleft()
                        began[planned.name] = time.monotonic()
                        running[_start(planned, study.data, out, jobs, device, cache)] = planned
                        progress.say(f"{planned.name}: started")
                    for process in [each for each in running if each.poll() is not None]:
                        planned = running.pop(process)
                        if process.returncode == 0:
                            done += 1
                            took = clock(time.monotonic() - began[planned.name])
                            progress.say(f"{planned.name}: done after {took}; {done} are done")
                        else:
                            failed[planned.name] = _failure(planned, out, process.returncode)
                            progress.say(f"{planned.name}: failed\n{failed[planned.name]}")
                    time.sleep(LOOK_SECONDS)
            finally:
                _stop(running, progress)
    return failed


def _require_split(study: Study) -> None:
    """Once, before every run would fail of it."""
    split = study.runs[0].config.split
    assert split is not None
    if not split.is_file():
        raise MedContextError(
            "The split file of this study is missing.",
            file=split,
            remedy="make it with 'medcontext split', or bring the data set with 'medcontext data import'",
        )
    read_split_file(split)


def _start(
    planned: PlannedRun, data: Path, out: Path, jobs: int, device: str, cache: Path | None
) -> subprocess.Popen[bytes]:
    """A process for one run, in a session of its own: Ctrl-C reaches it once, through :func:`_stop`."""
    from medcontext.studies.one_run import task

    threads = str(threads_for(jobs))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
    log = _log(planned, out)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "medcontext.studies.one_run", task(planned, data, out, device, cache)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def _stop(running: Mapping[subprocess.Popen[bytes], PlannedRun], progress: Progress) -> None:
    """Ask each process to write its checkpoint and end, and wait until all have."""
    if not running:
        return
    progress.say(f"stopping {len(running)} run(s); their checkpoints are being written")
    for process in running:
        process.send_signal(signal.SIGINT)
    for process in running:
        process.wait()


def _failure(planned: PlannedRun, out: Path, code: int) -> MedContextError:
    log = _log(planned, out)
    last = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()][-5:]
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return MedContextError(
        "A run of the study failed.",
        file=log,
        found="\n".join([how, *last]),
        remedy="mend what the log says and start the study again: it goes on where it stopped",
    )


def _log(planned: PlannedRun, out: Path) -> Path:
    return out / f"{planned.name}.log"


def threads_for(jobs: int) -> int:
    """Each run's share of the cores that this process may use, or fewer if ``OMP_NUM_THREADS`` says so.

    Two studies side by side would otherwise take all of them twice, and run at less than half the speed.
    """
    share, asked = max(1, processors() // jobs), os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(asked)) if asked.isdecimal() and int(asked) else share


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """While open, SIGTERM does what Ctrl-C does; and Ctrl-C works in the background, where a shell turns it off."""

    def interrupt(number: int, frame: FrameType | None) -> Any:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
