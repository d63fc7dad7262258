"""What train-cloud does on a GPU, part by part: ``python -m benchmarks.gpu PART --device cuda --out FOLDER``.

``scripts/gpu.sh`` runs them all. Each part writes what it has found so far to ``PART.json``; ``summary`` puts the files
together. A part that finds what it must not find raises. With ``--device cpu`` everything runs too, with less of it:
that tries the program and measures nothing.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import multiprocessing
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
_AT_ONCE = 4
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
    """An interrupted run against the uninterrupted one, as CUDA comes and with deterministic operations alone.

    Found by algorithm: where the two differ (empty: equal bit for bit), or which operation torch refuses.
    """
    _check_comparison()
    names = list(_CASES) if device == "cuda" else list(_CASES)[:2]
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        compared = {
            (name, strict): pool.submit(_differences, device, name, strict)
            for strict in (True, False)
            for name in names
        }
        for (name, strict), future in compared.items():
            how = "deterministic" if strict else "as it comes"
            print(f"{name}, {how}: {future.result()[:3] or 'equal bit for bit'}")
            yield {f"{name}, {how}": future.result()}


def _check_comparison() -> None:
    """A comparison that cannot fail would say nothing."""
    one, other = (_trained("cpu", "td3", False, seed=seed) for seed in (1, 2))
    if one == other:
        raise AssertionError("two seeds gave the same parameters")


def _trained(device: str, name: str, strict: bool, seed: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        state = _stretch(device, name, strict, Path(folder) / "end", seed=seed)["state"]
    arrays = pickle.loads(state).parts["model"].arrays
    return b"".join(array.tobytes() for _, array in sorted(arrays.items()))


def _differences(device: str, name: str, strict: bool) -> list[str]:
    from train_cloud.learn.compare import differences

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        try:
            whole = _stretch(device, name, strict, folder / "whole")
            _stretch(device, name, strict, folder / "first", stop_at=43)
            resumed = _stretch(device, name, strict, folder / "second", begin=folder / "first")
        except RuntimeError as error:
            return [str(error)]
    # A snapshot has the rows since the last one; the whole buffers are compared by their digests.
    states = [replace(pickle.loads(end["state"]), streams={}) for end in (whole, resumed)]
    found = differences(states[0], states[1])
    return found + (["replay buffer"] if whole["buffer"] != resumed["buffer"] else [])


def _stretch(
    device: str,
    name: str,
    strict: bool,
    out: Path,
    *,
    stop_at: int | None = None,
    begin: Path | None = None,
    seed: int | None = None,
) -> Found:
    """A part of a training in a process of its own, as tests/exactness.py makes it.

    :raises RuntimeError: it failed, with the last line that it said
    """
    process = multiprocessing.get_context("spawn").Process(
        target=_stretched, args=(device, name, strict, stop_at, str(begin) if begin else None, str(out), seed)
    )
    process.start()
    process.join(120)
    if process.exitcode is None:
        process.kill()
        process.join()
    if process.exitcode or not out.exists():
        raise RuntimeError(f"the training of {name} ended with {process.exitcode}")
    found: Found = pickle.loads(out.read_bytes())
    if "failed" in found:
        raise RuntimeError(found["failed"].strip().splitlines()[-1][:500])
    return found


def _stretched(
    device: str, name: str, strict: bool, stop_at: int | None, begin: str | None, out: str, seed: int | None
) -> None:
    if strict:
        os.environ[_CUBLAS] = ":4096:8"
    sys.path.insert(0, str(TESTS))
    import exactness
    import torch

    if strict:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    algorithm, world, gsde = _CASES[name]
    case = exactness.Case(algorithm, world, "dummy", False, gsde)
    run = {**case.run(), "device": device, **({"seed": seed} if seed is not None else {})}
    exactness.stretch(run, case.choice(), stop_at, begin, out, "")


# ------------------------------------------------------------------------------------------------------------- speed


class _Nothing:
    """Hosts a ``learn`` that saves nothing, or a checkpoint every so many timesteps that goes nowhere."""

    def __init__(self, total: int, every: int) -> None:
        from train_cloud.learn.digest import Digests

        self.total_timesteps = self.schedule_timesteps = total
        self.save_frequency, self.max_seconds_at_risk, self.evaluate_every, self.restored = every, None, None, None
        self.digests = Digests()
        for name in ("stop_deadline", "settle", "phase", "step", "episode", "stalled", "exactness", "finish"):
            setattr(self, name, lambda *_, **__: None)
        for name in ("save_requested", "busy"):
            setattr(self, name, lambda: False)

    def commit_seconds(self, new_bytes: int) -> float:
        return 0.0

    def outputs(self) -> tuple[()]:
        return ()

    def submit(self, snapshot: Any) -> None:
        for part in snapshot.parts.values():
            dict(part.arrays)  # waits until all have come from the GPU
        for rows in snapshot.streams.values():
            for _, columns in rows.chunks:
                dict(columns)


def _model(algorithm: str, device: str, **more: Any) -> Any:
    import gymnasium
    import stable_baselines3

    kind = getattr(stable_baselines3, algorithm.upper())
    world = "CartPole-v1" if algorithm == "ppo" else "Pendulum-v1"
    given: dict[str, Any] = {} if algorithm == "ppo" else {"learning_starts": 100, "buffer_size": 20_000}
    given["policy_kwargs"] = {"net_arch": [256, 256]}
    return kind("MlpPolicy", gymnasium.make(world), seed=1, device=device, **{**given, **more})


def speed(device: str, out: Path) -> Iterator[Found]:
    """Steps a second of stock Stable-Baselines3 and with checkpoints every 500 steps, on the CPU and on the device."""
    import torch

    torch.set_num_threads(1)
    for algorithm, most in (("sac", 1500), ("td3", 1500), ("ppo", 8192)):
        steps, repeats = (most, 3) if device == "cuda" else (most // 8, 1)
        for where in dict.fromkeys(("cpu", device)):
            rates: dict[str, list[float]] = {"stock": [], "ours": []}
            for _ in range(repeats):
                for kind in rates:
                    rates[kind].append(_rate(algorithm, where, steps, ours=kind == "ours"))
            medians = {kind: round(statistics.median(values), 1) for kind, values in rates.items()}
            print(f"{algorithm} on {where}: {medians} steps/s")
            yield {f"{algorithm} on {where}": medians}


def _rate(algorithm: str, device: str, steps: int, *, ours: bool) -> float:
    from train_cloud.envs.state import Choice
    from train_cloud.learn.callback import learn

    model = _model(algorithm, device)
    model.learn(200)  # warm
    began = time.perf_counter()
    if ours:
        host: Any = _Nothing(steps, 500)
        learn(model, host, [], Choice("pickle", True, "measured elsewhere"))
    else:
        model.learn(steps)
    _synchronize(device)
    done = int(model.num_timesteps)
    model.get_env().close()
    return done / (time.perf_counter() - began)


def _synchronize(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def stall(device: str, out: Path) -> Iterator[Found]:
    """Milliseconds that a snapshot of SAC keeps the training waiting, by the device that its tensors are on."""
    from stable_baselines3.common.callbacks import CallbackList

    from train_cloud.learn.capture import Capture

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

    from train_cloud.learn.capture import Capture

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
    """Milliseconds of an update of SAC in fp32, with TF32 products and under bf16 autocast, by width of the network."""
    import torch

    for width, most in ((256, 40), (2048, 10)) if device == "cuda" else ((64, 5),):
        for kind in ("fp32", "tf32", "bf16"):
            torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
            model = _model("sac", device, policy_kwargs={"net_arch": [width, width]})
            model.learn(130)
            around = torch.autocast(device, torch.bfloat16) if kind == "bf16" else contextlib.nullcontext()
            with around:
                model.train(gradient_steps=5, batch_size=256)
                _synchronize(device)
                began = time.perf_counter()
                model.train(gradient_steps=most, batch_size=256)
                _synchronize(device)
            milliseconds = round(1e3 * (time.perf_counter() - began) / most, 2)
            print(f"{width} wide, {kind}: {milliseconds} ms")
            yield {f"{width} wide, {kind}": milliseconds}
    torch.backends.cuda.matmul.allow_tf32 = False


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
    """``results.json``: every part's findings, or what it ended with."""
    results = {}
    for name in PARTS:
        path = out / f"{name}.json"
        results[name] = json.loads(path.read_text()) if path.exists() else {"failed": "it did not end: see the log"}
    (out / "results.json").write_text(json.dumps(results, indent=1))
    print(json.dumps(results, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=[*PARTS, "summary"])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if given.part == "summary":
        summary(given.out)
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
