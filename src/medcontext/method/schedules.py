"""Schedules: pure functions of the global step, so that a resumed run goes on exactly where it stopped."""

from __future__ import annotations

import math

from medcontext.method.presets import MethodConfig


def teacher_momentum(config: MethodConfig, step: int, total_steps: int) -> float:
    """Momentum of the teacher's update number ``step`` (from 0) of ``total_steps``.

    ``cosine`` rises from ``config.momentum`` to 1 over training, as in the paper (and in BYOL, arXiv 2006.07733).
    The warm start caps it at ``1 - 1 / (step + 1)``: the first update copies the student, the n-th makes the teacher
    the plain average of n students, until the cap lies above the schedule.
    """
    momentum = config.momentum
    if config.momentum_schedule == "cosine":
        progress = min(step / total_steps, 1.0)
        momentum = 1 - (1 - momentum) * (1 + math.cos(math.pi * progress)) / 2
    if config.momentum_warm_start:
        momentum = min(momentum, 1 - 1 / (step + 1))
    return momentum
