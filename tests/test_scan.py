from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st

from medcontext.data.scan import case_name, read_labels, read_scan, scan_files, spacing_of, voxels_apart, write_labels
from medcontext.errors import MedContextError
from tests.conftest import write_nifti

OBLIQUE = np.array([[1.9, 0.2, 0.1, -30], [-0.2, 1.8, 0.3, 12], [-0.1, -0.3, 4.8, 7], [0, 0, 0, 1.0]])


def test_one_channel_and_several_come_channels_first(tmp_path):
    array = np.random.default_rng(0).normal(size=(4, 5, 6, 2)).astype(np.float32)
    several = read_scan(write_nifti(tmp_path / "a.nii.gz", array, OBLIQUE))
    assert np.array_equal(several.array, np.moveaxis(array, -1, 0))
    one = read_scan(write_nifti(tmp_path / "b.nii", array[..., 0], OBLIQUE))
    assert np.array_equal(one.array, array[None, ..., 0])
    assert np.allclose(one.affine, OBLIQUE, atol=1e-5)
    assert spacing_of(one.affine) == pytest.approx(tuple(np.linalg.norm(OBLIQUE[:3, :3], axis=0)), rel=1e-5)


def test_one_file_per_channel_must_lie_on_one_grid(tmp_path):
    array = np.random.default_rng(0).normal(size=(40, 5, 6, 3)).astype(np.float32)
    files = [write_nifti(tmp_path / f"a_{c:04d}.nii.gz", array[..., c], OBLIQUE) for c in range(3)]
    scan = read_scan(*files)
    assert np.array_equal(scan.array, np.moveaxis(array, -1, 0))
    assert scan.path == files[0]
    assert scan.header == read_scan(files[0]).header
    turn = np.eye(4)
    for angle, refused in ((2e-4, False), (2e-3, True)):  # at 40 voxels of 1.9 mm: 0.01 and 0.1 voxel
        turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        other = OBLIQUE.copy()
        other[:3, :3] = turn[:3, :3] @ OBLIQUE[:3, :3]
        write_nifti(files[2], array[..., 2], other)
        if not refused:
            assert np.array_equal(read_scan(*files).array, scan.array)
            continue
        with pytest.raises(MedContextError, match="different places") as error:
            read_scan(*files)
        assert error.value.file == str(files[2])
    write_nifti(files[1], array[:39, ..., 1], OBLIQUE)
    with pytest.raises(MedContextError, match="Channels differ in shape") as error:
        read_scan(*files)
    assert error.value.file == str(files[1])
    with pytest.raises(MedContextError, match="number of axes"):
        read_scan(files[0], write_nifti(tmp_path / "b.nii", array, OBLIQUE))


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40, deadline=None)
def test_no_voxel_is_further_apart_than_the_worst_corner(shape, seed):
    rng = np.random.default_rng(seed)
    affine, other = (np.vstack([rng.normal(0, 2, (3, 4)), [0, 0, 0, 1]]) for _ in range(2))
    voxels = np.argwhere(np.ones(shape))
    places = [nib.affines.apply_affine(each, voxels) for each in (affine, other)]
    worst = np.linalg.norm(places[0] - places[1], axis=1).max() / nib.affines.voxel_sizes(affine).min()
    assert voxels_apart(shape, affine, other) == pytest.approx(worst)


def test_negative_and_large_label_numbers_choose_a_kind_that_holds_them(tmp_path):
    scan = read_scan(write_nifti(tmp_path / "scan.nii.gz", np.zeros((1, 1, 3), np.float32), np.eye(4)))
    for numbers, kind in (([0, 1, 255], "u1"), ([0, 1, 256], "u2"), ([-1, 0, 3], "i4")):
        write_labels(tmp_path / "labels.nii.gz", np.array([[numbers]]), like=scan)
        assert nib.load(tmp_path / "labels.nii.gz").get_data_dtype() == kind
        assert read_labels(tmp_path / "labels.nii.gz").array.ravel().tolist() == numbers


def test_a_detached_header_is_a_case_and_its_voxels_are_none(tmp_path):
    image = sitk.GetImageFromArray(np.zeros((3, 4, 5), np.int16))
    for name in ("a.mhd", "b.nhdr", "c.mha", "d.nrrd"):
        sitk.WriteImage(image, str(tmp_path / name))
    (tmp_path / "e.nii").mkdir()
    (tmp_path / ".f.nii").touch()
    assert [path.name for path in scan_files(tmp_path).values()] == ["a.mhd", "b.nhdr", "c.mha", "d.nrrd"]
    assert sorted(path.name for path in tmp_path.glob("*.raw")) == ["a.raw", "b.raw"]


@pytest.mark.parametrize("ending", [".NII.GZ", ".Nii", ".NRRD", ".MHA"])
def test_endings_in_capitals_are_endings(tmp_path, ending):
    array = np.random.default_rng(0).integers(0, 9, (4, 5, 6)).astype(np.int16)
    like = read_scan(write_nifti(tmp_path / "scan.nii", array, OBLIQUE))
    write_labels(tmp_path / "scans" / f"P2{ending.lower()}", array, like)
    (tmp_path / "scans" / f"P2{ending.lower()}").rename(tmp_path / "scans" / f"P2{ending}")
    found = scan_files(tmp_path / "scans")
    assert found == {"P2": tmp_path / "scans" / f"P2{ending}"}
    assert np.array_equal(read_scan(found["P2"]).array[0], array)
    write_labels(tmp_path / "again.nrrd", array, like=read_scan(found["P2"]))
    assert np.allclose(read_labels(tmp_path / "again.nrrd").affine, like.affine, atol=1e-5)
    with pytest.raises(MedContextError, match="not of a kind"):
        write_labels(tmp_path / f"again{ending}", array, like)


def test_a_prediction_is_written_with_the_geometry_of_its_scan(tmp_path):
    image = nib.Nifti1Image(np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32), OBLIQUE)
    image.set_sform(OBLIQUE, 4)
    image.set_qform(OBLIQUE, 1)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "scan.nii.gz")
    labels = np.random.default_rng(1).integers(0, 300, (4, 5, 6))
    write_labels(tmp_path / "out" / "scan.nii.gz", labels, like=read_scan(tmp_path / "scan.nii.gz"))
    written = nib.load(tmp_path / "out" / "scan.nii.gz")
    assert np.array_equal(np.asarray(written.dataobj), labels)
    assert np.allclose(written.affine, nib.load(tmp_path / "scan.nii.gz").affine)
    assert written.header["sform_code"] == 4
    assert written.header["qform_code"] == 1
    assert written.header.get_xyzt_units() == ("mm", "sec")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["scan.nii.gz"]


def test_whole_numbers_stored_as_floats_are_labels_and_fractions_are_not(tmp_path):
    whole = np.array([[[0.0, 1.0, 40.0]]], dtype=np.float32)
    assert read_labels(write_nifti(tmp_path / "a.nii.gz", whole, np.eye(4))).array.tolist() == [[[0, 1, 40]]]
    path = write_nifti(tmp_path / "b.nii.gz", whole + np.float32(0.25), np.eye(4))
    with pytest.raises(MedContextError, match="not whole numbers") as error:
        read_labels(path)
    assert error.value.file == str(path)
    assert "nearest" in error.value.remedy


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_damaged_file_is_an_error_that_names_it(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    array = np.random.default_rng(0).integers(0, 9, (6, 6, 6)).astype(np.int16)
    plain = write_nifti(folder / "good.nii", array, np.eye(4)).read_bytes()
    packed = gzip.compress(plain, mtime=0)
    kind = data.draw(st.sampled_from(["cut plain", "cut packed", "text", "empty"]))
    content = {
        "cut plain": plain[: data.draw(st.integers(0, len(plain) - 1))],
        "cut packed": packed[: data.draw(st.integers(0, len(packed) - 9))],
        "text": b"this is no scan, it is a sentence" * 20,
        "empty": b"",
    }[kind]
    path = folder / ("bad.nii" if kind == "cut plain" else "bad.nii.gz")
    path.write_bytes(content)
    for read in (read_scan, read_labels):
        with pytest.raises(MedContextError) as error:
            read(path)
        assert error.value.file == str(path)
        assert error.value.remedy


@pytest.mark.parametrize("largest", [255, 256, 70_000])
def test_label_numbers_of_any_size_are_kept(tmp_path, largest):
    scan = read_scan(write_nifti(tmp_path / "scan.nii.gz", np.zeros((2, 2, 2), np.float32), np.eye(4)))
    labels = np.array([0, 1, largest, 2] * 2).reshape(2, 2, 2)
    write_labels(tmp_path / "labels.nii.gz", labels, like=scan)
    assert np.array_equal(read_labels(tmp_path / "labels.nii.gz").array, labels)


def test_voxels_that_are_no_single_numbers_are_refused(tmp_path):
    colours = np.zeros((3, 3, 3), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    for array in (colours, np.ones((3, 3, 3), np.complex64)):
        with pytest.raises(MedContextError, match="not single numbers"):
            read_scan(write_nifti(tmp_path / "a.nii.gz", array, np.eye(4)))
    huge = write_nifti(tmp_path / "b.nii.gz", np.full((2, 2, 2), 1e10, np.float32), np.eye(4))
    with pytest.raises(MedContextError, match="too large"):
        read_labels(huge)


def test_what_is_absent_or_no_scan_is_refused(tmp_path):
    with pytest.raises(MedContextError, match="no such file"):
        read_scan(tmp_path / "a.nii.gz")
    with pytest.raises(MedContextError, match="not of a kind"):
        case_name(tmp_path / "a.png")
    with pytest.raises(MedContextError, match="number of axes"):
        read_labels(write_nifti(tmp_path / "b.nii.gz", np.zeros((3, 3, 3, 2), np.uint8), np.eye(4)))
    (tmp_path / "b.nii").write_bytes(b"")
    with pytest.raises(MedContextError, match="same case"):
        scan_files(tmp_path)
