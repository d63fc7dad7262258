"""What the runtime asks of the place where a run's process lives. All else is the same everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from train_cloud.config import RunFile
from train_cloud.platforms.ec2.price import Price
from train_cloud.run.head import Head, Outcome
from train_cloud.run.session import Session
from train_cloud.store import ObjectStore


class Platform(Protocol):
    """A process's place: what it is, which attempt at the run this is, when it goes, how the run leaves it for good."""

    boot_id: str
    """Tells this boot of the machine, or this process, from every other."""
    begins_early: bool
    """Whether a session is recorded before anything is built, so that a boot which fails later has left its start.
    Where a person looks on, bad input leaves no trace instead."""

    @property
    def max_attempts(self) -> int | None:
        """After so many failures without a commit the run fails; None: a person decides whether to try again."""

    # ---------------------------------------------------------------------------------------------------- who am I

    def secrets(self, config: RunFile) -> dict[str, str]:
        """Values of the run file's ``secrets``, as variables to set.

        :raises InputError: one is not there
        """

    def price(self, start: Mapping[str, Any]) -> Price | None:
        """Of this machine; None where it costs nothing that is known. Waits for one that may still be known soon.

        :param start: record of the session's start
        """

    # ------------------------------------------------------------------------------------------ which attempt is this

    def refuse(self, config: RunFile) -> None:
        """:raises InputError: what the run file asks for cannot be done here"""

    def admit(self, store: ObjectStore, state_dir: Path) -> Outcome | None:
        """Before anything is begun.

        :return: the outcome that the run has, where nothing is left to do here
        :raises InputError: it was begun here too often without acquiring the run
        """

    def begin(self, store: ObjectStore, state_dir: Path, details: Mapping[str, Any], above: int) -> Session:
        """Take a session number, or go on with the one that this boot has.

        :param details: for the session's start, to which the platform adds what it is itself
        :param above: the number is larger than this one
        """

    def reopen(self, store: ObjectStore) -> Head | None:
        """Clear an outcome that a person's new call takes back; the head then, None where nothing is done."""

    def acquired(self, state_dir: Path) -> None:
        """The run is this session's: what :meth:`admit` has counted does not count any more."""

    # ------------------------------------------------------------------------------------ when does the machine go

    def goes_at(self, state_dir: Path) -> datetime | None:
        """When this machine is taken away; None where nobody has said."""

    def run_deadline(self, store: ObjectStore) -> datetime | None:
        """When the run ends at the latest, whatever it has used."""

    def experiment(self, store: ObjectStore) -> str | None:
        """Name of the experiment whose limits over all runs this process has to look after; None where there is none,
        or another process does.
        """

    # ------------------------------------------------------------------------------------- how do I leave for good

    def give_up(self, store: ObjectStore, because: str, session: int) -> None:
        """No restart mends it: let the run fail, where nobody else would see why.

        :param session: its number; 0 before it has one
        """

    def unreadable(self, store_root: str, state_dir: Path | None, because: str) -> None:
        """The run file cannot be read: as :meth:`give_up`, for a run that is known by the launch alone."""
