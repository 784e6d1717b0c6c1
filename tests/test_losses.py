from __future__ import annotations

import pytest
import torch
from monai.losses.dice import DiceCELoss

from medcontext.losses.dice_ce import dice_ce


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("classes", [2, 5])
def test_same_numbers_and_gradients_as_monai(background, classes):
    torch.manual_seed(0)
    logits = 3 * torch.randn(2, classes, 6, 7, 8)
    target = torch.randint(0, classes - 1, (2, 6, 7, 8))
    mine, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = dice_ce(mine, target, include_background=background)
    expected = DiceCELoss(include_background=background, softmax=True, to_onehot_y=True)(theirs, target[:, None])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    assert torch.allclose(mine.grad, theirs.grad, atol=1e-7)


def test_a_perfect_prediction_costs_nothing():
    target = torch.randint(0, 3, (2, 4, 4, 4))
    logits = 100.0 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1)
    assert dice_ce(logits, target).item() == pytest.approx(0, abs=1e-6)
