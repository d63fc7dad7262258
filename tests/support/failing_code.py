"""What befalls a run in test_failures: a callback, an algorithm and an environment that its run files name."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import gymnasium
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback


class Accidents(BaseCallback):
    """Carries out what the files of the folder ``ACCIDENTS`` are named after, ``<timesteps>-<what>``: at that step or
    after it, and once, unless the name ends in ``-always``. A number with a plus counts from the session's first step.

    ``wait`` until somebody removes the file, with a file beside the folder that says so; ``raise``; ``hang`` for ever;
    ``sleep``, for as many seconds as the file says; ``stay``, until so many seconds after the session began; a signal's
    name, sent to oneself.
    """

    def _on_step(self) -> bool:
        folder = os.environ.get("ACCIDENTS")
        # The process's own, since a checkpoint takes attributes and module globals along.
        began = int(os.environ.setdefault("BEGAN_AT", str(self.num_timesteps - 1)))
        for path in sorted(Path(folder).iterdir()) if folder else ():
            at, what = path.name.split("-")[:2]
            if self.num_timesteps >= int(at) + (began if at.startswith("+") else 0):
                text = path.read_text()
                if what == "wait":
                    (path.parent.parent / f"{path.parent.name}.here").touch()
                    while path.exists():
                        time.sleep(0.02)
                elif not path.name.endswith("-always"):
                    path.unlink()
                self._happen(what, text)
        return True

    def _happen(self, what: str, text: str) -> None:
        if what == "wait":
            return
        if what == "raise":
            raise ArithmeticError("on purpose")
        if what == "hang":
            while True:
                time.sleep(60)
        if what == "stay":
            session, seconds = text.split()
            time.sleep(max(0.0, json.loads(Path(session).read_text())["began"] + float(seconds) - time.monotonic()))
        elif what == "sleep":
            time.sleep(float(text))
        else:
            os.kill(os.getpid(), signal.Signals[what])


class LongUpdate(PPO):
    """Whose update takes eight seconds."""

    def train(self) -> None:
        time.sleep(8)
        super().train()


class Slow(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A step takes 20 ms: time for what comes from outside."""

    def step(self, action: Any) -> Any:
        time.sleep(0.02)
        return self.env.step(action)
