"""Which attempt a start of a pod is: the first of its job, or the next one of a run that was asked to leave before.

The run's directory tells: an attempt has a plan, a mark of each pod that took part, and at its end a record.
"""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from seatrial.backends.ssh.store import Store
from seatrial.errors import ExitCode, PlatformError
from seatrial.runs.clock import now
from seatrial.runs.ends import end_failure, end_record
from seatrial.runs.files import read_json, write_json, write_text
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan, plan_of, plan_path, read_plan, write_plan

CARGO_FILES = ("spec.json", "manifest.json", "evidence.jsonl")
"""Of the run, beside its plan: what whoever submits it has written."""
_POLL_S = 0.2
_GONE = re.compile(r"the agent of node \d+ (\(\S+\) )?is gone")
_PART = re.compile(r"(code|data)-([0-9a-f]{64})\.(\d{4})")


def say(text: str) -> None:
    """One line of the pod's log."""
    print(f"{now()} pod: {text}", flush=True)  # noqa: T201 - the pod's log


class Start:
    """One start of one pod.

    Args:
        paths: the run's, on the volume.
        first: the attempt that the job was submitted for.
        node_rank: of the pod.
        pod: its name, which no other start has.
        node: the machine that it is on.
        handle: of the job.
        cargo: directory with the run's own files, as they were sent along.
        parcels: directory with code and data, as they were sent along.
    """

    def __init__(
        self,
        paths: RunPaths,
        first: int,
        node_rank: int,
        pod: str,
        node: str,
        handle: str,
        cargo: Path,
        parcels: Path,
    ) -> None:
        self._paths, self._first, self._rank, self._pod = paths, first, node_rank, pod
        self._handle, self._cargo, self._parcels = handle, cargo, parcels
        self._me = f"{pod}\n{node}\n"
        self.ended: dict[str, Any] | None = None
        """The run's last word, where it has ended already: a pod that was started again in vain."""

    def cargo_plan(self) -> LaunchPlan:
        """The plan that the job was submitted for."""
        data = read_json(self._cargo / "plan.json")
        if data is None:
            raise PlatformError("nothing was sent along", evidence=f"there is no {self._cargo / 'plan.json'}")
        return plan_of({**data, "run_dir": str(self._paths.root)})

    def begin(self, bring_back: Callable[[], None]) -> LaunchPlan | None:
        """The first pod's: the attempt that this start is, ready to run; None where the run has ended.

        Args:
            bring_back: has what the run's mirror has of it, where nothing else keeps it.
        """
        plan = self.cargo_plan()
        most = int(plan.platform["spec"]["max_requeues"])
        bring_back()
        self._unpack()
        index = self._first
        while True:
            attempt = self._paths.attempt(index)
            ended = read_json(attempt.exit)
            if ended is None:
                if not self._mark(index, 0).exists():
                    break
                what = "the pod was started again before the attempt could say anything: a node failed, or time was short"
                ended = end_record(index, "lost", ExitCode.PLATFORM, now(), end_failure(what))
                self._goes_on(index, ended)
            elif "job" not in ended and ended["outcome"] == "preempted":
                self._goes_on(
                    index, ended
                )  # its agents saved, and the pod's grace was over before it could say more
            if "continues" not in ended:
                self.ended = ended
                return None
            index += 1
            if index - self._first > most:
                what = f"its pods were started again {most} times"
                self.ended = end_record(
                    index, "failed", ExitCode.PLATFORM, now(), end_failure(what, "kubernetes.max_requeues")
                )
                self._paths.attempt(index).root.mkdir(parents=True, exist_ok=True)
                write_json(
                    self._paths.attempt(index).exit,
                    {**self.ended, "job": {"handle": self._handle, "pod": self._pod}},
                )
                return None
        plan = plan if index == self._first else plan.for_attempt(index)
        self._paths.attempt(index).logs.mkdir(parents=True, exist_ok=True)
        if index == self._first:
            for name in CARGO_FILES:
                self._take(name)
        write_text(self._mark(index, 0), self._me)
        write_plan(plan)  # last: the other pods wait for it
        return plan

    def _goes_on(self, index: int, ended: dict[str, Any]) -> None:
        """Writes down that an attempt is not the run's last."""
        ended |= {
            "job": {"handle": self._handle, "pod": self._pod},
            "continues": {"handle": self._handle, "how": "the cluster starts its pods again"},
        }
        write_json(self._paths.attempt(index).exit, ended)

    def join(self, patience_s: float, given_up: Callable[[], bool]) -> LaunchPlan | None:
        """Another pod's: the attempt that the first pod has begun and that no earlier start of this pod took part in.

        Raises:
            PlatformError: the first pod did not come in time.
        """
        until = time.monotonic() + patience_s
        index = self._first
        while time.monotonic() < until and not given_up():
            ended = read_json(self._paths.attempt(index).exit)
            if ended is not None and "job" in ended and "continues" not in ended:
                self.ended = ended
                return None
            mark = self._mark(index, self._rank)
            if ended is not None or mark.exists():
                if ended is not None and "continues" in ended:
                    index += 1
                    continue
            elif plan_path(self._paths.root, index).exists():
                write_text(mark, self._me)
                return read_plan(self._paths.root, index)
            time.sleep(_POLL_S)
        if given_up():
            return None
        raise PlatformError(
            "the first pod has not begun", evidence=f"waited {patience_s:.0f} s for {plan_path(self._paths.root, index)}",
            remedy="seatrial runs why RUN",
        )  # fmt: skip

    def nodes(self, plan: LaunchPlan, patience_s: float, given_up: Callable[[], bool]) -> list[str]:
        """The machines that the pods of an attempt are on, by node rank; of those that are not there in time, no more than that."""
        until = time.monotonic() + patience_s
        names: dict[int, str] = {}
        while len(names) < plan.nodes:
            for node_rank in set(range(plan.nodes)) - names.keys():
                mark = self._mark(plan.attempt, node_rank)
                if mark.exists():
                    names[node_rank] = mark.read_text(encoding="utf-8").split("\n")[1]
            if time.monotonic() > until or given_up():
                break
            time.sleep(_POLL_S)
        return [names.get(node_rank) or f"pod-{node_rank}" for node_rank in range(plan.nodes)]

    def _take(self, name: str) -> None:
        """A file of the cargo; evidence only where it goes on from what is here, so that no row is lost."""
        try:
            sent = (self._cargo / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        path = self._paths.root / name
        if name.endswith(".jsonl") and path.exists():
            here = path.read_text(encoding="utf-8")
            if not sent.startswith(here):
                known = set(here.splitlines())
                sent = here + "".join(f"{line}\n" for line in sent.splitlines() if line not in known)
        write_text(path, sent)

    def _mark(self, index: int, node_rank: int) -> Path:
        return self._paths.attempt(index).root / f".node_{node_rank:05d}"

    def _unpack(self) -> None:
        """Brings code and data onto the volume, unless they are there; equal ones are kept once."""
        found: dict[tuple[str, str], list[Path]] = {}
        for path in sorted(self._parcels.glob("*")) if self._parcels.is_dir() else []:
            part = _PART.fullmatch(path.name)
            if part is not None:
                found.setdefault((part[1], part[2]), []).append(path)
        store = Store.at(str(self._paths.root.parent.parent))
        for (kind, sha256), parts in found.items():
            if not store.path(kind, sha256).is_dir():
                store.receive(kind, sha256, unzipped(parts))


def unzipped(parts: list[Path]) -> Iterator[bytes]:
    """The stream that was cut into these files, compressed."""
    inflate = zlib.decompressobj(wbits=31)
    for part in parts:
        yield inflate.decompress(part.read_bytes())
    yield inflate.flush()


def lost_a_node(ended: dict[str, Any]) -> bool:
    """Whether an attempt failed since a pod was gone with its agent: whether the run may go on, the cluster decides."""
    return bool(ended["failure"] and _GONE.search(str(ended["failure"].get("what"))))
