"""Showing long work: a bar with the time left on a terminal, a line now and then in a log file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

Update = Callable[[int, int], None]
LOG_SECONDS = 15.0
"""How often a line is printed where there is no terminal."""


class Progress:
    """Where a long piece of work says how far it is.

    Args:
        quiet: Say nothing; what the Python interface does unless it is given another.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False)

    def say(self, text: str) -> None:
        """One line (or more) that stays."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def task(self, name: str) -> Iterator[Callable[..., None]]:
        """Yield ``update(done, total, note="")`` for one piece of work."""
        if not self.console.is_terminal or self.console.quiet:
            yield _LogLine(self, name)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
        )
        with _Bars(*columns, console=self.console) as bars:
            task = bars.add_task(name, total=None, note="")

            def update(done: int, total: int, note: str = "") -> None:
                bars.update(task, completed=done, total=total, note=note or bars.tasks[0].fields["note"])

            yield update


class _Bars(Bars):
    """With the note below the bar: beside it, a long one would leave no room for the bar and the time left."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield from (Text(task.fields["note"], style="dim") for task in self.tasks if task.fields["note"])


class _LogLine:
    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._name = name
        self._start = self._last = time.monotonic()
        self._first: int | None = None
        self._note = ""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        self._note = note or self._note
        if self._first is None:
            # A resumed piece of work starts in the middle; what was done before says nothing of its speed.
            self._first = done - 1
        if now - self._last < LOG_SECONDS and done < total:
            return
        self._last = now
        left = (now - self._start) / max(1, done - self._first) * (total - done)
        self._progress.say(f"{self._name} {done}/{total}, {clock(left)} left  {self._note}".rstrip())


def clock(seconds: float) -> str:
    """A duration as people say it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
