"""Making machines ready, verifying that they are, and putting them back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from seatrial import __version__
from seatrial.errors import PlatformError, SpecError
from seatrial.provision.nodes import facts as asking
from seatrial.provision.nodes import remote, script
from seatrial.provision.nodes.facts import Facts
from seatrial.provision.nodes.script import Told
from seatrial.provision.nodes.steps import STAGED, Options, Step, steps
from seatrial.runs.evidence import Evidence, Verdict
from seatrial.spec.fleet import PYTHON

_LIMIT_S = 3600
_SKEW_S = 5.0
_LEAST_FREE_GIB = 10
_SHM_A_GPU_GIB = 1.0
_CHECK = f"""
if [ -x {PYTHON} ]; then printf 'seatrial=%s\\n' "$({PYTHON} -c 'import seatrial; print(seatrial.__version__)' 2>/dev/null)"
printf 'torch=%s\\n' "$({PYTHON} -c 'import torch; print(torch.__version__, torch.cuda.device_count())' 2>/dev/null)"; fi
[ -r {asking.RECORD} ] && while read -r kind sum path; do
    [ "$kind" = file ] || continue
    if [ ! -e "$path" ]; then printf 'file=missing %s\\n' "$path"
    elif [ "$(sha256sum "$path" | cut -d' ' -f1)" != "$sum" ]; then printf 'file=changed %s\\n' "$path"; fi
done <{asking.RECORD}
printf 'end=yes\\n'
"""


@dataclass(frozen=True, slots=True)
class Planned:
    """What would be done on a machine."""

    facts: Facts
    steps: list[Step]
    text: str
    """The script."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done on a machine."""

    facts: Facts
    told: list[Told]

    @property
    def failed(self) -> list[Told]:
        """Steps that failed."""
        return [t for t in self.told if t.outcome == "failed"]

    @property
    def changed(self) -> list[Told]:
        """Steps that changed something."""
        return [t for t in self.told if t.outcome == "changed"]


def plan(host: str, options: Options) -> Planned:
    """What a machine needs.

    Raises:
        UnreachableError: it can't be reached.
        PlatformError: it is none that can be made ready.
    """
    facts = asking.look(host)
    try:
        wanted = steps(facts, options)
    except SpecError as error:
        raise PlatformError(error.what, evidence=error.evidence, remedy=error.remedy) from None
    return Planned(facts, wanted, script.bootstrap(wanted))


def bootstrap(planned: Planned, options: Options) -> Outcome:
    """Carries it out.

    Raises:
        UnreachableError: the machine was lost; the same command goes on.
        PlatformError: the script did not come to its end.
    """
    facts = planned.facts
    if options.package.endswith(".whl"):
        wheel = Path(options.package)
        made = remote.script(facts.host, f"umask 022; mkdir -p {STAGED.rpartition('/')[0]} && umask 077 && mkdir -p {STAGED}", shell=facts.shell)  # fmt: skip
        if made.code != 0:
            raise PlatformError(
                f"{STAGED} can't be made on {facts.host}", evidence=made.stderr.strip()[-300:]
            )
        remote.send(facts.host, f"{STAGED}/{wheel.name}", wheel.read_bytes(), shell=facts.shell)
    said = remote.script(facts.host, planned.text, shell=facts.shell, timeout_s=_LIMIT_S)
    if options.package.endswith(".whl"):
        remote.script(facts.host, f"rm -rf {STAGED}; rmdir {STAGED.rpartition('/')[0]} 2>/dev/null; true", shell=facts.shell)  # fmt: skip
    return Outcome(facts, _ended(facts.host, said))


def undo(host: str) -> Outcome:
    """Takes away what was added, and only that.

    Raises:
        UnreachableError: it can't be reached.
        PlatformError: the script did not come to its end.
    """
    facts = asking.look(host)
    said = remote.script(host, script.undo(), shell=facts.shell, timeout_s=_LIMIT_S)
    return Outcome(facts, _ended(host, said))


def verify(host: str) -> tuple[Facts, list[Evidence]]:
    """Whether a machine is ready, asked anew.

    Raises:
        UnreachableError: it can't be reached.
    """
    facts = asking.look(host)
    said = remote.script(host, _CHECK, timeout_s=180)
    if "end=yes" not in said.stdout:
        raise PlatformError(
            f"{host} did not say how it is", evidence=(said.stderr or said.stdout).strip()[-300:]
        )
    lines = [line.partition("=") for line in said.stdout.splitlines()]
    return facts, list(judge(facts, [(name, value) for name, _, value in lines]))


def judge(facts: Facts, said: list[tuple[str, str]]) -> Iterator[Evidence]:
    """Verdicts over what a machine said; pure."""
    values = dict(said)
    version = values.get("seatrial", "")
    yield _evidence(
        "seatrial",
        version == __version__,
        version or "none",
        __version__,
        f"{PYTHON}",
        "seatrial node bootstrap",
    )
    if facts.has_pci_gpu or facts.gpus:
        yield _evidence("gpus", bool(facts.gpus), len(facts.gpus), "nvidia-smi lists them", "nvidia-smi", "a driver: --driver PACKAGE")  # fmt: skip
        torch = values.get("torch", "").split()
        if facts.gpus and len(torch) == 2:
            yield _evidence("torch_gpus", torch[1] == str(len(facts.gpus)), int(torch[1]), len(facts.gpus), "torch.cuda", "a torch for this driver")  # fmt: skip
        elif facts.gpus:
            yield Evidence(
                check="torch_gpus", verdict=Verdict.UNMEASURED, message="torch is not installed there"
            )
    changed = [value for name, value in said if name == "file"]
    yield _evidence("files", not changed, ", ".join(changed) or "as written", "as written", asking.RECORD, "seatrial node bootstrap")  # fmt: skip
    memlock = facts.values.get("memlock", "")
    need = bool(facts.infiniband or facts.roce)
    if need or memlock:
        yield Evidence(
            check="memlock", verdict=Verdict.PASS if memlock == "unlimited" else Verdict.FAIL if need else Verdict.WARN, measured=memlock,
            expected="unlimited", source="ulimit -l of a new session", message="" if memlock == "unlimited" else "RDMA fails on large models",
        )  # fmt: skip
    expected = max(_SHM_A_GPU_GIB * max(len(facts.gpus), 1), 1.0)
    yield Evidence(
        check="shm", verdict=Verdict.PASS if facts.shm_gib >= expected else Verdict.WARN, measured=round(facts.shm_gib, 1), expected=expected, unit="GiB",
        source="df /dev/shm", message="" if facts.shm_gib >= expected else "mount -o remount,size=…G /dev/shm",
    )  # fmt: skip
    free = int(facts.values.get("root_free_kib") or 0) / 2**20
    yield Evidence(check="disk", verdict=Verdict.PASS if free >= _LEAST_FREE_GIB else Verdict.WARN, measured=round(free, 1), expected=_LEAST_FREE_GIB, unit="GiB", source="df /")  # fmt: skip
    yield Evidence(
        check="clock", verdict=Verdict.PASS if abs(facts.skew_s) <= _SKEW_S else Verdict.WARN, measured=round(facts.skew_s, 1), expected=_SKEW_S, unit="s",
        source="date there and here", message="" if abs(facts.skew_s) <= _SKEW_S else "logs of several nodes would be out of order: install chrony",
    )  # fmt: skip


def _evidence(
    check: str, good: bool, measured: object, expected: object, source: str, remedy: str
) -> Evidence:
    return Evidence(check=check, verdict=Verdict.PASS if good else Verdict.FAIL, measured=measured, expected=expected, source=source, message="" if good else remedy)  # fmt: skip


def _ended(host: str, said: remote.Said) -> list[Told]:
    found = script.told(said.stdout)
    if not script.ended(found):
        last = (said.stderr.strip().splitlines() or said.stdout.strip().splitlines() or ["no word"])[-1]
        raise PlatformError(f"the script did not come to its end on {host}", evidence=f"exit code {said.code}: {last[:300]}", remedy="the same command goes on from there")  # fmt: skip
    return [t for t in found if t.step != "end"]
