"""Which device and precision a training runs in, chosen from what is there."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from medcontext.errors import MedContextError
from medcontext.training.config import Precision


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
    if asked not in there:
        raise MedContextError("There is no such device here.", found=asked, expected=" or ".join(["auto", *there]))
    return asked


def choose_precision(asked: Precision, device: str) -> Precision:
    """``auto`` becomes bf16 where the hardware computes in it, and fp32 elsewhere."""
    if asked != "auto":
        return asked
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device == "cpu" and _cpu_has_bf16() else "fp32"


def make_fabric(device: str, precision: Precision) -> Fabric:
    """Lightning Fabric on one device, with autocast to bf16 or none."""
    # Its announcement of the precision is made by the training itself, beside the device.
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)
    kind, _, index = device.partition(":")
    devices: Any = [int(index)] if kind == "cuda" else 1
    return Fabric(accelerator=kind, devices=devices, precision="bf16-mixed" if precision == "bf16" else "32-true")


def _cpu_has_bf16() -> bool:
    """AVX512-BF16, AMX or the Arm extension; elsewhere PyTorch emulates bf16, slower than float32."""
    info = Path("/proc/cpuinfo")
    return (
        info.is_file() and re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", info.read_text(encoding="utf-8")) is not None
    )
