"""The one direction in which the packages import each other, and what the light commands must never load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "train_cloud"
BASE = {
    *("child_process", "errors", "extras", "forking", "former_names", "generators", "hash_seed", "installed"),
    *("retry", "safe_text", "shipped", "snapshot", "warm_process", "whole_file"),
}
STORED = BASE | {"config", "store", "run", "checkpoint"}
JOINED = STORED | {"artifacts", "envs", "evaluate", "platforms", "pytorch", "report", "sb3", "trainer"}
ALLOWED = {
    "child_process": set(),
    "errors": {"safe_text"},
    "safe_text": set(),
    "snapshot": set(),
    "generators": set(),
    "former_names": set(),
    "hash_seed": set(),
    "installed": set(),
    "retry": set(),
    "forking": set(),
    "warm_process": {"child_process", "forking"},
    "warm_serve": {"warm_process"},
    "whole_file": set(),
    "extras": {"errors", "installed"},
    "shipped": set(),
    "starter": {"errors", "shipped"},
    "config": BASE,
    "store": BASE | {"config"},
    "run": BASE | {"config", "store"},
    "checkpoint": STORED,
    "data": BASE | {"config", "store", "trainer"},
    "artifacts": STORED,
    "report": STORED | {"artifacts"},
    "envs": BASE,
    "sb3": BASE | {"config", "envs", "trainer"},
    "pytorch": BASE | {"config", "envs", "sb3", "trainer"},
    "evaluate": BASE | {"config", "envs", "sb3"},
    "trainer": BASE,
    "platforms": STORED | {"artifacts"},
    "runtime": JOINED,
    "operations": JOINED | {"runtime"},
    "experiments": JOINED | {"runtime", "operations"},
    "ray": JOINED | {"runtime", "operations", "experiments"},
}
EVERYTHING = {"cli", "rehearsal", "__init__", "__main__"}
OUTSIDE = {
    "boto3": {"store", "platforms", "rehearsal"},
    "botocore": {"config", "generators", "store", "platforms", "rehearsal"},
    "requests": {"platforms", "rehearsal"},
    "wandb": {"artifacts"},
    "moto": {"rehearsal"},
    "optuna": {"experiments"},
    "ray": {"ray"},
    "ruamel": {"config", "operations", "rehearsal"},
    "typer": {"cli"},
    "torch": {"data", "sb3", "pytorch", "envs", "evaluate", "rehearsal", "runtime"},
    "stable_baselines3": {"sb3", "pytorch", "envs", "evaluate", "rehearsal"},
}


def station(module: str) -> str:
    """``train_cloud.run.head`` stands in the station ``run``."""
    return [*module.split("."), "__init__"][1]


def imports(node: ast.AST, module: str) -> Iterator[str]:
    """Full names of what a module imports, inside its functions too, but not for type checkers only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            parents = module.split(".")[: -child.level] if child.level else []
            base = ".".join([*parents, *([child.module] if child.module else [])])
            yield from (f"{base}.{alias.name}" for alias in child.names)
        yield from imports(child, module)


@cache
def sources() -> dict[str, ast.Module]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts)] = ast.parse(path.read_text(), str(path))
    return found


def test_imports_go_one_way() -> None:
    wrong = []
    for module, tree in sources().items():
        here = station(module)
        for name in imports(tree, module):
            outside = OUTSIDE.get(name.split(".")[0])
            if outside is not None and here not in outside:
                wrong.append(f"{module} imports {name}")
            if name.split(".")[0] != "train_cloud" or here in EVERYTHING - {"rehearsal"}:
                continue
            there = station(name)
            if there in (here, "__init__"):
                continue
            if there in {"cli", "rehearsal"} or (here != "rehearsal" and there not in ALLOWED.get(here, set())):
                wrong.append(f"{module} imports {name}")
    assert not wrong
    assert {station(module) for module in sources()} <= set(ALLOWED) | EVERYTHING
    # Without this file setuptools leaves a folder out of what the worker installs.
    assert {path.parent for path in PACKAGE.rglob("*.py")} == {path.parent for path in PACKAGE.rglob("__init__.py")}


def test_a_class_of_the_runtime_is_read_in_a_few_screens() -> None:
    classes = {
        f"{module}.{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for module, tree in sources().items()
        if station(module) == "runtime"
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    assert len(classes) > 20
    assert not {name: lines for name, lines in classes.items() if lines > 250}


def commands() -> dict[str, list[str]]:
    """Each function of the CLI that imports when it runs, and the modules of ours that it imports."""
    found: dict[str, list[str]] = {}
    for module, tree in sources().items():
        if not module.startswith("train_cloud.cli."):
            continue
        for node in tree.body:
            if isinstance(node, ast.FunctionDef):
                names = [name.rpartition(".")[0] for name in imports(node, module) if name.startswith("train_cloud.")]
                found[node.name] = sorted(
                    {name for name in names if name in sources() or f"{name}.__init__" in sources()}
                )
    return found


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_and_its_commands_is_light() -> None:
    modules = [name for name in sources() if name.startswith("train_cloud.cli")]
    loaded = run_python(f"import sys, train_cloud, {', '.join(modules)}; print(*sys.modules)").split()
    assert not {"torch", "stable_baselines3", "gymnasium", "numpy", "boto3", "pydantic", "requests"} & set(loaded)


def test_light_commands_never_load_torch() -> None:
    light = [commands()[command] for command in ("compare", "finish", "status", "watch")]
    assert all(light)
    code = "\n".join(
        f"import {', '.join(modules)}\nassert not HEAVY & sys.modules.keys(), {modules}" for modules in light
    )
    run_python(f"import sys\nHEAVY = {{'torch', 'stable_baselines3', 'gymnasium'}}\n{code}")


BLOCK = """
import sys
import psutil  # chooses its modules by sys.platform
UNIX = {"fcntl", "pwd", "grp", "termios", "tty", "pty", "resource", "syslog", "readline", "curses", "sdnotify"}
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name in UNIX:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)
for name in UNIX:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Blocked())
"""


#: Ray has modules of its own for each system.
ON_RAY = {"launch_on_ray", "stop_on_ray", "_train_on_ray"}


def test_commands_for_people_import_without_unix() -> None:
    """All in one process: which of them needs what is missing stands in the traceback."""
    people = commands().keys() - {"watch", "finish", "rehearse", *ON_RAY}
    assert people >= {"train", "validate", "status", "pull", "export"}
    modules = sorted({"train_cloud.cli"}.union(*(commands()[name] for name in people)))
    run_python(BLOCK + "".join(f"import {name}\n" for name in modules))
