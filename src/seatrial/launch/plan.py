"""Spec + paths + machine = plan. Pure: the same input gives the same plan, and nothing is touched."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from seatrial.backends.machine import Machine
from seatrial.errors import SpecError
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import Device, LaunchPlan, Stage
from seatrial.spec.checks import CheckSpec
from seatrial.spec.kinds import AnySpec
from seatrial.spec.run import ResourcesSpec, RunSpec, ScriptSpec, TrainSpec


def plan(
    spec: AnySpec,
    paths: RunPaths,
    machine: Machine,
    *,
    attempt: int,
    stages: tuple[Stage, ...],
    python: str,
    cwd: Path,
    after: str = "",
    afterwards: tuple[tuple[str, ...], ...] = (),
    parcels: tuple[str, ...] = (),
) -> LaunchPlan:
    """Decides device, ranks and threads.

    Raises:
        SpecError: the machine does not have what the spec asks for; nothing is done with less.
    """
    device, nproc = ranks(spec.resources, machine)
    _check_time(spec)
    # Nobody else's script leaves heartbeats or finds its own way back to a checkpoint.
    train = spec.train if isinstance(spec, RunSpec) else TrainSpec(hang_timeout_s=None)
    return LaunchPlan(
        run_id=paths.run_id,
        run_dir=paths.root,
        attempt=attempt,
        nodes=spec.resources.nodes,
        nproc=nproc,
        device=device,
        threads=max(1, machine.cpus // nproc),
        stages=stages,
        after=after,
        afterwards=afterwards,
        python=machine.native.get("python", python) if machine.platform == "hosts" else python,
        cwd=cwd,
        time_limit_s=spec.resources.time_s,
        gpus_per_node=_gpus(spec.resources, machine),
        cpus_per_node=machine.cpus,
        platform=_section(spec, machine, parcels),
        conducts="checks" if isinstance(spec, CheckSpec) else "ranks",
        launcher=spec.resources.launcher,
        max_restarts=train.max_restarts,
        hang_timeout_s=train.hang_timeout_s,
        stop_before_s=train.stop_before_s,
        sample_every_s=spec.resources.sample_every_s,
        **_use(spec),
    )


def _section(spec: AnySpec, machine: Machine, parcels: tuple[str, ...]) -> dict[str, Any]:
    """What the platform is told beside the rest."""
    if machine.platform == "k8s":
        section = spec.kubernetes.model_dump(mode="json")
        return {"spec": section, "native": machine.native, "parcels": list(parcels)}
    if machine.platform == "hosts":
        return {"native": machine.native}
    return spec.slurm.model_dump(mode="json") if machine.platform == "slurm" else {}


def _use(spec: AnySpec) -> dict[str, Any]:
    """When unused devices stop the attempt."""
    if isinstance(spec, CheckSpec):
        return {}
    gate = spec.gates.utilisation
    idle, stop = gate.stop_idle_minutes, gate.on_fail == "stop"
    return {
        "stop_idle_s": None if idle is None else 60 * idle,
        "stop_below": {"min_pct": gate.min, "patience_s": 60 * gate.patience_minutes} if stop else None,
    }


def _check_time(spec: AnySpec) -> None:
    """A time limit leaves time to train."""
    before_s = spec.train.stop_before_s if isinstance(spec, RunSpec) else TrainSpec().stop_before_s
    if spec.resources.time_s is not None and spec.resources.time_s <= before_s:
        raise SpecError(
            "the time limit leaves no time to train",
            evidence=f"resources.time is {spec.resources.time}; the ranks save and stop {before_s:g} s before its end",
            remedy="a longer resources.time, or a shorter train.stop_before_s",
        )


def stages_of(spec: AnySpec, paths: RunPaths, *, train_only: bool = False) -> tuple[Stage, ...]:
    """What a run does: a script, or training and then predictions of both models in the same allocation."""
    if isinstance(spec, CheckSpec):
        return (Stage(name="check", argv=()),)
    if isinstance(spec, ScriptSpec):
        return (Stage(name="script", argv=spec.command, reports=False),)
    stages = (Stage(name="train", argv=job_argv("train", paths)),)
    return stages if train_only else (*stages, predict_stage(paths))


def afterwards(paths: RunPaths, then: Collection[str]) -> tuple[tuple[str, ...], ...]:
    """What the job itself does at its end, where nobody waits for it: comparison, page, mirror, or the verdict."""
    if "judge" in then:
        return (("-m", "seatrial", "check", "--judge", str(paths.root)),)
    steps = {"compare": ("compare",), "use": ("watch", "--judge"), "report": ("report",)}
    argvs = [("-m", "seatrial", *words, str(paths.root)) for verb, words in steps.items() if verb in then]
    told = [(*job_argv("track", paths), "--once")] if "track" in then else []
    pushed = [("-m", "seatrial", "runs", "push", "--warn-only", str(paths.root))] if "push" in then else []
    return (*argvs, *told, *pushed)


def predict_stage(paths: RunPaths, *arguments: str) -> Stage:
    """Predictions of the run's models."""
    return Stage(name="predict", argv=(*job_argv("predict", paths), *arguments))


def job_argv(module: str, paths: RunPaths) -> tuple[str, ...]:
    """The interpreter's arguments for one of Seatrial's own programs, which find their attempt in the environment."""
    return ("-m", f"seatrial.job.{module}", str(paths.root))


def _gpus(resources: ResourcesSpec, machine: Machine) -> int:
    """GPUs of each node that are asked for."""
    return len(machine.gpus) if resources.gpus_per_node == "auto" else resources.gpus_per_node


def ranks(resources: ResourcesSpec, machine: Machine) -> tuple[Device, int]:
    """The device and the number of ranks on each node.

    Raises:
        SpecError: more GPUs than there are, fewer ranks than GPUs, or several nodes on one machine.
    """
    if resources.nodes > machine.nodes:
        raise SpecError(
            f"the platform {machine.platform!r} has {machine.nodes} node{'s' if machine.nodes > 1 else ''}",
            evidence=f"resources.nodes is {resources.nodes}; {machine.evidence}",
            remedy=f"resources.nodes={machine.nodes}",
        )
    there = len(machine.gpus)
    gpus = _gpus(resources, machine)
    if gpus > there:
        raise SpecError(
            f"{gpus} GPUs were asked for, {machine.hostname} has {there}",
            evidence=machine.evidence,
            remedy=f"resources.gpus_per_node={there}    (0 asks for CPU)",
        )
    if gpus == 0:
        return "cpu", 1 if resources.nproc == "auto" else resources.nproc
    nproc = gpus if resources.nproc == "auto" else resources.nproc
    if nproc > gpus:
        raise SpecError(
            f"{nproc} ranks don't fit on {gpus} GPUs",
            evidence=f"resources.nproc is {nproc}; a rank has a GPU of its own",
            remedy=f"resources.nproc={gpus}    (or resources.gpus_per_node=0 for CPU ranks)",
        )
    return "cuda", nproc
