"""Back in the scan's grid: the same labels as by resampling every class at full size in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from medcontext.data.geometry import reorient, reorient_back
from medcontext.data.labels import Labels, Region
from medcontext.data.plan import Normalisation, Plan
from medcontext.data.prepare import prepare_image
from medcontext.data.scan import Scan, read_scan
from medcontext.errors import MedContextError
from medcontext.inference import upsampling
from medcontext.inference.model import Model
from medcontext.inference.native import NativeMaps, to_native
from medcontext.inference.predictor import Predictor
from medcontext.inference.sliding import Slab, sliding_logits
from tests.conftest import oriented
from tests.test_geometry import codes, oblique

CLOSE = 1e-4
"""Logits that differ by less may change places in single precision."""

REGIONS = (Region("whole", (7, 14, 21), 1), Region("core", (7, 21), 3), Region("active", (21,), 7))


def plan_with(classes: int = 4, regions: tuple[Region, ...] = (), orientation: str = "SAR") -> Plan:
    labels = Labels({7 * k: f"structure {k}" for k in range(1, classes)}, regions=regions)
    return Plan("test", 1, labels, orientation, (1.5, 1.0, 1.0), Normalisation("case"), (8, 8, 8), 2, 10)


def logits_of(kind: str, classes: int, grid: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = [max(1, n // 3) for n in grid]
    if kind == "noise":
        return 3 * torch.randn(classes, *grid, generator=generator)
    if kind == "smooth":
        points = 5 * torch.randn(1, classes, *coarse, generator=generator)
        return F.interpolate(points, grid, mode="trilinear")[0].contiguous()
    blocks = F.interpolate(torch.randint(classes, coarse, generator=generator)[None, None].float(), grid)[0, 0]
    return 10 * F.one_hot(blocks.long(), classes).movedim(-1, 0).float() - 5


def slabs_of(logits: Tensor, step: int) -> Iterator[Slab]:
    """As from a sliding window: a ring of a few slices, written over as it goes."""
    ring = torch.full((len(logits), step + 1, *logits.shape[2:]), torch.nan)
    for start in range(0, logits.shape[1], step):
        stop = min(start + step, logits.shape[1])
        for d in range(start, stop):
            ring[:, d % (step + 1)] = logits[:, d]
        yield Slab(ring, start, stop)


def at_full_size(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(logits.double()[None], size, mode="trilinear", align_corners=False)[0]


grids = st.fixed_dictionaries(
    {
        "grid": st.tuples(*[st.integers(1, 9)] * 3),
        "size": st.tuples(*[st.integers(1, 15)] * 3),
        "same": st.tuples(*[st.booleans()] * 3),
        "stored": codes,
        "target": codes,
        "step": st.integers(1, 5),
    }
)


def brought_back(logits: Tensor, plan: Plan, where: dict, seed: int, **wanted) -> tuple[NativeMaps, Tensor]:
    """The maps, and the logits in float64 at full size, in the plan's orientation."""
    grid, same = where["grid"], where["same"]
    size = tuple(old if kept else new for old, new, kept in zip(grid, where["size"], same, strict=True))
    _, affine = oriented(np.empty((2, 2, 2)), oblique(seed), where["stored"])
    shape = reorient_back(np.empty(size), affine, plan.orientation).shape
    maps = to_native(slabs_of(logits, where["step"]), grid, plan, shape, affine, **wanted)
    turned = [reorient(each, affine, plan.orientation) for each in (maps.labels, maps.probabilities)]
    doubt = None if maps.entropy is None else reorient(maps.entropy, affine, plan.orientation)
    # PyTorch takes no array that runs backwards.
    assert all(stride > 0 for stride in maps.labels.strides)
    return NativeMaps(*turned, doubt), at_full_size(logits, size)


@given(where=grids, kind=st.sampled_from(["noise", "smooth", "blocks"]), classes=st.integers(2, 9), seed=st.integers(0))
@settings(deadline=None, max_examples=150)
def test_labels_are_those_of_the_largest_resampled_class(where, kind, classes, seed):
    seed %= 10_000
    plan = plan_with(classes, orientation=where["target"])
    maps, scores = brought_back(logits_of(kind, classes, where["grid"], seed), plan, where, seed)
    assert maps.labels.dtype == np.int32
    assert maps.labels.shape == scores.shape[1:]
    assert set(np.unique(maps.labels)) <= {7 * k for k in range(classes)}
    chosen = scores.gather(0, torch.from_numpy(maps.labels // 7)[None].long())[0]
    assert (chosen >= scores.amax(0) - CLOSE).all()


def test_regions_of_logits_in_half_precision():
    """In which those of large scans are held."""
    plan = plan_with(regions=REGIONS)
    logits = logits_of("smooth", 3, (9, 8, 7), 0)
    single, half = (
        to_native(slabs_of(each, 2), (9, 8, 7), plan, (11, 12, 14), np.eye(4)).labels
        for each in (logits, logits.half())
    )
    assert (single == half).mean() > 0.99


@given(where=grids, kind=st.sampled_from(["noise", "smooth"]), seed=st.integers(0))
@settings(deadline=None, max_examples=60)
def test_regions_are_where_their_logits_are_positive(where, kind, seed):
    seed %= 10_000
    plan = plan_with(regions=REGIONS, orientation=where["target"])
    maps, scores = brought_back(logits_of(kind, 3, where["grid"], seed), plan, where, seed)
    expected = np.zeros(maps.labels.shape, dtype=np.int32)
    for region, score in zip(REGIONS, scores.numpy(), strict=True):
        expected[score > 0] = region.written
    clear = (scores.abs() > CLOSE).all(0).numpy()
    assert np.array_equal(maps.labels[clear], expected[clear])


@given(where=grids, regions=st.booleans(), seed=st.integers(0))
@settings(deadline=None, max_examples=40)
def test_probabilities_and_entropy_are_of_the_resampled_logits(where, regions, seed):
    seed %= 10_000
    plan = plan_with(regions=REGIONS if regions else (), orientation=where["target"])
    outputs = plan.labels.outputs
    logits = logits_of("noise", outputs, where["grid"], seed)
    maps, scores = brought_back(logits, plan, where, seed, outputs=(2, 0), entropy=True)
    p = scores.sigmoid() if regions else scores.softmax(0)
    entropy = -(p * p.clamp_min(1e-300).log()).sum(0)
    if regions:
        entropy -= ((1 - p) * (1 - p).clamp_min(1e-300).log()).sum(0)
    assert maps.probabilities.dtype == maps.entropy.dtype == np.float16
    np.testing.assert_allclose(maps.probabilities, p[[2, 0]].numpy(), atol=1e-3)
    np.testing.assert_allclose(maps.entropy, entropy.numpy(), atol=3e-3)


def test_nothing_else_is_made_unless_it_is_asked_for():
    logits = logits_of("noise", 4, (3, 4, 5), 0)
    maps = to_native([Slab(logits, 0, 3)], (3, 4, 5), plan_with(), (6, 4, 3), np.eye(4))
    assert maps.probabilities.shape == (0, 6, 4, 3)
    assert maps.entropy is None


@given(where=grids, regions=st.booleans(), seed=st.integers(0))
@settings(deadline=None, max_examples=40)
def test_around_the_box_that_was_seen_all_is_background(where, regions, seed):
    seed %= 10_000
    plan = plan_with(regions=REGIONS if regions else (), orientation=where["target"])
    logits = logits_of("noise", plan.labels.outputs, where["grid"], seed)
    _, affine = oriented(np.empty((2, 2, 2)), oblique(seed), where["stored"])
    inside = reorient_back(np.empty(where["size"]), affine, plan.orientation).shape
    before, after = np.random.default_rng(seed).integers(0, 3, (2, 3)).tolist()
    shape = tuple(np.array(inside) + before + after)
    box = tuple(slice(start, start + size) for start, size in zip(before, inside, strict=True))
    arguments, wanted = (where["grid"], plan), {"outputs": (2, 0), "entropy": True}
    alone = to_native(slabs_of(logits, where["step"]), *arguments, inside, affine, **wanted)
    maps = to_native(slabs_of(logits, where["step"]), *arguments, shape, affine, box=box, **wanted)
    around = np.ones(shape, dtype=bool)
    around[box] = False
    assert np.array_equal(maps.labels[box], alone.labels)
    assert np.array_equal(maps.probabilities[:, *box], alone.probabilities)
    assert np.array_equal(maps.entropy[box], alone.entropy)
    assert not maps.labels[around].any()
    assert not maps.entropy[around].any()
    assert not maps.probabilities[0][around].any()
    assert (maps.probabilities[1][around] == (not regions)).all()


@pytest.mark.parametrize("classes", [255, 256, 300])
def test_many_classes_that_are_computed_in_parts(classes, monkeypatch):
    """Noise, so that other classes than those around win nearly everywhere."""
    logits = logits_of("noise", classes, (3, 5, 6), 1)
    arguments = [Slab(logits, 0, 3)], (3, 5, 6), plan_with(classes), (17, 9, 8), np.eye(4)
    whole = to_native(*arguments).labels
    scores = at_full_size(logits, (8, 9, 17))
    chosen = scores.gather(0, torch.from_numpy(whole.T // 7).long()[None])[0]
    assert (chosen >= scores.amax(0) - CLOSE).all()
    monkeypatch.setattr(upsampling, "AT_ONCE", 10 * classes)
    assert np.array_equal(to_native(*arguments).labels, whole)


def test_a_class_that_is_nowhere_the_largest_can_win_between():
    logits = torch.tensor([[10.0, 0.0], [0.0, 10.0], [9.0, 9.0]]).view(3, 1, 1, 2)
    labels = to_native([Slab(logits, 0, 1)], (1, 1, 2), plan_with(3), (8, 1, 1), np.eye(4)).labels
    assert labels.ravel().tolist() == [0, 0, 14, 14, 14, 14, 7, 7]


def test_of_equal_classes_the_lowest_wins():
    logits = torch.zeros(4, 2, 3, 4)
    logits[0] = -1
    labels = to_native([Slab(logits, 0, 2)], (2, 3, 4), plan_with(), (7, 6, 5), np.eye(4)).labels
    assert (labels == 7).all()
    # Half way between two voxels of different classes.
    logits = torch.tensor([[0.0, 0.0], [0.0, 2.0], [2.0, 0.0]]).view(3, 1, 1, 2)
    assert to_native([Slab(logits, 0, 1)], (1, 1, 2), plan_with(3), (1, 1, 1), np.eye(4)).labels.item() == 7


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("regions", [(), REGIONS])
def test_logits_that_are_not_finite_are_refused(bad, regions):
    class Broken(nn.Module):
        def forward(self, image):
            logits = torch.zeros(len(image), 3, 8, 8, 8)
            logits[:, 1, 2, 3, 4] = bad
            return logits

    plan = plan_with(3, regions)
    scan = Scan("scan.nii.gz", np.random.default_rng(0).normal(size=(1, 9, 9, 9)).astype(np.float32), np.eye(4), None)
    with pytest.raises(MedContextError, match="not finite") as error:
        Predictor(Model(Broken(), plan, {})).labels_of(scan)
    assert error.value.file == "scan.nii.gz"


def test_a_real_scan_is_labelled_as_in_the_straightforward_way(real_scans):
    scan = read_scan(real_scans / "Task04_Hippocampus" / "imagesTr" / "hippocampus_001.nii.gz")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv3d(8, 5, 5, padding=2)).eval()
    plan = plan_with(5)
    image = torch.from_numpy(prepare_image(scan, plan)[0])
    logits = sliding_logits(network, image, plan.patch, plan.normalisation.outside)
    labels = Predictor(Model(network, plan, {})).labels_of(scan)
    turned = np.ascontiguousarray(reorient(labels, scan.affine, "SAR"))
    scores = at_full_size(logits, turned.shape)
    chosen = scores.gather(0, torch.from_numpy(turned // 7).long()[None])[0]
    assert (chosen >= scores.amax(0) - CLOSE).all()
    assert len(np.unique(labels)) > 2


@pytest.mark.parametrize(
    ("how", "empty"), [(Normalisation("case"), 0.0), (Normalisation("ct", 5, 80, 40, 20), -1000.0)]
)
def test_a_scan_is_segmented_alike_whatever_is_empty_around_it(how, empty):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv3d(8, 4, 5, padding=2)).eval()
    predictor = Predictor(Model(network, dataclasses.replace(plan_with(), normalisation=how), {}))
    alone = np.random.default_rng(0).uniform(10, 90, (9, 12, 10)).astype(np.float32)
    around = ((3, 4), (0, 5), (7, 1))
    affine = np.diag([1.3, 0.9, 1.1, 1.0])
    expected = predictor(alone, affine)
    found = predictor(np.pad(alone, around, constant_values=empty), affine)
    assert np.array_equal(found, np.pad(expected, around))
    assert len(np.unique(expected)) == 4
