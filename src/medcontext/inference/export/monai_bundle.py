"""A MONAI bundle around a TorchScript network: its inference in MONAI's own transforms.

Layout and keys: MONAI Bundle Specification (https://docs.monai.io/en/stable/mb_specification.html).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medcontext.data.plan import Plan
from medcontext.data.prepare import PERCENTILE_VOXELS, PERCENTILES, SMALLEST_STD
from medcontext.files import write_json, write_text
from medcontext.inference.export.description import outputs
from medcontext.inference.export.formats import FORMATS
from medcontext.inference.sliding import OVERLAP

_STEPS = (
    "count := image[0].numel()",
    f"apart := next(k for k in range(max(1, count // {PERCENTILE_VOXELS}), 0, -1) if math.gcd(k, count) == 1)",
    "sample := image.flatten(1)[:, ::apart].numpy()",
    f"ends := torch.from_numpy(numpy.percentile(sample, {list(PERCENTILES)}, axis=1)).float()",
    "extremes := torch.stack((image.amin((1, 2, 3)), image.amax((1, 2, 3))))",
    "ends := torch.where(ends[0] < ends[1], ends, extremes)",
    "clipped := image.clamp(*ends[..., None, None, None])",
    "mean := clipped.mean((1, 2, 3), keepdim=True)",
    f"least := {SMALLEST_STD} * (1 + mean.abs())",
    "(clipped - mean) / torch.maximum(clipped.std((1, 2, 3), correction=0, keepdim=True), least)",
)
_NORMALISE = f"$lambda image: ({', '.join(_STEPS)})[-1]"
"""Each channel by its moments once it is clipped to its percentiles; MONAI has no transform that does both."""

WEIGHTS, METADATA, INFERENCE = "models/model.pt", "configs/metadata.json", "configs/inference.json"
README, LICENSE = "docs/README.md", "LICENSE"
BUNDLE_FILES = (WEIGHTS, METADATA, INFERENCE, README, LICENSE)
"""Beside the TorchScript network."""

NO_LICENCE = """\
No licence has been given for the weights and configuration files of this bundle. Whoever trained the network holds the
rights, within the terms of the scans it was trained on. Before you pass it on, put the licence you choose here.
"""


def write_bundle(folder: Path, network: nn.Module, plan: Plan, about: Mapping[str, Any], readme: str) -> None:
    """Write what belongs to ``models/model.ts``, which is there.

    Args:
        folder: Of the bundle.
        network: The one that was traced.
        plan: That scans are prepared by.
        about: What ``preprocessing.json`` holds.
        readme: The same in words.
    """
    torch.save(dict(network.state_dict()), folder / WEIGHTS)
    write_json(folder / METADATA, metadata(plan, about))
    write_json(folder / INFERENCE, inference(plan, about["postprocessing"]))
    write_text(folder / README, readme)
    write_text(folder / LICENSE, NO_LICENCE)


def metadata(plan: Plan, about: Mapping[str, Any]) -> dict[str, Any]:
    """What the bundle is; the arguments as for :func:`write_bundle`."""
    how, names = plan.normalisation, [each["name"] for each in outputs(plan)]
    ct = how.kind == "ct"
    common = {"type": "image", "spatial_shape": list(plan.patch), "dtype": "float32", "is_patch_data": True}
    image: dict[str, Any] = {
        "format": "hounsfield" if ct else "magnitude",
        "modality": "CT" if ct else "n/a",
        "num_channels": plan.channels,
        "value_range": [how.outside, (how.high - how.mean) / how.std] if ct else [],
        "channel_def": {str(channel): f"image channel {channel}" for channel in range(plan.channels)},
    }
    pred: dict[str, Any] = {
        "format": "classes" if plan.labels.regions else "labels",
        "modality": "n/a",
        "num_channels": len(names),
        "value_range": [],
        "channel_def": {str(channel): name for channel, name in enumerate(names)},
    }
    packages = ["nibabel", "scipy"] if about["postprocessing"] else ["nibabel"]
    return {
        "version": "1.0.0",
        "changelog": {"1.0.0": "as exported"},
        "monai_version": version("monai"),
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {name: version(name) for name in packages},
        "name": plan.dataset,
        "task": f"Segmentation of {', '.join(name for name in names if name != 'background')}",
        "description": f"A network trained with medcontext on the data set {plan.dataset}.",
        "authors": "not stated",
        "copyright": "not stated",
        "intended_use": "Research; not a medical device",
        "model": about["model"],
        "network_data_format": {"inputs": {"image": common | image}, "outputs": {"pred": common | pred}},
    }


def inference(plan: Plan, rules: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How the bundle is run on a folder of scans.

    Args:
        plan: That scans are prepared by.
        rules: Of the post-processing, as ``preprocessing.json`` holds them.
    """
    return {
        "imports": ["$import glob", "$import math", *(["$from scipy import ndimage"] if rules else [])],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/scans'",
        "output_dir": "$@bundle_root + '/eval'",
        "datalist": "$sorted(glob.glob(@dataset_dir + '/*.nii.gz'))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": f"$torch.jit.load(@bundle_root + '/{FORMATS['monai-bundle'].file}', map_location=@device)",
        "preprocessing": {"_target_": "Compose", "transforms": _preprocessing(plan)},
        "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(plan.patch),
            "sw_batch_size": 1,
            "overlap": OVERLAP,
            "mode": "gaussian",
            "cval": plan.normalisation.outside,
        },
        "postprocessing": {"_target_": "Compose", "transforms": _postprocessing(plan, rules)},
        "predict": "$lambda image: @inferer(image[None].to(@device), @network_def)[0]",
        # What MONAI's specification asks for, and other programs look for. It needs pytorch-ignite; 'run' does without.
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network_def",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "amp": False,
        },
        # The shapes alone, so that no label map is kept that has been saved.
        "run": ["$[@postprocessing({**case, 'pred': @predict(case['image'])})['pred'].shape for case in @dataset]"],
    }


def _preprocessing(plan: Plan) -> list[dict[str, Any]]:
    """From a file to what the network takes."""
    how, spacing = plan.normalisation, list(plan.spacing)
    size = f"[max(1, round(n * float(old) / new)) for n, old, new in zip(image.shape[1:], image.pixdim, {spacing})]"
    filled = f"x > {how.low}" if how.kind == "ct" else "x != 0"
    steps = [
        _on("image", "LoadImaged", reader="NibabelReader", image_only=True, ensure_channel_first=True),
        _on("image", "Orientationd", axcodes=plan.orientation, labels=[["L", "R"], ["P", "A"], ["I", "S"]]),
        # Of an empty scan all is kept.
        _on(
            "image",
            "CropForegroundd",
            source_key="image",
            select_fn=f"$lambda x: ({filled}) | ~({filled}).any()",
            allow_smaller=True,
        ),
        # Spacingd would keep to the spacing, and so cover a little more or less than the scan. Here its extent is kept,
        # as in the training: a grid of the right size over the scan, then the scan on that grid, which can be undone.
        _on("image", "CopyItemsd", names="grid"),
        _on("grid", "Lambdad", func=f"$lambda image: monai.transforms.Resize({size}, mode='nearest')(image)"),
        _on("image", "ResampleToMatchd", key_dst="grid", mode="bilinear", padding_mode="border", align_corners=False),
        _on("grid", "DeleteItemsd"),
    ]
    if how.kind == "ct":
        ends = {"a_min": how.low, "a_max": how.high, "b_min": how.outside, "b_max": (how.high - how.mean) / how.std}
        return [*steps, _on("image", "ScaleIntensityRanged", **ends, clip=True)]
    return [*steps, _on("image", "Lambdad", func=_NORMALISE)]


def _postprocessing(plan: Plan, rules: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """From logits to a file of label numbers in the scan's own grid."""
    numbers = [each["number"] for each in outputs(plan)]
    if plan.labels.regions:
        # The last region that a voxel is in, counted from 1; 0 where it is in none.
        places = f"torch.arange(1, {len(numbers) + 1}, device=x.device).reshape(-1, 1, 1, 1)"
        chosen = _on("pred", "Lambdad", func=f"$lambda x: ((x > 0) * {places}).amax(0, keepdim=True)")
        numbers = [0, *numbers]
    else:
        chosen = _on("pred", "AsDiscreted", argmax=True)
    kind = next(kind for kind in ("uint8", "uint16", "int32") if max(numbers) <= np.iinfo(kind).max)
    kinds = {"orig_labels": list(range(len(numbers))), "target_labels": numbers, "dtype": f"$numpy.{kind}"}
    saving = {"output_ext": ".nii.gz", "output_postfix": "", "separate_folder": False, "output_dtype": kinds["dtype"]}
    return [
        _on("pred", "Invertd", transform="@preprocessing", orig_keys="image", nearest_interp=False, to_tensor=True),
        chosen,
        _on("pred", "MapLabelValued", **kinds),
        *(_on("pred", "Lambdad", func=_applied(rule)) for rule in rules),
        # Resampled to the grid that it has already: MONAI 1.6 forgets an axis of it, and may fail, without this.
        _on("pred", "SaveImaged", output_dir="@output_dir", resample=True, **saving),
    ]


def _applied(rule: Mapping[str, Any]) -> str:
    """A rule of the post-processing, for a label map ``(1, X, Y, Z)``; those of MONAI's need another package, and make
    all that they remove background."""
    steps = [
        f"mask := numpy.isin(x[0].cpu().numpy(), {rule['labels']})",
        "pieces := ndimage.label(mask, numpy.ones((3, 3, 3)))[0]",
        "sizes := numpy.bincount(pieces[mask], minlength=1)",
        "ml := abs(float(numpy.linalg.det(x.affine[:3, :3].cpu().numpy()))) / 1000",
        f"kept := sizes * ml >= {rule['least_ml']}" if rule["least_ml"] else "kept := sizes > 0",
    ]
    if rule["largest"]:
        steps.append("kept := kept & (numpy.arange(len(sizes)) == sizes.argmax())")
    steps.append("made := kept[pieces]")
    if rule["fill"]:
        steps.append("made := ndimage.binary_fill_holes(made)")
    around, number = rule["around"], rule["number"]
    steps += [
        "device := x.device",
        f"added := torch.from_numpy(made & ~mask).to(device) & (x.as_tensor() == {around})",
        f"x := torch.where(torch.from_numpy(mask & ~made).to(device), {around}, x)",
        f"torch.where(added, {number}, x)",
    ]
    return f"$lambda x: ({', '.join(steps)})[-1]"


def _on(key: str, target: str, **settings: Any) -> dict[str, Any]:
    """A transform of MONAI's on one entry of a case."""
    return {"_target_": target, "keys": key, **settings}
