"""train-cloud compare: really trained runs, and runs that nobody has trained, where statistics are at stake."""

from __future__ import annotations

import csv
import html as entities
import json
import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricated import fabricate
from ruamel.yaml import YAML
from test_html_report import _Loads, chromium

from train_cloud.cli import main
from train_cloud.config import load_experiment
from train_cloud.errors import InputError
from train_cloud.evaluate.results import Evaluation
from train_cloud.experiments.comparison.analysis import compare
from train_cloud.experiments.comparison.compare import compare_experiment, write_comparison
from train_cloud.experiments.comparison.decision import Samples, decide
from train_cloud.experiments.comparison.page import headline
from train_cloud.experiments.comparison.records import Planned, Run, grouped, planned, read
from train_cloud.experiments.comparison.result import Comparison, Level
from train_cloud.operations.cancel import cancel
from train_cloud.operations.train import train

BASE: dict[str, Any] = {
    "run_id": "base",
    "algorithm": "a2c",
    "device": "cpu",
    "total_timesteps": 600,
    "save_frequency": 300,
    "environment": {"id": "CartPole-v1"},
    "hyperparameters": {"policy_kwargs": {"net_arch": [8]}},
    "evaluation": {
        "every": 300,
        "episodes": 2,
        "max_steps": 60,
        "success": "length >= 30",
        "categories": {"short": {}, "long": {"seeds": [7, 8]}},
    },
}


def experiment_file(folder: Path, vary: Mapping[str, Any], seeds: list[int], **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    YAML().dump(BASE, folder / "base.yaml")
    path = folder / "experiment.yaml"
    YAML().dump({"experiment": "sizes", "base": "base.yaml", "vary": vary, "seeds": seeds, **more}, path)
    return path


NETWORKS = {"network": {"small": {}, "wide": {"hyperparameters": {"policy_kwargs": {"net_arch": [32, 32]}}}}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Experiment file and store: two networks with three seeds each. One run of each is trained here; a second one of
    the small network has failed, of the wide one it is being trained; the others are not there.
    """
    folder = tmp_path_factory.mktemp("trained")
    criteria = {
        "success_rate": 2,
        "inference_ms": 1,
        "parameters": 1,
        "train/entropy_loss": {"weight": 1, "direction": "larger"},
    }
    path = experiment_file(folder, NETWORKS, [1, 2, 3], compare={"criteria": criteria, "repetitions": 500})
    store = folder / "store"
    returns = {300: {"short": [1.0], "long": [1.0]}}
    fabricate(store, "sizes-small-s2", returns, outcome="failed", reason="it diverged")
    fabricate(store, "sizes-wide-s2", returns, outcome=None)
    for name, network in NETWORKS["network"].items():
        run_file = folder / f"{name}.yaml"
        values = {**BASE, "run_id": f"sizes-{name}-s1", "seed": 1, "experiment": "sizes", **network}
        YAML().dump(values, run_file)
        assert train(run_file, store=str(store), state_dir=folder / "state" / name) == 0
    return path, store


@pytest.fixture(scope="module")
def compared(trained: tuple[Path, Path]) -> Comparison:
    return compare_experiment(str(trained[1]), trained[0])


def level(found: Comparison, name: str) -> Level:
    return next(each for each in found.levels if each.name == name)


def test_every_run_is_there_whatever_became_of_it(compared: Comparison) -> None:
    states = {run.run_id: (run.state, run.counted) for run in compared.runs}
    assert states == {
        "sizes-small-s1": ("completed", True),
        "sizes-small-s2": ("failed", False),
        "sizes-small-s3": ("missing", False),
        "sizes-wide-s1": ("completed", True),
        "sizes-wide-s2": ("running", False),
        "sizes-wide-s3": ("missing", False),
    }
    reasons = {run.run_id: run.because for run in compared.runs}
    assert reasons["sizes-small-s2"] == "it diverged" and reasons["sizes-wide-s2"] == "still training"
    notes = "\n".join(compared.notes)
    assert "small: 1 of 3 runs count; not among them: sizes-small-s2 (failed), sizes-small-s3 (missing)" in notes


def test_fewer_than_three_runs_name_no_winner(compared: Comparison) -> None:
    assert compared.verdict.winner is None and compared.verdict.provisional
    assert "fewer than 3 evaluated runs of small, wide" in compared.verdict.because


def test_what_is_known_of_trained_runs(compared: Comparison) -> None:
    assert (compared.metric, compared.categories, compared.cost) == ("success_rate", ("short", "long"), "hours")
    small, wide = level(compared, "small"), level(compared, "wide")
    # CartPole has 4 numbers to see and 2 actions; policy and value function have a network each.
    assert small.parameters == 2 * (4 * 8 + 8) + (8 * 2 + 2) + (8 + 1)
    assert wide.parameters == 2 * (4 * 32 + 32 + 32 * 32 + 32) + (32 * 2 + 2) + (32 + 1)
    for each in (small, wide):
        assert each.latency is not None and 0 < each.latency.p50 <= each.latency.p99 and each.latency.calls >= 75
        assert (
            each.costs["steps_per_second"].value > 0 and each.costs["hours"].value > 0 and "dollars" not in each.costs
        )
        assert each.over_timesteps is not None and list(each.over_timesteps.at) == [300, 600]
        assert each.over_cost is not None and len(each.over_cost.at) >= 2
    matrix = compared.matrix
    assert matrix is not None and set(matrix.weights) == {
        "success_rate",
        "inference_ms",
        "parameters",
        "train/entropy_loss",
    }
    assert matrix.entries["parameters"]["small"].utility == 1 and matrix.entries["parameters"]["small"].separable
    assert matrix.entries["train/entropy_loss"]["small"].value < 0


def test_the_same_runs_without_a_file(trained: tuple[Path, Path], compared: Comparison) -> None:
    plan = grouped("sizes", str(trained[1]))
    assert [(run.run_id, run.levels, run.seed) for run in plan.runs] == [
        ("sizes-small-s1", {"run": "sizes-small"}, 1),
        ("sizes-wide-s1", {"run": "sizes-wide"}, 1),
    ]
    found = compare_experiment(str(trained[1]), "sizes", metric="success_rate", latency=False)
    assert [each.name for each in found.levels] == [f"sizes-{each.name}" for each in compared.levels]
    assert level(found, "sizes-small").metric["mean"].value == level(compared, "small").metric["mean"].value
    assert not found.effects and found.matrix is None


def test_the_command_writes_a_page_pictures_and_tables(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, store = trained
    arguments = ["compare", str(path), "--store", str(store), "--no-latency"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert (
        "So far: No winner" in said
        and "sizes-wide-s3 (missing)" in said
        and str(tmp_path / "out" / "index.html") in said
    )
    assert main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"]["winner"] is None and len(told["runs"]) == 6 and told["levels"][0]["latency"] is None
    written = {each.name for each in (tmp_path / "out").iterdir()}
    assert {
        "index.html",
        "comparison.json",
        "runs.csv",
        "levels.csv",
        "pairs.csv",
        "curves.csv",
        "profiles.csv",
    } <= written
    assert {
        "aggregates.png",
        "learning-curves.png",
        "curves-over-hours.png",
        "profiles.png",
        "categories.png",
    } <= written
    rows = list(csv.DictReader((tmp_path / "out" / "runs.csv").open()))
    assert len(rows) == 6 and {row["state"] for row in rows} == {"completed", "failed", "missing", "running"}
    evaluations = list(csv.DictReader((tmp_path / "out" / "evaluations.csv").open()))
    assert {row["run_id"] for row in evaluations if row["counted"] == "False"} == {"sizes-small-s2", "sizes-wide-s2"}
    assert {row["category"] for row in evaluations} == {"short", "long"} and len(evaluations) == 2 * (2 * 2 + 2)
    assert "runs that do not count" in (tmp_path / "out" / "index.html").read_text()
    assert main(["compare", "--experiment", "sizes", "--store", str(store), "--no-latency", "--json"]) == 0


# ----------------------------------------------------------------------------------------- runs nobody has trained

FACTORS = {
    "architecture": {"mlp_baseline": {}, "gat": {"hyperparameters.gamma": 0.98}},
    "pretraining": {"no_pretrain": {}, "with_pretrain": {"hyperparameters.n_steps": 7}},
}


def invented(folder: Path, seeds: int = 5, value: Callable[[str, str, int], float] | None = None) -> tuple[Path, Path]:
    """Two architectures with and without pretraining, evaluated five times in two categories."""
    settings = {
        "metric": "mean_return",
        "criteria": {"mean_return": 3, "dollars": 1, "steps_per_second": 1},
        "repetitions": 1000,
    }
    path = experiment_file(folder, FACTORS, list(range(1, seeds + 1)), compare=settings)
    generator = np.random.default_rng(3)
    for cell in load_experiment(path).cells:
        gat, with_pretrain = cell.levels["architecture"] == "gat", cell.levels["pretraining"] == "with_pretrain"
        end = 0.3 + 0.3 * gat + 0.2 * with_pretrain + generator.normal(0, 0.02)
        if value is not None:
            end = value(cell.levels["architecture"], cell.levels["pretraining"], cell.seed)
        evaluations = {
            at: {
                "easy": [end * at / 5000 + 0.01 * episode for episode in range(3)],
                "hard": [0.8 * end * at / 5000] * 3,
            }
            for at in range(1000, 5001, 1000)
        }
        fabricate(
            folder / "store",
            cell.run_id,
            evaluations,
            run_file={"pretraining": {"demonstrations": "x"}} if with_pretrain else {},
            speed=100.0 if gat else 400.0,
            hours=2.0 if gat else 1.0,
        )
    return path, folder / "store"


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    """The comparison, and the folder that it was written to."""
    folder = tmp_path_factory.mktemp("four")
    path, store = invented(folder)
    found = compare_experiment(str(store), path, latency=False)
    write_comparison(found, folder / "out", str(store))
    return found, folder / "out"


def test_a_level_that_is_better_wins(four: tuple[Comparison, Path]) -> None:
    found, _ = four
    assert found.verdict.winner == "gat · with_pretrain" and not found.verdict.provisional
    assert max(found.verdict.probabilities.values()) <= found.verdict.level
    assert found.verdict.level == pytest.approx(0.0125)
    first, last = found.pairs[0], found.levels[-1]
    assert last.name == "mlp_baseline · no_pretrain"
    assert first.one == "gat · with_pretrain" and first.improvement.value > 0.9 and len(first.by_seed) == 5
    assert first.difference is not None and first.difference.value > 0 and first.p is not None and first.p < 0.05


def test_factors_are_told_apart_seed_by_seed(four: tuple[Comparison, Path]) -> None:
    effects = {effect.factor: effect for effect in four[0].effects}
    architecture, pretraining = effects["architecture"], effects["pretraining"]
    assert pretraining.pretraining and not architecture.pretraining
    assert architecture.overall is not None and architecture.overall.value == pytest.approx(0.27, abs=0.03)
    assert pretraining.overall is not None and pretraining.overall.value == pytest.approx(0.18, abs=0.03)
    assert set(pretraining.within) == {"mlp_baseline", "gat"} and pretraining.seeds == 5
    assert pretraining.p is not None and pretraining.p < 0.01


def test_costs_and_curves(four: tuple[Comparison, Path]) -> None:
    found, _ = four
    assert found.cost == "dollars"
    gat = level(found, "gat · no_pretrain")
    assert gat.costs["dollars"].value == pytest.approx(4.0, rel=0.01) and gat.costs["hours"].value == pytest.approx(
        2, rel=0.01
    )
    assert gat.over_timesteps is not None and list(gat.over_timesteps.at) == [1000, 2000, 3000, 4000, 5000]
    assert gat.over_cost is not None
    assert gat.over_cost.at == pytest.approx([0.8, 1.6, 2.4, 3.2, 4.0], rel=0.02)
    assert gat.over_cost.value[-1] == pytest.approx(gat.metric["iqm"].value, rel=0.02)
    assert gat.profile is not None and gat.profile.value[0] > 0.9 and gat.profile.value[-1] == 0


def test_the_decision_follows_the_weights(four: tuple[Comparison, Path]) -> None:
    matrix = four[0].matrix
    assert matrix is not None and matrix.weights == {"mean_return": 0.6, "dollars": 0.2, "steps_per_second": 0.2}
    assert matrix.directions == {"mean_return": "larger", "dollars": "smaller", "steps_per_second": "larger"}
    assert matrix.entries["dollars"]["gat · no_pretrain"].utility == pytest.approx(0, abs=0.01)
    tie = matrix.entries["steps_per_second"]
    assert not tie["mlp_baseline · no_pretrain"].separable and tie["gat · no_pretrain"].separable
    assert len(matrix.changes) == 6 and matrix.totals[0].level == "mlp_baseline · with_pretrain"
    changes = {(change.criterion, change.factor): change for change in matrix.changes}
    assert changes["mean_return", 1.5].first == "gat · with_pretrain" and changes["mean_return", 1.5].differs
    assert not changes["mean_return", 0.5].differs


def test_overlapping_totals_are_not_separable() -> None:
    generator = np.random.default_rng(0)
    drawn = {name: generator.normal(at, 0.1, 1000) for name, at in {"a": 1.0, "b": 1.05, "c": 3.0}.items()}
    samples = {"return": {name: Samples(float(each.mean()), each) for name, each in drawn.items()}}
    weights, directions = {"return": 1.0}, {"return": "smaller"}
    found = decide(samples, weights=weights, directions=directions, confidence=0.95)  # type: ignore[arg-type]
    told = {total.level: total.separable for total in found.totals}
    assert [total.level for total in found.totals] == ["a", "b", "c"] and told == {"a": False, "b": False, "c": True}
    assert found.entries["return"]["a"].utility == 1 and found.entries["return"]["c"].utility == 0 and not found.changes


@pytest.mark.parametrize("metric", ["collisions", "success_rate"])
def test_a_metric_that_no_evaluation_tells_is_refused(tmp_path: Path, metric: str) -> None:
    path = experiment_file(tmp_path, NETWORKS, [1])
    for name in ("small", "wide"):
        fabricate(tmp_path / "store", f"sizes-{name}-s1", {10: {"easy": [1.0]}}, solved=None)
    assert compare_experiment(str(tmp_path / "store"), path, latency=False).metric == "mean_return"
    with pytest.raises(InputError, match=f"compare.metric: '{metric}': no category has it for every run"):
        compare_experiment(str(tmp_path / "store"), path, metric=metric, latency=False)


def test_categories_and_runs_that_a_level_lacks_are_said(tmp_path: Path) -> None:
    path = experiment_file(tmp_path, NETWORKS, [1, 2])
    for seed in (1, 2):
        fabricate(tmp_path / "store", f"sizes-small-s{seed}", {10: {"easy": [1.0], "hard": [0.0]}})
    fabricate(tmp_path / "store", "sizes-wide-s1", {10: {"easy": [1.0]}, 5: {"easy": [0.0]}})
    fabricate(tmp_path / "store", "sizes-old-s1", {10: {"easy": [1.0]}})
    found = compare_experiment(str(tmp_path / "store"), path, latency=False)
    notes = "\n".join(found.notes)
    assert found.categories == ("easy",) and "hard (lacking: sizes-wide-s1)" in notes
    assert "sizes-old-s1. They do not count" in notes and "others, which have 2: wide (1)" in notes


def test_what_is_damaged_is_that_runs_trouble_alone(tmp_path: Path) -> None:
    """A head that is none, an evaluation that cannot be read, a run without any."""
    path = experiment_file(tmp_path, NETWORKS, [1, 2, 3, 4])
    store = tmp_path / "store"
    for name in ("small", "wide"):
        for seed in (1, 2, 3, 4):
            fabricate(store, f"sizes-{name}-s{seed}", {10: {"easy": [1.0 * seed]}, 20: {"easy": [2.0 * seed]}})
    runs = store / "runs"
    (runs / "sizes-small-s2" / "head.json").write_text("{")
    (runs / "sizes-wide-s1" / "evaluations" / "000000000020.json").write_text('{"broken')
    shutil.rmtree(runs / "sizes-wide-s2" / "evaluations")
    found = compare_experiment(str(store), path, metric="mean_return", latency=False)
    reasons = {run.run_id: run.because for run in found.runs if not run.counted}
    assert set(reasons) == {"sizes-small-s2", "sizes-wide-s2"}
    assert "is not a head, or damaged" in str(reasons["sizes-small-s2"])
    assert reasons["sizes-wide-s2"] == "it has no evaluation"
    assert found.categories == ("easy",) and found.verdict.winner is None
    assert "at which the evaluation is missing" in "\n".join(found.notes)


def test_a_return_that_is_not_finite_is_no_result(tmp_path: Path) -> None:
    path = experiment_file(tmp_path, NETWORKS, [1, 2])
    for cell in load_experiment(path).cells:
        fabricate(tmp_path / "store", cell.run_id, {10: {"easy": [1.0]}})
    runs = read(planned(load_experiment(path), str(tmp_path)), str(tmp_path / "store"))
    last = runs[0].evaluations[-1]
    assert isinstance(last, Evaluation)
    lost = last.model_copy(deep=True)
    summary = lost.categories["easy"]
    summary = summary.model_copy(update={"returns": summary.returns.model_copy(update={"mean": float("nan")})})
    runs[0] = replace(runs[0], evaluations=(lost.model_copy(update={"categories": {"easy": summary}}),))
    plan = planned(load_experiment(path), str(tmp_path))
    found = compare(replace(plan, settings=plan.settings.model_copy(update={"metric": "mean_return"})), runs, made="")
    assert [run.counted for run in found.runs] == [False, True, True, True]
    assert found.runs[0].because == "its last evaluation has no mean return, or one that is not finite"


def test_different_lengths_and_stopped_runs_are_said(tmp_path: Path) -> None:
    path = experiment_file(tmp_path, NETWORKS, [1])
    fabricate(tmp_path / "store", "sizes-small-s1", {500: {"easy": [1.0]}}, outcome="stopped", reason="limits.dollars")
    fabricate(tmp_path / "store", "sizes-wide-s1", {1000: {"easy": [1.0]}}, priced=False)
    found = compare_experiment(str(tmp_path / "store"), path, latency=False)
    notes = "\n".join(found.notes)
    assert "different timesteps, 500 to 1,000" in notes and found.cost == "hours" and "No price" in notes
    assert found.runs[0].counted and found.runs[0].because == "stopped early: limits.dollars"


@pytest.mark.parametrize(
    ("at", "evaluated", "small", "wide"),
    [(None, [500, 1040], 1.0, 8.0), ("common", [500, 510], 1.0, 2.0), (1000, [500, 1040], 1.0, 8.0)],
)
def test_levels_of_different_lengths_are_compared_where_one_says(
    tmp_path: Path, at: Any, evaluated: list[int], small: float, wide: float
) -> None:
    """An evaluation is that of the first consistent point after the same timesteps, so a little later is the same."""
    path = experiment_file(tmp_path, NETWORKS, [1], compare={"metric": "mean_return", "timesteps": at})
    fabricate(tmp_path / "store", "sizes-small-s1", {250: {"easy": [0.5]}, 500: {"easy": [1.0]}})
    fabricate(tmp_path / "store", "sizes-wide-s1", {510: {"easy": [2.0]}, 1040: {"easy": [8.0]}})
    found = compare_experiment(str(tmp_path / "store"), path, latency=False)
    assert [run.evaluated_at for run in found.runs] == evaluated
    assert [level(found, name).metric["iqm"].value for name in ("small", "wide")] == [small, wide]
    notes = "\n".join(found.notes)
    assert found.at == (500 if at == "common" else at)
    assert ("--set compare.timesteps=common" in notes) == (evaluated[1] > 1000)
    assert ("Compared at" in notes) == (at is not None)
    dollars = found.runs[1].dollars
    assert dollars is not None and dollars == pytest.approx(2.0 * (510 / 1040 if at == "common" else 1.0), rel=0.01)


def test_what_has_no_evaluation_by_then_does_not_count(tmp_path: Path) -> None:
    path = experiment_file(tmp_path, NETWORKS, [1], compare={"metric": "mean_return", "timesteps": 300})
    fabricate(tmp_path / "store", "sizes-small-s1", {250: {"easy": [0.5]}, 500: {"easy": [1.0]}})
    fabricate(tmp_path / "store", "sizes-wide-s1", {510: {"easy": [2.0]}})
    found = compare_experiment(str(tmp_path / "store"), path, latency=False)
    assert [(run.counted, run.because) for run in found.runs] == [
        (True, None),
        (False, "it has no evaluation by 300 timesteps"),
    ]


def test_runs_that_were_evaluated_or_trained_otherwise_are_named(tmp_path: Path) -> None:
    path = experiment_file(tmp_path, NETWORKS, [1, 2])
    for cell in load_experiment(path).cells:
        returns = [1.0, 2.0] if cell.run_id != "sizes-wide-s2" else [1.0]
        fabricate(tmp_path / "store", cell.run_id, {10: {"easy": returns}})
    plan = planned(load_experiment(path), str(tmp_path / "store"))
    runs = [replace(run, code="b" if run.planned.seed == 2 else "a") for run in read(plan, str(tmp_path / "store"))]
    runs[1] = replace(runs[1], code="a")
    found = compare(plan, runs, made="")
    alike = "sizes-wide-s2 otherwise than sizes-small-s1, sizes-small-s2, sizes-wide-s1."
    assert f"Not all runs were trained with the same code (code.folder): {alike}" in found.notes
    assert f"Not all runs were evaluated alike (episodes, their seeds, deterministic): {alike}" in found.notes


def test_what_is_exactly_equal_or_has_failed_has_no_winner(tmp_path: Path) -> None:
    """Factors that are called as columns are, and a reason that a spreadsheet would compute."""
    vary = {"state": {"one": {}, "two": {"hyperparameters.gamma": 0.9}}}
    # Not by hours too: those of a session made just now have fractions of real seconds in them.
    path = experiment_file(tmp_path, vary, [1, 2, 3], compare={"criteria": {"mean_return": 1, "success_rate": 1}})
    for cell in load_experiment(path).cells:
        fabricate(tmp_path / "equal", cell.run_id, {10: {"easy": [1.0]}})
        fabricate(tmp_path / "failed", cell.run_id, {}, outcome="failed", reason="=1+1")
    equal, failed = (compare_experiment(str(tmp_path / name), path, latency=False) for name in ("equal", "failed"))
    assert equal.verdict.winner is None and equal.pairs[0].improvement.value == 0.5 and equal.pairs[0].p == 1.0
    assert equal.matrix is not None and not any(total.separable for total in equal.matrix.totals)
    assert failed.verdict.winner is None and failed.verdict.leading is None
    assert headline(equal) == "No winner; 2 levels have the same interquartile mean"
    assert headline(failed) == "No winner"
    for found, name in ((equal, "equal"), (failed, "failed")):
        write_comparison(found, tmp_path / "page" / name, "")
        rows = list(csv.DictReader((tmp_path / "page" / name / "runs.csv").open()))
        assert [(row["factor state"], row["state"]) for row in rows[::3]] == [
            (each, "completed" if name == "equal" else "failed") for each in ("one", "two")
        ]
        assert {row["because"] for row in rows} == ({""} if name == "equal" else {"'=1+1"})


@pytest.mark.parametrize("vary", [{}, {"network": {"small": {}}}])
def test_one_level_alone_has_nothing_to_win(tmp_path: Path, vary: Mapping[str, Any]) -> None:
    path = experiment_file(tmp_path, vary, [1, 2, 3])
    for cell in load_experiment(path).cells:
        fabricate(tmp_path / "store", cell.run_id, {10: {"easy": [1.0, 0.0]}})
    found = compare_experiment(str(tmp_path / "store"), path, latency=False)
    assert found.verdict.winner is None and "nothing to compare" in found.verdict.because
    assert found.levels[0].counted == 3 and not found.pairs and not found.effects
    assert any("No curve of" in note for note in found.notes)
    assert write_comparison(found, tmp_path / "out", "").exists()


def test_a_store_of_either_kind(store_root: str, tmp_path: Path) -> None:
    path = experiment_file(tmp_path, NETWORKS, [1])
    for name in ("small", "wide"):
        fabricate(store_root, f"sizes-{name}-s1", {10: {"easy": [1.0]}, 20: {"easy": [2.0]}}, folder=tmp_path)
    cancel(store_root, "sizes-small-s1")
    fabricate(store_root, "sizes-old-s1", {10: {"easy": [1.0]}}, outcome=None, folder=tmp_path)
    found = compare_experiment(store_root, path, latency=False)
    assert [run.state for run in found.runs] == ["completed", "completed"] and "sizes-old-s1" in found.notes[0]


def test_a_cancelled_run_does_not_count(tmp_path: Path) -> None:
    path = experiment_file(tmp_path, NETWORKS, [1])
    fabricate(tmp_path / "store", "sizes-small-s1", {10: {"easy": [1.0]}}, outcome=None)
    cancel(str(tmp_path / "store"), "sizes-small-s1")
    fabricate(tmp_path / "store", "sizes-wide-s1", {10: {"easy": [1.0]}})
    found = compare_experiment(str(tmp_path / "store"), path, latency=False)
    assert [(run.state, run.counted) for run in found.runs] == [("cancelled", False), ("completed", True)]
    assert found.verdict.leading == "wide" and found.verdict.winner is None and not found.verdict.provisional


def test_nothing_trained_yet_is_a_comparison_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = experiment_file(tmp_path, NETWORKS, [1, 2, 3])
    (tmp_path / "store" / "runs").mkdir(parents=True)
    assert main(["compare", str(path), "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]) == 0
    assert "no run has been evaluated" in capsys.readouterr().out.lower()
    assert "missing" in (tmp_path / "out" / "index.html").read_text()


def test_normalised_scores(tmp_path: Path) -> None:
    settings = {"metric": "mean_return", "normalise": {"easy": [1, 3], "hard": [-10, 0]}}
    path = experiment_file(tmp_path, NETWORKS, [1], compare=settings)
    for name in ("small", "wide"):
        fabricate(tmp_path / "store", f"sizes-{name}-s1", {10: {"easy": [2.0], "hard": [-5.0]}})
    found = compare_experiment(str(tmp_path / "store"), path, latency=False)
    assert found.normalised and found.levels[0].metric["mean"].value == 0.5
    assert found.levels[0].metric["optimality_gap"].value == 0.5
    for wrong, because in (({"easy": [0, 1]}, "name hard as well"), ({"odd": [0, 1]}, "there are: easy, hard")):
        path = experiment_file(tmp_path, NETWORKS, [1], compare={**settings, "normalise": wrong})
        with pytest.raises(InputError, match=because):
            compare_experiment(str(tmp_path / "store"), path, latency=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "EXPERIMENT: None: name an experiment file or"),
        (["nothing"], "no run of an experiment of that name has begun"),
        (["a", "--experiment", "b"], "EXPERIMENT: 'a'"),
        (["nothing", "--set", "a=1"], "--set"),
        (["{file}", "--metric", "sucess_rate"], "--metric: 'sucess_rate': did you mean success_rate?"),
        (["{file}", "--out", "{file}"], "it is a file: name a folder"),
        (["missing.yaml"], "missing.yaml"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    path = experiment_file(tmp_path, NETWORKS, [1])
    (tmp_path / "store" / "runs").mkdir(parents=True)
    given = [str(path) if each == "{file}" else each for each in arguments]
    assert main(["compare", *given, "--store", str(tmp_path / "store")]) == 64
    told = capsys.readouterr().err
    assert message in told and len(told.splitlines()) == 1


def test_steps_that_were_done_again_cost_what_they_cost() -> None:
    run = Run(Planned("a", {}, 1), "completed", spent=((0, 100, 1.0, 2.0), (60, 160, 1.0, 4.0)))
    found = [run.spent_at(at, dollars=True) for at in (0, 30, 60, 110, 160)]
    assert found == pytest.approx([0.0, 0.6, 1.2, 4.0, 6.0])
    assert (
        run.spent_at(160, dollars=False) == 2.0 and Run(Planned("b", {}, 1), "missing").spent_at(5, dollars=True) == 0
    )


def test_the_stages_of_a_curriculum_are_shown(tmp_path: Path) -> None:
    path = experiment_file(tmp_path, NETWORKS, [1])
    for name in ("small", "wide"):
        run_file: dict[str, Any] = {"curriculum": {"stages": []}} if name == "small" else {}
        fabricate(tmp_path / "store", f"sizes-{name}-s1", {10: {"easy": [1.0]}}, run_file=run_file)
    (tmp_path / "store" / "runs" / "sizes-small-s1" / "artifacts").mkdir()
    table = tmp_path / "store" / "runs" / "sizes-small-s1" / "artifacts" / "progress.csv"
    table.write_text("timesteps,curriculum/stage\n4,0\n8,1\n12,2\n")
    found = compare_experiment(str(tmp_path / "store"), path, latency=False)
    assert level(found, "small").stages == {"sizes-small-s1": ((4, 0.0), (8, 1.0))}
    write_comparison(found, tmp_path / "out", "")
    assert (tmp_path / "out" / "stages.png").exists() and (tmp_path / "out" / "stages.csv").exists()


def test_equal_levels_in_a_store_have_no_winner(tmp_path: Path) -> None:
    """Through the whole command: 14 levels that are one distribution."""
    vary = {"level": {f"l{number}": {"hyperparameters.gamma": 0.9 + number / 1000} for number in range(14)}}
    path = experiment_file(tmp_path, vary, [1, 2, 3, 4, 5])
    generator = np.random.default_rng(11)
    plan = planned(load_experiment(path), str(tmp_path))
    for run in plan.runs:
        returns = {name: list(generator.normal(0.5, 0.2, 3)) for name in ("a", "b", "c")}
        fabricate(tmp_path / "store", run.run_id, {10: returns})
    runs = read(plan, str(tmp_path / "store"))
    found = compare(plan, runs, made="")
    assert found.verdict.winner is None and found.verdict.rivals and len(found.pairs) == 14 * 13 / 2
    assert all(pair.p is not None and pair.p > 0.05 for pair in found.pairs)


# ------------------------------------------------------------------------------------------------------------- the page


def test_the_page_loads_nothing_and_every_picture_has_words(four: tuple[Comparison, Path]) -> None:
    text = (four[1] / "index.html").read_text()
    loads = _Loads()
    loads.feed(text)
    assert len(loads.urls) >= 7 and all(url.startswith("data:image/png") for url in loads.urls)
    assert "<script" not in text and "@import" not in text and "url(" not in text
    assert len(re.findall(r'<img src="[^"]+" alt="[^"]{20,}">', text)) == len(loads.urls)
    for said in ("gat · with_pretrain wins", "not separable", "1.5 times the weight of mean_return", "pretraining"):
        assert said in text, said


def test_pictures_can_be_told_apart_in_black_and_white(four: tuple[Comparison, Path]) -> None:
    """No two levels in a picture share line style, marker or hatch; and a picture is sharp on a phone."""
    from train_cloud.experiments.comparison import pictures

    assert (
        len(set(map(str, pictures._LINES))) == len(pictures._LINES) == len(set(pictures._MARKERS)) == pictures._AT_ONCE
    )
    assert len(set(pictures._HATCHES)) == len(pictures._HATCHES)
    for path in four[1].glob("*.png"):
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        assert width == 864 and height > 250, path.name


LOOK = """<script>
addEventListener("load", () => setTimeout(() => {
  const wide = [...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > innerWidth + 1);
  parent.postMessage(JSON.stringify({
    width: document.documentElement.scrollWidth, inner: innerWidth, wide: wide.map(e => e.outerHTML.slice(0, 80)),
    pictures: [...document.querySelectorAll("img")].map(i => [i.naturalWidth, i.getBoundingClientRect().width]),
    small: [...document.querySelectorAll("p, td, figcaption, li")].map(e => parseFloat(getComputedStyle(e).fontSize)),
  }), "*");
}, 1000));
</script>"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_it_without_scrolling_sideways(
    four: tuple[Comparison, Path], tmp_path: Path, width: int
) -> None:
    """In a frame of a phone's width: headless Chromium's own window is at least 500 pixels wide."""
    (tmp_path / "page.html").write_text((four[1] / "index.html").read_text() + LOOK)
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<body style="margin:0"><iframe src="page.html" width="{width}" height="900"></iframe><script>'
        'addEventListener("message", e => { document.body.innerHTML = "<pre id=found></pre>"; '
        'document.getElementById("found").textContent = e.data; });</script></body>'
    )
    command = [chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,900", "--virtual-time-budget=20000"]
    shown = subprocess.run([*command, frame.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    match = re.search(r'<pre id="found">(.*?)</pre>', shown.stdout, re.DOTALL)
    assert match is not None, shown.stderr[-2000:]
    found: dict[str, Any] = json.loads(entities.unescape(match[1]))
    assert found["inner"] == width and found["width"] <= width and not found["wide"], found
    assert len(found["pictures"]) >= 7 and all(natural == 864 and drawn > 300 for natural, drawn in found["pictures"])
    assert min(found["small"]) >= 13


@pytest.mark.parametrize("direction", ["min", "max"])
def test_loops_are_compared_by_their_score(direction: str, tmp_path: Path) -> None:
    for level, begin in (("low", 1.0), ("high", 5.0)):
        for seed in range(1, 6):
            told = {at: begin + 0.01 * seed + 1 / at for at in range(1, 1001)}
            fabricate(
                tmp_path,
                f"loops-{level}-s{seed}",
                {},
                logged={"val/loss": told},
                run_file={"experiment": "loops", "score": {"name": "val/loss", "direction": direction}},
            )
    found = compare_experiment(str(tmp_path), "loops", latency=False)
    assert (found.metric, found.categories) == ("score", ("val/loss",))
    assert found.direction == ("smaller" if direction == "min" else "larger")
    best = found.levels[0]
    assert best.name == ("loops-low" if direction == "min" else "loops-high") == found.verdict.winner
    assert all(level.counted == 5 and level.inference_ms is None for level in found.levels)
    assert best.over_timesteps is not None and best.over_timesteps.at[-1] == 1000
    assert best.metric["mean"].value == pytest.approx({"loops-low": 1.031, "loops-high": 5.031}[best.name])
    (row,) = (run for run in found.runs if run.run_id == "loops-low-s1")
    assert len(row.evaluations["val/loss"]) == 200 and row.metrics == {"score": pytest.approx(1.011)}
    with pytest.raises(InputError, match="metric"):
        compare_experiment(str(tmp_path), "loops", metric="mean_return", latency=False)
    write_comparison(found, tmp_path / "out", "here")
