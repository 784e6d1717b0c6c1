"""What a training is asked for reaches what it is made of."""

from __future__ import annotations

import math
from copy import deepcopy
from unittest.mock import Mock

from medcontext.data.augment_config import AugmentConfig
from medcontext.data.sampling import PatchBatches
from medcontext.inference.model import load_model
from medcontext.method.objective import MedContext
from medcontext.networks.registry import network_spec
from medcontext.training.config import TrainConfig
from medcontext.training.run import RunFolder
from medcontext.training.schedule import make_optimizer
from medcontext.training.train import train
from tests.test_train import SECONDS


def test_settings_reach_batches_method_optimiser_and_model(tiny, tmp_path, monkeypatch):
    """Each is one that neither a default nor another network would give."""
    spied = {each.__name__: Mock(wraps=each) for each in (PatchBatches, MedContext, make_optimizer)}
    for name, spy in spied.items():
        monkeypatch.setattr(f"medcontext.training.train.{name}", spy)
    converted = Mock(side_effect=lambda _, network: deepcopy(network))
    monkeypatch.setattr("medcontext.training.train.whole_batch_norm", converted)
    spec, patch = network_spec("unetr"), (32, 32, 32)
    augment = AugmentConfig(noise_probability=0.7, mirror_axes=(1,))
    asked = {
        "network": "unetr",
        "network_settings": spec.settings(patch, (1.0, 1.0, 1.0), "tiny"),
        "patch": patch,
        "batch_size": 2,
        "max_steps": 1,
        "validations": 1,
        "loggers": (),
        "augment": augment,
        "weight_decay": 0.3,
        "seed": 7,
    }
    run = RunFolder(train(tiny, tmp_path / "run", TrainConfig(cache=tmp_path / "cache", **SECONDS | asked)))
    batches, method, optimizer = (spy.call_args for spy in spied.values())
    assert method.args[0] is not converted.call_args.args[1]
    assert batches.args[2:5] == (augment, 7, 1)
    assert optimizer.args[1:] == ("adamw", 0.3)
    per_epoch = math.ceil(len(run.read_split().train) / 2)
    assert per_epoch > 1
    paths = ("vit.patch_embedding.patch_embeddings", "vit.patch_embedding")
    names = ("steps_per_epoch", "patch_embedding", "positioned_embedding", "total_steps")
    assert [method.kwargs[name] for name in names] == [per_epoch, *paths, 1]
    about = load_model(run.path).about
    assert (about["network"], about["settings"], about["mirror_axes"]) == ("unetr", asked["network_settings"], [1])
