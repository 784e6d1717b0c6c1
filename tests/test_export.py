"""Exported files give the network's logits in their own runtime, say nothing of this machine, and cost no file."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import get_args
from uuid import uuid4

import numpy as np
import pytest
import torch

from medcontext.cli.main import main
from medcontext.errors import MedContextError
from medcontext.inference.export import exporter, formats
from medcontext.inference.export.exporter import export_model
from medcontext.inference.export.formats import FORMATS, FormatName
from medcontext.inference.export.parity import compare
from medcontext.inference.model import load_model
from medcontext.networks.registry import NETWORKS, network_spec
from medcontext.training.config import TrainConfig
from medcontext.training.train import train
from tests.exported import PATCH, make_plan, write_model
from tests.test_train import SECONDS

NAMES = get_args(FormatName)

OWN = """
import torch
from torch import nn

class Own(nn.Module):
    def __init__(self, channels, classes, patch):
        super().__init__()
        self.conv = nn.Conv3d(channels, classes, 1)

class Noise(Own):
    def forward(self, image):
        return self.conv(image + torch.rand_like(image))

class One(Own):
    def forward(self, image):
        if image.shape[0] != 1:
            raise ValueError("one at a time")
        return self.conv(image)

class Looks(Own):
    def forward(self, image):
        return self.conv(image) if image.mean() > 0 else self.conv(-image)

class NotFinite(Own):
    def forward(self, image):
        return self.conv(image) / 0
"""


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> Path:
    """A run folder of a small training, with heads of deep supervision."""
    settings = SECONDS | {"network_settings": SECONDS["network_settings"] | {"deep_supervision": True}}
    folder = tmp_path_factory.mktemp("runs")
    return train(tiny, folder / "run", TrainConfig(cache=folder / "cache", **settings))


@pytest.fixture(scope="module")
def exports(run, tmp_path_factory) -> Path:
    """Of that run, in every format."""
    folder = tmp_path_factory.mktemp("exports")
    for name in NAMES:
        export_model(run, folder / name, name)
    return folder


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Models of networks that cause trouble, by their name."""
    module = f"own_{uuid4().hex}"
    (tmp_path / f"{module}.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)

    def model(name: str) -> Path:
        network_spec(f"{module}:{name}", allow_import=True)
        return write_model(tmp_path / f"{name}.pt", make_plan("mri"), f"{module}:{name}")

    return model


def by_its_own_runtime(folder: Path, images: torch.Tensor) -> torch.Tensor:
    about = json.loads((folder / "preprocessing.json").read_text())
    file = folder / about["network"]["file"]
    if file.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(file)
        (logits,) = session.run([about["network"]["output"]], {about["network"]["input"]: images.numpy()})
        return torch.from_numpy(logits)
    if file.suffix == ".pt2":
        return torch.export.load(file).module()(images)
    with pytest.deprecated_call():
        return torch.jit.load(file)(images)


@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_windows_get_the_finest_logits_of_the_best_model(run, exports, name):
    network = load_model(run).network
    for batch in (1, 3):
        images = 2 * torch.randn(batch, 1, *PATCH, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            heads = network(images)
            assert isinstance(heads, list)
            torch.testing.assert_close(by_its_own_runtime(exports / name, images), heads[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_compared_is_recorded(exports, name):
    about = json.loads((exports / name / "preprocessing.json").read_text())
    assert about["network"]["batch"] is None
    assert about["parity"]["voxels"] == 2 * np.prod(PATCH)
    assert about["parity"]["label_agreement"] > 0.999
    assert 0 <= about["parity"]["largest_difference"] < 1e-4 * about["parity"]["largest_logit"]
    assert about["model"]["network"] == "unet"


@pytest.mark.parametrize("name", NAMES)
def test_the_words_have_the_numbers(exports, name):
    text = next(file for file in (exports / name).rglob("README*")).read_text()
    about = json.loads((exports / name / "preprocessing.json").read_text())
    for words in (
        "low, written as 1",
        "high, written as 2",
        "16 x 16 x 16",
        "99.5th percentile",
        "not a medical device",
    ):
        assert words in text
    assert about["orientation"] in text
    assert "monai.bundle run" in text if name == "monai-bundle" else about["network"]["file"] in text
    assert all(len(line) <= 110 for line in text.splitlines())


@pytest.mark.parametrize("name", NAMES)
def test_no_path_of_this_machine_is_passed_on(exports, name):
    texts = []
    for file in (path for path in (exports / name).rglob("*") if path.is_file()):
        texts.append(file.read_bytes())
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                texts += [archive.read(entry) for entry in archive.namelist()]
    assert len(texts) > 2
    for place in (Path(torch.__file__).parents[1], Path(exporter.__file__).parents[2], exports):
        assert not any(str(place).encode() in text for text in texts), place


@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_every_network_is_traced_for_any_device(network, tmp_path):
    plan = make_plan("regions", patch=(32, 32, 32))
    model = write_model(tmp_path / "model.pt", plan, network)
    about = export_model(model, tmp_path / "out", "torchscript")
    assert about["network"]["batch"] is None
    with pytest.deprecated_call():
        traced = torch.jit.load(tmp_path / "out" / "model.ts")
    assert 'Device = prim::Constant[value="cpu"]' not in str(traced.inlined_graph)


SHIFTED = {"depths": [2, 2, 2, 2], "window": 4, "norm": "instance"}
"""Of the smallest Swin UNETR no block has shifted windows."""


def test_shifted_windows_are_traced_for_any_device(tmp_path):
    plan = make_plan("regions", patch=(32, 32, 64))
    model = write_model(tmp_path / "model.pt", plan, "swin_unetr", **SHIFTED)
    export_model(model, tmp_path / "out", "torchscript")
    with pytest.deprecated_call():
        traced = torch.jit.load(tmp_path / "out" / "model.ts")
    assert 'Device = prim::Constant[value="cpu"]' not in str(traced.inlined_graph)


@pytest.mark.parametrize(("network", "settings"), [("unet", {}), ("swin_unetr", SHIFTED)])
def test_a_torch_export_asks_for_no_device(network, settings, tmp_path):
    plan = make_plan("regions", patch=(32, 32, 64))
    model = write_model(tmp_path / "model.pt", plan, network, **settings)
    export_model(model, tmp_path / "out", "torch-export")
    program = torch.export.load(tmp_path / "out" / "model.pt2")
    assert not [node for node in program.graph.nodes if node.kwargs.get("device") is not None]


def test_a_transformer_becomes_onnx(tmp_path):
    """One stands for all: this takes long. ``python -m benchmarks.export`` tries every network in every format."""
    model = write_model(tmp_path / "model.pt", make_plan("ct", patch=(32, 32, 32)), "unetr")
    about = export_model(model, tmp_path / "out", "onnx")
    assert about["network"]["batch"] is None
    assert about["parity"]["label_agreement"] > 0.999


def test_a_network_that_takes_one_window_is_written_for_one(own, tmp_path):
    about = export_model(own("One"), tmp_path / "out", "torch-export")
    assert about["network"]["batch"] == 1
    assert "one window of a scan at once" in (tmp_path / "out" / "README.txt").read_text()


@pytest.mark.parametrize(
    ("name", "form", "problem"),
    [
        ("Looks", "torch-export", r"can't be exported as 'torch-export'[\s\S]*--format onnx or torchscript"),
        ("Noise", "torchscript", r"gives other logits[\s\S]*largest difference"),
        ("NotFinite", "torchscript", r"gives other logits[\s\S]*largest difference inf"),
    ],
)
def test_what_can_not_be_exported_is_said_and_leaves_nothing(own, tmp_path, name, form, problem):
    model = own(name)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(MedContextError, match=problem):
        export_model(model, tmp_path / "out", form)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == [
        name for name in before if name != "__pycache__"
    ]


def test_parity_is_of_logits_and_of_labels():
    def network(patch):
        return torch.cat([patch, torch.zeros_like(patch)], dim=1)

    patches = torch.arange(-64, 64).reshape(2, 1, 4, 4, 4) / 64
    same = compare(network, network, patches, regions=False)
    assert same.holds
    assert (same.largest_difference, same.label_agreement, same.voxels) == (0, 1, 128)
    assert same.largest_logit == 1
    shifted = compare(network, lambda patch: network(patch) + 0.25, patches, regions=False)
    assert (shifted.largest_difference, shifted.label_agreement, shifted.holds) == (0.25, 1, False)
    other = compare(network, lambda patch: network(patch).flip(1), patches, regions=False)
    assert other.label_agreement == 1 / 128  # where both logits are 0
    # Of the 128 first outputs the 16 between -0.25 and 0 are now above 0, and the 128 others, which were 0.
    region = compare(network, lambda patch: network(patch) + 0.25, patches, regions=True)
    assert region.label_agreement == pytest.approx((256 - 16 - 128) / 256)
    assert not compare(network, lambda patch: network(patch) * torch.nan, patches, regions=False).holds


@pytest.mark.parametrize("name", NAMES)
def test_a_format_without_its_packages_names_the_command(run, tmp_path, monkeypatch, name):
    monkeypatch.setattr(formats, "find_spec", lambda package: None)
    if not FORMATS[name].packages:
        assert export_model(run, tmp_path / "out", name)
        return
    with pytest.raises(
        MedContextError, match=r"no onnx, onnxscript, onnxruntime[\s\S]*pip install 'medcontext\[export\]'"
    ):
        export_model(run, tmp_path / "out", name)
    assert not (tmp_path / "out").exists()


def test_only_an_export_is_written_over_and_only_when_asked_to(run, tmp_path):
    out = tmp_path / "out"
    export_model(run, out, "monai-bundle")
    with pytest.raises(MedContextError, match="--replace"):
        export_model(run, out, "torch-export")
    (out / "scans").mkdir()
    (out / "scans" / "one.nii.gz").touch()
    with pytest.raises(MedContextError, match=r"left alone[\s\S]*found: one.nii.gz\n"):
        export_model(run, out, "torch-export", replace=True)
    assert (out / "models" / "model.ts").is_file()
    shutil.rmtree(out / "scans")
    export_model(run, out, "torch-export", replace=True)
    assert sorted(path.name for path in out.iterdir()) == ["README.txt", "model.pt2", "preprocessing.json"]
    (tmp_path / "empty").mkdir()
    export_model(run, tmp_path / "empty", "torchscript")
    for name, make in {"file": Path.touch, "folder": lambda path: (path / "scans").mkdir(parents=True)}.items():
        make(tmp_path / name)
        with pytest.raises(MedContextError, match="left alone"):
            export_model(run, tmp_path / name, "torchscript", replace=True)
    with pytest.raises(MedContextError, match="left alone"):
        export_model(run, run, "torchscript", replace=True)
    assert (run / "best.pt").is_file()


def test_an_export_that_fails_leaves_the_one_before_it(run, own, tmp_path):
    export_model(run, tmp_path / "out", "torchscript")
    whole = (tmp_path / "out" / "model.ts").read_bytes()
    with pytest.raises(MedContextError, match="other logits"):
        export_model(own("Noise"), tmp_path / "out", "torchscript", replace=True)
    assert (tmp_path / "out" / "model.ts").read_bytes() == whole


def test_too_little_room_is_said_before_the_work(run, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(MedContextError, match="no room"):
        export_model(run, tmp_path / "deep" / "er" / "out", "torchscript")
    assert not (tmp_path / "deep").exists()


def test_a_pickle_in_place_of_a_model_is_not_opened(tmp_path):
    class Harm:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harm",))

    (tmp_path / "model.pt").write_bytes(pickle.dumps({"weights": Harm()}, protocol=2))
    with pytest.raises(MedContextError, match="was not opened"):
        export_model(tmp_path / "model.pt", tmp_path / "out", "torchscript")
    assert not (tmp_path / "harm").exists()
    assert not (tmp_path / "out").exists()


def test_the_command(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["export", str(run), str(tmp_path / "out"), "--format", "torch-export"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "out/model.pt2: " in said
    assert "largest difference 0.0e+00" in said
    with pytest.raises(SystemExit) as end:
        main(["export", str(run), str(tmp_path / "out"), "--format", "torch-export"])
    assert end.value.code == 1
    assert "--replace" in capsys.readouterr().err
