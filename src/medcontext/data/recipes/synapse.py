"""Synapse, or BTCV: abdominal CT of the challenge "Multi-Atlas Labeling Beyond the Cranial Vault" (syn3193805).

Organs are numbered as on the challenge's page (https://www.synapse.org/#!Synapse:syn3193805/wiki/217789). Both splits
of its 30 labelled scans into 18 and 12 that are in use are here; scores on one say nothing about scores on the other.

- ``transunet``: Chen et al., TransUNet (arXiv 2102.04306), ``lists/lists_Synapse`` of Beckschen/TransUNet. nnFormer,
  UNETR++ and MedContext's nnFormer code use it.
- ``unetr``: ``dataset_18_12.json`` of MedContext's UNETR code (hananshafi/MedContext), which calls the 12 "validation".

The eight organs are those that TransUNet and its successors report. Window and spacing are the defaults of MedContext's
UNETR code, which has them from MONAI's research-contributions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from medcontext.data.recipes.recipe import (
    Contents,
    ListedCase,
    Recipe,
    by_case,
    published_split,
    require_complete,
)

ORGANS = (
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "portal and splenic vein",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
)
"""The first has number 1."""

EIGHT = ("aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach")

LABELLED = (*range(1, 11), *range(21, 41))
"""Numbers of the labelled scans; 61 to 80 are the challenge's test images."""

TRANSUNET_TEST = (1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38)
UNETR_TEST = tuple(range(29, 41))
FEW_SHOT = {1: (6,), 5: (6, 7, 9, 10, 21)}
"""Training scans of the few-shot trials that MedContext's released nnFormer code names beside the full training set."""

HASHES = {
    "transunet": "88798a8c94f88cd00df9d3f409ffeee2f67dd3a438643cdfaecbcddc86d73b5b",
    "unetr": "6e32f4a8830dbbc90b108eeeec63a859d31a4deff7610fb4c4c1973f8e87f451",
    "transunet-few-1": "3243db221e76807f3c91615da80743d873000a4fcf7a7f63c7fc28e5b26006cb",
    "transunet-few-5": "1e06092709fb40fa1d575195f712b0ffc7ac6aede5ba42da54a3f92150925d7e",
}
"""Of each split, by :func:`medcontext.data.recipes.recipe.split_hash`."""

LAYOUT = (
    "RawData/Training/img/img0001.nii.gz and RawData/Training/label/label0001.nii.gz, numbers 0001 to 0010 and "
    "0021 to 0040"
)


def read(folder: Path, files: Sequence[Path], *, organs: Sequence[str]) -> Contents:
    """What is in a folder with the challenge's ``RawData``; files are known by their names, wherever they lie.

    Args:
        folder: Of the download.
        files: In it.
        organs: To segment; the others count as background.

    Raises:
        MedContextError: A labelled scan is missing, or there twice.
    """
    images = by_case(files, r"img(\d{4})\.nii(?:\.gz)?")
    labels = by_case(files, r"label(\d{4})\.nii(?:\.gz)?")
    wanted = [f"{number:04d}" for number in LABELLED]
    missing = [f"img{number}" for number in wanted if number not in images]
    missing += [f"label{number}" for number in wanted if number not in labels]
    require_complete(folder, missing, LAYOUT)
    numbers = {organ: number for number, organ in enumerate(ORGANS, start=1)}
    description = {
        "name": f"Synapse, {len(organs)} organs",
        "channel_names": {"0": "CT"},
        "labels": {"background": 0} | {organ: number for organ, number in numbers.items() if organ in organs},
        "background_labels": {organ: number for organ, number in numbers.items() if organ not in organs},
    }
    protocol = {"spacing": [2.0, 1.5, 1.5], "clip": [-175, 250], "few_shot": list(FEW_SHOT)}
    cases = [
        ListedCase(f"img{number}", (image,), labels.get(number), patient=f"img{number}")
        for number, image in images.items()
    ]
    return Contents(description, protocol, cases, splits())


def splits() -> list[dict[str, Any]]:
    """Both published splits, and the few-shot ones of the first."""
    published = [
        ("transunet", "TransUNet, arXiv 2102.04306, lists/lists_Synapse", set(LABELLED) - set(TRANSUNET_TEST)),
        ("unetr", "dataset_18_12.json of MedContext's UNETR code", set(LABELLED) - set(UNETR_TEST)),
    ]
    published += [
        (f"transunet-few-{count}", "nnFormerTrainerV2_nnformer_synapse.py of MedContext's code", set(train))
        for count, train in FEW_SHOT.items()
    ]
    return [
        published_split(
            name,
            source,
            train=[f"img{number:04d}" for number in train],
            test=[f"img{number:04d}" for number in (UNETR_TEST if name == "unetr" else TRANSUNET_TEST)],
        )
        for name, source, train in published
    ]


def recipes() -> list[Recipe]:
    """``synapse``, with the eight organs that papers report, and ``synapse13``, with all."""
    return [
        Recipe(
            name=name,
            title=f"abdominal CT, 30 labelled scans, {len(organs)} organs (BTCV)",
            source="https://www.synapse.org/#!Synapse:syn3193805: register, join the challenge, and download "
            "Files / Abdomen / RawData.zip",
            licence="the challenge's terms of use, accepted on joining it",
            layout=LAYOUT,
            signature=re.compile(r"(^|/)label\d{4}\.nii(\.gz)?$"),
            read=partial(read, organs=organs),
        )
        for name, organs in (("synapse", EIGHT), ("synapse13", ORGANS))
    ]
