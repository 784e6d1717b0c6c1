"""Decompression of DICOM slices by GDCM: a script run in a process of its own, which damaged slices can end.

Every ``NAME.dcm`` in the folder that is its one argument becomes ``NAME.npy``, its stored values.
"""

from __future__ import annotations

import sys
from pathlib import Path


def decompress(folder: Path) -> None:
    """See above."""
    import numpy as np
    import SimpleITK as sitk  # noqa: N813

    for file in folder.glob("*.dcm"):
        np.save(file.with_suffix(".npy"), sitk.GetArrayFromImage(sitk.ReadImage(str(file), imageIO="GDCMImageIO")))


if __name__ == "__main__":
    decompress(Path(sys.argv[1]))
