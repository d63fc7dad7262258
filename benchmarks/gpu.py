"""What train-cloud does on a GPU, part by part: ``python -m benchmarks.gpu PART --device cuda --out FOLDER``.

``scripts/gpu.sh`` runs them all. Each part writes what it has found so far to ``PART.json``; ``summary`` puts the files
together, and ``take`` puts what passed into ``benchmarks/gpu.json`` and ``docs/gpu.md``. A part that finds what it must
not find raises. With ``--device cpu`` everything runs too, but less of it: that tries the program and measures nothing.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import os
import pickle
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeAlias
from xml.etree import ElementTree

TESTS = Path(__file__).parent.parent / "tests"
ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "gpu.json"
#: Processes: each has CUDA and torch of its own, half a minute of a core in all.
_AT_ONCE = max(2, min(8, (os.cpu_count() or 2) // 2))
#: cuBLAS is deterministic only with a workspace of a fixed size ("cuBLAS: Results Reproducibility").
_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"

Found: TypeAlias = dict[str, Any]


def machine(device: str, out: Path) -> Iterator[Found]:
    """Which GPU, which software; a product and a copy, to see that it works."""
    import torch

    found: Found = {
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
    }
    for package in ("stable_baselines3", "gymnasium", "numpy"):
        found[package] = __import__(package).__version__
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
        found["gpu_gb"] = round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
        found["cuda"] = torch.version.cuda
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found["driver"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    left, right = (torch.randn(512, 512, device=device) for _ in range(2))
    exact = left.double() @ right.double()
    error = float((left @ right - exact).norm() / exact.norm())
    if not error < 1e-5:
        raise AssertionError(f"a product in fp32 has the relative error {error}")
    yield found


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def tests(device: str, out: Path) -> Iterator[Found]:
    """``tests/test_cuda.py``: capture, restore, resume, and from GPU to CPU and back."""
    report = out / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command += ["-n", str(_AT_ONCE), str(TESTS / "test_cuda.py")]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, check=False)
    print(done.stdout[-6000:], done.stderr[-2000:])
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    yield {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    if done.returncode:
        raise AssertionError(f"pytest ended with {done.returncode}")


# ------------------------------------------------------------------------------------------------------- determinism

_CASES = {
    "sac": ("sac", "Pendulum-v1", False),
    "sac, gSDE": ("sac", "Pendulum-v1", True),
    "td3": ("td3", "Pendulum-v1", False),
    "dqn": ("dqn", "CartPole-v1", False),
    "ppo": ("ppo", "CartPole-v1", False),
    "recurrent_ppo": ("recurrent_ppo", "CartPole-v1", False),
    "tqc": ("tqc", "Pendulum-v1", False),
}


def determinism(device: str, out: Path) -> Iterator[Found]:
    """An interrupted run against the uninterrupted one, with deterministic operations alone and as CUDA comes.

    Found by algorithm: where the two differ (empty: equal bit for bit), or which operation torch refuses.
    """
    sys.path[:0] = [str(TESTS), str(TESTS / "support")]
    import exactness

    names = list(_CASES) if device == "cuda" else list(_CASES)[:2]
    cases = {name: exactness.Case(*_CASES[name][:2], "dummy", False, _CASES[name][2]) for name in names}
    # Each training is a process, forked from one that has imported everything and has not touched the GPU.
    with exactness.warm_parent() as context, concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        runs = {name: (context, {**case.run(), "device": device}, case.choice()) for name, case in cases.items()}
        _check_comparison(*runs["sac"])
        compared = {
            (name, strict): pool.submit(_differences, *runs[name], strict) for strict in (True, False) for name in names
        }
        for (name, strict), future in compared.items():
            how = "deterministic" if strict else "as it comes"
            print(f"{name}, {how}: {future.result()[:3] or 'equal bit for bit'}")
            yield {f"{name}, {how}": future.result()}


def _check_comparison(context: Any, run: Found, choice: Any) -> None:
    """A comparison that cannot fail would say nothing."""
    with tempfile.TemporaryDirectory() as folder:
        ends = [_stretch(context, {**run, "seed": seed}, choice, False, Path(folder) / str(seed)) for seed in (1, 2)]
    if not _compared(*ends):
        raise AssertionError("two seeds gave the same parameters")


def _differences(context: Any, run: Found, choice: Any, strict: bool) -> list[str]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        try:
            whole = _stretch(context, run, choice, strict, folder / "whole")
            _stretch(context, run, choice, strict, folder / "first", stop_at=43)
            resumed = _stretch(context, run, choice, strict, folder / "second", begin=folder / "first")
        except RuntimeError as error:
            return [str(error)]
    return _compared(whole, resumed)


def _compared(one: Found, other: Found) -> list[str]:
    from train_cloud.sb3.compare import differences

    # A snapshot has the rows since the last one; the whole buffers are compared by their digests.
    states = [replace(pickle.loads(end["state"]), streams={}) for end in (one, other)]
    return differences(*states) + (["replay buffer"] if one["buffer"] != other["buffer"] else [])


def _stretch(
    context: Any,
    run: Found,
    choice: Any,
    strict: bool,
    out: Path,
    *,
    stop_at: int | None = None,
    begin: Path | None = None,
) -> Found:
    """A part of a training in a process of its own, as tests/exactness.py makes it.

    :raises RuntimeError: it failed, with the last line that it said
    """
    process = context.Process(
        target=_stretched, args=(run, choice, strict, stop_at, str(begin) if begin else None, str(out))
    )
    process.start()
    process.join(120)
    if process.exitcode is None:
        process.kill()
        process.join()
    if process.exitcode or not out.exists():
        raise RuntimeError(f"the training of {run['algorithm']} ended with {process.exitcode}")
    found: Found = pickle.loads(out.read_bytes())
    if "failed" in found:
        raise RuntimeError(found["failed"].strip().splitlines()[-1][:500])
    return found


def _stretched(run: Found, choice: Any, strict: bool, stop_at: int | None, begin: str | None, out: str) -> None:
    if strict:
        os.environ[_CUBLAS] = ":4096:8"
    sys.path[:0] = [str(TESTS), str(TESTS / "support")]
    import exactness
    import torch

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise AssertionError("CUDA was begun before the settings were made")
    if strict:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    exactness.stretch(run, choice, stop_at, begin, out, "")


# ------------------------------------------------------------------------------------------------------------- speed


def _host(total: int, every: int) -> Any:
    """Hosts a ``learn`` whose checkpoints are copied from the GPU every so many timesteps, and go nowhere."""
    from train_cloud.sb3.callback import IdleHost

    class Copying(IdleHost):
        save_frequency = every

        def submit(self, snapshot: Any) -> None:
            for part in snapshot.parts.values():
                dict(part.arrays)  # waits until all have come from the GPU
            for rows in snapshot.streams.values():
                for _, columns in rows.chunks:
                    dict(columns)

        def finish(self, snapshot: Any) -> bool:
            """The end is no checkpoint here."""
            return False

    return Copying(total)


def _model(algorithm: str, device: str, **more: Any) -> Any:
    import gymnasium
    import stable_baselines3

    kind = getattr(stable_baselines3, algorithm.upper())
    world = "CartPole-v1" if algorithm in ("ppo", "dqn") else "Pendulum-v1"
    given: dict[str, Any] = {} if algorithm == "ppo" else {"learning_starts": 100, "buffer_size": 20_000}
    if algorithm == "dqn":
        given |= {"train_freq": 1, "batch_size": 256}  # an update at each step, as SAC and TD3 have them
    given["policy_kwargs"] = {"net_arch": [256, 256]}
    return kind("MlpPolicy", gymnasium.make(world), seed=1, device=device, **{**given, **more})


def speed(device: str, out: Path) -> Iterator[Found]:
    """Steps a second of stock Stable-Baselines3, and with a checkpoint every 100 steps that goes nowhere, in turns, on
    the device and on one core.
    """
    import torch

    torch.set_num_threads(1)
    for algorithm, most in (("sac", 200), ("td3", 200), ("dqn", 500), ("ppo", 2048)):
        steps, repeats = (most, 3) if device == "cuda" else (most // 3, 1)
        for where in dict.fromkeys((device, "cpu")):
            rates: dict[str, list[float]] = {"stock": [], "ours": []}
            for _ in range(repeats):
                for kind in rates:
                    rates[kind].append(_rate(algorithm, where, steps, ours=kind == "ours"))
            medians = {kind: round(statistics.median(values), 1) for kind, values in rates.items()}
            print(f"{algorithm} on {where}: {medians} steps/s")
            yield {f"{algorithm} on {where}": medians}


def _rate(algorithm: str, device: str, steps: int, *, ours: bool) -> float:
    from train_cloud.envs.trial import Choice
    from train_cloud.sb3.callback import learn

    model = _model(algorithm, device)
    model.learn(130)  # warm, and with enough in the buffer for an update at each step from now on
    model.learning_starts = 0
    _synchronize(device)
    began = time.perf_counter()
    if ours:
        host = _host(steps, 100)
        learn(model, host, [], Choice("pickle", True, "measured elsewhere"))
    else:
        model.learn(steps)
    _synchronize(device)
    seconds = time.perf_counter() - began
    done = int(model.num_timesteps)
    model.get_env().close()
    return done / seconds


def _synchronize(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def stall(device: str, out: Path) -> Iterator[Found]:
    """Milliseconds that a snapshot of SAC keeps the training waiting, by the device that its tensors are on."""
    from stable_baselines3.common.callbacks import CallbackList

    from train_cloud.sb3.capture import Capture

    for where in dict.fromkeys(("cpu", device)):
        model = _model("sac", where)
        root = CallbackList([])
        model.learn(300, callback=root)
        capture = Capture(model, root, None, lambda env: "pickle")
        taken, arrived = [], []
        for _ in range(60):
            model.train(gradient_steps=1, batch_size=256)
            _synchronize(where)
            began = time.perf_counter()
            snapshot = capture.snapshot(model.replay_buffer.pos)
            taken.append(1e3 * (time.perf_counter() - began))
            for part in snapshot.parts.values():
                dict(part.arrays)
            arrived.append(1e3 * (time.perf_counter() - began))
        found = {
            "stall_ms": round(statistics.median(taken[10:]), 2),
            "stall_ms_p90": round(statistics.quantiles(taken[10:], n=10)[-1], 2),
            "arrived_ms": round(statistics.median(arrived[10:]), 2),
        }
        print(f"snapshot of SAC on {where}: {found}")
        yield {where: found}


def consistency(device: str, out: Path) -> Iterator[Found]:
    """A snapshot is of the moment it was taken at, although the training goes on while it is copied from the GPU."""
    import numpy as np
    from stable_baselines3.common.callbacks import CallbackList

    from train_cloud.sb3.capture import Capture

    width, count = (2048, 20) if device == "cuda" else (256, 5)
    model = _model("sac", device, policy_kwargs={"net_arch": [width, width]})
    root = CallbackList([])
    model.learn(120, callback=root)
    capture = Capture(model, root, None, lambda env: "pickle")
    changed = 0
    for _ in range(count):
        state = model.policy.state_dict()
        before = {name: tensor.detach().cpu().numpy().copy() for name, tensor in state.items()}
        snapshot = capture.snapshot(model.replay_buffer.pos)
        model.train(gradient_steps=2, batch_size=256)  # at once, with nothing waited for
        arrays = snapshot.parts["model"].arrays
        for name, value in before.items():
            if not np.array_equal(arrays[f"policy|{name}"], value):
                raise AssertionError(f"the snapshot's {name} is not what it was when the snapshot was taken")
        after = model.policy.state_dict()
        changed += any(not np.array_equal(before[name], after[name].detach().cpu().numpy()) for name in before)
    if changed != count:
        raise AssertionError("the updates changed nothing: this has shown nothing")
    yield {"snapshots": count, "parameters_mb": round(sum(v.nbytes for v in before.values()) / 1e6, 1)}


def precision(device: str, out: Path) -> Iterator[Found]:
    """Milliseconds of an update of SAC, batch 256, by width of the networks: in fp32, with deterministic operations
    alone, with TF32 products, and under bf16 autocast. They take turns; a figure is the median of the turns.
    """
    os.environ[_CUBLAS] = ":4096:8"  # for all, as it has to be set before the first product
    import torch

    wide, turns = ((256, 20), (2048, 10)) if device == "cuda" else ((64, 3),), 5 if device == "cuda" else 1
    for width, updates in wide:
        model = _model("sac", device, policy_kwargs={"net_arch": [width, width]})
        model.learn(130)
        seconds: dict[str, list[float]] = {"fp32": [], "deterministic": [], "tf32": [], "bf16": []}
        for _ in range(turns):
            for kind, taken in seconds.items():
                torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
                torch.use_deterministic_algorithms(kind == "deterministic")
                with torch.autocast(device, torch.bfloat16) if kind == "bf16" else contextlib.nullcontext():
                    model.train(gradient_steps=5, batch_size=256)  # the first ones choose kernels
                    _synchronize(device)
                    began = time.perf_counter()
                    model.train(gradient_steps=updates, batch_size=256)
                    _synchronize(device)
                taken.append((time.perf_counter() - began) / updates)
        found = {kind: round(1e3 * statistics.median(taken), 2) for kind, taken in seconds.items()}
        print(f"{width} wide: {found} ms")
        yield {f"{width} wide": found}


PARTS: dict[str, Callable[[str, Path], Iterator[Found]]] = {
    "machine": machine,
    "tests": tests,
    "determinism": determinism,
    "consistency": consistency,
    "stall": stall,
    "speed": speed,
    "precision": precision,
}


def summary(out: Path) -> None:
    """``results.json``: the findings of every part that was asked for, or what it ended with."""
    results = {name: json.loads(path.read_text()) for name in PARTS if (path := out / f"{name}.json").exists()}
    (out / "results.json").write_text(json.dumps(results, indent=1))
    print(json.dumps(results, indent=1))


def take(out: Path) -> None:
    """What ``out`` has found becomes what the documents say: each part with the machine and the day it is from.

    A part that failed does not take the place of one that passed.

    :raises AssertionError: it was not measured on a GPU
    """
    from benchmarks.document import gpu_document

    found = json.loads((out / "results.json").read_text())
    assert "gpu" in found.get("machine", {}), "these are no figures of a GPU"
    taken = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    machine = {name: value for name, value in found["machine"].items() if name != "seconds"}
    for part, values in found.items():
        if part != "machine" and ("failed" not in values or "failed" in taken.get(part, {"failed": ""})):
            taken[part] = {"found": values, "machine": machine} | ({"failed": True} if "failed" in values else {})
    RESULTS.write_text(json.dumps(taken, indent=1) + "\n")
    (ROOT / "docs" / "gpu.md").write_text(gpu_document(taken))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=[*PARTS, "summary", "take"])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if given.part in ("summary", "take"):
        {"summary": summary, "take": take}[given.part](given.out)
        return
    began, path, found = time.monotonic(), given.out / f"{given.part}.json", Found()
    path.write_text(json.dumps({"failed": "it ran out of time before it had found anything"}))
    try:
        for more in PARTS[given.part](given.device, given.out):
            found |= more
            path.write_text(json.dumps({**found, "failed": "it ran out of time after this"}))
    except BaseException as error:
        path.write_text(json.dumps({**found, "failed": f"{type(error).__name__}: {error}"}))
        raise
    path.write_text(json.dumps({**found, "seconds": round(time.monotonic() - began, 1)}))


if __name__ == "__main__":
    main()
