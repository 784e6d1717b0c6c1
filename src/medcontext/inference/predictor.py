"""Label maps for new scans, in the scans' own space."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medcontext.data import case_list
from medcontext.data.dataset import LAYOUTS, by_channel
from medcontext.data.prepare import prepare_image
from medcontext.data.scan import ENDINGS, Scan, case_name, is_series, read_scan, scan_files, write_labels
from medcontext.errors import MedContextError
from medcontext.inference.ensemble import Ensemble, common_plan, mirrored_axes
from medcontext.inference.model import Model, load_model
from medcontext.inference.native import NativeMaps, to_native
from medcontext.inference.sliding import sliding_slabs


class Predictor:
    """A trained model, or several whose logits are averaged, loaded once, for scans in memory or on disk.

    Args:
        models: From :func:`medcontext.inference.model.load_model`, one or several of one plan, such as folds.
        device: Such as ``"cpu"`` or ``"cuda"``.
        mirror: Average over mirrored images, too, along the axes that patches were mirrored along in training.

    Raises:
        MedContextError: Models of different plans, or mirroring that they were not trained for.
    """

    def __init__(self, models: Model | Sequence[Model], device: str = "cpu", *, mirror: bool = False) -> None:
        models = [models] if isinstance(models, Model) else models
        self.plan = common_plan(models)
        axes = mirrored_axes(models) if mirror else ()
        self._network = Ensemble([model.network for model in models], axes).to(device).eval()
        self._device = device

    @classmethod
    def load(cls, path: Path | str | Sequence[Path | str], device: str = "cpu", *, mirror: bool = False) -> Predictor:
        """From a run folder (its best model) or a model file, or from several."""
        paths = [path] if isinstance(path, Path | str) else path
        return cls([load_model(Path(each)) for each in paths], device, mirror=mirror)

    def __call__(self, array: npt.NDArray[Any], affine: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        """Label numbers ``(X, Y, Z)`` for a scan ``(X, Y, Z)`` or ``(C, X, Y, Z)`` with its voxel-to-mm affine."""
        channels = array[None] if array.ndim == 3 else array
        scan = Scan(Path("in memory"), channels.astype(np.float32), np.asarray(affine, dtype=np.float64), None)
        return self.labels_of(scan)

    def labels_of(self, scan: Scan) -> npt.NDArray[np.int32]:
        """Label numbers ``(X, Y, Z)`` in the scan's own grid."""
        return self.maps_of(scan).labels

    def maps_of(self, scan: Scan, *, outputs: Sequence[int] = (), entropy: bool = False) -> NativeMaps:
        """Labels and what else is asked for, as of :func:`medcontext.inference.native.to_native`.

        Raises:
            MedContextError: The scan doesn't fit the plan or the memory, or the network gives no numbers for it.
        """
        image = torch.from_numpy(prepare_image(scan, self.plan)).to(self._device)
        d, h, w = image.shape[1:]
        slabs = sliding_slabs(self._network, image, self.plan.patch, self.plan.normalisation.outside)
        shape, affine = scan.array.shape[1:], scan.affine
        try:
            return to_native(slabs, (d, h, w), self.plan, shape, affine, outputs=outputs, entropy=entropy)
        except MedContextError as error:
            error.file = str(scan.path)
            raise


def find_scans(path: Path, channels: int = 1) -> dict[str, tuple[Path, ...]]:
    """Case name to image files, for one scan, a folder of scans, or a data set (its training images, or its list).

    Args:
        path: Where to look.
        channels: Of the scans; files ``NAME_0000``, ``NAME_0001``, ... of so many are the channels of one scan.

    Raises:
        MedContextError: Nothing there, or nothing that can be read.
    """
    listed = path if path.suffix in case_list.ENDINGS else case_list.find(path)
    if listed is not None:
        cases, unlabelled = case_list.read(listed)
        return {name: case.images for name, case in cases.items()} | unlabelled
    path = next((path / images for images, *_ in LAYOUTS if (path / images).is_dir()), path)
    if path.is_file() or is_series(path):
        return {case_name(path): (path,)}
    found = scan_files(path)
    if not found:
        raise MedContextError(
            "There are no scans in this folder.", file=path, expected=f"files ending in {', '.join(ENDINGS)}"
        )
    grouped = by_channel(found)
    wanted = [f"_{channel:04d}" for channel in range(channels)]
    if grouped and all([case_name(file)[-5:] for file in files] == wanted for files in grouped.values()):
        return grouped
    return {name: (file,) for name, file in found.items()}


RECORD = ".predicted-by-medcontext"
"""A file that says that the label maps of a folder are predictions, so that only such are ever written over."""


def predict_files(
    predictor: Predictor,
    scans: Mapping[str, tuple[Path, ...]],
    out: Path,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, MedContextError]:
    """Write a label map of the same name, shape and affine for each scan; a bad scan does not stop the others.

    Returns:
        The scans that failed, and why.

    Raises:
        MedContextError: The folder holds files of these names that are no predictions: scans, or a truth.
    """
    out.mkdir(parents=True, exist_ok=True)
    in_the_way = [name for name in scans if (out / f"{name}.nii.gz").exists()]
    if in_the_way and not (out / RECORD).exists():
        raise MedContextError(
            "This folder holds files that are no predictions and would be written over.",
            file=out,
            found=f"{in_the_way[0]}.nii.gz and {len(in_the_way) - 1} more",
            remedy="choose another folder",
        )
    (out / RECORD).touch()
    failed: dict[str, MedContextError] = {}
    for done, (name, paths) in enumerate(scans.items(), start=1):
        try:
            scan = read_scan(*paths)
            write_labels(out / f"{name}.nii.gz", predictor.labels_of(scan), like=scan)
        except MedContextError as error:
            failed[name] = error
        if progress:
            progress(done, len(scans))
    return failed
