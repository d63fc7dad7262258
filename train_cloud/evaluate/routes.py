"""Where the agent went, as a picture that needs no explanation: the path coloured by speed, over map or centreline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium
import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from train_cloud.config import read_yaml
from train_cloud.config.evaluation import Routes
from train_cloud.envs.make import load_object
from train_cloud.errors import InputError

matplotlib.use("Agg")

Points: TypeAlias = npt.NDArray[np.float64]
#: Pixels, and the extent (left, right, bottom, top) in the environment's units.
Map: TypeAlias = tuple[npt.NDArray[Any], tuple[float, float, float, float]]


class Route:
    """Positions and speeds of one episode."""

    def __init__(self, settings: Routes, env: gymnasium.Env[Any, Any]) -> None:
        self.settings = settings
        self.positions: list[Points] = []
        self.speeds: list[float] = []
        self.centreline: Points | None = None
        if isinstance(settings.centreline, str):
            found = load_object(settings.centreline, "evaluation.routes.centreline")(env)
            self.centreline = np.array(found, dtype=float)[:, :2]

    def add(self, env: gymnasium.Env[Any, Any], info: Mapping[str, Any]) -> None:
        position = _read(self.settings.position, "evaluation.routes.position", env, info)
        if position is None:
            return
        point = np.array(position, dtype=float).reshape(-1)  # a copy: environments move the very array that they gave
        if len(point) < 2:
            raise InputError("evaluation.routes.position", position, "it must give x and y")
        self.positions.append(point[:2])
        if self.settings.speed is not None:
            speed = _read(self.settings.speed, "evaluation.routes.speed", env, info)
            self.speeds.append(float(np.linalg.norm(np.asarray(speed, dtype=float))) if speed is not None else np.nan)

    @property
    def is_a_point(self) -> bool:
        """Whether all positions, of several, are the same."""
        return len(self.positions) > 1 and not np.ptp(np.array(self.positions), axis=0).any()


def _read(source: str, field: str, env: gymnasium.Env[Any, Any], info: Mapping[str, Any]) -> Any:
    if ":" in source:
        return load_object(source, field)(env, info)
    return info.get(source.removeprefix("info."))


def read_centreline(path: Path) -> Points:
    """The first two columns of a CSV file, with or without a heading.

    :return: shape (points, 2)
    :raises InputError: it has no two columns of numbers
    """
    rows = []
    for line in path.read_text().splitlines():
        fields = line.lstrip("# ").replace(";", ",").split(",")
        try:
            rows.append((float(fields[0]), float(fields[1])))
        except (ValueError, IndexError):
            continue  # a heading or a comment
    if len(rows) < 2:
        raise InputError("evaluation.routes.centreline", str(path), "give at least two lines that begin with x,y")
    return np.array(rows)


def read_map(path: Path) -> Map:
    """A map in the format of ROS's map_server: YAML with ``image``, ``resolution`` and ``origin``.

    :raises InputError: a field or the image is missing
    """
    from PIL import Image

    content = read_yaml(path.read_text(), path.name)
    try:
        image = np.asarray(Image.open(path.parent / content["image"]).convert("L"))
        scale, (left, bottom) = float(content["resolution"]), map(float, content["origin"][:2])
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise InputError("evaluation.routes.map", str(path), f"give image, resolution and origin: {error!r}") from error
    return image, (left, left + image.shape[1] * scale, bottom, bottom + image.shape[0] * scale)


def draw(route: Route, path: Path, title: str, centreline: Points | None, beneath: Map | None) -> bool:
    """Write the picture; False where the environment reported no two positions."""
    if len(route.positions) < 2:
        return False
    points = np.array(route.positions)
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    told = len(route.speeds) == len(points) and not np.isnan(route.speeds).all()
    speeds = np.asarray(route.speeds)[1:] if told else steps
    figure = Figure(figsize=(8, 7), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    if beneath is not None:
        axes.imshow(beneath[0], extent=beneath[1], cmap="gray", vmin=0, vmax=255, alpha=0.45, zorder=0)
    line = centreline if centreline is not None else route.centreline
    if line is not None:
        axes.plot(*line.T, color="0.65", linewidth=1, linestyle=(0, (6, 4)), label="centreline", zorder=1)
    segments = np.stack([points[:-1], points[1:]], axis=1)
    drawn = LineCollection(list(segments), cmap="viridis", linewidth=2.5, zorder=2, capstyle="round")
    drawn.set_array(speeds)
    axes.add_collection(drawn)
    axes.plot(*points[0], "o", color="tab:green", markersize=9, label="start", zorder=3)
    axes.plot(*points[-1], "X", color="tab:red", markersize=10, label="end", zorder=3)
    figure.colorbar(drawn, ax=axes, label="speed" if told else "distance for each step", shrink=0.85)
    axes.margins(0.05)
    axes.autoscale_view()
    axes.set_aspect("equal", adjustable="datalim")
    axes.set(title=title, xlabel="x", ylabel="y")
    axes.legend(loc="best", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return True
