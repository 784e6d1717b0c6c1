"""Masked-image pre-training as a training of its own, from whose weights another one begins."""

from __future__ import annotations

import dataclasses

import numpy as np

from medcontext.data.plan import Plan
from medcontext.method.presets import PRESETS
from medcontext.method.pretraining import HIDING
from medcontext.training.config import TrainConfig


def pretraining_config(config: TrainConfig) -> TrainConfig:
    """Its settings, from those of the training that it precedes. Patches and masks are others than those there."""
    assert config.spacing is not None
    return dataclasses.replace(
        config,
        method=HIDING.for_spacing(config.spacing),
        max_steps=config.pretrain_steps,
        pretrain_steps=0,
        seed=int(np.random.default_rng([config.seed, 1]).integers(2**32)),
        validations=1,
        patience=None,
    )


def pretraining_outputs(plan: Plan) -> int:
    """Outputs of its network: the image's channels, but never as many as there are to segment, so that the last layer
    does not fit and the training begins with a fresh one."""
    return plan.channels + (plan.channels == plan.labels.outputs)


def of_equal_cost(config: TrainConfig, plan: Plan) -> tuple[TrainConfig, Plan]:
    """Supervised training whose steps take what a step of pre-training does: one pass there and back of all patches."""
    patches = plan.batch_size + config.unlabelled_batch
    supervised = dataclasses.replace(
        config, preset="supervised", method=PRESETS["supervised"], unlabelled_batch=0, pretrain_steps=0
    )
    return supervised, dataclasses.replace(plan, batch_size=patches)
