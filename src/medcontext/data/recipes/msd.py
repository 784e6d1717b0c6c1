"""The Medical Segmentation Decathlon (Antonelli et al., Nature Communications 13:4128, 2022; arXiv 1902.09063).

Addresses and MD5 sums of the archives are those of MONAI's ``DecathlonDataset``, on the Open Data bucket of AWS. How
the labelled cases of task 1 are split into 387, 73 and 24 is nnFormer's way: ``tumor_dataset.json`` of
282857341/nnFormer has the last 24, the trainer in MedContext's nnFormer code lists the others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from medcontext.data.recipes.recipe import Contents, Download, ListedCase, Recipe, published_split, require_complete
from medcontext.data.scan import case_name
from medcontext.errors import MedContextError
from medcontext.files import read_json

URL = "https://msd-for-monai.s3-us-west-2.amazonaws.com/{task}.tar"


@dataclass(frozen=True)
class Task:
    """A task: how its files' names begin, what it is, how large its archive is about, and the archive's MD5 sum."""

    name: str
    files: str
    title: str
    size: str
    md5: str


TASKS = (
    Task(
        "Task01_BrainTumour",
        "BRATS_",
        "brain tumour, MRI (FLAIR, T1w, t1gd, T2w), 484 labelled",
        "7.1 GB",
        "240a19d752f0d9e9101544901065d872",
    ),
    Task("Task02_Heart", "la_", "left atrium, MRI, 20 labelled", "440 MB", "06ee59366e1e5124267b774dbd654057"),
    Task("Task03_Liver", "liver_", "liver and tumour, CT, 131 labelled", "27 GB", "a90ec6c4aa7f6a3d087205e23d4e6397"),
    Task(
        "Task04_Hippocampus",
        "hippocampus_",
        "hippocampus, anterior and posterior, MRI, 260 labelled",
        "28 MB",
        "9d24dba78a72977dbd1d2e110310f31b",
    ),
    Task(
        "Task05_Prostate",
        "prostate_",
        "prostate zones, MRI (T2, ADC), 32 labelled",
        "240 MB",
        "35138f08b1efaef89d7424d2bcc928db",
    ),
    Task("Task06_Lung", "lung_", "lung tumour, CT, 63 labelled", "8.5 GB", "8afd997733c7fc0432f71255ba4e52dc"),
    Task(
        "Task07_Pancreas",
        "pancreas_",
        "pancreas and tumour, CT, 281 labelled",
        "11.5 GB",
        "4f7080cfca169fa8066d17ce6eb061e4",
    ),
    Task(
        "Task08_HepaticVessel",
        "hepaticvessel_",
        "liver vessels and tumour, CT, 303 labelled",
        "8.7 GB",
        "641d79e80ec66453921d997fbf12a29c",
    ),
    Task("Task09_Spleen", "spleen_", "spleen, CT, 41 labelled", "1.5 GB", "410d4a301da4e5b2f6f86ec3ddba524e"),
    Task("Task10_Colon", "colon_", "colon cancer, CT, 126 labelled", "5.8 GB", "bad7a188931dc2f6acf72b08eb6202d0"),
)

TUMOUR_VALIDATION = (
    *(11, 12, 18, 20, 21, 28, 29, 32, 34, 36, 41, 47, 49, 53, 56, 57, 69, 71, 89, 90, 92, 95, 103, 105, 106, 107, 109),
    *(
        118,
        145,
        147,
        156,
        161,
        172,
        176,
        181,
        194,
        196,
        198,
        204,
        205,
        209,
        220,
        221,
        227,
        234,
        235,
        245,
        250,
        256,
        257,
    ),
    *(
        260,
        269,
        270,
        271,
        281,
        282,
        287,
        289,
        291,
        292,
        310,
        314,
        323,
        327,
        330,
        333,
        337,
        346,
        350,
        352,
        361,
        382,
        397,
    ),
)
TUMOUR_TEST = (
    *(
        58,
        59,
        76,
        77,
        99,
        113,
        114,
        124,
        139,
        151,
        152,
        157,
        190,
        240,
        242,
        295,
        305,
        325,
        331,
        362,
        389,
        425,
        432,
        450,
    ),
)
TUMOUR_HASH = "d87048bdafa886947d492b2a847b4f9fa84e324ccdd02c4552c73b356c172470"
"""Of task 1's split, by :func:`medcontext.data.recipes.recipe.split_hash`."""


def tumour_split() -> dict[str, Any]:
    """Of task 1: 387 cases to train on, 73 to validate, 24 to test."""
    train = set(range(1, 485)) - set(TUMOUR_VALIDATION) - set(TUMOUR_TEST)
    return published_split(
        "nnformer",
        "nnFormer, arXiv 2109.03201, tumor_dataset.json and trainer",
        train=map(_tumour, train),
        validation=map(_tumour, TUMOUR_VALIDATION),
        test=map(_tumour, TUMOUR_TEST),
    )


def read(folder: Path, files: Sequence[Path], *, task: Task) -> Contents:
    """What ``dataset.json`` of a task lists.

    Raises:
        MedContextError: No usable ``dataset.json`` beside ``imagesTr``, or a file that it lists is missing.
    """
    root = _root(folder, files, task)
    described = read_json(root / "dataset.json")
    try:
        labels = {str(name): int(number) for number, name in described["labels"].items()}
        channels = {str(int(number)): str(name) for number, name in described["modality"].items()}
        pairs = [(_inside(root, entry["image"]), _inside(root, entry["label"])) for entry in described["training"]]
        images = [_inside(root, entry) for entry in described.get("test", [])]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MedContextError(
            "This dataset.json is not the Decathlon's.",
            file=root / "dataset.json",
            found=f"{type(error).__name__}: {error}",
            expected="'labels', 'modality', 'training' and 'test' as the Decathlon writes them",
            remedy="unpack the archive again",
        ) from None
    there = set(files)
    listed = [file for pair in pairs for file in pair] + images
    missing = [file.relative_to(root).as_posix() for file in listed if file not in there]
    require_complete(root, missing, "every file that dataset.json lists")
    cases = [ListedCase(case_name(image), (image,), label, _patient(case_name(image))) for image, label in pairs]
    cases += [ListedCase(case_name(image), (image,), None, _patient(case_name(image))) for image in images]
    split = tumour_split()
    whole = {name for names in split["folds"][0].values() for name in names} <= {case.name for case in cases}
    return Contents(
        {"name": str(described.get("name", task.name)), "channel_names": channels, "labels": labels},
        {},
        cases,
        [split] if whole else [],
    )


def _root(folder: Path, files: Sequence[Path], task: Task) -> Path:
    """The task's own folder, somewhere in ``folder``."""
    images = {file.parents[1] for file in files if file.parent.name == "imagesTr" and file.name.startswith(task.files)}
    roots = [file.parent for file in files if file.name == "dataset.json" and file.parent in images]
    if len(roots) != 1:
        raise MedContextError(
            f"{'No' if not roots else 'More than one'} folder of {task.name} is here.",
            file=folder,
            found=", ".join(map(str, roots)) or "scans of the task, but no dataset.json beside their folder imagesTr",
            expected=f"one {task.name} with dataset.json, imagesTr and labelsTr",
            remedy="give the folder of one copy of the task, whole",
        )
    return roots[0]


def _inside(root: Path, name: str) -> Path:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"{name} leads out of the folder")
    return root / relative


def _patient(name: str) -> str:
    """Whose scan a case is.

    No task says. But hippocampi of an odd number and the next are the left and the right one of one person, by all that
    can be seen: their intensities agree in every such pair, and in few others. They are called as the first of them.
    """
    number = re.fullmatch(r"hippocampus_(\d+)", name)
    return name if number is None else f"hippocampus_{(int(number[1]) - 1) // 2 * 2 + 1:03d}"


def _tumour(number: int) -> str:
    return f"BRATS_{number:03d}"


def recipes() -> list[Recipe]:
    """``msd/Task01_BrainTumour`` to ``msd/Task10_Colon``."""
    return [
        Recipe(
            name=f"msd/{task.name}",
            title=f"{task.title}, about {task.size}",
            source=f"{URL.format(task=task.name)} or http://medicaldecathlon.com",
            licence="CC-BY-SA 4.0",
            layout=f"{task.name}/ with dataset.json, imagesTr/{task.files}*.nii.gz and labelsTr/{task.files}*.nii.gz",
            signature=re.compile(rf"(^|/)imagesTr/{task.files}[^/]*\.nii(\.gz)?$"),
            read=partial(read, task=task),
            download=Download(URL.format(task=task.name), task.md5),
        )
        for task in TASKS
    ]
