"""Where the tests' own modules lie, for processes that tests start. pytest itself is told in pyproject.toml."""

from __future__ import annotations

import os
from pathlib import Path

SUPPORT = Path(__file__).parent
TESTS = SUPPORT.parent
#: As the variable of that name has it.
PYTHONPATH = os.pathsep.join([str(TESTS), str(SUPPORT)])
