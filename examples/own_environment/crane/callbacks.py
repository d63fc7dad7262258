from __future__ import annotations

from stable_baselines3.common.callbacks import BaseCallback


class SwingRecorder(BaseCallback):
    """Logs the largest swing of each 500 steps. Attributes with plain values live through an interruption."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0.0

    def _on_step(self) -> bool:
        self.largest = max(self.largest, *(info["swing"] for info in self.locals["infos"]))
        if self.n_calls % 500 == 0:
            self.logger.record("crane/largest_swing", self.largest)
            self.largest = 0.0
        return True
