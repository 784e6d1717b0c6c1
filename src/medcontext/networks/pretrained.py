"""Weights of another network, such as a published encoder, for a network with other channels, classes or key names.

What happens to every key is told in a table; nothing is left out in silence.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from medcontext.errors import MedContextError

Outcome = Literal["loaded", "adapted", "skipped", "missing", "unexpected"]
FirstLayer = Literal["repeat", "skip"]
Weights = Mapping[str, Tensor]

RENAMED = ((".mlp.fc1.", ".mlp.linear1."), (".mlp.fc2.", ".mlp.linear2."))
"""Names in MONAI's self-supervised Swin UNETR file, and what MONAI calls them today (``SwinUNETR.load_from``)."""

PREFIX_DEPTH = 2
"""Names in a prefix: ``module.swin_vit.`` has two."""


@dataclass(frozen=True)
class KeyReport:
    """What happened to one key.

    Attributes:
        key: The network's name of it; the file's where the network has none.
        outcome: ``loaded``; ``adapted`` to other input channels; ``skipped``, with the file's weights left aside;
            ``missing`` in the file; ``unexpected`` by the network. The network keeps its own weights where they are
            skipped or missing.
        why: In words, with the file's key where it is another.
    """

    key: str
    outcome: Outcome
    why: str


def load_pretrained(
    network: nn.Module, weights: Path | Weights, *, channels: int, first: FirstLayer = "repeat", part: str | None = None
) -> list[KeyReport]:
    """Give a network the weights that fit it.

    Prefixes such as ``module.`` or ``backbone.`` are taken off, and the network's (``swinViT.``) put on, as matches
    most keys by name and shape. Weights of another shape are skipped, as those of a classifier of other classes are.

    Args:
        network: Changed in place.
        weights: A file, or a state dict.
        channels: Image channels of the network. Convolutions that read the image and were trained with another number
            of them are treated as ``first`` says.
        first: ``repeat``: their weights are repeated over the channels and scaled by old over new number, so that the
            response keeps its size (added up for a single channel); ``skip``: they are left aside.
        part: Which state dict to take of a file that holds several.

    Returns:
        One row per key of the network, in its order, then those of the file that it has no place for.

    Raises:
        MedContextError: The file can't be read, or nothing in it fits.
    """
    given = dict(weights) if isinstance(weights, Mapping) else read_weights(weights, part)
    own = network.state_dict()
    sources, prefixes = _match_keys(given, own)
    taken: dict[str, Tensor] = {}
    rows = []
    for key, mine in own.items():
        if key not in sources:
            rows.append(KeyReport(key, "missing", "not in the file; it starts from its own weights"))
            continue
        source = sources[key]
        adapted, outcome, why = _fit(network, key, given[source], mine, channels, first)
        if adapted is not None:
            taken[key] = adapted
        rows.append(KeyReport(key, outcome, why if source == key else f"{why}; from {source}{prefixes}"))
    left = sorted(given.keys() - set(sources.values()))
    rows += [KeyReport(key, "unexpected", "the network has no such key") for key in left]
    if not any(value.is_floating_point() for value in taken.values()):
        raise MedContextError(
            "None of these weights fits the network.",
            file=weights if isinstance(weights, Path) else None,
            found=f"keys such as {_some(given)}",
            expected=f"keys such as {_some(own)}, in these shapes",
            remedy="check that the file is of this network, and its settings (features, depths) are the network's",
        )
    network.load_state_dict({**own, **taken})
    return rows


def summary(rows: Iterable[KeyReport]) -> str:
    """How many keys had which outcome, in a line."""
    counts = Counter(row.outcome for row in rows)
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in get_args(Outcome) if counts[outcome])


def read_weights(path: Path, part: str | None = None) -> dict[str, Tensor]:
    """The state dict of a file, without ever executing what the file says.

    Args:
        path: Written by ``torch.save``: a state dict, or a dictionary with one or more of them.
        part: Which of several.

    Raises:
        MedContextError: No such file, it holds more than tensors and plain values, or no state dict, or several.
    """
    if not path.is_file():
        raise MedContextError("There is no such file of weights.", file=path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        raise MedContextError(
            "This file of weights can't be read, or holds more than tensors and plain values; it was not opened.",
            file=path,
            found=(str(error) or type(error).__name__).splitlines()[0][:200],
            remedy="save its state dict alone, where you trust it: torch.save(network.state_dict(), file)",
        ) from error
    found = {name: value for name, value in _parts(content) if part in (None, name)}
    if len(found) != 1:
        names = [name for name, _ in _parts(content)]
        raise MedContextError(
            "It is not clear which weights of this file to take.",
            file=path,
            found=f"state dicts named {', '.join(names)}" if names else "no state dict",
            expected="one" if part is None else f"one named {part}",
            remedy="name one of them as part" if names else None,
        )
    return next(iter(found.values()))


def _parts(content: Any) -> list[tuple[str, dict[str, Tensor]]]:
    """Every mapping of names to tensors in a file, by its name there; a file that is one has no other."""
    if not isinstance(content, Mapping):
        return []
    if tensors := _tensors(content):
        return [("", tensors)]
    return [(str(name), tensors) for name, value in content.items() if (tensors := _tensors(value))]


def _tensors(value: Any) -> dict[str, Tensor]:
    """A state dict as it is, and nothing of anything else."""
    whole = isinstance(value, Mapping) and all(isinstance(tensor, Tensor) for tensor in value.values())
    return {str(name): tensor for name, tensor in value.items()} if whole else {}


def _match_keys(given: Weights, own: Weights) -> tuple[dict[str, str], str]:
    """The file's key for each of the network's that it has, and the prefixes that were exchanged, in words."""
    candidates = [(strip, add) for strip in _prefixes(given) for add in _prefixes(own)]
    matches = {pair: _matches(given, own, *pair) for pair in candidates}
    shapes = {
        pair: sum(given[source].shape == own[key].shape for key, source in found.items())
        for pair, found in matches.items()
    }
    strip, add = max(candidates, key=lambda pair: (shapes[pair], len(matches[pair]), -len("".join(pair))))
    exchanged = " and ".join(
        text for text in (f"without '{strip}'" if strip else "", f"with '{add}'" if add else "") if text
    )
    return matches[strip, add], f" ({exchanged})" if exchanged else ""


def _matches(given: Weights, own: Weights, strip: str, add: str) -> dict[str, str]:
    found = {}
    for source in given:
        if source.startswith(strip):
            key = add + source.removeprefix(strip)
            for old, new in RENAMED:
                if key not in own:
                    key = key.replace(old, new)
            if key in own:
                found[key] = source
    return found


def _prefixes(weights: Weights) -> list[str]:
    """Every beginning of a key that ends in a dot, none first."""
    parts = {tuple(key.split(".")[:-1][:depth]) for key in weights for depth in range(PREFIX_DEPTH + 1)}
    return sorted("".join(f"{part}." for part in prefix) for prefix in parts)


def _fit(
    network: nn.Module, key: str, theirs: Tensor, mine: Tensor, channels: int, first: FirstLayer
) -> tuple[Tensor | None, Outcome, str]:
    """What to load for a key, if anything, the outcome and why."""
    if theirs.shape == mine.shape:
        return theirs, "loaded", "same shape"
    shapes = f"shape {_shape(theirs)} there, {_shape(mine)} here"
    if theirs.ndim > 1 and theirs.shape[1:] == mine.shape[1:]:
        return None, "skipped", f"{shapes}: another number of outputs, as of a classifier of other classes"
    if not _reads_image(network, key, theirs, mine, channels):
        return None, "skipped", shapes
    if first == "skip":
        return None, "skipped", f"{shapes}: another number of image channels, and first='skip'"
    return _repeat_channels(theirs, channels), "adapted", f"{shapes}: repeated over the image channels and scaled"


def _reads_image(network: nn.Module, key: str, theirs: Tensor, mine: Tensor, channels: int) -> bool:
    """Whether a weight is that of a convolution over the image, trained with other channels and otherwise alike."""
    path, _, name = key.rpartition(".")
    layer = network.get_submodule(path)
    return (
        name == "weight"
        and isinstance(layer, nn.Conv3d)
        and layer.groups == 1
        and layer.in_channels == channels
        and theirs.ndim == mine.ndim
        and theirs.shape[:1] + theirs.shape[2:] == mine.shape[:1] + mine.shape[2:]
    )


def _repeat_channels(weight: Tensor, channels: int) -> Tensor:
    """``(O, old, ...)`` to ``(O, channels, ...)``."""
    old = weight.shape[1]
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    return weight[:, torch.arange(channels) % old] * (old / channels)


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "of one number"


def _some(keys: Iterable[str]) -> str:
    return ", ".join(list(keys)[:3])
