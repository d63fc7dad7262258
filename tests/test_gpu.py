"""The program that is run where there is a GPU, tried on the CPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu
from benchmarks.document import gpu_document

ROOT = Path(__file__).parent.parent


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_every_part_passes_on_the_cpu(tmp_path: Path) -> None:
    run = subprocess.run(
        [str(ROOT / "scripts" / "gpu.sh"), str(tmp_path / "out"), "cpu"],
        env={**os.environ, "PYTHON": sys.executable, "WHEELS": str(tmp_path / "none")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results) == set(gpu.PARTS)
    assert all("failed" not in found for found in results.values())
    assert results["determinism"]["sac, deterministic"] == [], "on the CPU they are equal bit for bit"


@pytest.mark.slow
def test_a_part_that_fails_says_why_and_keeps_what_it_had_found(tmp_path: Path) -> None:
    program = (
        "import sys; from benchmarks import gpu\n"
        "def broken(device, out):\n    yield {'first': 1}\n    raise ValueError('the second')\n"
        "gpu.PARTS['machine'] = broken; gpu.main()"
    )
    arguments = ["machine", "--device", "cpu", "--out", str(tmp_path)]
    run = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, check=False)
    assert run.returncode != 0
    assert json.loads((tmp_path / "machine.json").read_text()) == {"first": 1, "failed": "ValueError: the second"}
    gpu.summary(tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results == {"machine": {"first": 1, "failed": "ValueError: the second"}}


def test_a_part_that_is_not_there_is_refused(tmp_path: Path) -> None:
    command = [str(ROOT / "scripts" / "gpu.sh"), str(tmp_path / "out"), "cpu", "speed", "sped"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 2 and "no part sped; there are: machine" in run.stderr
    assert not (tmp_path / "out").exists()


def test_every_part_has_a_limit_and_they_are_eight_minutes_in_all() -> None:
    (line,) = re.findall(r"parts=\((.*)\)", (ROOT / "scripts" / "gpu.sh").read_text())
    limits = {name: int(seconds) for name, seconds in (part.split(":") for part in line.split())}
    assert set(limits) == set(gpu.PARTS) and sum(limits.values()) <= 480


def _outcome(folder: Path, **parts: dict[str, Any]) -> Path:
    machine: dict[str, Any] = {
        "when": "2030-01-02T03:04:05+00:00",
        "gpu": "a GPU",
        "driver": "1",
        "torch": "2",
        "python": "3",
    }
    machine |= {"stable_baselines3": "4", "cpu": "a CPU", "cores": 8, "seconds": 1.0}
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"machine": machine, **parts}))
    return folder


def test_what_failed_does_not_take_the_place_of_what_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "gpu.json")
    speed = {"sac on cuda": {"stock": 99.5, "ours": 98.0}, "seconds": 60.0}
    gpu.take(_outcome(tmp_path / "first", speed=speed, tests={"tests": 3, "failed": "AssertionError: one"}))
    gpu.take(_outcome(tmp_path / "second", speed={"failed": "no time"}, determinism={"sac, deterministic": []}))
    document = (tmp_path / "docs" / "gpu.md").read_text()
    assert "| sac on cuda | 99.5 | 98.0 |" in document and "no time" not in document
    assert "| sac, deterministic | equal bit for bit |" in document
    assert "**Not all of it**: AssertionError: one." in document
    assert "2030-01-02: a GPU, driver 1" in document


def test_figures_of_a_cpu_are_not_taken(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"machine": {"cpu": "a CPU"}}))
    with pytest.raises(AssertionError, match="no figures of a GPU"):
        gpu.take(tmp_path)


def test_the_document_is_that_of_the_results() -> None:
    assert (ROOT / "docs" / "gpu.md").read_text() == gpu_document(json.loads(gpu.RESULTS.read_text()))
