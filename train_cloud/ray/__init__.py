"""Runs on a Ray cluster: an experiment by ``train-cloud launch --platform ray``, any run as a trial of Ray Tune.

Needs the extra ``ray``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train_cloud.ray.tune import trainable

__all__ = ["trainable"]


def __getattr__(name: str) -> Any:
    """PEP 562: importing this loads neither Ray nor pydantic."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from train_cloud import extras

    extras.need("ray", "train_cloud.ray.trainable")
    from train_cloud.ray.tune import trainable

    return trainable
