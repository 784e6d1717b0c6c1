"""From what is asked for to what will be trained: data checked, planned and split, every setting resolved."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from medcontext.data.cache import default_cache
from medcontext.data.check import CheckReport, check_dataset
from medcontext.data.dataset import Dataset
from medcontext.data.plan import Plan, make_plan
from medcontext.data.plan_file import read_plan, require_plan_fits
from medcontext.errors import MedContextError
from medcontext.memory import GIB, free_memory
from medcontext.method.hiding import Student
from medcontext.method.masking import draw_mask, mask_grid
from medcontext.method.pretraining import HIDING
from medcontext.networks.registry import build_network, network_spec
from medcontext.progress import Progress
from medcontext.training.budget import seconds_in
from medcontext.training.config import TrainConfig
from medcontext.training.device import bf16_gradients_hold, choose_precision
from medcontext.training.distribution import device_of, is_sharded, processes_here, require_equal_shares
from medcontext.training.estimate import gpu_memory_gib, sharded_memory, step_memory
from medcontext.training.pretraining import of_equal_cost
from medcontext.training.schedule import SGD_RATE, WEIGHT_DECAY
from medcontext.training.trackers import require_loggers


def checked(dataset: Dataset, cache: Path | None, progress: Progress) -> CheckReport:
    """Check a data set, with progress; what the cache remembers isn't read again."""
    with progress.task("checking") as update:
        return check_dataset(dataset, update, cache=(cache or default_cache()) / "checks")


def require_clean(report: CheckReport) -> None:
    """Refuse a data set with errors.

    Raises:
        MedContextError: Naming the first of them.
    """
    if report.errors:
        first = report.errors[0]
        raise MedContextError(
            f"This data set has {len(report.errors)} error(s); the first: {first.error.problem}",
            file=first.error.file,
            found=first.error.found,
            expected=first.error.expected,
            remedy=f"run 'medcontext check {report.dataset.root}' for all of them; {first.error.remedy or ''}",
        )


def possible(report: CheckReport, config: TrainConfig, fabric: Fabric, progress: Progress) -> tuple[TrainConfig, Plan]:
    """Plan for what has been checked, and look whether that can be trained here. Nothing is written.

    Args:
        report: Of the data set.
        config: As asked for.
        fabric: Device and processes.
        progress: Told the reasons of the plan, and of what gives way.

    Returns:
        The settings with nothing left open, and the plan.

    Raises:
        MedContextError: Errors in the data, settings that contradict one another or need what is not installed, and
            what :func:`plan_for` and :func:`tried` refuse.
    """
    require_clean(report)
    _require_one_end(config)
    require_loggers(config.loggers)
    plan = plan_for(report, config, device_of(fabric))
    progress.say("\n".join(f"- {reason}" for reason in plan.reasons))
    require_shares(config, plan, fabric)
    resolved = tried(*own_share(config, plan, fabric), fabric, progress)
    return dataclasses.replace(resolved, batch_size=plan.batch_size, unlabelled_batch=config.unlabelled_batch), plan


def require_shares(config: TrainConfig, plan: Plan, fabric: Fabric) -> None:
    """Refuse a step that the processes can't share evenly."""
    require_equal_shares(plan.batch_size, fabric)
    require_equal_shares(config.unlabelled_batch, fabric, "--unlabelled-batch")


def own_share(config: TrainConfig, plan: Plan, fabric: Fabric) -> tuple[TrainConfig, Plan]:
    """Settings and plan with what this process has of a step."""
    size, unlabelled = plan.batch_size // fabric.world_size, config.unlabelled_batch // fabric.world_size
    own = dataclasses.replace(plan, batch_size=size)
    batch = None if config.batch_size is None else size
    return dataclasses.replace(config, batch_size=batch, unlabelled_batch=unlabelled), own


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


def plan_for(report: CheckReport, config: TrainConfig, device: str) -> Plan:
    """The plan of a checked data set, or the one that is given, with what the settings ask for in place of its own.

    Raises:
        MedContextError: Nothing to plan for, or a plan file that is damaged or made for other data.
    """
    if config.plan is not None:
        given = read_plan(config.plan)
        require_plan_fits(given, report, config.plan)
        asked: dict[str, Any] = {
            "patch": config.patch,
            "spacing": config.spacing,
            "batch_size": config.batch_size,
            "steps": config.max_steps,
        }
        return dataclasses.replace(given, **{name: value for name, value in asked.items() if value is not None})
    return make_plan(
        report,
        device="cpu" if device == "cpu" else "gpu",
        memory_gib=gpu_memory_gib(device),
        patch_multiple=network_spec(config.network).patch_multiple,
        patch=config.patch,
        spacing=config.spacing,
        batch_size=config.batch_size,
        steps=config.max_steps,
    )


def resolve(config: TrainConfig, plan: Plan, device: str) -> TrainConfig:
    """The settings with nothing left open."""
    spec = network_spec(config.network)
    return dataclasses.replace(
        config,
        method=config.method_config().for_spacing(plan.spacing),
        network_settings=_network_settings(config, plan),
        spacing=plan.spacing,
        patch=plan.patch,
        batch_size=plan.batch_size,
        max_steps=plan.steps,
        learning_rate=config.learning_rate or (SGD_RATE if config.optimizer == "sgd" else spec.learning_rate),
        weight_decay=WEIGHT_DECAY[config.optimizer] if config.weight_decay is None else config.weight_decay,
        device=device,
        precision=choose_precision(config.precision, device),
        cache=config.cache or default_cache(),
    )


def _network_settings(config: TrainConfig, plan: Plan) -> dict[str, Any]:
    """What the plan chooses for the network, but for what was set. A factory of one's own names its settings itself."""
    planned = network_spec(config.network).settings(plan.patch, plan.spacing, plan.scale)
    given = config.network_settings or {}
    unknown = sorted(set(given) - set(planned))
    if planned and unknown:
        raise MedContextError(
            f"The network {config.network} has no such settings.",
            found=", ".join(unknown),
            expected=", ".join(planned),
        )
    return planned | given


def build(config: TrainConfig, plan: Plan, outputs: int | None = None) -> nn.Module:
    """The network, on the CPU, with weights drawn from the seed, and as many outputs as there are to segment, unless
    another number is given."""
    assert config.network_settings is not None
    return build_network(
        config.network, plan.channels, outputs or plan.labels.outputs, plan.patch, config.network_settings, config.seed
    )


def tried(config: TrainConfig, plan: Plan, fabric: Fabric, progress: Progress) -> TrainConfig:
    """Look, before there is a run, whether it can be done; precision ``auto`` gives way where bf16 computes wrongly.

    Args:
        config: As asked for.
        plan: Of the data, with this process's share of the batch.
        fabric: Device and processes.
        progress: Told of what gives way.

    Returns:
        The settings with nothing left open.

    Raises:
        MedContextError: The method can't hide anything from this network at this patch, or memory does not suffice.
    """
    device, processes = device_of(fabric), processes_here(fabric)
    resolved = resolve(config, plan, device)
    network = build(resolved, plan)
    method = resolved.method_config()
    draw_mask(method, 1, mask_grid(plan.patch, method.hidden_patch), torch.Generator())
    Student(network, method, plan.channels, network_spec(config.network).patch_embedding)
    stages = [(resolved, plan)]
    if config.pretrain_steps:
        hiding = HIDING.for_spacing(plan.spacing)
        draw_mask(hiding, 1, mask_grid(plan.patch, hiding.hidden_patch), torch.Generator())
        stages.append(of_equal_cost(resolved, plan))
    counted, free = [step_memory(network, *stage) for stage in stages], free_memory(device, processes)
    needed = max((each for each in counted if each is not None), default=0)
    if is_sharded(fabric):
        needed = sharded_memory(needed, network, resolved, fabric.world_size)
    if needed > free:
        raise MedContextError(
            "There is too little memory for this training.",
            found=f"{free / GIB:.1f} GiB free on {device}" + (f" for each of {processes}" if processes > 1 else ""),
            expected=f"{needed / GIB:.1f} GiB or more for a step of {plan.batch_size} patches of {plan.patch}",
            remedy="take a smaller patch (--patch), fewer patches per step (--batch-size) or a smaller network",
        )
    if resolved.precision == "bf16" and device == "cpu":
        trial = torch.zeros(plan.batch_size, plan.channels, *plan.patch)
        if not bf16_gradients_hold(network, trial):
            progress.say("this PyTorch computes gradients of the network's smallest convolutions wrongly in bf16 here")
            if config.precision == "auto":
                progress.say("training in fp32 instead")
                return dataclasses.replace(resolved, precision="fp32")
    return resolved
