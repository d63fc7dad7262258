"""From ``results.json`` to ``docs/benchmarks.md``. What people say about the figures stands in ``notes.md``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_HEAD = """# Benchmarks

Written by `make bench` and `make bench-large` from [`benchmarks/results.json`](../benchmarks/results.json); do not edit.
`python -m benchmarks --only 4` measures one figure again.

Everything runs on one machine, torch on one thread. What is compared is measured side by side, in blocks that take turns.
A figure is a median (3: a mean) with its 95 % interval by the bootstrap. The limit is applied to the interval's unfavourable
end; where it lies within the interval the noise is larger than the distance to it: *not resolvable*. The worker is the real
one, on a run file; the S3 server is `benchmarks/server.py`, a process of its own on loopback. The environment steps through a
table (`benchmarks/environment.py`, about a microsecond a step), the algorithm is SAC with Stable-Baselines3's defaults
(nets 256×256, batches of 256) where nothing else is said; a checkpoint has 5,000 new rows.
"""
_TITLES = {
    1: "Training time lost per checkpoint, against stock",
    2: "Stall in the training loop, against 3 × a loop that clones each tensor + 1 ms",
    3: "Bytes sent per checkpoint, against 0.6 × the raw new rows + 1.05 × the tensors",
    4: "Notice to committed, against bytes / rate + 2 round trips",
    5: "Restore of a full buffer, against a parallel GET of the same bytes",
    6: "The whole worker's steps/s, against plain `learn()`",
    7: "Process start to first new step, seconds",
    8: "What the checksums of every step take of the training's speed",
    9: "Four runs side by side on two cores, against half of what they take one after the other",
    14: "Steps/s of two ranks on two cores, against one rank's",
}
_HOW = {
    1: "A probe among the run's callbacks times blocks of training: one without a checkpoint, one that begins with it and ends "
    "no earlier than its commit, one without. Lost is what the middle one took longer. In the same process, on the same full "
    "buffer, stock saves: `CheckpointCallback(save_replay_buffer=True)`, then boto3's `upload_file` for each file, to the same "
    "server. The rows between two checkpoints come from stepping without learning. Cycles on a server of each kind take turns. "
    "*Without waits for a core* leaves out what the training thread waited for a core (the kernel's `schedstat`): what other "
    "programs took of a busy machine, but also what the commit's own threads and the server did. It decides nothing.",
    2: "From the rollout's start with a checkpoint to its first step, less what that takes without one; the clone loop runs "
    "right before and after in the same process.",
    3: "All that the server received from one head to the next: parts, segments, manifest, head, scalars, progress, and what "
    "was merged in between.",
    4: "SIGTERM to a worker in training with 5,000 uncommitted rows, until the server answers the head's swap: the rest of "
    "the step, the snapshot and the commit. Beside it what obstore takes for as many bytes and a small object after them. The server shares one line among all connections and answers a round trip after "
    "a request's last byte.",
    5: "Read, verified and put into the model with everything else, against obstore's GET of each object in 8 threads, its "
    "bytes dropped.",
    6: "Two processes count their steps; each is stopped while the other runs. The worker commits every 1,000 (SAC) or 20,480 "
    "(PPO) steps, logs scalars and reports progress, and is kept to AVX2 so that machines of several kinds do the same; plain "
    "`learn()` does none of it.",
    7: "A small run is resumed on a machine that has read all files before. Parts: *imports* of Python, torch and SB3; "
    "*build* of model and environments (what the trial of their state found is known by then); *take* of session and head; *fetch* of the checkpoint.",
    8: "One training, PPO with Stable-Baselines3's defaults, whose rollouts take turns: with the checksums, without, without, "
    "with. Processor time of the training's thread. The figure is the share that the checksums take of a rollout with its "
    "update; beside it how much slower it is than its neighbour without, where the noise of single rollouts is larger.",
    9: "`train-cloud train` of an experiment with `--parallel 2`, and of each of its four run files, one after the other, in turns; "
    "whole commands, from their start to their end, in an empty store on this disk. Forked from one process that has imported "
    "everything, the four pay for that once.",
    14: "`data_parallel: 2` and `data_parallel: 1` in turns, whole trainings on two cores, each rank with an environment of its own, which "
    "keeps a core busy for a millisecond a step. Rollouts and updates of each training but its first.",
}


def document(results: dict[str, Any], notes: Path) -> str:
    """:param results: by command, see ``benchmarks.__main__``"""
    text = [_HEAD]
    for command, result in results.items():
        text.append(_section(command, result))
    if notes.exists():
        text.append(notes.read_text())
    return "\n".join(text)


def _section(command: str, result: dict[str, Any]) -> str:
    figures = result["figures"]
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        f"## `{command}`",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']:.0f} GB; {machine['system']}. {versions}.",
        "",
        "| | figure | setting | measured | 95 % | limit | |",
        "|---|---|---|---|---|---|---|",
    ]
    for figure in figures:
        number, measured = figure["number"], figure["measured"]
        lines.append(
            f"| {number} | {_TITLES[number]} | {figure['setting']} | {_figure(number, measured['value'])} | "
            f"{_figure(number, measured['low'])} … {_figure(number, measured['high'])} | {_limit(figure)} | "
            f"{figure['verdict']} |"
        )
    for number in sorted({figure["number"] for figure in figures}):
        of_it = [figure for figure in figures if figure["number"] == number]
        names = list(dict.fromkeys(name for figure in of_it for name in figure["detail"]))
        whence = dict.fromkeys(f"{figure['date']}, commit `{figure['commit']}`" for figure in of_it)
        load = max(figure["load"] for figure in of_it)
        measured = f"Measured {'; '.join(whence)}; load average up to {load:.1f}, its own processes included."
        lines += ["", f"### {number}. {_TITLES[number]}", "", _HOW[number], "", measured, ""]
        lines += ["| setting | " + " | ".join(names) + " | n |", "|---" * (len(names) + 2) + "|"]
        for figure in of_it:
            cells = [_number(figure["detail"][name]) if name in figure["detail"] else "–" for name in names]
            lines.append(f"| {figure['setting']} | " + " | ".join(cells) + f" | {figure['measured']['count']} |")
    return "\n".join(lines) + "\n"


def _figure(number: int, value: float) -> str:
    if number == 8:
        return f"{value:.2%}".replace("%", " %")
    if number != 1:
        return f"{value:.3f}"
    return f"1/{1 / value:,.0f}" if value > 1e-9 else "0"


def _limit(figure: dict[str, Any]) -> str:
    limit = figure["limit"]
    if limit is None:
        return "–"
    if figure["number"] == 8:
        return f"≤ {100 * limit:g} %"
    return f"{'≥' if figure['at_least'] else '≤'} " + (f"1/{1 / limit:.0f}" if figure["number"] == 1 else f"{limit:g}")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


_GPU_HEAD = """# On a GPU

Written by `python -m benchmarks.gpu take` from [`benchmarks/gpu.json`](../benchmarks/gpu.json); do not edit. Where there is a GPU
and no network, `scripts/gpu.sh OUT` measures all of it in 8 minutes, and `scripts/gpu.sh OUT cuda speed` one part.
"""
_GPU_PARTS = {
    "tests": "`tests/test_cuda.py`: capture, restore and resume of six algorithms on the GPU, from there to the CPU and back; "
    "the GPU's generator; processes that are forked before CUDA begins.",
    "determinism": "A run that is stopped at step 43 and goes on in a new process, against the same run without a stop: networks, "
    "optimizers, buffer, generators. *Deterministic*: with `torch.use_deterministic_algorithms(True)` and "
    "`CUBLAS_WORKSPACE_CONFIG=:4096:8`. *As it comes*: without. Small networks on one machine: another GPU, other libraries or "
    "larger layers may choose other kernels, which is why equality on a GPU is reported and not promised.",
    "consistency": "A snapshot is taken, and two updates set out at once, while it is still being copied to pinned memory by a "
    "stream of its own: it must have the parameters from before them, each time.",
    "stall": "What a snapshot of SAC (nets 256x256) keeps the training waiting, and after how long all of it has arrived in memory, "
    "by where the tensors are.",
    "speed": "Steps a second with an update at each step (PPO: 10 epochs over 2,048), batch 256 (PPO: 64), nets 256x256: stock "
    "Stable-Baselines3, and with a checkpoint every 100 steps. Median of three turns. The CPU has one thread.",
    "precision": "Milliseconds of an update of SAC, batch 256, by width of the two hidden layers. Median of five turns.",
}


def gpu_document(taken: dict[str, Any]) -> str:
    """:param taken: by part, see ``benchmarks.gpu.take``"""
    lines = [_GPU_HEAD]
    if missing := [part for part in _GPU_PARTS if part not in taken]:
        lines += [f"**Not measured on a GPU yet**: {', '.join(missing)}.", ""]
    for part, how in _GPU_PARTS.items():
        if part not in taken:
            continue
        found, machine = taken[part]["found"], taken[part]["machine"]
        values = {name: value for name, value in found.items() if name not in ("seconds", "failed")}
        lines += [f"## {part.capitalize()}", "", how, "", *_gpu_table(values), ""]
        if "failed" in found:
            lines += [f"**Not all of it**: {found['failed']}.", ""]
        software = f"driver {machine['driver']}, torch {machine['torch']}, Python {machine['python']}"
        cpu = f"{machine['cores']} cores of {machine['cpu']}"
        lines += [f"{machine['when'][:10]}: {machine['gpu']}, {software}, stable-baselines3 "
                  f"{machine['stable_baselines3']}; {cpu}.", ""]  # fmt: skip
    return "\n".join(lines)


def _gpu_table(values: dict[str, Any]) -> list[str]:
    """Of figures by setting, of single figures, or of lists of differences."""
    if not values:
        return ["Nothing was found."]
    if not all(isinstance(value, dict) for value in values.values()):
        shown = {
            name: ("; ".join(value[:3]) if value else "equal bit for bit") if isinstance(value, list) else f"{value:,}"
            for name, value in values.items()
        }
        return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in shown.items())]
    columns = list(dict.fromkeys(column for value in values.values() for column in value))
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    return lines + [f"| {name} | " + " | ".join(f"{v[c]:,}" for c in columns) + " |" for name, v in values.items()]
