"""Charts of the report: what is drawn lies where the numbers say, checked by reading the drawing back."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medcontext.evaluation.box_plots import Box, box_plots
from medcontext.evaluation.calibration_panels import calibration_panels
from medcontext.evaluation.charts import number, scale_of
from medcontext.evaluation.curves import STRETCHES, curves, stretches
from tests.html_pages import Page


def percents(html: str, tag: str, *names: str, kind: str = "") -> np.ndarray:
    """Attributes in per cent of every such element, of a class where one is given: ``(elements, names)``."""
    found = [
        [float((attrs[name] or "").removesuffix("%")) for name in names]
        for each, attrs in Page(html).tags
        if each == tag and set(names) <= attrs.keys() and kind in ("", *(attrs.get("class") or "").split(" "))
    ]
    return np.array(found)


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.floats(0, 1))
def test_an_axis_holds_what_it_is_for(low, extent, share):
    high = low + extent
    scale = scale_of(low, high)
    slack = 1e-9 * max(1, abs(low), abs(high))
    assert scale.ticks[0] <= low + slack
    assert scale.ticks[-1] >= high - slack
    assert 2 <= len(scale.ticks) <= 9
    value = low + share * extent
    first, last = scale.ticks[0], scale.ticks[-1]
    assert -1e-9 <= scale.at(value) <= 100 + 1e-9
    assert first + scale.at(value) / 100 * (last - first) == pytest.approx(value, rel=1e-6, abs=1e-6)


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_axis_of_a_share_ends_at_1(one, other):
    low, high = sorted((one, other))
    assert scale_of(low, high).ticks[-1] <= 1 + 1e-9
    assert scale_of(0.64, 1.0).ticks[-1] == 1


def test_numbers_are_short():
    assert [number(value) for value in (0, 0.25, 0.0015, 12.5, 200, 10000, 1234567)] == [
        "0", "0.25", "0.0015", "12.5", "200", "10,000", "1,234,567"
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_boxes_are_numpys_percentiles_and_every_case_is_a_point(seed):
    rng = np.random.default_rng(seed)
    scores = np.append(rng.beta(8, 2, size=rng.integers(8, 60)), 0.01)  # the last one lies far out
    boxes = [Box("liver", 0, {f"case {k}": float(score) for k, score in enumerate(scores)})]
    html = box_plots("Dice", "", ["run"], boxes, ".3f", share=True)
    # The axis is read back from its own numbers.
    ticks = re.findall(r'<text x="([\d.]+)%" y="15" text-anchor="middle">([\d.]+)</text>', html)
    places, values = np.array(ticks, dtype=float).T

    def value(percent):
        return np.interp(percent, places, values)

    first, median, third = np.percentile(scores, [25, 50, 75])
    (left, width), *_ = percents(html, "rect", "x", "width")
    assert value(left) == pytest.approx(first, abs=2e-4)
    assert value(left + width) == pytest.approx(third, abs=2e-4)
    assert value(percents(html, "line", "x1", kind="median")[0, 0]) == pytest.approx(median, abs=2e-4)
    np.testing.assert_allclose(value(percents(html, "circle", "cx")[:, 0]), scores, atol=2e-4)
    reach = 1.5 * (third - first)
    ends = [scores[scores >= first - reach].min(), scores[scores <= third + reach].max()]
    lower, upper = percents(html, "line", "x1", "x2", kind="whisker")
    np.testing.assert_allclose([value(lower[0]), value(upper[1])], ends, atol=2e-4)
    assert ends[0] > 0.01
    assert f'<span class="value">{median:.3f}</span>' in html
    assert html.count("<title>case ") == len(scores)


def test_runs_are_told_apart_without_colours_and_one_without_scores_is_said():
    boxes = [Box("liver", 0, {"a": 0.5, "b": 0.75}), Box("liver", 1, {}), Box("aorta", 0, {"a": 1.0})]
    html = box_plots("HD95 in mm", "", ["ours", "base"], boxes, ".2f", share=False)
    text = "".join(Page(html).text)
    assert text.index("liver") < text.index("ours") < text.index("base") < text.index("no score") < text.index("aorta")
    assert 'href="#mark-1"' in html
    assert 'href="#mark-2"' in html
    assert box_plots("Dice", "", ["a"], [Box("x", 0, {})], ".3f", share=True) == ""


# Curves


def points_of(html: str) -> list[np.ndarray]:
    """Points of every curve, ``(n, 2)``, up being up, in per cent."""
    found = re.findall(r'<path class="curve[^"]*" d="M([^"]*)"', html)
    return [np.array([pair.split() for pair in each.split("L")], dtype=float) * [1, -1] + [0, 100] for each in found]


def test_a_curve_goes_through_what_was_logged():
    values = {10: 3.0, 20: 1.5, 40: 2.0}
    rows = [{"kind": "train", "step": step, "loss/clean": value} for step, value in values.items()]
    (panel,), folded = curves({"run": {"": rows}})
    assert folded == []
    (points,) = points_of(panel)
    ticks = re.findall(r'<text x="-8" y="([\d.]+)%"[^>]*>([\d.]+)<', panel)
    heights, numbers = np.array(ticks, dtype=float).T
    np.testing.assert_allclose(np.interp(points[:, 1], 100 - heights, numbers), list(values.values()), atol=1e-3)
    np.testing.assert_allclose(points[:, 0], [25, 50, 100], atol=1e-3)
    assert "from 3 at step 10 to 2 at step 40" in panel


def test_everything_that_was_logged_has_a_panel():
    row = {
        "kind": "train", "step": 1, "loss/clean": 1.0, "loss/special": 1.0, "gradient_share/clean": 0.5,
        "gradient_share/masked": 0.25, "gradient_share/consistency": 0.25, "momentum": 0.99, "learning_rate": 0.1,
        "dice/student": 0.5, "dice/teacher": 0.25, "teacher_occupancy/1": 0.5, "new_thing": 4.0, "collapsed": 0.0,
        "seconds": 4.0,
    }  # fmt: skip
    shown, folded = curves({"run": {"": [row, {**row, "step": 2}]}})
    headings = [re.findall("<b>(.*?)</b>", each)[0] for each in (*shown, *folded)]
    assert headings == [
        "Validation Dice", "Clean loss", "Gradient shares", "Teacher momentum", "Learning rate", "Special loss",
        "Teacher occupancy 1", "New thing",
    ]  # fmt: skip
    assert len(folded) == 2
    shares = shown[2]
    assert len(points_of(shares)) == 3
    assert [kind for kind in ("dash-2", "dash-3") if f'class="curve run-1 {kind}"' in shares] == ["dash-2", "dash-3"]
    assert re.findall(r"</svg>(\w+)</span>", shares) == ["clean", "masked", "consistency"]


def test_runs_and_folds_keep_their_mark_in_every_panel():
    rows = [{"step": step, "momentum": step / 10, "loss/clean": 1.0 + step} for step in range(1, 4)]
    other = [{"step": step, "loss/clean": 2.0 + step} for step in range(1, 4)]
    shown, _ = curves({"ours": {"fold 0": rows, "fold 1": rows[:2]}, "base": {"": other}})
    loss = next(each for each in shown if "Clean loss" in each)
    assert re.findall(r'class="curve (run-\d)"', loss) == ["run-1", "run-1", "run-2"]
    assert set(re.findall(r'class="dots run-2"><use href="#(mark-\d)"', loss)) == {"mark-2"}
    assert "ours fold 1: from 2 at step 1 to 3 at step 2" in loss
    assert not any("base" in each for each in shown if "momentum" in each)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_values_that_are_not_numbers_are_left_out_of_curves(value):
    good = [{"step": step, "loss/clean": 1 / step} for step in (1, 2, 3)]
    assert curves({"run": {"": [{"step": 1, "loss/clean": value}]}}) == ([], [])
    assert curves({"run": {"": [*good, {"step": 2.5, "loss/clean": value}]}}) == curves({"run": {"": good}})


def test_a_step_that_was_trained_again_counts_once():
    once = [{"step": step, "momentum": 0.9 + step / 100} for step in (1, 2, 3)]
    assert curves({"run": {"": [{"step": 2, "momentum": 0.1}, *once]}}) == curves({"run": {"": once}})


@pytest.mark.parametrize("count", [1, STRETCHES, STRETCHES + 1, 1234])
def test_a_long_curve_is_its_means_and_ranges(count):
    rng = np.random.default_rng(count)
    steps, values = np.cumsum(rng.integers(1, 9, count)).astype(float), rng.normal(size=count)
    low, (at, mean), high = stretches((steps, values))
    assert len(mean) == min(count, STRETCHES) or (count > STRETCHES and len(mean) <= STRETCHES)
    assert low.min() == values.min()
    assert high.max() == values.max()
    assert (low <= mean).all()
    assert (mean <= high).all()
    if count > STRETCHES:
        width = (steps[-1] - steps[0]) / STRETCHES
        bins = np.minimum((steps - steps[0]) // width, STRETCHES - 1)
        expected = [values[bins == k].mean() for k in np.unique(bins)]
        # A step on the border of two stretches may count to either; few are.
        assert len(mean) == len(expected)
        assert np.isclose(mean, expected).mean() > 0.9
        assert (np.diff(at) > 0).all()


def test_calibration_says_and_draws_its_bins():
    bins = [
        {"low": 0.0, "high": 0.5, "voxels": 100, "probability": 0.25, "frequency": 0.125},
        {"low": 0.5, "high": 1.0, "voxels": 25, "probability": 0.75, "frequency": 1.0},
    ]
    entry = {"ece": 0.1375, "voxels": 125, "bins": bins}
    overall, label = calibration_panels("run", {"overall": entry, "labels": {"3": {**entry, "name": "aorta"}}})
    assert "Every voxel" in overall
    assert "<b>aorta</b> run, expected calibration error 0.138" in label
    assert "0.25 was true in 0.12; 0.75 was true in 1.00" in label
    np.testing.assert_allclose(percents(label, "circle", "cx", "cy"), [[25, 87.5], [75, 0]])
    np.testing.assert_allclose(percents(label, "rect", "x", "width", "height"), [[0, 50, 12.5], [50, 50, 100]])
    (only,) = calibration_panels("run", {"overall": None, "labels": {"1": {"ece": None, "voxels": 0, "bins": []}}})
    assert "no voxels" in only
