"""Every form of the consistency term against its formula, in float64 and one voxel at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medcontext.losses.dice_ce import in_parts
from medcontext.method.consistency import consistency
from medcontext.method.presets import MethodConfig
from medcontext.method.schedules import consistency_weight, teacher_momentum

FORMS = ("paper", "relative", "kl", "cosine", "dice")
SHAPE = (2, 3, 2, 3, 2)


def softmax(values):
    top = max(values)
    powers = [math.exp(value - top) for value in values]
    return [power / sum(powers) for power in powers]


def reference(config, student, teacher, hidden):
    """Loops over samples and voxels, plain Python numbers."""
    samples, classes = student.shape[:2]
    per_sample = []
    for b in range(samples):
        z_m = student[b].flatten(1).T.tolist()
        z_t = teacher[b].flatten(1).T.tolist()
        counts = hidden[b].flatten().tolist() if config.consistency_over == "hidden" else [True] * len(z_m)
        sure = [max(softmax(z)) >= config.confidence_threshold for z in z_t]
        share = sum(s for s, c in zip(sure, counts, strict=True) if c) / max(1, sum(counts))
        weight = {"none": [1.0] * len(sure), "voxel": [float(s) for s in sure], "sample": [share] * len(sure)}
        per_sample.append(
            [(m, t, w) for m, t, w, c in zip(z_m, z_t, weight[config.confidence], counts, strict=True) if c]
        )
    everything = [voxel for sample in per_sample for voxel in sample]
    if config.consistency == "paper":
        error = sum(w * sum((a - b) ** 2 for a, b in zip(m, t, strict=True)) for m, t, w in everything)
        norm = math.sqrt(sum(b**2 for _, t, _ in everything for b in t))
        return error / (len(everything) * classes) / norm
    if config.consistency == "relative":
        ratios = [
            sum(w * sum((a - b) ** 2 for a, b in zip(m, t, strict=True)) for m, t, w in sample)
            / sum(b**2 for _, t, _ in sample for b in t)
            for sample in per_sample
        ]
        return sum(ratios) / samples
    if config.consistency == "dice":
        losses = []
        for sample in per_sample:
            p = [(softmax(m), softmax(t)) for m, t, _ in sample]
            dice = [
                2 * sum(a[k] * b[k] for a, b in p) / (sum(a[k] ** 2 for a, _ in p) + sum(b[k] ** 2 for _, b in p))
                for k in range(classes)
            ]
            losses.append(sum(w for *_, w in sample) / len(sample) * (1 - sum(dice) / classes))
        return sum(losses) / samples
    heat = config.temperature
    means = []
    for sample in per_sample:
        total = 0.0
        for m, t, w in sample:
            if config.consistency == "cosine":
                dot = sum(a * b for a, b in zip(m, t, strict=True))
                total += w * (1 - dot / math.sqrt(sum(a * a for a in m) * sum(b * b for b in t)))
            else:
                p_m, p_t = softmax([a / heat for a in m]), softmax([b / heat for b in t])
                total += w * heat**2 * sum(q * math.log(q / p) for p, q in zip(p_m, p_t, strict=True))
        means.append(total / len(sample))
    return sum(means) / samples


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("over", ["all", "hidden"])
@pytest.mark.parametrize("confidence", ["none", "voxel", "sample"])
@given(seed=st.integers(0, 10_000), temperature=st.floats(0.5, 3))
@settings(max_examples=10, deadline=None)
def test_every_form_is_its_formula(form, over, confidence, seed, temperature):
    config = MethodConfig(
        consistency=form,
        consistency_over=over,
        confidence=confidence,
        confidence_threshold=0.6,
        temperature=temperature,
    )
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (2 * torch.randn(SHAPE, generator=generator) for _ in range(2))
    hidden = torch.rand(2, 1, *SHAPE[2:], generator=generator) < 0.5
    hidden[:, :, 0, 0, 0] = True
    expected = reference(config, student.double(), teacher.double(), hidden)
    assert consistency(config, student, teacher, hidden).item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("over", ["all", "hidden"])
@pytest.mark.parametrize("confidence", ["none", "voxel", "sample"])
def test_samples_that_were_seen_whole_take_no_part(form, over, confidence):
    config = MethodConfig(
        consistency=form, consistency_over=over, confidence=confidence, confidence_threshold=0.5, mask_probability=0.5
    )
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, *SHAPE[1:], generator=generator, dtype=torch.float64) for _ in range(2))
    hidden = torch.rand(4, 1, *SHAPE[2:], generator=generator) < 0.5
    hidden[[0, 2]] = False
    student.requires_grad_()
    value = consistency(config, student, teacher, hidden)
    alone = consistency(config, student[[1, 3]], teacher[[1, 3]], hidden[[1, 3]])
    # A mean over the batch, but for the paper's, which is one over all that is compared.
    torch.testing.assert_close(value, alone if form == "paper" else alone / 2)
    assert value > 0
    value.backward()
    assert not student.grad[[0, 2]].any()
    assert student.grad[[1, 3]].any()
    assert consistency(config, student, teacher, torch.zeros_like(hidden)) == 0


@pytest.mark.parametrize("form", [form for form in FORMS if form != "paper"])
@pytest.mark.parametrize("over", ["all", "hidden"])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_the_mean_over_processes_is_that_of_one(form, over, seed):
    """However much each process's samples hide, nothing included."""
    config = MethodConfig(consistency=form, consistency_over=over)
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(4, *SHAPE[1:], generator=generator) for _ in range(2))
    hidden = torch.rand(4, 1, *SHAPE[2:], generator=generator) < torch.rand(4, 1, 1, 1, 1, generator=generator)
    hidden[seed % 4] = False
    parts = [consistency(config, *(each[rows] for each in (student, teacher, hidden))) for rows in ([0, 1], [2, 3])]
    torch.testing.assert_close(torch.stack(parts).mean(), consistency(config, student, teacher, hidden))


@pytest.mark.parametrize("form", FORMS)
def test_agreement_costs_nothing_and_the_teacher_gets_no_gradient(form):
    config = MethodConfig(consistency=form)
    logits = torch.randn(SHAPE)
    hidden = torch.ones(2, 1, *SHAPE[2:], dtype=torch.bool)
    assert consistency(config, logits, logits, hidden).item() == pytest.approx(0, abs=1e-6)
    student, teacher = torch.randn(SHAPE, requires_grad=True), torch.randn(SHAPE, requires_grad=True)
    consistency(config, student, teacher, hidden).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_half_precision_logits_neither_overflow_nor_lose_the_term(form, dtype):
    config = MethodConfig(consistency=form)
    student, teacher = ((1e4 * torch.randn(SHAPE)).to(dtype).requires_grad_() for _ in range(2))
    hidden = torch.ones(2, 1, *SHAPE[2:], dtype=torch.bool)
    term = consistency(config, student, teacher, hidden)
    term.backward()
    assert term.dtype == torch.float32
    assert torch.isfinite(term)
    assert term > 0
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_divergence_over_several_parts(dtype, within, layout):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        (2 * torch.randn(2, 5, 50, 31, 33, generator=generator)).to(dtype).contiguous(memory_format=layout)
        for _ in range(2)
    )
    student.requires_grad_()
    assert len(list(in_parts(student, teacher))) > 1
    exact = student.detach().double().contiguous().requires_grad_()
    log_p = (exact / 1.5).log_softmax(1)
    log_q = (teacher.double() / 1.5).log_softmax(1)
    expected = 1.5**2 * torch.nn.functional.kl_div(log_p, log_q, reduction="none", log_target=True).sum(1).mean()
    hidden = torch.ones(2, 1, *student.shape[2:], dtype=torch.bool)
    term = consistency(MethodConfig(consistency="kl", temperature=1.5), student, teacher, hidden)
    assert term.item() == pytest.approx(expected.item(), rel=1e-5)
    term.backward()
    expected.backward()
    assert torch.allclose(student.grad.double(), exact.grad, rtol=within, atol=within * exact.grad.abs().max().item())


def test_the_weight_ramps_up():
    config = MethodConfig(ramp_up=0.5, consistency_weight=2.0)
    weights = [consistency_weight(config, step, 100) for step in range(100)]
    assert weights[0] == pytest.approx(2 * math.exp(-5))
    assert weights[25] == pytest.approx(2 * math.exp(-1.25))
    assert weights[50:] == [2.0] * 50
    assert weights == sorted(weights)
    assert consistency_weight(MethodConfig(consistency_weight=1.0), 0, 100) == 1.0


def test_the_restarting_momentum_of_the_released_code_never_gets_far():
    """Its table: ``linspace(0, 0.996, 50 * n)`` looked up by the batch's number in its epoch of n batches."""
    config = MethodConfig(momentum=0.996, momentum_schedule="restarting", momentum_warm_start=False)
    table = torch.linspace(0, 0.996, 50 * 18, dtype=torch.float64)
    for step in (0, 5, 17, 18, 35, 18 * 4999 + 17):
        assert teacher_momentum(config, step, 10**6, 18) == pytest.approx(table[step % 18].item())
    assert teacher_momentum(config, 17, 10**6, 18) < 0.02
