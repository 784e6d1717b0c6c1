"""The run folder: everything that made a training, and everything that came of it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import shutil
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
from medcontext.files import read_json, write_json, write_text
from medcontext.method.presets import MethodConfig
from medcontext.training.config import TrainConfig

MAY_CHANGE = frozenset({"device", "precision", "workers", "cache", "log_every", "save_every"})
"""Settings that a resumed run may be given anew: they do not change what is learned."""


class RunFolder:
    """Paths and files of a run.

    ``config.yaml`` settings in full, ``plan.json``, ``split.json``, ``run.json`` (data, versions, hardware, times),
    ``metrics.jsonl`` (one row per logged step and per validation), ``last.pt`` (to resume), ``best.pt`` (the model),
    ``test/`` (predictions and scores of the held-out cases), ``report.html``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.plan = path / "plan.json"
        self.split = path / "split.json"
        self.about = path / "run.json"
        self.metrics = path / "metrics.jsonl"
        self.last = path / "last.pt"
        self.best = path / "best.pt"
        self.predictions = path / "test" / "predictions"
        self.evaluation = path / "test" / "evaluation.json"
        self.report = path / "report.html"

    def open(self, *, resume: bool, replace: bool) -> bool:
        """Make the folder ready.

        Returns:
            Whether there is a run to go on with.

        Raises:
            MedContextError: It exists and neither ``resume`` nor ``replace`` is said, or ``replace`` would remove
                something that is no run.
        """
        occupied = self.path.is_dir() and any(self.path.iterdir())
        if occupied and resume:
            self._require_run("go on with")
            return True
        if occupied and not replace:
            raise MedContextError(
                "The run folder exists already.",
                file=self.path,
                found=", ".join(sorted(path.name for path in self.path.iterdir())[:8]),
                remedy="go on with it (--resume), start it anew (--replace), or choose another folder",
            )
        if occupied:
            self._require_run("replace")
            shutil.rmtree(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MedContextError("The run folder can't be made.", file=self.path, found=str(error)) from None
        return False

    def _require_run(self, purpose: str) -> None:
        if not self.config.is_file():
            raise MedContextError(
                f"This folder holds something else than a run; it is not safe to {purpose} it.",
                file=self.path,
                expected="a folder with config.yaml in it",
                remedy="choose another folder",
            )

    def write_setup(self, config: TrainConfig, plan: Plan, split: Split, about: Mapping[str, Any]) -> None:
        """Write what the training is made of, before it begins."""
        import yaml

        write_json(self.plan, plan.to_dict())
        write_json(self.split, dataclasses.asdict(split))
        write_json(self.about, dict(about))
        write_text(self.config, yaml.safe_dump(plain(config), sort_keys=False))

    def read_config(self) -> dict[str, Any]:
        """The settings as plain values."""
        import yaml

        if not self.config.is_file():
            raise MedContextError("This is not a run folder.", file=self.path, expected="config.yaml in it")
        values: dict[str, Any] = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        return values

    def read_plan(self) -> Plan:
        """The plan."""
        return Plan.from_dict(read_json(self.plan))

    def read_split(self) -> Split:
        """The split."""
        return Split(**{part: tuple(names) for part, names in read_json(self.split).items()})

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


def from_stored(stored: Mapping[str, Any], asked: TrainConfig) -> TrainConfig:
    """The settings of a run that is resumed: its own, with what may change (:data:`MAY_CHANGE`) as asked for now."""

    def tuples(values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}

    now = {name: getattr(asked, name) for name in MAY_CHANGE}
    kept = {name: stored[name] for name, value in now.items() if value == getattr(TrainConfig(), name)}
    values: dict[str, Any] = tuples(stored) | now | kept
    values["cache"] = Path(values["cache"])
    values["pretrained"] = values["pretrained"] and Path(values["pretrained"])
    values["method"] = MethodConfig(**tuples(stored["method"]))
    values["augment"] = AugmentConfig(**tuples(stored["augment"]))
    return TrainConfig(**values)


def require_same(asked: TrainConfig, stored: Mapping[str, Any], folder: Path) -> None:
    """Refuse to resume a run with other settings than it began with. What is left at its default is not asked for.

    Raises:
        MedContextError: Naming every setting that differs.
    """
    default = plain(TrainConfig())
    wanted = plain(dataclasses.replace(asked, method=asked.method_config()))
    default["method"] = plain(TrainConfig(method=TrainConfig(preset=asked.preset).method_config()))["method"]
    changed = [
        f"{key}: {stored.get(key)} before, {value} now"
        for key, value in wanted.items()
        if key not in MAY_CHANGE and value not in (default[key], stored.get(key))
    ]
    if changed:
        raise MedContextError(
            "A run can't be resumed with other settings than it began with.",
            file=folder,
            found="; ".join(changed),
            remedy="resume it without these options, or start a new run in another folder",
        )


def describe_environment(data: Path) -> dict[str, Any]:
    """What a run was made with: data, versions, hardware, the command, and when."""
    import torch

    packages = ("medcontext", "torch", "monai", "numpy", "nibabel", "lightning-fabric")
    return {
        "data": str(data.resolve()),
        "command": " ".join(sys.argv),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in packages},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
