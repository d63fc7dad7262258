"""``python -m train_cloud.experiments.comparison.measure STORE RUN_ID…``: what an action of the runs' models takes.

A process of its own, since it loads torch and code of the user's. Prints one line of JSON: run id → figures, or why
there are none.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from train_cloud.errors import TrainCloudError
from train_cloud.evaluate.latency import measure
from train_cloud.experiments.comparison.models import newest
from train_cloud.operations.export import export


def main() -> None:
    root, *run_ids = sys.argv[1:]
    found: dict[str, Any] = {}
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:  # people's code prints
        wanted = []
        for run_id in run_ids:
            try:
                wanted.append(_exported(root, run_id, Path(folder) / run_id))
            except TrainCloudError as error:
                found[run_id] = {"because": str(error)}
        found |= measure(wanted)
    print(json.dumps(found))


def _exported(root: str, run_id: str, folder: Path) -> dict[str, Any]:
    """The model as people take it home: from the checkpoint, of which each byte is checked, and its signature."""
    manifest = newest(root, run_id)
    if manifest is None:
        raise TrainCloudError("it has no checkpoint")
    if "learners" in manifest.facts:
        raise TrainCloudError("it has several learners, each with a model of its own")
    if manifest.facts["algorithm"]["class"] == "pytorch":
        raise TrainCloudError("it is a loop of your own, whose models train-cloud cannot call")
    export(root, run_id, out=folder)
    return {
        "name": run_id,
        "path": str(folder / "model.zip"),
        "algorithm": manifest.facts["algorithm"]["class"],
        "code_folder": manifest.facts.get("code_folder"),
    }


if __name__ == "__main__":
    main()
