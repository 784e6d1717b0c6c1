from __future__ import annotations

import ast
import contextlib
import functools
import gzip
import hashlib
import http.server
import importlib.util
import itertools
import json
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medcontext.data.dataset import open_dataset
from medcontext.data.recipes import RECIPES, acdc, fetch_dataset, import_dataset, importing, msd, synapse, where_to_get
from medcontext.data.recipes.recipe import Download, split_hash
from medcontext.errors import MedContextError
from medcontext.progress import Progress


@functools.cache
def scan(*labels: int) -> bytes:
    """A tiny NIfTI file with these values."""
    array = np.array([0, *labels, 0, 0, 0], dtype=np.uint8)[:4].reshape(1, 2, 2)
    return gzip.compress(nib.Nifti1Image(array, np.diag([1.0, 1.0, 3.0, 1.0])).to_bytes())


def put(path: Path, content: bytes | str = b"") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content or scan())


def btcv(root: Path, top: str = "RawData") -> Path:
    for number in (*range(1, 11), *range(21, 41)):
        put(root / top / f"Training/img/img{number:04d}.nii.gz")
        put(root / top / f"Training/label/label{number:04d}.nii.gz", scan(1, 5, 11))
    put(root / top / "Testing/img/img0061.nii.gz")
    put(root / top / "Training/img/.DS_Store", "junk")
    put(root / top / "Training/img/._img0001.nii.gz", "junk")
    put(root / ".Trash" / "img0001.nii.gz", "an old copy")
    return root


def cardiac(root: Path, top: str = "ACDC/database/training", testing: str = "ACDC/database/testing") -> Path:
    """Patients 004, 013, 043 and 090 have the frames that they have in the official download."""
    groups = ("DCM", "HCM", "MINF", "NOR", "RV")
    for number in range(1, 103):
        name = f"patient{number:03d}"
        folder = root / (top if number <= 100 else testing) / name
        diastole, systole = {4: (1, 15), 13: (1, 14), 43: (1, 7), 90: (11, 4)}.get(number, (1, 12))
        group = groups[(number - 1) // 20 % 5]
        info = f"ED: {diastole}\nES: {systole}\nGroup: {group}\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n"
        put(folder / "Info.cfg", info)
        put(folder / f"{name}_4d.nii.gz")
        for frame in (diastole, systole):
            put(folder / f"{name}_frame{frame:02d}.nii.gz")
            put(folder / f"{name}_frame{frame:02d}_gt.nii.gz", scan(1, 2, 3))
    put(root / "ACDC" / "database" / "MANDATORY_CITATION.md", "cite")
    return root


def brats_2021(root: Path, labels: tuple[int, ...] = (1, 2, 4)) -> Path:
    for number in (0, 2, 3):
        name = f"BraTS2021_{number:05d}"
        for ending in ("flair", "t1", "t1ce", "t2"):
            put(root / name / f"{name}_{ending}.nii.gz")
        put(root / name / f"{name}_seg.nii.gz", scan(*labels))
    return root


def brats_2023(root: Path, labels: tuple[int, ...] = (1, 2, 3)) -> Path:
    for name in ("BraTS-GLI-00000-000", "BraTS-GLI-00012-000", "BraTS-GLI-00012-001"):
        folder = root / "ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData" / name
        for ending in ("t1c", "t1n", "t2f", "t2w"):
            put(folder / f"{name}-{ending}.nii.gz")
        put(folder / f"{name}-seg.nii.gz", scan(*labels))
    return root


def decathlon(root: Path, task: str = "Task04_Hippocampus", cases: tuple[int, ...] = (1, 3, 4)) -> Path:
    modality, labels, names = {
        "Task01_BrainTumour": (
            {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
            {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
            "BRATS",
        ),
        "Task04_Hippocampus": ({"0": "MRI"}, {"0": "background", "1": "Anterior", "2": "Posterior"}, "hippocampus"),
        "Task09_Spleen": ({"0": "CT"}, {"0": "background", "1": "spleen"}, "spleen"),
    }[task]
    files = [f"{names}_{number:03d}.nii.gz" for number in cases]
    for file in files:
        put(root / task / "imagesTr" / file)
        put(root / task / "labelsTr" / file, scan(1))
        put(root / task / "imagesTr" / f"._{file}", "junk")
    put(root / task / "imagesTs" / f"{names}_999.nii.gz")
    description = {
        "name": names.upper(),
        "licence": "CC-BY-SA 4.0",
        "modality": modality,
        "labels": labels,
        "numTraining": len(files),
        "training": [{"image": f"./imagesTr/{file}", "label": f"./labelsTr/{file}"} for file in files],
        "test": [f"./imagesTs/{names}_999.nii.gz"],
    }
    put(root / task / "dataset.json", json.dumps(description))
    return root


def tumours(root: Path) -> Path:
    return decathlon(root, "Task01_BrainTumour", tuple(range(1, 485)))


TREES: dict[str, tuple[str, Callable[[Path], Path], int, int]] = {
    "synapse": ("synapse", btcv, 30, 1),
    "synapse13": ("synapse13", functools.partial(btcv, top="a/b/RawData"), 30, 1),
    "acdc": ("acdc", cardiac, 204, 0),
    "acdc before": ("acdc", functools.partial(cardiac, top=".", testing="."), 204, 0),
    "brats 2021": ("brats", brats_2021, 3, 0),
    "brats 2023": ("brats", brats_2023, 3, 0),
    "brats of the Decathlon": ("brats", functools.partial(decathlon, task="Task01_BrainTumour"), 3, 1),
    "hippocampus": ("msd/Task04_Hippocampus", decathlon, 3, 1),
}
"""Recipe, how its download lies on disk, and the number of labelled cases and of test images in it."""


def pack(folder: Path, to: Path) -> Path:
    """As people pack it: with folders, and with what macOS leaves beside every file."""
    files = sorted(path for path in folder.rglob("*"))
    if to.suffix == ".zip":
        with zipfile.ZipFile(to, "w") as packed:
            for path in files:
                packed.write(path, path.relative_to(folder))
            packed.writestr("__MACOSX/._img0001.nii.gz", "junk")
    else:
        with tarfile.open(to, "w:gz" if to.suffix == ".gz" else "w") as tape:
            for path in files:
                tape.add(path, path.relative_to(folder), recursive=False)
    return to


def case_lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "cases.jsonl").read_text().splitlines()]


def described(out: Path) -> dict[str, Any]:
    return json.loads((out / "dataset.json").read_text())


def fold_of(out: Path, split: str) -> dict[str, list[str]]:
    content = json.loads((out / "splits" / f"{split}.json").read_text())
    assert content["name"] == split
    assert content["source"]
    (fold,) = content["folds"]
    return fold


def all_files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("tree", "kind"),
    [(tree, "folder") for tree in TREES]
    + [(tree, "zip") for tree in TREES if tree != "acdc before"]
    + [(tree, "tar.gz") for tree in ("synapse", "brats 2021", "hippocampus")],
)
def test_an_official_download_becomes_a_data_set(tmp_path, tree, kind):
    recipe, build, labelled, test = TREES[tree]
    source = build(tmp_path / "download")
    before = all_files(source)
    if kind != "folder":
        source = pack(source, tmp_path / f"download.{kind}")
        shutil.rmtree(tmp_path / "download")
    out = tmp_path / "made"
    assert import_dataset(recipe, source, out) == out
    if kind == "folder":
        assert all_files(source) == before
        assert not (out / "scans").exists()
    else:
        out = out.rename(tmp_path / "moved")
    for line in case_lines(out):
        for path in [*line["images"], *([line["label"]] if line["label"] else [])]:
            assert (out / path).is_file()
            assert not Path(path).name.startswith(".")
            assert Path(path).is_absolute() == (kind == "folder")
    dataset = open_dataset(out)
    assert (len(dataset.cases), len(dataset.test)) == (labelled, test)
    assert dataset.labels
    assert described(out)["recipe"] == recipe
    assert described(out)["numTraining"] == labelled
    for file in (out / "splits").glob("*.json"):
        fold = fold_of(out, file.stem)
        names = [name for part in fold.values() for name in part]
        assert len(set(names)) == len(names)
        assert set(names) <= set(dataset.cases)


def test_synapse_has_both_published_splits(tmp_path):
    out = import_dataset("synapse", btcv(tmp_path / "download"), tmp_path / "out")
    transunet = fold_of(out, "transunet")
    assert transunet["test"] == [f"img{n:04d}" for n in (1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38)]
    # As MedContext's nnFormer code lists them.
    assert transunet["train"] == [
        f"img{n:04d}" for n in (5, 6, 7, 9, 10, 21, 23, 24, 26, 27, 28, 30, 31, 33, 34, 37, 39, 40)
    ]
    unetr = fold_of(out, "unetr")
    assert unetr["train"] == [f"img{n:04d}" for n in (*range(1, 11), *range(21, 29))]
    assert unetr["test"] == [f"img{n:04d}" for n in range(29, 41)]
    assert transunet["validation"] == unetr["validation"] == []
    few = [fold_of(out, f"transunet-few-{count}") for count in described(out)["protocol"]["few_shot"]]
    assert set(few[0]["train"]) < set(few[1]["train"]) < set(transunet["train"])
    assert few[0]["test"] == few[1]["test"] == transunet["test"]


def test_published_splits_have_their_hashes():
    assert {split["name"]: split_hash(split) for split in synapse.splits()} == synapse.HASHES
    assert split_hash(acdc.split_of_patients()) == acdc.PATIENTS_HASH
    assert split_hash(msd.tumour_split()) == msd.TUMOUR_HASH
    # Computed apart from split_hash: the folds as JSON with sorted keys and names.
    by_hand = (
        '[{"test": ["img0029", "img0030", "img0031", "img0032", "img0033", "img0034", "img0035", "img0036", "img0037", '
        '"img0038", "img0039", "img0040"], "train": ["img0001", "img0002", "img0003", "img0004", "img0005", "img0006", '
        '"img0007", "img0008", "img0009", "img0010", "img0021", "img0022", "img0023", "img0024", "img0025", "img0026", '
        '"img0027", "img0028"], "validation": []}]'
    )
    assert hashlib.sha256(by_hand.encode()).hexdigest() == synapse.HASHES["unetr"]


def test_synapse_segments_eight_organs_and_counts_the_others_as_background(tmp_path):
    source = btcv(tmp_path / "download")
    eight = described(import_dataset("synapse", source, tmp_path / "eight"))
    assert eight["labels"] == {
        "background": 0,
        "spleen": 1,
        "right kidney": 2,
        "left kidney": 3,
        "gallbladder": 4,
        "liver": 6,
        "stomach": 7,
        "aorta": 8,
        "pancreas": 11,
    }
    assert eight["background_labels"]["esophagus"] == 5
    assert set(eight["background_labels"].values()) == {5, 9, 10, 12, 13}
    assert eight["protocol"]["spacing"] == [2.0, 1.5, 1.5]
    assert eight["protocol"]["clip"] == [-175, 250]
    assert open_dataset(tmp_path / "eight").labels.declared == frozenset(range(14))
    all_organs = described(import_dataset("synapse13", source, tmp_path / "all"))
    assert set(all_organs["labels"].values()) == set(range(14))
    assert all_organs["background_labels"] == {}


def test_acdc_takes_the_two_frames_that_info_names_and_splits_by_patient(tmp_path):
    out = import_dataset("acdc", cardiac(tmp_path / "download"), tmp_path / "out")
    lines = {line["name"]: line for line in case_lines(out)}
    assert {name for name in lines if name.startswith("patient090")} == {"patient090_frame04", "patient090_frame11"}
    assert lines["patient021_frame12"]["patient"] == "patient021"
    assert lines["patient021_frame12"]["stratum"] == "HCM"
    assert lines["patient021_frame12"]["label"].endswith("patient021_frame12_gt.nii.gz")
    assert described(out)["labels"] == {"background": 0, "right ventricle": 1, "myocardium": 2, "left ventricle": 3}
    fold = fold_of(out, "nnformer")
    patients = {part: {lines[name]["patient"] for name in names} for part, names in fold.items()}
    assert {part: len(names) for part, names in fold.items()} == {"train": 140, "validation": 20, "test": 40}
    assert {part: len(names) for part, names in patients.items()} == {"train": 70, "validation": 10, "test": 20}
    assert set.union(*patients.values()) == {f"patient{n:03d}" for n in range(1, 101)}
    assert patients["validation"] == {f"patient{n:03d}" for n in (89, 90, 91, 93, 94, 96, 97, 98, 99, 100)}
    assert {"patient002", "patient095"} < patients["test"]
    few = fold_of(out, "nnformer-few-5")
    assert len(few["train"]) == 5
    assert set(few["train"]) < set(fold["train"])
    assert few["test"] == fold["test"]
    official = fold_of(out, "official")
    assert {lines[name]["patient"] for name in official["test"]} == {"patient101", "patient102"}


def test_acdc_test_patients_may_have_no_labels_but_training_patients_must(tmp_path):
    source = cardiac(tmp_path / "download")
    testing, training = source / "ACDC/database/testing", source / "ACDC/database/training"
    for path in testing.rglob("*_gt.nii.gz"):
        path.unlink()
    out = import_dataset("acdc", source, tmp_path / "out")
    assert sum(line["label"] is None for line in case_lines(out)) == 4
    assert not (out / "splits" / "official.json").exists()
    (training / "patient007" / "patient007_frame12_gt.nii.gz").unlink()
    with pytest.raises(MedContextError, match="not complete") as error:
        import_dataset("acdc", source, tmp_path / "other")
    assert "patient007/patient007_frame12_gt.nii.gz" in error.value.found
    (training / "patient003" / "Info.cfg").unlink()
    with pytest.raises(MedContextError, match="not complete") as error:
        import_dataset("acdc", source, tmp_path / "other")
    assert "patient003/Info.cfg" in error.value.found
    put(training / "patient003" / "Info.cfg", "Group: DCM\nED one\n")
    with pytest.raises(MedContextError, match="end-diastole") as error:
        import_dataset("acdc", source, tmp_path / "other")
    assert error.value.file.endswith("patient003/Info.cfg")
    shutil.rmtree(training / "patient050")
    with pytest.raises(MedContextError, match="not complete") as error:
        import_dataset("acdc", source, tmp_path / "other")
    assert "patient050" in error.value.found
    assert not (tmp_path / "other" / "cases.jsonl").exists()


@pytest.mark.parametrize(
    ("build", "labels", "written"),
    [
        (brats_2021, (1, 2, 4), 4),
        (brats_2021, (1, 2), 4),
        (brats_2021, (1, 2, 3), 3),
        (brats_2023, (1, 2, 3), 3),
        (brats_2023, (2,), 3),
    ],
)
def test_brats_regions_are_written_with_the_number_that_the_download_uses(tmp_path, build, labels, written):
    out = import_dataset("brats", build(tmp_path / "download", labels), tmp_path / "out")
    content = described(out)
    assert content["labels"] == {
        "background": 0,
        "whole tumor": [1, 2, written],
        "tumor core": [1, written],
        "enhancing tumor": [written],
    }
    assert content["regions_class_order"] == [2, 1, written]
    regions = ["whole tumor", "tumor core", "enhancing tumor"]
    assert [region.name for region in open_dataset(out).labels.regions] == regions


def test_linked_folders_of_a_download_are_looked_into(tmp_path):
    real = brats_2021(tmp_path / "elsewhere")
    (tmp_path / "download").mkdir()
    for folder in real.iterdir():
        (tmp_path / "download" / folder.name).symlink_to(folder)
    (tmp_path / "download" / "loop").symlink_to(tmp_path / "download")
    linked, plain = (import_dataset("brats", source, tmp_path / f"{k}") for k, source in
                     enumerate((tmp_path / "download", real)))  # fmt: skip
    assert open_dataset(linked).cases.keys() == open_dataset(plain).cases.keys() != set()


def test_brats_channels_have_one_order_whatever_their_names(tmp_path):
    endings = {}
    for build in (brats_2021, brats_2023):
        out = import_dataset("brats", build(tmp_path / build.__name__), tmp_path / f"{build.__name__}-out")
        endings[build] = [[Path(path).name[:-7].split("_")[-1].split("-")[-1] for path in line["images"]]
                          for line in case_lines(out)]  # fmt: skip
        assert described(out)["channel_names"]["0"] == "FLAIR"
    assert endings[brats_2021] == [["flair", "t1", "t1ce", "t2"]] * 3
    assert endings[brats_2023] == [["t2f", "t1n", "t1c", "t2w"]] * 3
    lines = case_lines(tmp_path / "brats_2023-out")
    assert [line["patient"] for line in lines] == ["BraTS-GLI-00000", "BraTS-GLI-00012", "BraTS-GLI-00012"]


def test_brats_of_the_decathlon_has_the_decathlons_numbers(tmp_path):
    out = import_dataset("brats", tumours(tmp_path / "download"), tmp_path / "out")
    content = described(out)
    assert content["labels"] == {
        "background": 0,
        "whole tumor": [1, 2, 3],
        "tumor core": [2, 3],
        "enhancing tumor": [3],
    }
    assert content["regions_class_order"] == [1, 2, 3]
    assert list(content["channel_names"].values()) == ["FLAIR", "T1w", "t1gd", "T2w"]
    assert all(len(line["images"]) == 1 for line in case_lines(out))
    assert {part: len(names) for part, names in fold_of(out, "nnformer").items()} == {
        "train": 387,
        "validation": 73,
        "test": 24,
    }


def test_brats_validation_data_beside_the_training_data_have_no_labels(tmp_path):
    training = brats_2021(tmp_path / "download" / "training")
    for ending in ("flair", "t1", "t1ce", "t2"):
        put(training.parent / "validation" / "BraTS2021_00001" / f"BraTS2021_00001_{ending}.nii.gz")
    out = import_dataset("brats", training.parent, tmp_path / "out")
    assert [line["name"] for line in case_lines(out) if line["label"] is None] == ["BraTS2021_00001"]


def test_brats_that_would_be_read_wrongly_is_refused(tmp_path):
    for number, (build, labels) in enumerate([(brats_2023, (3, 4)), (brats_2023, (2, 4)), (brats_2021, (3, 4))]):
        with pytest.raises(MedContextError, match="not those of BraTS") as error:
            import_dataset("brats", build(tmp_path / str(number), labels), tmp_path / "out")
        assert "4" in error.value.found
    with pytest.raises(MedContextError, match="several years"):
        import_dataset("brats", brats_2023(brats_2021(tmp_path / "both")), tmp_path / "out")
    for file in ("BraTS2021_00003_t1ce.nii.gz", "BraTS2021_00002_seg.nii.gz"):
        source = brats_2021(tmp_path / file)
        (source / file[:15] / file).unlink()
        with pytest.raises(MedContextError, match="not complete") as error:
            import_dataset("brats", source, tmp_path / "out")
        assert error.value.found == f"missing: {file[:15]}: {file[16:]}"
    source = brats_2021(tmp_path / "validation")
    for path in source.rglob("*_seg.nii.gz"):
        path.unlink()
    with pytest.raises(MedContextError, match="No case of this download has a label map"):
        import_dataset("brats", source, tmp_path / "out")


def test_a_task_of_the_decathlon_keeps_its_own_words(tmp_path):
    out = import_dataset("msd/Task04_Hippocampus", decathlon(tmp_path / "download"), tmp_path / "out")
    content = described(out)
    assert content["labels"] == {"background": 0, "Anterior": 1, "Posterior": 2}
    assert content["channel_names"] == {"0": "MRI"}
    assert content["licence"] == "CC-BY-SA 4.0"
    assert [line["name"] for line in case_lines(out)] == [f"hippocampus_{n}" for n in ("001", "003", "004", "999")]
    assert not (out / "splits").exists()


def test_a_task_with_something_wrong_is_an_error_that_says_what(tmp_path):
    source = decathlon(tmp_path / "download")
    file = source / "Task04_Hippocampus" / "dataset.json"
    good = json.loads(file.read_text())
    for changed in (
        good | {"training": [{"image": "../../secret.nii.gz", "label": "labelsTr/hippocampus_001.nii.gz"}]},
        good | {"test": ["/etc/passwd"]},
        good | {"labels": ["background", "Anterior"]},
        {"name": "Hippocampus"},
    ):
        file.write_text(json.dumps(changed))
        with pytest.raises(MedContextError, match="not the Decathlon's") as error:
            import_dataset("msd/Task04_Hippocampus", source, tmp_path / "out")
        assert error.value.file == str(file)
    file.write_text(json.dumps(good))
    (file.parent / "labelsTr" / "hippocampus_003.nii.gz").unlink()
    with pytest.raises(MedContextError, match="not complete") as error:
        import_dataset("msd/Task04_Hippocampus", source, tmp_path / "out")
    assert "labelsTr/hippocampus_003.nii.gz" in error.value.found
    file.unlink()
    with pytest.raises(MedContextError, match="No folder of Task04_Hippocampus") as error:
        import_dataset("msd/Task04_Hippocampus", source, tmp_path / "out")
    assert "no dataset.json" in error.value.found


def test_addresses_and_checksums_of_the_decathlon_are_monais():
    file = Path(importlib.util.find_spec("monai").origin).parent / "apps" / "datasets.py"
    tree = ast.parse(file.read_text())
    (theirs,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "DecathlonDataset")
    tables = {node.targets[0].id: ast.literal_eval(node.value) for node in theirs.body if isinstance(node, ast.Assign)}
    ours = {name.removeprefix("msd/"): recipe.download for name, recipe in RECIPES.items() if name.startswith("msd/")}
    assert {name: download.url for name, download in ours.items()} == tables["resource"]
    assert {name: download.md5 for name, download in ours.items()} == tables["md5"]


@pytest.mark.parametrize(
    ("given", "kind"),
    [(given, "folder") for given in ("synapse", "acdc", "brats 2021", "brats 2023", "hippocampus")]
    + [("synapse", "zip"), ("hippocampus", "zip")],
)
def test_a_mix_up_is_named_before_anything_is_written(tmp_path, given, kind):
    recipe, build, *_ = TREES[given]
    source = build(tmp_path / "download")
    if kind == "zip":
        source = pack(source, tmp_path / "download.zip")
    for asked in ("synapse", "acdc", "brats", "msd/Task04_Hippocampus", "msd/Task09_Spleen"):
        if asked == recipe:
            continue
        with pytest.raises(MedContextError, match=f"not the download of '{asked}'") as error:
            import_dataset(asked, source, tmp_path / "out")
        assert f"looks like {recipe}" in error.value.found
        assert error.value.expected == RECIPES[asked].layout
        assert not list((tmp_path / "out").iterdir())


def test_what_is_no_download_at_all_is_refused(tmp_path):
    with pytest.raises(MedContextError, match="not there") as error:
        import_dataset("acdc", tmp_path / "nowhere.zip", tmp_path / "out")
    assert "humanheart-project" in error.value.remedy
    with pytest.raises(MedContextError, match="no recipe of this name") as error:
        import_dataset("acdd", tmp_path, tmp_path / "out")
    assert "msd/Task10_Colon" in error.value.expected
    (tmp_path / "empty").mkdir()
    with pytest.raises(MedContextError, match="not the download") as error:
        import_dataset("synapse", tmp_path / "empty", tmp_path / "out")
    assert error.value.found == "no files"
    (tmp_path / "page.zip").write_text("<html>please log in</html>")
    with pytest.raises(MedContextError, match="not an archive"):
        import_dataset("synapse", tmp_path / "page.zip", tmp_path / "out")
    source = btcv(tmp_path / "download")
    (source / "RawData/Training/label/label0025.nii.gz").unlink()
    with pytest.raises(MedContextError, match="not complete") as error:
        import_dataset("synapse", source, tmp_path / "out")
    assert error.value.found == "missing: label0025"
    btcv(source, top="copy")
    with pytest.raises(MedContextError, match="Two files are of the same case"):
        import_dataset("synapse", source, tmp_path / "out")


def test_a_killed_import_is_no_data_set_and_the_next_one_ends_it(tmp_path, monkeypatch):
    archive = pack(decathlon(tmp_path / "download"), tmp_path / "Task04_Hippocampus.tar")
    out = tmp_path / "out"

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    for name in ("extract", "write_json", "write_text"):
        with monkeypatch.context() as patch:
            patch.setattr(importing, name, kill)
            with pytest.raises(KeyboardInterrupt):
                import_dataset("msd/Task04_Hippocampus", archive, out)
        assert not (out / "cases.jsonl").exists()
        with pytest.raises(MedContextError):
            open_dataset(out)
    unpacked = (out / "scans" / "Task04_Hippocampus").stat().st_ino
    import_dataset("msd/Task04_Hippocampus", archive, out)
    assert (out / "scans" / "Task04_Hippocampus").stat().st_ino == unpacked
    first = all_files(out)
    with monkeypatch.context() as patch:
        patch.setattr(importing, "write_json", kill)
        with pytest.raises(KeyboardInterrupt):
            import_dataset("msd/Task04_Hippocampus", archive, out)
    assert not (out / "cases.jsonl").exists()
    import_dataset("msd/Task04_Hippocampus", archive, out)
    assert all_files(out) == first


def test_progress_is_told_once_for_every_megabyte(tmp_path, monkeypatch):
    told: list[tuple[int, int]] = []

    class Recorder(Progress):
        @contextlib.contextmanager
        def task(self, name: str) -> Iterator[Callable[..., None]]:
            yield lambda *numbers: told.append(numbers)

    monkeypatch.setattr(importing, "MEGABYTE", 100)
    archive = pack(decathlon(tmp_path / "download"), tmp_path / "set.zip")
    import_dataset("msd/Task04_Hippocampus", archive, tmp_path / "out", progress=Recorder(quiet=True))
    assert len(told) > 3
    assert len(set(told)) == len(told)
    assert [done < total for done, total in told] == [True] * (len(told) - 1) + [False]


def test_nothing_that_is_there_is_written_over(tmp_path):
    source = decathlon(tmp_path / "download")
    task = source / "Task04_Hippocampus"
    before = all_files(source)
    out = import_dataset("synapse", btcv(tmp_path / "btcv"), tmp_path / "synapse")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "dataset.json").write_text('{"name": "mine"}')
    put(tmp_path / "notes" / "notes.txt", "mine")
    places = (
        (task, "imagesTr"),
        (out, "synapse"),
        (tmp_path / "own", "other means"),
        (tmp_path / "notes", "notes.txt"),
    )
    for place, found in places:
        with pytest.raises(MedContextError, match="holds something else") as error:
            import_dataset("msd/Task04_Hippocampus", source, place)
        assert found in error.value.found
    with pytest.raises(MedContextError, match="No data set can be written here"):
        import_dataset("msd/Task04_Hippocampus", source, tmp_path / "file")
    assert all_files(source) == before
    assert described(out)["recipe"] == "synapse"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


def test_an_open_data_set_is_fetched_and_imported(tmp_path, monkeypatch):
    (tmp_path / "www").mkdir()
    archive = pack(decathlon(tmp_path / "download"), tmp_path / "www" / "Task04_Hippocampus.tar")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path / "www"))
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    name, out = "msd/Task04_Hippocampus", tmp_path / "out"
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/Task04_Hippocampus.tar"
        wrong = replace(RECIPES[name], download=Download(url, "0" * 32))
        monkeypatch.setitem(RECIPES, name, wrong)
        with pytest.raises(MedContextError, match="not the one that was to be downloaded"):
            fetch_dataset(name, out)
        assert all_files(out) == {}
        md5 = hashlib.md5(archive.read_bytes()).hexdigest()
        monkeypatch.setitem(RECIPES, name, replace(wrong, download=Download(url, md5)))
        assert fetch_dataset(name, out) == out
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert {path.name for path in out.iterdir()} == {"cases.jsonl", "dataset.json", "scans"}
    assert len(open_dataset(out).cases) == 3
    assert fetch_dataset(name, out) == out


@pytest.mark.parametrize("name", ["synapse", "synapse13", "acdc", "brats"])
def test_what_needs_a_registration_says_where(tmp_path, name):
    with pytest.raises(MedContextError, match="ask for a registration") as error:
        fetch_dataset(name, tmp_path / "out")
    assert "https://" in error.value.remedy
    assert where_to_get(name) in error.value.remedy
    assert not (tmp_path / "out").exists()


def test_real_hippocampus_scans_are_imported_where_they_lie(real_scans, tmp_path):
    out = RECIPES["msd/Task04_Hippocampus"].import_from(real_scans / "Task04_Hippocampus", tmp_path / "out")
    dataset = open_dataset(out)
    assert len(dataset.cases) == 200
    assert all(case.label.is_file() and case.images[0].is_file() for case in dataset.cases.values())
    assert dataset.labels.names == {1: "Anterior", 2: "Posterior"}
    assert len(set(dataset.patients.values())) == 150


def test_hippocampi_of_one_person_are_of_one_patient(tmp_path):
    out = RECIPES["msd/Task04_Hippocampus"].import_from(decathlon(tmp_path / "tree"), tmp_path / "small")
    assert open_dataset(out).patients == {
        "hippocampus_001": "hippocampus_001",
        "hippocampus_003": "hippocampus_003",
        "hippocampus_004": "hippocampus_003",
    }
    out = RECIPES["msd/Task09_Spleen"].import_from(decathlon(tmp_path / "tree", "Task09_Spleen"), tmp_path / "spleen")
    assert len(set(open_dataset(out).patients.values())) == 3


def test_real_hippocampi_of_one_patient_are_alike(real_scans, tmp_path):
    """The published files don't say whose they are; their intensities do."""
    whole = RECIPES["msd/Task04_Hippocampus"].import_from(real_scans / "Task04_Hippocampus", tmp_path / "out")
    patients = open_dataset(whole).patients
    typical = {}
    for name in patients:
        values = nib.load(real_scans / "Task04_Hippocampus" / "imagesTr" / f"{name}.nii.gz").get_fdata()
        typical[name] = float(np.median(values[values > 0]))
    neighbours = [
        (patients[one] == patients[other], abs(typical[one] / typical[other] - 1) < 0.12)
        for one, other in itertools.pairwise(sorted(patients))
        if int(other[-3:]) == int(one[-3:]) + 1
    ]
    assert [alike for own, alike in neighbours if own] == [True] * 50
    others = [alike for own, alike in neighbours if not own]
    assert len(others) == 55
    assert sum(others) <= 15
