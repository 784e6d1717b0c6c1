"""What a batch and a network's outputs are made of: samples with and without a label, one head or several."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medcontext.errors import MedContextError

Outputs = Tensor | Sequence[Tensor]
"""Logits ``(B, K, D, H, W)``; of a deeply supervised network, one per head, finest first."""


def require_fitting(image: Tensor, label: Tensor | None) -> None:
    """Refuse a batch of another form.

    Raises:
        MedContextError: ``image`` is not ``(B, C, D, H, W)``, or ``label`` not ``(B, D, H, W)`` in int64.
    """
    fits = label is None or (label.shape == (len(image), *image.shape[2:]) and label.dtype == torch.int64)
    if image.ndim != 5 or not fits:
        raise MedContextError(
            "Image and label are not of the form that the method takes.",
            found=f"image {tuple(image.shape)}, label {label if label is None else (tuple(label.shape), label.dtype)}",
            expected="image (B, C, D, H, W), label (B, D, H, W) of class indices in int64",
        )


def labelled_places(image: Tensor, labelled: Sequence[bool] | None, *, shared: bool) -> list[int]:
    """Places in the batch of the samples that have a label; None: all have.

    Raises:
        MedContextError: The batch is shared by processes, and one without a label comes before one that has one.
    """
    places = [place for place in range(len(image)) if labelled is None or labelled[place]]
    if shared and places != list(range(len(places))):
        raise MedContextError(
            "Processes that share a batch draw its masks together, for samples with a label and without one apart.",
            found=f"labelled = {list(labelled or ())}",
            expected="samples without a label after those that have one",
        )
    return places


def rows_of(values: Tensor, known: list[int]) -> Tensor:
    """The rows of these samples; of the first ones without a copy, which the device would be waited for."""
    return values[: len(known)] if known == list(range(len(known))) else values[known]


def heads_of(outputs: Outputs) -> list[Tensor]:
    """The logits of every head, finest first."""
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def finest_of(outputs: Outputs) -> Tensor:
    """The logits of the finest head."""
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def compared_heads(masked: Outputs, target: Outputs, *, deep: bool) -> list[tuple[Tensor, Tensor]]:
    """The student's and the teacher's logits of each head that is compared: the finest, or all of them.

    Raises:
        MedContextError: All are asked for, and a network gives others in training than in evaluation, as the teacher's.
    """
    if not deep:
        return [(finest_of(masked), finest_of(target))]
    student, teacher = heads_of(masked), heads_of(target)
    if len(student) != len(teacher):
        raise MedContextError(
            "The heads of student and teacher can't be compared.",
            found=f"{len(student)} in training, {len(teacher)} in evaluation",
            expected="as many in both",
            remedy="leave out deep_consistency, or let the network give all its heads in evaluation as well",
        )
    return list(zip(student, teacher, strict=True))


def own_part(drawn: Tensor, image: Tensor, known: int | None, part: int, parts: int) -> Tensor:
    """Of what was drawn, on the CPU, for the batch of all processes: what is of this one's image, on its device.

    Args:
        drawn: For the labelled samples of all processes, which come first, and for the others.
        image: This process's samples.
        known: How many of these are labelled; None: all.
        part: Which process this is.
        parts: Of how many.
    """
    if parts > 1:
        groups = drawn.tensor_split([(len(image) if known is None else known) * parts])
        drawn = torch.cat([group.chunk(parts)[part] for group in groups if len(group)])
    # On CUDA nothing waits for the copy; on MPS one that nothing waits for may read memory that is given back by then
    # (https://github.com/pytorch/pytorch/issues/139550).
    return drawn.to(image.device, non_blocking=image.device.type == "cuda")
