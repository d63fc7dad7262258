from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer

from train_cloud import errors
from train_cloud.cli import EXIT_CODES, _in_code_of_the_users, app, main
from train_cloud.run import layout
from train_cloud.run.head import Lease, Token
from train_cloud.snapshot import Snapshot
from train_cloud.store import open_store

DOCS = Path(__file__).parent.parent / "docs" / "cli.md"

RUN = """\
run_id: pendulum-1
algorithm: sac
total_timesteps: 2000
save_frequency: 500
environment: {id: Pendulum-v1}
"""


@pytest.fixture
def run_yaml(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    return path


def command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "train_cloud", *arguments], capture_output=True, text=True, timeout=120, **options
    )


def surface() -> str:
    """Every command with its arguments, options and their environment variables."""
    root: Any = typer.main.get_command(app)
    lines = []
    below = [
        (f"{name} {inner}", each)
        for name, group in root.commands.items()
        for inner, each in getattr(group, "commands", {}).items()
    ]
    plain = [(name, sub) for name, sub in root.commands.items() if not hasattr(sub, "commands")]
    for name, sub in [("", root), *plain, *below]:
        lines.append(f"train-cloud {name}".rstrip())
        for parameter in sub.params:
            shown = parameter.metavar
            if parameter.opts[0].startswith("-"):
                shown = "/".join(parameter.opts) + ("" if parameter.is_flag else f" {parameter.metavar}")
            notes = [
                *(["required"] if parameter.required else []),
                *(["repeatable"] if getattr(parameter, "multiple", False) else []),
                *([f"${parameter.envvar}"] if parameter.envvar else []),
            ]
            lines.append(f"    {shown}{'  (' + ', '.join(notes) + ')' if notes else ''}")
    return "\n".join(lines) + "\n"


def test_the_surface_is_the_documented_one() -> None:
    """Scripts, units and Terraform outputs call these. A change here is a change of docs/cli.md, on purpose."""
    documented = DOCS.read_text().split("```text\n")[1].split("```")[0]
    assert surface() == documented


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("train-cloud va", {"validate"}),
        ("train-cloud re", {"record", "rehearse", "report", "repair", "relaunch", "requirements"}),
    ],
)
def test_a_shell_completes_commands(words: str, offered: set[str]) -> None:
    asked = {"_TRAIN_CLOUD_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "train_cloud"], env={**os.environ, **asked}, capture_output=True, text=True, timeout=60
    )
    assert set(done.stdout.split()) == offered
    asked = {"_TRAIN_CLOUD_COMPLETE": "complete_bash", "COMP_WORDS": "train-cloud train --sto", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-m", "train_cloud"], env={**os.environ, **asked}, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["--store"]


def test_completion_can_be_shown() -> None:
    asked = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = command("--show-completion", "bash", env={**os.environ, **asked})
    assert done.returncode == 0 and "_TRAIN_CLOUD_COMPLETE=complete_bash" in done.stdout


FROZEN = {
    "TrainCloudError": 1,
    "InputError": 64,
    "Findings": 64,
    "NotYet": 64,
    "Refused": 64,
    "NotInstalled": 64,
    "Interrupted": 75,
    "Fenced": 73,
    "NotExact": 1,
    "CorruptCheckpoint": 1,
    "DataError": 1,
    "DataChanged": 1,
    "HeadMissing": 1,
    "StoreError": 1,
    "ObjectMissing": 1,
    "ConditionFailed": 1,
    "StoreForbidden": 1,
    "CredentialsExpired": 1,
    "BucketMissing": 1,
    "StoreUnavailable": 1,
    "CloudError": 1,
    "CloudForbidden": 1,
    "CloudUnavailable": 1,
}


def test_exit_codes_are_frozen() -> None:
    classes = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.TrainCloudError)
    }
    assert {name: kind.exit_code for name, kind in classes.items()} == FROZEN
    assert set(EXIT_CODES) == {0, *FROZEN.values()}
    documented = DOCS.read_text()
    for code in EXIT_CODES:
        assert f"| {code} |" in documented


def test_help_is_quick_and_names_the_exit_codes() -> None:
    began = time.monotonic()
    said = command("--help", env={**os.environ, "COLUMNS": "100", "TERM": "dumb"})
    took = time.monotonic() - began
    assert said.returncode == 0
    for code, meaning in EXIT_CODES.items():
        assert f"{code} {meaning}" in said.stdout
    # Half a second on an idle machine; tests run beside others.
    assert took < 3


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["--version"], 0, ""),
        (["nonsense"], 64, "nonsense"),
        (["train", "RUN_YAML", "--nonsense"], 64, "--nonsense"),
        (["train", "RUN_YAML"], 64, "--store"),
        (["validate"], 64, "RUN_FILE"),
        (["validate", "absent.yaml"], 64, "run file: 'absent.yaml': name an existing file"),
        (["validate", "RUN_YAML", "--set", "save_frequency=0"], 64, "save_frequency: 0: give a number of at least 1"),
        (["validate", "RUN_YAML", "--set", "algorithm=tcq"], 64, "algorithm: 'tcq': did you mean tqc?"),
        (["validate", "RUN_YAML", "--set", "nonsense"], 64, "--set: 'nonsense': write key=value"),
        (["status", "absent", "--store", "STORE"], 64, "run_id: 'absent': no such run"),
        (["status", "RUN_YAML"], 64, "--store"),
        (["status", "--store", "ftp://nowhere/x"], 64, "store: 'ftp://nowhere/x'"),
        (["status", "corrupt", "--store", "STORE"], 1, "is not a head"),
        (["export", "STORE"], 64, "name one run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_every_refusal_is_one_line_and_a_code(
    arguments: list[str], code: int, part: str, run_yaml: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    open_store(layout.run_url(str(store), "corrupt")).put(layout.HEAD, b"{}")
    before = sorted(path for path in tmp_path.rglob("*"))
    names = {"RUN_YAML": str(run_yaml), "STORE": str(store)}
    assert main([names.get(argument, argument) for argument in arguments]) == code
    out, err = capfd.readouterr()
    assert part in err.replace("\n", " ")
    if err.startswith("train-cloud: "):
        assert err.count("\n") == 1
    if code:
        assert not out
    assert sorted(path for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("number", [signal.SIGINT])
def test_ctrl_c_anywhere_is_an_interruption(number: signal.Signals, tmp_path: Path) -> None:
    fifo = tmp_path / "run.yaml"
    os.mkfifo(fifo)
    process = subprocess.Popen([sys.executable, "-m", "train_cloud", "validate", str(fifo)], stderr=subprocess.PIPE)
    # Opening for writing returns once the command has opened it for reading; then it waits for content.
    with fifo.open("wb"):
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 75
    assert b"Traceback" not in err


@pytest.mark.slow
def test_validate_says_what_it_found(run_yaml: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    done = command("validate", str(run_yaml), "--set", "env.OMP_NUM_THREADS=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for part in (
        "pendulum-1: sac on Pendulum-v1, 2,000 timesteps",
        "actions       Box(-2.0, 2.0",
        "resume        exact",
        "replay buffer 40.0 MB",
        "fits into g6.xlarge, g5.xlarge, g4dn.xlarge",
        "MB each, at most",
    ):
        assert part in done.stdout
    assert sorted(tmp_path.rglob("*")) == before
    refused = command("validate", str(run_yaml), "--set", "environment.id=Pendulu-v1", cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (64, "")
    assert "environment.id: 'Pendulu-v1'" in refused.stderr


@pytest.mark.slow
def test_validate_refuses_what_an_instance_has_no_room_for(run_yaml: Path, tmp_path: Path) -> None:
    large = ("validate", str(run_yaml), "--set", "hyperparameters.buffer_size=500e6")
    refused = command(*large)
    assert (refused.returncode, refused.stdout) == (64, "")
    assert "hyperparameters.buffer_size: 500000000.0: the buffer would take 18.6 GiB" in refused.stderr
    assert "; g6.xlarge has 15.0" in refused.stderr
    accepted = command(*large, "--instance-type", "m6i.4xlarge", "--instance-type", "r6i.2xlarge")
    assert accepted.returncode == 0, accepted.stderr
    assert "fits into m6i.4xlarge, r6i.2xlarge" in accepted.stdout
    long = ("--set", "hyperparameters.buffer_size=36e9", "--set", "total_timesteps=1e11")
    full = command("validate", str(run_yaml), *long, "--instance-type", "r7i.48xlarge", "--store", str(tmp_path))
    assert full.returncode == 64
    assert f"--store: '{tmp_path}': checkpoints would take 1008.0 GB" in full.stderr


def test_validate_checks_the_standing_in_a_store(run_yaml: Path, tmp_path: Path) -> None:
    from train_cloud.checkpoint import Committer
    from train_cloud.config import load_run_file
    from train_cloud.report.preflight import check_before_training

    store = str(tmp_path / "store")
    run_file = load_run_file(run_yaml)
    check_before_training(store, run_file)
    objects = open_store(layout.run_url(store, "pendulum-1"))
    lease = Lease.take(objects, Token(1, 0), "test")
    check_before_training(store, load_run_file(run_yaml, ["seed=2"]))
    committer = Committer(objects, lease, None)
    committer.submit(Snapshot(500, {}, facts={"identity": run_file.identity()}))
    committer.wait()
    check_before_training(store, run_file)

    refused = command("validate", str(run_yaml), "--store", store, "--set", "seed=2", "--set", "policy=CnnPolicy")
    assert refused.returncode == 64
    assert "policy: 'CnnPolicy': run pendulum-1 was begun with 'MlpPolicy'" in refused.stderr
    assert "also: seed" in refused.stderr
    check_before_training(store, load_run_file(run_yaml, ["total_timesteps=9000", "limits.hours=1"]))

    lease.conclude("completed")
    check_before_training(store, run_file)
    refused = command("validate", str(run_yaml), "--store", store, "--set", "total_timesteps=500")
    assert refused.returncode == 64
    assert "run_id: 'pendulum-1': completed already" in refused.stderr


@pytest.mark.parametrize(
    "what", ["a file", "below a file", "a link to nowhere", "a link to itself", "no folder can be"]
)
def test_a_state_folder_that_cannot_be_used_is_one_line(
    run_yaml: Path, tmp_path: Path, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    places = {name: tmp_path / name.replace(" ", "-") for name in ("a file", "a link to nowhere", "a link to itself")}
    places["a file"].touch()
    places["a link to nowhere"].symlink_to("/nowhere/at/all")
    places["a link to itself"].symlink_to(places["a link to itself"])
    places |= {"below a file": places["a file"] / "x", "no folder can be": Path("/proc/here")}
    store = tmp_path / "store"
    assert main(["train", str(run_yaml), "--store", str(store), "--state-dir", str(places[what])]) == 64
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("train-cloud: state-dir: ") and "give another --state-dir" in line
    assert not store.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["status", "a-run"],
        ["status", "RUN.yaml"],
        ["logs", "a-run"],
        ["report", "a-run"],
        ["export", "a-run"],
        ["pull", "a-run"],
        ["tensorboard", "a-run"],
        ["fork", "a-run", "--as", "b"],
        ["rollback", "a-run", "--to", "1"],
        ["repair", "a-run", "--yes"],
        ["delete", "a-run", "--yes"],
    ],
)
def test_a_store_that_is_not_there_is_an_error(
    run_yaml: Path, tmp_path: Path, bucket: str, arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(run_yaml) if each == "RUN.yaml" else each for each in arguments]
    assert main([*arguments, "--store", str(tmp_path / "typo")]) == 64
    said = capfd.readouterr()
    assert "--store: " in said.err and "there is no folder" in said.err and not said.out
    assert not (tmp_path / "typo").exists()
    assert main([*arguments, "--store", f"s3://{bucket}-typo/x"]) == 1
    assert f"s3://{bucket}-typo does not exist" in capfd.readouterr().err


def test_what_cannot_be_written_is_one_line_and_what_the_users_code_raises_is_not(
    run_yaml: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = open_store(layout.run_url(str(tmp_path / "store"), "pendulum-1"))
    store.put(layout.RUN_YAML, run_yaml.read_bytes())
    out = tmp_path / "page.html"
    out.symlink_to(tmp_path / "page.html")
    assert main(["report", "pendulum-1", "--store", str(tmp_path / "store"), "--out", str(out)]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"train-cloud: {out}: ")
    broken = tmp_path / "broken.py"
    broken.write_text("open('/nowhere/at/all')\n")
    with pytest.raises(FileNotFoundError) as caught:
        runpy.run_path(str(broken))
    assert _in_code_of_the_users(caught.value)
    with pytest.raises(NotADirectoryError) as refused:
        (run_yaml / "x").read_text()
    refused.value.__traceback__ = refused.tb.tb_next  # without this file
    assert not _in_code_of_the_users(refused.value)


@pytest.mark.parametrize("store", ["", " ", "s3://", "file://"])
def test_a_store_that_is_nowhere_is_refused(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = "run_id: a\nalgorithm: ppo\ntotal_timesteps: 10\nsave_frequency: 5\nenvironment: {id: CartPole-v1}\n"
    (tmp_path / "run.yaml").write_text(run)
    assert main(["train", "run.yaml", "--store", store]) == 64
    assert "give s3://bucket/prefix or a local folder" in capsys.readouterr().err
