"""Rules about who and what: ids, names, keys, variables, secrets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from seatrial.provision.nebius.adapters import FOREIGN, SECRETS
from seatrial.provision.nebius.rules.common import Case, Finding, fail, near, plain, rule, warn
from seatrial.spec.cluster import NAME

_PREFIXES = {"iam_project_id": "project-", "iam_tenant_id": "tenant-", "vpc_subnet_id": "vpcsubnet-", "o11y_iam_project_id": "project-", "o11y_iam_tenant_id": "tenant-", "o11y_iam_group_id": "group-"}  # fmt: skip
_PARTITION = re.compile(r"^PartitionName=\S+( \S+=\S+)+$")


@rule("name")
def name(case: Case) -> Iterator[Finding]:
    """15. The recipe says 1 to 32 letters, and its pattern needs 2."""
    value = str(case.values.get("company_name", ""))
    if not NAME.fullmatch(value):
        yield fail(
            f"{value!r} can't be the cluster's name", "name",
            "2 to 32 small letters, digits and hyphens; a letter first, no hyphen last",
        )  # fmt: skip


@rule("id-prefix")
def ids(case: Case) -> Iterator[Finding]:
    """16. Ids of another kind, or placeholders."""
    for variable, prefix in _PREFIXES.items():
        value = case.values.get(variable)
        if value is None or (variable == "vpc_subnet_id" and not value) or value == f"group-{FOREIGN}":
            continue
        if not re.fullmatch(rf"{prefix}[a-z0-9-]+", str(value)):
            yield fail(
                f"{value!r} is no id of this kind", case.rendered.place(variable), f"{prefix}…, as the console shows it"
            )  # fmt: skip


@rule("telemetry-profile")
def telemetry_profile(case: Case) -> Iterator[Finding]:
    """18. Telemetry to the cloud's own, without a profile for it."""
    if case.values.get("public_o11y_enabled") and case.values.get("o11y_profile") in {"", FOREIGN, None}:
        yield fail(
            "public telemetry is on, and no CLI profile is named for it", "variables.o11y_profile",
            "public_o11y_enabled: false, unless Nebius gave you a profile",
        )  # fmt: skip


@rule("variable-unknown")
def unknown(case: Case) -> Iterator[Finding]:
    """19. Variables and keys that this recipe doesn't have: Terraform would drop them with a warning, or in silence."""
    for variable, value in case.values.items():
        if variable not in case.variables:
            if variable in case.spec.variables:
                yield fail(
                    f"the recipe {case.recipe.version} has no variable {variable!r}", f"variables.{variable}",
                    near(variable, case.variables),
                )  # fmt: skip
            else:
                yield fail(
                    f"the recipe's variables.tf lacks {variable!r}, which {case.recipe.series}.x is known to have",
                    case.rendered.place(variable), "a checkout without changes, of a release that is supported",
                )  # fmt: skip
            continue
        keys = case.variables[variable].keys
        if keys is not None:
            yield from _unknown_keys(case.rendered.place(variable), value, keys)


def _unknown_keys(place: str, value: Any, keys: Mapping[str, Any]) -> Iterator[Finding]:
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from _unknown_keys(f"{place}.{i}", item, keys)
    elif isinstance(value, dict):
        for key, below in value.items():
            if key not in keys:
                yield fail(
                    f"the recipe has no key {key!r} there, and Terraform would drop it in silence",
                    f"{place}.{key}",
                    near(key, keys),
                )
            elif keys[key] is not None:
                yield from _unknown_keys(f"{place}.{key}", below, keys[key])


@rule("variable-missing")
def missing(case: Case) -> Iterator[Finding]:
    """19. Variables without a default that nothing sets."""
    for variable in case.variables.values():
        if variable.required and variable.name not in case.values and variable.name not in SECRETS:
            yield fail(
                f"the recipe needs {variable.name}, and nothing here sets it", f"variables.{variable.name}",
                f"variables: {{{variable.name}: …}}",
            )  # fmt: skip


@rule("ssh-key")
def ssh_keys(case: Case) -> Iterator[Finding]:
    """24. Keys that let nobody in: the recipe's own example ships an empty one."""
    for i, key in enumerate(case.keys):
        if isinstance(key, ValueError):
            yield fail(f"no public key: {key}", f"ssh_keys.{i}", "~/.ssh/id_ed25519.pub, or its one line")


@rule("partitions")
def partitions(case: Case) -> Iterator[Finding]:
    """29. Partitions of one's own that Slurm would not read."""
    if case.values.get("slurm_partition_config_type") != "custom":
        return
    lines = case.values.get("slurm_partition_raw_config") or []
    if not lines:
        yield fail("custom partitions, and no line for one", "variables.slurm_partition_raw_config", "PartitionName=main Nodes=ALL Default=YES State=UP")  # fmt: skip
    nodesets = {plain(f, "nodeset_name") for f in case.values.get("slurm_worker_features") or []} | {"ALL", ""}  # fmt: skip
    for i, line in enumerate(lines):
        place = f"variables.slurm_partition_raw_config.{i}"
        if not isinstance(line, str) or not _PARTITION.match(line):
            yield fail(f"{line!r} is no partition", place, "PartitionName=NAME KEY=VALUE …")
            continue
        nodes = re.search(r"\bNodes=(\S*)", line)
        if nodes and nodes[1] not in nodesets:
            yield fail(f"no set of nodes is called {nodes[1]!r}", place, "ALL, or a nodeset_name of slurm_worker_features")  # fmt: skip


@rule("operator-version")
def operator(case: Case) -> Iterator[Finding]:
    """30. An operator of another version than the recipe's."""
    value = case.values.get("slurm_operator_version")
    if value != case.recipe.version:
        yield fail(
            f"operator {value}, recipe {case.recipe.version}",
            "variables.slurm_operator_version",
            "leave it out",
        )


@rule("telemetry-foreign")
def telemetry(case: Case) -> Iterator[Finding]:
    """31. Telemetry into a tenant that isn't yours is set up in the middle of the apply, and fails there."""
    if case.values.get("public_o11y_enabled"):
        yield warn(
            "public telemetry is set up in the middle of `up`, in a tenant of Nebius: without rights there it fails then",
            "public_o11y_enabled", "false",
        )  # fmt: skip


@rule("secret-in-file")
def secrets(case: Case) -> Iterator[Finding]:
    """32. Secrets in a file that people share; a backup password is made by Seatrial."""
    for variable in case.spec.variables:
        if variable in SECRETS or re.search(r"password|secret|token", variable):
            yield fail(
                f"{variable} is a secret (its value is not repeated here)", f"variables.{variable}",
                "take it out: Seatrial makes it, or takes it from the environment",
            )  # fmt: skip
