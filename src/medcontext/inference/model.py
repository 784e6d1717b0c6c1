"""A model file: the weights and all that is needed to apply them, as tensors and plain values only."""

from __future__ import annotations

import pickle
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medcontext.data.plan import Plan
from medcontext.errors import MedContextError
from medcontext.files import replacing
from medcontext.networks.registry import build_network

FORMAT = 1


@dataclass(frozen=True)
class Model:
    """A network ready to be applied.

    Attributes:
        network: In eval mode.
        plan: How scans are prepared for it.
        about: What is recorded beside the weights: network name and settings, step, which of student and teacher.
    """

    network: nn.Module
    plan: Plan
    about: Mapping[str, Any]


def save_model(path: Path, weights: Mapping[str, Any], plan: Plan, about: Mapping[str, Any]) -> None:
    """Write a model file. ``about`` needs ``network`` and ``settings``; the rest of it is for people to read."""
    save_tensors(path, {"format": FORMAT, "plan": plan.to_dict(), "about": dict(about), "weights": dict(weights)})


def load_model(path: Path) -> Model:
    """Read a model file, or the best one of a run folder.

    Raises:
        MedContextError: No such file, not a model, or weights that do not fit the network.
    """
    file = path / "best.pt" if path.is_dir() else path
    if not file.is_file():
        raise MedContextError(
            "There is no trained model here.",
            file=file,
            remedy="give a run folder that has a best.pt (written at the first validation), or a model file",
        )
    content = load_tensors(file)
    if content.get("format") != FORMAT or "weights" not in content:
        raise MedContextError(
            "This file is not a model of medcontext.", file=file, found=f"keys {', '.join(map(str, content))[:120]}"
        )
    try:
        plan, about, weights = Plan.from_dict(content["plan"], file), content["about"], content["weights"]
        name, settings = about["network"], about["settings"]
    except (KeyError, TypeError) as error:
        raise MedContextError(
            "This model file lacks what a prediction takes.",
            file=file,
            found=f"no {error}" if isinstance(error, KeyError) else str(error),
            remedy="copy it again from the run that made it",
        ) from error
    network = build_network(name, plan.channels, plan.labels.outputs, plan.patch, settings, seed=0)
    try:
        network.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        raise MedContextError(
            "The weights do not fit the network.", file=file, found=str(error), expected=f"those of {name}"
        ) from None
    return Model(network.eval(), plan, about)


def save_tensors(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values; a full disk or a killed process leaves the older file whole.

    Raises:
        MedContextError: The file can't be written.
    """
    try:
        with replacing(path) as temporary, temporary.open("wb") as stream:
            torch.save(dict(content), stream)
    except (OSError, RuntimeError) as error:
        raise MedContextError(
            "A checkpoint could not be written.",
            file=path,
            found=f"{_first_line(error)}; {shutil.disk_usage(path.parent).free / 1e6:.0f} MB are free on this disk",
            remedy="make room, or the folder writable, and go on with --resume; any older checkpoint is whole",
        ) from error


def load_tensors(path: Path) -> dict[str, Any]:
    """Read what :func:`save_tensors` wrote, without ever executing what a file says.

    Raises:
        MedContextError: The file is damaged, or holds more than tensors and plain values.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other versions of pickle, which are refused
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # PyTorch's first line says how to open it all the same.
        raise MedContextError(
            "This file holds more than weights (code, perhaps), or is no checkpoint; it was not opened.",
            file=path,
            found=next((line for line in str(error).splitlines() if "nsupported" in line), None),
            expected="tensors and plain values, as medcontext writes them",
            remedy="use a file from a source you trust, made by medcontext",
        ) from None
    except (RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        raise MedContextError(
            "This checkpoint is damaged or is none.",
            file=path,
            found=_first_line(error),
            remedy="copy it again, or use the run's other checkpoint (last.pt, best.pt)",
        ) from error
    if not isinstance(content, dict):
        raise MedContextError("This file is not a checkpoint of medcontext.", file=path, found=type(content).__name__)
    return content


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
