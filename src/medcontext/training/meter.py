"""Where the time of a training goes, at no cost to it: computing or waiting for data; and how much memory it takes."""

from __future__ import annotations

import math
import re
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

T = TypeVar("T")

WINDOW = 50
"""Steps that shares and speeds are taken over."""

WORTH_SAYING = 0.2
"""Share of the time spent waiting from which on the user is told."""

GIB = 2**30


class Timer(Protocol):
    """Takes marks now, and says later how far they are apart."""

    def mark(self) -> Any:
        """A point in time."""

    def between(self, first: Any, last: Any) -> float | None:
        """Seconds from one mark to another; None: not known yet."""


class HostTimer:
    """The clock of this process."""

    def mark(self) -> float:
        """Now."""
        return time.monotonic()

    def between(self, first: float, last: float) -> float:
        """The difference."""
        return last - first


class CudaTimer:
    """The time line of a GPU.

    This process runs ahead of the GPU, and may wait for data while the GPU is still busy with the steps before. A mark
    is an event in the GPU's queue: between the end of a step and the begin of the next lies only what the GPU was idle.
    Nothing is waited for: what the GPU has not come to yet isn't known yet.
    """

    def __init__(self, device: str) -> None:
        self._device = device

    def mark(self) -> torch.cuda.Event:
        """The end of what the GPU has been given so far."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def between(self, first: torch.cuda.Event, last: torch.cuda.Event) -> float | None:
        """Time on the GPU."""
        known: bool = last.query()  # type: ignore[no-untyped-call]
        return first.elapsed_time(last) / 1000 if known else None


class Meter:
    """Times the steps of a loop::

        for batch in meter.watch(loader):
            ...
            with meter.aside():
                validate()

    Args:
        device: Name of the device.
        timer: None: the device's.
        window: How many steps the numbers are taken over. The first step of all, in which workers start and kernels are
            chosen, is not counted.
    """

    def __init__(self, device: str, timer: Timer | None = None, window: int = WINDOW) -> None:
        self._device = device
        self._timer: Timer = timer or (CudaTimer(device) if device.startswith("cuda") else HostTimer())
        self._window = window
        self._open: deque[tuple[Any, Any, Any, list[tuple[Any, Any]]]] = deque()
        self._steps: deque[tuple[float, float]] = deque(maxlen=window)
        self._asides: list[tuple[Any, Any]] = []
        self._hinted = False

    def watch(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches; what their consumer does with one counts as computing, the rest as waiting."""
        asked, first = self._timer.mark(), True
        for batch in batches:
            got = self._timer.mark()
            self._asides = []
            yield batch
            done = self._timer.mark()
            if not first:
                self._open.append((asked, got, done, self._asides))
            asked, first = done, False
            self._settle()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is done while this is open (validation, checkpoints) counts as neither."""
        began = self._timer.mark()
        try:
            yield
        finally:
            self._asides.append((began, self._timer.mark()))

    def _settle(self) -> None:
        """Take in the steps whose times are known."""
        while self._open:
            asked, got, done, asides = self._open[0]
            spans = [self._timer.between(*marks) for marks in ((asked, got), (got, done), *asides)]
            known = [span for span in spans if span is not None]
            if len(known) < len(spans):
                return
            wait, work, *apart = known
            self._steps.append((wait, work - sum(apart)))
            self._open.popleft()

    @property
    def waiting(self) -> float:
        """Seconds per step spent waiting for data."""
        return sum(wait for wait, _ in self._steps) / max(1, len(self._steps))

    @property
    def computing(self) -> float:
        """Seconds per step spent computing."""
        return sum(work for _, work in self._steps) / max(1, len(self._steps))

    def values(self) -> dict[str, float]:
        """What to log: ``data_wait`` (a share), ``steps_per_second``, ``peak_memory_gib``; before the second step, the
        last alone."""
        memory = {"peak_memory_gib": peak_memory(self._device)}
        total = self.waiting + self.computing
        if total <= 0:
            return memory
        return {"data_wait": self.waiting / total, "steps_per_second": 1 / total, **memory}

    def hint(self, workers: int, processors: int) -> str | None:
        """What to do about waiting for data, once in a training, after :data:`WINDOW` steps at the earliest."""
        if self._hinted or len(self._steps) < self._window:
            return None
        text = waiting_hint(self.waiting, self.computing, workers, processors)
        self._hinted = text is not None
        return text


def waiting_hint(waiting: float, computing: float, workers: int, processors: int) -> str | None:
    """What to do about waiting for data.

    Args:
        waiting: Seconds per step.
        computing: Seconds per step.
        workers: Threads that prepare patches.
        processors: That this process may use.

    Returns:
        A sentence; None where waiting takes less than :data:`WORTH_SAYING` of the time.
    """
    total = waiting + computing
    if total <= 0 or waiting / total < WORTH_SAYING:
        return None
    said = f"the network waits for data {waiting / total:.0%} of the time".replace("%", " %")
    # One process needs this long for a batch. So many of them finish a batch as often as the network wants one.
    seconds = waiting if workers == 0 else workers * total
    wanted = processors if computing <= 0 else math.ceil(seconds / computing)
    enough = min(wanted, processors - 1)
    if enough > workers:
        return f"{said}: set --workers {enough}"
    return f"{said}, and no processor is left for more workers: augment less, or keep the cache on a faster disk"


def forget_peak(device: str) -> None:
    """Let :func:`peak_memory` begin anew, which it can on a CUDA device."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: str) -> float:
    """Most memory taken so far, in GiB: by tensors on a CUDA device, elsewhere by this process without its workers."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / GIB
    # What getrusage tells on Linux begins with the peak of the process that started this one.
    status = Path("/proc/self/status")
    if status.is_file() and (peak := re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE)):
        return int(peak[1]) * 1024 / GIB
    import resource

    # In bytes on macOS, in KiB elsewhere.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


NOTE = {
    "loss/total": "loss {:.3f}",
    "dice/student": "Dice {:.3f}",
    "dice/teacher": "teacher {:.3f}",
    "quick_dice/student": "quick {:.3f}",
    "context_score": "context {:.3f}",
    "loss/clean": "clean {:.3f}",
    "loss/masked": "masked {:.3f}",
    "loss/consistency": "consistency {:.3f}",
    "data_wait": "waiting {:.0%}",
    "peak_memory_gib": "{:.1f} GiB",
}
"""What the progress line says, the most telling first: a narrow terminal cuts off the end."""


def training_note(latest: Mapping[str, float]) -> str:
    """The note of the progress line, of the newest values that there are; time left is the line's own."""
    text = "  ".join(form.format(latest[name]) for name, form in NOTE.items() if name in latest)
    return text.replace("%", " %")
