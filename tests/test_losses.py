from __future__ import annotations

import pytest
import torch
from monai.losses.dice import DiceCELoss

from medcontext.losses.dice_ce import dice_ce, dice_ce_squared, in_parts


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


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("background", [True, False])
def test_the_written_out_gradient_is_the_derivative(squared, background):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 2, 3, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 3, (2, 2, 3, 2), generator=generator)
    assert torch.autograd.gradcheck(
        lambda z: dice_ce(z, target, include_background=background, squared=squared, smooth=(0.1, 0.3)), [logits]
    )


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(
    ("dtype", "within"), [(torch.float64, 1e-7), (torch.float32, 1e-5), (torch.bfloat16, 5e-3), (torch.float16, 1e-3)]
)
def test_volumes_of_several_parts_in_any_precision_and_layout(dtype, within, layout, squared):
    torch.manual_seed(0)
    logits = (3 * torch.randn(2, 5, 50, 31, 33)).to(dtype).contiguous(memory_format=layout).requires_grad_()
    target = torch.randint(0, 4, (2, 50, 31, 33))
    assert len(list(in_parts(logits, target[:, None]))) > 1
    exact = logits.detach().double().contiguous().requires_grad_()
    monai = DiceCELoss(include_background=False, softmax=True, to_onehot_y=True, squared_pred=squared)
    expected = monai(exact, target[:, None])  # its one-hot targets are float32
    loss = dice_ce(logits, target, squared=squared)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert loss.item() == pytest.approx(expected.item(), rel=min(within, 1e-5))
    (1024 * loss).backward()
    (1024 * expected).backward()
    assert torch.allclose(logits.grad.double(), exact.grad, rtol=within, atol=within * exact.grad.abs().max().item())


def test_the_squared_form_is_monais():
    torch.manual_seed(0)
    logits, target = 3 * torch.randn(2, 5, 6, 7, 8), torch.randint(0, 5, (2, 6, 7, 8))
    monai = DiceCELoss(softmax=True, to_onehot_y=True, squared_pred=True, smooth_nr=0, smooth_dr=1e-6)
    assert dice_ce_squared(logits, target).item() == pytest.approx(monai(logits, target[:, None]).item(), rel=1e-5)


def test_a_certain_and_wrong_prediction_costs_its_logit():
    target = torch.zeros(1, 2, 2, 2, dtype=torch.int64)
    logits = torch.zeros(1, 2, 2, 2, 2).half()
    logits[:, 1] = 1e4
    logits.requires_grad_()
    loss = dice_ce(logits, target)
    assert loss.item() == pytest.approx(1e4 + 1, rel=1e-3)
    loss.backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("loss", [dice_ce, dice_ce_squared])
def test_what_is_ignored_is_as_if_it_were_not_there(loss):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 4, 3, 4, 6, generator=generator, dtype=torch.float64).requires_grad_()
    target = torch.randint(0, 4, (2, 3, 4, 6), generator=generator)
    target[..., 4:] = -1
    cut = logits.detach()[..., :4].clone().requires_grad_()
    found, expected = loss(logits, target, ignoring=True), loss(cut, target[..., :4])
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    assert not logits.grad[..., 4:].any()
    torch.testing.assert_close(logits.grad[..., :4], cut.grad)
    nothing = loss(logits, torch.full_like(target, -1), ignoring=True)
    assert nothing.isfinite()
