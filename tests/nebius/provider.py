"""The simulated Nebius as Terraform sees it: a provider that the real Terraform starts from a filesystem mirror.

Attributes are fewer and flatter than the real provider's; names, ids, sizes, parents, uniqueness, quotas and what can't be changed
in place are as there. Run as ``python -m tests.nebius.provider`` by Terraform itself, with $FAKE_NEBIUS for the cloud's file.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tf import runner
from tf.iface import (
    CreateContext,
    DeleteContext,
    ImportContext,
    PlanContext,
    Provider,
    ReadContext,
    Resource,
    UpdateContext,
)
from tf.schema import Attribute, Schema
from tf.types import Number, String, Unknown
from tf.utils import Diagnostics

from tests.nebius.cloud import FakeCloud, Refused, nodes_ready

HOST = "terraform-provider.storage.eu-north1.nebius.cloud"
VERSION = "0.5.130"
# kind: attributes; those in `FIXED` can't be changed in place
_KINDS: dict[str, tuple[str, ...]] = {
    "compute_v1_filesystem": ("size_bytes",),
    "compute_v1_gpu_cluster": ("infiniband_fabric",),
    "mk8s_v1_cluster": ("subnet_id",),
    "mk8s_v1_node_group": ("fixed_node_count", "platform", "preset"),
    "vpc_v1_allocation": (),
}
_FIXED = {"parent_id", "name", "infiniband_fabric", "subnet_id", "platform"}
_NUMBERS = {"size_bytes", "fixed_node_count"}


def _cloud() -> FakeCloud:
    return FakeCloud(Path(os.environ["FAKE_NEBIUS"]))


def _explain(diagnostics: Diagnostics, error: Refused) -> None:
    diagnostics.add_error(f"{error.code}: {error.message}", error.message)


def _resource(kind: str, attributes: tuple[str, ...]) -> type[Resource]:
    full = f"nebius_{kind}"

    class Made(Resource):
        def __init__(self, provider: Any) -> None:
            self.cloud = _cloud()

        @classmethod
        def get_name(cls) -> str:
            return kind

        @classmethod
        def get_schema(cls) -> Schema:
            return Schema(
                attributes=[
                    Attribute("id", String(), computed=True),
                    Attribute("parent_id", String(), required=True, requires_replace=True),
                    Attribute("name", String(), required=True, requires_replace=True),
                    *(
                        Attribute(
                            a,
                            Number() if a in _NUMBERS else String(),
                            required=True,
                            requires_replace=a in _FIXED,
                        )
                        for a in attributes
                    ),
                ]
            )

        def _allowed(self, diagnostics: Diagnostics) -> bool:
            try:
                self.cloud.check_token(os.environ.get("NEBIUS_IAM_TOKEN", ""))
            except Refused as error:
                _explain(diagnostics, error)
                return False
            return True

        def create(self, ctx: CreateContext, planned: dict[str, Any]) -> dict[str, Any] | None:
            if not self._allowed(ctx.diagnostics):
                return None
            try:
                row = self.cloud.create(full, planned["parent_id"], planned["name"], {a: planned[a] for a in attributes})  # fmt: skip
                self.cloud.wait(full)
                # As the real one: the group is accepted at once, and waited for without a word.
                while full == "nebius_mk8s_v1_node_group" and nodes_ready(row, self.cloud)[1] < int(planned["fixed_node_count"]):  # fmt: skip
                    time.sleep(0.1)
            except Refused as error:
                _explain(ctx.diagnostics, error)
                return None
            return {**planned, "id": row.id}

        def read(self, ctx: ReadContext, current: dict[str, Any]) -> dict[str, Any] | None:
            if not self._allowed(ctx.diagnostics):
                return current
            row = self.cloud.find(str(current["id"]))
            if row is None:
                return None
            return {
                "id": row.id,
                "parent_id": row.parent,
                "name": row.name,
                **{a: row.data.get(a) for a in attributes},
            }

        def update(self, ctx: UpdateContext, current: dict[str, Any], planned: dict[str, Any]) -> dict[str, Any] | None:  # fmt: skip
            if not self._allowed(ctx.diagnostics):
                return None
            try:
                self.cloud.update(str(current["id"]), {a: planned[a] for a in attributes})
            except Refused as error:
                _explain(ctx.diagnostics, error)
                return None
            return {**planned, "id": current["id"]}

        def delete(self, ctx: DeleteContext, current: dict[str, Any]) -> None:
            if not self._allowed(ctx.diagnostics):
                return
            try:
                self.cloud.wait(f"delete {full}")
                self.cloud.delete(str(current["id"]))
            except Refused as error:
                if error.code != "NOT_FOUND":
                    _explain(ctx.diagnostics, error)

        def plan(self, ctx: PlanContext, current: dict[str, Any] | None, planned: dict[str, Any]) -> dict[str, Any]:  # fmt: skip
            # Asked for no-ops, too: an id is unknown only where a thing is made.
            if current is None or ctx.changed_fields & _FIXED:
                return {**planned, "id": Unknown}
            return {**planned, "id": current["id"]}

        def import_(self, ctx: ImportContext, id: str) -> dict[str, Any] | None:
            return self.read(ReadContext(ctx.diagnostics, ctx.type_name), {"id": id})

    Made.__name__ = full
    return Made


class Nebius(Provider):
    def get_model_prefix(self) -> str:
        return "nebius_"

    def full_name(self) -> str:
        return f"{HOST}/nebius/nebius"

    def get_provider_schema(self, diags: Diagnostics) -> Schema:
        return Schema(attributes=[Attribute("domain", String(), optional=True)])

    def validate_config(self, diags: Diagnostics, config: dict[str, Any]) -> None:
        pass

    def configure_provider(self, diags: Diagnostics, config: dict[str, Any]) -> None:
        pass

    def get_data_sources(self) -> list[Any]:
        return []

    def get_resources(self) -> list[type[Resource]]:
        return [_resource(kind, attributes) for kind, attributes in _KINDS.items()]


class _Patient(runner._ShutdownInterceptor):  # type: ignore[misc, name-defined]
    """Asked to stop, it finishes what it is making, as providers in Go do; the library's own would drop it."""

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        if handler_call_details.method == "/tfplugin6.Provider/StopProvider":
            return continuation(handler_call_details)
        return super().intercept_service(continuation, handler_call_details)


def install(mirror: Path, source: Path) -> None:
    """Puts the launcher where Terraform looks for this provider."""
    directory = mirror / HOST / "nebius" / "nebius" / VERSION / "linux_amd64"
    directory.mkdir(parents=True)
    launcher = directory / f"terraform-provider-nebius_v{VERSION}"
    paths = os.pathsep.join([str(source), *filter(None, sys.path)])
    launcher.write_text(
        f"#!/bin/sh\nPYTHONPATH='{paths}' exec '{sys.executable}' -m tests.nebius.provider \"$@\"\n"
    )
    launcher.chmod(0o755)


def _end_with_terraform() -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_terraform, daemon=True).start()
    runner._ShutdownInterceptor = _Patient
    runner.run_provider(Nebius(), sys.argv)
