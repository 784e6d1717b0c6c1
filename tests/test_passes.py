"""One method, many ways to run it: in parts or at once, with half the labels, in half precision, on two processes."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from medcontext.errors import MedContextError
from medcontext.losses.dice_ce import dice_ce, over_heads
from medcontext.method.diagnostics import teacher_state
from medcontext.method.objective import MedContext
from medcontext.method.presets import PRESETS
from tests.conftest import THREE_PASSES

SIZE = (8, 8, 8)
SMALL = replace(THREE_PASSES, mask_patch=(2, 4, 4), confidence="sample", confidence_threshold=0.3)


class Heads(nn.Module):
    """A convolution with instance normalisation and, if asked for, a second head at half the resolution."""

    def __init__(self, heads: int = 1, norm: type[nn.Module] = nn.InstanceNorm3d) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), norm(4, affine=True), nn.LeakyReLU())
        self.heads = nn.ModuleList(nn.Conv3d(4, 3, 2**k, 2**k) for k in range(heads))

    def forward(self, image):
        features = self.body(image)
        outputs = [head(features) for head in self.heads]
        return outputs if len(outputs) > 1 else outputs[0]


def network(heads: int = 1, norm: type[nn.Module] = nn.InstanceNorm3d) -> Heads:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Heads(heads, norm)


def batch(samples: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(samples, 1, *SIZE, generator=generator),
        torch.randint(0, 3, (samples, *SIZE), generator=generator),
    )


def gradients(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("fill", ["mean", "noise", "learnable"])
def test_passes_in_parts_apart_and_together_give_the_same_gradients(heads, fill):
    results = []
    for passes in ("apart", "together"):
        for parts in (True, False):
            config = replace(SMALL, passes=passes, fill=fill, deep_consistency=True)
            method = MedContext(network(heads), config, total_steps=10)
            image, label = batch()
            losses = method(image, label, backward=torch.Tensor.backward if parts else None, gradients=parts)
            if not parts:
                losses["total"].backward()
            results.append((losses["total"].item(), gradients(method.student)))
    for total, gradient in results[1:]:
        assert total == pytest.approx(results[0][0], rel=1e-5)
        assert torch.allclose(gradient, results[0][1], rtol=1e-4, atol=1e-6)


def test_deep_supervision_weighs_heads_by_halves_and_samples_their_label():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (2, 8, 8, 8), generator=generator)
    heads = [torch.randn(2, 3, size, size, size, generator=generator) for size in (8, 4, 2)]
    expected = (
        dice_ce(heads[0], target)
        + 0.5 * dice_ce(heads[1], target[:, 1::2, 1::2, 1::2])
        + 0.25 * dice_ce(heads[2], target[:, 2::4, 2::4, 2::4])
    ) / 1.75
    assert over_heads(dice_ce, heads, target).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(("deep", "changes"), [(False, False), (True, True)])
def test_consistency_on_the_finest_head_or_on_all(deep, changes):
    losses = []
    for scale in (1, 5):
        student = network(2)
        method = MedContext(student, replace(SMALL, deep_consistency=deep), total_steps=10)
        with torch.no_grad():
            student.heads[1].weight.mul_(scale)
        losses.append(method(*batch())["consistency"].item())
    assert (losses[0] != pytest.approx(losses[1])) is changes


class DeepInTraining(Heads):
    """As many networks are written: several heads in training, the finest alone in evaluation."""

    def forward(self, image):
        outputs = super().forward(image)
        return outputs if self.training else outputs[0]


def test_a_network_may_have_its_deep_heads_in_training_alone():
    losses = {}
    for kind in (Heads, DeepInTraining):
        student = network(2)
        student.__class__ = kind
        method = MedContext(student, SMALL, total_steps=10)
        terms = method(*batch())
        terms["total"].backward()
        losses[kind] = [terms[name].item() for name in ("clean", "masked", "consistency", "total")]
        assert all(parameter.grad is not None for parameter in student.parameters())
    assert losses[DeepInTraining] == losses[Heads]
    method = MedContext(student, replace(SMALL, deep_consistency=True), total_steps=10)
    with pytest.raises(MedContextError, match="heads") as error:
        method(*batch())
    assert error.value.found == "2 in training, 1 in evaluation"


def test_samples_without_a_label_take_part_through_consistency_alone():
    image, label = batch(3)
    label[1] = 99
    parts = {}
    for flags in ([True, False, True], [False, False, False], None):
        method = MedContext(network(), SMALL, total_steps=10)
        parts[str(flags)] = method(
            image, None if flags is None else label, labelled=flags, diagnose=True, gradients=True
        )
    some, flagged, none = parts.values()
    assert set(none) >= {"consistency", "total", "teacher_entropy"}
    assert not {"clean", "masked"} & set(none)
    assert none["total"].item() == none["consistency"].item() == flagged["total"].item()
    assert some["consistency"].item() == pytest.approx(none["consistency"].item(), rel=1e-5)
    alone = MedContext(network(), SMALL, total_steps=10)
    assert some["clean"].item() == pytest.approx(alone(image[[0, 2]], label[[0, 2]])["clean"].item(), rel=1e-6)
    with pytest.raises(MedContextError, match="without labels"):
        MedContext(network(), "supervised", total_steps=10)(image, None)


def test_unlabelled_samples_teach_something():
    method = MedContext(network(), SMALL, total_steps=10)
    with torch.no_grad():
        method.network.heads[0].weight.add_(0.1)
    method(batch()[0], None)["total"].backward()
    assert gradients(method.student).abs().sum() > 0


def test_gradients_accumulate_over_small_batches():
    image, label = batch(4)
    whole, small = (MedContext(network(), "supervised", total_steps=10) for _ in range(2))
    whole(image, label)["total"].backward()
    for start in (0, 2):
        (small(image[start : start + 2], label[start : start + 2])["total"] / 2).backward()
    assert torch.allclose(gradients(whole.student), gradients(small.student), atol=1e-6)
    method = MedContext(network(), SMALL, total_steps=10)
    masks = [method.draw_mask(image) for _ in range(2)]
    assert not torch.equal(*masks)
    assert method.step == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_losses_and_the_average_stay_in_float32(dtype):
    method = MedContext(network(), SMALL, total_steps=10)
    with torch.autocast("cpu", dtype):
        losses = method(*batch(), backward=torch.Tensor.backward, diagnose=True, gradients=True)
    assert losses["total"].dtype == torch.float32
    assert all(torch.isfinite(value) for value in losses.values())
    method.after_step()
    assert {p.dtype for p in method.teacher.network.parameters()} == {torch.float32}
    exact = MedContext(network(), SMALL, total_steps=10)(*batch())
    assert losses["total"].item() == pytest.approx(exact["total"].item(), rel=0.05)


def test_a_teacher_in_bf16_leaves_the_student_in_float32():
    seen = []
    method = MedContext(network(), replace(SMALL, teacher_bf16=True), total_steps=10)
    method.teacher.network.body[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    method.network.body[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    method(*batch())
    assert seen == [torch.bfloat16, torch.float32, torch.float32]


def test_a_compiled_student_gives_the_same():
    plain = MedContext(network(), SMALL, total_steps=10)
    compiled = MedContext(network(), SMALL, total_steps=10)
    compiled.student = torch.compile(compiled.student, backend="aot_eager")
    for method in (plain, compiled):
        method(*batch())["total"].backward()
        method.after_step()
    assert torch.allclose(gradients(plain.student), gradients(compiled.student), atol=1e-6)
    assert plain.state_dict()["student"].keys() == compiled.state_dict()["student"].keys()


@pytest.mark.parametrize(("buffers", "expected"), [("average", 0.25), ("copy", 1.0), ("keep", 0.0)])
def test_running_statistics_of_batch_normalisation(buffers, expected):
    """Each student pass moves the student's statistics; the teacher, in eval mode, uses its own, which follow."""
    method = MedContext(
        network(norm=nn.BatchNorm3d),
        replace(SMALL, buffers=buffers, momentum=0.75, momentum_warm_start=False),
        total_steps=9,
    )
    image, label = batch()
    method(image, label)
    theirs, mine = method.teacher.network.body[1], method.network.body[1]
    assert theirs.num_batches_tracked == 0
    assert mine.num_batches_tracked == 2
    before = theirs.running_mean.clone()
    method.after_step()
    assert torch.allclose(theirs.running_mean, before + expected * (mine.running_mean - before))
    assert theirs.num_batches_tracked == (0 if buffers == "keep" else 2)


def test_a_collapse_is_flagged():
    """Hardly anything but consistency, with a network that can only agree by saying the same everywhere."""
    image, label = batch()
    config = replace(SMALL, clean_weight=1e-6, masked_weight=0.0, confidence="none")
    constant = nn.Sequential(nn.Conv3d(1, 3, 1))
    nn.init.zeros_(constant[0].weight)
    method = MedContext(constant, config, total_steps=30)
    optimizer = torch.optim.SGD(method.student.parameters(), lr=1.0)
    for _ in range(5):
        losses = method(image, label, diagnose=True, gradients=True)
        losses["total"].backward()
        optimizer.step()
        method.after_step()
    assert losses["collapsed"] == 1
    assert losses["context_score"] < 0.5
    healthy = nn.functional.one_hot(label, 3).movedim(-1, 1) * 5.0
    assert teacher_state(healthy, label)["collapsed"] == 0
    assert teacher_state(torch.zeros_like(healthy), label)["collapsed"] == 1
    empty = torch.zeros_like(label)
    assert teacher_state(nn.functional.one_hot(empty, 3).movedim(-1, 1) * 5.0, empty)["collapsed"] == 0


def _on_one_of_two(rank: int, file: str, out: str, parts: bool, changes: dict[str, Any]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    image, label = batch(4)
    method = MedContext(network(2), replace(SMALL, **changes), total_steps=10)
    own = slice(2 * rank, 2 * rank + 2)
    masks = [method.draw_mask(image[:2]) for _ in range(2)]
    method.draw_mask = lambda image, known: masks[rank]  # type: ignore[method-assign]
    wrapped = DistributedDataParallel(method.student)
    synchronised = []
    wrapped.register_comm_hook(None, lambda state, bucket: _count(synchronised, bucket))
    method.student = wrapped
    if parts:
        method(image[own], label[own], backward=torch.Tensor.backward, diagnose=True, gradients=True)
    else:
        method(image[own], label[own])["total"].backward()
    torch.save((gradients(wrapped), len(synchronised)), f"{out}{rank}")
    dist.barrier()
    dist.destroy_process_group()


def _count(synchronised, bucket):
    synchronised.append(bucket.index())
    buffer = bucket.buffer()
    dist.all_reduce(buffer)
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(buffer / 2)
    return future


@pytest.mark.parametrize(
    ("parts", "changes"),
    [
        (False, {"fill": "learnable"}),
        (True, {"fill": "learnable"}),
        (False, {"fill": "learnable", "passes": "together"}),
        (True, {"masked_weight": 0.0, "consistency_weight": 0.0}),
        (True, {"masked_weight": 0.0}),
    ],
    ids=["apart", "parts", "together", "clean", "consistency"],
)
def test_two_processes_synchronise_once_and_give_the_gradient_of_one(tmp_path, parts, changes):
    arguments = (str(tmp_path / "meet"), str(tmp_path / "out.pt"), parts, changes)
    mp.start_processes(_on_one_of_two, arguments, nprocs=2, start_method="spawn")
    image, label = batch(4)
    single = MedContext(network(2), replace(SMALL, **changes | {"passes": "apart"}), total_steps=10)
    masks = [single.draw_mask(image[:2]) for _ in range(2)]
    for rank in range(2):
        single.draw_mask = lambda image, known, rank=rank: masks[rank]
        own = slice(2 * rank, 2 * rank + 2)
        (single(image[own], label[own])["total"] / 2).backward()
    for rank in range(2):
        gradient, synchronised = torch.load(tmp_path / f"out.pt{rank}", weights_only=True)
        assert synchronised == 1
        assert torch.allclose(gradient, gradients(single.student), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("masked_weight", "names"), [(0.0, set()), (1.0, {"mask_token", "hidden_value"})])
def test_nothing_is_learned_for_a_masked_pass_that_no_term_needs(masked_weight, names):
    # A parameter without a gradient stops DDP at the second step.
    config = replace(PRESETS["paper"], hide="both", masked_weight=masked_weight, consistency_weight=0.0)
    method = MedContext(network(), config, total_steps=2, patch_embedding="body.0")
    assert {name for name, _ in method.student.named_parameters() if not name.startswith("network.")} == names


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_runs_and_resumes(name):
    first = MedContext(network(), replace(PRESETS[name], mask_patch=(4, 4, 4)), total_steps=4, steps_per_epoch=2)
    for _ in range(3):
        first(*batch(), backward=torch.Tensor.backward, diagnose=True, gradients=True)
        first.after_step()
    state = copy.deepcopy(first.state_dict())
    again = MedContext(network(), replace(PRESETS[name], mask_patch=(4, 4, 4)), total_steps=4, steps_per_epoch=2)
    again.load_state_dict(state)
    assert first(*batch())["total"].item() == again(*batch())["total"].item()
