"""A worker's machine as local processes: the real unit files, trainer, watch and finish, on a store of one's own.

Beside ``rehearsal.instance``, which takes everything from Terraform's launch template, this one takes its waits as
parameters: a watchdog of seconds, a short time between two attempts, little patience with a machine that was not taken.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from paths import PYTHONPATH
from until import until

from train_cloud.platforms.ec2.units import FINISH, TRAIN, UnitState, boot_id
from train_cloud.rehearsal.metadata import MetadataService
from train_cloud.rehearsal.systemd import Machine
from train_cloud.run.session import Session, local_session
from train_cloud.runtime.heartbeat import read_timesteps

WATCH = "train-cloud-watch.service"
_UNITS = Path(__file__).parents[2] / "systemd"


PROGRAM = """\
#!{python}
import sys
if sys.argv[1] == "watch":
    sys.argv[1:] = ["watch", "--interval", "0.2", "--linger", "{linger}"]
from train_cloud.cli import main
sys.exit(main())
"""


class LocalMachine:
    """One machine, running its watch and its trainer when this returns. A context manager.

    :param folder: its disk
    :param store: root of the store
    :param group: name of its Auto Scaling group
    :param watchdog: seconds, in the place of ``WatchdogSec=``
    :param linger: ``watch --linger``
    :param environment: for all of its processes
    """

    def __init__(
        self,
        folder: Path,
        run_file: Path,
        store: str,
        group: str,
        instance_id: str,
        *,
        watchdog: float = 120,
        linger: float = 300,
        environment: dict[str, str] | None = None,
        begin: bool = True,
    ) -> None:
        self.instance_id, self.state_dir = instance_id, folder / "state"
        self.metadata = MetadataService(instance_id)
        units, programs = folder / "units", folder / "bin"
        for made in (units, programs, self.state_dir):
            made.mkdir(parents=True)
        for unit in _UNITS.glob("*.service"):
            (units / unit.name).write_text(re.sub("WatchdogSec=.*", f"WatchdogSec={watchdog}s", unit.read_text()))
        (programs / "train-cloud").write_text(PROGRAM.format(python=sys.executable, linger=linger))
        (programs / "train-cloud").chmod(0o755)
        variables = {
            "TRAIN_CLOUD_STORE": store,
            "TRAIN_CLOUD_RUN_ID": "a-run",
            "TRAIN_CLOUD_RUN_FILE": str(run_file),
            "TRAIN_CLOUD_STATE_DIR": str(self.state_dir),
            "TRAIN_CLOUD_AUTOSCALING_GROUP": group,
            "TRAIN_CLOUD_MAX_ATTEMPTS": "3",
        }
        (folder / "worker.env").write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
        kept = ("AWS_", "NO_PROXY", "no_proxy")
        self.machine = Machine(
            units,
            folder / "machine",
            paths={
                "/opt/train-cloud/venv/bin": str(programs),
                "/etc/train-cloud": str(folder),
                "/var/lib/train-cloud": str(self.state_dir),
            },
            environment={
                **{name: value for name, value in os.environ.items() if name.startswith(kept)},
                "AWS_EC2_METADATA_SERVICE_ENDPOINT": self.metadata.endpoint,
                "PYTHONPATH": os.pathsep.join(path for path in [PYTHONPATH, *sys.path] if path),
                "TRAIN_CLOUD_THREADS": "1",
                **(environment or {}),
            },
            restart_speedup=10,
        )
        if begin:
            self.start()

    def start(self) -> None:
        for unit in (WATCH, TRAIN):
            self.machine.start(unit)

    @property
    def train(self) -> UnitState:
        return self.machine.state(TRAIN)

    @property
    def timesteps(self) -> int:
        """How far the training process got."""
        try:
            return read_timesteps(self.state_dir)
        except FileNotFoundError:
            return 0

    @property
    def session(self) -> Session | None:
        return local_session(self.state_dir, boot_id())

    def said(self, unit: str = "") -> str:
        lines = self.machine.journal(f"train-cloud-{unit}.service" if unit else None)
        return "\n".join(f"{line.unit} {line.text}" for line in lines)

    def until(self, condition: Callable[[], object], what: str, seconds: float = 400) -> None:
        """:raises AssertionError: with the journal, if it takes longer"""
        until(condition, what, seconds, told=lambda: self.said()[-6000:])

    def until_over(self) -> None:
        """The trainer has ended for now, and finish has had its say."""
        self.until(lambda: self.train.over and self.machine.state(FINISH).over and self.said("finish"), "it is over")

    def close(self) -> None:
        self.machine.close()
        self.metadata.close()

    def __enter__(self) -> LocalMachine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
