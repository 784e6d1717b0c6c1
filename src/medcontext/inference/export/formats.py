"""The file formats that a network can be exported to: how each is written, and how its own runtime reads it back."""

from __future__ import annotations

import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medcontext.errors import MedContextError

FormatName = Literal["onnx", "torch-export", "torchscript", "monai-bundle"]

INPUT, OUTPUT = "image", "logits"
"""Names of a network's input and output, in the formats that give them names."""

Exported = Callable[[Tensor], Tensor]
"""An exported network as its runtime runs it: images ``(B, C, D, H, W)`` to logits ``(B, K, D, H, W)``."""


@dataclass(frozen=True)
class Format:
    """A way to write a network.

    Attributes:
        file: Where in the export's folder.
        packages: What writing and checking it takes beside PyTorch; the extra ``export`` has them.
        write: ``(network, example, any_batch, path)``: write the network, for images like the example ``(B, C, D, H,
            W)``; of any number B, or of this one.
        load: What was written, as its runtime runs it on the CPU.
    """

    file: str
    packages: tuple[str, ...]
    write: Callable[[nn.Module, Tensor, bool, Path], None]
    load: Callable[[Path], Exported]


class FinestHead(nn.Module):
    """A network without its heads of deep supervision: one tensor of logits, the finest."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        outputs = self.network(image)
        logits: Tensor = outputs if isinstance(outputs, Tensor) else outputs[0]
        return logits.float()


def require_packages(name: FormatName) -> None:
    """Refuse a format whose packages are not installed.

    Raises:
        MedContextError: One is missing.
    """
    missing = [package for package in FORMATS[name].packages if find_spec(package) is None]
    if missing:
        raise MedContextError(
            f"The format '{name}' needs packages that are not installed.",
            found=f"no {', '.join(missing)}",
            remedy="pip install 'medcontext[export]'",
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters say to their developers: deprecations, shapes that they take as given, absent packages.

    Whether the export is right is measured, not read off their warnings.
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _write_onnx(network: nn.Module, example: Tensor, any_batch: bool, path: Path) -> None:
    program: Any = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        dynamic_shapes=({0: "batch"},) if any_batch else None,
        input_names=[INPUT],
        output_names=[OUTPUT],
        verbose=False,
    )
    for node in program.model.graph:
        node.metadata_props.clear()  # paths on this machine, from where the node came
    program.save(path, external_data=False)


def _load_onnx(path: Path) -> Exported:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def _write_torch_export(network: nn.Module, example: Tensor, any_batch: bool, path: Path) -> None:
    batch = {0: torch.export.Dim("batch", min=1)}
    program = torch.export.export(network, (example,), dynamic_shapes=(batch,) if any_batch else None)
    for node in list(program.graph.nodes):
        node.meta.pop("stack_trace", None)  # paths on this machine
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            # Casts come with a check of the device that they were exported on, and would run on that alone.
            program.graph.erase_node(node)
    torch.export.save(program, path)


def _load_torch_export(path: Path) -> Exported:
    exported: Exported = torch.export.load(path).module()
    return exported


def _write_torchscript(network: nn.Module, example: Tensor, any_batch: bool, path: Path) -> None:
    traced: Any = torch.jit.trace(network, (example,), check_trace=False)  # type: ignore[no-untyped-call]
    whole = path.with_name("whole-" + path.name)
    traced.save(str(whole))
    # Without the positions in source files, which are paths on this machine.
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as kept:
        for entry in source.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                kept.writestr(entry.filename, source.read(entry))
    whole.unlink()


def _load_torchscript(path: Path) -> Exported:
    exported: Exported = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    return exported


_TORCHSCRIPT = Format("model.ts", (), _write_torchscript, _load_torchscript)

FORMATS: Mapping[FormatName, Format] = {
    "onnx": Format("model.onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _load_onnx),
    "torch-export": Format("model.pt2", (), _write_torch_export, _load_torch_export),
    "torchscript": _TORCHSCRIPT,
    "monai-bundle": replace(_TORCHSCRIPT, file="models/model.ts"),
}
