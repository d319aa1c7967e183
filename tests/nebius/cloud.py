"""A simulated Nebius: projects, quotas, things with unique names, in one SQLite file that all processes of a test share.

Behind it stand a gRPC server, which the real SDK talks to (`server.py`), and a Terraform provider, which the real Terraform
drives (`provider.py`). What it knows of Nebius: names are unique in their parent, file systems never shrink, quotas are counted
per region at the project and at the tenant, a thing takes time to be made and exists from the first moment on, node groups are
accepted at once and wait for capacity in silence. What it doesn't know is refused.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PREFIXES = {
    "nebius_compute_v1_filesystem": "computefilesystem",
    "nebius_compute_v1_gpu_cluster": "computegpucluster",
    "nebius_compute_v1_instance": "computeinstance",
    "nebius_compute_v1_disk": "computedisk",
    "nebius_mk8s_v1_cluster": "mk8scluster",
    "nebius_mk8s_v1_node_group": "mk8snodegroup",
    "nebius_vpc_v1_allocation": "vpcallocation",
    "nebius_vpc_v1_subnet": "vpcsubnet",
    "nebius_storage_v1_bucket": "storagebucket",
    "nebius_iam_v1_service_account": "serviceaccount",
    "nebius_iam_v1_group": "group",
    "nebius_iam_v1_group_membership": "groupmembership",
    "nebius_iam_v2_access_key": "accesskey",
}
_TABLES = (
    "things (kind text, id text primary key, parent text, name text, data text, created real, unique (kind, parent, name))",
    "quotas (parent text, name text, region text, quota_limit integer, unit text, primary key (parent, name, region))",
    "settings (name text primary key, value text)",
    "requests (at real, what text)",
)
_GPUS = {"gpu-h100-sxm": "compute.instance.gpu.h100", "gpu-h200-sxm": "compute.instance.gpu.h200"}


class Refused(Exception):
    """What the cloud says no with.

    Args:
        code: a gRPC status's name.
        message: its words.
        quota: name, limit, total asked for.
        resource_id: of what is there already.
    """

    def __init__(
        self, code: str, message: str, quota: tuple[str, int, int] | None = None, resource_id: str = ""
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.quota, self.resource_id = code, message, quota, resource_id


@dataclass(frozen=True)
class Row:
    kind: str
    id: str
    parent: str
    name: str
    data: dict[str, Any]
    created: float


class FakeCloud:
    """One cloud.

    Args:
        path: of the SQLite file; made where it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as db:
            for table in _TABLES:
                db.execute(f"create table if not exists {table}")

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        try:
            db.execute("pragma journal_mode=wal")
            db.execute("begin immediate")
            yield db
            db.execute("commit")
        except BaseException:
            if db.in_transaction:
                db.execute("rollback")
            raise
        finally:
            db.close()

    def set(self, **values: Any) -> None:
        """tokens (accepted ones), slow_s (how long a thing takes), no_capacity (platforms), regions, fail (kinds that fail)."""
        with self._open() as db:
            for name, value in values.items():
                db.execute("insert or replace into settings values (?, ?)", (name, json.dumps(value)))

    def setting(self, name: str, default: Any = None) -> Any:
        with self._open() as db:
            found = db.execute("select value from settings where name = ?", (name,)).fetchone()
        return default if found is None else json.loads(found[0])

    def set_quota(
        self, parent: str, name: str, limit: int | None, region: str = "eu-north1", unit: str = "count"
    ) -> None:
        with self._open() as db:
            db.execute(
                "insert or replace into quotas values (?, ?, ?, ?, ?)", (parent, name, region, limit, unit)
            )

    def quotas(self, parent: str) -> list[tuple[str, str, int | None, int, str]]:
        """Name, region, limit, usage, unit."""
        with self._open() as db:
            rows = db.execute(
                "select name, region, quota_limit, unit from quotas where parent = ? order by name", (parent,)
            ).fetchall()
            return [(name, region, limit, self._usage(db, name), unit) for name, region, limit, unit in rows]

    def check_token(self, token: str) -> None:
        accepted = self.setting("tokens")
        if accepted is not None and token not in accepted:
            raise Refused("UNAUTHENTICATED", "The token is invalid or has expired")

    def log(self, what: str) -> None:
        with self._open() as db:
            db.execute("insert into requests values (?, ?)", (time.time(), what))

    def requests(self) -> list[str]:
        with self._open() as db:
            return [what for (what,) in db.execute("select what from requests order by at")]

    def things(self, kind: str | None = None, parent: str | None = None) -> list[Row]:
        with self._open() as db:
            rows = db.execute(
                "select kind, id, parent, name, data, created from things where (? is null or kind = ?) and (? is null or parent = ?) order by created, id",
                (kind, kind, parent, parent),
            ).fetchall()
        return [Row(k, i, p, n, json.loads(d), c) for k, i, p, n, d, c in rows]

    def find(self, id: str) -> Row | None:
        return next((row for row in self.things() if row.id == id), None)

    def create(self, kind: str, parent: str, name: str, data: dict[str, Any] | None = None) -> Row:
        """Makes a thing; it is there from now on, whoever waits for it."""
        data = data or {}
        if kind in self.setting("fail", []):
            raise Refused("INTERNAL", f"Internal error while making {kind} {name}")
        with self._open() as db:
            found = db.execute(
                "select id from things where kind = ? and parent = ? and name = ?", (kind, parent, name)
            ).fetchone()
            if found:
                raise Refused(
                    "ALREADY_EXISTS",
                    f"{kind.removeprefix('nebius_')} with name {name} already exists in {parent}",
                    resource_id=found[0],
                )
            self._check_quotas(db, kind, data)
            number = db.execute("select coalesce(max(rowid), 0) + 1 from things").fetchone()[0]
            row = Row(kind, f"{PREFIXES[kind]}-e00{number:06d}", parent, name, data, time.time())
            db.execute(
                "insert into things values (?, ?, ?, ?, ?, ?)",
                (row.kind, row.id, parent, name, json.dumps(data), row.created),
            )
        return row

    def wait(self, kind: str) -> None:
        """As long as a thing takes."""
        slow = self.setting("slow_s", {})
        time.sleep(slow.get(kind, 0) if isinstance(slow, dict) else slow)

    def update(self, id: str, data: dict[str, Any]) -> Row:
        with self._open() as db:
            found = db.execute(
                "select kind, parent, name, data, created from things where id = ?", (id,)
            ).fetchone()
            if found is None:
                raise Refused("NOT_FOUND", f"{id} not found")
            old = json.loads(found[3])
            if found[0] == "nebius_compute_v1_filesystem" and data.get("size_bytes", 0) < old.get(
                "size_bytes", 0
            ):
                raise Refused("INVALID_ARGUMENT", "filesystem size can't be decreased")
            self._check_quotas(
                db,
                found[0],
                {k: v - old.get(k, 0) if k == "size_bytes" else v for k, v in data.items()},
                new=False,
            )
            merged = {**old, **data}
            db.execute("update things set data = ? where id = ?", (json.dumps(merged), id))
            return Row(found[0], id, found[1], found[2], merged, found[4])

    def delete(self, id: str) -> None:
        with self._open() as db:
            children = db.execute("select count(*) from things where parent = ?", (id,)).fetchone()[0]
            if children:
                raise Refused("FAILED_PRECONDITION", f"{id} still holds {children} things")
            if not db.execute("delete from things where id = ?", (id,)).rowcount:
                raise Refused("NOT_FOUND", f"{id} not found")

    def _check_quotas(
        self, db: sqlite3.Connection, kind: str, data: dict[str, Any], new: bool = True
    ) -> None:
        for name, amount in _takes(kind, data, new):
            for (limit,) in db.execute(
                "select quota_limit from quotas where name = ? and quota_limit is not null", (name,)
            ).fetchall():
                total = self._usage(db, name) + amount
                if total > limit:
                    raise Refused(
                        "RESOURCE_EXHAUSTED",
                        f"Quota limit exceeded: {name} (limit {limit}, requested {total})",
                        quota=(name, limit, total),
                    )

    def _usage(self, db: sqlite3.Connection, name: str) -> int:
        rows = db.execute("select kind, data from things").fetchall()
        return sum(
            amount
            for kind, data in rows
            for quota, amount in _takes(kind, json.loads(data), True)
            if quota == name
        )


def _takes(kind: str, data: dict[str, Any], new: bool) -> Iterator[tuple[str, int]]:
    """What a thing takes of which quota. GPUs and nodes are taken by node groups once they get them: not here."""
    if kind == "nebius_compute_v1_filesystem":
        yield "compute.filesystem.size.network-ssd", int(data.get("size_bytes", 0))
        if new:
            yield "compute.filesystem.count", 1
    elif new and kind == "nebius_compute_v1_gpu_cluster":
        yield "compute.gpucluster.count", 1
    elif new and kind == "nebius_mk8s_v1_cluster":
        yield "mk8s.cluster.count", 1


def nodes_ready(row: Row, cloud: FakeCloud) -> tuple[int, int, list[str]]:
    """Wanted, ready, and what stands in the way, of a node group."""
    wanted = int(row.data.get("fixed_node_count", 0))
    if row.data.get("platform") in cloud.setting("no_capacity", []):
        return wanted, 0, ["NotEnoughCapacity: not enough resources to create an instance; retrying"]
    quota = _GPUS.get(str(row.data.get("platform")))
    if quota is not None:
        gpus = wanted * int(str(row.data.get("preset", "0gpu")).partition("gpu")[0] or 0)
        for name, _, limit, _, _ in [q for p in {"tenant-e00a1", "project-e00b2"} for q in cloud.quotas(p)]:
            if name == quota and limit is not None and gpus > limit:
                return (
                    wanted,
                    0,
                    [f"QuotaExceeded: Quota limit exceeded: {quota} (limit {limit}, requested {gpus})"],
                )
    return wanted, wanted, []
