"""From a network's logits to a label map: medcontext's, nnU-Net's and MONAI's way, each as its users go it.

``python -m benchmarks.predict_ways LIBRARY CASE LABELS LIMIT`` measures one in a process of its own that takes no
more bytes than the limit, writes its labels and prints one JSON object. :mod:`benchmarks.predict` runs it, for
nnU-Net by the Python of an environment that has neither of the others.
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from benchmarks.common import grown_by

Size = tuple[int, int, int]
Spacing = tuple[float, float, float]

MILLIMETRES = 24.0
"""Distance of the points that each belong to one class; the logits are smooth between them."""

LABELLED = 0.8
"""Share of the points that belong to another class than the background."""

CONTRAST, NOISE = 8.0, 1.5
"""Logit of a point's own class, and less than nothing of every other; standard deviation of what is added to both."""


@dataclass(frozen=True)
class Case:
    """What is predicted.

    Attributes:
        classes: Of the network, background included.
        size: (D, H, W) of the scan.
        spacing: (D, H, W) in mm of the scan.
        plan_spacing: (D, H, W) in mm that the network works at.
        patch: (D, H, W) of its windows.
    """

    classes: int
    size: Size
    spacing: Spacing
    plan_spacing: Spacing
    patch: Size

    @property
    def grid(self) -> Size:
        """(D, H, W) of the scan at the plan's spacing."""
        d, h, w = (round(n * old / new) for n, old, new in zip(self.size, self.spacing, self.plan_spacing, strict=True))
        return d, h, w


class Logits:
    """Cubic B-splines of values at points that lie as far apart as structures are large, on a grid of any size."""

    def __init__(self, case: Case, grid: Size) -> None:
        generator = torch.Generator().manual_seed(0)
        spans = [max(1, round(n * mm / MILLIMETRES)) for n, mm in zip(case.size, case.spacing, strict=True)]
        points = [span + 3 for span in spans]
        own = torch.randint(1, case.classes, points, generator=generator)
        own *= torch.rand(points, generator=generator) < LABELLED
        values = NOISE * torch.randn(case.classes, *points, generator=generator) - CONTRAST
        self._values = values.scatter_add_(0, own[None], torch.full((1, *points), 2 * CONTRAST))
        self._bases = [_spline_basis(n, span) for n, span in zip(grid, spans, strict=True)]

    def __getitem__(self, window: tuple[slice, ...]) -> Tensor:
        """``(K, D, H, W)`` of a part of the grid."""
        d, h, w = (basis[part] for basis, part in zip(self._bases, window, strict=True))
        values = torch.einsum("da,kabc->kdbc", d, self._values)
        return torch.einsum("hb,kdbc->kdhc", h, values) @ w.T


def _spline_basis(count: int, spans: int) -> Tensor:
    """Uniform cubic B-splines at ``count`` voxels: ``(count, spans + 3)``."""
    place = (torch.arange(count, dtype=torch.float64) + 0.5) / count * spans
    t = place - place.floor()
    weights = torch.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1) / 6
    basis = torch.zeros(count, spans + 3, dtype=torch.float64)
    return basis.scatter_(1, place.long()[:, None] + torch.arange(4), weights).float()


class Clock:
    """Seconds, and those of the processor, that something has taken in all."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0

    def start(self) -> None:
        self.seconds -= time.perf_counter()
        self.cpu_seconds -= time.process_time()

    def stop(self) -> None:
        self.seconds += time.perf_counter()
        self.cpu_seconds += time.process_time()


class Network(nn.Module):
    """Stands in for a network: gives the logits of one window after the other, whatever it is shown.

    Args:
        case: What is predicted.
        grid: (D, H, W) of the image.
        axes: Which of (D, H, W) the axes of the image are.
    """

    def __init__(self, case: Case, grid: Size, axes: tuple[int, int, int] = (0, 1, 2)) -> None:
        from monai.data.utils import dense_patch_slices

        super().__init__()
        self.clock = Clock()
        self._logits, self._axes, self._classes = Logits(case, grid), axes, case.classes
        self._given: Tensor | None = None
        turned, patch = ([sizes[axis] for axis in axes] for sizes in (grid, case.patch))
        self._windows = iter(dense_patch_slices(turned, patch, [side // 2 for side in patch]))

    def forward(self, image: Tensor) -> Tensor:
        """Logits of the next windows, as many as there are images, always in the same memory."""
        self.clock.start()
        if self._given is None or len(self._given) != len(image):
            self._given = torch.empty((len(image), self._classes, *image.shape[2:]))
        for given in self._given:
            window = next(self._windows)
            logits = self._logits[tuple(window[self._axes.index(axis)] for axis in range(3))]
            given.copy_(logits.permute(0, *(axis + 1 for axis in self._axes)))
        self.clock.stop()
        return self._given


Way = tuple[Callable[[], npt.NDArray[Any]], Clock, Clock]
"""What gives ``(X, Y, Z)`` labels; the clock of the network; that of what comes after its windows are put together."""


def medcontext(case: Case) -> Way:
    """This package, from the scan in memory to its labels."""
    from medcontext.data.labels import Labels
    from medcontext.data.plan import Normalisation, Plan
    from medcontext.data.scan import Scan
    from medcontext.inference.model import Model
    from medcontext.inference.predictor import Predictor
    from medcontext.inference.sliding import sliding_slabs

    labels = Labels({number: f"structure {number}" for number in range(1, case.classes)})
    how = Normalisation("ct", low=-1000, high=1000, mean=0, std=400)
    plan = Plan("benchmark", 1, labels, "SAR", case.plan_spacing, how, case.patch, batch_size=2, steps=1)
    scan = Scan(Path("scan"), _scan(case)[None], _affine(case), None)
    network, export = Network(case, case.grid), Clock()
    predictor = Predictor(Model(network, plan, {}))

    def sliding(*arguments: Any) -> Iterator[Any]:
        for slab in sliding_slabs(*arguments):
            export.start()
            yield slab
            export.stop()

    def go() -> npt.NDArray[Any]:
        with mock.patch("medcontext.inference.predictor.sliding_slabs", sliding):
            return predictor.labels_of(scan)

    return go, network.clock, export


def monai(case: Case) -> Way:
    """Its transforms and their inverse, as in its tutorials; in single precision, which is not the default."""
    from monai.data.meta_tensor import MetaTensor
    from monai.inferers.utils import sliding_window_inference
    from monai.transforms import AsDiscreted, Compose, Invertd, Spacingd

    backwards = (2, 1, 0)
    pixdim, patch = ([sizes[axis] for axis in backwards] for sizes in (case.plan_spacing, case.patch))
    before = Compose([Spacingd(keys="image", pixdim=pixdim, mode="bilinear", dtype=np.float32)])
    after = Compose(
        [
            Invertd(keys="pred", transform=before, orig_keys="image", nearest_interp=False, to_tensor=True),
            AsDiscreted(keys="pred", argmax=True),
        ]
    )
    scan = MetaTensor(torch.from_numpy(_scan(case))[None], affine=torch.from_numpy(_affine(case)))
    w, h, d = before({"image": scan})["image"].shape[1:]
    network, export = Network(case, (d, h, w), backwards), Clock()

    def go() -> npt.NDArray[Any]:
        data = before({"image": scan})
        image = data["image"][None]
        data["pred"] = sliding_window_inference(image, patch, 1, network, overlap=0.5, mode="gaussian")[0]
        export.start()
        labels: npt.NDArray[Any] = after(data)["pred"][0].numpy()
        export.stop()
        return labels

    return go, network.clock, export


def nnunet(case: Case) -> Way:
    """Its export alone, from logits in half precision, as its predictor gives them, with its default resampling.

    Interpolation is of order 1, in double precision.
    """
    package = "nnunetv2.utilities"
    exporting = importlib.import_module("nnunetv2.inference.export_prediction")
    plans = importlib.import_module(f"{package}.plans_handling.plans_handler")
    manager = importlib.import_module(f"{package}.label_handling.label_handling").LabelManager(
        {"background": 0} | {f"structure {number}": number for number in range(1, case.classes)}, None
    )
    plan = plans.PlansManager({"transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2]})
    order = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration = plans.ConfigurationManager(
        {
            "architecture": {},
            "spacing": case.plan_spacing,
            "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
            "resampling_fn_probabilities_kwargs": order,
        }
    )
    about = {
        "spacing": case.spacing,
        "shape_before_cropping": case.size,
        "shape_after_cropping_and_before_resampling": case.size,
        "bbox_used_for_cropping": [[0, n] for n in case.size],
    }
    network, export = Clock(), Clock()

    def go() -> npt.NDArray[Any]:
        network.start()
        logits = torch.empty((case.classes, *case.grid), dtype=torch.half)
        source = Logits(case, case.grid)
        for d in range(case.grid[0]):
            logits[:, d : d + 1] = source[slice(d, d + 1), slice(None), slice(None)]
        network.stop()
        export.start()
        convert = exporting.convert_predicted_logits_to_segmentation_with_correct_shape
        labels: npt.NDArray[Any] = convert(
            logits, plan, configuration, manager, about, num_threads_torch=torch.get_num_threads()
        )
        export.stop()
        return labels.transpose(2, 1, 0)

    return go, network, export


def _scan(case: Case) -> npt.NDArray[np.float32]:
    """Noise ``(X, Y, Z)``, in memory as a file has it; no window of it is empty."""
    return np.random.default_rng(0).standard_normal(case.size, dtype=np.float32).T * 100


def _affine(case: Case) -> npt.NDArray[np.float64]:
    return np.diag([*case.spacing[::-1], 1.0])


def main() -> None:
    library, described, file, limit = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_AS, (int(limit), int(limit)))
    values = json.loads(described)
    case = Case(values.pop("classes"), **{name: tuple(numbers) for name, numbers in values.items()})
    go, network, export = {"medcontext": medcontext, "monai": monai, "nnunet": nnunet}[library](case)
    whole, labels = Clock(), []

    def act() -> None:
        whole.start()
        labels.append(go())
        whole.stop()

    peak = grown_by(act, "cpu")
    np.save(file, np.asarray(labels[0], dtype=np.uint8))
    print(
        json.dumps(
            {
                "seconds": whole.seconds - network.seconds,
                "cpu_seconds": whole.cpu_seconds - network.cpu_seconds,
                "export_seconds": export.seconds,
                "export_cpu_seconds": export.cpu_seconds,
                "peak_gib": peak,
                "threads": torch.get_num_threads(),
            }
        )
    )


if __name__ == "__main__":
    main()
