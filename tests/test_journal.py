"""The journal on its way to CloudWatch Logs, with a journalctl that plays a journal and the service at moto's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import boto3
import pytest

from train_cloud.errors import CloudError
from train_cloud.platforms.ec2.journal import (
    MAX_BYTES,
    MAX_EVENT_BYTES,
    MAX_EVENTS,
    MAX_SPAN_MS,
    UNITS,
    Entry,
    Streams,
    batches,
    follow,
    parse,
)

START = int(time.time() - 3600) * 1000
"""ms since the epoch; CloudWatch drops what is older than two weeks"""
JOURNALCTL = """#!/bin/sh
# Plays back a file, from after the cursor that it is given; follows for as long as "follow" exists.
here=$(dirname "$0")
echo "$*" >> "$here/asked"
after=
for word; do case "$word" in --after-cursor=*) after=${word#*=};; esac; done
if [ -n "$after" ]; then sed "1,/\\"$after\\"/d" "$here/journal"; else cat "$here/journal"; fi
while [ -e "$here/follow" ]; do sleep 0.1; done
"""


def line(number: int, message: Any, unit: str = "train-cloud-train.service", **fields: str) -> str:
    at = {"__REALTIME_TIMESTAMP": str((START + number) * 1000), "__CURSOR": f"c{number};"}
    return json.dumps({"MESSAGE": message, "_SYSTEMD_UNIT": unit, **at, **fields})


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a journalctl on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "journalctl").write_text(JOURNALCTL)
    (folder / "journalctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.fixture
def group(aws_endpoint: str) -> str:
    name = f"/g-{uuid.uuid4().hex[:8]}"
    boto3.client("logs").create_log_group(logGroupName=name)
    return name


def said(group: str) -> dict[str, list[str]]:
    """Stream → messages."""
    logs = boto3.client("logs")
    streams = [found["logStreamName"] for found in logs.describe_log_streams(logGroupName=group)["logStreams"]]
    return {
        name: [
            event["message"]
            for event in logs.get_log_events(logGroupName=group, logStreamName=name, startFromHead=True)["events"]
        ]
        for name in streams
    }


def test_lines_of_the_journal() -> None:
    entry = parse(line(1, "hello", UNIT="train-cloud-watch.service", _SYSTEMD_UNIT="init.scope").encode())
    assert entry == Entry("train-cloud-watch", START + 1, "hello", "c1;")
    entry = parse(line(2, [104, 105, 255]).encode())
    assert entry is not None and entry.message == "hi\ufffd"
    assert parse(line(4, None).encode()) is None
    entry = parse(line(5, "é" * MAX_EVENT_BYTES).encode())
    assert entry is not None and len(entry.message.encode()) == MAX_EVENT_BYTES
    with pytest.raises(ValueError, match="Expecting"):
        parse(b"-- No entries --")


def test_every_unit_but_our_own_is_followed() -> None:
    units = {path.name for path in (Path(__file__).parents[1] / "systemd").glob("*.service")}
    assert set(UNITS) == units - {"train-cloud-logs.service"}


def entries(count: int, message: str = "x", step_ms: int = 1) -> list[Entry]:
    return [Entry("u", START + n * step_ms, message, f"c{n};") for n in range(count)]


def test_a_call_carries_what_it_may_in_the_order_of_time() -> None:
    assert [len(batch) for batch in batches(entries(MAX_EVENTS + 1))] == [MAX_EVENTS, 1]
    for batch in batches(entries(9, "y" * MAX_EVENT_BYTES)):
        assert sum(entry.size for entry in batch) <= MAX_BYTES
    assert [len(batch) for batch in batches(entries(3, step_ms=MAX_SPAN_MS // 2))] == [2, 1]
    (batch,) = batches(reversed(entries(3)))
    assert [entry.timestamp for entry in batch] == [START, START + 1, START + 2]


def test_the_journal_arrives_and_a_restart_goes_on_behind_it(journal: Path, group: str, tmp_path: Path) -> None:
    lines = [line(1, "boots", unit="train-cloud-bootstrap.service"), line(2, "trains"), "no line of the journal"]
    (journal / "journal").write_text("\n".join(lines) + "\n")
    follow(Streams(group, "i-1"), tmp_path, interval_s=0.1)
    with (journal / "journal").open("a") as more:
        more.write(line(3, "goes on") + "\n")
    follow(Streams(group, "i-1"), tmp_path, interval_s=0.1)
    assert said(group) == {"i-1/train-cloud-bootstrap": ["boots"], "i-1/train-cloud-train": ["trains", "goes on"]}
    first, second = (journal / "asked").read_text().splitlines()
    assert "--boot" in first.split() and "--after-cursor=c2;" in second.split()


def test_a_cursor_that_is_unknown_does_not_silence_it_for_ever(journal: Path, group: str, tmp_path: Path) -> None:
    (tmp_path / "journal.cursor").write_text("of another disk")
    (journal / "journal").write_text(line(1, "boots") + "\n")
    real = (journal / "journalctl").read_text()
    (journal / "journalctl").write_text("#!/bin/sh\necho 'Failed to seek to cursor' >&2\nexit 1\n")
    follow(Streams(group, "i-1"), tmp_path, interval_s=0.1)
    assert said(group) == {}
    (journal / "journalctl").write_text(real)
    follow(Streams(group, "i-1"), tmp_path, interval_s=0.1)
    assert said(group) == {"i-1/train-cloud-train": ["boots"]}


def test_what_was_gathered_is_sent_before_a_stop(journal: Path, group: str, tmp_path: Path) -> None:
    (journal / "journal").write_text(line(1, "last words") + "\n")
    (journal / "follow").touch()
    script = (
        "import sys; from pathlib import Path; from train_cloud.platforms.ec2.journal import Streams, follow;"
        "follow(Streams(sys.argv[1], 'i-1'), Path(sys.argv[2]), interval_s=3600)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, group, str(tmp_path)])
    try:
        deadline = time.monotonic() + 60
        while not (journal / "asked").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)
        (journal / "follow").unlink()  # journalctl ends with its SIGTERM; a shell that sleeps does not hear it
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
    assert said(group) == {"i-1/train-cloud-train": ["last words"]}


def test_a_group_that_is_not_there_is_an_error(aws_endpoint: str, journal: Path, tmp_path: Path) -> None:
    (journal / "journal").write_text(line(1, "lost?") + "\n")
    with pytest.raises(CloudError, match="create_log_stream"):
        follow(Streams("/nowhere", "i-1", retry_timeout_s=0), tmp_path, interval_s=0.1)
    assert not (tmp_path / "journal.cursor").exists()
