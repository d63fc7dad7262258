"""A pytest plugin: where the time went, per test file. Loaded by the Makefile with ``-p minutes``."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

_seconds: defaultdict[str, float] = defaultdict(float)
_tests: Counter[str] = Counter()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    file = report.nodeid.split("::")[0]
    _seconds[file] += report.duration
    _tests[file] += report.when == "call"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _seconds:
        return
    width = max(map(len, _seconds))
    terminalreporter.section("minutes per file")
    for file, seconds in sorted(_seconds.items(), key=lambda item: -item[1]):
        terminalreporter.write_line(f"{file:<{width}}  {seconds / 60:6.2f} min  {_tests[file]:4d} tests")
    terminalreporter.write_line(f"{'together':<{width}}  {sum(_seconds.values()) / 60:6.2f} min")
