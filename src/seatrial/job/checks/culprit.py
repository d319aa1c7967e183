"""Which rank made a collective fail: its peers fail, too, and later. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from seatrial.job.checks.orders import End

Counts = Mapping[tuple[int, int | None], int]
"""How many things each rank has begun, by node rank and GPU."""
_KILLED = frozenset({137, 139, 134})
"""What a shell makes of SIGKILL, SIGSEGV and SIGABRT; a program that lost a peer ends with 1."""


def find(ends: Iterable[End], begun: Counts) -> End | None:
    """The end of the rank that failed first of itself; None where all failed alike.

    Args:
        ends: of all ranks of a world.
        begun: of ranks that hang, the one that is behind holds the others up.
    """
    failed = [end for end in ends if end.failed]
    gone = [end for end in failed if end.returncode is None]
    died = [
        end for end in failed if not end.ended and end.returncode is not None and _by_itself(end.returncode)
    ]
    for some in (gone, died):
        if some:
            return min(some, key=lambda end: end.at)
    told = [end for end in failed if not end.ended]
    late = [end for end in failed if end.late]
    if late and not told:
        counts = {(end.node_rank, end.gpu): begun.get((end.node_rank, end.gpu), 0) for end in late}
        least = min(counts.values())
        behind = [end for end in late if counts[end.node_rank, end.gpu] == least]
        return behind[0] if len(behind) < len(late) or len(late) == 1 else None
    if told and len({end.last_lines[-1:] for end in told}) == 1 and len(told) == len(failed) > 1:
        return None
    return min(told, key=lambda end: end.at) if told else None


def _by_itself(returncode: int) -> bool:
    return returncode < 0 or returncode in _KILLED
