"""What is found in a data set of each layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medcontext.data.case import Case, UnlabelledCase
from medcontext.data.check import check_dataset
from medcontext.data.dataset import open_dataset
from medcontext.errors import MedContextError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_the_decathlons_layout_with_test_images(tmp_path):
    touch(
        tmp_path, "imagesTr/a.nii.gz", "imagesTr/b.nii.gz", "labelsTr/a.nii.gz", "labelsTr/c.nii.gz", "imagesTs/d.nii"
    )
    found = open_dataset(tmp_path)
    assert found.cases == {"a": Case("a", (tmp_path / "imagesTr/a.nii.gz",), tmp_path / "labelsTr/a.nii.gz", "a")}
    assert found.unlabelled == {"b": UnlabelledCase("b", (tmp_path / "imagesTr/b.nii.gz",), "b")}
    assert found.unpaired == {"c": tmp_path / "labelsTr/c.nii.gz"}
    assert found.test == {"d": (tmp_path / "imagesTs/d.nii",)}
    assert found.name == tmp_path.name


def test_nnunets_layout_has_a_file_per_channel(tmp_path):
    touch(tmp_path, *(f"imagesTr/{case}_000{channel}.nii.gz" for case in ("a_1", "b") for channel in (1, 0)))
    touch(tmp_path, "labelsTr/a_1.nii.gz", "imagesTs/c_0000.nii.gz", "imagesTs/c_0001.nii.gz")
    found = open_dataset(tmp_path)
    assert [path.name for path in found.cases["a_1"].images] == ["a_1_0000.nii.gz", "a_1_0001.nii.gz"]
    assert list(found.unlabelled) == ["b"]
    assert len(found.test["c"]) == 2


def test_four_digits_at_the_end_of_a_case_are_no_channel_where_the_label_has_them_too(tmp_path):
    touch(tmp_path, *(f"{part}/scan_{n:04d}.nii.gz" for part in ("images", "labels") for n in range(3)))
    assert list(open_dataset(tmp_path).cases) == ["scan_0000", "scan_0001", "scan_0002"]


def test_a_case_list_says_where_everything_lies(tmp_path):
    rows = [
        {
            "name": "a",
            "images": ["one/a.nii", "/two/a.nrrd"],
            "label": "one/a_gt.nii",
            "patient": "p1",
            "stratum": "DCM",
        },
        {"name": "b", "images": ["one/b.nii"], "label": None},
        {"name": "c", "images": ["one/c.nii"], "label": "unlabelled", "patient": "p2"},
    ]
    (tmp_path / "cases.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    (tmp_path / "dataset.json").write_text(json.dumps({"name": "Heart", "protocol": {"spacing": [8, 1, 1]}}))
    found = open_dataset(tmp_path)
    assert found.cases == {
        "a": Case("a", (tmp_path / "one/a.nii", Path("/two/a.nrrd")), tmp_path / "one/a_gt.nii", "p1", "DCM")
    }
    assert found.test == {"b": (tmp_path / "one/b.nii",)}
    assert found.unlabelled == {"c": UnlabelledCase("c", (tmp_path / "one/c.nii",), "p2")}
    assert found.without_label("c") == found.unlabelled["c"]
    assert found.without_label("a") == UnlabelledCase("a", found.cases["a"].images, "p1")
    assert found.without_label("b") is None
    assert (found.name, found.protocol, found.patients) == ("Heart", {"spacing": [8, 1, 1]}, {"a": "p1"})
    assert open_dataset(tmp_path / "cases.jsonl").cases == found.cases


def test_a_table_is_as_good(tmp_path):
    (tmp_path / "cases.csv").write_text(
        "name,image_1,image_0,label,patient\na,a1.nii,a0.nii,a.nii,p\nb,b1.nii,b0.nii,,\n"
    )
    found = open_dataset(tmp_path)
    assert found.cases["a"].images == (tmp_path / "a0.nii", tmp_path / "a1.nii")
    assert (found.cases["a"].patient, found.cases["a"].stratum) == ("p", None)
    assert list(found.test) == ["b"]


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("cases.jsonl", '{"name": "a", "images": ["x"], "label": "y"}\n{"name": "a", "images": ["x"]}', "line 2"),
        ("cases.jsonl", '{"name": "a", "images": ["x"], "lable": "y"}', "line 1"),
        ("cases.jsonl", "\n{", "line 2"),
        ("cases.jsonl", '{"name": "../a", "images": ["x"]}', "line 1"),
        ("cases.jsonl", '{"name": "a", "images": "x"}', "line 1"),
        ("cases.jsonl", '["a"]', "line 1"),
        ("cases.csv", "name,label\na,b", "line 1"),
        ("cases.csv", "name,image,colour\na,b,c", "line 1"),
        ("cases.csv", "name,image_t1,image_t2\na,b,c", "line 1"),
        ("cases.csv", "name,image\na,b\nc\n", "line 3"),
        ("cases.csv", "name,image\na,b,c\n", "line 2"),
        ("cases.csv", "name,image\na,\n", "line 2"),
        ("cases.csv", "", "line 1"),
    ],
)
def test_a_line_that_can_not_be_used_is_named(tmp_path, name, text, line):
    (tmp_path / name).write_text(text)
    with pytest.raises(MedContextError) as caught:
        open_dataset(tmp_path)
    assert caught.value.file == str(tmp_path / name)
    assert line in caught.value.found


def test_patients_may_be_numbers_zero_too_and_spaces_are_no_part_of_them(tmp_path):
    rows = [{"name": f"s{k}", "images": ["x"], "label": "y", "patient": k // 2} for k in range(4)]
    (tmp_path / "cases.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert open_dataset(tmp_path).patients == {"s0": "0", "s1": "0", "s2": "1", "s3": "1"}
    (tmp_path / "cases.jsonl").unlink()
    (tmp_path / "cases.csv").write_text("name,image,label,patient\na,x,y,P1\nb,x,y,P1 \nc,x,y,\n")
    assert open_dataset(tmp_path).patients == {"a": "P1", "b": "P1", "c": "c"}


def test_links_to_what_is_not_there_are_cases_that_can_not_be_read(tmp_path):
    touch(tmp_path, "images/a.nii.gz", "labels/a.nii.gz")
    for folder in ("images", "labels"):
        (tmp_path / folder / "b.nii.gz").symlink_to(tmp_path / "gone" / "b.nii.gz")
    assert open_dataset(tmp_path).cases.keys() == {"a", "b"}
    wrong = {finding.error.file for finding in check_dataset(open_dataset(tmp_path)).errors if finding.case == "b"}
    assert wrong == {str(tmp_path / folder / "b.nii.gz") for folder in ("images", "labels")}


def test_what_is_no_text_is_no_case_list(tmp_path):
    (tmp_path / "cases.csv").write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(MedContextError, match="not text"):
        open_dataset(tmp_path)


def test_an_empty_or_absent_data_set_is_an_error(tmp_path):
    (tmp_path / "cases.csv").write_text("name,image\n")
    with pytest.raises(MedContextError, match="no labelled scans"):
        open_dataset(tmp_path)
    with pytest.raises(MedContextError, match="no such data set"):
        open_dataset(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    with pytest.raises(MedContextError, match="not a data set"):
        open_dataset(tmp_path / "other")
