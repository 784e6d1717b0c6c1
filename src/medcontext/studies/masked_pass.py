"""One patch of a held-out case as a run's networks see it: whole, and masked as in the training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medcontext.data.case import Case
from medcontext.data.plan import Plan
from medcontext.data.prepare import Prepared, prepare_case
from medcontext.data.sampling import cut
from medcontext.data.scan import read_labels, read_scan
from medcontext.errors import MedContextError
from medcontext.evaluation.masked import MaskedPass
from medcontext.inference.model import load_tensors
from medcontext.method.diagnostics import hard_dice
from medcontext.method.masking import draw_mask, mask_grid, mask_to_voxels, volume_size
from medcontext.method.objective import MedContext
from medcontext.method.presets import MethodConfig
from medcontext.networks.registry import network_spec
from medcontext.training.run import RunFolder
from medcontext.training.setup import build
from medcontext.training.validate import membership

SEED = 0
"""Of the mask, so that runs of one mask and patch are shown with the same."""


def masked_pass(run: RunFolder, name: str, case: Case) -> MaskedPass | str | None:
    """Show a case to the networks of the run's last checkpoint, whole and masked, by the run's own settings.

    Args:
        run: Its folder.
        name: Of the case.
        case: A held-out one.

    Returns:
        What came of it; in words why there is nothing; None for a run without masks.

    Raises:
        MedContextError: The case can't be read.
    """
    config, plan = run.read_settings(), run.read_plan()
    if not config.method_config().masks:
        return None
    if not run.last.is_file():
        return f"The last checkpoint, {run.last.name}, is not in the run folder: there are no networks to show."
    spec = network_spec(config.network)
    method = MedContext(
        build(config, plan),
        config.method_config(),
        total_steps=plan.steps,
        channels=plan.channels,
        patch_embedding=spec.patch_embedding,
        positioned_embedding=spec.positioned_embedding,
        membership=membership(plan, "cpu"),
        ignoring=plan.labels.ignore is not None,
    )
    try:
        method.load_state_dict(load_tensors(run.last)["method"])
    except MedContextError as error:
        return f"The last checkpoint, {run.last.name}, can't be shown: {error.problem}"
    image, label = _patch(prepare_case(read_scan(*case.images), read_labels(case.label), plan), plan)
    return _look(method, plan, image, label, name, run.last.name)


def _patch(case: Prepared, plan: Plan) -> tuple[Tensor, Tensor]:
    """A patch of the plan's size around the middle of all that is labelled: ``(1, C, D, H, W)``, ``(1, D, H, W)``."""
    assert case.label is not None
    label = np.asarray(case.label)
    labelled = np.argwhere(label > 0)
    middle = labelled.mean(axis=0) if len(labelled) else np.array(label.shape) / 2
    start = [round(float(at) - length / 2) for at, length in zip(middle, plan.patch, strict=True)]
    image = cut(case.image, start, plan.patch, plan.normalisation.outside)
    return torch.from_numpy(image).float()[None], torch.from_numpy(cut(label, start, plan.patch, 0)).long()[None]


@torch.no_grad()
def _look(method: MedContext, plan: Plan, image: Tensor, label: Tensor, name: str, file: str) -> MaskedPass:
    """The passes, the Dice of each where the mask hides, and all of it turned to RAS+."""
    config, student, teacher = method.config, method.bare_student.eval(), method.teacher
    assert teacher is not None
    generator = torch.Generator().manual_seed(SEED)
    mask = draw_mask(config, 1, mask_grid(volume_size(image), config.hidden_patch), generator)
    noise = torch.randn(image.shape, generator=generator) if config.fill == "noise" else None
    given: list[Tensor] = []
    # What the network itself gets, whatever it is hidden by.
    with method.network.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0])):
        outputs = {"masked": student(image, mask, noise)}
    outputs |= {"student": student(image), "teacher": teacher.network(image)}
    finest = {key: each if isinstance(each, Tensor) else each[0] for key, each in outputs.items()}
    hidden = mask_to_voxels(mask, config.hidden_patch, volume_size(image))[:, 0]
    members = membership(plan, "cpu")
    dice = {key: float(hard_dice(each, label, hidden, members).nanmean()) for key, each in finest.items()}
    drawn = {key: _turned(_structures(each[0], members), plan) for key, each in finest.items()}
    d, h, w = plan.spacing
    x, y, z = (float(size) for size in _ras(plan, (d, h, w)))
    return MaskedPass(
        case=name,
        step=method.step,
        file=file,
        hiding=_hiding(config, student),
        image=_turned(image[0, 0].numpy(), plan),
        given=_turned(given[0][0, 0].numpy(), plan),
        hidden=_turned(hidden[0].numpy(), plan),
        truth=_turned(_truth(label[0], plan, members), plan),
        dice={key: None if math.isnan(value) else value for key, value in dice.items()},
        spacing=(x, y, z),
        **drawn,
    )


def _structures(logits: Tensor, members: Tensor | None) -> npt.NDArray[np.bool_]:
    """``(S, D, H, W)`` of outputs ``(K, D, H, W)``."""
    classes = torch.arange(1, len(logits))[:, None, None, None]
    chosen: npt.NDArray[np.bool_] = (logits > 0 if members is not None else logits.argmax(0) == classes).numpy()
    return chosen


def _truth(label: Tensor, plan: Plan, members: Tensor | None) -> npt.NDArray[np.bool_]:
    """``(S, D, H, W)``; voxels that nobody labelled belong to none."""
    indices = label.clamp_min(0)
    if members is not None:
        return np.asarray(members[:, indices].numpy())
    return np.asarray(indices.numpy() == np.arange(1, plan.labels.classes)[:, None, None, None])


def _ras(plan: Plan, values: tuple[float, float, float]) -> list[float]:
    """Of the axes (D, H, W), which run towards the patient's head, front or right, in the order of RAS."""
    return [values[plan.orientation.index(letter)] for letter in "RAS"]


def _turned(array: npt.NDArray[Any], plan: Plan) -> npt.NDArray[Any]:
    """The last three axes, (D, H, W), in the order of RAS."""
    before = array.ndim - 3
    order = [before + plan.orientation.index(letter) for letter in "RAS"]
    return array.transpose(*range(before), *order)


def _hiding(config: MethodConfig, student: nn.Module) -> str:
    """Which part is hidden, and how, in words."""
    size = " x ".join(str(length) for length in config.hidden_patch)
    where = {
        "voxels": f"at the input, {config.fill} in their place",
        "tokens": "as tokens of the network, which gets the scan itself unchanged",
        "both": f"at the input, {config.fill} in their place, and as tokens of the network",
    }[str(student.hides)]
    return f"{config.mask} mask of {size} voxels, {where}"
