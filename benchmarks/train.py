"""The whole loop beside the bare step: ``python -m benchmarks.train [--json]``.

``ratio``: steps per second of ``medcontext train``'s own loop (patches drawn from the cache, logging, diagnostics,
settings as they are) over those of the method's passes, optimiser and teacher alone, on a batch that is there
already; on phantoms, at the demonstration's spacing. 1 means that nothing but the step costs time. ``waits`` is the
share of the loop's time between two steps, which is that in which the network waits for patches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.common import machine
from medcontext.data.phantom import make_phantoms
from medcontext.data.sampling import Batch
from medcontext.studies.demo import SPACING
from medcontext.training import loop
from medcontext.training.config import TrainConfig
from medcontext.training.state import Training
from medcontext.training.step import train_step
from medcontext.training.train import train

CASES = 8
WARM_UP = 3


class _Watch:
    """Stands in for the loop's step and times it; after the last one, the bare step on the same batch."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._began = self._left = 0.0
        self.waited = 0.0
        self.loop = self.bare = 0.0

    def __call__(self, training: Training, batch: Batch) -> dict[str, Any]:
        if training.step == WARM_UP:
            self._began = time.perf_counter()
        elif training.step > WARM_UP:
            self.waited += time.perf_counter() - self._left
        row = train_step(training, batch)
        _wait(training.device)
        self._left = time.perf_counter()
        if training.step == WARM_UP + self._steps:
            self.loop = self._left - self._began
            self.bare = sum(_bare_seconds(training, batch) for _ in range(self._steps))
        return row


def _bare_seconds(training: Training, batch: Batch) -> float:
    method, optimizer = training.method, training.optimizer
    image, label = batch["image"].to(training.device), batch["label"].to(training.device).long()
    step = method.step
    _wait(training.device)
    began = time.perf_counter()
    with training.autocast():
        method(image, label, backward=torch.Tensor.backward)
    optimizer.step()
    optimizer.zero_grad()
    method.after_step()
    _wait(training.device)
    taken = time.perf_counter() - began
    method.step = step
    return taken


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def measure(data: Path, folder: Path, workers: int, options: argparse.Namespace) -> dict[str, Any]:
    """One row: the median of a few runs."""
    config = TrainConfig(
        spacing=SPACING,
        batch_size=options.batch_size,
        max_steps=WARM_UP + options.steps,
        validations=1,
        validation_share=0,
        save_every=10**6,
        workers=workers,
        device=options.device,
        cache=folder / "cache",
    )
    watches = []
    for _ in range(options.repeats):
        watch = _Watch(options.steps)
        with mock.patch.object(loop, "train_step", watch):
            train(data, folder / "run", config, replace=True)
        watches.append(watch)
    return {
        "workers": workers,
        "batch_size": options.batch_size,
        "loop_steps_per_second": round(options.steps / statistics.median(each.loop for each in watches), 3),
        "bare_steps_per_second": round(options.steps / statistics.median(each.bare for each in watches), 3),
        "ratio": round(statistics.median(each.bare / each.loop for each in watches), 3),
        "waits": round(statistics.median(each.waited / each.loop for each in watches), 3),
        **machine(options.device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--workers", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=72, help="with 3 before them, a multiple of log_every")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "phantoms"
        make_phantoms(data, CASES, 0)
        for workers in options.workers:
            row = measure(data, Path(folder), workers, options)
            if options.json:
                print(json.dumps(row), flush=True)
            else:
                print(
                    f"{workers} workers: {row['loop_steps_per_second']} steps/s in the loop, "
                    f"{row['bare_steps_per_second']} bare, ratio {row['ratio']}, {row['waits']:.0%} waiting",
                    flush=True,
                )


if __name__ == "__main__":
    main()
