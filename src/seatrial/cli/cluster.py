"""``seatrial cluster``: a Slurm cluster on Nebius, from a file to running jobs and back to nothing."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from seatrial.cli import cluster_text as text
from seatrial.errors import ExitCode, SpecError

if TYPE_CHECKING:
    from seatrial.provision.nebius.make import Planned

_FILE = click.option(
    "--file", "-f", "path", type=click.Path(path_type=Path), default=Path("cluster.yaml"), show_default=True,
    help="The cluster's description.",
)  # fmt: skip
_RECIPE = click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    help="Checkout of the solutions library, or its soperator directory [the file's].",
)

_LOSE = click.option(
    "--lose", multiple=True, metavar="ADDRESS", help="Let go of what is at this address, with its data; may be said several times."
)  # fmt: skip
_UNLOCK = click.option(
    "--unlock", metavar="ID", help="Take away a lock of the state that a killed Terraform left."
)


@click.group()
def cluster() -> None:
    """A Slurm cluster on Nebius (the Soperator recipe): describe, check, make, use and remove it."""


@cluster.command()
@click.argument("name")
@click.option("--tenant", help="Its id: tenant-…")
@click.option("--project", help="Its id: project-…")
@click.option("--region", help="The project's [the template's first].")
@click.option("--ssh-key", help="Public key, or the file with it [~/.ssh/id_ed25519.pub, or id_rsa.pub].")
@click.option("--template", help="Size to begin with: 2x8-h100, 1x8-h100, 2x8-h200, 1x8-h200, cpu.")
@click.option("--nodes", type=click.IntRange(min=1), help="Workers [the template's].")
@click.option("--fabric", help="InfiniBand fabric [one that the region has].")
@_RECIPE
@_FILE
def init(
    name: str, tenant: str | None, project: str | None, region: str | None, ssh_key: str | None, template: str | None,
    nodes: int | None, fabric: str | None, recipe: Path | None, path: Path,
) -> int:  # fmt: skip
    """Write a cluster.yaml, asking what flags don't say."""
    from seatrial.provision.nebius.templates import TEMPLATES, Answers, cluster_yaml, fabrics_of, regions_of
    from seatrial.runs.files import write_text
    from seatrial.spec.cluster import parse_cluster

    if path.exists():
        raise SpecError(
            f"{path} is there already", evidence="it is never written over", remedy=f"-f {name}.yaml"
        )
    template = template or _asked("Size of the cluster", "--template", default="2x8-h100", choices=list(TEMPLATES))  # fmt: skip
    if template not in TEMPLATES:
        raise SpecError(f"there is no template {template!r}", evidence=f"there are: {', '.join(TEMPLATES)}")
    tenant = tenant or _asked("Tenant's id (tenant-…)", "--tenant")
    project = project or _asked("Project's id (project-…)", "--project")
    regions = regions_of(template)
    region = region or (regions[0] if len(regions) == 1 else _asked("Region", "--region", default=regions[0], choices=list(regions)))  # fmt: skip
    fabrics = fabrics_of(template, region)
    if (
        fabric is None
        and len(fabrics) > 1
        and (nodes or TEMPLATES[template].nodes) > 1
        and sys.stdin.isatty()
    ):
        fabric = _asked("InfiniBand fabric", "--fabric", default=fabrics[-1], choices=list(fabrics))
    ssh_key = ssh_key or _key_of_user() or _asked("Public SSH key, or its file", "--ssh-key")
    if "PRIVATE KEY" in ssh_key:
        raise SpecError(
            "that is a private key",
            evidence="not repeated here",
            remedy="the public one: ~/.ssh/id_ed25519.pub",
        )
    written = cluster_yaml(
        Answers(name, tenant, project, region, ssh_key, template, nodes, fabric, str(recipe.absolute()) if recipe else None)
    )  # fmt: skip
    parse_cluster(written, str(path))
    write_text(path, written)
    click.echo(f"{path} is written: read it, then seatrial cluster preflight" + ("" if path.name == "cluster.yaml" else f" -f {path}"))  # fmt: skip
    return 0


@cluster.command()
@_FILE
@_RECIPE
@click.option("--offline", is_flag=True, help="Ask no cloud.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def preflight(path: Path, recipe: Path | None, offline: bool, as_json: bool) -> int:
    """Find what would fail 20 to 60 minutes into `up`, before anything is made. Exit code 1 when something would."""
    from seatrial.provision.nebius import online
    from seatrial.provision.nebius.cloud import Cloud
    from seatrial.provision.nebius.preflight import look
    from seatrial.provision.nebius.work import Work

    looked = look(path, recipe)
    seen = None
    if not offline:
        there = Work.of(looked.case.spec.name).is_begun
        seen = online.look(Cloud(), looked.case, looked.need, there=there)
    findings = [*looked.findings, *(seen.findings if seen else [])]
    failed = [f for f in findings if f.verdict.value == "FAIL"]
    if as_json:
        click.echo(json.dumps(text.document(looked, seen, findings), indent=2))
    else:
        text.show(looked, seen, findings)
    return int(ExitCode.FAILED if failed else ExitCode.OK)


@cluster.command()
@_FILE
@_RECIPE
@_LOSE
@_UNLOCK
@click.option(
    "--adopt", "may_adopt", is_flag=True, help="A cluster of this name may be there, and is to be taken over."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def plan(
    path: Path, recipe: Path | None, lose: tuple[str, ...], unlock: str | None, may_adopt: bool, as_json: bool
) -> int:  # fmt: skip
    """Show what `up` would make, change, adopt and destroy. Exit code 1 where a policy refuses it."""
    from seatrial.provision.nebius import make
    from seatrial.provision.nebius.cloud import Cloud

    with make.opened(path, recipe, Cloud(), _say, what="cluster plan", adopt=may_adopt) as job:
        planned = make.plan(job, lose=lose, unlock=unlock)
        make.dropped(job)
        if as_json:
            click.echo(json.dumps(text.planned_document(job.looked, planned), indent=2))
        else:
            text.show_plan(planned)
            text.show_cost(job.looked)
        return int(ExitCode.FAILED if planned.refused or planned.over else ExitCode.OK)


@cluster.command()
@_FILE
@_RECIPE
@_LOSE
@_UNLOCK
@click.option(
    "--adopt",
    "may_adopt",
    is_flag=True,
    help="Take over what exists already and nothing here began to make, a whole cluster, too.",
)
@click.option("--yes", "-y", is_flag=True, help="Don't ask.")
def up(
    path: Path, recipe: Path | None, lose: tuple[str, ...], unlock: str | None, may_adopt: bool, yes: bool
) -> int:
    """Make the cluster, or bring it to what the file says. The same command goes on after a failure or Ctrl-C."""
    from seatrial.provision.nebius import make
    from seatrial.provision.nebius.cloud import Cloud

    with make.opened(path, recipe, Cloud(), _say, what="cluster up", adopt=may_adopt) as job:
        planned = make.plan(job, lose=lose, unlock=unlock)
        try:
            text.show_plan(planned)
            text.show_cost(job.looked)
            _check(planned)
            if planned.strange and not may_adopt and (yes or not sys.stdin.isatty()):
                raise SpecError(
                    "things of these names exist, and nothing here began to make them",
                    evidence=", ".join(f"{f.thing.name} ({f.thing.id})" for f in planned.strange),
                    remedy="if they are this cluster's: --adopt; else another name in cluster.yaml",
                )
            if planned.real and not yes:
                _confirm("Do that, and pay for it from now on?", "--yes")
        except BaseException:
            make.dropped(job)
            raise
        if planned.real:
            make.carry_out(job, planned)
        else:
            make.dropped(job)
        make.remember_address(job)
        groups = make.verify(job)
        if path.read_text(encoding="utf-8") != job.text:
            _say(
                f"{path} was edited meanwhile: what came of it is as it stood before; seatrial cluster plan shows the rest"
            )
        click.echo(
            f"{job.work.name} is up: {sum(g.ready for g in groups)} nodes are ready; next: seatrial cluster connect {job.work.name}"
        )
    return 0


@cluster.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def status(name: str, as_json: bool) -> int:
    """Nodes, Slurm, login address and cost so far. Exit code 1 when not all nodes are ready."""
    from seatrial.provision.nebius import status as of
    from seatrial.provision.nebius.cloud import Cloud
    from seatrial.provision.nebius.work import Work

    found = of.look(Work.of(name), Cloud())
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else found.text())
    return int(ExitCode.OK if found.is_ready else ExitCode.FAILED)


@cluster.command()
@click.argument("name")
@click.option(
    "--python",
    help="Interpreter on the cluster that has Seatrial, seen by all nodes [/mnt/training/seatrial/venv/bin/python].",
)
@click.option(
    "--directory",
    help="Directory on the cluster for code, data and runs, seen by all nodes [/mnt/training/seatrial].",
)
@click.option("--dry-run", is_flag=True, help="Show the profile; write nothing.")
def connect(name: str, python: str | None, directory: str | None, dry_run: bool) -> int:
    """Write a profile, so that --on NAME runs there, and show how to log in."""
    from seatrial.provision.nebius import status as of
    from seatrial.provision.nebius.cloud import Cloud
    from seatrial.provision.nebius.profile import profile_of, write_profile
    from seatrial.provision.nebius.work import Work

    work = Work.of(name)
    address = of.address(work, Cloud())
    profile = profile_of(work, address, python, directory)
    if dry_run:
        click.echo(json.dumps({name: profile}, indent=2))
        return 0
    where = write_profile(name, profile)
    click.echo(f"ssh root@{address}")
    _say(
        f"profile {name} is in {where}: seatrial train RECIPE --on {name}, seatrial run --on {name} -- SCRIPT"
    )
    _say(f"Seatrial has to be there: {profile['slurm']['remote']['python']} (docs/cluster.md says how)")
    _say(f"kubeconfig: nebius mk8s cluster get-credentials --id {of.cluster_id(work, Cloud())} --external")
    return 0


@cluster.command()
@click.argument("name")
@click.option("--confirm", metavar="NAME", help="The cluster's name once more, where nobody can be asked.")
@_UNLOCK
def down(name: str, confirm: str | None, unlock: str | None) -> int:
    """Remove the cluster: show what data dies, ask, destroy, and prove that nothing of it is left to pay for."""
    from seatrial.provision.nebius import make, remove
    from seatrial.provision.nebius.cloud import Cloud
    from seatrial.provision.nebius.work import Work

    work = Work.of(name)
    work.require()
    with make.opened(
        work.root / "cluster.yaml",
        work.root / "recipe" / "soperator",
        Cloud(),
        _say,
        what="cluster down",
        force=True,
    ) as job:
        make.check_no_strays(job)
        before = make.billable(job)
        planned = make.plan(job, destroy=True, unlock=unlock)
        try:
            for line in remove.losses(job, before):
                click.echo(line)
            said = confirm if confirm is not None else _typed(name)
            if said != name:
                raise SpecError(
                    "nothing is removed",
                    evidence=f"{said!r} is not {name!r}",
                    remedy=f"seatrial cluster down {name} --confirm {name}",
                )
        except BaseException:
            make.dropped(job)
            raise
        if planned.changes:
            make.carry_out(job, planned, removing=True)
        else:
            make.dropped(job)
        for line in remove.prove(job, before):
            click.echo(line)
    work.forget()
    return 0


def _check(planned: Planned) -> None:
    if planned.refused or planned.over:
        wrong = [(f"{change.address}: {why}", fix) for change, why, fix in planned.refused]
        wrong += [(finding.found, finding.fix) for finding in planned.over]
        raise SpecError(
            "that plan is refused: nothing was changed", evidence="\n".join(what for what, _ in wrong),
            remedy="\n".join(dict.fromkeys(fix for _, fix in wrong)),
        )  # fmt: skip


def _say(line: str) -> None:
    click.echo(line, err=True)


def _confirm(question: str, flag: str) -> None:
    if not sys.stdin.isatty():
        raise SpecError(
            "nobody is here to be asked",
            evidence="stdin is not a terminal",
            remedy=f"seatrial cluster up {flag}",
        )
    click.confirm(question, abort=True, err=True)


def _typed(name: str) -> str:
    if not sys.stdin.isatty():
        raise SpecError(
            "nobody is here to be asked",
            evidence="stdin is not a terminal",
            remedy=f"seatrial cluster down {name} --confirm {name}",
        )
    return str(
        click.prompt(
            f"Type the cluster's name to remove it with all of that ({name})",
            err=True,
            default="",
            show_default=False,
        )
    )


def _asked(question: str, flag: str, default: str | None = None, choices: list[str] | None = None) -> str:
    if not sys.stdin.isatty():
        raise SpecError(f"{flag} is not said", evidence="stdin is not a terminal, so nobody can be asked", remedy=f"{flag} …" + (f"    ({', '.join(choices)})" if choices else ""))  # fmt: skip
    kind = click.Choice(choices) if choices else None
    return str(click.prompt(question, default=default, type=kind, err=True))


def _key_of_user() -> str | None:
    home = Path(os.environ.get("HOME", "/"))
    for name in ("id_ed25519.pub", "id_ecdsa.pub", "id_rsa.pub"):
        if (home / ".ssh" / name).is_file():
            return f"~/.ssh/{name}"
    return None
