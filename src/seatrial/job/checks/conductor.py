"""Leads an acceptance test from the first node: one step after the other, on the nodes that still take part.

Each node has a crew (`job.checks.crew`), also this one. A node that does not answer, a probe that hangs and a rank that dies
are findings of the test, not failures of it: they are written down, and the rest goes on without that node.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import shutil
import signal
import socket
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from types import FrameType
from typing import Any

from seatrial import command
from seatrial.errors import ExitCode, PlatformError, SeatrialError
from seatrial.job.checks import culprit
from seatrial.job.checks.again import MOST, steps_again
from seatrial.job.checks.layout import Layout, Master
from seatrial.job.checks.orders import End, Orders, Starts
from seatrial.job.checks.steps import Step, steps
from seatrial.job.exit import write_exit
from seatrial.job.gang import free_port
from seatrial.job.link import Lead, Meeting, Wire
from seatrial.job.processes import adopt_orphans, end_descendants
from seatrial.runs import samples
from seatrial.runs.clock import now
from seatrial.runs.files import append_json_line, read_json
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan
from seatrial.runs.samples import Sample
from seatrial.spec import injections
from seatrial.spec.checks import CheckSpec

_REHEARSAL_PATIENCE_S = 20.0
_LEAST_PATIENCE_S = 60.0
_GATE_S = 300.0
_PINGS = 5
_PING_S = 5.0
_REAL_WORK = 4
_REHEARSAL_SLOWER = 3
"""Pretend nodes share the cores of one machine."""
_FOR_SUSPECTS = 0.6
"""Share of the suite's time after which nothing is measured again: what comes after must have its turn."""
_TRIES = 3
"""Of a step between nodes, each without the node that failed the one before."""


class Stopped(Exception):
    """Somebody wants the test to end."""


class Conductor:
    """One attempt of an acceptance test.

    Args:
        plan: the attempt's.
        meeting: where the crews meet, as the platform says; None where all is on this machine.
        say: prints a line.
    """

    def __init__(self, plan: LaunchPlan, meeting: Meeting | None, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._say = say
        paths = RunPaths(plan.run_dir)
        self._paths = paths.attempt(plan.attempt)
        self._spec = CheckSpec.model_validate(read_json(paths.spec))
        self._faults = [injections.parse(word) for word in self._spec.inject]
        patience_s = max(_LEAST_PATIENCE_S, self._spec.suite.probe_timeout_s)
        self._meeting = replace(meeting, patience_s=patience_s) if meeting is not None else self._here()
        self._names = self._name_nodes(named=meeting is not None)
        self._layout = Layout(plan, self._spec, self._names)
        self._wires: dict[int, Wire] = {}
        self._addresses: dict[int, str] = {}
        self._out: dict[int, str] = {}
        """Nodes that take no more part, and why."""
        self._peak_tflops: float | None = None
        """Of the GPUs in bf16, as the judge knows them."""
        self._stop: int | None = None
        self._started = now()
        self._began = time.monotonic()

    def run(self) -> ExitCode:
        """The whole test; the exit code says whether it was carried out, not what it found."""
        self._paths.logs.mkdir(parents=True, exist_ok=True)
        self._paths.rank_events(0).parent.mkdir(parents=True, exist_ok=True)
        adopt_orphans()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._on_signal)
        failure, lead = None, None
        try:
            lead = Lead(self._meeting)
            crews = self._start_crews()
            self._check_in(lead)
            self._measure_clocks()
            self._run_steps()
            self._event("ended", text="the test is over")
            self._let_go(crews)
        except Stopped:
            self._say("asked to stop")
        except SeatrialError as error:
            self._say(f"error: {error}")
            failure = error.to_dict() | {"rank": None, "last_lines": []}
        finally:
            if lead is not None:
                lead.close()
            end_descendants(grace_s=1.0)
            # What nodes wrote there for each other to read.
            shutil.rmtree(self._paths.root / "shared", ignore_errors=True)
        return self._write_exit(failure)

    def _here(self) -> Meeting:
        return Meeting("127.0.0.1", free_port(), secrets.token_hex(16), patience_s=_REHEARSAL_PATIENCE_S)

    def _name_nodes(self, *, named: bool) -> dict[int, str]:
        if named and self._meeting.hosts:
            return dict(enumerate(self._meeting.hosts))
        if self._spec.rehearse:
            return {node_rank: f"pretend-{node_rank}" for node_rank in range(self._plan.nodes)}
        return {0: socket.gethostname()}

    def _start_crews(self) -> list[command.Process]:
        """Those that no scheduler starts: this node's, and in a rehearsal all."""
        env = os.environ | {
            "SEATRIAL_LEAD": f"{self._meeting.address}:{self._meeting.port}",
            "SEATRIAL_LINK_TOKEN": self._meeting.token,
            "SEATRIAL_HOSTS": ",".join(self._names.values()),
            "SEATRIAL_CHECK_IN_S": str(self._meeting.patience_s),
        }
        return [
            command.start(
                [self._plan.python, "-m", "seatrial.job.checks.crew", str(self._plan.run_dir),
                 "--attempt", str(self._plan.attempt), "--node-rank", str(node_rank)],
                log=self._paths.launcher_log("crew", node_rank), env=env, cwd=self._plan.cwd,
            )
            for node_rank in (range(self._plan.nodes) if self._spec.rehearse else [0])
        ]  # fmt: skip

    def _check_in(self, lead: Lead) -> None:
        every = range(self._plan.nodes)
        self._event("checking", text=f"waiting for {self._plan.nodes} nodes")

        def refuse(node_rank: int, error: PlatformError) -> None:
            if node_rank in every:
                self._leave_out(node_rank, f"{error.what} ({error.evidence})")

        expected = {"run_id": self._plan.run_id, "attempt": self._plan.attempt}
        hellos = lead.gather(every, expected, refuse, lambda: self._stop is not None)
        self._keep_going()
        for node_rank in every:
            if node_rank in hellos:
                self._wires[node_rank] = lead.wires[node_rank]
                self._addresses[node_rank] = hellos[node_rank]["address"]
                name, made_of = self._names[node_rank], hellos[node_rank]["hardware"]
                self._record(
                    Sample(check="report", metric="answers", node=name, value=True),
                    Sample(check="report", metric="hardware", node=name, value=made_of),
                )
            elif node_rank not in self._out:
                self._leave_out(node_rank, f"did not check in within {self._meeting.patience_s:.0f} s")
        self._say(f"{len(hellos)} of {self._plan.nodes} nodes are here")

    def _measure_clocks(self) -> None:
        """Each node's clock against this one's, by the exchange that took the least time (RFC 5905, section 8)."""
        if "clock" not in self._spec.suite.checks:
            return
        orders = self._orders()
        for node_rank in self._members():
            best: tuple[float, float] | None = None
            for _ in range(_PINGS):
                answer = orders.ask(node_rank, {"do": "time", "sent": time.time()}, "time", _PING_S)
                if answer is None:
                    break
                here = time.time()
                spent = here - answer["sent"]
                if best is None or spent < best[0]:
                    best = spent, answer["here"] - (answer["sent"] + here) / 2
            detail: dict[str, Any] = {} if best is None else {"round_trip_s": round(best[0], 6)}
            offset_s = None if best is None else best[1]
            for fault in self._faults:
                if fault.kind == "slow-clock" and fault.node == node_rank and offset_s is not None:
                    offset_s += float(fault.value or 60)
                    detail["injected"] = "slow-clock"
            self._record(
                Sample(
                    check="clock", metric="clock_offset_s", node=self._names[node_rank], unit="s",
                    value=None if offset_s is None else round(offset_s, 6), detail=detail,
                    reason="" if best else "the node did not answer",
                )
            )  # fmt: skip

    def _run_steps(self) -> None:
        planned = steps(self._spec, nodes=self._plan.nodes, nproc=self._plan.nproc)
        for phase, of_phase in itertools.groupby(planned, key=lambda step: step.phase):
            done = []
            for step in of_phase:
                if phase == _REAL_WORK and self._peak_tflops is not None:
                    step = replace(step, options={**step.options, "peak_tflops": self._peak_tflops})
                if self._spent() > 1:
                    self._skip(step, f"the suite's limit of {self._spec.suite.limit_s:.0f} s was over")
                    continue
                self._run_step(step, self._members())
                done.append(step)
            self._pass_gate(phase, done)

    def _spent(self) -> float:
        """How much of the suite's time is over, as a share."""
        slower = _REHEARSAL_SLOWER if self._spec.rehearse else 1
        return (time.monotonic() - self._began) / (self._spec.suite.limit_s * slower)

    def _run_step(self, step: Step, members: list[int]) -> None:
        if not members:
            self._skip(step, "no node is left")
            return
        if step.world == "all":
            self._run_world(step, members)
            return
        before = self._layout.lines(step, members)
        ends = [end for end in self._carry_out(step, members, self._starts(step, members)) if end.failed]
        begun = self._begun(step, members, before)
        for node_rank in sorted({end.node_rank for end in ends}):
            here = [end for end in ends if end.node_rank == node_rank]
            first = culprit.find(here, begun) if step.world == "node" else None
            for end in here if first is None else [first]:
                self._blame(step, node_rank, end.gpu, end.about)

    def _begun(self, step: Step, members: list[int], before: culprit.Counts) -> culprit.Counts:
        return {who: count - before[who] for who, count in self._layout.lines(step, members).items()}

    def _run_world(self, step: Step, wanted: list[int]) -> None:
        for _ in range(_TRIES):
            members = [node_rank for node_rank in wanted if node_rank not in self._out]
            least = 1 if step.phase == _REAL_WORK else 2
            if len(members) < least:
                self._skip(step, f"{len(members)} nodes are left")
                return
            before = self._layout.lines(step, members)
            ends = self._carry_out(step, members, self._starts(step, members))
            if not any(end.failed for end in ends):
                return
            found = culprit.find(ends, self._begun(step, members, before))
            if found is None:
                told = "; ".join(dict.fromkeys(end.about for end in ends if end.failed))
                self._skip(step, f"it failed on every rank alike: {told[:300]}")
                return
            self._blame(step, found.node_rank, found.gpu, found.about)
            self._leave_out(found.node_rank, f"its probe {step.program} {found.about}", record=False)

    def _carry_out(self, step: Step, members: Collection[int], starts: Starts) -> list[End]:
        """Starts a step's processes and waits for their ends."""
        many = f" on {len(members)} nodes" if len(members) > 1 else f" on {self._names[next(iter(members))]}"
        again = f", repetition {step.repeat + 1}" if self._spec.repeat > 1 and step.phase else ""
        self._say(f"{step.title}{many}{again}")

        def waiting(left: list[int]) -> None:
            names = ", ".join(self._names[node_rank] for node_rank in left[:3])
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            tail = f"; waiting for {names}{more}" if 0 < len(left) < len(members) else ""
            self._event("checking", text=f"{step.title}{many}{again}{tail}")

        waiting([])
        orders = self._orders()
        slower = _REHEARSAL_SLOWER if self._spec.rehearse else 1
        ends = orders.carry_out(starts, step.timeout_s * slower, world=step.world, waiting=waiting)
        for node_rank, why in orders.lost.items():
            self._leave_out(node_rank, f"its agent is gone: {why}")
        self._keep_going()
        return ends

    def _starts(self, step: Step, members: list[int]) -> Starts:
        if step.world == "none":
            return self._layout.starts(step, members, {})
        alone = step.world == "node"
        return self._layout.starts(
            step, members, {m: self._master_of(m, alone=alone) for m in (members if alone else members[:1])}
        )

    def _master_of(self, node_rank: int, *, alone: bool) -> Master:
        address = "127.0.0.1" if alone or self._spec.rehearse else self._addresses[node_rank]
        answer = self._orders().ask(node_rank, {"do": "port"}, "port", _PING_S)
        return address, free_port() if answer is None else int(answer["port"])

    def _pass_gate(self, phase: int, done: list[Step]) -> None:
        """Measures again who looks slow, then leaves out who must not take part in what follows, both by the judge."""
        answer = self._ask_judge(phase)
        for _ in range(MOST):
            again = list(steps_again(answer, done, {self._names[m]: m for m in self._members()}))
            if not again or self._spent() > _FOR_SUSPECTS:
                break
            for step, suspects in again:
                self._event("note", text=f"measured again: {', '.join(self._names[m] for m in suspects)}")
                # What pretend nodes reach changes with this machine's load: they are compared within one moment.
                alike = self._spec.rehearse and step.world != "all"
                self._run_step(step, self._members() if alike else suspects)
            answer = self._ask_judge(phase)
        by_name = {name: node_rank for node_rank, name in self._names.items()}
        for name, reason in answer["leave_out"].items():
            if name in by_name and by_name[name] not in self._out:
                self._leave_out(by_name[name], reason, record=False)

    def _ask_judge(self, phase: int) -> dict[str, Any]:
        profile = "rehearsal" if self._spec.rehearse else "gpu" if self._plan.device == "cuda" else "cpu"
        argv = [self._plan.python, "-m", "seatrial.check.gate", str(self._plan.run_dir), str(self._plan.attempt),
                "--after", str(phase), "--nodes", ",".join(self._names.values()), "--profile", profile, "--suspects"]  # fmt: skip
        self._keep_going()
        try:
            done = command.run(argv, timeout_s=_GATE_S, cwd=self._plan.cwd)
            answer = json.loads(done.stdout.splitlines()[-1])
        except (PlatformError, ValueError, IndexError) as error:
            raise PlatformError(
                "the findings so far can't be judged", evidence=f"after phase {phase}: {error}"
            ) from error
        self._peak_tflops = answer.get("peak_tflops")
        return dict(answer)

    def _leave_out(self, node_rank: int, reason: str, *, record: bool = True) -> None:
        if node_rank in self._out:
            return
        self._out[node_rank] = reason
        name = self._names[node_rank]
        self._say(f"{name} takes no further part: {reason}")
        self._event("note", text=f"{name} takes no further part: {reason}")
        if record:
            self._record(Sample(check="report", metric="answers", node=name, reason=reason))

    def _blame(self, step: Step, node_rank: int, gpu: int | None, about: str) -> None:
        sample = Sample(
            check="report", metric=step.program, node=self._names[node_rank], gpu=gpu, repeat=step.repeat,
            reason=f"its probe {step.program} {about}",
        )  # fmt: skip
        self._record(sample)
        self._say(f"{sample.node}{'' if gpu is None else f', GPU {gpu}'}: {sample.reason}")

    def _skip(self, step: Step, reason: str) -> None:
        self._say(f"{step.title}: not measured: {reason}")
        self._event("note", text=f"{', '.join(step.checks)}: not measured: {reason}")
        self._record(
            *(
                Sample(
                    check=check, metric=check, node=self._names[node_rank], repeat=step.repeat, reason=reason
                )
                for check in step.checks
                for node_rank in self._members()
            )
        )

    def _members(self) -> list[int]:
        return [node_rank for node_rank in sorted(self._wires) if node_rank not in self._out]

    def _orders(self) -> Orders:
        return Orders({node_rank: self._wires[node_rank] for node_rank in self._members()}, self._asked)

    def _asked(self, number: int | None) -> bool:
        """Notes that another node was asked to stop; whether somebody was."""
        self._stop = self._stop or number
        return self._stop is not None

    def _keep_going(self) -> None:
        if self._stop is not None:
            raise Stopped

    def _record(self, *found: Sample) -> None:
        samples.append(self._paths.samples / "conductor.jsonl", found)

    def _event(self, name: str, **facts: Any) -> None:
        append_json_line(self._paths.rank_events(0), {"event": name, "time": now(), **facts})

    def _let_go(self, crews: list[command.Process]) -> None:
        for node_rank in self._members():
            try:
                self._wires[node_rank].send({"do": "close"})
            except EOFError:
                continue
        for crew in crews:
            crew.wait(2.0)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop = self._stop or number

    def _write_exit(self, failure: dict[str, Any] | None) -> ExitCode:
        if failure is not None:
            outcome, code = "failed", ExitCode(failure["exit_code"])
        elif self._stop is not None:
            by_user = self._stop == signal.SIGINT
            outcome = "interrupted" if by_user else "preempted"
            code = ExitCode.INTERRUPTED if by_user else ExitCode.PREEMPTED
        else:
            outcome, code = "completed", ExitCode.OK
        stage = {"name": "check", "started": self._started, "ended": now()}
        write_exit(
            self._paths, self._plan, outcome, code, started=self._started, stages=[stage], failure=failure
        )
        return code
