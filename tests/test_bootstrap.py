"""A boot, from user-data to started units, run for real below a temporary root.

Bash, coreutils, curl, the AWS CLI and S3 and Auto Scaling behind HTTP are real; systemd, accounts and the machine's
devices are stand-ins on PATH, which write down what they were asked.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from train_cloud.rehearsal.aws import EmbeddedAws
from train_cloud.rehearsal.metadata import MetadataService
from train_cloud.rehearsal.unit_file import read_unit
from train_cloud.run.head import Head, Reference, Token, read_head
from train_cloud.run.layout import boot_key, run_url
from train_cloud.store import ObjectStore, open_store

REPOSITORY = Path(__file__).parents[1]
BOOTSTRAP, UNITS = REPOSITORY / "bootstrap", REPOSITORY / "systemd"
SCRIPTS = sorted(BOOTSTRAP.glob("*.sh"))
GROUP, BUCKET = "train-cloud-boots", "boots"
#: Masked before anything else: they hold apt's locks, and may take the driver away from under a training.
UPGRADES = [
    *("apt-daily.timer", "apt-daily-upgrade.timer", "apt-daily.service", "apt-daily-upgrade.service"),
    "unattended-upgrades.service",
]
INSTALL = ["bash", "opt/train-cloud/code/package/bootstrap/install.sh"]
NVIDIA = "sys/bus/pci/devices/0000:00:1e.0/vendor"
needs_cli = pytest.mark.skipif(shutil.which("aws") is None, reason="needs the AWS CLI")


def made_for_boots() -> Iterator[EmbeddedAws]:
    """An AWS with a group of one machine, and a bucket."""
    with EmbeddedAws() as running:
        ec2 = running.client("ec2")
        name = "/aws/service/deeplearning/ami/x86_64/any/latest/ami-id"
        image = running.client("ssm").get_parameter(Name=name)["Parameter"]["Value"]
        data = {"ImageId": image, "InstanceType": "g5.xlarge"}
        ec2.create_launch_template(LaunchTemplateName="boots", LaunchTemplateData=data)
        running.client("autoscaling").create_auto_scaling_group(
            AutoScalingGroupName=GROUP,
            MinSize=0,
            MaxSize=1,
            DesiredCapacity=1,
            VPCZoneIdentifier=ec2.describe_subnets()["Subnets"][0]["SubnetId"],
            LaunchTemplate={"LaunchTemplateName": "boots", "Version": "1"},
        )
        running.client("s3").create_bucket(Bucket=BUCKET)
        yield running


@pytest.fixture(scope="module")
def aws() -> Iterator[EmbeddedAws]:
    yield from made_for_boots()


class CommandLine:
    """Answers the stand-in for `aws` in this process: the few commands that a boot uses, strictly, without the second
    that the real one takes to start. The tests that go the whole way use the real one."""

    SCRIPT = """
[ "$1" != --version ] || exec echo aws-cli/2.30.0 Python/3
reply=$(mktemp)
status=$(printf '%s\\0' "$@" | curl -sS -o "$reply" -w '%{{http_code}}' --data-binary @- {url})
if [ "$status" = 200 ]; then cat "$reply"; else cat "$reply" >&2; fi
rm "$reply"
[ "$status" = 200 ]
"""

    def __init__(self, aws: EmbeddedAws) -> None:
        self.s3, self.scaling = aws.client("s3"), aws.client("autoscaling")
        answer = self.answer

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                words = self.rfile.read(int(self.headers["Content-Length"])).decode().split("\0")[:-1]
                try:
                    status, body = 200, answer(words)
                except (ClientError, ValueError, OSError) as error:
                    status, body = 500, f"An error occurred: {error}\n".encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def script(self) -> str:
        return self.SCRIPT.format(url=f"http://127.0.0.1:{self.server.server_port}/")

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def answer(self, words: list[str]) -> bytes:
        service, verb, *rest = words
        options: dict[str, str] = {}
        plain: list[str] = []
        flags = {"--recursive", "--only-show-errors", "--no-should-decrement-desired-capacity"}
        while rest:
            word = rest.pop(0)
            if not word.startswith("--"):
                plain.append(word)
            elif word in flags:
                options[word] = ""
            else:
                options[word] = rest.pop(0)
        if (service, verb) == ("s3", "cp"):
            return self.copy(*plain, recursive="--recursive" in options)
        if plain:
            raise ValueError(f"Unknown options: {plain}")
        call = f"{service} {verb} {' '.join(sorted(options))}".strip()
        get = options.get
        at = {"Bucket": get("--bucket", ""), "Key": get("--key", "")}
        if call == "s3api list-objects-v2 --bucket --output --prefix --query":
            assert get("--query") == "Contents[].[Key]"
            listed = self.s3.list_objects_v2(Bucket=get("--bucket"), Prefix=get("--prefix"))
            return "".join(f"{entry['Key']}\n" for entry in listed.get("Contents", [])).encode() or b"None\n"
        if call.startswith("s3api put-object "):
            body = Path(options["--body"]).read_bytes() if "--body" in options else b""
            conditions = {"IfNoneMatch": get("--if-none-match"), "IfMatch": get("--if-match")}
            self.s3.put_object(**at, Body=body, **{name: value for name, value in conditions.items() if value})
            return b"{}"
        if call == "s3api delete-object --bucket --key":
            self.s3.delete_object(**at)
            return b"{}"
        if call == "autoscaling set-desired-capacity --auto-scaling-group-name --desired-capacity":
            self.scaling.set_desired_capacity(
                AutoScalingGroupName=get("--auto-scaling-group-name"),
                DesiredCapacity=int(options["--desired-capacity"]),
            )
            return b""
        if call == (
            "autoscaling terminate-instance-in-auto-scaling-group --instance-id --no-should-decrement-desired-capacity"
        ):
            self.scaling.terminate_instance_in_auto_scaling_group(
                InstanceId=get("--instance-id"), ShouldDecrementDesiredCapacity=False
            )
            return b"{}"
        raise ValueError(f"no such command: {call}")

    def copy(self, source: str, target: str, *, recursive: bool) -> bytes:
        if target.startswith("s3://"):
            bucket, _, key = target.removeprefix("s3://").partition("/")
            self.s3.put_object(Bucket=bucket, Key=key, Body=Path(source).read_bytes())
            return b""
        bucket, _, key = source.removeprefix("s3://").partition("/")
        if not recursive:
            body: bytes = self.s3.get_object(Bucket=bucket, Key=key)["Body"].read()
            if target == "-":
                return body
            Path(target).write_bytes(body)
            return b""
        for entry in self.s3.list_objects_v2(Bucket=bucket, Prefix=f"{key}/").get("Contents", []):
            path = Path(target) / entry["Key"].removeprefix(f"{key}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.s3.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read())
        return b""


class Boot:
    """One machine of the group: its root folder, its stand-ins, and its run in S3 (another one for each)."""

    def __init__(
        self, aws: EmbeddedAws, folder: Path, metadata: MetadataService, instance: str, command_line: CommandLine
    ) -> None:
        self.aws, self.instance, self.metadata = aws, instance, metadata
        self.root, self.bin = folder / "root", folder / "bin"
        self.s3, self.run_id = aws.client("s3"), f"run-{instance[2:12]}"
        self.root.mkdir()
        self.bin.mkdir()
        self.asked = folder / "asked"
        self.asked.touch()
        self.environment = {
            **aws.environment(),
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "TRAIN_CLOUD_ROOT": str(self.root),
            "TRAIN_CLOUD_RETRY_PAUSE": "0.2",
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata.endpoint,
        }
        for name in ("systemctl", "useradd", "chown"):
            # What only asks how the machine is leaves no trace.
            self.stand_in(name, f'[ "$1" = is-system-running ] || echo "{name} $*" >>{self.asked}')
        self.stand_in("aws", command_line.script())
        self.variables = {
            "AWS_REGION": aws.region,
            "AWS_DEFAULT_REGION": aws.region,
            "TRAIN_CLOUD_STORE": f"s3://{BUCKET}/some/prefix",
            "TRAIN_CLOUD_RUN_ID": self.run_id,
            "TRAIN_CLOUD_RUN_FILE": "/etc/train-cloud/run.yaml",
            "TRAIN_CLOUD_OVERRIDES": "/etc/train-cloud/overrides.json",
            "TRAIN_CLOUD_STATE_DIR": "/var/lib/train-cloud",
            "TRAIN_CLOUD_CODE": "/opt/train-cloud/code/user",
            "TRAIN_CLOUD_CODE_DIGEST": self.upload_code(),
            "TRAIN_CLOUD_AUTOSCALING_GROUP": GROUP,
            "TRAIN_CLOUD_MAX_ATTEMPTS": "3",
            "TRAIN_CLOUD_LAUNCHED_AT": "2026-01-01T00:00:00Z",
        }
        for key, body in {
            "run.yaml": b"run_id: x\n",
            "run.json": b"{}",
            "overrides-0.json": b'{"save_frequency": 1}',
            "overrides-10.json": b'{"save_frequency": 10}',
            "overrides-9.json": b'{"save_frequency": 9}',
        }.items():
            self.put(key, body)

    @property
    def store(self) -> ObjectStore:
        return open_store(run_url(self.variables["TRAIN_CLOUD_STORE"], self.run_id))

    def stand_in(self, name: str, script: str) -> None:
        (self.bin / name).write_text(f"#!/bin/bash\n{script}\n")
        (self.bin / name).chmod(0o755)

    def upload_code(self) -> str:
        """The part of the package that a boot needs, under a digest of this machine's own, so that it may be spoilt."""
        paths = [*BOOTSTRAP.iterdir(), *UNITS.iterdir(), REPOSITORY / "pyproject.toml"]
        files = {f"package/{path.relative_to(REPOSITORY)}": path.read_bytes() for path in paths}
        files |= {"user/mine.py": b"X = 1\n", "user/run": self.run_id.encode()}
        sums = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)).encode()
        digest = hashlib.sha256(sums).hexdigest()
        for name, body in {**files, "SHA256SUMS": sums}.items():
            self.s3.put_object(Bucket=BUCKET, Key=f"some/prefix/code/{digest}/{name}", Body=body)
        return digest

    def code_key(self, name: str) -> str:
        return f"some/prefix/code/{self.variables['TRAIN_CLOUD_CODE_DIGEST']}/{name}"

    def put(self, key: str, body: bytes) -> None:
        self.s3.put_object(Bucket=BUCKET, Key=f"some/prefix/runs/{self.run_id}/{key}", Body=body)

    def get(self, key: str) -> bytes:
        body: bytes = self.s3.get_object(Bucket=BUCKET, Key=f"some/prefix/runs/{self.run_id}/{key}")["Body"].read()
        return body

    def keys(self, prefix: str) -> list[str]:
        return sorted(entry.key for entry in self.store.list(prefix))

    def user_data(self) -> subprocess.CompletedProcess[str]:
        script = self.root.parent / "user-data"
        script.write_text(render(self.variables))
        return self.call("bash", str(script))

    def use_the_real_aws_cli(self, before: str = "") -> None:
        """Whatever version is here has the same options as the one that a boot asks for."""
        version = '[ "$1" != --version ] || exec echo aws-cli/2.30.0 Python/3'
        self.stand_in("aws", f'{version}\n{before}\nexec {shutil.which("aws", path=os.environ["PATH"])} "$@"')

    def installed(self) -> None:
        """The state that user-data leaves for the bootstrap unit, and a later boot finds."""
        prefix = self.code_key("")
        for entry in self.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]:
            path = self.root / "opt/train-cloud/code" / entry["Key"].removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.s3.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read())

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env={**self.environment, **self.variables},
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )

    def log(self) -> str:
        path = self.root / "var/log/train-cloud-boot.log"
        return path.read_text() if path.exists() else "(no log)"

    def requests(self) -> list[str]:
        return self.asked.read_text().splitlines()

    def capacity(self) -> int:
        return int(self.group()["DesiredCapacity"])

    def group(self) -> dict[str, Any]:
        found = self.aws.client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[GROUP])
        return dict(found["AutoScalingGroups"][0])

    def alive(self) -> bool:
        return self.instance in [instance["InstanceId"] for instance in self.group()["Instances"]]

    def has_venv(self, device: str = "cpu") -> None:
        """As python.sh leaves it."""
        venv = self.root / "opt/train-cloud/venv"
        venv.mkdir(parents=True)
        (venv / "installed").write_text(f"{self.variables['TRAIN_CLOUD_CODE_DIGEST']} {device}")


def booting(aws: EmbeddedAws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Boot]:
    """A new machine of the group, with nothing on it."""
    for name, value in aws.environment().items():
        monkeypatch.setenv(name, value)
    scaling = aws.client("autoscaling")
    scaling.set_desired_capacity(AutoScalingGroupName=GROUP, DesiredCapacity=0)
    scaling.set_desired_capacity(AutoScalingGroupName=GROUP, DesiredCapacity=1)
    found = scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[GROUP])["AutoScalingGroups"][0]
    instance = found["Instances"][0]["InstanceId"]
    command_line = CommandLine(aws)
    with MetadataService(instance) as metadata:
        yield Boot(aws, tmp_path, metadata, instance, command_line)
    command_line.close()


@pytest.fixture
def boot(aws: EmbeddedAws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Boot]:
    yield from booting(aws, tmp_path, monkeypatch)


def render(variables: Mapping[str, str]) -> str:
    """User-data as Terraform makes it, with these variables."""
    arguments = {
        "environment": "{"
        + ", ".join(f"{name} = {json.dumps(value)}" for name, value in sorted(variables.items()))
        + "}",
        **{
            name: f'file("{BOOTSTRAP / file}")'
            for name, file in {
                "versions": "versions.env",
                "library": "lib.sh",
                "tools": "tools.sh",
                "ending": "ending.sh",
            }.items()
        },
    }
    template = REPOSITORY / "terraform" / "user_data.sh.tftpl"
    values = ", ".join(f"{name} = {value}" for name, value in arguments.items())
    expression = f'base64encode(templatefile("{template}", {{{values}}}))'
    terraform = shutil.which("terraform") or str(REPOSITORY / ".tools" / "terraform")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    done = subprocess.run(
        [terraform, "console"], input=expression, env=inherited, cwd="/", capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return base64.b64decode(json.loads(done.stdout)).decode()


# What stands in the files.


def test_scripts_are_short_and_give_up_on_the_first_error() -> None:
    names = {path.name for path in SCRIPTS}
    assert {"install.sh", "python.sh", "driver.sh", "units.sh", "lib.sh", "tools.sh"} <= names
    for path in SCRIPTS:
        text = path.read_text()
        assert len(text.splitlines()) < 100, path.name
        assert b"\r" not in path.read_bytes(), path.name
        if path.name not in ("lib.sh", "tools.sh", "ending.sh"):
            assert "\nset -Eeuo pipefail\n" in text, path.name
            assert "\nguard\n" in text or re.search(r"^trap '.*' ERR$", text, re.MULTILINE), path.name


def test_shellcheck_and_shfmt_have_nothing_to_say(tmp_path: Path) -> None:
    rendered = tmp_path / "user-data.sh"
    rendered.write_text(render({"TRAIN_CLOUD_STORE": "s3://b"}))
    tools = Path(sys.executable).parent
    files = [*SCRIPTS, BOOTSTRAP / "versions.env", REPOSITORY / "scripts" / "get_terraform.sh"]
    for name, option, checked in (("shellcheck", "-x", [*files, rendered]), ("shfmt", "-d", files)):
        tool = shutil.which(name, path=f"{tools}{os.pathsep}{os.environ['PATH']}")
        assert tool is not None, name
        done = subprocess.run([tool, option, *checked], capture_output=True, text=True, cwd=REPOSITORY)
        assert done.returncode == 0, done.stdout + done.stderr


def test_everything_fetched_is_pinned() -> None:
    pinned = dict(
        line.split("=", 1) for line in (BOOTSTRAP / "versions.env").read_text().splitlines() if line[0] != "#"
    )
    for name in ("AWS_CLI", "PYTHON"):
        assert re.fullmatch(r"\d+\.\d+\.\d+", pinned[f"{name}_VERSION"])
        assert re.fullmatch(r"[0-9a-f]{64}", pinned[f"{name}_SHA256"])
    assert pinned["PYTHON_VERSION"].startswith("3.11.")
    for path in SCRIPTS:
        downloads = re.findall(r"curl [^\n]*", path.read_text())
        assert all("-o" in line or "meta-data" in line or "api/token" in line for line in downloads), path.name
        assert "latest" not in path.read_text().replace("}/latest token", ""), path.name


def test_user_data_is_the_same_code_as_the_bootstrap_scripts() -> None:
    text = render({"A": "1"})
    for name in ("versions.env", "lib.sh", "tools.sh", "ending.sh"):
        assert (BOOTSTRAP / name).read_text() in text
    assert len(text.encode()) < 12_000  # leaves room for variables below the limit of 16384


@pytest.mark.parametrize("unit", sorted(path.name for path in UNITS.iterdir()))
def test_systemd_accepts_the_units(unit: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not here")
    for name in ("train-cloud", "tensorboard", "python"):
        program = tmp_path / "opt/train-cloud/venv/bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    bash = tmp_path / "bin/bash"
    bash.parent.mkdir()
    shutil.copy("/bin/bash", bash)
    shutil.copytree(UNITS, tmp_path / "etc/systemd/system")
    for target in ("network-online", "network", "basic", "sysinit", "shutdown", "multi-user"):
        (tmp_path / f"etc/systemd/system/{target}.target").write_text(f"[Unit]\nDescription={target}\n")
    command = ["systemd-analyze", "verify", f"--root={tmp_path}", "--man=no", unit]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def settings(unit: str) -> dict[str, list[str]]:
    """A unit file's settings as written, whatever the section."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / f"train-cloud-{unit}.service").read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, value = line.split("=", 1)
            found.setdefault(name, []).append(value)
    return found


def test_the_trainer_is_stopped_restarted_and_followed_as_the_design_says() -> None:
    train = settings("train")
    for name, value in {
        "Type": "notify",
        "NotifyAccess": "main",
        "User": "train-cloud",
        "TimeoutStartSec": "infinity",
        "TimeoutStopSec": "110",
        "KillMode": "mixed",
        "Restart": "on-failure",
        "RestartSec": "5",
        "StartLimitIntervalSec": "0",
        "SuccessExitStatus": "75",
        "RestartPreventExitStatus": "64 73",
        "OnSuccess": "train-cloud-finish.service",
        "OnFailure": "train-cloud-finish.service",
        "ExecStart": "/opt/train-cloud/venv/bin/train-cloud train ${TRAIN_CLOUD_RUN_FILE}",
    }.items():
        assert train[name] == [value], name
    assert "network-online.target" in train["After"][0].split()
    assert "WatchdogSec" in train
    assert "User" not in settings("watch")
    assert "User" not in settings("finish")
    assert settings("watch")["Before"] == ["train-cloud-train.service"]
    assert settings("finish")["Type"] == ["oneshot"]
    assert settings("tensorboard")["User"] == ["train-cloud"]
    assert settings("tensorboard")["ExecStart"][0].endswith("--host 0.0.0.0 --port 6006")
    bound = {"Requires", "BindsTo", "PartOf", "Requisite"}
    assert not bound & (settings("watch").keys() | train.keys())
    # Only the bootstrap starts by itself: nothing trains before the head was read.
    assert [
        unit for unit in ("bootstrap", "train", "watch", "finish", "tensorboard") if "WantedBy" in settings(unit)
    ] == ["bootstrap"]


def test_the_rehearsal_can_read_every_unit() -> None:
    for path in UNITS.iterdir():
        assert read_unit(path, {}).exec_start


# Retry: the idiom that often dies of its first failure under `set -e`.


@pytest.mark.parametrize(("failures", "seconds", "status"), [(0, 0, 0), (2, 20, 0), (99, 1, 1)])
def test_retry_survives_set_e_and_ends(failures: int, seconds: int, status: int, tmp_path: Path) -> None:
    script = f"""
        set -Eeuo pipefail
        trap 'echo trapped' ERR
        . {BOOTSTRAP}/lib.sh
        n=0
        flaky() {{ n=$((n + 1)); [ "$n" -gt {failures} ]; }}
        if retry {seconds} flaky; then echo "after $n"; else echo "gave up"; exit 1; fi
    """
    environment = {"PATH": os.environ["PATH"], "TRAIN_CLOUD_RETRY_PAUSE": "0.1"}
    environment |= dict.fromkeys(("TRAIN_CLOUD_STORE", "TRAIN_CLOUD_RUN_ID", "TRAIN_CLOUD_CODE_DIGEST"), "x")
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == status, done.stderr
    assert done.stdout.strip() == (f"after {failures + 1}" if status == 0 else "gave up")


# User-data.


@needs_cli
@pytest.mark.slow
def test_user_data_fetches_verifies_and_starts_the_bootstrap(boot: Boot) -> None:
    tries = boot.root.parent / "tries"
    boot.use_the_real_aws_cli(f"""
        # IAM has not heard of the role yet.
        echo . >>{tries}
        if [ "$(wc -l <{tries})" -le 3 ]; then echo "An error occurred (AccessDenied)" >&2; exit 254; fi""")
    done = boot.user_data()
    assert done.returncode == 0, boot.log()
    mask, stop, *requests = boot.requests()
    assert mask.split()[1:] == ["mask", *UPGRADES] and stop.split()[1:] == ["stop", *UPGRADES]
    assert requests == [
        "systemctl daemon-reload",
        "systemctl enable train-cloud-bootstrap.service",
        "systemctl start --no-block train-cloud-bootstrap.service",
    ]
    lines = (boot.root / "etc/train-cloud/worker.env").read_text().splitlines()
    assert dict(line.split("=", 1) for line in lines) == boot.variables
    assert (boot.root / "etc/train-cloud/run.yaml").read_bytes() == b"run_id: x\n"
    assert json.loads((boot.root / "etc/train-cloud/overrides.json").read_bytes()) == {"save_frequency": 10}
    assert (boot.root / "opt/train-cloud/code/user/mine.py").read_bytes() == b"X = 1\n"
    unit = "train-cloud-bootstrap.service"
    assert (boot.root / "etc/systemd/system" / unit).read_bytes() == (UNITS / unit).read_bytes()
    assert boot.keys("boots/") == [boot_key(1, boot.instance)]
    assert boot.alive()
    # cloud-init runs it once, but nothing breaks if it is run again.
    again = boot.user_data()
    assert again.returncode == 0, boot.log()
    assert boot.keys("boots/") == [boot_key(1, boot.instance)]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["flipped", "missing", "added", "other sums"])
def test_code_that_is_not_what_its_digest_names_is_refused(boot: Boot, how: str) -> None:
    key = boot.code_key("package/bootstrap/install.sh")
    if how == "flipped":
        body = bytearray(boot.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read())
        body[-2] ^= 1
        boot.s3.put_object(Bucket=BUCKET, Key=key, Body=bytes(body))
    elif how == "missing":
        boot.s3.delete_object(Bucket=BUCKET, Key=key)
    elif how == "added":
        boot.s3.put_object(Bucket=BUCKET, Key=boot.code_key("user/sitecustomize.py"), Body=b"evil = True\n")
    else:
        sums = boot.code_key("SHA256SUMS")
        body = boot.s3.get_object(Bucket=BUCKET, Key=sums)["Body"].read()
        boot.s3.put_object(Bucket=BUCKET, Key=sums, Body=body.replace(b"user/mine.py", b"user/yours.py"))
    done = boot.user_data()
    assert done.returncode != 0
    assert [line.split()[1] for line in boot.requests()] == ["mask", "stop"], "nothing of it was started"
    marker = boot_key(1, boot.instance)
    assert boot.keys("boots/") == [marker, f"{marker}-failed"]
    assert b"this boot failed" in boot.get(f"logs/boot-{marker.removeprefix('boots/')}.log")
    assert not boot.alive()
    assert boot.capacity() == 1, "the group sends another machine"
    assert read_head(boot.store) is None, "one failed boot is no failed run"


@needs_cli
@pytest.mark.slow
def test_after_too_many_failed_boots_the_run_has_failed_and_costs_nothing(boot: Boot) -> None:
    for number in (1, 2):
        boot.put(boot_key(number, "i-before"), b"")
        boot.put(f"{boot_key(number, 'i-before')}-failed", b"")
    boot.put(boot_key(3, "i-interrupted"), b"")
    kept = Head(
        session=4,
        restart=1,
        owner="i-before",
        commit="c",
        seq=17,
        timesteps=1234,
        manifest=Reference(key="checkpoints/x/manifest.json", size=1, crc64nvme=2),
        attempts=1,
    )
    boot.put("head.json", kept.model_dump_json(indent=1).encode())
    boot.s3.delete_object(Bucket=BUCKET, Key=boot.code_key("SHA256SUMS"))
    boot.use_the_real_aws_cli()
    sns, sqs = boot.aws.client("sns"), boot.aws.client("sqs")
    queue = sqs.create_queue(QueueName="told")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    boot.variables["TRAIN_CLOUD_TOPIC"] = sns.create_topic(Name="told")["TopicArn"]
    sns.subscribe(TopicArn=boot.variables["TRAIN_CLOUD_TOPIC"], Protocol="sqs", Endpoint=arn)
    done = boot.user_data()
    assert done.returncode != 0
    (said,) = sqs.receive_message(QueueUrl=queue)["Messages"]
    assert json.loads(said["Body"])["Subject"] == f"train-cloud: {boot.run_id} failed"
    assert "3 boots in a row failed" in json.loads(said["Body"])["Message"]
    assert boot_key(4, boot.instance) in boot.keys("boots/")
    assert boot.capacity() == 0, boot.log()
    found = read_head(boot.store)
    assert found is not None
    head = found[0]
    assert (head.outcome, head.seq, head.token) == ("failed", 18, Token(4, 1))
    assert head.reason is not None
    assert head.reason.startswith("3 boots in a row failed; see logs/boot-000004-")
    assert head.commit != kept.commit
    unchanged = {"outcome", "reason", "commit", "seq"}
    assert head.model_dump(exclude=unchanged) == kept.model_dump(exclude=unchanged)


@pytest.mark.slow
def test_a_run_that_never_began_can_fail_too_and_a_boot_that_came_through_counts_anew(boot: Boot) -> None:
    for number, end in ((1, "-failed"), (2, "-failed"), (3, "-ready"), (4, "-failed")):
        boot.put(boot_key(number, "i-before"), b"")
        boot.put(boot_key(number, "i-before") + end, b"")
    # Shell functions, asked one by one: the whole way is the test above.
    script = f"""
        set -Eeuo pipefail
        . {BOOTSTRAP}/lib.sh
        . {BOOTSTRAP}/ending.sh
        begin_boot
        echo "$boot $(failures) [$(outcome)]"
        mark_failed 'for a "good" reason'
        echo "[$(outcome)]"
        mark_failed "another reason"
    """
    done = boot.call("bash", "-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{boot_key(5, boot.instance)} 1 []\n[failed]\n"
    found = read_head(boot.store)
    assert found is not None
    head = found[0]
    assert (head.outcome, head.reason) == ("failed", 'for a "good" reason')
    assert (head.session, head.seq, head.owner) == (0, 0, boot.instance)


# The bootstrap unit.


@pytest.mark.slow
def test_a_boot_ends_with_the_units_started_the_watch_first(boot: Boot) -> None:
    boot.installed()
    boot.has_venv()
    done = boot.call(*INSTALL)
    assert done.returncode == 0, boot.log()
    requests = boot.requests()
    started = [line for line in requests if line.startswith("systemctl start")]
    assert started == [
        f"systemctl start --no-block train-cloud-{unit}.service" for unit in ("watch", "train", "tensorboard")
    ]
    assert requests.index("systemctl daemon-reload") < requests.index(started[0])
    assert {path.name for path in (boot.root / "etc/systemd/system").iterdir()} == {
        path.name for path in UNITS.iterdir()
    }
    assert (boot.root / "var/lib/train-cloud/artifacts/tensorboard").is_dir()
    assert "no NVIDIA device: training on the CPU" in boot.log()
    marker = boot_key(1, boot.instance)
    assert boot.keys("boots/") == [marker, f"{marker}-ready"]
    # The same machine boots again: another boot, the same code, nothing installed anew.
    (boot.root / "run/train-cloud/boot").unlink()
    boot.variables["TRAIN_CLOUD_LOG_GROUP"] = "/train-cloud-boots"
    before = len(boot.requests())
    assert boot.call(*INSTALL).returncode == 0, boot.log()
    assert f"{boot_key(2, boot.instance)}-ready" in boot.keys("boots/")
    assert "systemctl start --no-block train-cloud-logs.service" in boot.requests()[before:]


@pytest.mark.slow
def test_what_was_launched_is_kept_beside_the_checkpoints_as_it_was_first(boot: Boot, tmp_path: Path) -> None:
    boot.installed()
    etc = boot.root / "etc/train-cloud"
    etc.mkdir(parents=True)
    (etc / "run.yaml").write_text("run_id: x\n")
    (etc / "overrides.json").write_text("{}")
    for _ in range(2):
        done = step(boot, "launched.sh")
        assert done.returncode == 0, done.stderr
        (etc / "run.yaml").write_text("run_id: changed\n")
    code = f"code-{boot.variables['TRAIN_CLOUD_CODE_DIGEST']}.tar.gz"
    assert boot.keys("launched/") == [f"launched/{name}" for name in (code, "overrides.json", "run.yaml")]
    assert boot.get("launched/run.yaml") == b"run_id: x\n"
    (tmp_path / code).write_bytes(boot.get(f"launched/{code}"))
    out = tmp_path / "out"
    shutil.unpack_archive(tmp_path / code, out, filter="data")
    sums = (out / "SHA256SUMS").read_bytes()
    assert hashlib.sha256(sums).hexdigest() == boot.variables["TRAIN_CLOUD_CODE_DIGEST"]
    assert (out / "user/mine.py").read_bytes() == b"X = 1\n"


@pytest.mark.slow
@pytest.mark.parametrize("outcome", ["completed", "stopped", "failed"])
def test_a_machine_for_a_run_that_is_over_leaves_before_driver_and_pip(boot: Boot, outcome: str) -> None:
    boot.installed()
    (boot.root / NVIDIA).parent.mkdir(parents=True)
    (boot.root / NVIDIA).write_text("0x10de\n")
    boot.stand_in("nvidia-smi", f"echo nvidia-smi >>{boot.asked}; exit 1")
    head = Head(session=1, restart=0, owner="i-1", commit="c", outcome=outcome)
    boot.put("head.json", head.model_dump_json(indent=1).encode())
    done = boot.call(*INSTALL)
    assert done.returncode == 0, boot.log()
    assert boot.capacity() == 0
    assert boot.requests() == []
    assert boot.keys("boots/") == [boot_key(1, boot.instance)]


@pytest.mark.slow
def test_a_head_that_cannot_be_read_is_no_absent_head(boot: Boot) -> None:
    boot.installed()
    boot.put("head.json", b'{"session": 1, "outco')
    # Tried for two minutes in a real boot.
    lib = boot.root / "opt/train-cloud/code/package/bootstrap/ending.sh"
    lib.write_text(lib.read_text().replace("retry 120 outcome", "retry 1 outcome"))
    sums = boot.root / "opt/train-cloud/code/SHA256SUMS"
    line = f"{hashlib.sha256(lib.read_bytes()).hexdigest()}  package/bootstrap/ending.sh"
    sums.write_text(re.sub(r"^.*package/bootstrap/ending\.sh$", line, sums.read_text(), flags=re.MULTILINE))
    boot.variables["TRAIN_CLOUD_CODE_DIGEST"] = hashlib.sha256(sums.read_bytes()).hexdigest()
    done = boot.call(*INSTALL)
    assert done.returncode != 0
    assert boot.requests() == []
    assert boot.get("head.json") == b'{"session": 1, "outco'
    assert f"{boot_key(1, boot.instance)}-failed" in boot.keys("boots/")


@pytest.mark.slow
def test_code_changed_on_disk_between_boots_is_refused(boot: Boot) -> None:
    boot.installed()
    (boot.root / "opt/train-cloud/code/user/mine.py").write_text("X = 2\n")
    assert boot.call(*INSTALL).returncode != 0
    assert boot.requests() == []
    assert "user/mine.py: FAILED" in boot.log()


@pytest.mark.slow
def test_a_boot_that_hangs_is_ended_and_counted(boot: Boot) -> None:
    """systemd's time-out is a SIGTERM to every process of the unit."""
    boot.installed()
    (boot.root / NVIDIA).parent.mkdir(parents=True)
    (boot.root / NVIDIA).write_text("0x10de\n")
    boot.stand_in("nvidia-smi", f"echo hanging >>{boot.asked}; exec sleep 100")
    process = subprocess.Popen(
        INSTALL, env={**boot.environment, **boot.variables}, cwd=boot.root, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 60
        while "hanging" not in boot.requests() and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(60) != 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert f"{boot_key(1, boot.instance)}-failed" in boot.keys("boots/"), boot.log()
    assert not boot.alive()


# Driver and Python.


def step(boot: Boot, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return boot.call("bash", str(BOOTSTRAP / name), *arguments)


@pytest.mark.parametrize("verb", ["kernel", "cuda", "torch"])
def test_without_an_nvidia_device_it_is_the_cpu_and_says_so(boot: Boot, verb: str) -> None:
    (boot.root / NVIDIA).parent.mkdir(parents=True)
    (boot.root / NVIDIA).write_text("0x1d0f\n")
    done = step(boot, "driver.sh", verb)
    assert (done.returncode, done.stdout) == (0, "train-cloud: no NVIDIA device: training on the CPU\n")


def test_an_nvidia_device_without_a_driver_fails_loudly(boot: Boot, tmp_path: Path) -> None:
    (boot.root / NVIDIA).parent.mkdir(parents=True)
    (boot.root / NVIDIA).write_text("0x10de\n")
    boot.stand_in("nvidia-smi", "echo NVIDIA-SMI has failed >&2; exit 9")
    # Two minutes are for a driver that is still loading.
    quick = tmp_path / "driver.sh"
    quick.write_text((BOOTSTRAP / "driver.sh").read_text().replace("retry 120", "retry 1"))
    shutil.copy(BOOTSTRAP / "lib.sh", tmp_path)
    done = boot.call("bash", str(quick), "kernel")
    assert done.returncode == 1
    assert "no driver that answers: use an image with NVIDIA's driver (ami_id)" in done.stdout


OLD_BANNER = "| NVIDIA-SMI 550.144.03   Driver Version: 550.144.03   CUDA Version: 12.4     |"
NEW_BANNER = "| NVIDIA-SMI 610.57.04    KMD Version: 610.57.04    CUDA UMD Version: 13.3     |"


@pytest.mark.parametrize(
    ("banner", "package", "said"),
    [
        (OLD_BANNER, "nvidia-cuda-runtime==13.0.96", "the driver knows CUDA 12.4 and torch needs 13.0: use an image"),
        (OLD_BANNER, "nvidia-cuda-runtime-cu12==12.8.90", ""),
        (NEW_BANNER, "nvidia-cuda-runtime==13.0.96", ""),
        (NEW_BANNER, "nvidia-cuda-runtime-cu12==12.8.90", ""),
        ("no banner", "nvidia-cuda-runtime==13.0.96", ""),
        (OLD_BANNER, "nvidia-cudnn-cu13==9.24.0.43", ""),
    ],
)
def test_a_driver_that_is_too_old_is_seen_before_gigabytes_of_torch(
    boot: Boot, tmp_path: Path, banner: str, package: str, said: str
) -> None:
    (boot.root / NVIDIA).parent.mkdir(parents=True)
    (boot.root / NVIDIA).write_text("0x10de\n")
    boot.stand_in("nvidia-smi", f"echo '{banner}'")
    (tmp_path / "packages").write_text(f"torch==2.14.1\n{package}\nnvidia-cuda-nvrtc==1.0.0\n")
    done = boot.call("bash", "-c", f"bash {BOOTSTRAP}/driver.sh cuda <{tmp_path}/packages")
    assert (done.returncode, said in done.stdout) == (1 if said else 0, True), done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("boot_number", ["first", "later"])
def test_with_a_driver_that_is_too_old_nothing_is_downloaded(boot: Boot, boot_number: str) -> None:
    boot.installed()
    (boot.root / NVIDIA).parent.mkdir(parents=True)
    (boot.root / NVIDIA).write_text("0x10de\n")
    boot.stand_in("nvidia-smi", f"echo '{OLD_BANNER}'")
    resolved = {"name": "nvidia-cuda-runtime", "version": "13.0.96"}
    (boot.root / "report.json").write_text(json.dumps({"install": [{"metadata": resolved}]}))
    pip = f"""echo "$*" >>{boot.asked}
        while [ $# -gt 0 ]; do [ "$1" != --report ] || cp {boot.root}/report.json "$2"; shift; done"""
    (boot.root / "pip").write_text(f"#!/bin/bash\n{pip}\n")
    boot.stand_in(
        "python3.11",
        f"""case "$1" in
        -V*) echo Python 3.11.99 ;;
        -m) mkdir -p "$3/bin" && install -m 755 {boot.root}/pip "$3/bin" ;;
        esac""",
    )
    if boot_number == "later":
        lock = f"env/{boot.variables['TRAIN_CLOUD_CODE_DIGEST']}-cuda.txt"
        boot.put(lock, b"torch==2.14.1\nnvidia-cuda-runtime==13.0.96\n")
    done = step(boot, "python.sh")
    assert done.returncode != 0
    assert "the driver knows CUDA 12.4 and torch needs 13.0: use an image with a newer driver (ami_id)" in done.stdout
    asked = [line for line in boot.requests() if line.startswith("install")]
    assert len(asked) == (1 if boot_number == "first" else 0) and all(" --dry-run " in line for line in asked)


@pytest.mark.parametrize("works", [True, False])
def test_torch_must_compute_on_the_device(boot: Boot, works: bool) -> None:
    """The program that torch runs is run with a torch of ours: right on a good device, wrong on a bad one."""
    (boot.root / NVIDIA).parent.mkdir(parents=True)
    (boot.root / NVIDIA).write_text("0x10de\n")
    fake = boot.root / "fake"
    fake.mkdir()
    result = 2 * 2 * 256**3 if works else 0
    (fake / "torch.py").write_text(
        textwrap.dedent(f"""
        __version__ = "0"
        class cuda:
            get_device_name = staticmethod(lambda: "a GPU")
        class Matrix:
            def __matmul__(self, other): return self
            def sum(self): return self
            def item(self): return {result}.0
        def full(shape, value, device):
            assert (shape, value, device) == ((256, 256), 2.0, "cuda")
            return Matrix()
        """)
    )
    python = boot.root / "opt/train-cloud/venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/bash\nPYTHONPATH={fake} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    done = step(boot, "driver.sh", "torch")
    assert (done.returncode == 0) == works, done.stderr
    assert ("computes on a GPU" in done.stdout) == works


@pytest.mark.skipif(shutil.which("zstd") is None, reason="needs zstd")
def test_an_environment_is_kept_and_restored_only_whole(boot: Boot) -> None:
    venv, digest = boot.root / "opt/train-cloud/venv", "d" * 64

    def install() -> None:
        venv.mkdir(parents=True)
        for name, text in {"environment": f"{digest}\n", "installed": "stamp", "library": "as installed"}.items():
            (venv / name).write_text(text)

    install()
    for _ in range(2):
        done = step(boot, "environment.sh", "keep")
        assert done.returncode == 0, done.stderr
    assert boot.keys("env/") == [f"env/{digest}/SHA256SUMS", f"env/{digest}/environment.tar.zst"]

    shutil.rmtree(venv)
    assert step(boot, "environment.sh", "restore", "e" * 64).returncode == 0
    assert not venv.exists(), "another digest is another environment"
    assert step(boot, "environment.sh", "restore", digest).returncode == 0
    assert (venv / "library").read_text() == "as installed"
    assert not (venv / "installed").exists(), "whether it is complete is python.sh's to say"

    shutil.rmtree(venv)
    boot.put(f"env/{digest}/environment.tar.zst", b"cut short")
    assert step(boot, "environment.sh", "restore", digest).returncode != 0
    assert not venv.exists()
    assert boot.keys("env/") == [f"env/{digest}/environment.tar.zst"], "the next keeps a whole one in its place"
    install()
    assert step(boot, "environment.sh", "keep").returncode == 0
    shutil.rmtree(venv)
    assert step(boot, "environment.sh", "restore", digest).returncode == 0
    assert (venv / "library").read_text() == "as installed"


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_second_boot_of_a_run_installs_the_versions_of_the_first(boot: Boot, device: str) -> None:
    if device == "cuda":
        (boot.root / NVIDIA).parent.mkdir(parents=True)
        (boot.root / NVIDIA).write_text("0x10de\n")
    boot.installed()
    own = "highway-env==1.10\ntorch==2.9.0  # as at home\ntorchvision==0.24\n"
    (boot.root / "opt/train-cloud/code/user/requirements.txt").write_text(own)
    boot.stand_in("nvidia-smi", f"echo '{OLD_BANNER}'")
    # A Python whose virtual environments have a pip that writes down what it was asked and by which constraints.
    pip = f"""#!/bin/bash
if [ "$1" = freeze ]; then printf 'torch==2.9.0\\nnumpy==2.1.0\\n'; exit; fi
words=
while [ $# -gt 0 ]; do
    if [ "$1" = -c ]; then echo "constraints: $(tr '\\n' ' ' <"$2")" >>{boot.asked}; shift 2; continue; fi
    if [ "$1" = --report ]; then cp {boot.root}/report.json "$2"; shift 2; continue; fi
    words="$words$1 "; shift
done
echo "$words" >>{boot.asked}
"""
    (boot.root / "pip").write_text(pip)
    resolved = {"name": "nvidia-cuda-runtime-cu12", "version": "12.8.90"}
    (boot.root / "report.json").write_text(json.dumps({"install": [{"metadata": resolved}]}))
    # What the package's own command would say; the test of train_cloud.operations.requirements has it for real.
    program = f"""#!/bin/bash
[ "$*" = "requirements {boot.root}/etc/train-cloud/run.yaml" ] || exit 1
printf 'sb3-contrib>=2.7,<3\\n-r\\n{boot.root}/opt/train-cloud/code/user/requirements.txt\\n'
"""
    (boot.root / "train-cloud").write_text(program)
    boot.stand_in(
        "python3.11",
        f"""case "$1" in
        -V) echo Python 3.11.99 ;;
        -m) mkdir -p "$3/bin" && install -m 755 {boot.root}/pip {boot.root}/train-cloud "$3/bin" ;;
        esac""",
    )
    done = step(boot, "python.sh")
    assert done.returncode == 0, done.stderr
    lock = f"env/{boot.variables['TRAIN_CLOUD_CODE_DIGEST']}-{device}.txt"
    assert boot.get(lock) == b"torch==2.9.0\nnumpy==2.1.0\n"
    asked = boot.requests()
    installs = [line for line in asked if line.startswith("install ")]
    assert ("--index-url https://download.pytorch.org/whl/cpu torch>=" in installs[0]) == (device == "cpu")
    if device == "cuda":
        assert " --dry-run torch>=" in installs[0] and "the driver knows CUDA 12.4, torch needs 12.8" in done.stdout
    assert len(installs) == 3
    assert all("torch==2.9.0 " in line for line in installs[:2]), "the user's word on torch counts at once"
    assert "[sb3] torch>=" in installs[1], "the package with what trains"
    assert installs[-1].endswith(f" sb3-contrib>=2.7,<3 -r {boot.root}/opt/train-cloud/code/user/requirements.txt ")
    assert {line for line in asked if line.startswith("constraints")} == {"constraints: "}

    asked_before = len(asked)
    assert step(boot, "python.sh").returncode == 0
    assert len(boot.requests()) == asked_before, "a complete environment is left alone"

    shutil.rmtree(boot.root / "opt/train-cloud/venv")  # another machine
    done = step(boot, "python.sh")
    assert done.returncode == 0, done.stderr
    later = boot.requests()[asked_before:]
    assert {line for line in later if line.startswith("constraints")} == {"constraints: torch==2.9.0 numpy==2.1.0 "}
    assert boot.get(lock) == b"torch==2.9.0\nnumpy==2.1.0\n"


ENSURE_AWS_CLI = f"""
    set -Eeuo pipefail
    . {BOOTSTRAP}/versions.env
    . {BOOTSTRAP}/lib.sh
    . {BOOTSTRAP}/tools.sh
    retry() {{ "${{@:2}}"; }}
    ensure_aws_cli
    echo installed
"""


@pytest.mark.parametrize("found", ["1.44.35", "2.9.99", "2.22.4"])
def test_an_old_aws_cli_is_replaced_and_only_by_the_pinned_file(boot: Boot, found: str) -> None:
    boot.stand_in("aws", f"echo aws-cli/{found} Python/3.9")
    boot.stand_in("curl", f'echo "curl $*" >>{boot.asked}; while [ "$1" != -o ]; do shift; done; echo wrong >"$2"')
    done = boot.call("bash", "-c", ENSURE_AWS_CLI)
    assert done.returncode != 0
    assert "installed" not in done.stdout
    assert "FAILED" in done.stdout + done.stderr
    (request,) = boot.requests()
    assert re.search(r"https://awscli\.amazonaws\.com/awscli-exe-linux-x86_64-2\.\d+\.\d+\.zip$", request)


@pytest.mark.parametrize("good", ["2.22.5", "2.36.7", "3.0.0"])
def test_an_aws_cli_that_knows_conditional_writes_is_left_alone(boot: Boot, good: str) -> None:
    boot.stand_in("aws", f"echo aws-cli/{good} Python/3.9")
    boot.stand_in("curl", "exit 1")
    assert boot.call("bash", "-c", ENSURE_AWS_CLI).stdout == "installed\n"


@pytest.fixture
def cli_archive(boot: Boot, tmp_path: Path) -> Iterator[Path]:
    """AWS's archive of the CLI in small, served in the place of AWS's own: an installer, and the program that it puts
    where the file ``target`` says. The versions' file beside it pins it.
    """
    source, web = tmp_path / "source/aws", tmp_path / "web"
    (source / "dist").mkdir(parents=True)
    web.mkdir()
    (tmp_path / "target").write_text(str(boot.bin))
    for name, script in {
        "install": f'[ "$*" = --update ] && install -m 755 "$(dirname "$0")/dist/aws" "$(cat {tmp_path}/target)/aws"',
        "dist/aws": "echo aws-cli/2.36.7 Python/3.14 Linux/6 exe/x86_64",
    }.items():
        (source / name).write_text(f"#!/bin/bash\n{script}\n")
        (source / name).chmod(0o755)
    versions = (BOOTSTRAP / "versions.env").read_text()
    number = re.search(r"^AWS_CLI_VERSION=(.*)$", versions, re.MULTILINE)
    assert number is not None
    archive = web / f"awscli-exe-linux-x86_64-{number[1]}.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in source.rglob("*"):
            packed.write(path, path.relative_to(source.parent))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    pinned = tmp_path / "versions.env"
    pinned.write_text(re.sub(r"^AWS_CLI_SHA256=.*$", f"AWS_CLI_SHA256={digest}", versions, flags=re.MULTILINE))
    serve = functools.partial(SimpleHTTPRequestHandler, directory=str(web))
    with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        here = f"http://127.0.0.1:{server.server_port}"
        curl = shutil.which("curl")
        boot.stand_in("curl", f'exec {curl} "${{@/#https:\\/\\/awscli.amazonaws.com/{here}}}"')
        yield pinned
        server.shutdown()
        thread.join()


@pytest.mark.skipif(shutil.which("unzip") is None, reason="needs unzip")
@pytest.mark.parametrize("found", ["1.44.35", None])
def test_with_the_first_aws_cli_or_none_the_pinned_one_is_fetched_and_used(
    boot: Boot, cli_archive: Path, found: str | None
) -> None:
    """The usual way: images often have version 1 of the CLI."""
    if found is None:
        (boot.bin / "aws").unlink()
        boot.environment["PATH"] = f"{boot.bin}:/usr/bin:/bin"
    else:
        boot.stand_in("aws", f"echo aws-cli/{found} Python/3.10")
    script = ENSURE_AWS_CLI.replace(f"{BOOTSTRAP}/versions.env", str(cli_archive))
    done = boot.call("bash", "-c", f"{script}\naws --version")
    assert done.returncode == 0, done.stderr
    said = "train-cloud: installing AWS CLI 2.36.7" + (f" in the place of {found}" if found else "")
    assert done.stdout.splitlines() == [said, "installed", "aws-cli/2.36.7 Python/3.14 Linux/6 exe/x86_64"]


@pytest.mark.skipif(shutil.which("unzip") is None, reason="needs unzip")
def test_an_old_aws_cli_that_stays_in_front_is_named(boot: Boot, cli_archive: Path, tmp_path: Path) -> None:
    boot.stand_in("aws", "echo aws-cli/1.44.35 Python/3.10")
    (tmp_path / "aside").mkdir()
    (tmp_path / "target").write_text(str(tmp_path / "aside"))
    done = boot.call("bash", "-c", ENSURE_AWS_CLI.replace(f"{BOOTSTRAP}/versions.env", str(cli_archive)))
    assert done.returncode != 0 and "installed\n" not in done.stdout
    assert f"AWS CLI 2.36.7 is installed, but {boot.bin}/aws is 1.44.35: use another image (ami_id)" in done.stdout


def test_apt_waits_for_whoever_holds_its_locks(boot: Boot) -> None:
    tries = boot.root / "tries"
    boot.stand_in(
        "apt-get",
        f"""echo "$*" >>{tries}
        [[ $* != "update -q" ]] || (( $(wc -l <{tries}) > 2 ))  # somebody updates the lists""",
    )
    script = f". {BOOTSTRAP}/lib.sh; . {BOOTSTRAP}/tools.sh; apt_install unzip"
    assert boot.call("bash", "-Eeuo", "pipefail", "-c", script).returncode == 0
    update = "update -q"
    assert tries.read_text().splitlines() == [update, update, update, "-o DPkg::Lock::Timeout=300 install -qy unzip"]
