"""What a pod runs: ``python -m seatrial.backends.kubernetes.inside RUN_DIR --first-attempt K --node-rank-from VARIABLE …``.

It takes the batch script's place: brings what was sent along onto the volume, starts the node's agent, tells of the run's
files in its own log, and when a preempted run has saved, ends so that the cluster starts the pod again. It needs no access
to the cluster's API, and decides nothing about ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from seatrial import command
from seatrial.backends.kubernetes import courier, starts
from seatrial.backends.kubernetes.courier import Courier
from seatrial.backends.kubernetes.starts import Start, say
from seatrial.errors import ExitCode, PlatformError, SeatrialError, from_dict
from seatrial.runs.afterwards import run_afterwards
from seatrial.runs.clock import now
from seatrial.runs.ends import end_failure, end_record
from seatrial.runs.files import read_json, write_json
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan

_POLL_S = 0.2
_RECORD_S = 30.0
_RESOLVE_S = 600.0
_CHECK_IN_S = 1800
"""How long pods wait for each other: images are large, and nodes may have to come up first."""
_NAMES_S = 300.0
_MIRROR_S = 3600.0
_INSPECT_S = 6 * 3600.0
_LAST_LINES = 20


def main() -> int:
    """Runs the attempt that this start of the pod is; the exit code is what the cluster goes by."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--first-attempt", type=int, required=True)
    parser.add_argument("--node-rank-from", metavar="VARIABLE", required=True)
    parser.add_argument(
        "--lead", metavar="HOST:PORT", required=True, help="where the first pod's agent listens"
    )
    parser.add_argument("--restart-code", type=int, default=int(ExitCode.PREEMPTED))
    parser.add_argument("--handle", required=True, help="of the job")
    parser.add_argument(
        "--tell", action="store_true", help="only print the run's files, for whoever has lost them"
    )
    args = parser.parse_args()
    if args.tell:
        return _tell(args.run_dir, args.first_attempt)
    try:
        return Pod(args, dict(os.environ)).run()
    except SeatrialError as error:
        say(f"error: {error}")
        return int(error.exit_code)


class Pod:
    """One start of one pod.

    Args:
        args: of the command line.
        environment: of the pod.
    """

    def __init__(self, args: argparse.Namespace, environment: dict[str, str]) -> None:
        self._args, self._env = args, environment
        self._rank = int(environment[args.node_rank_from])
        self._paths = RunPaths(args.run_dir)
        self._cargo = Path(environment["SEATRIAL_CARGO"])
        self._signals: list[int] = []
        self._lock = threading.Lock()

    def run(self) -> int:
        """The attempt, from what was sent along to the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._on_signal)
        pod = self._env.get("SEATRIAL_POD", socket.gethostname())
        node = self._env.get("SEATRIAL_NODE_NAME") or socket.gethostname()
        start = self._start = Start(
            self._paths, self._args.first_attempt, self._rank, pod, node, self._args.handle, self._cargo,
            Path(self._env["SEATRIAL_PARCELS"]),
        )  # fmt: skip
        if self._rank == 0:
            plan = start.begin(lambda: self._bring_back(start.cargo_plan()))
        else:
            plan = start.join(_CHECK_IN_S, lambda: bool(self._signals))
        if plan is None:
            return self._exit_code(start.ended)
        say(f"run {plan.run_id}, attempt {plan.attempt}: node {self._rank} of {plan.nodes} is {pod}")
        mine = (
            courier.of_first(plan.nproc)
            if self._rank == 0
            else courier.of_other(plan.attempt, self._rank, plan.nproc)
        )
        told = Courier(self._paths.root, plan.attempt, mine, self._print)
        told.start()
        try:
            return self._attempt(plan)
        finally:
            told.finish(last=self._rank == 0)

    def _attempt(self, plan: LaunchPlan) -> int:
        started = now()
        code, failure = None, None
        try:
            if self._rank == 0 and not self._signals:
                self._prepare(plan)
            if not self._signals:
                code = self._run_agent(plan)
        except SeatrialError as error:
            say(f"error: {error}")
            failure = error.to_dict() | {"rank": None, "last_lines": [], "told": True}
        if self._rank:
            return self._follow_record(plan)
        record = read_json(self._paths.attempt(plan.attempt).exit)
        if record is None or failure is not None:
            record = self._own_record(plan, started, code, failure)
        return self._conclude(plan, record)

    def _prepare(self, plan: LaunchPlan) -> None:
        """Looks at data and model, once a run: on the node, where they are."""
        if self._paths.inputs.exists() or not any(stage.name == "train" for stage in plan.stages):
            return
        say("looking at data and model")
        argv = [plan.python, "-m", "seatrial.job.inspect", str(self._paths.spec), "--prepare"]
        done = command.run(argv, timeout_s=_INSPECT_S, cwd=plan.cwd)
        answer = next((found for line in reversed(done.stdout.splitlines()) if (found := _json(line))), {})
        if "error" in answer:
            raise from_dict(answer["error"])
        if "facts" not in answer:
            raise PlatformError(
                "the data and the model could not be looked at", evidence=(done.stderr.strip() or "nothing was printed")[-400:],
                remedy="does the image have seatrial[train]?",
            )  # fmt: skip
        write_json(self._paths.inputs, answer["facts"]["inputs"])

    def _run_agent(self, plan: LaunchPlan) -> int:
        log = self._paths.attempt(plan.attempt).logs / (
            f"agent_{self._rank:05d}.log" if self._rank else "agent.log"
        )
        host, _, port = self._args.lead.rpartition(":")
        environment = {
            **self._env,
            "SEATRIAL_NODE_RANK": str(self._rank),
            "SEATRIAL_CHECK_IN_S": str(_CHECK_IN_S),
        }
        if plan.nodes > 1 or plan.conducts == "checks":
            address = self._env.get("SEATRIAL_POD_IP") if self._rank == 0 else None
            environment["SEATRIAL_LEAD"] = f"{address or self._address(host)}:{port}"
            if self._rank == 0:
                # A test names nodes in its verdict, and waits to know them; elsewhere names are for messages.
                patience_s = _NAMES_S if plan.conducts == "checks" else 0.0
                names = self._start.nodes(plan, patience_s, lambda: bool(self._signals))
                environment["SEATRIAL_HOSTS"] = ",".join(names)
        if plan.time_limit_s is not None:
            environment["SEATRIAL_DEADLINE"] = str(time.time() + plan.time_limit_s)
        argv = [
            plan.python, "-m", "seatrial.job.agent", str(self._paths.root), "--attempt", str(plan.attempt),
            "--node-rank-from", "SEATRIAL_NODE_RANK",
        ]  # fmt: skip
        process = command.start(argv, log=log, env=environment, cwd=plan.cwd)
        passed_on = False
        while (code := process.wait(_POLL_S)) is None:
            if self._signals and not passed_on:
                passed_on = True
                say(f"asked to leave by {signal.Signals(self._signals[0]).name}: the ranks save and stop")
                process.send_signal(signal.SIGTERM)
        say(f"the agent ended with {code}")
        return code

    def _address(self, host: str) -> str:
        """Of the first pod, whose name is known only some time after it is there."""
        until = time.monotonic() + _RESOLVE_S
        while True:
            try:
                return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
            except OSError as error:
                if time.monotonic() > until or self._signals:
                    raise PlatformError(
                        f"the name of the first pod, {host}, can't be resolved", evidence=str(error),
                        remedy="is there a headless Service of that name, and may the pods ask the DNS?",
                    ) from error  # fmt: skip
                time.sleep(1.0)

    def _own_record(
        self, plan: LaunchPlan, started: str, code: int | None, failure: dict[str, Any] | None
    ) -> dict[str, Any]:
        """For an agent that left none: it was never started, or killed."""
        if failure is None and self._signals:
            return end_record(plan.attempt, "preempted", ExitCode.PREEMPTED, started, None)
        if failure is None:
            log = self._paths.attempt(plan.attempt).logs / "agent.log"
            lines = log.read_text(errors="replace").splitlines()[-_LAST_LINES:] if log.exists() else []
            failure = end_failure(f"the agent ended with {code}, and left no record", str(log), lines)
        return end_record(plan.attempt, "failed", ExitCode(failure["exit_code"]), started, failure)

    def _conclude(self, plan: LaunchPlan, record: dict[str, Any]) -> int:
        """Writes the job's word on the attempt, does what follows, and says whether the pod is to come back."""
        record["job"] = {"handle": self._args.handle, "pod": self._env.get("SEATRIAL_POD")}
        most = int(plan.platform["spec"]["max_requeues"])
        again = record["outcome"] == "preempted" or starts.lost_a_node(record)
        if again and plan.attempt - self._args.first_attempt < most:
            record["continues"] = {"handle": self._args.handle, "how": "the cluster starts its pods again"}
        elif again:
            say(f"not started again: it was {most} times")
        write_json(self._paths.attempt(plan.attempt).exit, record)
        say(
            f"{record['outcome']}, exit code {record['exit_code']}{', goes on' if 'continues' in record else ''}"
        )
        code = int(record["exit_code"])
        if record["outcome"] == "completed":
            code = int(run_afterwards(plan, say))
        self._keep(plan)
        return self._args.restart_code if "continues" in record else code

    def _follow_record(self, plan: LaunchPlan) -> int:
        """How the attempt ended, as the first pod has written it."""
        until = time.monotonic() + _RECORD_S + plan.grace_s
        path = self._paths.attempt(plan.attempt).exit
        while time.monotonic() < until:
            record = read_json(path)
            if record is not None and "job" in record:
                return self._exit_code(record)
            time.sleep(_POLL_S)
        # Its node is lost, or it failed with its pod: the cluster knows, and starts this pod again or ends the job.
        say("the first pod has left no record of the attempt")
        return int(self._args.restart_code)

    def _exit_code(self, record: dict[str, Any] | None) -> int:
        if record is None:
            return self._args.restart_code if self._signals else int(ExitCode.PLATFORM)
        return self._args.restart_code if "continues" in record else int(record["exit_code"])

    def _bring_back(self, plan: LaunchPlan) -> None:
        """Where no volume keeps the run: what its mirror has of earlier attempts."""
        url = self._mirror_of(plan)
        if url is None:
            return
        argv = [plan.python, "-m", "seatrial", "runs", "pull", plan.run_id, "--from", url, "--models"]
        done = command.run([*argv, "--runs-dir", str(self._paths.root.parent)], timeout_s=_MIRROR_S)
        said = (done.stderr or done.stdout).strip().splitlines()
        if done.returncode == int(ExitCode.BAD_REQUEST) and plan.attempt == 0:
            say(f"{url} has nothing of this run yet")
        elif done.returncode:
            # To begin anew would throw away what is there.
            raise PlatformError(
                "the run could not be brought back from its mirror", evidence="\n".join(said[-5:])
            )
        else:
            say(f"brought back from {url}")

    def _keep(self, plan: LaunchPlan) -> None:
        """Where no volume keeps the run: all of it goes to its mirror before the pod does."""
        if self._mirror_of(plan) is not None:
            done = command.run(
                [plan.python, "-m", "seatrial", "runs", "push", "--warn-only", str(self._paths.root)],
                timeout_s=_MIRROR_S,
            )
            for line in (done.stdout + done.stderr).splitlines():
                say(line)

    def _mirror_of(self, plan: LaunchPlan) -> str | None:
        if plan.platform["spec"]["claim"] is not None:
            return None
        return (read_json(self._cargo / "spec.json") or {}).get("artifacts")

    def _print(self, line: bytes) -> None:
        with self._lock:
            sys.stdout.buffer.write(line + b"\n")
            sys.stdout.buffer.flush()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)


def _tell(run_dir: Path, attempt: int) -> int:
    """Prints what a run's pods have told, once more, for whoever missed some of it."""

    def write(line: bytes) -> None:
        sys.stdout.buffer.write(line + b"\n")

    Courier(run_dir, attempt, lambda name: name != "manifest.json", write).tell(
        json.loads(os.environ.get("SEATRIAL_KNOWN") or "{}")
    )
    sys.stdout.buffer.flush()
    return 0


def _json(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


if __name__ == "__main__":
    sys.exit(main())
