"""What ``seatrial cluster`` prints: findings, plans, costs; for people and as documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from seatrial.provision.nebius.make import Planned
    from seatrial.provision.nebius.online import Seen
    from seatrial.provision.nebius.preflight import Looked
    from seatrial.provision.nebius.rules.common import Finding


def document(looked: Looked, seen: Seen | None, findings: list[Finding]) -> dict[str, Any]:
    """What a preflight found, for programs."""
    from seatrial.provision.nebius.preflight import line_of

    return {
        "schema": 1,
        "cluster": looked.case.spec.name,
        "recipe": {"version": looked.case.recipe.version, "commit": looked.case.recipe.commit()},
        "rules": looked.rules,
        "asked_the_cloud": seen is not None,
        "findings": [
            {
                "rule": f.rule, "verdict": f.verdict.value, "found": f.found, "place": f.place, "line": line_of(looked.path, f.place), "fix": f.fix,
            }
            for f in findings
        ],
        "need": looked.need.amounts,
        "cost": looked.cost.to_dict(),
    }  # fmt: skip


def show(looked: Looked, seen: Seen | None, findings: list[Finding]) -> None:
    """What a preflight found, for people."""
    from seatrial.provision.nebius.preflight import line_of

    case = looked.case
    click.echo(f"{case.spec.name}: recipe {case.recipe.version}, {case.region}" + (f", as {seen.who}" if seen else ", the cloud was not asked"))  # fmt: skip
    for f in findings:
        line = line_of(looked.path, f.place)
        click.echo(f"\n{f.verdict.value}  {f.rule}: {f.found}\n      at   {f.place}" + (f" ({looked.path}:{line})" if line else "") + f"\n      fix  {f.fix}")  # fmt: skip
    counts = {v: sum(f.verdict.value == v for f in findings) for v in ("FAIL", "WARN", "UNMEASURED")}
    click.echo(f"\n{looked.rules} rules: {counts['FAIL']} failed, {counts['WARN']} warnings" + (f", {counts['UNMEASURED']} not measured" if counts["UNMEASURED"] else ""))  # fmt: skip
    show_cost(looked)


def show_cost(looked: Looked) -> None:
    """What it would cost."""
    cost = looked.cost
    click.echo(f"costs about ${cost.hour:,.2f} an hour, ${cost.hour * 24:,.0f} a day (list prices of {cost.to_dict()['prices_of']}, without taxes):")  # fmt: skip
    for what, hour in cost.lines:
        click.echo(f"  {hour:>9,.2f}  {what}")
    for what in cost.unpriced:
        click.echo(f"          ?  {what}: no price is known")
    click.echo(f"  of that, {cost.stays:,.2f} an hour for file systems goes on when no node runs")


def show_plan(planned: Planned) -> None:
    """What would happen, what destroys first."""
    adopted = {f.change.address: f.thing for f in planned.adopted}
    rows = [
        (c.action.upper(), c.type.removeprefix("nebius_"), c.name, c.detail, c.address) for c in planned.real
    ]
    width = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    for action, kind, name, detail, address in rows:
        more = f"is there: {adopted[address].id}" if address in adopted and action == "ADOPT" else detail
        click.echo(f"{action:<{width[0]}}  {kind:<{width[1]}}  {name:<{width[2]}}  {more}".rstrip())
    counts: dict[str, int] = {}
    for change in planned.real:
        counts[change.action] = counts.get(change.action, 0) + 1
    noise = len(planned.changes) - len(planned.real)
    words = ", ".join(f"{count} to {action}" for action, count in counts.items()) or "nothing to do"
    click.echo(words + (f" ({noise} that the recipe does each time are not shown)" if noise else ""))
    for change, why, fix in planned.refused:
        click.echo(f"REFUSED  {change.address}: {why}\n         fix  {fix}")
    for finding in planned.over:
        click.echo(f"REFUSED  {finding.found}\n         fix  {finding.fix}")


def planned_document(looked: Looked, planned: Planned) -> dict[str, Any]:
    """What would happen, for programs."""
    return {
        "schema": 1,
        "cluster": looked.case.spec.name,
        "changes": [
            {"action": c.action, "type": c.type, "name": c.name, "address": c.address, "detail": c.detail}
            for c in planned.real
        ],
        "adopted": [
            {"address": f.change.address, "id": f.thing.id, "begun_here": f not in planned.strange}
            for f in planned.adopted
        ],
        "refused": [{"address": c.address, "why": why, "fix": fix} for c, why, fix in planned.refused]
        + [{"address": f.place, "why": f.found, "fix": f.fix} for f in planned.over],
        "cost": looked.cost.to_dict(),
    }
