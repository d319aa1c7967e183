"""Real outputs of Slurm's clients, recorded from three releases by ``tests/fixtures/slurm/record.py``."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from seatrial.backends.slurm import cluster, jobs
from seatrial.backends.slurm.jobs import Job
from seatrial.backends.slurm.room import Snapshot

FIXTURES = Path(__file__).parents[1] / "fixtures" / "slurm"
RELEASES = sorted(path.name for path in FIXTURES.iterdir() if path.is_dir() and path.name[0].isdigit())


def recorded(release: str, name: str) -> str:
    """One command's output. Bytes are decoded as they are: new lines within names must stay what they were."""
    return (FIXTURES / release / name).read_bytes().decode()


@cache
def waiting(release: str) -> Snapshot:
    """The cluster while its nodes were full, one of them drained, and many jobs waited."""
    mine = jobs.parse_squeue(recorded(release, "squeue.txt"))
    return Snapshot(
        now=max(job.submit or 0 for job in mine) + 10.0,
        jobs=mine,
        nodes=cluster.parse_nodes(recorded(release, "nodes.txt")),
        partitions=cluster.parse_partitions(recorded(release, "partitions.txt")),
        reservations=cluster.parse_reservations(recorded(release, "reservations.txt")),
        associations=cluster.parse_associations(recorded(release, "associations.txt")),
        qos=cluster.parse_qos(recorded(release, "qos.txt")),
        config=cluster.parse_config(recorded(release, "config.txt")),
    )


def named(found: list[Job] | tuple[Job, ...], name: str) -> Job:
    """The last record of the job of that name."""
    return [job for job in found if job.name == name][-1]
