"""``python -m benchmarks``: measure, write ``results.json`` and the page in the documents."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from benchmarks.document import document
from benchmarks.figures import FULL, LARGE, QUICK, Sizes, checkpoints, notices, starts, throughput
from benchmarks.measure import Figure
from benchmarks.worker import ROOT, isolate

_PACKAGES = ("torch", "stable-baselines3", "gymnasium", "numpy", "obstore", "boto3")
_GROUPS = {1: checkpoints, 2: checkpoints, 3: checkpoints, 4: notices, 5: checkpoints, 6: throughput, 7: starts}
#: Of ``--large``: the ring, what the process has besides it, and stock's file, which passes through the page cache.
_LARGE_MEMORY_GB, _LARGE_DISK_GB = 12.0, 10.0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--large", action="store_true", help="1M rows of 1080 floats")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does everything, says nothing")
    parser.add_argument("--only", default="1,2,3,4,5,6,7", help="figures, for example 4,7")
    parser.add_argument("--output", type=Path, default=ROOT, help="folder for benchmarks/results.json and docs/")
    options = parser.parse_args(arguments)
    isolate()
    if options.large and not _fits():
        return 1
    sizes = QUICK if options.quick else LARGE if options.large else FULL
    wanted = {int(number) for number in options.only.split(",")} & ({1, 2, 3} if options.large else set(range(1, 8)))
    command = "make bench-large" if options.large else "make bench"
    began, load = time.monotonic(), os.getloadavg()[0]
    figures = []
    for figure in _measure(sizes, wanted):
        measured = figure.measured
        print(
            f"[{time.monotonic() - began:.0f} s] {figure.number} {figure.setting}: {measured.value:.4g} "
            f"({measured.low:.4g} to {measured.high:.4g}), limit {figure.limit}: {figure.verdict}; "
            f"{json.dumps({name: round(value, 4) for name, value in figure.detail.items()})}",
            flush=True,
        )
        figures.append({**dataclasses.asdict(figure), "verdict": figure.verdict})
    result = {
        "command": command,
        "quick": options.quick,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": _commit(),
        "minutes": (time.monotonic() - began) / 60,
        "load": [load, os.getloadavg()[0]],
        "machine": _machine(),
        "versions": {"Python": platform.python_version()} | {name: metadata.version(name) for name in _PACKAGES},
    }
    _write(options.output, command, result, figures, wanted)
    return 0


def _measure(sizes: Sizes, wanted: set[int]) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="train-cloud-bench-") as folder:
        for group in dict.fromkeys(_GROUPS[number] for number in sorted(wanted)):
            yield from (figure for figure in group(Path(folder), sizes, wanted) if figure.number in wanted)


def _write(folder: Path, command: str, result: dict[str, Any], figures: list[dict[str, Any]], wanted: set[int]) -> None:
    """Figures that were not measured this time stay as they are."""
    path = folder / "benchmarks" / "results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(path.read_text()) if path.exists() else {}
    before = [figure for figure in results.get(command, {}).get("figures", []) if figure["number"] not in wanted]
    result["figures"] = sorted(before + figures, key=lambda figure: figure["number"])
    results[command] = result
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    page = folder / "docs" / "benchmarks.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(document(results, Path(__file__).parent / "notes.md"))


def _fits() -> bool:
    memory = psutil.virtual_memory().available / 1e9
    disk = psutil.disk_usage(tempfile.gettempdir()).free / 1e9
    if memory >= _LARGE_MEMORY_GB and disk >= _LARGE_DISK_GB:
        return True
    print(
        f"needs {_LARGE_MEMORY_GB:.0f} GB of free memory (a ring of 8.6 GB) and {_LARGE_DISK_GB:.0f} GB of disk in "
        f"{tempfile.gettempdir()} (stock's file); there are {memory:.1f} and {disk:.1f}",
        file=sys.stderr,
    )
    return False


def _machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {
        "cpu": cpu,
        "cores": psutil.cpu_count(),
        "memory_gb": psutil.virtual_memory().total / 1e9,
        "system": f"{platform.system()} {platform.release()}",
    }


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
