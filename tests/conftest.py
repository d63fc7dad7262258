"""An AWS of its own for every test session: moto behind real HTTP on loopback, and nothing else within reach."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from xdist.remote import Producer
from xdist.scheduler.loadscope import LoadScopeScheduling

pytest_plugins = ("sessions",)

# A shell script's `make test &` hands it on ignored, to the programs that the tests send it to as well.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Ends with its standard input, so that no server outlives a test session that was killed. The lock makes check and
# write one step, as they are in S3: moto looks at If-Match and stores the object in two. It also lists its own folder
# on the disk twice with each request, which takes a millisecond.
SERVER = """
import logging, sys, threading
import moto.backends
modules = frozenset(moto.backends.list_of_moto_modules())
moto.backends.list_of_moto_modules = lambda: modules
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server
logging.getLogger("werkzeug").setLevel(logging.ERROR)
backend, one_at_a_time = DomainDispatcherApplication(create_backend_app), threading.Lock()
def app(environ, start_response):
    with one_at_a_time:
        return backend(environ, start_response)
server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_port, flush=True)
sys.stdin.read()
"""


#: Files whose tests take long and share little: any process may run any of them.
SPREAD = {"test_exactness", "test_exactness_table", "test_failures", "test_train"}


#: What `make test-quick` runs besides all that is not marked `slow`: whole runs, a trainer of each kind.
QUICK = {
    "test_exactness.py::test_interrupted_twice_it_ends_where_the_uninterrupted_run_ends[plain]",
    "test_exactness.py::test_interrupted_twice_it_ends_where_the_uninterrupted_run_ends[ppo]",
    "test_exactness.py::test_interrupted_twice_it_ends_where_the_uninterrupted_run_ends[hindsight]",
    "test_phases.py::test_what_cannot_be_a_phase_is_refused[too_many-all its calls together may train]",
}

#: Files of which no test is slow, and which are dear all the same: two hundred trials, in two processes each.
NOT_QUICK = {"test_check"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        fast = not any(map(item.get_closest_marker, ("slow", "machine", "full"))) and item.path.stem not in NOT_QUICK
        if fast or item.nodeid.rpartition("/")[2] in QUICK:
            item.add_marker("quick")


class _ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """The other files' tests go to one process each, so that what they share is made once. Not by ``--dist loadgroup``:
    pytest-xdist 3.8 silently groups nothing under pytest 9.2 (its issue 1386)."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return nodeid if Path(file).stem in SPREAD else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    return _ByFile(config, log)


@pytest.fixture(scope="session", autouse=True)
def aws_environment() -> Iterator[pytest.MonkeyPatch]:
    """Nobody's account: invented credentials, no metadata service, no files of the user's, an endpoint that refuses."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "TRAIN_CLOUD_"))]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", "AKIATESTKEY000000001")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "of-nobody")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        patch.setenv("no_proxy", "127.0.0.1,localhost")
        yield patch


@pytest.fixture(scope="session")
def aws_endpoint(aws_environment: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of the session's moto server, which answers for every AWS service; also put into ``AWS_ENDPOINT_URL``."""
    log = tmp_path_factory.mktemp("moto") / "log.txt"
    with log.open("wb") as stderr:
        server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
        )
    assert server.stdin is not None and server.stdout is not None
    try:
        port = server.stdout.readline().strip()
        assert port, f"moto did not start: {log.read_text()}"
        url = f"http://127.0.0.1:{int(port)}"
        aws_environment.setenv("AWS_ENDPOINT_URL", url)
        yield url
    finally:
        server.stdin.close()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        server.stdout.close()


@pytest.fixture
def bucket(aws_endpoint: str) -> str:
    """Name of a fresh bucket on the session's server."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    boto3.client("s3", endpoint_url=aws_endpoint).create_bucket(Bucket=name)
    return name


@pytest.fixture
def s3_root(bucket: str) -> str:
    """A store root in a fresh bucket; ``open_store`` reaches it through ``AWS_ENDPOINT_URL``."""
    return f"s3://{bucket}/prefix"


@pytest.fixture
def folder_root(tmp_path: Path) -> str:
    """A store root in a local folder that exists."""
    root = tmp_path / "store"
    root.mkdir()
    return str(root)


@pytest.fixture(params=["folder", "s3"])
def store_root(request: pytest.FixtureRequest) -> str:
    """A store root of either kind: a test that takes this runs on both."""
    root: str = request.getfixturevalue(f"{request.param}_root")
    return root
