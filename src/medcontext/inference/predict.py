"""Label maps for many scans, on disk: what is there already is kept, and no bad scan stops the others."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medcontext.errors import MedContextError
from medcontext.inference.ahead import OneBehind
from medcontext.inference.folder import PredictionFolder, file_hash, unwritable
from medcontext.inference.predictor import Prediction, Predictor
from medcontext.inference.scans import Scans, take_shard
from medcontext.inference.writing import Format, require_format, write_prediction, write_values
from medcontext.progress import Progress

SAID = 3
"""So many scans are named with the same remark; the others are in the summary."""


@dataclass
class Outcome:
    """What came of the scans.

    Attributes:
        scans: How many there are.
        there: Those whose label maps were there already.
        summary: The file that says all this.
        written: Those whose label maps were written.
        failed: Those that couldn't be predicted, and why.
        remarks: Why the label maps of some of them may be worth little.
    """

    scans: int
    there: list[str]
    summary: Path
    written: list[str] = field(default_factory=list)
    failed: dict[str, MedContextError] = field(default_factory=dict)
    remarks: dict[str, list[MedContextError]] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """Scans for which nothing is left to be done."""
        return len(self.there) + len(self.written) + len(self.failed)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "scans": self.scans,
            "there_already": self.there,
            "written": self.written,
            "failed": {name: error.to_dict() for name, error in self.failed.items()},
            "remarks": {name: [each.to_dict() for each in found] for name, found in self.remarks.items()},
        }


def predict_files(
    predictor: Predictor,
    scans: Scans,
    out: Path,
    *,
    kind: Format = "nii.gz",
    shard: str | None = None,
    redo: bool = False,
    replace: bool = False,
    probabilities: bool = False,
    entropy: bool = False,
    progress: Progress | None = None,
    title: str = "predicting",
) -> Outcome:
    """Write a label map of the same name, shape and place for each scan, and ``summary.json`` of what came of them.

    A label map that is up to date is kept, so that an interrupted prediction goes on where it stopped. Each is
    written whole or not at all. While one scan is segmented, the next is read and the last written.

    Args:
        predictor: The model.
        scans: Case name to image files, as from :func:`medcontext.inference.scans.find_scans`.
        out: Folder to write to.
        kind: Format of the label maps.
        shard: Do this part of the scans alone, such as ``"3/8"``, while other machines do the others.
        redo: Make predictions anew that another model made, or with other options; otherwise they are refused.
        replace: Make all anew.
        probabilities: Also write the probabilities of all classes or regions, ``probabilities/NAME.nii.gz``, float32
            ``(X, Y, Z, K)``: the background first, then the labels as declared; of regions each one's.
        entropy: Also write the entropy of the probabilities, ``entropy/NAME.nii.gz``, float32 in nats.
        progress: Where to say how far it is.
        title: What is done, in its words.

    Raises:
        MedContextError: Nothing can be written to the folder, or it holds what is not to be written over.
    """
    mine = scans if shard is None else take_shard(scans, shard)
    require_format(kind, mine)
    made_by = {**_made_by(predictor), "probabilities": probabilities, "entropy": entropy}
    folder = PredictionFolder(out, kind, made_by, shard)
    maps = 1 + predictor.plan.labels.outputs * probabilities + entropy
    up_to_date = folder.open(mine, redo=redo or replace, maps=maps)
    outcome = Outcome(len(mine), [] if replace else up_to_date, folder.summary)
    waiting = {name: paths for name, paths in mine.items() if name not in set(outcome.there)}
    progress = progress or Progress(quiet=True)
    with progress.task(title) as update, _Log(folder, outcome, progress, update) as log, OneBehind() as behind:
        made_of = predictor.over(waiting, log.failed, log.remarked, probabilities=probabilities, entropy=entropy)
        for made in made_of:
            file = folder.file(made.name, mine[made.name][0])
            # Its voxels are not needed to write its labels: let the memory go.
            made = made._replace(scan=dataclasses.replace(made.scan, array=np.empty((0, 0, 0, 0), np.float32)))
            behind(log.written, file, made, predictor)
            del made
    return outcome


class _Log:
    """Says and writes down what comes of the scans; the threads that read and write tell it."""

    def __init__(
        self, folder: PredictionFolder, outcome: Outcome, progress: Progress, update: Callable[[int, int], None]
    ) -> None:
        self._folder = folder
        self._outcome = outcome
        self._progress = progress
        self._update = update
        self._lock = threading.Lock()
        self._said: Counter[str] = Counter()

    def failed(self, name: str, error: MedContextError) -> None:
        with self._lock:
            # Without its traceback, which would keep the scan and what the network made of it on the device.
            self._outcome.failed[name] = copy.copy(error)
            self._progress.say(f"{name}: {error}")
            self._folder.note(self._outcome.to_dict())
            self._update(self._outcome.done, self._outcome.scans)

    def remarked(self, name: str, remark: MedContextError) -> None:
        with self._lock:
            self._outcome.remarks.setdefault(name, []).append(remark)
            self._said[remark.problem] += 1
            if self._said[remark.problem] <= SAID:
                self._progress.say(f"{name}: {remark}")

    def written(self, file: Path, made: Prediction, predictor: Predictor) -> None:
        """Write a label map; where the disk is full or gone, the next could not be written either."""
        try:
            # The label map comes last: where it is, everything is.
            if len(made.maps.probabilities):
                write_values(self._folder.beside(made.name, "probabilities"), made.maps.probabilities, made.scan)
            if made.maps.entropy is not None:
                write_values(self._folder.beside(made.name, "entropy"), made.maps.entropy[None], made.scan)
            write_prediction(file, made.labels, made.scan, predictor.plan.labels)
        except MedContextError as error:
            self.failed(made.name, error)
            return
        except OSError as error:
            raise unwritable(file.parent, error) from error
        except Exception as error:  # what libraries raise on a header that they can read but not write
            self.failed(
                made.name,
                MedContextError(
                    "No file can be written in the place of this scan.",
                    file=made.scan.path,
                    found=f"{type(error).__name__}: {' '.join(str(error).split())}"[:300],
                    remedy="choose another format (--format), or export the scan again",
                ),
            )
            return
        with self._lock:
            self._folder.made(made.name)
            self._outcome.written.append(made.name)
            self._update(self._outcome.done, self._outcome.scans)

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        for problem, count in self._said.items():
            if count > SAID:
                self._progress.say(f"{count} scans in all: {problem} See {self._folder.summary}")
        with contextlib.suppress(OSError):  # which would hide what went wrong before
            self._folder.note(self._outcome.to_dict())


def _made_by(predictor: Predictor) -> Mapping[str, Any]:
    """Model and options; a model that was never a file is like no other."""
    return {"models": [file_hash(file) for file in predictor.files] or [uuid.uuid4().hex], **predictor.options}
