"""What a removal loses, and the proof that nothing of it is left."""

from __future__ import annotations

from collections.abc import Iterator

from seatrial.errors import MeasuredFailure
from seatrial.provision.nebius import account, make
from seatrial.provision.nebius.changes import FILESYSTEM
from seatrial.provision.nebius.cloud import Thing
from seatrial.provision.nebius.make import Job
from seatrial.provision.nebius.tables import GIB


def losses(job: Job, before: list[Thing]) -> Iterator[str]:
    """What dies, for people."""
    project = job.looked.case.spec.cloud.project
    attached = {t.id: t.detail for t in job.cloud.things(FILESYSTEM, project)}
    for thing in before:
        if thing.kind == FILESYSTEM:
            detail = attached.get(thing.id, "")
            yield f"LOST FOR EVER  {thing.name}: {(thing.size_bytes or 0) / GIB:,.0f} GiB ({thing.id})" + (f", {detail}" if detail else "")  # fmt: skip
    kept = [s for s in job.looked.case.stores if s.existing]
    for store in kept:
        yield f"stays          {store.name}: {store.existing}"
    rest = [t for t in before if t.kind != FILESYSTEM]
    for thing in rest:
        yield f"removed        {thing.kind.removeprefix('nebius_')} {thing.name}"


def prove(job: Job, before: list[Thing]) -> Iterator[str]:
    """What was looked at, for people.

    Raises:
        MeasuredFailure: something is left that costs money.
    """
    still = make.left(job, before)
    if still:
        raise MeasuredFailure(
            "something of the cluster is left, and costs money", evidence="\n".join(f"{t.kind} {t.name} ({t.id})" for t in still),
            remedy=f"seatrial cluster down {job.work.name}    tries again",
        )  # fmt: skip
    spec = job.looked.case.spec
    yield f"gone: all {len(before)} things that were made and cost money; each was looked for by its id"
    others = make.others(job, spec.cloud.project, {t.id for t in before})
    state = account.bucket_name(spec.cloud.tenant, spec.cloud.project)
    for thing in others:
        what = "the state of this project's clusters; it stays" if thing.name == state else "not made by this cluster's Terraform; look whether a volume of it"  # fmt: skip
        yield f"still in the project: {thing.kind.removeprefix('nebius_')} {thing.name} ({thing.id}): {what}"
    if account.forget_key(job.cloud, job.work.private):
        yield "gone: the state's key"
