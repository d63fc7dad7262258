"""The files of the experiment that a run belongs to, for people who read them; nothing depends on them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from train_cloud.artifacts.experiment import enter_config, enter_result
from train_cloud.checkpoint import read_manifest
from train_cloud.errors import ObjectMissing, StoreError
from train_cloud.evaluate.results import Evaluation
from train_cloud.run import layout
from train_cloud.run.head import Head, Outcome
from train_cloud.runtime.inputs import Inputs
from train_cloud.store import ObjectStore

log = logging.getLogger(__name__)


def enter_begin(inputs: Inputs) -> None:
    """The run's configuration."""
    experiment = inputs.config.experiment
    if experiment is None:
        return
    values = inputs.config.model_dump(mode="json", exclude={"secrets"})
    try:
        enter_config(layout.root_of(inputs.store.url), experiment, inputs.config.run_id, values)
    except StoreError as error:
        _warn(experiment, error)


def enter_end(inputs: Inputs, head: Head, outcome: Outcome, evaluated: Mapping[str, Any]) -> None:
    """Its result.

    :param evaluated: the last evaluation that this session knows of, in short
    """
    experiment = inputs.config.experiment
    if experiment is None:
        return
    try:
        found = result(inputs.store, head.model_copy(update={"outcome": outcome}), inputs.config.seed, evaluated)
        enter_result(layout.root_of(inputs.store.url), experiment, inputs.config.run_id, found)
    except StoreError as error:
        _warn(experiment, error)


def result(store: ObjectStore, head: Head, seed: int, evaluated: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What ``all_results.json`` says of a run that is over: the same, whoever writes it, after whatever interruptions.

    :param evaluated: ``evaluation``, of a session that knows of one that failed
    :raises StoreError: it cannot be read
    """
    manifest = read_manifest(store, head.manifest) if head.manifest is not None else None
    return {
        "outcome": head.outcome,
        "reason": head.reason,
        "timesteps": head.timesteps,
        "seed": seed,
        "episode_return": manifest.episode_return if manifest is not None else None,
        **_evaluated(store, head.timesteps, evaluated or {}),
    }


def _evaluated(store: ObjectStore, timesteps: int, evaluated: Mapping[str, Any]) -> Mapping[str, Any]:
    """The last evaluation, in short, as it is recorded: another session may have played it."""
    keys = {
        at: info.key for info in store.list(layout.EVALUATIONS) if (at := layout.evaluated_at(info.key)) is not None
    }
    last = max((at for at in keys if at <= timesteps), default=None)
    if last is None or evaluated.get("evaluation", {}).get("timesteps", -1) > last:
        return evaluated
    try:
        found = Evaluation.model_validate_json(bytes(store.get(keys[last]).body))
    except (ObjectMissing, ValidationError):
        return evaluated
    short: dict[str, Any] = {
        "timesteps": last,
        "mean_return": found.overall.returns.mean,
        "success_rate": found.overall.success_rate,
    }
    return {"evaluation": {**short, **({"warnings": list(found.warnings)} if found.warnings else {})}}


def _warn(experiment: str, error: StoreError) -> None:
    log.warning("the files of the experiment %s are not up to date: %s", experiment, error)
