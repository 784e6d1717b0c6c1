"""The whole way in a few minutes, on phantoms: what ``make demo`` shows."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from medcontext.data.phantom import make_phantoms
from medcontext.errors import MedContextError
from medcontext.evaluation.score_tables import comparison
from medcontext.files import read_json
from medcontext.progress import Progress, clock
from medcontext.studies.reporting import report_runs
from medcontext.training.config import Preset, TrainConfig
from medcontext.training.run import RunFolder
from medcontext.training.train import train

CASES = 24
STEPS = 240
SPACING = (9.0, 8.0, 8.0)
"""Coarser than the scans, so that a patch on a CPU holds the whole body and few steps are enough."""
BATCH = 2
"""Not 1: in float32 PyTorch's convolution of a single small volume on a CPU is three times as slow per voxel."""
PRESETS: tuple[Preset, Preset] = ("medcontext", "supervised")
MARK = ".medcontext-demo"
"""A file that says a folder is a demonstration's, so that only such a folder is ever removed."""


def run_demo(out: Path, *, seed: int = 0, replace: bool = False, progress: Progress | None = None) -> Path:
    """Phantoms, then MedContext and the supervised baseline for the same number of steps, scored and reported.

    Args:
        out: Folder for everything.
        seed: Of phantoms and trainings.
        replace: Remove what an earlier demonstration left there.
        progress: Where to say how far it is.

    Returns:
        The report page.

    Raises:
        MedContextError: The folder is in use.
    """
    progress = progress or Progress(quiet=True)
    began = time.monotonic()
    _make_room(out, replace)
    data = out / "phantoms"
    with progress.task("phantoms") as update:
        make_phantoms(data, CASES, seed, update)
    runs = {}
    for place, preset in enumerate(PRESETS, start=1):
        progress.say(f"training {place} of {len(PRESETS)}: {preset}, {STEPS} steps")
        config = TrainConfig(
            preset=preset,
            spacing=SPACING,
            batch_size=BATCH,
            max_steps=STEPS,
            seed=seed,
            validations=2,
            cache=out / "cache",
        )
        runs[preset] = train(data, out / preset, config, progress=progress)
    page = report_runs(list(runs.values()), progress=progress)
    results: dict[str, Any] = {preset: read_json(RunFolder(run).evaluation) for preset, run in runs.items()}
    terminal = Console()
    (terminal if terminal.is_terminal else Console(width=100)).print(comparison(results))
    print(f"report: {page}\nthe demonstration took {clock(time.monotonic() - began)}")
    return page


def _make_room(out: Path, replace: bool) -> None:
    occupied = out.is_dir() and any(out.iterdir())
    if occupied and not (replace and (out / MARK).is_file()):
        raise MedContextError(
            "The folder of the demonstration is in use.",
            file=out,
            remedy="choose another with --out"
            + (", or remove the earlier demonstration there (--replace)" if (out / MARK).is_file() else ""),
        )
    if occupied:
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()
