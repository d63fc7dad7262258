"""The project's own Terraform module, run by the real Terraform against the embedded AWS.

A working folder gets a copy of the module and of what it uploads, about a megabyte, so that an edit in mid-rehearsal
changes nothing; and one override file beside it, which points the provider at loopback.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from train_cloud import shipped
from train_cloud.errors import InputError, TrainCloudError
from train_cloud.rehearsal.aws import EmbeddedAws

PROVIDER = "registry.terraform.io/hashicorp/aws"
#: Where a filesystem mirror may lie, and how many folders below it is looked for.
MIRROR_ROOTS = ("~/.terraform.d", "~/.local/share/terraform", "/usr/local/share", "/usr/share", "/opt", "/srv")
MIRROR_DEPTH = 3
#: seconds; apply takes about 15 and destroy about 10
LIMIT = 600.0

_VARIABLES = "rehearsal.auto.tfvars.json"
_SERVICES = ("autoscaling", "ec2", "ecr", "events", "iam", "kms", "logs", "s3", "sns", "ssm", "sts")
_REFUSALS = ("Invalid value for variable", "Resource precondition failed", "Resource postcondition failed")
_CODE = """
# A provider that runs already (TF_REATTACH_PROVIDERS) runs in a folder of its own.
resource "aws_s3_object" "code" {
  source = abspath(each.value)
}
"""
_LIFECYCLE = """
# The provider watches a new lifecycle rule for 55 s (10 s, then ten looks 5 s apart), whatever it is answered: the
# rehearsal leaves the rule out.
resource "aws_s3_bucket_lifecycle_configuration" "runs" {
  count = 0
}
"""


class Terraform:
    """One stack in one working folder, which keeps state, provider and logs.

    :param folder: created where it does not exist
    :param module: folder below ``terraform`` that is the root module; by default that folder itself
    :param lifecycle_rule: create the bucket's lifecycle rule too, at the price of 55 seconds
    :param on_event: called with each resource's address and "created", "updated" or "destroyed" as it happens
    :raises InputError: no ``terraform`` on ``PATH`` or in ``.tools/``
    """

    def __init__(
        self,
        folder: Path,
        aws: EmbeddedAws,
        *,
        module: str = "",
        lifecycle_rule: bool = False,
        on_event: Callable[[str, str], None] | None = None,
    ) -> None:
        self._executable = _executable()
        self._on_event = on_event or (lambda address, done: None)
        self._folder = folder.absolute()
        self._module = self._folder / "terraform" / module
        shipped.copy(("terraform", *shipped.WORKER), self._folder)
        override = _override(aws)
        if not module:
            override += _CODE + ("" if lifecycle_rule else _LIFECYCLE)
        (self._module / "rehearsal_override.tf").write_text(override)
        self._environment = {**_environment(self._folder), **aws.environment()}
        self._initialised = False

    def apply(self, variables: Mapping[str, object], *, only: Sequence[str] = ()) -> dict[str, Any]:
        """Create or change the stack; the variables are kept for the other verbs.

        :param variables: by the names of ``terraform/variables.tf``; run files relative to the current folder
        :param only: addresses, to create nothing but these and what they need
        :return: the outputs that are not null: strings, but for ``runs``, which has them for each run id
        :raises InputError: a variable's validation refused it
        :raises TrainCloudError: Terraform failed; the message is its own
        """
        self._give(variables)
        self._run("apply", "-auto-approve", *(f"-target={address}" for address in only))
        return self.outputs()

    def plan(self, variables: Mapping[str, object]) -> dict[str, Any]:
        """What an apply would do, in the form of ``terraform show -json``; the variables are kept for the other verbs.

        :raises InputError: a variable's validation refused it
        :raises TrainCloudError: Terraform failed; the message is its own
        """
        self._give(variables)
        file = self._folder / "saved.plan"
        self._run("plan", f"-out={file}")
        with self._start("show", "-json", str(file)) as process:
            text, _ = process.communicate(timeout=LIMIT)
        return dict(json.loads(text))

    def _give(self, variables: Mapping[str, object]) -> None:
        given = dict(variables)
        for name in {"run_file", "experiment_file"} & given.keys():
            given[name] = str(Path(str(given[name])).absolute())
        if "run_files" in given:
            paths = cast(Sequence[object], given["run_files"])
            given["run_files"] = [str(Path(str(path)).absolute()) for path in paths]
        (self._module / _VARIABLES).write_text(json.dumps(given, indent=1, default=str))

    def changes(self) -> list[str]:
        """What another apply with the same variables would do, as ``action address``; empty after a good apply."""
        return [
            f"{event['change']['action']} {event['change']['resource']['addr']}"
            for event in self._run("plan")
            if event["type"] == "planned_change"
        ]

    def outputs(self) -> dict[str, Any]:
        with self._start("output", "-json") as process:
            text, _ = process.communicate(timeout=LIMIT)
        return {name: output["value"] for name, output in json.loads(text).items()}

    def destroy(self) -> None:
        """Remove what the state knows.

        :raises TrainCloudError: something stays, such as a bucket that is not empty
        """
        self._run("destroy", "-auto-approve")

    def _run(self, verb: str, *arguments: str) -> list[dict[str, Any]]:
        if not self._initialised:
            self._initialised = True
            self._run("init")
        with tempfile.TemporaryFile() as stderr, self._start(verb, "-json", *arguments, stderr=stderr) as process:
            alarm = threading.Timer(LIMIT, process.kill)
            alarm.start()
            try:
                events = list(self._events(process))
            except KeyboardInterrupt:
                # The same Ctrl-C has reached Terraform, which finishes what it is at and saves its state.
                process.communicate(timeout=LIMIT)
                raise
            finally:
                alarm.cancel()
            status = process.wait()
            stderr.seek(0)
            complaint = stderr.read().decode(errors="replace").strip()
        if status:
            raise self._failure(verb, events, complaint)
        return events

    def _start(self, verb: str, *arguments: str, stderr: Any = None) -> subprocess.Popen[str]:
        command = [str(self._executable), f"-chdir={self._module}", verb, *arguments]
        if verb not in ("output", "plan", "show"):
            command.append("-input=false")
        if verb in ("apply", "destroy", "plan"):
            command.append("-parallelism=20")
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=self._environment, text=True)

    def _events(self, process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
        assert process.stdout is not None
        done = {"create": "created", "update": "updated", "delete": "destroyed"}
        for line in process.stdout:
            if not line.startswith("{"):
                continue
            event = json.loads(line)
            hook = event.get("hook", {})
            if event.get("type") == "apply_complete" and hook.get("action") in done:
                self._on_event(hook["resource"]["addr"], done[hook["action"]])
            yield event

    def _failure(self, verb: str, events: list[dict[str, Any]], complaint: str) -> TrainCloudError:
        found = [event["diagnostic"] for event in events if event.get("type") == "diagnostic"]
        errors = [diagnostic for diagnostic in found if diagnostic["severity"] == "error"]
        for error in errors:
            # Our own messages begin with the variable's name.
            field, _, fix = error["detail"].partition("\n\nThis was checked by")[0].partition(": ")
            if error["summary"] in _REFUSALS and field.isidentifier():
                given = json.loads((self._module / _VARIABLES).read_text())
                return InputError(field, given.get(field), " ".join(fix.split()).rstrip("."))
        texts = [
            ": ".join(filter(None, (error.get("address"), error["summary"], error.get("detail")))) for error in errors
        ] or [complaint]
        return TrainCloudError(f"terraform {verb} failed: " + "; ".join(" ".join(text.split()) for text in texts))


def worker_environment(user_data: str) -> dict[str, str]:
    """The variables that user-data writes to ``/etc/train-cloud/worker.env``."""
    _, _, rest = user_data.partition("<<'WORKER_ENV'\n")
    lines, end, _ = rest.partition("\nWORKER_ENV\n")
    if not end:
        raise TrainCloudError("this user-data writes no worker.env")
    return dict(line.split("=", 1) for line in lines.splitlines() if "=" in line)


def find_mirror(tools: Path | None = None) -> Path | None:
    """A folder to install the provider from, where ``registry.terraform.io/hashicorp/aws`` lies on disk.

    ``TF_PLUGIN_DIR`` names it; a CLI configuration of the user's own comes next; then the usual roots.

    :param tools: looked through first, by default :func:`train_cloud.shipped.tools`
    :raises InputError: ``TF_PLUGIN_DIR`` holds none
    """
    named = os.environ.get("TF_PLUGIN_DIR")
    if named:
        for folder in (Path(named), Path(named).parent):
            if (folder / PROVIDER).is_dir():
                return folder.absolute()
        raise InputError("TF_PLUGIN_DIR", named, f"name a folder that contains {PROVIDER}")
    own = os.environ.get("TF_CLI_CONFIG_FILE") or "~/.terraformrc"
    if Path(own).expanduser().is_file():
        return None
    for root in (tools or shipped.tools(), *(Path(root).expanduser() for root in MIRROR_ROOTS)):
        for depth in range(MIRROR_DEPTH + 1):
            for found in sorted(root.glob("*/" * depth + PROVIDER)):
                return found.parents[2]
    return None


def _executable() -> Path:
    found = shutil.which("terraform") or shutil.which(shipped.tools() / "terraform")
    if found is None:
        here = "" if shipped.checkout() is None else ", or run scripts/get_terraform.sh"
        raise InputError("terraform", None, f"install Terraform 1.9 or later{here}")
    return Path(found)


def _environment(folder: Path) -> dict[str, str]:
    """Terraform's own settings: nothing of the user's account, the provider from disk where it lies there."""
    foreign = ("AWS_", "TF_VAR_", "TF_CLI_ARGS")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    environment |= {
        "TF_IN_AUTOMATION": "1",
        "TF_INPUT": "0",
        "CHECKPOINT_DISABLE": "1",
        "TF_DATA_DIR": str(folder / ".terraform"),
    }
    mirror = find_mirror()
    if mirror is not None:
        configuration = folder / "terraform.rc"
        configuration.write_text(_cli_configuration(mirror))
        return {**environment, "TF_CLI_CONFIG_FILE": str(configuration)}
    # The provider has 700 MB.
    cache = shipped.tools() / "terraform-plugins"
    cache.mkdir(parents=True, exist_ok=True)
    environment |= {"TF_PLUGIN_CACHE_DIR": str(cache), "TF_PLUGIN_CACHE_MAY_BREAK_DEPENDENCY_LOCK_FILE": "1"}
    return environment


def _override(aws: EmbeddedAws) -> str:
    """Terraform merges a file named ``*_override.tf`` into the blocks that it repeats."""
    endpoints = "\n".join(f'    {service} = "{aws.endpoint}"' for service in _SERVICES)
    return f"""# Written by the rehearsal: points the provider at loopback.
provider "aws" {{
  access_key                  = "{aws.environment()["AWS_ACCESS_KEY_ID"]}"
  secret_key                  = "{aws.environment()["AWS_SECRET_ACCESS_KEY"]}"
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_region_validation      = true
  s3_use_path_style           = true
  max_retries                 = 2

  endpoints {{
{endpoints}
  }}
}}
"""


def _cli_configuration(mirror: Path) -> str:
    return f"""provider_installation {{
  filesystem_mirror {{
    path    = {json.dumps(str(mirror))}
    include = ["{PROVIDER}"]
  }}
  direct {{
    exclude = ["{PROVIDER}"]
  }}
}}
"""
