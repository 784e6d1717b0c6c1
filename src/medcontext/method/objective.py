"""The method: three passes over every batch, and the loss that joins them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from medcontext.errors import MedContextError, require
from medcontext.losses.dice_ce import by_halves, dice_ce, dice_ce_squared, nearest, over_heads
from medcontext.losses.regions import dice_bce
from medcontext.method import diagnostics
from medcontext.method.batches import (
    Outputs,
    compared_heads,
    finest_of,
    heads_of,
    labelled_places,
    own_part,
    require_fitting,
    rows_of,
)
from medcontext.method.consistency import consistency
from medcontext.method.hiding import Student
from medcontext.method.masking import draw_mask, mask_grid, mask_to_voxels, volume_size
from medcontext.method.presets import MethodConfig, SupervisedLoss, preset
from medcontext.method.schedules import consistency_weight, mask_probability, teacher_momentum
from medcontext.method.teacher import Teacher

Loss = Callable[[Tensor, Tensor], Tensor]

LOSSES: dict[SupervisedLoss, Callable[..., Tensor]] = {"dice_ce": dice_ce, "dice_ce_squared": dice_ce_squared}


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
        network: Any module from ``(B, C, D, H, W)`` to logits ``(B, K, D, H, W)``, or to a list of them, finest first,
            on the device it trains on.
        config: A preset's name or a :class:`MethodConfig`.
        total_steps: Number of optimiser steps of the whole training, for the schedules.
        steps_per_epoch: Optimiser steps in which every case is seen once; what is done per epoch needs it.
        channels: C, for a learned value of hidden voxels.
        patch_embedding: Module path of the network's patch embedding, for hiding tokens.
        positioned_embedding: Module path at which positions have been added to the tokens, where that is another.
        generator: Source of the masks, on the CPU. Seed it for a run that can be repeated.
        share: Which part of the batch this process has, and of how many. Masks and noise are drawn for the whole batch
            and its own taken, so that they are those of one process that has it all (from generators of one seed).
        loss: Supervised loss of ``(logits, label)``; None: the one that ``config`` names, or Dice + binary
            cross-entropy for regions.
        membership: ``(R, classes)`` boolean, for a network whose outputs are regions that may contain one another (R
            sigmoids): which class index of the label belongs to which. None: the outputs are the classes (a softmax).
        ignoring: Whether labels hold negative class indices: voxels that nobody labelled and no supervised term counts.

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
        steps_per_epoch: int = 1,
        channels: int = 1,
        patch_embedding: str | None = None,
        positioned_embedding: str | None = None,
        generator: torch.Generator | None = None,
        share: tuple[int, int] = (0, 1),
        loss: Loss | None = None,
        membership: Tensor | None = None,
        ignoring: bool = False,
    ) -> None:
        require(total_steps >= 1, "total_steps", total_steps, "1 or more")
        self.config = config = preset(config) if isinstance(config, str) else config
        self.teacher = None
        if config.active:
            self.teacher = Teacher(network, train_mode=config.teacher_train_mode, bf16=config.teacher_bf16)
        self.student: nn.Module = Student(network, config, channels, patch_embedding, positioned_embedding)
        self.step = 0
        self._network = network
        self._own = self.student
        self._total_steps = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._generator = generator or torch.Generator().manual_seed(0)
        self._part, self._parts = share
        self._membership = membership
        of_classes = partial(LOSSES[config.loss], ignoring=ignoring)
        self._loss = loss or (of_classes if membership is None else partial(dice_bce, membership=membership))

    @property
    def network(self) -> nn.Module:
        """The network that is trained, as it was given."""
        return self._network

    @property
    def bare_student(self) -> nn.Module:
        """The student without what it may have been wrapped in."""
        return self._own

    @property
    def momentum(self) -> float:
        """Momentum of the teacher's next update."""
        return teacher_momentum(self.config, self.step, self._total_steps, self._steps_per_epoch)

    def __call__(
        self,
        image: Tensor,
        label: Tensor | None,
        *,
        labelled: Sequence[bool] | None = None,
        backward: Callable[..., Any] | None = None,
        diagnose: bool = False,
        gradients: bool = False,
        scale: float = 1.0,
    ) -> dict[str, Tensor]:
        """The three passes.

        Args:
            image: ``(B, C, D, H, W)``.
            label: ``(B, D, H, W)`` class indices, int64; None where no sample has a label.
            labelled: Which samples have a label; None: all. The others take part through the consistency term alone,
                and are spared the clean pass. In a batch that is shared they come last in every process's part.
            backward: Called with each part of the loss as soon as it is known (``torch.Tensor.backward``, or Fabric's),
                so that the graph of the clean pass is freed before the masked pass begins: the same gradients in less
                memory. Without it, call ``["total"].backward()`` yourself.
            diagnose: Add the diagnostics of the outputs, which cost little.
            gradients: Add every term's share of the gradient, where there are several terms: each is back-propagated
                once more for it.
            scale: What ``backward`` multiplies the loss by, for fp16: at it every term's gradient is looked at as well,
                since fp16 holds no small ones.

        Returns:
            Named scalars: the unweighted terms ``clean``, ``masked`` and ``consistency``, their weighted sum ``total``
            (only terms that there are: supervised training has no ``consistency``, a batch without labels has nothing
            else), and the diagnostics when asked for.
        """
        require_fitting(image, label)
        known = [] if label is None else labelled_places(image, labelled, shared=self._parts > 1)
        truth = rows_of(label, known) if label is not None and known else None
        ramped = consistency_weight(self.config, self.step, self._total_steps)
        weights = {"clean": self.config.clean_weight, "masked": self.config.masked_weight, "consistency": ramped}
        sees, hides, compares = self._passes(truth is not None)
        rebuilds = hides and truth is not None and self.config.masked_weight > 0
        shares = gradients and sees + rebuilds + compares > 1
        losses: dict[str, Tensor] = {}
        norms: dict[str, Tensor] = {}

        def learn_from(terms: dict[str, Tensor]) -> None:
            """Take in terms of one graph; back-propagate them if that is to be done here."""
            losses.update(terms)
            weighted = {name: weights[name] * term for name, term in terms.items()}
            if shares:
                norms.update(diagnostics.gradient_norms(weighted, list(self.student.parameters()), scale))
            if backward is not None:
                backward(torch.stack(list(weighted.values())).sum())

        seen = truth if sees else None
        target = self.teacher(image) if self.teacher is not None and compares else None
        mask = self.draw_mask(image, known) if hides else None
        noise = self._draw_noise(image, len(known)) if hides else None
        clean: Outputs | None = None
        masked: Outputs | None = None
        if seen is not None and mask is not None and self.config.passes == "together":
            clean, masked = self._as_one_batch(image, mask, noise, known)
            terms = {"clean": over_heads(self._loss, clean, seen)}
            learn_from(terms | self._masked(masked, target, truth, known, mask))
        else:
            if seen is not None:
                with self._without_synchronisation(backward if hides else None):
                    clean = self.student(rows_of(image, known))
                    learn_from({"clean": over_heads(self._loss, clean, seen)})
            if mask is not None:
                masked = self.student(image, mask, noise)
                learn_from(self._masked(masked, target, truth, known, mask))
        losses["total"] = torch.stack([weights[name] * term for name, term in losses.items()]).sum()
        if diagnose and self.teacher is not None:
            losses |= self._observe(clean, masked, target, truth, known, mask)
        losses |= diagnostics.shares(norms)
        return losses if backward is None else {name: loss.detach() for name, loss in losses.items()}

    def _passes(self, labelled: bool) -> tuple[bool, bool, bool]:
        """Which passes a batch takes: clean, masked, and the teacher's. A term of weight 0 costs nothing."""
        config, hides = self.config, self.teacher is not None
        compares = hides and config.consistency_weight > 0
        if not labelled and not compares:
            raise MedContextError(
                "Nothing can be learned from a batch without labels here.",
                expected="a preset with a teacher, and a consistency weight above 0",
            )
        sees = labelled and (config.clean_weight > 0 or not hides)
        return sees, compares or (hides and config.masked_weight > 0), compares

    def _masked(
        self, masked: Outputs, target: Outputs | None, truth: Tensor | None, known: list[int], mask: Tensor
    ) -> dict[str, Tensor]:
        """Terms of the masked pass: the whole of the label, the hidden part included, and the teacher's opinion."""
        terms = {}
        if truth is not None and self.config.masked_weight > 0:
            outputs = [rows_of(head, known) for head in heads_of(masked)]
            terms["masked"] = over_heads(self._loss, outputs[0] if isinstance(masked, Tensor) else outputs, truth)
        if target is None:
            return terms
        hidden = mask_to_voxels(mask, self.config.hidden_patch, volume_size(finest_of(masked)))
        compared = compared_heads(masked, target, deep=self.config.deep_consistency)
        regions = self._membership is not None
        each = [consistency(self.config, z_m, z_t, nearest(hidden, z_m.shape[2:]), regions) for z_m, z_t in compared]
        term = by_halves(each)
        if not terms:
            # Heads that no term looks at get a gradient of zero: DDP waits for one of every parameter.
            term = term + sum(0 * z_m.flatten()[0] for z_m in heads_of(masked)[len(compared) :])
        return terms | {"consistency": term}

    def _as_one_batch(
        self, image: Tensor, mask: Tensor, noise: Tensor | None, known: list[int]
    ) -> tuple[Outputs, Outputs]:
        """Clean and masked pass as one batch: the same but for normalisation over the batch."""
        nothing = torch.zeros_like(rows_of(mask, known))
        both = None if noise is None else torch.cat([rows_of(noise, known), noise])
        outputs = self.student(torch.cat([rows_of(image, known), image]), torch.cat([nothing, mask]), both)
        parts = [torch.split(head, [len(known), len(image)]) for head in heads_of(outputs)]
        if isinstance(outputs, Tensor):
            clean, masked = parts[0]
            return clean, masked
        return [clean for clean, _ in parts], [masked for _, masked in parts]

    def _without_synchronisation(self, backward: Callable[..., Any] | None) -> AbstractContextManager[None]:
        """Under DDP the gradients are synchronised once, with the last backward pass of a step."""
        no_sync = getattr(self.student, "no_sync", None)
        synchronises = backward is not None and callable(no_sync)
        return no_sync() if synchronises and no_sync is not None else nullcontext()

    def _draw_noise(self, image: Tensor, known: int | None = None) -> Tensor | None:
        if self.config.fill != "noise":
            return None
        drawn = torch.randn(len(image) * self._parts, *image.shape[1:], generator=self._generator)
        return own_part(drawn, image, known, self._part, self._parts)

    def draw_mask(self, image: Tensor, known: Sequence[int] | None = None) -> Tensor:
        """The next mask ``(B, *grid)`` for a batch like ``image``, on its device.

        Args:
            image: The batch, or this process's part of it.
            known: Places in it of the samples that have a label, in a shared batch the first ones; None: all have.
        """
        known = range(len(image)) if known is None else known
        places = torch.tensor(known if self._parts == 1 else range(len(known) * self._parts), dtype=torch.long)
        grid = mask_grid(volume_size(image), self.config.hidden_patch)
        drawn = draw_mask(self.config, len(image) * self._parts, grid, self._generator)
        chance = mask_probability(self.config, self.step, self._total_steps)
        if chance < 1:
            seen = torch.rand(len(places), generator=self._generator) >= chance
            drawn = drawn.clone()
            drawn[places[seen]] = False
        return own_part(drawn, image, len(known), self._part, self._parts)

    def after_step(self) -> None:
        """To be called after every optimiser step: moves the teacher after the student."""
        last_of_epoch = (self.step + 1) % self._steps_per_epoch == 0
        if self.teacher is not None and (self.config.teacher_update == "step" or last_of_epoch):
            self.teacher.update(self._network, self.momentum, self.config.buffers)
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
    def _observe(
        self,
        clean: Outputs | None,
        masked: Outputs | None,
        target: Outputs | None,
        truth: Tensor | None,
        known: list[int],
        mask: Tensor | None,
    ) -> dict[str, Tensor]:
        """Diagnostics of the passes that there were, on the samples that have a label; of the teacher alone where none
        has."""
        sighted, blind, teacher = (None if each is None else finest_of(each) for each in (clean, masked, target))
        if truth is not None:
            blind, teacher = (None if each is None else rows_of(each, known) for each in (blind, teacher))
        hidden = None
        if blind is not None and mask is not None and truth is not None:
            hidden = mask_to_voxels(rows_of(mask, known), self.config.hidden_patch, volume_size(blind))[:, 0]
        seen = diagnostics.observed(sighted, blind, teacher, truth, hidden, self._membership)
        return {"momentum": torch.tensor(self.momentum), **seen}
