"""Evaluations: what they find out, what they leave, and that training never notices them."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from fabricated import episode, evaluation_of
from paths import PYTHONPATH
from PIL import Image
from pydantic import ValidationError
from sessions import Rehearsed
from test_sync import check_manifest

from train_cloud.config import RunFile, parse_run_file
from train_cloud.config.evaluation import compare
from train_cloud.errors import InputError, NotYet
from train_cloud.evaluate.results import Evaluation, Summary, best, results, scalars, summarise
from train_cloud.run import layout
from train_cloud.sb3.compare import differences
from train_cloud.store import open_store
from train_cloud.whole_file import UNFINISHED

# --------------------------------------------------------------------------------------------------------- the figures


def evaluation(timesteps: int, mean: float) -> Evaluation:
    return evaluation_of(timesteps, {"a": [episode(mean)]})


def test_a_summary_counts_what_was_told() -> None:
    played = [
        episode(1.0, index=0, success=True, collisions=0.0, length=10),
        episode(5.0, index=1, success=False, collisions=2.0, length=20),
        episode(9.0, index=2, success=None, collisions=None, length=30),
    ]
    found = summarise({"a": played})
    assert (found.episodes, found.success_rate, found.collisions) == (3, 0.5, 1.0)
    assert (found.returns.mean, found.returns.min, found.returns.max) == (5.0, 1.0, 9.0)
    assert found.returns.std == pytest.approx(np.std([1, 5, 9]))
    assert found.efficiency == 15 / 60
    assert found.lengths.mean == 20


def test_nothing_told_is_not_a_zero() -> None:
    found = summarise({"a": [episode()]})
    assert found.success_rate is None and found.success_interval is None and found.collisions is None
    assert found.returns.interval is None  # of one episode
    assert "eval/success_rate" not in scalars(evaluation(1, 2.0))


@pytest.mark.parametrize(
    ("successes", "of", "low", "high"),
    # Brown, Cai, DasGupta, Interval Estimation for a Binomial Proportion, 2001, for the formula; values by hand
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962)],
)
def test_success_has_wilsons_interval(successes: int, of: int, low: float, high: float) -> None:
    found = summarise({"a": [episode(index=index, success=index < successes) for index in range(of)]})
    assert found.success_interval == pytest.approx((low, high), abs=1e-4)


def test_the_interval_of_the_mean_covers_it_as_often_as_it_says() -> None:
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(200):
        played = {name: [episode(float(value)) for value in generator.normal(size=20)] for name in "ab"}
        interval = summarise(played).returns.interval
        assert interval is not None
        covered += interval[0] <= 0 <= interval[1]
    assert 0.89 <= covered / 200 <= 0.99


def test_categories_count_by_themselves_in_the_overall_interval() -> None:
    """Two levels, far apart and each without noise: nothing is uncertain about their mean."""
    played = {"low": [episode(0.0)] * 5, "high": [episode(100.0)] * 5}
    assert summarise(played).returns.interval == (50.0, 50.0)


def test_the_best_is_the_earliest_of_equals_and_each_timesteps_stands_once() -> None:
    every = [evaluation(300, 2.0), evaluation(100, 1.0), evaluation(200, 2.0), evaluation(100, 0.5)]
    found = results("a-run", every)
    assert [each.timesteps for each in found.evaluations] == [100, 200, 300]
    assert found.best_timesteps == 200
    assert found.evaluations[0].overall.returns.mean == 0.5  # the later word
    assert best([]) is None


def test_scalars_of_categories_stand_beside_the_overall_ones_only_where_there_are_several() -> None:
    one = evaluation(1, 2.0)
    assert scalars(one)["eval/mean_reward"] == 2.0 and not any(tag.startswith("eval/a/") for tag in scalars(one))
    summary: Summary = one.overall
    two = one.model_copy(update={"categories": {"a": summary, "b": summary}})
    assert scalars(two)["eval/b/mean_reward"] == 2.0


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ("return >= 200", True),
        ("return > 200", False),
        ("length < 11", True),
        ("info.laps >= 2", True),
        ("info.laps == 1", False),
        ("info.is_success", False),
        ("info.absent", None),
        ("info.absent >= 1", None),
        ("return >= -1e3", True),
    ],
)
def test_a_condition_is_read_as_it_is_written(condition: str, told: bool | None) -> None:
    assert compare(condition, 200.0, 10, {"laps": 2, "is_success": False}) is told


# -------------------------------------------------------------------------------------------------------- the run file

CIRCLE = {"id": "Circle-v0", "module": "evaluated_environment"}
RUN: dict[str, Any] = {
    "run_id": "a-run",
    "algorithm": "sac",
    "seed": 3,
    "device": "cpu",
    "total_timesteps": 400,
    "save_frequency": 150,
    "environment": {**CIRCLE, "normalize": True},
    "hyperparameters": {"learning_starts": 50, "buffer_size": 500, "policy_kwargs": {"net_arch": [16, 16]}},
}


def run_file(folder: Path | None = None, **evaluation: Any) -> RunFile:
    code = {"code": {"folder": str(folder)}} if folder is not None else {}
    return parse_run_file({**RUN, **code, "evaluation": evaluation})


@pytest.mark.parametrize(
    ("section", "field"),
    [
        ({"every": 0}, "evaluation.every"),
        ({"evry": 5}, "evaluation.evry"),
        ({"success": "reward >= 3"}, "evaluation.success"),
        ({"success": "return >= many"}, "evaluation.success"),
        ({"categories": {}}, "evaluation.categories"),
        ({"categories": {"overall": {}}}, "evaluation.categories.overall"),
        ({"categories": {"Big Name": {}}}, "evaluation.categories.Big Name"),
        ({"categories": {"a": {"levels": "x"}}}, "evaluation.categories.a"),
        ({"categories": {"a": {"seed": [1]}}}, "evaluation.categories.a.seed"),
        ({"environment": {"id": "Circle-v0", "n_envs": 2}}, "evaluation.environment.n_envs"),
        ({"video": {"rotate": 45}}, "evaluation.video.rotate"),
        ({"routes": {"position": "where"}}, "evaluation.routes.position"),
        ({"mode": "thread"}, "evaluation.mode"),
    ],
)
def test_what_is_wrong_in_the_section_is_named(section: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as caught:
        run_file(**section)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("section", "field", "said"),
    [
        ({"categories": {"far": {"kwargs": {"radius": 2}}}}, "evaluation.categories.far", "radius"),
        ({"categories": {"a": {"levels": "none", "argument": "level"}}}, "evaluation.categories.a.levels", "below"),
        ({"categories": {"a": {"levels": "../..", "argument": "level"}}}, "evaluation.categories.a.levels", "below"),
        ({"categories": {"a": {"levels": "empty", "argument": "level"}}}, "evaluation.categories.a.levels", "file"),
        ({"success": "evaluated_environment:missing"}, "evaluation", "missing"),
        ({"environment": {"id": "Pendulum-v1"}, "categories": {"swing": {}}}, "evaluation.categories.swing", "spaces"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_trained(
    tmp_path: Path, section: dict[str, Any], field: str, said: str
) -> None:
    from train_cloud.evaluate.play import check

    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=said) as caught:
        check(run_file(tmp_path, **section))
    assert caught.value.field == field


# ------------------------------------------------------------------------------------------------------------- playing


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a model's export: ``model.zip`` and ``vecnormalize.pkl``, as people take them home."""
    from stable_baselines3.common.vec_env import VecNormalize

    from train_cloud.sb3.build import build_model

    folder = tmp_path_factory.mktemp("model")
    built = build_model(parse_run_file(RUN))
    built.model.learn(200)
    built.model.save(folder / "model.zip")
    env = built.model.get_vec_normalize_env()
    assert isinstance(env, VecNormalize)
    env.save(str(folder / "vecnormalize.pkl"))
    built.close()
    return folder


def played(model: Path, out: Path, folder: Path | None = None, **section: Any) -> Any:
    from train_cloud.evaluate.play import Player, play

    config = run_file(folder, **section)
    assert config.environment is not None and config.evaluation is not None
    algorithm = "stable_baselines3.sac.sac:SAC"
    player = Player("a-run", 12_000, model, algorithm, config.environment, config.evaluation, config.code.folder, out)
    return play(player)[:2]


def test_plain_sb3_finds_the_same_returns(trained: Path, tmp_path: Path) -> None:
    import evaluated_environment  # noqa: F401 - registers the environment
    import gymnasium
    from stable_baselines3 import SAC
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    episodes, _ = played(trained, tmp_path, episodes=3, seed=70)
    model = SAC.load(trained / "model.zip")
    env = VecNormalize.load(str(trained / "vecnormalize.pkl"), DummyVecEnv([lambda: gymnasium.make("Circle-v0")]))
    env.training = env.norm_reward = False
    for found in episodes["default"]:
        env.seed(found.seed)
        observation: Any = env.reset()
        total, done = 0.0, False
        while not done:
            observation, rewards, dones, _ = env.step(model.predict(observation, deterministic=True)[0])
            total, done = total + float(rewards[0]), bool(dones[0])
        assert total == found.episode_return
    assert len({found.episode_return for found in episodes["default"]}) == 3


def test_a_category_is_played_with_its_own_arguments_and_seeds(trained: Path, tmp_path: Path) -> None:
    categories = {"default": {}, "tender": {"kwargs": {"crash_at": 0.001}, "seeds": [5, 9]}}
    episodes, warnings = played(trained, tmp_path, episodes=3, categories=categories)
    assert [found.seed for found in episodes["default"]] == [10_000, 10_001, 10_002]
    assert [found.seed for found in episodes["tender"]] == [5, 9]
    assert all(not found.terminated and found.length == 30 for found in episodes["default"])
    assert all(found.terminated and found.success is False and found.collisions == 1 for found in episodes["tender"])
    assert not warnings


def test_a_process_of_its_own_finds_the_same(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    here, _ = played(trained, tmp_path, episodes=2)
    apart, _ = played(trained, tmp_path, episodes=2, separate=True)
    returns = [[found.episode_return for found in played["default"]] for played in (here, apart)]
    assert returns[0] == pytest.approx(returns[1], rel=1e-4)  # it may add up with other instructions than this process


def test_levels_are_played_in_turn(trained: Path, tmp_path: Path) -> None:
    for name, radius in (("narrow", 1.0), ("wide", 40.0)):
        (tmp_path / "levels").mkdir(exist_ok=True)
        (tmp_path / "levels" / f"{name}.json").write_text(json.dumps({"radius": radius}))
    categories = {"circles": {"levels": "levels", "argument": "level"}}
    routes = {"per_category": 4, "speed": "info.speed", "centreline": "evaluated_environment:centreline"}
    episodes, _ = played(trained, tmp_path, tmp_path, episodes=4, categories=categories, routes=routes)
    assert [found.level for found in episodes["circles"]] == ["narrow", "wide", "narrow", "wide"]
    found = {path.name for path in (tmp_path / "route_visualizations").iterdir()}
    assert found == {f"route_step000012000_circles_{name}.png" for name in ("narrow", "wide")}
    with pytest.raises(InputError, match="2 levels"):
        played(trained, tmp_path, tmp_path, episodes=1, categories=categories)


def test_videos_are_what_browsers_play_and_replace_those_before(trained: Path, tmp_path: Path) -> None:
    stale = tmp_path / "videos" / "default" / "default_000_failure.mp4"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of the evaluation before")
    video = {"per_category": 2, "fps": 10, "rotate": 90}
    episodes, warnings = played(trained, tmp_path, episodes=3, video=video, success="length >= 30")
    assert not warnings and not stale.exists()
    assert [found.video for found in episodes["default"]] == [
        "videos/default/default_000_success.mp4",
        "videos/default/default_001_success.mp4",
        None,
    ]
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "videos/default/default_001_success.mp4"))
    facts = next(reader)
    reader.close()
    assert facts["codec"] == "h264" and facts["pix_fmt"].startswith("yuv420p")
    width, height = facts["size"]
    assert height > width and width % 2 == height % 2 == 0  # 161 by 121, turned
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "videos/default/default_001_success.mp4"))
    assert frames == 31 and seconds == pytest.approx(3.1, abs=0.2)


def test_a_film_in_the_making_has_a_name_that_is_not_sent(tmp_path: Path) -> None:
    import evaluated_environment

    from train_cloud.config.evaluation import Video
    from train_cloud.evaluate.video import Film

    env = evaluated_environment.Circle(render_mode="rgb_array")
    env.reset(seed=0)
    film = Film(tmp_path, Video(), env)
    film.add(env)
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
        film.add(env)  # ffmpeg makes the file when it has seen some
        time.sleep(0.01)
    (making,) = tmp_path.iterdir()
    assert making.name.endswith(UNFINISHED)
    assert film.close("a_000_success", []) == tmp_path / "a_000_success.mp4"


def test_a_long_episodes_video_ends_early(trained: Path, tmp_path: Path) -> None:
    played(trained, tmp_path, episodes=1, video={"max_steps": 7}, success="length >= 30")
    frames, _ = imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "videos/default/default_000_success.mp4"))
    assert frames == 7


def test_no_renderer_is_one_warning(trained: Path, tmp_path: Path) -> None:
    categories = {"default": {"kwargs": {"renders": False}}}
    episodes, warnings = played(trained, tmp_path, episodes=3, video={"per_category": 3}, categories=categories)
    assert len(episodes["default"]) == 3
    (warning,) = warnings
    assert "no display" in warning and not list(tmp_path.rglob("*.mp4"))


def test_a_route_is_a_picture_and_none_is_one_warning(trained: Path, tmp_path: Path) -> None:
    pixels = np.full((40, 40), 255, np.uint8)
    pixels[18:22] = 0
    Image.fromarray(pixels).save(tmp_path / "map.png")
    (tmp_path / "map.yaml").write_text("image: map.png\nresolution: 0.1\norigin: [-2.0, -2.0, 0.0]\n")
    (tmp_path / "line.csv").write_text("# x_m; y_m; w\n1.0; 0.0; 2\n0.0; 1.0; 2\n-1.0; 0.0; 2\n")
    routes = {"map": "map.yaml", "centreline": "line.csv", "per_category": 1}
    episodes, warnings = played(trained, tmp_path, tmp_path, episodes=2, routes=routes, seed=4)
    first, second = episodes["default"]
    assert first.route == "route_visualizations/route_step000012000_default_seed4.png" and second.route is None
    picture = np.asarray(Image.open(tmp_path / first.route).convert("RGB"))
    assert picture.shape[0] > 500 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 200  # a path in many colours
    assert not warnings
    _, warnings = played(trained, tmp_path, tmp_path, episodes=2, routes={"position": "info.whereabouts"})
    assert len(warnings) == 1 and "position" in warnings[0]


# ------------------------------------------------------------------------------------------------------ beside training

EVALUATED = {
    "every": 120,
    "episodes": 2,
    "success": "evaluated_environment:fast_enough",
    "categories": {"default": {}, "tender": {"kwargs": {"crash_at": 0.5}}},
    "video": {"per_category": 1},
}
pytestmark = pytest.mark.slow


def rehearsed(warm: Any, folder: Path, evaluation: dict[str, Any] | None, **changes: Any) -> Rehearsed:
    run = {key: value for key, value in RUN.items() if key != "run_id"}
    return Rehearsed(
        warm, folder, {**run, "evaluation": evaluation, "callbacks": ["interrupting:InterruptAt"], **changes}
    )


def found_in(run: Rehearsed) -> list[Evaluation]:
    listed = sorted(info.key for info in run.store.list(layout.EVALUATIONS))
    return [Evaluation.model_validate_json(bytes(run.store.get(key).body)) for key in listed]


@pytest.fixture(scope="module")
def undisturbed(warm: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Rehearsed, Rehearsed]:
    """A run without evaluation, and one with; neither is interrupted."""
    without = rehearsed(warm, tmp_path_factory.mktemp("without"), None)
    beside = rehearsed(warm, tmp_path_factory.mktemp("with"), EVALUATED)
    assert without.session() == 0 and beside.session() == 0, without.log() + beside.log()
    return without, beside


def test_training_never_notices(undisturbed: tuple[Rehearsed, Rehearsed]) -> None:
    without, beside = undisturbed
    assert not differences(without.final(), beside.final())
    assert [found.timesteps for found in found_in(beside)] == [120, 240, 360, 400]
    both, plain = beside.scalars(), without.scalars()
    assert {tag: points for tag, points in both.items() if not tag.startswith("eval/")} == plain
    mean = {found.timesteps: found.overall.returns.mean for found in found_in(beside)}
    assert dict(both["eval/mean_reward"]) == pytest.approx(mean, rel=1e-6)


def test_what_lies_in_the_artifact_folder(undisturbed: tuple[Rehearsed, Rehearsed]) -> None:
    beside = undisturbed[1]
    artifacts = beside.folder / "state" / "artifacts"
    written = json.loads((artifacts / "eval_results.json").read_text())
    assert written["run_id"] == "a-run" and len(written["evaluations"]) == 4
    assert written["evaluations"][3]["episodes"][0]["return"] == found_in(beside)[3].episodes[0].episode_return
    best_one = max(written["evaluations"], key=lambda each: (each["overall"]["returns"]["mean"], -each["timesteps"]))
    assert written["best_timesteps"] == best_one["timesteps"]
    kept = json.loads((artifacts / "best_model" / "evaluation.json").read_text())
    assert kept["timesteps"] == best_one["timesteps"]
    assert (artifacts / "best_model" / "vecnormalize.pkl").exists()
    assert len(list(artifacts.rglob("*.mp4"))) == 2


@pytest.mark.parametrize("seed", [0, *(pytest.param(number, marks=pytest.mark.full) for number in range(1, 20))])
def test_an_interrupted_run_has_the_same_evaluations(
    undisturbed: tuple[Rehearsed, Rehearsed], warm: Any, tmp_path: Path, seed: int
) -> None:
    """At random moments, in mid-evaluation too: none is missing, none differs, and neither does what was trained."""
    chosen = random.Random(time.time_ns() + seed)
    run = rehearsed(warm, tmp_path, EVALUATED)
    codes = []
    for kind in ("SIGTERM", "SIGKILL"):
        at = f"{kind}@{chosen.randrange(60, 390)}"
        print("interrupted at", at)
        codes.append(run.session(at, outside=True))
        if codes[-1] == 0:
            break
    if codes[-1] != 0:
        assert run.session() == 0, run.log()
    without, beside = undisturbed
    assert not differences(without.final(), run.final())
    assert [strip(found) for found in found_in(run)] == [strip(found) for found in found_in(beside)]
    store = open_store(f"{run.store.url}/{layout.ARTIFACTS}")
    manifest = check_manifest(store)  # equal to the listing, and every checksum right
    names = {upload.local_path for upload in manifest.uploaded_files}
    assert {"eval_results.json", "best_model/model.zip", "final_model.zip"} <= names
    assert sum(name.endswith(".mp4") for name in names) == 2, names


def strip(found: Evaluation) -> Any:
    """Without what a clock says."""
    content = found.model_dump(exclude={"at", "seconds"})
    for summary in (content["overall"], *content["categories"].values(), *content["episodes"]):
        del summary["inference_ms"]
    return content


def test_one_that_fails_costs_nothing_but_itself(warm: Any, tmp_path: Path) -> None:
    broken = {"every": None, "categories": {"default": {}, "broken": {"kwargs": {"breaks": 3}}}}
    run = rehearsed(warm, tmp_path, broken)
    assert run.session() == 0, run.log()
    assert run.head().outcome == "completed"
    assert "the wheel came off" in run.log() and "evaluation at 400 timesteps failed" in run.log()
    assert not found_in(run)


def test_inline_is_recorded_as_not_exact(warm: Any, tmp_path: Path) -> None:
    run = rehearsed(warm, tmp_path, {"every": 200, "episodes": 1, "mode": "inline"})
    assert run.session() == 0, run.log()
    assert [found.timesteps for found in found_in(run)] == [200, 400]
    assert run.final().facts["exact"] is False or "inline" in run.log()


def test_a_checkpoint_stays_until_it_is_evaluated(warm: Any, tmp_path: Path) -> None:
    """However slow the evaluation is against the training: the first checkpoint is long superseded when it is read."""
    slow = {"every": 100, "episodes": 1}
    run = rehearsed(warm, tmp_path, slow, save_frequency=20, preservation={"last": 1})
    assert run.session() == 0, run.log()
    assert [found.timesteps for found in found_in(run)] == [100, 200, 300, 400]
    models = {info.key.split("/")[1] for info in run.store.list(layout.CHECKPOINTS) if info.key.endswith("/model")}
    # What the last commit still held may stay. Of the other 16 none does.
    assert {int(name.split("-")[0]) for name in models} <= {100, 200, 300, 400}, models


def test_a_script_says_what_to_evaluate_on() -> None:
    from train_cloud.evaluate.play import check

    run = {"run_id": "a-run", "entry_point": "own.train:main", "total_timesteps": 100, "save_frequency": 10}
    with pytest.raises(InputError, match=r"evaluation.environment"):
        check(parse_run_file({**run, "evaluation": {}}))


def test_several_agents_are_refused_before_anything_is_trained() -> None:
    from train_cloud.evaluate.play import check

    run = {**RUN, "algorithm": "sac_multiagent", "environment": {"id": "mpe2.simple_spread_v3:parallel_env"}}
    with pytest.raises(NotYet, match="several agents"):
        check(parse_run_file({**run, "evaluation": {}}))


def test_a_damaged_record_is_no_result() -> None:
    with pytest.raises(ValidationError):
        Evaluation.model_validate_json("{}")
    assert os.environ.get("MUJOCO_GL") in (None, "egl")
