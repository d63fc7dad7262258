"""The pictures of the README: a run's learning curve, and what its model does in one episode.

    python examples/picture.py examples/racetrack_sac.yaml --store ./store --out racetrack.png
    python examples/picture.py examples/spread_multiagent.yaml --store ./store --out spread.png

Needs matplotlib and the run's environment.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
from pathlib import Path
from typing import Any

import gymnasium
import matplotlib
import numpy as np
from stable_baselines3 import SAC

from train_cloud.artifacts import tensorboard
from train_cloud.config import RunFile, load_run_file
from train_cloud.evaluate import rendering
from train_cloud.operations.export import export
from train_cloud.run import layout
from train_cloud.store import open_store

matplotlib.use("Agg")
from matplotlib import pyplot

COLOURS = ("tab:blue", "tab:orange", "tab:green")


def curves(run_file: RunFile, store: str) -> dict[str, list[tuple[int, float]]]:
    """Mean episode return over timesteps, of each agent where there are several."""
    with tempfile.TemporaryDirectory() as folder:
        tensorboard.pull(open_store(layout.run_url(store, run_file.run_id)), Path(folder))
        scalars = tensorboard.read_scalars(Path(folder))
    tag = "rollout/ep_rew_mean"
    agents = {name.removesuffix(f"/{tag}"): points for name, points in scalars.items() if name.endswith(f"/{tag}")}
    return agents or {"": scalars.get(tag, [])}


def race(axes: Any, model: SAC, run_file: RunFile) -> None:
    """One episode on highway-env's track: the last frame."""
    assert run_file.environment is not None
    importlib.import_module(str(run_file.environment.module))
    env = gymnasium.make(run_file.environment.id, render_mode="rgb_array", **run_file.environment.kwargs)
    seen = rendering.Seen()
    observation, _ = env.reset(seed=3)
    frame, total, steps, over = env.render(), 0.0, 0, False
    while not over:
        action, _ = model.predict(observation, deterministic=True)
        observation, reward, terminated, truncated, _ = env.step(action)
        total, steps, over = total + float(reward), steps + 1, terminated or truncated
        if steps <= 40:
            frame = env.render()
            seen.add(rendering.as_picture(frame))
    if seen.blank is not None:
        raise SystemExit(f"nothing is to be seen: {seen.blank}")
    axes.imshow(frame)
    axes.set_axis_off()
    axes.set_title(f"one episode: {steps} steps, return {total:.0f}")


def spread(axes: Any, models: dict[str, SAC], run_file: RunFile) -> None:
    """One episode of MPE2's spread: the ways of the agents, and the landmarks."""
    assert run_file.environment is not None
    module, _, name = run_file.environment.id.partition(":")
    env = getattr(importlib.import_module(module), name)(**run_file.environment.kwargs)
    observations, _ = env.reset(seed=6)
    world = env.unwrapped.world
    ways: dict[str, list[Any]] = {name: [] for name in env.agents}
    while env.agents:
        for agent in world.agents:
            ways[agent.name].append(np.array(agent.state.p_pos))
        actions = {name: models[name].predict(observations[name], deterministic=True)[0] for name in env.agents}
        observations, *_ = env.step(actions)
    for colour, (name, way) in zip(COLOURS, ways.items(), strict=False):
        line = np.array(way)
        axes.plot(line[:, 0], line[:, 1], color=colour, marker=".", label=name)
        axes.plot(*line[-1], color=colour, marker="o", markersize=14, alpha=0.5)
    for landmark in world.landmarks:
        axes.plot(*landmark.state.p_pos, color="black", marker="x", markersize=12, markeredgewidth=3)
    axes.set_aspect("equal")
    axes.set_title("one episode; crosses: landmarks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_file", type=Path)
    parser.add_argument("--store", default="./store")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    run_file = load_run_file(options.run_file)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6), dpi=90, layout="constrained")
    for colour, (name, points) in zip(COLOURS, curves(run_file, options.store).items(), strict=False):
        left.plot(*np.array(points).T, color=colour, label=name or None)
    left.set_xlabel("timesteps")
    left.set_ylabel("mean episode return")
    left.set_title(run_file.run_id)
    left.grid(alpha=0.25)
    with tempfile.TemporaryDirectory() as folder:
        model = export(options.store, run_file.run_id, out=Path(folder) / "model")
        if (model / "model.zip").exists():
            with rendering.applied(rendering.candidates({})[0]):  # no screen is needed
                race(right, SAC.load(model / "model.zip", device="cpu"), run_file)
        else:
            left.legend(frameon=False)
            zips = {path.parent.name: SAC.load(path, device="cpu") for path in sorted(model.glob("*/model.zip"))}
            spread(right, zips, run_file)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out)


if __name__ == "__main__":
    main()
