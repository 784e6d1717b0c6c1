"""Sharding (FSDP): every process keeps its part of all that is learned, and has a network whole only while it runs.

PyTorch's ``fully_shard`` makes ``DTensor`` of the parameters and leaves their names as they are. What works element by
element, as optimiser and moving average do, works on the parts. A network is gathered as one: to do so block by block
would need modules that are only ever called as modules and never written into, which nobody promises of a network.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map


def shard(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Leave this process its part of the module's parameters, in place.

    They are let go after a pass; where there is something to learn, after its backward pass.
    """
    fully_shard(module, mesh=mesh["data_parallel"], reshard_after_forward=not _learns(module))
    return module


def _learns(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


@contextmanager
def gathered(*modules: nn.Module) -> Iterator[None]:
    """While open, every process has the modules whole and can run them without the others.

    To be opened by all processes at once. Modules that are not sharded are left as they are.
    """
    sharded = [module for module in modules if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_forward(False)
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()
            module.set_reshard_after_forward(not _learns(module))


def total(tensor: Tensor) -> Tensor:
    """The tensor whole, put together from what all processes have of it; they have to ask at once."""
    if not isinstance(tensor, DTensor):
        return tensor
    put_together: Tensor = tensor.full_tensor()
    return put_together


def whole(state: Any, keep: bool) -> Any:
    """A state with whole tensors on the CPU in place of parts; all processes have to ask at once.

    Args:
        state: Tensors and plain values, in lists and dictionaries.
        keep: Whether this is the first process, which wants it; what the others get takes no memory.
    """
    made: dict[tuple[int, torch.Size], Tensor] = {}

    def gather(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        tensor = total(value)
        if not keep:
            return None
        # A network may list a module under two names; its tensors are written once. (The first process's part of one
        # is never empty, so its place in memory tells it from others.)
        return made.setdefault((value.to_local().data_ptr(), value.shape), tensor.cpu())

    return tree_map(gather, state)


def part_like(value: Any, like: Any) -> Any:
    """This process's part of a whole tensor that all have, where ``like`` is shared in parts."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
