"""What only the cloud can say before a cluster is made: who you are, what is allowed, what is free, what is there already."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from seatrial.errors import PlatformError, SpecError
from seatrial.provision.nebius.account import subnet_of
from seatrial.provision.nebius.cloud import Cloud, MissingError, Quota
from seatrial.provision.nebius.need import Need
from seatrial.provision.nebius.rules.common import Case, Finding, fail, warn
from seatrial.provision.nebius.tables import GIB
from seatrial.runs.evidence import Verdict


@dataclass(frozen=True, slots=True)
class Seen:
    """What the cloud said."""

    who: str
    subnet: str | None
    findings: list[Finding]
    quotas: list[Quota]


def look(cloud: Cloud, case: Case, need: Need, *, there: bool = False) -> Seen:
    """Asks the cloud all that a cluster depends on.

    Args:
        cloud: which.
        case: the cluster.
        need: what it takes.
        there: it exists already, as far as this machine knows: what it has counts as used, and its name is its own.

    Raises:
        PlatformError: no credentials, or no answer.
    """
    who = cloud.whoami()
    findings: list[Finding] = []
    subnet: str | None = None
    try:
        project = cloud.project(case.spec.cloud.project)
    except MissingError as error:
        return Seen(who, None, [_as("project-missing", fail(error.what, "cloud.project", error.remedy))], [])
    if project.region and project.region != case.region:
        findings.append(
            _as("project-region", fail(f"{project.id} is in {project.region}, not in {case.region}", "cloud.region", project.region))
        )  # fmt: skip
    try:
        subnet = _subnet(cloud, case)
    except SpecError as error:
        findings.append(_as("subnet", fail(f"{error.what}: {error.evidence}", "cloud.subnet", error.remedy)))
    quotas: list[Quota] = []
    for level, parent in (("tenant", case.spec.cloud.tenant), ("project", case.spec.cloud.project)):
        try:
            quotas += cloud.quotas(parent, level)
        except PlatformError as error:
            findings.append(
                _as("quota-unseen", Finding(Verdict.UNMEASURED, f"{level}'s quotas: {error.what}", f"cloud.{level}", error.remedy or "ask an administrator"))
            )  # fmt: skip
    # What a cluster that is there has taken is in the usage; its plan says what changes.
    if not there:
        findings += [_as("quota", f) for f in over(need, quotas, case.region)]
        findings += [_as("name-taken", f) for f in _names(cloud, case)]
    findings += [_as("kubernetes-version", f) for f in _versions(cloud, case)]
    findings += [_as("capacity", f) for f in _capacity(cloud, case)]
    return Seen(who, subnet, findings, quotas)


def over(need: Need, quotas: list[Quota], region: str) -> Iterator[Finding]:
    """Quotas that a cluster would exceed, at the tenant and at the project; a level without a limit of its own doesn't count."""
    for name, amount in need.amounts.items():
        for quota in quotas:
            if quota.name != name or quota.region not in {region, ""} or quota.limit is None:
                continue
            total = quota.usage + amount
            most = quota.usage + need.most.get(name, amount)
            parts = need.parts.get(name, [])
            if total > quota.limit:
                free = max(quota.limit - quota.usage, 0)
                yield fail(
                    f"{name} in {region}: {_amount(total, quota.unit)} needed with what is used, the {quota.level}'s limit is "
                    f"{_amount(quota.limit, quota.unit)} ({_amount(quota.usage, quota.unit)} used; this cluster takes {_amount(amount, quota.unit)}: {_sum(parts, quota.unit)})",
                    parts[0][0] if len(parts) == 1 else "storage" if "size" in name else "workers",
                    f"make it fit {_amount(free, quota.unit)}, or ask for a limit of {_number(total, quota.unit)} of {name} in {region}",
                )  # fmt: skip
            elif most > quota.limit:
                yield warn(
                    f"{name} in {region}: fits now; once the system nodes have grown to their maximum, {_amount(most, quota.unit)} of the "
                    f"{quota.level}'s {_amount(quota.limit, quota.unit)}",
                    "system.max", "a smaller maximum, or a higher limit",
                )  # fmt: skip


def _subnet(cloud: Cloud, case: Case) -> str:
    asked = case.spec.cloud.subnet
    if asked is None:
        return subnet_of(cloud, case.spec.cloud.project)
    known = cloud.subnets(case.spec.cloud.project)
    if asked not in {s.id for s in known}:
        raise SpecError(
            f"there is no subnet {asked}",
            evidence=f"the project has {', '.join(f'{s.name} ({s.id})' for s in known) or 'none'}",
            remedy=known[0].id if known else "nebius vpc subnet create …",
        )
    return asked


def _names(cloud: Cloud, case: Case) -> Iterator[Finding]:
    name = f"soperator-{case.spec.name}"
    for thing in cloud.things("nebius_mk8s_v1_cluster", case.spec.cloud.project):
        if thing.name == name:
            yield fail(
                f"the project has a cluster {name} already ({thing.id}), and this machine does not know it", "name",
                "another name; or, if it is yours and its state is lost: seatrial cluster plan --adopt",
            )  # fmt: skip


def _versions(cloud: Cloud, case: Case) -> Iterator[Finding]:
    asked = case.values.get("k8s_version")
    if asked is None:
        return
    known = cloud.kubernetes_versions()
    if known and asked not in known:
        yield fail(f"Kubernetes {asked} is not offered", "kubernetes_version", f"one of: {', '.join(known)}")


def _capacity(cloud: Cloud, case: Case) -> Iterator[Finding]:
    for role in case.workers:
        if role.preset is None or not role.preset.gpus:
            continue
        said = cloud.capacity(
            case.spec.cloud.tenant, case.region, role.platform, role.preset_name, role.fabric
        )
        where = role.fabric or "any fabric"
        if said is None:
            yield Finding(
                Verdict.UNMEASURED, f"whether {role.size} × {role.platform} are free on {where}: the cloud doesn't tell these credentials",
                f"{role.place}.nodes", "`up` watches for node groups that wait for capacity, and says so",
            )  # fmt: skip
        elif (said.machines is not None and said.machines < role.size) or said.level in {
            "low",
            "limit_reached",
        }:
            free = (
                f"{said.machines} can be had"
                if said.machines is not None
                else f"there is {said.level.replace('_', ' ')}"
            )
            yield warn(
                f"{role.size} × {role.platform} on {where}: the cloud says {free} now", f"{role.place}.nodes",
                "another fabric or region, fewer nodes, or a reservation; `up` would wait for them",
            )  # fmt: skip


def _as(rule: str, finding: Finding) -> Finding:
    return replace(finding, rule=rule)


def _number(value: int, unit: str) -> str:
    return f"{value:,} bytes" if unit.startswith("byte") else f"{value:,}"


def _amount(value: int, unit: str) -> str:
    return f"{value:,} bytes ({value / GIB:,.0f} GiB)" if unit.startswith("byte") else f"{value:,}"


def _sum(parts: list[tuple[str, int]], unit: str) -> str:
    def short(value: int) -> str:
        return f"{value / GIB:,.0f} GiB" if unit.startswith("byte") else f"{value:,}"

    return " + ".join(f"{place.removesuffix('.size_gib')} {short(value)}" for place, value in parts)
