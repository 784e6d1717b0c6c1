"""DICOM series, written by SimpleITK (GDCM) slice by slice and read by the package."""

from __future__ import annotations

import locale
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from medcontext.data.scan import case_name, is_series, read_scan, scan_files, write_labels
from medcontext.errors import MedContextError
from tests.conftest import write_nifti
from tests.test_formats import read_or_refused

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
STRAIGHT = np.array([[-0.8, 0, 0, 100], [0, -0.9, 0, 120], [0, 0, 2.5, -700], [0, 0, 0, 1.0]])


@pytest.fixture(autouse=True, scope="module")
def own_locale() -> Iterator[None]:
    """GDCM's writer leaves the locale of the whole process changed, which other tests would read files by."""
    before = locale.setlocale(locale.LC_CTYPE)
    yield
    locale.setlocale(locale.LC_CTYPE, before)


def write_series(
    folder: Path,
    units: np.ndarray,
    affine: np.ndarray,
    tags: dict[str, str] | None = None,
    compressor: str | None = None,
) -> list[Path]:
    """Slices along the third axis of ``(X, Y, Z)`` Hounsfield units, in files whose names are not in their order."""
    folder.mkdir(parents=True, exist_ok=True)
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :2], axis=0)
    files = []
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    if compressor:
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
    for index in range(units.shape[2]):
        image = sitk.GetImageFromArray(np.ascontiguousarray(units[:, :, index].T.astype(np.int16)))
        image.SetSpacing(spacing.tolist())
        described = {
            "0008|0060": "CT",
            "0020|000e": "1.2.826.0.1.3680043.2.1125.1",
            "0020|0013": str(index),
            "0020|0032": numbers(lps[:3, 3] + index * lps[:3, 2]),
            "0020|0037": numbers((lps[:3, :2] / spacing).T.ravel()),
            "0028|1052": "-1000",
            "0028|1053": "2",
            **(tags or {}),
        }
        for tag, value in described.items():
            image.SetMetaData(tag, value)
        file = folder / f"slice_{index * 7 % units.shape[2]:03d}.dcm"
        writer.SetFileName(str(file))
        writer.Execute(image)
        files.append(file)
    return files


def patch(file: Path, tag: bytes, old: bytes, new: bytes) -> None:
    """Put two other bytes into the element with this tag, whether its type is written (explicit VR) or not."""
    content, count = re.subn(
        b"(" + re.escape(tag) + b"(?:[A-Z]{2}\x02\x00|\x02\x00\x00\x00))" + re.escape(old),
        lambda found: found[1] + new,
        file.read_bytes(),
    )
    assert count == 1
    file.write_bytes(content)


def numbers(values: np.ndarray) -> str:
    return "\\".join(f"{value:.9f}" for value in values)


def units(shape: tuple[int, int, int] = (12, 10, 8)) -> np.ndarray:
    """Even Hounsfield units, with a marker."""
    array = np.random.default_rng(0).integers(-500, 500, shape) * 2
    array[9, 3, shape[2] * 5 // 8] = 3000
    return array


@given(seed=st.integers(0, 2**32), tilt=st.sampled_from([0.0, 0.3]))
@settings(max_examples=12, deadline=None)
def test_slices_lie_where_they_were_scanned_however_they_are_turned(seed, tilt, tmp_path_factory):
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(rng=rng).as_matrix() * rng.uniform(0.5, 5, 3)
    affine[:3, 2] += tilt * affine[:3, 1]  # as a tilted gantry does
    affine[:3, 3] = rng.normal(0, 200, 3)
    array = units()
    files = write_series(tmp_path_factory.mktemp("turned") / "case", array, affine)
    scan = read_scan(files[0].parent)
    marked = np.argwhere(scan.array[0] == 3000)
    assert len(marked) == 1
    assert scan.affine @ (*marked[0], 1) == pytest.approx(affine @ (9, 3, 5, 1), abs=1e-5)
    turned = scan.array[0] if marked[0][2] == 5 else scan.array[0][..., ::-1]
    assert np.array_equal(turned, array)
    lps = LPS @ scan.affine
    assert np.cross(lps[:3, 0], lps[:3, 1]) @ lps[:3, 2] > 0
    assert scan.header is None
    if not tilt:  # as ITK sees it, which sorts and stacks by its own rules
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(files[0].parent))
        image = sitk.ReadImage(names)
        index = image.TransformPhysicalPointToIndex(((LPS @ affine) @ (9, 3, 5, 1))[:3].tolist())
        assert image[index] == 3000


@pytest.mark.parametrize("compressor", [None, "JPEG2000", "JPEG"])
def test_voxels_are_hounsfield_units_packed_or_not(tmp_path, compressor):
    array = units()
    files = write_series(tmp_path / "case", array, STRAIGHT, compressor=compressor)
    assert np.array_equal(read_scan(tmp_path / "case").array[0], array)
    stored = (array + 1000) // 2
    end = files[2].read_bytes()[-240:]
    assert (compressor is None) == np.array_equal(np.frombuffer(end, "<u2").reshape(10, 12).T, stored[..., 2])
    for file in files:  # another slope in the header, the same stored values
        patch(file, b"\x28\x00\x53\x10", b"2 ", b".5")
    assert np.array_equal(read_scan(tmp_path / "case").array[0], stored * 0.5 - 1000)


def test_a_folder_that_may_not_be_looked_into_is_passed_over_and_a_slice_is_not(tmp_path, monkeypatch):
    """Rights bind no one who may everything, so that looking fails here as it does for others."""
    write_series(tmp_path / "patient_1", units(), STRAIGHT)[3].rename(tmp_path / "patient_1" / "0000")
    (tmp_path / "lost+found").mkdir()
    look, into = Path.iterdir, Path.open

    def iterdir(path):
        if path.name == "lost+found":
            raise PermissionError(13, "Permission denied", str(path))
        return look(path)

    def opened(path, *arguments, **more):
        if path.name == "0000":
            raise PermissionError(13, "Permission denied", str(path))
        return into(path, *arguments, **more)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    monkeypatch.setattr(Path, "open", opened)
    assert list(scan_files(tmp_path)) == ["patient_1"]
    with pytest.raises(MedContextError, match="0000"):
        read_scan(tmp_path / "patient_1")


def test_a_folder_of_series_and_files_lists_both(tmp_path):
    write_series(tmp_path / "scans" / "patient_1", units(), STRAIGHT)
    for file in write_series(tmp_path / "scans" / "patient_2", units(), STRAIGHT):
        file.rename(file.with_suffix(""))  # told by their magic bytes
    (tmp_path / "scans" / "patient_2" / "notes.txt").write_text("not a slice")
    (tmp_path / "scans" / "other").mkdir()
    (tmp_path / "scans" / "other" / "notes.txt").write_text("no slice at all")
    path = write_nifti(tmp_path / "scans" / "patient_3.nii.gz", np.zeros((2, 2, 2), np.int16), np.eye(4))
    found = scan_files(tmp_path / "scans")
    assert list(found) == ["patient_1", "patient_2", "patient_3"]
    assert found["patient_3"] == path
    assert case_name(found["patient_2"]) == "patient_2"
    assert [is_series(folder) for folder in sorted((tmp_path / "scans").iterdir())] == [False, True, True, False]
    assert np.array_equal(read_scan(found["patient_1"]).array, read_scan(found["patient_2"]).array)
    write_nifti(tmp_path / "scans" / "patient_2.nii.gz", np.zeros((2, 2, 2), np.int16), np.eye(4))
    with pytest.raises(MedContextError, match="same case"):
        scan_files(tmp_path / "scans")
    with pytest.raises(MedContextError, match="no DICOM series"):
        read_scan(tmp_path / "scans" / "other")


def test_a_label_map_of_a_series_is_written_in_its_place(tmp_path):
    write_series(tmp_path / "case", units(), STRAIGHT)
    scan = read_scan(tmp_path / "case")
    write_labels(tmp_path / "out.nii.gz", (scan.array[0] == 3000).astype(np.int64) * 7, like=scan)
    written = read_scan(tmp_path / "out.nii.gz")
    assert written.affine @ (*np.argwhere(written.array[0] == 7)[0], 1) == pytest.approx(STRAIGHT @ (9, 3, 5, 1))


def test_several_series_in_a_folder_are_named(tmp_path):
    write_series(tmp_path / "case", units(), STRAIGHT, tags={"0008|103e": "thin lung"})
    other = write_series(tmp_path / "b", units((12, 10, 3)), STRAIGHT, tags={"0020|000e": "1.2.3.4.5"})
    for file in other:
        file.rename(tmp_path / "case" / f"other_{file.name}")
    with pytest.raises(MedContextError, match="several DICOM series") as error:
        read_scan(tmp_path / "case")
    assert "8 slices of 1.2.826.0.1.3680043.2.1125.1 thin lung" in error.value.found
    assert "3 slices of 1.2.3.4.5" in error.value.found
    assert "folder of its own" in error.value.remedy


def test_a_stack_that_is_not_whole_and_even_is_refused(tmp_path):
    files = write_series(tmp_path / "gap", units(), STRAIGHT)
    files[3].unlink()
    with pytest.raises(MedContextError, match="missing, or unevenly") as error:
        read_scan(tmp_path / "gap")
    assert error.value.found == f"5 mm between {files[2].name} and {files[4].name}, 2.5 mm elsewhere"

    files = write_series(tmp_path / "copy", units(), STRAIGHT)
    (tmp_path / "copy" / "again.dcm").write_bytes(files[6].read_bytes())
    with pytest.raises(MedContextError, match="same place") as error:
        read_scan(tmp_path / "copy")
    assert "again.dcm" in error.value.found
    assert files[6].name in error.value.found

    files = write_series(tmp_path / "moved", units(), STRAIGHT)
    moved = STRAIGHT.copy()
    moved[0, 3] += 1
    files[5].write_bytes(write_series(tmp_path / "b", units(), moved)[5].read_bytes())
    with pytest.raises(MedContextError, match="not stacked evenly") as error:
        read_scan(tmp_path / "moved")
    assert error.value.file == str(files[5])

    for other in (units((11, 10, 8)), units()):
        files = write_series(tmp_path / "odd", units(), STRAIGHT)
        affine = STRAIGHT if other.shape[0] == 11 else STRAIGHT * (2, 1, 1, 1)
        files[1].write_bytes(write_series(tmp_path / "c", other, affine)[1].read_bytes())
        with pytest.raises(MedContextError, match="unlike the others"):
            read_scan(tmp_path / "odd")

    write_series(tmp_path / "single", units((12, 10, 1)), STRAIGHT)
    with pytest.raises(MedContextError, match="no DICOM series"):
        read_scan(tmp_path / "single")


def test_slices_that_drift_apart_are_refused(tmp_path):
    array = units()
    for index in range(8):
        one = STRAIGHT.copy()
        one[2, 3] = 2.5 * index + 0.1 * index**2
        write_series(tmp_path / f"{index}", array[:, :, index : index + 1], one)[0].rename(tmp_path / f"{index}.dcm")
    with pytest.raises(MedContextError, match="not stacked evenly"):
        read_scan(tmp_path)


def test_positions_rounded_by_the_scanner_are_even(tmp_path):
    rounded = STRAIGHT.copy()
    rounded[2, 2] = 0.7
    files = []
    for index in range(8):
        one = rounded.copy()
        one[2, 3] = round(-700 + 0.7 * index + 0.02 * (-1) ** index, 2)
        files += write_series(tmp_path / f"{index}", units()[:, :, index : index + 1], one)
        (tmp_path / "case").mkdir(exist_ok=True)
        files[-1].rename(tmp_path / "case" / f"{index}.dcm")
    assert read_scan(tmp_path / "case").affine[2, 2] == pytest.approx(0.7, abs=0.01)


def test_what_is_no_grey_value_slice_in_space_is_refused(tmp_path):
    colours = write_series(tmp_path / "colours", units(), STRAIGHT)[4]
    patch(colours, b"\x28\x00\x02\x00", b"\x01\x00", b"\x03\x00")
    with pytest.raises(MedContextError, match="not one grey-value slice") as error:
        read_scan(tmp_path / "colours")
    assert error.value.file == str(colours)
    (tmp_path / "case").mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 10, 12), np.uint16)), str(tmp_path / "case" / "a.dcm"))
    with pytest.raises(MedContextError, match="not one grey-value slice"):
        read_scan(tmp_path / "case")
    for tag, other in ((b"\x20\x00\x32\x00", b"\x20\x00\x31\x00"), (b"\x28\x00\x30\x00", b"\x28\x00\x31\x00")):
        nowhere = write_series(tmp_path / "nowhere", units(), STRAIGHT)[4]
        assert nowhere.read_bytes().count(tag) == 1
        nowhere.write_bytes(nowhere.read_bytes().replace(tag, other))
        with pytest.raises(MedContextError, match="place in space") as error:
            read_scan(tmp_path / "nowhere")
        assert error.value.file == str(nowhere)
    with pytest.raises(MedContextError, match="not of a kind") as error:
        read_scan(tmp_path / "case" / "a.dcm")
    assert "folder" in error.value.remedy


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    folder = tmp_path_factory.mktemp("good")
    array = units((12, 10, 3))
    return {
        "plain": write_series(folder / "plain", array, STRAIGHT),
        "packed": write_series(folder / "packed", array, STRAIGHT, compressor="JPEG2000"),
    }


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_happens_to_a_slice_it_is_a_scan_or_one_error(data, slices, tmp_path_factory):
    spoil_and_read(data, slices["plain"], tmp_path_factory.mktemp("damaged"))


@given(data=st.data())
@settings(max_examples=6, deadline=None)
def test_whatever_happens_to_a_compressed_slice_it_is_a_scan_or_one_error(data, slices, tmp_path_factory):
    spoil_and_read(data, slices["packed"], tmp_path_factory.mktemp("damaged"))


def spoil_and_read(data: st.DataObject, files: list[Path], folder: Path) -> None:
    for file in files:
        (folder / file.name).write_bytes(file.read_bytes())
    content = bytearray(files[0].read_bytes())
    place = st.integers(0, len(content) - 1)
    match data.draw(st.sampled_from(["cut", "flip", "insert", "noise"])):
        case "cut":
            del content[data.draw(place) :]
        case "flip":
            for where in data.draw(st.lists(place, min_size=1, max_size=4)):
                content[where] = data.draw(st.integers(0, 255))
        case "insert":
            where = data.draw(place)
            content[where:where] = data.draw(st.binary(min_size=1, max_size=9))
        case "noise":
            content = bytearray(data.draw(st.binary(max_size=600)))
    (folder / files[0].name).write_bytes(content)
    tracemalloc.start()
    read_or_refused(folder)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40e6
