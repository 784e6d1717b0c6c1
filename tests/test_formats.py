"""NIfTI, NRRD and MetaImage: written by nibabel and SimpleITK, or by hand, and read by the package."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from medcontext.data.scan import read_labels, read_scan, spacing_of, write_labels
from medcontext.errors import MedContextError
from tests.conftest import write_nifti

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
ITK_ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")
SHEARED = np.array([[1.9, 0.2, 0.1, -30], [-0.2, 1.8, 0.3, 12], [-0.1, -0.3, 4.8, 7], [0, 0, 0, 1.0]])


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Any rotation, mirroring, spacing and origin."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(rng=rng).as_matrix() @ np.diag(rng.uniform(0.2, 6, 3) * rng.choice([-1, 1], 3))
    affine[:3, 3] = rng.normal(0, 100, 3)
    return affine


def itk_image(array: np.ndarray, affine: np.ndarray, vector: bool = False) -> sitk.Image:
    """``(X, Y, Z)`` or ``(X, Y, Z, C)`` with an affine to RAS+ as SimpleITK holds it."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(np.swapaxes(array, 0, 2)), isVector=vector)
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def write_itk(path: Path, image: sitk.Image, compressed: bool = True) -> Path:
    sitk.WriteImage(image, str(path), compressed)
    return path


@given(affine=affines(), ending=st.sampled_from([".nii", ".nii.gz", *ITK_ENDINGS]), compressed=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_marked_point_of_the_world_stays_where_it_is(affine, ending, compressed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("marked")
    array = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)
    array[3, 1, 5] = 4000
    image = itk_image(array, affine)
    if ending in (".nii", ".nii.gz"):
        path = write_nifti(folder / f"a{ending}", array, affine)
    else:
        path = write_itk(folder / f"a{ending}", image, compressed)
    x, y, z = image.TransformIndexToPhysicalPoint((3, 1, 5))
    scan = read_scan(path)
    assert np.array_equal(scan.array[0], array)
    marked = np.argwhere(scan.array[0] == 4000)[0]
    assert scan.affine @ (*marked, 1) == pytest.approx((-x, -y, z, 1), abs=1e-3 if ending.startswith(".nii") else 1e-9)
    assert (scan.header is None) == (ending in ITK_ENDINGS)
    assert scan.array.dtype == np.float32
    assert scan.affine.dtype == np.float64


@pytest.mark.parametrize("ending", ITK_ENDINGS)
@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_every_kind_of_number_is_read(tmp_path, ending, kind):
    rng = np.random.default_rng(1)
    limit = 100 if kind[0] == "f" else min(np.iinfo(kind).max, 2**24)
    array = rng.uniform(-limit if kind[0] == "i" else 0, limit, (3, 4, 5)).astype(kind)
    for compressed in (True, False):
        path = write_itk(tmp_path / f"a{ending}", itk_image(array, SHEARED), compressed)
        assert np.array_equal(read_scan(path).array[0], array.astype(np.float32))
        assert np.allclose(read_scan(path).affine, SHEARED, atol=1e-12)


@pytest.mark.parametrize("ending", ITK_ENDINGS)
def test_channels_are_read_from_vectors_and_from_a_fourth_axis(tmp_path, ending):
    array = np.random.default_rng(2).normal(size=(4, 5, 6, 3)).astype(np.float32)
    path = write_itk(tmp_path / f"vector{ending}", itk_image(array, SHEARED, vector=True))
    assert np.array_equal(read_scan(path).array, np.moveaxis(array, -1, 0))
    assert np.allclose(read_scan(path).affine, SHEARED)
    path = write_itk(tmp_path / f"axis{ending}", sitk.GetImageFromArray(array.T, isVector=False))
    assert np.array_equal(read_scan(path).array, np.moveaxis(array, -1, 0))
    assert np.allclose(read_scan(path).affine, LPS)
    with pytest.raises(MedContextError, match="number of axes"):
        read_scan(write_itk(tmp_path / f"flat{ending}", sitk.GetImageFromArray(array[0, :, :, 0])))


def write_nrrd(path: Path, lines: list[str], content: bytes) -> Path:
    path.write_bytes("\n".join(["NRRD0005", "# by hand", *lines, "", ""]).encode() + content)
    return path


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("right-anterior-superior", (1, 1, 1)),
        ("RAS", (1, 1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
        ("LPS", (-1, -1, 1)),
    ],
)
def test_the_space_of_an_nrrd_says_where_its_axes_point(tmp_path, space, signs):
    array = np.random.default_rng(3).integers(-99, 99, (2, 3, 4, 5)).astype(">i2")
    lines = [
        "type: short",
        "dimension: 4",
        f"space: {space}",
        "sizes: 2 3 4 5",
        "space directions: (1.5,0.5,0) (0,2,0) (0,0.25,3) none",
        "kinds: domain domain domain list",
        "endian: big",
        "encoding: gzip",
        "space origin: (10,-20,30.5)",
        "name:=with: a colon",
    ]
    scan = read_scan(write_nrrd(tmp_path / "a.nrrd", lines, gzip.compress(array.tobytes(order="F"))))
    assert np.array_equal(scan.array, np.moveaxis(array, -1, 0))
    axes = np.array([[1.5, 0, 0, 10], [0.5, 2, 0.25, -20], [0, 0, 3, 30.5]])
    assert np.allclose(scan.affine[:3], np.diag(signs) @ axes)


def test_headers_by_hand_of_what_can_not_be_read(tmp_path):
    voxels = np.arange(24, dtype=np.uint8).tobytes()
    nrrd = ["type: uchar", "dimension: 3", "sizes: 2 3 4", "encoding: raw"]
    assert read_scan(write_nrrd(tmp_path / "good.nrrd", nrrd, voxels)).array.max() == 23
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "v.raw").write_bytes(voxels)
    (tmp_path / "v.raw").write_bytes(voxels)
    mhd = "ObjectType = Image\nNDims = 3\nDimSize = 2 3 4\nElementType = MET_UCHAR\n"
    for content, problem in (
        (["type: uchar", "dimension: 3", "sizes: 2 3 4", "encoding: ascii"], "can't be read"),
        ([*nrrd, "byte skip: 3"], "can't be read"),
        ([*nrrd, f"data file: {tmp_path}/v.raw"], "voxels is missing"),
        ([*nrrd, "data file: outside/v.raw"], "voxels is missing"),
        (["type: uchar", "dimension: 4", "sizes: 3 2 2 2", "encoding: raw",
          "kinds: RGB-color domain domain domain"], "can't be read"),
        (["type: uchar", "dimension: 3", "sizes: 2 3 5", "encoding: raw"], "disagree"),
        (["type: uchar", "dimension: 3", "sizes: 2 3 3", "encoding: raw"], "disagree"),
    ):  # fmt: skip
        with pytest.raises(MedContextError, match=problem):
            read_scan(write_nrrd(tmp_path / "a.nrrd", content, voxels))
    for content, problem in (
        (mhd + "ElementDataFile = outside/v.raw\n", "voxels is missing"),
        (mhd + "ElementDataFile = ../v.raw\n", "voxels is missing"),
        (mhd + "ElementDataFile = LIST\n", "voxels is missing"),
        (mhd.replace("UCHAR", "UCHAR_ARRAY") + "ElementDataFile = v.raw\n", "can't be read"),
        (mhd.replace("2 3 4", "2 3 5") + "ElementDataFile = v.raw\n", "disagree"),
        (mhd.replace("2 3 4", "2 0 4") + "ElementDataFile = v.raw\n", "no voxels"),
        (mhd + "TransformMatrix = 1 0 0 1 0 0 0 0 1\nElementDataFile = v.raw\n", "grid in space"),
        (mhd + "ElementSpacing = 1 nan 1\nElementDataFile = v.raw\n", "grid in space"),
        (mhd + "ElementSpacing = 1 1\nElementDataFile = v.raw\n", "damaged"),
    ):
        (tmp_path / "a.mhd").write_text(content)
        with pytest.raises(MedContextError, match=problem) as error:
            read_scan(tmp_path / "a.mhd")
        assert error.value.remedy
    (tmp_path / "a.mhd").write_text(mhd + "ElementDataFile = v.raw\n")
    assert read_scan(tmp_path / "a.mhd").array.max() == 23


def test_nifti_of_either_version_byte_order_and_scaling_is_read_as_by_nibabel(tmp_path):
    stored = np.random.default_rng(4).integers(-3000, 3000, (4, 5, 6, 2))
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        for dtype in ("<i2", ">i2", "<f8", ">f4"):
            image = kind(stored.astype(dtype), SHEARED, kind.header_class(endianness=dtype[0]))
            image.header.set_slope_inter(0.37, -12.5) if dtype[1] == "i" else None
            image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"kept as it is"))
            nib.save(image, tmp_path / "a.nii.gz")
            scan, reference = read_scan(tmp_path / "a.nii.gz"), nib.load(tmp_path / "a.nii.gz")
            np.testing.assert_allclose(scan.array, np.moveaxis(reference.get_fdata(), -1, 0), rtol=1e-6)
            assert np.array_equal(scan.affine, reference.affine)
            assert len(scan.header.extensions) == 1
    array = np.random.default_rng(5).normal(size=(4, 5, 6, 3)).astype(np.float32)
    path = write_itk(tmp_path / "vector.nii.gz", itk_image(array, np.diag([2.0, 2, 3, 1]), vector=True))
    assert np.array_equal(read_scan(path).array, np.moveaxis(array, -1, 0))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_label_maps_of_one_format_are_written_in_another(tmp_path, ending):
    labels = np.random.default_rng(6).integers(0, 300, (4, 5, 6))
    for source in (".nii.gz", ".nrrd"):
        first = tmp_path / f"scan{source}"
        write_nifti(first, labels.astype(np.int16), SHEARED) if source == ".nii.gz" else write_itk(
            first, itk_image(labels.astype(np.int16), SHEARED)
        )
        write_labels(tmp_path / f"out{ending}", labels, like=read_labels(first))
        written = read_labels(tmp_path / f"out{ending}")
        assert np.array_equal(written.array, labels)
        assert np.allclose(written.affine, SHEARED, atol=1e-5)
    if ending.startswith(".nii"):
        image = nib.load(tmp_path / f"out{ending}")
        assert (image.header["sform_code"], image.header["qform_code"]) == (1, 1)
        assert image.header.get_xyzt_units()[0] == "mm"
        assert np.allclose(image.header.get_sform(), SHEARED, atol=1e-5)
    else:
        image = sitk.ReadImage(str(tmp_path / f"out{ending}"))
        assert np.array_equal(sitk.GetArrayFromImage(image).T, labels)
        point = (LPS @ SHEARED @ (1, 2, 3, 1))[:3]
        assert image.TransformIndexToPhysicalPoint((1, 2, 3)) == pytest.approx(tuple(point), abs=1e-5)
    with pytest.raises(MedContextError, match="not of a kind"):
        write_labels(tmp_path / "out.mhd", labels, like=written)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_voxels_without_a_size_are_refused_where_it_counts(tmp_path, ending):
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((4, 4, 4))
    header.set_qform(np.diag([2.0, 2, 2, 1]), 1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    header["pixdim"][3] = 0
    for sform in (0, 1):
        if sform:
            header.set_sform(np.diag([2.0, 2, 5, 1]), 1)
        content = header.binaryblock + bytes(4 + 128)
        path = tmp_path / f"scan{ending}"
        path.write_bytes(content if ending == ".nii" else gzip.compress(content))
        if sform:
            assert spacing_of(read_scan(path).affine) == (2, 2, 5)
        else:
            with pytest.raises(MedContextError, match="no size") as error:
                read_scan(path)
            assert "2 x 2 x 0" in error.value.found


def absurd(folder: Path) -> list[Path]:
    """One file of each format whose header promises terabytes."""
    (folder / "v.raw").write_bytes(bytes(1000))
    mhd = "ObjectType = Image\nNDims = 3\nDimSize = 30000 30000 30000\nElementType = MET_SHORT\n"
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((30000, 30000, 30000))
    header.set_sform(np.eye(4), 1)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    nifti = header.binaryblock + bytes(1000)
    big = ["type: short", "dimension: 3", "sizes: 30000 30000 30000", "endian: little"]
    files = {
        "a.nii": nifti,
        "b.nii.gz": gzip.compress(nifti),
        "d.mha": (mhd + "ElementDataFile = LOCAL\n").encode() + bytes(1000),
        "e.mha": (mhd + "CompressedData = True\nElementDataFile = LOCAL\n").encode() + zlib.compress(bytes(1000)),
        "f.mhd": (mhd + "ElementDataFile = v.raw\n").encode(),
        "i.nhdr": "\n".join(["NRRD0004", *big, "encoding: raw", "data file: v.raw", ""]).encode(),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [
        *(folder / name for name in files),
        write_nrrd(folder / "g.nrrd", [*big, "encoding: raw"], bytes(1000)),
        write_nrrd(folder / "h.nrrd", [*big, "encoding: gzip"], gzip.compress(bytes(1000))),
    ]


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.mha", "scan.nrrd"])
def test_a_scan_that_memory_can_not_hold_is_refused_before_it_is_read(tmp_path, monkeypatch, name):
    """Nothing but zeros, which take a thousandth of their size on the disk."""
    path = write_itk(tmp_path / name, itk_image(np.zeros((200, 200, 100), dtype=np.int16), np.eye(4)))
    monkeypatch.setattr("medcontext.data.formats.free_memory", lambda _: 1e6)
    tracemalloc.start()
    with pytest.raises(MedContextError, match="too little memory") as error:
        read_scan(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6
    assert error.value.file == str(path)
    monkeypatch.undo()
    assert not read_scan(path).array.any()


def test_memory_is_counted_for_the_numbers_that_it_is_turned_into(tmp_path, monkeypatch):
    """A scan of bytes takes four times as much again as what the network sees."""
    path = write_itk(tmp_path / "scan.nii.gz", itk_image(np.zeros((100, 100, 100), dtype=np.uint8), np.eye(4)))
    for free, enough in ((4.9e6, False), (5.1e6, True)):
        monkeypatch.setattr("medcontext.data.formats.free_memory", lambda _, free=free: free)
        if enough:
            read_scan(path)
        else:
            with pytest.raises(MedContextError, match="too little memory"):
                read_scan(path)
    monkeypatch.setattr("medcontext.data.scan.np.moveaxis", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MedContextError, match="too little memory") as error:
        read_scan(path)
    assert error.value.file == str(path)


def test_a_header_that_promises_terabytes_is_refused_before_memory_is_taken(tmp_path):
    for path in absurd(tmp_path):
        tracemalloc.start()
        with pytest.raises(MedContextError, match="disagree") as error:
            read_scan(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert "54,000,000," in error.value.expected
        assert peak < 30e6, path.name


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A good file of each format, raw and compressed; the detached headers with their voxels."""
    folder = tmp_path_factory.mktemp("good")
    array = np.random.default_rng(7).integers(0, 9, (6, 6, 6)).astype(np.int16)
    several = np.stack([array, array], axis=-1)
    write_nifti(folder / "a.nii", array, np.eye(4))
    write_nifti(folder / "a.nii.gz", several, np.eye(4))
    for name, compressed in (("packed", True), ("raw", False)):
        for ending in (".nrrd", ".mha"):
            write_itk(folder / f"{name}{ending}", itk_image(array, np.eye(4)), compressed)
            write_itk(folder / f"{name}-vector{ending}", itk_image(several, np.eye(4), vector=True), compressed)
    write_itk(folder / "b.mhd", itk_image(array, np.eye(4)), False)
    write_itk(folder / "c.nhdr", itk_image(array, np.eye(4)), False)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def read_or_refused(path: Path) -> None:
    """Nothing but a whole scan or an error that names its file comes out."""
    try:
        scan = read_scan(path)
    except MedContextError as error:
        refused = error
    else:
        assert scan.array.ndim == 4
        assert scan.array.size
        assert np.isfinite(scan.affine).all()
        return
    assert path.parent in Path(refused.file).parents
    assert refused.remedy


@given(data=st.data())
@settings(max_examples=250, deadline=None)
def test_whatever_happens_to_a_file_it_is_a_scan_or_one_error(data, good, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    for name, content in good.items():
        if name.endswith("raw"):
            (folder / name).write_bytes(content)
    name = data.draw(st.sampled_from(sorted(good)))
    content = bytearray(good[name])
    place = st.integers(0, len(content) - 1) | st.integers(0, min(400, len(content) - 1))
    match data.draw(st.sampled_from(["cut", "flip", "insert", "digits", "noise"])):
        case "cut":
            del content[data.draw(place) :]
        case "flip":
            for where in data.draw(st.lists(place, min_size=1, max_size=4)):
                content[where] = data.draw(st.integers(0, 255))
        case "insert":
            content[data.draw(place) : 0] = data.draw(st.binary(min_size=1, max_size=9))
        case "digits":
            digits = [where for where, byte in enumerate(content[:400]) if chr(byte).isdigit()]
            if digits:
                where = data.draw(st.sampled_from(digits))
                content[where : where + 1] = data.draw(st.sampled_from([b"0", b"-1", b"99999", b"1e30", b"nan"]))
        case "noise":
            content = bytearray(data.draw(st.binary(max_size=600)))
    (folder / name).write_bytes(content)
    tracemalloc.start()
    for path in (path for path in folder.iterdir() if path.suffix != ".raw"):
        read_or_refused(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6


def test_a_flipped_voxel_or_a_lost_end_of_a_packed_file_never_passes(good, tmp_path):
    for name, content in good.items():
        if "packed" not in name and not name.endswith(".gz"):
            continue
        middle = len(content) - 40
        for damaged in (
            content[:-1],
            content[:-5],
            content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        ):
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(MedContextError, match="damaged"):
                read_scan(tmp_path / name)


def test_nothing_is_printed(good, tmp_path, capfd):
    for name, content in good.items():
        if not name.endswith("raw"):
            (tmp_path / name).write_bytes(content[:90])
            with pytest.raises(MedContextError):
                read_scan(tmp_path / name)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("ending", ITK_ENDINGS)
def test_real_scans_mean_the_same_in_every_format(real_scans, tmp_path, ending):
    images = sorted((real_scans / "format_variety" / "imagesTr").glob("*.nii.gz"))
    assert len(images) == 6
    for path in images:
        scan = read_scan(path)
        image = nib.load(path)
        np.testing.assert_array_equal(scan.array[0], image.get_fdata(dtype=np.float32))
        assert np.array_equal(scan.affine, image.affine)
        converted = read_scan(write_itk(tmp_path / f"a{ending}", sitk.ReadImage(str(path)), False))
        np.testing.assert_array_equal(converted.array, scan.array)
        np.testing.assert_allclose(converted.affine, scan.affine, atol=1e-3)


def test_four_real_channels_in_one_file_or_four(real_scans, tmp_path):
    path = real_scans / "MS_lesion_4ch" / "imagesTr" / "patient07.nii.gz"
    whole = read_scan(path)
    image = nib.load(path)
    assert np.array_equal(whole.array[2], np.asarray(image.dataobj[..., 2]).astype(np.float32))
    middle = np.asarray(image.dataobj)[:, :, 80:90]
    part = write_nifti(tmp_path / "part.nii.gz", middle, image.affine)
    packed = write_itk(tmp_path / "part.nrrd", itk_image(middle, image.affine, vector=True))
    files = [write_nifti(tmp_path / f"part_{c:04d}.nii.gz", middle[..., c], image.affine) for c in range(4)]
    for scan in (read_scan(packed), read_scan(*files)):
        assert np.array_equal(scan.array, read_scan(part).array)
        np.testing.assert_allclose(scan.affine, image.affine, atol=1e-4)
