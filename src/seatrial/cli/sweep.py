"""``seatrial train --sweep``: one run for each combination of values, compared at the end."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from seatrial import command
from seatrial.backends.base import Backend, Delivers, Mirrors, StartsAhead, SubmitsMany
from seatrial.backends.machine import Machine
from seatrial.cli.follow_many import Following, follow_all
from seatrial.cli.outcome import conclude
from seatrial.cli.progress import follow
from seatrial.cli.start import admitted, findings, handle_of, mirrored, platform_of, say
from seatrial.errors import ExitCode, SeatrialError, SpecError
from seatrial.launch import launcher
from seatrial.launch.admission import Admission, record
from seatrial.launch.inspect import inspect
from seatrial.launch.launcher import Submitted
from seatrial.launch.plan import afterwards, plan, stages_of
from seatrial.launch.sweep import look_once, make_directory, submit_all
from seatrial.runs.files import write_json
from seatrial.runs.manifest import Manifest, read_manifest
from seatrial.runs.paths import RunPaths
from seatrial.runs.paths import runs_dir as default_runs_dir
from seatrial.runs.plan import LaunchPlan
from seatrial.runs.state import RunState
from seatrial.spec import faults
from seatrial.spec import load as loading
from seatrial.spec.run import RunSpec
from seatrial.spec.site import Layer
from seatrial.spec.slurm import SlurmSpec
from seatrial.spec.sweep import Point, Sweep, divide, parse, specs_of

_BY_WEIGHT = (
    ExitCode.OK, ExitCode.FAILED, ExitCode.INCOMPLETE, ExitCode.BAD_REQUEST, ExitCode.PREEMPTED, ExitCode.INTERRUPTED,
    ExitCode.PLATFORM,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Member:
    """One run of a sweep, before it is written down."""

    point: Point
    spec: RunSpec
    plan: LaunchPlan

    @property
    def paths(self) -> RunPaths:
        """The run's."""
        return RunPaths(self.plan.run_dir)


def start_sweep(
    words: Sequence[str],
    recipe: Path | None,
    flags: Mapping[str, tuple[str, Any]],
    overrides: Sequence[str],
    under: Sequence[Layer],
    *,
    short: Mapping[str, str],
    argv: Sequence[str],
    runs_dir: Path | None,
    then: Collection[str],
    after: str | None,
    detach: bool,
    dry_run: bool,
    estimate: bool,
    verdict: str | None = None,
) -> int:
    """Checks every combination, then starts a run for each. Returns the worst of their exit codes."""
    if estimate:
        raise SpecError(
            "--estimate is of one run", evidence="--sweep was given", remedy="leave one of them out"
        )
    faults.from_environment()
    swept, overrides = divide(overrides, short)
    sweep = parse([*words, *swept], short)
    _check_once(sweep, flags, overrides)
    points = sweep.points
    first = loading.load(recipe, flags=flags, overrides=[*overrides, *points[0].words], under=under).spec
    sweep_id = launcher.new_run_id("sweep")
    specs = [spec.model_copy(update={"tags": (*spec.tags, sweep_id)}) for spec in specs_of(first, points)]
    backend, evidence = platform_of(first)
    if isinstance(backend, Mirrors):
        raise SpecError(
            "a sweep is started on the cluster itself",
            evidence=f"resources.on is {first.resources.on}",
            remedy=f"log in on {first.resources.on.removeprefix('ssh://')}, and start it there with --on slurm",
        )
    if isinstance(backend, Delivers):
        raise SpecError(
            "sweeps are not started in pods yet", evidence=f"resources.on is {first.resources.on}",
            remedy="one seatrial train --on k8s --detach for each point: jobs there wait for room by themselves",
        )  # fmt: skip
    at_once = backend if isinstance(backend, SubmitsMany) and backend.takes_many else None
    if detach and at_once is None:
        raise SpecError(
            f"a sweep on {backend.name} can't be left to itself here",
            evidence="its runs come one after the other, and this command starts each of them",
            remedy="leave out --detach, or use a platform that queues jobs: --on slurm",
        )
    root = default_runs_dir(runs_dir)
    handle = handle_of(after, root, backend) if after else ""
    # What is asked for is the same for all.
    allowed, machine, admission = admitted(first, backend, root, verdict)
    assert admission is not None  # only tests go by no verdict
    members = _members(
        specs, points, machine, root, then=then, after=handle, detach=detach, slurm=allowed.slurm
    )
    directory = root / sweep_id
    plans = [member.plan for member in members]
    request = None if at_once is None else at_once.render_all(plans, sweep_id, directory)
    found = _look(members, backend, prepare=not dry_run)
    if dry_run:
        _print_dry_run(sweep_id, members, request.text if request else backend.render(members[0].plan).text)
        return 0
    make_directory(directory, _record(sweep_id, sweep, members, argv))
    say(f"{sweep_id} on {backend.name} ({evidence}): {len(members)} runs")
    if request is None:
        codes = _one_by_one(members, found, backend, argv, admission)
        return _conclude(sweep_id, members, codes)
    _create(members, found, argv, admission)
    submitted = submit_all(request, backend, directory)
    if detach:
        click.echo("\n".join([sweep_id, *(member.plan.run_id for member in members)]))
        say(f"compare them: seatrial runs compare --tag {sweep_id}")
        return 0
    say(f"submitted: {submitted[0].handle} … {len(members)} in all    (Ctrl-C leaves them running)")
    return _conclude(sweep_id, members, follow_all(sweep_id, _following(members, submitted)))


def worst(codes: Sequence[ExitCode]) -> ExitCode:
    """The exit code of several runs: that of the one that went worst.

    4 (a platform failed) before 130, 75 (stopped), 2, 3, and 1 (measured and failed).
    """
    return max(codes, key=_BY_WEIGHT.index, default=ExitCode.OK)


def _check_once(sweep: Sweep, flags: Mapping[str, tuple[str, Any]], overrides: Sequence[str]) -> None:
    given = {key: flag for key, (flag, _) in flags.items()}
    given |= {word.partition("=")[0].strip(): word for word in overrides}
    for axis in sweep.axes:
        if axis.key in given:
            raise SpecError(
                f"{axis.key} is swept, and given for all runs",
                evidence=f"{axis.word}\n{given[axis.key]}",
                remedy="leave one of them out",
            )


def _members(
    specs: Sequence[RunSpec],
    points: Sequence[Point],
    machine: Machine,
    root: Path,
    *,
    then: Collection[str],
    after: str,
    detach: bool,
    slurm: SlurmSpec,
) -> list[Member]:
    width = len(str(len(specs) - 1))
    members = []
    for i, (spec, point) in enumerate(zip(specs, points, strict=True)):
        paths = RunPaths(root / launcher.new_run_id(f"{spec.name}-{i:0{width}d}"))
        planned = plan(
            spec.model_copy(update={"slurm": slurm}), paths, machine, attempt=0, stages=stages_of(spec, paths, train_only="predict" not in then),
            python=sys.executable, cwd=Path.cwd(), after=after, afterwards=afterwards(paths, (*then, *mirrored(spec))) if detach else (),
        )  # fmt: skip
        members.append(Member(point, spec, planned))
    return members


def _look(members: Sequence[Member], backend: Backend, *, prepare: bool) -> list[dict[str, Any]]:
    first = members[0]
    runner = backend.prepare(first.plan, first.spec) if isinstance(backend, StartsAhead) else command.run
    lines: dict[str, None] = {}

    def look(spec: RunSpec) -> dict[str, Any]:
        found = inspect(spec, prepare=prepare, runner=runner)
        if findings(found) not in lines:
            say(findings(found))
            lines[findings(found)] = None
        return found

    say("looking at data and model")
    return look_once([member.spec for member in members], look)


def _create(
    members: Sequence[Member], found: Sequence[dict[str, Any]], argv: Sequence[str], admission: Admission
) -> None:
    beside: Manifest | None = None
    for member, facts in zip(members, found, strict=True):
        beside = launcher.create(member.paths, member.spec, argv, beside=beside)
        record(member.paths, admission, 0)
        write_json(member.paths.inputs, facts["inputs"])


def _record(sweep_id: str, sweep: Sweep, members: Sequence[Member], argv: Sequence[str]) -> dict[str, Any]:
    return {
        "sweep": sweep_id,
        "command": list(argv),
        "keys": list(sweep.keys),
        "runs": [{"run_id": member.plan.run_id, "values": member.point.values} for member in members],
    }


def _following(members: Sequence[Member], submitted: Sequence[Submitted]) -> list[Following]:
    return [
        Following(_label(member), member.spec, one) for member, one in zip(members, submitted, strict=True)
    ]


def _label(member: Member) -> str:
    values = [word.partition("=") for word in member.point.words]
    return "  ".join(
        [member.plan.run_id, " ".join(f"{key.rpartition('.')[2]}={text}" for key, _, text in values)]
    )


def _one_by_one(
    members: Sequence[Member],
    found: Sequence[dict[str, Any]],
    backend: Backend,
    argv: Sequence[str],
    admission: Admission,
) -> list[ExitCode]:
    """Each run to its end before the next one begins; none after one that its user stopped."""
    codes = []
    for i, (member, facts) in enumerate(zip(members, found, strict=True)):
        say(f"{i + 1} of {len(members)}: {_label(member)}")
        _create([member], [facts], argv, admission)
        try:
            follow(launcher.submit(member.plan, backend))
            codes.append(conclude(member.paths, member.spec, quiet=True))
        except SeatrialError as error:
            say(f"error: {error}")
            codes.append(error.exit_code)
        manifest = read_manifest(member.paths)
        say(f"  {manifest.state}{sentence_of(manifest)}")
        if manifest.state is RunState.INTERRUPTED and i + 1 < len(members):
            say(f"stopped: {len(members) - i - 1} runs were not begun")
            break
    return codes


def sentence_of(manifest: Manifest) -> str:
    """The result of a run after its state; nothing where there is none."""
    sentence = manifest.results.get("comparison", {}).get("sentence")
    return f": {sentence}" if sentence else ""


def _conclude(sweep_id: str, members: Sequence[Member], codes: Sequence[ExitCode]) -> int:
    from seatrial.cli.runs_compare import gather, print_table

    begun = [member.paths for member in members if member.paths.manifest.exists()]
    print_table(gather(begun))
    click.echo(f"again    seatrial runs compare --tag {sweep_id}")
    return int(worst(codes))


def _print_dry_run(sweep_id: str, members: Sequence[Member], request: str) -> None:
    click.echo(f"# {len(members)} runs, of tag {sweep_id}")
    for member in members:
        click.echo(f"{member.plan.run_id}  {member.point}")
    click.echo("\n# the request\n" + request, nl=False)
