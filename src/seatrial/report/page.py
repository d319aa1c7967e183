"""The page itself: the template filled with a run."""

from __future__ import annotations

import json
import shlex
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from seatrial.report import formats
from seatrial.report.chart import Series, interval_plot, line_chart
from seatrial.report.data import ReportData
from seatrial.report.utilisation import section

_VERDICT_SIGNS = {"better": "▲", "worse": "▼", "no evidence": "≈"}


def render(data: ReportData) -> str:
    """HTML that needs nothing else: no script, no font, no request."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("seatrial.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": formats.number,
        "p_value": formats.p_value,
        "unit": formats.of_unit,
        "difference": formats.difference,
        "interval": formats.interval,
    }
    style = resources.files("seatrial.report").joinpath("page.css").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(
        style=Markup(style),  # noqa: S704 - our own file
        m=data.manifest,
        spec=data.spec,
        comparison=data.comparison,
        evidence=data.evidence,
        curves=curves(data),
        use=section(data.utilisation),
        plot=verdict_plot(data.comparison),
        sign=_VERDICT_SIGNS.get((data.comparison or {}).get("verdict", {}).get("verdict", ""), "–"),
        why_no_verdict=why_no_verdict(data),
        again=commands(data),
        spec_text=json.dumps(data.spec, indent=2, ensure_ascii=False) if data.spec else None,
        environment=split_environment(data.manifest.environment),
        duration=formats.duration,
    )


def curves(data: ReportData) -> list[Markup]:
    """Loss, learning rate and throughput over steps; those that there are."""

    def points(rows: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
        return [(row["step"], row[key]) for row in rows if row.get(key) is not None]

    unit = "nats a token" if data.manifest.task == "causal-lm" else "nats a sample"
    charts = [
        line_chart(
            "Loss",
            unit,
            [
                Series("training", points(data.train, "loss")),
                Series("held out", points(data.evaluations, "loss"), "b"),
            ],
        ),
        line_chart("Learning rate", "", [Series("learning rate", points(data.train, "learning_rate"))]),
        line_chart("Throughput", "samples/s", [Series("all ranks", points(data.train, "samples_per_s"))]),
        line_chart("Held-out accuracy", "", [Series("accuracy", points(data.evaluations, "accuracy"), "b")]),
    ]
    return [chart for chart in charts if chart]


def verdict_plot(comparison: dict[str, Any] | None) -> Markup:
    """Before and after with their intervals, on one axis."""
    if comparison is None:
        return Markup("")
    metric = comparison["metrics"][comparison["verdict"]["metric"]]
    rows = [
        (name, metric[name], metric[f"{name}_interval"])
        for name in ("original", "trained")
        if metric[f"{name}_interval"] and None not in metric[f"{name}_interval"]
    ]
    return interval_plot(rows, metric["unit"]) if rows else Markup("")


def why_no_verdict(data: ReportData) -> str:
    """The reason why there is no comparison."""
    if data.manifest.task == "script":
        return "a script of your own makes no predictions that Seatrial could compare"
    if not data.manifest.state.is_terminal:
        return f"the run is {data.manifest.state}"
    if data.manifest.state != "completed":
        return f"the run {data.manifest.state}: {data.manifest.reason or 'no reason on record'}"
    return "no predictions were compared: seatrial predict, then seatrial compare"


def commands(data: ReportData) -> list[str]:
    """What to type to have it again: the command as it was given, and the resolved spec."""
    m = data.manifest
    again = [f"cd {shlex.quote(m.cwd)} && {shlex.join(m.command)}"]
    if m.task != "script":
        again.append(f"seatrial train {shlex.quote(data.spec_path)}")
    return again


def split_environment(environment: dict[str, Any]) -> dict[str, Any]:
    """The fingerprint as rows ``(name, text)``, with the long list of packages apart."""
    rows: list[tuple[str, str]] = []

    def add(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                add(f"{name}.{key}" if name else str(key), inner)
        elif isinstance(value, list):
            rows.append((name, ", ".join(map(str, value)) or "none"))
        else:
            rows.append((name, "unknown" if value is None else str(value)))

    add("", {key: value for key, value in environment.items() if key != "packages"})
    return {"rows": rows, "packages": environment.get("packages", {})}
