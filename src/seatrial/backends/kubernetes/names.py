"""What Seatrial's objects are called, and the labels by which they are known."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from seatrial.errors import SpecError

RUN = "seatrial/run"
"""Label of everything that belongs to a run: its short name in the cluster."""
ATTEMPT = "seatrial/attempt"
RUN_ID = "seatrial/run-id"
"""Annotation: the run's whole id, which may be longer than a label may."""
MANAGED = {"app.kubernetes.io/managed-by": "seatrial"}
_LONGEST = 40
"""Leaves room for what controllers add: ``-a12``, ``-node-0``, a pod's index and five letters; all within 63."""


def short_name(run_id: str) -> str:
    """A run's name in the cluster: small letters, digits and dashes, at most 40 (RFC 1035).

    It ends as the id does, which is what tells two runs of one name apart; what is cut is made up for by a hash.
    """
    plain = re.sub(r"[^a-z0-9]+", "-", run_id.lower()).strip("-")
    if not plain[:1].isalpha():
        plain = f"run-{plain}".rstrip("-")
    if len(plain) <= _LONGEST:
        return plain
    digest = hashlib.sha256(run_id.encode()).hexdigest()[:8]
    return f"{plain[: _LONGEST - 9].rstrip('-')}-{digest}"


def job_name(run_id: str, attempt: int) -> str:
    """Of the job that an attempt is submitted as."""
    return f"{short_name(run_id)}-a{attempt}"


def labels(run_id: str, attempt: int) -> dict[str, str]:
    """Of all objects of an attempt."""
    return {**MANAGED, RUN: short_name(run_id), ATTEMPT: str(attempt)}


@dataclass(frozen=True, slots=True)
class Handle:
    """``k8s://<namespace>/<kind>/<name>/<context>``, without the scheme; a context may have slashes."""

    namespace: str
    kind: str
    name: str
    context: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.kind}/{self.name}/{self.context}"

    @classmethod
    def parse(cls, native: str) -> Handle:
        """What `str` gave; `SpecError` for anything else."""
        parts = native.split("/", 3)
        if len(parts) != 4 or not all(parts):
            raise SpecError(
                f"k8s://{native} is not a job's handle", evidence="one looks like k8s://ml/job/NAME/CONTEXT"
            )
        return cls(*parts)
