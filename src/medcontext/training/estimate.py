"""What a training will take, before it begins: its memory is counted without taking any, its time is measured."""

from __future__ import annotations

import copy
import statistics
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeCopyMode,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medcontext.data.plan import Plan
from medcontext.memory import GIB, free_memory, ran_out
from medcontext.method.objective import MedContext
from medcontext.networks.registry import network_spec
from medcontext.progress import clock
from medcontext.training.config import TrainConfig
from medcontext.training.device import autocast
from medcontext.training.schedule import make_optimizer
from medcontext.training.validate import membership

ENOUGH_SECONDS = 2.0
"""Steps are timed until so much time has passed, after one to warm up."""

LONG_SECONDS = 10.0
"""A first step that takes so long is the measurement."""

UNCOUNTABLE = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
"""What PyTorch raises where a network, such as one from outside, looks at the numbers in its tensors."""


@dataclass(frozen=True)
class Estimate:
    """What a training will take.

    Attributes:
        memory_gib: The most that a step holds at once: weights, teacher, gradients, optimiser, activations. Scratch
            memory of libraries comes on top, a few hundred MiB. None: the network can't be counted.
        available_gib: Free on the device.
        seconds_per_step: Measured on the device; None: a step does not fit into its memory.
        total_seconds: Of all steps; reading patches, validation and diagnostics come on top.
    """

    memory_gib: float | None
    available_gib: float
    seconds_per_step: float | None
    total_seconds: float | None

    @property
    def fits(self) -> bool:
        """Whether the device has the memory."""
        return self.seconds_per_step is not None

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    def __str__(self) -> str:
        memory = "memory not known" if self.memory_gib is None else f"{self.memory_gib:.2g} GiB of memory"
        text = f"{memory}, with {self.available_gib:.2g} GiB free"
        if self.seconds_per_step is None or self.total_seconds is None:
            return f"{text}: too little. Take a smaller patch, fewer patches per step, or a smaller network"
        return (
            f"{text}; {self.seconds_per_step:.2g} s per step, {clock(self.total_seconds)} in all, reading and "
            "validation not counted"
        )


def estimate(network: nn.Module, config: TrainConfig, plan: Plan, device: str) -> Estimate:
    """Count the memory of a training step; if the device has it, measure the time of one there.

    Args:
        network: As it will be trained, on the CPU; it is left as it is.
        config: Settings, none of them left open.
        plan: Of the data.
        device: Name of the device.
    """
    memory, available = step_memory(network, config, plan), free_memory(device)
    seconds = None
    if memory is None or memory <= available:
        seconds = step_seconds(network, config, plan, device)
    return Estimate(
        memory_gib=None if memory is None else memory / GIB,
        available_gib=available / GIB,
        seconds_per_step=seconds,
        total_seconds=None if seconds is None else seconds * plan.steps,
    )


def step_memory(network: nn.Module, config: TrainConfig, plan: Plan) -> int | None:
    """Most bytes that tensors hold at once in a training step; None where the network can't be run on fake ones.

    The step is taken on tensors without numbers (FakeTensorMode of PyTorch's documentation), which takes none of the
    memory that it counts. It is counted as on a CPU: other devices keep the same tensors, but for what their autocast
    leaves in single precision.
    """
    fake, held = FakeTensorMode(allow_non_fake_inputs=True), _Held()
    try:
        with fake, held, nullcontext() if config.device == "cpu" else _SingleNorms():
            with FakeCopyMode(fake):
                step = _training_step(copy.deepcopy(network), config, plan, "cpu")
            step()
    except UNCOUNTABLE:
        return None
    return held.most


def sharded_memory(needed: int, network: nn.Module, config: TrainConfig, processes: int) -> int:
    """What is left of a step's memory for each of several processes that share the network.

    Teacher and AdamW's two moments are kept in parts. Weights and gradients are whole at the peak, and in parts beside:
    the weights, the gradients of the clean pass, where there is one, and those of the masked pass as they arrive.
    """
    weights = sum(p.nbytes for p in network.parameters())
    copies = 3 if config.method_config().active else 2
    return needed - copies * weights + (copies + 3) * weights // processes


def step_seconds(network: nn.Module, config: TrainConfig, plan: Plan, device: str) -> float | None:
    """Seconds of a training step on the device, the median of a few; None where its memory did not suffice."""
    devices = [device] if device.startswith("cuda") else []
    times: list[float] = []
    with torch.random.fork_rng(devices=devices):
        try:
            step = _training_step(copy.deepcopy(network).to(device), config, plan, device)
            first = _timed(step, device)
            if first > LONG_SECONDS:
                return first
            while sum(times) < ENOUGH_SECONDS:
                times.append(_timed(step, device))
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            return None
    return statistics.median(times)


def gpu_memory_gib(device: str) -> float | None:
    """All memory of a GPU, for the plan; None for a CPU."""
    if device.startswith("cuda"):
        return float(torch.cuda.get_device_properties(device).total_memory / GIB)
    return torch.mps.recommended_max_memory() / GIB if device == "mps" else None


class _SingleNorms(TorchFunctionMode):
    """Normalisation over groups and layers in single precision, as under the autocast of GPUs, and not of CPUs
    (``AT_FORALL_FP32`` of PyTorch's ``autocast_mode.h``)."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (F.group_norm, F.layer_norm):
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))


def _training_step(network: nn.Module, config: TrainConfig, plan: Plan, device: str) -> Callable[[], None]:
    """One step as the loop takes it, again and again, on a batch of noise."""
    spec = network_spec(config.network)
    method = MedContext(
        network,
        config.method_config(),
        total_steps=plan.steps,
        channels=plan.channels,
        patch_embedding=spec.patch_embedding,
        positioned_embedding=spec.positioned_embedding,
        membership=membership(plan, device),
    )
    if device != "cpu":
        # Weights without numbers can't be moved, and stay where they are.
        method.student.to(device)
    method.student.train()
    optimizer = make_optimizer(method.student, config.optimizer, config.weight_decay)
    # The optimiser's states are there from its first step on; the teacher's weights count from their first use.
    for parameter in method.student.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    optimizer.zero_grad()
    method.after_step()
    generator = torch.Generator().manual_seed(0)
    patches = plan.batch_size + config.compared_batch
    labelled = [place < plan.batch_size for place in range(patches)]
    image = torch.randn(patches, plan.channels, *plan.patch, generator=generator).to(device)
    label = torch.randint(plan.labels.classes, (patches, *plan.patch), generator=generator).to(device)

    def step() -> None:
        with autocast(config.precision, device.partition(":")[0]):
            method(image, label, labelled=labelled, backward=torch.Tensor.backward)
        torch.nn.utils.clip_grad_norm_(method.student.parameters(), config.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        method.after_step()

    return step


def _timed(step: Callable[[], None], device: str) -> float:
    began = time.perf_counter()
    step()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - began


class _Held(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operations make, for as long as anything keeps them.

    Attributes:
        most: The largest sum so far, in bytes.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._now = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, out)):
            if isinstance(leaf, torch.Tensor):
                self._take(leaf.untyped_storage())
        return out

    def _take(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self._now += storage.nbytes()
            self.most = max(self.most, self._now)
            weakref.finalize(storage, self._leave, key)

    def _leave(self, key: int) -> None:
        self._now -= self._sizes.pop(key)
