"""Grafana's dashboards as code: writes ``dashboards/*.json`` (classic JSON of Grafana 11). Run it after a change; a test compares.

pip install 'grafana-foundation-sdk==1769699379!11.6.0'
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import bargauge, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef

PLACE = Path(__file__).with_name("dashboards")
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_RATIO, _SECONDS, _BYTES, _WATTS = "percentunit", "s", "bytes", "watt"


def _target(expr: str, legend: str, ref: str) -> Any:
    return prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(ref).datasource(SOURCE)


def _panel(
    builder: Any,
    title: str,
    queries: list[tuple[str, str]],
    unit: str,
    width: int,
    height: int = 8,
    text: str = "",
) -> Any:
    panel = builder.title(title).unit(unit).datasource(SOURCE).span(width).height(height)
    if text:
        panel = panel.description(text)
    for i, (expr, legend) in enumerate(queries):
        panel = panel.with_target(_target(expr, legend, chr(ord("A") + i)))
    return panel


def lines(
    title: str,
    expr: str,
    legend: str,
    unit: str = _RATIO,
    width: int = 12,
    text: str = "",
    *more: tuple[str, str],
) -> Any:
    return _panel(timeseries.Panel(), title, [(expr, legend), *more], unit, width, text=text)


def number(title: str, expr: str, unit: str = "short", width: int = 4, text: str = "") -> Any:
    return _panel(stat.Panel(), title, [(expr, "")], unit, width, 4, text)


def bars(title: str, expr: str, legend: str, unit: str = _RATIO, width: int = 12) -> Any:
    return _panel(bargauge.Panel(), title, [(expr, legend)], unit, width)


def rows(title: str, expr: str, width: int = 24) -> Any:
    builder = table.Panel().title(title).datasource(SOURCE).span(width).height(8)
    return builder.with_target(_target(expr, "", "A").instant().format("table"))


def _board(uid: str, title: str, variables: list[tuple[str, str]], panels: list[Any]) -> Any:
    board = (
        dashboard.Dashboard(title)
        .uid(uid)
        .tags(["seatrial"])
        .refresh("30s")
        .time("now-3h", "now")
        .timezone("browser")
        .editable()
    )
    board = board.with_variable(
        dashboard.DatasourceVariable("datasource").type("prometheus").label("Data source")
    )
    for name, query in variables:
        board = board.with_variable(
            dashboard.QueryVariable(name)
            .query(query)
            .datasource(SOURCE)
            .include_all(True)
            .multi(True)
            .all_value(".*")
            .refresh(2)
        )
    for panel in panels:
        board = board.with_panel(panel)
    return board


CLUSTER = [("cluster", "label_values(gpu:use:ratio, cluster)")]
NODE = [*CLUSTER, ("hostname", 'label_values(gpu:use:ratio{cluster=~"$cluster"}, hostname)')]
RUN = [("run", "label_values(seatrial_run_info, run)")]
BOARDS = {
    "cluster": _board("seatrial-cluster", "Seatrial / Cluster", CLUSTER, [
        number("GPUs", 'sum(cluster:gpus:count{cluster=~"$cluster"})'),
        number("Held by jobs", 'sum(cluster:gpus_allocated:count{cluster=~"$cluster"})'),
        number("Use", 'avg(cluster:gpu_use:avg{cluster=~"$cluster"})', _RATIO, text="SM activity; where the hardware has none, busy."),
        number("Held and unused", 'sum(cluster:gpus_wasted:sum{cluster=~"$cluster"})', text="In GPUs: each counts for what it is not used."),
        number("Runs", "sum(seatrial_exporter_runs)"),
        number("Waiting", "sum(seatrial_queue_pending)"),
        lines("Use by node", 'node:gpu_use:avg{cluster=~"$cluster"}', "{{hostname}}"),
        lines("Use by run", 'run:gpu_use:avg{cluster=~"$cluster"}', "{{seatrial_run}}"),
        lines("Power", 'sum by (hostname) (gpu:power:watts{cluster=~"$cluster"})', "{{hostname}}", _WATTS),
        lines("Hottest GPU of each node", 'max by (hostname) (gpu:temperature:celsius{cluster=~"$cluster"})', "{{hostname}}", "celsius"),
        rows("Alerts", 'ALERTS{alertstate="firing"} or on () vector(0)'),
    ]),
    "node": _board("seatrial-node", "Seatrial / Node", NODE, [
        lines("Use", 'gpu:use:ratio{cluster=~"$cluster", hostname=~"$hostname"}', "{{hostname}} gpu {{gpu}}"),
        lines("Busy (any kernel ran)", 'gpu:busy:ratio{cluster=~"$cluster", hostname=~"$hostname"}', "{{hostname}} gpu {{gpu}}"),
        lines("Tensor pipes", 'gpu:tensor_active:ratio{cluster=~"$cluster", hostname=~"$hostname"}', "{{hostname}} gpu {{gpu}}"),
        lines("Memory bandwidth", 'gpu:dram_active:ratio{cluster=~"$cluster", hostname=~"$hostname"}', "{{hostname}} gpu {{gpu}}"),
        lines("Memory used", 'gpu:memory_used:bytes{cluster=~"$cluster", hostname=~"$hostname"}', "{{hostname}} gpu {{gpu}}", _BYTES),
        lines("Power", 'gpu:power:watts{cluster=~"$cluster", hostname=~"$hostname"}', "{{hostname}} gpu {{gpu}}", _WATTS),
        lines("Clock", 'DCGM_FI_DEV_SM_CLOCK{cluster=~"$cluster", hostname=~"$hostname"}', "{{hostname}} gpu {{gpu}}", "rotmhz"),
        lines("Temperature", 'gpu:temperature:celsius{cluster=~"$cluster", hostname=~"$hostname"}', "{{hostname}} gpu {{gpu}}", "celsius"),
        lines("Held back", 'max by (hostname, gpu, reason) (seatrial_gpu_throttled{cluster=~"$cluster", hostname=~"$hostname"})',
              "{{hostname}} gpu {{gpu}} {{reason}}", "bool"),
        lines("Last Xid", 'max by (hostname, gpu) (DCGM_FI_DEV_XID_ERRORS{cluster=~"$cluster", hostname=~"$hostname"})', "{{hostname}} gpu {{gpu}}", "none"),
    ]),
    "run": _board("seatrial-run", "Seatrial / Run", RUN, [
        number("Step", 'max(seatrial_run_step{run=~"$run"})'),
        number("Goodput", 'avg(seatrial_run_goodput_ratio{run=~"$run"})', _RATIO, text="Useful steps' time over the wall time of all attempts."),
        number("MFU", 'avg(seatrial_run_mfu_ratio{run=~"$run"})', _RATIO, text="Of the hardware's dense peak in the run's precision."),
        number("MFU of the measured", 'avg(seatrial_run_mfu_of_measured_ratio{run=~"$run"})', _RATIO, text="Of what the acceptance test reached."),
        number("Use", 'avg(seatrial_run_utilisation_ratio{run=~"$run"})', _RATIO),
        number("Silent for", 'max(seatrial_run_heartbeat_age_seconds{run=~"$run"})', _SECONDS),
        lines("Loss", 'seatrial_run_loss{run=~"$run"}', "{{run}}", "none"),
        lines("Steps a second", 'seatrial_run_steps_per_second{run=~"$run"}', "{{run}}", "ops"),
        lines("Tokens a second", 'seatrial_run_tokens_per_second{run=~"$run"}', "{{run}}", "ops"),
        lines("A step, by phase", 'seatrial_run_phase_seconds{run=~"$run"}', "{{run}} {{phase}}", _SECONDS),
        lines("Use of its GPUs", 'gpu:use:ratio * on (UUID) group_left (seatrial_run) group by (UUID, seatrial_run) (gpu:owner:info{seatrial_run=~"$run"})',
              "{{hostname}} gpu {{gpu}}", _RATIO, 24),
        rows("What holds it up", 'seatrial_run_cause_info{run=~"$run"}'),
    ]),
    "waste": _board("seatrial-waste", "Seatrial / Waste", CLUSTER, [
        number("Held and unused, in GPUs", 'sum(cluster:gpus_wasted:sum{cluster=~"$cluster"})', width=6),
        number("Lost in the last day, GPU-hours", 'sum(sum_over_time(cluster:gpus_wasted:sum{cluster=~"$cluster"}[1d])) / 240', width=6,
               text="The rule is evaluated every 15 s: 240 values are an hour."),
        number("Held by nobody", 'sum(cluster:gpus:count{cluster=~"$cluster"}) - sum(cluster:gpus_allocated:count{cluster=~"$cluster"})', width=6),
        number("GPU-hours of runs", "sum(seatrial_run_gpu_hours)", width=6),
        bars("Least used runs", 'bottomk(15, run:gpu_use:avg{cluster=~"$cluster"})', "{{seatrial_run}}"),
        bars("Least used GPUs that are held", 'bottomk(15, gpu:allocated:info{cluster=~"$cluster"} * on (cluster, UUID) group_left () max by (cluster, UUID) (gpu:use:ratio))',
             "{{hostname}} gpu {{gpu}}"),
        lines("Held and unused", 'cluster:gpus_wasted:sum{cluster=~"$cluster"}', "{{cluster}}", "short"),
        lines("Use by Slurm job", 'job:gpu_use:avg{cluster=~"$cluster"}', "{{hpc_job}}"),
        rows("What holds runs up", "seatrial_run_cause_info"),
    ]),
}  # fmt: skip


def text_of(name: str) -> str:
    """One dashboard as its file has it; nulls that the builders leave are no part of it."""
    data = json.loads(JSONEncoder().encode(BOARDS[name].build()))
    return json.dumps(_without_nulls(data), indent=1, sort_keys=True) + "\n"


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


if __name__ == "__main__":
    for each in BOARDS:
        (PLACE / f"{each}.json").write_text(text_of(each))
