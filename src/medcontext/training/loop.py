"""The loop: one state, stepped until done, that can be stopped after any step and resumed exactly."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning_fabric import Fabric
from torch.utils.data import DataLoader

from medcontext.data.plan import Plan
from medcontext.data.sampling import Batch, PatchBatches
from medcontext.errors import MedContextError
from medcontext.inference.model import load_tensors, save_model, save_tensors
from medcontext.method.objective import MedContext
from medcontext.progress import Progress
from medcontext.training.config import TrainConfig
from medcontext.training.run import RunFolder
from medcontext.training.schedule import learning_rate
from medcontext.training.validate import validate


@dataclass
class Training:
    """A training under way.

    Attributes:
        config: Settings, none of them left open.
        plan: Of the data.
        fabric: Device and precision.
        device: Name of the device.
        method: The method, with its student set up by Fabric.
        optimizer: Of the student.
        validation: Prepared validation cases.
        run: Where everything is written.
        about: What goes beside the weights of the model.
        best: Best validation Dice so far; below 0 before the first.
        seconds: Time spent in the loop, over all resumptions.
    """

    config: TrainConfig
    plan: Plan
    fabric: Fabric
    device: str
    method: MedContext
    optimizer: torch.optim.Optimizer
    validation: Mapping[str, Path]
    run: RunFolder
    about: dict[str, Any]
    best: float = -1.0
    seconds: float = 0.0
    latest: dict[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """Optimiser steps taken."""
        return self.method.step

    def autocast(self) -> torch.autocast:
        """The precision of all passes."""
        bf16 = self.config.precision == "bf16"
        return torch.autocast(self.fabric.device.type, torch.bfloat16, enabled=bf16)

    def networks(self) -> dict[str, torch.nn.Module]:
        """Student and, where there is one, teacher."""
        teacher = self.method.teacher
        student: dict[str, torch.nn.Module] = {"student": self.method.network}
        return student | ({} if teacher is None else {"teacher": teacher.network})

    def save(self) -> None:
        """Write the checkpoint that a resumed run goes on from."""
        save_tensors(
            self.run.last,
            {
                "method": self.method.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "best": self.best,
                "seconds": self.seconds,
            },
        )

    def load(self) -> None:
        """Take up the checkpoint of :meth:`save`."""
        state = load_tensors(self.run.last)
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.seconds = state["best"], state["seconds"]


def fit(training: Training, batches: PatchBatches, progress: Progress) -> None:
    """Train to the last step.

    Ctrl-C (or SIGTERM) stops after the step under way: the checkpoint is written and ``KeyboardInterrupt`` raised. A
    second one stops at once; the last checkpoint on disk stays whole.
    """
    config, steps = training.config, len(batches)
    loader: Any = DataLoader(
        batches,
        batch_size=None,
        sampler=range(training.step, steps),
        num_workers=config.workers,
        generator=torch.Generator(),
    )
    validate_at = {round(steps * (k + 1) / config.validations) for k in range(config.validations)} | {steps}
    own_random_state = torch.random.fork_rng(devices=range(torch.cuda.device_count()))
    with own_random_state, progress.task("training") as update, _stop_asked() as stop:
        for batch in loader:
            began = time.monotonic()
            row = _step(training, batch, steps)
            training.seconds += time.monotonic() - began
            if row:
                training.run.log(row)
            if training.step in validate_at:
                began = time.monotonic()
                _validate(training)
                training.seconds += time.monotonic() - began
            if stop.is_set():
                training.save()
                progress.say(f"stopped after step {training.step}; the checkpoint is written. Go on with --resume")
                raise KeyboardInterrupt
            if training.step % config.save_every == 0 or training.step == steps:
                training.save()
            if training.latest.pop("collapsed", 0) and training.step > steps // 2:
                progress.say(f"at step {training.step} the teacher says the same everywhere: this run has collapsed")
            update(training.step, steps, _note(training.latest))


def _step(training: Training, batch: Batch, steps: int) -> dict[str, Any]:
    """One optimiser step; the row to log, if it is time for one."""
    config, method = training.config, training.method
    logs = (training.step + 1) % config.log_every == 0 or training.step + 1 == steps
    assert config.learning_rate is not None
    rate = learning_rate(config.learning_rate, training.step, steps)
    for group in training.optimizer.param_groups:
        group["lr"] = rate
    method.student.train()
    # What a network draws itself (dropout) depends on seed and step alone, so that a resumed run draws the same.
    torch.manual_seed(config.seed * 1_000_003 + training.step)
    image, label = batch["image"].to(training.device), batch["label"].to(training.device).long()
    with training.autocast():
        terms = method(image, label, backward=training.fabric.backward, diagnose=logs)
    norm = torch.nn.utils.clip_grad_norm_(method.student.parameters(), config.gradient_clip)
    if (logs or training.device == "cpu" or (training.step + 1) % config.save_every == 0) and not norm.isfinite():
        raise MedContextError(
            "The gradient is not finite any more.",
            file=training.run.path,
            found=f"at step {training.step + 1}, with {', '.join(batch['cases'])}",
            remedy="look at these cases; lower learning_rate, or set precision to fp32; the last checkpoint is whole",
        )
    training.optimizer.step()
    training.optimizer.zero_grad()
    method.after_step()
    if not logs:
        return {}
    losses = ("clean", "masked", "consistency", "total")
    values = {f"loss/{name}" if name in losses else name: float(value) for name, value in terms.items()}
    training.latest |= values
    return {
        "kind": "train",
        "step": training.step,
        **values,
        "gradient_norm": float(norm),
        "learning_rate": rate,
        "seconds": round(training.seconds, 2),
    }


def _validate(training: Training) -> None:
    """Score student and teacher on whole volumes; keep the better of the two if it is the best so far.

    Without validation cases the teacher (the student, where there is none) is kept each time.
    """
    networks = training.networks()
    chosen = list(networks)[-1]
    known: dict[str, float] = {}
    if training.validation:
        with training.autocast():
            scores = validate(networks, training.validation, training.plan, training.device)
        # A class that is nowhere, neither in the truth nor predicted, has no Dice.
        known = {name: score for name, score in scores.items() if math.isfinite(score)}
        row = {f"dice/{name}": score for name, score in known.items()}
        training.run.log({"kind": "validation", "step": training.step, **row})
        training.latest |= row
    if known:
        chosen = max(known, key=lambda name: known[name])
    if known.get(chosen, training.best) > training.best or training.best < 0 or not training.validation:
        training.best = known.get(chosen, training.best)
        about = training.about | {"step": training.step, "which": chosen, "validation_dice": known.get(chosen)}
        save_model(training.run.best, networks[chosen].state_dict(), training.plan, about)


def _note(latest: Mapping[str, Any]) -> str:
    names = {"loss/total": "loss", "context_score": "context", "dice/student": "Dice", "dice/teacher": "teacher"}
    return "  ".join(f"{name} {latest[key]:.3f}" for key, name in names.items() if key in latest)


@contextmanager
def _stop_asked() -> Iterator[threading.Event]:
    """While open, the first SIGINT or SIGTERM sets the event; the next acts as it always does."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        asked.set()
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
