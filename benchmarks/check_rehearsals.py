"""Every fault on purpose, one at a time, on pretend nodes: was it found, and was the right part named?

    benchmarks/check_rehearsals.py --nodes 4            # also healthy; about a minute each on two cores

These are real processes and real collectives, and the pretend nodes share this machine: what is proved is that a fault travels
from where it happens to the part of the verdict that names it. How small a slowdown is found among how many nodes is the
business of check_recall.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CASES: dict[str, tuple[str, set[str], tuple[str | None, ...]]] = {
    "": ("quick", set(), ()),
    "dead-node:node=3": ("quick", {"report"}, ("pretend-3",)),
    "hung-probe:node=2,gpu=1": ("quick", {"report"}, ("pretend-2",)),
    "dead-rank:node=1,gpu=1": ("quick", {"report"}, ("pretend-1",)),
    "slow-gpu:node=1,gpu=1,factor=0.5": ("quick", {"gemm", "memory"}, ("pretend-1",)),
    "slow-node:node=2,factor=0.4": ("standard", {"gemm", "memory", "pairs"}, ("pretend-2",)),
    "slow-link:node=0,peer=2,factor=0.3": ("full", {"pairs"}, ("pretend-0", "pretend-2")),
    "wrong-driver:node=1": ("quick", {"versions"}, ("pretend-1",)),
    "small-shm:node=0": ("quick", {"shared_memory"}, ("pretend-0",)),
    "low-memlock:node=3": ("quick", {"locked_memory"}, ("pretend-3",)),
    "flipped-bits:node=2,gpu=0": ("quick", {"node_data", "cluster_data"}, ("pretend-2",)),
    "wrong-result:node=1,gpu=0": ("quick", {"gemm_result"}, ("pretend-1",)),
    "throttling:node=0,gpu=1": ("quick", {"throttle"}, ("pretend-0",)),
    "xid:node=2": ("quick", {"xid"}, ("pretend-2",)),
    "wrong-transport:node=1": ("quick", {"transport", "cluster_transport"}, ("pretend-1",)),
    "slow-clock:node=3": ("quick", {"clock"}, ("pretend-3",)),
}
"""By fault: the suite that finds it, checks one of which must say so, and the parts that may be named."""
SHORT = {
    "quick": ["--skip", "local_disk"],
    "standard": ["--only", "report,gemm,memory,pairs"],
    "full": ["--only", "report,pairs"],
}


def rehearse(fault: str, suite: str, nodes: int, directory: Path) -> tuple[int, float, dict[str, Any]]:
    began = time.monotonic()
    argv = [sys.executable, "-m", "seatrial", "check", suite, "--rehearse", "--nodes", str(nodes), *SHORT[suite],
            "--json", "--runs-dir", str(directory)]  # fmt: skip
    argv += ["--inject", fault] if fault else []
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    try:
        return done.returncode, time.monotonic() - began, json.loads(done.stdout)
    except ValueError:
        raise SystemExit(f"{fault}: exit code {done.returncode}\n{done.stderr}") from None


def judge(fault: str, found: dict[str, Any]) -> tuple[str, str]:
    _, checks, parts = CASES[fault]
    bad = [f for f in found["findings"] if f["verdict"] in {"FAIL", "WARN"} and f["blame"]]
    named = {(f["check"], f["node"], f["gpu"], f["peer"]): f["verdict"] for f in bad}
    hit = [key for key in named if key[0] in checks and (key[1] in parts or key[3] in parts)]
    wrong = [key for key in named if key[1] not in parts and key[3] not in parts and named[key] == "FAIL"]
    told = "; ".join(
        f"{named[k]} {k[0]} {k[1]}{'' if k[2] is None else f' GPU {k[2]}'}{f'–{k[3]}' if k[3] else ''}"
        for k in hit[:2]
    )
    state = ("found" if hit else "MISSED") if checks else "healthy"
    return state + (f", {len(wrong)} ACCUSED" if wrong else ""), told or "; ".join(map(str, wrong[:3]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--faults", nargs="+", default=list(CASES), help="some of them")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for fault in args.faults:
            code, seconds, found = rehearse(fault, CASES[fault][0], args.nodes, Path(name))
            state, told = judge(fault, found)
            print(f"{fault or 'healthy':<36} exit {code}  {seconds:4.0f} s  {state:<10} {told}", flush=True)


if __name__ == "__main__":
    main()
