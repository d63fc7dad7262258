"""The units' journal, sent to CloudWatch Logs as it grows: ``python -m train_cloud.platforms.ec2.journal GROUP``.

One stream for each machine and unit. journald keeps what could not be sent yet, and a cursor on the disk says where to
go on after a restart, so nothing is lost while the machine lives and hardly anything is sent twice.

Sources: "PutLogEvents" (Amazon CloudWatch Logs API Reference) for the limits, journalctl(1), "Journal JSON Format".
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train_cloud.errors import CloudError
from train_cloud.platforms.ec2.api import call, client, until_it_holds
from train_cloud.platforms.ec2.metadata import Metadata
from train_cloud.whole_file import write_whole

MAX_EVENTS, MAX_BYTES, OVERHEAD = 10_000, 1_048_576, 26
"""Of one call: events, bytes of UTF-8, and what each event counts beside its own bytes."""
MAX_EVENT_BYTES = 250_000
"""The rest of a longer line is cut off; CloudWatch refuses the whole call for one that is longer than 256 KB."""
MAX_SPAN_MS = 24 * 3600 * 1000
"""Between the first and the last event of one call."""
UNITS = tuple(f"train-cloud-{name}.service" for name in ("bootstrap", "watch", "train", "finish", "tensorboard"))
"""One by one: journalctl compares a pattern only with the units that have spoken when it starts."""
_CURSOR = "journal.cursor"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One line of the journal."""

    unit: str
    """Without ``.service``."""
    timestamp: int
    """ms since the epoch"""
    message: str
    cursor: str

    @property
    def size(self) -> int:
        return len(self.message.encode()) + OVERHEAD


def parse(line: bytes) -> Entry | None:
    """A line of ``journalctl --output=json``; None for one that says nothing.

    :raises ValueError: it is no such line
    """
    fields = json.loads(line)
    unit = str(fields.get("UNIT") or fields.get("_SYSTEMD_UNIT") or "")
    message = fields.get("MESSAGE")
    if isinstance(message, list):  # bytes that are no text
        message = bytes(message).decode(errors="replace")
    if not message:
        return None
    short = str(message).encode()[:MAX_EVENT_BYTES].decode(errors="ignore")
    return Entry(unit.removesuffix(".service"), int(fields["__REALTIME_TIMESTAMP"]) // 1000, short, fields["__CURSOR"])


def batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Split into what one call may carry, each in the order of time."""
    batch: list[Entry] = []
    size = 0
    for entry in sorted(entries, key=lambda entry: entry.timestamp):
        full = len(batch) == MAX_EVENTS or size + entry.size > MAX_BYTES
        if batch and (full or entry.timestamp - batch[0].timestamp >= MAX_SPAN_MS):
            yield batch
            batch, size = [], 0
        batch.append(entry)
        size += entry.size
    if batch:
        yield batch


class Streams:
    """The streams of one machine in a log group.

    :param retry_timeout_s: how long a call is tried where another try may help; None: without end
    """

    def __init__(self, group: str, machine: str, *, retry_timeout_s: float | None = None) -> None:
        self._group, self._machine, self._retry_timeout_s = group, machine, retry_timeout_s
        self._client = client("logs")
        self._known: set[str] = set()

    def send(self, entries: Iterable[Entry]) -> None:
        """:raises CloudError: refused for good: the group does not exist"""
        by_unit: dict[str, list[Entry]] = {}
        for entry in entries:
            by_unit.setdefault(entry.unit, []).append(entry)
        for unit, said in by_unit.items():
            stream = f"{self._machine}/{unit}"
            if unit not in self._known:
                self._create(stream)
                self._known.add(unit)
            for batch in batches(said):
                events = [{"timestamp": entry.timestamp, "message": entry.message} for entry in batch]
                self._call("put_log_events", logStreamName=stream, logEvents=events)

    def _create(self, stream: str) -> None:
        try:
            self._call("create_log_stream", logStreamName=stream)
        except CloudError as error:
            if "ResourceAlreadyExists" not in str(error):
                raise

    def _call(self, operation: str, **arguments: Any) -> Mapping[str, Any] | None:
        arguments["logGroupName"] = self._group
        return until_it_holds(lambda: call(self._client, operation, **arguments), retry_timeout_s=self._retry_timeout_s)


def follow(streams: Streams, state_dir: Path, *, interval_s: float = 2.0) -> None:
    """Send the journal of this boot, from where the last one stopped, until SIGTERM or the journal's end.

    :param state_dir: keeps the cursor
    :param interval_s: how long lines are gathered before they are sent
    """
    kept = state_dir / _CURSOR
    command = ["journalctl", *(f"--unit={unit}" for unit in UNITS), "--output=json", "--follow", "--no-tail"]
    command += [f"--after-cursor={kept.read_text()}"] if kept.exists() else ["--boot"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as journal:
        before = signal.signal(signal.SIGTERM, lambda *_: journal.terminate())
        sent = False
        try:
            for entries in _gathered(journal, interval_s):
                streams.send(entries)
                sent = True
                write_whole(kept, entries[-1].cursor.encode())
            if not sent and journal.wait() > 0:  # a cursor that this journal does not know: from the boot's beginning
                kept.unlink(missing_ok=True)
        finally:
            journal.terminate()
            signal.signal(signal.SIGTERM, before)


def _gathered(journal: subprocess.Popen[bytes], interval_s: float) -> Iterator[list[Entry]]:
    """Lines that came within one interval. While they are sent nothing is read, and journalctl waits."""
    assert journal.stdout is not None
    stream, rest, entries, size = journal.stdout.fileno(), b"", [], 0
    due = time.monotonic() + interval_s
    while True:
        ready = select.select([stream], [], [], max(0.0, due - time.monotonic()))[0]
        chunk = os.read(stream, 1 << 16) if ready else None
        if chunk:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in filter(None, lines):
                with contextlib.suppress(ValueError, KeyError):
                    entry = parse(line)
                    if entry is not None:
                        entries.append(entry)
                        size += entry.size
        if entries and (chunk == b"" or time.monotonic() >= due or size >= MAX_BYTES):
            yield entries
            entries, size = [], 0
        if chunk == b"":
            return
        if time.monotonic() >= due:
            due = time.monotonic() + interval_s


def main(group: str, state_dir: Path) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    machine = until_it_holds(Metadata().instance_id, retry_timeout_s=None)
    _log.info("sending the journal to %s", group)
    follow(Streams(group, machine), state_dir)


if __name__ == "__main__":
    main(sys.argv[1], Path(os.environ["TRAIN_CLOUD_STATE_DIR"]))
