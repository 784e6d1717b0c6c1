"""Ways from labelled CT scans to batches of augmented 96^3 patches: ours, MONAI's and nnU-Net's, each as its users do.

All resample to the same spacing, mirror along every axis and yield as many patches of one channel; what is timed is
what a training loop waits for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from medcontext.data.augment_config import AugmentConfig
from medcontext.data.cache import prepare_all
from medcontext.data.check import check_dataset
from medcontext.data.dataset import open_dataset
from medcontext.data.loading import batches_of
from medcontext.data.plan import Plan, make_plan
from medcontext.data.prepare import read_prepared
from medcontext.data.sampling import PatchBatches

PATCH = (96, 96, 96)
SPACING = (2.0, 1.5, 1.5)
"""(D, H, W) in mm: the published setting for abdominal CT."""

WINDOW = (-175.0, 250.0)
"""HU that MONAI's tutorial on this data maps to 0..1."""

CHANGES = replace(AugmentConfig(), mirror_axes=(0, 1, 2))
"""nnU-Net's full augmentation, its mirroring included."""

Batches = Iterator[int]
"""Yields the number of patches of each batch, once it is there."""


@dataclass(frozen=True)
class Source:
    """Scans in a folder, and where what is prepared of them is kept."""

    scans: Path
    cache: Path


def planned(source: Source) -> tuple[Plan, Mapping[str, Path]]:
    """Plan and cache folders of all cases, by the package's own way from a data set to training."""
    dataset = open_dataset(source.scans)
    plan = make_plan(check_dataset(dataset), patch=PATCH, spacing=SPACING)
    return plan, prepare_all(dataset.cases.values(), plan, source.cache)


def medcontext(source: Source, workers: int) -> Batches:
    """This package."""
    plan, folders = planned(source)
    batches = PatchBatches(folders, plan, CHANGES, seed=0, steps=1_000_000)
    for batch in batches_of(batches, range(len(batches)), workers):
        yield len(batch["image"])


def monai(source: Source, workers: int, full: bool = False) -> Batches:
    """MONAI's chain for abdominal CT (its BTCV tutorials), 4 patches of a case at a time, over cached volumes.

    Args:
        source: Scans.
        workers: Processes.
        full: With as much augmentation as ours, as often.
    """
    from monai import transforms as t
    from monai.data.dataloader import DataLoader as MonaiLoader
    from monai.data.dataset import CacheDataset

    both = ("image", "label")
    chain = [
        t.LoadImaged(both),
        t.EnsureChannelFirstd(both),
        t.Orientationd(both, axcodes="RAS", labels=None),
        t.Spacingd(both, pixdim=SPACING[::-1], mode=("bilinear", "nearest")),
        t.ScaleIntensityRanged("image", *WINDOW, b_min=0.0, b_max=1.0, clip=True),
        t.CropForegroundd(both, source_key="image", allow_smaller=True),
        t.RandCropByPosNegLabeld(
            both, label_key="label", spatial_size=PATCH, pos=1, neg=1, num_samples=4, image_key="image"
        ),
        *(t.RandFlipd(both, spatial_axis=axis, prob=0.1) for axis in range(3)),
        t.RandRotate90d(both, prob=0.1, max_k=3),
        t.RandShiftIntensityd("image", offsets=0.1, prob=0.5),
        *(_as_much_as_ours(t) if full else ()),
    ]
    labels = sorted((source.scans / "labelsTr").glob("*.nii.gz"))
    files = [{"image": source.scans / "imagesTr" / label.name, "label": label} for label in labels]
    cases = CacheDataset(files, t.Compose(chain), cache_num=len(files), num_workers=2, progress=False)
    loader = MonaiLoader(cases, batch_size=1, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    for epoch in cycle([loader]):
        for batch in epoch:
            yield len(batch["image"])


def _as_much_as_ours(t: Any) -> list[Any]:
    """MONAI's counterparts of our changes, with our ranges and probabilities."""
    both, config = ("image", "label"), CHANGES
    angle = float(np.radians(config.rotation_degrees))
    moved = 1 - (1 - config.rotation_probability) * (1 - config.scale_probability)
    return [
        t.RandAffined(
            both, prob=moved, rotate_range=(angle,) * 3, scale_range=(0.3, 0.3, 0.3), mode=("bilinear", "nearest"),
            padding_mode="border",
        ),
        t.RandGaussianNoised("image", prob=config.noise_probability, std=config.noise[1]),
        t.RandGaussianSmoothd(
            "image", prob=config.blur_probability / 2, sigma_x=config.blur, sigma_y=config.blur, sigma_z=config.blur
        ),
        t.RandScaleIntensityd("image", factors=0.25, prob=config.brightness_probability),
        t.RandAdjustContrastd("image", prob=config.contrast_probability, gamma=config.gamma),
        t.RandSimulateLowResolutiond(
            "image", prob=config.low_resolution_probability / 2, zoom_range=config.low_resolution
        ),
        t.RandAdjustContrastd("image", prob=config.inverted_gamma_probability, gamma=config.gamma, invert_image=True),
        t.RandAdjustContrastd("image", prob=config.gamma_probability, gamma=config.gamma, retain_stats=True),
    ]  # fmt: skip


def monai_full(source: Source, workers: int) -> Batches:
    """MONAI's chain with as much augmentation as ours."""
    return monai(source, workers, full=True)


def nnunet(source: Source, workers: int) -> Batches:
    """nnU-Net v2's loader and training transforms, over cases prepared by us and stored as it stores its own."""
    augmenters = importlib.import_module("batchgenerators.dataloading.single_threaded_augmenter")
    threaded = importlib.import_module("batchgenerators.dataloading.nondet_multi_threaded_augmenter")
    loading = importlib.import_module("nnunetv2.training.dataloading.data_loader")
    trainer = importlib.import_module("nnunetv2.training.nnUNetTrainer.nnUNetTrainer").nnUNetTrainer
    handling = importlib.import_module("nnunetv2.utilities.label_handling.label_handling")

    folder = source.cache / "nnunet"
    plan, prepared = planned(source)
    store = _nnunet_store(folder, prepared)
    angle = float(np.radians(CHANGES.rotation_degrees))
    transforms = trainer.get_training_transforms(
        np.array(PATCH), (-angle, angle), None, (0, 1, 2), False, use_mask_for_norm=[False]
    )
    names = {"background": 0, **{f"class {k}": k for k in range(1, plan.labels.classes)}}
    loader = loading.nnUNetDataLoader(
        store,
        plan.batch_size,
        _nnunet_box(),
        np.array(PATCH),
        handling.LabelManager(names, None),
        oversample_foreground_percent=0.33,
        transforms=transforms,
    )
    batches = (
        threaded.NonDetMultiThreadedAugmenter(loader, None, workers, num_cached=max(6, workers // 2))
        if workers
        else augmenters.SingleThreadedAugmenter(loader, None)
    )
    while True:
        yield len(next(batches)["data"])


def _nnunet_store(folder: Path, prepared: Mapping[str, Path]) -> Any:
    stored = importlib.import_module("nnunetv2.training.dataloading.nnunet_dataset")
    folder.mkdir(parents=True, exist_ok=True)
    for name, place in prepared.items():
        if (folder / f"{name}.b2nd").exists():
            continue
        case = read_prepared(place)
        assert case.label is not None
        blocks, chunks = stored.comp_blosc2_params(case.image.shape, PATCH)
        places = {k: np.insert(found, 0, 0, axis=1) for k, found in enumerate(case.places, start=1)}
        stored.nnUNetDatasetBlosc2.save_case(
            np.asarray(case.image, dtype=np.float32),
            np.asarray(case.label[None]).astype(np.int8),
            {"class_locations": places},
            str(folder / name),
            chunks=chunks,
            blocks=blocks,
        )
    return stored.nnUNetDatasetBlosc2(str(folder))


def _nnunet_box() -> Any:
    boxes = importlib.import_module("nnunetv2.training.data_augmentation.compute_initial_patch_size")
    angle = float(np.radians(CHANGES.rotation_degrees))
    return boxes.get_patch_size(np.array(PATCH), *[(-angle, angle)] * 3, (0.85, 1.25))


PIPELINES: Mapping[str, Callable[[Source, int], Batches]] = {
    "medcontext": medcontext,
    "monai": monai,
    "monai_full": monai_full,
    "nnunet": nnunet,
}
