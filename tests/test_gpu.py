"""The program that is run where there is a GPU, tried on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu

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
    assert results["machine"]["first"] == 1 and "failed" in results["speed"]
