"""The simulated Nebius as the real SDK sees it: a gRPC server on loopback, with the SDK's own messages.

The SDK ships no stubs for servers; methods are named here, and what is not named answers UNIMPLEMENTED.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import grpc
from nebius.api.nebius.capacity import v1 as capacity
from nebius.api.nebius.common.v1 import (
    Operation,
    QuotaFailure,
    ResourceAlreadyExists,
    ResourceEvent,
    ResourceMetadata,
    ServiceError,
)
from nebius.api.nebius.common.v1 import QuotaFailure__Violation as Violation
from nebius.api.nebius.common.v1 import RecurrentResourceEvent as Event
from nebius.api.nebius.compute import v1 as compute
from nebius.api.nebius.iam import v1 as iam
from nebius.api.nebius.iam import v2 as iam2
from nebius.api.nebius.mk8s import v1 as mk8s
from nebius.api.nebius.quotas import v1 as quotas
from nebius.api.nebius.storage import v1 as storage
from nebius.api.nebius.vpc import v1 as vpc

from tests.nebius.cloud import FakeCloud, Refused, Row, nodes_ready

# service: kind, module, names of the messages
_SERVICES = {
    "nebius.compute.v1.FilesystemService": ("nebius_compute_v1_filesystem", compute, "Filesystem"),
    "nebius.compute.v1.GpuClusterService": ("nebius_compute_v1_gpu_cluster", compute, "GpuCluster"),
    "nebius.compute.v1.InstanceService": ("nebius_compute_v1_instance", compute, "Instance"),
    "nebius.compute.v1.DiskService": ("nebius_compute_v1_disk", compute, "Disk"),
    "nebius.mk8s.v1.ClusterService": ("nebius_mk8s_v1_cluster", mk8s, "Cluster"),
    "nebius.mk8s.v1.NodeGroupService": ("nebius_mk8s_v1_node_group", mk8s, "NodeGroup"),
    "nebius.vpc.v1.AllocationService": ("nebius_vpc_v1_allocation", vpc, "Allocation"),
    "nebius.vpc.v1.SubnetService": ("nebius_vpc_v1_subnet", vpc, "Subnet"),
    "nebius.storage.v1.BucketService": ("nebius_storage_v1_bucket", storage, "Bucket"),
    "nebius.iam.v1.ServiceAccountService": ("nebius_iam_v1_service_account", iam, "ServiceAccount"),
    "nebius.iam.v1.GroupService": ("nebius_iam_v1_group", iam, "Group"),
}


class NebiusServer:
    """Serves a cloud in a thread of this process.

    Args:
        cloud: what it serves.
    """

    def __init__(self, cloud: FakeCloud) -> None:
        self.cloud = cloud
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self.address = ""

    def __enter__(self) -> NebiusServer:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._started.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._over = asyncio.Event()
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((_Router(self.cloud),))
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        self._started.set()
        await self._over.wait()
        await server.stop(0)


class _Router(grpc.GenericRpcHandler):
    def __init__(self, cloud: FakeCloud) -> None:
        self._cloud = cloud
        self._more: dict[str, Callable[[bytes], Any]] = {
            "nebius.quotas.v1.QuotaAllowanceService/List": self._quotas,
            "nebius.capacity.v1.ResourceAdviceService/List": self._advice,
            "nebius.iam.v2.ProjectService/Get": self._project,
            "nebius.iam.v1.ProfileService/Get": self._profile,
            "nebius.mk8s.v1.ClusterService/ListControlPlaneVersions": self._versions,
            "nebius.iam.v2.AccessKeyService/Create": self._make_key,
            "nebius.iam.v2.AccessKeyService/Get": self._get_key,
            "nebius.iam.v2.AccessKeyService/GetSecret": self._secret,
            "nebius.iam.v2.AccessKeyService/List": self._keys,
            "nebius.iam.v2.AccessKeyService/Delete": self._delete_key,
            "nebius.iam.v1.GroupMembershipService/ListMembers": self._members,
            "nebius.iam.v1.GroupMembershipService/Create": self._add_member,
        }

    def service(self, details: Any) -> Any:
        name = details.method.lstrip("/")
        handler = self._more.get(name) or self._generic(*name.split("/"))
        if handler is None:
            return None

        async def answer(raw: bytes, context: Any) -> bytes:
            metadata = dict(context.invocation_metadata())
            self._cloud.log(name)
            try:
                self._cloud.check_token(str(metadata.get("authorization", "")).removeprefix("Bearer "))
                return bytes(handler(raw).SerializeToString())
            except Refused as error:
                if error.quota or error.resource_id:
                    context.set_trailing_metadata((("grpc-status-details-bin", _details(error)),))
                await context.abort(grpc.StatusCode[error.code], error.message)
                raise

        return grpc.unary_unary_rpc_method_handler(answer)

    def _generic(self, service: str, method: str) -> Callable[[bytes], Any] | None:
        if service not in _SERVICES:
            return None
        kind, module, noun = _SERVICES[service]

        def listed(raw: bytes) -> Any:
            request = getattr(module, f"List{noun}sRequest").FromString(raw)
            rows = self._cloud.things(kind, request.parent_id)
            start = int(request.page_token or 0)
            size = min(request.page_size or 100, self._cloud.setting("page", 100))
            answer = getattr(module, f"List{noun}sResponse")(
                items=[_message(r, self._cloud) for r in rows[start : start + size]]
            )
            if start + size < len(rows):
                answer.next_page_token = str(start + size)
            return answer

        def made(raw: bytes) -> Any:
            request = getattr(module, f"Create{noun}Request").FromString(raw)
            return _done(self._cloud.create(kind, request.metadata.parent_id, request.metadata.name))

        def by_name(raw: bytes) -> Any:
            names = {
                "Bucket": "GetBucketByNameRequest",
                "ServiceAccount": "GetServiceAccountByNameRequest",
                "Group": "GetGroupByNameRequest",
            }
            request = getattr(module, names[noun]).FromString(raw)
            rows = [r for r in self._cloud.things(kind, request.parent_id) if r.name == request.name]
            if not rows:
                raise Refused("NOT_FOUND", f"{noun} {request.name} not found")
            return _message(rows[0], self._cloud)

        return {"List": listed, "Create": made, "GetByName": by_name}.get(method)

    def _quotas(self, raw: bytes) -> Any:
        request = quotas.ListQuotaAllowancesRequest.FromString(raw)
        rows = self._cloud.quotas(request.parent_id)
        start, size = (
            int(request.page_token or 0),
            min(request.page_size or 100, self._cloud.setting("page", 100)),
        )
        items = []
        for name, region, limit, usage, unit in rows[start : start + size]:
            spec = quotas.QuotaAllowanceSpec(region=region)
            if limit is not None:
                spec.limit = limit
            items.append(
                quotas.QuotaAllowance(
                    metadata=ResourceMetadata(name=name, parent_id=request.parent_id), spec=spec,
                    status=quotas.QuotaAllowanceStatus(usage=usage, unit=unit),
                )
            )  # fmt: skip
        answer = quotas.ListQuotaAllowancesResponse(items=items)
        if start + size < len(rows):
            answer.next_page_token = str(start + size)
        return answer

    def _advice(self, raw: bytes) -> Any:
        """Settings: rows of region, fabric, platform, preset, level, machines; none may be seen where there are none."""
        rows = self._cloud.setting("advice")
        if rows is None:
            raise Refused("PERMISSION_DENIED", "capacity.resourceAdvice.list is not allowed")
        fresh = capacity.ResourceAdviceStatus__Availability__DataState.DATA_STATE_FRESH
        levels = capacity.ResourceAdviceStatus__Availability__AvailabilityLevel
        return capacity.ListResourceAdviceResponse(
            items=[
                capacity.ResourceAdvice(
                    spec=capacity.ResourceAdviceSpec(
                        region=region, fabric=fabric,
                        compute_instance=capacity.ComputeInstanceDetails(platform=platform, preset=capacity.ComputeInstanceDetails__Preset(name=preset)),
                    ),
                    status=capacity.ResourceAdviceStatus(
                        on_demand=capacity.ResourceAdviceStatus__Availability(
                            availability_level=levels[f"AVAILABILITY_LEVEL_{level}"], available=machines, data_state=fresh,
                        )
                    ),
                )
                for region, fabric, platform, preset, level, machines in rows
            ]
        )  # fmt: skip

    def _project(self, raw: bytes) -> Any:
        request = iam2.GetProjectRequest.FromString(raw)
        regions = self._cloud.setting("projects", {})
        if request.id not in regions:
            raise Refused("NOT_FOUND", f"project {request.id} not found")
        region = regions[request.id]
        return iam2.Project(
            metadata=ResourceMetadata(id=request.id, name="research", parent_id="tenant-e00a1"),
            spec=iam2.ProjectSpec(region=region),
        )  # fmt: skip

    def _profile(self, raw: bytes) -> Any:
        me = iam.UserProfile(id="useraccount-e00me", attributes=iam.UserAttributes(email="me@example.org"))
        return iam.GetProfileResponse(user_profile=me)

    def _versions(self, raw: bytes) -> Any:
        return mk8s.ListClusterControlPlaneVersionsResponse(
            items=[
                mk8s.ClusterControlPlaneVersion(version=v) for v in self._cloud.setting("versions", ["1.30", "1.31", "1.32"])
            ]
        )  # fmt: skip

    def _make_key(self, raw: bytes) -> Any:
        request = iam2.CreateAccessKeyRequest.FromString(raw)
        expires = request.spec.expires_at
        row = self._cloud.create(
            "nebius_iam_v2_access_key", request.metadata.parent_id, request.metadata.name,
            {"account": request.spec.account.service_account.id, "expires": expires.timestamp() if expires else None},
        )  # fmt: skip
        return _done(row)

    def _get_key(self, raw: bytes) -> Any:
        found = self._cloud.find(iam2.GetAccessKeyRequest.FromString(raw).id)
        if found is None:
            raise Refused("NOT_FOUND", "no such access key")
        return _key(found)

    def _secret(self, raw: bytes) -> Any:
        request = iam2.GetAccessKeySecretRequest.FromString(raw)
        return iam2.GetAccessKeySecretResponse(
            aws_access_key_id=f"NAKI{request.id[-6:]}", secret=f"{self._cloud.setting('secret', 'sesame')}-{request.id[-6:]}"
        )  # fmt: skip

    def _keys(self, raw: bytes) -> Any:
        request = iam2.ListAccessKeysRequest.FromString(raw)
        return iam2.ListAccessKeysResponse(items=[_key(r) for r in self._cloud.things("nebius_iam_v2_access_key", request.parent_id)])  # fmt: skip

    def _delete_key(self, raw: bytes) -> Any:
        found = self._cloud.find(iam2.DeleteAccessKeyRequest.FromString(raw).id)
        if found is None:
            raise Refused("NOT_FOUND", "no such access key")
        self._cloud.delete(found.id)
        return _done(found)

    def _members(self, raw: bytes) -> Any:
        request = iam.ListGroupMembershipsRequest.FromString(raw)
        rows = self._cloud.things("nebius_iam_v1_group_membership", request.parent_id)
        return iam.ListGroupMembershipsResponse(
            memberships=[
                iam.GroupMembership(metadata=_metadata(r), spec=iam.GroupMembershipSpec(member_id=r.data["member"])) for r in rows
            ]
        )  # fmt: skip

    def _add_member(self, raw: bytes) -> Any:
        if self._cloud.setting("no_admin"):
            raise Refused("PERMISSION_DENIED", "iam.groupMembership.create is not allowed")
        request = iam.CreateGroupMembershipRequest.FromString(raw)
        member = request.spec.member_id
        return _done(self._cloud.create("nebius_iam_v1_group_membership", request.metadata.parent_id, member, {"member": member}))  # fmt: skip


def _message(row: Row, cloud: FakeCloud) -> Any:
    metadata = _metadata(row)
    match row.kind:
        case "nebius_compute_v1_filesystem":
            size = row.data.get("size_bytes", 0)
            return compute.Filesystem(metadata=metadata, spec=compute.FilesystemSpec(size_bytes=size), status=compute.FilesystemStatus(size_bytes=size))  # fmt: skip
        case "nebius_compute_v1_gpu_cluster":
            return compute.GpuCluster(metadata=metadata, spec=compute.GpuClusterSpec(infiniband_fabric=row.data.get("infiniband_fabric", "")))  # fmt: skip
        case "nebius_mk8s_v1_node_group":
            wanted, ready, events = nodes_ready(row, cloud)
            status = mk8s.NodeGroupStatus(target_node_count=wanted, node_count=ready, ready_node_count=ready)
            for text in events:
                code, _, message = text.partition(": ")
                status.events.append(Event(last_occurrence=ResourceEvent(code=code, message=message, occurred_at=datetime.now(UTC))))  # fmt: skip
            return mk8s.NodeGroup(metadata=metadata, spec=mk8s.NodeGroupSpec(fixed_node_count=wanted), status=status)  # fmt: skip
        case "nebius_vpc_v1_allocation":
            details = vpc.AllocationDetails(allocated_cidr=row.data.get("address", "192.0.2.10/32"))
            return vpc.Allocation(metadata=metadata, status=vpc.AllocationStatus(details=details))
    module, noun = next((m, n) for k, m, n in _SERVICES.values() if k == row.kind)
    return getattr(module, noun)(metadata=metadata)


def _key(row: Row) -> Any:
    expires = row.data.get("expires")
    spec = iam2.AccessKeySpec()
    if expires is not None:
        spec.expires_at = datetime.fromtimestamp(expires, UTC)
    return iam2.AccessKey(
        metadata=_metadata(row),
        spec=spec,
        status=iam2.AccessKeyStatus(aws_access_key_id=f"NAKI{row.id[-6:]}"),
    )


def _metadata(row: Row) -> Any:
    return ResourceMetadata(id=row.id, parent_id=row.parent, name=row.name)


def _done(row: Row) -> Any:
    from nebius.api.google.rpc import Status

    return Operation(id=f"operation-{row.id}", resource_id=row.id, status=Status(code=0), finished_at=datetime.now(UTC))  # fmt: skip


def _details(error: Refused) -> bytes:
    """``google.rpc.Status`` with the service's error inside, as the SDK unpacks it."""
    found = ServiceError(service="compute", code=error.code)
    if error.quota:
        name, limit, requested = error.quota
        found.quota_failure = QuotaFailure(violations=[Violation(quota=name, limit=str(limit), requested=str(requested), message=error.message)])  # fmt: skip
    if error.resource_id:
        found.resource_already_exists = ResourceAlreadyExists(resource_id=error.resource_id)
    packed = _field(1, b"type.googleapis.com/nebius.common.v1.ServiceError") + _field(
        2, found.SerializeToString()
    )
    return (
        b"\x08"
        + bytes([grpc.StatusCode[error.code].value[0]])
        + _field(2, error.message.encode())
        + _field(3, packed)
    )


def _field(number: int, data: bytes) -> bytes:
    """A length-delimited field in protobuf's encoding; the SDK has no builder for `google.protobuf.Any`."""
    size, rest = len(data), b""
    while size > 127:
        rest += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + rest + bytes([size]) + data
