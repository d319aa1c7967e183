"""``seatrial node``: bare machines that one has ssh to, made ready, verified and put back."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from seatrial.errors import ExitCode, PlatformError, SpecError

if TYPE_CHECKING:
    from seatrial.provision.nodes.facts import Facts
    from seatrial.provision.nodes.ready import Outcome, Planned

_FLEET = click.option("--fleet", type=click.Path(path_type=Path), default=Path("nodes.yaml"), show_default=True, help="The fleet's file.")  # fmt: skip
_HOSTS = click.argument("hosts", nargs=-1, metavar="[HOST]...")


@click.group()
def node() -> None:
    """Bare machines with ssh: make them ready for runs, verify them, put them back."""


@node.command()
@_HOSTS
@click.option("--package", help="What pip installs there: a requirement, or a wheel of this machine [this very version, with [train]].")  # fmt: skip
@click.option("--pip", "pip_words", multiple=True, metavar="ARG", help="A further argument of pip, such as --index-url=URL; may be said several times.")  # fmt: skip
@click.option("--scratch", help="Directory for what may be lost [/scratch/seatrial].")
@click.option("--durable", help="Directory for what must stay [/srv/seatrial/runs].")
@click.option("--shared", help="Directory that all nodes see; it is made where it is missing, nothing is mounted.")  # fmt: skip
@click.option("--s3", metavar="URL", help="Mirror runs there: s3://bucket/prefix.")
@click.option("--driver", metavar="PACKAGE", help="Install this package with the GPUs' driver.")
@click.option("--tailscale", is_flag=True, help="Install Tailscale, where the machine's sources have it.")
@click.option("--aws-cli", is_flag=True, help="Install the AWS CLI.")
@click.option("--exporter", is_flag=True, help="Serve metrics on loopback, as a service.")
@click.option("--dry-run", is_flag=True, help="Print the scripts, exactly; change nothing.")
@click.option("--yes", "-y", is_flag=True, help="Don't ask.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@_FLEET
def bootstrap(
    hosts: tuple[str, ...], package: str | None, pip_words: tuple[str, ...], scratch: str | None, durable: str | None, shared: str | None,
    s3: str | None, driver: str | None, tailscale: bool, aws_cli: bool, exporter: bool, dry_run: bool, yes: bool, as_json: bool, fleet: Path,
) -> int:  # fmt: skip
    """Look at machines, show what they need, and do it. A second time changes nothing. Ubuntu 22.04 and 24.04, Debian 12."""
    from seatrial.provision.nodes import fleet as fleets
    from seatrial.provision.nodes import ready, remote
    from seatrial.provision.nodes.steps import Options

    options = Options()
    given = {"package": package, "scratch": scratch, "durable": durable, "shared": shared, "s3": s3, "driver": driver}  # fmt: skip
    options = Options(
        **{k: v for k, v in given.items() if v is not None}, pip=pip_words, tailscale=tailscale, aws_cli=aws_cli, exporter=exporter
    )  # fmt: skip
    if options.package.endswith(".whl") and not Path(options.package).is_file():
        raise SpecError(f"there is no wheel {options.package}", evidence=str(Path.cwd()))
    chosen = _hosts(hosts, fleet)
    planned = remote.each(chosen, lambda host: ready.plan(host, options))
    good = {host: p for host, p in planned.items() if not isinstance(p, PlatformError)}
    bad = {host: p for host, p in planned.items() if isinstance(p, PlatformError)}
    if dry_run:
        for host, its in good.items():
            click.echo(f"# {host}\n{its.text}")
        _failures(bad)
        return int(ExitCode.PLATFORM if bad else ExitCode.OK)
    _inventory({host: p.facts for host, p in good.items()}, err=as_json)
    _failures(bad)
    _show_steps(good)
    if good and not yes:
        _confirm(f"Make {len(good)} machines so?", "seatrial node bootstrap … --yes")
    outcomes = remote.each(list(good), lambda host: ready.bootstrap(good[host], options))
    done: dict[str, Outcome] = {h: o for h, o in outcomes.items() if not isinstance(o, PlatformError)}
    bad |= {host: o for host, o in outcomes.items() if isinstance(o, PlatformError)}
    sound = {host: o.facts for host, o in done.items() if not o.failed}
    if sound:
        fleets.add(fleet, sound)
    if as_json:
        click.echo(json.dumps(_document(done, bad), indent=2))
    else:
        _show_outcomes(done)
    _failures({host: error for host, error in bad.items() if host in good})
    if sound:
        click.echo(f"{len(sound)} of {len(chosen)} machines are ready, and in {fleet}", err=True)
    return int(ExitCode.OK if len(sound) == len(chosen) else ExitCode.PLATFORM)


@node.command()
@_HOSTS
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@_FLEET
def verify(hosts: tuple[str, ...], as_json: bool, fleet: Path) -> int:
    """Ask machines whether they are ready. Exit code 1 when one is not, 4 when one can't be asked."""
    from seatrial.provision.nodes import ready, remote
    from seatrial.runs.evidence import Verdict

    chosen = _hosts(hosts, fleet)
    found = remote.each(chosen, ready.verify)
    good = {host: f for host, f in found.items() if not isinstance(f, PlatformError)}
    bad = {host: f for host, f in found.items() if isinstance(f, PlatformError)}
    failed = [e for _, its in good.values() for e in its if e.verdict in {Verdict.FAIL, Verdict.ERROR}]
    if as_json:
        document = {
            "schema": 1,
            "nodes": {h: [e.model_dump(mode="json") for e in its] for h, (_, its) in good.items()},
            "errors": {h: e.to_dict() for h, e in bad.items()},
        }
        click.echo(json.dumps(document, indent=2))
    else:
        _inventory({host: facts for host, (facts, _) in good.items()}, err=False)
        for host, (_, its) in good.items():
            for e in its:
                if e.verdict is not Verdict.PASS:
                    click.echo(f"{host}  {e.verdict.value}  {e.check}: {e.measured}, expected {e.expected}{' ' + e.unit if e.unit else ''}" + (f"; {e.message}" if e.message else ""))  # fmt: skip
            click.echo(f"{host}: {sum(e.verdict is Verdict.PASS for e in its)} of {len(its)} checks passed")
    _failures(bad)
    return int(ExitCode.PLATFORM if bad else ExitCode.FAILED if failed else ExitCode.OK)


@node.command()
@_HOSTS
@click.option("--dry-run", is_flag=True, help="Show what was added, and would be removed.")
@click.option("--yes", "-y", is_flag=True, help="Don't ask.")
@_FLEET
def undo(hosts: tuple[str, ...], dry_run: bool, yes: bool, fleet: Path) -> int:
    """Take away what bootstrap added to machines, and only that. What somebody changed, or put files into, stays."""
    from seatrial.provision.nodes import facts as asking
    from seatrial.provision.nodes import fleet as fleets
    from seatrial.provision.nodes import ready, remote

    if not hosts:
        raise SpecError("no host is named", evidence="undo takes none from the fleet's file", remedy="seatrial node undo HOST…")  # fmt: skip
    chosen = _hosts(hosts, fleet)
    looked = remote.each(chosen, asking.look)
    good = {host: f for host, f in looked.items() if not isinstance(f, PlatformError)}
    bad = {host: f for host, f in looked.items() if isinstance(f, PlatformError)}
    for host, facts in good.items():
        for line in facts.added or ("nothing",):
            click.echo(f"{host}  {line}", err=True)
    _failures(bad)
    if dry_run:
        return int(ExitCode.PLATFORM if bad else ExitCode.OK)
    if good and not yes:
        _confirm(f"Take that away from {len(good)} machines?", "seatrial node undo … --yes")
    outcomes = remote.each(list(good), ready.undo)
    done = {h: o for h, o in outcomes.items() if not isinstance(o, PlatformError)}
    errors = {h: o for h, o in outcomes.items() if isinstance(o, PlatformError)}
    _failures(errors)
    for host, outcome in done.items():
        for t in outcome.told:
            click.echo(f"{host}  {t.outcome:<8} {t.step}" + (f": {t.words}" if t.words else ""))
    fleets.remove(fleet, [host for host, o in done.items() if not o.failed])
    return int(ExitCode.PLATFORM if bad or errors or any(o.failed for o in done.values()) else ExitCode.OK)


def _hosts(hosts: tuple[str, ...], fleet: Path) -> list[str]:
    from seatrial.provision.nodes.remote import check_host
    from seatrial.spec.fleet import read_fleet

    chosen = list(dict.fromkeys(hosts)) or [n.host for n in read_fleet(fleet).nodes]
    if not chosen:
        raise SpecError(
            "no host is named", evidence=f"{fleet} has none either", remedy="seatrial node bootstrap HOST…"
        )
    for host in chosen:
        check_host(host)
    return chosen


def _inventory(found: dict[str, Facts], *, err: bool) -> None:
    if not found:
        return
    rows = [("HOST", "SYSTEM", "CPUS", "MEMORY", "GPUS", "DRIVER", "RDMA", "SHM", "PYTHON")]
    for host, f in found.items():
        gpus = (
            f"{len(f.gpus)} × {f.gpus[0].name}"
            if f.gpus
            else "present, no driver"
            if f.has_pci_gpu
            else "none"
        )
        rdma = (
            f"{len(f.infiniband)} InfiniBand"
            if f.infiniband
            else f"{len(f.roce)} Ethernet"
            if f.roce
            else "none"
        )
        rows.append(
            (host, " ".join(f.system), str(f.cpus), f"{f.memory_gib:.0f} GiB", gpus, f.gpus[0].driver if f.gpus else "-", rdma,
             f"{f.shm_gib:.0f} GiB", f.python or "too old")
        )  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(f"{cell:<{widths[i]}}" for i, cell in enumerate(row)).rstrip(), err=err)


def _show_steps(found: dict[str, Planned]) -> None:
    by_steps: dict[tuple[str, ...], list[str]] = {}
    for host, planned in found.items():
        by_steps.setdefault(tuple(step.what for step in planned.steps), []).append(host)
    for steps, hosts in by_steps.items():
        click.echo(f"{', '.join(hosts)}: what is missing of", err=True)
        for what in steps:
            click.echo(f"  {what}", err=True)


def _show_outcomes(done: dict[str, Outcome]) -> None:
    for host, outcome in done.items():
        for t in outcome.told:
            if t.outcome != "same":
                click.echo(f"{host}  {t.outcome:<8} {t.step}" + (f": {t.words}" if t.words else ""))
        if not outcome.changed and not outcome.failed:
            click.echo(f"{host}  all is so already")


def _document(done: dict[str, Outcome], bad: dict[str, PlatformError]) -> dict[str, Any]:
    return {
        "schema": 1,
        "nodes": {
            host: [{"step": t.step, "outcome": t.outcome, "words": t.words} for t in o.told]
            for host, o in done.items()
        },
        "errors": {host: error.to_dict() for host, error in bad.items()},
    }


def _failures(bad: dict[str, PlatformError]) -> None:
    for host, error in bad.items():
        click.echo(f"{host}: {error}", err=True)


def _confirm(question: str, remedy: str) -> None:
    if not sys.stdin.isatty():
        raise SpecError("nobody is here to be asked", evidence="stdin is not a terminal", remedy=remedy)
    click.confirm(question, abort=True, err=True)
