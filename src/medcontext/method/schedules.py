"""Schedules: pure functions of the global step, so that a resumed run goes on exactly where it stopped."""

from __future__ import annotations

import math

from medcontext.method.presets import MethodConfig

RESTARTING_EPOCHS = 50
"""Epochs that the released code means the momentum to rise over; it restarts after each."""


def teacher_momentum(config: MethodConfig, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """Momentum of the teacher's update after step ``step`` (from 0) of ``total_steps``.

    ``cosine`` rises from ``config.momentum`` to 1 over training, as in the paper (and in BYOL, arXiv 2006.07733).
    ``restarting`` is the released code's: a linear rise to ``config.momentum`` over 50 epochs, looked up by the number
    of the batch in its epoch. The warm start caps the n-th update's at ``1 - 1 / n``: the first copies the student, the
    n-th makes the teacher the plain average of n students, until the cap lies above the schedule.
    """
    momentum = config.momentum
    if config.momentum_schedule == "cosine":
        progress = min(step / total_steps, 1.0)
        momentum = 1 - (1 - momentum) * (1 + math.cos(math.pi * progress)) / 2
    if config.momentum_schedule == "restarting":
        momentum *= (step % steps_per_epoch) / (RESTARTING_EPOCHS * steps_per_epoch - 1)
    if config.momentum_warm_start:
        before = step if config.teacher_update == "step" else step // steps_per_epoch
        momentum = min(momentum, 1 - 1 / (before + 1))
    return momentum


def mask_probability(config: MethodConfig, step: int, total_steps: int) -> float:
    """Chance of a labelled sample to have anything hidden at step ``step`` (from 0)."""
    return config.mask_probability if step < config.mask_until * total_steps else 0.0


def consistency_weight(config: MethodConfig, step: int, total_steps: int) -> float:
    """Weight of the consistency term at step ``step`` (from 0).

    While it ramps up it is multiplied by ``exp(-5 (1 - t)^2)``, t going from 0 to 1 (Laine and Aila, arXiv 1610.02242).
    """
    ramp = config.ramp_up * total_steps
    if step >= ramp:
        return config.consistency_weight
    return config.consistency_weight * math.exp(-5 * (1 - step / ramp) ** 2)
