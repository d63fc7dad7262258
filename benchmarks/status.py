"""How long ``train-cloud status`` takes for a store of many runs, from a server that answers as late as S3 does.

``python -m benchmarks.status [--runs 100] [--checkpoints 1000] [--sessions 3] [--latency 30]``
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.server import Server
from train_cloud.report.status import run_ids, statuses
from train_cloud.run import layout
from train_cloud.run.head import Lease, Reference, Token
from train_cloud.store import ObjectStore, open_store

_TIMES = 7


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--checkpoints", type=int, default=1000, help="of each run")
    parser.add_argument("--sessions", type=int, default=3, help="of each run")
    parser.add_argument("--latency", type=float, default=30.0, help="ms of each request")
    options = parser.parse_args()
    with Server() as server:
        os.environ |= {"AWS_ENDPOINT_URL_S3": server.url, "AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "-"}
        os.environ |= {"AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
        root = "s3://status/all"
        for number in range(options.runs):
            _fill(open_store(layout.run_url(root, f"run-{number:03d}")), options.checkpoints, options.sessions)
        server.pace(None, options.latency / 1e3)
        server.log()
        seconds, requests = [], 0
        for _ in range(_TIMES):
            began = time.monotonic()
            found = statuses(root, run_ids(root))
            seconds.append(time.monotonic() - began)
            assert len(found) == options.runs and all(len(run.sessions) == options.sessions for run in found)
            requests = len(server.log())
    print(
        f"{options.runs} runs of {options.checkpoints} checkpoints and {options.sessions} sessions, "
        f"{options.latency:g} ms a request: {statistics.median(seconds):.2f} s (median of {_TIMES}, "
        f"{min(seconds):.2f} to {max(seconds):.2f}), {requests} requests"
    )


def _fill(store: ObjectStore, checkpoints: int, sessions: int) -> None:
    for number in range(1, sessions + 1):
        store.put(
            layout.start_key(number), json.dumps({"session": number, "started": "2026-01-01T00:00:00+00:00"}).encode()
        )
        store.put(layout.progress_key(number), json.dumps({"timesteps": 1000 * number, "exact": True}).encode())
        store.put(layout.end_key(number), json.dumps({"ended": "2026-01-01T01:00:00+00:00"}).encode())
    keys = [layout.checkpoint_prefix(1000 * at, (1, 0), at) + "manifest.json" for at in range(checkpoints)]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda key: store.put(key, b"{}"), keys))
    lease = Lease.take(store, Token(sessions, 0), "nobody")
    lease.commit(Reference(key=keys[-1], size=2, crc64nvme=0), 1000 * checkpoints, outcome="completed")


if __name__ == "__main__":
    main()
