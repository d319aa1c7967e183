"""Many runs: the first index, then `runs stats` and a filtered `runs list` warm, against reading every manifest with the json module.

    benchmarks/index.py --runs 100000 --rounds 5

Manifests are a real one's size, varied. Each side is a fresh process; the plain one answers the same question with `os.scandir` and
`json.loads` alone. The files are in the page cache on both sides. Peak memory is the process's own (``ru_maxrss``).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PACKAGES = {f"package-{n}": f"{n}.{n % 7}.{n % 3}" for n in range(150)}
PLAIN = """
import collections, json, os, sys
runs, states, losses, hours = 0, collections.Counter(), [], 0.0
for entry in os.scandir(sys.argv[1]):
    try:
        with open(f"{entry.path}/manifest.json", "rb") as file:
            manifest = json.loads(file.read())
    except (OSError, ValueError):
        continue
    if sys.argv[2] == "list" and not ("infra" in manifest["tags"] and (manifest["results"].get("training") or {}).get("last_loss", 9) < 0.1):
        continue
    runs += 1
    states[manifest["state"]] += 1
    losses.append(manifest["results"]["training"]["last_loss"])
print(runs)
"""


def make(root: Path, count: int) -> int:
    rng = random.Random(1)
    size = 0
    for number in range(count):
        run_id = f"reviews-20260101-{number:06d}-{number % 65536:04x}"
        manifest = {
            "schema": 1, "run_id": run_id, "name": "reviews", "task": "text-classification",
            "state": rng.choice(["completed"] * 8 + ["failed", "preempted"]), "reason": "", "created": f"2026-{number % 12 + 1:02d}-01T10:00:00.000+00:00",
            "updated": "2026-01-01T11:00:00.000+00:00", "command": ["seatrial", "train", "recipe.yaml"], "cwd": "/home/ann/project",
            "tags": rng.sample(["infra", "nightly", "large", "small"], 2), "spec_sha256": "0" * 64, "git": None, "code": None,
            "seatrial_version": "0.1.0", "python": "3.11.7",
            "environment": {"python": "CPython 3.11.7", "torch": {"version": "2.13.0", "gpus": ["NVIDIA H100 80GB HBM3"] * 8}, "packages": PACKAGES},
            "data": {"train": {"num_samples": 2082, "sha256": "b" * 64}, "test": {"num_samples": 851, "sha256": "9" * 64}},
            "models": {"original": {"sha256": "9" * 64}, "trained": {"sha256": "a" * 64}}, "acceptance": {},
            "results": {"training": {"steps": 792, "last_loss": rng.random()}},
            "attempts": [{"index": 0, "handle": f"slurm://{number}/x", "stages": ["train"], "nproc": 8, "nodes": 2, "device": "cuda",
                          "started": "2026-01-01T10:00:00.000+00:00", "ended": "2026-01-01T11:00:00.000+00:00", "exit_code": 0,
                          "outcome": "completed", "changes": {}, "failure": None}],
        }  # fmt: skip
        directory = root / run_id
        directory.mkdir()
        text = json.dumps(manifest, indent=2)
        size = len(text)
        (directory / "manifest.json").write_text(text)
    return size


def timed(argv: list[str], env: dict[str, str]) -> tuple[float, str]:
    began = time.perf_counter()
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=env)
    return time.perf_counter() - began, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="seatrial-index-") as directory:
        root = Path(directory, "runs")
        root.mkdir()
        size = make(root, args.runs)
        env = os.environ | {"XDG_CACHE_HOME": str(Path(directory, "cache")), "SEATRIAL_RUNS_DIR": str(root)}
        ours = {
            "stats": [sys.executable, "-m", "seatrial", "runs", "stats", "--json"],
            "list": [
                sys.executable,
                "-m",
                "seatrial",
                "runs",
                "list",
                "--where",
                "tags contains infra and loss < 0.1",
            ],
        }
        plain = {verb: [sys.executable, "-c", PLAIN, str(root), verb] for verb in ours}
        print(f"{args.runs} runs, manifests of {size} bytes")
        print(f"first index: {timed(ours['stats'], env)[0]:.1f} s")
        for verb in ours:
            rows = []
            for _ in range(args.rounds):
                a, said = timed(plain[verb], env)
                b, told = timed(ours[verb], env)
                rows.append((a, b))
            count = json.loads(told)[0]["runs"] if verb == "stats" else len(told.splitlines())
            assert count == int(said), (count, said)
            ratio = statistics.median(a / b for a, b in rows)
            print(
                f"{verb}: plain {statistics.median(a for a, _ in rows):.2f} s, warm {statistics.median(b for _, b in rows):.2f} s, {ratio:.1f} x"
            )
        changed = root / "reviews-20260101-000000-0000" / "manifest.json"
        changed.write_text(changed.read_text().replace("792", "793"))
        os.utime(root)  # as whoever writes a manifest does
        print(f"one changed: {timed(ours['stats'], env)[0]:.2f} s")
    print(
        f"peak memory of any process: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024:.0f} MB"
    )


if __name__ == "__main__":
    main()
