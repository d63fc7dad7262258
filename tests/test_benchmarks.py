"""What the benchmarks say, and that they can be run: ``--quick`` does all that ``make bench`` does, in tiny sizes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import numpy as np
import psutil
import pytest
from botocore.exceptions import ClientError

from benchmarks import __main__ as command
from benchmarks.document import document
from benchmarks.measure import Figure, Interval, interval
from benchmarks.server import Server

ROOT = Path(__file__).parent.parent
RESULTS = json.loads((ROOT / "benchmarks" / "results.json").read_text())
FIGURES = [(name, figure) for name, result in RESULTS.items() for figure in result["figures"]]
#: What must be reached: limit by figure, and of figure 1 by setting.
LIMITS: dict[int, float | None] = {2: 1.0, 3: 1.0, 4: 1.5, 5: 1.5, 6: 0.98, 7: None, 8: 0.003, 9: 1.1, 14: 1.7}
LARGE = "1080 floats, 1M rows"
LOST = {"24 floats, 1M rows": 1 / 200, "1080 floats, 100k rows": 1 / 50, LARGE: 1 / 300}
PACED = ("94 MB/s, 30 ms", "625 MB/s, 30 ms")


def test_the_document_is_that_of_the_results() -> None:
    assert (ROOT / "docs" / "benchmarks.md").read_text() == document(RESULTS, ROOT / "benchmarks" / "notes.md")


def test_nothing_that_must_be_measured_is_missing() -> None:
    """``make bench`` is measured whole; ``make bench-large`` needs a machine that not everybody has."""
    there = {(figure["number"], figure["setting"]) for _, figure in FIGURES}
    small = [setting for setting in LOST if setting != LARGE]
    lost = list(LOST) if "make bench-large" in RESULTS else small
    wanted = {(1, f"{setting}, loopback") for setting in lost} | {(3, setting) for setting in lost}
    wanted |= {(2, f"{setting}, nets 256x256") for setting in lost}
    wanted |= {(4, f"24 floats, {line}") for line in PACED}
    wanted |= {(5, f"{setting}, {line}") for setting in small for line in ("loopback", *PACED)}
    wanted |= {(6, "SAC"), (6, "PPO"), (7, "SAC, 500 rows"), (8, "PPO on CartPole-v1")}
    wanted |= {(9, "PPO on CartPole-v1, 20,480 steps each")}
    assert wanted <= there, sorted(wanted - there)
    assert not any(result["quick"] for result in RESULTS.values())


@pytest.mark.parametrize(("name", "figure"), FIGURES, ids=[f"{f['number']} {f['setting']}" for _, f in FIGURES])
def test_limit_and_verdict(name: str, figure: dict[str, Any]) -> None:
    """The limits are those that were asked for, and the verdicts follow from them."""
    _check(figure)
    if figure["number"] == 1:
        assert figure["limit"] == LOST[", ".join(figure["setting"].split(", ")[:2])]
    else:
        assert figure["limit"] == LIMITS[figure["number"]]
    assert len(figure["commit"]) >= 7 and figure["date"] >= "2026"


def _check(figure: dict[str, Any]) -> None:
    measured = Interval(**figure["measured"])
    assert measured.low <= measured.value <= measured.high and measured.count >= 1
    again = Figure(figure["number"], figure["setting"], measured, figure["limit"], figure["at_least"])
    assert figure["verdict"] == again.verdict
    assert figure["detail"] and all(math.isfinite(value) for value in figure["detail"].values())


@pytest.mark.parametrize(
    ("low", "high", "limit", "at_least", "verdict"),
    [
        (0.8, 0.9, 1.0, False, "reached"),
        (0.8, 1.1, 1.0, False, "not resolvable"),
        (1.1, 1.2, 1.0, False, "missed"),
        (0.981, 1.2, 0.98, True, "reached"),
        (0.97, 1.2, 0.98, True, "not resolvable"),
        (0.9, 0.97, 0.98, True, "missed"),
        (0.9, 0.97, None, False, "reported"),
    ],
)
def test_the_unfavourable_end_decides(low: float, high: float, limit: float, at_least: bool, verdict: str) -> None:
    assert Figure(1, "", Interval((low + high) / 2, low, high, 9), limit, at_least).verdict == verdict


def test_the_interval_holds_what_is_sought_in_95_of_100_cases() -> None:
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(100):
        found = interval(list(generator.exponential(size=40)))
        held += found.low <= math.log(2) <= found.high
    assert 88 <= held <= 100
    ratio = interval([2.0, 2.0, 2.0], [4.0, 4.0], of=lambda a, b: a / b)
    assert (ratio.value, ratio.low, ratio.high, ratio.count) == (0.5, 0.5, 0.5, 2)


def test_too_little_memory_is_said_before_anything_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "isolate", lambda: None)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=5e9))
    assert command.main(["--large", "--output", str(tmp_path)]) == 1
    assert "needs 12 GB of free memory" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_quick_results_never_take_the_place_of_real_ones() -> None:
    with pytest.raises(SystemExit):
        command.main(["--quick"])


def test_the_server_keeps_to_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The instrument: a rate that all connections share, a round trip, conditional writes, and a log."""
    with Server(rate=20e6, latency=0.05) as server:
        s3 = boto3.client("s3", endpoint_url=server.url)
        body = os.urandom(4_000_000)
        began = time.monotonic()
        etag = s3.put_object(Bucket="a", Key="b", Body=body)["ETag"]
        assert time.monotonic() - began >= 0.2 + 0.05 - 0.01
        began = time.monotonic()
        assert s3.get_object(Bucket="a", Key="b")["Body"].read() == body
        assert time.monotonic() - began >= 0.2 + 0.05 - 0.01
        with pytest.raises(ClientError, match="PreconditionFailed"):
            s3.put_object(Bucket="a", Key="b", Body=b"", IfNoneMatch="*")
        with pytest.raises(ClientError, match="PreconditionFailed"):
            s3.put_object(Bucket="a", Key="b", Body=b"", IfMatch='"another"')
        s3.put_object(Bucket="a", Key="b", Body=b"", IfMatch=etag)
        put, got, *_ = server.log()
        assert (put.method, put.key, put.received) == ("PUT", "a/b", len(body))
        assert (got.method, got.sent) == ("GET", len(body)) and put.at < got.at < time.monotonic()


#: What each part of the benchmarks measures: a checkpoint's cost, and what does without a training. The others start
#: many processes, whose imports are what they cost here.
FEW = "1,2,3,5,8"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("only", [FEW, pytest.param("1,2,3,4,5,6,7,8,9", marks=pytest.mark.full)])
def test_all_of_it_runs(tmp_path: Path, only: str) -> None:
    arguments = [sys.executable, "-m", "benchmarks", "--quick", "--only", only, "--output", str(tmp_path)]
    ran = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=800, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    results = json.loads((tmp_path / "benchmarks" / "results.json").read_text())
    assert (tmp_path / "docs" / "benchmarks.md").read_text() == document(results, ROOT / "benchmarks" / "notes.md")
    (result,) = results.values()
    assert result["quick"] and result["machine"]["cores"] >= 1
    by_number: dict[int, list[dict[str, Any]]] = {}
    for figure in result["figures"]:
        _check(figure)
        by_number.setdefault(figure["number"], []).append(figure["detail"])
    assert set(by_number) == set(map(int, only.split(",")))
    assert all(detail["stock, ms"] > 0 and detail["steps compared"] >= 3 for detail in by_number[1])
    (sent,) = by_number[3]
    assert sent["sent, MB"] > sent["tensors, MB"] > 0, "a checkpoint has at least its tensors"
    for detail in by_number.get(4, ()):
        assert detail["sent, MB"] > 0.01, "what was committed at the notice is a checkpoint, not a lease"
        assert detail["notice to committed, ms"] >= 55, "two round trips of 30 ms"
    assert all(detail["objects"] >= 3 for detail in by_number[5])
    for start in by_number.get(7, ()):
        assert set(start) == {"imports, s", "build, s", "take, s", "fetch, s", "first step, s"}
        assert all(seconds >= 0 for seconds in start.values()) and start["imports, s"] > 0.1
    assert len(by_number.get(7, ())) == ("7" in only)
