"""An experiment's own two files: ``config.json``, what its runs are trained with, ``all_results.json``, how they ended.

They lie beside the runs, under ``experiments/<name>/``. Every run of the group writes its own entry in them, so each
write swaps what was read, and is made again where another run was faster.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from train_cloud.artifacts.uploads import now
from train_cloud.errors import ConditionFailed, ObjectMissing, StoreUnavailable
from train_cloud.safe_text import masked_values
from train_cloud.store import ObjectStore, open_store
from train_cloud.store.foreign import ignore

CONFIG, RESULTS = "config.json", "all_results.json"
_ATTEMPTS = 30


def experiment_url(root: str, experiment: str) -> str:
    return f"{root.rstrip('/')}/experiments/{experiment}"


def enter_config(root: str, experiment: str, run_id: str, run_file: Mapping[str, Any]) -> None:
    """What a run of the group is trained with, as this session has it.

    :raises StoreError: it cannot be written
    """

    def entered(content: dict[str, Any]) -> dict[str, Any]:
        return {**content, "runs": {**content.get("runs", {}), run_id: masked_values(run_file)}}

    _swap(open_store(experiment_url(root, experiment)), CONFIG, experiment, entered)


def enter_cells(root: str, experiment: str, cells: Mapping[str, Mapping[str, Any]]) -> None:
    """Which runs an experiment file stands for.

    :param cells: run id → ``levels`` (factor → level) and ``seed``
    :raises StoreError: it cannot be written
    """

    def entered(content: dict[str, Any]) -> dict[str, Any]:
        return {**content, "cells": {**content.get("cells", {}), **cells}}

    _swap(open_store(experiment_url(root, experiment)), CONFIG, experiment, entered)


def read_file(root: str, experiment: str, name: str) -> dict[str, Any]:
    """One of the files; empty where it is not there, or damaged."""
    store = open_store(experiment_url(root, experiment))
    try:
        return _content(store, name, bytes(store.get(name).body))
    except ObjectMissing:
        return {}


def enter_result(root: str, experiment: str, run_id: str, result: Mapping[str, Any]) -> None:
    """How a run of the group ended.

    :param result: JSON values; ``outcome`` and ``episode_return`` (None where there is none) are summed up
    :raises StoreError: it cannot be written
    """

    def entered(content: dict[str, Any]) -> dict[str, Any]:
        before = content.get("runs", {})
        if {**before.get(run_id, {}), "at": None} == {**result, "at": None}:
            return content
        runs = {**before, run_id: {**result, "at": now()}}
        returns = [run["episode_return"] for run in runs.values() if run.get("episode_return") is not None]
        summary = {
            "runs": len(runs),
            "completed": sum(run.get("outcome") == "completed" for run in runs.values()),
            "mean_return": statistics.fmean(returns) if returns else None,
            "std_return": statistics.stdev(returns) if len(returns) > 1 else None,
        }
        return {**content, "runs": dict(sorted(runs.items())), "summary": summary}

    _swap(open_store(experiment_url(root, experiment)), RESULTS, experiment, entered)


def _swap(store: ObjectStore, key: str, experiment: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    for _ in range(_ATTEMPTS):
        etag, content = None, {"experiment": experiment, "created_at": now()}
        try:
            stored = store.get(key)
            etag, content = stored.etag, {**content, **_content(store, key, bytes(stored.body))}
        except ObjectMissing:
            pass
        changed = change(content)
        if changed == content:
            return
        body = (json.dumps({**changed, "updated_at": now()}, indent=1) + "\n").encode()
        try:
            store.create(key, body) if etag is None else store.swap(key, body, etag)
            return
        except ConditionFailed:
            continue  # another run was faster, or our own reply was lost: entered twice is entered once
    raise StoreUnavailable(f"{store.url}/{key}: other runs write it all the time")


def _content(store: ObjectStore, key: str, body: bytes) -> dict[str, Any]:
    """Of the file; nothing, with a warning, where it is damaged: it is telemetry, and written anew."""
    try:
        content = json.loads(body)
        groups = [content.get(name, {}) for name in ("runs", "cells")] if isinstance(content, dict) else [None]
        if all(isinstance(group, dict) and all(isinstance(one, dict) for one in group.values()) for group in groups):
            return dict(content)
    except (ValueError, RecursionError):
        pass  # as what has another form
    ignore(store.url, [key], "damaged")
    return {}
