"""Promoting a model while somebody loads it in a loop, against copying it by hand.

    benchmarks/promote.py --gib 2 --rounds 3

The reader resolves ``current``, hashes every file and compares with the version's marker, again and again, while versions change: gaps are reads
that found nothing, half a model, or a mix. By hand: ``cp -r`` and ``sha256sum`` of the copy, which is what a promotion does and a careful person would.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from seatrial.ship import chain
from seatrial.ship.package import package
from seatrial.ship.promote import promote, rollback
from seatrial.ship.target import Target

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.integration.test_releases import READS
from tests.trees import make_run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="seatrial-promote-") as directory:
        home = Path(directory)
        size = int(args.gib * 2**30)
        releases = [package(make_run(home / "runs", f"r-{n}", weights=os.urandom(size))) for n in range(2)]
        target = Target(str(home / "deploy"), "m")
        rows = []
        for n in range(args.rounds):
            began = time.perf_counter()
            promote(releases[n % 2], target, chain.DEFAULT)
            ours = time.perf_counter() - began
            began = time.perf_counter()
            copy = home / f"copy-{n}"
            subprocess.run(["cp", "-r", str(releases[n % 2].root), str(copy)], check=True)
            subprocess.run(["sync", "-f", str(copy)], check=True)
            subprocess.run(["sha256sum", "--quiet", "--check", "SHA256SUMS"], cwd=copy, check=True)
            rows.append((ours, time.perf_counter() - began))
            subprocess.run(["rm", "-r", str(copy)], check=True)
            print(f"round {n}: promote {rows[-1][0]:.1f} s, by hand {rows[-1][1]:.1f} s", flush=True)
        print(f"ratio {statistics.median(a / b for a, b in rows):.2f}")
        reader = subprocess.Popen(
            [sys.executable, "-c", READS, str(home / "deploy" / "m" / "current"), "40"],
            stdout=subprocess.PIPE,
            text=True,
        )
        until, switches = time.monotonic() + 35, 0
        while time.monotonic() < until:
            if switches % 10 == 0 and len(target.versions()) < 5:
                promote(releases[switches // 10 % 2], target, chain.DEFAULT)
            else:
                rollback(target, f"v{switches % 2 + 1}") if target.current()[
                    0
                ] != f"v{switches % 2 + 1}" else None
            switches += 1
            time.sleep(1.0)
        told = json.loads(reader.communicate(timeout=120)[0])
        print(
            f"reader: {told['reads']} whole models of {args.gib:g} GiB read over {len(told['versions'])} versions, {len(told['wrong'])} gaps {told['wrong']}"
        )


if __name__ == "__main__":
    main()
