"""What a session can say about its exactness, and on which evidence.

*No*, with the reason, as soon as anything speaks against it: another machine, an environment whose state is not kept,
or steps that were computed twice with different results. *Proved*, when a replay in a fresh process came to the same
results with the same code, libraries and kind of machine. *Not contradicted* otherwise.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from train_cloud.run.session import SessionRecord
from train_cloud.snapshot import is_pretraining

if TYPE_CHECKING:
    from train_cloud.sb3.digest import Digests, Recording
    from train_cloud.snapshot import Snapshot

log = logging.getLogger(__name__)

Kind = Literal["proved", "not contradicted", "no"]

#: Of the checksums, in a checkpoint's facts and in a session's progress record.
DIGESTS = "digests"
PROOF = "proof"
#: What the checkpoint lacks, ``path: reason`` each.
NOT_KEPT = "not_kept"
_LOCAL = "digests"


class Evidence:
    """For and against the exactness of one session. Its methods may be called from any thread.

    :param trial: file for the checksums of all steps, where the session is part of a proof
    """

    def __init__(self, trial: Path | None = None) -> None:
        self._trial = trial
        self._lock = threading.Lock()
        self.because = ""
        """Why it is not exact; empty while nothing speaks against it."""
        self._not_kept: Sequence[str] = ()
        self._proof: Mapping[str, Any] | None = None
        self._earlier_proof: Mapping[str, Any] | None = None
        self._digests: Digests | None = None
        self._of = ""
        self._of_a_loop: Mapping[str, Any] = {}

    @property
    def exact(self) -> bool:
        return not self.because

    @property
    def kind(self) -> Kind:
        if self.because:
            return "no"
        return "proved" if self._proof is not None else "not contradicted"

    def object(self, because: str) -> None:
        """Something speaks against it. The first reason stays."""
        with self._lock:
            if not self.because:
                self.because = because
                log.warning("an interruption of this run is not exact: %s", because)

    def prove(self, proof: Mapping[str, Any]) -> None:
        """A replay came to the same results.

        :param proof: for the checkpoints' facts, JSON values
        """
        self._proof = proof

    def begin(
        self,
        state_dir: Path,
        identity: Mapping[str, Any],
        facts: Mapping[str, Any] | None,
        before: Sequence[SessionRecord],
    ) -> Digests:
        """Make the session's checksums, which compare what it computes with what earlier ones have recorded.

        :param identity: of the run, its id too; what another one has left in ``state_dir`` is ignored
        :param facts: of the checkpoint that the session goes on from; None where it begins the run: nothing was
            committed then, and nothing can be lost
        :param before: the sessions' records, this one's own among them if its process was started again
        """
        from train_cloud.sb3.digest import Digests, Recording, read_table

        self._not_kept = tuple((facts or {}).get(NOT_KEPT, ()))
        self._of = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        expected: list[Recording] = []
        if facts is not None:
            self._earlier_proof = facts.get(PROOF)
            local = read_table(state_dir / _LOCAL, "what was computed here before", self._of)
            expected += [local] if local is not None else []
            for record in before:
                with contextlib.suppress(KeyError, ValueError, TypeError, IndexError):  # not written by us
                    found = (record.progress or {})[DIGESTS]
                    if found["of"] == self._of:
                        expected.append(Recording.of(f"what session {record.number} computed", found))
        self._digests = (
            Digests(state_dir / _LOCAL, self._of) if self._trial is None else Digests(self._trial, keep_all=True)
        )
        self._digests.expect(expected)
        self._digests.on_difference = lambda difference: self.object(str(difference))
        return self._digests

    def facts(self, snapshot: Snapshot) -> dict[str, Any]:
        """For the checkpoint that ``snapshot`` becomes: what its facts say already, and the evidence. Called in the
        thread that commits: it reads every tensor.
        """
        from train_cloud.sb3.digest import sum_of

        assert self._digests is not None
        parameters = sum_of(snapshot.parts)
        if not is_pretraining(snapshot.facts):  # of which several are at timesteps 0
            self._digests.kept(snapshot.timesteps, parameters)
        facts: dict[str, Any] = {**snapshot.facts, DIGESTS: {**snapshot.facts[DIGESTS], "parameters": parameters}}
        if self.because and facts.get("exact", True):
            facts |= {"exact": False, "exact_because": self.because}
        facts["exact_evidence"] = self.kind if facts.get("exact", True) else "no"
        self._not_kept = tuple(facts.get(NOT_KEPT, ()))
        self._of_a_loop = {name: facts[name] for name in ("unit", "score") if name in facts}
        proof = self._proof or self._earlier_proof  # which holds on another machine than this, perhaps
        if proof is not None and not self.because:
            facts[PROOF] = proof
        return facts

    def recording(self) -> Recording:
        """What was computed since the last commit."""
        assert self._digests is not None
        return self._digests.recording("the training")

    def committed(self, facts: Mapping[str, Any]) -> None:
        """:param facts: what :meth:`facts` gave for a checkpoint that the head names now"""
        assert self._digests is not None
        self._digests.committed(facts[DIGESTS])

    def progress(self) -> dict[str, Any]:
        """For the session's progress record."""
        said: dict[str, Any] = {"exact": self.exact, "exact_because": self.because, "exact_evidence": self.kind}
        said[NOT_KEPT] = list(self._not_kept)
        said.update(self._of_a_loop)
        if self._digests is not None:
            said[DIGESTS] = {"of": self._of, **self._digests.reported()}
        return said
