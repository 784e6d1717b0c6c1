"""Several processes as one: each takes its share of every batch and of the validation cases; the first one writes."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn

from medcontext.errors import MedContextError
from medcontext.training.config import TrainConfig
from medcontext.training.device import choose_device

Result = TypeVar("Result")

PATIENCE = timedelta(days=1)
"""How long processes wait for one another: the first one checks and prepares the data while the others wait."""


def launch(config: TrainConfig) -> Fabric:
    """Lightning Fabric on the device, or on several with DDP; the other processes are started, or found.

    Started by ``torchrun``, there are as many as it says. Under SLURM (``srun``), ``devices`` and ``num_nodes`` must be
    what the job asks for. Else this process starts the others of its machine with the command that it was called with.
    Precision is the loop's, which looks at gradients term by term as well.

    Raises:
        MedContextError: There are not so many devices, or the launcher was told otherwise.
    """
    device, devices, nodes = choose_device(config.device), config.devices, config.num_nodes
    if TorchElasticEnvironment.detect():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    kind, _, index = device.partition(":")
    if devices * nodes == 1:
        alone: Any = [int(index)] if kind == "cuda" else 1
        return Fabric(accelerator=kind, devices=alone)
    there = {"cuda": torch.cuda.device_count(), "mps": 1}.get(kind, devices)
    if devices > there:
        raise MedContextError(
            "There are not so many devices here.", found=f"{there} of kind {kind}", expected=f"{devices}"
        )
    try:
        fabric = Fabric(accelerator=kind, devices=devices, num_nodes=nodes, strategy=DDPStrategy(timeout=PATIENCE))
        fabric.launch()
    except ValueError as error:
        raise MedContextError(
            "The processes can't be started as asked for.",
            found=str(error),
            remedy="set devices and num_nodes to what the launcher was told",
        ) from None
    return fabric


def first_does(fabric: Fabric, work: Callable[[], Result]) -> Result:
    """Let the first process work while the others wait; all get the result.

    Raises:
        Exception: In the first process, what the work raises.
        SystemExit: In the others then.
    """
    outcome: tuple[str, Any] = ("failed", None)
    if fabric.world_size == 1:
        return work()
    try:
        if fabric.is_global_zero:
            outcome = ("done", work())
    finally:
        outcome = fabric.broadcast(outcome)
    if outcome[0] == "failed":
        raise SystemExit(1)
    result: Result = outcome[1]
    return result


def require_equal_shares(batch_size: int, fabric: Fabric, option: str = "--batch-size") -> None:
    """Every process takes as many samples of a batch as any other, so that their mean is the batch's.

    Raises:
        MedContextError: They can't.
    """
    if batch_size % fabric.world_size:
        above = -(-batch_size // fabric.world_size) * fabric.world_size
        raise MedContextError(
            "The batch can't be shared equally.",
            found=f"{batch_size} patches for {fabric.world_size} processes",
            expected=f"a multiple of {fabric.world_size}",
            remedy=f"set the batch size for all of them together, for example {option} {above}",
        )


def whole_batch_norm(fabric: Fabric, network: nn.Module) -> nn.Module:
    """On several GPUs batch normalisation looks at the whole batch, as on one. (On a CPU PyTorch can't do that: every
    process then normalises over its share.)"""
    if fabric.world_size == 1 or fabric.device.type != "cuda":
        return network
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return converted


def set_up(fabric: Fabric, module: nn.Module) -> nn.Module:
    """The module on its device, its gradients synchronised with the other processes.

    It has ``no_sync`` as ``DistributedDataParallel`` has, for a step's backward passes before the last.
    """
    wrapped = fabric.setup_module(module)
    if fabric.world_size > 1:

        def no_sync() -> AbstractContextManager[None]:
            context: AbstractContextManager[None] = fabric.no_backward_sync(wrapped)
            return context

        module.no_sync = no_sync  # type: ignore[assignment]
    return wrapped


def any_of(fabric: Fabric, flag: Tensor) -> Tensor:
    """Whether a scalar is true in any process; nothing waits for the device."""
    if fabric.world_size == 1:
        return flag
    count = fabric.all_reduce(flag.float(), reduce_op="sum")
    assert isinstance(count, Tensor)
    return count > 0


def mean_of(fabric: Fabric, values: Tensor) -> Tensor:
    """Mean over processes."""
    if fabric.world_size == 1:
        return values
    mean = fabric.all_reduce(values, reduce_op="mean")
    assert isinstance(mean, Tensor)
    return mean


def gathered(fabric: Fabric, own: dict[str, Result]) -> dict[str, Result]:
    """What all processes have, each of it once, sorted by name."""
    parts: list[dict[str, Result]] = [own]
    if fabric.world_size > 1:
        parts = [{} for _ in range(fabric.world_size)]
        torch.distributed.all_gather_object(parts, own)
    together = {name: value for part in parts for name, value in part.items()}
    return dict(sorted(together.items()))
