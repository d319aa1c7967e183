"""From the submission to the first optimizer step on Slurm, against a batch script written by hand; and what following costs.

    eval "$(python -m tests.slurm up)"     # or any cluster's login node, with a shared directory as --directory
    benchmarks/slurm_start.py -n 5
    benchmarks/slurm_start.py --follow 30

By hand means: sbatch, ``srun torchrun`` with a static rendezvous on the first node, and a script that imports what the
ranks import, loads model and data and takes one step. `seatrial run` runs that same script; `seatrial train` is the
trainer with all its checks. Two nodes with two CPU ranks each, variants take turns. The clock starts at the submission:
for the script by hand when sbatch is started, for Seatrial when it writes the record just before sbatch; the second
column starts it with the command.

``--follow`` runs a script that prints the time every half a second, and tells how late the attached command shows the
lines, and how many queries the controller answered meanwhile (``sdiag``).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from first_step import BARE, make_inputs

NODES, NPROC = 2, 2
SEATRIAL = [sys.executable, "-m", "seatrial"]
PLATFORM = ["--on", "slurm", "--nodes", str(NODES), "--nproc", str(NPROC), "--gpus", "0"]
BY_HAND = """#!/bin/bash
#SBATCH --nodes={nodes} --ntasks-per-node=1 --cpus-per-task={nproc} --output={directory}/hand-%j.out
export OMP_NUM_THREADS=1
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1)
srun --kill-on-bad-exit=1 {python} -m torch.distributed.run --nnodes={nodes} --nproc-per-node={nproc} \\
    --rdzv-backend=c10d --rdzv-endpoint="$MASTER_ADDR:29500" --rdzv-id="$SLURM_JOB_ID" {argv}
"""
PRINTS = """
import time
for _ in range({lines}):
    print("at", time.time(), flush=True)
    time.sleep(0.5)
"""


def wait_for(mark: Path, limit_s: float = 300) -> float:
    """When the mark was written (seconds since the epoch)."""
    until = time.monotonic() + limit_s
    while not mark.exists():
        if time.monotonic() > until:
            raise SystemExit(f"{mark} never came")
        time.sleep(0.01)
    return mark.stat().st_mtime


def by_hand(directory: Path, mark: Path) -> tuple[float, float]:
    """Seconds from the submission, and from the command, which are one here."""
    argv = shlex.join([str(directory / "bare.py"), *inputs(directory, mark)])
    script = directory / "hand.sh"
    script.write_text(
        BY_HAND.format(
            nodes=NODES, nproc=NPROC, directory=shlex.quote(str(directory)), python=sys.executable, argv=argv
        )
    )
    began = time.time()
    subprocess.run(["sbatch", "--parsable", str(script)], check=True, capture_output=True)
    took = wait_for(mark) - began
    return took, took


def ours(directory: Path, mark: Path, argv: list[str]) -> tuple[float, float]:
    """Seconds from the submission, and from the command."""
    runs = Path(tempfile.mkdtemp(dir=directory))
    began = time.time()
    verb, *rest = argv
    subprocess.run(
        [*SEATRIAL, verb, "-d", "--runs-dir", str(runs), *PLATFORM, *rest], check=True, capture_output=True
    )
    run = next(runs.iterdir())
    if verb == "train":
        wait_for(run / "metrics.jsonl")
        row = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
        ended = datetime.fromisoformat(row["time"]).timestamp()
    else:
        ended = wait_for(mark)
    record = json.loads((run / "manifest.json").read_text())["attempts"][0]
    submitted = datetime.fromisoformat(record["started"]).timestamp()
    return ended - submitted, ended - began


def inputs(directory: Path, mark: Path) -> list[str]:
    return [str(directory / "encoder"), str(directory / "data.csv"), str(mark)]


def wait_idle() -> None:
    """A job that still ends would slow the next one down."""
    while subprocess.run(["squeue", "-h", "--me"], check=True, capture_output=True, text=True).stdout.strip():
        time.sleep(0.2)


def start(directory: Path, times: int) -> None:
    """Prints medians, and ratios that are medians of those within a round."""
    make_inputs(directory)
    (directory / "bare.py").write_text(BARE)

    def script(launcher: str) -> Callable[[Path], tuple[float, float]]:
        def run(mark: Path) -> tuple[float, float]:
            return ours(
                directory,
                mark,
                ["run", "--launcher", launcher, "--", str(directory / "bare.py"), *inputs(directory, mark)],
            )

        return run

    train = ["train", "--model", str(directory / "encoder"), "--data", str(directory / "data.csv"), "--batch-size", "4",
             "--max-steps", "1", "--max-length", "32", "--train-only"]  # fmt: skip
    variants: dict[str, Callable[[Path], tuple[float, float]]] = {
        "by hand: sbatch + torchrun": lambda mark: by_hand(directory, mark),
        "seatrial run, torchrun": script("torchrun"),
        "seatrial run, warm": script("warm"),
        "seatrial train, warm": lambda mark: ours(directory, mark, train),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for index in range(times):
        for name, run in variants.items():
            wait_idle()
            found[name].append(run(directory / f"mark-{index}-{len(found[name])}-{abs(hash(name))}"))
            print(f"  {name:<28} {found[name][-1][0]:6.1f} s  {found[name][-1][1]:6.1f} s", flush=True)
    base = [first for first, _ in found["by hand: sbatch + torchrun"]]
    for name, pairs in found.items():
        ratio = statistics.median(mine / theirs for (mine, _), theirs in zip(pairs, base, strict=True))
        whole = statistics.median(command / theirs for (_, command), theirs in zip(pairs, base, strict=True))
        median = statistics.median(first for first, _ in pairs)
        print(
            f"{name:<28} {median:6.1f} s   {ratio:.2f} × by hand from the submission, {whole:.2f} × from the command"
        )


def queries() -> int:
    """Questions about jobs that the controller has answered since its start; squeue asks one, and one about partitions."""
    text = subprocess.run(["sdiag"], check=True, capture_output=True, text=True).stdout
    asked = re.findall(r"REQUEST_JOB_\w*INFO\w*\s+\(\s*\d+\) count:(\d+)", text.partition("by user")[0])
    return sum(map(int, asked))


def follow(directory: Path, seconds: int) -> None:
    """Prints how late lines are shown, and the controller's requests a second."""
    script = directory / "prints.py"
    script.write_text(PRINTS.format(lines=2 * seconds))
    argv = [*SEATRIAL, "run", "--runs-dir", str(directory / "runs"), "--on", "slurm", "--gpus", "0", "--launcher", "warm",
            "--", str(script)]  # fmt: skip
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    late, first = [], None
    for line in process.stderr:
        match = re.search(r"at (\d+\.\d+)", line)
        if match:
            late.append(time.time() - float(match[1]))
            first = first or (time.monotonic(), queries())
    assert first is not None
    span, served = time.monotonic() - first[0], queries() - first[1]
    print(
        f"{len(late)} lines shown {statistics.median(late):.2f} s after they were written, at most {max(late):.2f} s"
    )
    print(f"{served} queries in {span:.0f} s, the job's own included: one each {span / max(served, 1):.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", type=int, default=5, help="rounds")
    parser.add_argument("--follow", type=int, metavar="SECONDS")
    parser.add_argument("--directory", type=Path, help="shared by the nodes [a temporary one]")
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory(dir=args.directory, ignore_cleanup_errors=True) as name:
        if args.follow:
            follow(Path(name), args.follow)
        else:
            start(Path(name), args.n)


if __name__ == "__main__":
    main()
