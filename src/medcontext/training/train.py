"""A training from the data folder to the trained network: check, plan, split, prepare, fit."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from medcontext.data.cache import prepare_all
from medcontext.data.check import CheckReport
from medcontext.data.dataset import Dataset, open_dataset
from medcontext.data.facts import CaseFacts
from medcontext.data.plan import Plan
from medcontext.data.sampling import PatchBatches
from medcontext.data.split import Split
from medcontext.errors import MedContextError
from medcontext.files import read_json
from medcontext.inference.model import load_tensors
from medcontext.method.objective import MedContext
from medcontext.networks.pretrained import load_pretrained, summary
from medcontext.networks.registry import network_spec
from medcontext.progress import Progress
from medcontext.training.bad_steps import BadSteps
from medcontext.training.budget import seconds_in, steps_within
from medcontext.training.cases import split_for
from medcontext.training.checkpoint import newest_checkpoint
from medcontext.training.compiled import compiled
from medcontext.training.config import TrainConfig
from medcontext.training.device import autocast, deterministic, make_scaler
from medcontext.training.distribution import first_does, launch, require_equal_shares, set_up, whole_batch_norm
from medcontext.training.logs import RunLogs
from medcontext.training.loop import fit
from medcontext.training.run import RunFolder, describe_environment, from_stored, plain, to_resume
from medcontext.training.schedule import make_optimizer
from medcontext.training.setup import build, checked, plan_for, require_clean, tried
from medcontext.training.state import Training
from medcontext.training.trackers import require_loggers
from medcontext.training.validate import membership


@dataclass(frozen=True)
class _Begun:
    """What the first process found out and wrote, and all of them train by."""

    config: TrainConfig
    plan: Plan
    split: Split
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
    fabric = launch(config or (from_stored(run.read_config()) if resume and run.config.is_file() else TrainConfig()))
    progress = progress if progress and fabric.is_global_zero else Progress(quiet=True)
    begun = first_does(fabric, lambda: _begin(Path(data), run, config, resume, replace, fabric, progress))
    state = None if begun.checkpoint is None else load_tensors(begun.checkpoint)
    share = (fabric.global_rank, fabric.world_size)
    cases = {name: begun.folders[name] for name in begun.split.train}
    batches = PatchBatches(cases, begun.plan, begun.config.augment, begun.config.seed, begun.plan.steps, share)
    with deterministic(begun.config.deterministic):
        training = _build(run, begun, fabric, batches, progress)
        if state is not None:
            training.load(state)
            progress.say(f"going on from step {training.step}")
        if fabric.is_global_zero:
            run.forget_after(training.step)
            loggers = training.config.loggers
            training.logs = RunLogs(run, training.step, loggers, plain(training.config), progress.say)
        fit(training, batches, progress)
    fabric.barrier()
    return run.path


def _begin(
    data: Path,
    run: RunFolder,
    config: TrainConfig | None,
    resume: bool,
    replace: bool,
    fabric: Fabric,
    progress: Progress,
) -> _Begun:
    """All that comes before the first step and is done once."""
    resumes = run.open(resume=resume, replace=replace)
    dataset = open_dataset(data)
    facts, checkpoint = None, None
    if resumes:
        stored = from_stored(run.read_config())
        config, plan, split = to_resume(config or stored, stored, run.path), run.read_plan(), run.read_split()
        require_equal_shares(plan.batch_size, fabric)
    else:
        config = config or TrainConfig()
        report = checked(dataset.with_patients(config.patient), config.cache, progress)
        facts = report.facts
        config, plan, split = _set_up(run, report, config, fabric, progress)
    folders = _prepare(dataset, plan, split, config, progress, facts)
    _require_same_scans(run, folders, resumes)
    if resumes:
        checkpoint = newest_checkpoint(run, progress.say)
        if checkpoint is None:
            progress.say("there is no checkpoint yet: starting from step 0")
        else:
            run.note(resumed=[*read_json(run.about).get("resumed", []), describe_environment(dataset.root)])
    return _Begun(config, plan, split, folders, checkpoint)


def _set_up(
    run: RunFolder, report: CheckReport, config: TrainConfig, fabric: Fabric, progress: Progress
) -> tuple[TrainConfig, Plan, Split]:
    """Plan and split what has been checked, try it, and write what the run is made of."""
    require_clean(report)
    _require_one_end(config)
    require_loggers(config.loggers)
    device = str(fabric.device)
    plan = plan_for(report, config, device)
    progress.say("\n".join(f"- {reason}" for reason in plan.reasons))
    require_equal_shares(plan.batch_size, fabric)
    split = split_for(report, config, progress.say)
    if config.patience is not None and not split.validation:
        raise MedContextError(
            "Patience needs validation cases.",
            found=f"patience = {config.patience}, and none to validate on",
            remedy="leave patience out, or set a validation_share above 0",
        )
    own = dataclasses.replace(plan, batch_size=plan.batch_size // fabric.world_size)
    resolved = dataclasses.replace(tried(config, own, device, progress), batch_size=plan.batch_size)
    if config.max_time is not None:
        steps, reason = steps_within(config.max_time, build(resolved, plan), resolved, own, device)
        progress.say(f"- {reason}")
        plan = dataclasses.replace(plan, steps=steps, reasons=(*plan.reasons, reason))
        resolved = dataclasses.replace(resolved, max_steps=steps)
    run.begin(resolved, plan, split, describe_environment(report.dataset.root))
    return resolved, plan, split


def _require_one_end(config: TrainConfig) -> None:
    if config.max_time is None:
        return
    seconds_in(config.max_time)
    if config.max_steps is not None:
        raise MedContextError(
            "A training ends after a number of steps or after a time, not both.",
            found=f"max_steps = {config.max_steps} and max_time = {config.max_time}",
            remedy="leave one of them out",
        )


def _require_same_scans(run: RunFolder, folders: Mapping[str, Path], resumes: bool) -> None:
    """The folder of a prepared case is named by its content: a resumed run must find the same ones."""
    prepared = {name: folder.name for name, folder in folders.items()}
    before = read_json(run.about).get("prepared")
    if before is None or not resumes:
        run.note(prepared=prepared, hashes={"data": _hash(prepared), "plan": _hash(read_json(run.plan))})
    elif before != prepared:
        changed = sorted(name for name in before if before[name] != prepared.get(name))
        raise MedContextError(
            "The data set has changed since this run began.",
            file=run.path,
            found=f"{len(changed)} case(s) of other content, for example {changed[0]}",
            remedy="resume it on the scans it began with, or start a new run",
        )


def _hash(value: Any) -> str:
    """Of plain values: the first 16 hexadecimal digits of the SHA-256 of their JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _prepare(
    dataset: Dataset,
    plan: Plan,
    split: Split,
    config: TrainConfig,
    progress: Progress,
    facts: Mapping[str, CaseFacts] | None,
) -> dict[str, Path]:
    """Prepared training and validation cases; those held out are read when they are predicted, as new scans are."""
    needed = [*split.train, *split.validation]
    missing = [name for name in needed if name not in dataset.cases]
    if missing:
        raise MedContextError(
            "The data set has changed since this run began.",
            file=dataset.root,
            found=f"{len(missing)} case(s) gone, for example {missing[0]}",
            remedy="put them back, or start a new run",
        )
    assert config.cache is not None
    with progress.task("preparing") as update:
        return prepare_all([dataset.cases[name] for name in needed], plan, config.cache, update, facts)


def _build(run: RunFolder, begun: _Begun, fabric: Fabric, batches: PatchBatches, progress: Progress) -> Training:
    """Network, method and optimiser on their device."""
    config, plan, split, device = begun.config, begun.plan, begun.split, str(fabric.device)
    spec = network_spec(config.network)
    network = build(config, plan)
    if config.pretrained is not None and begun.checkpoint is None:
        progress.say(summary(load_pretrained(network, config.pretrained, channels=plan.channels)))
    network = whole_batch_norm(fabric, network).to(device)
    generator = torch.Generator().manual_seed(config.seed)
    method = MedContext(
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
    optimizer = make_optimizer(method.student, config.optimizer, config.weight_decay)
    if config.compile:
        image = torch.zeros(plan.batch_size // fabric.world_size, plan.channels, *plan.patch, device=device)
        mask = MedContext(network, config.method_config(), total_steps=1).draw_mask(image)
        precision = autocast(config.precision, fabric.device.type)
        method.student = compiled(method.student, image, mask, precision, progress.say)
    method.student = set_up(fabric, method.student)
    about = {
        "network": config.network,
        "settings": config.network_settings,
        "preset": config.preset,
        "parameters": sum(p.numel() for p in network.parameters()),
    }
    where = device if fabric.world_size == 1 else f"{fabric.world_size} x {fabric.device.type}"
    progress.say(
        f"{config.network} of {about['parameters']:,} parameters on {where} in {config.precision}: "
        f"{plan.steps} steps of {plan.batch_size} patches of {' x '.join(map(str, plan.patch))}"
    )
    validation = {name: begun.folders[name] for name in split.validation}
    bad = BadSteps(run, config.max_bad_steps, batches.cases, progress.say, writes=fabric.is_global_zero)
    scaler = make_scaler(config.precision, fabric.device.type)
    return Training(config, plan, fabric, device, method, generator, optimizer, scaler, bad, validation, run, about)
