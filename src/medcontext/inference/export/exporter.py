"""From a model file to a folder that needs no medcontext."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medcontext.errors import MedContextError
from medcontext.files import read_json, replacing_folder, require_replaceable, write_json, write_text
from medcontext.inference.export.description import FILE, MADE_BY, describe
from medcontext.inference.export.formats import FORMATS, INPUT, OUTPUT, FinestHead, FormatName, quiet, require_packages
from medcontext.inference.export.monai_bundle import BUNDLE_FILES, write_bundle
from medcontext.inference.export.parity import SAMPLES, Parity, compare
from medcontext.inference.export.words import in_words
from medcontext.inference.model import load_model
from medcontext.inference.postprocess import shared_rules

README = "README.txt"

WRITTEN = {FILE, README, *(form.file for form in FORMATS.values()), *BUNDLE_FILES}
"""Files of exports, and so what may be replaced."""

MEGABYTE = 1_000_000

ROOM = 100 * MEGABYTE
"""What an export takes at most beside the weights, which a bundle holds twice: the network's graph and tables."""


def export_model(model: Path, out: Path, form: FormatName, *, replace: bool = False) -> dict[str, Any]:
    """Write a trained network for another runtime, check it there, and describe all that a prediction takes.

    Args:
        model: A run folder (its best model), or a model file.
        out: Folder to make: the network, ``preprocessing.json`` and the same in words; or a MONAI bundle.
        form: The network's format.
        replace: Remove the export that is there.

    Returns:
        What ``preprocessing.json`` holds.

    Raises:
        MedContextError: No model, a folder that is in the way, packages or room that are missing, or a network that
            can't be written in this format or gives other logits there. Nothing is left then.
    """
    require_packages(form)
    _require_place(out, replace)
    loaded = load_model(model)
    network, plan = FinestHead(loaded.network).eval().requires_grad_(False), loaded.plan
    rules = shared_rules([loaded.about])
    _require_room(out, sum(tensor.nbytes for tensor in network.state_dict().values()))
    shape = (SAMPLES, plan.channels, *plan.patch)
    patches = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with replacing_folder(out) as folder:
        batch, parity = _write(network, patches, form, folder / FORMATS[form].file, bool(plan.labels.regions))
        about = describe(plan, rules) | {
            "model": _finite(loaded.about),
            "network": {
                "format": form,
                "file": FORMATS[form].file,
                "input": INPUT,
                "output": OUTPUT,
                "batch": batch,
            },
            "parity": dataclasses.asdict(parity),
        }
        write_json(folder / FILE, about)
        text = in_words(about)
        if form == "monai-bundle":
            write_bundle(folder, network, plan, about, text)
        else:
            write_text(folder / README, text)
    return about


def _require_place(out: Path, replace: bool) -> None:
    """Refuse to write over anything but an earlier export, and over that without being asked to."""
    require_replaceable(out)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    files = [path for path in out.rglob("*") if not path.is_dir()] if out.is_dir() else [out]
    strangers = [path for path in files if path.relative_to(out).as_posix() not in WRITTEN]
    if strangers or not _is_export(out):
        raise MedContextError(
            "There is something else than an export here; it is left alone.",
            file=out,
            found=", ".join(sorted(path.name for path in strangers or files)[:8]),
            expected="no such folder, an empty one, or an export",
            remedy="choose another folder",
        )
    if not replace:
        raise MedContextError(
            "There is an export here already.", file=out, remedy="replace it (--replace), or choose another folder"
        )


def _is_export(folder: Path) -> bool:
    try:
        about = read_json(folder / FILE)
    except MedContextError:
        return False
    return isinstance(about, dict) and str(about.get("made_by")).startswith(MADE_BY)


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without numbers that JSON does not know, such as the Dice of a validation without labels."""
    return {key: value for key, value in values.items() if not isinstance(value, float) or math.isfinite(value)}


def _require_room(out: Path, weights: int) -> None:
    there = next(folder for folder in out.resolve().parents if folder.exists())
    needed, free = 2 * weights + ROOM, shutil.disk_usage(there).free
    if free < needed:
        raise MedContextError(
            "There is no room for the export.",
            file=out,
            found=f"{free / MEGABYTE:,.0f} MB free",
            expected=f"{needed / MEGABYTE:,.0f} MB",
            remedy="make room, or choose a folder on another disk",
        )


def _write(
    network: FinestHead, patches: Tensor, form: FormatName, path: Path, regions: bool
) -> tuple[int | None, Parity]:
    """Write the network for any number of patches at once, or, where that can't be done, for one.

    Returns:
        The number (None: any), and how far the file is from the network.
    """
    path.parent.mkdir(exist_ok=True)
    try:
        return None, _written(network, patches, True, form, path, regions)
    except Exception:  # exporters raise whatever they like; the next try says what there is to say
        return 1, _written(network, patches[:1], False, form, path, regions)


def _written(
    network: FinestHead, patches: Tensor, any_batch: bool, form: FormatName, path: Path, regions: bool
) -> Parity:
    others = [name for name in FORMATS if FORMATS[name].write is not FORMATS[form].write]
    try:
        with quiet(), torch.no_grad():
            FORMATS[form].write(network, patches, any_batch, path)
            parity = compare(network, FORMATS[form].load(path), patches, regions)
    except OSError:
        raise
    except Exception as error:
        raise MedContextError(
            f"This network can't be exported as '{form}'.",
            found=f"{type(error).__name__}: {' '.join(str(error).split())}"[:300],
            remedy=f"try --format {' or '.join(others)}",
        ) from error
    if not parity.holds:
        raise MedContextError(
            f"This network gives other logits as '{form}'; nothing was kept.",
            found=str(parity),
            expected="the same but for rounding",
            remedy=f"try --format {' or '.join(others)}",
        )
    return parity
