"""What a run's masked student saw of a held-out case, and what it rebuilt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medcontext.evaluation import page
from medcontext.evaluation.plane_pictures import Column, plane_pictures, structure_legend
from medcontext.evaluation.planes import Masks, Spacing, choose_voxel, three_planes


@dataclass(frozen=True)
class MaskedPass:
    """One patch of a held-out case, seen whole and seen masked; all arrays in RAS+.

    Attributes:
        case: Its name.
        step: Optimiser steps that the networks had taken.
        file: The checkpoint's name.
        hiding: How the part was hidden, in words.
        image: ``(X, Y, Z)``, the patch as prepared for the network; of several channels the first.
        given: The same, as the network was given it in the masked pass.
        hidden: ``(X, Y, Z)``, True where the mask hides.
        truth: ``(S, X, Y, Z)`` of each structure.
        student: What the student makes of the whole patch.
        masked: What it makes of the masked one.
        teacher: What the teacher makes of the whole one.
        dice: ``student``, ``masked`` and ``teacher`` to their mean Dice over the structures where the patch was hidden;
            None where nothing is there.
        spacing: In mm.
    """

    case: str
    step: int
    file: str
    hiding: str
    image: npt.NDArray[np.float32]
    given: npt.NDArray[np.float32]
    hidden: Masks
    truth: Masks
    student: Masks
    masked: Masks
    teacher: Masks
    dice: Mapping[str, float | None]
    spacing: Spacing


def masked_section(name: str, run: str, seen: MaskedPass, names: Mapping[int, str]) -> str:
    """Pictures of the patch in three planes: the truth, what the student saw, and what each network made of it.

    Args:
        name: For the ids of its pictures.
        run: Its name.
        seen: What came of it.
        names: Label -> name, of the structures in their order.
    """
    maps = [seen.truth, seen.masked, seen.student, seen.teacher, seen.hidden[None]]
    voxel = choose_voxel(seen.truth, [seen.masked])
    views = [three_planes(image, maps, {}, seen.spacing, voxel, whole=True) for image in (seen.image, seen.given)]
    dice = {name: "nothing to rebuild" if value is None else f"Dice {value:.3f}" for name, value in seen.dice.items()}
    columns = [
        Column("truth", "on the whole scan", 0, numbered=True),
        Column("what the student saw", f"{100 * seen.hidden.mean():.0f} % hidden", None, image=1, hidden=4),
        Column("what it rebuilt", f"{dice['masked']} where hidden", 1, outlined=0, image=1, hidden=4),
        Column("student, whole scan", f"{dice['student']} there", 2, outlined=0),
        Column("teacher, whole scan", f"{dice['teacher']} there", 3, outlined=0),
    ]
    size = " x ".join(str(length) for length in seen.image.shape)
    spacing = " x ".join(f"{length:.3g}" for length in seen.spacing)
    said = (
        f"Held-out case {seen.case}: a patch of {size} voxels of {spacing} mm (left-right, front-back, up-down) "
        f"around its labels, as the network is given it. Hidden: {seen.hiding}. Student and teacher are those of step "
        f"{seen.step:,} ({seen.file}, the last weights of the training); the cases above were predicted by best.pt."
    )
    alt = (
        f"Three planes of a patch of {seen.case}. Mean Dice where it was hidden: {dice['masked']} by the student that "
        f"saw the rest only, {dice['student']} by the student and {dice['teacher']} by the teacher that saw all."
    )
    pictures = plane_pictures(name, views, columns, alt)
    legend = structure_legend(list(names.values()), truth=True)
    return f"{page.heading(run)}\n{page.paragraph(said, 'quiet')}\n<figure>{pictures}\n{legend}</figure>"
