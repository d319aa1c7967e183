"""A test cluster by hand: ``eval "$(python -m tests.slurm up)"``, then Slurm's own commands."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.slurm.cluster import SlurmCluster
from tests.slurm.daemons import ClusterError


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.slurm", description=__doc__)
    directory = Path(tempfile.gettempdir()) / f"slurm-by-hand-{os.getuid()}"
    parser.add_argument(
        "--directory", type=Path, default=directory, help="default: %(default)s; deleted by down"
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="start it; prints the line that makes a shell its user")
    up.add_argument("--nodes", type=int, default=2)
    up.add_argument("--gpus", type=int, default=8, help="of each node")
    up.add_argument("--mode", choices=["auto", "ns", "plain"], default="auto")
    up.add_argument("--no-accounting", dest="accounting", action="store_false")
    up.add_argument("--port", type=int, help="the first of its ports")
    up.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of slurm.conf")
    for verb, text in {
        "down": "end it and delete its directory",
        "env": "print the line again",
        "status": "the nodes' states; exit code 1 unless all are idle",
        "clean": "mend what is broken, cancel all jobs",
    }.items():
        verbs.add_parser(verb, help=text)
    for verb, text in {
        "crash": "a power cut of a node",
        "boot": "start it again",
        "cut": "pull its network cable",
        "heal": "put it back",
        "kill-slurmd": "kill its slurmd alone",
    }.items():
        verbs.add_parser(verb, help=text).add_argument("node")
    args = parser.parse_args(argv)
    try:
        return act(args)
    except (ClusterError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1


def act(args: argparse.Namespace) -> int:
    if args.verb == "up":
        if reason := SlurmCluster.unavailable(mode=args.mode, accounting=args.accounting):
            raise ClusterError(reason)
        settings = dict(word.split("=", 1) for word in args.set)
        cluster = SlurmCluster(
            args.nodes, args.gpus, mode=args.mode, accounting=args.accounting, port=args.port, settings=settings,
            directory=args.directory,
        )  # fmt: skip
        began = time.monotonic()
        cluster.up(watched=False)
        print(
            f"{args.nodes} nodes, mode {cluster.mode}, up in {time.monotonic() - began:.1f} s",
            file=sys.stderr,
        )
    else:
        cluster = SlurmCluster.at(args.directory)
    if args.verb in {"up", "env"}:
        print(f"export SLURM_CONF={cluster.plan.conf}")
    elif args.verb == "status":
        states = cluster.states()
        print("\n".join(f"{node} {state}" for node, state in states.items()))
        return int(set(states.values()) != {"idle"})
    else:
        method = getattr(cluster, args.verb.replace("-", "_"))
        method(*([args.node] if "node" in args else []))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
