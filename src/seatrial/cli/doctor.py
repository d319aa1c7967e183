"""``seatrial doctor``: what is here, what is missing, what to do about it."""

from __future__ import annotations

import json
import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from seatrial.runs.evidence import Evidence


@click.command()
@click.option(
    "--runs-dir", type=click.Path(path_type=Path), help="Where runs live [$SEATRIAL_RUNS_DIR, ./runs]."
)
@click.option(
    "--on",
    "platform",
    type=click.Choice(["local", "k8s"]),
    default="local",
    help="Look at a cluster instead [local].",
)
@click.option("--profile", help="With k8s: profile of the site's config.yaml [its own choice].")
@click.option("--json", "as_json", is_flag=True, help="The verdicts as one JSON document on stdout.")
def doctor(runs_dir: Path | None, platform: str, profile: str | None, as_json: bool) -> int:
    """Look at this machine, or at a cluster. Exit code 1 when something would stop `seatrial train` there."""
    if platform == "k8s":
        return _cluster(profile, as_json=as_json)
    from seatrial.check.machine import collect, judge
    from seatrial.errors import ExitCode
    from seatrial.runs.evidence import Verdict
    from seatrial.runs.paths import runs_dir as default_runs_dir

    sample = collect(default_runs_dir(runs_dir))
    findings = judge(sample)
    stops = [e.check for e in findings if e.verdict in {Verdict.FAIL, Verdict.ERROR}]
    if as_json:
        document = {
            "schema": 1,
            "checks": [e.model_dump(mode="json") for e in findings],
            "machine": sample.fingerprint,
        }
        click.echo(json.dumps(document, indent=2))
        return int(ExitCode.FAILED if stops else ExitCode.OK)
    host = sample.fingerprint.get("host", {})
    click.echo(
        f"{sample.machine.hostname}: {sample.machine.cpus} cores, {host.get('memory_gib', '?')} GiB memory"
    )
    _show(findings)
    click.echo(f"\n{', '.join(stops)}: training can't run here" if stops else "\ntraining can run here")
    return int(ExitCode.FAILED if stops else ExitCode.OK)


def _cluster(profile: str | None, *, as_json: bool) -> int:
    from seatrial.backends.kubernetes.api import Api
    from seatrial.check.kubernetes import survey
    from seatrial.errors import ExitCode
    from seatrial.runs.evidence import Verdict
    from seatrial.spec.load import load_script
    from seatrial.spec.site import site_layers

    values = {"name": "doctor", "command": ["doctor"], "cwd": str(Path.cwd())}
    asked = load_script(values, under=site_layers(profile)).spec.kubernetes
    findings = survey(Api.connect(asked), asked)
    stops = [e.check for e in findings if e.verdict in {Verdict.FAIL, Verdict.ERROR}]
    if as_json:
        document = {"schema": 1, "checks": [e.model_dump(mode="json") for e in findings]}
        click.echo(json.dumps(document, indent=2))
    else:
        _show(findings)
        click.echo(f"\n{', '.join(stops)}: runs can't start there" if stops else "\nruns can start there")
    return int(ExitCode.FAILED if stops else ExitCode.OK)


def _show(findings: list[Evidence]) -> None:
    width = max(40, min(shutil.get_terminal_size().columns, 110))
    for found in findings:
        head = f"{found.verdict:<10} {found.check:<14} "
        lines = textwrap.wrap(found.message, width - len(head), break_on_hyphens=False) or [""]
        click.echo(head + lines[0])
        for line in lines[1:]:
            click.echo(" " * len(head) + line)
