"""Several processes as one: each takes its share of every batch and of the validation cases; the first one writes."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from torch import Tensor, nn

from medcontext.errors import MedContextError
from medcontext.method.objective import MedContext
from medcontext.training.config import TrainConfig
from medcontext.training.device import choose_device
from medcontext.training.sharding import shard

Result = TypeVar("Result")

PREPARING = timedelta(days=1)
"""How long processes wait while the first one reads, prepares or predicts the data."""

TRAINING = timedelta(minutes=30)
"""How long processes wait for one another after that: one may have larger volumes to validate on than another."""


def launch(config: TrainConfig) -> Fabric:
    """Lightning Fabric on the device, or on several with DDP or FSDP; the other processes are started, or found.

    Started by ``torchrun``, there are as many as it says. Under SLURM (``srun``), ``devices`` and ``num_nodes`` must be
    what the job asks for. Else this process starts the others of its machine with the command that it was called with.
    Precision is the loop's, which looks at gradients term by term as well.

    Raises:
        MedContextError: There are not so many devices, or the launcher was told otherwise.
    """
    if config.deterministic:
        # cuBLAS reads it once, when it is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    device, devices, nodes = choose_device(config.device), config.devices, config.num_nodes
    if TorchElasticEnvironment.detect():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    else:
        _require_as_slurm_says(devices * nodes)
    kind, _, index = device.partition(":")
    if devices * nodes == 1:
        alone: Any = [int(index)] if kind == "cuda" else 1
        if kind == "cuda":
            # What is asked of CUDA without naming a device, as whether it has bf16, is asked of this one.
            torch.cuda.set_device(int(index))
        return Fabric(accelerator=kind, devices=alone)
    there = {"cuda": torch.cuda.device_count(), "mps": 1}.get(kind, devices)
    if devices > there:
        raise MedContextError(
            "There are not so many devices here.", found=f"{there} of kind {kind}", expected=f"{devices}"
        )
    strategy: Any = DDPStrategy(timeout=TRAINING)
    if config.strategy == "fsdp":
        _require_shardable(config)
        strategy = ModelParallelStrategy(shard, devices * nodes, tensor_parallel_size=1, timeout=TRAINING)
    try:
        fabric = Fabric(accelerator=kind, devices=devices, num_nodes=nodes, strategy=strategy)
        fabric.launch()
    except (ValueError, RuntimeError) as error:
        raise MedContextError(
            "The processes can't be started as asked for.",
            found=str(error),
            remedy="set devices and num_nodes to what the launcher was told",
        ) from None
    atexit.register(_leave)
    return fabric


def _leave() -> None:
    """Close gloo's connections in order: threads of theirs that outlive the interpreter abort a process that is done.
    (NCCL's are closed by Lightning.)"""
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        torch.distributed.destroy_process_group()


def _require_as_slurm_says(processes: int) -> None:
    """Processes that do not know of one another would write the same run, or one would wait for others in vain."""
    if SLURMEnvironment.detect() and int(os.environ["SLURM_NTASKS"]) != processes:
        raise MedContextError(
            "SLURM was asked for another number of processes.",
            found=f"SLURM_NTASKS = {os.environ['SLURM_NTASKS']}, and devices x num_nodes = {processes}",
            expected="one task for each device, started by srun",
            remedy="set devices to --ntasks-per-node and num_nodes to --nodes",
        )


def _require_shardable(config: TrainConfig) -> None:
    if config.optimizer == "sgd" or config.compile:
        raise MedContextError(
            "This can't be trained in shards.",
            found="strategy = fsdp, with " + ("compile" if config.compile else f"optimizer = {config.optimizer}"),
            expected="a network that is not compiled, and AdamW: PyTorch's fused SGD takes no shards",
            remedy="set strategy to ddp, or leave the other out",
        )


def first_does(fabric: Fabric, work: Callable[[], Result], patience: timedelta | None = None) -> Result:
    """Let the first process work while the others wait; all get the result.

    Args:
        fabric: The processes.
        work: What is done once.
        patience: How long the others wait, where that is longer than usual.

    Raises:
        Exception: In the first process, what the work raises.
        SystemExit: In the others then.
    """
    if fabric.world_size == 1:
        return work()
    group = None if patience is None else torch.distributed.new_group(timeout=patience, backend="gloo")
    outcome: list[tuple[str, Any]] = [("failed", None)]
    try:
        if fabric.is_global_zero:
            outcome = [("done", work())]
    finally:
        torch.distributed.broadcast_object_list(outcome, group=group)
    if outcome[0][0] == "failed":
        raise SystemExit(1)
    result: Result = outcome[0][1]
    return result


@contextmanager
def ending_together(fabric: Fabric) -> Iterator[None]:
    """Let no process wait for one that has failed: the processes that this one started end with it.

    (Who started them otherwise, torchrun or srun, does so itself; and Fabric ends the first one if another fails.)

    Raises:
        MedContextError: Another process is gone.
    """
    try:
        yield
    except Exception as error:
        for process in getattr(fabric.strategy.launcher, "procs", ()):
            process.kill()
        # Of several kinds in PyTorch; gloo's has none of its own.
        if isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error):
            raise MedContextError(
                "Another process of this training has ended, or gives no answer.",
                found=str(error).splitlines()[0].partition(". ")[0],
                remedy="its own error, if it could say one, is beside this; if not, see in the system's log whether it "
                "was killed for its memory. Then go on with --resume",
            ) from error
        raise


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
    process then normalises over its share, and the first one's statistics are kept: :func:`follow_first`.)"""
    if fabric.world_size == 1 or fabric.device.type != "cuda":
        return network
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return converted


def processes_here(fabric: Fabric) -> int:
    """How many of the processes share this machine."""
    count: int = getattr(fabric.strategy, "num_processes", 1)
    return count


def is_sharded(fabric: Fabric) -> bool:
    """Whether each process has but a part of every parameter."""
    return isinstance(fabric.strategy, ModelParallelStrategy)


def set_up(fabric: Fabric, method: MedContext) -> None:
    """Let the student synchronise its gradients with the other processes, or share itself and the teacher with them.

    With DDP it has ``no_sync`` as ``DistributedDataParallel`` has, for a step's backward passes before the last. With
    FSDP every backward pass hands its gradients on, since no process has the memory to keep them whole.
    """
    module = method.student
    method.student = wrapped = fabric.setup_module(module)
    if is_sharded(fabric):
        if method.teacher is not None:
            fabric.setup_module(method.teacher.network)
    elif fabric.world_size > 1:

        def no_sync() -> AbstractContextManager[None]:
            context: AbstractContextManager[None] = fabric.no_backward_sync(wrapped)
            return context

        module.no_sync = no_sync  # type: ignore[assignment]


def device_of(fabric: Fabric) -> str:
    """The device's name, as :func:`~medcontext.training.device.choose_device` has it: there is one ``mps``."""
    return "mps" if fabric.device.type == "mps" else str(fabric.device)


def follow_first(fabric: Fabric, buffers: Sequence[Tensor]) -> None:
    """Take the buffers of the first process where processes may have come to different ones."""
    if fabric.world_size > 1 and fabric.device.type == "cpu":
        for buffer in buffers:
            torch.distributed.broadcast(buffer, 0)


def any_of(fabric: Fabric, flag: Tensor) -> Tensor:
    """Whether a scalar is true in any process; nothing waits for the device."""
    if fabric.world_size == 1:
        return flag
    return _summed(flag.float()) > 0


def mean_of(fabric: Fabric, values: Tensor) -> Tensor:
    """Mean over the processes in which a value is not NaN: a share of a batch may have nothing that it could be of."""
    if fabric.world_size == 1:
        return values
    known = ~values.isnan()
    total, count = _summed(torch.stack([values.where(known, 0.0), known.float()])).unbind()
    return total / count


def _summed(values: Tensor) -> Tensor:
    """Over the processes. Fabric's own sum has a barrier before it, at which the processor waits for the device."""
    torch.distributed.all_reduce(values)
    return values


def of_all(fabric: Fabric, own: dict[str, Result]) -> dict[str, Result]:
    """What all processes have, each of it once, sorted by name."""
    parts: list[dict[str, Result]] = [own]
    if fabric.world_size > 1:
        parts = [{} for _ in range(fabric.world_size)]
        torch.distributed.all_gather_object(parts, own)
    together = {name: value for part in parts for name, value in part.items()}
    return dict(sorted(together.items()))
