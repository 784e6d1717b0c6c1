"""An export in words: what is in the folder, and how a scan is segmented with it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from medcontext.data.plan import listed
from medcontext.inference.export.formats import INPUT, OUTPUT, FormatName

WIDTH = 100

_CODE: Mapping[FormatName, tuple[str, ...]] = {
    "onnx": (
        "import onnxruntime",
        'session = onnxruntime.InferenceSession("{file}")',
        f'(logits,) = session.run(["{OUTPUT}"], {{{{"{INPUT}": windows}}}})',
    ),
    "torch-export": (
        "import torch",
        'network = torch.export.load("{file}").module()  # and .to("cuda") for a GPU',
        "with torch.no_grad():",
        "    logits = network(windows)",
    ),
    "torchscript": (
        "import torch",
        'network = torch.jit.load("{file}", map_location="cpu")',
        "with torch.no_grad():",
        "    logits = network(windows)",
    ),
    "monai-bundle": (
        "python -m monai.bundle run --config_file configs/inference.json \\",
        "    --dataset_dir SCANS --output_dir LABEL_MAPS",
    ),
}


def in_words(about: Mapping[str, Any]) -> str:
    """The text that lies beside an export.

    Args:
        about: All that ``preprocessing.json`` holds.
    """
    network, outputs = about["network"], about["outputs"]
    size = listed(about["window"]["size"])
    title = f"Segmentation of {about['dataset']}"
    names = [f"    output {k}: {each['name']}, written as {each['number']}" for k, each in enumerate(outputs)]
    many = "any number of windows" if network["batch"] is None else "one window"
    return "\n".join(
        [
            title,
            "=" * len(title),
            f"Exported by {about['made_by']}. Research software, not a medical device.",
            "",
            _opening(about),
            "",
            *(f"    {line.format(file=network['file'])}" for line in _CODE[network["format"]]),
            "",
            f"Input: float32 [batch, {about['channels']}, {size}], {many} of a scan at once.",
            f"Output: float32 [batch, {len(outputs)}, {size}], logits:",
            *names,
            "",
            "How a scan is segmented, step by step (preprocessing.json holds the numbers in full):",
            "",
            *(_wrapped(f"{k}. {step}", "   ") for k, step in enumerate(_steps(about), start=1)),
            "",
        ]
    )


def _opening(about: Mapping[str, Any]) -> str:
    if about["network"]["format"] != "monai-bundle":
        return f"{about['network']['file']} is the network, and nothing of medcontext is needed to run it:"
    channels = about["channels"]
    return _wrapped(
        "This is a MONAI bundle: a TorchScript network, and the steps below in MONAI's own transforms. It needs monai, "
        "nibabel"
        + (", scipy" if about["postprocessing"] else "")
        + " and fire. SCANS is a folder of .nii.gz files, one per scan"
        + (f" with its {channels} channels along the fourth axis" if channels > 1 else "")
        + "; a label map of the same name, shape and affine is written for each. In this folder:"
    )


def _steps(about: Mapping[str, Any]) -> list[str]:
    """From a scan to windows, and from their logits to labels."""
    window, axes = about["window"], about["orientation"]
    strides = [max(1, int(side * (1 - window["overlap"]))) for side in window["size"]]
    ends = {"S": "head", "A": "front", "R": "right"}
    return [
        f"Turn and flip the axes of the array so that indices grow towards the patient's {ends[axes[0]]}, "
        f"{ends[axes[1]]} and {ends[axes[2]]}, in this order ('{axes}' in nibabel's letters).",
        f"Cut to the smallest box around all voxels that are {_filled(about['normalisation'])}; without any, keep the "
        "whole scan.",
        f"Resample to {listed(about['spacing_mm'])} mm over the same extent. An axis of n voxels gets round(n * old "
        "spacing / new spacing), at least 1; new voxel i lies at (i + 0.5) * n / new n - 0.5 of the old ones. Linear "
        "along every axis, without smoothing; beyond the outermost voxels their values go on. Single precision.",
        _normalisation(about["normalisation"]),
        f"Where an axis is shorter than the window, pad it with {about['outside']:g}: half before (rounded down), half "
        "after.",
        f"Cut out windows of {listed(window['size'])}, one every {listed(strides)} voxels; the last along an axis is "
        "moved back to end with the scan. Run the network on each.",
        "Add up the logits of all windows, weighted by a Gaussian around each window's centre, with a standard "
        f"deviation of {window['sigma']:g} of the window's length along each axis, 1 at its highest and nowhere below "
        f"{window['smallest_weight']:g}; divide by the sum of the weights. Cut the padding off.",
        "Resample the logits (not labels) to the size that the array had after step 2, in the way of step 3.",
        _choice(about["activation"]),
        "Write 0 around the box that was cut out in step 2. Turn and flip back, and keep the affine of the scan.",
        *(_applied(rule) for rule in about["postprocessing"]),
    ]


def _normalisation(how: Mapping[str, Any]) -> str:
    values = how["channels"][0]
    if how["kind"] == "ct":
        return (
            f"Clip Hounsfield units to {values['low']:g} .. {values['high']:g}, subtract {values['mean']:g} and divide "
            f"by {values['std']:g}."
        )
    low, high = values["percentiles"]
    many = values["percentile_voxels"]
    return (
        f"For each channel: clip to the {low:g}th and {high:g}th percentile (where they are the same, to the least and "
        "the most), subtract the mean of what that gives and "
        f"divide by its standard deviation (by {values['smallest_std']:g} * (1 + |mean|) if that is more). Of "
        f"{2 * many:,} voxels or more, percentiles are those of every k-th voxel in C order: k = voxels // {many:,}, "
        "or the next smaller number that shares no factor with the number of voxels."
    )


def _filled(how: Mapping[str, Any]) -> str:
    return f"above {how['channels'][0]['low']:g}" if how["kind"] == "ct" else "not 0 in every channel"


def _applied(rule: Mapping[str, Any]) -> str:
    parts = (
        ["of its pieces (voxels that share a corner belong to one) keep the largest alone"] if rule["largest"] else []
    )
    parts += [f"remove pieces of less than {rule['least_ml']:g} ml"] if rule["least_ml"] else []
    parts += ["fill its holes (all that it encloses)"] if rule["fill"] else []
    numbers, around = ", ".join(map(str, rule["labels"])), rule["around"]
    return f"Of the voxels of {numbers}, in this order: {'; '.join(parts)}. What is removed becomes {around}" + (
        f"; of a hole, voxels that are {around} become {rule['number']}." if rule["fill"] else "."
    )


def _choice(activation: str) -> str:
    if activation == "softmax":
        return "Each voxel gets the number of the output with the largest logit, the first of equals."
    return (
        "Every output is a region of its own, of the voxels whose logit is above 0. Write 0 everywhere, then the "
        "number of each region in the order of the outputs, later ones over earlier ones."
    )


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)
