"""``verdict.json``: what an acceptance test came to, part by part, for those who launch."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from seatrial.runs.evidence import Verdict

Judge = Literal["rule", "specification", "peers", "history"]
Blame = Literal["", "node", "link", "fabric", "config", "user"]
Profile = Literal["gpu", "cpu", "rehearsal"]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Finding(_Frozen):
    """What one judge says of one metric of one part."""

    check: str
    verdict: Verdict
    judge: Judge
    """Who says so: a rule (a state that is right or wrong), the specification's floor, the peers, or the own history."""
    message: str
    """One sentence that names the part and the figures."""
    metric: str = ""
    node: str | None = None
    """None is the cluster as a whole."""
    gpu: int | None = None
    peer: str | None = None
    peer_gpu: int | None = None
    blame: Blame = ""
    """What is at fault, of WARN and FAIL."""
    code: str = ""
    """The reason as one word: ``no_report``, ``below_floor``, ``slow_against_peers``, ``drift``, ``not_read``."""
    measured: Any = None
    expected: Any = None
    unit: str = ""
    source: str = ""
    """Where `expected` comes from."""
    remedy: str = ""

    @property
    def blames_node(self) -> bool:
        """Whether trouble is laid at the node's door: all but that of its links, of the fabric, and of what a user did."""
        return self.node is not None and self.blame not in {"link", "fabric", "user"}


class NodeVerdict(_Frozen):
    """One node: the worst of what was found of it and its GPUs, for which it is itself at fault."""

    name: str
    verdict: Verdict
    reason: str = ""
    """The message of the worst finding."""
    gpus: tuple[str, ...] = ()
    """Names of its GPUs."""
    fingerprint: str = ""
    """Hash of what `hardware` says; another one is another machine."""
    hardware: dict[str, Any] = {}
    """GPU UUIDs, CPU, memory, driver: what the hash is of."""


class Coverage(_Frozen):
    """How much of what was required did run."""

    required: tuple[str, ...] = ()
    missing: dict[str, str] = {}
    """By required check, why it has no result."""


class Acceptance(_Frozen):
    """The whole verdict, as it stands in the file."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    run_id: str
    suite: str
    suite_sha256: str
    platform: str
    """Of the backend: ``slurm``, ``local``."""
    cluster: str = ""
    """Which cluster of that platform; the host's name for ``local``."""
    profile: Profile
    """What was tested: a verdict of CPUs, or of pretend nodes, says nothing of GPUs."""
    verdict: Verdict
    exit_code: int
    sentence: str
    """The outcome in one line, with the names of the nodes that failed."""
    tested: datetime
    expires: datetime
    nodes: tuple[NodeVerdict, ...]
    coverage: Coverage = Coverage()
    findings: tuple[Finding, ...] = ()
    ceilings: dict[str, dict[str, float]] = {}
    """By node: the best that was measured there of each rate, for gates on utilisation."""
    key: str = ""
    """Public key of who signed, in hex."""
    signature: str = ""
    """Ed25519 over the canonical JSON of all the rest, in hex."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
