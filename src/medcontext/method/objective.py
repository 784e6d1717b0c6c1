"""The method: three passes over every batch, and the loss that joins them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from medcontext.errors import MedContextError
from medcontext.losses.dice_ce import dice_ce
from medcontext.method import diagnostics
from medcontext.method.consistency import consistency
from medcontext.method.hiding import Student
from medcontext.method.masking import draw_mask, mask_grid, mask_to_voxels, volume_size
from medcontext.method.presets import PRESETS, MethodConfig
from medcontext.method.schedules import teacher_momentum
from medcontext.method.teacher import Teacher

Loss = Callable[[Tensor, Tensor], Tensor]


class MedContext:
    """Adds the method to a training loop::

        method = MedContext(network, total_steps=len(batches))
        optimizer = torch.optim.AdamW(method.student.parameters())
        for image, label in batches:
            method(image, label)["total"].backward()
            optimizer.step()
            optimizer.zero_grad()
            method.after_step()

    Args:
        network: Any module from ``(B, C, D, H, W)`` to logits ``(B, K, D, H, W)``, on the device it trains on.
        config: A preset's name or a :class:`MethodConfig`.
        total_steps: Number of optimiser steps of the whole training, for the teacher's schedule.
        channels: C, for a learned value of hidden voxels.
        patch_embedding: Module path of the network's patch embedding, for hiding tokens.
        generator: Source of the masks, on the CPU. Seed it for a run that can be repeated.
        loss: Supervised loss of ``(logits, label)``.

    Attributes:
        student: The network and what the method learns beside it. It may be replaced by a wrapped form of itself
            (DDP, Fabric, ``torch.compile``).
        teacher: The moving average; None for supervised training.
        step: Optimiser steps taken.
    """

    def __init__(
        self,
        network: nn.Module,
        config: MethodConfig | str = "medcontext",
        *,
        total_steps: int,
        channels: int = 1,
        patch_embedding: str | None = None,
        generator: torch.Generator | None = None,
        loss: Loss = dice_ce,
    ) -> None:
        self.config = preset(config) if isinstance(config, str) else config
        self.student: nn.Module = Student(network, self.config, channels, patch_embedding)
        self.teacher = Teacher(network) if self.config.active else None
        self.step = 0
        self._network = network
        self._own = self.student
        self._total_steps = total_steps
        self._generator = generator or torch.Generator().manual_seed(0)
        self._loss = loss

    @property
    def network(self) -> nn.Module:
        """The network that is trained, as it was given."""
        return self._network

    @property
    def momentum(self) -> float:
        """Momentum of the teacher's next update."""
        return teacher_momentum(self.config, self.step, self._total_steps)

    def __call__(
        self, image: Tensor, label: Tensor, *, backward: Callable[..., Any] | None = None, diagnose: bool = False
    ) -> dict[str, Tensor]:
        """The three passes.

        Args:
            image: ``(B, C, D, H, W)``.
            label: ``(B, D, H, W)`` class indices, int64.
            backward: Called with each part of the loss as soon as it is known (``torch.Tensor.backward``, or Fabric's),
                so that the graph of the clean pass is freed before the masked pass begins: the same gradients in less
                memory. Without it, call ``["total"].backward()`` yourself.
            diagnose: Add the diagnostics; with ``backward`` also each term's share of the gradient, for which the
                masked pass is back-propagated once per term.

        Returns:
            Named scalars: the unweighted terms ``clean``, ``masked`` and ``consistency``, their weighted sum ``total``
            (supervised training has ``clean`` and ``total`` only), and the diagnostics when asked for.
        """
        clean = self.student(image)
        losses = {"clean": self._loss(clean, label)}
        norms = self._backward({"clean": losses["clean"]}, backward, diagnose)
        if self.teacher is None:
            losses["total"] = losses["clean"]
            return losses if backward is None else {name: loss.detach() for name, loss in losses.items()}

        target = self.teacher(image)
        mask = self.draw_mask(image)
        masked = self.student(image, mask)
        losses["masked"] = self._loss(masked, label)
        losses["consistency"] = consistency(self.config.consistency, masked, target)
        weighted = {
            "masked": self.config.masked_weight * losses["masked"],
            "consistency": self.config.consistency_weight * losses["consistency"],
        }
        norms |= self._backward(weighted, backward, diagnose)
        losses["total"] = losses["clean"] + weighted["masked"] + weighted["consistency"]
        if diagnose:
            losses |= diagnostics.shares(norms) | self._observe(clean, masked, target, label, mask)
        return losses if backward is None else {name: loss.detach() for name, loss in losses.items()}

    def _backward(
        self, terms: dict[str, Tensor], backward: Callable[..., Any] | None, diagnose: bool
    ) -> dict[str, Tensor]:
        """Back-propagate terms of one graph, if that is to be done here; their gradients' norms, if wanted."""
        if backward is None:
            return {}
        if diagnose and self.teacher is not None:
            parameters = [p for p in self.student.parameters() if p.requires_grad]
            return diagnostics.backward_norms(terms, parameters, backward)
        backward(torch.stack(list(terms.values())).sum())
        return {}

    def draw_mask(self, image: Tensor) -> Tensor:
        """The next mask ``(B, *grid)`` for a batch like ``image``, on its device."""
        grid = mask_grid(volume_size(image), self.config.mask_patch)
        return draw_mask(self.config, image.shape[0], grid, self._generator).to(image.device, non_blocking=True)

    def after_step(self) -> None:
        """To be called after every optimiser step: moves the teacher after the student."""
        if self.teacher is not None:
            self.teacher.update(self._network, self.momentum)
        self.step += 1

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed training needs to go on exactly as if it had not been interrupted."""
        return {
            "student": self._own.state_dict(),
            "teacher": None if self.teacher is None else self.teacher.state_dict(),
            "step": self.step,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state that :meth:`state_dict` gave."""
        self._own.load_state_dict(state["student"])
        if self.teacher is not None:
            self.teacher.load_state_dict(state["teacher"])
        self.step = state["step"]
        self._generator.set_state(state["generator"].cpu())

    @torch.no_grad()
    def _observe(self, clean: Tensor, masked: Tensor, target: Tensor, label: Tensor, mask: Tensor) -> dict[str, Tensor]:
        hidden = mask_to_voxels(mask, self.config.mask_patch, volume_size(clean))[:, 0]
        return {
            "momentum": torch.tensor(self.momentum),
            "batch_dice/student": diagnostics.hard_dice(clean, label).nanmean(),
            "batch_dice/teacher": diagnostics.hard_dice(target, label).nanmean(),
            **diagnostics.context(clean, masked, label, hidden),
            **diagnostics.teacher_state(target),
        }


def preset(name: str) -> MethodConfig:
    """The preset of that name.

    Raises:
        MedContextError: There is none.
    """
    if name not in PRESETS:
        raise MedContextError("There is no such preset.", found=name, expected=" or ".join(PRESETS))
    return PRESETS[name]
