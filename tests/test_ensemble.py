"""Several networks and mirrored images: the mean of what each says alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from medcontext.data.labels import Labels
from medcontext.data.plan import Normalisation, Plan
from medcontext.errors import MedContextError
from medcontext.inference.ensemble import Ensemble, common_plan, mirrored_axes
from medcontext.inference.model import Model
from medcontext.inference.predictor import Predictor
from medcontext.inference.sliding import sliding_logits

PLAN = Plan("test", 1, Labels({1: "a", 4: "b"}), "SAR", (1.0, 1.5, 1.0), Normalisation("case"), (8, 6, 4), 2, 10)


def network_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Conv3d(1, 3, 3, padding=1).eval()


def image_of(*size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("axes", [(), (1,), (0, 2), (0, 1, 2)])
def test_the_logits_are_the_mean_over_networks_and_mirror_images(axes):
    networks, image = [network_of(seed) for seed in range(2)], image_of(2, 1, 5, 6, 7)
    before = image.clone()
    found = Ensemble([network.float() for network in networks], axes)(image)
    combinations = {tuple(a + 2 for a in axes if n >> a & 1) for n in range(8)}
    expected = [network.double()(image.double().flip(flip)).flip(flip) for network in networks for flip in combinations]
    assert len(expected) == 2 * 2 ** len(axes)
    torch.testing.assert_close(found.double(), torch.stack(expected).mean(0), rtol=0, atol=1e-5)
    assert torch.equal(image, before)


def test_outputs_that_a_network_keeps_are_not_changed():
    class Kept(nn.Module):
        def __init__(self):
            super().__init__()
            self.kept = image_of(1, 3, 4, 4, 4)

        def forward(self, image):
            return [self.kept, None]

    member = Kept()
    before = member.kept.clone()
    torch.testing.assert_close(Ensemble([member, member])(image_of(1, 1, 4, 4, 4)), before)
    assert torch.equal(member.kept, before)


def test_an_ensemble_of_volumes_is_one_of_windows():
    networks, image = [network_of(seed) for seed in range(3)], image_of(1, 20, 11, 9)
    together = sliding_logits(Ensemble(networks), image, PLAN.patch, 0.0)
    apart = torch.stack([sliding_logits(network, image, PLAN.patch, 0.0) for network in networks])
    torch.testing.assert_close(together, apart.mean(0))


def test_a_predictor_of_several_models_predicts_their_mean():
    models = [Model(network_of(seed), PLAN, {}) for seed in range(2)]
    array = np.random.default_rng(0).normal(size=(9, 12, 11)).astype(np.float32)
    both = Predictor(models)(array, np.eye(4))
    alone = [Predictor(model)(array, np.eye(4)) for model in models]
    assert set(np.unique(both)) <= {0, 1, 4}
    assert not any(np.array_equal(both, each) for each in alone)
    assert np.array_equal(Predictor([models[0]] * 2)(array, np.eye(4)), alone[0])


def test_a_mirrored_prediction_turns_with_the_image():
    """What an ensemble over all mirror images says of a mirrored scan is the mirror image of what it says."""
    model = Model(network_of(0), PLAN, {"mirror_axes": [2]})
    array = np.random.default_rng(0).normal(size=(8, 12, 16)).astype(np.float32)
    straight, mirrored = (Predictor(model, mirror=True)(each, np.eye(4)) for each in (array, array[::-1]))
    assert (straight == mirrored[::-1]).mean() > 0.999
    assert (Predictor(model)(array, np.eye(4)) == Predictor(model)(array[::-1], np.eye(4))[::-1]).mean() < 0.99


def test_mirroring_needs_a_training_with_it():
    trained = [Model(network_of(0), PLAN, {"mirror_axes": axes}) for axes in ([0, 1, 2], [2, 1])]
    assert mirrored_axes(trained) == (1, 2)
    for about in ({}, {"mirror_axes": []}, {"mirror_axes": [0]}):
        with pytest.raises(MedContextError, match="mislead"):
            Predictor([trained[1], Model(network_of(0), PLAN, about)], mirror=True)


@pytest.mark.parametrize(
    "change",
    [
        {"spacing": (1.0, 1.0, 1.0)},
        {"patch": (8, 8, 8)},
        {"labels": Labels({1: "a", 5: "b"})},
        {"labels": Labels(dict(reversed(PLAN.labels.names.items())))},
        {"normalisation": Normalisation("ct", -100, 100, 0, 50)},
        {"orientation": "RAS"},
        {"channels": 2},
    ],
)
def test_models_of_different_plans_are_refused(change):
    other = Model(network_of(0), dataclasses.replace(PLAN, **change), {})
    with pytest.raises(MedContextError, match="different plans") as error:
        common_plan([Model(network_of(0), PLAN, {}), Model(network_of(0), PLAN, {}), other])
    assert next(iter(change)) in error.value.found
    assert "model 3" in error.value.found


def test_what_does_not_concern_prediction_may_differ():
    other = dataclasses.replace(PLAN, steps=3, batch_size=4, reasons=("because",), dataset="fold")
    assert common_plan([Model(network_of(0), PLAN, {}), Model(network_of(0), other, {})]) == PLAN
    with pytest.raises(MedContextError, match="no model"):
        common_plan([])
