"""What Terraform needs of the cloud before it can begin: an identity, a key for its state, a bucket. Made once, found ever after.

The recipe's own ``.envrc`` makes a new access key each time a shell enters its directory; here a key is used until it ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from seatrial.errors import PlatformError, SpecError
from seatrial.provision.nebius.cloud import Cloud, ExistsError, MissingError
from seatrial.runs.files import read_json, write_json

_ACCOUNT = "seatrial-terraform"
_GROUP = "editors"
_KEY_DAYS = 30
_LEFT = timedelta(hours=12)
"""A key that ends sooner is replaced before it is used: `up` takes an hour, and may be tried again."""


@dataclass(frozen=True, slots=True)
class Key:
    """For the state's bucket; both parts are secrets' company and stay in the private directory."""

    access_key_id: str
    secret: str


@dataclass(frozen=True, slots=True)
class Account:
    """What was made or found."""

    service_account: str
    bucket: str
    key: Key
    made: tuple[str, ...]
    """What was not there before, in words."""


def subnet_of(cloud: Cloud, project: str) -> str:
    """The project's only subnet.

    Raises:
        SpecError: it has none, or several.
    """
    found = cloud.subnets(project)
    if len(found) != 1:
        raise SpecError(
            "which subnet the cluster is to be in is not said",
            evidence=f"{project} has {', '.join(f'{s.name} ({s.id})' for s in found) or 'none'}",
            remedy="cloud: {subnet: vpcsubnet-…}" if found else "nebius vpc subnet create …",
        )
    return found[0].id


def bucket_name(tenant: str, project: str) -> str:
    """Of the state's bucket: one for each project."""
    return f"seatrial-state-{hashlib.sha256(f'{tenant}/{project}'.encode()).hexdigest()[:16]}"


def ensure(cloud: Cloud, tenant: str, project: str, cluster: str, private: Path) -> Account:
    """The service account, its right to edit, its key and the bucket; what is there is used.

    Args:
        cloud: where.
        tenant: its id.
        project: its id.
        cluster: name; each cluster has a key of its own, so that one can be taken away.
        private: directory of mode 0700 that keeps the key.

    Raises:
        PlatformError: the credentials may not do that.
    """
    made: list[str] = []
    account = _service_account(cloud, project, made)
    _membership(cloud, tenant, account, made)
    key = _key(cloud, project, account, f"seatrial-{cluster}", private / "key.json", made)
    bucket = bucket_name(tenant, project)
    _bucket(cloud, project, bucket, made)
    return Account(account, bucket, key, tuple(made))


def forget_key(cloud: Cloud, private: Path) -> bool:
    """Deletes the key that `ensure` made, here and in the cloud; whether there was one."""
    from nebius.api.nebius.iam.v2 import AccessKeyServiceClient, DeleteAccessKeyRequest

    kept = read_json(private / "key.json")
    if not isinstance(kept, dict):
        return False
    with contextlib.suppress(MissingError):
        cloud.call("delete the state's key", AccessKeyServiceClient, "delete", DeleteAccessKeyRequest(id=kept["id"]))  # fmt: skip
    (private / "key.json").unlink()
    return True


def _service_account(cloud: Cloud, project: str, made: list[str]) -> str:
    from nebius.api.nebius.common.v1 import ResourceMetadata
    from nebius.api.nebius.iam.v1 import (
        CreateServiceAccountRequest,
        GetServiceAccountByNameRequest,
        ServiceAccountServiceClient,
        ServiceAccountSpec,
    )

    def find() -> str:
        request = GetServiceAccountByNameRequest(parent_id=project, name=_ACCOUNT)
        return str(cloud.call(f"look for the service account {_ACCOUNT}", ServiceAccountServiceClient, "get_by_name", request).metadata.id)  # fmt: skip

    try:
        return find()
    except MissingError:
        pass
    request = CreateServiceAccountRequest(
        metadata=ResourceMetadata(parent_id=project, name=_ACCOUNT),
        spec=ServiceAccountSpec(description="Terraform's state of Seatrial's clusters"),
    )
    try:
        operation = cloud.call(f"make the service account {_ACCOUNT}", ServiceAccountServiceClient, "create", request)  # fmt: skip
    except ExistsError:  # another command was quicker
        return find()
    made.append(f"service account {_ACCOUNT}")
    return str(operation.resource_id)


def _membership(cloud: Cloud, tenant: str, account: str, made: list[str]) -> None:
    from nebius.api.nebius.common.v1 import ResourceMetadata
    from nebius.api.nebius.iam.v1 import (
        CreateGroupMembershipRequest,
        GetGroupByNameRequest,
        GroupMembershipServiceClient,
        GroupMembershipSpec,
        GroupServiceClient,
        ListGroupMembershipsRequest,
    )

    group = cloud.call(f"look for the group {_GROUP}", GroupServiceClient, "get_by_name", GetGroupByNameRequest(parent_id=tenant, name=_GROUP)).metadata.id  # fmt: skip
    token = ""
    while True:
        answer = cloud.call(f"list the group {_GROUP}", GroupMembershipServiceClient, "list_members", ListGroupMembershipsRequest(parent_id=group, page_size=500, page_token=token))  # fmt: skip
        if any(m.spec.member_id == account for m in answer.memberships):
            return
        token = answer.next_page_token
        if not token:
            break
    request = CreateGroupMembershipRequest(
        metadata=ResourceMetadata(parent_id=group), spec=GroupMembershipSpec(member_id=account)
    )
    try:
        cloud.call(f"add {account} to the group {_GROUP}", GroupMembershipServiceClient, "create", request)
    except ExistsError:
        return
    except PlatformError as error:
        raise PlatformError(
            f"{error.what}: that takes an administrator of the tenant", evidence=error.evidence,
            remedy=f"an administrator: nebius iam group-membership create --parent-id {group} --member-id {account}; then the same command again",
        ) from None  # fmt: skip
    made.append(f"its membership in {_GROUP}")


def _key(cloud: Cloud, project: str, account: str, name: str, kept: Path, made: list[str]) -> Key:
    from nebius.api.nebius.common.v1 import ResourceMetadata
    from nebius.api.nebius.iam.v1 import Account as Owner
    from nebius.api.nebius.iam.v1 import Account__ServiceAccount as ServiceAccountOwner
    from nebius.api.nebius.iam.v2 import (
        AccessKeyServiceClient,
        AccessKeySpec,
        CreateAccessKeyRequest,
        DeleteAccessKeyRequest,
        GetAccessKeySecretRequest,
    )

    found = read_json(kept)
    if isinstance(found, dict) and _is_good(cloud, found):
        return Key(found["access_key_id"], found["secret"])
    if isinstance(found, dict):
        # Ours, and ended or about to: keys must not pile up.
        with contextlib.suppress(MissingError):
            cloud.call("delete the old key", AccessKeyServiceClient, "delete", DeleteAccessKeyRequest(id=found["id"]))  # fmt: skip
    ends = datetime.now(UTC) + timedelta(days=_KEY_DAYS)
    owner = Owner(service_account=ServiceAccountOwner(id=account))
    request = CreateAccessKeyRequest(
        metadata=ResourceMetadata(parent_id=project, name=f"{name}-{os.urandom(3).hex()}"),
        spec=AccessKeySpec(account=owner, expires_at=ends, description="Terraform's state"),
    )
    key_id = str(cloud.call("make a key for the state's bucket", AccessKeyServiceClient, "create", request).resource_id)  # fmt: skip
    secret = cloud.call("get the key's secret", AccessKeyServiceClient, "get_secret", GetAccessKeySecretRequest(id=key_id))  # fmt: skip
    data = {
        "id": key_id,
        "access_key_id": secret.aws_access_key_id,
        "secret": secret.secret,
        "ends": ends.isoformat(),
    }
    write_private(kept, data)
    made.append(f"a key for the state's bucket, good for {_KEY_DAYS} days")
    return Key(data["access_key_id"], data["secret"])


def _is_good(cloud: Cloud, kept: dict[str, Any]) -> bool:
    from nebius.api.nebius.iam.v2 import AccessKeyServiceClient, GetAccessKeyRequest

    if datetime.fromisoformat(kept["ends"]) - datetime.now(UTC) < _LEFT:
        return False
    try:
        cloud.call("look at the state's key", AccessKeyServiceClient, "get", GetAccessKeyRequest(id=kept["id"]))  # fmt: skip
    except MissingError:
        return False
    return True


def _bucket(cloud: Cloud, project: str, name: str, made: list[str]) -> None:
    from nebius.api.nebius.common.v1 import ResourceMetadata
    from nebius.api.nebius.storage.v1 import (
        BucketServiceClient,
        BucketSpec,
        CreateBucketRequest,
        GetBucketByNameRequest,
        VersioningPolicy,
    )

    try:
        cloud.call("look for the state's bucket", BucketServiceClient, "get_by_name", GetBucketByNameRequest(parent_id=project, name=name))  # fmt: skip
        return
    except MissingError:
        pass
    request = CreateBucketRequest(
        metadata=ResourceMetadata(parent_id=project, name=name),
        spec=BucketSpec(versioning_policy=VersioningPolicy.ENABLED),
    )
    try:
        cloud.call("make the state's bucket", BucketServiceClient, "create", request)
    except ExistsError:
        return
    made.append(f"bucket {name} (versioned)")


def write_private(path: Path, data: dict[str, Any]) -> None:
    """`write_json`, readable by nobody else from the first byte on."""
    mask = os.umask(0o077)
    try:
        write_json(path, data)
    finally:
        os.umask(mask)
