"""What the trainer shows of itself while it works."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from train_cloud.runtime.heartbeat import Heartbeat, read_delay, read_timesteps


def test_the_line_says_how_far_it_is(tmp_path: Path) -> None:
    heartbeat = Heartbeat(tmp_path, 1000, every_second=lambda: None)
    assert heartbeat.line() == "0 of 1000 timesteps, start"
    heartbeat.phase("restore")
    assert heartbeat.line() == "0 of 1000 timesteps, restore"
    heartbeat.restored(120_400_000, 4_320_000_000)
    assert heartbeat.line() == "restored 120 of 4,320 MB"
    heartbeat.phase("steps")
    heartbeat.step(500)
    heartbeat.step(501)
    assert re.fullmatch(r"501 of 1000 timesteps, [\d,]+ steps/s, \d+:\d\d:\d\d left", heartbeat.line())
    assert read_timesteps(tmp_path) == 501


def test_what_it_waits_for_is_told_to_whoever_looks(tmp_path: Path) -> None:
    assert read_delay(tmp_path) is None
    heartbeat = Heartbeat(tmp_path, 1000, every_second=lambda: None)
    heartbeat.step(7)
    assert read_delay(tmp_path) is None
    heartbeat.delayed("no space left: " + "ü" * 400)
    assert str(read_delay(tmp_path)).startswith("no space left: ü") and read_timesteps(tmp_path) == 7
    assert "; saving is delayed: no space left" in heartbeat.line()
    heartbeat.delayed("still full")
    assert read_delay(tmp_path) == "still full"
    heartbeat.delayed(None)
    assert read_delay(tmp_path) is None and "delayed" not in heartbeat.line() and read_timesteps(tmp_path) == 7


BAR = """
import sys, time
from pathlib import Path
from train_cloud.runtime.heartbeat import Heartbeat
heartbeat = Heartbeat(Path(sys.argv[1]), 1000, every_second=lambda: None)
heartbeat.start()
heartbeat.phase("restore")
heartbeat.restored(250_000_000, 1_000_000_000)
time.sleep(2.5)
heartbeat.phase("steps")
heartbeat.step(900)
time.sleep(2.5)
heartbeat.stop()
"""


def test_the_bar_follows_the_restore_and_then_the_training(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    environment = {**os.environ, "COLUMNS": "100", "TERM": "xterm"}
    process = subprocess.Popen([sys.executable, "-c", BAR, str(tmp_path)], stderr=slave, env=environment)
    os.close(slave)
    shown = b""
    try:
        while chunk := os.read(master, 4096):
            shown += chunk
    except OSError:  # Linux: the other end is closed
        pass
    finally:
        os.close(master)
        assert process.wait(30) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert "25% 250 of 1,000 MB" in text
    assert "90%" in text
