"""``python -m benchmarks``: measure, write ``results.json`` and the page in the documents."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import re
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

from benchmarks.digest import checksums
from benchmarks.document import document
from benchmarks.experiment import side_by_side
from benchmarks.figures import FULL, LARGE, QUICK, Sizes, checkpoints, notices, starts, throughput
from benchmarks.measure import Figure
from benchmarks.ranks import two_ranks
from benchmarks.worker import ROOT, isolate

_PACKAGES = ("torch", "stable-baselines3", "gymnasium", "numpy", "obstore", "boto3")
_GROUPS = {
    1: checkpoints,
    2: checkpoints,
    3: checkpoints,
    4: notices,
    5: checkpoints,
    6: throughput,
    7: starts,
    8: checksums,
    9: side_by_side,
    14: two_ranks,
}
#: Of ``--large``: the ring, what the process has besides it, and stock's file, which passes through the page cache.
_LARGE_MEMORY_GB, _LARGE_DISK_GB = 12.0, 10.0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--large", action="store_true", help="1M rows of 1080 floats")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does everything, says nothing")
    parser.add_argument("--only", default="1,2,3,4,5,6,7,8,9,14", help="figures, for example 4,7")
    parser.add_argument("--floats", type=int, help="of figures 1 to 5 only those with so many floats per observation")
    parser.add_argument("--output", type=Path, help="folder for benchmarks/results.json and docs/, if not this one")
    options = parser.parse_args(arguments)
    if options.quick and options.output is None:
        parser.error("--quick needs --output: what it measures must not take the place of what was measured")
    isolate()
    if options.large and not _fits():
        return 1
    sizes = QUICK if options.quick else LARGE if options.large else FULL
    if options.floats is not None:
        sizes = dataclasses.replace(sizes, blocks=tuple(block for block in sizes.blocks if block[0] == options.floats))
    wanted = {int(number) for number in options.only.split(",")} & ({1, 2, 3} if options.large else set(_GROUPS))
    command = "make bench-large" if options.large else "make bench"
    began = time.monotonic()
    where = {"date": datetime.now(timezone.utc).date().isoformat(), "commit": _commit()}
    result = {
        "quick": options.quick,
        "machine": _machine(),
        "versions": {"Python": platform.python_version()} | {name: metadata.version(name) for name in _PACKAGES},
    }
    for figure in _measure(sizes, wanted):
        measured = figure.measured
        print(
            f"[{time.monotonic() - began:.0f} s] {figure.number} {figure.setting}: {measured.value:.4g} "
            f"({measured.low:.4g} to {measured.high:.4g}), limit {figure.limit}: {figure.verdict}; "
            f"{json.dumps({name: round(value, 4) for name, value in figure.detail.items()})}",
            flush=True,
        )
        # Right after it was measured: of the last minute, this measurement's own processes included.
        found = {**dataclasses.asdict(figure), "verdict": figure.verdict, **where, "load": round(os.getloadavg()[0], 1)}
        _write(options.output or ROOT, command, result, found)  # each at once: what comes may be broken off
    return 0


def _measure(sizes: Sizes, wanted: set[int]) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="train-cloud-bench-") as folder:
        for group in dict.fromkeys(_GROUPS[number] for number in sorted(wanted)):
            yield from (figure for figure in group(Path(folder), sizes, wanted) if figure.number in wanted)


def _write(folder: Path, command: str, result: dict[str, Any], measured: dict[str, Any]) -> None:
    """One figure; the others stay as they are."""

    def which(figure: dict[str, Any]) -> tuple[int, str]:
        return figure["number"], figure["setting"]

    path = folder / "benchmarks" / "results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(path.read_text()) if path.exists() else {}
    all_of_them = {which(figure): figure for figure in [*results.get(command, {}).get("figures", []), measured]}
    figures = [all_of_them[one] for one in sorted(all_of_them, key=_in_order)]
    results[command] = {**result, "figures": figures}
    results = dict(sorted(results.items()))
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    page = folder / "docs" / "benchmarks.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(document(results, Path(__file__).parent / "notes.md"))


def _in_order(which: tuple[int, str]) -> tuple[int, list[Any]]:
    """By number, then by setting, with the numbers in it as numbers."""
    return which[0], [
        (not text.isdigit(), int(text) if text.isdigit() else text) for text in re.split(r"(\d+)", which[1])
    ]


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
    found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
