"""Which of a machine's GPUs a job sees."""

from __future__ import annotations

from collections.abc import Sequence


def visible(gpus: Sequence[tuple[str, str]], variable: str | None) -> list[int]:
    """Places, in the job's own order, of the GPUs that ``CUDA_VISIBLE_DEVICES`` names.

    CUDA reads the variable up to the first entry that names no device (CUDA programming guide, "CUDA Environment
    Variables"); so does this.

    Args:
        gpus: index and UUID of each GPU of the machine, as the driver tells them.
        variable: its value: indices, or beginnings of UUIDs; None shows all.
    """
    if variable is None:
        return list(range(len(gpus)))
    found: list[int] = []
    for word in (part.strip() for part in variable.split(",")):
        named = (
            place
            for place, (index, uuid) in enumerate(gpus)
            if word in (index, uuid) or (word.startswith("GPU-") and uuid.startswith(word))
        )
        place = next(named, None)
        if place is None:
            break
        found.append(place)
    return found
