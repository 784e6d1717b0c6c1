"""What a training consists of while it is under way, and what of it a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.utils._pytree import tree_map

from medcontext.data.plan import Plan
from medcontext.method.objective import MedContext
from medcontext.training.bad_steps import BadSteps
from medcontext.training.checkpoint import write_checkpoint
from medcontext.training.config import TrainConfig
from medcontext.training.device import autocast
from medcontext.training.distribution import first_does, is_sharded
from medcontext.training.logs import RunLogs
from medcontext.training.run import RunFolder
from medcontext.training.sharding import part_like, whole


@dataclass
class Training:
    """A training under way.

    Attributes:
        config: Settings, none of them left open.
        plan: Of the data.
        fabric: Device and processes.
        device: Name of the device.
        method: The method, with its student set up by Fabric.
        generator: Of the masks.
        optimizer: Of the student; a fused one, which skips a step where its ``found_inf`` says so.
        scaler: Of the loss, for fp16; does nothing in other precisions.
        bad: Steps that were skipped.
        validation: Prepared validation cases.
        run: Where everything is written.
        about: What goes beside the weights of the model.
        segments: Whether the network's outputs are segmentations, of which pictures are drawn; not in pre-training.
        logs: Where rows and pictures go; None but in the first process.
        best: Best validation Dice so far; below 0 before the first.
        stale: Validations since then.
        validated: Step of the last validation, of whole volumes or of patches.
        seconds: Time spent in the loop, over all resumptions.
        latest: What was logged last, by name.
        whole: False while a step is being applied, when there is no state to write.
    """

    config: TrainConfig
    plan: Plan
    fabric: Fabric
    device: str
    method: MedContext
    generator: torch.Generator
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    bad: BadSteps
    validation: Mapping[str, Path]
    run: RunFolder
    about: dict[str, Any]
    segments: bool = True
    logs: RunLogs | None = None
    best: float = -1.0
    stale: int = 0
    validated: int = 0
    seconds: float = 0.0
    latest: dict[str, Any] = field(default_factory=dict)
    whole: bool = True

    @property
    def step(self) -> int:
        """Steps taken, the skipped ones included."""
        return self.method.step

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        assert self.config.max_steps is not None
        return self.config.max_steps

    @property
    def given_up(self) -> bool:
        """Whether the validations have not become better for as long as the patience lasts."""
        return self.config.patience is not None and self.stale >= self.config.patience

    def autocast(self) -> torch.autocast:
        """The precision of all passes."""
        return autocast(self.config.precision, self.fabric.device.type)

    def networks(self) -> dict[str, nn.Module]:
        """Student and, where there is one, teacher."""
        teacher = self.method.teacher
        student: dict[str, nn.Module] = {"student": self.method.bare_student}
        return student | ({} if teacher is None else {"teacher": teacher.network})

    def weights(self, which: str) -> dict[str, Any]:
        """The whole weights of student or teacher, in the first process; to be asked for by all."""
        teacher = self.method.teacher
        network = self.method.network if teacher is None or which == "student" else teacher.network
        weights: dict[str, Any] = whole(network.state_dict(), self.fabric.is_global_zero)
        return weights

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row to the run's metrics, and to everything that copies them."""
        if self.logs is not None:
            self.logs.log(row)

    def save(self) -> None:
        """Write the checkpoint that a resumed run goes on from; to be called by all processes at once.

        Raises:
            MedContextError: In the first process: it can't be written.
            SystemExit: In the others then.
        """
        state = self._state()
        first_does(self.fabric, lambda: self._write(state))

    def rescue(self) -> None:
        """Write the checkpoint without the other processes, which may be gone, if this one has all of it."""
        if self.fabric.is_global_zero and not is_sharded(self.fabric):
            self._write(self._state())

    def _state(self) -> dict[str, Any]:
        """What the first process writes."""
        self.bad.settle()
        state = {
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "bad": self.bad.state_dict(),
            "best": self.best,
            "stale": self.stale,
            "validated": self.validated,
            "seconds": self.seconds,
        }
        gathered: dict[str, Any] = whole(state, self.fabric.is_global_zero)
        return gathered

    def _write(self, state: Mapping[str, Any]) -> None:
        if self.logs is not None:
            self.logs.save()
        write_checkpoint(self.run, state)

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`save` wrote, with whatever number of processes."""
        self.method.load_state_dict(tree_map(part_like, state["method"], self.method.state_dict()))
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments = {
            index: {name: part_like(value, parameters[index]) for name, value in of_one.items()}
            for index, of_one in state["optimizer"]["state"].items()
        }
        self.optimizer.load_state_dict(state["optimizer"] | {"state": moments})
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.bad.load_state_dict(state["bad"])
        for name in ("best", "stale", "validated", "seconds"):
            setattr(self, name, state[name])
