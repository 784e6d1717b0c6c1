"""What every network costs and can do, side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
        multiply_adds: Of one forward pass of one patch, in convolutions and matrix products.
        normalising: Operations of its normalisation layers.
    """

    parameters: int
    multiply_adds: int
    normalising: int

    @property
    def flops(self) -> int:
        """As fvcore counts, and the tables of this field with it: a multiply-add is one, and normalisation counts.

        (A number that a layer normalises is five operations, four without learned scale and shift; batch normalisation
        by known statistics is two, or one. Activations, sums and interpolation are nothing.)
        """
        return self.multiply_adds + self.normalising


def measure(spec: NetworkSpec, published: Published) -> Cost:
    """Build a network without weights, run it without numbers, and count; takes no memory and little time."""
    counter = FlopCounterMode(display=False, custom_mapping=_NORMALISING)
    with torch.device("meta"), _SchedulesInNumbers():
        network = spec.build(published.channels, published.classes, published.patch, published.settings).eval()
        with torch.no_grad(), counter:
            network(torch.empty(1, published.channels, *published.patch))
    counts = counter.get_flop_counts()["Global"]
    normalising = sum(count for operation, count in counts.items() if operation in _NORMALISING)
    products = counter.get_total_flops() - normalising
    return Cost(sum(p.numel() for p in network.parameters()), products // 2, normalising)


def _normalised(values: Sequence[int], *settings: Any, out_shape: Any) -> int:
    """Operations of layer, group, or (which runs as batch normalisation) instance normalisation."""
    affine = any(isinstance(setting, torch.Size) for setting in settings)
    return math.prod(values) * (5 if affine else 4)


def _normalised_by_known(values: Sequence[int], scale: Any, *settings: Any, out_shape: Any) -> int:
    """Operations of batch normalisation in eval mode."""
    return math.prod(values) * (1 if scale is None else 2)


_NORMALISING: dict[Any, Callable[..., int]] = {
    torch.ops.aten.native_layer_norm: _normalised,
    torch.ops.aten.native_group_norm: _normalised,
    torch.ops.aten._native_batch_norm_legit: _normalised,
    torch.ops.aten._native_batch_norm_legit_no_training: _normalised_by_known,
}


def catalogue() -> list[dict[str, Any]]:
    """One row per network: its cost in the setting that was published for Synapse, and what it can do.

    ``parameters`` and ``gflops`` (:attr:`Cost.flops`) are counted here, ``published_parameters`` is what ``source``
    says.
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
                "gflops": round(cost.flops / 1e9, 1),
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
