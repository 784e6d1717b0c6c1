"""Whoever has only the export gets the labels of 'medcontext predict': by onnxruntime and numpy, and by MONAI alone."""

from __future__ import annotations

import ast
import json
import runpy
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medcontext.data.prepare import prepare_image
from medcontext.data.scan import read_scan
from medcontext.inference.export.description import describe
from medcontext.inference.export.exporter import export_model
from medcontext.inference.predictor import Predictor
from tests.conftest import write_nifti
from tests.exported import PLANS, RULES, label_map, make_plan, write_model, write_scan
from tests.test_train import NETWORK

EXAMPLE = Path(__file__).parents[1] / "examples" / "onnx_predict.py"

MANDATORY = {
    *("version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "task"),
    *("description", "authors", "copyright", "network_data_format"),
}
"""Keys that a bundle's metadata must have, by MONAI's specification."""

MANDATORY_OF_TENSORS = {
    *("type", "format", "modality", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data"),
    "channel_def",
}

SEEDS = range(2, 6)
"""Of scans in which these networks, whose weights are random, find something; the odd ones have an empty border."""


@pytest.fixture(scope="module")
def example() -> dict:
    return runpy.run_path(str(EXAMPLE))


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: write_model(folder / f"{name}.pt", make_plan(name), rules=RULES[name], **NETWORK) for name in PLANS}


@pytest.fixture(scope="module")
def exports(models, tmp_path_factory) -> dict[str, Path]:
    """As ONNX."""
    folder = tmp_path_factory.mktemp("onnx")
    for name, model in models.items():
        export_model(model, folder / name, "onnx")
    return {name: folder / name for name in models}


@pytest.fixture(scope="module")
def bundles(models, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    for name, model in models.items():
        export_model(model, folder / name, "monai-bundle")
    return {name: folder / name for name in models}


def agreement(found: Path, scan: Path, predictor: Predictor) -> float:
    """Share of the voxels with the predictor's label; the file lies over the scan, and has something to agree on."""
    expected, labels = predictor.labels_of(read_scan(scan)), label_map(found)
    assert labels.shape == expected.shape
    np.testing.assert_allclose(nib.load(found).affine, nib.load(scan).affine, atol=1e-5)
    counts = np.unique(expected, return_counts=True)[1]
    assert expected.size - counts.max() > 0.004 * expected.size
    return float((labels == expected).mean())


def test_the_example_knows_nothing_of_medcontext(example):
    tree = ast.parse(EXAMPLE.read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= {
        "numpy",
        "scipy",
        "nibabel",
        "onnxruntime",
        *sys.stdlib_module_names,
    }


@pytest.mark.parametrize("name", PLANS)
def test_onnxruntime_and_numpy_give_the_same_labels(name, models, exports, example, tmp_path):
    predictor, plain = Predictor.load(models[name]), Predictor.load(models[name], postprocess=False)
    changed = False
    for seed in SEEDS:
        scan = write_scan(tmp_path / f"{seed}.nii.gz", predictor.plan, seed, empty=seed % 2 == 1)
        changed |= not np.array_equal(predictor.labels_of(read_scan(scan)), plain.labels_of(read_scan(scan)))
        example["segment"](exports[name], scan, tmp_path / "out.nii.gz")
        assert agreement(tmp_path / "out.nii.gz", scan, predictor) > 0.9995
    assert changed is bool(RULES[name])


def test_a_channel_of_few_points_is_prepared_by_its_extremes(example, tmp_path):
    """Its percentiles are the same."""
    plan = make_plan("mri", spacing=(1.0, 1.0, 1.0))
    points = np.ones((20, 21, 22), np.float32)
    points[4:6, 7:9, 5] = 3
    scan = read_scan(write_nifti(tmp_path / "points.nii.gz", points, np.eye(4)))
    about = json.loads(json.dumps(describe(plan, ())))
    expected, _ = prepare_image(scan, plan)
    turned = nib.load(scan.path).as_reoriented(np.array([[2, 1], [1, 1], [0, 1]]))
    prepared, _ = example["prepare"](turned, about)
    np.testing.assert_allclose(prepared, expected, atol=1e-4)
    assert expected.max() > 10


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(sorted(PLANS)),
    seed=st.integers(0, 2**16),
    spacing=st.tuples(*[st.floats(0.5, 3)] * 3),
    empty=st.booleans(),
)
def test_preprocessing_json_prepares_any_scan_as_medcontext_does(name, seed, spacing, empty, tmp_path_factory, example):
    plan = make_plan(name, spacing=spacing)
    scan = write_scan(tmp_path_factory.getbasetemp() / "any.nii.gz", plan, seed, empty=empty)
    about = json.loads(json.dumps(describe(plan, ())))
    source = nib.load(scan)
    axes = nib.orientations.axcodes2ornt(about["orientation"])
    turned = source.as_reoriented(nib.orientations.ornt_transform(nib.orientations.io_orientation(source.affine), axes))
    expected, _ = prepare_image(read_scan(scan), plan)
    prepared, box = example["prepare"](turned, about)
    np.testing.assert_allclose(prepared, expected, atol=1e-5 * np.abs(expected).max())
    assert (turned.shape[:3] != tuple(side.stop - side.start for side in box)) is empty


def test_the_example_runs_from_the_command_line(models, exports, tmp_path):
    predictor = Predictor.load(models["ct"])
    scan = write_scan(tmp_path / "scan.nii.gz", predictor.plan, 1)
    subprocess.run([sys.executable, EXAMPLE, exports["ct"], scan, tmp_path / "out.nii.gz"], check=True)
    assert agreement(tmp_path / "out.nii.gz", scan, predictor) > 0.9995


@pytest.mark.filterwarnings("ignore")  # of MONAI, about parts of its own
@pytest.mark.parametrize("name", PLANS)
def test_monai_gives_the_same_labels(name, models, bundles):
    from monai.bundle import run, verify_net_in_out

    predictor, bundle = Predictor.load(models[name]), bundles[name]
    scans = [
        write_scan(bundle / "scans" / f"{seed}.nii.gz", predictor.plan, seed, empty=seed % 2 == 1) for seed in SEEDS
    ]
    config, root = str(bundle / "configs" / "inference.json"), str(bundle)
    verify_net_in_out("network_def", str(bundle / "configs" / "metadata.json"), config, bundle_root=root)
    run(config_file=config, bundle_root=root)
    for scan in scans:
        assert agreement(bundle / "eval" / scan.name, scan, predictor) > 0.999


@pytest.mark.filterwarnings("ignore")
def test_real_scans_get_the_same_labels_by_both(models, exports, bundles, example, real_scans, tmp_path):
    from monai.bundle import run

    predictor, bundle = Predictor.load(models["mri"]), bundles["mri"]
    scans = sorted((real_scans / "Task04_Hippocampus" / "imagesTr").glob("hippocampus_00*.nii.gz"))[:3]
    assert len(scans) == 3
    config, folders = str(bundle / "configs" / "inference.json"), {"output_dir": str(tmp_path / "by_monai")}
    run(config_file=config, bundle_root=str(bundle), datalist=[str(scan) for scan in scans], **folders)
    for scan in scans:
        example["segment"](exports["mri"], scan, tmp_path / "out.nii.gz")
        assert agreement(tmp_path / "out.nii.gz", scan, predictor) > 0.9995
        assert agreement(tmp_path / "by_monai" / scan.name, scan, predictor) > 0.999


def test_the_bundle_runs_from_the_command_line(models, bundles, tmp_path):
    predictor = Predictor.load(models["mri"])
    scan = write_scan(tmp_path / "scans" / "one.nii.gz", predictor.plan, 2)
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]
    folders = ["--dataset_dir", tmp_path / "scans", "--output_dir", tmp_path / "out"]
    subprocess.run([*command, *folders], check=True, cwd=bundles["mri"], capture_output=True)
    assert agreement(tmp_path / "out" / "one.nii.gz", scan, predictor) > 0.999


@pytest.mark.parametrize("name", PLANS)
def test_the_bundle_is_one_by_monais_rules(name, bundles):
    from monai.bundle.properties import InferProperties

    bundle, plan = bundles[name], make_plan(name)
    for file in ("LICENSE", "configs/metadata.json", "models/model.pt", "models/model.ts", "docs/README.md"):
        assert (bundle / file).is_file(), file
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert metadata.keys() >= MANDATORY
    settings = json.loads((bundle / "configs" / "inference.json").read_text())
    assert settings.keys() >= {each["id"] for each in InferProperties.values() if each["required"]}
    image, pred = metadata["network_data_format"]["inputs"]["image"], metadata["network_data_format"]["outputs"]["pred"]
    assert image.keys() >= MANDATORY_OF_TENSORS
    assert pred.keys() >= MANDATORY_OF_TENSORS
    assert (image["num_channels"], image["spatial_shape"]) == (plan.channels, list(plan.patch))
    assert pred["num_channels"] == len(pred["channel_def"]) == plan.labels.outputs
    assert "medcontext" not in str(settings)
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    with pytest.deprecated_call():
        network = torch.jit.load(bundle / "models" / "model.ts")
    found = network.state_dict()
    assert weights.keys() == found.keys()
    assert all(torch.equal(weights[key], found[key]) for key in weights)
