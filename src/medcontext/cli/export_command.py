"""``medcontext export``. The signature is the command line, as in :mod:`.commands`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def export(
    model: Path,
    out: Path,
    format: Literal["onnx", "torch-export", "torchscript", "monai-bundle"] = "onnx",  # noqa: A002
    replace: bool = False,
    network: str | None = None,
) -> int:
    """Write a trained network for people without medcontext: ONNX, PyTorch's formats, or a MONAI bundle.

    Args:
        model: Run folder, or a model file.
        out: Folder to make: the network, preprocessing.json, and how to use both in words.
        format: Of the network; the file is run in it and compared with the network before anything is kept.
        replace: Remove the export that is there.
        network: Your own network, package.module:factory, if the model was trained with it.
    """
    from medcontext.inference.export.exporter import export_model
    from medcontext.inference.export.parity import Parity
    from medcontext.networks.registry import network_spec

    if network is not None:
        network_spec(network, allow_import=True)
    about = export_model(model, out, format, replace=replace)
    file = out / about["network"]["file"]
    batch = "any number of windows" if about["network"]["batch"] is None else "one window"
    print(f"{file}: {file.stat().st_size / 1e6:,.1f} MB, {batch} at once")
    print(f"against the network it was made of: {Parity(**about['parity'])}")
    print(f"how to use it: {next(out.rglob('README*'))}")
    return 0
