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
    """The rows of these samples; of all samples without a copy."""
    return values if len(known) == len(values) else values[known]


def heads_of(outputs: Outputs) -> list[Tensor]:
    """The logits of every head, finest first."""
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def finest_of(outputs: Outputs) -> Tensor:
    """The logits of the finest head."""
    return outputs if isinstance(outputs, Tensor) else outputs[0]
