"""Steps whose loss or gradient is not finite: skipped, counted, and after too many in a row the end of the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from medcontext.errors import MedContextError
from medcontext.files import write_json
from medcontext.training.run import RunFolder


class BadSteps:
    """Notes on the device which steps were skipped, and looks at the notes when told to, so that no step waits for it.

    Args:
        run: Where ``bad_steps.json`` is written.
        limit: So many in a row stop the run.
        cases: The cases in the batch of a step (counted from 0).
        say: Told of every step that was skipped.
        writes: Whether this process is the one that writes.
    """

    def __init__(
        self,
        run: RunFolder,
        limit: int,
        cases: Callable[[int], Sequence[str]],
        say: Callable[[str], None],
        writes: bool = True,
    ) -> None:
        self._run = run
        self._limit = limit
        self._cases = cases
        self._say = say
        self._writes = writes
        self._notes: list[tuple[int, Tensor]] = []
        self._steps: list[int] = []
        self._in_a_row = 0

    @property
    def count(self) -> int:
        """Steps skipped so far, as far as they have been looked at."""
        return len(self._steps)

    def note(self, step: int, bad: Tensor) -> None:
        """Whether a step (counted from 1) was skipped, as a scalar that may still be computed."""
        self._notes.append((step, bad))

    def settle(self) -> None:
        """Look at the notes, which waits for the device.

        Raises:
            MedContextError: Too many in a row.
        """
        if not self._notes:
            return
        flags = torch.stack([bad for _, bad in self._notes]).tolist()
        steps = [step for step, _ in self._notes]
        self._notes.clear()
        new, longest = [], 0
        for step, bad in zip(steps, flags, strict=True):
            self._in_a_row = self._in_a_row + 1 if bad else 0
            longest = max(longest, self._in_a_row)
            if bad:
                new.append(step)
                self._say(f"step {step} was skipped: loss or gradient are not finite ({self._run.bad_steps.name})")
        self._steps += new
        if new and self._writes:
            found = [{"step": step, "cases": list(self._cases(step - 1))} for step in self._steps]
            write_json(self._run.bad_steps, found)
        if longest >= self._limit:
            self._in_a_row = 0
            raise MedContextError(
                f"Loss or gradient were not finite in {longest} steps in a row.",
                file=self._run.bad_steps,
                found=f"the last at step {new[-1]}, with {', '.join(self._cases(new[-1] - 1))}",
                remedy="look at these cases; lower learning_rate, or set precision to fp32. The steps were skipped, so "
                "the weights in the checkpoint are those of before",
            )

    def state_dict(self) -> dict[str, Any]:
        """Of a resumed run: the steps, and how many of the last were skipped."""
        return {"steps": list(self._steps), "in_a_row": self._in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state that :meth:`state_dict` gave."""
        self._steps, self._in_a_row = list(state["steps"]), state["in_a_row"]
