"""The page's section on the use of devices, from ``utilisation.json``: figures, charts and a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from seatrial.report.chart import Series, line_chart
from seatrial.report.heat import heat_map, phase_chart

MOST_ROWS = 32
_GIB = 2**30


def section(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the template shows; None for a run whose devices nobody sampled and nothing was asked of."""
    if found is None or (found.get("mean_pct") is None and found.get("required_pct") is None):
        return None
    name = str(found["metric_name"])
    devices = sorted(found["devices"], key=lambda d: (d["mean_pct"] is not None, d["mean_pct"] or 0.0))
    return {
        "title": "Use of the processors" if found["metric"] == "cpu_busy" else "Use of the GPUs",
        "verdict": found["verdict"],
        "message": str(found["message"]).removesuffix(": nothing was required"),
        "missing": found.get("missing") or "",
        "causes": found["causes"],
        "charts": _charts(found, name),
        "heat": heat_map(found["heat"], name),
        "devices": [_row(d) for d in devices[:MOST_ROWS]],
        "more": max(0, len(devices) - MOST_ROWS),
        "facts": _facts(found),
    }


def _charts(found: Mapping[str, Any], name: str) -> list[Markup]:
    series, spans = (
        found["series"],
        [(s["begin_s"], s["end_s"], s["name"]) for s in found["spans"] if s["name"] != "training"],
    )
    times = series.get("times_s", [])

    def points(key: str, unit: float = 1.0) -> list[tuple[float, float]]:
        return [(t, v / unit) for t, v in zip(times, series.get(key) or [], strict=False) if v is not None]

    charts = [
        line_chart(name, "%", [Series("mean of all devices", points("use_pct")), Series("tensor pipes", points("tensor_pct"), "b")], "s", spans),
        phase_chart(found["phases"]),
        line_chart("Power", "W", [Series("all devices", points("power_w"))], "s", spans),
        line_chart("Memory", "GiB", [Series("all devices", points("memory_bytes", _GIB))], "s", spans),
    ]  # fmt: skip
    return [chart for chart in charts if chart]


def _row(device: Mapping[str, Any]) -> list[str]:
    memory, power, processes = (
        device.get("memory_bytes_max"),
        device.get("power_w_mean"),
        device.get("processes"),
    )
    return [
        f"{device['node']} {device['index']}", str(device["name"]),
        "not told" if device["mean_pct"] is None else f"{device['mean_pct']:.1f} %", f"{device['coverage']:.0%}",
        "" if memory is None else f"{memory / _GIB:.1f} GiB", "" if power is None else f"{power:.0f} W",
        "" if processes is None else f"{processes:.0f}",
    ]  # fmt: skip


def _facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    def ratio(key: str, why: str) -> str:
        value = found.get(key)
        return (
            f"{value:.1%}"
            if value is not None
            else f"unmeasured: {found.get(why) or 'nothing is known of it'}"
        )

    facts = [
        ("MFU", ratio("mfu", "mfu_reason")),
        ("MFU of what the acceptance test measured", ratio("mfu_of_measured", "mfu_of_measured_reason")),
    ]
    if found.get("goodput") is not None:
        facts.append(("Goodput", f"{found['goodput']:.1%} of all time went into steps that counted"))
    hours, wasted = found.get("device_hours"), found.get("wasted_device_hours")
    if hours is not None:
        unused = "" if wasted is None else f", {_hours(wasted)} of them unused"
        facts.append(("Device-hours", f"{_hours(hours)}{unused}"))
    if found.get("cost") is not None:
        lost = "" if found.get("wasted_cost") is None else f", {found['wasted_cost']:.2f} of it for nothing"
        facts.append(
            ("Cost", f"{found['cost']:.2f}{lost} (at {found['price_per_gpu_hour']:g} a GPU and hour)")
        )
    if found.get("idle"):
        facts.append(("Idle", "; ".join(found["idle"][:8])))
    return facts


def _hours(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"
