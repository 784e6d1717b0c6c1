"""A training that is given time instead of steps: the schedule is fitted to the steps that fit into it."""

from __future__ import annotations

import re

from torch import nn

from medcontext.data.plan import Plan
from medcontext.errors import MedContextError
from medcontext.progress import clock
from medcontext.training.config import TrainConfig
from medcontext.training.estimate import step_seconds

SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}

STEPS_SHARE = 0.85
"""Share of the time that is given to the steps themselves; patches, validations and checkpoints take the rest."""


def seconds_in(text: str) -> float:
    """A time as people write it, ``8h``, ``90m``, ``1d 12h`` or ``1.5h``, in seconds.

    Raises:
        MedContextError: It is not written so, or is no time at all.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([dhms])", text)
    rest = re.sub(r"\d+(?:\.\d+)?\s*[dhms]", "", text).strip()
    seconds = sum(float(number) * SECONDS[unit] for number, unit in parts)
    if rest or seconds <= 0:
        raise MedContextError(
            "The setting 'max_time' is not a time.",
            found=f"max_time = {text}",
            expected="numbers with d, h, m or s, such as 8h, 90m or 1d 12h",
        )
    return seconds


def steps_within(max_time: str, network: nn.Module, config: TrainConfig, plan: Plan, device: str) -> tuple[int, str]:
    """How many steps fit into a time, measured on a copy of the network.

    Args:
        max_time: As :func:`seconds_in` reads it.
        network: On the CPU; left as it is.
        config: Settings, none of them left open.
        plan: Of the data.
        device: Name of the device.

    Returns:
        Their number, and the reason in words.

    Raises:
        MedContextError: Not one fits.
    """
    allowed = seconds_in(max_time)
    each = step_seconds(network, config, plan, device)
    steps = 0 if each is None else int(STEPS_SHARE * allowed / each)
    if each is None or steps < 1:
        raise MedContextError(
            "Not one step fits into the time.",
            found=f"max_time = {max_time}, and a step "
            + ("that memory does not suffice for" if each is None else f"takes {each:.2g} s"),
            remedy="give it more time, or take a smaller patch (--patch) or fewer patches per step (--batch-size)",
        )
    return steps, f"{steps} steps: {STEPS_SHARE:.0%} of {clock(allowed)} at {each:.2g} s a step"
