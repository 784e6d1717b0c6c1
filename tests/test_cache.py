"""The cache: never stale, never half a case, whatever happens to the process, the disk or the files."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import blosc2
import nibabel as nib
import numpy as np
import pytest
import torch

from medcontext.data import cache as cache_module
from medcontext.data.cache import cache_key, estimate_bytes, prepare_all
from medcontext.data.case import Case
from medcontext.data.check import check_dataset
from medcontext.data.content import KnownContent, content_digest
from medcontext.data.dataset import open_dataset
from medcontext.data.plan import make_plan
from medcontext.data.prepare import read_prepared
from medcontext.data.stored import StoredArray, packed
from medcontext.errors import MedContextError
from medcontext.files import write_json
from tests.conftest import write_nifti

FILES = ("image.b2nd", "label.b2nd", "places.npz")


@pytest.fixture
def data(own_tiny):
    """Cases, plan and facts of a data set to spoil."""
    report = check_dataset(open_dataset(own_tiny))
    return list(report.dataset.cases.values()), make_plan(report), report.facts


def contents(folder: Path) -> dict[str, bytes]:
    """What every prepared case of a cache consists of."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).digest()
        for path in sorted(folder.rglob("*"))
        if path.name in FILES
    }


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name in FILES}


def finished(folder: Path) -> list[Path]:
    """The cases in a cache that another process is filling."""
    names = os.listdir(folder) if folder.is_dir() else []
    return [folder / name for name in names if "." not in name]


def age(path: Path, seconds: float = 3600) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_a_key_is_made_of_content_and_plan(data, tmp_path):
    cases, plan, _ = data
    key = cache_key(cases[0], plan)
    assert cache_key(cases[0], dataclasses.replace(plan, patch=(8, 8, 8), steps=7, dataset="x")) == key
    assert cache_key(cases[0], dataclasses.replace(plan, spacing=(2.0, 2.0, 2.0))) != key
    assert cache_key(cases[0], dataclasses.replace(plan, channels=2)) != key
    assert cache_key(cases[1], plan) != key
    names = dict(reversed(plan.labels.names.items()))
    turned = dataclasses.replace(plan, labels=dataclasses.replace(plan.labels, names=names))
    assert len(names) > 1
    assert cache_key(cases[0], turned) != key, "the class indices are in this order"
    image = Path(shutil.copy(cases[0].images[0], tmp_path / "image.nii.gz"))
    label = Path(shutil.copy(cases[0].label, tmp_path / "label.nii.gz"))
    assert cache_key(Case("other", (image,), label, "someone"), plan) == key
    assert cache_key(Case("other", (image, image), label, "someone"), plan) != key


def test_what_is_there_is_not_made_again(data, tmp_path):
    cases, plan, facts = data
    first = prepare_all(cases, plan, tmp_path / "cache", facts=facts)
    before = times(tmp_path / "cache")
    assert len(before) == 3 * len(cases)
    seen = []
    again = prepare_all(cases, plan, tmp_path / "cache", lambda done, total: seen.append((done, total)), facts)
    assert again == first
    assert list(again) == sorted(case.name for case in cases)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert times(tmp_path / "cache") == before


def test_a_changed_file_is_prepared_anew(data, tmp_path):
    cases, plan, _ = data
    first = prepare_all(cases, plan, tmp_path / "cache")
    # Of the same size and date: only the content, and what the system notes, tell.
    date = cases[0].label.stat().st_mtime_ns
    blank = np.zeros_like(np.asarray(nib.load(cases[0].label).dataobj))
    affine = nib.load(cases[0].label).affine
    write_nifti(cases[0].label, blank, affine)
    os.utime(cases[0].label, ns=(date, date))
    second = prepare_all(cases, plan, tmp_path / "cache")
    assert {name for name in first if first[name] != second[name]} == {cases[0].name}
    assert not read_prepared(second[cases[0].name]).label[:].any()


def test_a_case_that_changes_while_it_is_read_is_not_stored(data, tmp_path, monkeypatch):
    cases, plan, _ = data
    image = cases[0].images[0]

    def read_labels(path):
        if path == cases[0].label:
            shutil.copy(cases[1].images[0], image)
        return real(path)

    real = cache_module.read_labels
    monkeypatch.setattr(cache_module, "read_labels", read_labels)
    with pytest.raises(MedContextError, match="changed while it was read") as error:
        prepare_all(cases[:1], plan, tmp_path / "cache")
    assert error.value.file == str(image)
    assert not contents(tmp_path / "cache")


def test_content_is_read_once_and_again_when_it_changes(tmp_path, monkeypatch):
    reads = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: reads.append(file.name) or digest(file, kind))
    scan, memory = tmp_path / "scan.nii.gz", tmp_path / "content.json"
    scan.write_bytes(b"one")
    since = 1.9
    clock = SimpleNamespace(time_ns=lambda: scan.stat().st_ctime_ns + round(since * 1e9))
    monkeypatch.setattr("medcontext.data.content.time", clock)
    known = KnownContent(memory)
    first = known.digest(scan)
    assert first == known.digest(scan) == content_digest(scan)
    assert len(reads) == 3, "a file that was written a moment ago is not remembered"
    since = 2.1
    known.digest(scan)
    known.save()
    assert KnownContent(memory).digest(scan) == first
    assert len(reads) == 4
    date = scan.stat().st_mtime_ns
    other = tmp_path / "other"
    other.write_bytes(b"two")
    os.utime(other, ns=(date, date))
    other.replace(scan)
    assert KnownContent(memory).digest(scan) == content_digest(scan) != first
    memory.write_text("[half")
    assert KnownContent(memory).digest(scan) == content_digest(scan)
    with pytest.raises(MedContextError, match="can't be read"):
        known.digest(tmp_path / "absent.nii.gz")


def test_what_can_not_be_remembered_is_no_reason_to_stop(data, tmp_path):
    """A cache that is full or may only be read holds what it holds."""
    cases, *_ = data
    (tmp_path / "file").touch()
    known = KnownContent(tmp_path / "file" / "known.json")
    assert known.digest(cases[0].images[0]) == content_digest(cases[0].images[0])
    known.save()
    dataset = open_dataset(cases[0].images[0].parents[1])
    assert check_dataset(dataset, cache=tmp_path / "file" / "checks").facts.keys() == dataset.cases.keys()


@pytest.mark.parametrize("header", ["scan.mhd", "scan.nhdr"])
@pytest.mark.parametrize("before_it", ["", "Comment = " + 100_000 * "x" + "\n"])
def test_voxels_beside_their_header_count_too(tmp_path, header, before_it):
    (tmp_path / header).write_text(before_it + "ElementDataFile = voxels of it.bin")
    (tmp_path / "voxels of it.bin").write_bytes(b"1")
    before = content_digest(tmp_path / header)
    (tmp_path / "unrelated.bin").write_bytes(b"1")
    assert content_digest(tmp_path / header) == before
    (tmp_path / "voxels of it.bin").write_bytes(b"2")
    assert content_digest(tmp_path / header) != before


def test_every_slice_of_a_series_counts(tmp_path):
    for k in range(3):
        (tmp_path / f"{k}.dcm").write_bytes(bytes([k]))
    before = content_digest(tmp_path)
    (tmp_path / "1.dcm").write_bytes(b"x")
    assert content_digest(tmp_path) != before


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "nonsense"])
def test_a_damaged_case_is_made_anew(data, tmp_path, file, damage):
    cases, plan, _ = data
    folders = prepare_all(cases[:2], plan, tmp_path / "cache")
    before = contents(tmp_path / "cache")
    path = folders[cases[0].name] / file
    whole = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"empty": b"", "cut": whole[:-20], "nonsense": bytes(reversed(whole))}[damage])
    with pytest.raises(MedContextError, match="damaged") as raised:
        read_prepared(folders[cases[0].name])
    assert raised.value.file == str(path)
    assert prepare_all(cases[:2], plan, tmp_path / "cache") == folders
    assert contents(tmp_path / "cache") == before
    assert {p.name for p in (tmp_path / "cache").iterdir()} == {
        "content.json",
        *(folder.name for folder in folders.values()),
    }


def test_damage_within_the_numbers_is_an_error_when_they_are_read(tmp_path):
    array = np.random.default_rng(0).integers(0, 4, (40, 40, 40)).astype(np.uint8)
    content = bytearray(packed(array))
    content[len(content) // 3 : len(content) // 2] = b"\xff" * (len(content) // 2 - len(content) // 3)
    (tmp_path / "label.b2nd").write_bytes(content)
    with pytest.raises(MedContextError, match="damaged"):
        StoredArray(tmp_path / "label.b2nd")[:]


def test_nothing_but_numbers_is_taken_from_a_stored_array(tmp_path):
    """A blosc2 file can hold an expression that is worked out when it is opened."""
    numbers = blosc2.asarray(np.ones((4, 4, 4)), urlpath=str(tmp_path / "numbers.b2nd"), mode="w")
    (numbers + 1).save(urlpath=str(tmp_path / "recipe.b2nd"))
    assert np.array_equal(StoredArray(tmp_path / "numbers.b2nd"), np.ones((4, 4, 4)))
    with pytest.raises(MedContextError, match="damaged") as raised:
        StoredArray(tmp_path / "recipe.b2nd")
    assert "UnsafeDeserializationError" in raised.value.found, "refused before it is put together"


PREPARE = """
import sys
from pathlib import Path
from medcontext.data.cache import prepare_all
from medcontext.data.dataset import open_dataset
from medcontext.data.plan import Plan
from medcontext.files import read_json
root, plan, cache = map(Path, sys.argv[1:])
print("ready", flush=True)
prepare_all(open_dataset(root).cases.values(), Plan.from_dict(read_json(plan)), cache)
"""


def test_it_may_be_killed_at_any_time(own_tiny, tmp_path):
    for index in range(4, 24):  # Enough cases for the signal to come in the middle.
        for kind in ("imagesTr", "labelsTr"):
            scan = nib.load(own_tiny / kind / f"case_{index % 4:02d}.nii.gz")
            array = np.asarray(scan.dataobj).repeat(2, 0).repeat(2, 1)
            if kind == "imagesTr":
                array = array + np.float32(index)
            write_nifti(own_tiny / kind / f"case_{index:02d}.nii.gz", array, scan.affine)
    dataset = open_dataset(own_tiny)
    plan = make_plan(check_dataset(dataset))
    cases = list(dataset.cases.values())
    prepare_all(cases, plan, tmp_path / "undisturbed")
    write_json(tmp_path / "plan.json", plan.to_dict())
    killed, reached = tmp_path / "killed", []
    for stop_at in (1, 7, 14):
        command = [sys.executable, "-c", PREPARE, own_tiny, tmp_path / "plan.json", killed]
        with subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n"
            limit = time.monotonic() + 30
            while process.poll() is None and len(finished(killed)) < stop_at and time.monotonic() < limit:
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL, "it was killed at work"
        for folder in finished(killed):
            read_prepared(folder)
        reached.append(len(finished(killed)))
    assert 0 < reached[-1] < len(cases)
    for left in killed.glob(".unfinished-*"):
        age(left, 2 * 24 * 3600)
    prepare_all(cases, plan, killed)
    assert contents(killed) == contents(tmp_path / "undisturbed")
    assert not list(killed.glob(".unfinished-*"))


def test_what_another_process_is_at_is_left_alone(data, tmp_path):
    cases, plan, _ = data
    old, young = tmp_path / ".unfinished-old", tmp_path / ".unfinished-young"
    for folder in (old, young):
        (folder / "case").mkdir(parents=True)
    age(old, 25 * 3600)
    prepare_all(cases, plan, tmp_path)
    assert young.is_dir()
    assert not old.exists()


def test_two_processes_may_prepare_the_same_case(data, tmp_path, monkeypatch):
    cases, plan, _ = data
    write = cache_module.write_prepared
    folder = tmp_path / cache_key(cases[0], plan)

    def overtaken(temporary, case):
        write(temporary, case)
        write(folder, case)

    monkeypatch.setattr(cache_module, "write_prepared", overtaken)
    assert prepare_all(cases[:1], plan, tmp_path) == {cases[0].name: folder}
    assert set(contents(tmp_path)) == {f"{folder.name}/{file}" for file in FILES}


def test_too_little_room_is_noticed_before_the_work(data, tmp_path, monkeypatch):
    cases, plan, facts = data
    needed = estimate_bytes(facts.values(), plan)
    free = needed - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12 - free, free))
    with pytest.raises(MedContextError, match="no room") as raised:
        prepare_all(cases, plan, tmp_path, facts=facts)
    assert raised.value.file == str(tmp_path)
    assert "--cache" in raised.value.remedy
    assert not contents(tmp_path)
    prepare_all(cases[:1], plan, tmp_path, facts=facts)
    # What is there already needs no room.
    prepare_all(cases, plan, tmp_path, facts=facts)


def test_the_estimate_is_about_right(tmp_path):
    rng = np.random.default_rng(0)
    for folder, array in (("images", rng.normal(size=(80, 70, 60))), ("labels", rng.random((80, 70, 60)) > 0.9)):
        write_nifti(tmp_path / folder / "a.nii.gz", array.astype(np.float32), np.diag([1.0, 1.0, 2.0, 1.0]))
    report = check_dataset(open_dataset(tmp_path))
    plan = make_plan(report, spacing=(1.5, 1.2, 1.2))
    [folder] = prepare_all(report.dataset.cases.values(), plan, tmp_path / "cache").values()
    used = sum(path.stat().st_size for path in folder.iterdir())
    assert 0.7 < estimate_bytes(report.facts.values(), plan) / used < 1.5


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_is_an_error_that_says_so(data, tmp_path, monkeypatch, number):
    cases, plan, _ = data

    def full(folder, case):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(cache_module, "write_prepared", full)
    with pytest.raises(MedContextError, match="disk is full") as raised:
        prepare_all(cases, plan, tmp_path)
    assert raised.value.file == str(tmp_path)
    assert not list(tmp_path.glob(".unfinished-*"))


def test_a_cache_that_is_no_folder_is_refused(data, tmp_path):
    cases, plan, _ = data
    (tmp_path / "file").write_text("")
    with pytest.raises(MedContextError, match="can't be used"):
        prepare_all(cases, plan, tmp_path / "file")


def test_a_case_that_can_not_be_read_stops_the_work(data, tmp_path):
    cases, plan, _ = data
    whole = cases[0].images[0].read_bytes()
    cases[0].images[0].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MedContextError) as raised:
        prepare_all(cases, plan, tmp_path / "cache")
    assert raised.value.file == str(cases[0].images[0])
    assert not list((tmp_path / "cache").glob(".unfinished-*"))


def test_threads_that_start_later_are_given_as_many_cores_as_before(data, tmp_path):
    cases, plan, _ = data
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        prepare_all(cases, plan, tmp_path)
        with ThreadPoolExecutor(max_workers=1) as pool:
            assert pool.submit(torch.get_num_threads).result() == torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_as_many_cases_at_once_as_fit_in_free_memory(data, tmp_path, monkeypatch):
    cases, plan, _ = data
    workers, pool = [], ThreadPoolExecutor
    monkeypatch.setattr(
        cache_module, "ThreadPoolExecutor", lambda max_workers, **more: workers.append(max_workers) or pool(1, **more)
    )
    monkeypatch.setattr("medcontext.memory.processors", lambda: 64)
    largest = max(cache_module._size(case) for case in cases)
    for free in (1e12, 2 * 5 * 30 * largest, 1):
        monkeypatch.setattr("medcontext.memory.free_memory", lambda _, free=free: float(free))
        prepare_all(cases, plan, tmp_path / str(free))
    assert workers[1::2] == [64, 5, 1]
