"""The loop: one state, stepped until done, that can be stopped after any step and resumed exactly."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from medcontext.data.loading import batches_of
from medcontext.data.sampling import PatchBatches
from medcontext.inference.model import save_model
from medcontext.memory import processors
from medcontext.progress import Progress
from medcontext.training.distribution import any_of, first_does
from medcontext.training.explain import explained
from medcontext.training.meter import Meter, forget_peak, training_note
from medcontext.training.overlays import PatchOverlay
from medcontext.training.quick import QuickValidation, validation_steps
from medcontext.training.sharding import gathered
from medcontext.training.signals import stop_asked
from medcontext.training.state import Training
from medcontext.training.step import train_step
from medcontext.training.validate import validate


def fit(training: Training, batches: PatchBatches, progress: Progress) -> None:
    """Train to the last step.

    A signal to stop (Ctrl-C, SIGTERM, SIGUSR1) is obeyed after the step under way: the checkpoint is written and
    ``KeyboardInterrupt`` raised. A second one stops at once; a checkpoint on disk stays whole. An error writes the
    checkpoint too, of the last whole step.
    """
    config, steps = training.config, training.steps
    forget_peak(training.device)
    left = range(training.step, training.step if training.given_up else steps)
    loader, meter = batches_of(batches, left, config.workers), Meter(training.device)
    draws = training.logs is not None and training.segments
    overlay = PatchOverlay(batches[0], training.plan, training.method.config, config.seed) if draws else None
    validations = _Validations(training, overlay)
    own_random_state = torch.random.fork_rng(devices=range(torch.cuda.device_count()))
    saved, clock = time.monotonic(), _Clock(training)
    with own_random_state, progress.task("training") as update, stop_asked() as stop, _saved_on_error(training):
        if validations.due and training.validated < training.step:
            validations()
        for batch in meter.watch(loader):
            row = train_step(training, batch)
            clock.tick()
            if row:
                training.latest |= meter.values()
                training.log(row | meter.values() | {"seconds": round(training.seconds, 2)})
            if validations.due:
                with meter.aside():
                    validations()
                clock.tick()
            late = time.monotonic() - saved >= 60 * config.save_minutes
            stops, late = _agreed(training, stop.is_set(), late, logged=bool(row))
            if stops:
                training.save()
                training.fabric.barrier()
                progress.say(f"stopped after step {training.step}; the checkpoint is written. Go on with --resume")
                raise KeyboardInterrupt
            if late or training.step % config.save_every == 0 or training.step == steps or training.given_up:
                with meter.aside():
                    training.save()
                saved = time.monotonic()
            if training.latest.pop("collapsed", 0) and training.step > steps // 2:
                progress.say(f"at step {training.step} the teacher says the same everywhere: this run has collapsed")
            hint = meter.hint(config.workers, processors())
            if hint:
                progress.say(hint)
            update(training.step, steps, training_note(training.latest))
            if training.given_up:
                progress.say(f"stopped at step {training.step}: {training.stale} validations without a better one")
                break


def _agreed(training: Training, asked: bool, late: bool, logged: bool) -> tuple[bool, bool]:
    """Whether to stop after this step, and whether a checkpoint is overdue. Several processes do so after the same
    step, if one of them is asked to, or is late; to ask them waits for the device, so on a GPU that is done at steps
    that are logged, which wait anyway."""
    if training.fabric.world_size == 1:
        return asked, late
    if training.device != "cpu" and not logged:
        return False, False
    stops, saves = any_of(training.fabric, torch.tensor([asked, late], device=training.fabric.device)).tolist()
    return stops, saves


class _Clock:
    """Adds the time since it was last looked at to the training's."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self._last = time.monotonic()

    def tick(self) -> None:
        now = time.monotonic()
        self._training.seconds += now - self._last
        self._last = now


@contextmanager
def _saved_on_error(training: Training) -> Iterator[None]:
    """Write the checkpoint if anything goes wrong between two steps, or within one before it is applied; close the
    logs however it ends."""
    succeeded = False
    try:
        yield
        succeeded = True
    except Exception as error:
        try:
            if training.whole:
                training.rescue()
        except Exception as second:
            error.add_note(f"The checkpoint could not be written either: {second}")
        known = explained(error, training)
        if known is not None:
            raise known from error
        raise
    finally:
        if training.logs is not None:
            training.logs.close(success=succeeded)


class _Validations:
    """Validates whole volumes, and patches between, after the steps that are meant for it."""

    def __init__(self, training: Training, overlay: PatchOverlay | None) -> None:
        config = training.config
        self._training = training
        self._overlay = overlay
        self._whole, self._between = validation_steps(training.steps, config.validations, config.quick_validations)
        self._quick = QuickValidation(training.validation, training.plan, config.seed, training.device, training.fabric)

    @property
    def due(self) -> bool:
        """Whether this is such a step. Without validation cases there is nothing to look at between."""
        step = self._training.step
        return step in self._whole or (step in self._between and bool(self._training.validation))

    def __call__(self) -> None:
        training = self._training
        if training.step in self._whole:
            _validate(training, self._overlay)
        else:
            networks = training.networks()
            with training.autocast(), gathered(*networks.values()):
                scores = self._quick(networks)
            row = {f"quick_dice/{name}": score for name, score in scores.items()}
            training.log({"kind": "quick", "step": training.step, **row})
            training.latest |= row
        training.validated = training.step


def _validate(training: Training, overlay: PatchOverlay | None) -> None:
    """Score student and teacher on whole volumes; keep the better of the two if it is the best so far, or the last is
    asked for.

    Without validation cases the teacher (the student, where there is none) is kept each time.
    """
    networks = training.networks()
    chosen = list(networks)[-1]
    known: dict[str, float] = {}
    if training.validation:
        with training.autocast(), gathered(*networks.values()):
            scores = validate(networks, training.validation, training.plan, training.device, training.fabric)
        # A class that is nowhere, neither in the truth nor predicted, has no Dice.
        known = {name: score for name, score in scores.items() if math.isfinite(score)}
    if known:
        chosen = max(known, key=lambda name: known[name])
    better = known.get(chosen, training.best) > training.best or training.best < 0 or not training.validation
    if better or training.config.keep == "last":
        about = training.about | {"step": training.step, "which": chosen, "validation_dice": known.get(chosen)}
        weights = training.weights(chosen)
        first_does(training.fabric, lambda: save_model(training.run.best, weights, training.plan, about))
    if training.validation:
        row = {f"dice/{name}": score for name, score in known.items()}
        training.log({"kind": "validation", "step": training.step, **row})
        training.latest |= row
    # Noted once the model and the row are written: a run that fails to is resumed with this validation. What fails
    # from here on, as the picture may, must not have it counted twice.
    training.stale = 0 if better else training.stale + 1
    if better:
        training.best = known.get(chosen, training.best)
    training.validated = training.step
    with training.autocast(), gathered(*networks.values()):
        if training.logs is not None and overlay is not None:
            training.logs.picture(overlay(networks["student"], networks.get("teacher")), training.step)
