"""The programs that the recipe calls: there, the right ones, new enough."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from seatrial.command import CommandRunner, run
from seatrial.errors import PlatformError
from seatrial.provision.nebius.checkout import Checkout
from seatrial.provision.nebius.rules.common import Finding, fail

_GET = {
    "terraform": "https://developer.hashicorp.com/terraform/install    (one binary; put it on PATH)",
    "kubectl": "https://kubernetes.io/docs/tasks/tools/",
    "jq": "apt-get install jq, or brew install jq",
    "yq": "https://github.com/mikefarah/yq/releases    (v4; Debian's package yq is another program)",
    "nebius": "https://docs.nebius.com/cli/install    (and ~/.nebius/bin on PATH)",
    "bash": "apt-get install bash",
}


@dataclass(frozen=True, slots=True)
class Tool:
    """A program that was found."""

    name: str
    path: str
    version: str


def check(recipe: Checkout, runner: CommandRunner = run) -> tuple[list[Tool], list[Finding]]:
    """What is there, and what is wrong with it.

    Args:
        recipe: says what it needs.
        runner: runs the programs.
    """
    tools: list[Tool] = []
    findings: list[Finding] = []
    for name, judge in (("terraform", _terraform), ("nebius", _any), ("kubectl", _any), ("jq", _any), ("yq", _yq), ("bash", _any)):  # fmt: skip
        path = shutil.which(name)
        if path is None:
            what = (
                "the recipe's provisioners call it in the middle of `up`"
                if name != "terraform"
                else "it makes the cluster"
            )
            findings.append(fail(f"no {name} on PATH: {what}", f"this machine: {name}", _GET[name]))
            continue
        try:
            version, wrong = judge(path, recipe, runner)
        except PlatformError as error:
            version, wrong = (
                "?",
                [fail(f"{path} doesn't run: {error.what}", f"this machine: {name}", _GET[name])],
            )
        tools.append(Tool(name, path, version))
        findings += wrong
    return tools, [_named(f) for f in findings]


def _named(finding: Finding) -> Finding:
    return Finding(finding.verdict, finding.found, finding.place, finding.fix, rule="tool")


Judged = tuple[str, list[Finding]]


def _any(path: str, recipe: Checkout, runner: CommandRunner) -> Judged:
    return "", []


def _terraform(path: str, recipe: Checkout, runner: CommandRunner) -> Judged:
    done = runner([path, "version", "-json"], timeout_s=30)
    try:
        version = str(json.loads(done.stdout[done.stdout.index("{") :])["terraform_version"])
    except (ValueError, KeyError):
        return "?", [
            fail(f"{path} says no version: {(done.stderr or done.stdout)[:120]}", "this machine: terraform", _GET["terraform"])
        ]  # fmt: skip
    least, why = recipe.terraform_minimum
    found = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    if found < least:
        return version, [
            fail(
                f"{path} is {version}, and {why}", "this machine: terraform",
                f"Terraform {least[0]}.{least[1]} or newer: {_GET['terraform']}; never edit the recipe's validations away",
            )
        ]  # fmt: skip
    return version, []


def _yq(path: str, recipe: Checkout, runner: CommandRunner) -> Judged:
    done = runner([path, "--version"], timeout_s=30)
    text = (done.stdout + done.stderr).strip()
    found = re.search(r"v?(\d+)\.[\d.]+", text)
    version = found[0] if found else "?"
    if "mikefarah" not in text or found is None or int(found[1]) < 4:
        return version, list(_wrong_yq(path, text))
    return version, []


def _wrong_yq(path: str, text: str) -> Iterator[Finding]:
    yield fail(f"{path} is another yq: it says {text[:80]!r}", "this machine: yq", _GET["yq"])
