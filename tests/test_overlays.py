"""Pictures of a patch show what they say they show, and leave no trace in the training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medcontext.data.augment_config import AugmentConfig
from medcontext.data.cache import prepare_all
from medcontext.data.check import check_dataset
from medcontext.data.dataset import open_dataset
from medcontext.data.labels import Labels, Region
from medcontext.data.plan import Plan, make_plan
from medcontext.data.sampling import Batch, PatchBatches
from medcontext.method.objective import MedContext
from medcontext.method.presets import PRESETS
from medcontext.training.overlays import Panel, PatchOverlay, draw_panels

METHOD = dataclasses.replace(PRESETS["medcontext"], mask_patch=(4, 4, 4))
REGIONS = Labels(names={1: "core", 2: "edge"}, regions=(Region("whole", (1, 2), 2), Region("core", (1,), 1)))
BLUE, ORANGE = (86, 180, 233), (230, 159, 0)
"""Of the first and the second structure."""


@pytest.fixture(scope="module")
def plan(tiny: Path) -> Plan:
    return make_plan(check_dataset(open_dataset(tiny)), device="cpu", patch=(16, 12, 16), steps=10)


def batch_of(label: Tensor, seed: int = 0, channels: int = 1) -> Batch:
    image = torch.randn(len(label), channels, *label.shape[1:], generator=torch.Generator().manual_seed(seed))
    return {"image": image, "label": label.to(torch.uint8), "cases": [f"case {k}" for k in range(len(label))]}


def boxes() -> Tensor:
    """Two samples; the second has more foreground, the most of it in slice 6."""
    label = torch.zeros(2, 16, 12, 16)
    label[0, 3, 2:4, 2:4] = 1
    label[1, 5:8, 2:10, 2:8] = 1
    label[1, 6, 2:10, 8:14] = 2
    return label


def near(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (np.abs(pixels.astype(int) - colour).max(-1) < 40).nonzero()


class Says(nn.Module):
    """A network that gives fixed logits, and notes what it was asked."""

    def __init__(self, logits: Tensor, as_list: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.logits, self.as_list = logits, as_list
        self.asked: list[tuple[Any, ...]] = []

    def forward(self, *inputs: Any) -> Any:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.asked.append(inputs)
        return [self.logits, self.logits[..., ::2, ::2, ::2]] if self.as_list else self.logits


def perfect(label: Tensor, classes: int = 3) -> Tensor:
    return nn.functional.one_hot(label.long(), classes).movedim(-1, 1).float() * 10


def panels_of(overlay: PatchOverlay, monkeypatch: pytest.MonkeyPatch, student: nn.Module, teacher: nn.Module | None):
    """What is drawn, in place of the drawing."""
    seen: dict[str, Any] = {}

    def note(image: Any, panels: list[Panel], names: list[str], spacing: Any) -> np.ndarray:
        seen.update(image=image, panels=panels, names=names, spacing=spacing)
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr("medcontext.training.overlays.draw_panels", note)
    overlay(student, teacher)
    return seen


@pytest.mark.parametrize("as_list", [False, True])
def test_panels_of_the_slice_with_most_foreground(plan, monkeypatch, as_list):
    label = boxes()
    batch = batch_of(label)
    right = Says(perfect(label[1:]), as_list)
    wrong = Says(perfect(torch.zeros_like(label[1:]))).eval()
    overlay = PatchOverlay(batch, plan, METHOD)
    seen = panels_of(overlay, monkeypatch, right, wrong)
    assert overlay.case == "case 1"
    np.testing.assert_array_equal(seen["image"], batch["image"][1, 0, 6])
    assert seen["names"] == ["low", "high"]
    assert seen["spacing"] == plan.spacing[1:]
    truth, clean, masked, teacher = seen["panels"]
    assert [panel.title for panel in seen["panels"]] == ["truth", "clean", "masked", "teacher"]
    assert [panel.note for panel in seen["panels"]] == [
        "slice 7 of 16", "Dice 1.00", "Dice 1.00 where hidden", "Dice 0.00"
    ]  # fmt: skip
    for panel in (truth, clean, masked):
        np.testing.assert_array_equal(panel.structures, [label[1, 6] == 1, label[1, 6] == 2])
    assert not teacher.structures.any()
    assert [panel.cells is None for panel in seen["panels"]] == [True, True, False, True]
    (plain,), (image, mask, noise) = right.asked
    torch.testing.assert_close(plain, batch["image"][1:])
    assert (image is plain, noise) == (True, None)
    # Cells are those of the mask that the student was given, in this slice.
    hidden = np.zeros((12, 16), dtype=bool)
    for rows, columns in masked.cells:
        hidden[rows, columns] = True
    np.testing.assert_array_equal(hidden, np.kron(mask[0, 6 // 4].numpy(), np.ones((4, 4))).astype(bool))
    assert hidden.any()


def test_dice_of_the_masked_pass_is_of_what_was_hidden(plan, monkeypatch):
    label = boxes()
    overlay = PatchOverlay(batch_of(label), plan, METHOD)
    mask = overlay._mask
    assert mask is not None
    hidden = torch.from_numpy(np.kron(mask[0].numpy(), np.ones((4, 4, 4))).astype(bool))
    # Right where it is hidden, wrong everywhere else.
    given = torch.where(hidden, label[1], (label[1] + 1) % 3)[None]
    seen = panels_of(overlay, monkeypatch, Says(perfect(given)), None)
    assert [panel.note for panel in seen["panels"][2:]] == ["Dice 1.00 where hidden"]
    assert seen["panels"][1].note != "Dice 1.00"


AVERAGED_ALONE = dataclasses.replace(METHOD, clean_weight=1.0, masked_weight=0.0, consistency_weight=0.0)


@pytest.mark.parametrize("without", [PRESETS["supervised"], AVERAGED_ALONE])
def test_a_training_without_a_masked_pass_shows_none(plan, monkeypatch, without):
    label = boxes()
    seen = panels_of(PatchOverlay(batch_of(label), plan, without), monkeypatch, Says(perfect(label[1:])), None)
    assert [panel.title for panel in seen["panels"]] == ["truth", "clean"]


def test_regions_may_contain_one_another_and_ignored_voxels_belong_to_none(plan, monkeypatch):
    label = boxes()
    label[1, 6, 0] = -1
    batch = batch_of(label)
    batch["label"] = label.to(torch.int16)
    whole, core = label[1] > 0, label[1] == 1
    logits = torch.stack([whole, core])[None].float() * 20 - 10
    regional = dataclasses.replace(plan, labels=REGIONS)
    seen = panels_of(PatchOverlay(batch, regional, METHOD), monkeypatch, Says(logits), Says(-logits).eval())
    assert seen["names"] == ["whole", "core"]
    truth, clean, _, teacher = seen["panels"]
    np.testing.assert_array_equal(truth.structures, [whole[6], core[6]])
    np.testing.assert_array_equal(clean.structures, [whole[6], core[6]])
    np.testing.assert_array_equal(teacher.structures, [~whole[6], ~core[6]])
    assert clean.note == "Dice 1.00"


def test_an_empty_patch_is_drawn_too(plan):
    label = torch.zeros(1, 16, 12, 16)
    overlay = PatchOverlay(batch_of(label), plan, METHOD)
    pixels = overlay(Says(perfect(label)), None)
    assert pixels.dtype == np.uint8
    assert pixels.std() > 10


@pytest.mark.parametrize("fill", ["mean", "noise", "learnable"])
def test_training_goes_on_as_if_nothing_had_been_drawn(plan, fill):
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.Dropout(0.5), nn.Conv3d(4, 3, 1))
    method = MedContext(network, dataclasses.replace(METHOD, fill=fill), total_steps=10)
    overlay = PatchOverlay(batch_of(boxes()), plan, method.config)
    assert method.teacher is not None
    method.student.train()
    before = {name: value.clone() for name, value in method.student.state_dict().items()}
    masks, random = method._generator.get_state(), torch.get_rng_state()
    first = overlay(method.student, method.teacher.network)
    second = overlay(method.student, method.teacher.network)
    np.testing.assert_array_equal(first, second)
    assert all(module.training for module in method.student.modules())
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(masks, method._generator.get_state())
    for name, value in method.student.state_dict().items():
        assert torch.equal(before[name], value), name
    assert all(parameter.grad is None for parameter in method.student.parameters())


def test_outlines_lie_where_the_structures_are():
    """Turned around, rows and columns: the first row is at the foot, the first column at the right."""
    truth = np.zeros((2, 40, 40), dtype=bool)
    truth[0, 2:10, 2:10] = True
    given = np.zeros_like(truth)
    given[0, 2:10, 22:38] = True
    given[1, 30:38, 2:10] = True
    cells = [(slice(8, 16), slice(12, 20))]
    image = np.zeros((40, 40), dtype=np.float32)
    drawn = draw_panels(image, [Panel("truth", "", truth), Panel("masked", "", given, cells)], ["a", "b"], (1.0, 1.0))
    without = draw_panels(image, [Panel("truth", "", truth), Panel("masked", "", given)], ["a", "b"], (1.0, 1.0))
    width = drawn.shape[1]
    panel = 2.75 * 110
    left = [0.1 * 110, 2.95 * 110]
    top = 0.34 * 110

    def box(place: int, colour: tuple[int, int, int]) -> list[int]:
        """Voxels (first row, last row, first column, last column) around all that has this colour in a panel."""
        inside = drawn[int(top) : int(top + panel), int(left[place]) : int(left[place] + panel)]
        rows, columns = near(inside, colour)
        assert len(rows)
        return [
            round(40 - rows.max() / panel * 40), round(40 - rows.min() / panel * 40),
            round(40 - columns.max() / panel * 40), round(40 - columns.min() / panel * 40),
        ]  # fmt: skip

    assert abs(width - 5.8 * 110) <= 1
    assert box(0, BLUE) == [2, 10, 2, 10]
    assert box(1, BLUE) == [2, 10, 22, 38]
    assert box(1, ORANGE) == [30, 38, 2, 10]
    rows, columns = (drawn != without).any(-1).nonzero()
    assert [round(40 - (edge - top) / panel * 40) for edge in (rows.max(), rows.min())] == [8, 16]
    assert [round(40 - (edge - left[1]) / panel * 40) for edge in (columns.max(), columns.min())] == [12, 20]


def test_voxels_that_are_no_squares_keep_their_shape():
    image = np.random.default_rng(0).normal(size=(20, 40)).astype(np.float32)
    flat = draw_panels(image, [Panel("truth", "", np.zeros((1, 20, 40), bool))], ["a"], (1.0, 1.0))
    tall = draw_panels(image, [Panel("truth", "", np.zeros((1, 20, 40), bool))], ["a"], (4.0, 1.0))
    assert tall.shape[0] - flat.shape[0] == pytest.approx(2.75 * 1.5 * 110, abs=2)
    assert tall.shape[1] == flat.shape[1]


def test_many_labels_with_long_names():
    structures = np.zeros((24, 40, 40), dtype=bool)
    for k in range(24):
        structures[k, k : k + 3, k : k + 3] = True
    names = [f"$structure_{k}$ of quite some name that is long" for k in range(24)]
    image = np.zeros((40, 40), dtype=np.float32)
    pixels = draw_panels(image, [Panel("truth", "", structures), Panel("clean", "", structures)], names, (1.0, 1.0))
    few = draw_panels(
        image, [Panel("truth", "", structures[:2]), Panel("clean", "", structures[:2])], names[:2], (1, 1)
    )
    assert pixels.shape[0] > few.shape[0] + 100


def test_a_real_scan(real_scans, tmp_path):
    dataset = open_dataset(real_scans / "Task04_Hippocampus")
    dataset = dataclasses.replace(dataset, cases={name: dataset.cases[name] for name in list(dataset.cases)[:2]})
    plan = make_plan(check_dataset(dataset), device="cpu", patch=(32, 48, 48), batch_size=2, steps=4)
    folders = prepare_all(list(dataset.cases.values()), plan, tmp_path / "cache")
    batch = PatchBatches(folders, plan, AugmentConfig(), 0, 4)[0]
    torch.manual_seed(0)
    method = MedContext(nn.Conv3d(1, 3, 5, padding=2), total_steps=4)
    assert method.teacher is not None
    pixels = PatchOverlay(batch, plan, method.config)(method.student, method.teacher.network)
    assert pixels.shape[2] == 3
    assert 1200 < pixels.shape[1] < 1300
    assert len(near(pixels, BLUE)[0]) > 100
    assert len(near(pixels, ORANGE)[0]) > 100
