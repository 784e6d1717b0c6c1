"""The training step against a reference written from the formulas, in float64 and without the package's code."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from medcontext.errors import MedContextError
from medcontext.method.diagnostics import hard_dice
from medcontext.method.objective import MedContext
from medcontext.method.presets import PRESETS, preset
from medcontext.method.schedules import teacher_momentum
from tests.formulas import dice_ce

SIZE = (8, 8, 8)

TAUGHT = replace(PRESETS["medcontext"], consistency_weight=1.0)
"""The default preset with the teacher, so that there are all terms."""


class Small(nn.Module):
    """A convolution with normalisation, so that there are buffers, and dropout, so that modes matter."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv3d(2, 5, 3, padding=1), nn.BatchNorm3d(5), nn.Dropout(0.3), nn.LeakyReLU(), nn.Conv3d(5, classes, 1)
        )

    def forward(self, image):
        return self.inner(image)


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 2, *SIZE, generator=generator), torch.randint(0, 3, (2, *SIZE), generator=generator)


def make(config=TAUGHT, network: nn.Module | None = None, share: tuple[int, int] = (0, 1), **changes):
    torch.manual_seed(0)
    values = replace(preset(config) if isinstance(config, str) else config, mask_patch=(2, 4, 4), **changes)
    return MedContext(network or Small(), values, total_steps=20, channels=2, share=share)


THREE_PASSES = {"clean_weight": 1.0, "ratio": 0.3}


def hidden_image(config, image, mask, value=None):
    """The image with the mask's patches hidden, and which voxels ``(B, D, H, W)`` these are."""
    hidden = torch.zeros(len(image), *SIZE, dtype=torch.bool)
    for index in mask.nonzero():
        b, *corner = index.tolist()
        box = tuple(slice(c * p, c * p + p) for c, p in zip(corner, config.mask_patch, strict=True))
        hidden[(b, *box)] = True
    seen = image.clone()
    for b in range(image.shape[0]):
        for c in range(image.shape[1]):
            seen[b, c][hidden[b]] = image[b, c][~hidden[b]].mean() if config.fill == "mean" else value[c]
    return seen, hidden


def divergence(z_m, z_t):
    """Of the student's class probabilities from the teacher's, per voxel."""
    p_t, p_m = z_t.softmax(1), z_m.softmax(1)
    return (p_t * (p_t.log() - p_m.log())).sum(1)


def move(teacher):
    """Away from the student, whose copy it starts as."""
    with torch.no_grad():
        for weight in teacher.network.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))


def reference_step(config, network, teacher, image, label, mask, value):
    """Losses of the three passes from the formulas."""
    z_c, z_m = network(image), network(hidden_image(config, image, mask, value)[0])
    with torch.no_grad():
        z_t = teacher(image)
    if config.consistency == "paper":
        consistency = ((z_m - z_t) ** 2).mean() / (z_t**2).sum().sqrt()
    else:
        consistency = divergence(z_m, z_t).mean()
    clean, masked = dice_ce(z_c, label), dice_ce(z_m, label)
    total = config.clean_weight * clean + config.masked_weight * masked + config.consistency_weight * consistency
    terms = {"clean": clean, "masked": masked, "consistency": consistency, "total": total}
    return {name: term for name, term in terms.items() if name == "total" or getattr(config, f"{name}_weight")}


@pytest.mark.parametrize(
    ("config", "changes"),
    [("medcontext", {}), (TAUGHT, {}), (TAUGHT, THREE_PASSES), ("paper", {})],
    ids=["ours", "taught", "three", "paper"],
)
@pytest.mark.parametrize("parts", [False, True])
def test_losses_and_gradients_agree_with_the_formulas(config, changes, parts):
    network = Small()
    network.inner[1], network.inner[2] = nn.InstanceNorm3d(5, affine=True), nn.Identity()
    method = make(config, network, hide="voxels", masked_weight=0.7, **changes)
    image, label = batch()
    move(method.teacher)
    reference, teacher = copy.deepcopy(network).double(), copy.deepcopy(method.teacher.network).double()
    generator = torch.Generator().manual_seed(0)
    method._generator.set_state(generator.get_state())
    mask = method.draw_mask(image)
    method._generator.set_state(generator.get_state())
    value = torch.zeros(2, dtype=torch.float64, requires_grad=True)

    expected = reference_step(method.config, reference, teacher, image.double(), label, mask, value)
    expected["total"].backward()
    if parts:
        losses = method(image, label, backward=torch.Tensor.backward)
    else:
        losses = method(image, label)
        losses["total"].backward()

    assert losses.keys() == expected.keys()
    for term, loss in expected.items():
        assert math.isclose(losses[term].item(), loss.item(), rel_tol=1e-5, abs_tol=1e-7), term
    for mine, theirs in zip(network.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(mine.grad.double(), theirs.grad, rtol=1e-3, atol=1e-6)
    if config == "paper":
        assert torch.allclose(method.student.hidden_value.grad.double(), value.grad, rtol=1e-3, atol=1e-6)


class TwoHeads(nn.Module):
    """A second head at half the resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(2, 5, 3, padding=1), nn.LeakyReLU())
        self.heads = nn.ModuleList([nn.Conv3d(5, 3, 1), nn.Conv3d(5, 3, 2, 2)])

    def forward(self, image):
        return [head(self.body(image)) for head in self.heads]


@pytest.mark.parametrize("over", ["all", "hidden"])
def test_every_head_is_compared_where_the_mask_says_and_not_in_samples_seen_whole(over, monkeypatch):
    method = make(TAUGHT, TwoHeads(), consistency_over=over, deep_consistency=True)
    move(method.teacher)
    mask = torch.zeros(2, 4, 2, 2, dtype=torch.bool)
    mask[1, 0, 1], mask[1, 2, 0, 0] = True, True
    monkeypatch.setattr(method, "draw_mask", lambda *_: mask)
    image, label = batch()
    student, teacher = (copy.deepcopy(each.network).double() for each in (method, method.teacher))
    seen, hidden = hidden_image(method.config, image.double(), mask)
    terms = []
    for step, z_m, z_t in zip((1, 2), student(seen), teacher(image.double()), strict=True):
        compared = hidden[1, ::step, ::step, ::step] if over == "hidden" else ...
        terms.append(divergence(z_m, z_t)[1][compared].mean() / 2)  # mean over the batch, to which sample 0 adds 0
    expected = (terms[0] + terms[1] / 2) / 1.5
    assert method(image, label)["consistency"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_consistency_weight_ramps_up_over_its_share_of_the_training():
    # So large a weight that what the ramp leaves of the term shows beside the other in float32.
    method = make(TAUGHT, ramp_up=0.5, consistency_weight=100.0)
    for step in range(12):
        learned = []
        losses = method(*batch(step), backward=learned.append)
        weight = 100 * math.exp(-5 * (1 - step / 10) ** 2) if step < 10 else 100
        expected = weight * losses["consistency"].item()
        for total in (losses["total"], sum(learned)):
            assert (total - losses["masked"]).item() == pytest.approx(expected, rel=1e-4), step
        method.after_step()


def test_after_its_time_nothing_is_hidden_but_of_samples_without_a_label():
    method = make("medcontext", mask_until=0.5, ratio=0.5)
    image, label = batch()
    for step in range(method._total_steps):
        hidden = method.draw_mask(image, [0]).flatten(1).sum(1)
        assert (hidden[0] > 0) == (step < 10)
        assert hidden[1] > 0
        method.after_step()
    last = []
    for each, term in ((method, "masked"), (make("supervised", method.network), "clean")):
        torch.manual_seed(3)  # of the dropout
        last.append(each(image, label)[term])
    assert torch.equal(*last)


@pytest.mark.parametrize("chance", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("without", [range(300, 400), range(0, 400, 4)])
def test_a_labelled_sample_is_masked_by_chance_and_one_without_a_label_always(chance, without):
    """300 labelled samples and 100 others, wherever they are in the batch; five standard deviations."""
    method = make(TAUGHT, mask_probability=chance, ratio=0.5)
    known = sorted(set(range(400)) - set(without))
    drawn = method.draw_mask(torch.zeros(400, 2, *SIZE), known).flatten(1).sum(1)
    assert set(drawn.tolist()) == {0, 8}, "half of the 16 patches, or nothing"
    assert (drawn[list(without)] == 8).all()
    share = (drawn[known] > 0).double().mean().item()
    assert abs(share - chance) < 5 * (chance * (1 - chance) / 300) ** 0.5


def test_a_batch_without_labels_is_always_masked():
    method = make(TAUGHT, mask_probability=0.1)
    assert all(method.draw_mask(torch.zeros(4, 2, *SIZE), []).flatten(1).any(1).all() for _ in range(20))


def test_a_shared_batch_has_its_labelled_samples_first():
    image, label = batch()
    method = make(TAUGHT, share=(0, 2))
    with pytest.raises(MedContextError, match="share a batch") as error:
        method(image, label, labelled=[False, True])
    assert "[False, True]" in error.value.found


def test_gradient_shares_are_those_of_the_terms_alone():
    changes = THREE_PASSES | {"consistency_weight": 2.0}
    network = Small()
    network.inner[2] = nn.Identity()
    start = copy.deepcopy(network)
    losses = make(TAUGHT, network, **changes)(*batch(), backward=torch.Tensor.backward, gradients=True)
    norms = {}
    for term, weight in {"clean": 1.0, "masked": 1.0, "consistency": 2.0}.items():
        alone = copy.deepcopy(start)
        (weight * make(TAUGHT, alone, **changes)(*batch())[term]).backward()
        norms[term] = torch.cat([p.grad.flatten() for p in alone.parameters() if p.grad is not None]).norm().item()
    for term, norm in norms.items():
        assert losses[f"gradient_share/{term}"].item() == pytest.approx(norm / sum(norms.values()), rel=1e-3)


@pytest.mark.parametrize("passes", ["apart", "together"])
@pytest.mark.parametrize(
    ("left_out", "taken"),
    [
        ({"clean"}, {"student": 1, "teacher": 1}),
        ({"masked"}, {"student": 2, "teacher": 1}),
        ({"consistency"}, {"student": 2, "teacher": 0}),
        ({"clean", "consistency"}, {"student": 1, "teacher": 0}),
        ({"masked", "consistency"}, {"student": 1, "teacher": 0}),
    ],
    ids=lambda value: "-".join(sorted(value)) if isinstance(value, set) else "",
)
def test_a_term_without_weight_costs_nothing_and_changes_nothing(left_out, taken, passes):
    network = Small()
    network.inner[1], network.inner[2] = nn.InstanceNorm3d(5, affine=True), nn.Identity()
    whole = copy.deepcopy(network)
    terms = make(TAUGHT, whole, **THREE_PASSES)(*batch())
    kept = {"clean", "masked", "consistency"} - left_out
    sum(terms[term] for term in kept).backward()

    weights = THREE_PASSES | {f"{term}_weight": 0.0 for term in left_out}
    method = make(TAUGHT, network, passes=passes, **weights)
    samples = {"student": 0, "teacher": 0}
    for name, each in (("student", method.network), ("teacher", method.teacher.network)):

        def counted(_, inputs, name=name):
            samples[name] += len(inputs[0]) // 2

        each.register_forward_pre_hook(counted)
    losses = method(*batch(), backward=torch.Tensor.backward, diagnose=True, gradients=True)
    assert samples == taken
    assert {name for name in losses if name in terms} == kept | {"total"}
    shared = {name.partition("/")[2] for name in losses if name.startswith("gradient_share/")}
    assert shared == (kept if len(kept) > 1 else set())
    assert ("context_score" in losses) == (kept != {"clean"})
    assert ("context_gap" in losses) == ("clean" in kept and kept != {"clean"})
    assert ("teacher_entropy" in losses) == ("consistency" in kept)
    for mine, theirs in zip(network.parameters(), whole.parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_what_would_learn_nothing_is_refused():
    with pytest.raises(MedContextError, match="clean_weight"):
        replace(preset("medcontext"), masked_weight=0.0)
    with pytest.raises(MedContextError, match="learns from the labels"):
        replace(TAUGHT, masked_weight=0.0)
    with pytest.raises(MedContextError, match="clean_weight"):
        replace(preset("supervised"), clean_weight=0.0)
    image, _ = batch()
    for method in (make("supervised"), make("medcontext")):
        with pytest.raises(MedContextError, match="batch without labels"):
            method(image, None)


def test_supervised_is_the_supervised_loss_alone():
    method = make("supervised")
    image, label = batch()
    method.student.eval()
    losses = method(image, label)
    assert set(losses) == {"clean", "total"}
    assert losses["total"].item() == pytest.approx(dice_ce(method.network(image).double(), label).item())
    assert method.teacher is None


def test_the_teacher_is_the_closed_form_moving_average():
    method = make("paper", momentum=0.9)
    optimizer = torch.optim.SGD(method.student.parameters(), lr=0.1)
    expected = [p.double().detach().clone() for p in method.network.parameters()]
    for step in range(7):
        optimizer.zero_grad()
        method(*batch(step))["total"].backward()
        optimizer.step()
        method.after_step()
        momentum = 1 - 0.1 * (1 + math.cos(math.pi * step / 20)) / 2
        expected = [
            momentum * e + (1 - momentum) * p.double()
            for e, p in zip(expected, method.network.parameters(), strict=True)
        ]
    for mine, average in zip(method.teacher.network.parameters(), expected, strict=True):
        assert torch.allclose(mine.double(), average, atol=1e-6)
        assert mine.grad is None
    norms = method.teacher.network.inner[1], method.network.inner[1]
    assert not torch.equal(norms[0].running_mean, torch.zeros(5))
    assert torch.equal(norms[0].num_batches_tracked, norms[1].num_batches_tracked)


@pytest.mark.parametrize("steps_per_epoch", [1, 3])
def test_a_warm_start_averages_all_students_that_the_teacher_followed(steps_per_epoch):
    torch.manual_seed(0)
    config = replace(preset("medcontext"), teacher_update="step" if steps_per_epoch == 1 else "epoch")
    method = MedContext(Small(), config, total_steps=20, channels=2, steps_per_epoch=steps_per_epoch)
    students = []
    for step in range(5 * steps_per_epoch):
        with torch.no_grad():
            for weight in method.network.parameters():
                weight.normal_(generator=torch.Generator().manual_seed(step))
        method.after_step()
        if step % steps_per_epoch == steps_per_epoch - 1:
            students.append([p.detach().clone() for p in method.network.parameters()])
    for place, average in enumerate(method.teacher.network.parameters()):
        assert torch.allclose(average, torch.stack([s[place] for s in students]).mean(0), atol=1e-6)


def test_the_teacher_is_always_in_eval_mode_and_out_of_reach():
    method = make(TAUGHT)
    method.student.train()
    method.teacher._network.train()
    target = method.teacher(batch()[0])
    assert not any(module.training for module in method.teacher._network.modules()), "the property sets the mode itself"
    assert not target.requires_grad
    theirs = {id(p) for p in method.teacher.network.parameters()}
    assert not theirs & {id(p) for p in method.student.parameters()}
    assert torch.equal(target, method.teacher(batch()[0]))


def test_the_official_teacher_draws_dropout_and_takes_the_statistics_of_its_batch():
    method, (image, _) = make("official"), batch()
    training = copy.deepcopy(method.teacher._network).train()
    torch.manual_seed(3)
    expected = training(image)
    torch.manual_seed(3)
    assert torch.equal(method.teacher(image), expected)
    assert torch.equal(method.teacher._network.inner[1].running_mean, training.inner[1].running_mean)
    assert not torch.equal(method.teacher.network(image), expected)


def test_a_resumed_method_goes_on_exactly():
    def steps(method, optimizer, numbers):
        for number in numbers:
            method(*batch(number))["total"].backward()
            optimizer.step()
            optimizer.zero_grad()
            method.after_step()

    def start(seed):
        network = Small()
        network.inner[2] = nn.Identity()
        torch.manual_seed(seed)
        method = make("paper", network, fill="learnable")
        return method, torch.optim.SGD(method.student.parameters(), lr=0.1)

    whole, optimizer = start(0)
    first = copy.deepcopy(whole.state_dict())
    steps(whole, optimizer, range(6))

    begun, optimizer = start(1)
    begun.load_state_dict(first)
    steps(begun, optimizer, range(3))
    state = copy.deepcopy(begun.state_dict())
    resumed, optimizer = start(2)
    resumed.load_state_dict(state)
    steps(resumed, optimizer, range(3, 6))

    assert resumed.step == whole.step == 6
    for mine, theirs in zip(resumed.student.state_dict().values(), whole.student.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(resumed.teacher.state_dict().values(), whole.teacher.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_momentum_schedules():
    paper, ours = PRESETS["paper"], PRESETS["medcontext"]
    assert teacher_momentum(paper, 0, 100, 1) == pytest.approx(0.996)
    assert teacher_momentum(paper, 50, 100, 1) == pytest.approx(0.998)
    assert teacher_momentum(paper, 100, 100, 1) == 1.0
    assert [teacher_momentum(ours, t, 100, 1) for t in (0, 1, 3)] == [0.0, 0.5, 0.75]
    assert teacher_momentum(ours, 5000, 100, 1) == 0.99


def test_diagnostics_show_context_and_collapse():
    method = make(TAUGHT)
    image, label = batch()
    seen = method(image, label, backward=torch.Tensor.backward, diagnose=True)
    assert 0 <= seen["context_score"] <= 1
    assert sum(seen[f"teacher_occupancy/{k}"].item() for k in range(3)) == pytest.approx(1)
    assert 0 < seen["teacher_entropy"] <= 1
    collapsed = Small()
    for weight in collapsed.parameters():
        nn.init.zeros_(weight)
    seen = make(TAUGHT, collapsed)(image, label, diagnose=True)
    assert seen["teacher_entropy"].item() == pytest.approx(1)
    assert seen["teacher_occupancy/0"].item() == 1


class Knowing(nn.Module):
    """Knows the label, and says it where voxels are hidden, which are zero, or everywhere else; wrong in the rest."""

    def __init__(self, label: torch.Tensor, hidden: bool) -> None:
        super().__init__()
        self.label, self.hidden = label, hidden

    def forward(self, image):
        right = (image == 0).all(1) == self.hidden
        said = torch.where(right, self.label, (self.label + 1) % 3)
        return nn.functional.one_hot(said, 3).movedim(-1, 1).float()


@pytest.mark.parametrize(("hidden", "score", "gap"), [(True, 1, -1), (False, 0, 1)])
def test_the_context_score_looks_at_what_was_hidden_alone(hidden, score, gap):
    image, label = batch()
    seen = make(TAUGHT, Knowing(label, hidden), fill="zero", **THREE_PASSES)(image, label, diagnose=True)
    assert seen["context_score"] == score
    assert seen["context_gap"] == gap, "of the clean pass, in which nothing is hidden"


def test_context_score_and_gap_are_those_of_numpy(monkeypatch):
    method = make(TAUGHT, **THREE_PASSES)
    method.student.eval()
    image, label = batch()
    mask = method.draw_mask(image)
    monkeypatch.setattr(method, "draw_mask", lambda *_: mask)
    with torch.no_grad():
        clean, masked = (method.network(x).numpy() for x in (image, hidden_image(method.config, image, mask)[0]))
    hidden = np.stack([np.kron(grid, np.ones(method.config.mask_patch)) for grid in mask.numpy()]) > 0

    def dice(logits):
        said, true = logits.argmax(1)[hidden], label.numpy()[hidden]
        each = [(said == k, true == k) for k in (1, 2)]
        return np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in each])

    seen = method(image, label, diagnose=True)
    assert seen["context_score"].item() == pytest.approx(dice(masked))
    assert seen["context_gap"].item() == pytest.approx(dice(clean) - dice(masked), abs=1e-6)
    assert dice(clean) != dice(masked)


def test_hard_dice_counts_the_region_only():
    target = torch.tensor([[[[0, 1, 1, 2]]]])
    logits = torch.nn.functional.one_hot(torch.tensor([[[[0, 1, 2, 2]]]]), 4).movedim(-1, 1).float()
    assert hard_dice(logits, target)[:2].tolist() == pytest.approx([2 / 3, 2 / 3])
    assert hard_dice(logits, target)[2].isnan()
    region = torch.tensor([[[[True, True, False, False]]]])
    assert hard_dice(logits, target, region)[0].item() == 1
    assert hard_dice(logits, target, region)[1].isnan()


def test_large_logits_in_half_precision_stay_finite():
    class Loud(Small):
        def forward(self, image):
            return (super().forward(image) * 1e4).half()

    method = make(TAUGHT, Loud())
    losses = method(*batch())
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(MedContextError) as error:
        MedContext(Small(), "medcontex", total_steps=1)
    assert "supervised" in str(error.value)
