"""From the command to the first optimizer step in pods, against the same on this machine; and what many pods cost.

    benchmarks/kubernetes_start.py -n 5
    benchmarks/kubernetes_start.py --scale

The cluster is the pretend one of `seatrial.testing`, over HTTP on the loopback: its pods are processes, its images need no
time, so what is left is what Seatrial does. One node with two CPU ranks, the same script, variants take turns. ``--scale``
lists 10,000 pods, and follows a job of 200 whose pods print: requests, seconds, and memory of the process that follows.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from first_step import BARE, make_inputs
from slurm_start import inputs, wait_for

from seatrial.testing import FakeKubernetes
from seatrial.testing.kubernetes import kinds

SEATRIAL = [sys.executable, "-m", "seatrial"]
FOLLOWS = """
import json, os, resource, sys, time
from pathlib import Path
from seatrial.backends.kubernetes.api import Api
from seatrial.backends.kubernetes.followed import Followed
from seatrial.backends.kubernetes.names import Handle
from seatrial.backends.kubernetes.observe import Observer
from seatrial.runs.paths import RunPaths
from seatrial.spec.kubernetes import KubernetesSpec
api = Api.connect(KubernetesSpec())
api.get("/apis")
import psutil
rss = lambda: psutil.Process().memory_info().rss / 2**20
before, asked, began = rss(), api.requests, time.monotonic()
if sys.argv[1] == "list":
    from seatrial.backends.kubernetes.nodes import read_pods
    items, _ = read_pods(api)
    print(json.dumps({"pods": len(items), "s": time.monotonic() - began, "requests": api.requests - asked, "mib": rss() - before}))
    raise SystemExit
root = Path(sys.argv[2]); (root / "attempt-0" / "logs").mkdir(parents=True)
handle = Handle("ml", "job", "big-a0", "fake")
followed = Followed(api, handle, Observer(api, handle, "batch/v1", "seatrial/run=big,seatrial/attempt=0"), RunPaths(root))
followed.look(); first = time.monotonic() - began; at_first = api.requests - asked
until, looks, cpu = time.monotonic() + 20, 0, time.process_time()
while time.monotonic() < until:
    followed.look(); looks += 1; time.sleep(0.2)
lines = sum(1 for p in root.rglob("rank_*.log") for _ in p.open())
print(json.dumps({"first_look_s": first, "requests_first": at_first, "requests_20_s": api.requests - asked - at_first, "looks": looks,
                  "lines": lines, "mib": rss() - before, "cpu_of_20_s": time.process_time() - cpu}))
os._exit(0)
"""


def start(directory: Path, cluster: FakeKubernetes, where: str, round_: int) -> float:
    """Seconds from the command to the script's first step."""
    mark = directory / f"mark-{where}-{round_}"
    runs = Path(tempfile.mkdtemp(dir=directory))
    argv = [
        *SEATRIAL,
        "run",
        "-d",
        "--runs-dir",
        str(runs),
        "--on",
        where,
        "--nproc",
        "2",
        "--gpus",
        "0",
        "--",
        "bare.py",
        *inputs(directory, mark),
    ]
    config = directory / "config.yaml"
    site = {"image": "here", "claim": "runs", "path": str(directory / "volume"), "python": sys.executable}
    config.write_text(json.dumps({"defaults": {"kubernetes": site}}))
    environment = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig), "SEATRIAL_CONFIG": str(config)}
    began = time.time()
    done = subprocess.run(argv, cwd=directory / "work", env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    took = wait_for(mark) - began
    run_id = done.stdout.strip()
    while "completed" not in subprocess.run(
        [*SEATRIAL, "runs", "show", run_id, "--runs-dir", str(runs)], env=environment, capture_output=True, text=True
    ).stdout:  # fmt: skip
        time.sleep(0.2)
    return took


def compare(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name).resolve()
        make_inputs(directory)
        (directory / "work").mkdir()
        (directory / "work" / "bare.py").write_text(BARE)
        with FakeKubernetes(directory / "kubernetes") as cluster:
            cluster.add_claim("runs")
            rows = []
            for i in range(rounds + 1):
                row = {
                    where: start(directory, cluster, where, i)
                    for where in (("local", "k8s") if i % 2 else ("k8s", "local"))
                }
                print(
                    f"round {i}: " + ", ".join(f"{where} {took:.2f} s" for where, took in row.items()),
                    flush=True,
                )
                rows.append(row)
    ratios = [row["k8s"] / row["local"] for row in rows[1:]]
    medians = {where: statistics.median(row[where] for row in rows[1:]) for where in ("local", "k8s")}
    print(
        f"median of {rounds}, the first round left out: local {medians['local']:.2f} s, in a pod {medians['k8s']:.2f} s; ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )


def pod(index: int, job: str) -> dict[str, Any]:
    labels = {
        "batch.kubernetes.io/job-completion-index": str(index),
        "seatrial/run": job,
        "seatrial/attempt": "0",
    }
    container = {
        "name": "seatrial", "image": "registry.example.org/seatrial:1", "command": ["python", "-m", "x"] * 5,
        "env": [{"name": f"V{i}", "value": "x" * 20} for i in range(12)], "resources": {"limits": {"cpu": "112", "memory": "1200Gi"}},
    }  # fmt: skip
    return {
        "metadata": {"name": f"{job}-a0-{index}-abcde", "labels": labels, "annotations": dict(labels)},
        "spec": {
            "nodeName": f"node-{index}",
            "containers": [container],
            "volumes": [{"name": f"v{i}", "emptyDir": {}} for i in range(6)],
        },
        "status": {
            "phase": "Running",
            "containerStatuses": [
                {"name": "seatrial", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}
            ],
        },
    }


class Still(FakeKubernetes):
    """Its controllers rest: the pods are there to be looked at."""

    def _go_on(self) -> None:
        return


def scale() -> None:
    with tempfile.TemporaryDirectory() as name, Still(Path(name) / "kubernetes", nodes=0) as cluster:
        for i in range(9800):
            cluster.store.create(kinds.PODS, "others", pod(i, "other"))
        cluster.add(
            kinds.JOBS,
            {
                "metadata": {"name": "big-a0"},
                "spec": {"completions": 200, "parallelism": 200},
                "status": {"active": 200, "ready": 200},
            },
        )
        for i in range(200):
            made = cluster.add(kinds.PODS, pod(i, "big"))
            uid = made["metadata"]["uid"]
            lines = [
                f"2026-01-01T00:00:{n // 10:02d}.{n % 10}00000000Z [attempt-0/logs/rank_{8 * i:05d}.log +{n * 9}] line {n:03d}\n"
                for n in range(300)
            ]
            (cluster.directory / "logs" / f"{uid}.log").write_text("".join(lines))
            cluster.kubelet.running[uid] = uuid.UUID(int=0)  # type: ignore[assignment]
        environment = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig)}
        for what in ("list", "follow"):
            done = subprocess.run(
                [sys.executable, "-c", FOLLOWS, what, f"{name}/run"],
                env=environment,
                capture_output=True,
                text=True,
            )
            print(what, done.stdout.strip() or done.stderr, flush=True)
        cluster.kubelet.running.clear()
    print(
        f"the server's own memory, with both: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=5, help="rounds")
    parser.add_argument("--scale", action="store_true")
    args = parser.parse_args()
    scale() if args.scale else compare(args.n)
