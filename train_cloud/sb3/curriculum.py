"""The callback that takes a training from stage to stage of its curriculum.

It decides where checkpoints are made, at a rollout's start, and before the checkpoint is: whoever is restored from it
goes on in the stage that was decided on. What it holds is all that the curriculum has of state, besides the count of
episodes that each environment has.
"""

from __future__ import annotations

import logging
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from train_cloud.config.curriculum import Curriculum, Result, measured, next_stage, thresholds
from train_cloud.sb3.success import succeeded

log = logging.getLogger(__name__)

#: Changes of the stage that are remembered, the newest ones; all of them are in TensorBoard.
_MOST_CHANGES = 100


class StageChanges(BaseCallback):
    """
    :ivar stage: the present one
    :ivar window: newest results of its episodes since it has begun
    :ivar changes: at how many timesteps which stage began, the newest ones
    :ivar played: episodes that ended, by the stage that they were played in
    :ivar succeeded: those of them that succeeded
    :ivar told: how many of all said whether they did
    """

    def __init__(self, curriculum: Curriculum) -> None:
        super().__init__()
        self.curriculum = curriculum
        self.stage = curriculum.start
        self.window: list[Result] = []
        self.changes: list[tuple[int, int]] = [(0, curriculum.start)]
        self.played = [0] * len(curriculum.stages)
        self.succeeded = [0] * len(curriculum.stages)
        self.told = 0
        self._news = False

    def _on_rollout_start(self) -> None:
        if not self._news:
            return
        self._news = False
        stage = next_stage(self.curriculum, self.stage, self.window)
        if stage != self.stage:
            names, found = self.curriculum.names, measured(self.window)
            shown = ", ".join(f"{name} {value:.3g}" for name, value in found.items())
            log.info("stage %s at %d timesteps, after %s (%s)", names[stage], self.num_timesteps,
                     names[self.stage], shown)  # fmt: skip
            self.stage, self.window = stage, []
            self.changes = [*self.changes, (self.num_timesteps, stage)][-_MOST_CHANGES:]
            self.training_env.env_method("train_cloud_set_stage", stage)

    def _on_step(self) -> bool:
        for info in self.locals.get("infos", ()):
            if "stage" in info.get("episode", ()):
                self._note(info)
        return True

    def _on_rollout_end(self) -> None:
        self._log()

    def _note(self, info: dict[str, Any]) -> None:
        episode = info["episode"]
        value, length = float(episode["r"]), int(episode["l"])
        success = succeeded(self.curriculum.success, "curriculum.success", value, length, info)
        level = episode["stage"]
        self.played[level] += 1
        self.succeeded[level] += bool(success)
        self.told += success is not None
        needs_it = "success" in thresholds(self.curriculum.advance)
        if needs_it and not self.told and sum(self.played) == self.curriculum.min_episodes:
            log.warning("curriculum: none of %d episodes tells whether it succeeded: nothing is found of "
                        "curriculum.success, %s", sum(self.played), self.curriculum.success)  # fmt: skip
        if level == self.stage and not (needs_it and success is None):
            self.window = [*self.window, Result(success, value)][-self.curriculum.advance.window :]
            self._news = True
        self._log()

    def _log(self) -> None:
        self.logger.record("curriculum/stage", self.stage)
        for name, value in measured(self.window).items():
            self.logger.record(f"curriculum/{'success_rate' if name == 'success' else 'mean_return'}", value)

    def summary(self) -> dict[str, Any]:
        """For a checkpoint's facts, JSON values: what ``status`` shows."""
        found = measured(self.window)
        return {
            "timesteps": self.num_timesteps,
            "stage": self.stage,
            "name": self.curriculum.names[self.stage],
            "names": list(self.curriculum.names),
            "since": self.changes[-1][0],
            "episodes": len(self.window),
            "success_rate": found.get("success"),
            "mean_return": found.get("return"),
            "played": list(self.played),
            "succeeded": list(self.succeeded) if self.told else None,
            "changes": [list(change) for change in self.changes],
        }
