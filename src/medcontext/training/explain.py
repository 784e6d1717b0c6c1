"""What goes wrong within PyTorch and can be mended, said so that it can."""

from __future__ import annotations

from medcontext.errors import MedContextError
from medcontext.memory import ran_out
from medcontext.training.state import Training


def explained(error: Exception, training: Training) -> MedContextError | None:
    """The error as the user needs it: memory that did not suffice, an operation that can't be repeated to the bit.
    None: it is another."""
    text, config = str(error), training.config
    where = f"in step {training.step + 1} on {training.device}"
    if ran_out(error):
        return MedContextError(
            "There is too little memory for this training.",
            file=training.run.path,
            found=f"{where}: {text.splitlines()[0] if text else 'out of memory'}",
            expected=f"what {config.batch_size} patches of {list(training.plan.patch)} take",
            remedy="end other programs on this device and go on with --resume; or start a run with a smaller patch "
            "(--patch), fewer patches per step (--batch-size), a smaller network, or in bf16 (--precision)",
        )
    if "does not have a deterministic implementation" in text:
        return MedContextError(
            "This network can't be trained deterministically on this device.",
            file=training.run.path,
            found=text.splitlines()[0],
            remedy="leave deterministic out: runs then agree to rounding; or take another network, or the CPU",
        )
    if "CUBLAS_WORKSPACE_CONFIG" in text:
        return MedContextError(
            "CUDA was used in this process before a deterministic training was asked for.",
            file=training.run.path,
            found=text.splitlines()[0],
            remedy="set CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment before Python starts",
        )
    return None
