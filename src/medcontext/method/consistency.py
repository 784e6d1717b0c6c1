"""How the masked student is compared with the teacher. All in float32, whatever precision the passes ran in."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from medcontext.method.presets import ConsistencyForm


def consistency(form: ConsistencyForm, student: Tensor, teacher: Tensor) -> Tensor:
    """Compare the logits of the masked student with the teacher's.

    Args:
        form: ``paper``: ``MSE(z_m, z_t) / ||z_t||_2``, the norm over the whole batch as in the paper's formula.
            ``kl``: ``KL(softmax(z_t) || softmax(z_m))``, summed over classes and averaged over voxels.
        student: ``(B, K, D, H, W)`` logits of the masked pass.
        teacher: The same shape, without gradient.

    Returns:
        A scalar.
    """
    student, teacher = student.float(), teacher.detach().float()
    if form == "paper":
        error: Tensor = F.mse_loss(student, teacher) / teacher.norm().clamp_min(1e-12)
        return error
    target, prediction = F.log_softmax(teacher, dim=1), F.log_softmax(student, dim=1)
    divergence: Tensor = (target.exp() * (target - prediction)).sum(dim=1).mean()
    return divergence
