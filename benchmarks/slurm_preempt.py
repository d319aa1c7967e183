"""One run, preempted again and again: no step may be lost, and the weights must be those of a run that nobody disturbed.

    eval "$(python -m tests.slurm up)"     # accounting on: QOS low is preempted by high
    benchmarks/slurm_preempt.py --times 100

The run has a CPU rank on each of two nodes, and saves on its own only at the end. Every so often one of three things asks
it to go: a job of a higher QOS that needs its nodes, ``scontrol requeue``, or the same with a preemption's grace time. What
must hold each time: the attempt says that it was preempted; the next one starts from the very step at which it stopped; nothing
of it is alive; and at the end the weights' hash is that of the same recipe on this machine with as many ranks.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from first_step import make_inputs

from seatrial.runs import commit
from seatrial.runs.files import read_json, read_json_lines
from seatrial.runs.paths import RunPaths

SEATRIAL = [sys.executable, "-m", "seatrial"]
PATIENCE_S = 300.0
RIVAL = "#!/bin/bash\nsleep 1\n"


def words(directory: Path, steps: int) -> list[str]:
    return ["train", "--model", str(directory / "encoder"), "--data", str(directory / "data.csv"), "--gpus", "0",
            "--batch-size", "4", "--max-steps", str(steps), "--epochs", "100000", "--max-length", "32", "--train-only",
            "train.checkpoint_every=1000000", "train.eval_every=1000000", "train.log_every=5"]  # fmt: skip


def slurm(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def wait_until(what: str, condition: Callable[[], Any]) -> Any:
    until = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        if time.monotonic() > until:
            raise SystemExit(f"WRONG  {what}: not within {PATIENCE_S:.0f} s")
        time.sleep(0.1)
    return found


def started_from(run: RunPaths, attempt: int) -> int | None:
    """The step from which an attempt trains; None before it does."""
    rows = read_json_lines(run.attempt(attempt).rank_events(0))
    return next((row["from_step"] for row in rows if row["event"] == "training"), None)


def last_step(run: RunPaths, attempt: int) -> int:
    rows = [
        row for row in read_json_lines(run.metrics) if row["attempt"] == attempt and row["kind"] == "train"
    ]
    return int(rows[-1]["step"]) if rows else 0


def saved_step(run: RunPaths) -> int:
    steps = [
        int(p.name[5:])
        for p in run.checkpoints.glob("step_*")
        if p.name[5:].isdigit() and commit.is_committed(p)
    ]
    return max(steps, default=0)


class Preemptions:
    """Strikes the job of one run."""

    def __init__(self, directory: Path, job: str, rng: random.Random) -> None:
        self._rival = directory / "rival.sh"
        self._rival.write_text(RIVAL)
        self._job = job
        self._rng = rng

    def strike(self) -> str:
        """Asks the run to go; says how."""
        kind = self._rng.choice(["qos", "qos with grace", "requeue"])
        if kind == "requeue":
            slurm("scontrol", "requeue", self._job)
            return kind
        grace = 30 if "grace" in kind else 0
        slurm("sacctmgr", "-i", "modify", "qos", "low", "set", f"GraceTime={grace}")
        slurm("sbatch", "--qos=high", "--nodes=2", "--exclusive", "--output=/dev/null", str(self._rival))
        return kind

    def hurry(self) -> None:
        """Slurm lets a requeued job wait for as long as a credential lives."""
        subprocess.run(
            ["scontrol", "update", f"JobId={self._job}", "StartTime=now"], check=False, capture_output=True
        )


def begins(run: RunPaths, attempt: int) -> int:
    """Waits until an attempt trains; from which step."""
    found = wait_until(
        f"attempt {attempt} trains", lambda: None if (f := started_from(run, attempt)) is None else [f]
    )
    return int(found[0])


def outcome(run: RunPaths, attempt: int) -> str:
    """How an attempt ended, once its job has had its word."""

    def ended() -> str | None:
        record = read_json(run.attempt(attempt).exit)
        return record["outcome"] if record is not None and "job" in record else None

    return str(wait_until(f"attempt {attempt} ends", ended))


def strike(run: RunPaths, strikes: Preemptions, attempt: int) -> str | None:
    """Lets an attempt take some steps, and asks it to go; how, or None when it was done before.

    Raises:
        SystemExit: it did not end as preempted.
    """
    first = begins(run, attempt)
    record = run.attempt(attempt).exit
    wait_until("five new steps", lambda: last_step(run, attempt) > first + 5 or record.exists())
    if record.exists():
        return None
    kind = strikes.strike()
    how = outcome(run, attempt)
    if how not in {"preempted", "completed"}:
        raise SystemExit(f"WRONG  attempt {attempt} after {kind}: {how}")
    return kind if how == "preempted" else None


def again(run: RunPaths, strikes: Preemptions, attempt: int, kind: str) -> int:
    """Waits for the next attempt; the step from which it trains."""

    def started() -> bool:
        strikes.hurry()
        return (run.attempt(attempt + 1).root / "plan.json").exists()

    wait_until(f"attempt {attempt + 1} starts after {kind}", started)
    return begins(run, attempt + 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60, help="no more preemptions after so long")
    args = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="preempt-"))
    make_inputs(directory)
    argv = words(directory, args.steps)
    began = time.monotonic()
    plain = subprocess.run(
        [*SEATRIAL, *argv, "--on", "local", "--nproc", "2", "--runs-dir", str(directory / "plain")],
        capture_output=True,
    )
    if plain.returncode != 0:
        raise SystemExit(plain.stderr.decode())
    expected = commit.weights_sha256(RunPaths(next((directory / "plain").iterdir())).model("trained"))
    print(f"undisturbed: {time.monotonic() - began:.0f} s, {args.steps} steps", flush=True)
    submitted = subprocess.run(
        [*SEATRIAL, *argv, "--on", "slurm", "--qos", "low", "--nodes", "2", "--nproc", "1", "-d", "--runs-dir",
         str(directory / "runs"), f"slurm.max_requeues={args.times + 5}"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    run = RunPaths(directory / "runs" / submitted.stdout.strip())
    job = str(read_json(run.manifest)["attempts"][0]["handle"]).partition("://")[2].partition("/")[0]
    strikes = Preemptions(directory, job, random.Random(args.seed))
    began = time.monotonic()
    wrong: list[str] = []
    kinds: dict[str, int] = {}
    lost, attempt = 0, 0
    while attempt < args.times and time.monotonic() - began < 60 * args.minutes:
        kind = strike(run, strikes, attempt)
        if kind is None:
            break
        kinds[kind] = kinds.get(kind, 0) + 1
        stopped = saved_step(run)
        lost += max(0, last_step(run, attempt) - stopped)
        resumed = again(run, strikes, attempt, kind)
        attempt += 1
        if resumed != stopped:
            wrong.append(f"attempt {attempt} after {kind}: started from step {resumed}, {stopped} was saved")
        print(f"{attempt:3}  {kind:<14}  step {stopped}  {time.monotonic() - began:5.0f} s", flush=True)
    if outcome(run, attempt) != "completed":
        wrong.append(f"attempt {attempt} was {outcome(run, attempt)}")
    found = commit.weights_sha256(run.model("trained"))
    if found != expected:
        wrong.append(f"the weights differ: {found} and {expected}")
    result = {
        "preemptions": attempt,
        "kinds": kinds,
        "steps_lost": lost,
        "wrong": wrong,
        "wall_s": round(time.monotonic() - began),
    }
    print(json.dumps(result))
    raise SystemExit(1 if wrong or lost else 0)


if __name__ == "__main__":
    main()
