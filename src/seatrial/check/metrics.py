"""The metrics that are rates or times: their units, which way is better, and who can be held to whom."""

from __future__ import annotations

from dataclasses import dataclass

from seatrial.runs.samples import Sample

COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
DTYPES = ("fp32", "tf32", "bf16", "fp16", "fp8")
TRAININGS = ("train_resnet18", "train_resnet50", "train_transformer")
UNITS = ("TFLOP/s", "GB/s", "s", "samples/s")
"""What a rate may be given in; GB/s is 1e9 bytes a second."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What a figure is."""

    unit: str
    higher: bool = True
    """Whether more is better."""
    peers: bool = False
    """Whether parts that measure it can be held to each other."""


RATES: dict[tuple[str, str], Rate] = {
    **{("gemm", f"gemm_{dtype}"): Rate("TFLOP/s", peers=True) for dtype in DTYPES},
    **{("memory", name): Rate("GB/s", peers=True) for name in ("memory_copy", "memory_triad")},
    **{("host_copy", name): Rate("GB/s", peers=True) for name in ("h2d", "d2h")},
    ("peer_copy", "p2p"): Rate("GB/s", peers=True),
    **{("node_collectives", op): Rate("GB/s", peers=True) for op in COLLECTIVES},
    **{("local_disk", f"local_{way}_gb_s"): Rate("GB/s", peers=True) for way in ("write", "read")},
    **{("shared_disk", f"shared_{way}_gb_s"): Rate("GB/s", peers=True) for way in ("write", "read")},
    ("pairs", "pair"): Rate("GB/s"),
    **{("cluster_collectives", op): Rate("GB/s") for op in COLLECTIVES},
    ("scaling", "all_reduce_nodes"): Rate("GB/s"),
    **{(net, "samples_per_s"): Rate("samples/s") for net in TRAININGS},
    **{(net, "step_s"): Rate("s", higher=False) for net in TRAININGS},
}
"""By check and metric."""


def rate(sample: Sample) -> Rate | None:
    """What a sample's figure is; None where it is a state, a count, or a figure that a rule of its own judges."""
    return RATES.get((sample.check, sample.metric))


def variant(sample: Sample) -> str:
    """What a figure depends on beside the part: the size, the number of nodes, and whether GPUs reach each other."""
    words = []
    if sample.metric in COLLECTIVES and "bytes" in sample.detail:
        words.append(f"{int(sample.detail['bytes'])} bytes")
    for name in ("nodes", "ranks"):
        if isinstance(sample.detail.get(name), int):
            words.append(f"{sample.detail[name]} {name}")
    if sample.check == "peer_copy":
        words.append("direct" if sample.detail.get("can_access_peer") else "by the host")
    return ", ".join(words)


def number(sample: Sample) -> float | None:
    """The sample's value where it is a number."""
    value = sample.value
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
