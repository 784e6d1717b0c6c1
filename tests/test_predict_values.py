"""Probabilities and entropy beside the label maps, and models that are averaged."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy.special import entr, softmax

from medcontext.errors import MedContextError
from medcontext.files import read_json
from medcontext.inference.predict import predict_files
from medcontext.inference.predictor import Predictor
from medcontext.inference.scans import RECORD, find_scans
from tests.predicting import NETWORK, write_model, write_scans
from tests.test_cli import run


@pytest.fixture
def scans(tmp_path):
    write_scans(tmp_path / "scans", count=3)
    return tmp_path / "scans"


def test_probabilities_and_entropy_are_those_of_the_logits_in_the_place_of_the_scan(scans, tmp_path):
    predictor, out = Predictor.load(write_model(tmp_path / "run")), tmp_path / "out"
    predict_files(predictor, find_scans(scans), out, probabilities=True, entropy=True)
    for file in scans.iterdir():
        image = nib.load(file)
        voxels = np.asarray(image.dataobj, dtype=np.float64)
        expected = softmax(np.stack([0 * voxels, voxels - 25, 2 * voxels - 100], axis=-1), axis=-1)
        probabilities, entropy = (nib.load(out / name / file.name) for name in ("probabilities", "entropy"))
        assert np.allclose(probabilities.get_fdata(), expected, atol=1e-3)
        assert np.allclose(entropy.get_fdata(), entr(expected).sum(-1), atol=1e-3)
        assert np.array_equal(probabilities.affine, image.affine)
        labels = np.array([0, 3, 8])[probabilities.get_fdata().argmax(-1)]
        assert np.array_equal(nib.load(out / file.name).dataobj, labels)


def test_what_is_gone_beside_a_label_map_is_made_again(scans, tmp_path):
    predictor, out = Predictor.load(write_model(tmp_path / "run")), tmp_path / "out"
    predict_files(predictor, find_scans(scans), out, probabilities=True, entropy=True)
    gone = [out / "probabilities" / "scan_0.nii.gz", out / "entropy" / "scan_2.nii.gz"]
    before = [file.read_bytes() for file in gone]
    for file in gone:
        file.unlink()
    outcome = predict_files(predictor, find_scans(scans), out, probabilities=True, entropy=True)
    assert (outcome.written, outcome.there) == (["scan_0", "scan_2"], ["scan_1"])
    assert [file.read_bytes() for file in gone] == before


def test_what_was_not_asked_for_is_not_written_and_asking_later_is_refused(scans, tmp_path):
    predictor, out = Predictor.load(write_model(tmp_path / "run")), tmp_path / "out"
    predict_files(predictor, find_scans(scans), out)
    assert not (out / "probabilities").exists()
    assert not (out / "entropy").exists()
    with pytest.raises(MedContextError, match="probabilities: False before, True now"):
        predict_files(predictor, find_scans(scans), out, probabilities=True)
    outcome = predict_files(predictor, find_scans(scans), out, probabilities=True, replace=True)
    assert len(outcome.written) == len(list((out / "probabilities").iterdir())) == 3


def test_folds_are_averaged_and_what_is_mirrored_is_said(scans, tmp_path):
    paths = [write_model(tmp_path / "runs" / f"fold-{k}", {"mirror_axes": [2]}) for k in range(2)]
    one, both = Predictor.load(paths[0], mirror=True), Predictor.load(tmp_path / "runs")
    assert one.options["mirrored_axes"] == [2]
    assert len(both.files) == 2
    voxels = nib.load(next(scans.iterdir()))
    alone = Predictor.load(paths[0])(voxels.get_fdata(), voxels.affine)
    for each in (one, both):
        assert np.array_equal(each(voxels.get_fdata(), voxels.affine), alone)
    for about, said in (({"mirror_axes": []}, "without any"), ({}, "doesn't say")):
        with pytest.raises(MedContextError, match=said):
            Predictor.load(write_model(tmp_path / "other", about), mirror=True)


@pytest.mark.parametrize(("asked", "axes"), [([], []), (["--mirror"], [0, 2])])
def test_the_command_mirrors_where_it_is_asked_to(asked, axes, scans, tmp_path):
    model = write_model(tmp_path / "run", {"mirror_axes": [0, 2]})
    assert run("predict", model, scans, tmp_path / "out", "--network", NETWORK, "--device", "cpu", *asked) == 0
    assert read_json(tmp_path / "out" / RECORD)["made_by"]["mirrored_axes"] == axes
