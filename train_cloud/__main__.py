"""``python -m train_cloud`` is ``train-cloud``."""

from __future__ import annotations

import os
import sys


def _leave_working_directory() -> None:
    """``python -m`` has put it first on the module path; the command, which is a file, has not. ``sys`` and ``os`` are
    there already: nothing has been looked for in that folder yet.
    """
    started = sys.orig_argv
    by_name = "-m" in started[:-1] and started[started.index("-m") + 1] == __package__
    if by_name and sys.path and sys.path[0] in ("", os.getcwd()):  # noqa: PTH109
        del sys.path[0]


if __name__ == "__main__":
    _leave_working_directory()

    from train_cloud.cli import main

    sys.exit(main())
