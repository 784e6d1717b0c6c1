"""Label maps in every format lie exactly over their scan, for nibabel, SimpleITK and DICOM readers."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from medcontext.data.labels import Labels, Region
from medcontext.data.scan import read_labels, read_scan, write_labels
from medcontext.data.writing import segments
from medcontext.errors import MedContextError
from medcontext.inference import dicom_seg
from medcontext.inference.predict import predict_files
from medcontext.inference.predictor import Predictor
from medcontext.inference.scans import find_scans
from tests.predicting import AFFINE, intensities, labels_of, write_model
from tests.test_dicom import STRAIGHT, own_locale, units, write_series  # noqa: F401
from tests.test_formats import itk_image, write_itk

MANY = Labels({number: f"structure {number}" for number in range(2, 40, 2)})
EXACT = {(".nii.gz", ".nii.gz"), *((one, other) for one in (".nrrd", ".nhdr") for other in (".nrrd", ".seg.nrrd"))}
SERIES_TAGS = {
    "0010|0010": "Doe^Jane",
    "0010|0020": "p1",
    "0020|000d": "1.2.826.0.1.3680043.2.1125.2",
    "0020|0052": "1.2.826.0.1.3680043.2.1125.3",
}


def place(path: Path) -> tuple[float, ...]:
    """Direction, spacing and origin as SimpleITK reads them."""
    image = sitk.ReadImage(str(path))
    return (*image.GetDirection(), *image.GetSpacing(), *image.GetOrigin())


def random_image(seed: int) -> sitk.Image:
    rng = np.random.default_rng(seed)
    image = sitk.GetImageFromArray(rng.normal(size=(4, 5, 6)).astype(np.float32))
    image.SetDirection(Rotation.random(rng=rng).as_matrix().ravel().tolist())
    image.SetSpacing(rng.uniform(0.1, 6, 3).tolist())
    image.SetOrigin(rng.normal(0, 200, 3).tolist())
    return image


@given(seed=st.integers(0, 2**32), source=st.sampled_from([".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"]))
@settings(max_examples=60, deadline=None)
def test_label_maps_lie_where_simpleitk_sees_the_scan_bit_by_bit(seed, source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    path = write_itk(folder / f"scan{source}", random_image(seed))
    scan = read_scan(path)
    array = np.random.default_rng(seed).choice([0, 3, 8, 300], scan.array.shape[1:])
    for ending in (".mha", ".nrrd", ".seg.nrrd", ".nii.gz"):
        file = folder / "out" / f"scan{ending}"
        write_labels(file, array, scan, MANY)
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(file))).T, array)
        assert np.array_equal(read_labels(file).array, array)
        if ending == ".mha" or (source, ending) in EXACT:
            assert place(file) == place(path)
        else:
            assert place(file) == pytest.approx(place(path), rel=0, abs=1e-4 if ending == ".nii.gz" else 1e-13)


def test_nifti_keeps_both_transforms_codes_and_units(tmp_path):
    """Where they differ, nibabel goes by one of them and ITK by another: a label map in any format is there too."""
    image = nib.Nifti1Image(intensities(0), AFFINE)
    image.set_qform(np.diag([1.0, 1, 1.5, 1]), 2)
    image.set_sform(AFFINE, 3)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"a scanner"
    nib.save(image, tmp_path / "scan.nii.gz")
    scan, expected = read_scan(tmp_path / "scan.nii.gz"), labels_of(intensities(0))
    write_labels(tmp_path / "out.nii.gz", expected, scan)
    written = nib.load(tmp_path / "out.nii.gz")
    for name in ("qform_code", "sform_code", "xyzt_units", "descrip", "pixdim", "srow_x", "quatern_b", "qoffset_x"):
        assert np.array_equal(written.header[name], image.header[name]), name
    assert np.array_equal(np.asarray(written.dataobj), expected)
    assert written.get_data_dtype() == np.uint8
    write_labels(tmp_path / "out.mha", expected, scan)
    assert place(tmp_path / "out.mha") == place(tmp_path / "scan.nii.gz") == place(tmp_path / "out.nii.gz")


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd", "mha"])
@pytest.mark.parametrize("depth", [1, 5])
def test_label_maps_of_scans_of_several_channels_are_no_vectors(tmp_path, ending, depth):
    """ITK marks such NIfTI as vectors, and takes a single slice of them for an image of two dimensions."""
    array = np.random.default_rng(0).normal(size=(6, 7, depth, 2)).astype(np.float32)
    scan = read_scan(write_itk(tmp_path / "two.nii.gz", itk_image(array, AFFINE, vector=True)))
    numbers = np.random.default_rng(0).choice([0, 3], (6, 7, depth))
    write_labels(tmp_path / f"out.{ending}", numbers, scan)
    image = sitk.ReadImage(str(tmp_path / f"out.{ending}"))
    assert "vector" not in image.GetPixelIDTypeAsString()
    assert np.array_equal(sitk.GetArrayFromImage(image).T.reshape(numbers.shape), numbers)
    found = read_labels(tmp_path / f"out.{ending}")
    assert np.array_equal(found.array, numbers)
    assert np.allclose(found.affine, scan.affine, atol=1e-6)


def test_channels_and_other_spaces_of_a_nrrd(tmp_path):
    array = np.random.default_rng(0).normal(size=(4, 5, 6, 2)).astype(np.float32)
    scan = read_scan(write_itk(tmp_path / "two.nrrd", itk_image(array, AFFINE, vector=True)))
    numbers = np.random.default_rng(0).choice([0, 1], (4, 5, 6))
    write_labels(tmp_path / "out.nrrd", numbers, scan)
    assert place(tmp_path / "out.nrrd") == pytest.approx(place(tmp_path / "two.nrrd"), abs=1e-13)
    data = gzip.compress(array[..., 0].tobytes(order="F"))
    header = (
        "NRRD0004\ntype: float\ndimension: 3\nspace: right-anterior-superior\nsizes: 4 5 6\n"
        "space directions: (0.3,0.1,0) (-0.1,0.3,0) (0,0,7.1)\nkinds: domain domain domain\nendian: little\n"
        'encoding: gzip\nspace origin: (1.1,2.2,-3.3)\nspace units: "mm" "mm" "mm"\n\n'
    )
    (tmp_path / "ras.nrrd").write_bytes(header.encode() + data)
    write_labels(tmp_path / "out2.nrrd", numbers, read_scan(tmp_path / "ras.nrrd"))
    assert place(tmp_path / "out2.nrrd") == place(tmp_path / "ras.nrrd")
    bare = (
        "NRRD0004\ntype: float\ndimension: 3\nsizes: 4 5 6\nspacings: 0.7 0.8 2.3\nendian: little\nencoding: gzip\n\n"
    )
    (tmp_path / "bare.nrrd").write_bytes(bare.encode() + data)
    write_labels(tmp_path / "out3.nrrd", numbers, read_scan(tmp_path / "bare.nrrd"))
    assert place(tmp_path / "out3.nrrd") == place(tmp_path / "bare.nrrd")
    assert np.array_equal(read_labels(tmp_path / "out3.nrrd").affine, read_scan(tmp_path / "bare.nrrd").affine)


@pytest.mark.parametrize("name", ["sct_t1_RAS", "sct_t2_PSR", "sct_t2s_aniso_LAS", "mr_multiorgan_3mm_crop"])
def test_label_maps_of_real_scans(real_scans, tmp_path, name):
    path = real_scans / "format_variety" / "imagesTr" / f"{name}.nii.gz"
    scan, reference = read_scan(path), nib.load(path)
    array = (scan.array[0] > np.median(scan.array)).astype(np.int32) * 4
    for ending in (".nii.gz", ".mha", ".nrrd"):
        write_labels(tmp_path / f"out{ending}", array, scan)
        limit = {".nrrd": 1e-12}.get(ending, 0)
        np.testing.assert_allclose(place(tmp_path / f"out{ending}"), place(path), rtol=0, atol=limit)
    written = nib.load(tmp_path / "out.nii.gz")
    assert np.array_equal(written.affine, reference.affine)
    assert np.array_equal(np.asarray(written.dataobj), array)
    for name in ("qform_code", "sform_code", "xyzt_units", "pixdim"):
        assert np.array_equal(written.header[name], reference.header[name]), name


def test_slicer_finds_names_and_colours(tmp_path):
    regions = Labels({1: "core", 2: "oedema"}, regions=(Region("whole:\n tumour", (1, 2), 2), Region("core", (1,), 1)))
    scan = read_scan(write_itk(tmp_path / "scan.nrrd", random_image(0)))
    array = np.random.default_rng(0).choice([0, 1, 2], scan.array.shape[1:])
    write_labels(tmp_path / "scan.seg.nrrd", array, scan, regions)
    read = sitk.ReadImage(str(tmp_path / "scan.seg.nrrd"))
    fields = {key: read.GetMetaData(key) for key in read.GetMetaDataKeys() if key.startswith("Seg")}
    assert [fields[f"Segment{k}_Name"] for k in (0, 1)] == ["whole: tumour", "core"]
    assert [fields[f"Segment{k}_LabelValue"] for k in (0, 1)] == ["2", "1"]
    assert fields["Segment1_Extent"] == "0 5 0 4 0 3"
    colours = [[float(value) for value in fields[f"Segment{k}_Color"].split()] for k in (0, 1)]
    assert colours[0] != colours[1]
    assert all(0 <= value <= 1 for colour in colours for value in colour)
    assert "Segment2_Name" not in fields


def test_every_structure_has_a_colour_of_its_own():
    colours = [segment.colour for segment in segments(Labels(dict.fromkeys(range(1, 106), "x")))]
    assert len({tuple(round(255 * value) for value in colour) for colour in colours}) == 105


@pytest.mark.parametrize(("kind", "endings"), [("same", [".mha", ".nii.gz", ".nrrd"]), ("mha", [".mha"] * 3)])
def test_predictions_come_in_the_format_that_is_asked_for(tmp_path, kind, endings):
    model, scans = write_model(tmp_path / "run"), tmp_path / "scans"
    scans.mkdir()
    for index, ending in enumerate((".mhd", ".nii", ".nhdr")):
        write_itk(scans / f"scan_{index}{ending}", itk_image(intensities(index), AFFINE))
    outcome = predict_files(Predictor.load(model), find_scans(scans), tmp_path / "out", kind=kind)
    assert not outcome.failed
    files = sorted(path for path in (tmp_path / "out").iterdir() if path.name.startswith("scan"))
    assert [path.name for path in files] == [f"scan_{index}{ending}" for index, ending in enumerate(endings)]
    for index, path in enumerate(files):
        assert np.array_equal(read_labels(path).array, labels_of(intensities(index)))
    assert len(predict_files(Predictor.load(model), find_scans(scans), tmp_path / "out", kind=kind).there) == 3


def test_dicom_seg_needs_its_package_and_a_series(tmp_path, monkeypatch):
    model, scans = write_model(tmp_path / "run"), tmp_path / "scans"
    write_series(scans / "series", units(), STRAIGHT)
    monkeypatch.setitem(__import__("sys").modules, "highdicom", None)
    with pytest.raises(MedContextError, match="can't be written here") as error:
        predict_files(Predictor.load(model), find_scans(scans), tmp_path / "out", kind="dcm")
    assert "medcontext[seg]" in error.value.remedy
    monkeypatch.setattr("medcontext.inference.writing.require_highdicom", lambda: None)
    write_itk(scans / "scan.mha", itk_image(intensities(0), AFFINE))
    with pytest.raises(MedContextError, match="this scan is none"):
        predict_files(Predictor.load(model), find_scans(scans), tmp_path / "out", kind="dcm")
    assert not (tmp_path / "out").exists()


def test_a_dicom_seg_shows_the_same_voxels_over_its_series(tmp_path):
    hd = pytest.importorskip("highdicom", reason="highdicom is not installed: pip install 'medcontext[seg]'")
    oblique = np.eye(4)
    oblique[:3, :3] = Rotation.from_euler("xyz", (0.2, -0.3, 0.5)).as_matrix()
    oblique = oblique @ STRAIGHT
    said = {**SERIES_TAGS, "0018|0088": "1"}  # the slices lie 2.5 mm apart
    files = write_series(tmp_path / "scans" / "series", units(), oblique, said)
    model = write_model(tmp_path / "run")
    predictor, scan = Predictor.load(model), read_scan(tmp_path / "scans" / "series")
    outcome = predict_files(predictor, find_scans(tmp_path / "scans"), tmp_path / "out", kind="dcm")
    assert outcome.written == ["series"], outcome.failed
    seg = hd.seg.segread(tmp_path / "out" / "series.dcm")
    assert [each.SegmentLabel for each in seg.SegmentSequence] == ["middle", "high"]
    assert [each.SegmentDescription for each in seg.SegmentSequence] == ["label 3", "label 8"]
    assert len({tuple(each.RecommendedDisplayCIELabValue) for each in seg.SegmentSequence}) == 2
    assert seg.PatientID == "p1"
    assert seg.StudyInstanceUID == SERIES_TAGS["0020|000d"]
    volume = seg.get_volume(combine_segments=True)
    expected = np.searchsorted([0, 3, 8], predictor.labels_of(scan))
    found = {tuple(point): value for point, value in points(volume.array, volume.affine)}
    assert found == {tuple(point): value for point, value in points(expected, np.diag([-1, -1, 1, 1]) @ scan.affine)}
    again = predict_files(predictor, find_scans(tmp_path / "scans"), tmp_path / "out", kind="dcm")
    assert again.there == ["series"]
    referenced = {uid for _, _, uid in seg.get_source_image_uids()}
    assert referenced == {dicom_seg.read_slice(file, with_pixels=False).SOPInstanceUID for file in files}


def points(array, affine):
    """Every labelled voxel: its place in mm, and its number."""
    for index in np.argwhere(array):
        yield np.round(affine @ (*index, 1), 3).tolist(), int(array[tuple(index)])


def test_an_empty_dicom_seg_and_a_series_that_lacks_its_study(tmp_path):
    pytest.importorskip("highdicom", reason="highdicom is not installed: pip install 'medcontext[seg]'")
    hd = pytest.importorskip("highdicom")
    write_series(tmp_path / "whole", units(), STRAIGHT, SERIES_TAGS)
    write_series(tmp_path / "bare", units(), STRAIGHT)
    empty = np.zeros((12, 10, 8), dtype=np.int32)
    dicom_seg.write_seg(tmp_path / "empty.dcm", empty, tmp_path / "whole", Labels({1: "x" * 80, 2: "choroïdeus 肝臓"}))
    seg = hd.seg.segread(tmp_path / "empty.dcm")
    assert seg.SegmentSequence[1].SegmentLabel == "choroïdeus 肝臓"
    assert not seg.get_volume(combine_segments=True).array.any()
    with pytest.raises(MedContextError, match="No DICOM SEG"):
        dicom_seg.write_seg(tmp_path / "bare.dcm", empty, tmp_path / "bare", Labels({1: "x"}))
    assert not (tmp_path / "bare.dcm").exists()


def test_a_folder_of_dicom_segs_among_the_scans_is_no_scan(tmp_path):
    pytest.importorskip("highdicom", reason="highdicom is not installed: pip install 'medcontext[seg]'")
    scans = tmp_path / "scans"
    write_series(scans / "series", units(), STRAIGHT, SERIES_TAGS)
    predictor = Predictor.load(write_model(tmp_path / "run"))
    assert predict_files(predictor, find_scans(scans), scans / "out", kind="dcm").written == ["series"]
    assert predict_files(predictor, find_scans(scans), scans / "out", kind="dcm").there == ["series"]


def test_the_segment_of_a_region_holds_the_inner_regions(tmp_path):
    hd = pytest.importorskip("highdicom", reason="highdicom is not installed: pip install 'medcontext[seg]'")
    write_series(tmp_path / "series", units(), STRAIGHT, SERIES_TAGS)
    labels = Labels({1: "a", 2: "b"}, regions=(Region("whole", (1, 2), 1), Region("core", (2,), 2)))
    array = np.random.default_rng(0).integers(0, 3, (12, 10, 8)).astype(np.int32)
    dicom_seg.write_seg(tmp_path / "regions.dcm", array, tmp_path / "series", labels)
    seg = hd.seg.segread(tmp_path / "regions.dcm")
    assert [each.SegmentLabel for each in seg.SegmentSequence] == ["whole", "core"]
    volume, scan = seg.get_volume(), read_scan(tmp_path / "series")
    for segment, inside in enumerate((array > 0, array == 2)):
        found = {tuple(point) for point, _ in points(volume.array[..., segment], volume.affine)}
        assert found == {tuple(point) for point, _ in points(inside, np.diag([-1, -1, 1, 1]) @ scan.affine)}


def test_nifti_2_stays_nifti_2(tmp_path):
    """It places voxels in double precision, NIfTI-1 in single."""
    affine = AFFINE + np.random.default_rng(0).normal(0, 1e-3, (4, 4)) * np.array([1, 1, 1, 0])[:, None]
    nib.save(nib.Nifti2Image(intensities(0), affine), tmp_path / "scan.nii")
    write_labels(tmp_path / "out.nii.gz", labels_of(intensities(0)), read_scan(tmp_path / "scan.nii"))
    written = nib.load(tmp_path / "out.nii.gz")
    assert isinstance(written, nib.Nifti2Image)
    assert np.array_equal(written.affine, affine)
