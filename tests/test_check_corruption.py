"""Good files, spoilt at random: whatever is done to them, the check ends, and what is wrong is found in its file."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medcontext.data.check import check_dataset
from medcontext.data.dataset import open_dataset
from medcontext.data.scan import AFFINE_TOLERANCE, read_labels, read_scan, voxels_apart
from tests.conftest import make_tiny, write_nifti
from tests.test_formats import itk_image, write_itk

CASES = tuple(f"case_{k:02d}" for k in range(3))
UNREADABLE = ("truncated",)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    root = make_tiny(tmp_path_factory.mktemp("good"), cases=3)
    assert not check_dataset(open_dataset(root)).findings
    return root


@contextmanager
def copy_of(root):
    with tempfile.TemporaryDirectory() as folder:
        yield Path(shutil.copytree(root, Path(folder) / "data"))


class Spoiler:
    """Spoils a data set; every method says which file must then be named, and with which words."""

    def __init__(self, root: Path, case: str, data: st.DataObject) -> None:
        self.case, self.data = case, data
        self.image, self.label = (root / part / f"{case}.nii.gz" for part in ("imagesTr", "labelsTr"))

    def draw(self, strategy):
        return self.data.draw(strategy)

    def rewrite(self, path, change):
        image = nib.load(path)
        array, affine = np.asarray(image.dataobj).copy(), image.affine.copy()
        write_nifti(path, *change(array, affine))

    def set_voxel(self, path, value, kind):
        def change(array, affine):
            array = array.astype(kind)
            array[tuple(self.draw(st.integers(0, n - 1)) for n in array.shape)] = value
            return array, affine

        self.rewrite(path, change)

    def truncated(self):
        path = self.draw(st.sampled_from([self.image, self.label]))
        content = path.read_bytes()
        path.write_bytes(content[: self.draw(st.integers(0, len(content) - 1))])
        return path, UNREADABLE

    def replaced_by_something_else(self):
        path = self.draw(st.sampled_from([self.image, self.label]))
        path.write_bytes(self.draw(st.binary(max_size=600)))
        return path, UNREADABLE

    def image_gone(self):
        self.image.unlink()
        return self.label, ("no image",)

    def label_gone(self):
        self.label.unlink()
        return self.image, ("no label map",)

    def other_shape(self):
        axis, cut = self.draw(st.integers(0, 2)), self.draw(st.integers(1, 5))
        path = self.draw(st.sampled_from([self.image, self.label]))
        self.rewrite(path, lambda array, affine: (np.delete(array, range(cut), axis), affine))
        return self.label, ("differ in shape",)

    def shifted(self):
        shift = np.zeros((4, 4))
        shift[self.draw(st.integers(0, 2)), 3] = self.draw(st.sampled_from([-1, 1])) * self.draw(st.floats(0.021, 50))
        path = self.draw(st.sampled_from([self.image, self.label]))
        self.rewrite(path, lambda array, affine: (array, affine + shift))
        return self.label, ("different places",)

    def not_finite(self):
        self.set_voxel(self.image, self.draw(st.sampled_from([np.nan, np.inf, -np.inf])), np.float32)
        return self.image, ("not finite",)

    def constant(self):
        value = self.draw(st.floats(-1000, 1000, width=32))
        self.rewrite(self.image, lambda array, affine: (np.full_like(array, value), affine))
        return self.image, ("constant",)

    def fraction(self):
        value = self.draw(st.floats(0.01, 0.99)) + self.draw(st.integers(-2, 2))
        self.set_voxel(self.label, value, np.float32)
        return self.label, ("not whole numbers",)

    def undeclared(self):
        number = self.draw(st.integers(3, 70_000) | st.integers(-5, -1))
        self.set_voxel(self.label, number, np.int32)
        return self.label, ("not declared",)

    def channels(self):
        count = self.draw(st.integers(2, 4))
        noise = np.random.default_rng(0)
        self.rewrite(
            self.image,
            lambda array, affine: (array[..., None] + noise.random(count).astype(np.float32), affine),
        )
        return self.image, ("number of channels",)

    def label_of_another_case(self):
        other = self.label.with_name(f"{self.draw(st.sampled_from([c for c in CASES if c != self.case]))}.nii.gz")
        shutil.copy(other, self.label)
        return self.label, ("differ in shape", "different places")

    def duplicate(self):
        new = self.image.with_name("zz_copy.nii")
        nib.save(nib.load(self.image), new)
        nib.save(nib.load(self.label), self.label.with_name("zz_copy.nii"))
        return new, ("there twice",)

    def test_image(self):
        new = self.image.parents[1] / "imagesTs" / self.image.name
        new.parent.mkdir()
        shutil.copy(self.image, new)
        return new, ("also trained on",)


SPOILERS = sorted(name for name in vars(Spoiler) if name not in ("draw", "rewrite", "set_voxel") and name[0] != "_")


@pytest.mark.parametrize("spoiler", SPOILERS)
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_what_is_spoilt_is_found_in_its_file_and_nowhere_else(good, spoiler, data):
    with copy_of(good) as root:
        case = data.draw(st.sampled_from(CASES))
        file, words = getattr(Spoiler(root, case, data), spoiler)()
        report = check_dataset(open_dataset(root))
        found = {(error.error.file, error.error.problem) for error in report.errors}
        assert {path for path, _ in found} == {str(file)}
        assert any(word in problem for _, problem in found for word in words), found
        assert set(CASES) - {case} <= set(report.facts)
        assert all(error.error.found or error.error.expected for error in report.errors)
        assert all(error.error.remedy for error in report.errors)


@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_labels_swapped_between_two_cases_are_found_in_both(good, data):
    with copy_of(good) as root:
        one, two = data.draw(st.permutations(CASES))[:2]
        first, second = (root / "labelsTr" / f"{case}.nii.gz" for case in (one, two))
        spare = first.with_name("spare")
        first.rename(spare)
        second.rename(first)
        spare.rename(second)
        assert {error.error.file for error in check_dataset(open_dataset(root)).errors} == {str(first), str(second)}


@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_affines_within_the_tolerance_are_no_finding(good, data):
    with copy_of(good) as root:
        shift = np.zeros((4, 4))
        shift[data.draw(st.integers(0, 2)), 3] = data.draw(st.floats(-0.019, 0.019))
        path = root / "labelsTr" / f"{data.draw(st.sampled_from(CASES))}.nii.gz"
        image = nib.load(path)
        write_nifti(path, np.asarray(image.dataobj), image.affine + shift)
        assert not check_dataset(open_dataset(root)).findings


@pytest.fixture(scope="module", params=[".nii.gz", ".nii", ".nrrd", ".mha"])
def one_format(request, good, tmp_path_factory):
    """The good data set in one file format."""
    root = tmp_path_factory.mktemp("format")
    shutil.copy(good / "dataset.json", root)
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir()
        for path in (good / part).iterdir():
            image = nib.load(path)
            target = root / part / path.name.replace(".nii.gz", request.param)
            if ".nii" in request.param:
                nib.save(image, target)
            else:
                write_itk(target, itk_image(np.asarray(image.dataobj), image.affine))
    assert not check_dataset(open_dataset(root)).findings
    return root


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_flipped_byte_is_found_or_does_no_harm(one_format, data):
    """Found, or the file still shows the same grid; and where a checksum guards the voxels, the same voxels.

    Uncompressed NIfTI has no checksum, and so it may hold other voxels: of another value, scale or number type.
    """
    with copy_of(one_format) as root:
        part, read = data.draw(st.sampled_from([("imagesTr", read_scan), ("labelsTr", read_labels)]))
        path = data.draw(st.sampled_from(sorted((root / part).iterdir())))
        before = read(path)
        content = bytearray(path.read_bytes())
        # Half of the flips in the first 400 bytes, where the headers are.
        place = data.draw(st.integers(0, min(399, len(content) - 1)) | st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        report = check_dataset(open_dataset(root))
        assert {finding.case for finding in report.findings} <= {path.name.split(".")[0]}
        if report.findings:
            return
        after = read(path)
        assert after.array.shape == before.array.shape
        assert voxels_apart(before.array.shape[-3:], before.affine, after.affine) <= 2 * AFFINE_TOLERANCE
        if path.name.endswith(".nii.gz"):
            np.testing.assert_array_equal(after.array, before.array)
