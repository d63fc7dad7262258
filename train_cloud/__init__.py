"""Train RL agents on interruptible machines: exact resume, one writer, and the money stops.

For scripts of one's own; importing this costs nothing, calling loads what it needs::

    run = train_cloud.run_file()
    model.learn(run.total_timesteps, callback=train_cloud.checkpoints())
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train_cloud.config.current import artifact_folder, run_file
    from train_cloud.learn.callback import checkpoints, stateful

__all__ = ["artifact_folder", "checkpoints", "run_file", "stateful"]

_HOMES = {
    "artifact_folder": "train_cloud.config.current",
    "checkpoints": "train_cloud.learn.callback",
    "run_file": "train_cloud.config.current",
    "stateful": "train_cloud.learn.callback",
}


def __getattr__(name: str) -> Any:
    """PEP 562: ``import train_cloud`` loads neither torch nor pydantic."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
