"""Race tracks made here: a closed centreline with a width, as the F1TENTH gym reads it, and how far along it a car is.

Nothing is downloaded: an oval, and circuits from a seed. Lengths in metres, angles in radians.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from train_cloud.errors import InputError

Floats = npt.NDArray[np.float64]

_SPACING = 0.1  # between two points of a centreline
_RESOLUTION = 0.05  # of a map's pixel
_MARGIN = 1.0  # of wall around the track
_ATTEMPTS = 200
_HARMONICS = (2, 3, 4, 5)


@dataclass(frozen=True)
class Track:
    """A closed track of constant width, driven counter-clockwise.

    :ivar points: centreline, (n, 2), evenly spaced; the first follows the last
    """

    name: str
    points: Floats
    width: float

    def __post_init__(self) -> None:
        ahead = np.roll(self.points, -1, axis=0) - self.points
        steps = np.hypot(ahead[:, 0], ahead[:, 1])
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "at", np.concatenate([[0.0], np.cumsum(steps)[:-1]]))
        object.__setattr__(self, "ahead", ahead / steps[:, None])

    steps: Floats = None  # type: ignore[assignment]
    """From each point to the next."""
    at: Floats = None  # type: ignore[assignment]
    """Distance of each point from the first, along the centreline."""
    ahead: Floats = None  # type: ignore[assignment]
    """Unit vectors from each point to the next, (n, 2)."""

    @property
    def length(self) -> float:
        return float(self.steps.sum())

    def headings(self) -> Floats:
        return np.arctan2(self.ahead[:, 1], self.ahead[:, 0])

    def curvatures(self) -> Floats:
        turned = np.diff(np.unwrap(self.headings(), period=2 * np.pi), append=self.headings()[0] + 2 * np.pi)
        return ((turned + np.pi) % (2 * np.pi) - np.pi) / self.steps

    def pose(self, along: float, aside: float = 0.0) -> Floats:
        """``(x, y, heading)`` at a distance along the centreline, ``aside`` to its left."""
        index = int(np.searchsorted(self.at, along % self.length, side="right")) - 1
        tangent = self.ahead[index]
        x, y = self.points[index] + tangent * (along % self.length - self.at[index])
        return np.array([x - aside * tangent[1], y + aside * tangent[0], np.arctan2(tangent[1], tangent[0])])

    def along(self, x: float, y: float, near: float | None = None) -> float:
        """How far along the centreline the point next to ``(x, y)`` is, in [0, length).

        :param near: look only within 3 m of there, so that a neighbouring stretch is not taken for this one
        """
        offsets = np.array([x, y]) - self.points
        distances = np.einsum("ij,ij->i", offsets, offsets)
        if near is not None:
            away = np.abs(progress(near, self.at, self.length))
            distances = np.where(away <= 3.0, distances, np.inf)
        index = int(np.argmin(distances))
        return float((self.at[index] + offsets[index] @ self.ahead[index]) % self.length)

    def occupancy(self) -> tuple[npt.NDArray[np.uint8], tuple[float, float]]:
        """A map: 255 where the track is, 0 for the wall, the first row at the lowest y; and the place of its first
        pixel.
        """
        reach = self.width / 2 + _MARGIN
        low = self.points.min(axis=0) - reach
        columns, rows = (int(n) for n in np.ceil((self.points.max(axis=0) + reach - low) / _RESOLUTION))
        image = np.zeros((rows, columns), np.uint8)
        half = int(np.ceil(self.width / 2 / _RESOLUTION)) + 1
        for x, y in self.points:
            column, row = int((x - low[0]) / _RESOLUTION), int((y - low[1]) / _RESOLUTION)
            window = np.s_[max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1]
            ys, xs = np.mgrid[window] * _RESOLUTION
            image[window][np.hypot(xs + low[0] - x, ys + low[1] - y) <= self.width / 2] = 255
        return image, (float(low[0]), float(low[1]))

    def write(self, folder: Path) -> None:
        """The gym's files: ``<name>_map.yaml`` and ``.png``, ``<name>_centerline.csv`` with the widths to both sides,
        ``<name>_raceline.csv``, which is the centreline.
        """
        from PIL import Image

        image, (x, y) = self.occupancy()
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[::-1]).save(folder / f"{self.name}_map.png")
        (folder / f"{self.name}_map.yaml").write_text(
            f"image: {self.name}_map.png\nresolution: {_RESOLUTION}\norigin: [{x}, {y}, 0.0]\nnegate: 0\n"
            "occupied_thresh: 0.45\nfree_thresh: 0.196\n"
        )
        widths = np.full((len(self.points), 2), self.width / 2)
        np.savetxt(folder / f"{self.name}_centerline.csv", np.hstack([self.points, widths]), delimiter=",")
        headings, curvatures = self.headings(), self.curvatures()
        speeds = np.ones(len(self.points))
        line = np.column_stack([self.at, self.points, headings, curvatures, speeds, 0.0 * speeds])
        np.savetxt(folder / f"{self.name}_raceline.csv", line, delimiter=";")


def progress(before: float, after: float | Floats, length: float) -> Floats:
    """How far one came from ``before`` to ``after`` on a closed line: over the finish line as anywhere else."""
    return np.asarray((np.asarray(after) - before + length / 2) % length - length / 2)


def make_track(name: str, *, seed: int = 0, width: float = 2.2) -> Track:
    """:param name: ``oval``, or ``circuit`` from ``seed``
    :raises InputError: another name, or a width in which no car can drive
    """
    if not isinstance(width, int | float) or not 1.0 <= width <= 6.0:
        raise InputError("environment.kwargs.width", width, "give metres, from 1 to 6: a car is 0.31 m wide")
    if name == "oval":
        return Track("oval", _even(_oval()), width)
    if name == "circuit":
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise InputError("environment.kwargs.track_seed", seed, "give a whole number of at least 0")
        return _circuit(seed, width)
    raise InputError("environment.kwargs.track", name, "use oval or circuit")


def _oval(straight: float = 8.0, radius: float = 4.0) -> Floats:
    turn = np.linspace(-np.pi / 2, np.pi / 2, 100)
    right = np.column_stack([straight / 2 + radius * np.cos(turn), radius * np.sin(turn)])
    return np.vstack([right, -right])


def _circuit(seed: int, width: float) -> Track:
    """Around a point, at a distance that swings: it never meets itself. Drawn anew until no bend is too tight."""
    random = np.random.default_rng(seed)
    angles = np.linspace(0, 2 * np.pi, 2000, endpoint=False)
    for attempt in range(_ATTEMPTS):
        swing = 0.28 * (1 - attempt / _ATTEMPTS)
        phases, sizes = random.uniform(0, 2 * np.pi, len(_HARMONICS)), random.uniform(0, swing, len(_HARMONICS))
        waves = [size * np.cos(n * angles + phase) for n, size, phase in zip(_HARMONICS, sizes, phases, strict=True)]
        distance = 9.0 * (1 + np.sum(waves, axis=0))
        track = Track(
            f"circuit-{seed}", _even(np.column_stack([distance * np.cos(angles), distance * np.sin(angles)])), width
        )
        if distance.min() > width and 1 / np.abs(track.curvatures()).max() > width / 2 + 0.4:
            return track
    raise InputError("environment.kwargs.width", width, "no circuit of this width was found: give less")


def _even(points: Floats) -> Floats:
    """The closed line through ``points``, in steps of equal length."""
    closed = np.vstack([points, points[:1]])
    lengths = np.hypot(*np.diff(closed, axis=0).T)
    at = np.concatenate([[0.0], np.cumsum(lengths)])
    wanted = np.linspace(0, at[-1], round(at[-1] / _SPACING), endpoint=False)
    return np.column_stack([np.interp(wanted, at, closed[:, 0]), np.interp(wanted, at, closed[:, 1])])
