"""``cluster init``: a ``cluster.yaml`` that a person can read, from the few answers that matter."""

from __future__ import annotations

from dataclasses import dataclass

from seatrial.provision.nebius.tables import FABRICS, REGIONS


@dataclass(frozen=True, slots=True)
class Template:
    """A size of cluster to begin with."""

    nodes: int
    platform: str
    preset: str
    jail_gib: int
    submount_gib: int
    help: str


TEMPLATES = {
    "2x8-h100": Template(2, "gpu-h100-sxm", "8gpu-128vcpu-1600gb", 2048, 1024, "two nodes of 8 H100"),
    "1x8-h100": Template(1, "gpu-h100-sxm", "8gpu-128vcpu-1600gb", 1024, 512, "one node of 8 H100"),
    "2x8-h200": Template(2, "gpu-h200-sxm", "8gpu-128vcpu-1600gb", 2048, 1024, "two nodes of 8 H200"),
    "1x8-h200": Template(1, "gpu-h200-sxm", "8gpu-128vcpu-1600gb", 1024, 512, "one node of 8 H200"),
    "cpu": Template(2, "cpu-d3", "8vcpu-32gb", 128, 128, "two nodes without GPUs, for a try"),
}


@dataclass(frozen=True, slots=True)
class Answers:
    """What a person is asked."""

    name: str
    tenant: str
    project: str
    region: str
    ssh_key: str
    template: str
    nodes: int | None = None
    fabric: str | None = None
    recipe: str | None = None


def regions_of(template: str) -> tuple[str, ...]:
    """Where a template's workers are to be had."""
    return REGIONS["1.22"][TEMPLATES[template].platform]


def fabrics_of(template: str, region: str) -> tuple[str, ...]:
    """Fabrics for a template's workers; none where they need none."""
    return FABRICS.get((region, TEMPLATES[template].platform), ())


def cluster_yaml(answers: Answers) -> str:
    """The file."""
    t = TEMPLATES[answers.template]
    nodes = answers.nodes or t.nodes
    gpus = t.platform.startswith("gpu-")
    known = fabrics_of(answers.template, answers.region)
    # One that fits is better than none; which of several is a person's to say, and shown.
    fabric = answers.fabric or (known[-1] if known and gpus and nodes > 1 else None)
    others = [f for f in known if f != fabric]
    lines = [
        f"# A Slurm cluster on Nebius: {t.help}. `seatrial cluster preflight` says what is wrong with it, and what it costs.",
        f"name: {answers.name}",
        *([f"recipe: {answers.recipe}"] if answers.recipe else []),
        "cloud:",
        f"  tenant: {answers.tenant}",
        f"  project: {answers.project}",
        f"  region: {answers.region}",
        "ssh_keys:                       # public keys that may log in, or files with them",
        f"  - {answers.ssh_key}",
        "workers:",
        "  - name: worker",
        f"    nodes: {nodes}",
        f"    platform: {t.platform}",
        f"    preset: {t.preset}",
        *(
            [f"    fabric: {fabric}" + (f"            # or {', '.join(others)}" if others else "")]
            if fabric
            else []
        ),
        "    boot_disk_gib: 512",
        "storage:",
        f"  jail: {{size_gib: {t.jail_gib}}}        # the root that all nodes share; it can grow, never shrink",
        "  submounts:                    # destroyed with the cluster, unless `existing: computefilesystem-…` names one that stays",
        f"    - {{name: training, path: /mnt/training, size_gib: {t.submount_gib}}}",
        f"    - {{name: inference, path: /mnt/inference, size_gib: {t.submount_gib}}}",
        *([] if gpus else ["  images: {enabled: false}", "shared_memory_gib: 16"]),
        "public_o11y_enabled: false      # telemetry to Nebius' own needs rights in a tenant of theirs",
        "drivers: preinstalled           # by the nodes' image; operator: NVIDIA's operator installs them",
    ]
    return "\n".join(lines) + "\n"
