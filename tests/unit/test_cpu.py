"""Memory that is kept is not paid for again at every step."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="the job side needs the extra 'train'")

CODE = """
import resource, torch
from seatrial.job.cpu import keep_memory
kept = {keep} and keep_memory()
for i in range(26):
    if i == 18:  # it takes some blocks until one fits where another was freed
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(2**24)  # 64 MiB, as large as the gradient of an embedding
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(keep: bool) -> tuple[int, int]:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(keep=keep)], capture_output=True, text=True, check=True
    )
    kept, faults = map(int, done.stdout.split())
    return kept, faults


def test_a_freed_block_is_used_again_without_the_kernel() -> None:
    kept, faults = page_faults(True)
    if not kept:
        pytest.skip("the C library has no mallopt that obeys")
    assert faults < page_faults(False)[1] / 20
