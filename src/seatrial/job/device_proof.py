"""Whether this device computes: ``python -m seatrial.job.device_proof``, an image's health check.

A product of two matrices of ones is known exactly: a wrong number, or none, is a device that can't be trained on.
``$EXPECT_DEVICE`` is what the image is for, ``cuda`` or ``cpu``; without it, whatever there is.
"""

from __future__ import annotations

import os
import sys

_SIZE = 256


def proof(expected: str | None) -> str:
    """What was computed, on what.

    Args:
        expected: ``cuda`` or ``cpu``; None takes CUDA where it is.

    Raises:
        RuntimeError: the device is not there, or computes something else.
    """
    import torch

    device = expected or ("cuda" if torch.cuda.is_available() else "cpu")
    ones = torch.ones(_SIZE, _SIZE, device=device)
    total = float((ones @ ones).sum().item())
    if total != float(_SIZE**3):
        raise RuntimeError(f"{_SIZE}³ is {_SIZE**3}, and {device} says {total}")
    name = torch.cuda.get_device_name() if device == "cuda" else "the processor"
    return f"{name} computes: torch {torch.__version__}"


def main() -> int:
    """0 where it computes, else 1 with the reason."""
    try:
        print(proof(os.environ.get("EXPECT_DEVICE")))  # noqa: T201 - a program's output
    except (RuntimeError, AssertionError, ImportError) as error:
        print(f"the device does not compute: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
