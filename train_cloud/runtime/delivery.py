"""What people take home of a session, delivered in time: the final model, kept models, all artifacts."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from train_cloud.checkpoint import restore
from train_cloud.run import layout
from train_cloud.runtime.acquire import Acquired
from train_cloud.runtime.beside import Beside
from train_cloud.runtime.experiment_files import enter_begin
from train_cloud.runtime.exporting import write_export
from train_cloud.runtime.inputs import Inputs
from train_cloud.snapshot import Snapshot


class Delivery:
    """See the module."""

    def __init__(self, inputs: Inputs, acquired: Acquired, beside: Beside) -> None:
        self._inputs, self._acquired, self._beside = inputs, acquired, beside
        self._artifacts = beside.artifacts

    def begin(self, machine: Mapping[str, Any]) -> None:
        """Bring this disk to where the head is, and begin to send; once.

        :param machine: versions, for the configuration that is sent
        """
        if self._artifacts.begun:
            return
        enter_begin(self._inputs)
        head, manifest = self._acquired.lease.head, self._acquired.manifest
        store = self._inputs.store
        there = restore(store, manifest, parts={layout.LOGGED}).parts if manifest is not None else {}
        self._artifacts.begin(head.token, head.manifest, self._acquired.resumed_at, machine, there.get(layout.LOGGED))

    def send_all(self, *, last: bool = False, yielding: bool = False) -> bool:
        """Artifacts, all of them; when somebody waits for this machine, as many as there is time for.

        :param last: nothing is logged any more
        :param yielding: leave the line to a commit as soon as a stop is urgent
        :return: whether all are sent
        """
        deadline = self._inputs.deadline
        self._beside.heartbeat.phase("store")
        if last:
            self._artifacts.finish_wandb(deadline.urgent_at())
        return self._artifacts.everything(
            until=lambda: deadline.urgent_at() if not yielding else None,
            yielding=yielding,
            alive=self._beside.heartbeat.alive,
            delayed=self._beside.heartbeat.delayed,
        )

    def upload_final(self, snapshot: Snapshot) -> None:
        """The final model lies in the store before the outcome says that it does."""
        folder = self._inputs.state_dir / "final"
        shutil.rmtree(folder, ignore_errors=True)
        environment = self._inputs.config.environment
        write_export(
            snapshot,
            folder,
            run_yaml=self._inputs.run_yaml,
            lock=self._inputs.lock,
            environment=environment.model_dump(mode="json") if environment else None,
        )
        self._artifacts.final(folder)

    def kept_models(self) -> bool:
        """Of all kept checkpoints.

        :return: whether all are there
        """
        return self._artifacts.keep_all(self._inputs.deadline.urgent_at())
