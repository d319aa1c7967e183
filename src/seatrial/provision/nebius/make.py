"""Making, changing and removing a cluster: plan, look, decide, carry out, verify."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from seatrial.errors import InterruptedRunError, MeasuredFailure, PlatformError, SpecError
from seatrial.provision.nebius import account, adopt, online, preflight
from seatrial.provision.nebius.changes import BILLABLE, Change, changes, refused
from seatrial.provision.nebius.cloud import Cloud, NodeGroup, Quota, Thing
from seatrial.provision.nebius.need import need_of
from seatrial.provision.nebius.preflight import Looked
from seatrial.provision.nebius.progress import Progress
from seatrial.provision.nebius.rules.common import Finding
from seatrial.provision.nebius.terraform import Outcome, Terraform, lock_of
from seatrial.provision.nebius.work import Work, environment
from seatrial.spec.cluster import cluster_text

Say = Callable[[str], None]
_WATCH_S = 15.0


@dataclass
class Job:
    """A cluster, and all that is needed to plan and carry out; alone with its directory."""

    looked: Looked
    text: str
    cloud: Cloud
    work: Work
    terraform: Terraform
    say: Say
    quotas: list[Quota] = field(default_factory=list)


@dataclass(frozen=True)
class Planned:
    """What would happen."""

    changes: list[Change]
    adopted: list[adopt.Found]
    strange: list[adopt.Found]
    """Of these, what nothing here has begun to make."""
    refused: list[tuple[Change, str, str]]
    over: list[Finding]
    """Quotas that what it makes would exceed."""
    path: Path
    at: float = field(default_factory=time.time)

    @property
    def real(self) -> list[Change]:
        """Without what the recipe does each time."""
        return [c for c in self.changes if not c.is_noise]


@contextmanager
def opened(
    path: Path,
    recipe: Path | None,
    cloud: Cloud,
    say: Say,
    *,
    what: str,
    force: bool = False,
    adopt: bool = False,
) -> Iterator[Job]:
    """Checks a description, readies its directory, its account and Terraform.

    Args:
        path: of ``cluster.yaml``.
        recipe: the checkout; None takes the one that the file names, or the one that made the cluster.
        cloud: where.
        say: tells people.
        what: the command, for whoever finds the directory in use.
        force: go on with a description that the preflight refuses (a removal needs none that is right).
        adopt: a cluster of this name may exist already, and is to be taken over.

    Raises:
        SpecError: it is wrong, or another command is at it.
        PlatformError: the cloud or Terraform doesn't go along.
    """
    text = cluster_text(path)
    looked = preflight.look(path, recipe)
    spec = looked.case.spec
    _stop(looked.failed, path, force)
    work = Work.of(spec.name)
    with work.held(what):
        token = cloud.token()
        seen = online.look(cloud, looked.case, looked.need, there=work.is_begun or adopt)
        _stop([f for f in seen.findings if f.verdict.value == "FAIL"], path, force)
        looked = preflight.look(path, recipe, subnet=seen.subnet)
        key: account.Key | None = None
        bucket: str | None = None
        if spec.state.kind == "s3":
            found = account.ensure(cloud, spec.cloud.tenant, spec.cloud.project, spec.name, work.private)
            key, bucket = found.key, found.bucket
            for line in found.made:
                say(f"made: {line}")
        tool = next(t for t in looked.tools if t.name == "terraform")
        found_version = re.findall(r"\d+", tool.version)
        version = (int(found_version[0]), int(found_version[1]))
        work.bundle(looked.case.recipe, spec.name)
        work.note(
            name=spec.name, tenant=spec.cloud.tenant, project=spec.cloud.project, region=spec.cloud.region,
            recipe_version=looked.case.recipe.version, recipe_commit=looked.case.recipe.commit(), state=spec.state.kind,
        )  # fmt: skip
        work.write_inputs(spec, looked.case.rendered, text, bucket, lockfile=version >= (1, 10))
        work.adopt([])
        terraform = Terraform(tool.path, work.installation, environment(spec, work, token, key), work.log)
        work.rotate_log()
        terraform.init()
        yield Job(looked, text, cloud, work, terraform, say, seen.quotas)


def plan(
    job: Job, *, lose: Collection[str] = (), destroy: bool = False, unlock: str | None = None
) -> Planned:
    """What would happen; the plan's file is the caller's to delete (`dropped`).

    Raises:
        PlatformError: Terraform can't plan.
    """
    path = job.work.private / "plan.bin"
    if unlock is not None:
        job.terraform.unlock(unlock)
        job.say(f"unlocked: {unlock}")

    def once(imports: list[tuple[str, str]]) -> list[Change]:
        path.unlink(missing_ok=True)
        job.work.adopt(imports)
        outcome = job.terraform.plan(path, lambda event: None, destroy=destroy)
        if outcome.code != 0:
            raise _failed(job, outcome, "terraform can't plan")
        return changes(job.terraform.show(path))

    try:
        if destroy:
            return Planned(once([]), [], [], [], [], path)
        found, adopted = adopt.rounds(once, job.cloud)
    except BaseException:
        dropped(job)
        raise
    ours = job.work.started()
    strange = [f for f in adopted if f.change.address not in ours]
    over = list(online.over(need_of(found, job.looked.case), job.quotas, job.looked.case.region))
    return Planned(found, adopted, strange, refused(found, lose), over, path)


def dropped(job: Job) -> None:
    """Deletes the plan and the imports that were made for it."""
    (job.work.private / "plan.bin").unlink(missing_ok=True)
    job.work.adopt([])


def carry_out(job: Job, planned: Planned, *, removing: bool = False) -> None:
    """Applies a plan, and tells how far it is.

    Raises:
        InterruptedRunError: somebody stopped it; what was begun is finished and saved.
        PlatformError: it failed; what was made is saved, and the same command goes on from there.
    """
    if not removing:
        job.work.note(begun=job.work.record.get("begun") or time.time())
    progress = Progress({c.address: c.type for c in planned.changes if c.action != "forget"}, job.say)
    watch = _Groups(job) if not removing else None

    def tick() -> None:
        progress.tick()
        if watch is not None:
            watch.tick()

    try:
        outcome = job.terraform.apply(planned.path, progress.take, tick, job.say)
    finally:
        dropped(job)
    again = f"seatrial cluster {'down' if removing else 'up'} {'' if removing else '-f ' + str(job.looked.path)}".rstrip()  # fmt: skip
    if outcome.interrupted and outcome.code != 0:
        raise InterruptedRunError(
            "stopped; what was begun is finished, and the state knows it", evidence=f"{len(progress.done)} of {len(progress.planned)} done",
            remedy=f"{again}    goes on from there; seatrial cluster down {job.work.name}    removes it",
        )  # fmt: skip
    if outcome.code != 0:
        raise _failed(job, outcome, "terraform failed on the way", done=len(progress.done), of=len(progress.planned), again=again)  # fmt: skip


def verify(job: Job) -> list[NodeGroup]:
    """Whether all nodes that were wanted are there and ready: the groups.

    Raises:
        MeasuredFailure: they aren't.
        PlatformError: there is no cluster.
    """
    groups = node_groups(job.cloud, job.looked.case.spec.cloud.project, job.work.name)
    if not groups:
        raise PlatformError("Terraform has ended well, and there is no node group", evidence=f"soperator-{job.work.name} in {job.looked.case.spec.cloud.project}")  # fmt: skip
    waiting = [g for g in groups if g.ready < g.nodes]
    if waiting:
        raise MeasuredFailure(
            "not all nodes are ready", evidence="\n".join(f"{g.name}: {g.ready} of {g.nodes}{'; ' + g.events[0] if g.events else ''}" for g in waiting),
            remedy=f"seatrial cluster status {job.work.name}",
        )  # fmt: skip
    return groups


def remember_address(job: Job) -> None:
    """Notes which allocation the login's address is, for `status` and `connect`."""
    for thing in billable(job):
        if thing.kind == "nebius_vpc_v1_allocation":
            job.work.note(allocation=thing.id)


def check_no_strays(job: Job) -> None:
    """A removal by the state alone would forget what a killed Terraform had begun, and leave it to be paid for.

    Raises:
        SpecError: there is such a thing.
    """
    if not job.work.started() - {str(r["address"]) for r in job.terraform.state()}:
        return
    try:
        strays = plan(job).adopted
    finally:
        dropped(job)
    if strays:
        raise SpecError(
            "things of this cluster exist that its state does not know", evidence=", ".join(f"{f.thing.name} ({f.thing.id})" for f in strays),
            remedy=f"seatrial cluster up -f {job.looked.path}    takes them over; then seatrial cluster down {job.work.name}",
        )  # fmt: skip


def left(job: Job, before: list[Thing]) -> list[Thing]:
    """What is still there of what there was before a removal."""
    found: list[Thing] = []
    for kind, parent in {(t.kind, t.parent) for t in before}:
        there = {t.id for t in job.cloud.things(kind, parent)} if kind != "nebius_mk8s_v1_node_group" else _groups_of(job, parent)  # fmt: skip
        found += [t for t in before if (t.kind, t.parent) == (kind, parent) and t.id in there]
    return found


def billable(job: Job) -> list[Thing]:
    """What Terraform's state has that costs money or holds data."""
    found = []
    for resource in job.terraform.state():
        if resource["type"] in BILLABLE:
            values = resource.get("values") or {}
            size = values.get("size_bytes")
            found.append(
                Thing(resource["type"], str(values.get("id")), str(values.get("name")), str(values.get("parent_id")), int(size) if size else None)
            )  # fmt: skip
    return found


def others(job: Job, project: str, known: Collection[str]) -> list[Thing]:
    """What else there is in a project that costs money: of others, or made by what ran inside the cluster (disks of volumes)."""
    return [
        t
        for kind in BILLABLE
        if kind != "nebius_mk8s_v1_node_group"
        for t in job.cloud.things(kind, project)
        if t.id not in known
    ]


def node_groups(cloud: Cloud, project: str, name: str) -> list[NodeGroup]:
    """A cluster's groups of nodes; none where there is no cluster."""
    for thing in cloud.things("nebius_mk8s_v1_cluster", project):
        if thing.name == f"soperator-{name}":
            return cloud.node_groups(thing.id)
    return []


class _Groups:
    """Looks at the node groups while Terraform waits for them: quota and capacity that lack are told by nothing else."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._at = time.monotonic()
        self._told: set[str] = set()

    def tick(self) -> None:
        if time.monotonic() - self._at < _WATCH_S:
            return
        self._at = time.monotonic()
        try:
            groups = node_groups(self._job.cloud, self._job.looked.case.spec.cloud.project, self._job.work.name)  # fmt: skip
        except PlatformError:
            return  # Terraform's own errors are told; ours would only hide them
        for group in groups:
            for event in group.events[:1]:
                text = f"{group.name}: {group.ready} of {group.nodes} nodes; the cloud says {event}"
                if text not in self._told:
                    self._told.add(text)
                    self._job.say(f"waiting  {text}")


def _groups_of(job: Job, cluster_id: str) -> set[str]:
    if cluster_id not in {t.id for t in job.cloud.things("nebius_mk8s_v1_cluster", job.looked.case.spec.cloud.project)}:  # fmt: skip
        return set()
    return {g.id for g in job.cloud.node_groups(cluster_id)}


def _stop(failed: Collection[Finding], path: Path, force: bool) -> None:
    if failed and not force:
        raise SpecError(
            f"the preflight refuses {path}", evidence="\n".join(f"{f.rule}: {f.found} (at {f.place})" for f in failed),
            remedy=f"seatrial cluster preflight -f {path}    says how to mend each",
        )  # fmt: skip


def _failed(
    job: Job, outcome: Outcome, what: str, *, done: int = 0, of: int = 0, again: str = ""
) -> Exception:
    lock = lock_of(outcome)
    if lock is not None:
        return SpecError(
            "the cluster's state is locked", evidence=", ".join(f"{k.lower()} {v}" for k, v in lock.items()) or "by another Terraform",
            remedy="wait, where that one still works; this machine runs none for this cluster, so if it was killed here: "
            f"the same command with --unlock {lock.get('ID', 'ID')}",
        )  # fmt: skip
    text = "\n".join(str(e) for e in outcome.errors) or f"exit code {outcome.code}; {job.work.log} has its last words"  # fmt: skip
    remedy = again
    for quota in filter(None, (e.quota for e in outcome.errors)):
        name, limit, requested = quota
        places = ", ".join(place for place, _ in job.looked.need.parts.get(name, []))
        remedy = f"{name}: {requested:,} in all are asked for, {limit:,} are allowed; make it fit ({places or 'cluster.yaml'}), or ask for a higher limit; then {again}"  # fmt: skip
    if outcome.says("UNAUTHENTICATED", "token is invalid", "token has expired", "expired token"):
        remedy = f"log in again (a fresh NEBIUS_IAM_TOKEN, or nebius iam get-access-token); then {again}    goes on from there"
    elif outcome.says("ALREADY_EXISTS", "already exists"):
        remedy = f"{again}    finds what exists and shows it as adopted before anything is done"
    if of:
        text = f"{text}\n{done} of {of} done, and saved"
    return PlatformError(what, evidence=text, remedy=remedy)
