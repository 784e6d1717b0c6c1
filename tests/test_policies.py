"""What objects count that are not in both maps: by hand, and as the published code that a policy is named after."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest

from medcontext.cli.evaluate_command import evaluate as command
from medcontext.errors import MedContextError
from medcontext.evaluation.metrics import METRICS, measure
from medcontext.evaluation.policies import DEFAULT, POLICIES, policy_named

EMPTY = np.zeros((4, 4, 4), bool)
VOXEL = EMPTY.copy()
VOXEL[1, 1, 1] = True
SHAPE, SPACING = (240, 240, 155), (1.0, 1.0, 1.0)
DIAGONAL = 373.128664  # of 240 x 240 x 155 mm

WORTH = {
    "medcontext": ((None, None), (0.0, None), (0.0, None)),
    "official": ((1.0, 0.0), (0.0, 0.0), (0.0, 0.0)),
    "official_unetr": ((0.0, 0.0), (0.0, 0.0), (0.0, 0.0)),
    "transunet": ((0.0, 0.0), (0.0, 0.0), (1.0, 0.0)),
    "brats": ((1.0, 0.0), (0.0, DIAGONAL), (0.0, DIAGONAL)),
    "penalised": ((None, None), (0.0, DIAGONAL), (0.0, DIAGONAL)),
}
"""Dice and HD95 of an object that is absent, missed, spurious, as the sources say."""


def scores_of(policy: str, outcome: str) -> dict[str, Any]:
    prediction, truth = {"absent": (EMPTY, EMPTY), "missed": (EMPTY, VOXEL), "spurious": (VOXEL, EMPTY)}[outcome]
    scores = measure(prediction, truth, SPACING, tolerance=1)
    return policy_named(policy).apply(scores, outcome, DIAGONAL)


def test_every_policy_is_tested_and_can_be_asked_for():
    assert WORTH.keys() == POLICIES.keys()
    assert set(get_args(get_type_hints(command)["policy"])) == set(POLICIES)


@pytest.mark.parametrize("policy", WORTH)
def test_worth_of_what_is_not_in_both_maps(policy):
    for outcome, (overlap, distance) in zip(("absent", "missed", "spurious"), WORTH[policy], strict=True):
        scores = scores_of(policy, outcome)
        assert [scores[key] for key in ("dice", "iou", "nsd")] == [overlap] * 3
        assert [scores[key] for key in ("hd95_mm", "assd_mm")] == [distance] * 2
        assert set(scores) == set(METRICS)


@pytest.mark.parametrize("policy", WORTH)
def test_what_is_in_both_maps_counts_as_it_is(policy):
    scores = measure(VOXEL, VOXEL, SPACING, tolerance=1)
    assert policy_named(policy).apply(scores, "both", DIAGONAL) == scores


def test_volumes_are_never_a_matter_of_policy():
    for policy, following in pairwise(POLICIES):
        first, second = (scores_of(each, "missed") for each in (policy, following))
        assert first["truth_ml"] == second["truth_ml"] == pytest.approx(0.001)
        assert first["sensitivity"] == second["sensitivity"] == 0


def test_the_released_code_knows_no_spacing():
    assert {name for name, policy in POLICIES.items() if policy.cubes} == {"official", "official_unetr", "transunet"}


def test_the_default_gives_a_missed_object_no_distance():
    assert DEFAULT == "medcontext"
    assert scores_of(DEFAULT, "missed")["hd95_mm"] is None


def test_an_unknown_policy_is_refused_with_those_there_are():
    with pytest.raises(MedContextError, match="no policy") as caught:
        policy_named("strict")
    assert "transunet" in str(caught.value.expected)
