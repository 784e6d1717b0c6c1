"""Held-out cases with parts of the scans missing: what is taken out, and how studies score it."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from medcontext.data.dataset import open_dataset
from medcontext.data.scan import Scan, read_labels, read_scan
from medcontext.data.split_file import read_split_file
from medcontext.errors import MedContextError
from medcontext.inference.model import load_tensors, save_tensors
from medcontext.inference.postprocess import KEY, Rule
from medcontext.inference.predictor import Predictor
from medcontext.progress import Progress
from medcontext.studies.conduct import conduct
from medcontext.studies.missing_parts import (
    BLOCK_MM,
    MISSING,
    SHARE,
    blocks,
    score_missing_parts,
    scores_file,
    slab,
    what_is_left,
    write_what_is_left,
)
from medcontext.studies.recorded import recorded
from medcontext.studies.reporting import report_runs
from medcontext.studies.results import gather
from medcontext.studies.study import left_of, state_of
from medcontext.studies.study_file import read_study
from medcontext.training.run import RunFolder
from tests.test_study import SMALL, TINY, dump, furnished

SHAPES = st.tuples(*[st.integers(1, 14)] * 3)
SPACINGS = st.tuples(*[st.floats(0.3, 15.0)] * 3)


def made(shape, spacing, seed) -> Scan:
    """Two channels of noise, no two voxels alike."""
    array = np.random.default_rng(seed).permutation(2 * int(np.prod(shape))).reshape(2, *shape).astype(np.float32)
    return Scan(Path("made up"), array, np.diag([*spacing, 1.0]), None)


@settings(deadline=None)
@given(SHAPES, SPACINGS, st.integers(0, 99))
def test_blocks_are_cubes_all_over_the_scan_filled_with_the_mean_of_the_rest(shape, spacing, seed):
    scan = made(shape, spacing, seed)
    before = scan.array.copy()
    left = blocks(scan, np.random.default_rng(seed))
    assert np.array_equal(scan.array, before)
    assert np.array_equal(left.affine, scan.affine)
    # Whatever is changed is changed in all channels, to one value each; what is not, is as it was.
    changed = (left.array != before).any(axis=0)
    for old, new in zip(before, left.array, strict=True):
        assert np.array_equal(new[~changed], old[~changed])
        if changed.any() and not changed.all():
            assert np.unique(new[changed]) == pytest.approx([old[~changed].mean()], rel=1e-3)
    side = min(BLOCK_MM, max(size * length for size, length in zip(shape, spacing, strict=True)) / 3)
    edges = [max(1, round(side / length)) for length in spacing]
    for start in np.ndindex(*(-(-size // edge) for size, edge in zip(shape, edges, strict=True))):
        block = changed[tuple(slice(at * edge, (at + 1) * edge) for at, edge in zip(start, edges, strict=True))]
        # A voxel may by chance have been the mean.
        assert block.sum() <= 1 or block.sum() >= block.size - 1


def test_blocks_of_a_mouse_are_a_third_of_it():
    scan = made((112, 128, 80), (0.15, 0.15, 0.15), 0)
    missing = (blocks(scan, np.random.default_rng(0)).array != scan.array)[0]
    cells = [missing[tuple(slice(43 * at, 43 * at + 43) for at in place)] for place in np.ndindex(3, 3, 2)]
    assert {round(float(cell.mean()), 2) for cell in cells} == {0.0, 1.0}


def test_blocks_take_out_their_share():
    scan = made((60, 60, 60), (4.0, 4.0, 4.0), 0)
    shares = [(blocks(scan, np.random.default_rng(seed)).array != scan.array)[0].mean() for seed in range(20)]
    assert np.mean(shares) == pytest.approx(SHARE, abs=0.01)


@settings(deadline=None)
@given(SHAPES, SPACINGS, st.integers(0, 99))
def test_a_slab_is_neighbouring_slices_in_black(shape, spacing, seed):
    scan = made(shape, spacing, seed)
    left = slab(scan, np.random.default_rng(seed))

    def black(axis, start):
        array = scan.array.copy()
        for channel in array:
            np.moveaxis(channel, axis, 0)[start : start + round(SHARE * shape[axis])] = channel.min()
        return array

    # With other slices on both sides, where there is room for them.
    places = [(axis, at) for axis in range(3) for at in range(1, shape[axis] - round(SHARE * shape[axis])) or [0]]
    assert any(np.array_equal(left.array, black(axis, at)) for axis, at in places)


@settings(deadline=None)
@given(SHAPES, SPACINGS, st.integers(0, 99), st.sampled_from(sorted(MISSING)))
def test_an_empty_border_stays_as_it_is(shape, spacing, seed, kind):
    scan = made(shape, spacing, seed)
    array, around = scan.array + 1, ((0, 0), (2, 3), (0, 30), (1, 0))
    whole, bordered = (dataclasses.replace(scan, array=each) for each in (array, np.pad(array, around)))
    left = MISSING[kind](bordered, np.random.default_rng(seed)).array
    inside = left[:, 2 : 2 + shape[0], : shape[1], 1:]
    assert np.array_equal(left, np.pad(inside, around))
    if kind == "slab":
        expected = MISSING[kind](whole, np.random.default_rng(seed)).array
        black = array.min(axis=(1, 2, 3), keepdims=True)
        assert np.array_equal(np.where(inside == 0, black, inside), expected)


def test_every_axis_has_its_turn():
    scan = made((20, 20, 20), (1.0, 1.0, 1.0), 0)
    axes = set()
    for seed in range(30):
        changed = (slab(scan, np.random.default_rng(seed)).array != scan.array)[0]
        axes |= {axis for axis in range(3) if changed.mean(axis=tuple({0, 1, 2} - {axis})).max() > 0.99}
    assert axes == {0, 1, 2}


@pytest.fixture(scope="module")
def room(tmp_path_factory) -> Path:
    """Data, a split, a study whose scans are also scored with parts missing, and in ``out`` all of its runs."""
    room = furnished(tmp_path_factory.mktemp("missing"))
    (room / "study.yaml").write_text(dump({**TINY, **SMALL, "pictures": ["equal_steps"], "missing_parts": True}))
    assert done(room, room / "out") == {}
    return room


def done(room, out, results=None) -> dict:
    return conduct(room / "study.yaml", room, out, device="cpu", cache=room / "cache", results=results)


def table(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()))


@pytest.mark.parametrize("kind", MISSING)
def test_scores_are_those_of_scans_with_the_same_parts_missing_for_every_run(room, kind, monkeypatch):
    given = []
    monkeypatch.setattr(Predictor, "labels_of", lambda _, scan: given.append(scan.array) or read_labels_of(scan))
    dataset = open_dataset(room / "data")

    def read_labels_of(scan):
        # The truth itself, as a network that can't be harmed would say.
        return read_labels(next(case.label for case in dataset.cases.values() if scan.path in case.images)).array

    run = RunFolder(room / "copy" / kind)
    shutil.copytree(room / "out" / "supervised" / "seed-0", run.path)
    run.config.write_text(yaml.safe_dump(run.read_config() | {"patient": "^case"}))
    for _ in range(2):
        score_missing_parts(run, dataset, device="cpu", progress=Progress(quiet=True))
    assert set(json.loads(scores_file(run, kind).read_text())["patients"].values()) == {"case"}
    assert {row["dice"] for row in json.loads(scores_file(run, kind).read_text())["cases"]} == {1.0}
    first, second = given[: len(given) // 2], given[len(given) // 2 :]
    assert all(np.array_equal(one, two) for one, two in zip(first, second, strict=True))
    test = run.read_split().test
    scans = [read_scan(*dataset.cases[name].images).array for name in test] * len(MISSING)
    assert len(first) == len(scans)
    assert not any(np.array_equal(one, two) for one, two in zip(first, scans, strict=True))


def test_the_results_hold_both_kinds_and_every_comparison(room):
    out, study = room / "out", read_study(room / "study.yaml", room)
    found = json.loads((out / "tiny.json").read_text())
    told = [(each["missing"], each["arm"], each["baseline"]) for each in found["missing_parts"]]
    assert told == [(kind, "medcontext", "supervised") for kind in MISSING]
    for each in found["missing_parts"]:
        of_runs = {planned.name: scores_file(RunFolder(out / planned.name), each["missing"]) for planned in study.runs}
        of_runs = {name: json.loads(file.read_text())["mean"]["dice"] for name, file in of_runs.items()}
        dice = each["result"]["dice"]["overall"]
        assert dice["first"] == pytest.approx(of_runs["supervised/seed-0"])
        assert dice["second"] == pytest.approx(of_runs["medcontext/seed-0"])
        rows = table(out / f"tiny-missing-{each['missing']}.csv")
        test = read_split_file(room / "split.json").folds[0].test
        assert {(row["run"], row["case"]) for row in rows} == {(name, case) for name in of_runs for case in test}
    page = (out / "tiny.md").read_text()
    assert "## Where parts of the scans are missing" in page
    assert all(f"| {kind} |  | medcontext against supervised (equal_steps) | 1 |" in page for kind in MISSING)


def test_the_pictures_show_what_was_left_of_the_scans(room, tmp_path):
    out = room / "out"
    names = ["supervised-medcontext", *(f"supervised-medcontext-missing-{kind}" for kind in MISSING)]
    drawn = [(out / "tiny" / f"{name}.png").read_bytes() for name in names]
    assert len(set(drawn)) == len(names)
    page = (out / "tiny.md").read_text()
    assert all(f"(tiny/{name}.png)" in page for name in names)
    for name, case in open_dataset(room / "data").cases.items():
        for kind in MISSING:
            shown = read_scan(write_what_is_left(name, case, kind, tmp_path))
            assert np.array_equal(shown.array[0], what_is_left(name, case, kind).array[0])
            assert np.allclose(shown.affine, read_scan(*case.images).affine)


def contents(folder: Path) -> dict[Path, bytes]:
    """Of all files but the page and the JSON, which tell the date."""
    return {path: path.read_bytes() for path in folder.rglob("*.*") if path.suffix in (".csv", ".png", ".svg")}


def test_trained_runs_are_scored_without_training_and_outlive_their_folders(room, tmp_path):
    out, results = tmp_path / "out", tmp_path / "results"
    shutil.copytree(room / "out", out)
    study = read_study(room / "study.yaml", room)
    planned = study.runs[0]
    run = RunFolder(out / planned.name)
    weights = run.best.read_bytes()
    whole_scored = run.evaluation.stat().st_mtime_ns
    scores = scores_file(run, "slab").read_bytes()
    scores_file(run, "slab").unlink()
    assert state_of(planned, out) == "trained"
    assert left_of(planned, out, [planned.name]) == "trained", "what is at hand is scored, though results know the run"
    assert done(room, out, results) == {}
    assert run.best.read_bytes() == weights
    assert run.evaluation.stat().st_mtime_ns == whole_scored, "whole scans were scored again"
    assert scores_file(run, "slab").read_bytes() == scores
    whole, files = json.loads((results / "tiny.json").read_text()), contents(results)
    shutil.rmtree(out)
    assert left_of(planned, out, [planned.name]) == "done"
    assert done(room, out, results) == {}
    assert not list(out.rglob("*.pt")), "trained again"
    assert json.loads((results / "tiny.json").read_text()) == whole
    assert contents(results) == files


def test_a_study_scores_without_the_post_processing_that_was_chosen_for_a_run(room, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(room / "out", out)
    planned = read_study(room / "study.yaml", room).runs[0]
    run = RunFolder(out / planned.name)
    files = [run.evaluation, *(scores_file(run, kind) for kind in MISSING)]
    before = [json.loads(file.read_text())["mean"] for file in files]
    content = load_tensors(run.best)
    nothing_left = [Rule(number, least_ml=1e6).to_dict() for number in run.read_plan().labels.structures]
    save_tensors(run.best, {**content, "about": {**content["about"], KEY: nothing_left}})
    assert state_of(planned, out) == "trained"
    assert done(room, out) == {}
    assert state_of(planned, out) == "done"
    assert [json.loads(file.read_text())["mean"] for file in files] == before
    report_runs([run.path], device="cpu")
    assert json.loads(run.evaluation.read_text())["mean"] != before[0]
    assert state_of(planned, out) == "trained", "scored with post-processing"
    assert done(room, out) == {}
    assert json.loads(run.evaluation.read_text())["mean"] == before[0]


def test_scores_of_runs_that_are_gone_are_not_kept_for_others_of_their_names(room, tmp_path):
    study = read_study(room / "study.yaml", room)
    known = recorded(study, room / "out")
    gather(study, tmp_path / "none", tmp_path / "results", known)
    assert all(each.missing.keys() == set(MISSING) for each in recorded(study, tmp_path / "results").values())
    page = tmp_path / "results" / "tiny.md"
    assert "Scored with blocks missing: 2 of 2 runs; with slab missing: 2 of 2 runs." in page.read_text()
    anew = {name: dataclasses.replace(each, missing={}) for name, each in known.items()}
    gather(study, tmp_path / "none", tmp_path / "results", anew)
    assert not any(each.missing for each in recorded(study, tmp_path / "results").values())
    assert "Scored with blocks missing: 0 of 2 runs; with slab missing: 0 of 2 runs." in page.read_text()


def test_a_study_says_it_or_is_refused(room, tmp_path):
    file = tmp_path / "study.yaml"
    content = {**TINY, **SMALL, "split": str(room / "split.json")}
    file.write_text(dump({**content, "missing_parts": "blocks"}))
    with pytest.raises(MedContextError, match="not a study") as error:
        read_study(file, room)
    assert "missing_parts: blocks" in error.value.found
    file.write_text(dump(content))
    assert not any(planned.missing_parts for planned in read_study(file, room).runs)
