"""Tracks and the F1TENTH adapter. What needs the real gym carries the marker ``f1tenth``."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sessions import Rehearsed

from train_cloud.envs.tracks import Track, make_track, progress
from train_cloud.errors import InputError
from train_cloud.sb3.compare import differences

_THERE = importlib.util.find_spec("f1tenth_gym") is not None
real = pytest.mark.skipif(not _THERE, reason="f1tenth_gym is not installed")

TRACKS = [("oval", 0), *(("circuit", seed) for seed in range(6))]


@pytest.fixture(scope="module", params=TRACKS, ids=lambda param: f"{param[0]}-{param[1]}")
def track(request: pytest.FixtureRequest) -> Track:
    name, seed = request.param
    return make_track(name, seed=seed)


# --------------------------------------------------------------------------------------------------------------- tracks


def test_a_track_is_closed_and_even_and_can_be_driven(track: Track) -> None:
    assert 30 < track.length < 120
    assert np.allclose(track.steps, 0.1, atol=0.01), "from each point to the next, and from the last to the first"
    turned = np.sum(track.curvatures() * track.steps)
    assert turned == pytest.approx(2 * np.pi, abs=1e-6), "once around, counter-clockwise"
    assert 1 / np.abs(track.curvatures()).max() > track.width / 2, "no bend is tighter than its inner side"
    away = np.linalg.norm(track.points[:, None] - track.points[None], axis=2)
    apart = np.abs(progress(0.0, track.at[:, None] - track.at[None], track.length))
    assert (away[apart > 1.6 * track.width] > track.width).all(), "two stretches do not touch"


def test_the_map_is_free_where_the_track_is(track: Track) -> None:
    image, (x, y) = track.occupancy()

    def at(place: Any) -> int:
        return int(image[int((place[1] - y) / 0.05), int((place[0] - x) / 0.05)])

    for along in np.linspace(0, track.length, 50):
        for aside, free in ((0.0, 255), (0.4, 255), (-0.4, 255), (0.56, 0), (-0.56, 0)):
            place = track.pose(along, aside * track.width)
            if free or np.linalg.norm(track.points - place[:2], axis=1).min() > 0.53 * track.width:
                assert at(place) == free, (along, aside)
    assert not image[0].any() and not image[-1].any() and not image[:, 0].any() and not image[:, -1].any()


def test_the_same_seed_makes_the_same_circuit() -> None:
    one, same, other = make_track("circuit", seed=5), make_track("circuit", seed=5), make_track("circuit", seed=6)
    assert one.points.tobytes() == same.points.tobytes()
    assert one.points.shape != other.points.shape or not np.allclose(one.points, other.points)


def test_the_files_are_what_the_gym_reads(track: Track, tmp_path: Path) -> None:
    from PIL import Image

    track.write(tmp_path)
    image, _ = track.occupancy()
    stored = np.asarray(Image.open(tmp_path / f"{track.name}_map.png"))
    assert np.array_equal(stored[::-1], image), "the gym turns it upside down"
    middle = np.loadtxt(tmp_path / f"{track.name}_centerline.csv", delimiter=",")
    assert middle.shape[1] == 4 and (middle[:, 2:] == track.width / 2).all(), "x, y, width to the right and left"
    line = np.loadtxt(tmp_path / f"{track.name}_raceline.csv", delimiter=";")
    assert line.shape[1] == 7 and (np.diff(line[:, 0]) > 0).all()
    assert "resolution: 0.05" in (tmp_path / f"{track.name}_map.yaml").read_text()


def _along(track: Track, along: float, near: float | None = None) -> float:
    x, y, _ = track.pose(along, 0.3)
    return track.along(x, y, near)


def test_progress_does_not_jump_at_the_line(track: Track) -> None:
    total, at = 0.0, _along(track, 0.0)
    for along in np.arange(0.3, 2.5 * track.length, 0.3):
        now = _along(track, along, near=at)
        step = float(progress(at, now, track.length))
        assert 0.0 < step < 0.8
        total, at = total + step, now
    assert total == pytest.approx(2.5 * track.length, abs=1.0)
    back = float(progress(0.1, track.length - 0.1, track.length))
    assert back == pytest.approx(-0.2), "backwards over the line is a small step back"


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"name": "monza"}, "environment.kwargs.track"),
        ({"name": "oval", "width": 0.2}, "environment.kwargs.width"),
        ({"name": "oval", "width": "wide"}, "environment.kwargs.width"),
        ({"name": "circuit", "seed": -1}, "environment.kwargs.track_seed"),
        ({"name": "circuit", "seed": 1.5}, "environment.kwargs.track_seed"),
    ],
)
def test_no_track_can_be_made_of_that(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=field):
        make_track(**arguments)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"beams": 2}, "beams"),
        ({"beams": 36.5}, "beams"),
        ({"max_speed": 50.0}, "max_speed"),
        ({"time_limit": 0}, "time_limit"),
        ({"cars": 1}, "cars"),
        ({"cars": 100}, "cars"),
    ],
)
def test_settings_are_checked_before_the_gym_is_needed(settings: dict[str, Any], field: str) -> None:
    from train_cloud.envs.f1tenth import parallel_env

    with pytest.raises(InputError, match=f"environment.kwargs.{field}"):
        parallel_env(**settings)


def test_without_the_gym_it_says_how_to_install_it(tmp_path: Path) -> None:
    hidden = "import sys; sys.modules['f1tenth_gym'] = None\n"
    code = hidden + (
        "from train_cloud.envs.f1tenth import F1Tenth\nfrom train_cloud.errors import InputError\n"
        "try:\n    F1Tenth()\nexcept InputError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "pip install -r examples/f1tenth/requirements.txt" in done.stdout, done.stderr


# -------------------------------------------------------------------------------------------------------- the real gym


def _steer(observation: Any) -> Any:
    """Towards the side with more room, slowly."""
    beams = (observation[:-4] + 1) / 2
    third = len(beams) // 6
    right, left = beams[third : 2 * third].mean(), beams[-2 * third : -third].mean()
    return np.array([np.clip(2.4 * (left - right), -1, 1), -0.3], np.float32)


@pytest.fixture(scope="module")
def one_car() -> Any:
    import gymnasium

    import train_cloud.envs.f1tenth  # noqa: F401

    return gymnasium.make("F1Tenth-v0", track="oval", time_limit=20.0)


@real
@pytest.mark.f1tenth
def test_one_car_drives_a_lap_and_is_paid_its_length(one_car: Any) -> None:
    observation, info = one_car.reset(seed=4)
    paid, steps, over = 0.0, 0, False
    rewards = []
    while not over:
        assert one_car.observation_space.contains(observation)
        observation, reward, terminated, truncated, info = one_car.step(_steer(observation))
        assert not terminated, info
        rewards.append(reward)
        paid, steps, over = paid + reward, steps + 1, terminated or truncated
    assert truncated and steps == 400, "the time limit: 20 s of 50 ms each"
    assert paid == pytest.approx(info["laps"] * make_track("oval").length)
    assert paid > 25 and max(rewards) < 0.5 and min(rewards) > -0.5, "no jumps"


@real
@pytest.mark.f1tenth
def test_a_crash_ends_and_costs(one_car: Any) -> None:
    one_car.reset(seed=4)
    for _ in range(400):
        _, reward, terminated, truncated, _ = one_car.step(np.array([1.0, 0.5], np.float32))
        if terminated or truncated:
            break
    assert terminated and reward < -4.0


@real
@pytest.mark.f1tenth
def test_states_go_on_in_mid_episode(one_car: Any) -> None:
    import gymnasium

    from train_cloud.envs.f1tenth import parallel_env
    from train_cloud.envs.parallel import Together
    from train_cloud.envs.trial import choose

    choice = choose(lambda: gymnasium.make("F1Tenth-v0", track="oval"))
    assert (choice.provider, choice.exact) == ("own", True), choice
    choice = choose(lambda: Together(parallel_env(track="oval", cars=3)))
    assert (choice.provider, choice.exact) == ("own", True), choice


@real
@pytest.mark.f1tenth
def test_each_car_ends_by_itself(one_car: Any) -> None:
    from train_cloud.envs.f1tenth import parallel_env

    env = parallel_env(track="oval", cars=2, time_limit=8.0)
    observations, _ = env.reset(seed=1)
    ends: dict[str, str] = {}
    while env.agents:
        actions = {name: _steer(observations[name]) for name in env.agents}
        if "car_1" in actions:
            actions["car_1"] = np.array([1.0, 0.2], np.float32)
        observations, rewards, terminations, truncations, _ = env.step(actions)
        assert observations.keys() == rewards.keys() == actions.keys()
        ends |= {name: "crashed" for name, value in terminations.items() if value}
        ends |= {name: "time" for name, value in truncations.items() if value and name not in ends}
    assert ends == {"car_1": "crashed", "car_0": "time"}


@real
@pytest.mark.f1tenth
def test_another_track_in_the_same_process_is_refused(one_car: Any) -> None:
    from train_cloud.envs.f1tenth import F1Tenth

    with pytest.raises(InputError, match="one track in each"):
        F1Tenth(track="circuit")


@real
@pytest.mark.f1tenth
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("cars", [1, 2])
def test_interrupted_it_ends_where_the_uninterrupted_run_ends(warm: Any, tmp_path: Path, cars: int) -> None:
    several = {"id": "train_cloud.envs.f1tenth:parallel_env", "kwargs": {"track": "oval", "cars": cars}}
    one = {"id": "F1Tenth-v0", "module": "train_cloud.envs.f1tenth", "kwargs": {"track": "oval"}}
    run = {
        "algorithm": "sac" if cars == 1 else "sac_multiagent",
        "seed": 3,
        "device": "cpu",
        "total_timesteps": 260,
        "save_frequency": 80,
        "environment": one if cars == 1 else several,
        "hyperparameters": {
            "learning_starts": 60,
            "batch_size": 16,
            "buffer_size": 400,
            "policy_kwargs": {"net_arch": [16, 16]},
        },
        "callbacks": ["interrupting:InterruptAt"],
    }
    twin, cut = (Rehearsed(warm, tmp_path / kind, run) for kind in ("twin", "cut"))
    assert twin.session() == 0, twin.log()
    assert cut.session("SIGTERM@101") == 75, cut.log()
    assert cut.session("SIGKILL@187") == -9, cut.log()
    assert cut.session() == 0, cut.log()
    assert differences(cut.final(), twin.final()) == []
    assert cut.scalars() == twin.scalars()
