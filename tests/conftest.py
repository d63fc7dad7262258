"""An AWS of its own for every test session: moto behind real HTTP on loopback, and nothing else within reach."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import boto3
import hypothesis
import pytest
from paths import PYTHONPATH
from warm_provider import VARIABLE, warm_provider
from warm_start import cold_starts, uploaded_packages, warm_starts
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


# On a busy machine an example may take any time.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")

#: Files whose tests take long and share little: any process may run any of them.
SPREAD = {"test_exactness", "test_exactness_table", "test_failures", "test_train"}


#: These begin first, in this order, so that at the end no process waits for one of them alone.
LONGEST = (
    *("test_machine", "test_examples", "test_failures", "test_exactness_table", "test_rehearse", "test_chaos"),
    *("test_gridworld_experiment", "test_terraform", "test_experiments", "test_state", "test_evaluate", "test_prove"),
    *("test_curriculum", "test_ranks", "test_pretraining", "test_search", "test_multiagent", "test_artifacts"),
)

#: What `make test-quick` runs besides all that is not marked `slow`: whole runs, a trainer of each kind.
QUICK = {
    "test_exactness.py::test_interrupted_twice_it_ends_where_the_uninterrupted_run_ends[plain]",
    "test_exactness.py::test_interrupted_twice_it_ends_where_the_uninterrupted_run_ends[ppo]",
    "test_exactness.py::test_interrupted_twice_it_ends_where_the_uninterrupted_run_ends[hindsight]",
    "test_phases.py::test_what_cannot_be_a_phase_is_refused[too_many-all its calls together may train]",
}

#: Of these files' fast tests `make test-quick` runs one in so many.
ONE_IN = {
    "test_account": 8,
    "test_accounting": 4,
    "test_architectures": 4,
    "test_aws": 8,
    "test_bootstrap": 5,
    "test_build": 3,
    "test_callback": 12,
    "test_capture": 5,
    "test_check": 12,
    "test_checkpoint": 2,
    "test_child_process": 4,
    "test_compare": 5,
    "test_contents": 3,
    "test_cost": 4,
    "test_curriculum": 5,
    "test_demonstrations": 4,
    "test_digest": 3,
    "test_elsewhere": 3,
    "test_evaluate": 3,
    "test_evidence": 4,
    "test_examples": 3,
    "test_experiments": 4,
    "test_faults": 6,
    "test_finish": 4,
    "test_foreign": 6,
    "test_fork": 3,
    "test_gridworld": 4,
    "test_group": 3,
    "test_growing": 3,
    "test_hardware": 4,
    "test_hash_seed": 4,
    "test_imports": 6,
    "test_initial": 4,
    "test_multiagent": 6,
    "test_objects": 4,
    "test_pretraining": 8,
    "test_ranks": 4,
    "test_protocol": 5,
    "test_record": 4,
    "test_rendering": 3,
    "test_rollback": 4,
    "test_script": 4,
    "test_search": 5,
    "test_state": 14,
    "test_statistics": 2,
    "test_store": 6,
    "test_sync": 2,
    "test_systemd": 4,
    "test_trial": 5,
    "test_warm_process": 4,
    "test_watch": 3,
    "test_wheel": 10,
    "test_without_dynamo": 4,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    fast: Counter[str] = Counter()
    for item in items:
        file = item.path.stem
        if not any(map(item.get_closest_marker, ("slow", "machine", "full"))):
            fast[file] += 1
            if fast[file] % ONE_IN.get(file, 1) == 0:
                item.add_marker("quick")
        if item.nodeid.rpartition("/")[2] in QUICK:
            item.add_marker("quick")
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


#: Files about what a new interpreter does: nothing in them is forked from a warm process.
COLD = {
    "test_child_process",
    "test_hash_seed",
    "test_imports",
    "test_trial",
    "test_wheel",
    "test_without_dynamo",
}

#: Files in which machines run the package that was uploaded to them, and not the modules of this checkout.
UPLOADED = {"test_rehearse"}


#: Files that make stacks with Terraform: its provider runs already.
STACKS = {"test_examples", "test_experiments_aws", "test_machine", "test_plan", "test_rehearse", "test_terraform"}


class _ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """The other files' tests go to one process each, so that what they share is made once. Not by ``--dist loadgroup``:
    pytest-xdist 3.8 silently groups nothing under pytest 9.2 (its issue 1386)."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return nodeid if Path(file).stem in SPREAD else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    config.option.loadscopereorder = False  # in the order above, not by how many tests a file has
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
        patch.setenv("PYTHONPATH", os.pathsep.join([PYTHONPATH, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
        # Half of what Terraform and its provider take is collecting the garbage of their starts.
        patch.setenv("GOGC", "off")
        patch.setenv("GOMEMLIMIT", "1GiB")
        yield patch


@pytest.fixture(scope="session", autouse=True)
def warm_processes(aws_environment: pytest.MonkeyPatch) -> Iterator[None]:
    """The project's commands begin with their imports done: see tests/support/warm_start.py."""
    with warm_starts():
        yield


@pytest.fixture(scope="module", autouse=True)
def cold_processes(request: pytest.FixtureRequest, warm_processes: None) -> Iterator[None]:
    file = request.path.stem
    with cold_starts() if file in COLD else uploaded_packages() if file in UPLOADED else contextlib.nullcontext():
        yield


@pytest.fixture(scope="session")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str | None]:
    """Where Terraform's provider runs: see tests/support/warm_provider.py."""
    with warm_provider(tmp_path_factory.mktemp("provider") / "log.txt") as address:
        yield address


@pytest.fixture(scope="module", autouse=True)
def reached_provider(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if request.path.stem in STACKS and (address := request.getfixturevalue("provider")):
            patch.setenv(VARIABLE, address)
        yield


@pytest.fixture(scope="module", autouse=True)
def own_modules_only(request: pytest.FixtureRequest) -> Iterator[None]:
    """Of the files of tests only this one, and those that it imports, are loaded while its tests run: pytest has loaded
    them all, and to a training in its process they are the user's code, all of which each snapshot looks at.
    """
    loaded = {name: module for name, module in list(sys.modules.items()) if name.startswith("test_")}
    needed, waiting = set(), [request.path.stem]
    while waiting:
        name = waiting.pop()
        if name in loaded and name not in needed:
            needed.add(name)
            waiting += re.findall(r"^(?:from|import) (test_\w+)", inspect.getsource(loaded[name]), re.MULTILINE)
    for name in loaded.keys() - needed:
        del sys.modules[name]
    yield
    sys.modules.update(loaded)


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
