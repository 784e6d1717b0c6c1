"""A training from the data folder to the trained network: check, plan, split, prepare, fit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from medcontext.data.cache import default_cache, prepare_all
from medcontext.data.check import CheckReport, check_dataset
from medcontext.data.dataset import Dataset, open_dataset
from medcontext.data.plan import Plan, make_plan
from medcontext.data.sampling import PatchBatches
from medcontext.data.split import Split, make_split
from medcontext.errors import MedContextError
from medcontext.files import read_json
from medcontext.method.hiding import Student
from medcontext.method.masking import draw_mask, mask_grid
from medcontext.method.objective import MedContext
from medcontext.networks.pretrained import load_pretrained, summary
from medcontext.networks.registry import build_network, network_spec
from medcontext.progress import Progress
from medcontext.training.config import TrainConfig
from medcontext.training.device import bf16_gradients_hold, choose_device, choose_precision, make_fabric
from medcontext.training.loop import Training, fit
from medcontext.training.run import RunFolder, describe_environment, from_stored, to_resume
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
    progress = progress or Progress(quiet=True)
    run = RunFolder(Path(out))
    resumes = run.open(resume=resume, replace=replace)
    dataset = open_dataset(Path(data))
    if config is not None:
        network_spec(config.network, allow_import=True)
    if resumes:
        stored = from_stored(run.read_config())
        config, plan, split = to_resume(config or stored, stored, run.path), run.read_plan(), run.read_split()
        device = choose_device(config.device)
    else:
        config = config or TrainConfig()
        device = choose_device(config.device)
        config, plan, split = _set_up(run, dataset, config, device, progress)
    folders = _prepare(dataset, plan, split, config, progress)
    _require_same_scans(run, folders, resumes)
    training = _build(run, config, plan, device, split, folders, progress)
    if run.last.is_file():
        training.load()
        run.note(resumed=[*read_json(run.about).get("resumed", []), describe_environment(dataset.root)])
        progress.say(f"going on from step {training.step}")
    elif resumes:
        progress.say("there is no checkpoint yet: starting from step 0")
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
    return make_plan(
        report,
        device="cpu" if device == "cpu" else "gpu",
        patch_multiple=spec.patch_multiple,
        patch=config.patch,
        spacing=config.spacing,
        batch_size=config.batch_size,
        steps=config.max_steps,
    )


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
    network = _network(resolved, plan)
    _require_hiding(resolved, plan, network)
    if resolved.precision == "bf16" and device == "cpu":
        trial = torch.zeros(plan.batch_size, plan.channels, *plan.patch)
        if not bf16_gradients_hold(network, trial):
            progress.say("this PyTorch computes gradients of the network's smallest convolutions wrongly in bf16 here")
            if config.precision == "auto":
                progress.say("training in fp32 instead")
                resolved = dataclasses.replace(resolved, precision="fp32")
    run.begin(resolved, plan, split, describe_environment(dataset.root))
    return resolved, plan, split


def _network(config: TrainConfig, plan: Plan) -> nn.Module:
    assert config.network_settings is not None
    return build_network(config.network, plan.channels, plan.classes, plan.patch, config.network_settings, config.seed)


def _require_hiding(config: TrainConfig, plan: Plan, network: nn.Module) -> None:
    """Refuse a method that can't hide anything from this network at this patch, before there is a run."""
    method = config.method_config()
    draw_mask(method, 1, mask_grid(plan.patch, method.mask_patch), torch.Generator())
    Student(network, method, plan.channels, network_spec(config.network).patch_embedding)


def _require_same_scans(run: RunFolder, folders: Mapping[str, Path], resumes: bool) -> None:
    """The folder of a prepared case is named by its content: a resumed run must find the same ones."""
    prepared = {name: folder.name for name, folder in folders.items()}
    before = read_json(run.about).get("prepared")
    if before is None or not resumes:
        run.note(prepared=prepared)
    elif before != prepared:
        changed = sorted(name for name in before if before[name] != prepared.get(name))
        raise MedContextError(
            "The data set has changed since this run began.",
            file=run.path,
            found=f"{len(changed)} case(s) of other content, for example {changed[0]}",
            remedy="resume it on the scans it began with, or start a new run",
        )


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
    split: Split,
    folders: Mapping[str, Path],
    progress: Progress,
) -> Training:
    """Network, method and optimiser on their device."""
    fabric = make_fabric(device)
    spec = network_spec(config.network)
    network = _network(config, plan)
    if config.pretrained is not None and not run.last.is_file():
        progress.say(summary(load_pretrained(network, config.pretrained, channels=plan.channels)))
    network.to(device)
    method = MedContext(
        network,
        config.method_config(),
        total_steps=plan.steps,
        steps_per_epoch=math.ceil(len(split.train) / plan.batch_size),
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
    progress.say(
        f"{config.network} of {about['parameters']:,} parameters on {device} in {config.precision}: "
        f"{plan.steps} steps of {plan.batch_size} patches of {' x '.join(map(str, plan.patch))}"
    )
    validation = {name: folders[name] for name in split.validation}
    return Training(config, plan, fabric, device, method, optimizer, validation, run, about)
