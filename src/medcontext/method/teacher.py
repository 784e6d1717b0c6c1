"""The teacher: a moving average of the student that sees the whole volume and gives the masked pass its soft target.

Mean Teacher (Tarvainen and Valpola, arXiv 1703.01780), applied to dense prediction.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Teacher:
    """A frozen copy of a network whose weights follow the network's as a moving average.

    It is no ``nn.Module`` on purpose: no parent module can put it in train mode, hand its weights to an optimiser,
    or synchronise them between processes.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = copy.deepcopy(network).requires_grad_(False).eval()

    @property
    def network(self) -> nn.Module:
        """The averaged network, in eval mode."""
        return self._network.eval()

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Any:
        """The network's outputs for ``image`` ``(B, C, D, H, W)``, without gradient."""
        return self.network(image)

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float) -> None:
        """``teacher <- momentum * teacher + (1 - momentum) * student``, parameters and floating-point buffers alike.

        Other buffers (such as counters) are copied.
        """
        mine = [*self._network.parameters(), *self._network.buffers()]
        theirs = [*student.parameters(), *student.buffers()]
        averaged = [(m, t) for m, t in zip(mine, theirs, strict=True) if m.is_floating_point()]
        torch._foreach_lerp_([m for m, _ in averaged], [t for _, t in averaged], 1 - momentum)
        for m, t in zip(mine, theirs, strict=True):
            if not m.is_floating_point():
                m.copy_(t)

    def state_dict(self) -> dict[str, Any]:
        """Weights of the averaged network."""
        return self._network.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take weights that :meth:`state_dict` gave."""
        self._network.load_state_dict(state)
