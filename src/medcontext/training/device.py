"""Which device and precision a training runs in, chosen from what is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medcontext.errors import MedContextError
from medcontext.training.config import Precision

FEW_SLICES = 4
"""Convolutions that see at most so many slices are tried before they are trusted with bf16."""


def choose_device(asked: str) -> str:
    """``auto`` becomes the fastest kind there is; anything else is checked.

    Raises:
        MedContextError: The device is not there.
    """
    there = ["cpu"]
    if torch.backends.mps.is_available():
        there.insert(0, "mps")
    there = [*(f"cuda:{index}" for index in range(torch.cuda.device_count())), *there]
    if asked == "auto":
        return there[0]
    if asked == "cuda" and there[0].startswith("cuda"):
        return there[0]
    if asked == "mps:0":  # as runs stored it once
        asked = "mps"
    if asked not in there:
        raise MedContextError("There is no such device here.", found=asked, expected=" or ".join(["auto", *there]))
    return asked


def choose_precision(asked: Precision, device: str) -> Precision:
    """``auto`` becomes bf16 where the hardware computes in it, fp16 on older CUDA devices, and fp32 elsewhere."""
    if asked != "auto":
        return asked
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device == "cpu" and _cpu_has_bf16() else "fp32"


def autocast(precision: Precision, kind: str) -> torch.autocast:
    """What the passes of a training run in, on a kind of device."""
    half = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(kind, half, enabled=precision in ("bf16", "fp16"))


def make_scaler(precision: Precision, kind: str) -> torch.amp.GradScaler:
    """Scales the loss so that fp16 holds small gradients (Micikevicius et al., ICLR 2018); idle in other precisions."""
    return torch.amp.GradScaler(kind, enabled=precision == "fp16")


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """While open, operations that may round differently from one time to the next are refused, if that is wanted."""
    if not wanted:
        yield
        return
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]


@torch.no_grad()
def bf16_gradients_hold(network: nn.Module, image: Tensor) -> bool:
    """Whether this machine computes the gradients of a network's smallest convolutions in bf16 as it does in float32.

    PyTorch 2.13 on CPUs with AVX512-BF16 does not: where 2 slices are left along the first axis, the gradient of a
    3x3x3 kernel reads memory that was never written. So the convolutions that see few slices are tried.

    Args:
        network: On the CPU.
        image: ``(B, C, D, H, W)`` that it takes.
    """
    seen: dict[tuple[Any, ...], tuple[nn.Conv3d, torch.Size]] = {}

    def note(module: nn.Conv3d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if inputs[0].shape[2] <= FEW_SLICES:
            key = (*module.weight.shape, *module.stride, *inputs[0].shape)
            seen[key] = module, inputs[0].shape

    hooks = [each.register_forward_hook(note) for each in network.modules() if isinstance(each, nn.Conv3d)]
    network(image)
    for hook in hooks:
        hook.remove()
    return all(_same_gradient(module, shape) for module, shape in seen.values())


@torch.enable_grad()
def _same_gradient(module: nn.Conv3d, shape: torch.Size) -> bool:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(shape, generator=generator)
    weight = torch.randn(module.weight.shape, generator=generator)
    gradients = []
    for kind in (torch.float32, torch.bfloat16):
        own = weight.to(kind).requires_grad_()
        out = nn.functional.conv3d(
            image.to(kind), own, None, module.stride, module.padding, module.dilation, module.groups
        )
        gradients.append(torch.autograd.grad(out.float().square().sum(), own)[0].float())
    exact, rough = gradients
    return bool(((exact - rough).abs() <= 0.1 * exact.abs().max()).all())


def _cpu_has_bf16() -> bool:
    """AVX512-BF16, AMX or the Arm extension; elsewhere PyTorch emulates bf16, slower than float32."""
    info = Path("/proc/cpuinfo")
    return (
        info.is_file() and re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", info.read_text(encoding="utf-8")) is not None
    )
