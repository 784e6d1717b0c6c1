"""Shared by the tests: a tiny data set that trains in a second, and the real scans where they are at hand."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medcontext.method.presets import MethodConfig

THREE_PASSES = MethodConfig(ratio=0.3, clean_weight=1.0, consistency_weight=1.0)
"""The method with all terms, so that every pass is taken."""


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is kept in the cache of whoever runs the tests."""
    os.environ["HOME"] = str(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """What a test starts and interrupts would inherit that SIGINT is ignored, as ``nohup`` and ``&`` leave it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws without a generator of its own is the same whenever and after whatever it runs."""
    torch.manual_seed(0)


ORIENTATIONS = ("RAS", "LPS", "PSR", "SAL")


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def oriented(array: np.ndarray, affine: np.ndarray, codes: str) -> tuple[np.ndarray, np.ndarray]:
    """The same scan stored with other axes, by nibabel alone."""
    image = nib.Nifti1Image(array, affine)
    transform = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(codes))
    )
    turned = image.as_reoriented(transform)
    return np.asarray(turned.dataobj), turned.affine


def make_tiny(root: Path, cases: int = 8) -> Path:
    """Two boxes, one above the other, in noise; axes, size, position and intensity scale differ from case to case."""
    for index in range(cases):
        rng = np.random.default_rng(index)
        size = rng.integers(16, 25, 3)
        label = np.zeros(size, dtype=np.uint8)
        x, y, z = (int(rng.integers(2, n - 12)) for n in size)
        label[x : x + 8, y : y + 8, z : z + 5] = 1
        label[x : x + 8, y : y + 8, z + 5 : z + 10] = 2
        image = (np.array([0.0, 3.0, 6.0])[label] + rng.normal(0, 0.5, size)).astype(np.float32) * 10.0 ** (index % 4)
        affine = np.diag([1.0, 1.0, 1.5, 1.0])
        affine[:3, 3] = rng.normal(0, 20, 3)
        codes = ORIENTATIONS[index % len(ORIENTATIONS)]
        for folder, array in (("imagesTr", image), ("labelsTr", label)):
            write_nifti(root / folder / f"case_{index:02d}.nii.gz", *oriented(array, affine, codes))
    description = {"name": "Tiny", "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "low", "2": "high"}}
    (root / "dataset.json").write_text(json.dumps(description))
    return root


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data set; tests must not change it."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def own_tiny(tmp_path: Path) -> Path:
    """A tiny data set to spoil."""
    return make_tiny(tmp_path / "data", cases=4)


@pytest.fixture(scope="session")
def real_scans() -> Path:
    """The folder of real scans described in the contributors' notes."""
    named = os.environ.get("MEDCONTEXT_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real scans in {folder}; set MEDCONTEXT_DATA to their folder")
    return folder
