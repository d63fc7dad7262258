"""Experiment files: what they stand for, what ``--set`` changes in them, and what is refused, with the run's name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from ruamel.yaml import YAML

from train_cloud.config import Experiment, dump_run_file, is_experiment, load_experiment, load_run_file
from train_cloud.config.experiment import TotalLimits
from train_cloud.errors import InputError

DOCS = Path(__file__).parent.parent / "docs" / "experiments.md"
BEGIN, END = "<!-- fields: written by python tests/test_experiment.py -->\n", "<!-- end -->"
BASE: dict[str, Any] = {
    "run_id": "base",
    "algorithm": "ppo",
    "total_timesteps": 64,
    "save_frequency": 32,
    "environment": {"id": "CartPole-v1", "kwargs": {"a": 1, "b": 2}},
    "hyperparameters": {"n_steps": 32, "policy_kwargs": {"net_arch": [8]}},
}
EXPERIMENT: dict[str, Any] = {
    "experiment": "sizes",
    "base": "base.yaml",
    "vary": {
        "size": {"small_net": {}, "large": {"hyperparameters": {"policy_kwargs": {"net_arch": [16, 16]}}}},
        "rate": {"slow": {"hyperparameters.learning_rate": 1e-4}, "fast": {"hyperparameters.learning_rate": 1e-2}},
    },
    "seeds": [1, 2],
}


def write(folder: Path, run_file: dict[str, Any] | None = None, **changed: Any) -> Path:
    (folder / "files").mkdir(exist_ok=True)
    YAML().dump({**BASE, **(run_file or {})}, folder / "files" / "base.yaml")
    path = folder / "experiment.yaml"
    YAML().dump({**EXPERIMENT, "base": "files/base.yaml", **changed}, path)
    return path


def ids(experiment: Experiment) -> list[str]:
    return [cell.run_id for cell in experiment.cells]


def test_every_combination_and_seed_is_a_run(tmp_path: Path) -> None:
    experiment = load_experiment(write(tmp_path))
    assert ids(experiment) == [
        f"sizes-{size}-{rate}-s{seed}"
        for size in ("small-net", "large")
        for rate in ("slow", "fast")
        for seed in (1, 2)
    ]
    cell = experiment.cells[-1]
    assert (cell.run_id, cell.seed) == ("sizes-large-fast-s2", 2)
    assert cell.levels == {"size": "large", "rate": "fast"}
    assert (cell.config.run_id, cell.config.seed, cell.config.experiment) == (cell.run_id, 2, "sizes")
    assert cell.config.hyperparameters == {
        "n_steps": 32,
        "policy_kwargs": {"net_arch": [16, 16]},
        "learning_rate": 1e-2,
    }


def test_a_cell_is_what_its_own_run_file_would_be(tmp_path: Path) -> None:
    (tmp_path / "files" / "code").mkdir(parents=True)
    for cell in load_experiment(write(tmp_path, {"code": {"folder": "code"}})).cells:
        path = tmp_path / f"{cell.run_id}.yaml"
        path.write_text(dump_run_file(cell.config, tmp_path, "of an experiment"))
        alone = load_run_file(path)
        assert alone == cell.config
        assert alone.identity() == cell.config.identity()


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"environment": {"kwargs": {"b": 3}}}, "environment.kwargs", {"a": 1, "b": 3}),
        ({"environment.kwargs.b": 3, "environment.kwargs.c": 4}, "environment.kwargs", {"a": 1, "b": 3, "c": 4}),
        ({"environment.kwargs": {"b": 3}}, "environment.kwargs", {"a": 1, "b": 3}),
        ({"environment": {"kwargs": {}}}, "environment.kwargs", {"a": 1, "b": 2}),
        ({"hyperparameters.policy_kwargs.net_arch": [4]}, "hyperparameters.policy_kwargs", {"net_arch": [4]}),
        ({"training_type": "a2c"}, "algorithm", "a2c"),
        ({"max_seconds_at_risk": 5}, "save_frequency", None),
        ({"limits": {"hours": 2}}, "limits.hours", 2.0),
        (None, "total_timesteps", 64),
    ],
)
def test_levels_are_merged_into_the_base(tmp_path: Path, changes: Any, field: str, value: object) -> None:
    found: Any = load_experiment(write(tmp_path, vary={"f": {"level": changes}}, seeds=[1])).cells[0].config
    for name in field.split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    assert found == value


def test_null_takes_out_what_has_a_default(tmp_path: Path) -> None:
    own = {"algorithm": "dqn", "hyperparameters": None, "hyperparameters.learning_rate": 1e-3, "limits": None}
    vary = {"algorithm": {"ppo": {}, "dqn": own, "a2c": {"algorithm": "a2c", "hyperparameters": None}}}
    cells = load_experiment(write(tmp_path, vary=vary, seeds=[1])).cells
    assert [dict(cell.config.hyperparameters) for cell in cells] == [
        BASE["hyperparameters"],
        {"learning_rate": 1e-3},
        {},
    ]


def test_factors_may_add_to_each_other(tmp_path: Path) -> None:
    vary = {
        "algorithm": {"ppo": {}, "a2c": {"algorithm": "a2c", "hyperparameters": None, "environment.kwargs": {}}},
        "rate": {"slow": {"hyperparameters.learning_rate": 1e-4, "environment.kwargs.a": 3}},
    }
    first, second = (cell.config for cell in load_experiment(write(tmp_path, vary=vary, seeds=[1])).cells)
    assert first.hyperparameters["learning_rate"] == 1e-4 and first.hyperparameters["n_steps"] == 32
    assert dict(second.hyperparameters) == {"learning_rate": 1e-4} and second.algorithm == "a2c"


def test_a_run_file_is_no_experiment(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(InputError, match="it is a run file: name an experiment file"):
        load_experiment(tmp_path / "files" / "base.yaml")


@pytest.mark.parametrize("key", ["vary", "search"])
def test_the_base_may_not_be_an_experiment(tmp_path: Path, key: str) -> None:
    path = write(tmp_path, {key: {}})
    with pytest.raises(InputError, match="it is an experiment file itself: name a run file"):
        load_experiment(path)


def test_paths_are_relative_to_the_base(tmp_path: Path) -> None:
    for folder in ("code", "other"):
        (tmp_path / "files" / folder).mkdir(parents=True)
    vary = {"code": {"one": {}, "two": {"code": {"folder": "other"}}}}
    cells = load_experiment(write(tmp_path, {"code": {"folder": "code"}}, vary=vary, seeds=[1])).cells
    assert [cell.config.code.folder for cell in cells] == [tmp_path / "files/code", tmp_path / "files/other"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["total_timesteps=128"], {"total_timesteps": {128}, "runs": 8}),
        (["base.total_timesteps=128", "seeds=[7]"], {"total_timesteps": {128}, "runs": 4, "seeds": {7}}),
        (["vary.size=[large]", "vary.rate=[fast, slow]"], {"runs": 4, "sizes": {"large"}}),
        (["vary.rate.fast.total_timesteps=96"], {"total_timesteps": {64, 96}, "runs": 8}),
        (["vary={size: {tiny: {}}}", "experiment=others"], {"runs": 2, "sizes": {"tiny"}}),
        (["limits.hours=3", "base.limits.hours=1"], {"hours": 3, "own_hours": {1.0}, "runs": 8}),
        (["max_parallel=2", "hyperparameters.gamma=0.9"], {"runs": 8}),
    ],
)
def test_set_is_for_the_experiment_or_for_every_run(
    tmp_path: Path, overrides: list[str], expected: dict[str, Any]
) -> None:
    experiment = load_experiment(write(tmp_path), overrides)
    configs = [cell.config for cell in experiment.cells]
    found = {
        "runs": len(configs),
        "total_timesteps": {config.total_timesteps for config in configs},
        "seeds": {config.seed for config in configs},
        "sizes": {cell.levels.get("size") for cell in experiment.cells},
        "hours": experiment.limits.hours,
        "own_hours": {config.limits.hours for config in configs},
    }
    assert {name: found[name] for name in expected} == expected


def test_seeds_may_stand_in_the_base(tmp_path: Path) -> None:
    assert ids(load_experiment(write(tmp_path, {"seeds": [4, 5]}, vary={}, seeds=None))) == ["sizes-s4", "sizes-s5"]
    assert ids(load_experiment(write(tmp_path, {"seed": 6}, vary={}, seeds=None))) == ["sizes-s6"]
    assert ids(load_experiment(write(tmp_path, vary={}, seeds=None))) == ["sizes-s0"]


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({"save_frequency": 64}, {"max_seconds_at_risk": 30}, "save_frequency: 64: vary.b.y sets max_seconds_at_risk"),
        ({"algorithm": "a2c"}, {"training_type": "ppo"}, "algorithm: 'a2c': vary.b.y sets it too"),
    ],
)
def test_a_field_under_another_name_is_the_same_field(tmp_path: Path, first: Any, second: Any, words: str) -> None:
    with pytest.raises(InputError) as refused:
        load_experiment(write(tmp_path, vary={"a": {"x": first}, "b": {"y": second}}))
    assert f"vary.a.x.{words}" in str(refused.value)


def test_levels_may_be_numbers(tmp_path: Path) -> None:
    vary = {"n_steps": {16: {"hyperparameters.n_steps": 16}, 32: {}}}
    path = write(tmp_path, vary=vary, seeds=[1])
    assert ids(load_experiment(path)) == ["sizes-16-s1", "sizes-32-s1"]
    assert ids(load_experiment(path, ["vary.n_steps=[32]"])) == ["sizes-32-s1"]


def categories(*names: str) -> dict[str, Any]:
    return {"evaluation": {"categories": {name: {} for name in names}}}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"seeds": [1, 1]}, "seeds: [1, 1]: each seed makes a run, and 1 stands there twice"),
        ({"seeds": []}, "seeds: []: it has 0, give at least 1"),
        ({"seed": 1}, "seed: 1: unknown key: did you mean seeds?"),
        ({"limits": {"hour": 1}}, "limits.hour: 1: unknown key: did you mean hours?"),
        ({"compare": {"metrics": "length"}}, "compare.metrics: 'length': unknown key: did you mean metric?"),
        ({"compare": {"criteria": {"length": {"weigh": 1}}}}, "compare.criteria.length.weigh: 1: unknown key"),
        ({"base": "nowhere.yaml"}, "base: "),
        ({"search": {"space": {}}}, "search.space: []: name 1 to 100 keys of the run file"),
        ({"experiment": "My Sizes"}, "experiment: 'My Sizes': use 1 to 63 lower-case letters"),
        ({"vary": {"size": {}}}, "vary.size: {}: it has 0, give at least 1"),
        ({"vary": {"size": ["small", "large"]}}, "vary.size: ['small', 'large']: give a map"),
        ({"vary": {"rate": {0.9: {}}}}, "vary.rate: 0.9: call this level 0_9 for example"),
        ({"vary": {"rate": {True: {}}}}, "vary.rate: True: YAML takes this for a value"),
        ({"vary": {"n": {16: {}, "16": {}}}}, "vary.n: '16': another level is called so too"),
        ({"vary": {"Size": {"small": {}}}}, "vary: 'Size': call this factor size for example"),
        ({"vary": {"size": {"small": {"seed": 3}}}}, "vary.size.small.seed: 3: the experiment decides this: list them"),
        ({"vary": {"size": {"small": {"run_id": "x"}}}}, "vary.size.small.run_id: 'x': the experiment decides this"),
        ({"vary": {"s": {"a_b": {}, "a-b": {}}}}, "sizes-a-b-s1: 1: a-b and a_b give the same run id"),
        (
            {"vary": {"a": {"x": {}, "x-y": {}}, "b": {"z": {}, "y-z": {}}}},
            "sizes-x-y-z-s1: 1: x-y and z",
        ),
        (
            {"vary": {"a": {"x": {"gamma": 0.9}}, "b": {"y": {"gamma": 0.8}}}},
            "vary.a.x.gamma: 0.9: vary.b.y sets it too: let one factor alone vary it",
        ),
        (
            {"vary": {"a": {"x": {"hyperparameters.gamma": 0.9}}, "b": {"y": {"hyperparameters": None}}}},
            "vary.a.x.hyperparameters.gamma: 0.9: vary.b.y sets hyperparameters: let one factor alone vary it",
        ),
        ({"vary": {"s": {"a" * 60: {}}}}, f"experiment: 'sizes-{'a' * 60}-s1': it has 69 characters"),
        ({"vary": {"s": {"ok": {}, "bad": {"n_step": 3}}}}, "sizes-bad-s1: n_step: 3: unknown key"),
        ({"vary": {"s": {"bad": {"save_frequency": 65}}}}, "sizes-bad-s1: save_frequency: 65: give at most"),
        ({"vary": {"s": {"bad": {"algorithm.x": 1}}}}, "sizes-bad-s1: algorithm.x: 1: algorithm is 'ppo', not a map"),
        ({"vary": {"s": {"bad": {"data": "s3://b"}}}}, "sizes-bad-s1: data: 's3://b': give a list"),
        (
            {"vary": {"s": {"with": categories("near", "far"), "without": categories("near")}}},
            "sizes-without-s1: evaluation.categories: ['near']: it lacks far, and sizes-with-s2 is evaluated on that",
        ),
        (
            {"vary": {"s": {"with": categories("near"), "without": {}}}},
            "sizes-without-s1: evaluation.categories: []: it has no evaluation, and sizes-with-s2",
        ),
        (
            {"vary": {"a": {str(n): {} for n in range(101)}, "b": {str(n): {} for n in range(100)}}},
            "vary: '20200 runs'",
        ),
    ],
)
def test_what_is_refused_names_the_run_or_the_field(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as refused:
        load_experiment(write(tmp_path, **changed))
    assert str(refused.value).startswith(words)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("vary.sizes=[large]", "--set vary.sizes: ['large']: unknown factor: did you mean size?"),
        ("vary.size=[larg]", "--set vary.size: 'larg': unknown level: did you mean large?"),
        ("vary.size=[large, large]", "--set vary.size: ['large', 'large']: large stands there twice"),
        ("size=[large]", "--set size: ['large']: unknown key: did you mean vary.size?"),
        ("seed=3", "--set seed: 3: the experiment decides this: list them under seeds"),
        ("base.run_id=x", "--set run_id: 'x': the experiment decides this"),
        ("max_paralel=2", "sizes-small-net-slow-s1: max_paralel: 2: unknown key"),
        ("seeds=[3, 3]", "seeds: [3, 3]: each seed makes a run"),
    ],
)
def test_overrides_that_are_refused(tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(InputError) as refused:
        load_experiment(write(tmp_path), [override])
    assert str(refused.value).startswith(words)


def test_an_experiment_file_is_told_from_a_run_file(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert is_experiment(path)
    assert not is_experiment(tmp_path / "files" / "base.yaml")
    assert not is_experiment(tmp_path / "nowhere.yaml")
    (tmp_path / "broken.yaml").write_text("vary: [")
    assert not is_experiment(tmp_path / "broken.yaml")
    with pytest.raises(InputError, match="it is an experiment file"):
        load_run_file(path)


def test_many_runs_expand_without_torch(tmp_path: Path) -> None:
    vary: dict[str, Any] = {
        name: {f"{name}{n}": {} for n in range(count)} for name, count in (("a", 7), ("p", 2), ("c", 3))
    }
    path = write(tmp_path, vary=vary, seeds=[1, 2, 3, 4, 5])
    code = (
        "import sys; from train_cloud.config import load_experiment; "
        f"print(len(load_experiment({str(path)!r}).cells), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["210", "False"]


def fields() -> str:
    """The tables of docs/experiments.md."""
    sections: list[tuple[str, type[BaseModel]]] = [("", Experiment), ("limits", TotalLimits)]
    lines = []
    for section, model in sections:
        lines += [f"\n### `{section}`\n"] if section else [""]
        lines += ["| field | default | meaning |", "|---|---|---|"]
        for name, field in model.model_fields.items():
            given = {} if isinstance(field.default, BaseModel) else field.default
            default = "required" if field.is_required() else f"`{json.dumps(given)}`"
            lines.append(f"| `{name}` | {default} | {field.description} |")
    return "\n".join(lines) + "\n\n"


def test_the_documented_fields_are_those_that_there_are() -> None:
    assert DOCS.read_text().split(BEGIN)[1].split(END)[0] == fields()


def test_the_documented_example_is_right(tmp_path: Path) -> None:
    path = tmp_path / "nets.yaml"
    path.write_text(DOCS.read_text().split("```yaml\n")[1].split("```")[0])
    YAML().dump({**BASE, "algorithm": "sac", "hyperparameters": {"buffer_size": 64}}, tmp_path / "pendulum.yaml")
    found = load_experiment(path)
    assert (found.cells[0].run_id, found.cells[-1].run_id) == ("nets-small-slow-s1", "nets-large-fast-s3")
    assert len(found.cells) == 12


if __name__ == "__main__":
    before, rest = DOCS.read_text().split(BEGIN)
    DOCS.write_text(before + BEGIN + fields() + END + rest.split(END, 1)[1])
