"""What a session begins with: which checkpoint of the session before it, pinned by a digest."""

from __future__ import annotations

from typing import Any

from train_cloud.checkpoint import find, read_manifest
from train_cloud.checkpoint.survey import committed
from train_cloud.config import RunFile
from train_cloud.config.pipeline import Choice
from train_cloud.evaluate.results import best
from train_cloud.experiments.standing import run_store
from train_cloud.runtime.evaluations import recorded
from train_cloud.runtime.initial_model import checkpoint_digest


def pin(root: str, config: RunFile, choice: Choice) -> dict[str, Any]:
    """The section ``initial_model`` of a run that begins with this one. It says the same whenever it is asked for, and
    whatever interruptions there were: only what is evaluated on the way of every training is chosen from.

    :param config: of the run that is handed over, which is completed
    """
    store = run_store(root, config.run_id)
    _, newest = committed(store, config.run_id)
    manifest = read_manifest(store, newest)
    at = manifest.timesteps
    if choice == "best":
        at = _best(root, config, {at, *(kept.timesteps for kept in manifest.kept)}, at)
    chosen = find(store, newest, at)
    return {"source": f"run:{config.run_id}@{at}", "digest": checkpoint_digest(chosen)}


def _best(root: str, config: RunFile, preserved: set[int], last: int) -> int:
    """Timesteps of the evaluated checkpoint with the highest mean return."""
    every = config.evaluation.every if config.evaluation is not None else None
    if every is None:
        return last
    first = dict[int, int]()
    found = recorded(run_store(root, config.run_id))
    for evaluation in found:  # in the order of timesteps; others may have been played by hand since
        if evaluation.timesteps >= every:
            first.setdefault(evaluation.timesteps // every, evaluation.timesteps)
    candidates = [
        evaluation
        for evaluation in found
        if evaluation.timesteps in preserved and evaluation.timesteps in {last, *first.values()}
    ]
    chosen = best(candidates)
    return last if chosen is None else chosen.timesteps
