"""The report page: one file that loads nothing, and that a browser shows on a phone and on a desk."""

from __future__ import annotations

import html.parser
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from fabricated import episode, evaluation_of
from PIL import Image

from train_cloud.artifacts import tensorboard
from train_cloud.cli import main
from train_cloud.evaluate.results import Episode, Evaluation
from train_cloud.report.cloned import Evaluated, cloned
from train_cloud.report.html_report import _best, _Marks, _plot
from train_cloud.report.html_report import page as html_page
from train_cloud.report.status import run_status
from train_cloud.run import layout
from train_cloud.run.head import Lease, Reference
from train_cloud.run.session import begin_session, end_session, write_progress
from train_cloud.store import ObjectStore, open_store

RUN_YAML = "run_id: racer\nalgorithm: sac  # <b>not bold</b>\ntotal_timesteps: 40000\n"
LONG = "an_extremely_long_name_of_a_racing_track_with_obstacles_and_more"
REASON = f"""5 attempts without a new commit; the last: Traceback (most recent call last):
  File "/opt/train-cloud/code/my_project/{LONG}.py", line 1203, in step
    observation, reward, terminated, truncated, info = self._simulator.advance(action, self._seconds_per_step)
RuntimeError: <the simulator> has left the track"""
PRICE = {"price": {"spot": 0.31, "on_demand": 1.006, "life_cycle": "spot"}}
CONSTANTS = (200.0, 3e-4, 0.001, -5.0, 1e9, 1e-12)
SPOT = {"instance_type": "g5.xlarge", "availability_zone": "eu-central-1a", "setup_seconds": 300.0, **PRICE}


def evaluation(timesteps: int, reward: float) -> Evaluation:
    def played(name: str, index: int) -> Episode:
        first: dict[str, Any] = {
            "video": f"videos/{name}/{LONG}_{name}_000_failure.mp4",
            "route": f"route_visualizations/route_{LONG}_{name}.png",
        }
        what: dict[str, Any] = {"category": name, "index": index, "seed": index, "length": 100, "terminated": False}
        what |= {"success": index > 0, "collisions": 1.0, "inference_ms": 0.4}
        return episode(reward + index, **what, **(first if index == 0 else {}))

    by_category = {name: [played(name, index) for index in range(4)] for name in ("easy", "hard")}
    return evaluation_of(timesteps, by_category, ["no videos of <hard>: there is no display"])


def film(path: Path) -> bytes:
    writer = imageio_ffmpeg.write_frames(str(path), (64, 48), fps=10, codec="libx264", macro_block_size=1)
    writer.send(None)
    for shade in range(10):
        writer.send(np.full((48, 64, 3), 20 * shade, np.uint8))
    writer.close()
    return path.read_bytes()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run with two interruptions, evaluations, a video and routes."""
    folder = tmp_path_factory.mktemp("page")
    root = str(folder / "store")
    store: ObjectStore = open_store(layout.run_url(root, "racer"))
    store.create(layout.RUN_YAML, RUN_YAML.encode())
    reached = 0
    for number, ended_by in enumerate(("notice", None, "completed")):
        details = {"run_file": {"total_timesteps": 40_000}, **SPOT}
        session = begin_session(
            store, folder, instance_id=f"i-{number}", boot_id=str(number), details=details, persist=False
        )
        lease = Lease.take(store, session.token, f"i-{number}")
        before, reached = reached, [15_000, 30_000, 40_000][number]
        lease.commit(Reference(key="checkpoints/x", size=1, crc64nvme=0), reached)
        short = {"timesteps": reached, "mean_return": 3.0, "success_rate": 0.75}
        write_progress(
            store, session, first_timestep=before, timesteps=reached, exact=True, exact_because="", evaluation=short
        )
        if ended_by:
            end_session(store, session, ended_by=ended_by, first_timestep=before, last_timestep=reached)
    lease.conclude("failed", REASON)
    events = folder / "events"
    for at in range(1000, 40_001, 1000):
        values = {
            "rollout/ep_rew_mean": -200 + at / 200,
            "train/actor_loss": float(np.sin(at / 3000)),
            "x/nan": float("nan"),
            **{f"constant/{value}": value for value in CONSTANTS},
            "rollout/success_rate": 0.0,
        }
        tensorboard.write_scalars(events / f"events.out.tfevents.{at:09d}", at, values)
    for path in events.iterdir():
        store.put(layout.TENSORBOARD + path.name, path.read_bytes())
    for timesteps, reward in ((20_000, -30.0), (30_000, 5.0), (40_000, 2.0)):
        body = evaluation(timesteps, reward).model_dump_json(by_alias=True).encode()
        store.put(layout.evaluation_key(timesteps), body)
    clip = film(folder / "clip.mp4")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)).save(folder / "route.png")
    for name in ("easy", "hard"):
        store.put(f"artifacts/videos/{name}/{LONG}_{name}_000_failure.mp4", clip)
        store.put(f"artifacts/route_visualizations/route_{LONG}_{name}.png", (folder / "route.png").read_bytes())
    store.put("artifacts/videos/easy/of_an_earlier_evaluation.mp4", clip)
    out = folder / "out" / "racer.html"
    assert main(["report", "racer", "--store", root, "--out", str(out)]) == 0
    return out


class _Loads(html.parser.HTMLParser):
    """Notes everything that a browser would fetch, and that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.urls += [value or "" for name, value in attributes if name in ("src", "href", "poster", "srcset")]
        if tag not in ("meta", "img", "path", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.urls += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_it_loads_nothing(page: Path) -> None:
    text = page.read_text()
    loads = _Loads()
    loads.feed(text)
    assert not loads.open
    assert len(loads.urls) == 2 + 2 * 2 and all(url.startswith("data:") for url in loads.urls)
    assert "<script" not in text and "@import" not in text and "url(" not in text


def test_it_says_what_happened(page: Path) -> None:
    text = page.read_text()
    for said in (
        "racer <span",
        ">40,000</b><span>timesteps of 40,000",
        ">2</b><span>interruptions",
        "g5.xlarge",
        "eu-central-1a",
        "less than on demand",
        "the one at 30,000 timesteps",
        "Evaluation at 40,000 timesteps",
        "no videos of &lt;hard&gt;",
        "# &lt;b&gt;not bold&lt;/b&gt;",
        "mean return of the last 100 training episodes",
        "train/actor_loss",
    ):
        assert said in text, said
    assert "of_an_earlier_evaluation" not in text
    assert "nan" not in re.sub(r'"data:[^"]*"', "", text)


def test_a_run_that_has_only_been_launched_has_a_page(tmp_path: Path) -> None:
    open_store(layout.run_url(str(tmp_path), "new")).create(layout.RUN_YAML, b"run_id: new\n")
    assert main(["report", "new", "--store", str(tmp_path), "--out", str(tmp_path / "new.html")]) == 0
    assert "waiting" in (tmp_path / "new.html").read_text()


@pytest.mark.parametrize("value", [*CONSTANTS, 0.0])
def test_a_constant_curve_has_an_axis_to_be_read_from(value: float) -> None:
    plot = _plot("t", [(0, value), (10, value)], _Marks(()))
    assert plot is not None
    labels = [label for _, label in plot.y_ticks]
    assert len(labels) >= 3 and len(set(labels)) == len(labels) and "0" in labels
    assert all(len(label) <= 8 for label in labels)
    heights = [float(point.split()[1]) for point in plot.path[1:].split("L")]
    assert all(height == pytest.approx(1000 if value == 0 else 500, abs=120) for height in heights)


def test_a_rate_is_shown_between_0_and_1() -> None:
    plot = _plot("t", [(0, 0.4), (10, 0.5)], _Marks(()), [(0, 0.2, 0.9), (10, 0.1, 1.0)], (0.0, 1.0))
    assert plot is not None and [plot.y_ticks[0][1], plot.y_ticks[-1][1]] == ["0", "1"]


@pytest.mark.parametrize(
    ("means", "best"), [([1.0], None), ([1.0, 2.0], 2), ([2.0, 1.0, 2.0], None), ([0.0, 0.0], None), ([], None)]
)
def test_the_best_is_better_than_all_others(means: list[float], best: int | None) -> None:
    evaluations = [{"timesteps": at, "overall": {"returns": {"mean": mean}}} for at, mean in enumerate(means, 1)]
    assert _best(evaluations) == best


@pytest.mark.parametrize(
    ("means", "below"),
    [
        ([(0, 5.0), (10, 4.5), (20, 3.9), (30, 9.0)], [20]),
        ([(0, 5.0), (10, 1.0), (20, 2.0)], [10, 20]),
        ([(0, 5.0)], []),
        ([(10, 5.0), (20, 1.0)], None),
        ([], None),
    ],
)
def test_a_fall_below_the_cloned_policy_is_marked(means: list[tuple[int, float]], below: list[int] | None) -> None:
    found = cloned(Evaluated(at, mean, (mean - 1, mean + 1)) for at, mean in means)
    assert (found and found.below) == below
    without = cloned(Evaluated(at, mean, None) for at, mean in means)
    assert (without is None) == (below is None)
    if without is not None:
        assert without.below == [at for at, mean in means if mean < 5.0]


def test_the_page_says_where_it_fell_below_the_cloned_policy(tmp_path: Path) -> None:
    store: ObjectStore = open_store(layout.run_url(str(tmp_path), "racer"))
    session = begin_session(store, tmp_path, instance_id="i-0", boot_id="0", details={}, persist=False)
    Lease.take(store, session.token, "i-0").commit(Reference(key="checkpoints/x", size=1, crc64nvme=0), 2000)
    epochs = {"epoch": 2.0, "loss": 0.5, "held_out_accuracy": 0.75}
    below = {"timesteps": 2000, "mean_return": -30.0, "success_rate": None, "below_cloned": 5.0}
    reached = {"first_timestep": 0, "timesteps": 2000, "exact": True, "exact_because": ""}
    write_progress(store, session, **reached, evaluation=below, pretraining=epochs)
    for timesteps, reward in ((0, 5.0), (1000, 5.0), (2000, -30.0)):
        body = evaluation(timesteps, reward).model_dump_json(by_alias=True).encode()
        store.put(layout.evaluation_key(timesteps), body)
    for epoch in (1, 5000):
        scalars = {"pretrain/loss": 1.0 / epoch}
        tensorboard.write_scalars(tmp_path / "events" / f"events.out.tfevents.{epoch:09d}", epoch, scalars)
    for path in (tmp_path / "events").iterdir():
        store.put(layout.TENSORBOARD + path.name, path.read_bytes())
    out = tmp_path / "racer.html"
    assert main(["report", "racer", "--store", str(tmp_path), "--out", str(out)]) == 0
    text = out.read_text()
    assert "the evaluation at 2,000 timesteps" in " ".join(text.split()) and 'class="level"' in text
    assert "pretrain/loss" in text, "an epoch is no timestep"
    found = run_status(str(tmp_path), "racer")
    assert found.pretraining == epochs and found.evaluation == below


def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no Chromium: scripts/get_browser.sh")
    return str(found)


LOOK = """<script>
addEventListener("load", () => setTimeout(() => {
  const wide = [...document.querySelectorAll("body *")].filter(
    e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll, pre, svg"));
  document.body.innerHTML = "<pre id=found>" + JSON.stringify({
    scrolling: [...document.querySelectorAll("pre, .scroll")].filter(e => e.scrollWidth > e.clientWidth + 1)
      .map(e => e.tagName),
    overflowing: [...document.querySelectorAll("figcaption, p, td, b, summary")]
      .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.slice(0, 80)),
    lines: [...document.querySelectorAll("header pre")].map(e => e.textContent.split("\\n").length),
    width: document.documentElement.scrollWidth, inner: innerWidth, wide: wide.map(e => e.outerHTML.slice(0, 80)),
    videos: [...document.querySelectorAll("video")].map(v => [v.videoWidth, v.duration]),
    pictures: [...document.querySelectorAll("img")].map(i => i.naturalWidth),
    small: [...document.querySelectorAll("p, td, .tick, figcaption")].map(
      e => parseFloat(getComputedStyle(e).fontSize)),
    curves: [...document.querySelectorAll("path.curve")].map(p => p.getTotalLength()),
  }) + "</pre>";
}, 1500));
</script>"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [500, 1400])
def test_a_browser_shows_it(page: Path, tmp_path: Path, width: int) -> None:
    """Nothing sticks out, every picture and video is one, text is readable, curves are drawn. Headless Chromium's
    window is at least 500 pixels wide.
    """
    watched = tmp_path / "page.html"
    watched.write_text(page.read_text() + LOOK)
    command = [chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--virtual-time-budget=20000"]
    shown = subprocess.run([*command, watched.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    match = re.search(r'<pre id="found">(.*?)</pre>', shown.stdout, re.DOTALL)
    assert match is not None, shown.stderr[-2000:]
    import html as entities

    found: dict[str, Any] = json.loads(entities.unescape(match[1]))
    assert found["width"] <= found["inner"], found
    assert not found["wide"], found
    assert found["videos"] == [[64, pytest.approx(1.0, abs=0.2)]] * 2
    assert found["pictures"] == [400, 400]
    assert min(found["small"]) >= 11.5
    assert not found["overflowing"], "text that lies over its neighbour"
    assert found["scrolling"] == ([] if width > 1000 else ["DIV", "DIV"]), "tables on a phone alone"
    assert found["lines"] == [4], "a traceback keeps its lines"
    assert len(found["curves"]) >= 3 and all(length > 500 for length in found["curves"])


def test_a_loops_page_shows_its_score_and_names_its_unit(tmp_path: Path) -> None:
    store = open_store(layout.run_url(str(tmp_path), "loop"))
    details = {"run_file": {"total_timesteps": 40_000}}
    session = begin_session(store, tmp_path / "state", instance_id="i-1", boot_id="b", persist=False, details=details)
    score = {"name": "val/loss", "direction": "min", "best": 0.1}
    write_progress(store, session, timesteps=2, unit="steps", score=score)
    run = run_status(str(tmp_path), "loop")
    curves = {"val/loss": [(1, 2.0), (2, 1.0)], "other": [(1, 1.0), (2, 3.0)]}
    media = {"pictures/one.png": b"png"}
    text = html_page(run, run_yaml="", scalars=curves, evaluations=[], media=media, left_out=[], made="now")
    assert "<h2>Pictures</h2>" in text and "Routes" not in text
    assert "steps of 40,000" in text and "steps done again" in text and "timesteps done again" not in text
    shown, _, folded = text.partition("<details>")
    assert "val/loss" in shown and "other, 1 more" in folded and "val, " not in folded
    without = html_page(
        run.model_copy(update={"score": None}),
        run_yaml="",
        scalars=curves,
        evaluations=[],
        media={},
        left_out=[],
        made="now",
    )
    assert "<details open><summary>other, 1</summary>" in without
