"""What libraries draw in the background, they do not draw from the training's generators."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
import numpy as np
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.retries import standard

from train_cloud import generators


class Failing(BaseHTTPRequestHandler):
    """Answers every request with 500."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def failing() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Failing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("mode", ["legacy", "standard", "adaptive"])
def test_a_request_that_is_sent_again(failing: str, mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    generators.leave_to_training()
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    client = boto3.client("sts", endpoint_url=failing, config=Config(retries={"mode": mode, "total_max_attempts": 4}))
    random.seed(1)
    np.random.seed(1)
    python, numpy = random.getstate(), np.random.get_state(legacy=False)
    with pytest.raises(ClientError):
        client.get_caller_identity()
    assert len(slept) >= 3 and len(set(slept)) >= 3  # it did wait, and not always as long
    assert random.getstate() == python
    assert str(np.random.get_state(legacy=False)) == str(numpy)


def test_backoff_takes_the_generator_that_it_is_given() -> None:
    generators.leave_to_training()
    backoff: Any = standard.ExponentialBackoff(random=lambda: 1.0)
    assert backoff._random() == 1.0


@pytest.mark.parametrize(
    "module", ["train_cloud.store.s3", "train_cloud.platforms.ec2.api", "train_cloud.platforms.ec2.price"]
)
def test_whoever_imports_boto3_has_called_it(module: str) -> None:
    import subprocess
    import sys

    code = f"import {module}; from train_cloud.generators import leave_to_training as f; print(f.cache_info().currsize)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"
