"""Where no person looks on: something starts the process again, and what no restart mends ends the run."""

from __future__ import annotations

import json
import os
import platform
from datetime import datetime
from pathlib import Path

from train_cloud.config import RunFile, variables
from train_cloud.errors import InputError
from train_cloud.platforms.ec2.parameters import read_secrets
from train_cloud.platforms.protocol import Platform
from train_cloud.run import layout
from train_cloud.run.head import Head, Outcome, conclude, read_head
from train_cloud.run.run_deadline import read_deadline, read_experiment_name
from train_cloud.run.session import begin_session
from train_cloud.store import ObjectStore, open_store
from train_cloud.whole_file import write_local

#: Set by the launch where there is one run only: which it is, where its run file cannot be read.
RUN_ID = "TRAIN_CLOUD_RUN_ID"
#: Set by the launch of a pipeline: the folder below the store's root that what was launched lies in.
LAUNCH_FOLDER = "TRAIN_CLOUD_FOLDER"
#: A file of this name in the state folder: another session of the pipeline was trained on this machine before.
LATER = "later"
_STARTS = "starts.json"
_MAX_STARTS = 20
_MAX_ATTEMPTS = 5


class Unattended(Platform):
    """What machines that nobody watches have in common."""

    begins_early = True

    @property
    def max_attempts(self) -> int | None:
        return int(variables.number(variables.MAX_ATTEMPTS, _MAX_ATTEMPTS))

    def secrets(self, config: RunFile) -> dict[str, str]:
        return read_secrets(config.secrets)

    def refuse(self, config: RunFile) -> None:
        if config.seeds is not None:
            fix = "several runs: write a run file for each with train-cloud expand, and launch these"
            raise InputError("seeds", list(config.seeds), fix)

    def admit(self, store: ObjectStore, state_dir: Path) -> Outcome | None:
        self._count_start(state_dir, store.url)
        read = read_head(store)
        return read[0].outcome if read is not None else None

    def _count_start(self, state_dir: Path, url: str) -> None:
        """Until the run is acquired no attempt can be counted in its head, and with the store unreachable the machine
        must not restart for ever: starts are counted on its own disk.

        :raises InputError: an exit code after which nobody restarts
        """
        path = state_dir / _STARTS
        starts = 1
        if path.exists():
            before = json.loads(path.read_text())
            starts += before["starts"] if before["boot_id"] == self.boot_id else 0
        write_local(path, {"boot_id": self.boot_id, "starts": starts})
        if starts > _MAX_STARTS:
            raise InputError("TRAIN_CLOUD_STORE", url, f"{_MAX_STARTS} starts could not take the run: see the journal")

    def reopen(self, store: ObjectStore) -> Head | None:
        return None

    def acquired(self, state_dir: Path) -> None:
        (state_dir / _STARTS).unlink(missing_ok=True)

    def run_deadline(self, store: ObjectStore) -> datetime | None:
        return read_deadline(launched(store))

    def experiment(self, store: ObjectStore) -> str | None:
        return read_experiment_name(launched(store))

    def give_up(self, store: ObjectStore, because: str, session: int) -> None:
        conclude(store, "failed", because, session=session, owner=platform.node())

    def unreadable(self, store_root: str, state_dir: Path | None, because: str) -> None:
        run_id = os.environ.get(RUN_ID)
        if state_dir is None or run_id is None:
            return
        store = open_store(layout.run_url(store_root, run_id))
        state_dir.mkdir(parents=True, exist_ok=True)
        owner = platform.node()
        session = begin_session(store, state_dir, instance_id=owner, boot_id=self.boot_id, details={}, persist=True)
        conclude(store, "failed", because, session=session.number, owner=owner)


def launched_url(store_root: str, run_id: str) -> str:
    """URL of the folder that what was launched lies in: a run's, or a pipeline's, whose machine trains one run after
    the other.
    """
    folder = os.environ.get(LAUNCH_FOLDER)
    return layout.run_url(store_root, run_id) if not folder else f"{store_root.rstrip('/')}/{folder}/{run_id}"


def launched(store: ObjectStore) -> ObjectStore:
    """Where the launch of the run in this store stands: there, but for a session of a pipeline."""
    if not os.environ.get(LAUNCH_FOLDER):
        return store
    return open_store(launched_url(layout.root_of(store.url), os.environ[RUN_ID]))
