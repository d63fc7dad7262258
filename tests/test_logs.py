"""What a run's machines have said, read from the store alone."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from train_cloud.cli import main
from train_cloud.errors import InputError
from train_cloud.report.logs import follow_log, read_log
from train_cloud.run import layout
from train_cloud.run.head import Lease, Token
from train_cloud.store import FileStore, open_store


@pytest.fixture
def run(store_root: str) -> FileStore:
    store = open_store(layout.run_url(store_root, "a"))
    assert isinstance(store, FileStore)
    return store


def test_the_newest_session_or_the_one_that_is_named(run: FileStore, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with pytest.raises(InputError, match="none yet"):
        read_log(run, None)
    for session in (1, 2, 11):
        run.put(layout.session_log_key(session), f"said by {session} ü\n".encode())
    assert main(["logs", run.url]) == 0
    assert capfdbinary.readouterr().out == "said by 11 ü\n".encode()
    assert main(["logs", run.url, "--session", "2"]) == 0
    assert capfdbinary.readouterr().out == "said by 2 ü\n".encode()
    assert main(["logs", run.url, "--session", "3"]) == 64
    assert b"there are: 1, 2, 11" in capfdbinary.readouterr().err


def test_the_last_boot_that_failed(run: FileStore, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["logs", run.url, "--boot"]) == 64
    assert b"none has failed" in capfdbinary.readouterr().err
    run.put("logs/boot-000001-i-1.log", b"E: Unable to locate package\n")
    assert main(["logs", run.url, "--boot"]) == 0
    assert capfdbinary.readouterr().out == b"E: Unable to locate package\n"


def test_following_goes_over_sessions_until_the_run_has_ended(run: FileStore) -> None:
    """Each look finds what came since the last one, and nothing twice."""
    steps: list[Callable[[], object]] = [
        lambda: run.put(layout.session_log_key(1), b"one\n"),
        lambda: run.put(layout.session_log_key(1), b"one\ntwo\n"),
        lambda: run.put(layout.session_log_key(2), b"three\n"),
        lambda: Lease.take(run, Token(2, 0), "nobody").conclude("stopped", "enough"),
    ]

    def sleep(seconds: float) -> None:
        assert seconds == 7.0
        steps.pop(0)()

    said = b"".join(follow_log(run, None, every=7.0, sleep=sleep))
    assert said == b"one\ntwo\n--- session 2\nthree\n" and not steps


def test_following_one_session_stays_with_it(run: FileStore) -> None:
    run.put(layout.session_log_key(1), b"one\n")
    run.put(layout.session_log_key(2), b"two\n")
    Lease.take(run, Token(2, 0), "nobody").conclude("completed", None)
    assert b"".join(follow_log(run, 1, every=1.0)) == b"one\n"
    with pytest.raises(InputError, match="there are: 1, 2"):
        list(follow_log(run, 5, every=1.0))


def test_the_command_follows(run: FileStore, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    run.put(layout.session_log_key(1), b"one\n")
    lease = Lease.take(run, Token(1, 0), "nobody")
    later = threading.Timer(0.5, lambda: lease.conclude("completed", None))
    later.start()
    assert main(["logs", run.url, "-f", "--every", "0.1"]) == 0
    later.join()
    assert capfdbinary.readouterr().out == b"one\n"
