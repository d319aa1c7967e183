"""One look at a run, from its files: what the live view, the exporter and ``--json`` show. Writes nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from seatrial.errors import SeatrialError
from seatrial.runs.files import read_json, read_json_lines
from seatrial.runs.paths import RunPaths
from seatrial.runs.telemetry import CLOCK_REASONS, METRICS, NodeTelemetry
from seatrial.spec.gates import UtilisationGate
from seatrial.spec.load import read_spec
from seatrial.watch import steps
from seatrial.watch.causes import causes
from seatrial.watch.judge import idle_text, judge
from seatrial.watch.picture import DeviceNow, Picture, RankNow
from seatrial.watch.recorded import Attempt, Recorded, read
from seatrial.watch.transport import has_fallen_back
from seatrial.watch.use import measure
from seatrial.watch.utilisation import Peak, device_hours, steps_made, tested, unknown_peak

LAST_BYTES = 256 * 1024
"""Of eight GPUs, about two minutes at one sample a second."""
_HISTORY = 60
_CURVE = 120
_SILENT_S = 30.0
"""A device or rank that has said nothing for so long is worth a word."""
_RECENT_ROWS = 3
_PHASE_WORDS = {"start-up": "starting", "saving": "saving the trained model", "script": "running the script"}


def look(
    paths: RunPaths, peak: Peak = unknown_peak, now: float | None = None, last_bytes: int = LAST_BYTES
) -> Picture:
    """The run as it is.

    Args:
        paths: the run's.
        peak: the hardware's specification, for MFU.
        now: seconds since the epoch.
        last_bytes: of each node's samples: use is that of the last minutes, so that a long run costs no more than a short one.

    Raises:
        SpecError: there is no run, or none that this version reads.
    """
    now = time.time() if now is None else now
    run = read(paths, now, last_bytes)
    gate = gate_of(paths)
    last = run.attempts[-1] if run.attempts else None
    common = _progress(run, last, now)
    if last is None:
        return Picture(**common)
    use = measure(run.attempts, gate.window)
    means = {(d.node, d.device.index): d.mean_pct for d in use.devices}
    devices = tuple(d for node in last.nodes for d in _devices(node, means, last, now))
    ranks = _ranks(paths, last, now)
    listed = causes(use, steps.by_rank(last), last.plan.nproc)
    judgement = judge(use, gate, None if run.is_script else steps_made(run))
    work = steps.mfu(run, peak, tested(run))
    recent = steps.by_rank(last, _RECENT_ROWS)
    return Picture(
        **common,
        mfu=work.of_peak,
        mfu_of_measured=work.of_measured,
        goodput=steps.goodput(run),
        phases=steps.mean_phases(recent) if recent else {},
        cause=listed[0].sentence if listed else "",
        gate=judgement.to_dict() | {"metric": use.metric, "mean_pct": use.mean_pct, "coverage": use.coverage},
        warnings=tuple(_warnings(last, devices, ranks)) + tuple(
            f"idle: {idle_text(d)}" for d in (use.idle[:4] if use.metric != "cpu_busy" else [])
        ),
        devices=devices,
        ranks=ranks,
        gpu_hours=device_hours(run),
        transport_fallback=_fallback(paths, last),
    )  # fmt: skip


def gate_of(paths: RunPaths) -> UtilisationGate:
    """The run's gate; one that asks for nothing where its recipe has none."""
    try:
        spec = read_spec(paths.spec)
    except SeatrialError:
        return UtilisationGate()
    gates = getattr(spec, "gates", None)
    return gates.utilisation if gates is not None else UtilisationGate()


def _progress(run: Recorded, last: Attempt | None, now: float) -> dict[str, Any]:
    manifest = run.manifest
    rows = [row for row in run.metrics if row.get("kind") == "train"]
    rate = steps.throughput(run)
    step = rows[-1]["step"] if rows else 0
    losses = [float(row["loss"]) for row in rows if isinstance(row.get("loss"), int | float)]
    planned = None if last is None else _planned(run.paths, last)
    speed = rate["steps_per_s"]
    running = last is not None and last.running
    left = None if planned is None or not speed or not running else max(0, planned - step) / speed
    phase = "" if last is None or not last.spans else last.spans[-1].name
    return {
        "run_id": manifest.run_id, "name": manifest.name, "state": str(manifest.state), "reason": manifest.reason,
        "attempt": manifest.attempt.index if manifest.attempts else 0,
        "handle": (manifest.attempt.handle or "") if manifest.attempts else "", "time": now,
        "elapsed_s": None if last is None else last.end - last.begin,
        "phase": _PHASE_WORDS.get(phase, phase) if running else "", "step": step, "num_steps": planned,
        "loss": losses[-1] if losses else None, "loss_history": _thinned(losses, _CURVE),
        **rate, "eta_s": left if phase == "training" else None,
    }  # fmt: skip


def _planned(paths: RunPaths, last: Attempt) -> int | None:
    rows = read_json_lines(paths.attempt(last.plan.attempt).rank_events(0))
    found = [row["num_steps"] for row in rows if row.get("event") == "training"]
    return int(found[-1]) if found else None


def _thinned(values: list[float], limit: int) -> tuple[float, ...]:
    stride = max(1, -(-len(values) // limit))
    return tuple(values[::-1][::stride][::-1])


def _devices(
    node: NodeTelemetry, means: Mapping[tuple[str, int], float | None], attempt: Attempt, now: float
) -> list[DeviceNow]:
    header = node.header
    column = METRICS[header.metric][0]
    at = float(node.times[-1]) if len(node.times) else header.started
    end = now if attempt.running else attempt.end
    found = []
    for i, device in enumerate(header.devices):
        told = {name: values[-1, i] for name, values in node.columns.items()} if len(node.times) else {}
        value = {name: None if math.isnan(v) else float(v) for name, v in told.items()}
        use = node.column(column)[-_HISTORY:, i]
        bits = int(value.get("reasons") or 0)
        count, xid = value.get("processes"), value.get("xid")
        found.append(
            DeviceNow(
                node=header.host, node_rank=header.node_rank, index=device.index, uuid=device.uuid, name=device.name,
                kind=device.kind, metric=header.metric, use_pct=value.get(column), mean_pct=means.get((header.host, device.index)),
                history=tuple(None if math.isnan(v) else float(v) for v in use),
                **{
                    name: value.get(name)
                    for name in (
                        "busy_pct", "sm_pct", "tensor_pct", "dram_pct", "memory_bytes", "power_w", "power_limit_w", "clock_mhz",
                        "temperature_c", "pcie_tx_bytes_s", "pcie_rx_bytes_s", "nvlink_tx_bytes_s", "nvlink_rx_bytes_s",
                        "ecc_uncorrectable",
                    )
                },
                memory_total_bytes=device.memory_bytes, pci=device.pci,
                throttled=tuple(word for bit, word in CLOCK_REASONS.items() if bits & bit),
                processes=None if count is None else int(count), xid=None if xid is None else int(xid),
                age_s=max(0.0, end - at),
            )
        )  # fmt: skip
    return found


def _ranks(paths: RunPaths, last: Attempt, now: float) -> tuple[RankNow, ...]:
    """Where each rank is, by the line of its heartbeat: pid, step, part, begun, monotonic and wall time in ns, phase."""
    found = []
    for rank in range(last.plan.world_size):
        try:
            words = paths.attempt(last.plan.attempt).heartbeat(rank).read_text().split(maxsplit=6)
            step, at, phase = int(words[1]), int(words[5]) / 1e9, words[6].strip()
        except (OSError, ValueError, IndexError):
            continue
        found.append(RankNow(rank, step, phase, max(0.0, (now if last.running else last.end) - at)))
    return tuple(found)


def _fallback(paths: RunPaths, last: Attempt) -> bool | None:
    ports = min((node.header.rdma_ports for node in last.nodes), default=0)
    return has_fallen_back(paths.attempt(last.plan.attempt).logs, ports, last.plan.nodes)


def _warnings(last: Attempt, devices: tuple[DeviceNow, ...], ranks: tuple[RankNow, ...]) -> list[str]:
    found = []
    for d in devices:
        where = f"{d.node} gpu {d.index}"
        if d.xid:
            found.append(f"{where}: Xid {d.xid}")
        if d.ecc_uncorrectable:
            found.append(f"{where}: {d.ecc_uncorrectable:.0f} uncorrectable ECC errors")
        hard = [word for word in d.throttled if word != "power cap"]
        if hard:
            found.append(f"{where}: {', '.join(hard)}")
        if last.running and d.age_s > _SILENT_S:
            found.append(f"{where}: no sample for {d.age_s:.0f} s")
    silent = [
        r for r in ranks if last.running and r.age_s > _SILENT_S and r.phase not in ("finished", "failed")
    ]
    if silent:
        worst = min(silent, key=lambda r: (r.step, -r.age_s))
        found.append(f"{len(silent)} ranks are silent; rank {worst.rank} the furthest behind: step {worst.step}, {worst.phase}, "
                     f"for {worst.age_s:.0f} s")  # fmt: skip
    hang = read_json(RunPaths(last.plan.run_dir).attempt(last.plan.attempt).hang)
    if hang:
        found.append(f"hang: {hang.get('sentence', '')}")
    if _fallback(RunPaths(last.plan.run_dir), last):
        found.append(
            "the ranks talk over sockets, and the nodes have RDMA: seatrial check --only cluster_transport"
        )
    absent = last.plan.nodes - len(last.nodes)
    if absent > 0 and last.nodes:
        found.append(f"{absent} of {last.plan.nodes} nodes send no samples")
    return found
