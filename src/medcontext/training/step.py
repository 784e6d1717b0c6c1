"""One optimiser step: nothing in it waits for the device, and what is not finite leaves everything as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from medcontext.data.sampling import Batch
from medcontext.training.distribution import any_of, follow_first, mean_of
from medcontext.training.schedule import learning_rate
from medcontext.training.sharding import total
from medcontext.training.state import Training

LOSSES = ("clean", "masked", "consistency", "total")

ROWS_PER_SHARES = 4
"""Rows from one with shares of the gradient to the next: for these all terms are back-propagated once more."""

HEEDLESS = frozenset({"mps"})
"""Kinds of device on which fused optimisers take a step whatever their ``found_inf`` says."""


def train_step(training: Training, batch: Batch) -> dict[str, Any]:
    """One step; skipped, but counted as one, where its loss or gradient is not finite.

    A skipped step leaves weights, optimiser and the network's buffers as they were; the teacher follows the student
    that stood still. Whether a step is skipped is decided on the device: fused optimisers take it as a tensor. On
    the kinds of device where they do not (:data:`HEEDLESS`) it is waited for.

    Returns:
        The row to log; empty where it is not time for one.
    """
    config, method, optimizer, scaler = training.config, training.method, training.optimizer, training.scaler
    taken = training.step + 1
    logs = taken % config.log_every == 0 or taken == training.steps
    shares = logs and (taken % (ROWS_PER_SHARES * config.log_every) == 0 or taken == training.steps)
    assert config.learning_rate is not None
    rate = learning_rate(config.optimizer, config.learning_rate, training.step, training.steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
    method.student.train()
    # What a network draws itself (dropout) depends on seed, step and process alone: a resumed run draws the same.
    fabric = training.fabric
    torch.manual_seed((config.seed * 1_000_003 + training.step) * fabric.world_size + fabric.global_rank)
    image = batch["image"].to(training.device, non_blocking=True)
    label = batch["label"].to(training.device, non_blocking=True).long()
    buffers = [each for each in method.network.buffers() if each.is_floating_point()]
    with _undone_on_error(training, buffers) as before:
        with training.autocast():
            terms = method(
                image,
                label,
                labelled=batch["labelled"],
                backward=lambda part: fabric.backward(scaler.scale(part)),
                diagnose=logs,
                gradients=shares,
                scale=scaler.get_scale() if shares else 1.0,
            )
        if scaler.is_enabled():
            scaler.unscale_(optimizer)
        norm = total(torch.nn.utils.clip_grad_norm_(method.student.parameters(), config.gradient_clip))
        bad = any_of(fabric, ~(norm.isfinite() & terms["total"].isfinite()))
    training.whole = False
    optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
    if fabric.device.type not in HEEDLESS or not bad:
        optimizer.step()
    for buffer, old in zip(buffers, before, strict=True):
        buffer.copy_(torch.where(bad, old, buffer))
    follow_first(fabric, buffers)
    if scaler.is_enabled():
        scaler.update()
    optimizer.zero_grad()
    method.after_step()
    training.bad.note(training.step, bad)
    training.whole = True
    if logs or training.device == "cpu":
        training.bad.settle()
    return _row(training, terms, norm, rate) if logs else {}


@contextmanager
def _undone_on_error(training: Training, buffers: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yield copies of the buffers. What a step changes before it is applied is put back if it fails, so that it can
    be taken again from a checkpoint that is written then."""
    masks, before = training.generator.get_state(), [buffer.clone() for buffer in buffers]
    try:
        yield before
    except BaseException:
        training.generator.set_state(masks)
        with torch.no_grad():
            for buffer, old in zip(buffers, before, strict=True):
                buffer.copy_(old)
        training.optimizer.zero_grad()
        raise


def _row(training: Training, terms: dict[str, Tensor], norm: Tensor, rate: float) -> dict[str, Any]:
    """What is logged, which waits for the device."""
    names = [f"loss/{name}" if name in LOSSES else name for name in terms]
    together = torch.stack([value.detach().float().to(training.fabric.device) for value in terms.values()])
    values = dict(zip(names, mean_of(training.fabric, together).tolist(), strict=True))
    training.latest |= values
    return {
        "kind": "train",
        "step": training.step,
        **values,
        "gradient_norm": float(norm),
        "learning_rate": rate,
        "skipped_steps": training.bad.count,
    }
