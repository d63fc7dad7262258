"""The protocol broken on purpose, in one way after the other: the tests notice each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PROTOCOL = "tests/test_head.py tests/test_session.py tests/test_protocol.py -k 'not processes'"
CHECKPOINT, STORE = "tests/test_checkpoint.py", "tests/test_store.py"
#: A failure that was found need not be made small.
QUICK = """
import hypothesis
hypothesis.settings.register_profile("quick", phases=[hypothesis.Phase.generate], database=None)
hypothesis.settings.load_profile("quick")
"""


class Mutation(NamedTuple):
    file: str
    before: str
    after: str
    tests: str = PROTOCOL


HEAD, SESSION, COMMIT = "run/head.py", "run/session.py", "checkpoint/commit.py"

MUTATIONS = {
    "a 412 is a win": Mutation(
        HEAD,
        "if standing is not None and standing[0].commit == head.commit:\n            return standing[1]",
        "if standing is not None:\n            return standing[1]",
    ),
    "no If-Match: over whatever stands there": Mutation(
        HEAD,
        "store.swap(layout.HEAD, body, etag)",
        "store.swap(layout.HEAD, body, store.get(layout.HEAD).etag)",
    ),
    "the first head is no create": Mutation(
        HEAD, "store.create(layout.HEAD, body) if", "store.put(layout.HEAD, body) if"
    ),
    "a lost reply is a lost swap": Mutation(
        HEAD,
        "if standing is not None and standing[0].commit == head.commit:\n            return standing[1]\n        raise",
        "raise",
    ),
    "taken with an equal token": Mutation(HEAD, "if current.token >= token:", "if current.token > token:"),
    "taken with any token": Mutation(HEAD, "if current.token >= token:", "if False:"),
    "a fenced worker goes on from its successor's head": Mutation(
        HEAD,
        "if standing is None or standing[0].token != self.head.token:",
        "if standing is None:",
    ),
    "finish ends a newer session's run": Mutation(HEAD, "if head.session > session:", "if False:"),
    "the session number is not kept on the disk": Mutation(
        SESSION, "    write_local(state_dir / _LOCAL, session.model_dump())\n", ""
    ),
    "the session number is not taken by a create": Mutation(
        SESSION, "store.create(layout.start_key(number), body)", "store.put(layout.start_key(number), body)"
    ),
    "the head is swapped before the manifest is written": Mutation(
        COMMIT,
        'reference = writes.put(references.folder + "manifest.json", memoryview(encoded(manifest, self._encoded)))\n'
        "        self._before_head()\n"
        "        self._lease.commit(reference, snapshot.timesteps, outcome=outcome, reason=reason)\n",
        "late = memoryview(encoded(manifest, self._encoded))\n"
        '        key = references.folder + "manifest.json"\n'
        "        reference = Reference(key=key, size=len(late), crc64nvme=crc64nvme(late))\n"
        "        self._before_head()\n"
        "        self._lease.commit(reference, snapshot.timesteps, outcome=outcome, reason=reason)\n"
        "        self._store.put(reference.key, late)\n",
    ),
    "superseded objects go before the head is swapped": Mutation(
        COMMIT,
        "        self._before_head()\n",
        "        self._before_head()\n"
        "        needs = [self._needs.get(kept, before.keys() if before else set()) for kept in manifest.kept]\n"
        "        self._store.delete(sorted(self._written - manifest.keys() - {reference.key}.union(*needs)))\n",
    ),
    "the sweep goes by age": Mutation(
        COMMIT, "and _token_of(info.key) <= token", "and info.modified.timestamp() < 1e9"
    ),
    "the sweep comes before the session's first swap": Mutation(
        COMMIT,
        "                    sent = self._commit(",
        "                    self._newest and self._collect()\n                    sent = self._commit(",
    ),
    "nothing is collected": Mutation(COMMIT, "garbage = self._written - needed", "garbage = set[str]()"),
    "another try writes other bytes": Mutation(
        COMMIT, "self._commit(snapshot, created,", "self._commit(snapshot, created + str(retry.pause_s),"
    ),
    "another try asks anew what is held": Mutation(
        COMMIT,
        "episode_return, others, held, lowest",
        "episode_return, others, self._hold(), lowest",
        f"{CHECKPOINT} -k tried_again",
    ),
    "kept checkpoints' objects are collected": Mutation(
        COMMIT, "            needed |= keys\n", "            needed |= {kept.manifest.key}\n"
    ),
    "contents that later checkpoints name are collected": Mutation(
        "checkpoint/manifest.py",
        "return {part.key for part in self.parts.values()} | {",
        'return {part.key for name, part in self.parts.items() if not name.startswith("content/")} | {',
        CHECKPOINT,
    ),
    "a content that was deleted is named": Mutation(
        COMMIT,
        "        self._contents = {name: part for name, part in self._contents.items() if part.key in needed}\n",
        "",
        CHECKPOINT,
    ),
    "a content is not told from another one": Mutation(
        COMMIT,
        "name: self._contents.get(name) or writes.put(",
        "name: next(iter(self._contents.values()), None) or writes.put(",
        CHECKPOINT,
    ),
    "a merge forgets a row": Mutation(COMMIT, "merged = Segment(first=first,", "merged = Segment(first=first + 1,"),
    "a fork refers to its parent's segments": Mutation(
        "checkpoint/copy.py", "return old.model_copy(update=", "return old if old else old.model_copy(update="
    ),
    "a fork's head replaces another fork's": Mutation(
        HEAD,
        "    _swap(store, head, None)\n",
        "    read = read_head(store)\n    _swap(store, head, read and read[1])\n",
    ),
    "what is read is not verified": Mutation(
        "checkpoint/manifest.py",
        "if found != reference.crc64nvme:",
        "if False:",
        f"{CHECKPOINT} -k damaged",
    ),
    "S3 is sent no If-Match": Mutation("store/s3.py", 'mode={"e_tag": etag}', 'mode="overwrite"', STORE),
    "S3 is sent no If-None-Match": Mutation("store/s3.py", 'mode="create"', 'mode="overwrite"', STORE),
    "a 403 is an absence": Mutation(
        "store/s3.py",
        "                if not self._exists(key, empty=_status(error) == 403):\n"
        "                    raise ObjectMissing",
        "                if True:\n                    raise ObjectMissing",
        STORE,
    ),
    "a folder compares no e-tag": Mutation("store/folder.py", "if standing != etag:", "if False:", STORE),
    "a rollback names what is preserved no longer": Mutation(
        "operations/rollback.py", 'return manifest.model_copy(update={"kept": older})', "return manifest"
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_what_is_to_be_broken_is_there(name: str) -> None:
    """Otherwise the test below would break nothing, or something else."""
    mutation = MUTATIONS[name]
    assert (ROOT / "train_cloud" / mutation.file).read_text().count(mutation.before) == 1


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [None, *MUTATIONS])
def test_the_tests_notice(name: str | None, tmp_path: Path) -> None:
    """In a copy of the package; without a mutation they pass."""
    for folder in ("train_cloud", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "tests" / "conftest.py").open("a") as conftest:
        conftest.write(QUICK)
    mutation = MUTATIONS[name] if name else Mutation("", "", "")
    if name:
        path = tmp_path / "train_cloud" / mutation.file
        path.write_text(path.read_text().replace(mutation.before, mutation.after))
    path_variable = os.pathsep.join([str(tmp_path), str(tmp_path / "tests"), str(tmp_path / "tests" / "support")])
    done = subprocess.run(
        f"{sys.executable} -m pytest -x -q -p no:cacheprovider -m 'not full' {mutation.tests}",
        shell=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path_variable, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == (1 if name else 0), done.stdout[-5000:] + done.stderr[-2000:]
    if name:
        print(next(line for line in done.stdout.splitlines() if line.startswith("FAILED tests")))
