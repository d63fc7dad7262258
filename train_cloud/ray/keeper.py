"""A process between Ray's worker and a training, so that the training outlives the worker for as long as it commits.

Ray kills the children of a worker that it ends, at once. This process is such a child. What it starts is none: it gets
SIGTERM from the kernel when this process is gone, and from this process when the worker is. Orders come as lines of
JSON on the standard input, and what becomes of them goes out the same way. It stays for the worker's next training,
which it then forks from a process that has its imports done.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any

from train_cloud import warm_process
from train_cloud.warm_process import Child, WarmProcess

_LOOK_SECONDS = 0.05


class _Keeper:
    def __init__(self) -> None:
        self._child: Child | None = None
        self._warm: WarmProcess | None = None
        self._starts = 0
        self._left = False
        """Whether nobody gives orders any more."""
        self._rest = b""

    def serve(self) -> None:
        while not (self._left and self._child is None):
            if not self._left:
                self._read()
            else:
                select.select([], [], [], _LOOK_SECONDS)
            if self._child is not None and (code := self._child.poll()) is not None:
                self._child = None
                self._say({"ended": code})
        if self._warm is not None:
            self._warm.close()

    def leave(self) -> None:
        """Have the training stop with a commit, and end with it."""
        self._left = True
        if self._child is not None:
            self._child.send_signal(signal.SIGTERM)

    def _read(self) -> None:
        ready, _, _ = select.select([0], [], [], _LOOK_SECONDS)
        if not ready:
            return
        more = os.read(0, 1 << 20)
        if not more:
            self.leave()
            return
        *lines, self._rest = (self._rest + more).split(b"\n")
        for line in lines:
            self._do(json.loads(line))

    def _do(self, order: dict[str, Any]) -> None:
        if "start" in order:
            self._start(order["start"])
        elif self._child is not None:
            self._child.send_signal(order["signal"])

    def _start(self, order: dict[str, Any]) -> None:
        environment = {**order["environment"], order["parent"]: str(os.getpid())}
        if order["warm"] and self._starts > 0 and self._warm is None:
            self._warm = WarmProcess.begin(environment)
        self._starts += 1
        warm = self._warm if order["warm"] and self._warm is not None and self._warm.why_not is None else None
        if warm is not None and warm.has_loaded(order["modules"]) is not None:
            warm = None
        with Path(order["output"]).open("ab") as said:
            self._child = warm_process.start(
                order["command"],
                env=environment,
                cwd=order["folder"],
                stdout=said,
                stderr=said,
                new_session=True,
                warm=warm,
            )

    def _say(self, what: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # of a worker that is gone
            os.write(1, json.dumps(what).encode() + b"\n")


def main() -> int:
    keeper = _Keeper()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: keeper.leave())
    keeper.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
