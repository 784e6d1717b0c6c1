"""ACDC: cine MRI of the heart at end-diastole and end-systole (Bernard et al., IEEE TMI 37(11), 2018).

100 patients in five groups of 20 (NOR, MINF, DCM, HCM, RV), and 50 more in ``testing``. The split of the 100 into 70,
10 and 20 patients is the one that nnFormer (arXiv 2109.03201), UNETR++ and MedContext train and test on: the lists of
``unetr_pp_trainer_acdc.py`` (Amshaker/unetr_plus_plus) and ``ACDC_dataset.json`` (282857341/nnFormer). The spacing is
from nnFormer's table I.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medcontext.data.recipes.recipe import Contents, ListedCase, Recipe, published_split, require_complete
from medcontext.errors import MedContextError

VALIDATION = (89, 90, 91, 93, 94, 96, 97, 98, 99, 100)
TEST = (2, 3, 8, 9, 12, 14, 17, 24, 42, 48, 49, 53, 55, 64, 67, 79, 81, 88, 92, 95)
TRAINING = range(1, 101)
"""Numbers of the patients in ``training``; those in ``testing`` come after."""

FEW_SHOT = (
    "patient001_frame12",
    "patient004_frame15",
    "patient005_frame01",
    "patient013_frame14",
    "patient043_frame07",
)
"""What MedContext's released few-shot code trains on (``nnFormerTrainerV2_nnformer_acdc_2.py``)."""

PATIENTS_HASH = "d99de192538e36f5dd6f63c21c55de2f9a3464c73c18c0cea713d4acf6f4d57d"
"""Of the split by patients, by :func:`medcontext.data.recipes.recipe.split_hash`."""

LAYOUT = (
    "training/patient001/ with Info.cfg, patient001_frame01.nii.gz, patient001_frame01_gt.nii.gz and so on for "
    "patients 001 to 100, with or without the folder 'training'; testing/patient101/ and so on may be there"
)


def read(folder: Path, files: Sequence[Path]) -> Contents:
    """What is in a folder of ACDC: of each patient the two frames that ``Info.cfg`` names; films over time are left.

    Raises:
        MedContextError: A patient, ``Info.cfg``, a frame or a label map is missing, or a patient is there twice.
    """
    patients: dict[str, dict[str, Path]] = {}
    for file in files:
        if re.fullmatch(r"patient\d{3}", file.parent.name):
            own = patients.setdefault(file.parent.name, {})
            other = next(iter(own.values()), file)
            if other.parent != file.parent:
                raise MedContextError(
                    "Two folders are of the same patient.",
                    file=file.parent,
                    found=f"also {other.parent}",
                    remedy="give the folder of one copy of the download",
                )
            own[file.name.removesuffix(".gz").removesuffix(".nii")] = file
    absent = [_patient(number) for number in TRAINING if _patient(number) not in patients]
    require_complete(folder, absent, LAYOUT)
    cases = [case for name, own in sorted(patients.items()) for case in _frames(folder, name, own)]
    description = {
        "name": "ACDC",
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "right ventricle": 1, "myocardium": 2, "left ventricle": 3},
    }
    protocol = {"spacing": [6.35, 1.52, 1.52], "few_shot": [len(FEW_SHOT)]}
    return Contents(description, protocol, cases, _splits(cases))


def split_of_patients() -> dict[str, Any]:
    """The published split, in patients."""
    train = set(TRAINING) - set(VALIDATION) - set(TEST)
    return published_split(
        "nnformer",
        "nnFormer, arXiv 2109.03201; unetr_pp_trainer_acdc.py of Amshaker/unetr_plus_plus",
        train=map(_patient, train),
        validation=map(_patient, VALIDATION),
        test=map(_patient, TEST),
    )


def _patient(number: int) -> str:
    return f"patient{number:03d}"


def _frames(folder: Path, patient: str, files: dict[str, Path]) -> list[ListedCase]:
    """The two labelled phases of a patient."""
    require_complete(folder, [] if "Info.cfg" in files else [f"{patient}/Info.cfg"], LAYOUT)
    info = _read_info(files["Info.cfg"])
    cases = []
    for frame in sorted({info["ED"], info["ES"]}, key=int):
        name = f"{patient}_frame{int(frame):02d}"
        label = files.get(f"{name}_gt")
        missing = [] if name in files else [f"{patient}/{name}.nii.gz"]
        if label is None and int(patient.removeprefix("patient")) in TRAINING:
            missing.append(f"{patient}/{name}_gt.nii.gz")
        require_complete(folder, missing, LAYOUT)
        cases.append(ListedCase(name, (files[name],), label, patient, info.get("Group") or None))
    return cases


def _read_info(file: Path) -> dict[str, str]:
    """``Info.cfg``: a key, a colon and a value per line."""
    text = file.read_text(encoding="utf-8", errors="replace")
    info = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    if not all(info.get(phase, "").isdecimal() for phase in ("ED", "ES")):
        raise MedContextError(
            "This file does not say which frames are end-diastole and end-systole.",
            file=file,
            found=text[:120].replace("\n", ", ") or "an empty file",
            expected="lines such as 'ED: 1' and 'ES: 12'",
            remedy="download or unpack it again",
        )
    return info


def _splits(cases: Sequence[ListedCase]) -> list[dict[str, Any]]:
    published = split_of_patients()
    fold = {
        part: [case.name for case in cases if case.patient in patients]
        for part, patients in published["folds"][0].items()
    }
    splits = [published_split(published["name"], published["source"], **fold)]
    if set(FEW_SHOT) <= set(fold["train"]):
        few = "nnFormerTrainerV2_nnformer_acdc_2.py of MedContext's code"
        splits.append(published_split(f"nnformer-few-{len(FEW_SHOT)}", few, **fold | {"train": list(FEW_SHOT)}))
    training = {_patient(number) for number in TRAINING}
    held_out = [case.name for case in cases if case.patient not in training and case.label is not None]
    if held_out:
        train = [case.name for case in cases if case.patient in training]
        splits.append(published_split("official", "the folders training and testing", train=train, test=held_out))
    return splits


def recipes() -> list[Recipe]:
    """``acdc``."""
    return [
        Recipe(
            name="acdc",
            title="cardiac cine MRI, 100 labelled patients at two phases, ventricles and myocardium",
            source="https://humanheart-project.creatis.insa-lyon.fr/database/ (before: "
            "https://www.creatis.insa-lyon.fr/Challenge/acdc): download the collection ACDC",
            licence="for research, on the challenge's terms; cite Bernard et al. 2018",
            layout=LAYOUT,
            signature=re.compile(r"(^|/)(patient\d{3})/\2_frame\d{2}\.nii(\.gz)?$"),
            read=read,
        )
    ]
