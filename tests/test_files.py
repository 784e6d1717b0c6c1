"""Files that are written whole or not at all."""

from __future__ import annotations

import os

import pytest

from medcontext.files import write_text


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
