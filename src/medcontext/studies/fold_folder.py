"""The folder of a cross-validation: a run folder for each fold, what they are trained by, and what came of them."""

from __future__ import annotations

import tempfile
from pathlib import Path

from medcontext.data.split_file import SplitFile, write_split_file
from medcontext.errors import MedContextError
from medcontext.files import LOCK, write_text
from medcontext.training.config import TrainConfig
from medcontext.training.run import RunFolder, plain


class CrossValidationFolder:
    """Paths of a cross-validation.

    ``config.yaml`` what was asked for, ``folds.json`` the split file, ``fold-0``, ``fold-1``, ... a run folder each,
    ``summary.json``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.folds = path / "folds.json"
        self.summary = path / "summary.json"

    def run(self, fold: int) -> RunFolder:
        """The run folder of a fold."""
        return RunFolder(self.path / f"fold-{fold}")

    def open(self, *, resume: bool, replace: bool) -> bool:
        """Look whether a cross-validation may be written here; nothing is changed.

        Returns:
            Whether there is one to go on with.

        Raises:
            MedContextError: It exists and neither ``resume`` nor ``replace`` is said, or it holds something else.
        """
        if self.path.exists() and not self.path.is_dir():
            raise MedContextError("The folder to write is a file.", file=self.path, remedy="choose another folder")
        names = sorted(path.name for path in self.path.iterdir()) if self.path.is_dir() else []
        there = [name for name in names if name != LOCK]
        found = ", ".join(there[:8])
        # Where it was stopped before the first fold, nothing can be lost.
        bare = there in ([], [self.config.name, self.folds.name])
        if not bare and not resume and not replace:
            raise MedContextError(
                "The folder of the cross-validation exists already.",
                file=self.path,
                found=found,
                remedy="go on with it (--resume), start it anew (--replace), or choose another folder",
            )
        if there and self.folds.name not in there:
            raise MedContextError(
                "This folder holds something else than a cross-validation; it is left alone.",
                file=self.path,
                found=found,
                expected=f"a folder with {self.folds.name} in it",
                remedy="choose another folder",
            )
        for run in self._runs():
            run.open(resume=resume, replace=replace)
        return resume and bool(there)

    def begin(self, config: TrainConfig, folds: SplitFile) -> None:
        """Write what the folds are trained by; the runs of a cross-validation that is replaced go."""
        self.path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=self.path) as room:
            for run in self._runs():
                run.path.rename(Path(room) / run.path.name)
        self.summary.unlink(missing_ok=True)
        write_split_file(self.folds, folds)
        self.write_config(config)

    def write_config(self, config: TrainConfig) -> None:
        """Write what is asked for, as the run folders hold what became of it."""
        import yaml

        write_text(self.config, yaml.safe_dump(plain(config), sort_keys=False))

    def read_config(self) -> TrainConfig | None:
        """What was asked for; None where there is nothing, or only folds that were trained one by one.

        Raises:
            MedContextError: The file has been changed into something else.
        """
        return RunFolder(self.path).read_settings() if self.config.is_file() else None

    def _runs(self) -> list[RunFolder]:
        return [RunFolder(path) for path in sorted(self.path.glob("fold-[0-9]*"))]
