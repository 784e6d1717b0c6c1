"""What earlier checks found, so that a scan is read again only if it or what it is checked against has changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

import numpy as np

from medcontext.data.content import scan_state
from medcontext.data.examine import Examined, Member
from medcontext.data.facts import CaseFacts
from medcontext.data.findings import Finding
from medcontext.data.labels import Labels
from medcontext.errors import MedContextError
from medcontext.files import replacing

FORMAT = 2
"""Raised when a check changes, so that what older versions found is not used."""


def memory_file(folder: Path, member: Member, declared: Labels | None, modality: tuple[str, ...]) -> Path | None:
    """Where the result for a member is kept: named by path, size and times of its files, and by declarations.

    None where that can't be told: a file is missing.
    """
    try:
        states = [(str(path), scan_state(path)) for path in member.files]
    except MedContextError:
        return None
    about = [FORMAT, member.name, len(member.images), declared and declared.to_dict(), modality, states]
    return folder / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]}.npz"


def recall(file: Path) -> Examined | None:
    """What was kept; None where there is nothing, or nothing that can be used."""
    try:
        # NumPy leaves a damaged archive open if it opens the file itself.
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
            values = json.loads(str(stored["values"]))
            facts = CaseFacts.from_dict(values["facts"], stored["foreground"])
        return Examined(
            findings=tuple(Finding.from_dict(each) for each in values["findings"]),
            facts=facts,
            image_hashes=tuple(values["image_hashes"]),
            label_hash=values["label_hash"],
            no_geometry=values["no_geometry"],
        )
    except Exception:
        # Damage to an archive can surface as nearly any error; whatever it is, the scan is read instead.
        return None


def keep(file: Path, examined: Examined) -> None:
    """Keep a result with facts; what was wrong with the others may be right next time, as with a disk that was off."""
    if examined.facts is None:
        return
    values = {
        "findings": [finding.to_dict() for finding in examined.findings],
        "facts": examined.facts.to_dict(),
        "image_hashes": examined.image_hashes,
        "label_hash": examined.label_hash,
        "no_geometry": examined.no_geometry,
    }
    # What can't be kept is read again the next time: no reason not to go on.
    with contextlib.suppress(OSError), replacing(file) as temporary:
        np.savez(temporary, values=np.array(json.dumps(values)), foreground=examined.facts.foreground)
