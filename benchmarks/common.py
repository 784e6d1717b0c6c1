"""Timing and peak memory, on a CPU or a GPU."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


def seconds_of(actions: Mapping[str, Callable[[], object]], repeats: int, device: str) -> dict[str, float]:
    """Median seconds of each action, run in turn (A B C A B C ...), so that drift of the machine hits all alike."""
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for action in actions.values():
        action()
    for _ in range(repeats):
        for name, action in actions.items():
            _wait(device)
            began = time.perf_counter()
            action()
            _wait(device)
            taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in taken.items()}


def peak_gib(measure: Callable[..., float], *arguments: Any) -> float:
    """What ``measure`` returns in a fresh process, so that one measurement's memory is not the next one's."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, arguments)


def grown_by(action: Callable[[], object], device: str) -> float:
    """GiB at the peak of an action beyond what was held before it (on a CPU: Linux only)."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        action()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - held) / 2**30
    # Writing 5 there sets the high-water mark back to what is resident now; getrusage's is inherited from the parent.
    Path("/proc/self/clear_refs").write_text("5")
    before = _high_water_gib()
    action()
    return _high_water_gib() - before


def _high_water_gib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 2**20


def machine(device: str) -> dict[str, Any]:
    """Where this was measured."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else "cpu"
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
