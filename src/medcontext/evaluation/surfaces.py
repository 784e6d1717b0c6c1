"""Surfaces of voxel objects, and the distances between two of them in mm. Two kinds of surface are in use:

- *voxels*: the voxels of the object with a face neighbour outside it, each a point at its centre, all of one weight
  (MedPy, MONAI);
- *elements*: for every corner where eight voxels meet, some of them inside and some outside, the piece of the
  marching-cubes surface there, a point at the corner with the piece's area as its weight (DeepMind's surface-distance;
  Nikolov et al., J Med Internet Res 23(7), 2021).

What lies outside the array counts as outside the object. Distances are exact, from a k-d tree of the surface's points:
a surface has far fewer of them than its box has voxels, so this is several times faster than a distance transform.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

Mask = npt.NDArray[np.bool_]
Spacing = tuple[float, float, float]
Edges = tuple[Spacing, Spacing, Spacing]
Voxel = Spacing | Edges
"""Size of a voxel in mm along each array axis; or its edges, a vector in mm for each axis, where they are not at right
angles to one another, as of CT with a tilted gantry."""

Values = npt.NDArray[np.float64]
Corner = tuple[int, ...]

Hd95 = Literal["pooled", "directed", "weighted"]
"""Definitions of the 95th percentile, see :meth:`Distances.hd95`."""

ROUNDING = 1e-6
"""A distance this share above the tolerance is still within it: headers keep spacings in single precision."""


def edges_of(voxel: Voxel) -> Values:
    """``(3, 3)``: a voxel's edges in mm, a row for each array axis."""
    given = np.asarray(voxel, dtype=np.float64)
    return np.diag(given) if given.ndim == 1 else given


def volume_of(voxel: Voxel) -> float:
    """In mm³."""
    one, two, three = edges_of(voxel)
    return abs(float(one @ np.cross(two, three)))


@dataclass(frozen=True)
class Distances:
    """From every point of each of two surfaces to the nearest point of the other.

    Attributes:
        there: ``(N,)`` distances in mm from the first surface's points.
        back: ``(M,)`` distances in mm from the second's.
        there_weights: ``(N,)`` weights of the first's points.
        back_weights: ``(M,)`` weights of the second's.
    """

    there: Values
    back: Values
    there_weights: Values
    back_weights: Values

    def hd95(self, definition: Hd95) -> float:
        """95th percentile of the distances.

        ``pooled``: of both directions together (MedPy). ``directed``: the larger of the two directions' percentiles
        (MONAI). Both are interpolated linearly and pass over the weights. ``weighted``: the larger of the two
        directions' smallest distances within which 95 % of the weight lies (surface-distance).
        """
        if definition == "pooled":
            return float(np.percentile(np.concatenate([self.there, self.back]), 95))
        if definition == "directed":
            return float(max(np.percentile(self.there, 95), np.percentile(self.back, 95)))
        return max(_quantile(self.there, self.there_weights, 0.95), _quantile(self.back, self.back_weights, 0.95))

    def assd(self) -> float:
        """Mean of the distances of both directions together."""
        return float(self.there.sum() + self.back.sum()) / (len(self.there) + len(self.back))

    def nsd(self, tolerance: float) -> float:
        """Share of both surfaces, by weight, that lies within ``tolerance`` mm of the other."""
        most = tolerance * (1 + ROUNDING)
        within = self.there_weights[self.there <= most].sum() + self.back_weights[self.back <= most].sum()
        return float(within / (self.there_weights.sum() + self.back_weights.sum()))


def voxel_distances(a: Mask, b: Mask, voxel: Voxel) -> Distances:
    """Distances between the surface voxels of two masks of one shape, both with at least one voxel."""
    surface_a, surface_b = border(a), border(b)
    there, back = _between(surface_a, surface_b, voxel, math.inf)
    return Distances(there, back, np.ones_like(there), np.ones_like(back))


def element_distances(a: Mask, b: Mask, voxel: Voxel, within: float = math.inf) -> Distances:
    """Distances between the surface elements of two masks of one shape, both with at least one voxel.

    Args:
        a: ``(X, Y, Z)`` mask.
        b: The other.
        voxel: Its size, or its edges.
        within: Distances beyond this many mm need not be known (they become infinite), which is faster.
    """
    codes_a, codes_b = neighbour_codes(a), neighbour_codes(b)
    surface_a, surface_b = _mixed(codes_a), _mixed(codes_b)
    there, back = _between(surface_a, surface_b, voxel, within * (1 + 2 * ROUNDING))
    areas = element_areas(voxel)
    return Distances(there, back, areas[codes_a[surface_a]], areas[codes_b[surface_b]])


def border(mask: Mask) -> Mask:
    """The voxels of ``mask`` with a face neighbour outside it."""
    inside = _surrounded(mask)
    inner = inside[:-2, 1:-1, 1:-1] & inside[2:, 1:-1, 1:-1]
    inner &= inside[1:-1, :-2, 1:-1]
    inner &= inside[1:-1, 2:, 1:-1]
    inner &= inside[1:-1, 1:-1, :-2]
    inner &= inside[1:-1, 1:-1, 2:]
    return mask & ~inner


def neighbour_codes(mask: Mask) -> npt.NDArray[np.uint8]:
    """``(X + 1, Y + 1, Z + 1)``: for each corner of the voxels, which of the eight around it are in ``mask``.

    The voxel at ``(x, y, z)``, each 0 or 1, of these eight sets bit ``4 x + 2 y + z``.
    """
    inside = _surrounded(mask).view(np.uint8)
    along_z = inside[:, :, :-1] | inside[:, :, 1:] << np.uint8(1)
    along_yz = along_z[:, :-1] | along_z[:, 1:] << np.uint8(2)
    codes: npt.NDArray[np.uint8] = along_yz[:-1] | along_yz[1:] << np.uint8(4)
    return codes


@lru_cache(maxsize=16)
def element_areas(voxel: Voxel) -> Values:
    """``(256,)`` mm²: area of the marching-cubes surface in the cube between eight voxel centres, by neighbour code.

    The corners of the cube that are fewer, those inside or those outside, fall into groups that hang together along its
    edges; a piece of surface through the middles of the cut edges parts each group from the rest (Lorensen and Cline,
    Computer Graphics 21(4), 1987). Where a piece is not flat, it is cut into triangles as surface-distance does.
    """
    # What an area's normal in units of voxels becomes in mm.
    faces = volume_of(voxel) * np.linalg.inv(edges_of(voxel))
    corners = list(product((0, 1), repeat=3))
    areas = np.zeros(256)
    for code in range(256):
        inside = {corner for bit, corner in enumerate(corners) if code >> bit & 1}
        fewer = inside if len(inside) <= 4 else set(corners) - inside
        areas[code] = sum(np.linalg.norm(faces @ normal) for group in _groups(fewer) for normal in _normals(group))
    areas.flags.writeable = False
    return areas


def _groups(corners: Collection[Corner]) -> list[set[Corner]]:
    """The corners of a cube, grouped by what hangs together along its edges."""
    left, groups = set(corners), []
    while left:
        group, reached = set(), {left.pop()}
        while reached:
            group |= reached
            reached = {corner for corner in left if any(math.dist(corner, other) == 1 for other in reached)}
            left -= reached
        groups.append(group)
    return groups


def _normals(group: Collection[Corner]) -> list[Values]:
    """Normals of the flat parts of the surface that cuts a group off a cube of side 1, as long as their areas are."""
    # Away from the group: up an axis where it lies at 0, down where it lies at 1.
    along = np.diag(np.where(np.mean(list(group), axis=0) > 0.5, -1.0, 1.0))
    slant = along.sum(axis=0) / 8  # of the triangle that cuts one corner off
    degree = {corner: sum(math.dist(corner, other) == 1 for other in group) for corner in group}
    shared = [axis for axis in range(3) if len({corner[axis] for corner in group}) == 1]
    if len(group) == 1:
        return [slant]
    if len(group) == 2:
        return [sum(along[axis] for axis in shared) / 2]
    if len(group) == 3:
        return [along[shared[0]] / 2, 3 * slant]
    if shared:
        return [along[shared[0]]]
    if max(degree.values()) == 3:
        return [6 * slant]
    one, other = (corner for corner in group if degree[corner] == 2)
    middle = next(axis for axis in range(3) if one[axis] != other[axis])
    # Half of the group lies at either end of this axis, and the hexagon has two such triangulations: their mean.
    both = along[middle], -along[middle]
    ends = [along[axis] for axis in range(3) if axis != middle]
    return [(sum(ends) + turn) / 4 for turn in both] + [(turn + end) / 8 for turn in both for end in ends]


def _surrounded(mask: Mask) -> Mask:
    """``mask`` with a layer of nothing around it."""
    inside = np.zeros([length + 2 for length in mask.shape], dtype=bool)
    inside[1:-1, 1:-1, 1:-1] = mask
    return inside


def _mixed(codes: npt.NDArray[np.uint8]) -> Mask:
    """Where voxels inside and outside meet: neither code 0 nor code 255."""
    mixed: Mask = codes + np.uint8(1) > 1
    return mixed


def _between(a: Mask, b: Mask, voxel: Voxel, most: float) -> tuple[Values, Values]:
    """For each point of two surfaces, in array order, how far the nearest of the other is; infinite above ``most``.

    What both surfaces have in common lies at distance 0 and is not searched for.
    """
    places_a, places_b = np.flatnonzero(a), np.flatnonzero(b)
    points_a, points_b = (_millimetres(places, a.shape, voxel) for places in (places_a, places_b))
    alone_a, alone_b = ~b.ravel()[places_a], ~a.ravel()[places_b]
    there, back = np.zeros(len(places_a)), np.zeros(len(places_b))
    there[alone_a] = _nearest(points_a[alone_a], points_b, most)
    back[alone_b] = _nearest(points_b[alone_b], points_a, most)
    return there, back


def _millimetres(places: npt.NDArray[np.intp], shape: tuple[int, ...], voxel: Voxel) -> Values:
    """``(N, 3)`` coordinates in mm of flat indices."""
    points: Values = np.stack(np.unravel_index(places, shape), axis=1) @ edges_of(voxel)
    return points


def _nearest(points: Values, others: Values, most: float) -> Values:
    """Distance from each point to the nearest of the others."""
    if not len(points):
        return np.zeros(0)
    # Points on a grid need no balanced tree, and without one it is built in half the time.
    tree = cKDTree(others, balanced_tree=False, compact_nodes=False)
    distances: Values = tree.query(points, distance_upper_bound=most)[0]
    return distances


def _quantile(distances: Values, weights: Values, share: float) -> float:
    """The smallest distance within which at least this share of the weight lies."""
    order = np.argsort(distances)
    reached = np.cumsum(weights[order])
    place = np.searchsorted(reached, share * reached[-1])
    return float(distances[order[min(place, len(order) - 1)]])
