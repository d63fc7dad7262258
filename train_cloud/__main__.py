"""``python -m train_cloud`` is ``train-cloud``."""

from __future__ import annotations

import sys

from train_cloud.cli import main

if __name__ == "__main__":
    sys.exit(main())
