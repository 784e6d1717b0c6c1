"""What can be set about a training. Every field is an option of the command line and a key of the YAML file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medcontext.data.augment_config import AugmentConfig
from medcontext.errors import MedContextError, require
from medcontext.method.presets import PRESETS, MethodConfig

Preset = Literal["medcontext", "paper", "official", "supervised"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]
OptimizerName = Literal["adamw", "sgd"]
Strategy = Literal["ddp", "fsdp"]
Keep = Literal["best", "last"]


@dataclass(frozen=True)
class TrainConfig:
    """A training. None: as plan, network or device suggest; the run folder says what it became."""

    preset: Preset = "medcontext"
    """The method: ``medcontext`` (the default), ``paper`` (as published), ``official`` (as the released code computes)
    or ``supervised`` (the baseline)."""

    method: MethodConfig | None = None
    """Every detail of the method; None: the preset's. A field that is set here goes before the preset's; in Python,
    start from the preset: ``dataclasses.replace(PRESETS["paper"], ratio=0.3)``."""

    network: str = "unet"
    """Name of the network ('medcontext networks' lists them), or your own as ``package.module:factory``."""

    network_settings: dict[str, Any] | None = None
    """Its size; what is not set here is chosen for the patch, the spacing and the device."""

    pretrained: Path | None = None
    """File of weights to begin with, such as a published encoder; what fits is loaded, and what became of each said."""

    pretrain_steps: int = 0
    """Steps of masked-image pre-training before the training: the network learns to paint hidden patches of the same
    scans, and begins with what it learned. Labels have a say in where a patch lies, as in the training, and in nothing
    else. 0: none."""

    spacing: tuple[float, float, float] | None = None
    """Voxel size (D, H, W) in mm that every case is resampled to, slice axis first; None: the plan's."""

    patch: tuple[int, int, int] | None = None
    """Patch (D, H, W) in voxels of the planned spacing, slice axis first; None: the plan's."""

    batch_size: int | None = None
    """Patches per step, of all devices together; None: the plan's."""

    unlabelled_batch: int = 0
    """Patches per step, beside those of ``batch_size``, of scans whose label is not read: training cases that
    ``few_shot`` leaves out, and training images that have none. The method learns from them through the consistency
    with its teacher alone, which takes 4 passes a patch (masked 3, teacher 1); pre-training as from the others."""

    max_steps: int | None = None
    """Optimiser steps; None: the plan's. The schedules are fitted to it."""

    max_time: str | None = None
    """Time for the whole training in place of steps, such as 8h, 90m or 1d 12h: steps are timed before it begins, and
    the schedules fitted to as many as fit."""

    patience: int | None = None
    """Stop after so many validations in a row without a better one; None: train to the end."""

    optimizer: OptimizerName = "adamw"
    """``adamw``, with warm-up and half a cosine, or ``sgd``, with Nesterov's momentum of 0.99 and polynomial decay, as
    nnU-Net trains."""

    learning_rate: float | None = None
    """The largest; None: the network's for AdamW, 0.01 for SGD."""

    weight_decay: float | None = None
    """What has one axis, as norms, most biases and mask tokens, is left out; None: 0.01 for AdamW, 0.00003 for SGD."""

    gradient_clip: float = 5.0
    """Largest norm of the gradient; longer ones are shortened to it."""

    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """How patches are varied."""

    seed: int = 0
    """Of the weights, the patches and the masks. The same seed gives the same run on the same hardware: to the
    bit on a CPU, or with ``deterministic``."""

    plan: Path | None = None
    """Plan file to train by, such as one that 'medcontext plan --json' wrote; None: a plan is made for the data."""

    split: Path | None = None
    """Split file to take train, validation and test cases from; None: drawn by ``split_seed``."""

    fold: int = 0
    """Which fold of the split file."""

    few_shot: int | None = None
    """Train on so many of the training cases only, whole patients; the subsets of one ``split_seed`` are nested."""

    split_seed: int = 0
    """Of the split; apart from ``seed``, so that runs of several seeds are tested on the same cases."""

    test_share: float = 0.2
    """Share of the cases held out to the end."""

    validation_share: float = 0.1
    """Share of the other cases that chooses the best checkpoint; 0 takes the last one."""

    patient: str | None = None
    """Regular expression for the patient in a case's name, so that no patient is on two sides of the split; None: as
    the data set says, else every case is a patient."""

    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``."""

    devices: int = 1
    """Devices of this machine (of each, where there are several) to share every batch; with ``cpu``, processes."""

    num_nodes: int = 1
    """Machines, on each of which the same command is started, by ``srun`` for example."""

    strategy: Strategy = "ddp"
    """What several processes share beside the batch: nothing (``ddp``), or also weights, teacher, gradients and
    optimiser (``fsdp``), of which each keeps its part: less memory, more communication."""

    precision: Precision = "auto"
    """``auto``: bf16 where the hardware has it, fp16 with a scaled loss on older CUDA devices, fp32 elsewhere."""

    max_bad_steps: int = 10
    """A step whose loss or gradient is not finite is skipped; so many in a row stop the run."""

    deterministic: bool = False
    """Only operations that give the same bits each time; slower on a GPU, and some networks have none there."""

    compile: bool = False
    """Compile the network (``torch.compile``), which takes minutes first; it is trained as it is where that fails."""

    log_every: int = 25
    """Steps between rows of metrics.jsonl; every fourth has the terms' shares of the gradient, where there are
    several terms; these cost about a step's backward passes."""

    validations: int = 8
    """How often the validation cases are predicted as a whole, spread evenly over the training."""

    keep: Keep = "best"
    """Which validation's network becomes the model: the ``best`` so far, or the ``last``. With a handful of validation
    cases the best is a matter of chance, and the last generally better."""

    quick_validations: int = 3
    """How often between two of them, on a few fixed patches of the same cases. Each costs 8 forward passes of a batch,
    where a training step of the default preset is 3, and none chooses the model; 0: never."""

    save_every: int = 100
    """Steps between checkpoints to resume from."""

    save_minutes: float = 15.0
    """Minutes after which one is written in any case."""

    workers: int = 1
    """Threads that prepare patches ahead; 0 prepares them when they are needed."""

    loggers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """What rows and pictures are also written for, beside JSON lines and CSV."""

    cache: Path | None = None
    """Folder of prepared cases, shared by all runs; None: ``~/.cache/medcontext``."""

    def __post_init__(self) -> None:
        for name in (
            "batch_size",
            "max_steps",
            "few_shot",
            "log_every",
            "validations",
            "save_every",
            "max_bad_steps",
            "patience",
            "devices",
            "num_nodes",
        ):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "a whole number, 1 or more")
        for name in ("patch", "spacing"):
            value = getattr(self, name)
            require(value is None or min(value) > 0, name, value, "three sizes (D, H, W) above 0")
        for name in (
            "seed",
            "split_seed",
            "fold",
            "workers",
            "weight_decay",
            "unlabelled_batch",
            "pretrain_steps",
            "quick_validations",
        ):
            value = getattr(self, name)
            require(value is None or value >= 0, name, value, "0 or more")
        fixed = self.pretrain_steps == 0 or self.max_time is None
        require(fixed, "pretrain_steps", self.pretrain_steps, "0 in a training that is given a time (max_time)")
        rate = self.learning_rate
        require(rate is None or rate > 0, "learning_rate", rate, "a number above 0")
        require(self.save_minutes > 0, "save_minutes", self.save_minutes, "a number above 0")
        require(self.gradient_clip > 0, "gradient_clip", self.gradient_clip, "a number above 0")
        for name in ("test_share", "validation_share"):
            require(
                0 <= getattr(self, name) < 1, name, getattr(self, name), "a share from 0 up to, and not including, 1"
            )

        if self.unlabelled_batch != self.compared_batch and not self.pretrain_steps:
            raise MedContextError(
                "Nothing would be learned from scans without a label.",
                found=f"unlabelled_batch = {self.unlabelled_batch} in supervised training, or at a consistency weight "
                "of 0",
                expected="a teacher that the student is compared with, or pretrain_steps",
                remedy="set method.consistency_weight to 1, set pretrain_steps, or leave unlabelled_batch out",
            )

    def method_config(self) -> MethodConfig:
        """The method in full."""
        return self.method or PRESETS[self.preset]

    @property
    def compared_batch(self) -> int:
        """Unlabelled patches in a step of the training itself: none where no teacher's opinion on them counts."""
        method = self.method_config() if self.unlabelled_batch else None
        return self.unlabelled_batch if method and method.active and method.consistency_weight > 0 else 0
