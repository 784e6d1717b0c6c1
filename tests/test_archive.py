from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medcontext.data.recipes import archive
from medcontext.data.recipes.archive import extract, member_names
from medcontext.errors import MedContextError

FILES = {"Set/a.txt": b"first", "Set/deep/b.bin": bytes(range(256)) * 40, "Set/empty": b""}
LEFT_OVERS = {"__MACOSX/Set/._a.txt": b"junk", "Set/.DS_Store": b"junk", "Set/._a.txt": b"junk"}


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return path


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tape:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tape.addfile(info, io.BytesIO(content))
    return path


def make(kind: str, folder: Path, files: dict[str, bytes]) -> Path:
    if kind == "zip":
        return make_zip(folder / "set.zip", files)
    return make_tar(folder / f"set.{kind}", files, {"tar": "w", "tar.gz": "w:gz"}[kind])


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_what_was_packed_comes_out_without_what_file_managers_leave(tmp_path, kind):
    path = make(kind, tmp_path, FILES | LEFT_OVERS)
    assert sorted(member_names(path)) == sorted(FILES)
    steps = []
    extract(path, tmp_path / "out", lambda done, total: steps.append((done, total)))
    found = content_of(tmp_path / "out")
    assert found.pop(archive.SOURCE)
    assert found == FILES
    size = sum(map(len, FILES.values()))
    assert steps[-1] == (size, size)
    assert {path.name for path in tmp_path.iterdir()} == {path.name, "out"}


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", ["/absolute.txt", "../outside.txt", "Set/../../outside.txt", "C:/x.txt", "Set\\..\\x"])
def test_a_path_that_leads_out_is_refused_before_anything_is_written(tmp_path, kind, name):
    folder = tmp_path / "downloads"
    folder.mkdir()
    path = make(kind, folder, {"Set/good.txt": b"good", name: b"evil"})
    with pytest.raises(MedContextError, match="not safe") as error:
        extract(path, tmp_path / "in" / "out")
    assert error.value.file == str(path)
    assert name.replace("\\", "\\\\") in error.value.found
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "set.tar", "w") as tape:
        info = tarfile.TarInfo("Set/scan.nii.gz")
        info.type = kind
        info.linkname = "/etc/passwd"
        tape.addfile(info)
    with pytest.raises(MedContextError, match="not safe") as error:
        extract(tmp_path / "set.tar", tmp_path / "out")
    assert "link or a device" in error.value.found
    assert not (tmp_path / "out").exists()


def test_links_and_encrypted_files_in_a_zip_are_refused(tmp_path):
    info = zipfile.ZipInfo("Set/scan.nii.gz")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as packed:
        packed.writestr(info, "/etc/passwd")
    locked = bytearray(make_zip(tmp_path / "locked.zip", FILES).read_bytes())
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    for name, found in (("link.zip", "link or a device"), ("locked.zip", "encrypted")):
        with pytest.raises(MedContextError, match="not safe") as error:
            extract(tmp_path / name, tmp_path / "out")
        assert found in error.value.found
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over(tmp_path):
    path = make_tar(tmp_path / "set.tar", {"Set/a": b"1", "./Set/a": b"2"})
    with pytest.raises(MedContextError, match="not safe") as error:
        extract(path, tmp_path / "out")
    assert "there twice" in error.value.found
    both = make_tar(tmp_path / "both.tar", {"Set/a": b"a file", "Set/a/b": b"below it"})
    with pytest.raises(MedContextError, match="could not be unpacked"):
        extract(both, tmp_path / "out")
    assert {each.name for each in tmp_path.iterdir()} == {"set.tar", "both.tar"}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(MedContextError, match="was not unpacked"):
        extract(make_zip(tmp_path / "set.zip", FILES), tmp_path / "out")
    assert content_of(tmp_path / "out") == {"mine.txt": b"mine"}


def test_a_bomb_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    path = make_zip(tmp_path / "bomb.zip", {f"Set/{number}": bytes(3_000_000) for number in range(4)})
    assert path.stat().st_size < 50_000
    usage = archive.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda folder: usage._replace(free=11_999_999))
    with pytest.raises(MedContextError, match="not enough room"):
        extract(path, tmp_path / "out")
    assert [each.name for each in tmp_path.iterdir()] == ["bomb.zip"]
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda folder: usage._replace(free=12_000_000))
    extract(path, tmp_path / "out")
    assert len(content_of(tmp_path / "out")) == 5


def test_a_zip_that_lies_about_its_size_writes_no_more_than_it_declares(tmp_path):
    path = make_zip(tmp_path / "set.zip", {"Set/a": bytes(1_000_000)})
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\x01\x02") + 24
    content[place : place + 4] = (1000).to_bytes(4, "little")
    path.write_bytes(content)
    written = []
    with pytest.raises(MedContextError, match="damaged"):
        extract(path, tmp_path / "out", lambda done, total: written.append(done))
    assert max(written, default=0) <= 1000
    assert [each.name for each in tmp_path.iterdir()] == ["set.zip"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError("No space left on device")])
def test_an_unpacking_that_is_stopped_leaves_nothing_under_the_name(tmp_path, stop):
    path = make_tar(tmp_path / "set.tar", FILES)

    def update(done: int, total: int) -> None:
        assert (tmp_path / ".unfinished-out").is_dir()
        raise stop

    with pytest.raises(KeyboardInterrupt if stop is KeyboardInterrupt else MedContextError):
        extract(path, tmp_path / "out", update)
    assert [each.name for each in tmp_path.iterdir()] == ["set.tar"]


def test_the_same_archive_is_not_unpacked_twice_and_another_one_takes_its_place(tmp_path):
    path = make_tar(tmp_path / "set.tar", FILES)
    (tmp_path / ".unfinished-out").mkdir()
    (tmp_path / ".unfinished-out" / "left by a killed process").write_text("")
    extract(path, tmp_path / "out")
    inode = (tmp_path / "out" / "Set").stat().st_ino
    extract(path, tmp_path / "out")
    assert (tmp_path / "out" / "Set").stat().st_ino == inode
    extract(make_tar(path, {"Set/other": b"other"}), tmp_path / "out")
    assert set(content_of(tmp_path / "out")) == {archive.SOURCE, "Set/other"}


def test_every_way_of_being_damaged_is_an_error_that_names_the_archive(tmp_path):
    damaged = {}
    packed = bytearray(make_tar(tmp_path / "crc.tar.gz", FILES, "w:gz").read_bytes())
    packed[-5] ^= 1
    damaged["crc.tar.gz"] = packed
    entry = b"PK\x01\x02"
    content = make_zip(tmp_path / "name.zip", {"Set/\u00e4": b"1"}).read_bytes()
    damaged["name.zip"] = content.replace("\u00e4".encode(), b"\xff\xff")
    strange = bytearray(make_zip(tmp_path / "method.zip", FILES).read_bytes())
    strange[strange.index(entry) + 10] = 77
    damaged["method.zip"] = strange
    damaged["page.zip"] = b"<html>please log in</html>"
    damaged["empty.zip"] = b""
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MedContextError) as error:
            extract(tmp_path / name, tmp_path / "out")
        assert error.value.file == str(tmp_path / name)
        assert error.value.remedy
    assert {each.name for each in tmp_path.iterdir()} == set(damaged)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_archive_is_an_error_that_names_it_or_is_unpacked(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    kind = data.draw(st.sampled_from(["zip", "tar", "tar.gz"]))
    path = make(kind, folder, FILES)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    error = None
    try:
        extract(path, folder / "out")
    except MedContextError as raised:
        error = raised
    if error is None:
        assert content_of(folder / "out")
    else:
        assert error.file == str(path)
        assert error.remedy
        assert [each.name for each in folder.iterdir()] == [path.name]
