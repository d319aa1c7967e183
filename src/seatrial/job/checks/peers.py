"""Phase 1: copies from each GPU of a node to each other one, one after another. One process a node.

``python -m seatrial.job.checks.peers``, started by the conductor.
"""

from __future__ import annotations

import sys
from functools import partial
from itertools import permutations

import torch

from seatrial.job.checks import inject
from seatrial.job.checks.speed import attempt
from seatrial.job.checks.task import Task
from seatrial.job.checks.timing import measure
from seatrial.runs.samples import Sample

_BYTES = 256 * 2**20
_CAP_S = 1.5


def copy(task: Task, source: int, target: int) -> Sample:
    """GB/s one way between two GPUs; through the host's memory where they can't reach each other's."""
    torch.cuda.set_device(source)  # The copy runs on the source's stream, and so do the events.
    here = torch.empty(_BYTES, dtype=torch.uint8, device=torch.device("cuda", source))
    there = torch.empty(_BYTES, dtype=torch.uint8, device=torch.device("cuda", target))
    slow = min(inject.slow_down(task, source), inject.slow_down(task, target))
    work = partial(there.copy_, here, non_blocking=True)
    blocks = measure(work, here.device, cap_s=_CAP_S, slow=slow, block_s=0.1)
    detail = {
        "bytes": _BYTES,
        "can_access_peer": torch.cuda.can_device_access_peer(source, target),
        **blocks.detail(),
    }
    values = [rate * _BYTES / 1e9 for rate in blocks.rates]
    return task.sample("peer_copy", "p2p", blocks.typical * _BYTES / 1e9, values=values, unit="GB/s",
                       gpu=source, peer_gpu=target, detail=detail)  # fmt: skip


def main() -> int:
    """Measures every ordered pair of this node's GPUs; 0, whatever came out."""
    task = Task.from_env()
    if not task.wants("peer_copy") or task.device != "cuda":
        return 0
    for source, target in permutations(range(min(task.nproc, torch.cuda.device_count())), 2):
        sample = attempt(task, "peer_copy", "p2p", partial(copy, task, source, target))
        task.write(sample.model_copy(update={"gpu": source, "peer_gpu": target}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
