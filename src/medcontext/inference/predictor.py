"""Label maps for new scans, in the scans' own space."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from medcontext.data.prepare import prepare_image, require_memory
from medcontext.data.scan import Scan, read_scan, spans_space
from medcontext.errors import MedContextError
from medcontext.inference.ahead import one_ahead
from medcontext.inference.ensemble import Ensemble, common_plan, mirrored_axes
from medcontext.inference.model import Model, load_model
from medcontext.inference.models import model_files
from medcontext.inference.native import NativeMaps, to_native
from medcontext.inference.postprocess import postprocess, shared_rules, voxel_ml
from medcontext.inference.scans import Scans
from medcontext.inference.sliding import sliding_slabs
from medcontext.inference.unlike import remarks


class Prediction(NamedTuple):
    """What came of a scan.

    Attributes:
        name: Of the case.
        maps: Its labels, and what else was asked for.
        scan: As it was read.
    """

    name: str
    maps: NativeMaps
    scan: Scan

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """``(X, Y, Z)`` label numbers."""
        return self.maps.labels


Told = Callable[[str, MedContextError], None]
"""Called with the name of a case and what is wrong with it."""


class Predictor:
    """A trained model, or several whose logits are averaged, loaded once, for scans in memory or on disk.

    Args:
        models: From :func:`medcontext.inference.model.load_model`, one or several of one plan, such as folds.
        device: Such as ``"cpu"`` or ``"cuda"``.
        mirror: Average over mirrored images, too, along the axes that patches were mirrored along in training.
        postprocess: Whether the post-processing that was chosen for the models is done, as far as they agree on it.

    Attributes:
        files: The models'; none where they were not loaded from files.
        about: What is recorded beside the weights of the first.
        rules: Of the post-processing.
        options: All that decides, beside the models, what is predicted: plain values.

    Raises:
        MedContextError: Models of different plans, or mirroring that they were not trained for.
    """

    def __init__(
        self,
        models: Model | Sequence[Model],
        device: str = "cpu",
        *,
        mirror: bool = False,
        postprocess: bool = True,
    ) -> None:
        models = [models] if isinstance(models, Model) else models
        self.plan = common_plan(models)
        self.about = models[0].about
        self.rules = shared_rules([model.about for model in models]) if postprocess else ()
        self.files: tuple[Path, ...] = ()
        axes = mirrored_axes(models) if mirror else ()
        self.options: dict[str, Any] = {
            "mirrored_axes": list(axes),
            "postprocessing": [rule.to_dict() for rule in self.rules],
        }
        self._network = Ensemble([model.network for model in models], axes).to(device).eval()
        self._device = device

    @classmethod
    def load(
        cls,
        path: Path | str | Sequence[Path | str],
        device: str = "cpu",
        *,
        mirror: bool = False,
        postprocess: bool = True,
    ) -> Predictor:
        """From a run folder (its best model), a model file, several of them, or a folder of folds."""
        files = model_files(path)
        predictor = cls([load_model(file) for file in files], device, mirror=mirror, postprocess=postprocess)
        predictor.files = files
        return predictor

    def __call__(self, array: npt.NDArray[Any], affine: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        """Label numbers ``(X, Y, Z)`` for a scan ``(X, Y, Z)`` or ``(C, X, Y, Z)`` with its voxel-to-mm affine.

        Raises:
            MedContextError: It is no such scan; the rest as of :meth:`maps_of`.
        """
        array, affine = np.asarray(array), np.asarray(affine, dtype=np.float64)
        if array.ndim not in (3, 4) or not array.size or affine.shape != (4, 4) or not spans_space(affine):
            raise MedContextError(
                "This array and affine are no scan.",
                found=f"an array of shape {array.shape}, affine {affine.round(4).tolist()}",
                expected="voxels (X, Y, Z) or (C, X, Y, Z), and an invertible (4, 4) affine, voxel index to mm",
            )
        channels = array[None] if array.ndim == 3 else array
        return self.labels_of(Scan(Path("in memory"), channels.astype(np.float32), affine, None))

    def over(
        self,
        scans: Scans,
        failed: Told | None = None,
        warned: Told | None = None,
        *,
        probabilities: bool = False,
        entropy: bool = False,
    ) -> Iterator[Prediction]:
        """Scan after scan, each as it is asked for; the next is read meanwhile.

        Args:
            scans: Case name to image files, as from :func:`medcontext.inference.scans.find_scans`.
            failed: Told of scans that can't be predicted, which are then passed over; None: such a scan ends it.
            warned: Told, before a scan is segmented, why its labels may be worth little.
            probabilities: Whether those of all outputs are wanted.
            entropy: Whether the entropy is wanted.

        Raises:
            MedContextError: A scan can't be predicted, and ``failed`` is None.
        """
        for name, reading in one_ahead(lambda name: read_scan(*scans[name]), scans):
            try:
                scan = reading.result()
                if warned is not None:
                    for remark in remarks(scan, self.plan, self.about):
                        warned(name, remark)
                maps = self._tried(scan, probabilities, entropy)
            except MedContextError as error:
                if failed is None:
                    raise
                failed(name, error)
                continue
            made = Prediction(name, maps, scan)
            del scan, maps
            yield made
            del made

    def _tried(self, scan: Scan, probabilities: bool, entropy: bool) -> NativeMaps:
        """What is wanted of a scan from a file, which may be anything; what goes wrong is one error that names it."""
        try:
            return self.maps_of(scan, outputs=range(self.plan.labels.outputs) if probabilities else (), entropy=entropy)
        except MedContextError:
            raise
        except Exception as error:  # what networks raise, and PyTorch where memory is missing, is not documented
            raise MedContextError(
                "The network could not be applied to this scan.",
                file=scan.path,
                found=f"{type(error).__name__}: {' '.join(str(error).split())}"[:300],
                remedy="if memory is missing, predict on a device with more (--device), or cut the scan into parts",
            ) from error

    def labels_of(self, scan: Scan) -> npt.NDArray[np.int32]:
        """Label numbers ``(X, Y, Z)`` in the scan's own grid."""
        return self.maps_of(scan).labels

    def maps_of(self, scan: Scan, *, outputs: Sequence[int] = (), entropy: bool = False) -> NativeMaps:
        """Labels, post-processed, and what else is asked for, as of :func:`medcontext.inference.native.to_native`.

        Raises:
            MedContextError: The scan doesn't fit the plan or the memory, or the network gives no numbers for it.
        """
        require_memory(scan, self.plan, len(outputs) + entropy)
        prepared, box = prepare_image(scan, self.plan)
        image = torch.from_numpy(prepared).to(self._device)
        d, h, w = image.shape[1:]
        slabs = sliding_slabs(self._network, image, self.plan.patch, self.plan.normalisation.outside)
        shape, affine = scan.array.shape[1:], scan.affine
        try:
            maps = to_native(slabs, (d, h, w), self.plan, shape, affine, box=box, outputs=outputs, entropy=entropy)
        except MedContextError as error:
            error.file = str(scan.path)
            raise
        if not self.rules:
            return maps
        return dataclasses.replace(
            maps, labels=postprocess(maps.labels, self.rules, self.plan.labels, voxel_ml(scan.affine))
        )
