"""The run folder: everything that made a training, and everything that came of it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medcontext.data.augment_config import AugmentConfig
from medcontext.data.plan import Plan
from medcontext.data.split import Split
from medcontext.errors import MedContextError
from medcontext.files import LOCK, read_json, replacing_folder, require_replaceable, write_json, write_text
from medcontext.method.presets import MethodConfig
from medcontext.training.config import TrainConfig


class RunFolder:
    """Paths and files of a run.

    ``config.yaml`` settings in full, ``plan.json``, ``split.json``, ``run.json`` (data, versions, hardware, times),
    ``metrics.jsonl`` (one row per logged step and per validation, quick ones too), ``last.pt`` and ``previous.pt`` (to
    resume), ``best.pt`` (the model), ``bad_steps.json`` (steps that were skipped, if any), ``pretraining/`` (metrics,
    checkpoints and weights of a pre-training, if there was one), ``postprocessing.json`` (what was tried on the model's
    predictions, if anything), ``test/`` (predictions and scores of the held-out cases), ``report.html``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.plan = path / "plan.json"
        self.split = path / "split.json"
        self.about = path / "run.json"
        self.metrics = path / "metrics.jsonl"
        self.last = path / "last.pt"
        self.previous = path / "previous.pt"
        self.next = path / "next.pt"
        self.bad_steps = path / "bad_steps.json"
        self.best = path / "best.pt"
        self.predictions = path / "test" / "predictions"
        self.evaluation = path / "test" / "evaluation.json"
        self.postprocessing = path / "postprocessing.json"
        self.report = path / "report.html"

    @property
    def pretraining(self) -> RunFolder:
        """The files of its pre-training; no run by itself."""
        return RunFolder(self.path / "pretraining")

    def open(self, *, resume: bool, replace: bool) -> bool:
        """Look whether a run may be written here; nothing is changed.

        Returns:
            Whether there is a run to go on with.

        Raises:
            MedContextError: It exists and neither ``resume`` nor ``replace`` is said, or it holds something that is no
                run.
        """
        if self.path.exists() and not self.path.is_dir():
            raise MedContextError("The run folder is a file.", file=self.path, remedy="choose another folder")
        names = sorted(path.name for path in self.path.iterdir()) if self.path.is_dir() else []
        there = ", ".join([name for name in names if name != LOCK][:8])
        if replace or not there:
            require_replaceable(self.path)
        if not there:
            return False
        if not resume and not replace:
            raise MedContextError(
                "The run folder exists already.",
                file=self.path,
                found=there,
                remedy="go on with it (--resume), start it anew (--replace), or choose another folder",
            )
        if not all(file.is_file() for file in (self.config, self.plan, self.split, self.about)):
            raise MedContextError(
                "This folder holds something else than a run; it is left alone.",
                file=self.path,
                found=there,
                expected="a folder with config.yaml, plan.json, split.json and run.json in it",
                remedy="go on with this cross-validation by --folds and --resume"
                if "folds.json" in names
                else "choose another folder",
            )
        return resume

    def begin(self, config: TrainConfig, plan: Plan, split: Split, about: Mapping[str, Any]) -> None:
        """Write what the training is made of, all of it or nothing; a run that is replaced goes only then."""
        import yaml

        with replacing_folder(self.path) as folder:
            new = RunFolder(folder)
            write_json(new.plan, plan.to_dict())
            write_json(new.split, dataclasses.asdict(split))
            write_json(new.about, dict(about))
            write_text(new.config, yaml.safe_dump(plain(config), sort_keys=False))

    def note(self, **facts: Any) -> None:
        """Add to ``run.json``."""
        write_json(self.about, read_json(self.about) | facts)

    @property
    def finished(self) -> bool:
        """Whether the training has come to its end, which it notes itself once nothing is left to do."""
        return "finished" in read_json(self.about)

    @property
    def data(self) -> Path:
        """The data set that it was trained on, where it lay when the run was last resumed."""
        about = read_json(self.about)
        try:
            return Path([about, *about.get("resumed", [])][-1]["data"])
        except (KeyError, TypeError, AttributeError) as error:
            raise _damaged(self.about, error) from None

    def read_config(self) -> dict[str, Any]:
        """The settings as plain values."""
        import yaml

        if not self.config.is_file():
            raise MedContextError("This is not a run folder.", file=self.path, expected="config.yaml in it")
        try:
            values = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise _damaged(self.config, error) from None
        if not isinstance(values, dict):
            raise _damaged(self.config, f"a {type(values).__name__}")
        return values

    def read_settings(self) -> TrainConfig:
        """The settings.

        Raises:
            MedContextError: They are not those of a training of this version.
        """
        values = self.read_config()
        try:
            return from_stored(values)
        except (KeyError, TypeError, AttributeError) as error:
            raise _damaged(self.config, error) from None

    def read_plan(self) -> Plan:
        """The plan."""
        return Plan.from_dict(read_json(self.plan))

    def read_split(self) -> Split:
        """The split."""
        values = read_json(self.split)
        try:
            return Split(**{part: tuple(names) for part, names in values.items()})
        except (TypeError, AttributeError) as error:
            raise _damaged(self.split, error) from None

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row to metrics.jsonl. Values that are not finite (a Dice of nothing) are left out: JSON has none."""
        kept = {key: value for key, value in row.items() if not isinstance(value, float) or math.isfinite(value)}
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(kept) + "\n")

    def history(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl; a last line cut short by a killed process is passed over."""
        if not self.metrics.is_file():
            return []
        rows = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return rows

    def forget_after(self, step: int) -> None:
        """Drop the rows of steps that a resumed run will do again."""
        rows = [json.dumps(row) for row in self.history() if row["step"] <= step]
        write_text(self.metrics, "".join(row + "\n" for row in rows))


def _damaged(file: Path, found: Exception | str) -> MedContextError:
    return MedContextError(
        "What this run was made of can't be read.",
        file=file,
        found=found if isinstance(found, str) else f"{type(found).__name__}: {found}",
        expected="what this version of medcontext writes there",
        remedy="put the file back as it was, or train anew",
    )


def plain(config: TrainConfig) -> dict[str, Any]:
    """The settings as YAML and JSON hold them: lists for tuples, text for paths."""

    def simple(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: simple(inner) for key, inner in value.items()}
        if isinstance(value, tuple | list):
            return [simple(inner) for inner in value]
        return str(value) if isinstance(value, Path) else value

    values: dict[str, Any] = simple(dataclasses.asdict(config))
    return values


def from_stored(stored: Mapping[str, Any]) -> TrainConfig:
    """The settings of a run, from what :func:`plain` made of them."""

    def tuples(values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}

    values = tuples(stored)
    values |= {key: values[key] and Path(values[key]) for key in ("cache", "pretrained", "plan", "split")}
    values["method"] = MethodConfig(**tuples(stored["method"]))
    values["augment"] = AugmentConfig(**tuples(stored["augment"]))
    return TrainConfig(**values)


def describe_environment(data: Path) -> dict[str, Any]:
    """What a run was made with: data, versions, hardware, the command, and when."""
    import torch

    packages = ("medcontext", "torch", "monai", "numpy", "nibabel", "lightning-fabric")
    return {
        "data": str(data.resolve()),
        "command": " ".join(sys.argv),
        "source": source_commit(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: version(name) for name in packages},
    }


def source_commit() -> str | None:
    """The commit of a source checkout, ``+`` after it where files differ from it; None for an installed package."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        return str(subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout).strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
