"""What machines Nebius has, where, and what they cost: as the recipes and the price list say it.

Sources: the recipe's ``modules/available_resources`` (1.20 and 1.22) for platforms, presets and regions; Nebius' documentation of
GPU clusters for fabrics; the list prices of the date that stands beside them. What is asked of the cloud itself goes over all this.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

GIB = 2**30
HOURS_A_MONTH = 730


@dataclass(frozen=True, slots=True)
class Preset:
    """One size of machine."""

    name: str
    gpus: int
    vcpus: int
    memory_gib: int

    @classmethod
    def parse(cls, name: str) -> Preset | None:
        """From its name, ``8gpu-128vcpu-1600gb`` or ``8vcpu-32gb``; None where it is not of this form."""
        found = re.fullmatch(r"(?:(\d+)gpu-)?(\d+)vcpu-(\d+)gb", name)
        return None if found is None else cls(name, int(found[1] or 0), int(found[2]), int(found[3]))

    @property
    def usable_cpus(self) -> float:
        """What a pod may have of it (the recipe's arithmetic)."""
        return self.vcpus - 1

    @property
    def usable_gib(self) -> int:
        """Memory that a pod may have of it (the recipe's arithmetic)."""
        return int(0.95 * self.memory_gib - 2)


def _cpu(*vcpus: int) -> tuple[str, ...]:
    return tuple(f"{n}vcpu-{4 * n}gb" for n in vcpus)


_H = ("1gpu-16vcpu-200gb", "8gpu-128vcpu-1600gb")
_B200 = ("1gpu-20vcpu-224gb", "8gpu-160vcpu-1792gb")
PRESETS = {
    "cpu-e2": _cpu(2, 4, 8, 16, 32, 48, 64, 80),
    "cpu-d3": _cpu(2, 4, 8, 16, 32, 48, 64, 96, 128, 160, 192, 224, 256),
    "gpu-h100-sxm": _H,
    "gpu-h200-sxm": _H,
    "gpu-b200-sxm": _B200,
    "gpu-b200-sxm-a": _B200,
    "gpu-b300-sxm": ("1gpu-24vcpu-346gb", "8gpu-192vcpu-2768gb"),
}
"""By platform."""

REGIONS = {
    "1.20": {
        "cpu-e2": ("eu-north1",), "cpu-d3": ("eu-north1", "eu-west1"), "gpu-h100-sxm": ("eu-north1",),
        "gpu-h200-sxm": ("eu-north1", "eu-west1"),
    },
    "1.22": {
        "cpu-e2": ("eu-north1",), "cpu-d3": ("eu-north1", "eu-west1", "eu-north2", "uk-south1", "us-central1"),
        "gpu-h100-sxm": ("eu-north1",), "gpu-h200-sxm": ("eu-north1", "eu-west1", "eu-north2", "us-central1"),
        "gpu-b200-sxm": ("us-central1",), "gpu-b200-sxm-a": ("me-west1",), "gpu-b300-sxm": ("uk-south1",),
    },
}  # fmt: skip
"""By recipe, where each platform is."""

FABRICS = {
    ("eu-north1", "gpu-h100-sxm"): ("fabric-2", "fabric-3", "fabric-4", "fabric-6"),
    ("eu-north1", "gpu-h200-sxm"): ("fabric-7",),
    ("eu-west1", "gpu-h200-sxm"): ("fabric-5",),
    ("eu-north2", "gpu-h200-sxm"): ("eu-north2-a",),
    ("us-central1", "gpu-h200-sxm"): ("us-central1-a",),
    ("us-central1", "gpu-b200-sxm"): ("us-central1-b",),
    ("me-west1", "gpu-b200-sxm-a"): ("me-west1-a",),
    ("uk-south1", "gpu-b300-sxm"): ("uk-south1-a",),
}
"""InfiniBand fabrics by region and platform; no recipe lists them."""

STEPPED_DISKS = {"NETWORK_SSD_NON_REPLICATED": 93, "NETWORK_SSD_IO_M3": 93}
"""Disk types whose sizes go in steps of so many GiB."""

GPU_QUOTAS = {
    "gpu-h100-sxm": "compute.instance.gpu.h100",
    "gpu-h200-sxm": "compute.instance.gpu.h200",
    "gpu-b200-sxm": "compute.instance.gpu.b200",
    "gpu-b200-sxm-a": "compute.instance.gpu.b200",
    "gpu-b300-sxm": "compute.instance.gpu.b300",
}
"""Name of the quota that a platform's GPUs count against, where the cloud doesn't say it itself."""

PRICES_OF = "2026-09-20"
"""Day of the price list."""
GPU_HOUR = {
    "gpu-h100-sxm": 3.85, "gpu-h200-sxm": 4.50, "gpu-b200-sxm": 7.15, "gpu-b200-sxm-a": 7.15, "gpu-b300-sxm": 7.85,
}  # fmt: skip
"""$ for a GPU and hour, with its share of CPUs and memory."""
GPU_HOUR_PREEMPTIBLE = {
    "gpu-h100-sxm": 2.15, "gpu-h200-sxm": 2.45, "gpu-b200-sxm": 3.95, "gpu-b200-sxm-a": 3.95, "gpu-b300-sxm": 4.30,
}  # fmt: skip
VCPU_HOUR, MEMORY_GIB_HOUR = 0.012, 0.0032
FILESYSTEM_GIB_MONTH = 0.08
DISK_GIB_MONTH = {"NETWORK_SSD": 0.071, "NETWORK_SSD_NON_REPLICATED": 0.053, "NETWORK_SSD_IO_M3": 0.118}


def recipe_table(version: str) -> dict[str, tuple[str, ...]]:
    """Where each platform is, as the recipe of this version (``1.22``) has it."""
    return REGIONS[version]
