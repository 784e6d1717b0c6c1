"""Weights of other networks, as far as they fit, with every key accounted for."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from medcontext.errors import MedContextError
from medcontext.networks.pretrained import load_pretrained, read_weights, summary
from medcontext.networks.registry import build_network, network_spec

PATCH = (32, 32, 32)


def tiny(name, *, channels=1, classes=3, seed=0, **settings):
    chosen = network_spec(name).settings(PATCH, (1, 1, 1), "tiny") | settings
    return build_network(name, channels, classes, PATCH, chosen, seed)


def outcomes(rows):
    return {row.key: row.outcome for row in rows}


def as_self_supervised(network):
    """The layout of MONAI's ``model_swinvit.pt``: the encoder alone, wrapped, older names, heads of other tasks."""
    state = {}
    for key, value in network.swinViT.state_dict().items():
        key = key.replace("mlp.linear1", "mlp.fc1").replace("mlp.linear2", "mlp.fc2")
        state[f"module.{key}"] = value
    heads = {"module.norm.weight": torch.ones(96), "module.rotation_head.weight": torch.ones(4, 96)}
    return {"epoch": 100, "state_dict": state | heads, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}


def test_a_self_supervised_encoder_finds_its_place(tmp_path):
    teacher, network = tiny("swin_unetr", seed=1), tiny("swin_unetr", classes=5)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    torch.save(as_self_supervised(teacher), tmp_path / "model_swinvit.pt")
    rows = load_pretrained(network, tmp_path / "model_swinvit.pt", channels=1)
    found = outcomes(rows)
    after = network.state_dict()
    for key in after:
        encoder = key.startswith("swinViT.")
        assert found[key] == ("loaded" if encoder else "missing")
        assert torch.equal(after[key], teacher.state_dict()[key] if encoder else before[key])
    assert {key for key, outcome in found.items() if outcome == "unexpected"} == {
        "module.norm.weight",
        "module.rotation_head.weight",
    }
    why = next(row.why for row in rows if row.key == "swinViT.layers1.0.blocks.0.mlp.linear1.weight")
    assert why == ("same shape; from module.layers1.0.blocks.0.mlp.fc1.weight (without 'module.' and with 'swinViT.')")
    counts = Counter(found.values())
    assert summary(rows) == f"{counts['loaded']} loaded, {counts['missing']} missing, 2 unexpected"


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.network.", "student."])
def test_prefixes_come_off(prefix):
    teacher, network = tiny("segresnet", seed=1), tiny("segresnet")
    rows = load_pretrained(network, {prefix + key: value for key, value in teacher.state_dict().items()}, channels=1)
    assert set(outcomes(rows).values()) == {"loaded"}
    assert all((f"without '{prefix}'" in row.why) == bool(prefix) for row in rows)
    for own, given in zip(network.parameters(), teacher.parameters(), strict=True):
        assert torch.equal(own, given)


def test_other_classes_keep_their_classifier():
    teacher, network = tiny("unet", classes=14, seed=1), tiny("unet", classes=3)
    before = network.output_block.conv.conv.weight.clone()
    rows = load_pretrained(network, teacher.state_dict(), channels=1)
    skipped = {row.key: row.why for row in rows if row.outcome == "skipped"}
    assert skipped.keys() == {"output_block.conv.conv.weight", "output_block.conv.conv.bias"}
    assert "another number of outputs" in skipped["output_block.conv.conv.weight"]
    assert torch.equal(network.output_block.conv.conv.weight, before)
    assert {row.outcome for row in rows} == {"loaded", "skipped"}


@pytest.mark.parametrize("name", ["swin_unetr", "unetr", "unet", "resenc_unet", "mednext", "segresnet"])
@pytest.mark.parametrize(("old", "new", "repeated"), [(1, 5, [0] * 5), (3, 1, None), (3, 5, [0, 1, 2, 0, 1])])
def test_other_channels_are_repeated_and_keep_the_response(name, old, new, repeated):
    teacher = tiny(name, channels=old, classes=3, seed=1).eval()
    network = tiny(name, channels=new, classes=3).eval()
    rows = load_pretrained(network, teacher.state_dict(), channels=new)
    assert set(outcomes(rows).values()) == {"loaded", "adapted"}
    weights = [key for key, outcome in outcomes(rows).items() if outcome == "adapted"]
    for key in weights:
        given, got = teacher.state_dict()[key], network.state_dict()[key]
        expected = given.sum(1, keepdim=True) if repeated is None else given[:, repeated] * old / new
        torch.testing.assert_close(got, expected)
    if old == 1:
        image = torch.randn(2, 1, *PATCH)
        with torch.no_grad():
            assert torch.allclose(network(image.expand(-1, new, -1, -1, -1)), teacher(image), atol=1e-4)


def test_channels_can_be_left_aside():
    teacher, network = tiny("unetr", channels=1, seed=1), tiny("unetr", channels=2)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    rows = load_pretrained(network, teacher.state_dict(), channels=2, first="skip")
    skipped = [row for row in rows if row.outcome == "skipped"]
    assert skipped
    for row in skipped:
        assert "first='skip'" in row.why
        assert torch.equal(network.state_dict()[row.key], before[row.key])


def test_a_classifier_that_looks_like_a_first_layer_is_no_first_layer():
    """MedNeXt's is a transposed convolution, whose second axis is the classes."""
    rows = load_pretrained(tiny("mednext", classes=1), tiny("mednext", classes=4).state_dict(), channels=1)
    assert {row.key for row in rows if row.outcome == "skipped"} == {"out_0.conv_out.weight", "out_0.conv_out.bias"}


def test_deep_supervision_can_be_added_to_weights_without():
    network = tiny("unet", deep_supervision=True)
    found = outcomes(load_pretrained(network, tiny("unet", seed=1).state_dict(), channels=1))
    assert {key for key, outcome in found.items() if outcome != "loaded"} == {
        "heads.0.conv.conv.weight",
        "heads.0.conv.conv.bias",
    }


def test_nothing_that_fits_is_an_error_and_changes_nothing(tmp_path):
    network = tiny("segresnet")
    before = [p.clone() for p in network.parameters()]
    torch.save(nn.Linear(3, 4).state_dict(), tmp_path / "other.pt")
    with pytest.raises(MedContextError, match=r"None of these weights[\s\S]*other.pt[\s\S]*keys such as weight, bias"):
        load_pretrained(network, tmp_path / "other.pt", channels=1)
    assert all(torch.equal(own, then) for own, then in zip(network.parameters(), before, strict=True))


def test_one_of_several_state_dicts_is_named(tmp_path):
    file = tmp_path / "both.pt"
    student, teacher = ({"weight": torch.full((2,), value)} for value in (1.0, 2.0))
    torch.save({"student": student, "teacher": teacher, "step": 3}, file)
    with pytest.raises(MedContextError, match="student, teacher"):
        read_weights(file)
    assert torch.equal(read_weights(file, "teacher")["weight"], teacher["weight"])
    with pytest.raises(MedContextError, match="one named average"):
        read_weights(file, "average")


class Harmful:
    def __reduce__(self):
        return (pytest.fail, ("a file of weights ran code",))


def test_files_never_run_code_and_say_what_is_wrong(tmp_path):
    harmful, broken, empty = (tmp_path / name for name in ("harmful.pt", "broken.pt", "empty.pt"))
    torch.save({"state_dict": Harmful()}, harmful)
    broken.write_bytes(b"no weights")
    torch.save({"epoch": 3}, empty)
    for file, problem in [(harmful, "not opened"), (broken, "not opened"), (empty, "no state dict")]:
        with pytest.raises(MedContextError, match=problem):
            read_weights(file)
    with pytest.raises(MedContextError, match="no such file"):
        read_weights(tmp_path / "absent.pt")
