"""A pytest plugin: where the time went, per test file and for the dearest tests, in minutes of the clock and in seconds
of processors. Loaded by the Makefile with ``-p minutes``. Only the latter say what a test costs on a machine on which
others work too. With ``--last-failed`` it names what passes now: those tests depend on how busy the machine is.

``cpu_seconds.json`` has what each file may take in CI; after `make test` the files that took more are named, and those
that have no budget. ``--write-budgets`` writes what was measured, of the files that were run, into it.
"""

from __future__ import annotations

import json
import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

DEAREST = 30
_FAILED = "minutes/failed"
BUDGETS = Path(__file__).with_name("cpu_seconds.json")
#: What CI runs: budgets are of these tests.
_CI = "not full"
#: So many times its budget, and so many seconds more, is too much; less is how measurements vary.
_FACTOR, _MORE = 1.4, 4.0

_clock: defaultdict[str, float] = defaultdict(float)
_processor: defaultdict[str, float] = defaultdict(float)
_tests: Counter[str] = Counter()
_by_test: defaultdict[str, float] = defaultdict(float)
_clock_by_test: defaultdict[str, float] = defaultdict(float)
_failed: set[str] = set()
_passed: set[str] = set()
_before: float | None = None


def processor_seconds() -> float:
    """User and system seconds of this process and of all below it: those that run, and those that were waited for,
    by whomever (``man 5 proc_pid_stat``: utime, stime, cutime, cstime). Servers and the process that the sessions are
    forked from run on from test to test, which is why ``os.times()`` does not see them.
    """
    ticks: dict[int, int] = {}
    children: defaultdict[int, list[int]] = defaultdict(list)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        ticks[int(process.name)] = sum(map(int, fields[11:15]))
        children[int(fields[1])].append(int(process.name))
    together, waiting = 0, [os.getpid()]
    while waiting:
        process_id = waiting.pop()
        together += ticks[process_id]
        waiting += children[process_id]
    return together / os.sysconf("SC_CLK_TCK")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    global _before
    report, now = (yield), processor_seconds()
    # From report to report: what lies between two tests belongs to the second.
    report.processor = now - (now if _before is None else _before)
    _before = now
    return report


def pytest_runtest_logstart() -> None:
    global _before
    if _before is None:
        _before = processor_seconds()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    file = report.nodeid.split("::")[0]
    _clock[file] += report.duration
    _clock_by_test[report.nodeid] += report.duration
    if report.failed:
        _failed.add(report.nodeid)
    if report.when == "call" and report.passed:
        _passed.add(report.nodeid)
    _tests[file] += report.when == "call"
    seconds = getattr(report, "processor", 0.0)  # pytest-xdist brings it along from its workers
    _processor[file] += seconds
    _by_test[report.nodeid] += seconds


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-budgets", action="store_true", help="what each file took is what it may take")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not _clock:
        return
    _show_where_the_time_went(terminalreporter)
    names = {Path(file).name: seconds for file, seconds in _processor.items()}
    if config.getoption("write_budgets"):
        budgets = json.loads(BUDGETS.read_text()) | {name: max(1, round(seconds)) for name, seconds in names.items()}
        BUDGETS.write_text(json.dumps(dict(sorted(budgets.items())), indent=1) + "\n")
    elif config.getoption("markexpr") == _CI and not config.getoption("lf", False):
        _show_budgets(terminalreporter, names)
    if getattr(config, "cache", None) is None:  # switched off
        return
    if config.getoption("lf", False):
        _show_second_tries(terminalreporter, config.cache.get(_FAILED, {}))
    else:
        config.cache.set(_FAILED, {test: _clock_by_test[test] for test in sorted(_failed)})


def _show_budgets(terminalreporter: pytest.TerminalReporter, took: dict[str, float]) -> None:
    """This machine's speed is that of most files: what is looked for is one that has grown."""
    budgets: dict[str, float] = json.loads(BUDGETS.read_text())
    ratios = [took[name] / budgets[name] for name in took.keys() & budgets.keys() if budgets[name] >= 5]
    speed = statistics.median(ratios) if len(ratios) >= 5 else 1.0
    lines = [f"{name}: {took[name]:.0f} s, no budget" for name in sorted(took.keys() - budgets.keys())]
    for name in sorted(took.keys() & budgets.keys()):
        may = budgets[name] * speed
        if took[name] > max(_FACTOR * may, may + _MORE):
            lines.append(f"{name}: {took[name]:.0f} s, its budget is {may:.0f} s on this machine")
    terminalreporter.section(f"files beyond their budgets in tests/{BUDGETS.name}: {len(lines)}")
    for line in lines:
        terminalreporter.write_line(line)


def _show_second_tries(terminalreporter: pytest.TerminalReporter, first: dict[str, float]) -> None:
    """:param first: seconds that each took when it failed"""
    passed = sorted(_passed - _failed)
    terminalreporter.section(f"passed only at the second try: {len(passed)}")
    for test in passed:
        before = f"{first[test]:.1f}" if test in first else "?"
        terminalreporter.write_line(f"{test}: failed after {before} s, then passed in {_clock_by_test[test]:.1f} s")


def _show_where_the_time_went(terminalreporter: pytest.TerminalReporter) -> None:
    width = max(map(len, _clock))
    terminalreporter.section("minutes of the clock and seconds of processors per file")
    for file, seconds in sorted(_processor.items(), key=lambda item: -item[1]):
        terminalreporter.write_line(
            f"{file:<{width}}  {_clock[file] / 60:6.2f} min  {seconds:7.1f} s  {_tests[file]:4d} tests"
        )
    together = sum(_clock.values()) / 60, sum(_processor.values())
    terminalreporter.write_line(f"{'together':<{width}}  {together[0]:6.2f} min  {together[1]:7.1f} s")
    terminalreporter.section("the dearest tests, in seconds of processors")
    for test, seconds in sorted(_by_test.items(), key=lambda item: -item[1])[:DEAREST]:
        terminalreporter.write_line(f"{seconds:7.1f} s  {test}")
