"""Label maps for new scans, in the scans' own space."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medcontext.data.geometry import Affine, Size, largest_class, reorient, reorient_back, resample_image
from medcontext.data.plan import Plan
from medcontext.data.prepare import prepare_image
from medcontext.data.scan import Scan, read_scan
from medcontext.errors import MedContextError
from medcontext.inference.ahead import one_ahead
from medcontext.inference.model import Model, load_model
from medcontext.inference.models import model_files
from medcontext.inference.postprocess import postprocess, shared_rules, voxel_ml
from medcontext.inference.scans import Scans
from medcontext.inference.sliding import sliding_logits
from medcontext.inference.unlike import remarks, require_memory


class Prediction(NamedTuple):
    """What came of a scan.

    Attributes:
        name: Of the case.
        labels: ``(X, Y, Z)`` label numbers.
        scan: As it was read.
    """

    name: str
    labels: npt.NDArray[np.int32]
    scan: Scan


Told = Callable[[str, MedContextError], None]
"""Called with the name of a case and what is wrong with it."""


class Predictor:
    """A trained model, loaded once, for scans in memory or on disk.

    Args:
        model: From :func:`medcontext.inference.model.load_model`.
        device: Such as ``"cpu"`` or ``"cuda"``.
        postprocess: Whether the post-processing that was chosen for the model is done.

    Attributes:
        files: The model's.
        options: All that decides, beside the model, what is predicted: plain values.
    """

    def __init__(self, model: Model, device: str = "cpu", *, postprocess: bool = True) -> None:
        self.plan = model.plan
        self.about = model.about
        self.rules = shared_rules([model.about]) if postprocess else ()
        self.files: tuple[Path, ...] = ()
        self.options: dict[str, Any] = {"postprocessing": [rule.to_dict() for rule in self.rules]}
        self._network = model.network.to(device)
        self._device = device

    @classmethod
    def load(
        cls, path: Path | str | Sequence[Path | str], device: str = "cpu", *, postprocess: bool = True
    ) -> Predictor:
        """From a run folder (its best model), a model file, or several of them, or a folder of folds."""
        files = model_files(path)
        if len(files) > 1:
            raise MedContextError("Several models can't be applied together.", found=f"{len(files)} models")
        predictor = cls(load_model(files[0]), device, postprocess=postprocess)
        predictor.files = files
        return predictor

    def __call__(self, array: npt.NDArray[Any], affine: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        """Label numbers ``(X, Y, Z)`` for a scan ``(X, Y, Z)`` or ``(C, X, Y, Z)`` with its voxel-to-mm affine."""
        channels = array[None] if array.ndim == 3 else array
        scan = Scan(Path("in memory"), channels.astype(np.float32), np.asarray(affine, dtype=np.float64), None)
        return self.labels_of(scan)

    def over(self, scans: Scans, failed: Told | None = None, warned: Told | None = None) -> Iterator[Prediction]:
        """Scan after scan, each as it is asked for; the next is read meanwhile.

        Args:
            scans: Case name to image files, as from :func:`medcontext.inference.scans.find_scans`.
            failed: Told of scans that can't be predicted, which are then passed over; None: such a scan ends it.
            warned: Told, before a scan is segmented, why its labels may be worth little.

        Raises:
            MedContextError: A scan can't be predicted, and ``failed`` is None.
        """
        for name, reading in one_ahead(lambda name: read_scan(*scans[name]), scans):
            try:
                scan = reading.result()
                require_memory(scan, self.plan)
                for remark in remarks(scan, self.plan, self.about) if warned else ():
                    warned(name, remark)
                labels = self._tried(scan)
            except MedContextError as error:
                if failed is None:
                    raise
                failed(name, error)
                continue
            made = Prediction(name, labels, scan)
            del scan, labels
            yield made
            del made

    def _tried(self, scan: Scan) -> npt.NDArray[np.int32]:
        """The labels of a scan from a file, which may be anything; what goes wrong is one error that names it."""
        try:
            return self.labels_of(scan)
        except (MemoryError, RuntimeError) as error:  # PyTorch raises the latter where memory is missing, too
            raise MedContextError(
                "The network could not be applied to this scan.",
                file=scan.path,
                found=(str(error) or type(error).__name__).splitlines()[0][:200],
                remedy="if memory is missing, predict on a device with more (--device), or cut the scan into parts",
            ) from error

    def labels_of(self, scan: Scan) -> npt.NDArray[np.int32]:
        """Label numbers ``(X, Y, Z)`` in the scan's own grid."""
        image = torch.from_numpy(prepare_image(scan, self.plan)).to(self._device)
        logits = sliding_logits(self._network, image, self.plan.patch, self.plan.normalisation.outside).cpu()
        numbers = to_native(logits, self.plan, scan.array.shape[1:], scan.affine)
        return postprocess(numbers, self.rules, self.plan.labels, voxel_ml(scan.affine)) if self.rules else numbers


def to_native(logits: Tensor, plan: Plan, shape: tuple[int, ...], affine: Affine) -> npt.NDArray[np.int32]:
    """Label numbers in a scan's own grid from logits in the plan's.

    The logits are resampled, not the labels, one class at a time, so that memory does not grow with the classes.

    Args:
        logits: ``(K, D, H, W)``, of the classes or of the regions.
        plan: That the scan was prepared by.
        shape: (X, Y, Z) of the scan.
        affine: Of the scan.
    """
    d, h, w = reorient(np.empty(shape, dtype=np.uint8), affine, plan.orientation).shape
    size: Size = (d, h, w)
    scores = (resample_image(score[None], size)[0] for score in logits)
    if plan.labels.regions:
        numbers = np.zeros(size, dtype=np.int32)
        for region, score in zip(plan.labels.regions, scores, strict=True):
            numbers[score.numpy() > 0] = region.written
    else:
        numbers = plan.labels.to_numbers(largest_class(scores, size).numpy())
    return np.ascontiguousarray(reorient_back(numbers, affine, plan.orientation))
