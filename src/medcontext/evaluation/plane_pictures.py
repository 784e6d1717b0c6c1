"""Slices with outlines as inline SVG: the grey picture once, vector outlines on it, positions in mm."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt

from medcontext.drawing import LABEL_COLOURS, LABEL_STYLES, label_colour
from medcontext.evaluation.planes import SIDES, Plane
from medcontext.evaluation.slice_paths import cells, grey, outline


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


def plane_pictures(name: str, views: Sequence[Sequence[Plane]], columns: Sequence[Column], alt: str) -> str:
    """A row of pictures for each plane.

    Args:
        name: Of these pictures, for the ids of what they are made of; no others of the page have it.
        views: The same planes of each image that a column may show; their maps are those of the first.
        columns: What stands beside one another.
        alt: What is seen, in words.
    """
    heads = "".join(
        f'<div class="head"><b>{column.head}</b><span>{escape(column.note)}</span></div>' for column in columns
    )
    hidden = {column.hidden for column in columns}
    rows = []
    for number, plane in enumerate(views[0]):
        own = f"{name}-{plane.name}"
        defined = _definitions(own, [view[number] for view in views], hidden)
        pictures = "".join(_slice(own, plane, column) for column in columns)
        rows.append(f'{defined}<div class="plane">{plane.name} {plane.index + 1}/{plane.count}</div>{pictures}')
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="Pictures, scroll sideways where they are wider">\n'
        f'<div class="planes" role="img" style="--columns: {len(columns)}" aria-label="{escape(alt)}"><span></span>'
        f"{heads}{''.join(rows)}</div>\n</div>"
    )


def _definitions(own: str, views: Sequence[Plane], hidden: Container[int | None]) -> str:
    """The images of a plane, and the outlines of every structure of every map, which pictures show by their ids."""
    plane = views[0]
    (down, right), (tall, wide), (height, width) = plane.corner, plane.spacing, plane.image.shape
    parts = [
        f'<image id="{own}-image-{place}" href="{grey(view.image)}" x="{right:.4g}" y="{down:.4g}" '
        f'width="{width * wide:.5g}" height="{height * tall:.5g}" preserveAspectRatio="none"/>'
        for place, view in enumerate(views)
    ]
    scaled = f'transform="translate({right:.4g} {down:.4g}) scale({wide / 2:.5g} {tall / 2:.5g})"'
    for place, masks in enumerate(plane.maps):
        draw, kind = (cells, "hidden") if place in hidden else (outline, "outline")
        parts += [
            f'<path id="{own}-{place}-{structure}" class="{kind}" {scaled} d="{draw(mask)}"/>'
            for structure, mask in enumerate(masks)
            if mask.any()
        ]
    return f'<svg class="defs"><defs>{"".join(parts)}</defs></svg>'


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


def _slice(own: str, plane: Plane, column: Column) -> str:
    """One picture: a black square of the plane's side in mm."""

    def used(place: int) -> list[tuple[int, str]]:
        return [(k, f'<use href="#{own}-{place}-{k}"') for k, mask in enumerate(plane.maps[place]) if mask.any()]

    parts = [f'<use href="#{own}-image-{column.image}"/>']
    if column.hidden is not None:
        parts += [f"{use}/>" for _, use in used(column.hidden)]
    if column.outlined is not None:
        parts += [f'{use} class="truth"/>' for _, use in used(column.outlined)]
    if column.drawn is not None:
        parts += [f"{use} {_stroke(structure)}/>" for structure, use in used(column.drawn)]
        if column.numbered:
            parts += [_numbered(k, mask, plane) for k, mask in enumerate(plane.maps[column.drawn]) if mask.any()]
    parts += [_cross(plane), _sides(plane)]
    return f'<svg class="slice" viewBox="0 0 {plane.side:.5g} {plane.side:.5g}">{"".join(parts)}</svg>'


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
    return "".join(_text(letter, across, up, anchor, size) for letter, across, up, anchor in places)


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
