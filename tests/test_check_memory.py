"""A second check reads what has changed and nothing else, and says the same as the first."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medcontext.data.check import check_dataset
from medcontext.data.check_memory import memory_file, recall
from medcontext.data.dataset import open_dataset
from medcontext.data.examine import Member
from medcontext.data.scan import read_scan
from tests.conftest import make_tiny, write_nifti


@pytest.fixture
def reads(monkeypatch):
    """Paths of the images that are read."""
    read = []
    monkeypatch.setattr("medcontext.data.examine.read_scan", lambda *paths: read.extend(paths) or read_scan(*paths))
    return read


def same(first, second):
    assert first.to_dict() == second.to_dict()
    for name, facts in first.facts.items():
        np.testing.assert_array_equal(facts.foreground, second.facts[name].foreground)
        assert facts.foreground.dtype == second.facts[name].foreground.dtype


def checked(root, cache):
    return check_dataset(open_dataset(root), cache=cache)


def test_what_has_not_changed_is_not_read_again(own_tiny, tmp_path, reads):
    (own_tiny / "imagesTs").mkdir()
    image, label = (own_tiny / part / "case_01.nii.gz" for part in ("imagesTr", "labelsTr"))
    shutil.copy(image, own_tiny / "imagesTs" / "held.nii.gz")
    shutil.copy(own_tiny / "labelsTr" / "case_00.nii.gz", label.with_name("alone.nii.gz"))
    first = checked(own_tiny, tmp_path / "cache")
    assert len(reads) == 5
    assert {each.case for each in first.errors} == {"held", "alone"}
    reads.clear()
    same(first, checked(own_tiny, tmp_path / "cache"))
    assert reads == []
    same(first, checked(own_tiny, None))


@pytest.mark.parametrize("part", ["imagesTr", "labelsTr"])
def test_a_changed_file_is_read_again(own_tiny, tmp_path, reads, part):
    checked(own_tiny, tmp_path / "cache")
    reads.clear()
    file, other = own_tiny / part / "case_02.nii.gz", own_tiny / part / "case_00.nii.gz"
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[5] ^= 1  # the date in a gzip header
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    checked(own_tiny, tmp_path / "cache")
    assert [path.name for path in reads] == ["case_02.nii.gz"]
    shutil.copy(other, file)
    assert {each.case for each in checked(own_tiny, tmp_path / "cache").errors} == {"case_02"}


def test_other_declarations_are_checked_against(own_tiny, tmp_path, reads):
    checked(own_tiny, tmp_path / "cache")
    description = json.loads((own_tiny / "dataset.json").read_text())
    description["labels"].pop("2")
    (own_tiny / "dataset.json").write_text(json.dumps(description))
    assert len(checked(own_tiny, tmp_path / "cache").errors) == 4
    description["labels"]["2"] = "high"
    (own_tiny / "dataset.json").write_text(json.dumps(description | {"modality": {"0": "CT"}}))
    reads.clear()
    checked(own_tiny, tmp_path / "cache")
    assert len(reads) == 4


def test_what_can_not_be_used_is_not_kept(own_tiny, tmp_path, reads):
    (own_tiny / "imagesTs").mkdir()
    (own_tiny / "imagesTr" / "case_02.nii.gz").write_bytes(b"broken")
    (own_tiny / "imagesTs" / "held.nii.gz").write_bytes(b"broken")
    first = checked(own_tiny, tmp_path / "cache")
    assert {(each.severity, each.case) for each in first.findings} == {("error", "case_02"), ("warning", "held")}
    reads.clear()
    same(first, checked(own_tiny, tmp_path / "cache"))
    assert {path.name for path in reads} == {"case_02.nii.gz", "held.nii.gz"}


def test_warnings_are_kept(own_tiny, tmp_path, reads):
    write_nifti(own_tiny / "labelsTr" / "case_00.nii.gz", *empty_like(own_tiny / "labelsTr" / "case_00.nii.gz"))
    first = checked(own_tiny, tmp_path / "cache")
    assert [each.error.problem for each in first.findings] == ["This label map is empty."]
    reads.clear()
    same(first, checked(own_tiny, tmp_path / "cache"))
    assert reads == []


def empty_like(path):
    scan = read_scan(path)
    return np.zeros(scan.array.shape[1:], np.uint8), scan.affine


@pytest.fixture(scope="module")
def remembered(tmp_path_factory):
    root = make_tiny(tmp_path_factory.mktemp("remembered"), cases=1)
    cache = root / "cache"
    return root, cache, checked(root, cache)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_entry_is_as_good_as_none(remembered, data):
    root, cache, first = remembered
    (file,) = cache.iterdir()
    content = bytearray(file.read_bytes())
    if data.draw(st.booleans(), "truncated"):
        del content[data.draw(st.integers(0, len(content) - 1), "length") :]
    else:
        content[data.draw(st.integers(0, len(content) - 1), "place")] ^= data.draw(st.integers(1, 255), "change")
    file.write_bytes(content)
    same(first, checked(root, cache))
    file.unlink(missing_ok=True)
    checked(root, cache)


def test_an_entry_of_something_else_is_as_good_as_none(tmp_path):
    np.savez(tmp_path / "a.npz", values=np.array("{}"))
    assert recall(tmp_path / "a.npz") is None
    assert recall(tmp_path / "none.npz") is None


def test_an_entry_is_never_run(tmp_path):
    """NumPy keeps objects as pickles, which may call anything as they are opened."""

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    np.savez(tmp_path / "a.npz", values=np.array(Evil(), dtype=object), foreground=np.array(Evil(), dtype=object))
    assert recall(tmp_path / "a.npz") is None
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["a.raw", "voxels_of_a.raw"])
def test_voxels_beside_their_header_count(tmp_path, name):
    header, voxels = tmp_path / "a.mhd", tmp_path / name
    header.write_text(f"ElementDataFile = {name}")
    voxels.write_bytes(b"12")
    (tmp_path / "a.json").touch()  # of the header's name, and no part of it
    member = Member("a", (header,), None, "a")
    first = memory_file(tmp_path, member, None, ())
    assert None is not first == memory_file(tmp_path, member, None, ())
    voxels.write_bytes(b"345")
    second = memory_file(tmp_path, member, None, ())
    assert None is not second != first
    voxels.rename(tmp_path / "b.raw")
    assert memory_file(tmp_path, member, None, ()) not in (first, second)
    header.unlink()
    assert memory_file(tmp_path, member, None, ()) is None


def test_a_second_channel_is_no_label(tmp_path):
    files = tmp_path / "a.nii", tmp_path / "b.nii"
    for file in files:
        file.touch()
    as_channels, as_label = Member("a", files, None, "a"), Member("a", files[:1], files[1], "a")
    assert memory_file(tmp_path, as_channels, None, ()) != memory_file(tmp_path, as_label, None, ())


def test_every_slice_of_a_series_counts(tmp_path):
    folder = tmp_path / "series"
    folder.mkdir()
    for k in range(3):
        (folder / f"{k}.dcm").write_bytes(b"slice")
    member = Member("series", (folder,), None, "series")
    first = memory_file(tmp_path, member, None, ())
    assert first == memory_file(tmp_path, member, None, ())
    (folder / "2.dcm").write_bytes(b"other")
    assert memory_file(tmp_path, member, None, ()) != first
