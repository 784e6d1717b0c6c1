"""The checkpoint to resume from: the newest and the one before it, of which one is whole whenever a process dies."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medcontext.errors import MedContextError
from medcontext.inference.model import save_tensors
from medcontext.training.run import RunFolder


def write_checkpoint(run: RunFolder, state: Mapping[str, Any]) -> None:
    """Write ``last.pt``; what it was becomes ``previous.pt``.

    The new file is whole on disk before the others are renamed, so a process that dies at any moment leaves a whole
    one under one of the three names.

    Raises:
        MedContextError: It can't be written; the older ones are as they were.
    """
    save_tensors(run.next, state)
    if run.last.is_file():
        run.last.replace(run.previous)
    run.next.replace(run.last)


def newest_checkpoint(run: RunFolder, say: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint; None where none was written yet. Damaged files go once there is a whole one.

    Args:
        run: The run folder.
        say: Told of checkpoints that are damaged.

    Raises:
        MedContextError: There are some, and none is whole.
    """
    for leftover in run.path.glob(".unfinished-*"):
        leftover.unlink()
    damaged: dict[Path, str | None] = {}
    for file in (run.next, run.last, run.previous):
        if not file.is_file():
            continue
        try:
            _require_whole(file)
        except MedContextError as error:
            damaged[file] = error.found
            say(f"{file.name} is damaged ({error.found}); trying the checkpoint before it")
            continue
        for useless in damaged:
            useless.unlink()
        return file
    if damaged:
        raise MedContextError(
            "No checkpoint of this run is whole.",
            file=run.path,
            found="; ".join(f"{file.name}: {found}" for file, found in damaged.items()),
            remedy="start the run anew (--replace); best.pt, if it is there, can still be predicted with",
        )
    return None


def _require_whole(file: Path) -> None:
    """Check the sums that are stored with the tensors, which ``torch.load`` does not look at.

    Raises:
        MedContextError: A part is cut short or changed.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        broken = str(error)
    if broken is not None:
        raise MedContextError("This checkpoint is damaged.", file=file, found=broken)
