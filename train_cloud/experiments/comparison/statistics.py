"""Statistics over runs: aggregates with intervals, how two groups differ, and when a winner may be named. Plain NumPy.

``scores`` is always an array of shape (runs, categories): a run's value of the metric in each category of its
evaluation. Aggregates and their stratified bootstrap are those of Agarwal et al., Deep Reinforcement Learning at the
Edge of the Statistical Precipice (NeurIPS 2021), and of its library rliable: point values are equal to 1e-12
(``tests/statistics_golden.json``).

With three to five runs the percentile bootstrap covers far less than it says, all the more as a run's categories are
not independent. So its intervals are shown, and never decide alone: see :func:`verdict`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Interval = tuple[float, float]
#: From (…, runs, categories) to (…): one value for each leading index.
Statistic = Callable[[Scores], Scores]

#: Fewer runs of a level than this tell nothing of how its runs vary.
LEAST_RUNS = 3
_CHUNK = 4_000_000
"""Numbers of a bootstrap that are in memory at once."""


def iqm(scores: Scores) -> Scores:
    """Interquartile mean over runs and categories: the mean without the lowest and the highest quarter."""
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = int(0.25 * flat.shape[-1])
    return np.asarray(flat[..., cut : flat.shape[-1] - cut].mean(axis=-1))


def mean(scores: Scores) -> Scores:
    """Mean over categories of the mean over runs."""
    return np.asarray(scores.mean(axis=-2).mean(axis=-1))


def median(scores: Scores) -> Scores:
    """Median over categories of the mean over runs."""
    return np.asarray(np.median(scores.mean(axis=-2), axis=-1))


def optimality_gap(optimum: float) -> Statistic:
    """How far the scores stay below ``optimum`` on average; what is above it makes up for nothing."""

    def gap(scores: Scores) -> Scores:
        return np.asarray(optimum - np.minimum(scores, optimum).mean(axis=(-2, -1)))

    return gap


def profile(scores: Scores, thresholds: Sequence[float]) -> Scores:
    """Share of runs and categories above each threshold; shape (…, thresholds)."""
    return np.stack([(scores > threshold).mean(axis=(-2, -1)) for threshold in thresholds], axis=-1)


def resampled(scores: Scores, repetitions: int, generator: np.random.Generator) -> Iterator[Scores]:
    """Stratified bootstrap: each category draws its runs anew, by itself. Pieces of shape (n, runs, categories, …)
    with ``repetitions`` in all.
    """
    runs, categories = scores.shape[:2]
    step = max(1, _CHUNK // scores.size)
    for first in range(0, repetitions, step):
        count = min(step, repetitions - first)
        chosen = generator.integers(runs, size=(count, runs, categories))
        yield scores[chosen, np.arange(categories)]


def bootstrap(scores: Scores, statistic: Statistic, repetitions: int, seed: int) -> Scores:
    """The statistic of each bootstrap sample; shape (repetitions, …)."""
    generator = np.random.default_rng(seed)
    return np.concatenate([statistic(piece) for piece in resampled(scores, repetitions, generator)])


def percentiles(samples: Scores, confidence: float) -> tuple[Scores, Scores]:
    """Ends of the central interval over the first axis."""
    low, high = np.percentile(samples, [50 * (1 - confidence), 50 * (1 + confidence)], axis=0)
    return low, high


def interval(scores: Scores, statistic: Statistic, *, confidence: float, repetitions: int, seed: int) -> Interval:
    """Percentile interval of a statistic by stratified bootstrap; for one run it is a point, which says nothing."""
    low, high = percentiles(bootstrap(scores, statistic, repetitions, seed), confidence)
    return float(low), float(high)


def curve(values: Scores, *, confidence: float, repetitions: int, seed: int) -> tuple[Scores, Scores, Scores]:
    """Interquartile mean with its interval at each of several timesteps.

    :param values: shape (runs, categories, timesteps)
    :return: value, low and high, each of shape (timesteps)
    """

    def at_each(piece: Scores) -> Scores:
        return iqm(np.moveaxis(piece, -1, -3))

    low, high = percentiles(bootstrap(values, at_each, repetitions, seed), confidence)
    return at_each(values), low, high


def improvement(better: Scores, worse: Scores) -> float:
    """Probability that a run of the first group exceeds one of the second in a category, mean over categories; a tie
    counts half (Mann-Whitney's U over the number of pairs).
    """
    return float(_improvement(better[None], worse[None])[0])


def improvement_interval(
    better: Scores, worse: Scores, *, confidence: float, repetitions: int, seed: int
) -> tuple[float, float]:
    """Of :func:`improvement`, both groups resampled independently."""
    generator = np.random.default_rng(seed)
    samples = []
    step = max(1, _CHUNK // (better.shape[0] * worse.shape[0] * better.shape[1]))
    for first in range(0, repetitions, step):
        count = min(step, repetitions - first)
        pair = [np.concatenate(list(resampled(each, count, generator))) for each in (better, worse)]
        samples.append(_improvement(*pair))
    low, high = percentiles(np.concatenate(samples), confidence)
    return float(low), float(high)


def _improvement(better: Scores, worse: Scores) -> Scores:
    one, other = better[:, :, None, :], worse[:, None, :, :]
    return np.asarray(((one > other) + 0.5 * (one == other)).mean(axis=(1, 2, 3)))


@dataclass(frozen=True)
class Difference:
    """Between two groups, by the seeds that both have."""

    seeds: tuple[int, ...]
    by_seed: tuple[float, ...]
    mean: float
    interval: Interval | None
    """Student's t over the seeds; None for fewer than two."""
    p: float | None
    """Two-sided, that the mean is 0."""


def paired(differences: Mapping[int, float], confidence: float) -> Difference | None:
    """:param differences: seed → difference between its two runs
    :return: None where there is no seed
    """
    if not differences:
        return None
    seeds = tuple(sorted(differences))
    values = np.array([differences[seed] for seed in seeds])
    middle, ends, p = float(values.mean()), None, None
    if len(values) > 1:
        error = float(values.std(ddof=1)) / math.sqrt(len(values))
        half = student_quantile(0.5 + confidence / 2, len(values) - 1) * error
        ends = (middle - half, middle + half)
        p = 2 * _tail(abs(middle), error, len(values) - 1)
    return Difference(seeds, tuple(map(float, values)), middle, ends, p)


def welch(better: Scores, worse: Scores) -> float:
    """One-sided p that the mean of ``better`` exceeds that of ``worse`` by chance; Welch's t test (Biometrika 34,
    1947), which takes neither equal variances nor equal numbers for granted.

    :param better: one value for each run, as ``worse``; at least two
    """
    variances = [float(each.var(ddof=1)) / len(each) for each in (better, worse)]
    error = math.sqrt(sum(variances))
    freedom = len(better) + len(worse) - 2.0
    if error > 0:
        parts = [
            (part / error**2) ** 2 / (len(each) - 1) for part, each in zip(variances, (better, worse), strict=True)
        ]
        freedom = 1 / sum(parts)
    return _tail(float(better.mean() - worse.mean()), error, freedom)


def holm(probabilities: Sequence[float]) -> list[float]:
    """Adjusted for all of them together (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    order = sorted(range(len(probabilities)), key=lambda place: probabilities[place])
    adjusted, highest = [0.0] * len(order), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * probabilities[place]))
        adjusted[place] = highest
    return adjusted


def separable(groups: Mapping[str, Scores]) -> dict[tuple[str, str], float]:
    """For each pair of groups with enough runs: two-sided p that their runs' means differ by chance, by Welch's test,
    adjusted by Holm over all these pairs.

    :param groups: each of shape (runs, categories); of one run the mean over its categories counts
    """
    pairs = [
        pair for pair in itertools.combinations(groups, 2) if all(groups[name].shape[0] >= LEAST_RUNS for name in pair)
    ]
    found = []
    for pair in pairs:
        one, other = (groups[name].mean(axis=1) for name in pair)
        p = welch(one, other)
        found.append(2 * min(p, 1 - p))
    return dict(zip(pairs, holm(found), strict=True))


@dataclass(frozen=True)
class Verdict:
    """Whether one group is better than all others, and if not, what stands against it."""

    leading: str | None
    """The group with the best interquartile mean; None without any."""
    winner: str | None
    rivals: tuple[str, ...]
    """Groups that the leading one is not told apart from."""
    level: float
    """Each one-sided p has to be at most this."""
    probabilities: Mapping[str, float]
    """Group → one-sided p of the leading one's advantage over it, where it can be computed."""
    because: str


def verdict(
    groups: Mapping[str, Scores], intervals: Mapping[str, Interval], *, confidence: float, larger: bool = True
) -> Verdict:
    """Name the winner among groups of runs, or say why there is none.

    The group with the best interquartile mean wins if

    1. every group has three runs or more,
    2. its bootstrap interval overlaps no other group's, and
    3. Welch's one-sided test of the runs' means (over categories: runs are independent, a run's categories are not)
       gives at most ``(1 - confidence) / 4`` against *each* other group.

    A false winner has to be better than all others at once, so the worst case is that two groups are equal and all
    others are far below, however many there are (Gutmann and Maymin, Is the selected population the best?, Annals of
    Statistics 15, 1987, for normal populations): either of the two may win, with ``(1 - confidence) / 2`` together,
    2.5 %. Runs are few, seldom normal, and vary more at some levels than at others; ``tests/test_statistics.py`` counts
    that too, and never finds more than 5 %. The test is not paired by seed: that a seed is the same makes runs of two
    levels hardly more alike, and pairs have half of the degrees of freedom.

    :param groups: name → shape (runs, categories)
    :param intervals: name → interval of its interquartile mean
    :param larger: whether larger scores are better
    """
    sign = 1.0 if larger else -1.0
    level = (1 - confidence) / 4
    known = {name: scores for name, scores in groups.items() if scores.shape[0] > 0}
    if not known:
        return Verdict(None, None, (), level, {}, "no run has been evaluated")
    # Of equal ones that with the better mean: of few successes all interquartile means are 0.
    leading = max(known, key=lambda name: (sign * float(iqm(known[name])), sign * float(mean(known[name]))))
    others = [name for name in groups if name != leading]
    probabilities, overlapping, unsure = {}, [], []
    for name in others:
        if name not in known:
            continue
        ours, theirs = intervals[leading], intervals[name]
        if ours[0] <= theirs[1] and theirs[0] <= ours[1]:
            overlapping.append(name)
        if min(known[leading].shape[0], known[name].shape[0]) >= LEAST_RUNS:
            pair = [sign * known[each].mean(axis=1) for each in (leading, name)]
            probabilities[name] = welch(*pair)
            if probabilities[name] > level:
                unsure.append(name)
    rivals = tuple(name for name in others if name in overlapping or name in unsure)
    few = [name for name, scores in groups.items() if scores.shape[0] < LEAST_RUNS]
    if len(groups) < 2:
        because = "there is nothing to compare it with"
    elif few:
        because = f"fewer than {LEAST_RUNS} evaluated runs of {', '.join(few)}"
    elif rivals:
        because = f"not separable from {', '.join(rivals)}"
    else:
        return Verdict(
            leading, leading, (), level, probabilities, f"better than each other one, p ≤ {level:.2g} (one-sided) each"
        )
    return Verdict(leading, None, rivals, level, probabilities, because)


def student_quantile(probability: float, freedom: float) -> float:
    """Of Student's t, for probabilities above a half; by bisection of :func:`student_tail`."""
    low, high = 0.0, 1.0
    while student_tail(high, freedom) > 1 - probability:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if student_tail(middle, freedom) > 1 - probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def student_tail(t: float, freedom: float) -> float:
    """P(T > t) of Student's t with ``freedom`` degrees of freedom, which need not be whole (NIST, Digital Library of
    Mathematical Functions, 8.17.22: the incomplete beta function's continued fraction).
    """
    if math.isinf(t):
        return 0.0 if t > 0 else 1.0
    x = freedom / (freedom + t * t)
    tail = _incomplete_beta(freedom / 2, 0.5, x) / 2
    return tail if t > 0 else 1 - tail


def _tail(difference: float, error: float, freedom: float) -> float:
    if error > 0:
        return student_tail(difference / error, freedom)
    return 0.5 if difference == 0 else 0.0 if difference > 0 else 1.0


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """I_x(a, b), by the modified Lentz algorithm."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    tiny = 1e-300
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > tiny else tiny)
    result = d
    for m in range(1, 1000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for factor in (even, odd):
            d = 1 + factor * d
            d = 1 / (d if abs(d) > tiny else tiny)
            c = 1 + factor / c
            c = c if abs(c) > tiny else tiny
            result *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * result
