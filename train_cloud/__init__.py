"""Train RL agents on interruptible machines: exact resume, one writer, and the money stops.

In a training script of your own, which ``train-cloud train`` starts::

    run = train_cloud.run_file()
    model.learn(run.total_timesteps, callback=train_cloud.checkpoints())

From outside, what the commands do::

    run = train_cloud.load_run_file("run.yaml")
    train_cloud.train("run.yaml", store="./store")
    print(train_cloud.run_status("./store", run.run_id).state)
    train_cloud.export("./store", run.run_id, out="final")

Importing this costs nothing; the first use of a name loads what it needs. ``train``, ``export``, ``checkpoints`` and
``stateful`` need the extra ``sb3``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from train_cloud import former_names

if TYPE_CHECKING:
    from train_cloud.config import RunFile, load_run_file
    from train_cloud.config.current import artifact_folder, run_file
    from train_cloud.config.pipeline import PipelineSession
    from train_cloud.data.frames import frames
    from train_cloud.errors import Fenced, InputError, Interrupted, TrainCloudError
    from train_cloud.experiments.pipeline.library import Pipeline, SessionResult
    from train_cloud.operations.export import export
    from train_cloud.operations.train import train
    from train_cloud.pytorch.batches import batches
    from train_cloud.pytorch.loop import resumable
    from train_cloud.report.status import RunStatus, run_ids, run_status
    from train_cloud.sb3.callback import checkpoints, stateful
    from train_cloud.store import ObjectStore, open_store

    __version__: str

__all__ = [
    "Fenced",
    "InputError",
    "Interrupted",
    "ObjectStore",
    "Pipeline",
    "PipelineSession",
    "RunFile",
    "RunStatus",
    "SessionResult",
    "TrainCloudError",
    "__version__",
    "artifact_folder",
    "batches",
    "checkpoints",
    "export",
    "frames",
    "load_run_file",
    "open_store",
    "resumable",
    "run_file",
    "run_ids",
    "run_status",
    "stateful",
    "train",
]

_HOMES = {
    "Fenced": "train_cloud.errors",
    "InputError": "train_cloud.errors",
    "Interrupted": "train_cloud.errors",
    "ObjectStore": "train_cloud.store",
    "Pipeline": "train_cloud.experiments.pipeline.library",
    "PipelineSession": "train_cloud.config.pipeline",
    "RunFile": "train_cloud.config",
    "RunStatus": "train_cloud.report.status",
    "SessionResult": "train_cloud.experiments.pipeline.library",
    "TrainCloudError": "train_cloud.errors",
    "artifact_folder": "train_cloud.config.current",
    "batches": "train_cloud.pytorch.batches",
    "checkpoints": "train_cloud.sb3.callback",
    "export": "train_cloud.operations.export",
    "frames": "train_cloud.data.frames",
    "load_run_file": "train_cloud.config",
    "open_store": "train_cloud.store",
    "resumable": "train_cloud.pytorch.loop",
    "run_file": "train_cloud.config.current",
    "run_ids": "train_cloud.report.status",
    "run_status": "train_cloud.report.status",
    "stateful": "train_cloud.sb3.callback",
    "train": "train_cloud.operations.train",
}


former_names.understand()


def __getattr__(name: str) -> Any:
    """PEP 562: ``import train_cloud`` loads neither torch nor pydantic."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("train-cloud")
        except PackageNotFoundError:  # a copy of the folder on the module path
            return "unknown"
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        from train_cloud import extras

        if (missing := extras.explained(error, f"train_cloud.{name}")) is None:
            raise
        raise missing from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
