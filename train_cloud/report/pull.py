"""pull: a run's artifacts onto this disk, each verified; and the same again and again, for those that grow."""

from __future__ import annotations

import hashlib
import logging
import re
import subprocess
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from train_cloud import child_process
from train_cloud.artifacts.uploads import MANIFEST, digest, read_uploads
from train_cloud.config.code import glob_pattern
from train_cloud.errors import CorruptCheckpoint, InputError, ObjectMissing, StoreUnavailable
from train_cloud.run import layout
from train_cloud.store import FileStore, ObjectStore, open_store
from train_cloud.whole_file import write_whole

log = logging.getLogger(__name__)

_ATTEMPTS = 5
"""A worker may be writing: what does not fit is looked at again, as is the manifest."""


@dataclass(frozen=True)
class Pulled:
    folder: Path
    fetched: int
    """Files that travelled; the others were there already."""
    kept: int
    bytes: int
    unverified: tuple[str, ...]
    """No manifest names them: their length is all that could be checked."""


def pull(
    root: str,
    run_id: str,
    *,
    what: Iterable[str] = (),
    out: Path | None = None,
    each: Callable[[str, int], None] = lambda name, size: None,
) -> Pulled:
    """Write a run's artifacts below ``out``. What lies there already, whole, is not fetched again.

    :param what: names of folders or files, or globs (``videos/**/*.mp4``); all of them by default
    :param out: ``<run_id>`` by default
    :param each: called with name and bytes of what has arrived
    :raises InputError: there is no such run, or nothing of that name
    :raises CorruptCheckpoint: an object is not what the manifest says
    """
    store = open_store(f"{layout.run_url(root, run_id)}/{layout.ARTIFACTS.rstrip('/')}")
    known = _known(store)
    if not known:
        raise InputError("run", run_id, f"it has no artifacts under {root}: check the id, or wait a minute")
    wanted = _wanted(known, list(what))
    folder = out or Path(run_id)
    fetched = kept = size = 0
    for name in wanted:
        if _fits(folder / name, known[name]):
            kept += 1
            continue
        try:
            body = _verified(store, name, known[name])
        except ObjectMissing:  # deleted meanwhile, or no more than a folder's marker
            continue
        write_whole(folder / name, body)
        fetched, size = fetched + 1, size + len(body)
        each(name, len(body))
    return Pulled(folder, fetched, kept, size, tuple(name for name in wanted if not known[name]))


Versions = frozenset[tuple[int, str]]
"""Size and SHA-256 of each content that an object may have at this moment; empty where nobody has said."""


def _known(store: ObjectStore) -> dict[str, Versions]:
    read = None
    try:
        read = read_uploads(store)
    except CorruptCheckpoint as error:
        log.warning("%s: nothing vouches for what is fetched", error)
    versions: dict[str, set[tuple[int, str]]] = {info.key: set() for info in store.list() if info.key != MANIFEST}
    if read is not None:
        for upload in (*read[0].uploaded_files, *read[0].pending):
            if upload.local_path in versions:
                versions[upload.local_path].add((upload.size_bytes, upload.sha256))
    return {name: frozenset(found) for name, found in sorted(versions.items())}


def _wanted(known: Iterable[str], what: list[str]) -> list[str]:
    if not what:
        return list(known)
    chosen = []
    for text in what:
        pattern = glob_pattern(text)
        found = [name for name in known if name.startswith(f"{text.rstrip('/')}/") or pattern.fullmatch(name)]
        if not found:
            there = sorted({re.sub(r"/.*", "/", name) for name in known})
            raise InputError("--what", text, f"nothing is called that; there are: {', '.join(there)}")
        chosen += found
    return sorted(set(chosen))


def _fits(path: Path, versions: Versions) -> bool:
    if not path.is_file():
        return False
    size = path.stat().st_size
    return any(size == wanted for wanted, _ in versions) and (size, digest(path)) in versions


def _verified(store: ObjectStore, name: str, versions: Versions) -> bytes | bytearray | memoryview:
    for attempt in range(_ATTEMPTS):
        try:
            body = store.get(name).body
        except ObjectMissing:
            if not versions or attempt + 1 == _ATTEMPTS:
                raise
            versions = _known(store).get(name, frozenset())
            continue
        if not versions or (len(body), hashlib.sha256(body).hexdigest()) in versions:
            return body
        versions = _known(store).get(name, frozenset())
    raise CorruptCheckpoint(f"{store.url}/{name} is not what {MANIFEST} says of it, after {_ATTEMPTS} attempts")


# --------------------------------------------------------------------------------------------------------- TensorBoard


class Following:
    """Event files of runs in a folder that grows as they do. Files are changed in place: TensorBoard reads on in them.

    :param runs: name of the folder → the run's artifacts
    """

    def __init__(self, runs: dict[str, ObjectStore], folder: Path) -> None:
        self._runs, self._folder = runs, folder

    def update(self) -> int:
        """Fetch what is new; the number of bytes. A run that has logged nothing yet has nothing."""
        return sum(self._update(store, self._folder / name) for name, store in self._runs.items())

    def _update(self, store: ObjectStore, folder: Path) -> int:
        received = 0
        for info in store.list(layout.TENSORBOARD.removeprefix(layout.ARTIFACTS)):
            path = folder / info.key.split("/", 1)[1]
            have = path.stat().st_size if path.is_file() else 0
            if have == info.size:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                if have < info.size and have and isinstance(store, FileStore):
                    body = store.tail(info.key, have)
                    with path.open("ab") as file:
                        file.write(body)
                else:  # new, or cut by the session that went on
                    body = store.get(info.key).body
                    path.write_bytes(body)
            except ObjectMissing:
                continue
            received += len(body)
        return received


def tensorboard(
    runs: dict[str, ObjectStore], folder: Path, *, port: int, interval: float, ready: Callable[[str], None]
) -> int:
    """Show runs in TensorBoard as they are in the store, until it or we are stopped.

    :param folder: for the event files
    :param interval: seconds from look to look
    :param ready: called with TensorBoard's address
    :return: TensorBoard's exit code
    """
    following, over = Following(runs, folder), threading.Event()
    following.update()
    command = child_process.command("tensorboard.main", "--logdir", str(folder), "--port", str(port))
    server = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--reload_interval", "5"],
        stderr=subprocess.DEVNULL,
        env=child_process.environment(),
    )

    def follow() -> None:
        while not over.wait(interval):
            try:
                following.update()
            except StoreUnavailable as error:
                log.warning("not updated: %s", error)

    thread = threading.Thread(target=follow, name="follow", daemon=True)
    thread.start()
    ready(f"http://localhost:{port}/")
    try:
        return server.wait()
    finally:
        over.set()
        server.terminate()
        server.wait()
        thread.join(interval + 5)
