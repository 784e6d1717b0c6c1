"""BraTS: brain tumours in four MRI sequences, segmented as regions that contain one another.

Labels of BraTS up to 2021 (Baid et al., arXiv 2107.02314): 1 necrotic core, 2 oedema, 4 enhancing tumour; from 2023 on
enhancing tumour is 3. The Decathlon's task 1 numbers otherwise: 1 oedema, 2 non-enhancing tumour, 3 enhancing tumour.
In BraTS 2024's glioma task 4 is a resection cavity; that download is refused rather than read wrongly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medcontext.data.recipes import msd
from medcontext.data.recipes.recipe import Contents, ListedCase, Recipe, require_complete
from medcontext.data.scan import read_labels
from medcontext.errors import MedContextError

CHANNELS = {"0": "FLAIR", "1": "T1", "2": "T1 post contrast", "3": "T2"}
"""In the order of the Decathlon's task 1."""

UP_TO_2021 = ("flair", "t1", "t1ce", "t2", "seg")
FROM_2023 = ("t2f", "t1n", "t1c", "t2w", "seg")
"""Endings of file names: the channels in order, then the label map."""

NAMES = (
    (re.compile(r"(BraTS\w+)_(flair|t1ce|t1|t2|seg)\.nii(?:\.gz)?"), UP_TO_2021, 4),
    (re.compile(r"(BraTS-[\w-]+)-(t2f|t1n|t1c|t2w|seg)\.nii(?:\.gz)?"), FROM_2023, 3),
)
"""How files are named, and the number of enhancing tumour that goes with it."""

LOOKED_AT = 10
"""Label maps read to find which number enhancing tumour has."""

LAYOUT = (
    "BraTS2021_00000/ with BraTS2021_00000_flair.nii.gz, _t1, _t1ce, _t2 and _seg; or BraTS-GLI-00000-000/ with "
    "BraTS-GLI-00000-000-t2f.nii.gz, -t1n, -t1c, -t2w and -seg; or the Decathlon's Task01_BrainTumour"
)


def read(folder: Path, files: Sequence[Path]) -> Contents:
    """What is in a folder of BraTS 2021, BraTS 2023 or the Decathlon's task 1.

    Raises:
        MedContextError: A sequence is missing, or the label map of some training cases or of all; several of the three
            are there; or the numbers of the labels don't fit.
    """
    found = [(each, own) for each in NAMES if (own := _files_of_cases(files, each[0]))]
    task = next(task for task in msd.TASKS if task.files == "BRATS_")
    decathlon = any(file.parent.name == "imagesTr" and file.name.startswith(task.files) for file in files)
    if len(found) + decathlon != 1:
        raise MedContextError(
            "Downloads of several years are in one folder.",
            file=folder,
            expected="one of them: their labels are numbered differently",
            remedy="import them one by one",
        )
    if decathlon:
        return _regions_of_decathlon(msd.read(folder, files, task=task))
    (_, endings, usual), by_name = found[0]
    cases = [_case(folder, name, own, endings) for name, own in sorted(by_name.items())]
    _require_labels(folder, cases)
    labels = [case.label for case in cases if case.label is not None]
    if not labels:
        raise MedContextError(
            "No case of this download has a label map.",
            file=folder,
            found=f"{len(cases)} cases without a file ending in 'seg.nii.gz'",
            expected=LAYOUT,
            remedy="download the training data; the validation data come without labels",
        )
    enhancing = _enhancing(labels, usual)
    return Contents(
        description={
            "name": "BraTS",
            "channel_names": CHANNELS,
            "labels": {
                "background": 0,
                "whole tumor": [1, 2, enhancing],
                "tumor core": [1, enhancing],
                "enhancing tumor": [enhancing],
            },
            "regions_class_order": [2, 1, enhancing],
        },
        protocol=_protocol(),
        cases=cases,
    )


def _files_of_cases(files: Sequence[Path], pattern: re.Pattern[str]) -> dict[str, dict[str, Path]]:
    """Case -> ending -> file."""
    cases: dict[str, dict[str, Path]] = {}
    for file in files:
        match = pattern.fullmatch(file.name)
        if match is None:
            continue
        own = cases.setdefault(match[1], {})
        if match[2] in own:
            raise MedContextError(
                "Two files are of the same case.",
                file=file,
                found=f"also {own[match[2]]}",
                remedy="give the folder of one copy of the download",
            )
        own[match[2]] = file
    return cases


def _case(folder: Path, name: str, files: Mapping[str, Path], endings: Sequence[str]) -> ListedCase:
    *channels, label = endings
    require_complete(folder, [f"{name}: {ending}.nii.gz" for ending in channels if ending not in files], LAYOUT)
    # BraTS-GLI-00012-001 is the second examination of patient 00012.
    patient = re.sub(r"^(BraTS-\w+-\d+)-\d{3}$", r"\1", name)
    return ListedCase(name, tuple(files[ending] for ending in channels), files.get(label), patient)


def _require_labels(folder: Path, cases: Sequence[ListedCase]) -> None:
    """Training and validation data lie in folders of their own: in one of them all cases have a label map, or none."""
    labelled = {case.label.parents[1] for case in cases if case.label is not None}
    missing = [
        f"{case.name}: seg.nii.gz" for case in cases if case.label is None and case.images[0].parents[1] in labelled
    ]
    require_complete(folder, missing, LAYOUT)


def _enhancing(labels: Sequence[Path], usual: int) -> int:
    """The number that this download uses, so that predictions are written with it."""
    numbers = {int(number) for path in labels[:LOOKED_AT] for number in np.unique(read_labels(path).array)}
    found = numbers & {3, 4}
    if len(found) == 2 or (usual == 3 and found == {4}):
        raise MedContextError(
            "The labels of this download are not those of BraTS up to 2023.",
            file=labels[0].parent,
            found=f"labels {', '.join(map(str, sorted(numbers)))} in the first {min(LOOKED_AT, len(labels))} cases",
            expected="enhancing tumour as 4 (up to 2021) or 3 (2023), and no label for a resection cavity (2024)",
            remedy="write a dataset.json and a case list for it by hand",
        )
    return found.pop() if found else usual


def _regions_of_decathlon(contents: Contents) -> Contents:
    regions = {
        "labels": {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]},
        "regions_class_order": [1, 2, 3],
    }
    return Contents({**contents.description, **regions}, _protocol(), contents.cases, contents.splits)


def _protocol() -> dict[str, Any]:
    """The spacing is the data's own; nnFormer's table I keeps it."""
    return {"spacing": [1.0, 1.0, 1.0]}


def recipes() -> list[Recipe]:
    """``brats``."""
    return [
        Recipe(
            name="brats",
            title="brain tumour MRI in four sequences, regions: whole tumor, tumor core, enhancing tumor",
            source="https://www.synapse.org/#!Synapse:syn25829067 (2021) or "
            "https://www.synapse.org/#!Synapse:syn51156910 (2023): register, accept the terms, download the training "
            "data; or fetch msd/Task01_BrainTumour",
            licence="the challenge's data use terms; CC-BY-SA 4.0 for the Decathlon's task 1",
            layout=LAYOUT,
            signature=re.compile(
                r"(^|/)(BraTS\w+_(flair|t1ce|t1|t2)|BraTS-[\w-]+-(t2f|t1n|t1c|t2w)|imagesTr/BRATS_[^/]*)\.nii(\.gz)?$"
            ),
            read=read,
        )
    ]
