"""All that can be known of a cluster before the cloud is asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from seatrial.command import CommandRunner, run
from seatrial.provision.nebius import adapters, tools
from seatrial.provision.nebius.checkout import Checkout
from seatrial.provision.nebius.keys import NotAKey, PublicKey, read_key
from seatrial.provision.nebius.need import Cost, Need, cost, need
from seatrial.provision.nebius.rules import RULES, Case, Finding, judge
from seatrial.provision.nebius.rules.common import fail
from seatrial.runs.evidence import Verdict
from seatrial.spec.cluster import ClusterSpec, cluster_text, parse_cluster


@dataclass(frozen=True, slots=True)
class Looked:
    """What a look at a ``cluster.yaml`` and its recipe gave."""

    path: Path
    case: Case
    need: Need
    cost: Cost
    tools: list[tools.Tool]
    findings: list[Finding]
    rules: int
    """How many were applied."""

    @property
    def failed(self) -> list[Finding]:
        """What stops it."""
        return [f for f in self.findings if f.verdict is not Verdict.WARN]


def look(
    path: Path, recipe: Path | None = None, *, subnet: str | None = None, runner: CommandRunner = run
) -> Looked:
    """Reads ``cluster.yaml`` and its recipe, and applies all rules; asks no cloud.

    Args:
        path: of ``cluster.yaml``.
        recipe: the checkout; None takes the one that the file names.
        subnet: what the cloud says, where the file is silent.
        runner: runs the programs that are looked at.

    Raises:
        SpecError: no such file, keys that don't exist, no recipe, one of an unknown version.
    """
    spec = parse_cluster(cluster_text(path), str(path))
    checkout = Checkout.find(recipe or _recipe_of(spec, path))
    case = case_of(spec, checkout, path.parent, subnet=subnet)
    found = [*whole(checkout), *judge(case)]
    seen, wrong = tools.check(checkout, runner)
    return Looked(path, case, need(case), cost(case), seen, [*found, *wrong], len(RULES) + 2)


def case_of(spec: ClusterSpec, recipe: Checkout, base: Path, *, subnet: str | None = None) -> Case:
    """What the rules look at."""
    keys: list[PublicKey | ValueError] = []
    for text in spec.ssh_keys:
        try:
            keys.append(read_key(text, base))
        except NotAKey as error:
            keys.append(error)
    _ = recipe.series  # refused here where it is unknown
    sound = [key for key in keys if isinstance(key, PublicKey)]
    rendered = adapters.render(spec, recipe.version, sound, subnet=subnet)
    return Case.of(spec, recipe, rendered, recipe.variables(), keys)


def whole(recipe: Checkout) -> list[Finding]:
    """What the recipe lacks: the usual victims of a copy of a part are the modules outside its own directory."""
    found = []
    for gap in recipe.gaps():
        what = (
            "holds nothing: a stub gives GPU nodes without drivers or network" if gap.stub else "is not there"
        )
        found.append(
            fail(
                f"the recipe's module {gap.module} {what}", f"recipe: {gap.at}",
                f"a whole checkout of the solutions library at the release of {recipe.version} (modules/ beside soperator/); no stubs",
            )
        )  # fmt: skip
    return [replace(f, rule="recipe-incomplete") for f in found]


def _recipe_of(spec: ClusterSpec, path: Path) -> Path:
    from seatrial.errors import SpecError

    if spec.recipe is None:
        raise SpecError(
            "which recipe makes the cluster is not said", evidence=f"{path} has no key recipe, and there is no --recipe",
            remedy="git clone https://github.com/nebius/nebius-solutions-library, check out a release, and pass --recipe nebius-solutions-library/soperator",
        )  # fmt: skip
    return path.parent / Path(spec.recipe).expanduser()


def line_of(path: Path, place: str) -> int | None:
    """The line of ``cluster.yaml`` where a key stands, or the nearest section above it; None for places elsewhere."""
    from ruamel.yaml import YAML

    node: Any = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    line: int | None = None
    for part in place.split("."):
        key: str | int = int(part) if part.isdigit() else part
        try:
            line = node.lc.item(key)[0] + 1 if isinstance(key, int) else node.lc.key(key)[0] + 1
            node = node[key]
        except (KeyError, IndexError, TypeError, AttributeError):
            break
    return line
