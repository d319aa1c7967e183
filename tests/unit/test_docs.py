"""The documents say what is so: links lead somewhere, commands and keys exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TypeGuard, get_args

import click
import pytest
from pydantic import BaseModel

from seatrial.cli.main import cli
from seatrial.provision.nebius.rules import RULES
from seatrial.spec.checks import CHECKS, PHASES, SUITES, SuiteSpec
from seatrial.spec.faults import KINDS
from seatrial.spec.run import RunSpec

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_source_files_that_are_named_exist(page: Path) -> None:
    for name in re.findall(
        r"`((?:job|launch|backends|runs|spec|compare|report|check|cli)/\w+\.py)`", page.read_text()
    ):
        assert (ROOT / "src" / "seatrial" / name).exists(), name


def commands() -> list[str]:
    lines = []
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.S):
        lines += [
            line.partition("#")[0].strip() for line in block.splitlines() if line.startswith("seatrial")
        ]
    return lines


@pytest.mark.parametrize("line", commands())
def test_commands_of_the_readme_parse(line: str) -> None:
    """Every verb and flag exists; nothing is run."""
    words = shlex.split(line)[1:]
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group):
        found = command.get_command(context, words[0])
        assert found is not None, words[0]
        command, words = found, words[1:]
    command.make_context("seatrial", words)


def test_make_targets_of_the_readme_exist() -> None:
    targets = re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), re.M)
    makefile = (ROOT / "Makefile").read_text()
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)


def is_section(annotation: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def keys(kind: type[BaseModel], prefix: str = "") -> list[str]:
    lines = []
    for name, field in kind.model_fields.items():
        nested = next((a for a in get_args(field.annotation) if is_section(a)), field.annotation)
        if is_section(nested):
            lines += keys(nested, f"{prefix}{name}.")
        elif name != "schema_":
            default = "required" if field.is_required() else repr(field.default)
            lines.append(f"| `{prefix}{name}` | {default} | {(field.description or '').replace('|', '/')} |")
    return lines


def test_the_table_of_recipe_keys_is_the_spec(golden: Callable[[str, Path | str], None]) -> None:
    introduction = (ROOT / "docs" / "recipes.md").read_text().split("| key |")[0]
    table = "| key | default | what |\n|---|---|---|\n" + "\n".join(keys(RunSpec)) + "\n"
    golden(introduction + table, ROOT / "docs" / "recipes.md")


def suite_row(suite: SuiteSpec) -> str:
    pairs = suite.pairs if "pairs" in suite.checks else "–"
    limit = f"{suite.limit_s / 60:g} min" if suite.limit_s < 3600 else f"{suite.limit_s / 3600:g} h"
    sizes = ", ".join(f"{size:g}" for size in suite.sizes_mib)
    return f"| `{suite.name}` | {limit} | {len(suite.checks)} | {', '.join(suite.dtypes)} | {suite.gemm_s:g} | {sizes} | {pairs} |"


def check_rows() -> list[str]:
    rows = []
    for name, check in CHECKS.items():
        needs = ["GPUs"] * check.gpu + [f"{check.nodes} nodes"] * (check.nodes > 1)
        needs += [f"{check.ranks} ranks a node"] * (check.ranks > 1)
        suites = ", ".join(suite.name for suite in SUITES.values() if name in suite.checks)
        rows.append(
            f"| `{name}` | {PHASES[check.phase]} | {check.scope} | {check.about} | {', '.join(needs)} | {suites} |"
        )
    return rows


def test_the_tables_of_suites_and_checks_are_the_spec(golden: Callable[[str, Path | str], None]) -> None:
    introduction = (ROOT / "docs" / "check.md").read_text().partition("| suite |")[0]
    suites = [
        "| suite | at most | checks | precisions | s each | collectives, MiB | pairs |",
        "|---|---|---|---|---|---|---|",
        *map(suite_row, SUITES.values()),
    ]
    checks = [
        "| check | phase | of each | what | needs | in |",
        "|---|---|---|---|---|---|",
        *check_rows(),
    ]
    golden(introduction + "\n".join([*suites, "", *checks]) + "\n", ROOT / "docs" / "check.md")


def test_the_table_of_the_clusters_rules_is_the_code(golden: Callable[[str, Path | str], None]) -> None:
    page = ROOT / "docs" / "cluster.md"
    rows = [f"| `{name}` | {re.sub(r'^[0-9]+. ', '', rule.__doc__ or '')} |" for name, rule in RULES.items()]
    introduction = page.read_text().partition("| rule |")[0]
    golden(introduction + "| rule | what it refuses |\n|---|---|\n" + "\n".join(rows) + "\n", page)


def test_every_verb_has_help() -> None:
    context = click.Context(cli)
    for name in cli.list_commands(context):  # type: ignore[attr-defined]
        command = cli.get_command(context, name)  # type: ignore[attr-defined]
        assert command is not None and command.help and command.get_help(context)


def test_every_fault_is_documented_with_a_test_that_exists() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| `(\w+)` \|$", (ROOT / "docs" / "faults.md").read_text(), re.M)
    assert {kind for kind, _ in rows} == set(KINDS)
    tests = "".join(p.read_text() for p in (ROOT / "tests" / "integration").glob("test_*.py"))
    for _, name in rows:
        assert f"def {name}(" in tests, name
