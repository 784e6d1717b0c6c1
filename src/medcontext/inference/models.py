"""Which model files a path means: a run's, or those of all folds of a cross-validation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

FOLD = re.compile(r"fold-(\d+)")


def model_files(path: Path | str | Sequence[Path | str]) -> tuple[Path, ...]:
    """The model files that a path, or each of several, stands for; whether they are there is for their reader to say.

    Args:
        path: A model file, a run folder (its best model), or a folder of runs ``fold-0``, ``fold-1``, ... (all of
            them).
    """
    paths = [path] if isinstance(path, Path | str) else path
    return tuple(file for each in paths for file in _files(Path(each)))


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    best = path / "best.pt"
    folds = {int(match[1]): run for run in path.iterdir() if run.is_dir() and (match := FOLD.fullmatch(run.name))}
    return [best] if best.exists() or not folds else [folds[number] / "best.pt" for number in sorted(folds)]
