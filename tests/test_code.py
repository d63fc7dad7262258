"""What of a folder is code: the files that travel to a worker, the same here and in Terraform; and what makes a run
another one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sessions import Rehearsed

from train_cloud.checkpoint import Committer, read_manifest
from train_cloud.config import identity_changes, load_run_file
from train_cloud.config.code import NEVER, code_digests, code_files, compare_code, mark_as_cache, program_digest
from train_cloud.errors import InputError
from train_cloud.report.code import check_code
from train_cloud.run.head import Lease, Token, read_head
from train_cloud.snapshot import Snapshot
from train_cloud.store import open_store

REPOSITORY = Path(__file__).parents[1]
STORAGE = REPOSITORY / "terraform" / "storage.tf"

#: What a person wrote, or the script reads.
CODE = (
    "train.py",
    "logs/__init__.py",
    "logs/final.zip",
    "maps/spa.yaml",
    "maps/spa.png",
    "my runs/notes.txt",
    "package/module.py",
    "package/runs/plan.json",
    "README.md",
    "requirements.txt",
    "wandb.py",
    "wéird näme.txt",
    ".env.example",
    "latin1.yaml",
    "base.yaml",
)
#: What is there too.
NONE = (
    ".git/HEAD",
    "package/.git/HEAD",
    "submodule/.git",
    ".venv/lib/module.py",
    "package/__pycache__/module.cpython-311.pyc",
    "package/old.pyc",
    "mine.egg-info/PKG-INFO",
    ".ipynb_checkpoints/a.ipynb",
    ".mypy_cache/3.11/a.json",
    ".pytest_cache/README.md",
    ".ruff_cache/x",
    ".hypothesis/x",
    ".coverage",
    ".idea/workspace.xml",
    ".vscode/settings.json",
    "package/.DS_Store",
    "infra/.terraform/providers/x",
    "infra/terraform.tfstate.backup",
    ".train-cloud/a-run/timesteps",
    "runs/a-run/head.json",
    "rehearsal/a-run/report.html",
    "wandb/latest.txt",
    "package/wandb/offline-run-1/x",
    "mlruns/0/meta.yaml",
    "tensorboard/events.out.tfevents.1.host",
    "monitor/0.monitor.csv",
    "monitor/monitor.csv",
    "nohup.out",
    # by their marks
    "environment/pyvenv.cfg",
    "environment/lib/module.py",
    "my state/CACHEDIR.TAG",
    "my state/artifacts/module.py",
    "results/store/runs/a-run/run.json",
    "results/store/runs/a-run/artifacts/play.py",
    "results/store/runs/another/module.py",
    "results/store/experiments/sweep/config.json",
    # run files and experiment files, whatever they are called
    "run.yaml",
    "package/more.yml",
    "sweep.yaml",
    "nets-runs/CACHEDIR.TAG",
    "nets-runs/experiment.json",
    "package/search.yml",
)
RUN_FILE = "run_id: mine\nalgorithm: ppo\ntotal_timesteps: 1000\nsave_frequency: 100\nenvironment: {id: CartPole-v1}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Everything in one place, the run file among it."""
    for name in (*CODE, *NONE):
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "mine" / "run.yaml").write_text(f"# a comment\n{RUN_FILE}code: {{folder: .}}\n")
    (tmp_path / "mine" / "package" / "more.yml").write_text(
        f'"run_id": other\n{RUN_FILE}'.replace("run_id: mine\n", "")
    )
    (tmp_path / "mine" / "sweep.yaml").write_text("experiment: nets\nbase: run.yaml\nseeds: [1]\n")
    (tmp_path / "mine" / "package" / "search.yml").write_text("{ 'base': ../run.yaml,\n'experiment' : found}\n")
    (tmp_path / "mine" / "base.yaml").write_text("base: 10   # a number of mine\nmine: {experiment: 1}\n")
    (tmp_path / "mine" / "latin1.yaml").write_bytes("Straße: [1]\n".encode("latin-1"))
    (tmp_path / "mine" / "dangling").symlink_to("nowhere")
    return tmp_path / "mine"


def test_what_is_code(folder: Path) -> None:
    assert set(code_files(folder)) == set(CODE)
    assert code_files(folder, ["**/*.py", "maps/**"]) == sorted(
        name for name in CODE if not name.endswith(".py") and not name.startswith("maps/")
    )
    assert not any(name.startswith("results") for name in code_files(folder))
    (folder / "state").mkdir()
    mark_as_cache(folder / "state")
    (folder / "state" / "a.py").touch()
    assert set(code_files(folder)) == set(CODE)


def test_terraform_sends_the_same_files(folder: Path, tmp_path: Path) -> None:
    """The expressions themselves, in a module without a provider."""
    text = STORAGE.read_text()
    listed = re.search(r"never_code = \[(.*?)\]", text, re.DOTALL)
    assert listed is not None
    assert tuple(json.loads(f"[{listed[1].strip().rstrip(',')}]")) == NEVER
    found = re.search(r"  user_folder_as_written = .*?(?=  package_code = )", text, re.DOTALL)
    assert found is not None
    module = tmp_path / "module"
    module.mkdir()
    run_file = json.dumps(str(folder / "run.yaml"))
    (module / "main.tf").write_text(
        f"locals {{\n  run_files = {{ mine = {{ path = {run_file}, content = yamldecode(file({run_file})) }} }}\n"
        f'{found[0]}}}\noutput "files" {{\n  value = sort(tolist(local.user_files["mine"]))\n}}\n'
    )
    terraform = shutil.which("terraform") or str(REPOSITORY / ".tools" / "terraform")
    environment = {**os.environ, "CHECKPOINT_DISABLE": "1", "TF_CLI_CONFIG_FILE": os.devnull}
    quietly: dict[str, Any] = {"cwd": module, "env": environment, "capture_output": True, "text": True, "timeout": 120}
    for exclude in ([], ["maps/**", "**/*.txt"]):
        (folder / "run.yaml").write_text(f"{RUN_FILE}code: {{folder: ., exclude: {json.dumps(exclude)}}}\n")
        for verb in (("init", "-backend=false"), ("apply", "-auto-approve")):
            done = subprocess.run([terraform, *verb, "-no-color"], **quietly)
            assert done.returncode == 0, done.stderr
        sent = subprocess.run([terraform, "output", "-json", "files"], **quietly).stdout
        assert json.loads(sent) == sorted(code_files(folder, exclude))


def test_program_text_alone_is_in_the_identity(folder: Path) -> None:
    before = load_run_file(folder / "run.yaml").identity()
    for name in ("maps/spa.png", "logs/final.zip", "new.csv", "run.yaml"):
        (folder / name).open("a").write("\n# changed\n")
    assert load_run_file(folder / "run.yaml").identity() == before
    (folder / "package" / "module.py").write_text("changed = 1\n")
    changed = load_run_file(folder / "run.yaml").identity()
    assert [change[0] for change in identity_changes(before, changed)] == ["code.digest"]
    assert changed["code"]["digest"] == program_digest(code_digests(folder))


LAUNCHED = {"a.py": "1", "b/c.so": "2", "map.png": "3", "logs/old.zip": "4", "README.md": "5", "was.csv": ""}


@pytest.mark.parametrize(
    ("differing", "words"),
    [
        ({}, ""),
        ({"a.py": "x"}, "a.py is changed"),
        ({"b/c.so": None}, "b/c.so is gone"),
        ({"new.py": "x", "newer.PY": "x"}, "new.py and newer.PY are new"),
        ({"a.py": "x", "new.py": "x", "map.png": None}, "a.py is changed, new.py is new, map.png is gone"),
        ({"map.png": "x"}, "map.png is changed"),
        ({"new.csv": "x", "out.zip": "x", "logs/a.txt": "x"}, ""),  # what was not there at the launch is none of it
        ({"logs/old.zip": "x", "README.md": "x"}, ""),
        ({"logs/old.zip": None, "README.md": None}, ""),
        ({"was.csv": "x"}, ""),  # an output, as was found out before
        ({"logs/tool.py": "x"}, "logs/tool.py is new"),
        ({f"{number}.py": "x" for number in range(8)}, "0.py, 1.py, 2.py, 3.py, 4.py and 3 more are new"),
    ],
)
def test_what_makes_it_other_code(differing: dict[str, str | None], words: str) -> None:
    here = {path: digest for path, digest in (LAUNCHED | differing).items() if digest is not None}
    changes, known = compare_code(LAUNCHED, here)
    assert (changes.in_words(), bool(changes)) == (words, bool(words))
    assert known == LAUNCHED


def test_what_the_run_wrote_itself_is_no_code_from_then_on() -> None:
    here = LAUNCHED | {"map.png": "x", "a.py": "y"}
    changes, known = compare_code(LAUNCHED, here, is_output=lambda path: True)
    assert changes.in_words() == "a.py is changed"  # nobody's output
    assert known == LAUNCHED | {"map.png": ""}
    changes, _ = compare_code(known, {"b/c.so": "2", "map.png": "z"}, exclude=["*.py"])
    assert not changes


# ----------------------------------------------------------------------------------------- a run in its own code folder

SCRIPT = """\
import json
import time
from pathlib import Path

import gymnasium
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor

import interrupting
import train_cloud

HERE = Path(__file__).parent


class Writes(BaseCallback):
    def _on_step(self):
        (HERE / "results.json").write_text(json.dumps(self.num_timesteps))
        return True


def main():
    run = train_cloud.run_file()
    (HERE / "monitors").mkdir(exist_ok=True)
    env = Monitor(gymnasium.make("CartPole-v1"), str(HERE / "monitors" / "0"))
    model = PPO("MlpPolicy", env, n_steps=50, batch_size=50, n_epochs=1, seed=1, policy_kwargs={"net_arch": [8]})
    own = [Writes(), interrupting.InterruptAt(), train_cloud.checkpoints()]
    model.learn(run.total_timesteps, callback=own)
    model.save(HERE / "models" / "final")
"""


@pytest.fixture(scope="module")
def flat(warm: Any, tmp_path_factory: pytest.TempPathFactory) -> Rehearsed:
    """The simplest layout that there is: all in one folder, the store too. Interrupted once."""
    folder = tmp_path_factory.mktemp("flat")
    (folder / "train.py").write_text(SCRIPT)
    (folder / "results.json").write_text("of an earlier try")
    (folder / "track.csv").write_text("0,0\n1,1\n")
    settings = {"total_timesteps": 300, "save_frequency": 50, "entry_point": "train:main", "code": {"folder": "."}}
    run = Rehearsed(warm, folder, settings)
    assert run.session("SIGKILL@170") == -9
    return run


@pytest.mark.slow
def test_it_goes_on_beside_its_own_files(flat: Rehearsed, capsys: pytest.CaptureFixture[str]) -> None:
    from train_cloud.cli import main

    flat.run_file.write_text(flat.run_file.read_text().replace("300", "400"))  # a budget, in the file itself
    assert flat.session("SIGTERM@270") == 75, flat.log()
    assert flat.session() == 0, flat.log()
    made = {path.name for path in flat.folder.iterdir()}
    assert {"store", "state", "models", "monitors", "results.json", "run.yaml"} <= made
    fork = ["--set", "total_timesteps=450", "--out", str(flat.folder / "forked.yaml")]
    assert main(["fork", str(flat.run_file), "--as", "forked", "--store", flat.root, *fork]) == 0
    assert main(["validate", str(flat.folder / "forked.yaml"), "--store", flat.root]) == 0
    assert "code" not in capsys.readouterr().out.split("begins at")[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("train.py", "train.py is changed"),
        ("helper.py", "helper.py is new"),
        ("track.csv", "track.csv is changed"),
    ],
)
def test_other_code_is_named(flat: Rehearsed, change: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    from train_cloud.cli import main

    path = flat.folder / change
    before = path.read_bytes() if path.exists() else None
    path.write_bytes((before or b"") + b"\n# changed\n")
    later = (datetime.now(timezone.utc) + timedelta(minutes=1)).timestamp()
    os.utime(path, (later, later))
    command = ["validate", str(flat.run_file), "--store", flat.root, "--set", "total_timesteps=500"]
    try:
        assert main(command) == 64
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"launched with other code: {words}. Restore it" in said
        assert main([*command, "--set", f"code.exclude=[{change}]"]) == 0  # whoever says that it is none is believed
        fork = ["fork", str(flat.run_file), "--as", f"a-{change.split('.')[0]}", "--store", flat.root]
        fork += ["--set", "total_timesteps=500", "--out", str(flat.folder / f"{change}.yaml")]
        assert main(fork) == 0
        assert f"code: {words}\n" in capsys.readouterr().out
    finally:
        path.unlink() if before is None else path.write_bytes(before)
        os.utime(path, (0, 0)) if before is not None else None


def test_a_checkpoint_of_a_former_version(tmp_path: Path) -> None:
    """Its digest is over all files, by the rule of then."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("a")
    (tmp_path / "run.yaml").write_text(f"{RUN_FILE}code: {{folder: code}}\n")
    run_file = load_run_file(tmp_path / "run.yaml")
    summed = subprocess.run(["sha256sum", "a.py"], cwd=tmp_path / "code", check=True, capture_output=True).stdout
    digest = subprocess.run(["sha256sum"], input=summed, check=True, capture_output=True).stdout.split()[0].decode()
    identity = run_file.identity()
    identity["code"]["digest"] = digest
    store = open_store(str(tmp_path / "store" / "runs" / "mine"))
    committer = Committer(store, Lease.take(store, Token(1, 0), "somebody"), None)
    committer.submit(Snapshot(100, {}, facts={"identity": identity}))
    committer.wait()
    read = read_head(store)
    assert read is not None and read[0].manifest is not None
    manifest = read_manifest(store, read[0].manifest)
    assert check_code(store, manifest, run_file).keys() == {"a.py"}
    (tmp_path / "code" / "a.py").write_text("b")
    with pytest.raises(InputError, match="was not recorded then"):
        check_code(store, manifest, run_file)
