"""Statistics over runs: rliable's numbers, and how often a winner is named that is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train_cloud.experiments.comparison import statistics
from train_cloud.experiments.comparison.statistics import Scores

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "statistics_golden.json").read_text())
CASES: dict[str, Any] = GOLDEN["cases"]
FLAT = sorted(name for name in CASES if "aggregates" in CASES[name])
SETTINGS = {"confidence": 0.95, "repetitions": GOLDEN["repetitions"], "seed": 1}
AGGREGATES = (statistics.iqm, statistics.mean, statistics.median, statistics.optimality_gap(GOLDEN["optimum"]))


def groups(name: str) -> list[Scores]:
    return [np.array(each) for each in CASES[name]["groups"]]


def test_the_golden_numbers_are_of_rliable() -> None:
    assert GOLDEN["made_with"]["rliable"] == "1.2.0" and len(FLAT) >= 7


@pytest.mark.parametrize("name", FLAT)
def test_aggregates_are_those_of_rliable(name: str) -> None:
    scores = groups(name)[0]
    for place, aggregate in enumerate(AGGREGATES):
        assert float(aggregate(scores)) == pytest.approx(CASES[name]["aggregates"][place], abs=1e-12)
        low, high = statistics.interval(scores, aggregate, **SETTINGS)
        ends = [end[place] for end in CASES[name]["aggregate_ends"]]
        assert [low, high] == pytest.approx(ends, abs=0.01)


@pytest.mark.parametrize("name", FLAT)
def test_the_probability_of_improvement_is_that_of_rliable(name: str) -> None:
    one, other = groups(name)
    assert statistics.improvement(one, other) == pytest.approx(CASES[name]["improvement"], abs=1e-12)
    assert statistics.improvement(one, other) + statistics.improvement(other, one) == pytest.approx(1, abs=1e-12)
    ends = statistics.improvement_interval(one, other, **SETTINGS)
    step = 1 / (one.size * len(other))  # it moves in steps: an end may lie one off
    if name != "the same":  # rliable takes two groups that are drawn alike for a tie
        assert list(ends) == pytest.approx(CASES[name]["improvement_ends"], abs=max(0.01, step + 1e-9))


@pytest.mark.parametrize("name", FLAT)
def test_performance_profiles_are_those_of_rliable(name: str) -> None:
    scores, thresholds = groups(name)[0], GOLDEN["thresholds"]
    found = statistics.profile(scores, thresholds)
    assert found == pytest.approx(CASES[name]["profile"], abs=1e-12)
    samples = statistics.bootstrap(scores, lambda piece: statistics.profile(piece, thresholds), 20_000, 0)
    step = 1 / scores.size  # shares move in steps: an end may lie one off
    for ours, theirs in zip(statistics.percentiles(samples, 0.95), CASES[name]["profile_ends"], strict=True):
        assert ours == pytest.approx(theirs, abs=max(0.01, step + 1e-9))


def test_curves_are_those_of_rliable() -> None:
    case = CASES["over time"]
    middle, *ends = statistics.curve(np.array(case["groups"][0]), **SETTINGS)
    assert middle == pytest.approx(case["curve"], abs=1e-12)
    for ours, theirs in zip(ends, case["ends"], strict=True):
        assert ours == pytest.approx(theirs, abs=0.01)


def test_the_same_scores_have_the_same_intervals() -> None:
    scores = groups("five seeds")[0]
    found = [statistics.interval(scores, statistics.iqm, **SETTINGS) for _ in range(2)]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("t", "freedom", "tail"),  # NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2
    [
        (6.314, 1, 0.05),
        (4.303, 2, 0.025),
        (2.776, 4, 0.025),
        (3.169, 10, 0.005),
        (1.984, 100, 0.025),
        (-2.776, 4, 0.975),
    ],
)
def test_students_t_is_that_of_the_tables(t: float, freedom: int, tail: float) -> None:
    assert statistics.student_tail(t, freedom) == pytest.approx(tail, abs=5e-5)
    if t > 0:
        assert statistics.student_quantile(1 - tail, freedom) == pytest.approx(t, abs=5e-3)


def test_welch_needs_no_equal_variances() -> None:
    """Student's own example of the soporifics (Biometrika 6, 1908), as R's t.test(extra ~ group) has it."""
    one = np.array([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0])
    other = np.array([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])
    assert statistics.welch(other, one) == pytest.approx(0.07939 / 2, abs=1e-5)
    by_pairs = statistics.paired(dict(enumerate(other - one)), 0.95)
    assert by_pairs is not None and by_pairs.p == pytest.approx(0.002833, abs=1e-6)
    assert by_pairs.interval == pytest.approx((0.7001142, 2.4598858), abs=1e-6)


def test_what_does_not_vary_is_no_division_by_zero() -> None:
    same, more = np.ones(3), np.full(3, 2.0)
    assert statistics.welch(same, same) == 0.5
    assert statistics.welch(more, same) == 0.0 and statistics.welch(same, more) == 1.0
    found = statistics.paired({1: 2.0, 2: 2.0}, 0.95)
    assert found is not None and found.interval == (2.0, 2.0) and found.p == 0.0
    alone = statistics.paired({1: 2.0}, 0.95)
    assert alone is not None and alone.interval is None and alone.p is None
    assert statistics.paired({}, 0.95) is None


def test_holm_is_the_step_down_procedure() -> None:
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([]) == [] and statistics.holm([0.9, 0.8]) == [1.0, 1.0]


Draw = Callable[[np.random.Generator, tuple[int, int]], Scores]
#: How the runs of one level may vary: a run's categories are hardly ever independent, and many runs collapse.
DISTRIBUTIONS: dict[str, Draw] = {
    "normal": lambda generator, shape: generator.normal(size=shape),
    "one run like another": lambda generator, shape: (
        generator.normal(size=(shape[0], 1)) + generator.normal(0, 0.2, shape)
    ),
    "all or nothing": lambda generator, shape: np.repeat(
        1.0 * (generator.random((shape[0], 1)) < 0.5), shape[1], axis=1
    ),
    "some collapse": lambda generator, shape: (
        1.0 * (generator.random((shape[0], 1)) < 0.7) + generator.normal(0, 0.01, shape)
    ),
    "success in five episodes": lambda generator, shape: np.asarray(generator.binomial(5, 0.8, shape) / 5, np.float64),
    "skewed": lambda generator, shape: (
        np.exp(1.5 * generator.normal(size=(shape[0], 1))) + generator.normal(0, 0.1, shape)
    ),
}


def judged(scores: list[Scores], repetitions: int = 400, larger: bool = True) -> statistics.Verdict:
    levels = {f"level {place}": each for place, each in enumerate(scores)}
    intervals = {
        name: statistics.interval(each, statistics.iqm, confidence=0.95, repetitions=repetitions, seed=0)
        for name, each in levels.items()
    }
    return statistics.verdict(levels, intervals, confidence=0.95, larger=larger)


@pytest.mark.parametrize("name", sorted(DISTRIBUTIONS))
@pytest.mark.parametrize(("levels", "runs", "categories"), [(2, 5, 3), (2, 3, 1), (2, 10, 3), (4, 5, 3), (7, 3, 3)])
def test_of_equal_levels_a_winner_is_named_in_5_percent_at_most(
    name: str, levels: int, runs: int, categories: int
) -> None:
    generator = np.random.default_rng(2026)
    draw = DISTRIBUTIONS[name]
    named = [judged([draw(generator, (runs, categories)) for _ in range(levels)]).winner for _ in range(200)]
    assert sum(winner is not None for winner in named) <= 0.05 * len(named)


@pytest.mark.parametrize("runs", [3, 5])
@pytest.mark.parametrize("levels", [3, 6, 14])
def test_of_two_equal_levels_above_others_a_winner_is_named_in_5_percent_at_most(levels: int, runs: int) -> None:
    """The worst case: whoever of the two leads need not be told apart from the others by chance."""
    generator, named = np.random.default_rng(2026), 0
    for _ in range(200):
        scores = [one_like_another(generator, runs) - 20.0 * (place > 1) for place in range(levels)]
        named += judged(scores, 200).winner is not None
    assert named <= 0.05 * 200


@pytest.mark.parametrize("runs", [3, 5])
@pytest.mark.parametrize("spreads", [(1, 0.01), (1, 1, 0.01, 0.01), (1, 0.01, 0.01, 0.01, 0.01), (10, 1, 0.1, 0.01)])
def test_levels_that_vary_differently_have_no_winner_either(spreads: tuple[float, ...], runs: int) -> None:
    generator, named = np.random.default_rng(2026), 0
    for _ in range(200):
        named += judged([spread * one_like_another(generator, runs) for spread in spreads], 200).winner is not None
    assert named <= 0.05 * 200


def one_like_another(generator: np.random.Generator, runs: int) -> Scores:
    return DISTRIBUTIONS["one run like another"](generator, (runs, 3))


def test_intervals_alone_would_name_false_winners() -> None:
    """Why the rule is stricter: with five runs whose categories go together, intervals part far too often."""
    generator = np.random.default_rng(2026)
    apart = 0
    for _ in range(200):
        ends = [
            statistics.interval(
                DISTRIBUTIONS["one run like another"](generator, (5, 3)),
                statistics.iqm,
                confidence=0.95,
                repetitions=400,
                seed=0,
            )
            for _ in range(2)
        ]
        apart += ends[0][1] < ends[1][0] or ends[1][1] < ends[0][0]
    assert apart > 0.05 * 200


@pytest.mark.parametrize(("levels", "runs", "apart"), [(2, 3, 6.0), (2, 5, 3.0), (4, 5, 4.5), (14, 5, 6.0)])
@pytest.mark.parametrize("larger", [True, False])
def test_a_level_that_is_far_better_is_named(levels: int, runs: int, apart: float, larger: bool) -> None:
    """The distance is in standard deviations of a run."""
    generator, found = np.random.default_rng(5), 0
    for _ in range(20):
        scores = [generator.normal(size=(runs, 1)) + generator.normal(0, 0.2, (runs, 3)) for _ in range(levels)]
        scores[1] += apart if larger else -apart
        found += judged(scores, larger=larger).winner == "level 1"
    assert found >= 16


@pytest.mark.parametrize(
    ("runs", "because"),
    [
        ((2, 5), "fewer than 3 evaluated runs of level 0"),
        ((5, 0), "fewer than 3"),
        ((0, 0), "no run"),
        ((5,), "nothing to"),
    ],
)
def test_too_few_runs_name_no_winner(runs: tuple[int, ...], because: str) -> None:
    scores = [
        np.full((number, 2), 10.0 * place) + np.arange(float(number))[:, None] for place, number in enumerate(runs)
    ]
    levels = {f"level {place}": each for place, each in enumerate(scores)}
    intervals = {name: (float(each.min()), float(each.max())) for name, each in levels.items() if len(each)}
    found = statistics.verdict(levels, intervals, confidence=0.95)
    assert found.winner is None and because in found.because


def test_pairs_are_told_apart_with_holms_correction() -> None:
    generator = np.random.default_rng(1)
    levels = {name: generator.normal(at, 1, (5, 3)) for name, at in {"a": 0.0, "b": 0.1, "c": 9.0}.items()}
    found = statistics.separable({**levels, "few": levels["a"][:2]})
    assert set(found) == {("a", "b"), ("a", "c"), ("b", "c")}
    assert found["a", "b"] > 0.2 and max(found["a", "c"], found["b", "c"]) < 0.01
