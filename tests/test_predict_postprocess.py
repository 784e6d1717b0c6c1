"""Post-processing: what it does to shapes, and when it is taken."""

from __future__ import annotations

import json
import shutil
from collections import deque
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from medcontext.data.dataset import open_dataset
from medcontext.data.labels import Labels, Region
from medcontext.data.scan import read_scan
from medcontext.errors import MedContextError
from medcontext.evaluation.metrics import dice
from medcontext.evaluation.statistics import paired
from medcontext.files import write_json
from medcontext.inference.model import load_model
from medcontext.inference.postprocess import KEY, KEY_TOGETHER, Rule, changed_mask, postprocess, shared_rules, voxel_ml
from medcontext.inference.predictor import Predictor
from medcontext.networks.registry import network_spec
from medcontext.progress import Progress
from medcontext.studies.holdout import score_held_out
from medcontext.studies.tune import LEAST_GAIN, LEAST_WINS, _scores, helps, tune
from medcontext.training.run import RunFolder
from tests.conftest import write_nifti
from tests.predicting import AFFINE, NETWORK, plan, write_model
from tests.test_cli import run

ORGANS = Labels({1: "organ", 2: "other"})
TUMOUR = Labels(
    {1: "core", 2: "oedema", 4: "enhancing"},
    regions=(Region("whole", (1, 2, 4), 2), Region("core", (1, 4), 1), Region("enhancing", (4,), 4)),
)


def shapes() -> np.ndarray:
    """Label 1: a cube of 125 voxels with a hole of one, one voxel at its corner, and a cube of 8; label 2: far away."""
    array = np.zeros((20, 16, 12), dtype=np.int32)
    array[1:6, 1:6, 1:6] = 1
    array[3, 3, 3] = 0
    array[6, 6, 6] = 1
    array[10:12, 10:12, 2:4] = 1
    array[15:18, 2:5, 2:5] = 2
    return array


def changed(array: np.ndarray, *rules: Rule, labels: Labels = ORGANS, ml: float = 0.001) -> np.ndarray:
    before = array.copy()
    result = postprocess(array, rules, labels, ml)
    assert np.array_equal(array, before)
    return result


def test_the_largest_piece_is_kept_and_what_touches_it_by_a_corner():
    expected = shapes()
    expected[10:12, 10:12, 2:4] = 0
    assert np.array_equal(changed(shapes(), Rule(1, largest=True)), expected)
    assert np.array_equal(changed(shapes(), Rule(2, largest=True)), shapes())


def test_small_pieces_are_told_by_their_volume():
    expected = shapes()
    expected[10:12, 10:12, 2:4] = 0
    assert np.array_equal(changed(shapes(), Rule(1, least_ml=0.009)), expected)
    assert np.array_equal(changed(shapes(), Rule(1, least_ml=0.008)), shapes())
    assert np.array_equal(changed(shapes(), Rule(1, least_ml=0.008), ml=0.0009), expected)
    gone = changed(shapes(), Rule(1, least_ml=1.0))
    assert np.array_equal(gone, np.where(shapes() == 2, 2, 0))


def test_holes_are_filled_but_not_bays_nor_other_labels():
    expected = shapes()
    expected[3, 3, 3] = 1
    assert np.array_equal(changed(shapes(), Rule(1, fill=True)), expected)
    vessel = shapes()
    vessel[3, 3, 3] = 2
    assert np.array_equal(changed(vessel, Rule(1, fill=True)), vessel)
    bay = shapes()
    bay[3, 3, 1:4] = 0
    assert np.array_equal(changed(bay, Rule(1, fill=True)), bay)


def test_holes_are_filled_after_pieces_are_removed():
    """A piece within a hole goes, and then the hole."""
    array = np.zeros((9, 9, 9), dtype=np.int32)
    array[1:8, 1:8, 1:8] = 1
    array[2:7, 2:7, 2:7] = 0
    array[4, 4, 4] = 1
    assert changed(array, Rule(1, largest=True))[4, 4, 4] == 0
    assert (changed(array, Rule(1, largest=True, fill=True))[1:8, 1:8, 1:8] == 1).all()


def test_a_part_of_a_region_becomes_the_region_around_it():
    array = np.zeros((20, 12, 12), dtype=np.int32)
    array[1:12, 1:11, 1:11] = 2
    array[3:8, 3:8, 3:8] = 1
    array[4:6, 4:6, 4:6] = 4
    array[9, 9, 9] = 1  # a second piece of the core, within the oedema
    array[10, 3, 3] = 4  # and of the enhancing tumour, outside of the core
    array[5, 2, 5] = 0  # a hole of the whole tumour
    array[15:17, 5, 5] = 4  # a second tumour
    one = changed(array, Rule(1, largest=True), labels=TUMOUR)
    assert one[9, 9, 9] == 2
    assert one[10, 3, 3] == 2
    assert set(one[15:17, 5, 5]) == {2}
    assert (one[3:8, 3:8, 3:8] == array[3:8, 3:8, 3:8]).all()
    whole = changed(array, Rule(2, largest=True, fill=True), labels=TUMOUR)
    expected = array.copy()
    expected[15:17, 5, 5] = 0
    expected[5, 2, 5] = 2
    assert np.array_equal(whole, expected)


def test_rules_are_done_one_after_the_other_and_absent_structures_left_out():
    both = changed(shapes(), Rule(1, largest=True, fill=True), Rule(2, least_ml=1.0))
    assert np.unique(both).tolist() == [0, 1]
    empty = np.zeros((3, 3, 3), dtype=np.int32)
    assert np.array_equal(changed(empty, Rule(1, largest=True, least_ml=1.0, fill=True)), empty)


def flooded(mask: np.ndarray) -> list[np.ndarray]:
    """The pieces of a mask, by walking from voxel to voxel over corners too."""
    left, pieces = {tuple(index) for index in np.argwhere(mask)}, []
    steps = [step for step in product((-1, 0, 1), repeat=3) if any(step)]
    while left:
        start = min(left)
        left.discard(start)
        piece, waiting = np.zeros_like(mask), deque([start])
        while waiting:
            voxel = waiting.popleft()
            piece[voxel] = True
            for step in steps:
                other = tuple(a + b for a, b in zip(voxel, step, strict=True))
                if other in left:
                    left.discard(other)
                    waiting.append(other)
        pieces.append(piece)
    return pieces


@given(mask=arrays.arrays(bool, st.tuples(*[st.integers(1, 7)] * 3), elements=st.booleans()), least=st.integers(1, 6))
@settings(max_examples=80, deadline=None)
def test_pieces_against_a_walk_from_voxel_to_voxel(mask, least):
    pieces = flooded(mask)
    kept = changed_mask(mask, Rule(1, least_ml=least), 1.0)
    assert np.array_equal(kept, np.logical_or.reduce([mask & False, *(p for p in pieces if p.sum() >= least)]))
    largest = changed_mask(mask, Rule(1, largest=True), 1.0)
    sizes = [int(piece.sum()) for piece in pieces]
    assert any(np.array_equal(largest, p) for p in pieces if p.sum() == max(sizes)) or not (pieces or largest.any())
    filled = changed_mask(mask, Rule(1, fill=True), 1.0)
    assert (filled | ~mask).all()
    assert np.array_equal(changed_mask(filled, Rule(1, fill=True), 1.0), filled)


def test_models_together_do_what_all_of_them_agree_on():
    one, other = Rule(1, largest=True).to_dict(), Rule(2, fill=True).to_dict()
    assert shared_rules([{KEY_TOGETHER: [one, other]}, {KEY_TOGETHER: [other], KEY: [one]}]) == (Rule(2, fill=True),)
    assert shared_rules([{KEY_TOGETHER: [one]}, {}]) == ()
    assert shared_rules([{}]) == ()
    assert shared_rules([json.loads(json.dumps({KEY: [one]}))]) == (Rule(1, largest=True),)


def test_voxel_volume():
    assert voxel_ml(AFFINE) == pytest.approx(0.0015)


@pytest.mark.parametrize(
    ("gains", "taken"),
    [
        ([0.01] * LEAST_WINS, True),
        ([0.01] * (LEAST_WINS - 1), False),  # too few
        ([0.01] * LEAST_WINS + [-0.2], False),  # as good as noise
        ([LEAST_GAIN / 2] * 30, False),  # not worth it
        ([-0.01] * 30, False),
        ([0.0] * 30, False),
        ([0.02] * 6 + [0.0] * 10 + [-0.001], True),
    ],
)
def test_when_a_gain_is_more_than_noise(gains, taken):
    before = np.full((1, len(gains)), 0.7)
    scores = paired(before, before + np.array(gains))
    assert helps(scores) == taken


def test_a_rule_is_tried_as_it_is_done():
    """A hole in one structure that another fills is no hole: filling it would be scored, and never done."""
    rng = np.random.default_rng(0)
    truth = np.zeros((12, 12, 12), dtype=np.int32)
    truth[1:11, 1:11, 1:11] = 1
    rules = {1: [Rule(1), Rule(1, fill=True)], 2: [Rule(2), Rule(2, fill=True)]}
    for real in (0, 2):
        truth[4:6, 4:6, 4:6] = real
        predicted = np.where(rng.random(truth.shape) < 0.05, 0, truth).astype(np.int32)
        predicted[4:6, 4:6, 4:6] = 2
        tried = _scores(predicted, truth, ORGANS, rules, 0.001)
        for number, of_structure in rules.items():
            for rule in of_structure:
                done = postprocess(predicted, [rule], ORGANS, 0.001)
                assert tried[rule] == dice(done == number, truth == number), (real, rule)


def make_run(folder, cases: int, spurious: bool, first: int = 0):
    """A run whose network is right but, if asked for, for one piece beside the middle structure in every scan."""
    data, names = folder / "data", [f"case_{first + index:02d}" for index in range(cases)]
    for index, name in enumerate([*names, "held_out"]):
        image = np.random.default_rng(index).uniform(0, 20, (16, 14, 12)).astype(np.float32)
        image[2:8, 2:8, 2:8] = 50
        image[9:12, 2:8, 2:8] = 90
        label = np.where(image >= 75, 8, np.where(image >= 25, 3, 0)).astype(np.uint8)
        if spurious:
            image[13:15, 10 : 11 + index % 3, 9:11] = 50
        write_nifti(data / "imagesTr" / f"{name}.nii.gz", image, AFFINE)
        write_nifti(data / "labelsTr" / f"{name}.nii.gz", label, AFFINE)
    made = RunFolder(write_model(folder / "run"))
    write_json(made.plan, plan().to_dict())
    write_json(made.split, {"train": [], "validation": names, "test": ["held_out"]})
    write_json(made.about, {"data": str(data)})
    made.config.write_text("patient:\n")
    return made


def test_what_helps_on_validation_cases_is_taken_and_done_from_then_on(tmp_path, capsys):
    made = make_run(tmp_path, LEAST_WINS, spurious=True)
    assert run("tune", made.path, "--network", NETWORK, "--device", "cpu") == 0
    assert "largest piece only" in capsys.readouterr().out
    rules = load_model(made.path).about[KEY]
    assert len(rules) == 1
    assert (rules[0]["number"], rules[0]["fill"]) == (3, False)
    report = json.loads(made.postprocessing.read_text())
    assert report["cases"] == [f"case_{index:02d}" for index in range(LEAST_WINS)]
    taken = [row for row in report["tried"] if row["taken"]]
    assert [row["name"] for row in taken] == ["middle"]
    before = [2 * 216 / (2 * 216 + 4 * (1 + index % 3)) for index in range(LEAST_WINS)]
    assert taken[0]["dice"]["first"] == pytest.approx(np.mean(before))
    assert taken[0]["dice"]["second"] == 1.0
    assert [each.rule.to_dict() for each in tune([made.path], device="cpu").tried if each.taken] == rules
    # Predictions of new scans, in memory and on disk, have it; unless it is left out.
    scan = tmp_path / "data" / "imagesTr" / "held_out.nii.gz"
    for options, there in (((), False), (("--no-postprocess",), True)):
        out = tmp_path / f"out{len(options)}"
        assert run("predict", made.path, scan, out, "--network", NETWORK, "--device", "cpu", *options) == 0
        assert ("post-processing of middle" in capsys.readouterr().err) != there
        labels = read_scan(out / "held_out.nii.gz").array[0]
        assert (labels[13, 10, 9] == 3) == there
        assert (labels[2:8, 2:8, 2:8] == 3).all()
        read = read_scan(scan)
        assert np.array_equal(Predictor.load(made.path, postprocess=not there)(read.array, read.affine), labels)
    # With and without are not the same predictions.
    assert run("predict", made.path, scan, tmp_path / "out0", "--network", NETWORK, "--no-postprocess") == 1
    assert "postprocessing" in capsys.readouterr().err


def test_what_does_not_help_is_not_taken_and_the_model_left_as_it_is(tmp_path, capsys):
    made = make_run(tmp_path, LEAST_WINS + 1, spurious=False)
    before = made.best.read_bytes()
    assert run("tune", made.path, "--network", NETWORK) == 0
    assert "none taken" in capsys.readouterr().out
    assert made.best.read_bytes() == before
    assert not any(row["taken"] for row in json.loads(made.postprocessing.read_text())["tried"])


def test_folds_are_tuned_together_and_a_rule_that_helps_no_longer_is_taken_back(tmp_path, capsys):
    few = [make_run(tmp_path / f"few_{index}", 3, spurious=True, first=3 * index) for index in range(2)]
    assert not tune([few[0].path], device="cpu").taken
    folds = tmp_path / "cross"
    folds.mkdir()
    for index, fold in enumerate(few):
        fold.path.rename(folds / f"fold-{index}")
    assert run("tune", folds, "--network", NETWORK, "--device", "cpu") == 0
    assert "1 structure(s)" in capsys.readouterr().out
    abouts = [load_model(folds / f"fold-{index}").about for index in range(2)]
    assert len(shared_rules(abouts)) == 1
    tune([folds / "fold-0"], device="cpu")
    assert load_model(folds / "fold-0").about[KEY] == []


def test_a_case_counts_once_and_so_does_a_patient(tmp_path):
    """However many folds validate on it, and however many scans there are of one patient."""
    made = make_run(tmp_path, LEAST_WINS - 1, spurious=True)
    folds = [RunFolder(shutil.copytree(made.path, tmp_path / "cross" / f"fold-{index}")) for index in range(2)]
    network_spec(NETWORK, allow_import=True)
    together = tune([fold.path for fold in folds], device="cpu")
    alone = tune([made.path], device="cpu")
    assert together.to_dict() == alone.to_dict()
    assert max(each.scores.wins for each in together.tried) == LEAST_WINS - 1
    made = make_run(tmp_path / "more", LEAST_WINS + 1, spurious=True)
    assert len(tune([made.path], device="cpu").taken) == 1
    made.config.write_text("patient: case|held_out\n")
    choice = tune([made.path], device="cpu")
    assert not choice.taken
    assert {(each.scores.patients, each.scores.interval) for each in choice.tried} == {(1, None)}


def test_no_fold_chooses_on_cases_that_it_holds_out(tmp_path):
    """The first half of the cases, which the rule helps, is held out by the second fold, and the other way round."""
    made = make_run(tmp_path, 2 * LEAST_WINS, spurious=True)
    names = list(made.read_split().validation)
    halves = names[:LEAST_WINS], names[LEAST_WINS:]
    for name in halves[1]:
        file = tmp_path / "data" / "imagesTr" / f"{name}.nii.gz"
        image = read_scan(file).array[0]
        image[13:15, 10:13, 9:11] = 10
        write_nifti(file, image, AFFINE)
    folds = [RunFolder(shutil.copytree(made.path, tmp_path / "cross" / f"fold-{index}")) for index in range(2)]
    for fold, (validation, test) in zip(folds, (halves, halves[::-1]), strict=True):
        write_json(fold.split, {"train": [], "validation": validation, "test": test})
    network_spec(NETWORK, allow_import=True)
    together = tune([fold.path for fold in folds], device="cpu")
    assert together.cases == tuple(names)
    assert len(together.taken) == 1
    abouts = [load_model(fold.path).about for fold in folds]
    assert [len(shared_rules([about])) for about in abouts] == [1, 0]
    assert [rule.to_dict() for rule in shared_rules(abouts)] == together.taken
    reports = [json.loads(fold.postprocessing.read_text()) for fold in folds]
    assert [report["cases"] for report in reports] == list(halves)


def test_held_out_cases_are_predicted_once_and_again_when_the_model_has_changed(tmp_path):
    made = make_run(tmp_path, LEAST_WINS, spurious=True)
    network_spec(NETWORK, allow_import=True)
    dataset, quiet = open_dataset(tmp_path / "data"), Progress(quiet=True)
    file = made.predictions / "held_out.nii.gz"
    before = score_held_out(made, dataset, device="cpu", progress=quiet)["mean"]["labels"]["3"]["dice"]
    time = file.stat().st_mtime_ns
    assert score_held_out(made, dataset, device="cpu", progress=quiet)["mean"]["labels"]["3"]["dice"] == before < 1
    assert file.stat().st_mtime_ns == time
    tune([made.path], device="cpu")
    assert score_held_out(made, dataset, device="cpu", progress=quiet)["mean"]["labels"]["3"]["dice"] == 1
    (tmp_path / "data" / "imagesTr" / "held_out.nii.gz").write_bytes(b"broken")
    file.unlink()
    with pytest.raises(MedContextError, match="truncated"):
        score_held_out(made, dataset, device="cpu", progress=quiet)


def test_a_path_that_is_no_run_is_not_taken_for_the_folder_that_it_would_be_in(tmp_path, capsys, monkeypatch):
    made = make_run(tmp_path, 2, spurious=True)
    monkeypatch.chdir(made.path)
    assert run("tune", "typo", "--network", NETWORK) == 1
    assert "typo" in capsys.readouterr().err
    assert not made.postprocessing.exists()


def test_no_validation_cases_no_choice(tmp_path, capsys):
    made = make_run(tmp_path, 2, spurious=True)
    (tmp_path / "data" / "labelsTr" / "case_01.nii.gz").unlink()
    assert run("tune", made.path, "--network", NETWORK) == 1
    assert "1 of 2 no longer" in capsys.readouterr().err
    write_json(made.split, {"train": [], "validation": [], "test": []})
    assert run("tune", made.path, "--network", NETWORK) == 1
    assert "no validation cases" in capsys.readouterr().err
