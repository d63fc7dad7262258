"""Frames of a game of minigrid, played at random: ``python make_frames.py FOLDER [EPISODES]``.

The same ones each time, as ``doorkey/episode_003/frame_017.png``.
"""

import sys
from pathlib import Path

import gymnasium
import minigrid  # noqa: F401 - registers its games
import numpy as np
from PIL import Image

FRAMES = 40


def make_frames(folder, episodes=12):
    game = gymnasium.make("MiniGrid-DoorKey-8x8-v0").unwrapped
    for episode in range(episodes):
        there = Path(folder, "doorkey", f"episode_{episode:03d}")
        there.mkdir(parents=True, exist_ok=True)
        actions = np.random.default_rng(episode)
        game.reset(seed=episode)
        for frame in range(FRAMES):
            Image.fromarray(game.get_frame(tile_size=8, highlight=False)).save(there / f"frame_{frame:03d}.png")
            _, _, terminated, truncated, _ = game.step(int(actions.integers(7)))
            if terminated or truncated:
                game.reset(seed=1000 + episode)
    return folder


if __name__ == "__main__":
    make_frames(sys.argv[1], *map(int, sys.argv[2:]))
