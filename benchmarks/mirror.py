"""Mirroring a run to an S3 server on loopback, against `aws s3 sync`; and what that costs a training beside it.

    benchmarks/mirror.py --gib 2 --files 64 --rounds 3 --aws /path/to/aws

Both send the same files to an empty prefix, in turn, each as a fresh process; the ratio is of wall time. Seatrial hashes each file, has each
part checked and asks the far side what it has; `aws` computes a CRC. The server (moto) is one Python process and bounds both.

The training beside it is a loop of matrix products on one thread, whose steps are timed with and without the mirror's own process
and the server, both scheduled as the mirror's process schedules itself (SCHED_IDLE), in turn.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from seatrial.runs import commit
from seatrial.testing.s3 import S3Server

sys.path.insert(0, str(Path(__file__).parents[1]))
from step_loop import STEPS

from tests.trees import make_run


def seconds(argv: list[str], env: dict[str, str]) -> float:
    began = time.perf_counter()
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return time.perf_counter() - began


def steps(env: dict[str, str], seconds_: float) -> tuple[float, float]:
    done = subprocess.run(
        [sys.executable, "-c", STEPS, str(seconds_)],
        env=env | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    middle, mean = done.stdout.split()
    return float(middle), float(mean)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--files", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--aws", default="aws")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="seatrial-mirror-") as directory, S3Server() as server:
        server.make_bucket("models")
        env = (
            os.environ
            | server.env
            | {"SEATRIAL_RUNS_DIR": str(Path(directory, "runs")), "AWS_CONFIG_FILE": "/dev/null"}
        )
        run = make_run(Path(directory, "runs"), "r-1")
        aside = commit.start(run.checkpoints / "step_000100")
        for number in range(args.files):
            (aside / f"rank_{number:05d}.safetensors").write_bytes(
                os.urandom(int(args.gib * 2**30 / args.files))
            )
        commit.commit(aside, run.checkpoints / "step_000100", step=100)
        rows = []
        for n in range(args.rounds):
            ours = seconds(
                [sys.executable, "-m", "seatrial", "runs", "push", "r-1", "--to", f"s3://models/ours-{n}"],
                env,
            )
            (run.root / "mirror.json").unlink()
            theirs = seconds(
                [args.aws, "s3", "sync", "--only-show-errors", str(run.root), f"s3://models/theirs-{n}"], env
            )
            rows.append((ours, theirs))
            print(f"round {n}: seatrial {ours:.1f} s, aws s3 sync {theirs:.1f} s", flush=True)
        print(f"ratio {statistics.median(a / b for a, b in rows):.2f} (goal 1.0 or less)")
        # The server stands for another machine.
        os.sched_setscheduler(server.pid, os.SCHED_IDLE, os.sched_param(0))
        slower = []
        for n in range(args.rounds):
            alone = steps(env, 8.0)
            pushing = subprocess.Popen(
                [
                    "chrt",
                    "--idle",
                    "0",
                    sys.executable,
                    "-m",
                    "seatrial",
                    "runs",
                    "push",
                    "r-1",
                    "--to",
                    f"s3://models/beside-{n}",
                ],
                env=env,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            time.sleep(1.0)
            beside = steps(env, 8.0)
            pushing.kill()
            pushing.wait()
            (run.root / "mirror.json").unlink(missing_ok=True)
            slower.append((beside[0] / alone[0], beside[1] / alone[1]))
        print(
            f"step beside it: {statistics.median(a for a, _ in slower):.3f} x (median step), {statistics.median(b for _, b in slower):.3f} x (mean); goal below 1.02"
        )


if __name__ == "__main__":
    main()
