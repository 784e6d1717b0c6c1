"""Predicting many scans: from anywhere, by several machines, interrupted at any moment, and nothing lost."""

from __future__ import annotations

import gc
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medcontext.data import scan as scan_module
from medcontext.data.labels import Labels
from medcontext.data.scan import read_scan
from medcontext.errors import MedContextError
from medcontext.files import write_json
from medcontext.inference import folder as folder_module
from medcontext.inference.model import load_model, load_tensors, save_tensors
from medcontext.inference.models import model_files
from medcontext.inference.predict import predict_files
from medcontext.inference.predictor import Predictor
from medcontext.inference.scans import find_scans, take_shard
from tests.conftest import write_nifti
from tests.predicting import AFFINE, NETWORK, intensities, labels_of, write_model, write_scans
from tests.test_cli import run
from tests.test_dicom import STRAIGHT, own_locale, units, write_series  # noqa: F401
from tests.test_formats import itk_image, write_itk


@pytest.fixture
def expected(tmp_path):
    return write_scans(tmp_path / "scans")


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "run")


def predicted(folder: Path) -> dict[str, np.ndarray]:
    return {path.name[:-7]: np.asarray(nib.load(path).dataobj) for path in folder.glob("[!.]*.nii.gz")}


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def states(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("[!.]*.nii.gz")}


def predict(*arguments: object) -> int:
    return run("predict", *arguments, "--network", NETWORK, "--device", "cpu")


def test_a_folder_is_predicted_and_what_is_done_is_kept(model, expected, tmp_path, capsys):
    out = tmp_path / "out"
    assert predict(model, tmp_path / "scans", out) == 0
    assert same(predicted(out), expected)
    assert "3 label map(s)" in capsys.readouterr().out
    before = states(out)
    (out / "scan_1.nii.gz").unlink()
    assert predict(model, tmp_path / "scans", out) == 0
    assert same(predicted(out), expected)
    assert {name for name, time in states(out).items() if time != before[name]} == {"scan_1.nii.gz"}
    assert "1 label map(s) written" in capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["there_already"], summary["written"]) == (["scan_0", "scan_2"], ["scan_1"])


def test_a_changed_scan_is_predicted_again(model, expected, tmp_path):
    out, scan = tmp_path / "out", tmp_path / "scans" / "scan_0.nii.gz"
    assert predict(model, tmp_path / "scans", out) == 0
    write_nifti(scan, intensities(9), AFFINE)
    future = (out / "scan_0.nii.gz").stat().st_mtime + 5
    os.utime(scan, (future, future))
    assert predict(model, tmp_path / "scans", out) == 0
    assert same(predicted(out), expected | {"scan_0": labels_of(intensities(9))})


def test_label_maps_of_other_scans_of_the_same_names_are_made_anew(model, expected, tmp_path):
    """A folder of other scans, and a scan that was corrected, with a date older than its label map."""
    out, scans, other = tmp_path / "out", tmp_path / "scans", tmp_path / "other"
    assert predict(model, scans, out) == 0
    write_nifti(other / "scan_0.nii.gz", intensities(9), AFFINE)
    os.utime(other / "scan_0.nii.gz", (0, 0))
    assert predict(model, other, out) == 0
    assert same(predicted(out), expected | {"scan_0": labels_of(intensities(9))})
    shutil.copy2(other / "scan_0.nii.gz", scans / "scan_1.nii.gz")
    assert predict(model, scans, out) == 0
    assert same(predicted(out), expected | {"scan_1": labels_of(intensities(9))})
    before = states(out)
    shutil.copytree(scans, tmp_path / "copy")  # of new dates, in another place
    assert predict(model, tmp_path / "copy", out) == 0
    assert states(out) == before


def test_a_changed_slice_or_file_of_voxels_is_noticed(model, tmp_path):
    scans, out = tmp_path / "scans", tmp_path / "out"
    write_series(scans / "series", units(), STRAIGHT)
    write_itk(scans / "volume.mhd", itk_image(intensities(4), AFFINE), compressed=False)
    predictor = Predictor.load(model)
    assert predict_files(predictor, find_scans(scans), out).written == ["series", "volume"]
    assert predict_files(predictor, find_scans(scans), out).there == ["series", "volume"]
    (scans / "volume.raw").write_bytes(intensities(5).tobytes(order="F"))
    assert predict_files(predictor, find_scans(scans), out).written == ["volume"]
    assert np.array_equal(read_scan(out / "volume.nii.gz").array[0], labels_of(intensities(5)))
    write_series(scans / "series", -units(), STRAIGHT)
    assert predict_files(predictor, find_scans(scans), out).written == ["series"]


def test_a_scan_that_changes_while_it_is_predicted_is_predicted_again(model, expected, tmp_path, monkeypatch):
    out, scan = tmp_path / "out", tmp_path / "scans" / "scan_1.nii.gz"
    predictor = Predictor.load(model)
    predict_one = predictor.maps_of

    def maps_of(read, **wanted):
        if read.path == scan:
            write_nifti(scan, intensities(9), AFFINE)
        return predict_one(read, **wanted)

    monkeypatch.setattr(predictor, "maps_of", maps_of)
    predict_files(predictor, find_scans(tmp_path / "scans"), out)
    assert predict_files(Predictor.load(model), find_scans(tmp_path / "scans"), out).written == ["scan_1"]
    assert same(predicted(out), expected | {"scan_1": labels_of(intensities(9))})


def test_predictions_of_another_model_are_refused_or_replaced(model, expected, tmp_path, capsys):
    out = tmp_path / "out"
    assert predict(model, tmp_path / "scans", out) == 0
    before = states(out)
    other = write_model(tmp_path / "other", labels=Labels({5: "middle", 6: "high"}))
    assert predict(other, tmp_path / "scans", out) == 1
    assert "another model" in (said := capsys.readouterr().err)
    assert "--replace" in said
    assert states(out) == before
    # Interrupted after one scan: the others are still the first model's, and must not be taken for the second's.
    assert predict(other, tmp_path / "scans" / "scan_0.nii.gz", out, "--replace") == 0
    assert predict(other, tmp_path / "scans", out) == 0
    renamed = {name: np.array([0, 5, 6])[np.digitize(array, (1, 5))] for name, array in expected.items()}
    assert same(predicted(out), renamed)
    assert predict(model, tmp_path / "scans", out, "--replace") == 0
    assert same(predicted(out), expected)


def test_replace_makes_all_anew(model, expected, tmp_path):
    out = tmp_path / "out"
    assert predict(model, tmp_path / "scans", out) == 0
    before = states(out)
    assert predict(model, tmp_path / "scans", out, "--replace") == 0
    assert all(states(out)[name] > time for name, time in before.items())


def test_one_folder_holds_one_format(model, expected, tmp_path, capsys):
    out = tmp_path / "out"
    assert predict(model, tmp_path / "scans", out) == 0
    assert predict(model, tmp_path / "scans", out, "--format", "nrrd", "--replace") == 1
    assert "another format" in capsys.readouterr().err
    assert same(predicted(out), expected)


def test_predictions_of_an_older_version_are_no_obstacle_to_replacing(model, expected, tmp_path):
    out = tmp_path / "out"
    write_nifti(out / "scan_0.nii.gz", np.zeros((2, 2, 2), np.uint8), np.eye(4))
    for record in ("", "[]", "{"):
        (out / ".predicted-by-medcontext").write_text(record)
        assert predict(model, tmp_path / "scans", out) == 1
    assert predict(model, tmp_path / "scans", out, "--replace") == 0
    assert same(predicted(out), expected)


names = st.sets(st.text("abc_012", min_size=1, max_size=6), min_size=1, max_size=30)


@given(names=names, parts=st.integers(1, 9), data=st.data())
def test_shards_are_disjoint_complete_and_even(names, parts, data):
    scans = {name: (Path(name),) for name in data.draw(st.permutations(sorted(names)))}
    shards = [take_shard(scans, f"{part}/{parts}") for part in range(1, parts + 1)]
    assert sorted(name for shard in shards for name in shard) == sorted(names)
    assert {name: paths for shard in shards for name, paths in shard.items()} == scans
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    again = {name: (Path(name),) for name in sorted(names)}
    assert [set(take_shard(again, f"{part}/{parts}")) for part in range(1, parts + 1)] == [set(s) for s in shards]


@pytest.mark.parametrize("shard", ["0/3", "4/3", "3", "1/0", "a/b", "1/3/5", "-1/3"])
def test_a_part_that_is_none_is_refused(shard):
    with pytest.raises(MedContextError, match="no such part"):
        take_shard({"a": 1}, shard)


def test_machines_share_the_work_and_a_folder(model, expected, tmp_path):
    out = tmp_path / "out"
    for part in (2, 1):
        assert predict(model, tmp_path / "scans", out, "--shard", f"{part}/2") == 0
        if part == 2:
            assert set(predicted(out)) == {"scan_1"}
    assert same(predicted(out), expected)
    assert {path.name for path in out.glob("*.json")} == {"summary-1-of-2.json", "summary-2-of-2.json"}


def test_a_bad_scan_stops_no_other_and_is_named(model, expected, tmp_path, capsys):
    scans, out = tmp_path / "scans", tmp_path / "out"
    whole = (scans / "scan_0.nii.gz").read_bytes()
    (scans / "scan_0.nii.gz").write_bytes(whole[: len(whole) // 2])
    write_nifti(scans / "two.nii.gz", np.ones((9, 9, 9, 2), np.float32), np.eye(4))
    write_nifti(scans / "nan.nii.gz", np.full((9, 9, 9), np.inf, np.float32), np.eye(4))
    assert predict(model, scans, out) == 1
    failed = json.loads((out / "summary.json").read_text())["failed"]
    assert {name: Path(error["file"]).name for name, error in failed.items()} == {
        name: f"{name}.nii.gz" for name in ("scan_0", "two", "nan")
    }
    assert "truncated" in failed["scan_0"]["problem"]
    assert failed["two"]["expected"].startswith("1")
    said = capsys.readouterr()
    assert "3 scan(s) failed" in said.out
    assert "Traceback" not in said.err
    assert same(predicted(out), {name: expected[name] for name in ("scan_1", "scan_2")})
    (scans / "scan_0.nii.gz").write_bytes(whole)
    for name in ("two", "nan"):
        (scans / f"{name}.nii.gz").unlink()
    assert predict(model, scans, out) == 0
    assert same(predicted(out), expected)
    assert json.loads((out / "summary.json").read_text())["failed"] == {}


def test_memory_that_runs_out_fails_one_scan(model, expected, tmp_path, monkeypatch):
    predictor = Predictor.load(model)
    predict_one = predictor.maps_of
    errors = iter([(MemoryError, ""), (RuntimeError, "[enforce fail] can't allocate memory: 9 bytes")])

    held = []

    def maps_of(scan, **wanted):
        if "scan_1" not in scan.path.name:
            on_the_device = torch.zeros(1)
            held.append(weakref.ref(on_the_device))
            kind, text = next(errors)
            raise kind(text)
        return predict_one(scan, **wanted)

    monkeypatch.setattr(predictor, "maps_of", maps_of)
    outcome = predict_files(predictor, find_scans(tmp_path / "scans"), tmp_path / "out")
    gc.collect()
    assert [each() for each in held] == [None, None], "what failed would have no room left beside it"
    assert {name: error.found for name, error in outcome.failed.items()} == {
        "scan_0": "MemoryError: ",
        "scan_2": "RuntimeError: [enforce fail] can't allocate memory: 9 bytes",
    }
    assert outcome.written == ["scan_1"]


KILLED_WHILE_WRITING = """
import os, signal, sys
from medcontext.cli.main import main
from medcontext.data import scan

whole, times = scan.write_nifti, 0

def half(path, *arguments):
    global times
    whole(path, *arguments)
    times += 1
    if times == 2:
        path.write_bytes(path.read_bytes()[:100])
        os.kill(os.getpid(), signal.SIGKILL)

scan.write_nifti = half
main(sys.argv[1:])
"""


def test_killed_while_it_writes_it_leaves_whole_files_and_goes_on(model, expected, tmp_path):
    out = tmp_path / "out"
    arguments = ["predict", str(model), str(tmp_path / "scans"), str(out), "--network", NETWORK, "--device", "cpu"]
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, *arguments], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert same(predicted(out), {"scan_0": expected["scan_0"]})
    assert len(list(out.glob(".unfinished-*"))) == 1
    assert find_scans(out).keys() == {"scan_0"}
    before = states(out)
    assert predict(model, tmp_path / "scans", out) == 0
    assert same(predicted(out), expected)
    assert states(out)["scan_0.nii.gz"] == before["scan_0.nii.gz"]


def test_a_full_disk_ends_it_at_once_and_leaves_whole_files(model, tmp_path):
    """The real limit of a file's size stands for a full disk: writing fails half-way."""
    expected = write_scans(tmp_path / "scans", size=30)
    out = tmp_path / "out"
    assert predict(model, tmp_path / "scans" / "scan_0.nii.gz", out) == 0
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))
    try:
        with pytest.raises(MedContextError, match="can't be written") as error:
            predict_files(Predictor.load(model), find_scans(tmp_path / "scans"), out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert error.value.found == "File too large"
    assert same(predicted(out), {"scan_0": expected["scan_0"]})
    assert not list(out.glob(".unfinished-*"))


def test_a_folder_without_room_or_rights_is_said_before_the_work(model, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("medcontext.inference.predictor.read_scan", lambda *_: pytest.fail("a scan was read"))
    (tmp_path / "file").write_text("no folder")
    for place in (tmp_path / "file", tmp_path / "file" / "out"):
        assert predict(model, tmp_path / "scans", place) == 1
        assert "The predictions can't be written.\n  file: " + str(place) in capsys.readouterr().err
    size = sum(path.stat().st_size for path in (tmp_path / "scans").iterdir())
    usage = folder_module.shutil.disk_usage(tmp_path)
    for free, options in ((size // 20, []), (size // 4, ["--probabilities"])):
        monkeypatch.setattr(folder_module.shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        assert predict(model, tmp_path / "scans", tmp_path / "out", *options, "--replace") == 1
        assert "The disk has no room" in capsys.readouterr().err


def test_a_full_disk_is_said_in_every_format(model, tmp_path):
    """ITK, which writes MetaImage, says it in another way than Python does."""
    write_scans(tmp_path / "scans", count=1, size=30)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))
    try:
        for kind in ("mha", "nrrd"):
            with pytest.raises(MedContextError, match="can't be written") as error:
                predict_files(Predictor.load(model), find_scans(tmp_path / "scans"), tmp_path / kind, kind=kind)
            assert error.value.found == "File too large"
            assert not [path for path in (tmp_path / kind).iterdir() if "scan" in path.name]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize(
    ("array", "affine", "said"),
    [
        (np.zeros((5, 6)), AFFINE, "no scan"),
        (np.zeros((0, 5, 6)), AFFINE, "no scan"),
        (np.zeros((5, 6, 7)), AFFINE[:3, :3], "no scan"),
        (np.zeros((5, 6, 7)), np.diag([1.0, 1, 0, 1]), "no scan"),
        (np.zeros((5, 6, 7)), np.full((4, 4), np.nan), "no scan"),
        (np.zeros((2, 5, 6, 7)), AFFINE, "channels"),
        (np.zeros((5, 6, 7)), AFFINE @ np.diag([1e5, 1e5, 1e5, 1]), "too little memory"),
    ],
)
def test_what_is_no_scan_in_memory_is_said(model, array, affine, said):
    with pytest.raises(MedContextError, match=said):
        Predictor.load(model)(array, affine)


def test_lists_and_tensors_in_memory_are_scans(model):
    predictor, image = Predictor.load(model), intensities(0)
    for array, affine in ((torch.from_numpy(image), torch.from_numpy(AFFINE)), (image.tolist(), AFFINE.tolist())):
        assert np.array_equal(predictor(array, affine), labels_of(image))


def test_a_scan_that_may_not_be_read_fails_alone(model, expected, tmp_path, monkeypatch):
    """Rights bind no one who may everything, so opening it fails here as it does for others."""
    whole = Path.open

    def refusing(path, *arguments, **more):
        if path.name == "scan_1.nii":
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path, *arguments, **more)

    image = nib.load(tmp_path / "scans" / "scan_1.nii.gz")
    nib.save(image, tmp_path / "scans" / "scan_1.nii")
    (tmp_path / "scans" / "scan_1.nii.gz").unlink()
    monkeypatch.setattr(Path, "open", refusing)
    outcome = predict_files(Predictor.load(model), find_scans(tmp_path / "scans"), tmp_path / "out")
    assert outcome.written == ["scan_0", "scan_2"]
    assert outcome.failed["scan_1"].found == "Permission denied"


def test_a_header_that_can_not_be_written_fails_one_scan(model, expected, tmp_path, monkeypatch):
    whole = scan_module.write_nifti

    def failing(path, *arguments):
        if "scan_1" in path.name:
            raise nib.spatialimages.HeaderDataError("shape does not fit in dim datatype")
        whole(path, *arguments)

    monkeypatch.setattr(scan_module, "write_nifti", failing)
    outcome = predict_files(Predictor.load(model), find_scans(tmp_path / "scans"), tmp_path / "out")
    assert outcome.written == ["scan_0", "scan_2"]
    assert "shape does not fit" in outcome.failed["scan_1"].found
    assert outcome.failed["scan_1"].file == str(tmp_path / "scans" / "scan_1.nii.gz")


def test_scans_and_other_files_are_never_written_over(model, expected, tmp_path, capsys):
    scans = tmp_path / "scans"
    before = {path: path.read_bytes() for path in scans.iterdir()}
    for source, place in ((scans, scans), (scans / "scan_0.nii.gz", scans), (scans, tmp_path / "scans" / ".")):
        for options in ([], ["--replace"], ["--format", "mha"]):
            assert predict(model, source, place, *options) == 1
            assert "choose another folder" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in scans.iterdir()} == before
    own = write_nifti(tmp_path / "own" / "scan_0.nii.gz", np.zeros((2, 2, 2), np.uint8), np.eye(4)).read_bytes()
    for options in ([], ["--replace"]):
        assert predict(model, scans, tmp_path / "own", *options) == 1
        assert "no predictions" in capsys.readouterr().err
    assert (tmp_path / "own" / "scan_0.nii.gz").read_bytes() == own


def test_nothing_else_in_the_folder_is_written_over_either(model, expected, tmp_path, capsys):
    """A summary of something else, values beside label maps, and label maps that come to lie among predictions."""
    scans = tmp_path / "scans"
    for place in ("summary.json", "probabilities/scan_1.nii.gz", "entropy/scan_2.nii.gz"):
        file = tmp_path / place.replace("/", "-") / place
        file.parent.mkdir(parents=True)
        file.write_text("mine")
        out = tmp_path / place.replace("/", "-")
        assert predict(model, scans, out, "--probabilities", "--entropy") == 1
        assert place in capsys.readouterr().err
        assert [each.relative_to(out) for each in out.rglob("*") if each.is_file()] == [Path(place)]
    out = tmp_path / "out"
    assert predict(model, scans / "scan_0.nii.gz", out) == 0
    own = write_nifti(out / "scan_1.nii.gz", np.zeros((2, 2, 2), np.uint8), np.eye(4)).read_bytes()
    assert predict(model, scans, out) == 1
    assert "scan_1.nii.gz" in capsys.readouterr().err
    assert (out / "scan_1.nii.gz").read_bytes() == own
    assert predict(model, scans, out, "--replace") == 0
    assert same(predicted(out), expected)


def test_a_pickle_in_place_of_a_model_is_not_opened(expected, tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'executed'}",)

    for protocol in (2, pickle.HIGHEST_PROTOCOL):
        (tmp_path / "evil.pt").write_bytes(pickle.dumps({"weights": Evil()}, protocol=protocol))
        assert predict(tmp_path / "evil.pt", tmp_path / "scans", tmp_path / "out") == 1
        said = capsys.readouterr().err
        assert "it was not opened" in said
        assert "weights_only" not in said  # PyTorch says how to open it all the same
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.pop("plan"), "no 'plan'"),
        (lambda content: content["about"].pop("settings"), "no 'settings'"),
        (lambda content: content.update(about=3), "not subscriptable"),
        (lambda content: content.update(plan=3), "a plan"),
        (lambda content: content.update(weights=[1]), "those of tests.predicting:build"),
    ],
)
def test_a_model_file_that_lacks_something_is_named(model, change, said):
    content = load_tensors(model / "best.pt")
    change(content)
    save_tensors(model / "best.pt", content)
    with pytest.raises(MedContextError) as error:
        load_model(model)
    assert error.value.file == str(model / "best.pt")
    assert said in str(error.value)


def test_scans_are_found_in_lists_folders_and_series(tmp_path):
    scans = tmp_path / "scans"
    write_scans(scans, 2)
    write_series(scans / "series_a", units(), STRAIGHT)
    write_series(scans / "series_b", units(), STRAIGHT)
    found = find_scans(scans)
    assert list(found) == ["scan_0", "scan_1", "series_a", "series_b"]
    assert find_scans(scans / "series_a") == {"series_a": (scans / "series_a",)}
    assert find_scans(scans / "scan_1.nii.gz") == {"scan_1": (scans / "scan_1.nii.gz",)}
    (tmp_path / "list.txt").write_text(f"# a comment\nscans/series_b\n\n{scans / 'scan_0.nii.gz'}\n")
    listed = find_scans(tmp_path / "list.txt")
    assert {name: path.resolve() for name, (path,) in listed.items()} == {
        "scan_0": scans / "scan_0.nii.gz",
        "series_b": scans / "series_b",
    }
    (tmp_path / "list.csv").write_text("name,image\nfirst,scans/scan_1.nii.gz\n")
    assert find_scans(tmp_path / "list.csv") == {"first": (scans / "scan_1.nii.gz",)}
    assert find_scans((tmp_path / "list.csv").rename(tmp_path / "LIST.CSV")) == {"first": (scans / "scan_1.nii.gz",)}


def test_scans_that_can_not_be_found_are_said(tmp_path):
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    with pytest.raises(MedContextError, match="no scans in this folder") as error:
        find_scans(tmp_path / "outer")
    assert "inner" in error.value.found
    with pytest.raises(MedContextError, match="no such file"):
        find_scans(tmp_path / "none.nii.gz")
    (tmp_path / "list.txt").write_text("# nothing\n")
    with pytest.raises(MedContextError, match="no scans to predict"):
        find_scans(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("a/scan.nii.gz\nb/scan.nii\n")
    with pytest.raises(MedContextError, match="same name"):
        find_scans(tmp_path / "list.txt")


def test_a_listed_scan_that_is_gone_fails_alone(model, expected, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("scans/scan_0.nii.gz\nscans/gone.nii.gz\n")
    assert predict(model, tmp_path / "list.txt", tmp_path / "out") == 1
    assert "There is no such file" in capsys.readouterr().err
    assert same(predicted(tmp_path / "out"), {"scan_0": expected["scan_0"]})


def test_a_folder_of_folds_means_all_of_them(tmp_path, expected, capsys):
    for fold in (10, 2, 0):
        write_model(tmp_path / "cross" / f"fold-{fold}")
    (tmp_path / "cross" / "fold-x").mkdir()
    write_model(tmp_path / "one.pt")
    assert [file.parent.name for file in model_files(tmp_path / "cross")] == ["fold-0", "fold-2", "fold-10"]
    both = model_files([tmp_path / "one.pt", str(tmp_path / "cross" / "fold-2")])
    assert both == (tmp_path / "one.pt", tmp_path / "cross" / "fold-2" / "best.pt")
    (tmp_path / "cross" / "fold-2" / "best.pt").unlink()
    assert predict(tmp_path / "cross" / "fold-2", tmp_path / "scans", tmp_path / "out") == 1
    assert "no trained model" in capsys.readouterr().err


def test_scans_are_predicted_one_after_the_other_as_they_are_asked_for(model, expected, tmp_path, monkeypatch):
    predictor, read = Predictor.load(model), []
    real = read_scan
    monkeypatch.setattr(
        "medcontext.inference.predictor.read_scan", lambda *paths: read.append(paths[0].name) or real(*paths)
    )
    made = predictor.over(find_scans(tmp_path / "scans"))
    assert read == []
    first = next(made)
    assert (first.name, first.scan.path.name) == ("scan_0", "scan_0.nii.gz")
    assert np.array_equal(first.labels, expected["scan_0"])
    made.close()
    assert len(read) <= 2
    (tmp_path / "scans" / "scan_1.nii.gz").write_bytes(b"broken")
    with pytest.raises(MedContextError, match="truncated"):
        list(predictor.over(find_scans(tmp_path / "scans")))
    failed = []
    names = [each.name for each in predictor.over(find_scans(tmp_path / "scans"), lambda *told: failed.append(told))]
    assert (names, [name for name, _ in failed]) == (["scan_0", "scan_2"], ["scan_1"])


def test_the_next_scan_is_read_meanwhile_and_no_more_than_that(model, tmp_path, monkeypatch):
    write_scans(tmp_path / "scans", 6)
    predictor, begun = Predictor.load(model), [threading.Event() for _ in range(7)]
    begun[6].set()
    real_read, real_maps, alive, made, most, done = read_scan, predictor.maps_of, [], [], [], []

    def read(path):
        begun[int(path.name[5])].set()
        scan = real_read(path)
        alive.append(weakref.ref(scan.array))
        return scan

    def maps(scan, **wanted):
        done.append(scan.path.name)
        assert begun[len(done)].wait(20), "the next scan is not read while this one is segmented"
        deadline = time.monotonic() + 5
        while any(each() is not None for each in made) and time.monotonic() < deadline:
            time.sleep(0.01)  # the last label map goes when it is written
        most.append(tuple(sum(each() is not None for each in arrays) for arrays in (alive, made)))
        result = real_maps(scan, **wanted)
        made.append(weakref.ref(result.labels))
        return result

    monkeypatch.setattr("medcontext.inference.predictor.read_scan", read)
    monkeypatch.setattr(predictor, "maps_of", maps)
    outcome = predict_files(predictor, find_scans(tmp_path / "scans"), tmp_path / "out")
    assert len(outcome.written) == 6
    assert max(scans for scans, _ in most) <= 2
    assert max(labels for _, labels in most) == 0


def test_a_model_that_was_never_a_file_is_like_no_other(model, expected, tmp_path):
    for _ in range(2):
        predictor = Predictor(load_model(model))
        assert not predict_files(predictor, find_scans(tmp_path / "scans"), tmp_path / "out", redo=True).there


def test_a_record_that_is_the_same_is_left_as_it_is(model, expected, tmp_path):
    """Its time decides which label maps are up to date: another machine must not make those of the first old."""
    out = tmp_path / "out"
    assert predict(model, tmp_path / "scans", out, "--shard", "1/2") == 0
    record = out / ".predicted-by-medcontext"
    before = record.stat().st_mtime_ns
    assert predict(model, tmp_path / "scans", out, "--shard", "2/2", "--replace") == 0
    assert record.stat().st_mtime_ns == before


def test_the_cases_of_a_part_of_the_split(model, expected, tmp_path, capsys):
    write_json(model / "split.json", {"train": ["scan_0"], "validation": ["scan_9"], "test": ["scan_2"]})
    assert predict(model, tmp_path / "scans", tmp_path / "out", "--split", "test") == 0
    assert same(predicted(tmp_path / "out"), {"scan_2": expected["scan_2"]})
    assert predict(model, tmp_path / "scans", tmp_path / "out", "--split", "validation") == 1
    assert "validation part" in capsys.readouterr().err


def test_only_what_every_fold_held_out_is_predicted_as_held_out(expected, tmp_path, capsys):
    cross, scans = tmp_path / "cross", tmp_path / "scans"
    for fold, test in enumerate((["scan_0", "scan_1"], ["scan_1", "scan_2"])):
        run_folder = write_model(cross / f"fold-{fold}")
        train = [name for name in expected if name not in test]
        write_json(run_folder / "split.json", {"train": train, "validation": [], "test": test})
    assert predict(cross, scans, tmp_path / "out", "--split", "test") == 0
    assert same(predicted(tmp_path / "out"), {"scan_1": expected["scan_1"]})
    write_json(cross / "fold-0" / "split.json", {"train": ["scan_1", "scan_2"], "validation": [], "test": ["scan_0"]})
    capsys.readouterr()
    assert predict(cross, scans, tmp_path / "none", "--split", "test") == 1
    assert "one fold at a time" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
