"""What ``pip install`` of the wheel gives, without a checkout: installed below a folder of its own, with the libraries
of this environment, and used from empty folders.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_imports import imports, sources

from train_cloud import shipped
from train_cloud.cli import main
from train_cloud.extras import BROUGHT_BY
from train_cloud.rehearsal.aws import EmbeddedAws
from train_cloud.rehearsal.terraform import find_mirror
from train_cloud.run import layout
from train_cloud.run.head import read_head
from train_cloud.store import open_store

ROOT = Path(__file__).parents[1]
OLD = ROOT / "tests" / "old_checkpoint"
needs_terraform = pytest.mark.skipif(shutil.which("terraform") is None, reason="needs Terraform")

#: Run before the command: what the extras bring is not there.
BLOCKED = """
import runpy, sys
BLOCKED = {blocked!r}
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in BLOCKED else found(name, package)
sys.argv = ["train-cloud", *{arguments!r}]
"""
MAIN = "from train_cloud.cli import main; sys.exit(main(sys.argv[1:]))"


class Installed:
    """The wheel as pip installed it, and its command line."""

    def __init__(self, folder: Path, wheel: Path, sdist: Path) -> None:
        self.site, self.wheel, self.sdist = folder, wheel, sdist
        foreign = ("TRAIN_CLOUD_", "PYTHONPATH")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        self.environment |= {"PYTHONPATH": str(folder), "COLUMNS": "200"}

    def start(self, *arguments: str, cwd: Path, **more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "train_cloud", *arguments]
        pipe = subprocess.PIPE
        environment = {**self.environment, **more}
        return subprocess.Popen(command, cwd=cwd, env=environment, stdout=pipe, stderr=pipe, text=True)

    def run(self, *arguments: str, cwd: Path, code: int = 0) -> str:
        process = self.start(*arguments, cwd=cwd)
        said, complained = process.communicate(timeout=280)
        assert process.returncode == code, f"{arguments}: {process.returncode}\n{said}\n{complained}"
        return said + complained

    def without(self, blocked: set[str], *arguments: str, cwd: Path, then: str = MAIN) -> tuple[int, str, str]:
        script = BLOCKED.format(blocked=blocked, arguments=arguments) + then
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=cwd, env=self.environment, capture_output=True, text=True, timeout=120
        )
        return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """From the source distribution, which is made from a copy: whatever the checkout has lying about is not in it."""
    folder = tmp_path_factory.mktemp("wheel")
    shipped.copy((*shipped.SHIPPED, "train_cloud"), folder / "checkout")
    shutil.copy(ROOT / "MANIFEST.in", folder / "checkout")
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    command = [sys.executable, "-c", build, str(folder)]
    subprocess.run(command, cwd=folder / "checkout", check=True, capture_output=True)
    (sdist,) = folder.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(sdist)], check=True)
    (wheel,) = folder.glob("*.whl")
    site = folder / "site-packages"
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)], check=True)
    return Installed(site, wheel, sdist)


@pytest.fixture(scope="module")
def begun(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``train-cloud init`` wrote."""
    parent = tmp_path_factory.mktemp("empty")
    said = installed.run("init", "My Run", cwd=parent)
    assert "train-cloud validate run.yaml" in said
    return parent / "My Run"


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def tracked(*folders: str) -> set[str]:
    """What git would commit of these."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *folders]
    said = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return {name for name in said.split("\0") if name and (ROOT / name).exists()}


def test_wheel_and_sdist_hold_the_folders_of_the_checkout_and_nothing_else(installed: Installed) -> None:
    names = set(zipfile.ZipFile(installed.wheel).namelist())
    with tarfile.open(installed.sdist) as archive:
        source = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {name for name in tracked(*shipped.SHIPPED) if "/tests/" not in name}
    there = {name.removeprefix("train_cloud/_shipped/") for name in names if name.startswith("train_cloud/_shipped/")}
    assert there == wanted
    assert wanted <= source
    code = {name for name in names if name.startswith("train_cloud/") and "_shipped" not in name}
    assert code == tracked("train_cloud")
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"train_cloud"}


def test_init_writes_what_a_worker_gets_from_a_checkout(begun: Path) -> None:
    """Byte for byte: a run goes on under the same code, whoever launches it."""
    package = content(begun / "terraform" / "package")
    assert set(package) == tracked(*shipped.WORKER)
    assert all(body == (ROOT / name).read_bytes() for name, body in package.items())
    module = content(begun / "terraform")
    for name in tracked("terraform"):
        if "/tests/" not in name:
            assert module[name.removeprefix("terraform/")] == (ROOT / name).read_bytes()
    assert re.search(r'^run_file = "\.\./run\.yaml"$', module["terraform.tfvars"].decode(), re.MULTILINE)
    assert "run_id: my-run " in (begun / "run.yaml").read_text()


def test_a_worker_builds_the_package_from_what_it_gets(begun: Path, tmp_path: Path) -> None:
    """Without the module and the examples, which it does not get, and which only ``init`` would miss."""
    package = tmp_path / "package"
    shutil.copytree(begun / "terraform" / "package", package)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    site = tmp_path / "site-packages"
    build = ["--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "install", *build, "--target", str(site), f"{package}[sb3]"], check=True)
    assert {f"train_cloud/{name}" for name in content(site / "train_cloud") if "_shipped" not in name} == tracked(
        "train_cloud"
    )
    worker = Installed(site, package, package)
    assert "run it elsewhere: examples" in worker.run("init", "x", cwd=tmp_path, code=64)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("there", ["run.yaml", "code", "terraform", "a link"])
def test_init_never_overwrites(there: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("kept")
    if there == "a link":
        (folder / "run.yaml").symlink_to(tmp_path / "nowhere")
    elif there == "run.yaml":
        (folder / there).write_text("mine")
    else:
        (folder / there).mkdir()
    before = sorted(folder.rglob("*"))
    assert main(["init", str(folder)]) == 64
    assert "it is there already and is never overwritten" in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before
    for path in set(before) - {folder / "notes.txt"}:
        path.rmdir() if path.is_dir() else path.unlink()
    assert main(["init", str(folder)]) == 0
    assert (folder / "notes.txt").read_text() == "kept"
    assert {path.name for path in folder.iterdir()} == {"notes.txt", "run.yaml", "code", "terraform", ".gitignore"}


def test_init_where_nothing_can_be_made_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["init", str(tmp_path / "file" / "x")]) == 64
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train-cloud: DIR: ")


def test_init_where_nothing_can_be_written_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "/proc/self"]) == 64
    assert re.fullmatch(r"train-cloud: DIR: '/proc/self': name a folder that can be made .*\n", capsys.readouterr().err)


def test_what_init_says_can_be_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "my run"]) == 0
    assert "\n  cd 'my run'\n" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path / "my run")
    for name in ("run.yaml", "code", "terraform"):
        Path(name).rename(f"former-{name}")
    assert main(["init", "."]) == 0
    assert "  cd " not in capsys.readouterr().out


@pytest.mark.parametrize(("name", "run_id"), [("A_b c", "a-b-c"), ("--é--", "my-run"), ("x" * 60, "x" * 40)])
def test_the_run_is_named_after_its_folder(name: str, run_id: str, tmp_path: Path) -> None:
    from train_cloud.config import load_run_file

    assert main(["init", "--", str(tmp_path / name)]) == 0
    assert load_run_file(tmp_path / name / "run.yaml").run_id == run_id


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has trained."""
    folder = tmp_path_factory.mktemp("store")
    run = folder / "runs" / "a-run"
    run.mkdir(parents=True)
    with tarfile.open(OLD / "sac.tar.xz") as archive:
        archive.extractall(run, filter="data")
    open_store(str(run)).put(layout.ARTIFACTS + "progress.csv", b"time/total_timesteps\n150\n")
    return folder


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--version"], "train-cloud "),
        (["status", "--store", "STORE"], "a-run"),
        (["status", "a-run", "--store", "STORE", "--json"], '"committed_timesteps": 150'),
        (["report", "a-run", "--store", "STORE", "--out", "page.html"], "page.html"),
        (["pull", "a-run", "--store", "STORE", "--out", "pulled"], "pulled"),
        (
            ["validate", "RUN_YAML"],
            "whether it can be trained: that takes pip install 'train-cloud[sb3]'",
        ),
        (["validate", "RUN_YAML", "--store", "STORE"], "the run file is right in itself"),
        (["init", "begun"], "begun/run.yaml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_light_core_needs_no_extra(
    arguments: list[str], part: str, installed: Installed, begun: Path, store: Path, tmp_path: Path
) -> None:
    names = {"STORE": str(store), "RUN_YAML": str(begun / "run.yaml")}
    code, said, complained = installed.without(
        set(BROUGHT_BY), *[names.get(each, each) for each in arguments], cwd=tmp_path
    )
    assert code == 0, complained
    assert part in said + complained


@pytest.mark.parametrize(
    ("arguments", "blocked", "line"),
    [
        (["train", "RUN_YAML", "--store", "new"], "stable_baselines3", "train needs stable_baselines3"),
        (["prove", "RUN_YAML"], "stable_baselines3", "prove needs stable_baselines3"),
        (["validate", "RUN_YAML", "--prove"], "stable_baselines3", "validate --prove needs stable_baselines3"),
        (["rehearse", "RUN_YAML"], "moto", "rehearse needs moto"),
        (["evaluate", "a-run", "--store", "STORE"], "gymnasium", "this command needs gymnasium"),
        (["export", "a-run", "--store", "STORE"], "torch", "this command needs torch"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_takes_an_extra_says_which(
    arguments: list[str], blocked: str, line: str, installed: Installed, begun: Path, store: Path, tmp_path: Path
) -> None:
    names = {"STORE": str(store), "RUN_YAML": str(begun / "run.yaml")}
    code, said, complained = installed.without({blocked}, *[names.get(each, each) for each in arguments], cwd=tmp_path)
    extra = BROUGHT_BY[blocked]
    assert (code, said) == (64, "")
    assert complained == f"train-cloud: {line}, which is not installed: pip install 'train-cloud[{extra}]'\n"
    assert list(tmp_path.iterdir()) == []


def test_the_api_without_an_extra_says_which(installed: Installed, tmp_path: Path) -> None:
    then = "import train_cloud; print(train_cloud.load_run_file.__name__); train_cloud.train"
    code, said, complained = installed.without(set(BROUGHT_BY), cwd=tmp_path, then=then)
    assert (code, said) == (1, "load_run_file\n")
    (last,) = complained.splitlines()[-1:]
    assert re.fullmatch(
        r"train_cloud.errors.NotInstalled: train_cloud.train needs \w+, which is not installed: "
        r"pip install 'train-cloud\[sb3\]'",
        last,
    )


def project() -> dict[str, Any]:
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")  # pytest brings the latter
    loaded: dict[str, Any] = toml.loads((ROOT / "pyproject.toml").read_text())
    return loaded


def test_each_library_belongs_to_the_extra_that_the_errors_name() -> None:
    """And what the light commands import stands in the dependencies."""
    optional: Mapping[str, list[str]] = project()["project"]["optional-dependencies"]
    names = {
        extra: {canonicalize_name(Requirement(line).name) for line in lines}
        for extra, lines in {**optional, "": project()["project"]["dependencies"]}.items()
        if extra not in ("dev", "environments")
    }
    found = packages_distributions()
    known = {canonicalize_name(each): module for module, of in found.items() for each in of}
    missed = {}
    for module in {name.split(".")[0] for here, tree in sources().items() for name in imports(tree, here)}:
        distributions = {canonicalize_name(each) for each in found.get(module, ())}
        of = {extra for extra, packages in names.items() if packages & distributions}
        if of and "" not in of and BROUGHT_BY.get(module) not in of:
            missed[module] = of
    assert missed == {}
    assert set(BROUGHT_BY.values()) <= set(names)
    for module, extra in BROUGHT_BY.items():
        if module in found:
            assert names[extra] & {canonicalize_name(each) for each in found[module]}, module
    assert known


def terraform(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    mirror = find_mirror()
    settings = {"TF_IN_AUTOMATION": "1", "TF_INPUT": "0", "CHECKPOINT_DISABLE": "1"}
    if mirror is not None:
        file = folder / "mirror.rc"
        file.write_text(f'provider_installation {{\n  filesystem_mirror {{\n    path = "{mirror}"\n  }}\n}}\n')
        settings["TF_CLI_CONFIG_FILE"] = str(file)
    done = subprocess.run(
        ["terraform", f"-chdir={folder}", *arguments, "-no-color"],
        env={**os.environ, **settings, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def aws() -> Iterator[EmbeddedAws]:
    with EmbeddedAws() as running:
        yield running


@needs_terraform
@pytest.mark.slow
def test_terraform_of_init_is_ready_and_plans(begun: Path, aws: EmbeddedAws) -> None:
    folder = begun / "terraform"
    terraform(folder, "init")
    said = terraform(folder, "plan", environment=aws.environment())
    assert 'aws_autoscaling_group.worker["my-run"]' in said
    assert re.search(r"aws_s3_object.code\[\"[0-9a-f]{64}/package/train_cloud/run/head.py\"\]", said)
    assert re.search(r"aws_s3_object.code\[\"[0-9a-f]{64}/user/my_environment.py\"\]", said)
    shutil.rmtree(folder / ".terraform")


@needs_terraform
@pytest.mark.slow
def test_the_module_can_be_used_from_a_repository(begun: Path, tmp_path: Path, aws: EmbeddedAws) -> None:
    """As ``docs/terraform.md`` says, by ``git::`` and with ``//terraform``."""
    repository = tmp_path / "repository"
    shipped.copy(("terraform", *shipped.WORKER), repository)
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *words], check=True)
    page = (ROOT / "docs" / "terraform.md").read_text()
    (block,) = re.findall(r'```hcl\n(module "training" \{.*?)```', page, re.DOTALL)
    address = re.search(r'"(git::[^"]*)"', block)
    assert address is not None and "//terraform" in address[1]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "main.tf").write_text(
        block.replace(address[1], f"git::file://{repository}//terraform").replace(
            "my-run/run.yaml", f"{begun}/run.yaml"
        )
    )
    terraform(mine, "init")
    said = terraform(mine, "plan", environment=aws.environment())
    assert 'module.training.aws_autoscaling_group.worker["my-run"]' in said
    assert re.search(r"module.training.aws_s3_object.code\[\"[0-9a-f]{64}/package/train_cloud/run/head.py\"\]", said)
    assert "+ status" in said


def until_committed(store: Path, timesteps: int, process: subprocess.Popen[str]) -> None:
    objects = open_store(layout.run_url(str(store), "my-run"))
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if (read := read_head(objects)) is not None and read[0].timesteps >= timesteps:
            return
        time.sleep(0.2)
    raise AssertionError("no checkpoint came")


@pytest.mark.slow
def test_the_road_of_a_newcomer(installed: Installed, begun: Path) -> None:
    """The README's first screen, without the rehearsal."""
    short = ("--set", "total_timesteps=900", "--set", "save_frequency=150", "--set", "evaluation=null")
    assert "it can be trained" in (said := installed.run("validate", "run.yaml", *short, cwd=begun))
    assert "resume        exact" in said
    process = installed.start("train", "run.yaml", "--store", "store", *short, cwd=begun)
    until_committed(begun / "store", 150, process)
    process.send_signal(signal.SIGINT)
    _, complained = process.communicate(timeout=240)
    assert process.returncode == 75, complained
    installed.run("train", "run.yaml", "--store", "store", *short, cwd=begun)
    installed.run("report", "my-run", "--store", "store", "--out", "report.html", cwd=begun)
    assert "my-run" in (begun / "report.html").read_text()
    found = json.loads(installed.run("status", "my-run", "--store", "store", "--json", cwd=begun))
    assert (found["state"], found["timesteps"], len(found["sessions"])) == ("completed", 900, 2)
    assert found["exact"] is True


@needs_terraform
@pytest.mark.slow
@pytest.mark.full
@pytest.mark.timeout(900)
def test_the_rehearsal_needs_no_checkout(installed: Installed, begun: Path) -> None:
    process = installed.start("rehearse", "run.yaml", cwd=begun)
    said, complained = process.communicate(timeout=840)
    assert process.returncode == 0, said[-3000:] + complained[-3000:]
    report = json.loads((begun / "rehearsal" / "my-run" / "report.json").read_text())
    assert report["bit_identical_to_uninterrupted"] and len(report["sessions"]) == 3


def test_the_version_and_the_types_are_there(installed: Installed, tmp_path: Path) -> None:
    assert (installed.site / "train_cloud" / "py.typed").exists()
    script = "import train_cloud, sys; print(train_cloud.__version__, train_cloud.__file__, 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=installed.environment, capture_output=True, text=True
    )
    version, file, torch = done.stdout.split()
    assert f"-{version}-" in installed.wheel.name and file.startswith(str(installed.site)) and torch == "False"
