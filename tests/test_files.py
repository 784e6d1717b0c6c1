"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from medcontext.errors import MedContextError
from medcontext.files import read_json, require_replaceable, write_text


@pytest.mark.parametrize(("mask", "rights"), [(0o022, 0o644), (0o027, 0o640)])
def test_a_file_has_the_rights_of_a_new_one_and_the_umask_is_never_touched(tmp_path, monkeypatch, mask, rights):
    """What other threads write meanwhile would get other rights, and two at once could leave the process without."""
    before = os.umask(mask)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", lambda _: pytest.fail("the umask was changed"))
            write_text(tmp_path / "file", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == rights
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_names_that_are_no_text_are_written_as_escapes(tmp_path):
    name = os.fsdecode(b"b\xffd.nii.gz")
    write_text(tmp_path / "page.html", f"case {name}")
    assert (tmp_path / "page.html").read_text() == r"case b\udcffd.nii.gz"


def test_a_folder_that_can_not_give_its_place_to_another_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    require_replaceable(tmp_path / "new")
    (tmp_path / "there").mkdir()
    require_replaceable(tmp_path / "there")
    for folder in (Path(), Path("there/.."), tmp_path):
        with pytest.raises(MedContextError, match="can't be made anew"):
            require_replaceable(folder)
    monkeypatch.setattr(Path, "is_mount", lambda self: self.name == "there")
    with pytest.raises(MedContextError, match="can't be made anew"):
        require_replaceable(tmp_path / "there")


def test_json_that_is_nested_without_end_is_no_json(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 200_000)
    with pytest.raises(MedContextError, match="not valid JSON"):
        read_json(tmp_path / "deep.json")
