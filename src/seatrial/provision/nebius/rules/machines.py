"""Rules about machines: what there is, where, and what fits on it."""

from __future__ import annotations

from collections.abc import Iterator

from seatrial.provision.nebius.rules.common import Case, Finding, fail, near, rule, warn
from seatrial.provision.nebius.tables import FABRICS, PRESETS, recipe_table

_LEAST_BOOT_GIB = {
    "1.20": {"": 128},
    "1.22": {"": 128, "worker": 512, "login": 256},
}
_SUFFICIENT = {"system": (4, 16), "worker": (8, 32)}
_LEAST_NODES = {"1.20": {"": 1}, "1.22": {"": 1, "system": 3, "controller": 2}}
_SERVICES_CPUS, _SERVICES_GIB = 2.1, 12.5
"""What munge and MariaDB ask for on the accounting node (the recipe's requests)."""


@rule("region-unknown")
def region(case: Case) -> Iterator[Finding]:
    """1. A region that the recipe doesn't have."""
    known = {r for regions in recipe_table(case.recipe.series).values() for r in regions}
    if case.region not in known:
        yield fail(f"the recipe has no region {case.region!r}", "cloud.region", near(case.region, known))


@rule("platform-unknown")
def platform(case: Case) -> Iterator[Finding]:
    """2. A platform that the recipe doesn't have."""
    known = recipe_table(case.recipe.series)
    for role in case.roles:
        if role.platform not in known:
            yield fail(f"no platform {role.platform!r}", f"{role.place}.platform", near(role.platform, known))


@rule("preset-unknown")
def preset(case: Case) -> Iterator[Finding]:
    """3. A preset that the platform doesn't have. The recipe never looks at the accounting node's."""
    for role in case.roles:
        sizes = PRESETS.get(role.platform)
        if sizes is not None and role.preset_name not in sizes:
            yield fail(
                f"{role.platform} has no preset {role.preset_name!r}", f"{role.place}.preset",
                near(role.preset_name, sizes),
            )  # fmt: skip


@rule("platform-elsewhere")
def elsewhere(case: Case) -> Iterator[Finding]:
    """4. A platform that the region doesn't have."""
    table = recipe_table(case.recipe.series)
    for role in case.roles:
        there = table.get(role.platform, ())
        if there and case.region not in there:
            yield fail(
                f"{role.platform} is not in {case.region or 'that region'}", f"{role.place}.platform",
                f"it is in {', '.join(there)}; a region for all nodes, or another platform",
            )  # fmt: skip


@rule("too-few-nodes")
def sizes(case: Case) -> Iterator[Finding]:
    """5. Fewer nodes than the recipe's least."""
    least = _LEAST_NODES[case.recipe.series]
    for role in case.roles:
        need = least.get(role.name, least[""])
        if role.size < need:
            yield fail(f"{role.size} nodes; the recipe needs {need} or more", f"{role.place}.nodes" if role.name != "system" else f"{role.place}.min", f"{need}")  # fmt: skip
        if role.max_size < role.size:
            yield fail(f"at most {role.max_size} nodes, at least {role.size}", f"{role.place}.max", f"{role.size} or more")  # fmt: skip


@rule("boot-disk-small")
def boot_disks(case: Case) -> Iterator[Finding]:
    """6. Boot disks below the recipe's least."""
    least = _LEAST_BOOT_GIB[case.recipe.series]
    for role in case.roles:
        need = least.get(role.name, least[""])
        if role.name != "nfs" and role.boot_gib < need:
            yield fail(
                f"{role.boot_gib} GiB; the recipe needs {need} or more",
                f"{role.place}.boot_disk_gib",
                str(need),
            )


@rule("preset-small")
def sufficient(case: Case) -> Iterator[Finding]:
    """7. A preset that the recipe calls too small for what runs there."""
    for role in case.roles:
        cpus, memory = _SUFFICIENT.get(role.name, (0, 0))
        if role.preset is not None and (role.preset.vcpus < cpus or role.preset.memory_gib < memory):
            yield fail(f"{role.preset_name} is too small for a {role.name} node", f"{role.place}.preset", f"{cpus}vcpu-{memory}gb or larger")  # fmt: skip


@rule("group-uneven")
def groups(case: Case) -> Iterator[Finding]:
    """8. Workers that don't divide into their groups."""
    for role in case.workers:
        if role.group is not None and (role.group < 1 or role.size % role.group):
            yield fail(
                f"{role.size} nodes don't divide into groups of {role.group}", f"{role.place}.nodes_per_group",
                f"a divisor of {role.size}; without the key, all are one group",
            )  # fmt: skip


@rule("worker-sets")
def worker_sets(case: Case) -> Iterator[Finding]:
    """9. One set of workers (1.20); sets with names of their own (1.22)."""
    if case.recipe.series == "1.20":
        if len(case.workers) != 1:
            yield fail(
                f"{len(case.workers)} sets of workers; this recipe makes exactly one", "workers",
                "one set; or a recipe from 1.22 on",
            )  # fmt: skip
        return
    names = [role.set_name for role in case.workers]
    for i, name in enumerate(names):
        if name in names[:i]:
            yield fail(
                f"two sets of workers are called {name!r}",
                f"workers.{i}.name",
                "a name of its own for each",
            )


@rule("accounting-starved")
def accounting_room(case: Case) -> Iterator[Finding]:
    """20. An accounting node too small for its database: the recipe would ask for negative CPUs."""
    for role in case.roles:
        if role.name == "accounting" and role.preset is not None:
            cpus = role.preset.usable_cpus - _SERVICES_CPUS
            memory = role.preset.usable_gib - _SERVICES_GIB
            if cpus < 0 or memory < 0:
                yield fail(
                    f"{role.preset_name} leaves {cpus:.1f} CPUs and {memory:.1f} GiB for Slurm's accounting beside its database",
                    f"{role.place}.preset", "4vcpu-16gb at the least; 8vcpu-32gb makes sense",
                )  # fmt: skip


@rule("fabric-empty")
def fabric_empty(case: Case) -> Iterator[Finding]:
    """21. A GPU cluster without a fabric's name: passes Terraform's plan, fails while it is made."""
    for role in case.workers:
        if role.fabric is not None and not role.fabric.strip():
            known = FABRICS.get((case.region, role.platform), ())
            yield fail(
                "the InfiniBand fabric has no name",
                f"{role.place}.fabric",
                f"one of: {', '.join(known)}" if known else "ask support which one you may use",
            )


@rule("fabric-elsewhere")
def fabric_known(case: Case) -> Iterator[Finding]:
    """22. A fabric that this region doesn't have for this platform."""
    for role in case.workers:
        known = FABRICS.get((case.region, role.platform))
        if role.fabric and known is not None and role.fabric not in known:
            yield fail(
                f"{role.fabric} is not known for {role.platform} in {case.region}", f"{role.place}.fabric",
                near(role.fabric, known),
            )  # fmt: skip


@rule("fabric-unused")
def fabric_fits(case: Case) -> Iterator[Finding]:
    """23. A fabric for nodes that can't join it, or 8-GPU nodes in numbers without one."""
    for role in case.workers:
        if role.preset is None:
            continue
        if role.fabric and role.preset.gpus != 8:
            yield fail(
                f"{role.preset_name} nodes can't join an InfiniBand fabric: the cluster would be made, and they not be in it",
                f"{role.place}.fabric", "leave it out, or take an 8-GPU preset",
            )  # fmt: skip
        if role.fabric is None and role.preset.gpus == 8 and role.size > 1:
            known = FABRICS.get((case.region, role.platform), ())
            yield fail(
                f"{role.size} nodes of 8 GPUs without an InfiniBand fabric: jobs over several nodes would crawl over Ethernet",
                f"{role.place}.fabric", f"one of: {', '.join(known)}" if known else "ask support which one you may use",
            )  # fmt: skip


@rule("shared-memory-large")
def shared_memory(case: Case) -> Iterator[Finding]:
    """27. More /dev/shm than a worker has memory."""
    size = case.values.get("slurm_shared_memory_size_gibibytes")
    for role in case.workers:
        if isinstance(size, int) and role.preset is not None and size > role.preset.usable_gib:
            yield fail(
                f"{size} GiB of shared memory; {role.preset_name} has {role.preset.usable_gib} GiB for pods",
                case.rendered.place("slurm_shared_memory_size_gibibytes"), f"at most {role.preset.usable_gib}",
            )  # fmt: skip


@rule("preemptible-unknown")
def preemptible(case: Case) -> Iterator[Finding]:
    """Preemptible nodes that the recipe can't make: it would drop the wish in silence."""
    for i, worker in enumerate(case.spec.workers):
        if worker.preemptible and case.recipe.series == "1.20":
            yield fail(
                f"the recipe {case.recipe.version} makes no preemptible nodes", f"workers.{i}.preemptible", "false, or a recipe from 1.22 on"
            )  # fmt: skip


@rule("drivers-missing")
def drivers(case: Case) -> Iterator[Finding]:
    """Drivers that the nodes' image should have, with a recipe that only knows the operator's."""
    gpus = any(role.gpus for role in case.workers)
    if gpus and "use_preinstalled_gpu_drivers" not in case.variables and case.spec.drivers == "preinstalled":
        yield warn(
            f"the recipe {case.recipe.version} knows no preinstalled drivers: NVIDIA's operator installs them on each node",
            "drivers", "drivers: operator    (says what will happen)",
        )  # fmt: skip
