"""What there is to know of a network before it is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from medcontext.errors import MedContextError

Size = tuple[int, int, int]
Spacing = tuple[float, float, float]
Scale = Literal["tiny", "small", "full"]
Settings = dict[str, Any]
Export = Literal["torch.export", "torch.jit.trace"]


@dataclass(frozen=True)
class Published:
    """A setting that a network was published in.

    Attributes:
        channels: Image channels.
        classes: Outputs, background included.
        patch: (D, H, W) in voxels.
        settings: What ``build`` takes.
        parameters: Their number in the publication or its released code, without a mask token.
        source: Where that number is from.
    """

    channels: int
    classes: int
    patch: Size
    settings: Settings
    parameters: int
    source: str


@dataclass(frozen=True)
class NetworkSpec:
    """A network by name.

    Attributes:
        settings: ``(patch, spacing, scale)`` to the settings that ``build`` takes, as plain values: ``tiny`` for tests,
            ``small`` for a CPU, ``full`` as published.
        build: ``(channels, classes, patch, settings)`` to the network, which maps ``(B, C, D, H, W)`` to logits
            ``(B, K, D, H, W)``, or to a list of them, finest first, where settings ask for deep supervision.
        learning_rate: Largest of the schedule, for AdamW.
        published: By data set, as in the network's publication; every network has ``synapse``.
        patch_multiple: The planner makes every axis of a patch a multiple of this; None: any patch it makes will do.
        patch_embedding: Module path at which its tokens can be hidden; None where it has no tokens.
        positioned_embedding: Module path at which their position has been added to the tokens, where it is another.
        deep_supervision: Whether the setting ``deep_supervision`` is known to it.
        export: How it can be exported, with the same logits; None: not known to be.
        compile: Whether it is known to give the same logits under ``torch.compile``, which may take it in parts.
    """

    settings: Callable[[Size, Spacing, Scale], Settings]
    build: Callable[[int, int, Size, Settings], nn.Module]
    learning_rate: float
    published: Mapping[str, Published] = field(default_factory=dict)
    patch_multiple: int | None = None
    patch_embedding: str | None = None
    positioned_embedding: str | None = None
    deep_supervision: bool = False
    export: Export | None = None
    compile: bool = False


def require_multiples(name: str, patch: Size, multiples: Size) -> None:
    """Refuse a patch whose axes are not multiples of these, naming the nearest that would do.

    Raises:
        MedContextError: It is one.
    """
    if any(size % multiple for size, multiple in zip(patch, multiples, strict=True)):
        nearest = [max(m, round(size / m) * m) for size, m in zip(patch, multiples, strict=True)]
        raise MedContextError(
            f"The network '{name}' can't take this patch.",
            found=f"patch {list(patch)}",
            expected=f"multiples of {list(multiples)}",
            remedy=f"set the patch to {nearest}",
        )


def require_deep_voxels(name: str, patch: Size, stride: Size) -> None:
    """Refuse a patch of which a network's whole stride leaves one voxel, which can't be normalised over its volume.

    Raises:
        MedContextError: It is one.
    """
    if patch == stride:
        d, h, w = patch
        raise MedContextError(
            f"The network '{name}' would be left with one voxel of this patch, and can't normalise that.",
            found=f"patch {list(patch)}",
            expected=f"more than {list(stride)}",
            remedy=f"set the patch to {[d, h, 2 * w]}, or choose a network of less depth",
        )
