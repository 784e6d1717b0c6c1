"""Two methods on the same cases: from run folders, files and label maps to tables and plain words."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console

from medcontext.errors import MedContextError
from medcontext.evaluation.compare import (
    compare,
    compare_evaluations,
    compare_gains,
    compare_runs,
    per_case,
)
from medcontext.evaluation.evaluate import evaluate
from medcontext.evaluation.verdict import comparison_table, verdict
from tests.conftest import write_nifti


def evaluation(dice, hd95=None, *, names=False, cases=None):
    """As evaluate gives it, of Dice ``(cases, labels)``; NaN stands for a label that is absent."""
    dice = np.asarray(dice, dtype=float)
    hd95 = np.full_like(dice, 2.0) if hd95 is None else np.asarray(hd95, dtype=float)
    rows = [
        {
            "case": (cases or [f"case{k}" for k in range(len(dice))])[case],
            "label": label + 1,
            "dice": None if np.isnan(dice[case, label]) else dice[case, label],
            "hd95_mm": None if np.isnan(hd95[case, label]) else hd95[case, label],
            "outcome": "both",
        }
        for case in range(dice.shape[0])
        for label in range(dice.shape[1])
    ]
    labels = {str(k + 1): {"name": f"organ {k + 1}"} if names else {} for k in range(dice.shape[1])}
    return {"cases": rows, "mean": {"labels": labels}, "definition": {}, "unpredicted": []}


def shown(result) -> str:
    text = io.StringIO()
    Console(file=text, width=200).print(comparison_table(result, "before", "after"))
    return text.getvalue()


@pytest.fixture
def scores():
    return np.random.default_rng(0).uniform(0.6, 0.9, (20, 2))


def test_labels_and_overall_are_compared_and_the_labels_corrected(scores):
    gained = scores + np.random.default_rng(1).normal([0.05, 0.0], 0.01, (20, 2))
    hd95 = np.full((20, 2), 3.0)
    result = compare_evaluations([evaluation(scores, hd95, names=True)], [evaluation(gained, hd95 - 1, names=True)])
    one, two = result["dice"]["labels"]["1"], result["dice"]["labels"]["2"]
    assert one["name"] == "organ 1"
    assert one["difference"] == pytest.approx((gained - scores)[:, 0].mean())
    assert one["distinguishable"]
    assert not two["distinguishable"]
    assert one["p_holm"] == pytest.approx(2 * one["p"])
    assert two["p_holm"] == two["p"]
    overall = result["dice"]["overall"]
    assert overall["difference"] == pytest.approx((gained - scores).mean())
    assert overall["p_holm"] is None
    assert result["hd95_mm"]["overall"]["difference"] == -1
    assert result["hd95_mm"]["overall"]["wins"] == 20
    json.dumps(result, allow_nan=False)


def test_absent_and_missed_structures_are_left_out_in_pairs_and_counted(scores):
    first, second = scores.copy(), scores + 0.1
    first[0, 0] = np.nan
    second[1, 0] = np.nan
    first[2], second[2] = np.nan, np.nan
    result = compare_evaluations([evaluation(first)], [evaluation(second)])
    assert (result["dice"]["labels"]["1"]["pairs"], result["dice"]["labels"]["1"]["left_out"]) == (17, 3)
    assert result["dice"]["labels"]["1"]["difference"] == pytest.approx(0.1)
    assert result["dice"]["overall"]["pairs"] == 19
    assert result["dice"]["overall"]["left_out"] == 4, "three of one label, one of the other"
    # A label that only one of the two has must not count for the other.
    assert result["dice"]["overall"]["difference"] == pytest.approx(0.1)


def test_who_invents_a_structure_is_worse_than_who_finds_it_absent(scores):
    """Which has no Dice by itself."""
    invents, right = scores.copy(), scores.copy()
    invents[:6, 0], right[:6, 0] = 0, np.nan
    invents[6, 0], right[6, 0] = np.nan, np.nan
    for first, second, sign in ((invents, right, 1), (right, invents, -1)):
        result = compare_evaluations([evaluation(first)], [evaluation(second)])
        label = result["dice"]["labels"]["1"]
        assert (label["pairs"], label["left_out"]) == (19, 1)
        assert label["difference"] == pytest.approx(sign * 6 / 19)
        wins, losses = label["wins"], label["losses"]
        assert (wins, losses) == ((6, 0) if sign > 0 else (0, 6))
        gains = per_case([evaluation(first)], [evaluation(second)])
        assert gains["case0"] == pytest.approx(sign * 0.5), "over both labels"
        assert gains["case6"] == 0
    other = [f"other{k}" for k in range(20)]
    of_folds = (
        [evaluation(right), evaluation(scores, cases=other)],
        [evaluation(invents), evaluation(scores, cases=other)],
    )
    result = compare_evaluations(*of_folds)["dice"]
    assert result["labels"]["1"]["pairs"] == 39, "each case counts in its own fold"
    assert (result["labels"]["1"]["left_out"], result["overall"]["left_out"]) == (1, 1), "and in no other"


def test_different_structures_of_one_number_are_not_compared(scores, tmp_path):
    whole = evaluation(scores) | {"settings": {"policy": "medcontext", "hd95": "pooled", "structures": {"1": [1, 2]}}}
    alone = evaluation(scores) | {"settings": {"policy": "medcontext", "hd95": "pooled", "structures": {"1": [1]}}}
    silent, named = evaluation(scores), evaluation(scores, names=True)
    other = evaluation(scores, names=True)
    other["mean"]["labels"]["1"]["name"] = "edema"
    files = {"whole": whole, "alone": alone, "silent": silent, "named": named, "other": other}
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    for first, second in (("whole", "whole"), ("whole", "silent"), ("silent", "named"), ("named", "alone")):
        assert compare(tmp_path / first, tmp_path / second)["dice"]["overall"]
    for first, second, found in (("whole", "alone", "label 1"), ("named", "other", "1 is edema")):
        with pytest.raises(MedContextError, match="different structures") as raised:
            compare(tmp_path / first, tmp_path / second)
        assert found in raised.value.found


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_that_does_not_say_its_structures_hides_none_that_differ(place, scores, tmp_path):
    rules = {"policy": "medcontext", "hd95": "pooled"}
    told = [{"structures": {"1": [1, 2]}}, {"structures": {"1": [1]}}]
    told.insert(place, {})
    files = []
    for method in ("before", "after"):
        files.append([tmp_path / f"{method}-{seed}.json" for seed in range(3)])
        for file, structures in zip(files[-1], told if method == "before" else ({}, {}, {}), strict=True):
            file.write_text(json.dumps(evaluation(scores) | {"settings": rules | structures}))
    with pytest.raises(MedContextError, match="different structures"):
        compare_runs(*files)
    whole, alone = (file for file, structures in zip(files[0], told, strict=True) if structures)
    first, second = files[1][:2]
    with pytest.raises(MedContextError, match="different structures"):
        compare_runs([first, whole], [second, alone])


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"policy": "official"}, "different rules"),
        ({"hd95": "directed"}, "different rules"),
        ({"structures": {"1": [1, 2]}}, "different structures"),
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_pairs_that_were_not_scored_alike_are_no_seeds_of_one_comparison(rules, said, place, scores, tmp_path):
    """Each pair in itself was."""
    usual = {"policy": "medcontext", "hd95": "pooled", "structures": {"1": [1]}}
    files = [[tmp_path / f"{method}-{seed}.json" for seed in range(3)] for method in ("before", "after")]
    for seed in range(3):
        settings = {"settings": usual | (rules if seed == place else {})}
        for method in (0, 1):
            files[method][seed].write_text(json.dumps(evaluation(scores + 0.01 * method) | settings))
        assert compare(files[0][seed], files[1][seed])["dice"]["overall"]["wins"] == 20
    with pytest.raises(MedContextError, match=said) as caught:
        compare_runs(*files)
    assert caught.value.file == str(files[0][1])
    alike = [[file for seed, file in enumerate(of_method) if seed != place] for of_method in files]
    assert compare_runs(*alike)["seeds"] == 2


def test_no_number_is_cut_in_a_narrow_terminal(scores):
    result = compare_evaluations([evaluation(scores)], [evaluation(scores + 0.01)])
    text = io.StringIO()
    Console(file=text, width=80).print(comparison_table(result, "before", "after"))
    assert "…" not in text.getvalue()


def test_a_label_without_any_pair_has_no_numbers(scores):
    second = scores.copy()
    second[:, 1] = np.nan
    result = compare_evaluations([evaluation(scores, names=True)], [evaluation(second, names=True)])
    assert result["dice"]["labels"]["2"] is None
    assert result["dice"]["labels"]["1"]["p_holm"] == 1.0
    assert "-" in shown(result)


def test_cases_of_one_patient_are_taken_together(scores):
    before, after = (evaluation(scores[:6] + gain, cases=list("abcdef")) for gain in (0.0, 0.01))
    told = {"patients": {"a": "x", "c": "x", "f": "x"}}
    for first, second in ((before | told, after), (before, after | told)):
        result = compare_evaluations([first], [second])
        overall = result["dice"]["overall"]
        assert (overall["cases"], overall["patients"], overall["wins"]) == (6, 4, 6)
        assert "over 6 cases of 4 patients." in verdict(result, "one", "two")


def test_a_pattern_finds_the_patients_of_scores_that_do_not_say(tmp_path, scores):
    cases = ["a_1", "a_2", "b_1", "b_2", "c_1", "d_1"]
    for name, gain in (("before", 0.0), ("after", 0.01)):
        (tmp_path / name).write_text(json.dumps(evaluation(scores[:6] + gain, cases=cases)))
    before, after = tmp_path / "before", tmp_path / "after"
    for pattern, patients in ((None, 6), ("^[^_]+", 4), ("_(.)", 2)):
        overall = compare(before, after, patient=pattern)["dice"]["overall"]
        assert (overall["cases"], overall["patients"]) == (6, patients)


def test_gains_are_compared_case_by_case_and_seed_by_seed():
    """Of four methods, two gains: the second is 0.03 more in every case, whatever the scores are."""
    rng = np.random.default_rng(6)
    a, gains, c = rng.uniform(0.2, 0.5, (2, 8, 3)), rng.normal(0.1, 0.1, (2, 8, 3)), rng.uniform(0.2, 0.5, (2, 8, 3))
    methods = [[evaluation(seed) for seed in scores] for scores in (a, a + gains, c, c + gains + 0.03)]
    found = compare_gains((methods[0], methods[1]), (methods[2], methods[3]))
    assert (found.first, found.second) == pytest.approx((gains.mean(), gains.mean() + 0.03))
    assert found.interval == pytest.approx((0.03, 0.03))
    assert (found.wins, found.cases, found.seeds, found.patients) == (8, 8, 2, 8)
    # A label that is absent, and that none of the four invents, is left out of both gains.
    a[..., 2], c[..., 2] = np.nan, np.nan
    methods = [[evaluation(seed) for seed in scores] for scores in (a, a + gains, c, c + gains + 0.03)]
    found = compare_gains((methods[2], methods[3]), (methods[0], methods[1]))
    assert (found.second, found.difference) == pytest.approx((gains[..., :2].mean(), -0.03))
    lone = [[evaluation(seed[:1], cases=["elsewhere"]) for seed in scores] for scores in (a, a)]
    assert compare_gains((methods[0], methods[1]), (lone[0], lone[1])) is None
    told = [each | {"patients": dict.fromkeys([f"case{k}" for k in range(8)], "one")} for each in methods[0]]
    assert compare_gains((told, methods[1]), (methods[2], methods[3])).patients == 1


def test_a_label_that_one_pair_finds_absent_and_another_invents_counts_in_both_gains():
    """Of three cases, the last without the label: nothing is gained there beside the one that invents it."""
    nothing = np.nan
    before, better, invents, right = (
        [evaluation([[dice] for dice in dices])]
        for dices in ((0.8, 0.8, nothing), (0.85, 0.85, nothing), (0.86, 0.86, 0.0), (0.86, 0.86, nothing))
    )
    gains = (0.05 + 0.05) / 3, (0.06 + 0.06 - 1) / 3
    for one, other, expected in ((better, invents, gains), (invents, better, gains[::-1])):
        found = compare_gains((before, one), (before, other))
        assert (found.cases, found.pairs, found.left_out) == (3, 3, 0)
        assert (found.first, found.second) == pytest.approx(expected)
        assert found.difference == pytest.approx(expected[1] - expected[0])
        assert (found.wins, found.losses) == ((2, 1) if other is invents else (1, 2))
    found = compare_gains((before, better), (before, right))
    assert (found.cases, found.left_out, found.difference) == (2, 1, pytest.approx(0.01))
    found = compare_gains((before, better), (invents, invents))
    assert (found.cases, found.first, found.second) == (3, pytest.approx(0.1 / 3), 0), "both invent it: no gain either"


def test_a_case_that_one_gain_has_not_is_no_case_without_a_gain(scores):
    names = [f"case{k}" for k in range(20)]
    whole, more = (evaluation(scores + gain, cases=names) for gain in (0.0, 0.1))
    fewer, less = (evaluation(scores[:18] + gain, cases=names[:18]) for gain in (0.0, 0.05))
    found = compare_gains(([fewer], [less]), ([whole], [more]))
    assert (found.cases, found.left_out) == (18, 2)
    assert (found.first, found.second) == pytest.approx((0.05, 0.1))


def test_seeds_are_paired_by_their_place(scores):
    firsts = [scores, scores - 0.2]
    result = compare_evaluations([evaluation(each) for each in firsts], [evaluation(each + 0.01) for each in firsts])
    assert result["seeds"] == 2
    assert result["dice"]["overall"]["difference"] == pytest.approx(0.01)
    assert result["dice"]["overall"]["interval"] == pytest.approx([0.01, 0.01])
    crossed = compare_evaluations([evaluation(firsts[0]), evaluation(firsts[1])], [evaluation(e) for e in firsts[::-1]])
    assert crossed["dice"]["overall"]["interval"][0] < -0.1
    assert not crossed["dice"]["overall"]["distinguishable"]


def test_cases_that_only_one_has_are_told(scores):
    names = [f"case{k}" for k in range(1, 21)]
    result = compare_evaluations([evaluation(scores)], [evaluation(scores, cases=names)])
    assert result["unpaired"] == 2
    assert result["dice"]["overall"]["cases"] == 19


@pytest.mark.parametrize(
    ("change", "words"),
    [(0.02, "after is better than before"), (-0.02, "after is worse than before"), (0.0, "not distinguishable")],
)
def test_the_verdict_is_in_plain_words(scores, change, words):
    noise = np.random.default_rng(2).normal(0, 0.005, scores.shape)
    result = compare_evaluations([evaluation(scores)], [evaluation(scores + change + noise - noise.mean())])
    assert words in verdict(result, "before", "after")
    assert words in " ".join(shown(result).split())
    assert "over 20 cases" in verdict(result, "before", "after")


@pytest.mark.parametrize(
    ("seeds", "change", "told"),
    [
        (1, 0.02, "not of new trainings"),
        (2, 0.02, "fewer than 5 seeds"),
        (4, 0.02, "fewer than 5 seeds"),
        (5, 0.02, None),
        (1, 0.0, None),
        (2, 0.0, None),
    ],
)
def test_it_is_said_of_few_seeds_what_they_do_not_show(scores, seeds, change, told):
    result = compare_evaluations([evaluation(scores)] * seeds, [evaluation(scores + change)] * seeds)
    said = [words for words in ("not of new trainings", "fewer than 5 seeds") if words in verdict(result, "a", "b")]
    assert said == ([told] if told else [])


def test_folds_are_no_seeds(scores):
    parts = [[f"case{k}" for k in range(start, start + 10)] for start in (0, 10)]
    firsts = [evaluation(scores[:10], cases=parts[0]), evaluation(scores[10:], cases=parts[1])]
    seconds = [evaluation(scores[:10] + 0.02, cases=parts[0]), evaluation(scores[10:] + 0.02, cases=parts[1])]
    said = verdict(compare_evaluations(firsts, seconds), "before", "after")
    assert "fewer than 5 seeds" not in said
    assert f"each in one of {len(firsts)} trainings. This speaks of new cases, not of new trainings." in said
    assert "seeds" not in said


def of_seeds_and_folds(scores, folds=(8, 15)):
    """Scores ``(seeds, cases, labels)`` as evaluations: one for each seed and fold, and one for each seed."""
    names, ends = [f"case{k}" for k in range(scores.shape[1])], [0, *folds, scores.shape[1]]
    told = {"patients": {"case0": "one", "case9": "one", "case19": "one"}}
    parts = [slice(*ends[k : k + 2]) for k in range(len(ends) - 1)]
    apart = [evaluation(seed[part], names=True, cases=names[part]) | told for seed in scores for part in parts]
    return apart, [evaluation(seed, names=True, cases=names) | told for seed in scores]


@pytest.mark.parametrize("seeds", [2, 3])
def test_folds_of_several_seeds_count_as_these_seeds(seeds):
    """Of seeds that differ, and three folds: as if each seed had one training of all cases."""
    rng = np.random.default_rng(seeds)
    before = rng.uniform(0.4, 0.9, (seeds, 20, 2))
    after = before + rng.normal(0.02, 0.05, before.shape) + np.linspace(-0.1, 0.1, seeds)[:, None, None]
    before[0, 3, 1] = after[1, 12, 1] = np.nan
    after[1, 7, 0], before[1, 7, 0] = 0, np.nan
    (firsts, wholes), (seconds, others) = of_seeds_and_folds(before), of_seeds_and_folds(after)
    assert len(firsts) == 3 * seeds
    found = compare_evaluations(firsts, seconds)
    assert found == compare_evaluations(wholes, others)
    overall = found["dice"]["overall"]
    assert (found["seeds"], overall["seeds"], overall["cases"], overall["patients"]) == (seeds, seeds, 20, 18)
    assert f"over 20 cases of 18 patients and {seeds} seeds" in verdict(found, "before", "after")
    gained = after + rng.normal(0.01, 0.05, before.shape)
    thirds, more = of_seeds_and_folds(gained)
    found = compare_gains((firsts, seconds), (firsts, thirds))
    assert found == compare_gains((wholes, others), (wholes, more))
    assert (found.seeds, found.cases, found.patients) == (seeds, 20, 18)


def test_folds_of_one_seed_are_apart_as_trainings_with_cases_of_their_own_are(scores):
    gained = scores + np.random.default_rng(4).normal(0.02, 0.05, scores.shape)
    (firsts, wholes), (seconds, others) = of_seeds_and_folds(scores[None]), of_seeds_and_folds(gained[None])
    found, whole = compare_evaluations(firsts, seconds), compare_evaluations(wholes, others)
    assert (found["seeds"], found["dice"]["overall"]["seeds"], whole["seeds"]) == (3, 3, 1)
    assert found["dice"]["overall"]["interval"] == whole["dice"]["overall"]["interval"]
    assert compare_gains((firsts, seconds), (seconds, firsts)).seeds == 3


def test_a_fold_that_a_seed_has_not_yet_leaves_the_seeds_apart(scores):
    """The last fold of the second of two seeds is not done."""
    (firsts, _), (seconds, _) = (of_seeds_and_folds(np.stack([scores, scores + gain])) for gain in (0.0, 0.05))
    found = compare_evaluations(firsts[:-1], seconds[:-1])
    assert (found["seeds"], found["unpaired"], found["dice"]["overall"]["left_out"]) == (2, 0, 0)
    assert (found["dice"]["overall"]["cases"], found["dice"]["overall"]["pairs"]) == (20, 35)


def test_cases_are_ranked_by_how_much_they_gain():
    first = evaluation([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    second = evaluation([[0.4, 0.5], [0.9, 0.8], [0.5, 0.5]])
    assert per_case([first], [second]) == pytest.approx({"case1": 0.35, "case2": 0.0, "case0": -0.05})
    assert list(per_case([first], [second])) == ["case1", "case2", "case0"]


def test_label_maps_run_folders_and_files_give_the_same(tmp_path):
    rng = np.random.default_rng(0)
    for case in range(4):
        truth = np.zeros((10, 10, 10), np.uint8)
        truth[2:6, 2:6, 2:6] = 1
        truth[6:9, 6:9, 6:9] = 2
        for folder, share in (("truth", 0.0), ("first", 0.2), ("second", 0.05)):
            spoilt = np.where(rng.random(truth.shape) < share, 0, truth).astype(np.uint8)
            write_nifti(tmp_path / folder / f"case{case}.nii.gz", spoilt, np.eye(4))
    truth = tmp_path / "truth"
    result = compare(tmp_path / "first", tmp_path / "second", truth)
    for name in ("first", "second"):
        (tmp_path / "runs" / name / "test").mkdir(parents=True)
        written = json.dumps(evaluate(tmp_path / name, truth))
        (tmp_path / "runs" / name / "test" / "evaluation.json").write_text(written)
    of_runs = compare(tmp_path / "runs" / "first", tmp_path / "runs" / "second")
    file = tmp_path / "runs" / "first" / "test" / "evaluation.json"
    assert result == of_runs == compare(file, tmp_path / "runs" / "second")
    assert result["dice"]["overall"]["wins"] == 4
    assert result["dice"]["overall"]["effect"] == 1


def test_what_cannot_be_compared_is_refused(tmp_path, scores):
    with pytest.raises(MedContextError, match="no scores here") as caught:
        compare(tmp_path, tmp_path)
    assert "--truth" in str(caught.value)
    for name, each in (("a", evaluation(scores)), ("b", evaluation(scores, cases=[f"x{k}" for k in range(20)]))):
        (tmp_path / f"{name}.json").write_text(json.dumps(each))
    with pytest.raises(MedContextError, match="no case in common") as caught:
        compare(tmp_path / "a.json", tmp_path / "b.json")
    assert "case0" in str(caught.value)
    with pytest.raises(MedContextError, match="in pairs"):
        compare_runs([tmp_path / "a.json"], [])
    with pytest.raises(MedContextError, match="one seed"):
        compare_runs([tmp_path / "a.json"] * 2, [tmp_path / "b.json", tmp_path / "c.json"])
    other = evaluation(scores) | {"settings": {"policy": "official", "hd95": "pooled"}}
    (tmp_path / "official.json").write_text(json.dumps(other))
    with pytest.raises(MedContextError, match="different rules") as caught:
        compare(tmp_path / "a.json", tmp_path / "official.json")
    assert caught.value.found == "policy official, pooled HD95"
    assert compare(tmp_path / "official.json", tmp_path / "official.json")["dice"]["overall"]["ties"] == 20
    (tmp_path / "c.json").write_text("[1]")
    with pytest.raises(MedContextError, match="holds no scores"):
        compare(tmp_path / "c.json", tmp_path / "a.json")
