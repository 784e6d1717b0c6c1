"""What every network costs and can do, side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from medcontext.networks.registry import NETWORKS
from medcontext.networks.spec import NetworkSpec, Published


@dataclass(frozen=True)
class Cost:
    """Of one network.

    Attributes:
        parameters: Numbers that are learned.
        multiply_adds: Of one forward pass of one patch, in convolutions and matrix products. The tables of this field
            call their number FLOPs; where one multiply-add counts as two, it is twice this.
    """

    parameters: int
    multiply_adds: int


def measure(spec: NetworkSpec, published: Published) -> Cost:
    """Build a network without weights, run it without numbers, and count; takes no memory and little time."""
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), _SchedulesInNumbers():
        network = spec.build(published.channels, published.classes, published.patch, published.settings).eval()
        with torch.no_grad(), counter:
            network(torch.empty(1, published.channels, *published.patch))
    return Cost(sum(p.numel() for p in network.parameters()), counter.get_total_flops() // 2)


def catalogue() -> list[dict[str, Any]]:
    """One row per network: its cost in the setting that was published for Synapse, and what it can do.

    ``parameters`` and ``gflops`` are counted here (``gflops`` with one multiply-add as one, as the tables of this field
    do), ``published_parameters`` is what ``source`` says.
    """
    rows = []
    for name, spec in NETWORKS.items():
        published = spec.published["synapse"]
        cost = measure(spec, published)
        rows.append(
            {
                "name": name,
                "patch": list(published.patch),
                "parameters": cost.parameters,
                "published_parameters": published.parameters,
                "source": published.source,
                "gflops": round(cost.multiply_adds / 1e9, 1),
                "token_hiding": spec.patch_embedding is not None,
                "deep_supervision": spec.deep_supervision,
                "export": spec.export,
                "compile": spec.compile,
            }
        )
    return rows


class _SchedulesInNumbers(TorchFunctionMode):
    """Lets ``torch.linspace`` give numbers under the meta device: MONAI reads rates of stochastic depth from it."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        return func(*args, **(kwargs | {"device": "cpu"} if func is torch.linspace else kwargs))
