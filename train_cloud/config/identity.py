"""Which part of a run file is the run's identity, and how two identities differ.

The identity never changes under a run id: a run resumed with another network or another environment would be neither
the old experiment nor a new one. The budget part may change and takes effect at the next session.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

#: Every field of the run file, once. A test compares it with the model.
PARTS: Mapping[str, Literal["identity", "budget"]] = {
    "run_id": "identity",
    "experiment": "identity",
    "algorithm": "identity",
    "policy": "identity",
    "architecture": "identity",
    "precision": "identity",
    "deterministic": "identity",
    "hardware": "identity",
    "data_parallel": "identity",
    "seed": "identity",
    "device": "identity",
    "environment": "identity",
    "curriculum": "identity",
    "hyperparameters": "identity",
    "initial_model": "identity",
    "pretraining": "identity",
    "callbacks": "identity",
    "entry_point": "identity",
    "arguments": "identity",
    "parameters": "identity",
    "score": "budget",
    "code": "identity",
    "data": "identity",
    "env": "identity",
    "seeds": "identity",
    "total_timesteps": "budget",
    "schedule_total": "budget",
    "save_frequency": "budget",
    "max_seconds_at_risk": "budget",
    "secrets": "budget",
    "artifacts": "budget",
    "evaluation": "budget",
    "wandb": "budget",
    "webhook": "budget",
    "signing_key": "budget",
    "limits": "budget",
    "preservation": "budget",
    "reproducibility": "budget",
    "sagemaker": "budget",
    "ray": "budget",
}


def identity_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The fields in which two identities differ, as ``(dotted name, old, new)``.

    A field that one side lacks counts as empty, so that a field added by a later version changes no older run.
    """
    changes: list[tuple[str, Any, Any]] = []
    for field in sorted(old.keys() | new.keys()):
        before, after = old.get(field), new.get(field)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changes += [(f"{field}.{name}", *values) for name, *values in identity_changes(before, after)]
        elif before != after and not (not (field in old and field in new) and _empty(before) and _empty(after)):
            changes.append((field, before, after))
    return changes


def _empty(value: object) -> bool:
    return value is None or value is False or value == [] or value == {}
