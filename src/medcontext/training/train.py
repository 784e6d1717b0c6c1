"""A training from the data folder to the trained network: check, plan, split, prepare, fit."""

from __future__ import annotations

import dataclasses
import gc
import math
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from medcontext.data.check import CheckReport
from medcontext.data.dataset import open_dataset
from medcontext.data.plan import Plan
from medcontext.data.sampling import PatchBatches
from medcontext.data.split import Split
from medcontext.errors import MedContextError
from medcontext.files import alone_in, read_json
from medcontext.inference.model import load_tensors
from medcontext.inference.unlike import KEY as SEEN
from medcontext.inference.unlike import seen_in
from medcontext.method.masking import draw_mask, mask_grid
from medcontext.method.objective import MedContext
from medcontext.method.pretraining import Reconstruction
from medcontext.networks.pretrained import load_pretrained, summary
from medcontext.networks.registry import network_spec
from medcontext.progress import Progress
from medcontext.training.bad_steps import BadSteps
from medcontext.training.budget import steps_within
from medcontext.training.cases import split_for, unlabelled_for
from medcontext.training.checkpoint import newest_checkpoint
from medcontext.training.compiled import compiled
from medcontext.training.config import TrainConfig
from medcontext.training.device import autocast, deterministic, make_scaler
from medcontext.training.distribution import (
    PREPARING,
    device_of,
    ending_together,
    first_does,
    launch,
    set_up,
    whole_batch_norm,
)
from medcontext.training.logs import RunLogs
from medcontext.training.loop import fit
from medcontext.training.prepared import prepared_scans, require_same_plan, require_same_scans
from medcontext.training.pretraining import pretraining_config, pretraining_outputs
from medcontext.training.resume import SPLIT, fold_hash, to_resume
from medcontext.training.run import RunFolder, describe_environment, plain
from medcontext.training.schedule import make_optimizer
from medcontext.training.setup import build, checked, own_share, possible, require_shares
from medcontext.training.signals import warning_interrupts
from medcontext.training.state import Training
from medcontext.training.validate import membership


@dataclass(frozen=True)
class _Begun:
    """What the first process found out and wrote, and all of them train by."""

    config: TrainConfig
    plan: Plan
    split: Split
    unlabelled: tuple[str, ...]
    seen: dict[str, Any] | None
    folders: dict[str, Path]
    checkpoint: Path | None


def train(
    data: Path | str,
    out: Path | str,
    config: TrainConfig | None = None,
    *,
    resume: bool = False,
    replace: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Train a network on a folder of labelled scans.

    Args:
        data: The data set.
        out: The run folder to write.
        config: Settings; None: the defaults.
        resume: Go on with the run in ``out`` where it stopped; start it if there is none.
        replace: Remove the run in ``out`` first.
        progress: Where to say how far it is.

    Returns:
        The run folder.

    Raises:
        MedContextError: Anything about data or settings that the user can mend, before training begins.
        KeyboardInterrupt: Stopped by the user; the checkpoint is written.
    """
    run = RunFolder(Path(out))
    if config is not None:
        network_spec(config.network, allow_import=True)
    goes_on = resume and run.config.is_file() and run.about.is_file()
    fabric = launch(config or (run.read_settings() if goes_on else TrainConfig()))
    progress = progress if progress and fabric.is_global_zero else Progress(quiet=True)
    # The network of a training before this one in the process, such as another fold's, may hold itself and its device.
    gc.collect()
    with warning_interrupts(), ending_together(fabric), ExitStack() as held:
        work = partial(_begin, Path(data), run, config, resume, replace, fabric, progress, held)
        _train(run, first_does(fabric, work, PREPARING), fabric, progress)
    return run.path


def _train(run: RunFolder, begun: _Begun, fabric: Fabric, progress: Progress) -> None:
    """From what has been found out to the last step."""
    with deterministic(begun.config.deterministic):
        if begun.config.pretrain_steps and begun.checkpoint is None:
            _pretrain(run.pretraining, begun, fabric, progress)
        _learn(run, begun, fabric, progress)
    if fabric.is_global_zero:
        run.note(finished=time.strftime("%Y-%m-%d %H:%M:%S"))
    fabric.barrier()


def _begin(
    data: Path,
    run: RunFolder,
    config: TrainConfig | None,
    resume: bool,
    replace: bool,
    fabric: Fabric,
    progress: Progress,
    held: ExitStack,
) -> _Begun:
    """All that comes before the first step and is done once. The run's folder is held from here on."""
    resumes = run.open(resume=resume, replace=replace)
    if run.path.is_dir():
        held.enter_context(alone_in(run.path))
    dataset = open_dataset(data)
    facts, checkpoint = None, None
    if resumes:
        stored = run.read_settings()
        require_same_plan(run)
        config, plan, split = to_resume(config or stored, stored, run.path), run.read_plan(), run.read_split()
        require_shares(config, plan, fabric)
    else:
        config = config or TrainConfig()
        if config.unlabelled_batch:
            dataset = dataclasses.replace(dataset, unlabelled_meant=True)
        report = checked(dataset.with_patients(config.patient), config.cache, progress)
        facts = report.facts
        config, plan, split = _set_up(run, report, config, fabric, progress, replace=replace)
        # A run that was replaced has taken its lock with it.
        held.enter_context(alone_in(run.path))
    about = read_json(run.about)
    unlabelled = tuple(about.get("unlabelled", ()))
    folders = prepared_scans(dataset, plan, split, unlabelled, config, progress, facts)
    require_same_scans(run, folders, resumes)
    if resumes:
        checkpoint = newest_checkpoint(run, progress.say)
        if checkpoint is None:
            progress.say("there is no checkpoint yet: starting from step 0")
        else:
            run.note(resumed=[*about.get("resumed", []), describe_environment(dataset.root)])
    return _Begun(config, plan, split, unlabelled, about.get(SEEN), folders, checkpoint)


def _set_up(
    run: RunFolder, report: CheckReport, config: TrainConfig, fabric: Fabric, progress: Progress, *, replace: bool
) -> tuple[TrainConfig, Plan, Split]:
    """Plan and try what has been checked, split it, and write what the run is made of."""
    resolved, plan = possible(report, config, fabric, progress)
    split = split_for(report, config, progress.say)
    unlabelled = unlabelled_for(report, config, split, progress.say)
    if config.patience is not None and not split.validation:
        raise MedContextError(
            "Patience needs validation cases.",
            found=f"patience = {config.patience}, and none to validate on",
            remedy="leave patience out, or set a validation_share above 0",
        )
    if config.max_time is not None:
        own = own_share(resolved, plan, fabric)
        steps, reason = steps_within(config.max_time, build(resolved, plan), *own, resolved.device)
        progress.say(f"- {reason}")
        plan = dataclasses.replace(plan, steps=steps, reasons=(*plan.reasons, reason))
        resolved = dataclasses.replace(resolved, max_steps=steps)
    # All this took a while, in which another process may have begun a run here.
    run.open(resume=False, replace=replace)
    about = {"unlabelled": list(unlabelled), SEEN: seen_in([report.facts[name] for name in split.train], plan)}
    if config.split is not None:
        about[SPLIT] = fold_hash(config)
    run.begin(resolved, plan, split, describe_environment(report.dataset.root) | about)
    return resolved, plan, split


def _pretrain(run: RunFolder, begun: _Begun, fabric: Fabric, progress: Progress) -> None:
    """Masked-image pre-training, in a run folder of its own, unless it is done; its ``best.pt`` is what came of it."""
    if first_does(fabric, run.best.is_file):
        return
    progress.say(f"pre-training for {begun.config.pretrain_steps} steps first")
    config, split = pretraining_config(begun.config), dataclasses.replace(begun.split, validation=())
    plan = dataclasses.replace(begun.plan, steps=begun.config.pretrain_steps)
    checkpoint = first_does(fabric, lambda: newest_checkpoint(run, progress.say))
    stage = dataclasses.replace(begun, config=config, plan=plan, split=split, checkpoint=checkpoint)
    _learn(run, stage, fabric, progress, pretrains=True)


def _learn(run: RunFolder, begun: _Begun, fabric: Fabric, progress: Progress, *, pretrains: bool = False) -> None:
    """Train, or go on, to the last step."""
    config, share = begun.config, (fabric.global_rank, fabric.world_size)
    cases, others = ({name: begun.folders[name] for name in names} for names in (begun.split.train, begun.unlabelled))
    batches = PatchBatches(
        cases, begun.plan, config.augment, config.seed, begun.plan.steps, share, others, config.compared_batch
    )
    training = _build(run, begun, fabric, batches, progress, pretrains)
    if begun.checkpoint is not None:
        training.load(load_tensors(begun.checkpoint))
        progress.say(f"going on from step {training.step}")
    if fabric.is_global_zero:
        run.forget_after(training.step)
        training.logs = RunLogs(run, training.step, config.loggers, plain(config), progress.say)
    fit(training, batches, progress)
    fabric.barrier()


def _build(
    run: RunFolder, begun: _Begun, fabric: Fabric, batches: PatchBatches, progress: Progress, pretrains: bool
) -> Training:
    """Network, method and optimiser on their device."""
    config, plan, split, device = begun.config, begun.plan, begun.split, device_of(fabric)
    spec = network_spec(config.network)
    network = build(config, plan, pretraining_outputs(plan) if pretrains else None)
    weights = run.pretraining.best if config.pretrain_steps else config.pretrained
    if weights is not None and begun.checkpoint is None:
        progress.say(summary(load_pretrained(network, weights, channels=plan.channels)))
    network = whole_batch_norm(fabric, network).to(device)
    generator = torch.Generator().manual_seed(config.seed)
    method = (Reconstruction if pretrains else MedContext)(
        network,
        config.method_config(),
        total_steps=plan.steps,
        steps_per_epoch=math.ceil(len(split.train) / plan.batch_size),
        channels=plan.channels,
        patch_embedding=spec.patch_embedding,
        positioned_embedding=spec.positioned_embedding,
        generator=generator,
        share=(fabric.global_rank, fabric.world_size),
        membership=membership(plan, device),
        ignoring=plan.labels.ignore is not None,
    )
    method.student.to(device)
    if config.compile:
        image = torch.zeros(plan.batch_size // fabric.world_size, plan.channels, *plan.patch, device=device)
        grid = mask_grid(plan.patch, method.config.hidden_patch)
        mask = draw_mask(method.config, len(image), grid, torch.Generator()).to(device)
        precision = autocast(config.precision, fabric.device.type)
        noise = torch.zeros_like(image) if method.config.fill == "noise" else None
        method.student = compiled(method.student, image, mask, noise, precision, progress.say)
    set_up(fabric, method)
    optimizer = make_optimizer(method.student, config.optimizer, config.weight_decay)
    about = {
        "network": config.network,
        "settings": config.network_settings,
        "preset": config.preset,
        "mirror_axes": list(config.augment.mirror_axes),
        "parameters": sum(p.numel() for p in network.parameters()),
        SEEN: begun.seen,
    }
    where = device if fabric.world_size == 1 else f"{fabric.world_size} x {fabric.device.type}"
    progress.say(
        f"{config.network} of {about['parameters']:,} parameters on {where} in {config.precision}: "
        f"{plan.steps} steps of {plan.batch_size} patches of {' x '.join(map(str, plan.patch))}"
    )
    validation = {name: begun.folders[name] for name in split.validation}
    bad = BadSteps(run, config.max_bad_steps, batches.cases, progress.say, writes=fabric.is_global_zero)
    scaler = make_scaler(config.precision, fabric.device.type)
    return Training(
        config,
        plan,
        fabric,
        device,
        method,
        generator,
        optimizer,
        scaler,
        bad,
        validation,
        run,
        about,
        segments=not pretrains,
    )
