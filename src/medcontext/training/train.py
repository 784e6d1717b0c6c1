"""A training from the data folder to the trained network: check, plan, split, prepare, fit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from medcontext.data.cache import default_cache, prepare_all
from medcontext.data.check import CheckReport, check_dataset
from medcontext.data.dataset import Dataset, open_dataset
from medcontext.data.plan import Plan, make_plan
from medcontext.data.sampling import PatchBatches
from medcontext.data.split import Split, make_split
from medcontext.errors import MedContextError
from medcontext.method.objective import MedContext
from medcontext.networks.pretrained import load_pretrained, summary
from medcontext.networks.registry import build_network, network_spec
from medcontext.progress import Progress
from medcontext.training.config import TrainConfig
from medcontext.training.device import bf16_gradients_hold, choose_device, choose_precision, make_fabric
from medcontext.training.loop import Training, fit
from medcontext.training.run import RunFolder, describe_environment, from_stored, require_same
from medcontext.training.schedule import make_optimizer


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
    config, progress = config or TrainConfig(), progress or Progress(quiet=True)
    run = RunFolder(Path(out))
    network_spec(config.network, allow_import=True)
    dataset = open_dataset(Path(data))
    device = choose_device(config.device)
    if run.open(resume=resume, replace=replace):
        stored = run.read_config()
        require_same(config, stored, run.path)
        config, plan, split = from_stored(stored, config), run.read_plan(), run.read_split()
    else:
        config, plan, split = _set_up(run, dataset, config, device, progress)
    folders = _prepare(dataset, plan, split, config, progress)
    validation = {name: folders[name] for name in split.validation}
    training = _build(run, config, plan, device, len(split.train), validation, progress)
    progress.say(
        f"{config.network} of {training.about['parameters']:,} parameters on {device} in {config.precision}: "
        f"{config.max_steps} steps of {plan.batch_size} patches of {' x '.join(map(str, plan.patch))}"
    )
    if run.last.is_file():
        training.load()
        progress.say(f"going on from step {training.step}")
    run.forget_after(training.step)
    assert config.max_steps is not None
    batches = PatchBatches(
        {name: folders[name] for name in split.train}, plan, config.augment, config.seed, config.max_steps
    )
    fit(training, batches, progress)
    return run.path


def plan_for(report: CheckReport, config: TrainConfig, device: str) -> Plan:
    """The plan of a checked data set, with what the settings ask for in place of what it would choose."""
    spec = network_spec(config.network)
    plan = make_plan(
        report,
        device="cpu" if device == "cpu" else "gpu",
        patch_multiple=spec.patch_multiple,
        patch=config.patch,
        spacing=config.spacing,
    )
    asked: dict[str, Any] = {"batch_size": config.batch_size, "steps": config.max_steps}
    return dataclasses.replace(plan, **{key: value for key, value in asked.items() if value is not None})


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


def _set_up(
    run: RunFolder, dataset: Dataset, config: TrainConfig, device: str, progress: Progress
) -> tuple[TrainConfig, Plan, Split]:
    """Check, plan and split; write what the run is made of."""
    with progress.task("checking") as update:
        report = check_dataset(dataset, update)
    require_clean(report)
    plan = plan_for(report, config, device)
    progress.say("\n".join(f"- {reason}" for reason in plan.reasons))
    split = make_split(
        report.facts,
        test_share=config.test_share,
        validation_share=config.validation_share,
        seed=config.split_seed,
        patient=config.patient,
    )
    spec = network_spec(config.network)
    resolved = dataclasses.replace(
        config,
        method=config.method_config(),
        network_settings=config.network_settings
        or spec.settings(plan.patch, plan.spacing, "small" if device == "cpu" else "full"),
        spacing=plan.spacing,
        patch=plan.patch,
        batch_size=plan.batch_size,
        max_steps=plan.steps,
        learning_rate=config.learning_rate or spec.learning_rate,
        device=device,
        precision=choose_precision(config.precision, device),
        cache=config.cache or default_cache(),
    )
    if resolved.precision == "bf16" and device == "cpu" and not _bf16_holds(resolved, plan):
        progress.say(
            "this PyTorch computes gradients of the network's smallest convolutions wrongly in bf16 on this CPU"
        )
        if config.precision == "auto":
            progress.say("training in fp32 instead")
            resolved = dataclasses.replace(resolved, precision="fp32")
    run.write_setup(resolved, plan, split, describe_environment(dataset.root))
    return resolved, plan, split


def _bf16_holds(config: TrainConfig, plan: Plan) -> bool:
    assert config.network_settings is not None
    network = build_network(config.network, plan.channels, plan.classes, plan.patch, config.network_settings, 0)
    return bf16_gradients_hold(network, torch.zeros(plan.batch_size, plan.channels, *plan.patch))


def _prepare(dataset: Dataset, plan: Plan, split: Split, config: TrainConfig, progress: Progress) -> dict[str, Path]:
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
        return prepare_all([dataset.cases[name] for name in needed], plan, config.cache, update)


def _build(
    run: RunFolder,
    config: TrainConfig,
    plan: Plan,
    device: str,
    training_cases: int,
    validation: Mapping[str, Path],
    progress: Progress,
) -> Training:
    """Network, method and optimiser on their device."""
    assert config.network_settings is not None
    assert config.method is not None
    fabric = make_fabric(device, config.precision)
    spec = network_spec(config.network)
    network = build_network(
        config.network, plan.channels, plan.classes, plan.patch, config.network_settings, config.seed
    )
    if config.pretrained is not None and not run.last.is_file():
        progress.say(summary(load_pretrained(network, config.pretrained, channels=plan.channels)))
    network.to(device)
    method = MedContext(
        network,
        config.method,
        total_steps=plan.steps,
        steps_per_epoch=math.ceil(training_cases / plan.batch_size),
        channels=plan.channels,
        patch_embedding=spec.patch_embedding,
        positioned_embedding=spec.positioned_embedding,
        generator=torch.Generator().manual_seed(config.seed),
    )
    method.student.to(device)
    method.student, optimizer = fabric.setup(method.student, make_optimizer(method.student, config.weight_decay))
    about = {
        "network": config.network,
        "settings": config.network_settings,
        "preset": config.preset,
        "parameters": sum(p.numel() for p in network.parameters()),
    }
    return Training(config, plan, fabric, device, method, optimizer, validation, run, about)
