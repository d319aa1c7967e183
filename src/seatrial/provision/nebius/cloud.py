"""Nebius through its own SDK: what there is, what is allowed, what is still free.

``$SEATRIAL_NEBIUS`` names a server without TLS on this machine (``127.0.0.1:PORT``), for tests; nothing else is taken from it.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seatrial import __version__
from seatrial.errors import PlatformError, SeatrialError, SpecError, UnreachableError

VARIABLE = "SEATRIAL_NEBIUS"
_CREDENTIALS = "NEBIUS_IAM_TOKEN in the environment, or a profile of the nebius CLI (~/.nebius/config.yaml; nebius profile create)"
_AGENT = f"seatrial/{__version__}"
_PAGE = 500
_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class Thing:
    """Something in the cloud."""

    kind: str
    """As Terraform calls it: nebius_compute_v1_filesystem."""
    id: str
    name: str
    parent: str
    size_bytes: int | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """A group of nodes of a cluster, and how far it is."""

    id: str
    name: str
    nodes: int
    """Wanted."""
    there: int
    ready: int
    state: str
    events: tuple[str, ...]
    """What stands in its way, newest first, in the cloud's words."""


@dataclass(frozen=True, slots=True)
class Quota:
    """What a project or tenant may have of something, in one region."""

    name: str
    region: str
    limit: int | None
    """None: it has no limit of its own."""
    usage: int
    unit: str
    level: str
    """tenant or project."""


@dataclass(frozen=True, slots=True)
class Project:
    """Where a cluster is to be."""

    id: str
    name: str
    tenant: str
    region: str


@dataclass(frozen=True, slots=True)
class Capacity:
    """Room for machines of one kind, on demand."""

    level: str
    """high, medium, low, limit_reached, unspecified."""
    machines: int | None
    """How many could be had; None: not said."""


class MissingError(PlatformError):
    """There is no such thing in the cloud, or these credentials may not see it."""


class ExistsError(PlatformError):
    """There is one of that name already."""


class Cloud:
    """The gateway; connects when it is first asked.

    Args:
        sdk: an SDK of another server, or None for Nebius with the user's own credentials.
    """

    def __init__(self, sdk: Any = None) -> None:
        self._sdk = sdk

    def token(self) -> str:
        """A token for Terraform; never printed.

        Raises:
            PlatformError: there are no credentials, or they are refused.
        """
        return str(self._guard("get a token", lambda: self._connected().get_token_sync(_TIMEOUT_S)).token)

    def whoami(self) -> str:
        """Who these credentials are."""
        from nebius.api.nebius.iam.v1 import GetProfileRequest, ProfileServiceClient

        found = self._call("ask who you are", ProfileServiceClient, "get", GetProfileRequest())
        for name in ("user_profile", "service_account_profile"):
            profile = getattr(found, name, None)
            if profile is not None:
                attributes = getattr(profile, "attributes", None)
                info = getattr(profile, "info", None)
                return str(
                    getattr(attributes, "email", "") or getattr(getattr(info, "metadata", None), "name", "") or getattr(profile, "id", "") or name
                )  # fmt: skip
        return "somebody"

    def project(self, project_id: str) -> Project:
        """A project; `MissingError` where there is none."""
        from nebius.api.nebius.iam.v2 import GetProjectRequest, ProjectServiceClient

        found = self._call(
            f"look at {project_id}", ProjectServiceClient, "get", GetProjectRequest(id=project_id)
        )
        return Project(found.metadata.id, found.metadata.name, found.metadata.parent_id, found.spec.region)

    def subnets(self, project_id: str) -> list[Thing]:
        """The project's."""
        from nebius.api.nebius.vpc.v1 import ListSubnetsRequest, SubnetServiceClient

        return self._things("nebius_vpc_v1_subnet", SubnetServiceClient, ListSubnetsRequest, project_id)

    def quotas(self, parent_id: str, level: str) -> list[Quota]:
        """All of a tenant or project."""
        from nebius.api.nebius.quotas.v1 import ListQuotaAllowancesRequest, QuotaAllowanceServiceClient

        found = []
        for item in self._list(f"list the quotas of {parent_id}", QuotaAllowanceServiceClient, ListQuotaAllowancesRequest, parent_id):  # fmt: skip
            found.append(
                Quota(
                    item.metadata.name,
                    item.spec.region,
                    item.spec.limit,
                    item.status.usage or 0,
                    item.status.unit,
                    level,
                )
            )
        return found

    def things(self, kind: str, parent_id: str) -> list[Thing]:
        """What there is of a kind; none of kinds that this gateway doesn't know."""
        lister = _listers().get(kind)
        return [] if lister is None else self._things(kind, *lister, parent_id)

    def node_groups(self, cluster_id: str) -> list[NodeGroup]:
        """A cluster's."""
        from nebius.api.nebius.mk8s.v1 import ListNodeGroupsRequest, NodeGroupServiceClient

        found = []
        for item in self._list("list the node groups", NodeGroupServiceClient, ListNodeGroupsRequest, cluster_id):  # fmt: skip
            status = item.status
            events = sorted(status.events, key=lambda e: str(e.last_occurrence.occurred_at), reverse=True)
            found.append(
                NodeGroup(
                    item.metadata.id, item.metadata.name, status.target_node_count, status.node_count,
                    status.ready_node_count, getattr(status.state, "name", str(status.state)), tuple(map(_event, events)),
                )
            )  # fmt: skip
        return found

    def kubernetes_versions(self) -> list[str]:
        """What a cluster may be of, newest last."""
        from nebius.api.nebius.mk8s.v1 import ClusterServiceClient, ListClusterControlPlaneVersionsRequest

        answer = self._call("ask for versions of Kubernetes", ClusterServiceClient, "list_control_plane_versions", ListClusterControlPlaneVersionsRequest())  # fmt: skip
        return sorted(
            {item.version for item in answer.items}, key=lambda v: [int(n) for n in re.findall(r"\d+", v)]
        )

    def capacity(
        self, tenant_id: str, region: str, platform: str, preset: str, fabric: str | None
    ) -> Capacity | None:
        """What the cloud says of room for machines; None where it says nothing, or not to these credentials."""
        from nebius.api.nebius.capacity.v1 import ListResourceAdviceRequest, ResourceAdviceServiceClient

        try:
            items = list(self._list("ask for capacity", ResourceAdviceServiceClient, ListResourceAdviceRequest, tenant_id))  # fmt: skip
        except SeatrialError:
            return None
        for item in items:
            spec, said = item.spec, item.status.on_demand
            machine = spec.compute_instance
            if said is None or machine is None or (spec.region, machine.platform) != (region, platform):
                continue
            if fabric in {None, spec.fabric} and (
                machine.preset is None or machine.preset.name in {"", preset}
            ):
                level = (
                    getattr(said.availability_level, "name", "").removeprefix("AVAILABILITY_LEVEL_").lower()
                )
                return Capacity(level, said.available if "FRESH" in getattr(said.data_state, "name", "FRESH") else None)  # fmt: skip
        return None

    def address(self, project_id: str, allocation_id: str) -> str | None:
        """The public address that an allocation reserves; None where there is none."""
        from nebius.api.nebius.vpc.v1 import AllocationServiceClient, ListAllocationsRequest

        for item in self._list("list addresses", AllocationServiceClient, ListAllocationsRequest, project_id):
            if item.metadata.id == allocation_id:
                return str(item.status.details.allocated_cidr).partition("/")[0] or None
        return None

    def call(self, what: str, client: Any, method: str, request: Any) -> Any:
        """Asks one service; see `_call`."""
        return self._call(what, client, method, request)

    def _things(self, kind: str, client: Any, request: Any, parent_id: str) -> list[Thing]:
        words = kind.removeprefix("nebius_").replace("_", " ")
        found = []
        for item in self._list(f"list {words}", client, request, parent_id):
            size = getattr(getattr(item, "status", None), "size_bytes", None) or getattr(item.spec, "size_bytes", None)  # fmt: skip
            attached = getattr(getattr(item, "status", None), "read_write_attachments", None)
            found.append(
                Thing(
                    kind, item.metadata.id, item.metadata.name, item.metadata.parent_id, size or None,
                    f"attached to {len(attached)} nodes" if attached else "",
                )
            )  # fmt: skip
        return found

    def _list(self, what: str, client: Any, request: Any, parent_id: str) -> Iterator[Any]:
        token = ""
        while True:
            answer = self._call(
                what, client, "list", request(parent_id=parent_id, page_size=_PAGE, page_token=token)
            )
            yield from answer.items
            token = answer.next_page_token
            if not token:
                return

    def _call(self, what: str, client: Any, method: str, request: Any) -> Any:
        def ask() -> Any:
            return getattr(client(self._connected()), method)(
                request, timeout=_TIMEOUT_S, auth_timeout=_TIMEOUT_S, per_retry_timeout=_TIMEOUT_S / 2, retries=3
            ).wait()  # fmt: skip

        return self._guard(what, ask)

    def _guard(self, what: str, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except SeatrialError:
            raise
        except Exception as error:  # the SDK has no root of its errors that all of them have
            raise _explained(what, error) from None

    def _connected(self) -> Any:
        if self._sdk is None:
            self._sdk = _connect()
        return self._sdk


def _connect() -> Any:
    logging.getLogger("nebius").setLevel(logging.CRITICAL)  # it logs what it will try again, with tracebacks
    try:
        from nebius.sdk import SDK
    except ImportError as error:
        raise PlatformError(
            "talking to Nebius needs its SDK", evidence=str(error), remedy="pip install 'seatrial[cluster]'"
        ) from error
    address = os.environ.get(VARIABLE)
    if address:
        return _local(SDK, address)
    if os.environ.get("NEBIUS_IAM_TOKEN"):
        from nebius.aio.token.static import EnvBearer

        return SDK(credentials=EnvBearer(), user_agent_prefix=_AGENT)
    config = Path("~/.nebius/config.yaml").expanduser()
    if not config.is_file():
        raise SpecError(
            "there are no credentials for Nebius",
            evidence=f"no NEBIUS_IAM_TOKEN, no {config}",
            remedy=_CREDENTIALS,
        )
    from nebius.aio.cli_config import Config

    try:
        return SDK(config_reader=Config(), user_agent_prefix=_AGENT)
    except Exception as error:  # a broken profile, in whatever way
        raise SpecError(
            "the nebius CLI's profile can't be used", evidence=f"{config}: {_first_line(error)}", remedy=_CREDENTIALS
        ) from None  # fmt: skip


def _local(sdk: Any, address: str) -> Any:
    host = address.rpartition(":")[0]
    if host not in {"127.0.0.1", "localhost"}:
        raise SpecError(
            f"{VARIABLE} is for servers on this machine", evidence=address, remedy=f"unset {VARIABLE}"
        )
    from nebius.base.options import INSECURE
    from nebius.base.resolver import Constant

    token = os.environ.get("NEBIUS_IAM_TOKEN", "")
    if not token:
        raise SpecError(
            "there are no credentials for Nebius", evidence="no NEBIUS_IAM_TOKEN", remedy=_CREDENTIALS
        )
    return sdk(
        credentials=token, resolver=Constant(address), options=[(INSECURE, True)], user_agent_prefix=_AGENT
    )  # fmt: skip


def _listers() -> dict[str, tuple[Any, Any]]:
    from nebius.api.nebius.compute import v1 as compute
    from nebius.api.nebius.mk8s import v1 as mk8s
    from nebius.api.nebius.storage import v1 as storage
    from nebius.api.nebius.vpc import v1 as vpc

    return {
        "nebius_compute_v1_filesystem": (compute.FilesystemServiceClient, compute.ListFilesystemsRequest),
        "nebius_compute_v1_gpu_cluster": (compute.GpuClusterServiceClient, compute.ListGpuClustersRequest),
        "nebius_compute_v1_instance": (compute.InstanceServiceClient, compute.ListInstancesRequest),
        "nebius_compute_v1_disk": (compute.DiskServiceClient, compute.ListDisksRequest),
        "nebius_mk8s_v1_cluster": (mk8s.ClusterServiceClient, mk8s.ListClustersRequest),
        "nebius_mk8s_v1_node_group": (mk8s.NodeGroupServiceClient, mk8s.ListNodeGroupsRequest),
        "nebius_vpc_v1_allocation": (vpc.AllocationServiceClient, vpc.ListAllocationsRequest),
        "nebius_storage_v1_bucket": (storage.BucketServiceClient, storage.ListBucketsRequest),
    }


def _event(event: Any) -> str:
    return f"{event.last_occurrence.code}: {event.last_occurrence.message}".strip(": ")


def _explained(what: str, error: Exception) -> SeatrialError:
    """An error of the SDK, in our words; nothing that could hold a token is repeated."""
    code = getattr(getattr(getattr(error, "status", None), "code", None), "name", "")
    message = _first_line(getattr(getattr(error, "status", None), "message", "") or error)
    text = f"{type(error).__name__} {code} {message}"
    evidence = f"{code or type(error).__name__}: {message}"
    if "UNAUTHENTICATED" in text or "NoToken" in text:
        return PlatformError(
            "Nebius does not accept your credentials", evidence=evidence, remedy=_CREDENTIALS
        )
    if "PERMISSION_DENIED" in text:
        return PlatformError(
            f"these credentials may not {what}",
            evidence=evidence,
            remedy="ask an administrator of the tenant",
        )
    if "NOT_FOUND" in text:
        return MissingError(
            f"could not {what}: there is none", evidence=evidence, remedy="nebius iam project list"
        )
    if "ALREADY_EXISTS" in text:
        return ExistsError(f"could not {what}: there is one already", evidence=evidence)
    if any(word in text for word in ("UNAVAILABLE", "DEADLINE", "Timeout", "ConnectionError")):
        return UnreachableError(
            f"Nebius does not answer: could not {what}", evidence=evidence, remedy="try again"
        )
    return PlatformError(f"Nebius could not {what}", evidence=evidence)


def _first_line(error: object) -> str:
    text = str(error).strip() or type(error).__name__
    return re.sub(r"(?i)(bearer\s+|token[=: ]+)\S+", r"\1…", text.splitlines()[0])[:300]
