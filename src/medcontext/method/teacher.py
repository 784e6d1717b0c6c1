"""The teacher: a moving average of the student that sees the whole volume and gives the masked pass its soft target.

Mean Teacher (Tarvainen and Valpola, arXiv 1703.01780), applied to dense prediction.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from medcontext.method.presets import Buffers


class Teacher:
    """A frozen copy of a network whose weights follow the network's as a moving average.

    It is no ``nn.Module`` on purpose: no parent module can put it in train mode, hand its weights to an optimiser,
    or synchronise them between processes.

    Args:
        network: The student's network, which is copied.
        train_mode: Run it in train mode all the same, which only the reproduction of the released code does.
        bf16: Run it in bfloat16.
    """

    def __init__(self, network: nn.Module, *, train_mode: bool = False, bf16: bool = False) -> None:
        self._network = copy.deepcopy(network).requires_grad_(False)
        self._train_mode = train_mode
        self._bf16 = bf16

    @property
    def network(self) -> nn.Module:
        """The averaged network, in eval mode."""
        return self._network.eval()

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Any:
        """The network's outputs for ``image`` ``(B, C, D, H, W)``, without gradient."""
        self._network.train(self._train_mode)
        if not self._bf16:
            return self._network(image)
        with torch.autocast(image.device.type, torch.bfloat16):
            return self._network(image)

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float, buffers: Buffers = "average") -> None:
        """``teacher <- momentum * teacher + (1 - momentum) * student``, in the precision of the weights.

        Floating-point buffers are averaged as well, copied, or kept; other buffers (counters) are copied unless kept.
        """
        mine: list[Tensor] = []
        theirs: list[Tensor] = []
        for own, other in zip(self._network.buffers(), student.buffers(), strict=True):
            if buffers == "average" and own.is_floating_point():
                mine.append(own)
                theirs.append(other)
            elif buffers != "keep":
                own.copy_(other)
        # Apart, since parameters may be shared in parts between processes (DTensor), and buffers are not.
        torch._foreach_lerp_([*self._network.parameters()], [*student.parameters()], 1 - momentum)
        if mine:
            torch._foreach_lerp_(mine, theirs, 1 - momentum)

    def state_dict(self) -> dict[str, Any]:
        """Weights of the averaged network."""
        return self._network.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take weights that :meth:`state_dict` gave."""
        self._network.load_state_dict(state)
