"""What a command costs before it does anything, in CPU time of `python -c pass`: interleaved, median of N."""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(sys.executable).parent
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "seatrial --help": [str(HERE / "seatrial"), "--help"],
    "seatrial runs list": [str(HERE / "seatrial"), "runs", "list"],
    "torchrun --help": [str(HERE / "torchrun"), "--help"],
}


def cpu_s(argv: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=9)
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(parser.parse_args().n):
        for name, argv in COMMANDS.items():
            times[name].append(cpu_s(argv))
    unit = statistics.median(times["python -c pass"])
    for name, found in times.items():
        median = statistics.median(found)
        print(
            f"{name:<20} {median / unit:6.1f} ×   {median:.3f} CPU-s   ({min(found):.3f} to {max(found):.3f})"
        )


if __name__ == "__main__":
    main()
