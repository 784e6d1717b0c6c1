"""Segment a scan with an exported model, by numpy, scipy, nibabel and onnxruntime: nothing of medcontext is needed.

    medcontext export RUN EXPORT --format onnx
    python examples/onnx_predict.py EXPORT SCAN.nii.gz LABELS.nii.gz

All numbers come from EXPORT/preprocessing.json. Several channels are the fourth axis of the scan.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import onnxruntime
from nibabel import orientations
from nibabel.affines import voxel_sizes
from scipy import ndimage

Array = npt.NDArray[np.float32]
Box = tuple[slice, slice, slice]


def resample(image: Array, size: tuple[int, ...]) -> Array:
    """Linear interpolation of (C, D, H, W) along one axis after the other, the outer edges of the voxels aligned."""
    for axis, new in enumerate(size, start=1):
        old = image.shape[axis]
        if new == old:
            continue
        place = (np.arange(new, dtype=np.float32) + 0.5) * np.float32(old / new) - 0.5  # in single precision, as torch
        place = place.clip(0, old - 1)
        before = np.floor(place).astype(int)
        share = (place - before.astype(np.float32)).reshape([-1 if a == axis else 1 for a in range(4)])
        after = np.minimum(before + 1, old - 1)
        image = image.take(before, axis) * (1 - share) + image.take(after, axis) * share
    return image


def normalise(image: Array, how: dict[str, Any]) -> Array:
    """Bring each channel of (C, D, H, W) to the scale that the network knows."""
    if how["kind"] == "ct":
        return np.stack(
            [
                (channel.clip(values["low"], values["high"]) - values["mean"]) / values["std"]
                for channel, values in zip(image, how["channels"], strict=True)
            ]
        ).astype(np.float32)
    scaled = np.empty_like(image)
    for number, (channel, values) in enumerate(zip(image, how["channels"], strict=True)):
        step = max(1, channel.size // values["percentile_voxels"])
        while math.gcd(step, channel.size) > 1:
            step -= 1
        low, high = np.percentile(channel.ravel()[::step], values["percentiles"])
        if low == high:
            low, high = channel.min(), channel.max()
        clipped = channel.clip(low, high)
        mean = float(clipped.mean())
        std = max(float(clipped.std()), values["smallest_std"] * (1 + abs(mean)))
        scaled[number] = (clipped - mean) / std
    return scaled


def starts(length: int, side: int, overlap: float) -> list[int]:
    """Where windows begin along an axis; the last ends with it."""
    step = max(1, int(side * (1 - overlap)))
    return [*range(0, length - side, step), length - side]


def logits_of(image: Array, about: dict[str, Any], session: onnxruntime.InferenceSession) -> Array:
    """Logits (K, D, H, W) from overlapping windows, those near a window's centre weighing most."""
    window, network = about["window"], about["network"]
    sides = window["size"]
    missing = [max(0, side - n) for side, n in zip(sides, image.shape[1:], strict=True)]
    around = [(0, 0), *((count // 2, count - count // 2) for count in missing)]
    padded = np.pad(image, around, constant_values=about["outside"])
    weights = np.ones((), dtype=np.float32)
    for side in sides:
        distance = np.arange(side) - (side - 1) / 2
        weights = weights[..., None] * np.exp(-0.5 * (distance / (window["sigma"] * side)) ** 2).astype(np.float32)
    weights = np.maximum(weights, window["smallest_weight"])
    total = np.zeros((len(about["outputs"]), *padded.shape[1:]), dtype=np.float32)
    weight = np.zeros(padded.shape[1:], dtype=np.float32)
    places = [starts(n, side, window["overlap"]) for n, side in zip(padded.shape[1:], sides, strict=True)]
    for corner in itertools.product(*places):
        cut = tuple(slice(start, start + side) for start, side in zip(corner, sides, strict=True))
        given = {network["input"]: padded[(slice(None), *cut)][None]}
        (logits,) = session.run([network["output"]], given)
        total[(slice(None), *cut)] += logits[0] * weights
        weight[cut] += weights
    inside = tuple(slice(before, n - after) for (before, after), n in zip(around[1:], padded.shape[1:], strict=True))
    total /= weight
    return total[(slice(None), *inside)]


def labels_of(logits: Array, about: dict[str, Any], size: tuple[int, ...]) -> npt.NDArray[np.int32]:
    """Label numbers (D, H, W) of this size."""
    labels, best = np.zeros(size, dtype=np.int32), np.full(size, -np.inf, dtype=np.float32)
    for output, low in zip(about["outputs"], logits, strict=True):
        score = resample(low[None], size)[0]
        chosen = score > (best if about["activation"] == "softmax" else 0)
        labels[chosen] = output["number"]
        best[chosen] = score[chosen]
    return labels


def box_of(image: Array, how: dict[str, Any]) -> Box:
    """The smallest box of (C, D, H, W) around all that isn't empty; the whole of an empty scan."""
    filled = (image > how["channels"][0]["low"] if how["kind"] == "ct" else image != 0).any(0)
    sides = [np.flatnonzero(filled.any(others)) for others in ((1, 2), (0, 2), (0, 1))]
    d, h, w = (slice(int(side[0]), int(side[-1]) + 1) if len(side) else slice(None) for side in sides)
    return d, h, w


def prepare(scan: Any, about: dict[str, Any]) -> tuple[Array, Box]:
    """The scan as the network sees it, (C, D, H, W), and what part of it that is; its axes lie in the right order and
    direction already."""
    array = scan.get_fdata(dtype=np.float32)
    image = np.moveaxis(array[..., None] if array.ndim == 3 else array, -1, 0)
    box = box_of(image, about["normalisation"])
    image = np.ascontiguousarray(image[(slice(None), *box)])
    spacing = voxel_sizes(scan.affine).tolist()
    lengths = zip(image.shape[1:], spacing, about["spacing_mm"], strict=True)
    size = tuple(max(1, round(n * old / new)) for n, old, new in lengths)
    return normalise(resample(image, size), about["normalisation"]), box


def apply(rule: dict[str, Any], labels: npt.NDArray[np.int32], ml: float) -> npt.NDArray[np.int32]:
    """A rule of the post-processing, for voxels of so many millilitres."""
    mask = np.isin(labels, rule["labels"])
    pieces, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(pieces[mask], minlength=1)
    kept = sizes * ml >= rule["least_ml"] if rule["least_ml"] else sizes > 0
    if rule["largest"]:
        kept &= np.arange(len(sizes)) == sizes.argmax()
    made = kept[pieces]
    if rule["fill"]:
        made = ndimage.binary_fill_holes(made)
    added = made & ~mask & (labels == rule["around"])
    return np.where(added, rule["number"], np.where(mask & ~made, rule["around"], labels)).astype(np.int32)


def segment(export: Path, scan: Path, out: Path) -> None:
    """Write the label map of a scan."""
    about = json.loads((export / "preprocessing.json").read_text())
    session = onnxruntime.InferenceSession(export / about["network"]["file"])
    source: Any = nib.load(scan)
    native = orientations.io_orientation(source.affine)
    wanted = orientations.axcodes2ornt(about["orientation"])
    turned = source.as_reoriented(orientations.ornt_transform(native, wanted))
    prepared, box = prepare(turned, about)
    labels = np.zeros(turned.shape[:3], dtype=np.int32)
    labels[box] = labels_of(logits_of(prepared, about, session), about, labels[box].shape)
    back = orientations.apply_orientation(labels, orientations.ornt_transform(wanted, native))
    ml = abs(float(np.linalg.det(source.affine[:3, :3]))) / 1000
    for rule in about["postprocessing"]:
        back = apply(rule, back, ml)
    nib.save(nib.Nifti1Image(back, source.affine), out)


def main() -> None:
    parser = argparse.ArgumentParser(description="Segment a scan with an exported model.")
    for name in ("export", "scan", "out"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    segment(options.export, options.scan, options.out)


if __name__ == "__main__":
    main()
