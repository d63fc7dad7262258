"""A session as a part of a proof: it interrupts itself at a step, and keeps the checksums of all its steps."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

#: Set for each session by ``prove``: a JSON object for :class:`Trial`.
VARIABLE = "TRAIN_CLOUD_TRIAL"


@dataclass(frozen=True)
class Trial:
    """What a session does besides when it is part of a proof.

    :ivar digests: file for the checksums of all its steps
    :ivar signal: sends itself this signal
    :ivar at: at the first step that has so many timesteps
    """

    digests: Path
    signal: int | None = None
    at: int = 0

    @classmethod
    def from_environment(cls) -> Trial | None:
        text = os.environ.get(VARIABLE)
        if text is None:
            return None
        said = json.loads(text)
        return cls(Path(said["digests"]), said["signal"], said["at"])

    def text(self) -> str:
        return json.dumps({"digests": str(self.digests), "signal": self.signal, "at": self.at})

    def step(self, step: Callable[[int], None]) -> Callable[[int], None]:
        """``step`` with the signal at its time."""
        if self.signal is None:
            return step
        number, left = self.signal, [self.at]

        def interrupted(timesteps: int) -> None:
            step(timesteps)
            if left and timesteps >= left[0]:
                left.clear()
                os.kill(os.getpid(), number)

        return interrupted


def graphs_beside(digests: Path) -> Path:
    """Where a session writes what can be reached in it (``sb3.accounting``).

    :param digests: its file of checksums
    """
    return digests.with_name(f"{digests.name}-graphs")
