"""What a preflight takes against what finds mistakes without it: `terraform validate` and `terraform plan` of the same recipe.

The recipe is the tests' small one, with a provider in Python: the real one's plan takes several times longer. Rounds are interleaved.

    python -m benchmarks.cluster_preflight [ROUNDS]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.nebius.cloud import FakeCloud
from tests.nebius.clusters import PROJECT, TOKEN, Clusters
from tests.nebius.server import NebiusServer


def timed(argv: list[str], **more: object) -> float:
    began = time.perf_counter()
    done = subprocess.run(argv, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, **more)  # type: ignore[call-overload]
    assert done.returncode == 0, (argv, done.stdout[-500:], done.stderr[-500:])
    return time.perf_counter() - began


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    with tempfile.TemporaryDirectory() as directory:
        cloud = FakeCloud(Path(directory) / "cloud.sqlite")
        cloud.set(projects={PROJECT: "eu-north1"}, tokens=[TOKEN])
        cloud.create("nebius_vpc_v1_subnet", PROJECT, "default")
        with NebiusServer(cloud) as server:
            root = Path(directory) / "user"
            root.mkdir()
            clusters = Clusters(root, cloud, server.address)
            clusters.write()
            assert clusters("plan").code == 0
            installation = clusters.work / "recipe" / "soperator" / "installations" / "demo"
            env = clusters.environment(
                TF_VAR_iam_token=TOKEN, TF_VAR_backups_password="x", TF_IN_AUTOMATION="1"
            )
            seatrial = [sys.executable, "-m", "seatrial", "cluster", "preflight"]
            terraform = ["terraform", f"-chdir={installation}"]
            commands = {
                "seatrial cluster preflight --offline": ([*seatrial, "--offline"], clusters.cwd),
                "seatrial cluster preflight": (seatrial, clusters.cwd),
                "terraform validate": ([*terraform, "validate"], clusters.cwd),
                "terraform plan": ([*terraform, "plan", "-input=false"], clusters.cwd),
            }
            took: dict[str, list[float]] = {name: [] for name in commands}
            for _ in range(rounds):
                for name, (argv, cwd) in commands.items():
                    took[name].append(timed(argv, cwd=cwd, env=env))
    base = statistics.median(took["terraform plan"])
    for name, values in took.items():
        middle = statistics.median(values)
        print(
            f"{name:<40} {middle:6.2f} s  ({min(values):.2f} to {max(values):.2f})  {middle / base:5.2f} × the plan"
        )


if __name__ == "__main__":
    main()
