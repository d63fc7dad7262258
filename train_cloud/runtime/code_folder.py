"""The code folder while a run trains from it: which of its files turn out to be what the run itself writes."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Mapping
from pathlib import Path

from train_cloud.config import RunFile
from train_cloud.config.code import OUTPUT, is_program
from train_cloud.report.code import as_part
from train_cloud.snapshot import Part

log = logging.getLogger(__name__)


class CodeFolder:
    """Made before anything of the user's runs: what is written from then on, is written while the run trains.

    :param launched: digests by path of what the run was launched with; None where this session launches it
    """

    def __init__(self, run_file: RunFile, launched: Mapping[str, str] | None) -> None:
        self._folder = run_file.code.folder or Path()
        self._digests = dict(run_file.code.digests() if launched is None else launched)
        compared = [path for path, digest in self._digests.items() if digest != OUTPUT and not is_program(path)]
        self._began = {path: self._state(path) for path in compared}
        self._lock = threading.Lock()  # commits look from a thread of their own
        self.outputs: list[str] = []
        """Files of the launch that were written since this session began."""

    def part(self) -> Part:
        """For a checkpoint: what the next session's folder is compared with."""
        self.look()
        return as_part(self._digests)

    def look(self) -> list[str]:
        """Note which data has changed since this session began; all of :attr:`outputs`."""
        with self._lock:
            written = [path for path, before in self._began.items() if self._state(path) != before]
            for path in written:
                del self._began[path]
                self._digests[path] = OUTPUT
                self.outputs.append(path)
                log.info("%s is written while the run trains: it is taken for an output from here on", path)
        return self.outputs

    def _state(self, path: str) -> tuple[int, int] | None:
        with contextlib.suppress(OSError):
            status = (self._folder / path).stat()
            return status.st_size, status.st_mtime_ns
        return None
