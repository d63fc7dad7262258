"""Auto Scaling groups at moto's, as ``terraform/worker.tf`` makes them; and an Auto Scaling that refuses to order."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

import boto3


def make_group(name: str | None = None) -> str:
    """Name of a new group of one machine, tagged with a run id that is the name."""
    name = name or f"g-{uuid.uuid4().hex[:8]}"
    autoscaling = boto3.client("autoscaling")
    autoscaling.create_launch_configuration(
        LaunchConfigurationName=name, ImageId="ami-12c6146b", InstanceType="g5.xlarge"
    )
    autoscaling.create_auto_scaling_group(
        AutoScalingGroupName=name,
        LaunchConfigurationName=name,
        MinSize=0,
        MaxSize=1,
        DesiredCapacity=1,
        AvailabilityZones=["us-east-1a"],
        Tags=[{"Key": "train-cloud-run", "Value": name, "PropagateAtLaunch": True}],
    )
    return name


def machines(group: str) -> list[str]:
    """Instance ids in a group."""
    found = boto3.client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[group])
    return [instance["InstanceId"] for instance in found["AutoScalingGroups"][0]["Instances"]]


class AutoScaling(ThreadingHTTPServer):
    """The Query API: first the refusals in ``script``, then success."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Exchange)
        self.script: list[tuple[int, str, str]] = []
        self.calls: list[dict[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Exchange(BaseHTTPRequestHandler):
    server: AutoScaling

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        call = {name: values[0] for name, values in form.items()}
        self.server.calls.append(call)
        action = call["Action"]
        refusal = self.server.script.pop(0) if self.server.script else None
        if refusal:
            status, code, message = refusal
            said = f"<Code>{code}</Code><Message>{escape(message)}</Message>"
            body = f"<ErrorResponse><Error>{said}</Error></ErrorResponse>" if code else message
        else:
            status, body = 200, f"<{action}Response><{action}Result/></{action}Response>"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def scripted_autoscaling() -> Iterator[AutoScaling]:
    """One that listens, for ``AWS_ENDPOINT_URL_AUTO_SCALING``."""
    with AutoScaling() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
