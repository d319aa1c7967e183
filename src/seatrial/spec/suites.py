"""Suites of an acceptance test: those that come with Seatrial, and a site's own in YAML.

A file names what it changes of the suite that it begins with::

    base: standard              # quick, standard or full; without it, checks must be given
    name: ours
    checks: [gemm, memory, pairs]
    required: [gemm, pairs]
    gemm_s: 30
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from pathlib import Path

from seatrial.errors import SpecError
from seatrial.spec.checks import CHECKS, SUITES, SuiteSpec, known
from seatrial.spec.document import read_yaml
from seatrial.spec.explain import validate


def read_suite(name: str, *, only: Collection[str] = (), skip: Collection[str] = ()) -> SuiteSpec:
    """A suite by name, or from a file; of its checks, those that are asked for.

    Args:
        name: of a suite that comes with Seatrial, or the path of a YAML file.
        only: checks to run; none are all of the suite's. Checks that it lacks are added.
        skip: checks not to run.

    Raises:
        SpecError: no such suite, file or check; nothing is left to run.
    """
    suite = SUITES[name] if name in SUITES else _from_file(name)
    for word in (*only, *skip):
        try:
            known(word)
        except ValueError as error:
            raise SpecError(str(error), evidence=f"--only {','.join(only)} --skip {','.join(skip)}") from None
    chosen = [check for check in CHECKS if check in (only or suite.checks) and check not in skip]
    if not chosen:
        raise SpecError(
            "no check is left to run", evidence=f"--only {','.join(only)} --skip {','.join(skip)}"
        )
    if tuple(chosen) == suite.checks:
        return suite
    required = tuple(check for check in suite.required if check in chosen)
    return suite.model_copy(update={"checks": tuple(chosen), "required": required})


def _from_file(name: str) -> SuiteSpec:
    path = Path(name)
    if not path.is_file():
        near = difflib.get_close_matches(name, list(SUITES), n=1)
        raise SpecError(
            f"there is no suite {name!r}",
            evidence=f"known: {', '.join(SUITES)}; and it is no file",
            remedy=f"did you mean {near[0]!r}?" if near else "seatrial check quick",
        )
    values = read_yaml(path)
    base = values.pop("base", None)
    if base is not None and base not in SUITES:
        raise SpecError(f"{path}: base is {base!r}", evidence=f"known: {', '.join(SUITES)}")
    under = SUITES[base].model_dump(mode="json") if base is not None else {}
    named = {"name": values.get("name", path.stem)}
    return validate(SuiteSpec, under | values | named, str(path))
