"""What goes wrong with a cluster 20 to 60 minutes after `terraform apply` began, found in a second before it.

Each rule's docstring begins with its number in the list that they were collected in, where it has one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from seatrial.provision.nebius.rules import access, machines, storage
from seatrial.provision.nebius.rules.common import RULES, Case, Finding

__all__ = ["RULES", "Case", "Finding", "judge"]
assert access and machines and storage  # they register their rules


def judge(case: Case) -> Iterator[Finding]:
    """All that the rules find, failures first."""
    found = dict.fromkeys(
        replace(finding, rule=name) for name, check in RULES.items() for finding in check(case)
    )
    yield from sorted(found, key=lambda finding: finding.verdict.value != "FAIL")
