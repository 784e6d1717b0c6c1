"""``torch.compile`` where it works, and the network as it is where it does not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor, nn


def compiled(
    student: nn.Module,
    image: Tensor,
    mask: Tensor,
    noise: Tensor | None,
    autocast: Any,
    say: Callable[[str], None],
) -> nn.Module:
    """The student compiled, if a copy of it can be, and can be back-propagated through, with and without a mask.

    Args:
        student: On its device.
        image: A batch that it takes.
        mask: As :meth:`MedContext.draw_mask` gives it.
        noise: Like the image, where hidden voxels are filled with noise.
        autocast: The precision.
        say: Told why it is not compiled.
    """
    # Each term's own gradient is looked at where it is logged, which keeps the graph; PyTorch asks for this then.
    torch._functorch.config.donated_buffer = False
    trial = _compile(copy.deepcopy(student).train())
    try:
        for arguments in ((image,), (image, mask, noise)):
            with autocast:
                outputs = trial(*arguments)
            heads = [outputs] if isinstance(outputs, Tensor) else outputs
            torch.autograd.backward(torch.stack([head.float().mean() for head in heads]).sum())
    except Exception as error:
        # Whatever a compiler stumbles over, training does not need it.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        say(f"this network is not compiled here, and trained as it is: {reason}")
        return student
    return _compile(student)


def _compile(module: nn.Module) -> nn.Module:
    network: nn.Module = torch.compile(module)  # type: ignore[assignment]
    return network
