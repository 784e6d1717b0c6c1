from __future__ import annotations

import ast
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import medcontext
from medcontext.data.check import CheckReport, check_dataset
from medcontext.data.dataset import Dataset, open_dataset
from medcontext.data.facts import CaseFacts
from medcontext.data.fingerprint import take_fingerprint
from medcontext.data.labels import Labels, Region
from medcontext.data.patch_size import budget_for
from medcontext.data.plan import Normalisation, Plan, make_plan
from medcontext.data.plan_file import diff_plans, read_plan, require_plan_fits, write_plan
from medcontext.errors import MedContextError
from medcontext.networks.registry import build_network, network_spec


def facts_of(shape, spacing, orientation="RAS", channels=1, voxels=None, seed=0):
    values = np.random.default_rng(seed).normal(80, 20, (500, channels)).astype(np.float32)
    return CaseFacts(shape, spacing, orientation, channels, {1: 100} if voxels is None else voxels, values)


def report_with(facts, modality=("MRI",), labels=None, protocol=None):
    labels = labels or Labels({1: "organ"})
    dataset = Dataset(Path("data"), "data", modality, labels, {}, protocol=protocol or {})
    return CheckReport(dataset, (), {f"case{k}": each for k, each in enumerate(facts)})


def report_of(shape, spacing, orientation="RAS", modality=("MRI",), cases=3, channels=1, **more):
    return report_with([facts_of(shape, spacing, orientation, channels)] * cases, modality, **more)


@given(
    shape=st.tuples(*[st.integers(1, 400)] * 3),
    spacing=st.tuples(*[st.floats(0.1, 10)] * 3),
    multiple=st.sampled_from([None, 16]),
    machine=st.sampled_from([("cpu", None), ("gpu", 6.0), ("gpu", 8.0), ("gpu", None)]),
)
def test_every_plan_fits_its_device_and_its_network(shape, spacing, multiple, machine):
    device, memory = machine
    plan = make_plan(report_of(shape, spacing), device=device, memory_gib=memory, patch_multiple=multiple)
    most = {("cpu", None): 48**3, ("gpu", 6.0): 64**3, ("gpu", 8.0): 96**3, ("gpu", None): 128**3}[machine]
    assert np.prod(plan.patch) <= most or all(size <= 24 for size in plan.patch)
    assert all(size % (multiple or 2) == 0 for size in plan.patch)
    assert plan.scale == ("small" if device == "cpu" else "full")
    assert plan.batch_size == 2 or plan.batch_size * np.prod(plan.patch) <= 2 * most
    settings = network_spec("unet").settings(plan.patch, plan.spacing, plan.scale)
    assert len(settings["strides"]) >= 3
    assert all(
        size % np.prod(steps) == 0
        for size, steps in zip(plan.patch, zip(*settings["strides"], strict=True), strict=True)
    )
    json.dumps(plan.to_dict(), allow_nan=False)


def test_a_gpu_is_given_patches_that_the_full_unet_halves_five_times():
    plan = make_plan(report_of((182, 182, 218), (1, 1, 1)), device="gpu", memory_gib=80)
    assert plan.patch == (128, 128, 128)
    # 104 could be halved three times only.
    assert make_plan(report_of((104, 104, 104), (1, 1, 1)), device="gpu").patch == (112, 112, 112)
    mouse = make_plan(report_of((112, 128, 80), (0.15, 0.15, 0.15)), device="gpu", memory_gib=8)
    assert sorted(mouse.patch) == [80, 96, 112]


def test_gpus_sold_with_16_gb_count_as_such():
    assert [budget_for("gpu", gib).voxels for gib in (80, 14.6, 11, 7.7, 5.8)] == [
        128**3, 128**3, 96**3, 96**3, 64**3,
    ]  # fmt: skip


def test_patches_are_cut_to_a_cube_in_mm():
    thick = make_plan(report_of((256, 256, 60), (1, 1, 4)))
    sides = np.array(thick.patch) * thick.spacing
    assert sides.max() - sides.min() <= 4 * 4
    few = make_plan(report_of((256, 256, 9), (1.25, 1.25, 8)))
    assert few.patch[0] == 10
    assert few.patch[1] == few.patch[2] > 90


def test_thick_slices_become_the_first_axis():
    coronal = make_plan(report_of((200, 20, 180), (1, 6, 1)))
    assert coronal.orientation == "ASR"
    assert coronal.spacing == (6, 1, 1)
    stored_otherwise = make_plan(report_of((20, 180, 200), (6, 1, 1), orientation="PSR"))
    assert stored_otherwise.orientation == "ASR"
    assert stored_otherwise.spacing == (6, 1, 1)
    assert make_plan(report_of((60, 60, 60), (1, 1, 1))).orientation == "SAR"


def test_spacing_is_the_median_but_nearly_the_thinnest_across_thick_slices():
    steps = (3.5, 4, 5, 6, 7, 8, 8, 8, 8, 8, 8)
    mixed = make_plan(report_with([facts_of((256, 256, 20), (1, 1, step)) for step in steps]))
    assert mixed.spacing == (4, 1, 1)  # by counting: the 10th percentile of 11 values is the second
    assert "10th percentile instead of 8" in mixed.reasons[1]
    # As thick, but too many slices to count as few; and less than three times as thick.
    many = make_plan(report_with([facts_of((256, 256, 200), (1, 1, step)) for step in steps]))
    assert many.spacing == (8, 1, 1)
    thin = make_plan(report_with([facts_of((256, 256, 20), (1, 1, step)) for step in (1.5, 2.5, 2.5)]))
    assert thin.spacing == (2.5, 1, 1)
    # Never finer than the plane.
    finer = make_plan(report_with([facts_of((256, 256, 20), (1, 1, step)) for step in (0.5, 0.5, 8, 8, 8, 8)]))
    assert finer.spacing == (1, 1, 1)


def test_small_patches_come_in_larger_batches_up_to_a_share_of_the_data():
    # 32^3 in 200 cases: 5 % of the data is ten patches; 128 would fit.
    assert make_plan(report_of((32, 32, 32), (1, 1, 1), cases=200), device="gpu").batch_size == 10
    # 48^3 on a CPU fills its budget.
    assert make_plan(report_of((48, 48, 48), (1, 1, 1), cases=500)).batch_size == 2
    assert make_plan(report_of((32, 32, 32), (1, 1, 1), cases=500)).batch_size == 2 * 48**3 // 32**3
    assert make_plan(report_of((32, 32, 32), (1, 1, 1), cases=500), batch_size=3).batch_size == 3


def test_ct_is_clipped_by_the_labelled_voxels_of_the_whole_set():
    report = report_with([facts_of((60, 60, 60), (1, 1, 1), seed=k) for k in range(3)], modality=("ct",))
    plan = make_plan(report)
    values = np.concatenate([facts.foreground for facts in report.facts.values()]).astype(np.float64)
    low, high = np.percentile(values, (0.5, 99.5))
    inside = values.clip(low, high)
    assert plan.normalisation.kind == "ct"
    assert dataclasses.astuple(plan.normalisation)[1:] == pytest.approx((low, high, inside.mean(), inside.std()))
    assert make_plan(report_of((60, 60, 60), (1, 1, 1))).normalisation.kind == "case"
    mixed = report_of((60, 60, 60), (1, 1, 1), modality=("CT", "PET"), channels=2)
    assert make_plan(mixed).normalisation.kind == "case"


def test_ct_whose_labelled_voxels_are_all_alike_is_normalised_by_case():
    """A window without width would make every voxel 0, and a plan that can't be read again."""
    flat = dataclasses.replace(facts_of((60, 60, 60), (1, 1, 1)), foreground=np.full((1, 50), 100, np.float32))
    plan = make_plan(report_with([flat], modality=("CT",)))
    assert plan.normalisation.kind == "case"
    assert any("all one value, 100" in reason for reason in plan.reasons)
    assert Plan.from_dict(plan.to_dict()) == plan
    for clip in ([200, 300], [-50, 20]):
        with pytest.raises(MedContextError, match="protocol") as caught:
            make_plan(report_with([flat], modality=("CT",), protocol={"clip": clip}))
        assert f"clip = {[float(end) for end in clip]}" in caught.value.found


def test_a_protocol_goes_before_the_rules_and_a_setting_before_the_protocol():
    protocol = {"spacing": [2, 1.5, 1.5], "clip": [50, 90]}
    report = report_of((200, 200, 60), (0.8, 0.8, 3), modality=("CT",), protocol=protocol)
    plan = make_plan(report)
    assert plan.spacing == (2, 1.5, 1.5)
    assert (plan.normalisation.low, plan.normalisation.high) == (50, 90)
    assert 50 < plan.normalisation.mean < 90
    assert sum("protocol of data" in reason for reason in plan.reasons) == 2
    assert make_plan(report, spacing=(3, 1, 1)).spacing == (3, 1, 1)


@pytest.mark.parametrize("protocol", [{"spacing": [2, 1.5]}, {"spacing": [2, 0, 1]}, {"clip": [9, 1]}, {"clip": "x"}])
def test_a_protocol_that_makes_no_sense_is_refused(protocol):
    with pytest.raises(MedContextError, match="protocol") as caught:
        make_plan(report_of((60, 60, 60), (1, 1, 1), modality=("CT",), protocol=protocol))
    assert next(iter(protocol)) in caught.value.found


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({1: "left kidney", 2: "spleen"}, "'left kidney' is on one side"),
        ({1: "spleen", 2: "kidney_r"}, "'kidney_r' is on one side"),
        ({1: "structure_1"}, "have no names"),
        ({1: "cleft", 2: "liver"}, r"mirror_axes [1]"),
    ],
)
def test_mirroring_is_suggested_only_where_no_label_is_a_side(names, said):
    # Sagittal thick slices: the first axis is right to left.
    assert "mirror_axes [0]" in make_plan(report_of((20, 200, 200), (6, 1, 1))).reasons[7]
    reason = make_plan(report_of((200, 20, 200), (1, 6, 1), labels=Labels(names))).reasons[7]
    assert said.replace("[1]", "[2]") in reason
    assert ("try" in reason) == ("mirror_axes" in said)


def test_a_fingerprint_counts_what_is_there():
    facts = [
        facts_of((10, 20, 30), (1, 1, 3), voxels={1: 600, 2: 30}, seed=0),
        facts_of((30, 20, 10), (3, 1, 1), orientation="SAL", voxels={1: 300}, seed=1),
        facts_of((10, 20, 50), (1, 2, 5), voxels={2: 20}, seed=2),
    ]
    labels = Labels({1: "a", 2: "b", 3: "c"}, regions=(Region("all", (1, 2), 1), Region("inner", (2,), 2)))
    found = take_fingerprint(report_with(facts, labels=labels))
    assert (found.cases, found.orientation, found.anisotropy) == (3, "SAR", 3)
    assert found.sizes.least == (30, 20, 10)
    assert found.sizes.most == (50, 20, 10)
    assert found.spacings.median == (3, 1, 1)
    assert found.spacings.most == (5, 2, 1)
    total = 6000 + 6000 + 10000
    assert {n: (s.name, s.cases) for n, s in found.structures.items()} == {1: ("all", 3), 2: ("inner", 2)}
    assert [found.structures[n].share for n in (1, 2)] == pytest.approx([950 / total, 50 / total])
    assert found.rarest.name == "inner"
    values = np.concatenate([each.foreground for each in facts])[:, 0]
    assert found.foreground[0].high == pytest.approx(np.percentile(values, 99.5))
    assert found.foreground[0].std == pytest.approx(values.astype(np.float64).std())
    assert json.loads(json.dumps(found.to_dict()))["structures"]["2"]["cases"] == 2


def test_what_no_case_shows_is_named():
    plan = make_plan(report_of((60, 60, 60), (1, 1, 1), labels=Labels({1: "organ", 2: "gland"})))
    assert "rarest structure: organ" in plan.reasons[-1]
    assert "in no case at all: gland" in plan.reasons[-1]


def test_nothing_to_plan_is_refused():
    report = report_of((9, 9, 9), (1, 1, 1))
    with pytest.raises(MedContextError, match="No case"):
        make_plan(CheckReport(report.dataset, (), {}))
    with pytest.raises(MedContextError, match="Nothing is labelled"):
        make_plan(report_with([facts_of((9, 9, 9), (1, 1, 1), voxels={})], modality=("CT",)))


PLANS = {
    "mri": make_plan(report_of((60, 50, 40), (1, 1, 1))),
    "ct": make_plan(report_of((200, 200, 60), (0.8, 0.8, 3), modality=("CT",)), device="gpu"),
    "regions": make_plan(
        report_of(
            (60, 50, 40),
            (1, 1, 1),
            labels=Labels({1: "a", 3: "b"}, (7,), 9, (Region("all", (1, 3), 1), Region("b", (3,), 3))),
        )
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_survives_its_file(tmp_path, name):
    write_plan(tmp_path / "plan.json", PLANS[name])
    again = read_plan(tmp_path / "plan.json")
    assert again == PLANS[name]
    assert again.reasons == PLANS[name].reasons
    assert list(again.labels.names) == list(PLANS[name].labels.names)
    assert diff_plans(again, PLANS[name]) == []


EDITS = [
    (("patch",), [0, 8, 8]),
    (("patch",), [8, 8]),
    (("patch",), [8, 8, 8.5]),
    (("patch",), "8 8 8"),
    (("spacing",), [1, -1, 1]),
    (("spacing",), [1, 1, float("inf")]),
    (("spacing",), [True, 1, 1]),
    (("channels",), "1"),
    (("batch_size",), 0),
    (("steps",), True),
    (("orientation",), "SAX"),
    (("orientation",), ["S", "A", "R"]),
    (("scale",), "huge"),
    (("reasons",), "because"),
    (("normalisation",), "ct"),
    (("normalisation", "kind"), "mri"),
    (("normalisation", "std"), None),
    (("normalisation",), {"kind": "ct", "low": 5, "high": 5, "mean": 0, "std": 1}),
    (("labels",), {"1": "organ"}),
    (("labels", "names"), {}),
    (("labels", "names"), {"0": "background"}),
    (("labels", "names"), {"one": "organ"}),
    (("labels", "ignore"), 1),
    (("labels", "background"), [3]),
    (("labels", "regions", 0, "numbers"), [4]),
    (("labels", "regions", 0, "written"), 3),
    (("labels", "regions", 1, "written"), 2),
    (("labels", "regions", 0, "colour"), "red"),
    (("pitch",), [8, 8, 8]),
]


@pytest.mark.parametrize(("where", "value"), EDITS)
def test_a_wrong_edit_is_named(tmp_path, where, value):
    values = json.loads(json.dumps(PLANS["regions"].to_dict()))
    inner = values
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(values))
    with pytest.raises(MedContextError) as caught:
        read_plan(file)
    assert caught.value.file == str(file)
    assert str(where[0]) in caught.value.found
    assert caught.value.expected


@pytest.mark.parametrize("key", ["dataset", "spacing", "patch", "labels", "normalisation", "steps"])
def test_a_missing_key_is_named(key):
    values = PLANS["mri"].to_dict()
    del values[key]
    with pytest.raises(MedContextError) as caught:
        Plan.from_dict(values)
    assert key in caught.value.found


@pytest.mark.parametrize("text", ["[1, 2]", "3", "null", "{", '{"patch": [1'])
def test_what_is_no_plan_is_refused(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(MedContextError) as caught:
        read_plan(tmp_path / "plan.json")
    assert caught.value.file == str(tmp_path / "plan.json")


def test_plans_are_compared_value_by_value():
    before = PLANS["regions"]
    after = dataclasses.replace(
        before,
        patch=(48, 48, 48),
        spacing=(2.0, 1.0, 1.0),
        normalisation=Normalisation("ct", -100, 200, 50, 30),
        labels=Labels({1: "a", 3: "bee"}),
        reasons=("other words",),
    )
    lines = diff_plans(before, after)
    assert before.patch == (40, 48, 56)
    assert "patch: 40 x 48 x 56 -> 48 x 48 x 48" in lines
    assert "spacing: 1 x 1 x 1 -> 2 x 1 x 1" in lines
    assert "normalisation.kind: case -> ct" in lines
    assert "normalisation.low: 0 -> -100" in lines
    assert "labels.names.3: b -> bee" in lines
    assert "labels.regions.0.numbers: 1, 3 -> none" in lines
    assert "labels.ignore: 9 -> none" in lines
    assert not any("reason" in line or line.startswith("steps") for line in lines)


def test_a_plan_for_other_data_is_refused():
    report, file = report_of((60, 50, 40), (1, 1, 1)), Path("plan.json")
    require_plan_fits(PLANS["mri"], report, file)
    with pytest.raises(MedContextError, match="other labels") as caught:
        require_plan_fits(PLANS["regions"], report, file)
    assert caught.value.file == "plan.json"
    with pytest.raises(MedContextError, match="other channels"):
        require_plan_fits(PLANS["mri"], report_of((60, 50, 40), (1, 1, 1), channels=4), file)


@pytest.mark.parametrize(
    ("record", "home"),
    [("Plan", "data/plan.py"), ("TrainConfig", "training/config.py"), ("MethodConfig", "method/presets.py")],
)
def test_every_field_is_read_somewhere(record, home):
    source = Path(medcontext.__file__).parent
    tree = ast.parse((source / home).read_text())
    fields = {
        node.target.id
        for found in ast.walk(tree)
        if isinstance(found, ast.ClassDef) and found.name == record
        for node in found.body
        if isinstance(node, ast.AnnAssign)
    }
    assert len(fields) > 8
    read = {
        node.attr
        for file in source.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    assert fields <= read


def test_a_patch_that_unetr_cannot_take_is_refused_with_the_nearest():
    with pytest.raises(MedContextError, match=r"\[32, 64, 32\]"):
        build_network("unetr", 1, 2, (40, 56, 34), {}, 0)
    with pytest.raises(MedContextError, match="unet or unetr or"):
        network_spec("unetrr")


REAL = {
    "Task04_Hippocampus": (1, 2, (1, 1, 1), (40, 56, 40), "Posterior, 2.5 %"),
    "Sunnybrook_LV_png": (1, 1, (8, 1.25, 1.25), (10, 104, 104), "LV_endocardium, 1.7 %"),
    "MouseBrain_FVB_NCrl_invivo": (1, 37, (0.15, 0.15, 0.15), (48, 48, 48), "0.016 %"),
    "MS_lesion_4ch": (4, 1, (1, 1, 1), (48, 48, 48), "MS_lesion, 0.35 %"),
}


@pytest.mark.parametrize("name", sorted(REAL))
def test_real_data_sets_plan_without_a_setting(real_scans, name):
    channels, labels, spacing, patch, rarest = REAL[name]
    report = check_dataset(open_dataset(real_scans / name))
    plan = make_plan(report)
    assert plan.channels == channels
    assert len(plan.labels.names) == labels
    assert plan.spacing == spacing
    assert plan.patch == patch
    assert (plan.batch_size, plan.steps, plan.scale) == (2, 1500, "small")
    assert rarest in plan.reasons[-1]
    assert all(math.isfinite(each.high) for each in take_fingerprint(report).foreground)
