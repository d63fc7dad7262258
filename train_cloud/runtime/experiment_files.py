"""The files of the experiment that a run belongs to, for people who read them; nothing depends on them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from train_cloud.artifacts.experiment import enter_config, enter_result
from train_cloud.checkpoint import read_manifest
from train_cloud.errors import StoreError
from train_cloud.run import layout
from train_cloud.run.head import Head, Outcome
from train_cloud.runtime.inputs import Inputs

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

    :param evaluated: the last evaluation, in short
    """
    experiment = inputs.config.experiment
    if experiment is None:
        return
    try:
        manifest = read_manifest(inputs.store, head.manifest) if head.manifest is not None else None
        result = {
            "outcome": outcome,
            "reason": head.reason,
            "timesteps": head.timesteps,
            "seed": inputs.config.seed,
            "episode_return": manifest.episode_return if manifest is not None else None,
            **evaluated,
        }
        enter_result(layout.root_of(inputs.store.url), experiment, inputs.config.run_id, result)
    except StoreError as error:
        _warn(experiment, error)


def _warn(experiment: str, error: StoreError) -> None:
    log.warning("the files of the experiment %s are not up to date: %s", experiment, error)
