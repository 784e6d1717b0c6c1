"""One run of a study, in a process of its own: ``python -m medcontext.studies.one_run TASK``, TASK being JSON."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from pathlib import Path
from typing import Any

from medcontext.errors import MedContextError
from medcontext.studies.study_file import PlannedRun
from medcontext.training.run import RunFolder, from_stored, plain


def task(planned: PlannedRun, data: Path, out: Path, device: str, cache: Path | None) -> str:
    """What the process is told: everything, so that a study file edited meanwhile changes nothing under way."""
    config = dataclasses.replace(planned.config, method=planned.config.method_config(), device=device, cache=cache)
    return json.dumps(
        {
            "data": str(data),
            "out": str(out),
            "name": planned.name,
            "missing_parts": planned.missing_parts,
            "config": plain(config),
        }
    )


def do(told: dict[str, Any]) -> None:
    """Train the run to its end, score its held-out cases in the ways that are left, and remove the checkpoints that are
    no longer needed."""
    from medcontext.data.dataset import open_dataset
    from medcontext.progress import Progress
    from medcontext.studies.holdout import score_held_out
    from medcontext.studies.missing_parts import score_missing_parts
    from medcontext.studies.study import state_of
    from medcontext.training.train import train

    out, config, progress = Path(told["out"]), from_stored(told["config"]), Progress()
    run = RunFolder(out / told["name"])
    on_whole_scans = state_of(PlannedRun(told["name"], {}, config), out)
    if on_whole_scans in ("new", "begun"):
        train(told["data"], run.path, config, resume=True, progress=progress)
    dataset = open_dataset(Path(told["data"]))
    if on_whole_scans != "done":
        # Post-processing that was chosen for some runs of a study would count as a gain of their arm.
        score_held_out(run, dataset, device=config.device, progress=progress, postprocess=False)
    if told["missing_parts"]:
        score_missing_parts(run, dataset, device=config.device, progress=progress)
    for stage in (run, run.pretraining):
        for checkpoint in (stage.last, stage.previous):
            checkpoint.unlink(missing_ok=True)


def main() -> None:
    """Exit codes: 0 done, 1 failed, 130 stopped."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        do(json.loads(sys.argv[1]))
    except MedContextError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
