"""``seatrial check``: does this cluster pass?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from seatrial.cli.train import NumberOrAuto, given_flags, platform_options
from seatrial.errors import SpecError

if TYPE_CHECKING:
    from seatrial.cli.check_outcome import Wishes
    from seatrial.spec.checks import CheckSpec

_REHEARSAL_NODES, _REHEARSAL_RANKS = 4, 2
_MARGIN_S = 600
"""Of the time that a scheduler is asked for: nodes start, and the last step may begin just before the suite's limit."""


class Nodes(click.ParamType):  # type: ignore[type-arg]
    """A number of nodes, or all that there are."""

    name = "N|all"

    def convert(  # noqa: D102
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        if value == "all" or isinstance(value, int):
            return value
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number of nodes nor 'all'", param, ctx)


@click.command(epilog="SUITE is quick (under 2 minutes), standard (about 10), full (hours), or a YAML file.")
@click.argument("suite", required=False)
@platform_options(nodes=Nodes())
@click.option("--gpus", type=NumberOrAuto(), help="GPUs a node; 0 for CPU [auto].")
@click.option("--nproc", type=NumberOrAuto(), help="CPU ranks a node, where there are no GPUs [1].")
@click.option("--gpu-model", help="Part of the name that every GPU must have, such as H100.")
@click.option("--only", help="Run only these checks, separated by commas.")
@click.option("--skip", help="Leave these checks out.")
@click.option("--repeat", type=click.IntRange(min=1), default=1, help="Repeat what is measured so often [1].")
@click.option("--rehearse", is_flag=True, help="Pretend nodes (--nodes, 4), CPU processes on this machine.")
@click.option(
    "--inject", multiple=True, metavar="FAULT", help="A fault on purpose: slow-gpu:node=3,gpu=1,factor=0.8."
)
@click.option(
    "--baseline", metavar="NAME", help="Hold the figures against a saved baseline: a name or a file."
)
@click.option("--save-baseline", metavar="NAME", help="Save what was measured as a baseline.")
@click.option("--strict", is_flag=True, help="A warning fails the test, too.")
@click.option("--drain", is_flag=True, help="Drain nodes that fail, a tenth of them at most (Slurm).")
@click.option("--junit", type=click.Path(path_type=Path), help="Also write a JUnit XML file.")
@click.option("--json", "as_json", is_flag=True, help="The verdict as one JSON document on stdout.")
@click.option(
    "--judge", "judged", metavar="RUN", help="Judge what a test has measured again; measures nothing."
)
@click.option("--list", "listed", is_flag=True, help="What there is to check, and in which suites.")
@click.option(
    "--runs-dir", type=click.Path(path_type=Path), help="Where runs live [$SEATRIAL_RUNS_DIR, ./runs]."
)
@click.option("--detach", "-d", is_flag=True, help="Start it and return; print its id.")
@click.option("--dry-run", is_flag=True, help="Print what would be done, exactly; touch nothing.")
def check(
    suite: str | None, only: str | None, skip: str | None, repeat: int, rehearse: bool, inject: tuple[str, ...],
    gpu_model: str | None, baseline: str | None, save_baseline: str | None, strict: bool, drain: bool, junit: Path | None,
    as_json: bool, judged: str | None, listed: bool, runs_dir: Path | None, detach: bool, dry_run: bool,
    profile: str | None, **flags: Any,
) -> int:  # fmt: skip
    """Put a cluster, or this machine, through an acceptance test. Exit code 1: something failed; 3: a required check did not run."""
    from seatrial.cli.check_outcome import Wishes, finish, judge_again, list_checks
    from seatrial.cli.start import start_new
    from seatrial.launch.plan import stages_of

    if listed:
        return list_checks()
    wishes = Wishes(
        baseline=baseline, save_baseline=save_baseline, strict=strict, drain=drain, junit=junit, as_json=as_json,
        dry_run=dry_run,
    )  # fmt: skip
    if judged is not None:
        return judge_again(judged, runs_dir, wishes)
    spec, origins = _spec(
        suite or "quick", _words(only), _words(skip), profile, flags,
        {"repeat": repeat, "rehearse": rehearse, "inject": list(inject), "gpu_model": gpu_model},
    )  # fmt: skip
    if detach and _needs_attention(wishes):
        raise SpecError(
            "what follows the verdict needs somebody to wait for it",
            evidence="--detach with --junit, --json, --drain or --save-baseline",
            remedy="seatrial check --judge RUN …    (once it has ended)",
        )
    return start_new(
        spec, lambda paths: stages_of(spec, paths), argv=sys.argv, runs_dir=runs_dir, detach=detach, dry_run=dry_run,
        origins=origins, then=("judge",), finish=lambda paths: finish(paths, spec, wishes),
    )  # fmt: skip


def _spec(
    suite: str,
    only: list[str],
    skip: list[str],
    profile: str | None,
    flags: dict[str, Any],
    values: dict[str, Any],
) -> tuple[CheckSpec, dict[str, str]]:
    from seatrial.cli.start import platform_of
    from seatrial.spec.checks import CheckSpec
    from seatrial.spec.load import load_command
    from seatrial.spec.site import named, site_layers
    from seatrial.spec.suites import read_suite

    flags["platform"], profile = named(flags["platform"], profile)
    chosen = read_suite(suite, only=only, skip=skip)
    nodes = flags.pop("nodes")
    every = nodes == "all"
    if values["rehearse"]:
        if every or flags["platform"] not in {None, "local", "auto"}:
            raise SpecError("a rehearsal is on this machine", evidence="--rehearse with --on or --nodes all")
        flags |= {"platform": "local", "gpus": 0, "nproc": flags["nproc"] or _REHEARSAL_RANKS}
        nodes = nodes or _REHEARSAL_NODES
    given = given_flags(flags | {"nodes": None if every else nodes})
    values = {"name": f"check-{chosen.name}", "suite": chosen.model_dump(mode="json"), **values}
    layers = site_layers(profile)
    spec, _ = load_command(CheckSpec, values, flags=given, under=layers)
    if spec.resources.on.startswith("ssh://"):
        raise SpecError(
            "a cluster is tested from its login node", evidence=f"--on {spec.resources.on}",
            remedy=f"log in to {spec.resources.on.removeprefix('ssh://')}, and there: seatrial check {suite} --on slurm",
        )  # fmt: skip
    if every:
        backend, _ = platform_of(spec)
        given["resources.nodes"] = ("--nodes all", backend.probe(spec).nodes)
    if spec.resources.time is None and platform_of(spec)[0].keeps_jobs:
        limit_s = int(spec.suite.limit_s + _MARGIN_S)
        given["resources.time"] = (f"the suite {chosen.name}", f"{-(-limit_s // 60)}m")
    return load_command(CheckSpec, values, flags=given, under=layers)


def _needs_attention(wishes: Wishes) -> bool:
    return bool(wishes.junit or wishes.as_json or wishes.drain or wishes.save_baseline)


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]
