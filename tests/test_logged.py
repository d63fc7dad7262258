"""What was logged and not yet sent, into a checkpoint and back, whatever the store's files have become since."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from train_cloud.artifacts import tables, tensorboard
from train_cloud.artifacts.logged import Logged
from train_cloud.artifacts.tensorboard import event_files, read_scalars
from train_cloud.checkpoint.format import pack, unpack
from train_cloud.sb3.scalars import Episodes, Table
from train_cloud.snapshot import Part

HEAD = 60


def log(folder: Path, first: int, last: int, session: int = 1, *, more: bool = False) -> None:
    """Steps ``first`` to ``last``, as a session does: an episode of both environments at each, scalars at every other.

    :param more: with a column that is new
    """
    episodes = Episodes(folder / "monitor.csv", "Pendulum-v1", 0.0)
    table = Table(folder / "progress.csv")
    suffix = f".session-{session:06d}"
    there = [path for path in event_files(folder / "tensorboard") if path.name.endswith(suffix)]
    assert not there, "a session begins its file once"
    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first or None, filename_suffix=suffix)
    for step in range(first, last + 1):
        for env in (0, 1):
            episodes.add(step, env, {"r": step / 7 + env, "l": 3, "t": session + step})
        if step % 2 == 0:
            values = {"time/fps": 5.0 * session, "loss": step / 3, **({"new": step} if more and step > 50 else {})}
            table.write(values, dict.fromkeys(values, ()), step)
            for name, value in values.items():
                writer.add_scalar(name, value, step)
    writer.close()


def growing(folder: Path) -> list[Path]:
    return [*event_files(folder / "tensorboard"), *sorted(folder.glob("*.csv"))]


def contents(folder: Path) -> dict[str, object]:
    return {
        "scalars": read_scalars(folder / "tensorboard"),
        **{path.name: path.read_text() for path in folder.glob("*.csv")},
    }


def cut(folder: Path, timesteps: int) -> None:
    tensorboard.cut(folder / "tensorboard", timesteps)
    for path in folder.glob("*.csv"):
        tables.cut(path, timesteps)


def copy_of(folder: Path, there: Path, sizes: dict[str, int]) -> Path:
    """What the store has: the beginnings of the files."""
    for path in growing(folder):
        name = path.relative_to(folder).as_posix()
        if sizes.get(name):
            (there / name).parent.mkdir(parents=True, exist_ok=True)
            (there / name).write_bytes(path.read_bytes()[: sizes[name]])
    return there


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    log(folder, 0, 99, more=True)
    return folder


@pytest.mark.parametrize("seed", range(12))
def test_a_new_disk_has_all_up_to_the_head(original: Path, tmp_path: Path, seed: int) -> None:
    """The store's files stop anywhere: before any record, within one, before or behind the head."""
    chance = random.Random(seed)
    sizes = {
        path.relative_to(original).as_posix(): chance.choice([0, chance.randrange(path.stat().st_size + 1)])
        for path in growing(original)
    }
    part = Logged(original, lambda name: sizes[name]).take(growing(original))
    part = unpack(memoryview(bytes(pack(part))), "logged")  # as it comes back from the store
    later = {name: chance.randrange(size, (original / name).stat().st_size + 1) for name, size in sizes.items()}
    for number, stored in enumerate((sizes, later)):  # right after the commit, or after another sync
        there = copy_of(original, tmp_path / str(number), stored)
        there.mkdir(exist_ok=True)
        Logged(there, lambda name: 0).add(part)
        cut(there, HEAD)
        expected = tmp_path / f"{number}-expected"
        copy_of(original, expected, dict.fromkeys(sizes, 1 << 30))
        cut(expected, HEAD)
        assert contents(there) == contents(expected)
        before = contents(there)
        Logged(there, lambda name: 0).add(part)  # a second session from the same head
        cut(there, HEAD)
        assert contents(there) == before


def test_files_that_a_session_without_a_commit_left(original: Path, tmp_path: Path) -> None:
    """It cut them at the head, logged beyond it what it computed again, sent that, and died."""
    sizes = {path.relative_to(original).as_posix(): path.stat().st_size // 3 for path in growing(original)}
    part = Logged(original, lambda name: sizes[name]).take(growing(original))
    there = copy_of(original, tmp_path / "there", sizes)
    Logged(there, lambda name: 0).add(part)
    cut(there, HEAD)
    expected = contents(there)
    log(there, HEAD + 1, 80, session=2)
    Logged(there, lambda name: 0).add(part)
    cut(there, HEAD)
    assert contents(there) == expected


def test_only_what_is_new_is_taken(original: Path, tmp_path: Path) -> None:
    sizes = {path.relative_to(original).as_posix(): path.stat().st_size for path in growing(original)}
    assert Logged(original, lambda name: sizes[name]).take(growing(original)) == Part({})
    there, sent = tmp_path / "there", dict.fromkeys(sizes, 0)
    logged, taken = Logged(there, lambda name: sent[name]), []
    for tenths in range(1, 11):  # a commit, then a sync, as the files grow
        copy_of(original, there, {name: size * tenths // 10 for name, size in sizes.items()})
        taken.append(sum(array.nbytes for array in logged.take(growing(there)).arrays.values()))
        sent = {name: size * tenths // 10 for name, size in sizes.items()}
    assert max(taken) < 0.25 * sum(sizes.values()), taken


def test_a_record_in_the_making_stays_out(original: Path, tmp_path: Path) -> None:
    there = copy_of(original, tmp_path, {path.relative_to(original).as_posix(): 1 << 30 for path in growing(original)})
    for path in growing(there):
        path.write_bytes(path.read_bytes()[:-3])
    part = Logged(there, lambda name: 0).take(growing(there))
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    Logged(fresh, lambda name: 0).add(part)
    cut(there, 1000)
    assert contents(fresh) == contents(there)
    assert "98" in (fresh / "monitor.csv").read_text()


@pytest.mark.parametrize("rows", [0, 3, 40])
def test_the_end_of_a_table_begins_with_a_row(tmp_path: Path, rows: int) -> None:
    """Wherever it is cut; also where a row is longer than what is read at first."""
    path = tmp_path / "progress.csv"
    lines = [b"timesteps,text\n", *(b"%d,%s\n" % (number, b"x" * 9000 * (number % 20)) for number in range(rows))]
    whole = b"".join(lines)
    path.write_bytes(whole + b"99,unfin")
    at = 0
    for number, line in enumerate(lines):
        for start in {at, at + len(line) // 2, at + len(line) - 1}:
            assert tables.end(path, start) == lines[0] + b"".join(lines[max(1, number) :])
        at += len(line)
    assert tables.end(path, len(whole)) == lines[0]


@pytest.mark.parametrize(
    "there", [b"", b"#{", b"#{}\n", b"#{}\ntimest", b"#{}\ntimesteps,r\n", b"#{}\ntimesteps,r\n1,2"]
)
def test_a_table_whose_head_is_torn(tmp_path: Path, there: bytes) -> None:
    path, whole = tmp_path / "monitor.csv", b"#{}\ntimesteps,r\n1,2.5\n3,4\n"
    path.write_bytes(there)
    tables.extend(path, whole)
    assert path.read_bytes() == whole
