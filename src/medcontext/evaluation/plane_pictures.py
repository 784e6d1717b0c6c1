"""Slices with outlines as inline SVG: the grey picture once, vector outlines on it, positions in mm."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
from contourpy import contour_generator
from scipy.ndimage import distance_transform_edt

from medcontext.drawing import LABEL_COLOURS, LABEL_STYLES, label_colour
from medcontext.evaluation.planes import SIDES, Masks, Plane

LOSSLESS = 128 * 128
"""Pixels up to which a grey picture is a PNG: blown up, the blocks of a JPEG would show."""

LARGEST = 360
"""Pixels of a grey picture's longer side, at most."""

QUALITY = 88

LEVELS = (1.0, 99.5)
"""Percentiles of the intensities, in a plane, that are black and white."""


@dataclass(frozen=True)
class Column:
    """One column of pictures.

    Attributes:
        head: HTML of its heading.
        note: Plain text below the heading.
        drawn: Place of the map whose outlines are drawn; None: none.
        numbered: Whether the structures carry their numbers.
        outlined: Place of the map whose outlines lie below, thin and white; None: none.
        image: Place of the image shown, where each plane has several.
        hidden: Place of the map, of one structure, that is hatched as hidden; None: none.
    """

    head: str
    note: str
    drawn: int | None
    numbered: bool = False
    outlined: int | None = None
    image: int = 0
    hidden: int | None = None


def plane_pictures(views: Sequence[Sequence[Plane]], columns: Sequence[Column], alt: str) -> str:
    """A row of pictures for each plane.

    Args:
        views: The same planes of each image that a column may show; their maps are those of the first.
        columns: What stands beside one another.
        alt: What is seen, in words.
    """
    heads = "".join(
        f'<div class="head"><b>{column.head}</b><span>{escape(column.note)}</span></div>' for column in columns
    )
    rows = []
    for number, plane in enumerate(views[0]):
        greys = [grey(view[number].image) for view in views]
        pictures = "".join(_slice(plane, column, greys[column.image]) for column in columns)
        rows.append(f'<div class="plane">{plane.name} {plane.index + 1}/{plane.count}</div>{pictures}')
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="Pictures, scroll sideways where they are wider">\n'
        f'<div class="planes" role="img" style="--columns: {len(columns)}" aria-label="{escape(alt)}"><span></span>'
        f"{heads}{''.join(rows)}</div>\n</div>"
    )


def structure_legend(names: Sequence[str], *, truth: bool) -> str:
    """Number, colour and line of every structure, and the thin line of the truth."""
    entries = [
        f'<li><svg viewBox="0 0 30 18" aria-hidden="true"><line x1="2" x2="28" y1="9" y2="9" {_stroke(place)}/></svg>'
        f"{place + 1} {escape(name)}</li>"
        for place, name in enumerate(names)
    ]
    if truth:
        line = '<line x1="2" x2="28" y1="9" y2="9" stroke="#fff" stroke-width="1"/>'
        entries.append(f'<li><svg viewBox="0 0 30 18" aria-hidden="true">{line}</svg>outline of the truth</li>')
    return f'<ul class="legend">{"".join(entries)}</ul>'


def grey(image: npt.NDArray[np.floating[Any]]) -> str:
    """The picture as a data address: a PNG, or a JPEG where that is much smaller."""
    from PIL import Image

    low, high = np.percentile(image, LEVELS)
    levels = np.clip((image - low) / max(high - low, 1e-6), 0, 1) * 255
    picture = Image.fromarray(np.round(levels).astype(np.uint8))
    small = picture.width * picture.height <= LOSSLESS
    picture.thumbnail((LARGEST, LARGEST))
    made = io.BytesIO()
    if small:
        picture.save(made, format="png", optimize=True)
    else:
        picture.save(made, format="jpeg", quality=QUALITY, optimize=True)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(made.getvalue()).decode('ascii')}"


def outline(mask: npt.NDArray[np.bool_]) -> str:
    """Outlines of ``(H, W)`` as the data of a path; a unit is half a voxel, from the upper left corner of the first."""
    lines: Any = contour_generator(z=np.pad(mask, 1).astype(float)).lines(0.5)
    parts = []
    for line in lines:
        # Padded by one, and a voxel's centre lies half a voxel from its corner.
        points = np.round(2 * (line - 0.5)).astype(int)
        steps = np.diff(points, axis=0)
        kept = [place for place in range(1, len(steps)) if (steps[place] != steps[place - 1]).any()]
        corners = points[[0, *kept]]
        moves = " ".join(f"{x} {y}" for x, y in np.diff(corners, axis=0))
        parts.append(f"M{corners[0][0]} {corners[0][1]}l{moves}z")
    return "".join(parts)


def _slice(plane: Plane, column: Column, source: str) -> str:
    """One picture: a black square of the plane's side in mm."""
    (down, right), (tall, wide) = plane.corner, plane.spacing
    height, width = plane.image.shape
    side = plane.side
    parts = [
        f'<image href="{source}" x="{right:.4g}" y="{down:.4g}" width="{width * wide:.5g}" '
        f'height="{height * tall:.5g}" preserveAspectRatio="none"/>'
    ]
    scaled = []
    if column.hidden is not None:
        scaled.append(f'<path class="hidden" d="{cells(plane.maps[column.hidden][0])}"/>')
    if column.outlined is not None:
        scaled += [f'<path class="truth" d="{outline(mask)}"/>' for mask in plane.maps[column.outlined] if mask.any()]
    drawn: Masks | None = None if column.drawn is None else plane.maps[column.drawn]
    for place, mask in enumerate(drawn if drawn is not None else ()):
        if mask.any():
            scaled.append(f'<path d="{outline(mask)}" {_stroke(place)}/>')
    parts.append(
        f'<g transform="translate({right:.4g} {down:.4g}) scale({wide / 2:.5g} {tall / 2:.5g})">{"".join(scaled)}</g>'
    )
    if drawn is not None and column.numbered:
        parts += [_numbered(place, mask, plane) for place, mask in enumerate(drawn) if mask.any()]
    parts += [_cross(plane), _sides(plane)]
    return f'<svg class="slice" viewBox="0 0 {side:.5g} {side:.5g}">{"".join(parts)}</svg>'


def cells(mask: npt.NDArray[np.bool_]) -> str:
    """All voxels of ``(H, W)`` as rectangles, equal rows together; units as for :func:`outline`."""
    parts, begin = [], 0
    for row in range(1, len(mask) + 1):
        if row < len(mask) and (mask[row] == mask[begin]).all():
            continue
        ends = np.flatnonzero(np.diff(np.pad(mask[begin], 1).astype(int)))
        for left, end in zip(ends[::2], ends[1::2], strict=True):
            parts.append(f"M{2 * left} {2 * begin}h{2 * (end - left)}v{2 * (row - begin)}h{-2 * (end - left)}z")
        begin = row
    return "".join(parts)


def _numbered(place: int, mask: npt.NDArray[np.bool_], plane: Plane) -> str:
    """The number of a structure where it is widest, unless it is too small for one."""
    depth = distance_transform_edt(np.pad(mask, 1), sampling=plane.spacing)[1:-1, 1:-1]
    if depth.max() < 0.02 * plane.side:
        return ""
    row, column = np.unravel_index(int(depth.argmax()), mask.shape)
    x = plane.corner[1] + (column + 0.5) * plane.spacing[1]
    y = plane.corner[0] + (row + 0.5) * plane.spacing[0]
    return _text(str(place + 1), x, y, "middle", 0.07 * plane.side)


def _crossing(plane: Plane) -> tuple[float, float]:
    """Where the other planes lie: (x, y) in mm of the square."""
    (down, right), (row, column), (tall, wide) = plane.corner, plane.cross, plane.spacing
    return right + (column + 0.5) * wide, down + (row + 0.5) * tall


def _cross(plane: Plane) -> str:
    """Short lines at the edges, in line with the other planes."""
    (x, y), side, short = _crossing(plane), plane.side, 0.05 * plane.side
    lines = (
        f"M{x:.4g} 0v{short:.3g}M{x:.4g} {side:.4g}v{-short:.3g}M0 {y:.4g}h{short:.3g}M{side:.4g} {y:.4g}h{-short:.3g}"
    )
    return f'<path class="cross" d="{lines}"/>'


def _sides(plane: Plane) -> str:
    """The patient's sides, at a third or two of each edge, wherever no short line is."""
    side, gap, size = plane.side, 0.03 * plane.side, 0.055 * plane.side
    left, right, upper, lower = SIDES[plane.name]
    x, y = (side * (2 / 3 if abs(at / side - 1 / 3) < 1 / 6 else 1 / 3) for at in _crossing(plane))
    places = (
        (left, gap, y, "start"),
        (right, side - gap, y, "end"),
        (upper, x, gap + size / 2, "middle"),
        (lower, x, side - gap - size / 2, "middle"),
    )
    return "".join(_text(letter, *place, size) for letter, *place in places)


def _text(text: str, x: float, y: float, anchor: str, size: float) -> str:
    return (
        f'<text x="{x:.4g}" y="{y:.4g}" dy=".35em" text-anchor="{anchor}" font-size="{size:.3g}" '
        f'stroke-width="{size / 7:.2g}">{text}</text>'
    )


def _stroke(place: int) -> str:
    """Colour and line of the structure at this place, as everywhere (:mod:`medcontext.drawing`)."""
    style = LABEL_STYLES[place // len(LABEL_COLOURS) % len(LABEL_STYLES)]
    dash = "" if isinstance(style, str) else f' stroke-dasharray="{" ".join(f"{2 * length:g}" for length in style[1])}"'
    return f'stroke="{label_colour(place % len(LABEL_COLOURS))}" stroke-width="1.8"{dash}'


def alt_of(dices: Mapping[str, float | None]) -> str:
    """The Dice of each run in words."""
    return ", ".join(f"{name} {'without Dice' if dice is None else f'{dice:.3f}'}" for name, dice in dices.items())
