from __future__ import annotations

import ast
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import medcontext
from medcontext.data.check import CaseFacts, CheckReport, check_dataset
from medcontext.data.dataset import Dataset, open_dataset
from medcontext.data.plan import PATCH_VOXELS, Plan, make_plan
from medcontext.errors import MedContextError
from medcontext.networks.registry import build_network, network_spec


def report_of(shape, spacing, orientation="RAS", modality=("MRI",), cases=3, channels=1):
    rng = np.random.default_rng(0)
    facts = CaseFacts(
        shape, spacing, orientation, channels, {1: 100}, rng.normal(80, 20, (500, channels)).astype(np.float32)
    )
    dataset = Dataset(Path("data"), "data", modality, {1: "organ"}, {}, {}, {})
    return CheckReport(dataset, (), {f"case{k}": facts for k in range(cases)})


@given(
    shape=st.tuples(*[st.integers(1, 400)] * 3),
    spacing=st.tuples(*[st.floats(0.1, 10)] * 3),
    multiple=st.sampled_from([None, 16]),
)
def test_every_plan_fits_its_device_and_its_network(shape, spacing, multiple):
    plan = make_plan(report_of(shape, spacing), patch_multiple=multiple)
    assert np.prod(plan.patch) <= PATCH_VOXELS["cpu"] or all(size <= 24 for size in plan.patch)
    assert all(size % (multiple or 2) == 0 for size in plan.patch)
    settings = network_spec("unet").settings(plan.patch, plan.spacing, "small")
    assert len(settings["strides"]) >= 3
    assert all(
        size % np.prod(steps) == 0
        for size, steps in zip(plan.patch, zip(*settings["strides"], strict=True), strict=True)
    )
    assert len(plan.reasons) == 5


def test_thick_slices_become_the_first_axis():
    coronal = make_plan(report_of((200, 20, 180), (1, 6, 1)))
    assert coronal.orientation == "ASR"
    assert coronal.spacing == (6, 1, 1)
    stored_otherwise = make_plan(report_of((20, 180, 200), (6, 1, 1), orientation="PSR"))
    assert stored_otherwise.orientation == "ASR"
    assert stored_otherwise.spacing == (6, 1, 1)
    assert make_plan(report_of((60, 60, 60), (1, 1, 1))).orientation == "SAR"


def test_ct_is_clipped_by_the_labelled_voxels_of_the_whole_set():
    plan = make_plan(report_of((60, 60, 60), (1, 1, 1), modality=("CT",)))
    values = np.concatenate([facts.foreground for facts in report_of((1, 1, 1), (1, 1, 1)).facts.values()])
    assert plan.normalisation.kind == "ct"
    assert (plan.normalisation.low, plan.normalisation.high) == pytest.approx(np.percentile(values, (0.5, 99.5)))
    assert make_plan(report_of((60, 60, 60), (1, 1, 1))).normalisation.kind == "case"


def test_a_plan_survives_json(tiny):
    plan = make_plan(check_dataset(open_dataset(tiny)))
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    assert again.reasons == plan.reasons


def test_nothing_to_plan_is_refused(tiny):
    report = report_of((9, 9, 9), (1, 1, 1))
    with pytest.raises(MedContextError, match="No case"):
        make_plan(CheckReport(report.dataset, (), {}))


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
    "Task04_Hippocampus": (1, 2, (40, 56, 40)),
    "Sunnybrook_LV_png": (1, 1, None),
    "MouseBrain_FVB_NCrl_invivo": (1, 37, None),
    "MS_lesion_4ch": (4, 1, None),
}


@pytest.mark.parametrize("name", sorted(REAL))
def test_real_data_sets_plan_without_a_setting(real_scans, name):
    channels, labels, patch = REAL[name]
    plan = make_plan(check_dataset(open_dataset(real_scans / name)))
    assert plan.channels == channels
    assert len(plan.labels) == labels
    assert patch in (None, plan.patch)
    if name == "Sunnybrook_LV_png":
        assert plan.spacing == (8, 1.25, 1.25)
        assert plan.patch[0] <= 12
